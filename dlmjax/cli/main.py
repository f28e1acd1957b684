"""`dlmjax COMMAND`: parses flags, calls one function, prints one line on bad input and exits with 2.

Heavy imports happen inside the commands, so that `dlmjax --help` answers at once.
"""

import argparse
import json
import os
import shlex
import sys

from dlmjax import __version__, flags
from dlmjax.cli import fit, sweep
from dlmjax.cli import quality_flags as quality
from dlmjax.cli.config_help import HelpConfig
from dlmjax.errors import InputError
from dlmjax.files import require_path

EPILOG = """\
examples:
  dlmjax prepare --input book1.txt book2.txt.gz --tokenizer bytes --output data/books
  dlmjax train --config configs/char27_small.py --config.data.paths=data/books --workdir runs/books
  dlmjax evaluate --workdir runs/books --split test
  dlmjax sample --workdir runs/books --prompt "It was" --length 128 --watch
"""


def _parser() -> argparse.ArgumentParser:
    """All commands and flags."""
    parser = flags.Parser(
        prog="dlmjax",
        description="Pretrain diffusion language models, bound their likelihood, sample from them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"dlmjax {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, help_text, add in (
        ("prepare", "text files -> a tokenized corpus of ArrayRecord shards with one manifest", _add_prepare),
        ("train", "train, or continue, the run that a config describes", _add_train),
        ("evaluate", "likelihood bound of a run on held-out text, with its standard error", _add_evaluate),
        ("interval", "the noise levels at which the loss of a run varies least, to train on these alone", _add_interval),
        ("plan", "what a config would need on TPUs or GPUs that are not here: memory, FLOPs, collectives, step time", _add_plan),
        ("export", "a run as files that transformers, SGLang and others load: weights, tokenizer, config, run card", _add_export),
        ("sample", "text from a run: prompts, infills, templates; watch the denoising or write it as a page", _add_sample),
        ("import", "a Hugging Face checkpoint (safetensors) -> the workdir of a run", _add_import),
        *quality.commands(_add_run),
        *sweep.commands(),
        *fit.commands(),
        ("lm-eval", "tasks of lm-eval-harness on a run: multiple choice, last words, rolling likelihoods, generated answers", _add_lm_eval),
    ):
        command = commands.add_parser(name, help=help_text, description=help_text, allow_abbrev=False)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        add(command)
    return parser


def _add_prepare(command):
    add = command.add_argument
    add(
        "--input",
        nargs="+",
        required=True,
        metavar="FILE",
        help=".txt, .jsonl or .parquet, plain or .gz/.bz2/.xz/.zst, local or a URL (gs://, s3://); or builtin:python-docs",
    )
    add(
        "--tokenizer",
        default="bytes",
        help="bytes | char27 | sentencepiece:FILE.model | hf:tokenizer.json | gpt2:DIR | wordpiece:tokenizer.json | saved:DIR (that of a "
        "prepared corpus or of a run) | train-sentencepiece:VOCAB (trained on the input)",
    )
    add("--output", type=flags.output_folder, required=True, metavar="DIR", help="where shards and manifest go")
    add("--valid-fraction", type=flags.number(0, 1, open_high=True), default=0.0, help="share of the documents held out as `valid`")
    add("--test-fraction", type=flags.number(0, 1, open_high=True), default=0.0, help="share of the documents held out as `test`")
    add("--split-seed", type=flags.split_seed, default=0, help="another seed holds out other documents")
    add(
        "--split-files",
        nargs="+",
        metavar="SPLIT=FILE",
        help="whole files as a split, such as valid=a.txt test=b.txt; --input is then `train`",
    )
    add(
        "--documents",
        default="file",
        metavar="RULE",
        help="what a document of a .txt file is: file, blank-line, line or separator:TEXT",
    )
    add("--text-field", default="text", help="the field of .jsonl and the column of .parquet that hold the text")
    add("--format", choices=("txt", "jsonl", "parquet"), help="of all inputs; default: by each file's name")
    add("--workers", type=flags.whole(1, 4096), help="processes that tokenize; default: one a core; the result does not depend on it")
    add("--overwrite", action="store_true", help="replace a corpus of other inputs that is in --output")
    add(
        "--engine",
        choices=("local", "beam"),
        default="local",
        help="beam: as work items of Apache Beam, with its flags (--runner=...) beside these or behind --; the result is the same",
    )


def _add_train(command):
    command.add_argument("--config", required=True, metavar="FILE", help="a file with get_config(), such as configs/quickstart.py")
    command.add_argument(
        "--workdir",
        type=flags.named_folder,  # launchers read this flag for other machines
        required=True,
        metavar="DIR",
        help="checkpoints, metrics and config of this run; an existing run continues",
    )
    command.add_argument("--fork", type=flags.named_folder, metavar="DIR", help="start from another run's newest checkpoint, counters kept")
    command.add_argument("--init", type=flags.named_folder, metavar="DIR", help="start from another run's weights, counters at zero")
    command.add_argument(
        "--fresh",
        action="store_true",
        help="a new start: checkpoints, metrics and config that are in --workdir are moved into DIR/aside-001 first, and none is deleted",
    )
    command.add_argument("--json", action="store_true", help="end with one line of JSON on standard output")
    command.add_argument("--help-config", action=HelpConfig, help="the fields of a config, with defaults and bounds")
    launch = command.add_argument_group("several processes", "detected automatically under Slurm, Open MPI, GKE and on TPU pods")
    launch.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    launch.add_argument("--num-processes", type=flags.whole(1, 2**20), metavar="N", help="number of processes of the run")
    launch.add_argument("--process-id", type=flags.whole(0, 2**20), metavar="I", help="rank of this process, from 0")
    for old, new in (("--processes", "num_processes"), ("--process", "process_id")):  # the names of these flags until 2026-11
        launch.add_argument(old, dest=new, type=flags.whole(0, 2**20), default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    launch.add_argument(
        "--start-timeout", type=flags.whole(1, 10**6), default=300, metavar="SECONDS", help="in which all must have come (300)"
    )
    launch.add_argument(
        "--heartbeat-timeout", type=flags.whole(1, 10**6), default=100, metavar="SECONDS", help="of silence before a peer is lost (100)"
    )
    launch.add_argument(
        "--max-restarts",
        type=flags.whole(0),
        default=0,
        metavar="N",
        help="start again after a failure, at most N times without progress (0)",
    )
    command.add_argument("--config.SECTION.LEAF", dest="ignored", metavar="VALUE", help="override a leaf, as in --config.optimizer.lr=1e-3")


def _add_run(command):
    command.add_argument("--workdir", type=flags.input_folder, required=True, metavar="DIR", help="a run made by `dlmjax train`")
    command.add_argument("--weights", default="ema", choices=("ema", "raw"), help="averaged weights, or those of the last step")
    command.add_argument("--step", type=flags.whole(0), metavar="N", help="checkpoint to use; default: the newest")


def _add_evaluate(command):
    _add_run(command)
    add = command.add_argument
    add("--data", type=flags.input_folder, metavar="DIR", help="prepared corpus; default: the one it was trained on")
    add("--split", choices=("train", "valid", "test"), help="default: valid of a corpus, that of a suite")
    add(
        "--suite",
        metavar="NAME",
        help="a protocol instead of a corpus: text8, wikitext2, lm1b, ptb, lambada, agnews, pubmed, arxiv, blimp, ...",
    )
    add("--input", nargs="+", default=(), metavar="FILE", help="the files of the suite")
    add("--documents", type=flags.whole(1), metavar="N", help="only N documents (or pairs) of the suite, spread evenly over it")
    add(
        "--window", type=flags.tokens, metavar="N", help="tokens the network sees at a time; default: as trained, or the suite's if shorter"
    )
    add(
        "--stride",
        type=flags.tokens,
        metavar="N",
        help="new tokens of each further window, the rest is context that is given clean; default: all new",
    )
    add("--remainder", choices=("keep", "drop", "truncate", "tail"), help="of what does not fill a window; default: keep, or the suite's")
    add("--batch", type=flags.whole(1, 2**20), default=32, help="windows at a time; does not change the result")
    add("--nodes", type=flags.whole(1, 4096), default=16, help="noise levels of the quadrature over t")
    add("--draws", type=flags.whole(1, 2**20), default=1, help="corruptions per noise level; from 2 on the error is taken apart")
    add("--rule", choices=("gauss", "stratified", "count"), default="gauss", help="of the levels; count: the k-form of masked processes")
    add("--windows", type=flags.whole(1), metavar="N", help="evaluate only the first N windows")
    add("--seed", type=flags.seed, default=0, help="of the fixed grid of corruptions (common to all runs that use it)")
    add(
        "--against",
        type=flags.input_folder,
        metavar="DIR",
        help="another run, on the same text under the same noise: the difference with its own error",
    )
    add("--against-step", type=flags.whole(0), metavar="N", help="checkpoint of the other run to use; default: the newest")
    add("--per-document", type=flags.output_file, metavar="FILE.npz", help="write nats, tokens and bytes of every document here")
    add("--breakdown", action="store_true", help="nats/token by noise level, position in the window and frequency of the token")
    add("--plot", type=flags.output_file, metavar="FILE.png", help="the breakdown as a picture (needs matplotlib)")
    add("--json", type=flags.output_file, metavar="FILE", help="write the result here, with its protocol and what it was made with")


def _add_interval(command):
    _add_run(command)
    command.add_argument("--data", type=flags.input_folder, metavar="DIR", help="prepared corpus; default: the one it was trained on")
    command.add_argument("--split", default="valid", choices=("train", "valid", "test"))
    command.add_argument("--batch", type=flags.whole(1, 2**20), default=32, help="windows at a time")
    command.add_argument("--windows", type=flags.whole(1), default=256, help="windows to measure on")
    command.add_argument("--draws", type=flags.whole(1, 2**20), default=4, help="draws of levels and noise for each window")
    command.add_argument("--least", type=flags.number(0, 1, open_low=True), default=0.5, help="the narrowest interval to consider")
    command.add_argument("--seed", type=flags.seed, default=0, help="of the draws")
    command.add_argument("--json", type=flags.output_file, metavar="FILE", help="write the result here")


def _add_plan(command):
    add = command.add_argument
    add("--config", required=True, metavar="FILE", help="a file with get_config(), such as configs/llada_8b.py")
    add(
        "--topology",
        required=True,
        metavar="CHIP:SHAPE",
        help="v4, v5e, v5p or v6e with the shape of a slice (v5e:4x4, v5p:8x8x8), compiled with libtpu; a100, h100 or h200 with a number "
        "of GPUs (h100:64), by an analytic model",
    )
    add("--slices", type=flags.whole(1, 2**16), default=1, metavar="N", help="that many such slices, joined by the data-centre network")
    add(
        "--data",
        type=flags.input_folder,
        metavar="DIR",
        help="prepared corpus, where the config leaves the vocabulary to it or the process counts its tokens",
    )
    add("--search", action="store_true", help="try mesh shapes, remat policies and microbatches; print the table, best first")
    add(
        "--compiles",
        type=flags.whole(1, 1000),
        default=3,
        metavar="N",
        help="layouts of a search that are compiled, the best by the analytic model first",
    )
    add("--analytic", action="store_true", help="do not compile: the analytic model only, in seconds")
    add("--quick", action="store_true", help="compile with the compiler's least effort: some five times faster, memory a few per cent off")
    add("--strict", action="store_true", help="exit with 1 where nothing fits; otherwise that is a result like any other")
    add("--json", type=flags.output_file, metavar="FILE", help="write the plan, or all plans of the search, here")
    add(
        "--config.SECTION.LEAF",
        dest="ignored",
        metavar="VALUE",
        help="override a leaf, as in --config.execution.remat=dots",
    )


def _add_sample(command):
    _add_run(command)
    command.add_argument("--prompt", type=flags.text, default="", help="text kept at the start")
    command.add_argument("--suffix", type=flags.text, default="", help="text kept at the end")
    command.add_argument("--template", type=flags.text, help='text with holes: "The [MASK*12] of the [MASK*8]."')
    command.add_argument("--edit", type=flags.text, metavar="TEXT", help="text to be rewritten from the noise level --start-t")
    command.add_argument(
        "--start-t", type=flags.number(0, 1, open_low=True), metavar="T", help="noise level in (0, 1] of edited text; default 0.5"
    )
    command.add_argument("--length", type=flags.tokens, help="tokens on the canvas; default: the training length")
    command.add_argument("--count", type=flags.whole(1, 2**20), default=1, help="samples")
    command.add_argument("--steps", type=flags.whole(1, 2**20), default=64, help="denoising steps")
    command.add_argument(
        "--order", default="ancestral", choices=("ancestral", "random", "confidence", "entropy", "margin", "left_to_right")
    )
    command.add_argument(
        "--method",
        default="ancestral",
        help="how a step in time is made: ancestral, tau_leap, analytic, first_hitting, predetermined, remask(eta=0.1), rdm, self_correct, "
        "ddpm, ddim(eta=0), heun",
    )
    command.add_argument(
        "--grid",
        default="auto",
        help="where the steps stand: uniform, power(exponent=2), cosine, shifted(alpha=3), listed(points=(1,0.4,0)); default: auto, power "
        "where noise shows wrong tokens, else uniform",
    )
    command.add_argument(
        "--sweep", type=flags.tokens, metavar="W", help="levels fall from left to right in a window of W tokens; 1 = one by one"
    )
    command.add_argument("--temperature", type=flags.number(0), default=1.0, help="0 takes the most likely token")
    command.add_argument("--top-p", type=flags.number(0, 1, open_low=True), default=1.0, help="nucleus; 1 = off")
    command.add_argument(
        "--guidance", type=flags.number(), default=0.0, metavar="W", help="classifier-free guidance by the given text; 0 = off"
    )
    command.add_argument("--cache", action="store_true", help="no network call where no token has changed (networks without time input)")
    command.add_argument("--stride", type=flags.tokens, metavar="N", help="slide the training length by N tokens over a longer canvas")
    command.add_argument(
        "--stop", action="store_true", help="end a text at its end of document (with blocks, --stride or causal processes)"
    )
    command.add_argument("--remask", action="store_true", help="hide again what has become uncertain (confidence, entropy, margin orders)")
    command.add_argument(
        "--threshold",
        type=flags.share,
        metavar="P",
        help="a step shows whatever has at least this probability, and the best; --steps has no say (confidence, entropy, margin orders)",
    )
    command.add_argument(
        "--remainder",
        default="spread",
        choices=("spread", "first"),
        help="steps of an order that show one token more where the steps do not divide the holes: spread over all (default), or the first "
        "(LLaDA)",
    )
    command.add_argument("--seed", type=flags.seed, default=0, help="of the draws, from 0 to 4294967295; default: 0")
    command.add_argument("--watch", action="store_true", help="show the denoising live in the terminal")
    command.add_argument("--trace", type=flags.output_file, metavar="FILE.html", help="write a self-contained page of the denoising")
    command.add_argument("--json", type=flags.output_file, metavar="FILE", help="write text, ids, seed, steps and entropy here")


def _add_import(command):
    add = command.add_argument
    add(
        "--source",
        type=flags.input_folder,
        required=True,
        metavar="DIR",
        help="config.json, model.safetensors or its shards, and the tokenizer's files",
    )
    add("--workdir", type=flags.output_folder, required=True, metavar="DIR", help="the run to make; train others from it with --init")
    add(
        "--family",
        metavar="NAME",
        help="whose names the tensors have: llama, mistral, olmo2, qwen2, qwen3, gpt2, bert, roberta, xlm-roberta, llada, dream or sdar; "
        "for another model_type than config.json's, logits are compared with transformers' first; default: by config.json",
    )
    add("--tokenizer", metavar="SPEC", help="as of `dlmjax prepare`; default: the source's own files")
    add("--process", metavar="NAME", help="noise process of the run; default: what the weights were trained under")
    add("--dtype", default="float32", choices=("float32", "bfloat16"), help="of activations; weights become float32 (float32)")
    add("--length", type=flags.tokens, metavar="N", help="tokens of a window; default: what the source can read, at most 1024")


def _add_export(command):
    _add_run(command)
    add = command.add_argument
    views = "hf: transformers; encoder: sentence-transformers; sdar: SGLang, LMDeploy; llada: dInfer, Fast-dLLM, llama.cpp (hf)"
    add("--view", default="hf", metavar="VIEW", help=views)
    add("--output", type=flags.output_folder, required=True, metavar="DIR", help="a new directory for the files")
    add("--dtype", default="bfloat16", choices=("float32", "bfloat16"), help="of the weights in the files (bfloat16)")
    add("--shard-size", default="2GB", metavar="SIZE", help="of a file of weights, such as 500MB (2GB)")
    add(
        "--evaluation",
        type=flags.input_file,
        metavar="FILE",
        help="of `dlmjax evaluate --json`, for the run card; default: evaluation.json of the workdir",
    )
    add("--overwrite", action="store_true", help="replace an earlier export in --output")


def _add_lm_eval(command):
    _add_run(command)
    add = command.add_argument
    add(
        "--tasks",
        nargs="+",
        required=True,
        metavar="TASK",
        help="names of tasks or groups, such as blimp or lambada_openai,gsm8k",
    )
    add("--include-path", type=flags.input_folder, metavar="DIR", help="folder of further task files (.yaml)")
    add("--limit", type=flags.whole(1), metavar="N", help="the first N documents of each task only (for trying out)")
    add(
        "--num-fewshot", type=flags.whole(0, 10**6), metavar="N", help="solved examples before each question, where the task leaves it open"
    )
    add("--draws", type=flags.whole(1, 2**20), default=128, help="passes of the network for each likelihood that is a bound")
    add("--nodes", type=flags.whole(1, 4096), default=16, help="noise levels among them, for processes that are no masks")
    add("--batch", type=flags.whole(1, 2**20), default=8, help="rows of the training length at a time; does not change likelihoods")
    add("--overlap", type=flags.tokens, default=1, metavar="N", help="context, in tokens, of the later windows of texts longer than a row")
    add("--max-gen-toks", type=flags.tokens, default=256, metavar="N", help="tokens of generated text, where the task does not say")
    add("--block", type=flags.tokens, default=32, metavar="N", help="tokens of a block of generated text (masked processes)")
    add("--tokens-per-step", type=flags.tokens, default=1, metavar="N", help="generated tokens that each network call shows")
    add("--seed", type=flags.seed, default=0, help="of masks, drawn text and chosen examples")
    add("--offline", action="store_true", help="ask no server for data: tasks of local files, or of what is in the cache")
    add(
        "--output",
        type=flags.output_folder,
        metavar="DIR",
        help="write results.json, the samples and every likelihood with its standard error here",
    )


def main(argv: list[str] | None = None) -> int:
    """Runs one command. Returns the exit code: 0 done, 2 bad input, 1 a defect of ours."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv or os.environ.get("DLMJAX_DEBUG") == "1"
    flags.print_anything()
    try:
        overrides, rest = _split_overrides(argv)
        arguments = _parse(rest)
        arguments.argv = argv
        if overrides and arguments.command not in ("train", "plan"):
            raise InputError(
                f"--config.{overrides[0]} belongs to `dlmjax train` and `plan`; a finished run keeps its config, a sweep has its own"
            )
        return _COMMANDS[arguments.command](arguments, overrides) or 0
    except KeyboardInterrupt:
        print("dlmjax: interrupted; the same command continues", file=sys.stderr)
        return 130
    except Exception as error:
        said = flags.said_of(error)
        if debug or not said:
            raise
        print(f"dlmjax: {said}", file=sys.stderr)
        return 2


def _parse(words: list[str]) -> argparse.Namespace:
    """The flags of a command; those that are not ours, and those behind --, are Beam's where it is the engine."""
    at = words.index("--") if words[:1] == ["prepare"] and "--" in words else len(words)
    parser = _parser()
    arguments, unknown = parser.parse_known_args(words[:at])
    if arguments.command == "prepare" and arguments.engine == "beam":
        arguments.checked, arguments.unchecked = unknown, words[at + 1 :]
    elif unknown or words[at + 1 :]:
        parser.error(f"unrecognized arguments: {' '.join([*unknown, *words[at + 1 :]])}")
    return arguments


def train_flags(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The arguments and the config's overrides in the flags of `dlmjax train`, for launchers. Raises InputError: not its flags."""
    overrides, rest = _split_overrides(words)
    return _parser().parse_args(["train", *rest]), overrides


def _split_overrides(argv: list[str]) -> tuple[list[str], list[str]]:
    """Takes `--config.a.b=v` and `--config.a.b v` out of the flags."""
    overrides, rest, words = [], [], iter(argv)
    for flag in words:
        if not flag.startswith("--config."):
            rest.append(flag)
        elif "=" in flag:
            overrides.append(flag.removeprefix("--config."))
        else:
            overrides.append(f"{flag.removeprefix('--config.')}={next(words, '')}")
    return overrides, rest


def _prepare(arguments, _):
    from dlmjax.data.prepare import prepare

    values = _values(arguments)
    inputs, tokenizer, output = (values.pop(name) for name in ("input", "tokenizer", "output"))
    execute = None
    if values.pop("engine") == "beam":
        from dlmjax.data.beam import on_beam

        execute = on_beam(values.pop("unchecked"), values.pop("checked"))
    if tokenizer.startswith("train-"):
        from dlmjax.data.training_text import train_tokenizer

        what = {name: value for name, value in values.items() if name != "workers"}
        tokenizer = train_tokenizer(tokenizer, inputs, output, **what)
    manifest = prepare(inputs, tokenizer, output, execute=execute, **values)
    counts = {split: manifest.counts(split) for split in manifest.splits}
    parts = (f"{split} {c['tokens']:,} tokens of {c['text_bytes']:,} bytes in {c['documents']:,} documents" for split, c in counts.items())
    skipped = f"; {manifest.skipped:,} records without text are left out" if manifest.skipped else ""
    print(f"{output} is prepared: {'; '.join(parts)}{skipped}", flush=True)


def _train(arguments, overrides):
    from dlmjax.cluster import supervise
    from dlmjax.cluster.process_info import find

    info = find(os.environ, **{name: getattr(arguments, name) for name in ("coordinator", "num_processes", "process_id")})
    watched = supervise.STATUS in os.environ
    if not watched and (arguments.max_restarts or not info.alone):
        return supervise.supervise([sys.executable, "-m", "dlmjax", *arguments.argv], info, arguments.max_restarts)
    if watched:
        supervise.die_with_parent()
    return _train_here(arguments, overrides, info, supervise.Status(os.environ.get(supervise.STATUS)))


def _train_here(arguments, overrides, info, status):
    from dlmjax import config as config_lib
    from dlmjax.cluster import supervise
    from dlmjax.cluster.host import keep_compiled, say
    from dlmjax.cluster.start import joined
    from dlmjax.train import train

    require_path("--workdir", arguments.workdir, "output folder")
    config = config_lib.load(arguments.config, overrides)
    command = shlex.join(
        ["dlmjax", "train", "--config", arguments.config, "--workdir", arguments.workdir, *(f"--config.{o}" for o in overrides)]
    )
    timeouts = {name: getattr(arguments, name) for name in ("start_timeout", "heartbeat_timeout")}
    origin = {"fork": arguments.fork or "", "init": arguments.init or ""}
    origin["fresh"] = arguments.fresh and not supervise.started_again(os.environ)

    def on_step(done: int) -> None:
        status.step = done

    with joined(info, lambda: status.step, **timeouts):
        keep_compiled(arguments.workdir)
        result = train(config, arguments.workdir, **origin, command=command, on_step=on_step)
        if arguments.json:
            say(json.dumps(result))


def _evaluate(arguments, _):
    from dlmjax.cli.evaluate import evaluate

    evaluate(**_values(arguments))


def _interval(arguments, _):
    from dlmjax.cli.sample import interval

    interval(**_values(arguments))


def _plan(arguments, overrides):
    # libtpu is here to compile: jax must not look for a TPU on this machine.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from dlmjax.plan.hardware import plan

    return plan(**_values(arguments), overrides=tuple(overrides))


def _sample(arguments, _):
    from dlmjax.cli.sample import sample

    sample(**_values(arguments))


def _import(arguments, _):
    from dlmjax.interop.importer import import_checkpoint

    import_checkpoint(**_values(arguments))


def _export(arguments, _):
    from dlmjax.interop.export import export

    export(**_values(arguments))


def _lm_eval(arguments, _):
    from dlmjax.cli.lm_eval import lm_eval

    lm_eval(**_values(arguments))


def _values(arguments) -> dict:
    return {name: value for name, value in vars(arguments).items() if name not in ("command", "debug", "argv", "ignored")}


_COMMANDS = {
    "prepare": _prepare,
    "train": _train,
    "evaluate": _evaluate,
    "interval": _interval,
    "plan": _plan,
    "sample": _sample,
    "import": _import,
    "export": _export,
    "lm-eval": _lm_eval,
}
_COMMANDS |= dict.fromkeys(("quality", "puzzles", "solve", "embed", "activations"), quality.run)
_COMMANDS |= {"sweep": sweep.run, "fit": fit.run}
