"""Runs the lines of a manifest on this machine: one process each, `--jobs` at a time, the longest first. Imports no jax.

A worker slot is a share of the machine: on CPU an equal number of cores, to which a process is pinned; on GPU one device. XLA sizes its
threads by the cores, and the order of sums follows from that: so the width of a slot depends on `jobs` alone, not on how many runs remain.

How a run or the sweep ends:
    the process of a run       its record is in DIR/records.jsonl; a run that failed or diverged is tried again by the sweep's `Policy`
    SIGINT, SIGTERM, SIGHUP    are forwarded to every process, which saves a checkpoint and ends; exit code 75, the same command goes on
    a second SIGINT            kills the processes; the same command goes on from their last checkpoints
    SIGKILL of the sweep       the kernel kills its processes with it; the same command goes on
    a second sweep at the same DIR   takes other runs: a lock holds each run, across machines where the file system supports flock

Bookkeeping is all work of this process: choosing, locking, starting, reading results, appending records, progress. Its seconds are shared
out over the records (`overhead_seconds`); waiting is not in them.
"""

import contextlib
import dataclasses
import os
import pathlib
import queue
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from dlmjax import checks
from dlmjax.cluster.signals import not_ignored
from dlmjax.errors import START_AGAIN, InputError
from dlmjax.sweep import execute
from dlmjax.sweep.manifest import RECORDS, PlannedRun, SweepPlan
from dlmjax.sweep.records import Record, append_record
from dlmjax.sweep.run_log import (
    COMPILED,
    LOG,
    RESULT,
    STEPPED,
    Counters,
    RunLog,
    facts,
    failed,
    hold,
    read_result,
    released,
    shape_of,
    with_overhead,
    workdir_of,
)

LOOK_AGAIN = 1.0  # seconds between two tries to lock runs that another sweep holds
LOG_EVERY = 60.0  # seconds between lines of progress
ZSTANDARD = b"\x28\xb5\x2f\xfd"  # how a compressed program begins
DEVICE_MEMORY = 0.9  # of a GPU, for all runs on it


@dataclasses.dataclass(frozen=True)
class WorkerSlot:
    """A share of this machine. cores: of its process, none = not pinned; environment: further variables of its process."""

    name: str
    cores: tuple[int, ...] = ()
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


