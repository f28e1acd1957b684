"""The process that watches the training process: real children that end in every way there is."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from dlmjax.cli.main import main
from dlmjax.cluster.process_info import ProcessInfo
from dlmjax.cluster.supervise import STATUS, Status, supervise
from dlmjax.errors import READER_LEFT, START_AGAIN

ROOT = pathlib.Path(__file__).resolve().parents[2]
ALONE, TWO = ProcessInfo(), ProcessInfo("flags", 2, 1, "h:1")
PREAMBLE = f"import os, signal, sys, time\nfrom dlmjax.cluster.supervise import Status\nstatus = Status(os.environ['{STATUS}'])\n"


def child(code):
    return [sys.executable, "-c", PREAMBLE + code]


@pytest.mark.parametrize("code", [0, 1, 2, START_AGAIN])
def test_exit_codes_pass_through(code, capfd):
    assert supervise(child(f"sys.exit({code})"), TWO) == code
    assert capfd.readouterr().err == ""  # who exits has said why itself


def test_an_abort_among_peers_is_a_lost_peer_and_says_where(capfd):
    assert supervise(child("status.step = 17; os.abort()"), TWO) == START_AGAIN
    said = capfd.readouterr().err
    assert "exit 75: process 1 of 2 on " in said and "after step 17" in said and "SIGABRT" in said


def test_a_kill_is_said_with_the_step(capfd):
    assert supervise(child("status.step = 3; os.kill(os.getpid(), signal.SIGKILL)"), ALONE) == 128 + 9
    assert "after step 3: it was killed (SIGKILL)" in capfd.readouterr().err
    assert supervise(child("os.kill(os.getpid(), signal.SIGSEGV)"), ALONE) == 128 + 11
    assert "before the first step: it was ended by SIGSEGV" in capfd.readouterr().err


def test_restarts_back_off_and_end(capfd):
    waits = []
    assert supervise(child("sys.exit(1)"), ALONE, restarts=3, sleep=waits.append) == 1
    assert waits == [1.0, 2.0, 4.0]
    assert capfd.readouterr().err.count("starting again") == 3


def test_a_fresh_start_is_the_first_alone(tmp_path):
    """Or each restart would move aside what the one before it had trained."""
    code = f"open({str(tmp_path / 'said')!r}, 'a').write(' '.join(sys.argv[1:]) + chr(10)); sys.exit(1)"
    assert supervise([*child(code), "train", "--fresh", "--workdir", "x"], ALONE, restarts=2, sleep=lambda _: None) == 1
    assert (tmp_path / "said").read_text().splitlines() == ["train --fresh --workdir x", *["train --workdir x"] * 2]


@pytest.mark.parametrize("count, fresh", [(None, True), ("", True), ("0", True), ("1", False), ("12", False)])
def test_a_job_that_slurm_starts_again_goes_on(monkeypatch, tmp_path, count, fresh):
    """The command is the same at each restart of a job; the trainer is told to begin anew at the first alone."""
    told = []
    monkeypatch.setattr("dlmjax.train.train", lambda config, workdir, *, fresh, **_: told.append(fresh))
    monkeypatch.setattr("dlmjax.cluster.host.keep_compiled", lambda workdir: None)
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    if count is not None:
        monkeypatch.setenv("SLURM_RESTART_COUNT", count)
    assert main(["train", "--config", str(ROOT / "configs/quickstart.py"), "--workdir", str(tmp_path / "run"), "--fresh"]) == 0
    assert told == [fresh]


def test_progress_gives_the_restarts_back(tmp_path):
    """Six failures, each one step further, under a limit of two."""
    counter = tmp_path / "count"
    counter.write_text("0")
    code = f"p = {str(counter)!r}; n = int(open(p).read()) + 1; open(p, 'w').write(str(n)); status.step = n; sys.exit(0 if n > 6 else 1)"
    assert supervise(child(code), ALONE, restarts=2, sleep=lambda seconds: None) == 0
    assert counter.read_text() == "7"


@pytest.mark.parametrize("code", [2, READER_LEFT])
def test_bad_input_and_work_that_is_done_are_not_tried_again(code):
    assert supervise(child(f"sys.exit({code})"), ALONE, restarts=5, sleep=lambda seconds: pytest.fail("waited")) == code


def watched(tmp_path, code):
    """A supervisor in a process of its own around a child that waits; its Popen and the child's pid."""
    note = tmp_path / "pid"
    inner = (
        f"from dlmjax.cluster.supervise import die_with_parent; die_with_parent(); open({str(note)!r}, 'w').write(str(os.getpid())); {code}"
    )
    outer = (
        "import sys; from dlmjax.cluster import process_info, supervise; "
        f"sys.exit(supervise.supervise({child(inner)!r}, process_info.ProcessInfo(), 9))"
    )
    process = subprocess.Popen([sys.executable, "-c", outer])
    while not (note.exists() and note.read_text()):
        time.sleep(0.02)
    return process, int(note.read_text())


def test_a_signal_is_handed_on_and_ends_the_restarts(tmp_path):
    code = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); time.sleep(60)"
    process, _ = watched(tmp_path, code)
    time.sleep(0.5)  # the handler is set right after the pid is written
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 5


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_the_training_process_dies_with_its_supervisor(tmp_path):
    process, pid = watched(tmp_path, "time.sleep(60)")
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            break
        if state == "Z":  # nobody reaps orphans in some containers
            break
        time.sleep(0.05)
    else:
        os.kill(pid, signal.SIGKILL)
        pytest.fail("the training process outlived its supervisor")


def test_without_a_supervisor_the_status_is_nowhere():
    status = Status(None)
    status.step = 5
    assert status.step == -1
