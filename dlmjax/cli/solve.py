"""`dlmjax solve`: the share of puzzles that a run solves."""

import argparse

from dlmjax import flags
from dlmjax.cli.run_flags import add_placement, add_run, add_sampling, open_arguments, sample_settings
from dlmjax.files import read_lines, write_json

HELP = "share of puzzles that a run solves, checked by the rules"


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    add_run(command)
    add_placement(command)
    add = command.add_argument
    add("--input", type=flags.input_file, required=True, metavar="FILE.txt", help="puzzles, as `dlmjax puzzles` writes them")
    add("--in-place", action="store_true", help="sudoku: clue at its cells of the board; runs trained on `puzzles --answers-only` (off)")
    add("--count", type=flags.whole(1, 2**20), help="number of puzzles, from the first (all)")
    add("--steps", type=flags.whole(1, 2**20), default=256, help="number of denoising steps; a rule takes at most one per cell (256)")
    add("--batch", type=flags.whole(1, 2**20), default=100, help="number of puzzles solved together (100)")
    add_sampling(command, temperature=0.0, rule="confidence")
    add("--json", type=flags.output_file, metavar="FILE", help="file for the result (not written)")


def run(arguments: argparse.Namespace, _) -> None:
    """Prints how many puzzles are solved, with binomial s.e. and a 95 % interval; writes it."""
    from dlmjax.quality import puzzles
    from dlmjax.quality.solving import report as solving_report
    from dlmjax.quality.solving import solve

    found = puzzles.parse(read_lines("--input", arguments.input)[: arguments.count])
    opened = open_arguments(arguments)
    # A causal process has one rule only.
    rule = {"rule": "left_to_right"} if opened.experiment.process.attention.causal else {}
    settings = sample_settings(arguments, opened, **rule)
    how = {"in_place": arguments.in_place, "seed": arguments.seed}
    searched = {} if arguments.search is None else {"search": arguments.search}
    made = solve(opened, found, settings, batch=arguments.batch, **how, **searched)
    report = {"workdir": str(arguments.workdir), **opened.placement, "input": arguments.input, **solving_report(opened, found, made, **how)}
    low, high = report["solved_rate_95"]
    print(
        f"{report['puzzle']}: {report['solved']} of {report['puzzles']} solved = {report['solved_rate']:.3f} ± "
        f"{report['stderr_solved_rate']:.3f} (95 %: {low:.3f} to {high:.3f}); partly right {report['partly_right']:.3f}; "
        f"{report['mean_calls']:.1f} network calls each, at most {report['calls']}, rule {made.settings.rule}, "
        f"temperature {arguments.temperature:g}",
        flush=True,
    )
    if arguments.search is not None:
        of = report["search"]
        print(
            f"search {arguments.search}: chosen {report['solved_rate']:.3f}, one candidate {of['pass_1']:.3f}, any of {of['candidates']} "
            f"(oracle) {of['pass_any']:.3f} ± {of['stderr_pass_any']:.3f}",
            flush=True,
        )
    if arguments.json:
        write_json(arguments.json, report)
