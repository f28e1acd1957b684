"""Grouped-query attention over a described mask: one entry, three backends that derive from its predicate.

dense    scores as an array, float32 softmax; any device.
cudnn    cuDNN's fused kernel through jax.nn.dot_product_attention; NVIDIA GPU, bfloat16.
splash   the Pallas block-sparse kernel; TPU. Blocks without an allowed pair are skipped.

Shapes: B batch, L length, H query heads, G key/value heads, Q = H / G * L queries of a group, K head_dim.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dlmjax.errors import InputError
from dlmjax.models.layout import Layout
from dlmjax.models.masks import Mask, Prefixed, allowed_in_batch, is_data

# Added to a forbidden score. It is finite, so that a row without an allowed key has finite values and the gradient 0, not NaN.
FORBIDDEN = -1e30

# Lanes of a TPU's vector register, and the side of the blocks of scores that a splash kernel computes at a time.
SPLASH_LANES = 128
SPLASH_BLOCK = 512

# (first and last position of some queries, the same of each run of keys that they may see); a last position is exclusive.
Tile = tuple[tuple[int, int], tuple[tuple[int, int], ...]]
# The fewest queries of a tile: four tiles of 32 cost as much as the whole row of 128 under a causal mask.
TILE = 64

QUERY_AXES = ("batch", "length", "heads", None)
# Every query requires the keys and values of the whole row: where the length is split, they are gathered.
KEY_AXES = ("batch", None, "kv_heads", None)


def runs_on(backend: str, dtype: str, platform: str) -> bool:
    """Whether a backend has a kernel for this kind of device ("cpu", "gpu", "tpu") and type."""
    return {"dense": True, "cudnn": platform == "gpu" and dtype == "bfloat16", "splash": platform == "tpu"}[backend]


def make_attention(mask: Mask, segments_BL: Int[Array, "B L"], backend: str, dtype: str, layout: Layout):
    """Returns attend(q_BLHK, k_BLGK, v_BLGK) -> [B, L, H, K]; whatever depends only on the mask is computed once, here.

    Splash requires a row length divisible by 128; other lengths use the dense backend, such as a canvas or a window of a run that was
    trained on 128 n (`run.assemble` refuses to train on other lengths).
    Raises InputError when the backend cannot run on the layout's devices (without a mesh: the default device) or in this type.
    """
    platform = layout.platform
    runs, fits = runs_on(backend, dtype, platform), segments_BL.shape[1] % SPLASH_LANES == 0
    if backend == "cudnn":
        if not runs:
            raise InputError(
                f"attention=cudnn requires an NVIDIA GPU and bfloat16, not {platform} and {dtype}; set execution.attention=dense"
            )
        attend = functools.partial(fused, allowed_BLL=allowed_in_batch(mask, segments_BL), layout=layout)
    elif backend == "splash" and not runs:
        raise InputError(f"attention=splash requires a TPU, not {platform}; set execution.attention=dense")
    elif backend == "splash" and is_data(mask):
        raise InputError("attention=splash conflicts with process.anneal and spans, whose mask is data; set execution.attention=dense")
    elif backend == "splash" and fits:
        if isinstance(mask, Prefixed):
            raise InputError("attention=splash conflicts with model.time_input=prefix; set model.time_input=adaln or attention=dense")
        attend = functools.partial(splash, mask=mask, segments_BL=segments_BL, layout=layout)
    else:
        bias_BLL = jnp.where(allowed_in_batch(mask, segments_BL), 0.0, FORBIDDEN).astype(jnp.float32)
        # A tile is a part of the length, which a mesh axis may split.
        tiles = tiles_of(mask, segments_BL.shape[1]) if layout.flat and not is_data(mask) else None
        attend = functools.partial(dense_attention, bias_BLL=bias_BLL, tiles=tiles)

    def constrained(q_BLHK: Array, k_BLGK: Array, v_BLGK: Array) -> Array:
        k_BLGK, v_BLGK = layout.constrain(k_BLGK, KEY_AXES), layout.constrain(v_BLGK, KEY_AXES)
        return layout.constrain(attend(q_BLHK, k_BLGK, v_BLGK), QUERY_AXES)

    return constrained


def dense_attention(
    q_BMHK: Float[Array, "B M H K"],
    k_BLGK: Float[Array, "B L G K"],
    v_BLGK: Float[Array, "B L G K"],
    bias_BLL: Float[Array, "B L L"],
    tiles: tuple[Tile, ...] | None = None,
) -> Float[Array, "B M H K"]:
    """softmax(q k / sqrt(K) + bias) v with float32 scores and softmax; the query heads of a group share its keys. `bias` is constant.

    The queries are those of a row's first M positions.  `tiles`: pairs outside of them are not computed, see `tiles_of`; None = all pairs.
    """
    M, (L, G) = q_BMHK.shape[1], k_BLGK.shape[1:3]
    q_BMHK, k_BGLK, v_BGLK = q_BMHK * q_BMHK.shape[-1] ** -0.5, _heads_first(k_BLGK), _heads_first(v_BLGK)
    out = []
    for (start, stop), keys in tiles or (((0, M), ((0, L),)),):
        if start < M:
            q_BTHK, bias_BTS = q_BMHK[:, start:stop], _pieces(bias_BLL[:, start : min(stop, M)], keys, 2)
            out_BGQK = _attend(_grouped(q_BTHK, G), _pieces(k_BGLK, keys, 2), _pieces(v_BGLK, keys, 2), bias_BTS)
            out.append(_ungrouped(out_BGQK, q_BTHK))
    return out[0] if len(out) == 1 else jnp.concatenate(out, axis=1)


def tiles_of(mask: Mask, length: int) -> tuple[Tile, ...] | None:
    """The queries of a row in four tiles, each with the keys that at least one of its queries may see, in steps of a tile's side.

    None where this leaves out less than a fifth of the pairs, or the row cannot be divided.
    """
    side = length // 4
    if length % 4 or side < TILE:
        return None
    index_L = np.arange(length)
    allowed_LL = np.broadcast_to(np.asarray(mask.allowed(index_L[:, None], index_L[None, :])), (length, length))
    seen_44 = allowed_LL.reshape(4, side, 4, side).any((1, 3))
    if seen_44.mean() > 0.8:
        return None

    def runs(seen_4: np.ndarray) -> tuple[tuple[int, int], ...]:
        edges = np.flatnonzero(np.diff(np.pad(seen_4.astype(int), 1))).reshape(-1, 2) * side
        return tuple((int(start), int(stop)) for start, stop in edges)

    return tuple(((i * side, (i + 1) * side), runs(seen_44[i])) for i in range(4))


def _pieces(x: Array, runs: tuple[tuple[int, int], ...], axis: int) -> Array:
    """Runs of positions along an axis, one after the other."""
    if runs == ((0, x.shape[axis]),):
        return x
    found = [jax.lax.slice_in_dim(x, start, stop, axis=axis) for start, stop in runs]
    return found[0] if len(found) == 1 else jnp.concatenate(found, axis=axis)


@jax.custom_vjp
def _attend(q_BGQK: Array, k_BGLK: Array, v_BGLK: Array, bias_BML: Array) -> Array:
    """Attention of scaled queries, float32; M queries of a head, Q of all heads of a group.

    Normalised after the second product, on [Q, K] instead of [Q, L] numbers; the backward pass keeps the unnormalised weights
    (FlashAttention 2205.14135, appendix B.2, without its tiling).
    """
    return _attend_forward(q_BGQK, k_BGLK, v_BGLK, bias_BML)[0]


def _attend_forward(q_BGQK, k_BGLK, v_BGLK, bias_BML):
    scores_BGQL = _add_bias(jnp.einsum("bgqk,bglk->bgql", q_BGQK, k_BGLK, preferred_element_type=jnp.float32), bias_BML)
    weights_BGQL = jnp.exp(scores_BGQL - jnp.max(scores_BGQL, axis=-1, keepdims=True))
    sums_BGQ1 = jnp.sum(weights_BGQL, axis=-1, keepdims=True)
    weights_BGQL = weights_BGQL.astype(v_BGLK.dtype)
    out_BGQK = jnp.einsum("bgql,bglk->bgqk", weights_BGQL, v_BGLK, preferred_element_type=jnp.float32) / sums_BGQ1
    return out_BGQK, (q_BGQK, k_BGLK, v_BGLK, weights_BGQL, sums_BGQ1, out_BGQK)


def _attend_backward(saved, dout_BGQK):
    q_BGQK, k_BGLK, v_BGLK, weights_BGQL, sums_BGQ1, out_BGQK = saved
    dtype = v_BGLK.dtype
    dout_BGQK = dout_BGQK / sums_BGQ1
    delta_BGQ1 = jnp.sum(dout_BGQK * out_BGQK, axis=-1, keepdims=True)
    dout_BGQK = dout_BGQK.astype(dtype)
    # Products with the long side last, and transposed: XLA on CPU has no fast kernel for a left operand that is summed over its rows.
    dv_BGKL = jnp.einsum("bgqk,bgql->bgkl", dout_BGQK, weights_BGQL)
    dweights_BGQL = jnp.einsum("bgqk,bglk->bgql", dout_BGQK, v_BGLK, preferred_element_type=jnp.float32)
    dscores_BGQL = (weights_BGQL * (dweights_BGQL - delta_BGQ1)).astype(dtype)
    dq_BGQK = jnp.einsum("bgql,bglk->bgqk", dscores_BGQL, k_BGLK)
    dk_BGKL = jnp.einsum("bgqk,bgql->bgkl", q_BGQK, dscores_BGQL)
    return dq_BGQK, jnp.swapaxes(dk_BGKL, 2, 3), jnp.swapaxes(dv_BGKL, 2, 3), None


_attend.defvjp(_attend_forward, _attend_backward)


def _add_bias(scores_BGQL: Array, bias_BML: Array) -> Array:
    B, G, Q, L = scores_BGQL.shape
    M = bias_BML.shape[1]
    if Q == M:
        return scores_BGQL + bias_BML[:, None]
    return (scores_BGQL.reshape(B, G, Q // M, M, L) + bias_BML[:, None, None]).reshape(B, G, Q, L)


def _heads_first(x_BLGK: Array) -> Array:
    return jnp.swapaxes(x_BLGK, 1, 2)


def _grouped(x_BLHK: Array, groups: int) -> Array:
    """[B, L, H, K] -> [B, G, Q, K]: the queries of all heads of a group as one list."""
    B, L, H, K = x_BLHK.shape
    return jnp.transpose(x_BLHK.reshape(B, L, groups, H // groups, K), (0, 2, 3, 1, 4)).reshape(B, groups, H // groups * L, K)


def _ungrouped(x_BGQK: Array, like_BLHK: Array) -> Array:
    B, L, H, K = like_BLHK.shape
    G = x_BGQK.shape[1]
    return jnp.transpose(x_BGQK.reshape(B, G, H // G, L, K), (0, 3, 1, 2, 4)).reshape(B, L, H, K).astype(like_BLHK.dtype)


def fused(
    q_BLHK: Array, k_BLGK: Array, v_BLGK: Array, allowed_BLL: Array, layout: Layout, implementation: str = "cudnn"
) -> Float[Array, "B L H K"]:
    """jax.nn.dot_product_attention with the dense boolean mask; the kernel keeps the scores on chip.

    Under a mesh each device runs the kernel on its own batch rows, queries and heads. (The library's own partitioning is a callback of the
    compiler, with which no program can be lowered for devices that are not here.)
    """

    def local(q_BLHK: Array, k_BLGK: Array, v_BLGK: Array, allowed_BLL: Array) -> Array:
        return jax.nn.dot_product_attention(q_BLHK, k_BLGK, v_BLGK, mask=allowed_BLL[:, None], implementation=implementation)

    return _on_devices(local, layout, ("batch", "length", None))(q_BLHK, k_BLGK, v_BLGK, allowed_BLL)


def _on_devices(local, layout: Layout, last: tuple[str | None, ...]):
    """`local(q, k, v, x)` of each device's own rows and heads; `last`: logical axes of x. Without a mesh, `local` itself."""
    if layout.mesh is None:
        return local
    specs = (layout.spec(QUERY_AXES), layout.spec(KEY_AXES), layout.spec(KEY_AXES), layout.spec(last))
    return jax.shard_map(local, mesh=layout.mesh, in_specs=specs, out_specs=specs[0], check_vma=False)


