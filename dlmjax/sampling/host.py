"""Between host and devices: where small arrays belong, arrays to numpy, text to files in one move."""

import os
import pathlib
import tempfile
from typing import Any

import jax
import numpy as np

from dlmjax.errors import InputError


def beside(params) -> jax.NamedSharding | None:
    """Where small arrays go that are used together with `params`: copied over their mesh; None where they are on no mesh.

    Left on one device, they would be copied at every call, and come back with another placement: one compilation more.
    """
    for leaf in jax.tree.leaves(params):
        if isinstance(leaf, jax.Array) and isinstance(leaf.sharding, jax.NamedSharding):
            return jax.NamedSharding(leaf.sharding.mesh, jax.P())
    return None


def send(values: Any, place: jax.NamedSharding | None) -> Any:
    """A tree of numpy values on the devices of `place` (see `beside`); where some belong to other processes, every process calls this
    with the same values, which are not compared."""
    if place is None or place.is_fully_addressable:
        return jax.device_put(values, place)
    with jax.transfer_guard_host_to_device("allow"):
        return jax.tree.map(lambda value: jax.make_array_from_callback(np.shape(value), place, lambda index: value[index]), values)


def fetch(array: jax.Array | np.ndarray) -> np.ndarray:
    """A device array as numpy, also when parts of it lie on other hosts (every host must then call this)."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        if array.is_fully_replicated:
            return np.asarray(array.addressable_data(0))
        from jax.experimental import multihost_utils

        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(jax.device_get(array))


def write_atomically(path: str | os.PathLike, text: str) -> None:
    """Writes UTF-8 text so that `path` is either as it was or whole.  Raises InputError when the folder cannot be written to."""
    path = pathlib.Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another place") from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes files private; a report is an ordinary file
        os.replace(temporary, path)
    except OSError as error:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error.strerror}; nothing was changed") from error