def worker_slots(jobs: int | None, environment: Mapping[str, str]) -> list[WorkerSlot]:
    """The worker slots of this machine for `jobs` runs at a time; None: one for each GPU, or else for each core.

    Raises InputError: fewer than one, more than there are cores.
    """
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs is {jobs}; give at least 1")
    on_cpu = environment.get("JAX_PLATFORMS", "").partition(",")[0] == "cpu"
    devices = [] if on_cpu else gpus(environment)
    if devices:
        jobs = jobs or len(devices)
        share = -(-jobs // len(devices))
        memory = {"XLA_PYTHON_CLIENT_MEM_FRACTION": f"{DEVICE_MEMORY / share:.3f}"} if share > 1 else {}
        chosen = [devices[number % len(devices)] for number in range(jobs)]
        return [WorkerSlot(f"gpu {device}", (), {"CUDA_VISIBLE_DEVICES": device, **memory}) for device in chosen]
    if not on_cpu and list(pathlib.Path("/dev").glob("accel[0-9]*")):
        return [WorkerSlot("tpu")]  # one process holds all chips of a host
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    jobs = jobs or len(cores)
    if jobs > len(cores):
        raise InputError(f"--jobs is {jobs}, but there are {len(cores)} cores here; give at most {len(cores)}")
    width = len(cores) // jobs
    shares = [tuple(cores[number * width : (number + 1) * width]) for number in range(jobs)]
    pinned = hasattr(os, "sched_setaffinity")
    # One device of all cores: programs with collectives between several that are read back can hang on CPU.
    return [WorkerSlot(f"cores {share[0]}-{share[-1]}", share if pinned else (), {"JAX_NUM_CPU_DEVICES": "1"}) for share in shares]


def gpus(environment: Mapping[str, str]) -> list[str]:
    """The GPUs that a process may use, as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in environment:
        names = [name.strip() for name in environment["CUDA_VISIBLE_DEVICES"].split(",")]
        return [name for name in names if name and not name.startswith("-")]  # -1: none
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return [str(number) for number in range(len(lines))] if listed.returncode == 0 else []


@dataclasses.dataclass
class _Running:
    """A run that has a process."""

    run: PlannedRun
    slot: WorkerSlot
    diverged: int
    attempt: int
    process: subprocess.Popen
    lock: int
    workdir: pathlib.Path
    stepped: int
    signalled: int = 0  # 1: requested to save and end, 2: killed


class Local:
    """Runs every run of a plan that has not ended, on the worker slots of this machine: `Local(plan, directory, slots).go()`.

    Args:
      runs: of the plan; None: all.
      log: takes each line for the person who waits.
      progress: makes the line of progress; called every LOG_EVERY seconds.
      command: makes the words that start the process of a run, see `execute.command`.
      spent: seconds of bookkeeping before this, which go to the first record.
    """

    def __init__(
        self,
        plan: SweepPlan,
        directory: str,
        slots: Sequence[WorkerSlot],
        runs: Sequence[PlannedRun] | None = None,
        log: Callable[[str], object] = lambda line: None,
        progress: Callable[[], str] | None = None,
        command: Callable[..., list[str]] = execute.command,
        spent: float = 0.0,
    ):
        self._command = command
        self._plan, self._root, self._log, self._progress = plan, directory, log, progress
        self._waiting = sorted(plan.runs if runs is None else runs, key=lambda run: -run.flops)
        for run in self._waiting:  # a run that cannot be recorded is refused before any is started
            facts(run, run.config, plan.validation)
        self._shape = {run.id: shape_of(run.config) for run in self._waiting}
        self._free, self._running = list(slots), {}
        self._ended: queue.SimpleQueue = queue.SimpleQueue()
        self._run_log, self._failures, self._failed = RunLog(directory), Counter(), set()
        self._signals: list[int] = []
        self._busy, self._mark, self._logged = spent, time.perf_counter(), time.monotonic()

    def go(self) -> int:
        """Exit code: 0, every run finished or diverged; 1, some failed; 75, stopped before the end."""
        previous = {number: signal.signal(number, self._note) for number in not_ignored()}
        try:
            while True:
                if not self._signals:
                    self._fill()
                self._pass_on()
                if not self._running and (self._signals or not self._waiting):
                    break
                self._wait()
        finally:
            for each in self._running.values():
                each.process.kill()
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self._signals:
            return START_AGAIN
        return 1 if self._failed else 0

    # --- choosing and starting ----------------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Starts runs while there are slots."""
        self._run_log.refresh()
        policy = self._plan.policy
        self._waiting = [run for run in self._waiting if self._run_log.state(run.id, policy) not in ("finished", "diverged")]
        for run in self._order() if self._free else []:
            if not self._free:
                break
            lock = hold(self._root, run.id)
            if lock is None:
                continue  # another sweep runs it
            self._run_log.refresh()  # it may have ended between the look and the lock
            self._waiting.remove(run)
            if self._run_log.state(run.id, policy) in ("finished", "diverged"):
                with released(lock):
                    continue
            self._start(run, self._free.pop(0), lock)

    def _order(self) -> list[PlannedRun]:
        """The longest first; last those whose shape another run is compiling now, since they would wait for it."""
        compiling = {self._shape[each.run.id] for each in self._running.values() if self._compiles(each)}
        ordered, later = [], []
        for run in self._waiting:
            (later if self._shape[run.id] in compiling else ordered).append(run)
            compiling.add(self._shape[run.id])
        return ordered + later

    def _compiles(self, each: _Running) -> bool:
        return Counters(each.workdir).totals()[STEPPED] == each.stepped

    def _start(self, run: PlannedRun, slot: WorkerSlot, lock: int) -> None:
        diverged, attempt = self._run_log.diverged(run.id), len(self._run_log.of(run.id))
        workdir = workdir_of(self._root, run.id, diverged)
        workdir.mkdir(parents=True, exist_ok=True)
        (workdir / RESULT).unlink(missing_ok=True)
        command = self._command(self._root, run.id, diverged=diverged, attempt=attempt, cores=slot.cores)
        stepped = int(Counters(workdir).totals()[STEPPED])
        with open(workdir / LOG, "ab") as log:
            # A session of its own: a terminal's Ctrl-C arrives here alone and is forwarded once. The process inherits the lock: should this
            # process be killed, the run is free only when its process has ended too.
            process = subprocess.Popen(
                command,
                env={**os.environ, **slot.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=(lock,),
            )
        self._running[run.id] = _Running(run, slot, diverged, attempt, process, lock, workdir, stepped)
        threading.Thread(target=lambda: self._ended.put((run.id, process.wait())), daemon=True).start()

    # --- waiting and ended runs --------------------------------------------------------------------------------------------------

    def _wait(self) -> None:
        """Waits until a process ends or a timeout; nothing else in this class is idle."""
        self._busy += time.perf_counter() - self._mark
        try:
            blocked = self._waiting and self._free and not self._signals
            ended = self._ended.get(timeout=LOOK_AGAIN if blocked else LOG_EVERY)
        except queue.Empty:
            ended = None
        finally:
            self._mark = time.perf_counter()
        if ended:
            self._take(self._running.pop(ended[0]), ended[1])
        elif self._progress and time.monotonic() - self._logged >= LOG_EVERY:
            self._logged = time.monotonic()
            self._log(self._progress())

    def _take(self, each: _Running, code: int) -> None:
        """Records a process that ended, then frees the lock of its run."""
        self._free.append(each.slot)
        with released(each.lock):
            problem = None
            try:
                record = read_result(each.workdir) if code == 0 else None
            except InputError as error:  # of this run alone
                record, problem = None, str(error)
            stopped = self._signals or code in (START_AGAIN, -signal.SIGTERM)  # by this sweep or from outside
            if record is None and problem is None and stopped:
                self._waiting.append(each.run)
                return
            if record is None:
                problem = problem or _problem(each.workdir, code)
                record = failed(each.run, self._plan.validation, each.diverged, each.attempt, self._plan.policy, problem)
            now = time.perf_counter()
            self._busy, self._mark = self._busy + now - self._mark, now
            append_record(pathlib.Path(self._root) / RECORDS, with_overhead(record, self._busy))
            self._busy = 0.0
            (each.workdir / RESULT).unlink(missing_ok=True)
        self._after(each.run, record, code)

    def _after(self, run: PlannedRun, record: Record, code: int) -> None:
        """Logs how a run ended and, by the policy, queues it for another try."""
        policy, again = self._plan.policy, False
        self._run_log.refresh()
        if record.status == "failed":
            self._failures[run.id] += 1
            again = code != 2 and self._failures[run.id] <= policy.retries  # bad input ends the same way again
            if not again:
                self._failed.add(run.id)
        elif record.status == "diverged":
            again = self._run_log.state(run.id, policy) == "waiting"
        if again:
            self._waiting.append(run)
        self._log(ending(record) + ("; it will be tried again" if again else ""))

    def _note(self, number: int, _) -> None:
        """Handles a signal: notes it and wakes the loop."""
        self._signals.append(number)
        self._ended.put(None)

    def _pass_on(self) -> None:
        """Forwards a signal to every run, once: it saves and ends. A second Ctrl-C kills the runs."""
        wanted = 2 if self._signals.count(signal.SIGINT) > 1 else bool(self._signals)
        for each in self._running.values():
            if each.signalled < wanted:
                each.signalled = wanted
                with contextlib.suppress(ProcessLookupError):
                    each.process.send_signal(signal.SIGKILL if wanted == 2 else signal.SIGTERM)


def ending(record: Record) -> str:
    """How a run ended, as a line."""
    if record.status == "finished":
        bound = "" if record.loss_stderr is None else f" ± {record.loss_stderr:.4f}"
        return f"{record.id} finished: {record.loss:.4f}{bound} nats/token in {record.seconds:.0f} s"
    return f"{record.id} {record.status}: {checks.one_line(record.problem)}"


def _problem(workdir: pathlib.Path, code: int) -> str:
    """In one line, why a process ended without a record."""
    if code == -signal.SIGKILL:
        return "it was killed (SIGKILL), by a person or by the kernel when memory ran out"
    if code < 0:
        return f"it was ended by {signal.Signals(-code).name}"
    with open(workdir / LOG, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 10_000))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return (lines[-1].removeprefix("dlmjax: ") if lines else f"exit code {code}")[:500]


def drop_torn(directory: str) -> None:
    """Removes compiled programs that a kill left half written: jax would neither read nor replace them, and compile each time."""
    import zstandard

    for path in (pathlib.Path(directory) / COMPILED).glob("*-cache"):
        content = path.read_bytes()
        if time.time() - path.stat().st_mtime < 60 or not content.startswith(ZSTANDARD[: len(content)]):
            continue  # being written, or not compressed this way
        try:
            zstandard.ZstdDecompressor().decompress(content)
        except zstandard.ZstdError:
            path.unlink(missing_ok=True)


def run(
    plan: SweepPlan, directory: str, runs: Sequence[PlannedRun], jobs: int | None, log: Callable[[str], object], progress: Callable[[], str]
) -> int:
    """Runs these lines of a manifest on this machine; returns the exit code, see `Local.go`.

    Args:
      jobs: runs at a time; None = as `slots`. log: takes each line for the person who waits. progress: makes the line of progress.
    Raises InputError: see `slots`.
    """
    # One run of several gets the whole machine; of several runs, each gets a share that does not depend on how many are left.
    shares = worker_slots(1 if jobs is None and len(runs) == 1 and len(plan.runs) > 1 else jobs, os.environ)
    drop_torn(directory)
    log(f"{len(runs)} runs of {plan.name}, {len(shares)} at a time: {', '.join(sorted({share.name for share in shares}))}")
    return Local(plan, directory, shares, runs, log, progress, spent=time.process_time()).go()
