"""`dlmjax puzzles`: Sudoku or Countdown puzzles as lines of text."""

import argparse
import json

from dlmjax import flags
from dlmjax.cli.run_flags import SPLITS
from dlmjax.errors import InputError
from dlmjax.files import write_atomically

OUTPUT = "file for the puzzles: FILE.txt, one a line; FILE.jsonl, records in which the clue is given and the answer is scored"
HELP = "Sudoku or Countdown puzzles as lines `clue=answer`, to prepare, to train on and to solve"


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    add = command.add_argument
    add("--kind", required=True, choices=("sudoku", "countdown"), help="kind of puzzle")
    add("--output", type=flags.output_file, required=True, metavar="FILE", help=OUTPUT)
    add(
        "--input",
        type=flags.input_file,
        metavar="FILE.csv",
        help="sudoku: table with columns puzzle, solution, .gz/.xz too (generated)",
    )
    add("--givens", type=flags.whole(0, 81), default=0, help="sudoku: least number of cells in a clue; 0: those of the puzzle (0)")
    add("--answers-only", action="store_true", help="sudoku: boards, in which clues are in place, to train on for `solve --in-place` (off)")
    add("--count", type=flags.whole(1, 2**20), help="number of puzzles (1000); with --input: of rows of the table (all)")
    add("--numbers", type=flags.whole(2, 8), default=3, help="countdown: numbers of a puzzle (3)")
    add("--largest", type=flags.whole(2, 10**6), default=20, help="countdown: largest of the numbers (20)")
    add(
        "--split",
        default="train",
        choices=SPLITS,
        help="split of generated puzzles; no two share numbers, or images of a board (train)",
    )
    add("--seed", type=flags.seed, default=0, help="seed of generated puzzles, and of the cells that --givens adds (0)")


def run(arguments: argparse.Namespace, _) -> None:
    """Writes the puzzles and prints the commands that train on them."""
    from dlmjax.quality import puzzles

    kind, output, count, seed = arguments.kind, arguments.output, arguments.count, arguments.seed
    if kind == "countdown":
        if arguments.input or arguments.givens or arguments.answers_only:
            raise InputError("countdown puzzles are generated: leave out --input, --givens and --answers-only")
        sizes = {"numbers": arguments.numbers, "largest": arguments.largest}
        found = puzzles.make_countdown(count or 1000, **sizes, seed=seed, split=arguments.split)
    else:
        if arguments.input:
            rows = puzzles.read_table(arguments.input)[:count]
        else:
            made = puzzles.make_sudoku(count or 1000, seed=seed, split=arguments.split)
            rows = [{"puzzle": puzzle.clue, "solution": puzzle.answer} for puzzle in made]
        found = list(puzzles.read_sudoku(rows, arguments.givens, seed))
        if not found:
            raise InputError(f"{arguments.input} holds no puzzles")
    lines = [puzzle.answer if arguments.answers_only else puzzle.line for puzzle in found]
    written, reading = lines, "--documents line"
    if output.endswith(".jsonl"):
        written = [json.dumps(puzzle.board_record if arguments.answers_only else puzzle.record) for puzzle in found]
        reading = "--format spans" if arguments.answers_only else "--format prompt-answer --separator ="
    write_atomically(output, "".join(line + "\n" for line in written))
    config = "configs/sudoku.py" if kind == "sudoku" else "configs/puzzles.py"
    print(
        f"{len(lines):,} {kind} puzzles of {len(lines[0])} characters in {output}\n"
        f"train on them with: dlmjax prepare --input {output} {reading} --tokenizer bytes --output DIR, then "
        f"dlmjax train --config {config} --config.data.paths=DIR --config.data.length={len(lines[0]) + 1}",
        flush=True,
    )
