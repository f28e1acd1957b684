"""A sweep from its manifest to its records, by real processes: run, killed, resumed, skipped; on a real Slurm where there is one."""

import json
import pathlib
import re
import shutil
import signal
import subprocess
import time

import jax
import pytest

from dlmjax.data.prepare import prepare
from dlmjax.errors import InputError
from dlmjax.evaluate import EvaluationSettings, TextSettings, evaluate
from dlmjax.experiment import open_corpora
from dlmjax.run import open_run
from dlmjax.sweep.execute import Final, _Run, execute
from dlmjax.sweep.manifest import Policy, SweepPlan
from dlmjax.sweep.records import Record, read_records
from dlmjax.sweep.run_log import Counters
from dlmjax.train import _windows
from dlmjax.training import read
from tests.launch.test_slurm import MISSING, cluster  # noqa: F401
from tests.sweep.sweeps import EVERY, OBJECTIVES, STEPS, command, environment, lines, plan, planned, renamed, sweep


@pytest.fixture(scope="module")
def swept(small_corpus, tmp_path_factory):
    """A sweep of four runs, two of one shape, two at a time; what it said."""
    root = tmp_path_factory.mktemp("sweep") / "quick"
    corpora = [small_corpus]
    twins = [planned(corpora, "autoregressive", seed=0), planned(corpora, "autoregressive", seed=1)]
    plan(*twins, planned(corpora, "masked", 32), planned(corpora, "masked", 48)).write(root)
    return root, sweep("run", root, "--jobs", 2)


def records(root) -> dict:
    return {record.id: record for record in read_records(root)}


def test_every_run_ends_in_one_record(swept):
    root, done = swept
    found, runs = records(root), SweepPlan.read(root).runs
    assert len(lines(root)) == 4 and set(found) == {run.id for run in runs}
    for run in runs:
        record = found[run.id]
        assert record.status == "finished" and record.series == run.series and record.attempt == 0
        assert record.loss_stderr > 0 and record.bits_per_byte > 0 and record.train_loss > 0
        assert (record.width, record.steps, record.batch, record.seed) == (run.cell["width"], STEPS, 4, run.cell["seed"])
        assert record.vocab > 256 and record.config == json.loads(json.dumps(run.config)) and record.budget == 1e9
        assert record.made["jax"] == jax.__version__ and record.made["devices"] == 1
        assert record.seconds > 0 and record.start_seconds > 0 and 0 < record.overhead_seconds < record.seconds
        assert f"{run.id} finished: {record.loss:.4f}" in done.stderr
    assert len({record.validation for record in found.values()}) == 1


def test_the_loss_is_what_evaluate_finds_on_the_fixed_windows(swept, capsys):
    root, _ = swept
    masked = next(run for run in SweepPlan.read(root).runs if run.series == "masked")
    run = open_run(str(root / "runs" / masked.id))
    found = evaluate(run, TextSettings(windows=16), EvaluationSettings(nodes=2)).result
    record = records(root)[masked.id]
    assert found.weights == "ema" and found.windows == 16
    assert record.loss == pytest.approx(found.nats_per_token, rel=1e-5) and record.loss != pytest.approx(record.train_loss, rel=1e-3)
    assert record.loss_stderr == pytest.approx(found.stderr_nats_per_token, rel=1e-4)
    assert record.bits_per_byte == pytest.approx(found.bits_per_byte, rel=1e-5)


def test_runs_of_one_shape_share_what_is_compiled(swept):
    root, done = swept
    first, second = sorted((records(root)[run.id] for run in SweepPlan.read(root).runs[:2]), key=lambda record: -record.compiled)
    # What a checkpoint compiles is the one's that comes to it first.
    assert first.compiled > 3 and second.compiled <= 2 and first.compiled + first.from_cache == second.compiled + second.from_cache
    compiled = sum(record.compiled for record in records(root).values())
    assert compiled == len(list((root / "compiled").glob("*-cache")))
    assert f"{compiled} programs compiled, none twice" in done.stderr


def test_finished_runs_are_skipped_and_the_table_shows_them(swept):
    root, _ = swept
    files = [root / "records.jsonl", *root.glob("runs/*/metrics.jsonl")]
    before = [file.read_bytes() for file in files]
    assert sweep("run", root).stderr.count("4 finished") == 1
    assert len(files) == 5 and [file.read_bytes() for file in files] == before
    table = sweep("status", root).stdout
    assert table.count(" finished ") == 4 and "quick: 4 finished; " in table and re.search(r"bookkeeping \d+\.\d+ ?%", table)
    assert sweep("run", root, "--executor", "print").stdout == ""


