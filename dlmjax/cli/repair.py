"""`dlmjax quality --repair`: how many planted wrong tokens each method of revision repairs, and how many right ones it changes."""

from __future__ import annotations

import argparse
import pathlib
from typing import TYPE_CHECKING, Any

from dlmjax import flags
from dlmjax.cli.run_flags import sample_settings
from dlmjax.errors import InputError
from dlmjax.files import write_json

if TYPE_CHECKING:
    from dlmjax.run import Run


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of `--repair`."""
    add = command.add_argument
    add(
        "--repair",
        type=flags.whole(1, flags.MOST_TOKENS),
        metavar="K",
        help="repair of K wrong tokens planted in each of --samples held-out rows instead, by each method of --by (off)",
    )
    add(
        "--planted",
        default="uniform",
        choices=("uniform", "own"),
        help="wrong tokens of --repair: uniform ids, or the model's own (uniform)",
    )
    add(
        "--by",
        nargs="+",
        default=[],
        metavar="METHOD",
        help='methods, or rule t2t, of --repair, each with its own values, as in "psi(kappa=0.5); start=0.2; steps=8"; start: time of the '
        "noise that is added first (those that the process supports)",
    )


def run_repair(arguments: argparse.Namespace, opened: Run, origin: dict[str, Any]) -> None:
    """Prints the table and writes repair.json."""
    from dlmjax.data import EvalWindows
    from dlmjax.experiment import split_of
    from dlmjax.quality import repair

    if arguments.latency or arguments.frontier is not None:
        raise InputError("--repair conflicts with --latency and --frontier; give one of them")
    base = sample_settings(arguments, opened, steps=arguments.steps[0], rule="ancestral", method="ancestral", stop=None)
    ways = [repair.way_of(opened, text, base) for text in arguments.by or repair.default_ways(opened)]
    if not ways:
        raise InputError(f"process {origin['process']} provides no method of revision; give --by one of your own, or another run")
    windows = EvalWindows(split_of(opened, arguments.data, arguments.split), origin["length"])
    whole = windows.corpus.num_tokens // origin["length"]
    if whole < arguments.samples:
        raise InputError(
            f"--samples {arguments.samples} requires as many whole rows of {origin['length']} tokens, and {arguments.split} has {whole}"
        )
    right_NL = windows.rows(range(arguments.samples))["tokens"]
    planted = repair.plant(opened, right_NL, arguments.repair, kind=arguments.planted, batch=arguments.batch, seed=arguments.seed)
    rows = repair.compare(opened, ways, planted, batch=arguments.batch, seed=arguments.seed, log=lambda line: print(line, flush=True))
    errors = float(planted.wrong_NL.sum(axis=1).mean())
    print(
        f"\n{origin['process']}, step {opened.step}, {opened.weights} weights; {errors:.1f} wrong tokens ({arguments.planted}) in each of "
        f"{arguments.samples} rows of {origin['length']}; errors: s.e. over rows\n\n{repair.table(rows)}",
        flush=True,
    )
    if arguments.output:
        report = {**origin, "seed": arguments.seed, "planted": arguments.planted, "wrong_tokens": errors, "rows": rows}
        write_json(pathlib.Path(arguments.output) / "repair.json", report | {"samples": arguments.samples, "split": arguments.split})
        print(f"written to {arguments.output}", flush=True)
