"""What a network that reads the time makes of it, computed once for each time that a row has and not once for each position.

A row of training has few times: one for its noisy tokens (in block diffusion one for each block), and its lowest, that of text without
noise (tokens that condition the others, and the clean stream). The modulation of a layer has 12 * T * D FLOPs, at T = D half of its other
products, so it is computed for these times, and a position selects its own from them. Who binds the network to rows states how
many neighbouring tokens share a time (`Denoiser.with_tokens_per_time`); without that, each position has its own.

Shapes: B batch, L length, M positions of all streams, G groups of tokens that share a time, N = G + 1 with the lowest time behind them, or
M; T time width, X columns of a projection.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dlmjax.models.layers import dense, time_features
from dlmjax.models.layout import Axes, Layout
from dlmjax.models.spec import ModelSpec
from dlmjax.models.weights import TIME_FEATURES

ROUNDING = 1e-5  # what times of tokens that share one may differ by: a compiler can compute one number in two ways


@dataclasses.dataclass(frozen=True)
class TimeSignal:
    """silu(MLP(features of t)) at the times of each row.

    hidden_BNT: at the times of its groups of `tokens` neighbours, then at its lowest; or at each position.
    low_BM: positions that have the lowest time; None where `hidden_BNT` is by position.
    """

    hidden_BNT: Any
    low_BM: Any
    tokens: int
    layout: Layout

    def project(self, kernel: Float[Array, "T X"], axes: Axes, parts: int = 1) -> list[Array]:
        """hidden @ kernel as each position reads it, in equal parts of its columns: [B*M, X] where the layout is flat, else [B, M, X]."""
        flat, (B, N, T) = self.layout.flat, self.hidden_BNT.shape
        values = dense(self.hidden_BNT.reshape(B * N, T) if flat else self.hidden_BNT, kernel, axes, self.layout)
        if self.low_BM is None:
            return jnp.split(values, parts, axis=-1)
        of_parts = jnp.split(values.reshape(B, N, -1), parts, axis=-1)
        found = [spread(part_BNX, self.low_BM, (N - 1, self.tokens)) for part_BNX in of_parts]
        return [part_BMX.reshape(-1, part_BMX.shape[-1]) if flat else part_BMX for part_BMX in found]


def time_signal(
    t_BM: Float[Array, "B M"], shared: tuple[int, int], weights: dict, spec: ModelSpec, dtype: Any, layout: Layout
) -> TimeSignal:
    """The signal of positions at times `t_BM`.

    shared: (L, tokens): of the first L positions, the first stream, each `tokens` neighbours have one time or the lowest of their row,
      which all further positions have; 1 token = each position has a time of its own. A row whose times are not so becomes NaN.
    """
    (length, tokens), low_BM = shared, None
    # Groups within a length that a mesh splits would move between devices.
    if tokens > 1 and (layout.flat or tokens == length):
        t_BM, low_BM = _distinct(t_BM, length, tokens)
    features = time_features(t_BM, TIME_FEATURES, spec.time_features).astype(dtype)
    hidden = features.reshape(-1, TIME_FEATURES) if layout.flat else features
    for name in ("first", "second"):
        hidden = jax.nn.silu(dense(hidden, weights[name]["kernel"], (None, "time"), layout))
    return TimeSignal(hidden.reshape(*t_BM.shape, -1), low_BM, tokens, layout)


def largest(t: Float[Array, "*X L"]) -> Float[Array, "*X"]:
    """The largest of the last axis. Learned times have gradients: that of `max` compares each number with the maximum, finds none that
    equals it where a compiler computes one in two ways, and divides by 0."""
    at = jnp.argmax(t, axis=-1, keepdims=True)
    return jnp.sum(jnp.where(jnp.arange(t.shape[-1]) == at, t, 0.0), axis=-1)


def _distinct(t_BM: Array, length: int, tokens: int) -> tuple[Float[Array, "B N"], Bool[Array, "B M"]]:
    """(the time of each group, then the lowest of the row; whether a position has the lowest). NaN for a row with other times."""
    t_BG = largest(t_BM[:, :length].reshape(t_BM.shape[0], -1, tokens))
    low_B1 = -largest(-t_BM)[:, None]
    from_group_BM = jnp.abs(t_BM - _of_groups(t_BG[..., None], t_BM.shape[1], tokens)[..., 0])
    from_low_BM = jnp.abs(t_BM - low_B1)
    shared_B1 = jnp.all(jnp.minimum(from_group_BM, from_low_BM) <= ROUNDING, axis=1, keepdims=True)
    return jnp.where(shared_B1, jnp.concatenate([t_BG, low_B1], axis=1), jnp.nan), from_low_BM < from_group_BM


def _of_groups(values_BGX: Array, positions: int, tokens: int) -> Array:
    """For each position the value of its group, [B, M, X]; further streams have the groups of the first."""
    B, G, X = values_BGX.shape
    if G == 1:
        return jnp.broadcast_to(values_BGX, (B, positions, X))
    return jnp.broadcast_to(values_BGX[:, None, :, None], (B, positions // (G * tokens), G, tokens, X)).reshape(B, positions, X)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def spread(values_BNX: Float[Array, "B N X"], low_BM: Bool[Array, "B M"], shared: tuple[int, int]) -> Float[Array, "B M X"]:
    """For each position the value of its group or, where it has the lowest time, the last; shared: (groups, tokens of each).

    The gradient is summed over positions in float32, whatever the type of the values.
    """
    return jnp.where(low_BM[..., None], values_BNX[:, -1:], _of_groups(values_BNX[:, :-1], low_BM.shape[1], shared[1]))


def _spread_forward(values_BNX, low_BM, shared):
    return spread(values_BNX, low_BM, shared), low_BM


def _spread_backward(shared, low_BM, dy_BMX):
    groups, tokens = shared
    (B, _, X), low_BM1, dy32_BMX = dy_BMX.shape, low_BM[..., None], dy_BMX.astype(jnp.float32)
    of_groups_BMX = jnp.where(low_BM1, 0.0, dy32_BMX)
    if groups == 1:
        sums_BGX = jnp.sum(of_groups_BMX, axis=1, keepdims=True)
    else:
        sums_BGX = jnp.sum(of_groups_BMX.reshape(B, -1, groups, tokens, X), axis=(1, 3))
    of_low_B1X = jnp.sum(jnp.where(low_BM1, dy32_BMX, 0.0), axis=1, keepdims=True)
    return jnp.concatenate([sums_BGX, of_low_B1X], axis=1).astype(dy_BMX.dtype), None


spread.defvjp(_spread_forward, _spread_backward)