def splash(
    q_BLHK: Array, k_BLGK: Array, v_BLGK: Array, mask: Mask, segments_BL: Array, layout: Layout, interpret: bool = False
) -> Float[Array, "B L H K"]:
    """Pallas splash attention; the predicate is evaluated on the host, block by block; segments are passed as SegmentIds.

    Blocks of up to SPLASH_BLOCK positions without an allowed pair are skipped; blocks with all pairs allowed are not masked. Under a mesh
    each device runs the kernel on its own batch rows and heads. Raises InputError if the length is split, or not a multiple of 128
    positions (the lanes of a TPU).
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels

    L = q_BLHK.shape[1]
    if L % SPLASH_LANES:
        raise InputError(f"attention=splash requires a row length divisible by {SPLASH_LANES}, not {L}; change data.length or use dense")
    side = next(side for side in (SPLASH_BLOCK, SPLASH_BLOCK // 2, SPLASH_LANES) if L % side == 0)
    sides = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute", "block_q_dq", "block_kv_dq")
    blocks = kernels.BlockSizes(**dict.fromkeys(sides, side))

    def local(q_BLHK: Array, k_BLGK: Array, v_BLGK: Array, segments_BL: Array) -> Array:
        heads = _splash_mask(mask, L, q_BLHK.shape[2])
        kernel = kernels.make_splash_mha(mask=heads, head_shards=1, q_seq_shards=1, block_sizes=blocks, interpret=interpret)
        q_BHLK = jnp.swapaxes(q_BLHK * q_BLHK.shape[-1] ** -0.5, 1, 2)
        ids = kernels.SegmentIds(q=segments_BL, kv=segments_BL)
        out_BHLK = jax.vmap(kernel)(q_BHLK, jnp.swapaxes(k_BLGK, 1, 2), jnp.swapaxes(v_BLGK, 1, 2), ids)
        return jnp.swapaxes(out_BHLK, 1, 2)

    if not layout.flat:
        raise InputError("attention=splash cannot split the length over the mesh; set mesh.sequence=1")
    return _on_devices(local, layout, ("batch", "length"))(q_BLHK, k_BLGK, v_BLGK, segments_BL)


def _splash_mask(mask: Mask, length: int, heads: int):
    """The description as splash attention's mask, the same for all heads, evaluated one block at a time.

    (Its own NumpyMask holds and hashes the whole table for every head: half a minute for 32 heads of 8192 positions.)
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    class Described(masks.Mask):
        @property
        def shape(self) -> tuple[int, int]:
            return (length, length)

        def __getitem__(self, index) -> np.ndarray:
            q, k = (np.arange(length)[part] for part in index)
            return np.asarray(mask.allowed(q[:, None], k[None, :]))

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Described)

        def __hash__(self) -> int:
            return hash((mask, length))

    return masks.MultiHeadMask([Described()] * heads)
