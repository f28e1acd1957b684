"""The sweep's own process: real children that end in every way there is, by Python one-liners in place of a training process."""

import json
import os
import signal
import sys
import threading
import time

import pytest

from dlmjax.errors import InputError
from dlmjax.sweep.execute import CompileLock
from dlmjax.sweep.local import Local, WorkerSlot, drop_torn, gpus, worker_slots
from dlmjax.sweep.manifest import Policy
from dlmjax.sweep.records import Record, append_record, read_records
from dlmjax.sweep.run_log import COMPILED, LOCKS, Counters, RunLog, hold, released, workdir_of
from tests.sweep.sweeps import lines, plan, planned

CHILD = """
import os, signal, sys, time
from dlmjax.sweep.execute import config_values, find
from dlmjax.sweep.run_log import RESULT, Counters, facts, workdir_of
from dlmjax.sweep.manifest import SweepPlan
from dlmjax.sweep.records import Record
root, name, diverged, attempt = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
plan = SweepPlan.read(root)
run, workdir = find(plan, name), workdir_of(root, name, diverged)
with open(root + "/order.txt", "a") as file:
    file.write(f"{name} {diverged} {attempt}\\n")

def end(status, loss):
    values = config_values(run, plan.policy, diverged)
    known = dict.fromkeys(("loss_stderr", "bits_per_byte", "bits_per_byte_stderr"))
    record = Record(**facts(run, values, plan.validation), **known, loss=loss, status=status, attempt=attempt, seconds=1.0)
    (workdir / RESULT).write_text(record.to_json())
    sys.exit(0)
"""


def children(code):
    """What `execute.command` makes, with this code in place of the run."""

    def command(directory, run_id, *, diverged, attempt, cores):
        return [sys.executable, "-c", CHILD + code, directory, run_id, str(diverged), str(attempt)]

    return command


def go(root, made, code, places=1, said=None):
    """Runs a plan by such children; the exit code."""
    made.write(root)
    log = (said if said is not None else []).append
    return Local(made, str(root), [WorkerSlot(str(number)) for number in range(places)], log=log, command=children(code)).go()


def order(root):
    return [line.split() for line in (root / "order.txt").read_text().splitlines()]


def test_a_failed_run_is_tried_again_by_policy_and_the_next_sweep_tries_anew(tmp_path):
    (run,) = (made := plan(planned(["c"]), policy=Policy(retries=1))).runs
    said = []
    assert go(tmp_path, made, "sys.stderr.write('dlmjax: out of\\nluck\\n'); sys.exit(1)", said=said) == 1
    assert [(line["status"], line["attempt"], line["problem"]) for line in lines(tmp_path)] == [
        ("failed", 0, "luck"),
        ("failed", 1, "luck"),
    ]
    assert said == [f"{run.id} failed: luck; it will be tried again", f"{run.id} failed: luck"]
    assert go(tmp_path, made, "end('finished', 2.0)") == 0
    assert lines(tmp_path)[2]["attempt"] == 2 and {name for name, *_ in order(tmp_path)} == {run.id}
    assert read_records(tmp_path)[0].status == "finished" and not workdir_of(tmp_path, run.id, 1).exists()
    assert go(tmp_path, made, "end('finished', 3.0)") == 0 and len(lines(tmp_path)) == 3  # it is skipped


def test_bad_input_is_not_tried_again(tmp_path):
    assert go(tmp_path, plan(planned(["c"]), policy=Policy(retries=5)), "print('dlmjax: no corpus', file=sys.stderr); sys.exit(2)") == 1
    assert [line["problem"] for line in lines(tmp_path)] == ["no corpus"]


def test_a_killed_process_is_said_to_be_killed(tmp_path):
    assert go(tmp_path, plan(planned(["c"]), policy=Policy(retries=0)), "os.kill(os.getpid(), signal.SIGKILL)") == 1
    assert "SIGKILL" in lines(tmp_path)[0]["problem"] and lines(tmp_path)[0]["loss"] is None


def test_a_diverged_run_is_tried_again_with_a_lower_rate_in_a_workdir_of_its_own(tmp_path):
    (run,) = (made := plan(planned(["c"]), policy=Policy(diverged_retries=2, lr_factor=0.5))).runs
    assert go(tmp_path, made, "end('diverged', None if not diverged else 9.0)") == 0
    assert [(line["lr"], line["config"]["optimizer.lr"], line["attempt"]) for line in lines(tmp_path)] == [
        (0.01, 0.01, 0),
        (0.005, 0.005, 1),
        (0.0025, 0.0025, 2),
    ]
    assert all(workdir_of(tmp_path, run.id, number).is_dir() for number in range(3))
    assert RunLog(tmp_path).state(run.id, made.policy) == "diverged"
    assert go(tmp_path, made, "end('finished', 1.0)") == 0 and len(lines(tmp_path)) == 3  # its policy is used up


