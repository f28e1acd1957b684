"""`dlmjax fit` and `dlmjax fit predict`: flags, the call, what is printed. Imports nothing heavy: `dlmjax --help` reads this file."""

import argparse
import contextlib
import json
import os
import pathlib
from collections.abc import Iterator

from dlmjax import flags
from dlmjax.errors import InputError
from dlmjax.files import make_folder, write_atomically

HELP = "scaling laws with error bars from the records of a sweep; `fit predict` gives the best run at given FLOPs"
PREDICT = "predict"


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of `fit` and of `fit predict`."""
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
        help="tables of outside runs; columns: parameters, tokens, loss; optional: flops, series",
    )
    add("--output", type=flags.output_folder, metavar="DIR", help="directory for fit.json, points.csv, resamples.npz, PNGs and report.html")
    add("--resamples", type=flags.whole(0, 10**6), default=1000, metavar="N", help="bootstrap resamples; 0 = no error bars (1000)")
    add("--seed", type=flags.seed, default=0, metavar="N", help="seed of the bootstrap (0)")
    add("--base", metavar="NAME", help="objective that the others are compared with (ar where there is one, else the first)")
    add("--no-plots", action="store_true", help="numbers only, no PNGs and no report.html")
    predict = command.add_argument_group("fit predict")
    add = predict.add_argument
    add("--flops", type=flags.number(0, open_low=True), metavar="C", help="FLOPs of the predicted run, such as 1e22")
    add("--fit", type=flags.input_folder, default="fit", metavar="DIR", help="output directory of an earlier `fit` (fit)")
    add("--objective", metavar="NAME", help="objective of the prediction (all of the fit)")
    add("--series", dest="objective", default=argparse.SUPPRESS, help=argparse.SUPPRESS)  # the name until 2026-11
    add("--definition", default="total", metavar="NAME", help="definition of N: total, non_embedding, active or flops_per_token (total)")
    add(
        "--method",
        metavar="NAME",
        help="fitted law: parametric, isoflop or envelope (all are printed; a config takes the first that is trusted)",
    )
    add(
        "--config",
        type=flags.output_file,
        metavar="FILE.py",
        help="config of the predicted run, ready for `dlmjax train`; requires --objective where the fit has several",
    )
    add("--json", type=flags.output_file, metavar="FILE", help="file for the predictions as JSON")


def run(arguments: argparse.Namespace, _) -> None:
    """`fit RECORDS`, or `fit predict`, by the first word."""
    if arguments.records[:1] == [PREDICT]:
        if arguments.records[1:] or arguments.csv:
            raise InputError("`fit predict` reads a finished fit: give its directory with --fit, and no records")
        if arguments.flops is None:
            raise InputError("`fit predict` requires --flops, such as --flops 1e22")
        return _predict(arguments)
    if not arguments.output:
        raise InputError("`fit` requires --output, a directory for the results")
    return _fit(arguments)


def _fit(arguments: argparse.Namespace) -> None:
    """Fits runs, writes --output, prints the tables."""
    from dlmjax.fit import report, text
    from dlmjax.fit.pipeline import analyse_files

    output = pathlib.Path(arguments.output)
    with _folder(output):
        options = {name: getattr(arguments, name) for name in ("resamples", "seed", "base")}
        result = analyse_files(arguments.records, arguments.csv, **options)
    result.write(output)
    print(text.summary(result), flush=True)
    print(f"\nwritten: {output}: fit.json, points.csv, resamples.npz", end="")
    if not arguments.no_plots:
        written = report.write(result, output)
        print(", " + ", ".join(written) if written else "; no pictures: pip install 'dlmjax[scaling]' brings matplotlib", end="")
    print(flush=True)


@contextlib.contextmanager
def _folder(output: pathlib.Path) -> Iterator[None]:
    """Makes the folder before the work that fills it, and removes a new one where that work fails. Raises InputError: it cannot be made."""
    from dlmjax.fit.results import FIT

    new = not output.exists()
    make_folder(output / FIT)
    try:
        yield
    except BaseException:
        if new:
            with contextlib.suppress(OSError):
                output.rmdir()
        raise


def _predict(arguments: argparse.Namespace) -> None:
    """Prints the best run of each objective; writes a config of one, and all of them as JSON."""
    # The network of a config is counted on no device: jax must not look for one.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from dlmjax.fit import results, text
    from dlmjax.fit.predict import check_trusted, predict

    saved = results.read(arguments.fit)
    options = {"definition": arguments.definition, "method": arguments.method}
    predictions = predict(saved, arguments.flops, objective=arguments.objective, **options)
    for prediction in predictions:
        print(text.predicted(prediction), flush=True)
    if arguments.config is not None:
        if len(predictions) != 1:
            names = ", ".join(prediction.objective for prediction in predictions)
            raise InputError(f"--config takes one run; choose an objective with --objective: {names}")
        check_trusted(predictions[0])
        from dlmjax.cli.next_run import write_config  # counts a network, with jax

        print("\n".join(write_config(saved, predictions[0], arguments.fit, arguments.config)), flush=True)
    if arguments.json is not None:
        content = json.dumps([prediction.record() for prediction in predictions], indent=1, allow_nan=False)
        write_atomically(pathlib.Path(arguments.json), (content + "\n").encode())
