"""Settings of the host process that pay on CPU."""

from __future__ import annotations

import ctypes
import sys

# From glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8


def keep_freed_memory() -> bool:
    """Lets glibc keep freed memory instead of returning it to the kernel; True where that was possible (Linux with glibc).

    XLA on CPU allocates one large temporary buffer per execution. By default each such buffer is mapped anew, and touching its pages
    costs 20-40 % of an attention layer's time. Afterwards the process stays at its peak size. Call once, before training; harmless twice.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    settings = {M_ARENA_MAX: 1, M_MMAP_THRESHOLD: 2**30, M_TRIM_THRESHOLD: 2**31 - 1}
    return mallopt is not None and all([bool(mallopt(name, value)) for name, value in settings.items()])
