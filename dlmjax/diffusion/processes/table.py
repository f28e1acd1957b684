"""A constant array as the field of a process: compared and hashed by content, so that the process can be a static argument of jit."""

import functools
import hashlib
from typing import Any

import numpy as np

from dlmjax.errors import InputError


class Table:
    """A read-only array of numbers on the host.

    >>> Table([1, 2]) == Table((1, 2)), hash(Table([1, 2])) == hash(Table([1, 2]))
    (True, True)
    """

    def __init__(self, values: Any):
        try:
            array = np.array(values.array if isinstance(values, Table) else values)
        except ValueError as error:
            raise InputError(f"a table of numbers has rows of unequal length ({error})") from None
        if array.dtype.kind not in "iuf" or not np.isfinite(array).all():
            raise InputError(f"a table must hold finite numbers, not {array.dtype} of shape {array.shape}")
        array.flags.writeable = False
        self.array = array

    @functools.cached_property
    def _digest(self) -> bytes:
        return hashlib.blake2b(f"{self.array.dtype}{self.array.shape}".encode() + self.array.tobytes(), digest_size=16).digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)

    def __repr__(self) -> str:
        return f"Table({self.array.dtype}{list(self.array.shape)})"
