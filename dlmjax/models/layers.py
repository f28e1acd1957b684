"""Components of a layer as functions of arrays: dense, RMSNorm and LayerNorm, rotary positions, sinusoidal time, dropout.

Shapes: `...` any leading dimensions, [B, L] or one flattened [B*L] (two-dimensional activations are 25-30 % faster on CPU).
Reductions are float32 whatever the compute type.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dlmjax.models.layout import Axes, Layout, sum_to_shard
from dlmjax.models.spec import ModelSpec


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def dense(x: Float[Array, "*rows I"], kernel: Float[Array, "I O"], axes: Axes, layout: Layout) -> Float[Array, "*rows O"]:
    """x @ kernel in x's type; `kernel` is the stored float32 weight with logical `axes`.

    The backward pass is written out for two reasons: the weight's gradient is summed over rows, and over devices, in float32 even when
    the activations are bfloat16; and it saves only the stored shard of the weight, which is gathered again when needed.
    """
    return _dense_forward(x, kernel, axes, layout)[0]


def _dense_forward(x, kernel, axes, layout):
    # The product is computed here, outside any nested function, so that a remat policy that saves matmuls applies to it.
    return jnp.dot(x, layout.gather(kernel.astype(x.dtype), axes)), (x, kernel)


def _dense_backward(axes, layout, saved, dy):
    x, kernel = saved
    dx = jax.lax.dot_general(dy, layout.gather(kernel.astype(x.dtype), axes), (((dy.ndim - 1,), (1,)), ((), ())))
    return dx, layout.constrain(over_rows(x, dy), axes)


def over_rows(x: Float[Array, "*rows I"], y: Float[Array, "*rows O"]) -> Float[Array, "I O"]:
    """sum over rows of the outer product of x and y, float32: the gradient of a weight."""
    rows = tuple(range(x.ndim - 1))

    def plain(x: Array, y: Array) -> Array:
        return jax.lax.dot_general(x, y, ((rows, rows), ((), ())), preferred_element_type=jnp.float32)

    def transposed(x: Array, y: Array) -> Array:
        # XLA's fast CPU matmul does not read a transposed operand; a transposed copy behind a barrier is up to 1.9x faster.
        return jnp.dot(jax.lax.optimization_barrier(x.T), y, preferred_element_type=jnp.float32)

    if x.ndim != 2:
        return plain(x, y)
    return jax.lax.platform_dependent(x, y, cpu=transposed, default=plain)


dense.defvjp(_dense_forward, _dense_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def embed(table: Float[Array, "V D"], tokens_BL: Int[Array, "B L"], axes: Axes, layout: Layout, dtype: str) -> Float[Array, "B L D"]:
    """Rows of the stored float32 table in `dtype`. Gradients are summed in float32: a frequent symbol receives thousands of them."""
    rows_BLD = layout.gather(table.astype(dtype), axes).at[tokens_BL].get(mode="clip")
    return layout.constrain(rows_BLD, ("batch", "length", None))


def _embed_forward(table, tokens_BL, axes, layout, dtype):
    return embed(table, tokens_BL, axes, layout, dtype), (tokens_BL, table.shape)


def _embed_backward(axes, layout, dtype, saved, dx_BLD):
    tokens_BL, shape = saved

    def local(tokens_BL: Array, dx_BLD: Array) -> Array:
        return jnp.zeros(shape, jnp.float32).at[tokens_BL].add(dx_BLD.astype(jnp.float32))

    if layout.mesh is None:
        return local(tokens_BL, dx_BLD), None
    # Written as a shard_map: XLA would otherwise move the activations to the devices of the table's columns. Each device sums its rows.
    rows = ("batch", "head_length")
    run = jax.shard_map(
        lambda tokens_BL, dx_BLD: sum_to_shard(local(tokens_BL, dx_BLD), axes, layout),
        mesh=layout.mesh,
        in_specs=(layout.spec(rows), layout.spec((*rows, None))),
        out_specs=layout.spec(axes),
        check_vma=False,
    )
    return run(tokens_BL, dx_BLD), None


embed.defvjp(_embed_forward, _embed_backward)


def rms_norm(x: Float[Array, "*rows D"], scale: Float[Array, " D"], eps: float) -> Float[Array, "*rows D"]:
    """x / RMS(x) * scale (Zhang & Sennrich 1910.07467), reduced in float32, returned in x's type."""
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return (x32 * inverse * scale).astype(x.dtype)


def normalise(x: Float[Array, "*rows D"], weights: dict, spec: ModelSpec) -> Float[Array, "*rows D"]:
    """The norm of the network's family: RMSNorm, or LayerNorm, (x - mean) / deviation * scale + bias (Ba et al. 1607.06450)."""
    if spec.norm == "rms":
        return rms_norm(x, weights["scale"], spec.norm_eps)
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + spec.norm_eps)
    return (centred * inverse * weights["scale"] + weights["bias"]).astype(x.dtype)


def linear(x: Float[Array, "*rows I"], weights: dict, axes: Axes, layout: Layout) -> Float[Array, "*rows O"]:
    """`dense` plus the bias, if there is one. It is added, and its gradient summed, in float32."""
    y = dense(x, weights["kernel"], axes, layout)
    return (y.astype(jnp.float32) + weights["bias"]).astype(y.dtype) if "bias" in weights else y


