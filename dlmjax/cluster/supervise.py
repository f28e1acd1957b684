"""Watches the training process: says how it ended on which host after which step, and starts it again where that can help.

A process that loses a peer is often ended by its own runtime (SIGABRT), and one that runs out of memory by the kernel (SIGKILL): neither
can say a last word. So `dlmjax train` in a run of several processes, or with --max-restarts, is two processes on each host: this one,
which imports no jax and touches no device, and the one that trains. They end together: signals are handed on, and the training
process dies with this one.
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
from collections.abc import Callable, Iterable, Mapping, Sequence

from dlmjax.cluster.process_info import ProcessInfo
from dlmjax.errors import LOST_PEER

STATUS = "DLMJAX_STATUS"  # the file in which the training process notes its step; where it is set, a supervisor is watching
ONCE = ("--fresh",)  # flags of the first start alone: what it made is what the next one goes on from
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
BACK_OFF = (1.0, 60.0)  # seconds before the first restart, doubled each time; at most
PR_SET_PDEATHSIG = 1  # Linux, sys/prctl.h


class Status:
    """Eight bytes shared by the two processes: updates done so far, -1 before the first is known. Writing costs no system call."""

    def __init__(self, path: str | os.PathLike | None):
        self._map = None
        if path:
            with open(path, "r+b") as file:
                self._map = mmap.mmap(file.fileno(), 8)

    @property
    def step(self) -> int:
        """Updates done."""
        return struct.unpack("q", self._map[:8])[0] if self._map else -1

    @step.setter
    def step(self, value: int) -> None:
        if self._map:
            self._map[:8] = struct.pack("q", value)


def started_again(environment: Mapping[str, str]) -> bool:
    """Is this a job that Slurm started before? Other systems do not say so: their launchers refuse the flags of ONCE."""
    return environment.get("SLURM_RESTART_COUNT", "").strip() not in ("", "0")


def supervise(command: Sequence[str], info: ProcessInfo, restarts: int = 0, sleep: Callable[[float], object] = time.sleep) -> int:
    """Runs `command` until it ends with 0 or 2, or `restarts` further starts are used up; returns the exit code of the whole.

    A start that brought the run further than all before it gives the restarts back: a run of weeks may lose a host each day.
    """
    used, furthest = 0, -1
    with tempfile.TemporaryDirectory(prefix="dlmjax-") as directory:
        path = pathlib.Path(directory) / "status"
        while True:
            path.write_bytes(struct.pack("q", -1))
            code, stopped = _run(command, path)
            command = [word for word in command if word not in ONCE]
            step = Status(path).step
            if code in (0, 2) or stopped:
                return code if code >= 0 else 128 - code
            outcome = _outcome(code, info)
            used = 0 if step > furthest >= 0 else used
            furthest = max(step, furthest)
            where = f"{info} on {socket.gethostname()}, " + (f"after step {step}" if step >= 0 else "before the first step")
            if used >= restarts:
                if code < 0:  # else it has said so itself
                    _say(f"exit {outcome}: {where}: {_cause(code, info, step)}; the same command resumes from the last checkpoint")
                return outcome
            wait = min(BACK_OFF[0] * 2**used, BACK_OFF[1])
            used += 1
            _say(f"{where}: {_cause(code, info, step)}; starting again in {wait:.0f} s ({used} of {restarts})")
            sleep(wait)


def heard(numbers: Iterable[int]) -> list[int]:
    """Those of the signals that are to be handled: `nohup` ignores SIGHUP for what it starts, and that stays so."""
    return [number for number in numbers if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN]


def _run(command: Sequence[str], status: pathlib.Path) -> tuple[int, bool]:
    """One life of the training process: its return code, and whether a person or a launcher asked it to stop."""
    asked = []
    # A session of its own: a terminal's Ctrl-C arrives here alone and is handed on once.
    child = subprocess.Popen(list(command), env={**os.environ, STATUS: str(status)}, start_new_session=True)

    def forward(number, frame):
        asked.append(number)
        child.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in heard(FORWARDED)}
    try:
        return child.wait(), bool(asked)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _outcome(code: int, info: ProcessInfo) -> int:
    """The exit code to pass on: an abort in a run of several processes is the runtime's way to end when a peer is lost."""
    if code == -signal.SIGABRT and not info.alone:
        return LOST_PEER
    return code if code >= 0 else 128 - code


def _cause(code: int, info: ProcessInfo, step: int) -> str:
    if code == LOST_PEER:
        return "it could not go on without a peer (its own words are above)"
    if code == -signal.SIGABRT and not info.alone and step < 0:
        return "the runtime ended it (SIGABRT), as it does when not all processes come within --start-timeout, or one of them is lost"
    if code == -signal.SIGABRT and not info.alone:
        return "the runtime ended it (SIGABRT), as it does when a peer or the coordinator is lost (its own words are above)"
    if code == -signal.SIGKILL:
        return "it was killed (SIGKILL), by a person or by the kernel when memory runs out"
    return f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"it failed with exit code {code}"


def _say(line: str) -> None:
    print(f"dlmjax: {line}", file=sys.stderr, flush=True)


def die_with_parent() -> None:
    """In the training process: SIGKILL for it when its supervisor ends, however that happens (Linux; elsewhere nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
