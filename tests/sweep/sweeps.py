"""Sweeps of seconds, and the commands that run them."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

from dlmjax import config as config_lib
from dlmjax.sweep.manifest import PlannedRun, Policy, SweepPlan, Validation, run_id

ROOT = pathlib.Path(__file__).parents[2]
STEPS, EVERY = 100, 40  # updates, and those between checkpoints
OBJECTIVES = {
    "autoregressive": "autoregressive",
    "masked": "masked",
    "uniform": "uniform",
    "hybrid": "hybrid(p_uniform=0.2)",
    "block": "blocks(size=8)",
}


def planned(corpora, series="masked", width=32, seed=0, **changes) -> PlannedRun:
    """A run of two layers; `changes`: leaves, as in optimizer__lr=1e-3. Its counts are round numbers, not those of its model."""
    config = config_lib.default()
    config.data.update(paths=tuple(str(corpus) for corpus in corpora), length=32, batch=4)
    config.model.update(depth=2, width=width, heads=2, kv_heads=2, head_dim=16, ffn=64)
    config.model.time_input = "adaln" if series in ("uniform", "hybrid") else "none"
    config.process.name = OBJECTIVES[series]
    config.optimizer.update(warmup=2, lr=1e-2)
    config.train.update(steps=STEPS, ema=0.9)
    config.checkpoint.update(every=EVERY, keep=1, best=0)
    config.log.update(every=2, evaluate=0, sample=0)
    config.seed = seed
    config_lib.override(config, [f"{name.replace('__', '.')}={value}" for name, value in changes.items()])
    leaves, cell = config_lib.leaves(config), {"budget": 1e9, "width": width, "seed": seed}
    tokens, per_token = config.train.steps * config.data.batch * config.data.length, 6e3 * width
    name = run_id(series, cell, leaves, [f"w{width}", f"s{seed}"])
    return PlannedRun(name, series, cell, leaves, 1000, 800, 1000, per_token, per_token, per_token * tokens, tokens, 10**5, tokens / 1e5)


def renamed(run) -> PlannedRun:
    """The run under the id of its config, which was changed."""
    return dataclasses.replace(run, id=run_id(run.series, run.cell, run.config, ["changed"]))


def plan(*runs, policy=None, windows=16) -> SweepPlan:
    """A plan of these runs."""
    return SweepPlan("quick", "tests", Validation(windows=windows, nodes=2), policy or Policy(), {}, runs)


def environment(**more) -> dict[str, str]:
    """Of a sweep's process: this checkout, the CPU, and as little of XLA's effort as the tests take."""
    return {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **more}


def command(*words) -> list[str]:
    """`dlmjax sweep ...`"""
    return [sys.executable, "-m", "dlmjax", "sweep", *map(str, words)]


def sweep(*words, code=0, **more) -> subprocess.CompletedProcess:
    """Runs `dlmjax sweep ...` to its end."""
    done = subprocess.run(command(*words), env=environment(**more), capture_output=True, text=True, timeout=400)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def lines(directory) -> list[dict]:
    """The records of a sweep as they stand in the file."""
    file = pathlib.Path(directory) / "records.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
