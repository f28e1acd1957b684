"""The head, computed only on the rows that carry loss: exactly, whatever the draw, and in bounded memory.

The [B, L, V] tensor of logits is the memory peak of a language model and, in masked diffusion, half of it is never read. Here the rows
with loss are listed first (a stable partition) and walked in chunks of a fixed size; the number of chunks is decided by the draw, at
run time, so no row is dropped and a chunk without loss costs nothing. When the loss is differentiated, each chunk also yields its part
of the gradients on the spot (the weight of a row's loss is known, so nothing has to be kept): the backward pass only multiplies by the
scalar cotangent. Temporary memory is [chunk, V] for logits plus the gradient of the head itself, independent of B and L.

Under a mesh every device does this for its own rows: the batch is split as everywhere, the length over all remaining mesh axes
("head_length"), the head weight is gathered once and its gradient summed once.

Shapes: B batch, L length, D width, V vocab, N = B * L rows, C rows of a chunk; `learned` in private functions is
(tree shared by all rows, arguments per row that have a gradient).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dlmjax.models.layers import over_rows
from dlmjax.models.layout import Layout, sum_to_shard, whole_on_device

# Logits alive at once when the chunk is chosen automatically: 2^24 float32 = 64 MiB.
AUTOMATIC_LOGITS = 2**24


def chunk_rows(chunk: int, vocab: int) -> int:
    """Rows whose logits are alive at once: `chunk`, or by the size of the vocabulary when 0."""
    return chunk or max(AUTOMATIC_LOGITS // vocab, 64)


@dataclasses.dataclass(frozen=True)
class HeadPlan:
    """What is static about the head: where the width axis of its weight is (0: [D, V], 1: [V, D], tied), chunk, multiplier, placement."""

    width_axis: int
    chunk: int
    multiplier: float
    axes: tuple[str | None, ...]
    layout: Layout

    def logits(self, hidden: Float[Array, "*rows D"], weight: Float[Array, "I O"]) -> Float[Array, "*rows V"]:
        """Float32 logits; operands in hidden's type."""
        dims = (((hidden.ndim - 1,), (self.width_axis,)), ((), ()))
        out = jax.lax.dot_general(hidden, weight.astype(hidden.dtype), dims, preferred_element_type=jnp.float32)
        return out if self.multiplier == 1.0 else out * self.multiplier

    def chunk_sizes(self, rows: int, vocab: int) -> tuple[int, ...]:
        """`chunk` (by the size of the vocabulary when 0), then an eighth of it for the remainder, so that little work is padding."""
        size = min(rows, chunk_rows(self.chunk, vocab))
        return (size, size // 8) if size >= 256 else (size,)


def row_losses(
    plan: HeadPlan,
    weight: Float[Array, "I O"],
    hidden_BLD: Float[Array, "B L D"],
    rows_BL: Bool[Array, "B L"],
    nats_fn: Callable[..., Array],
    row_args: tuple[Any, ...],
    weight_BL: Float[Array, "B L"],
    learned: Any = (),
) -> tuple[Float[Array, ""], Float[Array, "B L"]]:
    """sum(weight_BL * trained_BL) over the rows in `rows_BL`, and nats_BL (no gradient; 0 on other rows).

    `nats_fn(logits_NV, *args_N)` gives nats_N, or (trained_N, nats_N) where what is trained is not what is reported. It must act on each
    row alone, on float32 logits; `row_args` are arrays [B, L, ...] of which it is given the rows. Differentiable in `weight` and
    `hidden_BLD`; rows, arguments and weights are constants, unless a tree `learned` of arrays is given: then the call is
    `nats_fn(logits_NV, *args_N, learned)`, differentiable in `learned` and in the arguments that are floats.
    """
    rows_BL, weight_BL = jax.lax.stop_gradient((rows_BL, weight_BL.astype(jnp.float32)))
    floats, others = _by_type(tuple(row_args), bool(jax.tree.leaves(learned)))
    total, nats_BL = _weighted_sum(plan, nats_fn, weight, hidden_BLD, (learned, floats), rows_BL, others, weight_BL)
    return total, jax.lax.stop_gradient(nats_BL)


def with_bias(
    bias_V: Float[Array, " V"], nats_fn: Callable[..., Array], row_args: tuple[Any, ...], learned: Any
) -> tuple[Callable[..., Array], tuple[Any, ...], Any]:
    """(nats_fn, row_args, learned) of `row_losses` for a head with a bias: one more thing that is learned, shared by all rows."""
    if not jax.tree.leaves(learned):  # nothing else is learned, so the arguments stay constants
        row_args = jax.lax.stop_gradient(row_args)

    def biased(logits_NV: Array, *args: Any) -> Array:
        *args_N, (bias_V, learned) = args
        return nats_fn(logits_NV + bias_V, *args_N, *((learned,) if jax.tree.leaves(learned) else ()))

    return biased, row_args, (bias_V, learned)


def expect(
    plan: HeadPlan,
    weight: Float[Array, "I O"],
    hidden_BLD: Float[Array, "B L D"],
    table_VI: Float[Array, "V E"],
    bias_V: Float[Array, " V"] | None = None,
) -> Float[Array, "B L E"]:
    """softmax(logits) @ table, float32, rows in chunks; for estimates that no gradient goes through."""
    layout = plan.layout
    biases = () if bias_V is None else (bias_V,)

    def on_device(weight: Array, hidden_BLD: Array, table_VI: Array, *biases: Array) -> Array:
        B, L, D = hidden_BLD.shape
        size = min(plan.chunk_sizes(B * L, table_VI.shape[0])[0], B * L)

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


def _by_type(row_args: tuple, learns: bool) -> tuple[tuple, tuple]:
    """(arguments with a gradient, the others), each with None in the other's places."""
    moves = [learns and jnp.issubdtype(a.dtype, jnp.inexact) for a in row_args]
    floats = tuple(a if move else None for a, move in zip(row_args, moves, strict=True))
    others = tuple(None if move else jax.lax.stop_gradient(a) for a, move in zip(row_args, moves, strict=True))
    return floats, others


def _call(nats_fn, logits_CV, learned_and_floats, others_C):
    """(trained, nats) of a chunk of rows."""
    learned, floats_C = learned_and_floats
    args_C = [b if a is None else a for a, b in zip(floats_C, others_C, strict=True)]
    nats = nats_fn(logits_CV, *args_C, learned) if jax.tree.leaves(learned) else nats_fn(logits_CV, *args_C)
    return nats if isinstance(nats, tuple) else (nats, nats)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _weighted_sum(plan, nats_fn, weight, hidden_BLD, learned, rows_BL, others, weight_BL):
    return _sharded(plan, nats_fn, False, weight, hidden_BLD, learned, rows_BL, others, weight_BL)[:2]


def _weighted_sum_forward(plan, nats_fn, weight, hidden_BLD, learned, rows_BL, others, weight_BL):
    total, nats_BL, *gradients = _sharded(plan, nats_fn, True, weight, hidden_BLD, learned, rows_BL, others, weight_BL)
    return (total, nats_BL), gradients


def _weighted_sum_backward(plan, nats_fn, saved, cotangents):
    scale, _ = cotangents
    return (*(jax.tree.map(lambda g: (g * scale).astype(g.dtype), g) for g in saved), None, None, None)


_weighted_sum.defvjp(_weighted_sum_forward, _weighted_sum_backward)


def _sharded(plan: HeadPlan, nats_fn, differentiate: bool, weight, hidden_BLD, learned, rows_BL, others, weight_BL):
    """Runs `_local` on every device's own rows and adds up; without a mesh there is one device."""
    layout = plan.layout
    local = functools.partial(_local, plan, nats_fn, differentiate)
    if layout.mesh is None:
        return local(weight.astype(hidden_BLD.dtype), hidden_BLD, learned, rows_BL, others, weight_BL)
    everywhere = tuple(layout.mesh.axis_names)

    def on_device(shard, hidden_BLD, learned, rows_BL, others, weight_BL):
        whole = whole_on_device(shard.astype(hidden_BLD.dtype), plan.axes, layout)
        total, nats_BL, dweight, dhidden_BLD, (dshared, dfloats) = local(whole, hidden_BLD, learned, rows_BL, others, weight_BL)
        if differentiate:
            dweight, dshared = sum_to_shard(dweight, plan.axes, layout), jax.lax.psum(dshared, everywhere)
        return jax.lax.psum(total, everywhere), nats_BL, dweight, dhidden_BLD, (dshared, dfloats)

    hidden_BLD = layout.constrain(hidden_BLD, ("batch", "head_length", None))  # says which size does not divide, before shard_map does
    rows = layout.spec(("batch", "head_length"))
    hidden = layout.spec(("batch", "head_length", None))

    def by_row(tree):
        return jax.tree.map(lambda a: layout.spec(("batch", "head_length") + (None,) * (a.ndim - 2)), tree)

    stored, whole = layout.spec(plan.axes), layout.spec(())
    learned_specs = (jax.tree.map(lambda a: whole, learned[0]), by_row(learned[1]))
    gradients = (stored, hidden, learned_specs) if differentiate else (whole, whole, (whole, whole))
    run = jax.shard_map(
        on_device,
        mesh=layout.mesh,
        in_specs=(stored, hidden, learned_specs, rows, by_row(others), rows),
        out_specs=(whole, rows, *gradients),
        check_vma=False,
    )
    return run(weight, hidden_BLD, learned, rows_BL, others, weight_BL)


def _local(plan: HeadPlan, nats_fn, differentiate: bool, weight, hidden_BLD, learned, rows_BL, others, weight_BL):
    """The walk over chunks on one device -> (sum, nats_BL, dweight, dhidden_BLD, dlearned); gradients are empty unless asked for."""
    B, L, D = hidden_BLD.shape
    N = B * L
    rows_N = rows_BL.reshape(N)
    count = jnp.sum(rows_N, dtype=jnp.int32)
    sizes = plan.chunk_sizes(N, weight.shape[1 - plan.width_axis])
    # Indices of rows with loss, in order; the tail holds N: such slots read the first listed row, weigh nothing and write nowhere.
    listed = jnp.nonzero(rows_N, size=N + sizes[-1], fill_value=N)[0]
    shared, floats = learned
    flat = jax.tree.map(lambda a: a.reshape((N,) + a.shape[2:]), (hidden_BLD, floats, others, weight_BL))

    def chunk(C, start, i, carry):
        """Adds chunk i of C listed rows."""
        total, nats_N, dweight, dhidden_ND, (dshared, dfloats_N) = carry
        ids_C = jax.lax.dynamic_slice(listed, (start + i * C,), (C,))
        live_C = ids_C < N
        read_C = jnp.where(live_C, ids_C, listed[0])
        hidden_CD, floats_C, others_C, scale_C = jax.tree.map(lambda a: a[read_C], flat)
        scale_C = jnp.where(live_C, scale_C, 0.0)
        logits_CV = plan.logits(hidden_CD, weight)
        trained_C, pull, nats_C = jax.vjp(
            lambda logits_CV, learned: _call(nats_fn, logits_CV, learned, others_C), logits_CV, (shared, floats_C), has_aux=True
        )
        if differentiate:
            dlogits_CV, (dshared_here, dfloats_C) = pull(scale_C.astype(trained_C.dtype))
            dlogits_CV = (dlogits_CV if plan.multiplier == 1.0 else dlogits_CV * plan.multiplier).astype(hidden_CD.dtype)
            dhidden_CD = jax.lax.dot_general(dlogits_CV, weight, (((1,), (1 - plan.width_axis,)), ((), ())))
            dhidden_ND = dhidden_ND.at[ids_C].set(dhidden_CD, mode="drop")
            dweight = dweight + (over_rows(hidden_CD, dlogits_CV) if plan.width_axis == 0 else over_rows(dlogits_CV, hidden_CD))
            dshared = jax.tree.map(jnp.add, dshared, dshared_here)
            dfloats_N = jax.tree.map(lambda all_N, here_C: all_N.at[ids_C].set(here_C, mode="drop"), dfloats_N, dfloats_C)
        # float32 also where float64 is switched on and a level is one: what the loop carries keeps its type.
        total = total + jnp.sum(jnp.where(live_C, trained_C, 0.0) * scale_C).astype(jnp.float32)
        nats_N = nats_N.at[ids_C].set(jnp.where(live_C, nats_C, 0.0).astype(jnp.float32), mode="drop")
        return total, nats_N, dweight, dhidden_ND, (dshared, dfloats_N)

    empty = jnp.zeros((), jnp.float32)
    gradients = empty, empty, (empty, empty)
    if differentiate:
        gradients = (
            jnp.zeros(weight.shape, jnp.float32),
            jnp.zeros((N, D), hidden_BLD.dtype),
            jax.tree.map(jnp.zeros_like, (shared, flat[1])),
        )
    carry, start = (empty, jnp.zeros((N,), jnp.float32), *gradients), jnp.int32(0)
    for size in sizes:
        # Whole chunks of each size; the last, smallest size also takes what is left over.
        chunks = (count - start + (size - 1 if size == sizes[-1] else 0)) // size
        carry = jax.lax.fori_loop(0, chunks, functools.partial(chunk, size, start), carry)
        start = start + chunks * size
    total, nats_N, dweight, dhidden_ND, (dshared, dfloats_N) = carry
    if differentiate:
        dhidden_ND = dhidden_ND.reshape(B, L, D)
        dfloats_N = jax.tree.map(lambda g, a: g.reshape(a.shape), dfloats_N, floats)
    return total, nats_N.reshape(B, L), dweight, dhidden_ND, (dshared, dfloats_N)
