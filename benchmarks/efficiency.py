"""The table of a sweep of variants at equal FLOPs: bits per character against one of them, window by window.

    python -m benchmarks.efficiency runs/efficiency [MORE ...] [--against before] [--split valid] [--windows 160] [--json FILE]

Of each finished run of one or several sweeps: the NELBO of its averaged weights on the first windows of a split (the same 16 levels and
masks for all), and its difference from the run of `--against` with the same budget, width and seed, +- the standard error over windows.
That error is of the choice of the text; another seed of training changes the difference, too. So where a variant has several seeds, one
more line has the mean over seeds and its standard error.
"""

import argparse
import collections
import json
import math
import pathlib
import statistics

from dlmjax.data import Corpus
from dlmjax.evaluate import TextSettings
from dlmjax.evaluation.compare import paired_difference
from dlmjax.evaluation.result import Measured
from dlmjax.evaluation.text import corpus_text
from dlmjax.run import open_run
from dlmjax.sweep.records import Record, read_records
from dlmjax.sweep.run_log import workdir_of


def measure(workdir: pathlib.Path, split: str, windows: int) -> tuple[Measured, bool]:
    """Nats of the first windows of a split, and whether what the run trained is a bound."""
    run = open_run(workdir)
    experiment = run.experiment
    corpus = Corpus.open(experiment.config.data.paths[0], split=split)
    text = corpus_text(corpus, TextSettings(windows=windows).cut(run))
    lengths_V = experiment.tokenizer.byte_lengths_V
    measured = experiment.evaluator().measure(run.params, text.windows.batches(32), byte_lengths_V=lengths_V, split=split)
    return measured, experiment.objective.trains_bound


def rows_of(records: list[Record], measured: dict[str, tuple[Measured, bool]], against: str) -> list[dict]:
    """One row a run, by budget and width, and from the best to the worst."""
    bases = {_point(record): record for record in records if record.series == against}
    rows = []
    for record in records:
        own, trains_bound = measured[record.id]
        row = {
            "budget": record.budget,
            "width": record.width,
            "variant": record.series,
            "seed": record.seed,
            "steps": record.steps,
            "bits_per_char": float(own.nats_W.sum() / own.tokens_W.sum() / math.log(2)),
            "trains_bound": trains_bound,
        }
        if base := bases.get(_point(record)):
            difference = paired_difference(own, measured[base.id][0])
            row["difference"] = difference.nats_per_token / math.log(2)
            row["stderr"] = difference.stderr_nats_per_token / math.log(2)
        rows.append(row)
    return sorted(rows, key=lambda row: (row["budget"], row["width"], row["bits_per_char"]))


def _point(record: Record) -> tuple:
    return record.budget, record.width, record.seed


def over_seeds(rows: list[dict]) -> list[dict]:
    """Mean difference, and its standard error over seeds, of each variant, budget and width with several seeds."""
    groups = collections.defaultdict(list)
    for row in rows:
        if row.get("stderr"):
            groups[row["budget"], row["width"], row["variant"]].append(row["difference"])
    return [
        {
            "budget": budget,
            "width": width,
            "variant": variant,
            "seeds": len(found),
            "difference": statistics.mean(found),
            "stderr": statistics.stdev(found) / math.sqrt(len(found)),
        }
        for (budget, width, variant), found in groups.items()
        if len(found) > 1
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directories", nargs="+", type=pathlib.Path)
    parser.add_argument("--against", default="before")
    parser.add_argument("--split", default="valid")
    parser.add_argument("--windows", type=int, default=160)
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    records, measured = {}, {}
    for directory in args.directories:
        for record in read_records(directory):
            if record.status == "finished":
                records[record.id] = record
                measured[record.id] = measure(workdir_of(directory, record.id), args.split, args.windows)
    rows = rows_of(list(records.values()), measured, args.against)
    print("| budget | width | variant | seed | bits/char | against | trains a bound |\n|---|---|---|---|---|---|---|")
    for row in rows:
        against = f"{row['difference']:+.3f} ± {row['stderr']:.3f}" if row.get("stderr") else ""
        bound = "yes" if row["trains_bound"] else "no"
        point = f"{row['budget']:.0e} | {row['width']} | {row['variant']} | {row['seed']}"
        print(f"| {point} | {row['bits_per_char']:.3f} | {against} | {bound} |")
    means = over_seeds(rows)
    for mean in means:
        point = f"{mean['budget']:.0e} w{mean['width']} {mean['variant']}"
        print(f"{point}: {mean['difference']:+.3f} ± {mean['stderr']:.3f} over {mean['seeds']} seeds")
    if args.json:
        args.json.write_text(json.dumps({"rows": rows, "over_seeds": means}, indent=1))


if __name__ == "__main__":
    main()
