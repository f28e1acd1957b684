"""Share of Sudoku puzzles that a run solves, by the number of given cells, with calls of the network per board.

    python -m benchmarks.sudoku --workdir runs/sudoku/run [--table test.csv.xz] [--givens 66,50,40,34,0] [--count 500] [--output FILE.json]

The puzzles are generated ones of the test split, or those of a table with columns puzzle and solution. `--givens`: cells of the clue, those
beyond the puzzle's own drawn from its solution; 0: as it is. A masked run fills the board in place in margin order, temperature 0: in each
call all cells whose digit has at least `--threshold`, and the one of the largest margin. An autoregressive run writes the answer
cell by cell. An answer counts where it obeys every rule; ± is the binomial standard error.
"""

import argparse
import json
import pathlib

from dlmjax import open_run
from dlmjax.quality.puzzles import make_sudoku, read_sudoku, read_table
from dlmjax.quality.solving import report, solve


def table(rows: list[dict]) -> str:
    """Markdown."""
    out = ["| givens | puzzles | solved | 95 % | cells right | calls per board |", "|---|---:|---:|---:|---:|---:|"]
    for row in rows:
        low, high = (100 * end for end in row["solved_rate_95"])
        rate, error = 100 * row["solved_rate"], 100 * row["stderr_solved_rate"]
        out.append(
            f"| {row['givens'] or 'native'} ({row['mean_givens']:.1f}) | {row['puzzles']} | {rate:.1f} ± {error:.1f} % | {low:.1f} to "
            f"{high:.1f} % | {100 * row['partly_right']:.1f} % | {row['mean_calls']:.1f} |"
        )
    return "\n".join(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="run of configs/sudoku.py")
    parser.add_argument("--table", metavar="FILE.csv", help="table of puzzles; without it the test split of the generator")
    parser.add_argument("--givens", default="66,50,40,34,0", help="cells of a clue, several with commas; 0: those of the puzzle")
    parser.add_argument("--count", type=int, default=500, help="puzzles")
    parser.add_argument("--threshold", type=float, default=0.99, help="least probability of a cell that is filled beside the best one")
    parser.add_argument("--output", help="JSON file for the rows")
    args = parser.parse_args()
    if args.table:
        found = read_table(args.table)[: args.count]
    else:
        found = [{"puzzle": puzzle.clue, "solution": puzzle.answer} for puzzle in make_sudoku(args.count, split="test")]
    run = open_run(args.workdir)
    in_place = not run.experiment.process.attention.causal
    rule = f"threshold(value={args.threshold}, by=margin)" if in_place else "left_to_right"
    settings, rows = run.sample_settings(temperature=0.0, rule=rule), []
    for givens in map(int, args.givens.split(",")):
        puzzles = list(read_sudoku(found, givens))
        solved = solve(run, puzzles, settings, in_place=in_place)
        shown = sum(cell != "0" for puzzle in puzzles for cell in puzzle.clue) / len(puzzles)
        rows.append({"givens": givens, "mean_givens": shown, **report(run, puzzles, solved, in_place=in_place, seed=0)})
        print(table(rows).splitlines()[-1], flush=True)
    print(f"\n{run.experiment.process.name}, step {run.step}\n\n{table(rows)}")
    if args.output:
        pathlib.Path(args.output).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
