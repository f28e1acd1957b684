"""The Python face of a trained run: its experiment and one set of weights, opened from a workdir."""

import dataclasses
import pathlib

from dlmjax.experiment import Experiment, kept, open_experiment
from dlmjax.module_file import ModuleFile
from dlmjax.training import Checkpoints


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run, opened: its experiment and one set of weights."""

    experiment: Experiment
    params: dict
    step: int
    weights: str
    workdir: pathlib.Path


def open_run(
    workdir: str, *, weights: str = "ema", step: int | None = None, trust_code: bool = False, module: ModuleFile | None = None
) -> Run:
    """Opens the newest (or the given) checkpoint of a workdir on the devices at hand, whatever mesh it was trained on.

    Args:
      weights: "ema" (the average; falls back to "raw" with a note when the run kept none) or "raw".
      trust_code: whether the workdir's Python file of a network of one's own may be run.
      module: a file to run in its place, `dlmjax.module_file.ModuleFile`.

    Raises:
      InputError: not a workdir, no whole checkpoint, a network of one's own that nobody has said to trust.
    """
    experiment, root = open_experiment(workdir, trust_code=trust_code, module=module), pathlib.Path(workdir)
    weights = kept(experiment, weights)
    name = {"ema": "ema", "raw": "params"}[weights]
    asked = {name: experiment.abstract_state()[name]}
    with Checkpoints(root / "checkpoints") as checkpoints:
        state, meta = checkpoints.restore(asked, step)
    return Run(experiment, state[name], meta["step"], weights, root)
