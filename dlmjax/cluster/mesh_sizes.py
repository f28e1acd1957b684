"""The sizes of a mesh's axes over a number of devices: one rule for the trainer, the plan and the launchers. Imports no jax."""

import math
from collections.abc import Mapping

from dlmjax.errors import InputError


def check_sizes(sizes: Mapping[str, int]) -> None:
    """Raises InputError: a size that is neither positive nor -1, or more than one -1."""
    if any(size == 0 or size < -1 for size in sizes.values()) or list(sizes.values()).count(-1) > 1:
        named = ", ".join(f"mesh.{name}={size}" for name, size in sizes.items())
        raise InputError(f"{named}: sizes are positive, and at most one is -1 (the remaining devices)")


def fill_sizes(sizes: Mapping[str, int], count: int, devices: str) -> dict[str, int]:
    """The sizes with -1 replaced by the number of devices divided by the other sizes.

    Args:
      sizes: size of each axis by name; at most one is -1.
      count: number of devices, the required product.
      devices: description of the devices for the message: "8 devices".

    Raises:
      InputError: a size is out of range, or the product is not `count`.
    """
    check_sizes(sizes)
    named = ", ".join(f"{name}={size}" for name, size in sizes.items())
    fixed = math.prod(size for size in sizes.values() if size != -1)
    filled = {name: count // fixed if size == -1 else size for name, size in sizes.items()}
    if math.prod(filled.values()) != count:
        raise InputError(
            f"mesh {named} does not divide {devices}; choose sizes whose product is {count}, or one -1 (--config.mesh.NAME=SIZE)"
        )
    return filled
