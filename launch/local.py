"""Starts N processes of one command on this machine, joined into one run: a small cluster on a laptop, and what the tests use.

    python launch/local.py 2 --devices 4 -- dlmjax train --config configs/quickstart.py --workdir runs/two

Every process gets DLMJAX_COORDINATOR, DLMJAX_PROCESSES and DLMJAX_PROCESS (its rank), and with `--devices D` D virtual CPU devices.
Each line of output appears as soon as it is written, after the rank of its process; standard output and standard error stay apart.
SIGTERM, SIGINT and SIGHUP are forwarded to every process, once each. When a process fails, the others have `--grace` seconds to end by
themselves and are then killed, with all that they started.

Exit code: 0 when every process ended with 0; else that of the first that failed (128 + the signal's number if a signal ended it);
2 for bad input. Needs only the standard library.
"""

import argparse
import contextlib
import os
import pathlib
import queue
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

# A checkout is enough: the modules of the package that are imported here need only the standard library.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from dlmjax import flags
from dlmjax.cluster.signals import not_ignored
from dlmjax.errors import InputError

PORTS = range(20_000, 32_000)  # below the ports that the kernel lends to outgoing connections, which could take a free one at once
DRAIN_SECONDS = 5.0  # wait for the last lines of ended processes, whose children may hold the pipes open


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """(flags, command): the command is all that follows the first `--`. Raises InputError."""
    parser = flags.Parser(
        prog="python launch/local.py",
        usage="python launch/local.py N [--devices D] [--grace SECONDS] [--port PORT] [--dry-run] -- COMMAND ...",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("processes", type=flags.whole(1, 4096), metavar="N", help="number of processes")
    parser.add_argument(
        "--devices", type=flags.whole(1, 4096), metavar="D", help="virtual CPU devices of each process (default: its real devices)"
    )
    parser.add_argument(
        "--grace",
        type=flags.number(0, 86_400),
        default=30.0,
        metavar="SECONDS",
        help="time that the others have to end after one failed, seconds (default 30)",
    )
    parser.add_argument("--port", type=flags.whole(1, 65_535), help="port of the coordinator on 127.0.0.1 (default: a free one)")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and start nothing (default: off)")
    split = argv.index("--") if "--" in argv else len(argv)
    arguments, command = parser.parse_args(argv[:split]), argv[split + 1 :]
    if not command:
        parser.error("no command; write it after --")
    if not shutil.which(command[0]):
        parser.error(f"{command[0]} is not a program that can be started")
    return arguments, command


def free_port() -> int:
    """A port of this machine that nothing listens on now.

    Raises:
      OSError: none was found in a hundred tries.
    """
    for port in random.SystemRandom().sample(PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port in {PORTS.start}..{PORTS.stop - 1}")


def environments(processes: int, port: int, devices: int | None) -> list[dict[str, str]]:
    """The variables of each process beside those of this one."""
    cpu = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)} if devices else {}
    # Python buffers its output into a pipe unless PYTHONUNBUFFERED is set.
    shared = {"DLMJAX_COORDINATOR": f"127.0.0.1:{port}", "DLMJAX_PROCESSES": str(processes), **cpu, "PYTHONUNBUFFERED": "1"}
    return [{**shared, "DLMJAX_PROCESS": str(rank)} for rank in range(processes)]


class _Output:
    """Copies lines of all processes to this one's streams; the run continues when the reader of these has ended."""

    def __init__(self):
        self._lock, self._readers = threading.Lock(), []

    def follow(self, rank: int, pipe, stream) -> None:
        reader = threading.Thread(target=self._copy, args=(f"[{rank}] ".encode(), pipe, stream.buffer), daemon=True)
        reader.start()
        self._readers.append(reader)

    def _copy(self, prefix: bytes, pipe, stream) -> None:
        for line in pipe:
            with self._lock:
                try:
                    stream.write(prefix + line.rstrip(b"\r\n") + b"\n")
                    stream.flush()
                except OSError:  # the reader has ended; the pipe is still emptied, so that no process blocks on it
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

    def finish(self) -> None:
        """Waits until everything that ended processes wrote has been copied."""
        deadline = time.monotonic() + DRAIN_SECONDS
        for reader in self._readers:
            reader.join(max(0.0, deadline - time.monotonic()))


def run(command: list[str], environments: list[dict[str, str]], grace: float) -> int:
    """Starts the processes, waits until all have ended and returns the exit code of the whole."""
    processes, ended, output = [], queue.SimpleQueue(), _Output()
    started, early = threading.Event(), []

    def forward(number, frame):
        if not started.is_set():
            early.append(number)  # sent once all are there, so that none is missed
            return
        for process in processes:
            process.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in not_ignored()}
    try:
        for rank, extra in enumerate(environments):
            # A session of its own: the terminal's Ctrl-C reaches a process once, through `forward`, and a kill all that it started.
            process = subprocess.Popen(
                command,
                env={**os.environ, **extra},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            processes.append(process)
            output.follow(rank, process.stdout, sys.stdout)
            output.follow(rank, process.stderr, sys.stderr)
            threading.Thread(target=lambda r, p: ended.put((r, p.wait())), args=(rank, process), daemon=True).start()
        started.set()
        for number in early:
            forward(number, None)
        code = _wait(processes, ended, grace)
    finally:
        for process in processes:
            _kill(process)
        for number, handler in previous.items():
            signal.signal(number, handler)
    output.finish()
    return code


def _wait(processes: list, ended: queue.SimpleQueue, grace: float) -> int:
    """Waits for all ends; after a failure, for `grace` seconds more. Returns the code of the first failure, or 0."""
    failed, deadline = 0, None
    for _ in processes:
        try:
            rank, code = ended.get(timeout=None if deadline is None else max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            alive = [str(rank) for rank, process in enumerate(processes) if process.poll() is None]
            _log(f"killing process {', '.join(alive)}: still running {grace:g} seconds after the failure")
            break
        if code:
            what = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
            _log(f"process {rank} {what}")
            if deadline is None:
                failed, deadline = (128 - code if code < 0 else code), time.monotonic() + grace
    return failed


def _kill(process: subprocess.Popen) -> None:
    """Ends a process and all that it started."""
    with contextlib.suppress(ProcessLookupError):  # nothing of it may be left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _log(text: str) -> None:
    with contextlib.suppress(OSError):
        print(f"launch/local.py: {text}", file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    """Parses flags, starts the processes or prints how they would be started, and returns the exit code."""
    flags.print_anything()
    try:
        arguments, command = parse(sys.argv[1:] if argv is None else argv)
    except InputError as error:
        _log(flags.one_line(str(error)))
        return 2
    extra = environments(arguments.processes, arguments.port or free_port(), arguments.devices)
    if arguments.dry_run:
        for variables in extra:
            print(" ".join(f"{name}={value}" for name, value in variables.items()), shlex.join(command))
        return 0
    return run(command, extra, arguments.grace)


if __name__ == "__main__":
    sys.exit(main())
