"""Supervises the training process: logs how, on which host and after which step it ended, and restarts it where that can help.

When a peer is lost, the runtime often aborts the process (SIGABRT), and when memory runs out the kernel kills it (SIGKILL): it cannot
log the reason itself. So `dlmjax train` in a run of several processes, or with --max-restarts, is two processes on each host: this one,
which imports no jax and uses no device, and the one that trains. Signals are forwarded, and the training process ends with this one.
"""

import ctypes
import mmap
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence

from dlmjax.cluster.process_info import ProcessInfo
from dlmjax.cluster.signals import not_ignored
from dlmjax.errors import READER_LEFT, START_AGAIN

STATUS = "DLMJAX_STATUS"  # names the file that holds the step of the training process; set only when a supervisor runs
ONCE = ("--fresh",)  # flags of the first start only: a restart continues from what the first start wrote
BACK_OFF = (1.0, 60.0)  # seconds before the first restart, doubled each time, and their maximum
PR_SET_PDEATHSIG = 1  # Linux, sys/prctl.h


class Status:
    """Number of updates done, shared by the two processes in a mapped file; -1 when unknown. Writing costs no system call."""

    def __init__(self, path: str | os.PathLike | None):
        self._map = None
        if path:
            with open(path, "r+b") as file:
                self._map = mmap.mmap(file.fileno(), 8)

    @property
    def step(self) -> int:
        """Number of updates done."""
        return struct.unpack("q", self._map[:8])[0] if self._map else -1

    @step.setter
    def step(self, value: int) -> None:
        if self._map:
            self._map[:8] = struct.pack("q", value)


def started_again(environment: Mapping[str, str]) -> bool:
    """Did Slurm requeue this job? Other systems do not provide this: their launchers refuse the flags of ONCE."""
    return environment.get("SLURM_RESTART_COUNT", "").strip() not in ("", "0")


def supervise(command: Sequence[str], info: ProcessInfo, restarts: int = 0, sleep: Callable[[float], object] = time.sleep) -> int:
    """Runs `command` until it ends with 0, READER_LEFT or 2, or `restarts` restarts are used; returns the exit code.

    A start that reaches a later step than all before it resets the count of restarts: a run of weeks may lose a host each day.
    """
    used, furthest = 0, -1
    with tempfile.TemporaryDirectory(prefix="dlmjax-") as directory:
        path = pathlib.Path(directory) / "status"
        while True:
            path.write_bytes(struct.pack("q", -1))
            code, stopped = _attempt(command, path)
            command = [word for word in command if word not in ONCE]
            step = Status(path).step
            if code in (0, READER_LEFT, 2) or stopped:
                return code if code >= 0 else 128 - code
            outcome = _outcome(code, info)
            used = 0 if step > furthest >= 0 else used
            furthest = max(step, furthest)
            where = f"{info} on {socket.gethostname()}, " + (f"after step {step}" if step >= 0 else "before the first step")
            if used >= restarts:
                if code < 0:  # otherwise the process has logged the reason itself
                    _log(f"exit {outcome}: {where}: {_cause(code, info, step)}; the same command resumes from the last checkpoint")
                return outcome
            wait = min(BACK_OFF[0] * 2**used, BACK_OFF[1])
            used += 1
            _log(f"{where}: {_cause(code, info, step)}; starting again in {wait:.0f} s ({used} of {restarts})")
            sleep(wait)


def _attempt(command: Sequence[str], status: pathlib.Path) -> tuple[int, bool]:
    """One start of the training process: its return code, and whether a signal requested that it stops."""
    received = []
    # A session of its own: a terminal's Ctrl-C arrives only here and is forwarded once.
    child = subprocess.Popen(list(command), env={**os.environ, STATUS: str(status)}, start_new_session=True)

    def forward(number, frame):
        received.append(number)
        child.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in not_ignored()}
    try:
        return child.wait(), bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _outcome(code: int, info: ProcessInfo) -> int:
    """The exit code to return: in a run of several processes, the runtime aborts when a peer is lost."""
    if code == -signal.SIGABRT and not info.alone:
        return START_AGAIN
    return code if code >= 0 else 128 - code


def _cause(code: int, info: ProcessInfo, step: int) -> str:
    if code == START_AGAIN:
        return "a peer was lost (see its message above)"
    if code == -signal.SIGABRT and not info.alone and step < 0:
        return "the runtime aborted it (SIGABRT), as it does when not all processes start within --start-timeout, or one of them is lost"
    if code == -signal.SIGABRT and not info.alone:
        return "the runtime aborted it (SIGABRT), as it does when a peer or the coordinator is lost (see its message above)"
    if code == -signal.SIGKILL:
        return "it was killed (SIGKILL), by a person or by the kernel when memory runs out"
    return f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"it failed with exit code {code}"


def _log(line: str) -> None:
    print(f"dlmjax: {line}", file=sys.stderr, flush=True)


def die_with_parent() -> None:
    """Lets the kernel kill this process when its parent ends, for whatever reason (Linux only; elsewhere no effect)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
