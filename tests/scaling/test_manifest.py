"""The manifest on disk: read back as written, refused when damaged; an id stands for one content."""

import dataclasses
import json
import subprocess
import sys

import pytest

from dlmjax import config as config_lib
from dlmjax.errors import InputError
from dlmjax.scaling.manifest import Plan, PlannedRun, Policy, Validation, run_id


def planned(number: int) -> PlannedRun:
    return PlannedRun(
        id=f"m-{number}",
        series="m",
        cell={"budget": 1.1e12, "width": 64, "seed": number},
        config={"seed": number, "data.paths": ["a"], "optimizer.lr": 0.1 + 0.2},
        parameters=3,
        non_embedding=2,
        active=1,
        flops_per_token=1 / 3,
        hardware_flops_per_token=2 / 3,
        flops=1e12 / 7,
        tokens=10**15 + 1,
        unique_tokens=7,
        epochs=10 / 7,
    )


@pytest.fixture
def written(tmp_path) -> tuple[Plan, object]:
    plan = Plan("s", "s.py", Validation(windows=3), Policy(diverged_above=4.5), {"git": None}, (planned(0), planned(1)))
    plan.write(tmp_path)
    return plan, tmp_path


def test_round_trip_in_full_precision(written):
    plan, root = written
    assert Plan.read(root) == plan
    before = (root / "manifest.jsonl").read_bytes()
    plan.write(root)
    assert (root / "manifest.jsonl").read_bytes() == before


def _head(root, **changes):
    head = json.loads((root / "sweep.json").read_text())
    (root / "sweep.json").write_text(json.dumps({**head, **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "sweep.json").unlink(), "holds no planned sweep"),
        (lambda root: _head(root, version=2), "version 2, not"),
        (lambda root: _head(root, format="other"), "format 'other'"),
        (lambda root: _head(root, policy={"tries": 3}), "unexpected keyword|not a parameter|tries"),
        (lambda root: (root / "manifest.jsonl").unlink(), "manifest.jsonl"),
        (lambda root: (root / "manifest.jsonl").write_text(json.dumps(dataclasses.asdict(planned(0))) + "\n"), "1 lines .* has 2 runs"),
        (lambda root: (root / "manifest.jsonl").write_text('{"id": \n'), "cannot be read"),
        (lambda root: (root / "sweep.json").write_text("{"), "cannot be read"),
    ],
)
def test_a_plan_that_is_damaged_is_refused(written, damage, message):
    damage(written[1])
    with pytest.raises(InputError, match=message):
        Plan.read(written[1])


def test_every_leaf_is_in_the_id():
    config = {name: list(value) if isinstance(value, tuple) else value for name, value in config_lib.leaves(config_lib.default()).items()}
    cell = {"width": 64, "seed": 0}
    ids = {run_id("m", cell, config, ("w64",))}
    assert run_id("m", dict(reversed(cell.items())), dict(reversed(config.items())), ("w64",)) in ids, "order does not matter"
    for name, value in config.items():
        ids.add(run_id("m", cell, {**config, name: [value, 1]}, ("w64",)))
    ids.add(run_id("n", cell, config, ("w64",)))
    ids.add(run_id("m", {**cell, "seed": 1}, config, ("w64",)))
    assert len(ids) == len(config) + 3 and len(config) == 60


def test_reading_a_plan_imports_no_jax():
    code = "import sys, dlmjax.scaling.manifest, dlmjax.scaling.ladder, dlmjax.scaling.rules; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
