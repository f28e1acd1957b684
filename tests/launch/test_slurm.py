"""A real Slurm, two nodes on this machine: submitted, trained by two processes, told to stop, saved, requeued; the long form resumes."""

import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

from tests.test_train import config_file, environment, losses, tiny_config

ROOT = pathlib.Path(__file__).parents[2]
CLUSTER = str(ROOT / "launch/slurm_test_cluster.sh")
MISSING = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not found: apt-get install -y --no-install-recommends slurm-wlm munge"),
    pytest.mark.skipif(os.getuid() != 0, reason="Slurm's daemons are started by root here"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The environment in which Slurm's commands find a cluster of two nodes."""
    folder = tmp_path_factory.mktemp("slurm")
    started = subprocess.run([CLUSTER, "start", str(folder)], capture_output=True, text=True, timeout=120)
    assert started.returncode == 0, started.stderr
    yield {**environment(devices=2), "SLURM_CONF": str(folder / "slurm.conf")}
    subprocess.run([CLUSTER, "stop", str(folder)], check=True, timeout=120)


@pytest.mark.parametrize(
    "step, told",
    [
        ([], [(1, 0)]),
        (["srun", "--interactive", "--preserve-env"], [(1, 0)]),  # the shell where LaunchParameters=use_interactive_step
        (["srun", "-n1"], [(1, 0)]),
        (["srun"], [(4, rank) for rank in range(4)]),
    ],
    ids=["shell", "interactive step", "one task", "all tasks"],
)
def test_the_tasks_of_the_step_count_inside_an_allocation_of_four(cluster, step, told):
    program = (
        "import os; from dlmjax.cluster.process_info import find; info = find(os.environ); print(info.num_processes, info.process_index)"
    )
    command = ["salloc", "-Q", "-n4", *step, sys.executable, "-c", program]
    done = subprocess.run(command, env=cluster, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert sorted(tuple(map(int, line.split())) for line in done.stdout.splitlines()) == told, done.stderr


class Job:
    """A submitted run."""

    def __init__(self, cluster, corpus, folder, *flags, **changes):
        self._environment, self.workdir, self._log = cluster, folder / "run", folder / "log.txt"
        file = config_file(folder / "tiny.py", tiny_config(corpus, log__evaluate=0, log__sample=0, checkpoint__every=50_000, **changes))
        command = [sys.executable, str(ROOT / "launch/slurm.py"), "--nodes", "2", "--time", "10", "--save-seconds", "60"]
        command += ["--log", str(self._log), *flags, "--config", str(file), "--workdir", str(self.workdir)]
        done = subprocess.run(command, env=cluster, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        self.number = done.stdout.split()[-1]

    def slurm(self, *command):
        return subprocess.run([*command, self.number], env=self._environment, capture_output=True, text=True, timeout=60).stdout

    @property
    def facts(self):
        words = self.slurm("scontrol", "show", "job").split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    @property
    def log(self):
        return self._log.read_text() if self._log.exists() else ""

    @property
    def losses(self):
        return losses(self.workdir) if (self.workdir / "metrics.jsonl").exists() else {}

    def until(self, true, seconds):
        deadline = time.monotonic() + seconds
        while not true(self):
            assert time.monotonic() < deadline, f"{self.facts}\n{self.log}"
            time.sleep(0.2)


def stopped_and_requeued(job):
    """Waits until the run trains, tells it to stop, waits until Slurm has it in its queue again; returns the last step."""
    job.until(lambda job: job.losses, 180)
    assert "processes: 2 (Slurm job" in job.log
    job.slurm("scancel", "--signal=TERM")
    job.until(lambda job: job.facts["JobState"] == "PENDING" and job.facts["Restarts"] == "1", 90)
    (saved,) = (int(path.name) for path in (job.workdir / "checkpoints").iterdir())
    assert saved > 0 and '"finished": false' in job.log and f"requeueing job {job.number}" in job.log
    return saved


@pytest.mark.slow
def test_two_tasks_train_one_run_and_are_requeued_when_told_to_stop(cluster, small_corpus, tmp_path):
    job = Job(cluster, small_corpus, tmp_path, train__steps=100_000)
    stopped_and_requeued(job)
    job.slurm("scancel")
    job.until(lambda job: job.facts["JobState"] == "CANCELLED", 30)


@pytest.mark.nightly
def test_a_cancelled_job_and_bad_input_are_not_requeued(cluster, small_corpus, tmp_path):
    job = Job(cluster, small_corpus, tmp_path, train__steps=100_000)
    job.until(lambda job: job.losses, 180)
    job.slurm("scancel")
    job.until(lambda job: job.facts["JobState"] == "CANCELLED", 60)
    assert "requeueing" not in job.log
    (tmp_path / "bad").mkdir()
    refused = Job(cluster, tmp_path / "no-corpus", tmp_path / "bad")
    refused.until(lambda job: job.facts["JobState"] == "FAILED", 90)
    assert refused.facts["ExitCode"] == "2:0" and "no-corpus" in refused.log


@pytest.mark.nightly
def test_a_requeued_run_resumes_and_finishes(cluster, small_corpus, tmp_path):
    """Slurm itself waits two minutes before it starts a requeued job again."""
    job = Job(cluster, small_corpus, tmp_path, train__steps=400)
    saved = stopped_and_requeued(job)
    job.until(lambda job: job.facts["JobState"] == "COMPLETED", 400)
    assert f"resuming at step {saved}" in job.log and '"finished": true' in job.log
    assert list(job.losses) == list(range(2, 401, 2))  # no step is missing, none was logged twice
