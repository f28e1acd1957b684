"""Where the weights of an opened run lie, and in which type: `Placement.of("data=2,fsdp=4", "bfloat16")`.

Weights are split over the axes fsdp and tensor of a mesh, the rows of canvases over data and fsdp, as in training (`sharding`).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax

from dlmjax.cluster.mesh_sizes import fill_sizes
from dlmjax.errors import InputError
from dlmjax.flags import WEIGHT_TYPES
from dlmjax.parallel.mesh import AXES
from dlmjax.parallel.sharding import RULES, CanvasPartition

KEPT = "vector"  # the kind of weights that stay in float32: norms and biases, whose sums are taken in it


@dataclasses.dataclass(frozen=True)
class Placement:
    """The mesh and the type of the weights of an opened run.

    mesh: sizes of its axes; None = weights and canvases whole on each device.  dtype: of weights and activations; None = the run's own.
    """

    mesh: tuple[tuple[str, int], ...] | None = None
    dtype: str | None = None

    @classmethod
    def of(cls, mesh: str | Mapping[str, int] | None = None, dtype: str | None = None) -> Placement:
        """From the values of `open_run`. Raises InputError: no such axis, size or type; several processes."""
        if dtype not in (None, *WEIGHT_TYPES):
            raise InputError(f"--dtype is {dtype!r:.60}; choose one of {', '.join(WEIGHT_TYPES)}, or leave it out")
        if mesh is None:
            return cls(None, dtype)
        text = mesh if isinstance(mesh, str) else ",".join(f"{name}={size}" for name, size in mesh.items())
        sizes = _sizes(text)
        if jax.process_count() > 1:
            raise InputError(f"--mesh requires one process, and there are {jax.process_count()}; open the run on each without a mesh")
        return cls(tuple(sizes.items()), dtype)

    def sizes(self, devices: int) -> dict[str, int]:
        """The sizes of all axes of a mesh over so many devices. Raises InputError: their product is another number."""
        requested = dict(self.mesh or ())
        sizes = {**dict.fromkeys(AXES, 1), "data": -1} | requested
        try:
            return fill_sizes(sizes, devices, "")
        except InputError:
            named = ",".join(f"{name}={size}" for name, size in requested.items())
            raise InputError(f"--mesh {named} does not fit {devices} devices; give sizes whose product is {devices}") from None

    def placed(self, experiment: Any) -> Any:
        """The experiment whose canvases lie on its mesh. Raises InputError: a mesh that does not divide the weights, a type of the weights
        for a network of one's own."""
        if self.dtype is not None and experiment.module is not None:
            raise InputError("--dtype requires a network of a family; a network of your own has types of its own; leave it out")
        if self.mesh is None:
            return experiment
        layout = CanvasPartition(experiment.partition.mesh)
        if experiment.module is None:
            spec = experiment.network.spec
            try:
                layout.check(layout.ways("batch"), 1, spec.width, spec.heads, spec.kv_heads, spec.ffn)
            except InputError as error:
                raise InputError(f"--mesh {','.join(f'{name}={size}' for name, size in self.mesh)}: {error}") from None
        return dataclasses.replace(experiment, canvas_layout=layout)

    def converted(self, experiment: Any, weights: dict) -> dict:
        """Abstract weights in the type that they are kept in: all but norms, biases and what a process learns."""
        if self.dtype is None:
            return weights

        def one(leaf: jax.ShapeDtypeStruct, kind: str) -> jax.ShapeDtypeStruct:
            return leaf if kind == KEPT else jax.ShapeDtypeStruct(leaf.shape, self.dtype, sharding=leaf.sharding)

        network = {name: tree for name, tree in weights.items() if name != "process"}
        return weights | jax.tree.map(one, network, experiment.network.kinds)


UNPLACED = Placement()
SPLIT_AXES = tuple(axis for axis in AXES if axis not in RULES["length"])  # a canvas is split by rows, not by length


def _sizes(text: str) -> dict[str, int]:
    """The sizes of "data=2,fsdp=4" by name. Raises InputError."""
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = (word.strip() for word in part.partition("="))
        if name not in SPLIT_AXES or name in sizes or not re.fullmatch("[1-9][0-9]{0,5}", size):
            raise InputError(f"--mesh is {text!r:.60}; give sizes of {', '.join(SPLIT_AXES)}, such as data=2,fsdp=4")
        sizes[name] = int(size)
    return sizes


def record_of(experiment: Any, params: dict) -> dict[str, Any]:
    """For a record: the mesh that a run was opened on by name, and the type that its weights were converted to; empty where neither was."""
    mesh = experiment.canvas_layout.mesh
    sizes = {} if mesh is None else {"mesh": {name: size for name, size in mesh.shape.items() if size > 1}}
    converted = any(leaf.dtype == "bfloat16" for leaf in jax.tree.leaves(params))
    return sizes | ({"dtype": "bfloat16"} if converted else {})
