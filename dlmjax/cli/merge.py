"""`dlmjax merge`: the mean of checkpoints of a run -> the workdir of a run."""

import argparse

from dlmjax import flags

HELP = "the mean of several checkpoints of a run -> the workdir of a run"


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    add = command.add_argument
    add("--workdir", type=flags.input_folder, required=True, metavar="DIR", help="directory of a run that `dlmjax train` made")
    add("--output", type=flags.output_folder, required=True, metavar="DIR", help="new directory of the merged run")
    add("--top", type=flags.whole(2, 2**20), default=3, metavar="K", help="number of kept checkpoints with the lowest held-out bound (3)")
    add("--steps", type=flags.whole(0), nargs="+", default=(), metavar="N", help="steps of the checkpoints (those of --top)")
    add("--weights", default="ema", choices=("ema", "raw"), help="weights: ema, their average, or raw, those of the last step (ema)")
    add("--trust-code", action="store_true", help="run the Python file of a workdir whose network is not of a family (off)")


def run(arguments: argparse.Namespace, _) -> None:
    """Merges, prints what was merged and how far each checkpoint is from the mean."""
    from dlmjax.merge import merge

    names = ("workdir", "output", "top", "steps", "weights", "trust_code")
    found = merge(**{name: getattr(arguments, name) for name in names})
    parts = ", ".join(f"step {step} ({drift:.2%} away)" for step, drift in found["drift"].items())
    print(f"the mean of {parts}, {found['weights']} weights, is the run {arguments.output}", flush=True)
