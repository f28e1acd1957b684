"""A network that reads one piece of a row; keys and values of earlier pieces are cached in buffers of a fixed size.

Under a mask in which no position attends to a later block (`Causal`, `BlockCausal`), the keys and values of a finished block are final
(BD3-LM 2503.09573 section 3.3). So a piece of S tokens at positions start .. start + S is read separately and attends to the buffers; its
own keys and values are kept (`advance`) or dropped (`hidden`). `start` is traced, so one compilation serves every piece. The results are
those of the network on the whole row, up to rounding.

Shapes: N layers, repeated runs included, B rows, S positions of the piece, M of the buffer, H query heads, G key/value
heads, K head_dim, D width.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dlmjax.errors import InputError
from dlmjax.models.attention import FORBIDDEN
from dlmjax.models.denoiser import Denoiser, Network, split_stack, transformer_layer
from dlmjax.models.layers import rotary_tables
from dlmjax.models.masks import within


class Cache(NamedTuple):
    """Keys and values of each run of a layer, in the compute type; entries outside the mask are never read."""

    keys: Float[Array, "N B M G K"]
    values: Float[Array, "N B M G K"]


def empty_cache(network: Network, rows: int, length: int) -> Cache:
    """Buffers for `rows` rows of `length` positions."""
    spec = network.spec
    shape = (spec.effective_depth, rows, length, spec.kv_heads, spec.head_dim)
    return Cache(*(jnp.zeros(shape, network.execution.dtype) for _ in range(2)))


def bind_cached(network: Network, params: dict, cache: Cache, start: Any, size: int, mask: Any) -> CachedDenoiser:
    """The denoiser of the piece of `size` tokens that begins at position `start` (may be traced); one document per row, no padding.

    Raises InputError for networks that cannot be read in pieces.
    """
    if network.spec.time_input == "prefix":
        raise InputError("a network with model.time_input=prefix cannot be read block by block: its first position is not in any block")
    if network.spec.shift:
        raise InputError("model.family with shift=true cannot be read block by block: the state for a block's first token is not in it")
    if network.spec.context and cache.keys.shape[2] > network.spec.context:
        raise InputError(f"rows of {cache.keys.shape[2]} tokens, but this family has learned positions for {network.spec.context}")
    if network.layout.mesh is not None:
        raise InputError("a network placed on a mesh cannot be read block by block; use the same network on one device")
    rows = cache.keys.shape[1]
    positions_BS = jnp.broadcast_to(start + jnp.arange(size), (rows, size))
    if network.spec.peers:
        raise InputError("model.family with peers=True cannot be read block by block: a cell attends to later ones; leave peers out")
    seen = within(mask, network.spec.window)
    return CachedDenoiser(network, params, jnp.ones((rows, size), jnp.int32), positions_BS, seen, cache=cache, start=start)


@dataclasses.dataclass(frozen=True)
class CachedDenoiser(Denoiser):
    """A `Denoiser` of one piece, with the same `hidden`, `logits` and `expect`."""

    cache: Any = None
    start: Any = 0
    _written: list = dataclasses.field(default_factory=list)

    def advance(self, z_BS: Array, t_BS: Array) -> tuple[Float[Array, "B S D"], Cache]:
        """Hidden states, and the buffers that include this piece."""
        hidden_BSD = self.hidden(z_BS, t_BS)
        return hidden_BSD, self._written[-1]

    def _layers(self, x: Array, time: Array | None, rows: Any) -> Array:
        """All layers, scanned; each writes its keys and values into its buffers and attends to them."""
        spec = self.network.spec
        rotary = rotary_tables(rows.positions_BL, spec) if spec.positions == "rotary" else None
        size, length = rows.segments_BL.shape[1], self.cache.keys.shape[2]
        allowed_SM = self.mask.allowed((self.start + jnp.arange(size))[:, None], jnp.arange(length)[None])

        def layer(x: Array, of_layer: tuple[dict, Cache]) -> tuple[Array, Cache]:
            weights, before = of_layer
            written = []

            def attend(q_BSHK: Array, k_BSGK: Array, v_BSGK: Array) -> Array:
                written.append(Cache(*(_write(buffer, new, self.start) for buffer, new in zip(before, (k_BSGK, v_BSGK), strict=True))))
                return attend_to(q_BSHK, *written[-1], allowed_SM)

            x = transformer_layer(self.network, attend, rotary, time, rows.segments_BL.shape, x, weights, None)
            return x, written[-1]

        caches, done = [], 0
        for stacked, (first, end, runs) in zip(split_stack(self.params["layers"], spec.spans), spec.spans, strict=True):
            for _ in range(runs):
                of_run = jax.tree.map(lambda buffer, here=slice(done, done + end - first): buffer[here], self.cache)
                x, written = jax.lax.scan(layer, x, (stacked, of_run))
                caches.append(written)
                done += end - first
        self._written.append(jax.tree.map(lambda *runs: jnp.concatenate(runs), *caches))
        return x


def attend_to(
    q_BSHK: Float[Array, "B S H K"], k_BMGK: Float[Array, "B M G K"], v_BMGK: Float[Array, "B M G K"], allowed_SM: Bool[Array, "S M"]
) -> Float[Array, "B S H K"]:
    """softmax(q k / sqrt(K)) v of a piece against a buffer, float32 scores and softmax; the query heads of a group share its keys."""
    B, S, H, K = q_BSHK.shape
    q_BSGQK = (q_BSHK * K**-0.5).reshape(B, S, k_BMGK.shape[2], -1, K)
    scores_BGQSM = jnp.einsum("bsgqk,bmgk->bgqsm", q_BSGQK, k_BMGK, preferred_element_type=jnp.float32)
    weights_BGQSM = jax.nn.softmax(jnp.where(allowed_SM, scores_BGQSM, FORBIDDEN), axis=-1).astype(v_BMGK.dtype)
    out_BSGQK = jnp.einsum("bgqsm,bmgk->bsgqk", weights_BGQSM, v_BMGK, preferred_element_type=jnp.float32)
    return out_BSGQK.reshape(B, S, H, K).astype(q_BSHK.dtype)


def _write(buffer_BMGK: Array, new_BSGK: Array, start: Any) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(buffer_BMGK, new_BSGK.astype(buffer_BMGK.dtype), start, axis=1)
