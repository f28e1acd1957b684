"""What is handed to a cluster, without one, and the table of a sweep."""

import dataclasses
import json
import os
import pathlib
import shlex
import subprocess
import time

import pytest

from dlmjax.cli import sweep
from dlmjax.errors import InputError
from dlmjax.flags import Parser
from dlmjax.sweep.local import worker_slots
from dlmjax.sweep.manifest import Policy
from dlmjax.sweep.records import Record, append_record
from dlmjax.sweep.run_log import COMPILED, facts, failed, hold, released, workdir_of
from dlmjax.sweep.status import clock, snapshot
from tests.sweep.sweeps import plan, planned


def arguments(*flags):
    parser = Parser()
    sweep.add_run(parser)
    return parser.parse_args([str(flag) for flag in flags])


def printed(capsys, *flags):
    assert sweep.run_runs(arguments(*flags)) == 0
    return capsys.readouterr().out


def ended(made, run, status="finished", **more) -> Record:
    known = dict.fromkeys(("loss", "loss_stderr", "bits_per_byte", "bits_per_byte_stderr"))
    if status == "finished":
        known |= {"loss": 2.5, "loss_stderr": 0.01}
    return Record(**{**facts(run, run.config, made.validation), **known, "status": status, **more})


@pytest.fixture
def started(tmp_path):
    """Six runs: finished, diverged for good, failed, running, waiting, waiting; the records of the first three."""
    corpus = tmp_path / "data"
    runs = [planned([corpus], seed=seed) for seed in range(4)]
    made = plan(*runs, planned([corpus], width=64), planned([corpus], width=64, seed=1), policy=Policy(diverged_above=9.0))
    root = tmp_path / "sweep"
    made.write(root)
    spent = {"seconds": 100.0, "start_seconds": 4.0, "overhead_seconds": 0.2, "compiled": 3, "from_cache": 5}
    for record in (
        ended(made, runs[0], **spent),
        ended(made, runs[1], "diverged", loss=11.0, problem="the loss is 11", **{**spent, "compiled": 1}),
        failed(runs[2], made.validation, 0, 0, made.policy, "no luck"),
    ):
        append_record(root / "records.jsonl", record)
    return root, made


# --- print and Slurm -----------------------------------------------------------------------------------------------------------------


def test_print_gives_one_command_for_each_run_that_is_left(started, capsys):
    root, made = started
    ids = [made.runs[number].id for number in (4, 5, 2, 3)]  # the longest first
    assert printed(capsys, root, "--executor", "print").splitlines() == [f"dlmjax sweep run {root} --jobs 1 --only {name}" for name in ids]
    only = printed(capsys, root, "--executor", "print", "--only", made.runs[0].id, made.runs[3].id)
    assert only.splitlines() == [f"dlmjax sweep run {root} --jobs 1 --only {made.runs[3].id}"]


def test_a_dry_run_here_trains_nothing(started, capsys):
    root, made = started
    assert printed(capsys, root, "--dry-run") == printed(capsys, root, "--executor", "print")
    assert not workdir_of(root, made.runs[3].id).exists()


def test_the_slurm_script_is_an_array_over_the_lines_that_are_left(started, capsys):
    root, _ = started
    flags = ("--executor", "slurm", "--dry-run", "--jobs", 3, "--cpus", 4, "--gpus", 1, "--time", "2:00:00", "--sbatch=--partition=gpu")
    script = printed(capsys, root, *flags, "--setup", "module load cuda")
    assert "#SBATCH --array=2-5%3\n" in script and "#SBATCH --cpus-per-task=4\n" in script and "#SBATCH --gpus-per-node=1\n" in script
    assert "#SBATCH --signal=TERM@120\n" in script and "#SBATCH --partition=gpu\n" in script and "\nmodule load cuda\n" in script
    assert f'-m dlmjax sweep run {root} --jobs 1 --line "$SLURM_ARRAY_TASK_ID"' in script
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    assert not (root / "slurm").exists()


