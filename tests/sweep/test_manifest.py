"""The manifest on disk: read back as written, refused when damaged; an id stands for one content."""

import dataclasses
import json
import subprocess
import sys

import pytest

from dlmjax import config as config_lib
from dlmjax.errors import InputError
from dlmjax.sweep.execute import execute
from dlmjax.sweep.manifest import PlannedRun, Policy, SweepPlan, Validation, run_id
from dlmjax.sweep.records import Record, append_record, read_records
from dlmjax.sweep.run_log import facts
from dlmjax.sweep.status import snapshot
from tests.sweep import sweeps


def planned(number: int) -> PlannedRun:
    cell = {"budget": 1.1e12, "width": 64, "seed": number}
    config = {"seed": number, "data.paths": ["a"], "optimizer.lr": 0.1 + 0.2, "train.steps": 3, "data.batch": 5, "data.length": 10**14 + 1}
    return PlannedRun(
        id=run_id("m", cell, config, [f"s{number}"]),
        series="m",
        cell=cell,
        config=config,
        parameters=3,
        non_embedding=2,
        active=1,
        flops_per_token=1 / 3,
        hardware_flops_per_token=2 / 3,
        flops=1 / 3 * (15 * 10**14 + 15),
        tokens=15 * 10**14 + 15,
        unique_tokens=7,
        epochs=10 / 7,
    )


@pytest.fixture
def written(tmp_path) -> tuple[SweepPlan, object]:
    plan = SweepPlan("s", "s.py", Validation(windows=3), Policy(diverged_above=4.5), {"git": None}, (planned(0), planned(1)))
    plan.write(tmp_path)
    return plan, tmp_path


def test_round_trip_in_full_precision(written):
    plan, root = written
    assert SweepPlan.read(root) == plan
    before = (root / "manifest.jsonl").read_bytes()
    plan.write(root)
    assert (root / "manifest.jsonl").read_bytes() == before


def _head(root, **changes):
    head = json.loads((root / "sweep.json").read_text())
    (root / "sweep.json").write_text(json.dumps({**head, **changes}))


def _line(root, leaves=None, **changes):
    """Changes the second line of the manifest by hand."""
    first, second = (json.loads(line) for line in (root / "manifest.jsonl").read_text().splitlines())
    second = {**second, "config": {**second["config"], **(leaves or {})}, **changes}
    (root / "manifest.jsonl").write_text(f"{json.dumps(first)}\n{json.dumps(second)}\n")


def _renamed(root, config, **changes):
    """The same by somebody who knows how ids are made."""
    run = planned(1)
    config = {name: value for name, value in {**run.config, **config}.items() if value is not None}
    _line(root, **{"id": run_id("m", run.cell, config, ["s1"]), "config": config, **changes})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "sweep.json").unlink(), "holds no planned sweep"),
        (lambda root: _head(root, version=2), "version 2, not"),
        (lambda root: _head(root, format="other"), "format 'other'"),
        (lambda root: _head(root, policy={"tries": 3}), "policy in sweep.json has the unknown field 'tries'"),
        (lambda root: (root / "manifest.jsonl").unlink(), "manifest.jsonl"),
        (lambda root: (root / "manifest.jsonl").write_text(json.dumps(dataclasses.asdict(planned(0))) + "\n"), "1 lines .* has 2 runs"),
        (lambda root: (root / "manifest.jsonl").write_text('{"id": \n'), "cannot be read"),
        (lambda root: (root / "sweep.json").write_text("{"), "cannot be read"),
        (lambda root: (root / "sweep.json").write_text("[]"), "format None"),
        (lambda root: _head(root, runs="2"), "runs of sweep.json is '2', not int"),
        (lambda root: _head(root, name=None), "name of sweep.json is 'None', not str"),
        (lambda root: _head(root, policy={"retries": "a"}), "retries of policy in sweep.json is 'a', not int"),
        (lambda root: _head(root, validation={"windows": "x"}), "windows of validation in sweep.json is 'x', not int"),
        (lambda root: _head(root, validation={"rule": "bogus"}), "choose one of gauss"),
        (lambda root: _line(root, {"train.steps": 2}), r"line 2 of manifest.jsonl was edited: the id m-s1-\w+ stands for another"),
        (lambda root: _line(root, cell={"seed": 9}), "line 2 of manifest.jsonl was edited"),
        (lambda root: _line(root, tokens=87), "line 2 of manifest.jsonl was edited: it has 87 tokens"),
        (lambda root: _line(root, flops=87.0), "line 2 of manifest.jsonl was edited: it has 87 FLOPs"),
        (lambda root: _renamed(root, {"train.steps": 2}), "line 2 .* has 1,500,000,000,000,015 tokens, .* are 1,000,000,000,000,010"),
        (lambda root: _renamed(root, {"train.steps": None}), "line 2 .* has train.steps None"),
        (lambda root: _renamed(root, {}, parameters=4, id="m-0"), "line 2 .* was edited"),
        (lambda root: _line(root, id="../../evil"), r"line 2 .* has the id '../../evil', which is not the id of a run"),
        (lambda root: _line(root, id=None), "id of line 2 of manifest.jsonl is 'None', not str"),
        (lambda root: _line(root, config=None), "config of line 2 of manifest.jsonl is 'None', not dict"),
        (lambda root: _line(root, flops="2e10"), "flops of line 2 of manifest.jsonl is '2e10', not float"),
        (lambda root: _line(root, epochs=float("nan")), "line 2 of manifest.jsonl is not JSON: the number NaN is not finite"),
        (lambda root: _line(root, size=3), "line 2 of manifest.jsonl has the unknown field 'size'"),
        (lambda root: (root / "manifest.jsonl").write_text("[]\n[]\n"), "line 1 of manifest.jsonl is not a JSON object"),
        (lambda root: _line(root, **dataclasses.asdict(planned(2))), "are not those, or not in the order"),
        (lambda root: (_line(root, **dataclasses.asdict(planned(0))), _head(root, ids="")), "has a run twice"),
    ],
)
def test_a_plan_that_is_damaged_is_refused(written, damage, message):
    damage(written[1])
    with pytest.raises(InputError, match=message) as error:
        SweepPlan.read(written[1])
    assert "\n" not in str(error.value) and ("plan the sweep again" in str(error.value) or "make one with" in str(error.value))


