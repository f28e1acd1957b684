"""Runs `dlmjax train` and ends with 75 where the run must be started again: schedulers read nothing but the exit code.

    python launch/unfinished.py dlmjax train --config CONFIG --workdir DIR --json

Exit code: 75 (EX_TEMPFAIL) when the command ended with 0 and its line of JSON has "finished": false, as it does when a preempted
run has saved a checkpoint; else the command's own (128 + the signal's number if a signal ended it).  Output passes through line by line,
SIGTERM, SIGINT and SIGHUP are forwarded to the command, so that this can be the first process of a container.  Requires Python and a
checkout alone.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys

# A checkout is enough: the modules of the package that are imported here need only the standard library.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from dlmjax.cluster.signals import not_ignored
from dlmjax.errors import START_AGAIN


def finished_in(line: bytes) -> bool | None:
    """The "finished" of the line of `--json`; None for any other line."""
    if not line.startswith(b"{"):
        return None
    try:
        return json.loads(line)["finished"]
    except (ValueError, KeyError, RecursionError):
        return None


def main(argv: list[str] | None = None) -> int:
    """Runs the command `argv` and returns the exit code."""
    command = sys.argv[1:] if argv is None else argv
    if not command:
        print("launch/unfinished.py: no command; write it after the name of this script", file=sys.stderr)
        return 2
    finished, early, child = None, [], None

    def forward(number, frame):
        if child is None:
            early.append(number)
        else:
            child.send_signal(number)

    for number in not_ignored():
        signal.signal(number, forward)
    try:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    except OSError as error:
        print(f"launch/unfinished.py: {command[0]} cannot be started: {error.strerror}", file=sys.stderr)
        return 2
    for number in early:
        forward(number, None)
    for line in child.stdout:
        found = finished_in(line)
        finished = finished if found is None else found
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
    code = child.wait()
    if code == 0 and finished is False:
        return START_AGAIN
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(main())