def test_a_run_that_somebody_else_holds_waits_for_him(tmp_path):
    (run,) = (made := plan(planned(["c"]))).runs
    made.write(tmp_path)
    lock = hold(tmp_path, run.id)
    assert hold(tmp_path, run.id) is None
    released_at = []

    def let_go():
        released_at.append(time.time())
        os.close(lock)

    threading.Timer(0.5, let_go).start()
    assert go(tmp_path, made, "end('finished', 1.0)") == 0
    assert (tmp_path / "order.txt").stat().st_mtime > released_at[0]


def test_what_another_sweep_finished_meanwhile_is_skipped(tmp_path):
    (run,) = (made := plan(planned(["c"]))).runs
    assert go(tmp_path / "one", made, "end('finished', 1.0)") == 0
    made.write(tmp_path / "two")
    lock = hold(tmp_path / "two", run.id)

    def finish():
        append_record(tmp_path / "two" / "records.jsonl", read_records(tmp_path / "one")[0])
        os.close(lock)

    threading.Timer(0.3, finish).start()
    assert go(tmp_path / "two", made, "end('finished', 2.0)") == 0
    assert len(lines(tmp_path / "two")) == 1 and not (tmp_path / "two" / "order.txt").exists()


@pytest.mark.parametrize("asked", ["sys.exit(75)", "os.kill(os.getpid(), 15)"])
def test_a_run_that_was_stopped_by_somebody_goes_on(tmp_path, asked):
    code = f"mark = workdir / 'once'\nif mark.exists(): end('finished', 1.0)\nmark.touch(); {asked}"
    assert go(tmp_path, plan(planned(["c"])), code) == 0
    assert [line["status"] for line in lines(tmp_path)] == ["finished"] and len(order(tmp_path)) == 2


