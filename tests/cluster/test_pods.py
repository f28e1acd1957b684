"""One run over two processes of four devices each, real ones, over gloo: the same run as one process, through every way to end."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dlmjax import config as config_lib
from dlmjax.train import train
from tests.test_train import command, config_file, environment, lines, losses, said, tiny_config

ROOT = pathlib.Path(__file__).parents[2]
HEARTBEAT = 10
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc to find the training processes")


def launch(workdir, file, *flags, processes=2, devices=4):
    """The run under launch/local.py; output as text in one pipe."""
    local = [sys.executable, str(ROOT / "launch" / "local.py"), str(processes), "--devices", str(devices), "--grace", "60", "--"]
    run = command(workdir, file, "--heartbeat-timeout", str(HEARTBEAT), *flags)
    return subprocess.Popen(
        [*local, *run], env=environment(devices), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )


def finish(launched, timeout=240):
    out, _ = launched.communicate(timeout=timeout)
    return launched.returncode, out


def training_processes(workdir):
    """{rank: pid} of the processes that train into a workdir (not of their supervisors)."""
    found = {}
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().decode().split("\0")
            environ = dict(pair.split("=", 1) for pair in (path / "environ").read_bytes().decode().split("\0") if "=" in pair)
        except OSError:
            continue
        if str(workdir) in words and "DLMJAX_STATUS" in environ:
            found[int(environ["DLMJAX_PROCESS"])] = int(path.name)
    return found


def pool_threads(pid):
    """Threads in which XLA runs the operations of a process's CPU devices."""
    names = [(task / "comm").read_text().strip() for task in pathlib.Path(f"/proc/{pid}/task").iterdir()]
    return sum("XLAEigen" in name for name in names)


def wait_for_step(workdir, step, launched, timeout=200):
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline and launched.poll() is None:
        if (workdir / "metrics.jsonl").exists() and max(losses(workdir), default=0) >= step:
            return
        time.sleep(0.02)
    launched.kill()
    pytest.fail(f"no step {step}: {launched.communicate()[0]}")


def quiet(corpus, **changes):
    return tiny_config(corpus, **{"log.evaluate": 6, "log.sample": 12, "mesh.fsdp": 2, **changes})


@pytest.fixture(scope="module")
def pair(small_corpus, tmp_path_factory):
    """An uninterrupted run on two processes: workdir, config file, what it said."""
    root = tmp_path_factory.mktemp("pair")
    file = config_file(root / "tiny.py", quiet(small_corpus))
    code, out = finish(launch(root / "run", file, "--json"))
    assert code == 0, out
    return root / "run", file, out


def test_two_processes_train_the_run_of_one(pair, tmp_path):
    workdir, file, out = pair
    with said():
        train(config_lib.load(str(file)), str(tmp_path / "one"))
    one, two = losses(tmp_path / "one"), losses(workdir)
    np.testing.assert_allclose([two[s] for s in one], list(one.values()), rtol=2e-5)
    noise = [[[event[name] for name in ("noise_rate", "tokens")] for event in lines(w, "train")] for w in (tmp_path / "one", workdir)]
    assert noise[0] == noise[1]  # the same tokens under the same masks
    held_out = [[event["nats_per_token"] for event in lines(w, "held_out")] for w in (tmp_path / "one", workdir)]
    np.testing.assert_allclose(*held_out, rtol=2e-5)
    assert len(lines(workdir, "samples")) == 1
    assert out.count("processes: 2 (DLMJAX_PROCESSES)") == 1 and out.count("trained 12 steps") == 1  # the first process speaks for all
    assert "4 of 8 devices" in out and "goodput" in out


@pytest.fixture(scope="module")
def stopped(pair, small_corpus, tmp_path_factory):
    """A run that a SIGTERM to the second process alone has stopped: workdir, its config file, the step."""
    root = tmp_path_factory.mktemp("stopped")
    config = quiet(small_corpus, **{"train.steps": 100_000, "log.evaluate": 0, "log.sample": 0, "checkpoint.every": 50_000})
    file = config_file(root / "long.py", config)
    launched = launch(root / "run", file)
    wait_for_step(root / "run", 4, launched)
    threads = [pool_threads(pid) for pid in training_processes(root / "run").values()]
    os.kill(training_processes(root / "run")[1], signal.SIGTERM)
    code, out = finish(launched)
    assert code == 0, out
    # A collective operation holds a thread until its peers come: each device may hold four, and with fewer the run can stand still.
    assert len(threads) == 2 and min(threads) >= 4 * 4, threads
    step = int(re.search(r"stopped by a signal to another process after step (\d+); checkpoint saved", out)[1])
    return root / "run", file, step


