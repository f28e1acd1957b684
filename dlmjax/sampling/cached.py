"""Sampling with reused keys and values under full attention: blocks of the whole canvas, of which a call reads a part (`reuse`).

The canvas is that of `Sampler`: the network always attends to the whole row, prompt, suffix and the masks behind the block included. Only
masked positions of the block are filled. `every=1` reads everything at each call, which is the same sampler without a cache.

Randomness is that of `Sampler` on the block, and of the run itself where one block is the whole canvas. A text does not depend on the other
rows of its batch: what a row reads is a function of the row and of the number of calls.

Shapes: B rows, L positions of the canvas, S of the block, W that a call reads, R rows of the network (twice B with guidance).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dlmjax.diffusion.process import exclude
from dlmjax.errors import InputError
from dlmjax.flags import MOST_TOKENS
from dlmjax.models.cache import Cache, bind_positions, empty_cache
from dlmjax.models.masks import as_mask
from dlmjax.parallel.arrays import device_get
from dlmjax.sampling.canvas import Canvas
from dlmjax.sampling.pieces import CanvasState, PieceSampler, piece_seed
from dlmjax.sampling.reuse import Row, index_of, make_reuse
from dlmjax.sampling.rules import LeftToRight, Random, View
from dlmjax.sampling.sampler import Sampler
from dlmjax.sampling.sampler_state import SamplerState
from dlmjax.sampling.settings import SampleSettings

DRIFT_AGES = 64  # ages that a measured sampler tells apart; older entries count as this old


class Buffers(NamedTuple):
    """What a call leaves for the next one.

    age_RL: calls since the keys and values of a position were computed, 0 at the last call.  tokens_RL: the tokens that they are of.
    hidden_RSD: final states of the block by the last call that read each position; None where a call reads all that is masked.
    """

    cache: Cache
    age_RL: Int[Array, "R L"]
    tokens_RL: Int[Array, "R L"]
    drift_A3: Float[Array, "A 3"] | None  # as of `samples.State`
    hidden_RSD: Float[Array, "R S D"] | None = None


class CachedSampler(PieceSampler):
    """Fills a canvas block by block with the policy of `settings.cache`; every rule and method of `Sampler` within a block.

    process: of masks, under full or block-causal attention.  network: a `models.Network` that is not conditioned on t.
    eos_id: token that ends a row; None = rows end with the canvas.
    cached: False reads the whole row at every call without buffers, as the network does elsewhere; tests compare the buffers with it.
    measured: also read the whole row at every call, which is not counted, and sum by age how far the reused keys and values move the output
      (`State.drift_A3`).
    """

    def __init__(
        self, process, network, settings: SampleSettings, *, eos_id: int | None = None, cached: bool = True, measured: bool = False
    ):
        self.reuse = make_reuse(str(settings.cache))
        _require_reuse(process, network, settings)
        if measured and settings.guidance:
            raise InputError("the drift of a cache is measured without guidance; leave guidance at 0")
        self.process, self.network, self.eos_id, self.cached, self.measured = process, network, eos_id, cached, measured
        self.inner = _BlockSteps(self, process, settings)

    # --- the pieces --------------------------------------------------------------------------------------------------------------

    def _check(self, canvas: Canvas) -> None:
        self.inner._check(canvas)
        if (canvas.start_BL % 1).any():
            raise InputError(f"cache {self.settings.cache} fills masked positions and does not edit text; leave cache out")

    @property
    def size(self) -> int:
        """Most tokens of a block."""
        return self.reuse.block or MOST_TOKENS

    @property
    def _steps_each(self) -> int:
        return super()._steps_each if self.reuse.block else self.settings.steps

    def _length(self, canvas: Canvas) -> int:
        return canvas.length

    def _starts(self, canvas_state: CanvasState) -> list[int]:
        starts = range(0, canvas_state.tokens_BL.shape[1], self.size)
        return [start for start in starts if not canvas_state.condition_mask_BL[:, start : start + self.size].all()]

    def _span(self, start: int, length: int) -> tuple[slice, slice]:
        # The last block reaches back over positions that are filled already, so that all blocks have one size.
        size = min(self.size, length)
        stop = min(start + size, length)
        return slice(stop - size, stop), slice(start, stop)

    def _piece_seed(self, seed: int, start: int, inner: Sampler, length: int) -> int:
        return seed if self.size >= length else piece_seed(seed, start)

    def _piece_params(self, params, caches, canvas_state: CanvasState, start: int) -> dict[str, Any]:
        length = canvas_state.tokens_BL.shape[1]
        part, _ = self._span(start, length)
        known_BL = ~canvas_state.masked_BL
        row_BL = np.where(known_BL, canvas_state.tokens_BL, self.inner.mask_id).astype(np.int32)
        streams = [row_BL]
        if self.settings.guidance:
            streams.append(np.where(canvas_state.condition_mask_BL, self.inner.mask_id, row_BL))
        return {
            "params": params,
            "process": params.get("process"),
            "start": np.int32(part.start),
            "tokens": np.concatenate(streams),
            "prompt": np.cumprod(canvas_state.condition_mask_BL, axis=1).sum(axis=1).astype(np.int32),
            "valid": np.concatenate([canvas_state.valid_BL] * len(streams)),
        }


class _BlockSteps(Sampler):
    """The steps of one block; the params are those of `_piece_params`, on the host."""

    keeps_rows = True

    def __init__(self, outer: CachedSampler, process, settings: SampleSettings):
        self._outer = outer
        super().__init__(process, self._bind_block, settings, layout=outer.network.layout)
        if outer.reuse.by_order:
            if not isinstance(self.rule, (Random, LeftToRight)):
                raise InputError(
                    f"cache {settings.cache} requires an order that is known before a call, rule random or left_to_right, not "
                    f"{settings.rule}"
                )
            if settings.stop is not None:
                raise InputError(f"cache {settings.cache} conflicts with stop {settings.stop}, which looks at all masked positions")
        self._next = jax.jit(self._revealed_next)

    def _revealed_next(self, canvas, state: SamplerState, step) -> Bool[Array, "B S"]:
        """The positions that a step reveals under a rule that does not look at the network."""

        def unknown(*_):
            raise AssertionError(f"rule {self.rule.name} looks at the network")

        of_rows = {"masked_BL": state.masked_BL, "start_masked_BL": state.start_masked_BL, "keys_B": self._keys(canvas, step)}
        view = View(**of_rows, step=step, steps=self.settings.steps, scores_of=unknown, log_p=unknown)
        return self.rule.choose(view, state.memory).reveal_BL & state.masked_BL

    def _bind_block(self, args, segments_BS, positions_BS, attention):
        del segments_BS, positions_BS
        return _ReusingDenoiser(self._outer, args, as_mask(attention, args["tokens"].shape[1]), self.mask_id, self._suppressed_ids)

    def _step_params(self, params, canvas, state: SamplerState, step: int):
        """The arguments of step number `step` (1..N): with the positions that it reads."""
        rows, length = params["tokens"].shape
        start, reuse = int(params["start"]), self._outer.reuse
        if reuse.refreshes(step - 1):
            return params | {"index": np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))}
        row = Row(start, start + state.z.shape[1], params["prompt"], length)
        if reuse.by_state:
            z_BS, read_BL = device_get(state.z), device_get(state.buffers.tokens_RL)[: state.z.shape[0]]
            row_BL = params["tokens"][: len(z_BS)].copy()
            row_BL[:, row.start : row.stop] = z_BS
            row = row._replace(masked_BL=row_BL == self.mask_id, changed_BL=row_BL != read_BL)
        if reuse.by_order:
            next_BL = np.zeros_like(row.masked_BL)
            next_BL[:, row.start : row.stop] = device_get(self._next(canvas, state, np.int32(step)))
            row = row._replace(next_BL=next_BL)
        index_BW = index_of(reuse.reads(row))
        return params | {"index": np.concatenate([index_BW] * (rows // len(index_BW)))}

    def _start_state(self, params, canvas) -> SamplerState:
        rows, length = params["tokens"].shape
        drift_A3 = jnp.zeros((DRIFT_AGES, 3), jnp.float32) if self._outer.measured else None
        none_RL = jnp.zeros((rows, length), jnp.int32)
        none_RSD = None
        if self._outer.reuse.by_order:
            none_RSD = jnp.zeros((rows, canvas["tokens_BL"].shape[1], self._outer.network.spec.width), jnp.float32)
        buffers = Buffers(empty_cache(self._outer.network, rows, length), none_RL, none_RL, drift_A3, none_RSD)
        return super()._start_state(params, canvas)._replace(buffers=buffers)

    def _step_denoiser(self, process, params, canvas, state: SamplerState, times=None):
        return super()._step_denoiser(process, params | {"buffers": state.buffers}, canvas, state, times)


@dataclasses.dataclass
class _ReusingDenoiser:
    """The denoiser of a block; `buffers` are those after its last call, `reads_R` the positions of each row that it read."""

    sampler: CachedSampler
    args: Any
    mask: Any
    mask_id: int
    suppressed_ids: tuple[int, ...]

    reads_hidden = False

    def __post_init__(self):
        self.buffers: Buffers = self.args["buffers"]
        self.reads_R: Any = 0

    def hidden(self, z_RS: Int[Array, "R S"], t_RS: Float[Array, "R S"]) -> Float[Array, "R S D"]:
        """Final states of the block."""
        del t_RS
        args, index_RW = self.args, self.args["index"]
        row_RL = jax.lax.dynamic_update_slice_in_dim(args["tokens"], z_RS, args["start"], axis=1)
        length, each_R1 = row_RL.shape[1], jnp.arange(row_RL.shape[0])[:, None]
        read_RW = jnp.take_along_axis(row_RL, jnp.minimum(index_RW, length - 1), axis=1)
        hidden_RWD, cache = self._bound.advance(read_RW, jnp.zeros(read_RW.shape))
        # The number of each position among those that were read; -1 where it was not.
        number_RL = jnp.full(row_RL.shape, -1).at[each_R1, index_RW].set(jnp.arange(index_RW.shape[1]), mode="drop")
        before = self.buffers
        age_RL = jnp.where(number_RL < 0, before.age_RL + 1, 0)
        number_RS = _of_block(number_RL, z_RS, args["start"])
        hidden_RSD = jnp.take_along_axis(hidden_RWD, jnp.maximum(number_RS, 0)[..., None], axis=1)
        if not self.sampler.cached or self.sampler.measured:
            whole_RSD = _of_block(self._whole(row_RL), z_RS, args["start"])
        kept_RSD = before.hidden_RSD
        if kept_RSD is not None:
            hidden_RSD = jnp.where((number_RS >= 0)[..., None], hidden_RSD, kept_RSD.astype(hidden_RSD.dtype))
            kept_RSD = hidden_RSD.astype(kept_RSD.dtype)
        self.reads_R = (number_RL >= 0).sum(axis=1) if self.sampler.cached else length
        drift_A3 = before.drift_A3
        if self.sampler.measured:
            read_RS = (z_RS == self.mask_id) & (number_RS >= 0)
            drift_A3 = drift_A3 + self._drift(hidden_RSD, whole_RSD, read_RS, jnp.max(age_RL))
        self.buffers = Buffers(cache, age_RL, jnp.where(number_RL < 0, before.tokens_RL, row_RL), drift_A3, kept_RSD)
        return hidden_RSD if self.sampler.cached else whole_RSD

    def logits(self, hidden_RSD):
        return self._bound.logits(hidden_RSD)

    @property
    def _bound(self):
        args = self.args
        return bind_positions(self.sampler.network, args["params"], self.buffers.cache, args["index"], self.mask, args["valid"])

    def _whole(self, row_RL) -> Float[Array, "R L D"]:
        """States of all positions, without buffers."""
        positions_RL = jnp.broadcast_to(jnp.arange(row_RL.shape[1]), row_RL.shape)
        segments_RL = self.args["valid"].astype(jnp.int32)
        return self.sampler.network.bind(self.args["params"], segments_RL, positions_RL, self.mask).hidden(row_RL, jnp.zeros(row_RL.shape))

    def _drift(self, reused_BSD, whole_BSD, masked_BS: Bool[Array, "B S"], age: Int[Array, ""]) -> Float[Array, "A 3"]:
        """Sums over the masked positions of the block that were read, at the age of the oldest entry: KL(whole || reused), changes of the
        most likely token, 1."""
        fresh_BSV, reused_BSV = (
            jax.nn.log_softmax(exclude(self.logits(hidden_BSD).astype(jnp.float32), self.suppressed_ids))
            for hidden_BSD in (whole_BSD, reused_BSD)
        )
        p_BSV = jnp.exp(fresh_BSV)
        nats_BS = jnp.sum(jnp.where(p_BSV > 0, p_BSV * (fresh_BSV - reused_BSV), 0.0), axis=-1)
        flips_BS = jnp.argmax(fresh_BSV, axis=-1) != jnp.argmax(reused_BSV, axis=-1)
        sums_3 = jnp.stack([jnp.sum(jnp.where(masked_BS, a, 0.0)) for a in (nats_BS, flips_BS, jnp.ones_like(nats_BS))])
        return jnp.zeros((DRIFT_AGES, 3)).at[jnp.minimum(age, DRIFT_AGES - 1)].set(sums_3)


def _require_reuse(process, network, settings: SampleSettings) -> None:
    """Raises InputError: a process or network whose keys and values cannot be reused."""
    cache = f"cache {settings.cache}"
    if process.attention.sequential:
        raise InputError(f"{cache} requires a process that reads the whole row; process {process.name} keeps what is finished anyway")
    if process.states.dim or process.bound.capabilities.prior_mask_id is None:
        raise InputError(f"{cache} requires masked tokens, but process {process.name} has no mask; leave cache out")
    if not network.caches:
        raise InputError(f"{cache} requires a network of a family; a network of your own keeps no keys and values; leave cache out")
    if process.time_input or network.spec.time_input != "none":
        raise InputError(f"{cache} requires a network that is not conditioned on t: reused keys and values are of another t; leave it out")
    if network.self_condition:
        raise InputError(f"{cache} conflicts with self-conditioning, which changes what is read at every call; leave cache out")
    if settings.sweep is not None:
        raise InputError(f"{cache} fills blocks and conflicts with sweep; leave one of them out")
    if network.spec.shift:
        raise InputError(f"{cache} requires model.family without shift=true; leave cache out")


def _of_block(array_RL, z_RS, start):
    """The part of an array of rows at the positions of the block."""
    return jax.lax.dynamic_slice_in_dim(array_RL, start, z_RS.shape[1], axis=1)
