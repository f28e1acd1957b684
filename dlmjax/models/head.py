"""The head, computed only on the rows that carry loss: exactly, whatever the draw, and in bounded memory.

The [B, L, V] tensor of logits is the memory peak of a language model and, in masked diffusion, half of it is never read. Here the rows
with loss are listed first (a stable partition) and walked in chunks of a fixed size; the number of chunks is decided by the draw, at
run time, so no row is dropped and a chunk without loss costs nothing. When the loss is differentiated, each chunk also yields its part
of the gradients on the spot (the weight of a row's loss is known, so nothing has to be kept): the backward pass only multiplies by the
scalar cotangent. Temporary memory is [chunk, V] for logits plus the gradient of the head itself, independent of B and L.

Under a mesh every device does this for its own rows: the batch is split as everywhere, the length over all remaining mesh axes
("head_length"), the head weight is gathered once and its gradient summed once. Where "class" splits the vocabulary, a device keeps its
classes instead: the head's weight and gradient take 1/T of the memory and of the traffic on T devices, which walk the same rows together
and exchange, for each row, what the loss reads of other devices' logits (its largest, the sum of exponentials, single logits) and the
gradient of its hidden state.

Shapes: B batch, L length, D width, V vocab, N = B * L positions, C positions of a chunk.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout as MemoryLayout
from jax.experimental.layout import with_layout_constraint
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float

from dlmjax.models.layers import over_rows
from dlmjax.models.layout import Layout, sum_to_shard, whole_on_device

# Logits alive at once when the chunk is chosen automatically: 2^24 float32 = 64 MiB.
AUTOMATIC_LOGITS = 2**24


def chunk_rows(chunk: int, vocab: int, ways: int = 1) -> int:
    """Rows whose logits are alive at once: `chunk`, or by the size of the vocabulary when 0; `ways` times as many where as many devices
    split the classes."""
    return chunk * ways or max(AUTOMATIC_LOGITS * ways // vocab, 64)


@dataclasses.dataclass(frozen=True)
class HeadPlan:
    """What is static about the head: where the width axis of its weight is (0: [D, V], 1: [V, D], tied), chunk, multiplier, placement;
    `split`: the mesh axes that split the classes, while they do."""

    width_axis: int
    chunk: int
    multiplier: float
    axes: tuple[str | None, ...]
    layout: Layout
    split: tuple[str, ...] = ()

    def logits(self, hidden: Float[Array, "*rows D"], weight: Float[Array, "I O"]) -> Float[Array, "*rows V"]:
        """Float32 logits; operands in hidden's type."""
        dims = (((hidden.ndim - 1,), (self.width_axis,)), ((), ()))
        out = jax.lax.dot_general(hidden, weight.astype(hidden.dtype), dims, preferred_element_type=jnp.float32)
        return out if self.multiplier == 1.0 else out * self.multiplier

    def class_axes(self, vocab: int) -> tuple[str, ...]:
        """The mesh axes that split the classes of the logits; none where they do not divide the vocabulary."""
        layout = self.layout
        axes = layout.mesh_axes("class") if layout.mesh is not None else ()
        return axes if axes and vocab % math.prod(layout.mesh.shape[axis] for axis in axes) == 0 else ()

    @property
    def ways(self) -> int:
        """Devices that split the classes."""
        return math.prod(self.layout.mesh.shape[axis] for axis in self.split)

    @property
    def others(self) -> tuple[str, ...]:
        """The mesh axes of the walk over rows: all, or those of several devices that do not split the classes (beside axes that the
        compiler divides, it takes no sum over one device)."""
        sizes = self.layout.mesh.shape
        return tuple(axis for axis in sizes if not self.split or (axis not in self.split and sizes[axis] > 1))

    @property
    def class_layouts(self) -> tuple[jax.P, jax.P]:
        """Specs of the head's weight: as it is stored, and with the classes split and the width whole."""
        own = tuple("class" if axis == "vocab" else None for axis in self.axes)
        return self.layout.spec(self.axes), self.layout.spec(own)

    def chunk_sizes(self, rows: int, vocab: int) -> tuple[int, ...]:
        """`chunk` (by the size of the vocabulary when 0), then smaller ones for the remainder, so that little work is padding.

        Each chunk reads the whole weight and adds to its whole gradient. So the remainder is walked in halves, quarters and eighths, at
        most one of each but the last; in eighths alone where one chunk holds all rows, whose vocabulary is small, and where devices split
        the classes, whose exchanges each size compiles again.
        """
        size = min(rows, chunk_rows(self.chunk, vocab, self.ways))
        if size < 256:
            return (size,)
        return (size, size // 8) if size == rows or self.split else (size, size // 2, size // 4, size // 8)


def row_losses(
    plan: HeadPlan,
    weight: Float[Array, "I O"],
    hidden_BLD: Float[Array, "B L D"],
    loss_mask_BL: Bool[Array, "B L"],
    loss_fn: Callable[..., Array],
    args: tuple[Any, ...],
    weight_BL: Float[Array, "B L"],
) -> tuple[Float[Array, ""], Float[Array, "B L"]]:
    """sum(weight_BL * trained_BL) over the positions in `loss_mask_BL`, and nats_BL (no gradient; 0 at other positions).

    `loss_fn(logits_NV, *args_N)` gives nats_N, or (trained_N, nats_N) where what is trained is not what is reported. It must act on each
    position alone, on float32 logits; `args` are arrays [B, L, ...], of which it gets the positions. Arrays that all positions share, such
    as the parameters of a process, are bound to it: `Partial(function, process)` of jax.tree_util. Differentiable in `weight`,
    `hidden_BLD`, `args` and what is bound; the mask and the weights of positions are constants.
    """
    loss_mask_BL, weight_BL = jax.lax.stop_gradient((loss_mask_BL, weight_BL.astype(jnp.float32)))
    total, nats_BL = _weighted_sum(plan, weight, hidden_BLD, as_partial(loss_fn), tuple(args), loss_mask_BL, weight_BL)
    return total, jax.lax.stop_gradient(nats_BL)


def as_partial(function: Callable[..., Array]) -> Partial:
    """A function as a pytree, whose leaves are the arrays that are bound to it."""
    return function if isinstance(function, Partial) else Partial(function)


def biased_loss(bias_V: Float[Array, " V"], loss_fn: Callable[..., Array]) -> Partial:
    """The `loss_fn` of `row_losses` for a head with a bias, which is one more array that all positions share."""
    return Partial(lambda bias_V, loss_fn, logits_NV, *args_N: loss_fn(logits_NV + bias_V, *args_N), bias_V, as_partial(loss_fn))


def expect(
    plan: HeadPlan,
    weight: Float[Array, "I O"],
    hidden_BLD: Float[Array, "B L D"],
    table_VI: Float[Array, "V E"],
    bias_V: Float[Array, " V"] | None = None,
) -> Float[Array, "B L E"]:
    """softmax(logits) @ table, float32, rows in chunks, whose logits a backward pass computes again."""
    layout = plan.layout
    biases = () if bias_V is None else (bias_V,)

    def on_device(weight: Array, hidden_BLD: Array, table_VI: Array, *biases: Array) -> Array:
        B, L, D = hidden_BLD.shape
        size = min(plan.chunk_sizes(B * L, table_VI.shape[0])[0], B * L)

        @jax.checkpoint
        def mean(hidden_D: Array) -> Array:
            return jax.nn.softmax(sum(biases, plan.logits(hidden_D, weight))) @ table_VI

        return jax.lax.map(mean, hidden_BLD.reshape(B * L, D), batch_size=size).reshape(B, L, table_VI.shape[1])

    if layout.mesh is None:
        return on_device(weight.astype(hidden_BLD.dtype), hidden_BLD, table_VI.astype(jnp.float32), *biases)
    rows = layout.spec(("batch", "head_length", None))
    run = jax.shard_map(
        lambda shard, *args: on_device(whole_on_device(shard.astype(hidden_BLD.dtype), plan.axes, layout), *args),
        mesh=layout.mesh,
        in_specs=(layout.spec(plan.axes), rows, *(layout.spec(()) for _ in (table_VI, *biases))),
        out_specs=rows,
        check_vma=False,
    )
    return run(weight, layout.constrain(hidden_BLD, ("batch", "head_length", None)), table_VI.astype(jnp.float32), *biases)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted_sum(plan, weight, hidden_BLD, loss_fn, args, loss_mask_BL, weight_BL):
    return _sharded(plan, None, weight, hidden_BLD, loss_fn, args, loss_mask_BL, weight_BL)[:2]


def _weighted_sum_forward(plan, *primals):
    # Most `args` are constants, such as tokens and times: they cost no gradient.
    moving = tuple(arg.perturbed and jnp.issubdtype(arg.value.dtype, jnp.inexact) for arg in primals[3])
    total, nats_BL, *gradients = _sharded(plan, moving, *jax.tree.map(lambda primal: primal.value, primals))
    return (total, nats_BL), gradients


def _weighted_sum_backward(plan, gradients, cotangents):
    scale, _ = cotangents
    return (*(jax.tree.map(lambda g: (g * scale).astype(g.dtype), g) for g in gradients), None, None)


_weighted_sum.defvjp(_weighted_sum_forward, _weighted_sum_backward, symbolic_zeros=True)


def _sharded(plan: HeadPlan, moving, weight, hidden_BLD, loss_fn, args, loss_mask_BL, weight_BL):
    """Runs `_local` on every device's own rows and adds up; without a mesh there is one device."""
    layout = plan.layout
    if layout.mesh is None:
        return _local(plan, moving, weight.astype(hidden_BLD.dtype), hidden_BLD, loss_fn, args, loss_mask_BL, weight_BL)
    split = plan.class_axes(weight.shape[1 - plan.width_axis])
    plan = dataclasses.replace(plan, split=split)
    manual = plan.others
    length = "length" if split else "head_length"

    def on_device(stored, hidden_BLD, *others):
        whole = stored if split else whole_on_device(stored.astype(hidden_BLD.dtype), plan.axes, layout)
        total, nats_BL, *gradients = _local(plan, moving, whole, hidden_BLD, *others)
        if gradients:
            dweight, dhidden_BLD, dloss_fn, dargs = gradients
            dweight = dweight[None] if split else sum_to_shard(dweight, plan.axes, layout)
            gradients = dweight, dhidden_BLD, _sum(dloss_fn, manual), dargs
        return _sum(total, manual), nats_BL, *gradients

    hidden_BLD = layout.constrain(hidden_BLD, ("batch", length, None))  # says which size does not divide, before shard_map does
    rows = layout.spec(("batch", length))
    hidden = layout.spec(("batch", length, None))
    by_row = tuple(layout.spec(("batch", length) + (None,) * (a.ndim - 2)) for a in args)
    whole = layout.spec(())
    stored, summed = (whole, jax.P(manual or None)) if split else (layout.spec(plan.axes),) * 2
    gradients = ()
    if moving is not None:
        gradients = summed, hidden, whole, tuple(spec if moves else None for spec, moves in zip(by_row, moving, strict=True))
    run = jax.shard_map(
        on_device,
        mesh=layout.mesh,
        in_specs=(stored, hidden, whole, by_row, rows, rows),
        out_specs=(whole, rows, *gradients),
        axis_names=set(manual),
        check_vma=False,
    )
    if split:
        weight = _own_classes(plan, weight.astype(hidden_BLD.dtype))
    found = (run if manual else on_device)(weight, hidden_BLD, loss_fn, args, loss_mask_BL, weight_BL)
    if split and gradients:
        found = *found[:2], _summed_classes(plan, found[2]), *found[3:]
    return found


def _sum(tree: Any, axes: tuple[str, ...]) -> Any:
    return jax.lax.psum(tree, axes) if axes else tree


# With classes split, the head's weight and gradient move between devices outside the walk over rows: there the mesh axes of "class" belong
# to the compiler, which would bring the whole matrix together for a collective over the others.


def _own_classes(plan: HeadPlan, weight: Array) -> Array:
    """The stored head with the whole width of a device's own classes: shards are exchanged within a group, then gathered over the rest."""
    stored, own = plan.class_layouts

    def move(shard: Array) -> Array:
        shard = jax.lax.all_to_all(shard, plan.split, 1 - plan.width_axis, plan.width_axis, tiled=True)
        return whole_on_device(shard, tuple("class_table" if axis == "table" else None for axis in plan.axes), plan.layout)

    return jax.shard_map(move, mesh=plan.layout.mesh, in_specs=stored, out_specs=own, check_vma=False)(weight)


def _summed_classes(plan: HeadPlan, partial: Array) -> Array:
    """The stored shards of the sum of gradients [devices of `plan.others`, ...], each of a device's own classes: the way back."""
    stored, own = plan.class_layouts

    def move(shard: Array) -> Array:
        axes = tuple("class_table" if axis == "table" else None for axis in plan.axes)
        shard = sum_to_shard(shard[0], axes, plan.layout, plan.others)
        shard = jax.lax.all_to_all(shard, plan.split, plan.width_axis, 1 - plan.width_axis, tiled=True)
        # Row by row, as the weight is stored: else a TPU's compiler transposes weight, average and moments before and after their update.
        return with_layout_constraint(shard, MemoryLayout(major_to_minor=(0, 1)))

    spec = jax.P(plan.others or None, *own)
    return jax.shard_map(move, mesh=plan.layout.mesh, in_specs=spec, out_specs=stored, check_vma=False)(partial)


def _by_class(plan: HeadPlan, array: Array, axis: int) -> Array:
    """The matrix, divided along its axis of classes where the plan splits them."""
    if not plan.split:
        return array
    around = jax.sharding.get_abstract_mesh()  # inside `shard_map` only some of the axes can be named
    spec = jax.P(plan.split, None) if axis == 0 else jax.P(None, plan.split)
    return jax.lax.with_sharding_constraint(array, jax.NamedSharding(plan.layout.mesh if around.empty else around, spec))


def _local(plan: HeadPlan, moving, weight, hidden_BLD, loss_fn, args, loss_mask_BL, weight_BL):
    """The walk over chunks on one device -> (sum, nats_BL, dweight, dhidden_BLD, dloss_fn, dargs).

    moving: which of `args` have a gradient, the others' being None; None = no gradients at all, the result ends with nats_BL.
    Where `plan.split` names axes, the compiler divides what is written here over whole logits.
    """
    B, L, D = hidden_BLD.shape
    N = B * L
    loss_mask_N = loss_mask_BL.reshape(N)
    count = jnp.sum(loss_mask_N, dtype=jnp.int32)
    if plan.split and plan.others:
        # A loop with exchanges inside is run equally often by all: they wait for the longest anyway, at the sum of the gradients.
        count = jax.lax.pmax(count, plan.others)
    vocab_axis = 1 - plan.width_axis
    by_class = functools.partial(_by_class, plan)
    weight = by_class(weight, axis=vocab_axis)
    sizes = plan.chunk_sizes(N, weight.shape[vocab_axis])
    # Indices of rows with loss, in order; the tail holds N: such slots read the first listed row, weigh nothing and write nowhere.
    listed = jnp.nonzero(loss_mask_N, size=N + sizes[-1], fill_value=N)[0]
    flat = jax.tree.map(lambda a: a.reshape((N,) + a.shape[2:]), (hidden_BLD, args, weight_BL))

    def chunk(C, start, i, carry):
        """Adds chunk i of C listed rows."""
        total, nats_N, *gradients = carry
        ids_C = jax.lax.dynamic_slice(listed, (start + i * C,), (C,))
        live_C = ids_C < N
        read_C = jnp.where(live_C, ids_C, listed[0])
        hidden_CD, args_C, scale_C = jax.tree.map(lambda a: a[read_C], flat)
        scale_C = jnp.where(live_C, scale_C, 0.0)
        logits_CV = by_class(plan.logits(hidden_CD, weight), axis=1)

        def losses(logits_CV, loss_fn, moved_C):
            """(trained, nats) of a chunk of positions."""
            nats = loss_fn(logits_CV, *(b if a is None else a for a, b in zip(moved_C, args_C, strict=True)))
            return nats if isinstance(nats, tuple) else (nats, nats)

        trained_C, pull, nats_C = jax.vjp(losses, logits_CV, loss_fn, _moved(moving, args_C), has_aux=True)
        if gradients:
            dweight, dhidden_ND, dloss_fn, dargs_N = gradients
            dlogits_CV, dloss_fn_here, dargs_C = pull(scale_C.astype(trained_C.dtype))
            dlogits_CV = (dlogits_CV if plan.multiplier == 1.0 else dlogits_CV * plan.multiplier).astype(hidden_CD.dtype)
            dlogits_CV = by_class(dlogits_CV, axis=1)
            dhidden_CD = jax.lax.dot_general(dlogits_CV, weight, (((1,), (1 - plan.width_axis,)), ((), ())))
            dhidden_ND = dhidden_ND.at[ids_C].set(dhidden_CD, mode="drop")
            dweight = dweight + (over_rows(hidden_CD, dlogits_CV) if plan.width_axis == 0 else over_rows(dlogits_CV, hidden_CD))
            dloss_fn = jax.tree.map(jnp.add, dloss_fn, dloss_fn_here)
            dargs_N = jax.tree.map(lambda all_N, here_C: all_N.at[ids_C].set(here_C, mode="drop"), dargs_N, dargs_C)
            gradients = dweight, dhidden_ND, dloss_fn, dargs_N
        # float32 also where float64 is switched on and a level is one: what the loop carries keeps its type.
        total = total + jnp.sum(jnp.where(live_C, trained_C, 0.0) * scale_C).astype(jnp.float32)
        nats_N = nats_N.at[ids_C].set(jnp.where(live_C, nats_C, 0.0).astype(jnp.float32), mode="drop")
        return total, nats_N, *gradients

    gradients = ()
    if moving is not None:
        empty = jax.tree.map(jnp.zeros_like, (loss_fn, _moved(moving, flat[1])))
        dweight = by_class(jnp.zeros(weight.shape, jnp.float32), axis=vocab_axis)
        gradients = dweight, jnp.zeros((N, D), hidden_BLD.dtype), *empty
    carry, start = (jnp.zeros((), jnp.float32), jnp.zeros((N,), jnp.float32), *gradients), jnp.int32(0)
    for size in sizes:
        # Whole chunks of each size; the last, smallest size also takes what is left over.
        chunks = (count - start + (size - 1 if size == sizes[-1] else 0)) // size
        carry = jax.lax.fori_loop(0, chunks, functools.partial(chunk, size, start), carry)
        start = start + chunks * size
    total, nats_N, *gradients = carry
    if gradients:
        dweight, dhidden_ND, dloss_fn, dargs_N = gradients
        dargs = jax.tree.map(lambda g: g.reshape(B, L, *g.shape[1:]), dargs_N)
        gradients = dweight, dhidden_ND.reshape(B, L, D), dloss_fn, dargs
    return total, nats_N.reshape(B, L), *gradients


def _moved(moving: tuple[bool, ...] | None, args: tuple) -> tuple:
    """The arguments that have a gradient, None in the places of the others."""
    return tuple(arg if moves else None for arg, moves in zip(args, moving or (False,) * len(args), strict=True))
