"""Flags of `fit` and `fit predict`. Imports nothing heavy: `dlmjax --help` reads this file."""

import argparse
import os
from collections.abc import Callable, Iterator

from dlmjax import flags
from dlmjax.errors import InputError

Add = Callable[[argparse.ArgumentParser], None]
PREDICT = "predict"


def commands() -> Iterator[tuple[str, str, Add]]:
    """(name, what it does, what adds its flags)."""
    yield "fit", "scaling laws with error bars from the records of a sweep; `fit predict` gives the best run at given FLOPs", _fit


def run(arguments: argparse.Namespace, _) -> None:
    """`fit RECORDS`, or `fit predict`, by the first word."""
    prediction = {name: getattr(arguments, name) for name in ("flops", "fit", "series", "definition", "method", "config")}
    if arguments.records[:1] == [PREDICT]:
        if arguments.records[1:] or arguments.csv:
            raise InputError("`fit predict` reads a finished fit: give its directory with --fit, and no records")
        if arguments.flops is None:
            raise InputError("`fit predict` needs --flops, such as --flops 1e22")
        # A config's network is counted, on no device: jax must not look for one.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        from dlmjax.fit.predict import predict

        predict(**prediction, json_file=arguments.json)
        return
    if not arguments.output:
        raise InputError("`fit` needs --output, a directory for the results")
    from dlmjax.cli.fit import fit

    values = {name: getattr(arguments, name) for name in ("records", "csv", "output", "resamples", "seed", "base")}
    fit(**values, plots=not arguments.no_plots)


def _fit(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("records", nargs="*", metavar="RECORDS", help="records.jsonl, or the directory of a sweep; or the word: predict")
    fit = command.add_argument_group("fit RECORDS")
    add = fit.add_argument
    add(
        "--csv",
        type=flags.input_file,
        nargs="+",
        default=[],
        metavar="FILE.csv",
        help="outside runs: columns parameters, tokens, loss; optional flops, series",
    )
    add("--output", type=flags.output_folder, metavar="DIR", help="fit.json, points.csv, resamples.npz, PNGs and report.html go here")
    add("--resamples", type=flags.whole(0, 10**6), default=1000, metavar="N", help="of the bootstrap; 0 = no error bars (1000)")
    add("--seed", type=flags.seed, default=0, help="of the bootstrap")
    add("--base", metavar="SERIES", help="what the other series are compared with (ar, where there is one)")
    add("--no-plots", action="store_true", help="numbers only")
    predict = command.add_argument_group("fit predict")
    add = predict.add_argument
    add("--flops", type=flags.number(0, open_low=True), metavar="C", help="of the run that is wanted, such as 1e22")
    add("--fit", type=flags.input_folder, default="fit", metavar="DIR", help="where `fit` wrote (fit)")
    add("--series", metavar="NAME", help="objective; default: all of the fit")
    add(
        "--definition",
        default="total",
        metavar="NAME",
        help="of N: total, non_embedding, active or flops_per_token (total)",
    )
    add(
        "--method",
        metavar="NAME",
        help="parametric, isoflop or envelope; default: all; a config takes the first of these that is trusted",
    )
    add(
        "--config",
        type=flags.output_file,
        metavar="FILE.py",
        help="write a config of this run, ready for `dlmjax train` (needs --series where there are several)",
    )
    add("--json", type=flags.output_file, metavar="FILE", help="write the prediction here")
