"""The mesh of devices: data (batch), fsdp (batch and weights), sequence (length), tensor (heads, ffn)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils

from dlmjax.cluster.mesh_sizes import fill_sizes
from dlmjax.errors import InputError

AXES = ("data", "fsdp", "sequence", "tensor")


def make_mesh(data: int = -1, fsdp: int = 1, sequence: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """A mesh with Auto axes over `devices` (default: all). One size may be -1: the number of devices divided by the others.

    Neighbouring devices differ in `tensor` first, `data` last: the axis with the most communication uses the fastest links. Where the
    devices are in several TPU slices, joined by the data-centre network alone, only `data` crosses from slice to slice.
    Raises InputError when the sizes do not multiply to the number of devices, or `data` not to that of the slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    requested = dict(zip(AXES, (data, fsdp, sequence, tensor), strict=True))
    sizes = tuple(fill_sizes(requested, len(devices), f"{len(devices)} devices").values())
    auto = (jax.sharding.AxisType.Auto,) * len(AXES)
    slices = len({slice_of(device) for device in devices})
    if slices == 1:
        # Unlike jax.make_mesh, an axis may take a part of a torus dimension: fsdp 64 of a slice of 4 x 4 x 8.
        placed = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
        return jax.sharding.Mesh(placed, AXES, axis_types=auto)
    if sizes[0] % slices:
        raise InputError(f"mesh data={sizes[0]} is not a multiple of the {slices} slices of the devices; no other axis may cross them")
    within = (sizes[0] // slices, *sizes[1:])
    placed = mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1, 1), devices, allow_split_physical_axes=True)
    return jax.sharding.Mesh(placed, AXES, axis_types=auto)


def slice_of(device: Any) -> int:
    """The TPU slice of a device; all devices of other kinds are of one."""
    # Devices that are only described, of one slice, lack the attribute.
    return getattr(device, "slice_index", None) or 0 if device.platform == "tpu" else 0
