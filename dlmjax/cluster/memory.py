"""Settings of the C library's memory for the process. Imports no jax."""

import ctypes
import sys

from dlmjax.cluster import chips

# From glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8


def keep_freed_memory() -> bool:
    """Lets glibc keep freed memory instead of returning it to the kernel; returns whether that is possible (no accelerator, Linux, glibc).

    XLA on CPU allocates one large temporary buffer per execution. By default each such buffer is mapped again, and touching its pages
    costs 40 % of a training step of `masked:tiny`. With this setting the process stays at its peak size.

    To be called before jax's first use of its devices, whose threads take arenas: one that got its own cannot be moved to the main arena,
    and glibc maps every buffer of more than 32 MiB that it allocates.
    """
    if sys.platform != "linux" or not chips.runs_on_cpu():
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    settings = {M_ARENA_MAX: 1, M_MMAP_THRESHOLD: 2**30, M_TRIM_THRESHOLD: 2**31 - 1}
    return mallopt is not None and all([bool(mallopt(name, value)) for name, value in settings.items()])
