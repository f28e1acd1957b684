"""Logging from the first process only, the lock of a workdir, and its compiled programs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import platform
import zlib
from collections.abc import Iterator
from typing import TextIO

import jax

from dlmjax.cluster.chips import quiet_libtpu
from dlmjax.cluster.memory import keep_freed_memory
from dlmjax.errors import InputError
from dlmjax.files import open_lock


def log(text: str, file: TextIO | None = None) -> None:
    """Prints a line on standard output, or to another file, in the first process of the run only."""
    if jax.process_index() == 0:
        print(text, file=file, flush=True)


@contextlib.contextmanager
def sole_writer(directory: pathlib.Path) -> Iterator[None]:
    """`with sole_writer(workdir): ...`: makes the directory and locks it against other runs; the lock of a killed run is released.

    The first process holds the lock for all. On a file system without locks, nothing is locked.
    Raises InputError when another run holds the lock.
    """
    if jax.process_index():
        yield
        return
    directory.mkdir(parents=True, exist_ok=True)
    try:
        lock = open_lock(directory / ".lock")
    except OSError as error:
        raise InputError(f"{directory / '.lock'} cannot be opened ({error.strerror}); remove it, or choose another --workdir") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another run is writing to {directory}; wait for it, stop it, or choose another --workdir") from None
        except OSError:
            pass
        yield


def make_ready(workdir: str | os.PathLike) -> None:
    """What the commands of a workdir, and the same calls in Python, set in this process: `keep_compiled`, and `keep_freed_memory` and
    `quiet_libtpu`, which act where jax has not started yet."""
    keep_freed_memory()
    quiet_libtpu()
    keep_compiled(workdir)


def keep_compiled(workdir: str | os.PathLike) -> None:
    """Keeps compiled programs in a folder of `workdir/compiled`, so that the next start does not compile them again.

    They are found again where the workdir is copied or moved to. jax's own setting takes precedence; in a workdir that cannot be written,
    nothing is kept.
    """
    root = pathlib.Path(workdir).absolute()
    if jax.config.jax_compilation_cache_dir or not os.access(root if root.exists() else root.parent, os.W_OK):
        return
    keep_programs(root / "compiled" / _instruction_set(), 0.2)


def keep_programs(folder: pathlib.Path, least_seconds: float) -> None:
    """Keeps the programs in a folder whose compilation takes at least so many seconds."""
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least_seconds)
    # XLA's own caches would put the folder's path into every key: nothing would be found once the workdir is copied or moved.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")


def _instruction_set() -> str:
    """A name of what this processor can execute: a program that was compiled for another one may end with an illegal instruction."""
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
        return f"{platform.machine()}-{zlib.crc32(flags.encode()):08x}"
    return platform.machine()
