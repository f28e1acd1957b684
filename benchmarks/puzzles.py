"""Countdown puzzles solved by an autoregressive and by masked models, each trained for the same FLOPs on the same answers.

    python -m benchmarks.puzzles --runs runs/puzzles [--numbers 3] [--largest 20] [--puzzles 50000] [--flops 1e13] [--output FILE.json]

Puzzles of `--numbers` numbers up to `--largest` are generated; no set of numbers of a test puzzle is trained on. The clue is given, and the
loss is on answers alone. Config: configs/puzzles.py with the length of the puzzle and `--windows` puzzles a step; each of `--processes`
takes the steps that `--flops` buy it, counted from shapes. Every run answers the first `--count` test puzzles at temperature 0, one token a
call: autoregressive from left to right; the others in confidence order, from left to right, and in `--few` calls. Printed: share of puzzles
whose answer obeys every rule, ± binomial standard error. Runs that `--runs` holds are not trained again. Sudoku: benchmarks.sudoku.
"""

import argparse
import json
import pathlib

from dlmjax import config as config_lib
from dlmjax.cli.main import main as dlmjax
from dlmjax.data import load_tokenizer
from dlmjax.data.prepare import prepare
from dlmjax.experiment import assemble
from dlmjax.train import train

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = {"train": "train.jsonl", "test": "test.txt"}


def command(words: list[str]) -> None:
    """Runs a command of dlmjax; ends the benchmark where it fails."""
    if code := dlmjax(words):
        raise SystemExit(code)


def make_data(root: pathlib.Path, args) -> int:
    """Writes and prepares the puzzles that `root` lacks; returns their length in tokens."""
    for split, count in (("train", args.puzzles), ("test", args.count)):
        if not (root / FILES[split]).exists():
            sizes = [f"--numbers={args.numbers}", f"--largest={args.largest}", f"--count={count}", f"--split={split}"]
            command(["puzzles", "--kind=countdown", f"--output={root / FILES[split]}", *sizes])
    prepare([root / FILES["train"]], "bytes", root / "data", format="prompt-answer", separator="=")
    with (root / FILES["test"]).open(encoding="utf-8") as file:
        return len(file.readline())  # the line end stands for the end of document


def run(root: pathlib.Path, process: str, length: int, args) -> list[dict]:
    """Trains one model and lets it solve; one row for each order and number of calls."""
    workdir = root / "".join(letter if letter.isalnum() else "_" for letter in process)
    overrides = [f"process.name={process}", f"data.paths={root / 'data'}", f"data.length={length}", f"data.batch={args.windows}"]
    config = config_lib.load(str(ROOT / "configs/puzzles.py"), overrides)
    experiment = assemble(config, load_tokenizer("bytes"))
    steps = round(args.flops / (args.windows * length * experiment.flops_per_token))
    with config.unlocked():
        config.train.steps = config.checkpoint.every = steps
        config.optimizer.warmup = min(config.optimizer.warmup, steps // 4)
    if not train(config, str(workdir))["finished"]:
        raise SystemExit("benchmarks.puzzles: stopped; the same command goes on")
    ways = [("confidence", 256), ("left_to_right", 256), ("confidence", args.few)]
    rows = []
    for order, calls in [("left_to_right", 256)] if experiment.process.attention.causal else ways:
        flags = [f"--input={root / FILES['test']}", f"--count={args.count}", f"--steps={calls}", f"--rule={order}"]
        command(["solve", f"--workdir={workdir}", *flags, f"--json={workdir / 'solved.json'}"])
        found = json.loads((workdir / "solved.json").read_text())
        rows.append({"model": process, "order": order, "steps_trained": steps, "windows": args.windows, "flops": args.flops, **found})
    return rows


def table(rows: list[dict]) -> str:
    """Markdown."""
    out = ["| model | training steps x windows | order | network calls | solved | 95 % interval |", "|---|---:|---|---:|---:|---:|"]
    for row in rows:
        low, high = (100 * end for end in row["solved_rate_95"])
        out.append(
            f"| {row['model']} | {row['steps_trained']} x {row['windows']} | {row['order'].replace('_', ' ')} | {row['calls']} | "
            f"{100 * row['solved_rate']:.1f} ± {100 * row['stderr_solved_rate']:.1f} % | {low:.1f} to {high:.1f} % |"
        )
    return "\n".join(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="runs/puzzles")
    parser.add_argument("--processes", default="autoregressive;masked_count", help="values of process.name, with semicolons")
    parser.add_argument("--numbers", type=int, default=3, help="numbers of a puzzle")
    parser.add_argument("--largest", type=int, default=20, help="largest of these numbers")
    parser.add_argument("--puzzles", type=int, default=50_000, help="puzzles to train on")
    parser.add_argument("--windows", type=int, default=128, help="puzzles of a training step")
    parser.add_argument("--flops", type=float, default=1e13, help="training FLOPs of each model")
    parser.add_argument("--count", type=int, default=500, help="test puzzles")
    parser.add_argument("--few", type=int, default=8, help="calls of the faster form of masked sampling")
    parser.add_argument("--output", help="JSON file for the rows")
    args = parser.parse_args()
    root, rows = pathlib.Path(args.runs), []
    root.mkdir(parents=True, exist_ok=True)
    length = make_data(root, args)
    for process in args.processes.split(";"):
        print(f"--- {process}", flush=True)
        rows += run(root, process, length, args)
        if args.output:
            pathlib.Path(args.output).write_text(json.dumps(rows, indent=1) + "\n")
    print(f"\n{args.flops:.3g} training FLOPs each\n\n{table(rows)}")


if __name__ == "__main__":
    main()
