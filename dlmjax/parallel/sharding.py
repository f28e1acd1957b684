"""The sharding of all arrays: the one table from logical axes to mesh axes. No other file names a mesh axis.

    weight                                    shape                              logical axes
    embedding.table                           (vocab, width)                     ("vocab", "table")
    head.kernel                               (width, vocab)                     ("table", "vocab")
    layers.{query,key,value}.kernel           (layer, width, [kv_]heads*head)    ("layer", "embed", "heads" | "kv_heads")
    layers.output.kernel                      (layer, heads*head, width)         ("layer", "heads", "embed")
    layers.{gate,up}.kernel                   (layer, width, ffn)                ("layer", "embed", "ffn")
    layers.down.kernel                        (layer, ffn, width)                ("layer", "ffn", "embed")
    layers.modulation.kernel                  (layer, time, 6*width)             ("layer", "time", "embed")
    modulation.kernel                         (time, 2*width)                    ("time", "embed")
    {position,token_type}.table               (positions | types, width)         (None, "table")
    transform.kernel                          (width, width)                     ("embed", None)
    *.bias                                    ([layer,] columns of the kernel)   ([layer,] the kernel's last axis, unless for storage only)
    time.{first,second}.kernel                (256 | time, time)                 (None, "time")
    layers.*norm.scale, norm.scale            (layer, width | head), (width,)    ("layer", None), (None,)
    layers.{query,key}_norm.scale of all heads  (layer, [kv_]heads*head)         ("layer", "heads" | "kv_heads")

    activation                                shape                              logical axes
    tokens, segments, positions, t            (batch, length)                    ("batch", "length")
    residual stream                           (batch*length, width)              ("row", None), or with the length split:
                                              (batch, length, width)             ("batch", "length", None)
    queries; keys and values                  (batch, length, heads, head)       ("batch", "length", "heads", None); length gathered
    hidden states in the head                 (batch, length, width)             ("batch", "head_length", None), or where tensor divides
                                              the vocabulary                     ("batch", "length", None)
    head while in use, where tensor divides   (width, vocab) or (vocab, width)   ("class_table", "class") or ("class", "class_table")

The vocabulary is never split in storage: real sizes (27, 50257) divide by nothing, and a table split on both axes forces XLA to
rematerialise it. Embedding and head are split over the width by fsdp and tensor together and gathered when used. Where tensor divides the
vocabulary, the head is gathered over fsdp alone: a device of a tensor group exchanges its rows for the columns of its classes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from dlmjax import choices
from dlmjax.errors import InputError

RULES: dict[str, tuple[str, ...]] = {
    # weights
    "layer": (),
    "vocab": (),
    "time": (),
    "table": ("fsdp", "tensor"),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "ffn": ("tensor",),
    # activations
    "batch": ("data", "fsdp"),
    "row": ("data", "fsdp"),
    "length": ("sequence",),
    "head_length": ("sequence", "tensor"),
    # the head where tensor divides the vocabulary
    "class": ("tensor",),
    "class_table": ("fsdp",),
    # weights of a network of one's own (`models.own`), which may name a mesh axis itself
    "data": ("data",),
    "fsdp": ("fsdp",),
    "sequence": ("sequence",),
    "tensor": ("tensor",),
}
# Weight axes that are split for storage only: gathered before a weight is used, so that activations never move instead.
GATHERED = ("table", "class_table", "embed")


@dataclasses.dataclass(frozen=True)
class Partition:
    """The table applied to one mesh; hashable. Implements `dlmjax.models.layout.Layout`."""

    mesh: jax.sharding.Mesh

    def mesh_axes(self, axis: str | tuple[str, ...]) -> tuple[str, ...]:
        """The mesh axes that split a logical axis, or several together; those of size 1 split nothing and are left out."""
        axes = (axis,) if isinstance(axis, str) else axis
        return tuple(name for part in axes for name in RULES[part] if self.mesh.shape[name] > 1)

    def ways(self, axis: str | tuple[str, ...]) -> int:
        """Number of pieces that a logical axis is split into."""
        return math.prod(self.mesh.shape[name] for name in self.mesh_axes(axis))

    @property
    def platform(self) -> str:
        """Kind of the mesh's devices: "cpu", "gpu" or "tpu"."""
        return self.mesh.devices.flat[0].platform

    @property
    def flat(self) -> bool:
        """Whether batch and length may be flattened into one dimension: only where no mesh axis splits the length."""
        return self.ways("length") == 1

    def spec(self, axes: tuple[str | None, ...]) -> jax.sharding.PartitionSpec:
        """PartitionSpec of logical axes."""
        return jax.P(*((self.mesh_axes(axis) or None) if axis else None for axis in axes))

    def sharding(self, axes: tuple[str | None, ...]) -> jax.sharding.NamedSharding:
        """NamedSharding of logical axes."""
        return jax.NamedSharding(self.mesh, self.spec(axes))

    def tree(self, axes_tree: Any) -> Any:
        """Tree of NamedShardings for a tree whose leaves are tuples of logical axes (`network.axes`)."""
        return jax.tree.map(self.sharding, axes_tree, is_leaf=lambda leaf: isinstance(leaf, tuple))

    def constrain(self, x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
        """Constrains x to its sharding, inside or outside jit. Raises InputError where a size is not divisible."""
        for size, axis in zip(x.shape, axes, strict=True):
            if axis:
                self._divides(axis, size, axis)
        return jax.lax.with_sharding_constraint(x, self.sharding(axes))

    def gather(self, weight: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
        """The weight as a matmul uses it: storage axes gathered over the mesh, tensor-parallel axes left split."""
        # First as it is stored: else XLA gathers what it was converted from, float32 in place of bfloat16.
        stored = self.constrain(weight, axes)
        return self.constrain(stored, tuple(None if axis in GATHERED else axis for axis in axes))

    def require_divisible(self, shape: tuple[int, ...], axes: tuple[Any, ...]) -> None:
        """Raises InputError: an array of this shape cannot be split like this: an axis that is unknown or used twice, or a size that is
        not a multiple of its pieces."""
        used = [name for axis in axes if axis for name in ((axis,) if isinstance(axis, str) else axis)]
        for name in used:
            choices.lookup("axis", name, RULES)
        on_mesh = [name for axis in axes if axis for name in self.mesh_axes(axis)]
        if len(axes) != len(shape) or len({*on_mesh}) != len(on_mesh):
            raise InputError(f"axes {axes} do not fit an array of shape {shape}: requires one for each of its axes, none of them twice")
        for size, axis in zip(shape, axes, strict=True):
            if axis and size % self.ways(axis):
                raise InputError(f"axis {axis} splits a size of {size} into {self.ways(axis)} pieces, which do not divide it; change one")

    def check(self, batch: int, length: int, width: int, heads: int, kv_heads: int, ffn: int) -> None:
        """Raises InputError, naming the sizes, when a microbatch over all hosts or a model cannot be laid out on this mesh."""
        self._divides("batch", batch, "batch")
        self._divides("head_length", length, "length")
        self._divides("table", width, "width")
        for axis, size in {"heads": heads, "kv_heads": kv_heads, "ffn": ffn}.items():
            self._divides(axis, size, axis)

    def _divides(self, axis: str, size: int, name: str) -> None:
        ways = self.ways(axis)
        if size % ways:
            product = " x ".join(RULES[axis])
            raise InputError(f"{name}={size} is not a multiple of the mesh's {product} = {ways}; change {name} or the mesh")

    def rows_of_host(self, global_batch: int, process: int | None = None) -> Sequence[int]:
        """The rows of the global batch that the devices of a process (default: this one) own, ascending.

        A range where they are neighbours, as on CPU and GPU; on a TPU torus the hosts of one row of chips alternate. Processes that
        split only length, heads or ffn among themselves own the same rows. Raises InputError when the batch does not divide.
        """
        self._divides("batch", global_batch, "batch")
        process = jax.process_index() if process is None else process
        pieces = self.sharding(("batch",)).devices_indices_map((global_batch,))
        owned = {piece[0].indices(global_batch)[:2] for device, piece in pieces.items() if device.process_index == process}
        if not owned:
            raise InputError(f"process {process} has no device in the mesh; there are {jax.process_count()} processes")
        rows = tuple(row for start, stop in sorted(owned) for row in range(start, stop))
        whole = range(rows[0], rows[-1] + 1)
        return whole if len(whole) == len(rows) else rows

    def put_batch(self, host_batch: dict[str, np.ndarray], global_batch: int | None = None) -> dict[str, jax.Array]:
        """Global arrays from this process's rows in the order of `rows_of_host` ([rows, L] or [rows]; every process gives its own).

        `global_batch` defaults to the rows given times the number of processes that own different rows.
        """
        total = global_batch or self._global_rows(len(next(iter(host_batch.values()))))
        here = np.asarray(self.rows_of_host(total))
        out = {}
        for name, rows in host_batch.items():
            axes = ("batch", "length")[: rows.ndim] + (None,) * (rows.ndim - 2)

            def piece(index: tuple[slice, ...], rows: np.ndarray = rows) -> np.ndarray:
                first = int(np.searchsorted(here, index[0].start or 0))
                count = len(range(*index[0].indices(total)))
                return rows[(slice(first, first + count), *index[1:])]

            with jax.transfer_guard_host_to_device("allow"):  # the one transfer that every step is meant to make
                out[name] = jax.make_array_from_callback((total, *rows.shape[1:]), self.sharding(axes), piece)
        return out

    def _global_rows(self, local: int) -> int:
        share = len(self.rows_of_host(self.ways("batch")))
        return local * self.ways("batch") // share


@dataclasses.dataclass(frozen=True)
class CanvasPartition(Partition):
    """The table for canvases, whose rows have any length: what splits the length of training rows in the head alone splits nothing.

    one_row: inside a `vmap` over the rows, whose axis is split by its `spmd_axis_name`: the batch of one row that is left is whole.
    """

    one_row: bool = False

    def mesh_axes(self, axis: str | tuple[str, ...]) -> tuple[str, ...]:
        """See `Partition.mesh_axes`."""
        whole = ("head_length", "batch", "row") if self.one_row else ("head_length",)
        return super().mesh_axes(tuple(name for name in ((axis,) if isinstance(axis, str) else axis) if name not in whole))


@dataclasses.dataclass(frozen=True)
class _OnPaper(Partition):
    mesh: jax.sharding.AbstractMesh
    platform: str = "cpu"


def on_paper(sizes: Mapping[str, int], platform: str = "cpu") -> Partition:
    """The table for a mesh of these sizes without devices: shardings and checks of divisibility, programs to lower, no arrays."""
    auto = (jax.sharding.AxisType.Auto,) * len(sizes)
    return _OnPaper(jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=auto), platform)