def sweep_until(root, true, *words):
    """Starts a sweep, waits until something is true of it, returns its process."""
    process = subprocess.Popen(command("run", root, *words), env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not true():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)
    return process


def step_of(workdir):
    file = workdir / "metrics.jsonl"
    events = read(file, "train") if file.exists() else []
    return events[-1]["step"] if events else 0


def is_saved(workdir) -> bool:
    return (workdir / "checkpoints" / f"{EVERY:08}" / "dlmjax.json").exists()


def copy_of(swept, folder):
    """The plan and the compiled programs of the sweep, no run."""
    root, _ = swept
    folder.mkdir()
    for name in ("sweep.json", "manifest.jsonl"):
        shutil.copy(root / name, folder)
    shutil.copytree(root / "compiled", folder / "compiled")
    return folder


def test_a_sweep_killed_in_the_middle_resumes_to_the_same_bits(swept, tmp_path):
    root = copy_of(swept, tmp_path / "again")
    run = next(run for run in SweepPlan.read(root).runs if run.series == "masked")
    workdir, words = root / "runs" / run.id, ("--only", run.id, "--jobs", 2)
    process = sweep_until(root, lambda: is_saved(workdir) and step_of(workdir) < STEPS, *words)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 10
    while _processes_of(root) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _processes_of(root)  # they die with the sweep
    assert not lines(root)
    sweep("run", root, *words)
    (again,) = lines(root)
    reference = records(swept[0])[run.id]
    assert (again["loss"], again["loss_stderr"], again["train_loss"]) == (reference.loss, reference.loss_stderr, reference.train_loss)
    assert f"resuming at step {EVERY}" in (workdir / "log.txt").read_text()


def _processes_of(root) -> list[int]:
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"dlmjax.cli.sweep_process" in path.read_bytes() and str(root).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:  # it ended meanwhile
            continue
    return found


