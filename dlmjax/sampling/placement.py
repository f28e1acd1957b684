"""Where the rows of a canvas lie: on one device, or split over the data and fsdp axes of a mesh.

Programs are those of one device, over all rows: XLA splits them by the shardings of their arguments and results. A row draws from its own
key and reads no other row, so the same numbers are computed wherever it lies. Where the number of rows does not divide, rows that condition
everywhere are added; a sampler leaves them out of its results and counts.

Shapes: B rows, R rows of the network (twice B with guidance).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from dlmjax.models.cache import KEPT_AXES, Cache
from dlmjax.models.layout import SINGLE, Layout
from dlmjax.parallel.arrays import device_put, replicated_like
from dlmjax.sampling.canvas import Canvas


@dataclasses.dataclass(frozen=True)
class CanvasRows:
    """The rows of canvases in a layout, that of the network: `parallel.sharding.CanvasPartition`, or one device."""

    layout: Layout = SINGLE

    @property
    def axes(self) -> tuple[str, ...] | None:
        """The mesh axes that split the rows; None where none does."""
        return self.layout.mesh_axes("batch") or None

    def batch(self, rows: int) -> int:
        """The number of rows, rounded up to a multiple of the pieces that they are split into."""
        ways = 1 if self.layout.mesh is None else self.layout.ways("batch")
        return -(-rows // ways) * ways

    def padded(self, canvas: Canvas) -> Canvas:
        """The canvas with as many rows as `batch` says."""
        return canvas.padded(self.batch(canvas.batch))

    def padded_seeds(self, seed: Any) -> Any:
        """A seed, or those of each row and step with copies of the last row's behind them."""
        if not isinstance(seed, np.ndarray):
            return seed
        return np.pad(seed, ((0, self.batch(len(seed)) - len(seed)), (0, 0)), mode="edge")

    def put(self, tree: Any, batch: int, params: Any) -> Any:
        """A tree of arrays on the devices of `params`, those of `batch` rows split."""
        if self.layout.mesh is None:
            return device_put(tree, replicated_like(params))
        return jax.tree.map(device_put, tree, self._shardings(tree, batch))

    def jit(self, function: Callable, sharding: jax.NamedSharding | None) -> Callable:
        """The compiled function of (params, canvas, ...) or of a state, whose results are on the devices of `sharding`, split by rows on a
        mesh."""
        if self.layout.mesh is None:
            return jax.jit(function, out_shardings=sharding)

        @functools.wraps(function)
        def placed(*args):
            found = function(*args)
            batch = next(leaf.shape[0] for leaf in jax.tree.leaves(args[-1] if len(args) == 1 else args[1]) if leaf.ndim == 2)
            # Without it XLA could choose one sharding for the first state and another for the next: a second compilation.
            return jax.lax.with_sharding_constraint(found, self._shardings(found, batch))

        return jax.jit(placed)

    def _shardings(self, tree: Any, batch: int) -> Any:
        """The sharding of each array of a tree."""

        def one(leaf: Any) -> Any:
            if isinstance(leaf, Cache):
                return jax.tree.map(lambda _: self.layout.sharding((None, *KEPT_AXES)), leaf)
            rows = np.ndim(leaf) > 0 and np.shape(leaf)[0] in (batch, 2 * batch)
            return self.layout.sharding(("batch",) if rows else ())

        return jax.tree.map(one, tree, is_leaf=lambda node: isinstance(node, Cache))
