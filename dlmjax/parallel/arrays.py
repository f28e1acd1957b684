"""Copies between host and devices, the sharding of small arrays, and the devices' memory."""

import os
from typing import Any

import jax
import numpy as np


def replicated_like(params) -> jax.NamedSharding | None:
    """The sharding of small arrays that are used together with `params`: replicated over their mesh; None without a mesh.

    On one device they would be copied at every call, and return with another sharding, which costs one more compilation.
    """
    for leaf in jax.tree.leaves(params):
        if isinstance(leaf, jax.Array) and isinstance(leaf.sharding, jax.NamedSharding):
            return jax.NamedSharding(leaf.sharding.mesh, jax.P())
    return None


def device_put(values: Any, sharding: jax.NamedSharding | None) -> Any:
    """A tree of numpy values on the devices of `sharding` (see `replicated_like`); where some belong to other processes, every process
    calls this with the same values, which are not compared."""
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(values, sharding)
    with jax.transfer_guard_host_to_device("allow"):
        return jax.tree.map(lambda value: jax.make_array_from_callback(np.shape(value), sharding, lambda index: value[index]), values)


def memory_bytes() -> int:
    """Memory of all devices in bytes; where they do not report it (a CPU), of this machine."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] * jax.device_count()
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def device_get(array: jax.Array | np.ndarray) -> np.ndarray:
    """A device array as numpy, also when parts of it are on other hosts (every host must then call this)."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        if array.is_fully_replicated:
            return np.asarray(array.addressable_data(0))
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(jax.device_get(array))
