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
from dlmjax.models.masks import Mask, Prefixed, allowed_in_batch

# Added to a forbidden score. It is finite, so that a row without an allowed key has finite values and the gradient 0, not NaN.
FORBIDDEN = -1e30

# Lanes of a TPU's vector register, and the side of the blocks of scores that a splash kernel computes at a time.
SPLASH_LANES = 128
SPLASH_BLOCK = 512

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
    elif backend == "splash" and fits:
        if isinstance(mask, Prefixed):
            raise InputError("attention=splash conflicts with model.time_input=prefix; set model.time_input=adaln or attention=dense")
        attend = functools.partial(splash, mask=mask, segments_BL=segments_BL, layout=layout)
    else:
        bias_BLL = jnp.where(allowed_in_batch(mask, segments_BL), 0.0, FORBIDDEN).astype(jnp.float32)
        attend = functools.partial(dense_attention, bias_BLL=bias_BLL)

    def constrained(q_BLHK: Array, k_BLGK: Array, v_BLGK: Array) -> Array:
        k_BLGK, v_BLGK = layout.constrain(k_BLGK, KEY_AXES), layout.constrain(v_BLGK, KEY_AXES)
        return layout.constrain(attend(q_BLHK, k_BLGK, v_BLGK), QUERY_AXES)

    return constrained


@jax.custom_vjp
def dense_attention(
    q_BLHK: Float[Array, "B L H K"], k_BLGK: Float[Array, "B L G K"], v_BLGK: Float[Array, "B L G K"], bias_BLL: Float[Array, "B L L"]
) -> Float[Array, "B L H K"]:
    """softmax(q k / sqrt(K) + bias) v with float32 scores and softmax; the query heads of a group share its keys. `bias` is constant.

    Normalised after the second product, on [L, K] instead of [L, L] numbers; the backward pass keeps the unnormalised weights
    (FlashAttention 2205.14135, appendix B.2, without its tiling).
    """
    return _dense_attention_forward(q_BLHK, k_BLGK, v_BLGK, bias_BLL)[0]


def _dense_attention_forward(q_BLHK, k_BLGK, v_BLGK, bias_BLL):
    q_BGQK, k_BGLK, v_BGLK = _grouped(q_BLHK * q_BLHK.shape[-1] ** -0.5, k_BLGK.shape[2]), _heads_first(k_BLGK), _heads_first(v_BLGK)
    scores_BGQL = _add_bias(jnp.einsum("bgqk,bglk->bgql", q_BGQK, k_BGLK, preferred_element_type=jnp.float32), bias_BLL)
    weights_BGQL = jnp.exp(scores_BGQL - jnp.max(scores_BGQL, axis=-1, keepdims=True))
    sums_BGQ1 = jnp.sum(weights_BGQL, axis=-1, keepdims=True)
    weights_BGQL = weights_BGQL.astype(v_BLGK.dtype)
    out_BGQK = jnp.einsum("bgql,bglk->bgqk", weights_BGQL, v_BGLK, preferred_element_type=jnp.float32) / sums_BGQ1
    return _ungrouped(out_BGQK, q_BLHK), (q_BGQK, k_BGLK, v_BGLK, weights_BGQL, sums_BGQ1, out_BGQK)


def _dense_attention_backward(saved, dout_BLHK):
    q_BGQK, k_BGLK, v_BGLK, weights_BGQL, sums_BGQ1, out_BGQK = saved
    dtype, K = v_BGLK.dtype, v_BGLK.shape[-1]
    dout_BGQK = _grouped(dout_BLHK.astype(jnp.float32), k_BGLK.shape[1]) / sums_BGQ1
    delta_BGQ1 = jnp.sum(dout_BGQK * out_BGQK, axis=-1, keepdims=True)
    dout_BGQK = dout_BGQK.astype(dtype)
    dv_BGLK = jnp.einsum("bgql,bgqk->bglk", weights_BGQL, dout_BGQK)
    dweights_BGQL = jnp.einsum("bgqk,bglk->bgql", dout_BGQK, v_BGLK, preferred_element_type=jnp.float32)
    dscores_BGQL = (weights_BGQL * (dweights_BGQL - delta_BGQ1)).astype(dtype)
    dq_BGQK = jnp.einsum("bgql,bglk->bgqk", dscores_BGQL, k_BGLK) * K**-0.5
    dk_BGLK = jnp.einsum("bgql,bgqk->bglk", dscores_BGQL, q_BGQK)
    return _ungrouped(dq_BGQK, dout_BLHK), _heads_first(dk_BGLK), _heads_first(dv_BGLK), None


dense_attention.defvjp(_dense_attention_forward, _dense_attention_backward)


def _add_bias(scores_BGQL: Array, bias_BLL: Array) -> Array:
    B, G, Q, L = scores_BGQL.shape
    if Q == L:
        return scores_BGQL + bias_BLL[:, None]
    return (scores_BGQL.reshape(B, G, Q // L, L, L) + bias_BLL[:, None, None]).reshape(B, G, Q, L)


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