def rotary_tables(positions_BL: Int[Array, "B L"], spec: ModelSpec) -> tuple[Float[Array, "B L C"], Float[Array, "B L C"]]:
    """cos and sin of position * frequency, C = head_dim / 2, float32.

    `linear` scaling divides positions by the factor (position interpolation 2306.15595); `ntk` multiplies the base by factor^(d/(d-2)),
    which leaves the fastest channel alone and stretches the slowest by the factor; `llama3` and `yarn` divide by the factor the frequencies
    that rotate less than `rope_slow` times in `rope_original` positions, leave those that rotate more than `rope_fast` times, and
    interpolate linearly between them, in the number of rotations (Llama 3 2407.21783, as released) or in the index of the channel (YaRN
    2309.00071, as released; its cos and sin are multiplied by `rope_attention`).
    """
    half = spec.head_dim // 2
    base, stretch = spec.rope_base, 1.0
    if spec.rope_scaling_type == "ntk":
        base *= spec.rope_scaling ** (spec.head_dim / max(spec.head_dim - 2, 1))
    elif spec.rope_scaling_type == "linear":
        stretch = spec.rope_scaling
    frequency_C = base ** (-jnp.arange(half, dtype=jnp.float32) / half) / stretch
    if spec.rope_scaling_type == "llama3":
        cycles_C = spec.rope_original * frequency_C / (2 * jnp.pi)
        unscaled_C = jnp.clip((cycles_C - spec.rope_slow) / (spec.rope_fast - spec.rope_slow), 0.0, 1.0)
        frequency_C = frequency_C * (unscaled_C + (1.0 - unscaled_C) / spec.rope_scaling)
    elif spec.rope_scaling_type == "yarn":
        low, high = _yarn_borders(spec)
        unscaled_C = 1.0 - jnp.clip((jnp.arange(half, dtype=jnp.float32) - low) / (high - low), 0.0, 1.0)
        frequency_C = frequency_C * (unscaled_C + (1.0 - unscaled_C) / spec.rope_scaling)
    angle_BLC = positions_BL.astype(jnp.float32)[:, :, None] * frequency_C
    # A loop of two steps, which no compiler fuses into its users: XLA on CPU would take the sines again for each head of each layer.
    cos_BLC, sin_BLC = jax.lax.map(lambda sine: jnp.where(sine, jnp.sin(angle_BLC), jnp.cos(angle_BLC)), jnp.array([False, True]))
    if spec.rope_scaling_type == "yarn" and spec.rope_attention != 1.0:
        return cos_BLC * spec.rope_attention, sin_BLC * spec.rope_attention
    return cos_BLC, sin_BLC


def _yarn_borders(spec: ModelSpec) -> tuple[float, float]:
    """Indices of the channels that rotate `rope_fast` and `rope_slow` times in the original context, limited as in YaRN's code."""

    def channel(cycles: float) -> float:
        return spec.head_dim * math.log(spec.rope_original / (cycles * 2 * math.pi)) / (2 * math.log(spec.rope_base))

    low, high = channel(spec.rope_fast), channel(spec.rope_slow)
    if spec.rope_truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(float(low), 0.0), min(float(high), spec.head_dim - 1.0)
    return low, high if high != low else high + 0.001


def rotate(x_BLHK: Float[Array, "B L H K"], cos_BLC: Float[Array, "B L C"], sin_BLC: Float[Array, "B L C"]) -> Float[Array, "B L H K"]:
    """Half rotation: channel c of the first half rotates with channel c of the second half (the layout of Llama and Qwen weights)."""
    first, second = jnp.split(x_BLHK.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos_BLC[:, :, None, :], sin_BLC[:, :, None, :]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BLHK.dtype)


def time_features(t_BL: Float[Array, "B L"], size: int, kind: str = "sinusoidal") -> Float[Array, "B L S"]:
    """Sinusoids of t, float32: "sinusoidal" has 1000 t with periods from 2 pi to 20,000 pi (DDPM 2006.11239), "fourier" 2 pi f t with
    frequencies f from a normal distribution of deviation 16, drawn once for all networks (Song et al. 2011.13456, section C.2)."""
    if kind == "fourier":
        frequency = 2 * jnp.pi * 16.0 * jax.random.normal(jax.random.key(0), (size // 2,), jnp.float32)
        angle = t_BL.astype(jnp.float32)[:, :, None] * frequency
    else:
        frequency = 10_000.0 ** (-jnp.arange(size // 2, dtype=jnp.float32) / (size // 2))
        angle = 1000.0 * t_BL.astype(jnp.float32)[:, :, None] * frequency
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def dropout(x: Float[Array, "*rows D"], keys_B: Key[Array, " B"], rate: float) -> Float[Array, "*rows D"]:
    """Zeroes entries with probability `rate`, one key per batch row, so that the draw does not depend on microbatches or mesh."""
    shape = (x.size // (keys_B.shape[0] * x.shape[-1]), x.shape[-1])
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, shape))(keys_B).reshape(x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))
