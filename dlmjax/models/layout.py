"""The interface between layers and a mesh: sharding of activations, gathering of weights, axes of sums.

`Layout` is the protocol (`dlmjax.parallel.Partition` implements it from the one sharding table); `SINGLE` is one device: every operation
is the identity. Logical axis names used in this package:
  weights      "layer", "vocab", "embed", "table" (width of embedding and head), "heads", "kv_heads", "ffn", "time"
  activations  "batch", "length", "row" (batch and length flattened), "heads", "kv_heads", "ffn", "head_length" (length, in the head)
  in a head whose classes are split  "class" (vocab), "class_table" (table), "length"
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax

Axes = tuple[str | None, ...]


@runtime_checkable
class Layout(Protocol):
    """Hashable, so that it can be a static argument."""

    mesh: Any

    @property
    def platform(self) -> str:
        """Kind of the devices, "cpu", "gpu" or "tpu"; they need not be present."""

    @property
    def flat(self) -> bool:
        """Whether [B, L, D] may be flattened to [B*L, D] without moving data (no mesh axis splits the length)."""

    def constrain(self, x: jax.Array, axes: Axes) -> jax.Array:
        """Constrains an array to the sharding of its logical axes."""

    def gather(self, weight: jax.Array, axes: Axes) -> jax.Array:
        """The copy of a stored weight that a matmul uses: parameter-sharding axes gathered, tensor-parallel axes kept."""

    def spec(self, axes: Axes) -> Any:
        """The PartitionSpec of logical axes."""

    def mesh_axes(self, axis: str) -> tuple[str, ...]:
        """The mesh axes that split one logical axis."""


@dataclasses.dataclass(frozen=True)
class SingleDevice:
    """No mesh: sharding constraints are the identity."""

    mesh: Any = None

    @property
    def platform(self) -> str:
        return jax.default_backend()

    @property
    def flat(self) -> bool:
        return True

    def constrain(self, x: jax.Array, axes: Axes) -> jax.Array:
        return x

    def gather(self, weight: jax.Array, axes: Axes) -> jax.Array:
        return weight

    def spec(self, axes: Axes) -> Any:
        return jax.P(*(None for _ in axes))

    def mesh_axes(self, axis: str) -> tuple[str, ...]:
        return ()


SINGLE = SingleDevice()


def whole_on_device(shard: jax.Array, axes: Axes, layout: Layout) -> jax.Array:
    """Inside `shard_map`: the full weight, gathered from the devices' shards."""
    for dim, axis in enumerate(axes):
        if axis and layout.mesh_axes(axis):
            shard = jax.lax.all_gather(shard, layout.mesh_axes(axis), axis=dim, tiled=True)
    return shard


def sum_to_shard(partial: jax.Array, axes: Axes, layout: Layout, over: tuple[str, ...] | None = None) -> jax.Array:
    """Inside `shard_map`: the sum of a gradient over all devices, of which each device keeps its stored shard.

    over: mesh axes of the sum, where they are not all.
    """
    others = list(layout.mesh.axis_names if over is None else over)
    for dim, axis in enumerate(axes):
        split = layout.mesh_axes(axis) if axis else ()
        if split:
            partial = jax.lax.psum_scatter(partial, split, scatter_dimension=dim, tiled=True)
        others = [name for name in others if name not in split]
    return jax.lax.psum(partial, tuple(others))
