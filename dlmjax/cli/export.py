"""`dlmjax export`: a run as files that other code bases load."""

import argparse
import pathlib

from dlmjax import flags
from dlmjax.cli.run_flags import add_run

HELP = "a run as files that transformers, SGLang and others load: weights, tokenizer, config, run card"
VIEWS = "hf: transformers; encoder: sentence-transformers; sdar: SGLang, LMDeploy; llada: dInfer, Fast-dLLM, llama.cpp"


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    add_run(command)
    add = command.add_argument
    add("--view", default="hf", metavar="VIEW", help=f"readers of the files: {VIEWS} (hf)")
    add("--output", type=flags.output_folder, required=True, metavar="DIR", help="new directory for the files")
    add("--dtype", default="bfloat16", choices=("float32", "bfloat16"), help="type of the weights in the files (bfloat16)")
    add("--shard-size", default="2GB", metavar="SIZE", help="largest size of a file of weights, such as 500MB (2GB)")
    add(
        "--evaluation",
        type=flags.input_file,
        metavar="FILE",
        help="file of `dlmjax evaluate --json`, for the run card (evaluation.json of the workdir)",
    )
    add("--overwrite", action="store_true", help="replace an earlier export in --output")


def run(arguments: argparse.Namespace, _) -> None:
    """Exports, prints what was written."""
    from dlmjax.interop.export import export

    names = ("workdir", "view", "output", "dtype", "shard_size", "weights", "step", "evaluation", "overwrite", "process")
    found = export(**{name: getattr(arguments, name) for name in names})
    output, weights = arguments.output, found["weights"]
    size = sum(path.stat().st_size for path in pathlib.Path(output).glob("*.safetensors"))
    what = f"view {arguments.view} of step {found['step']} ({weights} weights), {size:,} bytes of {arguments.dtype}"
    print(f"{output}: {what}; {', '.join(found['files'])}", flush=True)
    if found["no_tokenizer"]:
        print(f"no tokenizer.json was written: {found['no_tokenizer']}; encode texts with dlmjax", flush=True)