@pytest.mark.slow
def test_sigterm_to_one_process_stops_all_at_one_step(stopped):
    workdir, _, step = stopped
    assert [int(path.name) for path in (workdir / "checkpoints").iterdir()] == [step]


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_goes_on_in_one(stopped, tmp_path):
    """On the same mesh in one process, and on another one: both see the same data under the same masks."""
    workdir, file, step = stopped
    runs = []
    for name, overrides in (("same", []), ("other", ["mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"])):
        shutil.copytree(workdir, tmp_path / name)
        with said() as out:
            config = config_lib.load(str(file), [*overrides, "log.every=1"])
            with config.unlocked():
                config.train.steps = 100_000
            _train_until(config, tmp_path / name, step + 3)
        assert f"resuming at step {step}" in out.getvalue()
        runs.append({s: e for s, e in ((e["step"], e) for e in lines(tmp_path / name, "train")) if s > step})
    assert list(runs[0]) == list(runs[1]) and len(runs[0]) >= 3
    for s, event in runs[0].items():
        assert (event["noise_rate"], event["tokens"]) == (runs[1][s]["noise_rate"], runs[1][s]["tokens"])
        assert event["loss"] == pytest.approx(runs[1][s]["loss"], rel=2e-5)


@pytest.mark.nightly
@pytest.mark.parametrize("processes, devices", [(4, 2), (1, 1)])
def test_a_checkpoint_of_two_processes_goes_on_in_four_and_in_one_device(stopped, tmp_path, processes, devices):
    workdir, file, step = stopped
    after = {}
    for name, count, each in (("two", 2, 4), ("other", processes, devices)):
        shutil.copytree(workdir, tmp_path / name)
        launched = launch(tmp_path / name, file, "--config.mesh.fsdp=1", "--config.log.every=1", processes=count, devices=each)
        wait_for_step(tmp_path / name, step + 3, launched)
        launched.send_signal(signal.SIGTERM)
        code, out = finish(launched)
        assert code == 0 and f"resuming at step {step}" in out, out
        after[name] = {event["step"]: event for event in lines(tmp_path / name, "train") if event["step"] > step}
    for s in range(step + 1, step + 4):
        two, other = after["two"][s], after["other"][s]
        assert (two["noise_rate"], two["tokens"]) == (other["noise_rate"], other["tokens"])
        assert two["loss"] == pytest.approx(other["loss"], rel=2e-5)


def _train_until(config, workdir, step):
    """Trains on, and asks it to stop, as a launcher would, once it has reached a step."""
    asked = []

    def on_step(done):
        if done >= step and not asked:
            asked.append(done)
            os.kill(os.getpid(), signal.SIGTERM)

    train(config, str(workdir), on_step=on_step)


@pytest.mark.slow
def test_a_killed_peer_ends_the_others_and_the_run_resumes(pair, small_corpus, tmp_path):
    """SIGKILL of one training process: the other ends by itself, soon, with 75 and a line; then the same command, bit for bit."""
    reference, file, _ = pair
    workdir = tmp_path / "run"
    launched = launch(workdir, file)
    wait_for_step(workdir, 6, launched)
    os.kill(training_processes(workdir)[1], signal.SIGKILL)
    start = time.monotonic()
    code, out = finish(launched)
    took = time.monotonic() - start
    if "trained 12 steps" in out:
        pytest.skip("the run was faster than the kill")
    assert code in (75, 128 + 9), out
    assert took < HEARTBEAT + 30, (took, out)  # 10 s of heartbeat, and the time in which two cores end eight processes
    assert re.search(r"dlmjax: exit 75: process 0 of 2 on \S+, after step \d+: ", out), out
    assert re.search(r"dlmjax: exit 137: process 1 of 2 on \S+, after step \d+: it was killed \(SIGKILL\)", out), out
    code, out = finish(launch(workdir, file))
    assert code == 0 and "resuming at step" in out, out
    assert lines(workdir) == lines(reference)


def test_a_process_that_never_comes_is_not_waited_for_in_silence(pair, tmp_path):
    run = command(
        tmp_path / "run", pair[1], "--coordinator", "127.0.0.1:9", "--num-processes", "2", "--process-id", "1", "--start-timeout", "2"
    )
    done = subprocess.run(run, env=environment(1), capture_output=True, text=True, timeout=120)
    assert done.returncode == 75, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert "exit 75: process 1 of 2 on " in last and "before the first step" in last
    assert "not all processes start within --start-timeout" in last
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_second_run_may_not_write_into_the_same_workdir(small_corpus, tmp_path):
    config = quiet(small_corpus, **{"log.evaluate": 0, "log.sample": 0, "mesh.fsdp": 1})
    seen = []

    def on_step(done):
        if done == 2 and not seen:
            file = config_file(tmp_path / "tiny.py", config)
            seen.append(subprocess.run(command(tmp_path / "run", file), env=environment(8), capture_output=True, text=True, timeout=200))

    with said():
        train(config, str(tmp_path / "run"), on_step=on_step)
    assert seen[0].returncode == 2 and "another run is writing to" in seen[0].stderr
