"""`dlmjax activations`: outlier statistics of a run's activations on held-out text."""

import argparse

from dlmjax import flags
from dlmjax.cli.run_flags import add_data, add_run, open_arguments
from dlmjax.files import write_json

HELP = "outliers of a run's activations, layer by layer, for quantisers"


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    add_run(command)
    add_data(command)
    add = command.add_argument
    add("--windows", type=flags.whole(1), default=16, help="number of windows of text (16)")
    add("--json", type=flags.output_file, metavar="FILE", help="file for the rows (not written)")


def run(arguments: argparse.Namespace, _) -> None:
    """Prints and writes the statistics of each tensor of each layer."""
    from dlmjax.data import EvalWindows
    from dlmjax.errors import InputError
    from dlmjax.experiment import held_out_of
    from dlmjax.quality import activations

    opened = open_arguments(arguments)
    corpus, why_not = held_out_of(opened, arguments.data, arguments.split)
    if corpus is None:
        raise InputError(why_not)
    config = opened.experiment.config
    held_out = EvalWindows(corpus, config.data.length, limit=arguments.windows)
    batch = held_out.rows(range(len(held_out)))
    texts = [tokens_L[segments_L > 0] for tokens_L, segments_L in zip(batch["tokens"], batch["segments"], strict=True)]
    rows = activations.activation_statistics(opened, texts)
    report = {
        "workdir": str(arguments.workdir),
        "step": opened.step,
        "weights": opened.weights,
        "split": arguments.split,
        "windows": len(texts),
        "tokens": sum(len(text) for text in texts),
        "precision": config.execution.dtype,
        "rows": rows,
    }
    head = f"{report['tokens']:,} tokens of {arguments.split}, step {opened.step}, {report['precision']}"
    print(f"{head}\n\n{activations.table(rows)}", flush=True)
    if arguments.json:
        write_json(arguments.json, report)
