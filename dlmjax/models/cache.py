"""A network that reads one piece of a row; keys and values of earlier pieces are cached in buffers of a fixed size.

Under a mask in which no position attends to a later block (`Causal`, `BlockCausal`), the keys and values of a finished block are final
(BD3-LM 2503.09573 section 3.3). So a piece of S tokens at positions start .. start + S is read separately and attends to the buffers; its
own keys and values are kept (`advance`) or dropped (`hidden`). `start` is traced, so one compilation serves every piece. The results are
those of the network on the whole row, up to rounding.

Under any other mask the keys and values of a position change with the tokens that it attends to, so entries of an earlier pass are an
approximation. `bind_positions` reads any positions of each row, which the caller chooses (`sampling.reuse`).

Shapes: N layers, repeated runs included, B rows, S positions of the piece, M of the buffer, H query heads, G key/value
heads, K head_dim, D width.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dlmjax.errors import InputError
from dlmjax.models.attention import FORBIDDEN
from dlmjax.models.denoiser import Denoiser, Network, split_stack, transformer_layer
from dlmjax.models.layers import rotary_tables
from dlmjax.models.masks import within
from dlmjax.models.time_signal import TimeSignal

KEPT_AXES = ("batch", None, "kv_heads", None)  # of the keys or values of one layer


class Cache(NamedTuple):
    """Keys and values of each run of a layer, in the compute type; entries outside the mask are never read."""

    keys: Float[Array, "N B M G K"]
    values: Float[Array, "N B M G K"]


def empty_cache(network: Network, rows: int, length: int) -> Cache:
    """Buffers for `rows` rows of `length` positions."""
    spec = network.spec
    shape = (spec.effective_depth, rows, length, spec.kv_heads, spec.head_dim)
    return Cache(*(network.layout.constrain(jnp.zeros(shape, network.execution.dtype), (None, *KEPT_AXES)) for _ in range(2)))


def bind_cached(network: Network, params: dict, cache: Cache, start: Any, size: int, mask: Any) -> CachedDenoiser:
    """The denoiser of the piece of `size` tokens that begins at position `start` (may be traced); one document per row, no padding.

    Raises InputError for networks that cannot be read in pieces.
    """
    _require_pieces(network, cache.keys.shape[2], "block by block")
    if network.spec.peers:
        raise InputError("model.family with peers=True cannot be read block by block: a cell attends to later ones; leave peers out")
    rows = cache.keys.shape[1]
    positions_BS = jnp.broadcast_to(start + jnp.arange(size), (rows, size))
    seen = within(mask, network.spec.window)
    return CachedDenoiser(network, params, jnp.ones((rows, size), jnp.int32), positions_BS, seen, cache=cache, start=start)


def bind_positions(
    network: Network, params: dict, cache: Cache, index_BS: Int[Array, "B S"], mask: Any, valid_BM: Bool[Array, "B M"]
) -> CachedDenoiser:
    """The denoiser of the positions `index_BS` of each row (may be traced), under any mask; the others are read from the buffers.

    index_BS: what is computed for an index of M or more is not kept.  valid_BM: positions that are not padding.
    Raises InputError for networks that cannot be read in pieces.
    """
    _require_pieces(network, cache.keys.shape[2], "in parts")
    positions_BS = jnp.minimum(index_BS, cache.keys.shape[2] - 1)
    seen = within(mask, network.spec.window, network.spec.peers)
    return CachedDenoiser(network, params, jnp.ones_like(index_BS), positions_BS, seen, cache=cache, start=index_BS, valid_BM=valid_BM)


def _require_pieces(network: Network, length: int, how: str) -> None:
    """Raises InputError: a network whose row of `length` tokens cannot be read `how`."""
    if network.spec.time_input == "prefix":
        raise InputError(f"a network with model.time_input=prefix cannot be read {how}: its first position is not in any block")
    if network.spec.shift:
        raise InputError(f"model.family with shift=true cannot be read {how}: the state for a block's first token is not in it")
    if network.spec.context and length > network.spec.context:
        raise InputError(f"rows of {length} tokens, but this family has learned positions for {network.spec.context}")
    if not network.layout.flat:
        raise InputError(f"a network on a mesh that splits the length of rows cannot be read {how}; use a mesh with sequence=1")


@dataclasses.dataclass(frozen=True)
class CachedDenoiser(Denoiser):
    """A `Denoiser` of one piece, with the same `hidden`, `logits` and `expect`.

    start: the first position of the piece, or the index of each of its positions, [B, S].
    """

    cache: Any = None
    start: Any = 0
    valid_BM: Any = None
    _written: list = dataclasses.field(default_factory=list)

    def advance(self, z_BS: Array, t_BS: Array) -> tuple[Float[Array, "B S D"], Cache]:
        """Hidden states, and the buffers that include this piece."""
        hidden_BSD = self.hidden(z_BS, t_BS)
        return hidden_BSD, self._written[-1]

    def _layers(self, x: Array, time: TimeSignal | None, rows: Any) -> Array:
        """All layers, scanned; each writes its keys and values into its buffers and attends to them."""
        spec = self.network.spec
        rotary = rotary_tables(rows.positions_BL, spec) if spec.positions == "rotary" else None
        size, length = rows.segments_BL.shape[1], self.cache.keys.shape[2]
        if self.valid_BM is None:
            allowed_SM = self.mask.allowed((self.start + jnp.arange(size))[:, None], jnp.arange(length)[None])
        else:
            allowed_SM = self.mask.allowed(self.start[..., None], jnp.arange(length)) & self.valid_BM[:, None]

        def layer(x: Array, of_layer: tuple[dict, Cache]) -> tuple[Array, Cache]:
            weights, before = of_layer
            written = []

            def attend(q_BSHK: Array, k_BSGK: Array, v_BSGK: Array) -> Array:
                kept = (_write(buffer, new, self.start) for buffer, new in zip(before, (k_BSGK, v_BSGK), strict=True))
                written.append(Cache(*(self.network.layout.constrain(buffer, KEPT_AXES) for buffer in kept)))
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
    q_BSHK: Float[Array, "B S H K"], k_BMGK: Float[Array, "B M G K"], v_BMGK: Float[Array, "B M G K"], allowed_SM: Bool[Array, "*rows S M"]
) -> Float[Array, "B S H K"]:
    """softmax(q k / sqrt(K)) v of a piece against a buffer, float32 scores and softmax; the query heads of a group share its keys.

    allowed_SM: for all rows, or of each row.
    """
    B, S, H, K = q_BSHK.shape
    allowed_SM = allowed_SM if allowed_SM.ndim == 2 else allowed_SM[:, None, None]
    q_BSGQK = (q_BSHK * K**-0.5).reshape(B, S, k_BMGK.shape[2], -1, K)
    scores_BGQSM = jnp.einsum("bsgqk,bmgk->bgqsm", q_BSGQK, k_BMGK, preferred_element_type=jnp.float32)
    weights_BGQSM = jax.nn.softmax(jnp.where(allowed_SM, scores_BGQSM, FORBIDDEN), axis=-1).astype(v_BMGK.dtype)
    out_BSGQK = jnp.einsum("bgqsm,bmgk->bsgqk", weights_BGQSM, v_BMGK, preferred_element_type=jnp.float32)
    return out_BSGQK.reshape(B, S, H, K).astype(q_BSHK.dtype)


def _write(buffer_BMGK: Array, new_BSGK: Array, start: Any) -> Array:
    if jnp.ndim(start):
        return buffer_BMGK.at[jnp.arange(buffer_BMGK.shape[0])[:, None], start].set(new_BSGK.astype(buffer_BMGK.dtype), mode="drop")
    return jax.lax.dynamic_update_slice_in_dim(buffer_BMGK, new_BSGK.astype(buffer_BMGK.dtype), start, axis=1)
