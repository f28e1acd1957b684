"""When does a masked run know its answer, and what do early exits save? First right, first stable and lost answers, and stops, on puzzles.

    python -m benchmarks.early_commit --workdir RUN --input test.txt [--count 200] [--rule "confidence(count=1)"] [--temperature 0]

The answer of a state is its revealed tokens with the most likely token at each masked position; a checker of the rules of the puzzle
decides whether it is right, whatever the file's own answer.

    first right   first state of a puzzle whose answer is right, as a share of the steps; of the puzzles that are right in some state
    stable        first state from which on the answer does not change
    lost          puzzles whose answer is right in some state and wrong at the end
    stops         share solved and calls of the whole run under each stop of `dlmjax sample --stop`, on the same puzzles; `saved` and the
                  difference in solved puzzles are paired, ± over puzzles
"""

import argparse

import numpy as np

from benchmarks.denoising import x0_predictor
from dlmjax import open_run
from dlmjax.files import read_lines, write_json
from dlmjax.quality.puzzles import kind_of, parse
from dlmjax.quality.solving import puzzle_canvas, solve
from dlmjax.sampling import analysis, record, sampler_for

STOPS = (
    "exit(bound=0.01)",
    "exit(bound=0.1)",
    "exit(bound=0.5)",
    "prophet",
    "sched",
    "sched(low=0)",
    "stable",
    "stable(count=2, entropy=0.05)",
)


def commitment(run, puzzles, settings, seed: int) -> dict[str, float]:
    """Shares of the steps and counts of one batch of puzzles."""
    sampler = sampler_for(run.experiment.process, run.experiment.unpartitioned, settings)
    trace = record(sampler, run.params, puzzle_canvas(run, puzzles, in_place=False), seed=seed)[1]
    texts_SBL = analysis.completed(trace, x0_predictor(run, settings.suppressed_ids))
    kind, begin = kind_of(puzzles[0]), len(puzzles[0].clue) + 1
    right_SB = np.array(
        [
            [
                kind.solves(puzzle.clue, run.tokenizer.decode(ids_L[begin : begin + len(puzzle.answer)]))
                for puzzle, ids_L in zip(puzzles, texts_BL, strict=True)
            ]
            for texts_BL in texts_SBL
        ]
    )
    steps, ever_B = len(right_SB) - 1, right_SB.any(axis=0)
    stable_B = analysis.first_stable(texts_SBL, analysis.generated(trace)) / steps
    first_B = np.argmax(right_SB, axis=0)[ever_B] / steps
    error = {"stderr_first_right": first_B.std(ddof=1) / len(first_B) ** 0.5, "stderr_stable": stable_B.std(ddof=1) / len(stable_B) ** 0.5}
    return {
        "puzzles": len(puzzles),
        "steps": steps,
        "right_at_start": float(right_SB[0].mean()),
        "first_right": float(first_B.mean()),
        "stable": float(stable_B.mean()),
        "right_ever": float(ever_B.mean()),
        "right_at_end": float(right_SB[-1].mean()),
        "lost": int(np.sum(ever_B & ~right_SB[-1])),
        **{name: float(value) for name, value in error.items()},
    }


def with_stops(run, puzzles, values: dict, seed: int) -> list[dict]:
    """One row a stop, the first without one."""
    rows, plain = [], None
    for stop in (None, *STOPS):
        found = solve(run, puzzles, run.sample_settings(**values, stop=stop), seed=seed)
        solved_N, calls_N = np.array(found.solved, float), np.array(found.calls_each, float)
        plain = (solved_N, calls_N) if plain is None else plain
        more_N, saved_N = solved_N - plain[0], 1 - calls_N / plain[1]
        row = {"stop": stop, "solved": solved_N.mean(), "calls": calls_N.mean(), "difference": more_N.mean(), "saved": saved_N.mean()}
        errors = {"stderr_difference": more_N, "stderr_saved": saved_N}
        rows.append(row | {name: values_N.std(ddof=1) / len(values_N) ** 0.5 for name, values_N in errors.items()})
    return [{name: value if name == "stop" else float(value) for name, value in row.items()} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="masked run that was trained on puzzles")
    parser.add_argument("--input", required=True, metavar="FILE.txt", help="puzzles of `dlmjax puzzles`")
    parser.add_argument("--count", type=int, default=200, help="puzzles, from the first")
    parser.add_argument("--rule", default="confidence(count=1)", help="rule of the tokens that a step reveals")
    parser.add_argument("--temperature", type=float, default=0.0, help="temperature")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampler")
    parser.add_argument("--json", help="file for the numbers")
    args = parser.parse_args()
    run, puzzles = open_run(args.workdir), parse(read_lines("--input", args.input)[: args.count])
    values = {"rule": args.rule, "temperature": args.temperature}
    found = commitment(run, puzzles, run.sample_settings(**values), args.seed)
    rows = with_stops(run, puzzles, values, args.seed)
    print(
        f"{found['puzzles']} puzzles, {found['steps']} steps: right at the start {found['right_at_start']:.3f}, in some state "
        f"{found['right_ever']:.3f}, at the end {found['right_at_end']:.3f}, lost {found['lost']}; first right after "
        f"{found['first_right']:.3f} ± {found['stderr_first_right']:.3f} of the steps, stable after {found['stable']:.3f} ± "
        f"{found['stderr_stable']:.3f}\n\n| stop | solved | less without a stop | calls | saved |\n|---|---:|---:|---:|---:|"
    )
    for row in rows:
        print(
            f"| {row['stop'] or 'none'} | {row['solved']:.3f} | {row['difference']:+.3f} ± {row['stderr_difference']:.3f} | "
            f"{row['calls']:.1f} | {100 * row['saved']:.1f} ± {100 * row['stderr_saved']:.1f} % |"
        )
    if args.json:
        write_json(args.json, {"rule": args.rule, "temperature": args.temperature, "commitment": found, "stops": rows})


if __name__ == "__main__":
    main()
