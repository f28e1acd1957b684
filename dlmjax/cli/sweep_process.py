"""The process of one run of a sweep, which `dlmjax sweep run` starts: python -m dlmjax.cli.sweep_process DIR ID ..."""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from dlmjax.cluster.memory import keep_freed_memory
from dlmjax.errors import START_AGAIN, InputError, flags_typed
from dlmjax.files import write_atomically
from dlmjax.flags import one_line, print_anything
from dlmjax.sweep.execute import execute, share_compiled
from dlmjax.sweep.run_log import RESULT, workdir_of


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0, the record is in the workdir; 75, stopped with a checkpoint; 2, bad input; 1, any other error."""
    parser = argparse.ArgumentParser(prog="python -m dlmjax.cli.sweep_process")
    parser.add_argument("directory")
    parser.add_argument("id")
    for name in ("diverged", "attempt", "parent"):
        parser.add_argument(f"--{name}", type=int, default=0)
    parser.add_argument("--started", type=float)
    parser.add_argument("--cores", default="")
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    if arguments.parent:
        from dlmjax.cluster.supervise import die_with_parent

        die_with_parent()
        if os.getppid() != arguments.parent:  # it ended before the line above
            return START_AGAIN
    if arguments.cores:
        os.sched_setaffinity(0, [int(core) for core in arguments.cores.split(",")])
    try:
        share_compiled(arguments.directory)
        options = {name: getattr(arguments, name) for name in ("diverged", "attempt", "started")}
        with flags_typed():
            record = execute(arguments.directory, arguments.id, **options)
        if record is not None:
            write_atomically(workdir_of(arguments.directory, arguments.id, arguments.diverged) / RESULT, record.to_json() + "\n")
    except InputError as error:
        print_anything()
        print(f"dlmjax: {one_line(str(error))}", file=sys.stderr, flush=True)
        return 2
    except Exception:
        traceback.print_exc()
        return 1
    return START_AGAIN if record is None else 0


if __name__ == "__main__":
    sys.exit(main())
