"""What concerns the host process: memory on CPU, who speaks, who alone may write."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import pathlib
import sys
from collections.abc import Iterator
from typing import TextIO

import jax

from dlmjax.errors import InputError
from dlmjax.files import open_lock

# From glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8


def keep_freed_memory() -> bool:
    """Lets glibc keep freed memory instead of returning it to the kernel; True where that was possible (CPU backend, Linux with glibc).

    XLA on CPU allocates one large temporary buffer per execution. By default each such buffer is mapped anew, and touching its pages
    costs 20-40 % of an attention layer's time. Afterwards the process stays at its peak size. Call once, before training; harmless twice.
    """
    if sys.platform != "linux" or jax.default_backend() != "cpu":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    settings = {M_ARENA_MAX: 1, M_MMAP_THRESHOLD: 2**30, M_TRIM_THRESHOLD: 2**31 - 1}
    return mallopt is not None and all([bool(mallopt(name, value)) for name, value in settings.items()])


def say(text: str, file: TextIO | None = None) -> None:
    """A line on standard output, or another file, from the first process of the run."""
    if jax.process_index() == 0:
        print(text, file=file, flush=True)


@contextlib.contextmanager
def sole_writer(directory: pathlib.Path) -> Iterator[None]:
    """`with sole_writer(workdir): ...`: no second run writes there meanwhile; a killed one lets go of it by itself. Makes the directory.

    The first process holds the lock for all. Where the file system knows no locks, nothing is locked.
    Raises InputError when another run holds it.
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


def keep_compiled(workdir: str) -> None:
    """Keeps compiled programs in `workdir/compiled`, so that a restart does not compile again, unless jax was told another place."""
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(workdir).absolute() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