def test_one_element_of_an_array_is_requeued_alone(started, capsys):
    """The last element's own job number is that of the whole array."""
    script = printed(capsys, started[0], "--executor", "slurm", "--dry-run")
    line = next(line.strip() for line in script.splitlines() if line.strip().startswith("job="))
    for variables, name in (
        ({"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_ID": "7"}, "7_3"),
        ({"SLURM_JOB_ID": "9"}, "9"),
    ):
        shown = subprocess.run(["bash", "-uc", f'{line}; echo "$job"'], env={**os.environ, **variables}, capture_output=True, text=True)
        assert shown.stdout.strip() == name, shown.stderr


def test_a_printed_command_keeps_to_the_cores_or_the_gpu_that_it_is_given(started, capsys):
    """The words of docs/scaling_run.md: what surrounds a command decides where it runs."""
    words = shlex.split(printed(capsys, started[0], "--executor", "print").splitlines()[0])
    jobs = arguments(*words[3:]).jobs
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in worker_slots(jobs, {"CUDA_VISIBLE_DEVICES": "3"})] == ["3"]
    (slot,) = worker_slots(jobs, {"JAX_PLATFORMS": "cpu"})
    assert set(slot.cores) == os.sched_getaffinity(0)


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--only", "nobody"], "has no run 'nobody'"),
        (["--line", 6], "lines 0 to 5"),
        (["--executor", "slurm", "--time", "soon"], "--time"),
        (["--executor", "slurm", "--time", "1"], "is not below --time 1"),
        (["--executor", "slurm", "--gpus", 2], "--gpus is 2"),
        (["--executor", "slurm", "--line", 0], "has ended"),
        (["--executor", "kubernetes"], "--image"),
        (["--executor", "kubernetes", "--image", "i", "--line", 2], "whole manifest"),
        (["--executor", "kubernetes", "--image", "i", "--claim", "nfs"], "NAME=/DIR"),
        (["--executor", "kubernetes", "--image", "i", "--claim", "nfs=/mnt"], "is on no volume"),
    ],
)
def test_bad_input_is_refused_before_anything_is_asked_for(started, flags, said):
    with pytest.raises(InputError, match=said) as error:
        sweep.run_runs(arguments(started[0], "--dry-run", *flags))
    assert "\n" not in str(error.value)


# --- Kubernetes ----------------------------------------------------------------------------------------------------------------------


def manifest(capsys, root, *flags):
    flags = ("--executor", "kubernetes", "--image", "an/image:1", "--claim", f"nfs={root.parent}", *flags)
    return json.loads(printed(capsys, root, *flags))


def test_the_manifest_is_what_the_published_models_accept(started, capsys):
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="pip install kubeflow-trainer-api for the published JobSet models")
    made = manifest(capsys, started[0], "--gpus", 1, "--cpus", 8, "--node", "cloud.google.com/gke-accelerator=nvidia-l4", "--jobs", 2)
    assert models.JobsetV1alpha2JobSet.from_dict(made).to_dict() == made
    made["spec"]["replicatedJobs"][0]["template"]["spec"]["backoffLimitsPerIndex"] = 3
    assert models.JobsetV1alpha2JobSet.from_dict(made).to_dict() != made  # a misspelt field would be seen


