"""Puzzles solved by an autoregressive and by masked models, each trained for the same FLOPs on the same puzzles.

    python -m benchmarks.puzzles --runs runs/puzzles [--numbers 3] [--sudoku DIR] [--givens 60] [--masked-steps 600] [--output FILE.json]

    countdown             `--numbers` numbers up to `--largest`, generated; no set of numbers of a test puzzle is trained on
    sudoku                train.csv.xz and test.csv.xz of DIR; `--givens` cells are shown (0 = as hard as they are)
    sudoku, in place      masked alone: trained on boards, clues kept in place; half the tokens, so twice the steps

Config: configs/puzzles.py with the length of the puzzle and 5120 tokens a step. FLOPs are counted from shapes. Every run
answers the first `--count` test puzzles at temperature 0: autoregressive token by token; masked in confidence order, one token a call and
in `--few` calls. Printed: share of puzzles whose answer obeys every rule, ± binomial standard error. Runs that
`--runs` holds are not trained again.
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
TOKENS = 5120  # of a step


def command(words: list[str]) -> None:
    """Runs a command of dlmjax; ends the benchmark where it fails."""
    if code := dlmjax(words):
        raise SystemExit(code)


def lines(root: pathlib.Path, args) -> list[tuple[str, str, pathlib.Path, pathlib.Path, bool]]:
    """(task, process, training lines, test puzzles, in place) of everything that is trained; writes the files."""
    paths = {name: root / f"{name}.txt" for name in ("countdown_train", "countdown_test", "sudoku_train", "sudoku_test", "boards_train")}
    both = []
    if args.puzzles:
        both = [
            ("countdown", process, paths["countdown_train"], paths["countdown_test"], False) for process in ("autoregressive", "masked")
        ]
    if args.puzzles and not paths["countdown_test"].exists():
        for name, split, count in (("countdown_train", "train", args.puzzles), ("countdown_test", "test", args.count)):
            sizes = [f"--numbers={args.numbers}", f"--largest={args.largest}", f"--count={count}", f"--split={split}"]
            command(["puzzles", "--kind=countdown", f"--output={paths[name]}", *sizes])
    if args.sudoku:
        for name, split, boards in (("boards_train", "train", True), ("sudoku_train", "train", False), ("sudoku_test", "test", False)):
            if not paths[name].exists():
                table = str(pathlib.Path(args.sudoku) / f"{split}.csv.xz")
                flags = [f"--input={table}", f"--output={paths[name]}", f"--givens={args.givens}", *["--answers-only"] * boards]
                command(["puzzles", "--kind=sudoku", *flags])
        both += [("sudoku", process, paths["sudoku_train"], paths["sudoku_test"], False) for process in ("autoregressive", "masked")]
        both += [("sudoku", "masked", paths["boards_train"], paths["sudoku_test"], True)]
    return both


def load(process: str, data: pathlib.Path, length: int):
    """The config and its experiment."""
    overrides = [
        f"process.name={process}",
        f"data.paths={data}",
        f"data.length={length}",
        f"data.batch={max(8, TOKENS // length // 8 * 8)}",
    ]
    config = config_lib.load(str(ROOT / "configs/puzzles.py"), overrides)
    return config, assemble(config, load_tokenizer("bytes"))


def run(root: pathlib.Path, task: str, process: str, file: pathlib.Path, test: pathlib.Path, in_place: bool, args) -> list[dict]:
    """Trains one model and lets it solve; one row for each number of calls."""
    name = f"{task}_{process}" + ("_in_place" if in_place else "")
    workdir, data = root / name, root / file.stem
    prepare([str(file)], "bytes", str(data), documents="line")
    length = len(file.open(encoding="utf-8").readline())  # the line end stands for the end of document
    config, experiment = load(process, data, length)
    reference, masked = load("masked", data, 40)
    budget = args.masked_steps * reference.data.batch * reference.data.length * masked.flops_per_token
    steps = round(budget / (config.data.batch * length * experiment.flops_per_token))
    with config.unlocked():
        config.train.steps = config.checkpoint.every = steps
        config.optimizer.warmup = min(config.optimizer.warmup, steps // 4)
    if not train(config, str(workdir))["finished"]:
        raise SystemExit("benchmarks.puzzles: stopped; the same command goes on")
    rows = []
    for calls in [256] if process == "autoregressive" else [256, args.few]:
        flags = [f"--input={test}", f"--count={args.count}", f"--steps={calls}", *["--in-place"] * in_place]
        command(["solve", f"--workdir={workdir}", *flags, f"--json={workdir / 'solved.json'}"])
        found = json.loads((workdir / "solved.json").read_text())
        rows.append({"task": task, "steps_trained": steps, "windows": steps * config.data.batch, "flops": budget, **found})
    return rows


def table(rows: list[dict]) -> str:
    """Markdown."""
    head = "| puzzle | model | training steps x windows | calls | solved | 95 % | partly right |"
    out = [head, "|---|---|---:|---:|---:|---:|---:|"]
    for row in rows:
        model = row["process"] + (", in place" if row["in_place"] else "")
        low, high = row["solved_rate_95"]
        out.append(
            f"| {row['task']} | {model} | {row['steps_trained']} x {row['windows'] // row['steps_trained']} | {row['calls']} | "
            f"{100 * row['solved_rate']:.1f} ± {100 * row['stderr_solved_rate']:.1f} % | {100 * low:.1f} to {100 * high:.1f} % | "
            f"{100 * row['partly_right']:.1f} % |"
        )
    return "\n".join(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="runs/puzzles")
    parser.add_argument("--numbers", type=int, default=3, help="numbers of a Countdown puzzle")
    parser.add_argument("--largest", type=int, default=20, help="largest of these numbers")
    parser.add_argument("--puzzles", type=int, default=50_000, help="Countdown puzzles to train on; 0 = none")
    parser.add_argument("--sudoku", metavar="DIR", help="directory of train.csv.xz and test.csv.xz; without it only Countdown is trained")
    parser.add_argument("--givens", type=int, default=60, help="given cells of a Sudoku")
    parser.add_argument("--masked-steps", type=int, default=600, help="budget in FLOPs, as a number of masked steps of 128 x 40 tokens")
    parser.add_argument("--count", type=int, default=500, help="test puzzles of each kind")
    parser.add_argument("--few", type=int, default=8, help="calls of the second, faster form of masked sampling")
    parser.add_argument("--output", help="JSON file for the rows")
    args = parser.parse_args()
    root, rows = pathlib.Path(args.runs), []
    root.mkdir(parents=True, exist_ok=True)
    for what in lines(root, args):
        print(f"--- {what[0]}, {what[1]}{', in place' if what[4] else ''}", flush=True)
        rows += run(root, *what, args)
        if args.output:
            pathlib.Path(args.output).write_text(json.dumps(rows, indent=1) + "\n")
    print(f"\n{rows[0]['flops']:.3g} training FLOPs each\n\n{table(rows)}")


if __name__ == "__main__":
    main()
