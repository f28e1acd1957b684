"""The mean of several checkpoints of a run as the workdir of a run (LLaDA2.0 2512.15745 merges its best checkpoints).

The mean is of weights, so its likelihood is measured like that of any run, and may be worse than that of each checkpoint.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dlmjax import config as config_lib
from dlmjax.data import counts
from dlmjax.errors import InputError, names_arguments
from dlmjax.evaluation.drift import total_drift
from dlmjax.experiment import Experiment, kept, open_experiment
from dlmjax.training import Checkpoints
from dlmjax.workdir import CHECKPOINTS, CONFIG, claim_workdir, newest_meta, stored_config, stored_embedding, stored_inputs, stored_table


@names_arguments()
def merge(
    *, workdir: str, output: str, top: int = 3, steps: Sequence[int] = (), weights: str = "ema", trust_code: bool = False
) -> dict[str, Any]:
    """Writes the mean of checkpoints of `workdir` into the new workdir `output`; nothing of `workdir` changes.

    Returns `steps`, `weights`, and `drift`: of each checkpoint the distance of its weights from the mean, relative to the mean's norm.

    Args:
      top: the number of checkpoints with the lowest held-out bound, where `steps` names none.
      weights: "ema" (falls back to "raw" where the run kept no average) or "raw".

    Raises InputError: no such run or checkpoint, fewer than two of them, an output that holds a run.
    """
    root, target = pathlib.Path(workdir), pathlib.Path(output)
    if (target / CONFIG).exists() or (target / CHECKPOINTS).exists():
        raise InputError(f"--output {output} holds a run; give a new directory (nothing was changed)")
    experiment = open_experiment(workdir, trust_code=trust_code)
    weights = kept(experiment, weights)
    name = {"ema": "ema", "raw": "params"}[weights]
    with Checkpoints(root / CHECKPOINTS) as checkpoints:
        chosen = _chosen(checkpoints, workdir, top, steps)
        abstract = {name: experiment.abstract_state()[name]}
        loaded = [checkpoints.restore(abstract, step)[0][name] for step in chosen]
    mean = jax.tree.map(lambda *leaves: sum(leaf.astype(jnp.float32) / len(leaves) for leaf in leaves), *loaded)
    drift = {step: total_drift(params, mean) for step, params in zip(chosen, loaded, strict=True)}
    _write(root, target, experiment, mean, {"source": workdir, "steps": chosen, "weights": weights})
    return {"steps": chosen, "weights": weights, "drift": drift}


def _chosen(checkpoints: Checkpoints, workdir: str, top: int, steps: Sequence[int]) -> list[int]:
    """The steps to merge, ascending. Raises InputError: one that is not there, fewer than two."""
    whole, found = checkpoints.steps(), list(dict.fromkeys(steps)) or checkpoints.ranked()[:top]
    if missing := [step for step in found if step not in whole]:
        there = ", ".join(map(str, whole)) or "no step"
        raise InputError(f"{workdir} has no whole checkpoint of step {missing[0]}; it has those of {there}")
    if len(found) < 2:
        why = "is named; give more --steps" if steps else "has a held-out bound; name some by --steps"
        raise InputError(f"a merge requires at least two checkpoints, and {len(found)} of {workdir} {why}")
    return sorted(found)


def _write(root: pathlib.Path, target: pathlib.Path, experiment: Experiment, params: dict, merged: dict) -> None:
    """The new workdir, with the config of the run but for the average, of which it has none."""
    meta = newest_meta(root)
    config, inputs = stored_config(root, meta), stored_inputs(root, meta)
    with config.unlocked():
        config.train.ema = 0.0
    module = experiment.module and experiment.module.content
    tables = stored_table(root, counts.FILE, inputs), stored_embedding(config, root, inputs)
    new = {"step": merged["steps"][-1], "metric": None, "pending": [], "config": config_lib.leaves(config), "merged": merged}
    with Checkpoints(target / CHECKPOINTS) as checkpoints:
        checkpoints.save(new["step"], {"params": params}, new)
    claim_workdir(target, config, experiment.tokenizer, *tables, inputs.get("texts", ()), module)