def test_each_index_runs_its_line_and_fails_alone(started, capsys):
    root, _ = started
    (replicated,) = manifest(capsys, root, "--jobs", 2, "--gpus", 1)["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert (job["completionMode"], job["completions"], job["parallelism"]) == ("Indexed", 6, 2)
    (rule,) = job["podFailurePolicy"]["rules"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert rule["action"] == "FailIndex" and rule["onExitCodes"]["values"] == [1, 2]
    assert rule["onExitCodes"]["containerName"] == container["name"] and pod["restartPolicy"] == "Never"
    assert container["command"][:4] == ["dlmjax", "sweep", "run", str(root)] and container["command"][-1] == "$(SWEEP_LINE)"
    (variable,) = container["env"]
    assert variable["name"] == "SWEEP_LINE" and "job-completion-index" in variable["valueFrom"]["fieldRef"]["fieldPath"]
    given = arguments(*container["command"][3:-1], "0")
    assert given.executor == "local" and given.line == 0 and given.jobs == 1
    assert container["volumeMounts"][0]["mountPath"] == str(root.parent)
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "1"} and pod["tolerations"][0]["key"] == "nvidia.com/gpu"


# --- the table -----------------------------------------------------------------------------------------------------------------------


def metrics(workdir, step, seconds):
    workdir.mkdir(parents=True, exist_ok=True)
    lines = [{"step": step - 2, "kind": "train", "seconds_per_step": 9.0}, {"step": step, "kind": "train", "seconds_per_step": seconds}]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 99, "ki')


def test_the_table_tells_of_every_run(started):
    root, made = started
    metrics(workdir_of(root, made.runs[3].id), 30, 0.5)
    for number in range(3):
        (root / COMPILED).mkdir(exist_ok=True)
        (root / COMPILED / f"{number}-cache").touch()
    with released(hold(root, made.runs[3].id)):
        seen = snapshot(made, root)
    assert [row.state for row in seen.rows] == ["finished", "diverged", "failed", "running", "waiting", "waiting"]
    running = seen.rows[3]
    assert running.step == 30 and running.left == 0.5 * (100 - 30)
    # A run of 100 s at width 32; those of width 64 have twice the FLOPs; one runs now.
    assert [row.left for row in seen.rows[4:]] == pytest.approx([200.0, 200.0])
    assert seen.left == pytest.approx(435.0)
    assert (seen.programs, seen.again, seen.read) == (3, 1, 10)
    assert seen.bookkeeping == pytest.approx(0.4 / 200) and seen.start == pytest.approx(8 / 3)
    text = seen.text()
    assert "2.5000 ± 0.0100" in text and "the loss is 11" in text and "no luck" in text and "0:07:15 left" in text
    assert "1 finished, 1 running, 2 waiting, 1 diverged, 1 failed" in text
    assert "3 programs compiled, 1 compilations too many; 10 read back" in text and "bookkeeping 0.20% of run time" in text
    assert snapshot(made, root).rows[3].state == "waiting"  # nobody holds it any more


def test_nothing_is_promised_before_anything_is_known(tmp_path):
    made = plan(planned(["c"]), planned(["c"], seed=1))
    made.write(tmp_path)
    seen = snapshot(made, tmp_path)
    assert seen.left is None and "? left" in seen.text() and seen.bookkeeping is None
    assert clock(None) == "?" and clock(3725.4) == "1:02:05"


def test_a_table_of_no_runs(tmp_path):
    assert "none twice" in snapshot(plan(), tmp_path).text()


def test_watching_ends_with_the_sweep(started, capsys):
    root, made = started
    for run in made.runs[3:]:
        append_record(root / "records.jsonl", ended(made, run, seconds=1.0))
    begin = time.monotonic()
    parser = Parser()
    sweep.add_status(parser)
    assert sweep.status(parser.parse_args([str(root), "--watch"]), every=60.0) == 0
    assert time.monotonic() - begin < 30 and "4 finished" in capsys.readouterr().out


def test_a_table_of_many_runs_is_quick(tmp_path):
    """The sweep's own work must not grow with the sweep: 500 records are read, checked and shown in a second or two, types checked."""
    run = planned(["c"])
    made = plan(*(dataclasses.replace(run, id=f"{run.id}-{number}") for number in range(500)))
    made.write(tmp_path)
    text = "".join(ended(made, run, seconds=1.0).to_json() + "\n" for run in made.runs)
    pathlib.Path(tmp_path / "records.jsonl").write_text(text)
    begin = time.process_time()
    assert snapshot(made, tmp_path).counts()["finished"] == 500
    assert time.process_time() - begin < 5