def test_a_manifest_that_was_about_to_grow_is_read_as_it_was(written):
    plan, root = written
    before = (root / "sweep.json").read_bytes()
    dataclasses.replace(plan, runs=(*plan.runs, planned(2))).write(root)
    (root / "sweep.json").write_bytes(before)  # killed between the two
    assert SweepPlan.read(root) == plan
    dataclasses.replace(plan, runs=(planned(2), *plan.runs)).write(root)
    (root / "sweep.json").write_bytes(before)
    with pytest.raises(InputError, match="not in the order"):
        SweepPlan.read(root)


def test_a_directory_of_before_the_hash_of_ids_is_read(written):
    plan, root = written
    head = json.loads((root / "sweep.json").read_text())
    del head["ids"]
    (root / "sweep.json").write_text(json.dumps(head))
    assert SweepPlan.read(root) == plan


@pytest.mark.parametrize(
    "make",
    [
        lambda: Validation(windows=-5),
        lambda: Validation(split=""),
        lambda: Validation(seed=-1),
        lambda: Policy(retries=-3),
        lambda: Policy(lr_factor=0.0),
        lambda: Policy(lr_factor=2.0),
        lambda: Policy(diverged_above=float("inf")),
    ],
)
def test_what_no_run_could_be_measured_or_tried_again_by(make):
    with pytest.raises(InputError, match="Validation|Policy"):
        make()


def test_every_leaf_is_in_the_id():
    config = {name: list(value) if isinstance(value, tuple) else value for name, value in config_lib.leaves(config_lib.default()).items()}
    cell = {"width": 64, "seed": 0}
    ids = {run_id("m", cell, config, ("w64",))}
    assert run_id("m", dict(reversed(cell.items())), dict(reversed(config.items())), ("w64",)) in ids, "order does not matter"
    for name, value in config.items():
        ids.add(run_id("m", cell, {**config, name: [value, 1]}, ("w64",)))
    ids.add(run_id("n", cell, config, ("w64",)))
    ids.add(run_id("m", {**cell, "seed": 1}, config, ("w64",)))
    assert len(ids) == len(config) + 3 and len(config) == 72


def test_reading_a_plan_imports_no_jax():
    code = "import sys, dlmjax.sweep.manifest, dlmjax.sweep.ladder, dlmjax.sweep.rules; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_sweep_of_values_that_are_refused_now_opens_and_is_not_run(tmp_path):
    """Its table and its records are still worth reading; to train with such a value is refused, by name."""
    run = sweeps.planned(["nowhere"])
    run = sweeps.renamed(dataclasses.replace(run, config={**run.config, "optimizer.clip": -1.0, "train.spike": -2.0}))
    made = sweeps.plan(run)
    made.write(tmp_path)
    found = SweepPlan.read(tmp_path)
    assert found.runs[0].config["optimizer.clip"] == -1.0
    nothing = dict.fromkeys(("loss_stderr", "bits_per_byte", "bits_per_byte_stderr"))
    known = facts(run, run.config, made.validation)
    append_record(tmp_path / "records.jsonl", Record(**known, **nothing, loss=2.5, status="finished"))
    assert "quick: 1 finished" in snapshot(found, tmp_path).text()
    assert [record.loss for record in read_records(tmp_path)] == [2.5]
    with pytest.raises(InputError, match=r"optimizer.clip is -1.0"):
        execute(str(tmp_path), run.id)