@pytest.mark.nightly
def test_a_sweep_that_is_told_to_stop_saves_and_goes_on(swept, tmp_path):
    root = copy_of(swept, tmp_path / "again")
    run = next(run for run in SweepPlan.read(root).runs if run.series == "masked")
    workdir, words = root / "runs" / run.id, ("--only", run.id, "--jobs", 2)
    process = sweep_until(root, lambda: 4 < step_of(workdir) < STEPS - 20, *words)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 75, said
    (saved,) = (int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert 0 < saved < STEPS and "stopped by SIGTERM" in (workdir / "log.txt").read_text() and not lines(root)
    sweep("run", root, *words)
    assert lines(root)[0]["loss"] == records(swept[0])[run.id].loss


@pytest.mark.nightly
def test_all_objectives_run_in_one_sweep(small_corpus, tmp_path):
    plan(*(planned([small_corpus], series) for series in OBJECTIVES)).write(tmp_path / "all")
    sweep("run", tmp_path / "all", "--jobs", 2)
    found = {record.series: record for record in read_records(tmp_path / "all")}
    assert set(found) == set(OBJECTIVES) and {record.status for record in found.values()} == {"finished"}
    assert len({record.validation for record in found.values()}) == 1 and not any(record.problem for record in found.values())


def test_every_objective_sees_the_same_rows_in_the_same_order(small_corpus):
    from dlmjax import config as config_lib

    seen = []
    for series in OBJECTIVES:
        run = planned([small_corpus], series, width=64)
        config = config_lib.from_json(json.dumps(run.config))
        rows = _windows(config, open_corpora(config, "train"))
        seen.append([rows.rows(step, range(4))["tokens"].tolist() for step in (0, 5)])
    assert all(each == seen[0] for each in seen[1:])
    assert seen[0][0] != seen[0][1]


# --- one line, in this process -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(small_corpus, tmp_path_factory):
    """A run on two corpora of unequal weights, and its record."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "numbers.txt").write_text("\n\n".join(" ".join(str(n * n) for n in range(k, k + 90)) for k in range(60)))
    prepare([str(folder / "numbers.txt")], "bytes", str(folder / "numbers"), valid_fraction=0.3, documents="blank-line")
    run = planned([small_corpus, folder / "numbers"], train__steps=4, data__weights="1,3", data__batch=8, model__depth=1)
    made = plan(run)
    made.write(folder / "sweep")
    return folder / "sweep", made, execute(str(folder / "sweep"), run.id)


@pytest.mark.slow
def test_a_mixture_is_measured_on_each_corpus(mixed):
    _, made, record = mixed
    names = list(record.domains)
    assert names[1] == "numbers" and record.mixture == {names[0]: 0.25, "numbers": 0.75}
    assert min(record.domains.values()) < record.loss < max(record.domains.values())
    assert record.domains["numbers"] < record.domains[names[0]]  # digits are easier than prose


def test_a_loss_above_the_bound_of_the_policy_has_diverged(mixed):
    """The run is finished already: it is measured again, to the same number, and judged by the other policy."""
    root, made, record = mixed
    plan(*made.runs, policy=Policy(diverged_above=0.5, diverged_retries=1)).write(root)
    again = execute(str(root), record.id, attempt=3)
    assert again.status == "diverged" and again.loss == record.loss and again.attempt == 3 and "above 0.5" in again.problem


def test_a_run_that_skipped_its_updates_has_diverged(mixed):
    """Its loss is finite, and of weights that were never trained on the tokens that the record counts."""
    root, made, record = mixed
    plan(*made.runs, policy=Policy()).write(root)
    file = root / "runs" / record.id / "metrics.jsonl"
    kept = file.read_bytes()
    try:
        last = read(file, "train")[-1] | {"loss": None, "skipped_total": 3.0}
        with open(file, "ab") as lines:
            lines.write(json.dumps(last).encode() + b"\n")
        again = execute(str(root), record.id)
    finally:
        file.write_bytes(kept)
    assert record.skipped == 0 and again.skipped == 3 and again.train_loss is None
    assert again.status == "diverged" and again.loss == record.loss and "3 of 4 updates were skipped" in again.problem


def test_a_loss_that_is_not_finite_ends_in_a_record_whatever_the_mixture(mixed):
    root, made, record = mixed
    run = _Run(made, made.runs[0], made.runs[0].config, root / "runs" / record.id, Counters(root / "runs" / record.id), None)
    nan = float("nan")
    judged = run._judged(Final(nan, nan, nan, nan, {"a": nan, "b": 1.0}, None, 259, ""), 0, 0.0)
    assert judged.status == "diverged" and judged.domains == {"a": None, "b": 1.0}
    assert Record.of(json.loads(judged.to_json())).problem == "the loss is nan nats per token"


@pytest.mark.nightly
def test_a_run_that_stops_for_a_loss_that_is_not_finite_has_diverged(small_corpus, tmp_path):
    run = planned([small_corpus], train__steps=6, data__batch=8, train__on_nonfinite="stop", optimizer__lr="1e30", optimizer__warmup=0)
    plan(run, policy=Policy(lr_factor=0.1, diverged_retries=1)).write(tmp_path)
    record = execute(str(tmp_path), run.id)
    assert record.status == "diverged" and record.loss is None and "not finite" in record.problem and record.lr == 1e30


def test_bad_input_is_refused_before_anything_is_trained(small_corpus, tmp_path):
    run = planned([small_corpus])
    plan(run).write(tmp_path)
    with pytest.raises(InputError, match="has no run 'other'"):
        execute(str(tmp_path), "other")
    for name, leaves, said in (
        ("unknown", {"model.widht": 3}, "different version"),
        ("nowhere", {"data.paths": [str(tmp_path / "nowhere")]}, "nowhere"),
    ):
        bad = planned([small_corpus])
        bad.config.update(leaves)
        bad = renamed(bad)
        plan(bad).write(tmp_path / name)
        with pytest.raises(InputError, match=said):
            execute(str(tmp_path / name), bad.id)
        assert not list((tmp_path / name / "runs").rglob("checkpoints"))


# --- Slurm ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not found: apt-get install -y --no-install-recommends slurm-wlm munge")
def test_an_array_of_slurm_jobs_runs_the_manifest(swept, tmp_path, cluster):  # noqa: F811
    root = copy_of(swept, tmp_path / "array")
    ids = [run.id for run in SweepPlan.read(root).runs if run.series == "masked"]
    words = command("run", root, "--executor", "slurm", "--time", "10", "--save-seconds", "60", "--only", *ids)
    done = subprocess.run(words, env={**environment(), **cluster, "JAX_NUM_CPU_DEVICES": "1"}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "submitted job" in done.stdout, done.stderr
    deadline = time.monotonic() + 240
    while len(lines(root)) < 2:
        assert time.monotonic() < deadline, [path.read_text() for path in (root / "slurm").iterdir()]
        time.sleep(0.2)
    found, reference = records(root), records(swept[0])
    assert set(found) == set(ids)
    for run_id in ids:  # a node's share of cores may differ from a slot's, and with it the order of sums
        assert found[run_id].loss == pytest.approx(reference[run_id].loss, rel=1e-3)
