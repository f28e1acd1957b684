"""The Python face of a trained run: its experiment and one set of weights, opened from a workdir."""

import dataclasses
import pathlib

from dlmjax.experiment import Experiment, kept, open_experiment
from dlmjax.training import Checkpoints


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run, opened: its experiment and one set of weights."""

    experiment: Experiment
    params: dict
    step: int
    weights: str
    workdir: pathlib.Path


def open_run(workdir: str, *, weights: str = "ema", step: int | None = None) -> Run:
    """Opens the newest (or the given) checkpoint of a workdir on the devices at hand, whatever mesh it was trained on.

    Args:
      weights: "ema" (the average; falls back to "raw" with a note when the run kept none) or "raw".

    Raises:
      InputError: not a workdir, no whole checkpoint.
    """
    experiment, root = open_experiment(workdir), pathlib.Path(workdir)
    weights = kept(experiment, weights)
    name = {"ema": "ema", "raw": "params"}[weights]
    asked = {name: experiment.abstract_state()[name]}
    with Checkpoints(root / "checkpoints") as checkpoints:
        state, meta = checkpoints.restore(asked, step)
    return Run(experiment, state[name], meta["step"], weights, root)