def test_a_signal_is_handed_on_and_nothing_is_started_any_more(tmp_path):
    made = plan(planned(["c"], seed=0), planned(["c"], seed=1), planned(["c"], seed=2))
    code = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); (workdir / 'up').touch(); time.sleep(60)"

    def ask():
        while len(list((tmp_path / "runs").glob("*/up"))) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    made.write(tmp_path)
    threading.Thread(target=ask, daemon=True).start()
    begin = time.monotonic()
    assert go(tmp_path, made, code, places=2) == 75
    assert time.monotonic() - begin < 20 and len(order(tmp_path)) == 2 and not lines(tmp_path)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_that_was_ignored_at_the_start_stays_ignored(tmp_path):
    """As `nohup` does with SIGHUP, for all that it starts."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert go(tmp_path, plan(planned(["c"])), "os.kill(os.getppid(), signal.SIGHUP); time.sleep(0.3); end('finished', 1.0)") == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)
    assert [line["status"] for line in lines(tmp_path)] == ["finished"]


def test_a_result_that_is_no_record_is_the_failure_of_its_run_alone(tmp_path):
    made = plan(planned(["c"], seed=0), planned(["c"], seed=1), policy=Policy(retries=0))
    code = "(workdir / RESULT).write_text('{}') if name.endswith(first) else end('finished', 1.0)"
    assert go(tmp_path, made, f"first = {made.runs[0].id[-8:]!r}; {code}") == 1
    assert sorted(line["status"] for line in lines(tmp_path)) == ["failed", "finished"]
    assert next(line for line in lines(tmp_path) if line["status"] == "failed")["problem"].startswith("the record '' lacks")


def test_the_longest_comes_first_and_no_two_of_one_shape_compile_together(tmp_path):
    long = planned(["c"], width=64, train__steps=400)
    twin, small = planned(["c"], width=64, seed=1, train__steps=300), planned(["c"], width=32)
    made = plan(small, twin, long)
    assert go(tmp_path / "one", made, "end('finished', 1.0)") == 0
    assert [name for name, *_ in order(tmp_path / "one")] == [long.id, twin.id, small.id]
    # The first of two slots compiles the shape of the twin: the second one takes another shape.
    code = "time.sleep(1.0 if 'w64' in name else 0.0); Counters(workdir).note('stepped'); end('finished', 1.0)"
    assert go(tmp_path / "two", made, code, places=2) == 0
    begun = [name for name, *_ in order(tmp_path / "two")]
    assert set(begun[:2]) == {long.id, small.id} and begun[2] == twin.id


@pytest.mark.parametrize(
    ("series", "changes", "waits"),
    [
        ("uniform", {"seed": 1}, True),  # the same programs
        ("hybrid", {}, True),  # another process of the same network: its initial values are one program
        ("hybrid", {"width": 64}, False),
        ("masked", {}, False),  # a network without time input
    ],
)
def test_runs_with_a_program_in_common_compile_one_after_the_other(tmp_path, series, changes, waits):
    """After the first run of a sweep, which compiles alone."""
    first, second = (CompileLock(str(tmp_path), run.config) for run in (planned(["c"], "uniform"), planned(["c"], series, **changes)))
    (tmp_path / LOCKS).mkdir()
    (tmp_path / LOCKS / "train-all.done").touch()
    entered = threading.Event()

    def enter():
        with second.held("train"):
            entered.set()

    other = threading.Thread(target=enter)
    with first.held("train") as compiled:
        other.start()
        assert entered.wait(0.3 if waits else 30) != waits
        compiled()
        assert entered.wait(30)
    other.join()


def test_the_sweeps_own_seconds_are_in_the_records(tmp_path):
    made = plan(*(planned(["c"], seed=seed) for seed in range(2)))
    assert go(tmp_path, made, "time.sleep(0.8); end('finished', 1.0)") == 0
    spent = [line["overhead_seconds"] for line in lines(tmp_path)]
    assert all(seconds > 0 for seconds in spent)
    assert spent[1] < 0.6  # starting and recording, not waiting


# --- what a run has to itself --------------------------------------------------------------------------------------------------------


def test_slots_are_equal_shares_of_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4}, raising=False)
    cpu = {"JAX_PLATFORMS": "cpu"}
    assert [slot.cores for slot in worker_slots(None, cpu)] == [(0,), (1,), (2,), (3,), (4,)]
    assert [slot.cores for slot in worker_slots(2, cpu)] == [(0, 1), (2, 3)]
    assert worker_slots(1, cpu)[0].cores == (0, 1, 2, 3, 4) and worker_slots(1, cpu)[0].environment["JAX_NUM_CPU_DEVICES"] == "1"
    for jobs, said in ((6, "5 cores"), (0, "at least 1")):
        with pytest.raises(InputError, match=said):
            worker_slots(jobs, cpu)


def test_slots_are_gpus_where_there_are_some():
    two = {"CUDA_VISIBLE_DEVICES": "4,7"}
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in worker_slots(None, two)] == ["4", "7"]
    packed = worker_slots(4, two)
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in packed] == ["4", "7", "4", "7"]
    assert {slot.environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] for slot in packed} == {"0.450"}
    assert gpus({"CUDA_VISIBLE_DEVICES": ""}) == gpus({"CUDA_VISIBLE_DEVICES": "-1"}) == []


def test_programs_that_a_kill_left_half_written_are_removed(tmp_path):
    import zstandard

    (tmp_path / COMPILED).mkdir()
    whole = zstandard.ZstdCompressor().compress(os.urandom(10_000))
    torn = {"torn": whole[:5000], "start": whole[:2], "empty": b""}
    for name, content in {"whole": whole, "young": whole[:5000], "other": b"xyz", **torn}.items():
        file = tmp_path / COMPILED / f"{name}-cache"
        file.write_bytes(content)
        os.utime(file, (0, 0) if name != "young" else None)
    drop_torn(str(tmp_path))
    assert {path.name for path in (tmp_path / COMPILED).iterdir()} == {"whole-cache", "young-cache", "other-cache"}


def test_the_counters_of_a_run_add_up_over_its_starts(tmp_path):
    for _ in range(2):
        counters = Counters(tmp_path)
        counters.note("compiled")
        counters.note("start", 1.25)
    with open(tmp_path / "account.txt", "a") as file:
        file.write("compi")  # a kill
    assert Counters(tmp_path).totals() == {"compiled": 2, "start": 2.5}


def test_the_run_log_reads_on_where_it_was(tmp_path):
    made = plan(planned(["c"]))
    assert go(tmp_path, made, "end('finished', 1.0)") == 0
    run_log, (record,) = RunLog(tmp_path), read_records(tmp_path)
    with open(tmp_path / "records.jsonl", "a") as file:
        file.write('{"id": "half')
    run_log.refresh()
    assert len(run_log.of(record.id)) == 1
    append_record(tmp_path / "records.jsonl", Record(**{**json.loads(record.to_json()), "attempt": 7}))
    run_log.refresh()
    assert [each.attempt for each in run_log.of(record.id)] == [0, 7]
    with open(tmp_path / "records.jsonl", "a") as file:
        file.write('{"id": "no record"}\n')
    with pytest.raises(InputError, match="records.jsonl"):
        run_log.refresh()
    with released(hold(tmp_path, "x")):
        assert hold(tmp_path, "x") is None
