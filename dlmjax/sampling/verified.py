"""Text of an autoregressive network that another network drafts: one call of the verifier checks several tokens.

SpecDiff (2408.05636) lets a masked network draft. Here the noise of a token is a function of (seed, row, position), so that the sampler of
the verifier is a function of the network's outputs, and drafts may share its noise:

    draft      d_1, d_2, ..., d_D at the next D positions, by one call of the drafter (`drafters`), or several
    verify     one call of the verifier reads the last known token and d_1, ..., d_{D-1}: its distribution of each of the D tokens
    write      a token of each by the verdict (`verdicts`), as long as the token before it was the draft

A written token has read only written tokens, since the verifier is causal. Under the verdict `replay` it is the token that `BlockSampler`
draws there, by the same noise: the text is the same, bit for bit, at any temperature, where the network's output does not depend on the
number of positions that a call reads. Matrix products of other shapes round differently, so a network's text may change where two tokens
are equally good to rounding (docs/sampling.md has the rate). Each call writes at least one token of each row: there are never more calls
of the verifier than tokens. Each row has its own position.

Keys and values are those of the verifier's calls. What a wrong draft has left is written over by the next call before it is read.

Shapes: B rows, L positions of the canvas, D drafts, V vocabulary.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from dlmjax.diffusion.process import bind_process, draw_tokens, exclude, split_rows
from dlmjax.errors import InputError
from dlmjax.models.cache import Cache, bind_positions, empty_cache
from dlmjax.models.masks import Causal
from dlmjax.parallel.arrays import device_get
from dlmjax.progress import Progress
from dlmjax.sampling.canvas import Canvas
from dlmjax.sampling.drafters import Drafter, Text, written
from dlmjax.sampling.drafts import make_draft
from dlmjax.sampling.ends import held_back
from dlmjax.sampling.pieces import PieceSampler, piece_seed
from dlmjax.sampling.reveal import probability_of
from dlmjax.sampling.samples import Counts, Samples, State
from dlmjax.sampling.settings import SampleSettings
from dlmjax.sampling.step_denoiser import PrecomputedDenoiser, StepDenoiser
from dlmjax.sampling.verdicts import make_verdict
from dlmjax.sampling.warp import warp
from dlmjax.seeds import check_seed

_PROPOSAL = 4  # purpose of the noise of drafts that do not share that of the token


class VerifiedState(NamedTuple):
    """The state between two calls of the verifier. known_B: number of known tokens of each row, from the left; L where it is finished.

    verifier_calls_B, accepted_B: calls of the verifier and accepted drafts of each row until it was finished.
    cache: the verifier's keys and values, None where it reads the whole row.
    """

    tokens_BL: Int[Array, "B L"]
    known_B: Int[Array, "B"]
    confidence_BL: Float[Array, "B L"]
    fixed_BL: Int[Array, "B L"]
    verifier_calls_B: Int[Array, "B"]
    accepted_B: Int[Array, "B"]
    cache: Cache | None


class VerifiedSampler(PieceSampler):
    """Samples an autoregressive process with the drafts of `settings.draft`.

    plain: the `BlockSampler` of the autoregressive process and its network, without drafts.  drafter: see `drafters`.
    """

    size = 1

    def __init__(self, plain, settings: SampleSettings, drafter: Drafter):
        self.draft, self.drafter = make_draft(str(settings.draft)), drafter
        self.verdict = make_verdict(self.draft.accept)
        self.process, self.network, self.eos_id, self.cached = plain.process, plain.network, plain.eos_id, plain.cached
        if self.cached and self.network.spec.peers:
            raise InputError("model.family with peers=True cannot be read token by token: a cell attends to later ones; leave draft out")
        self.inner, self._settings = plain.inner, dataclasses.replace(plain.settings, draft=settings.draft)
        self._first, self._call = jax.jit(self._first_cache), jax.jit(self._one_call)

    @property
    def settings(self) -> SampleSettings:
        """Settings of the sampler without drafts, with the drafts."""
        return self._settings

    # --- the run ------------------------------------------------------------------------------------------------------------

    def finish(self, last: State, canvas: Canvas, seed: int) -> Samples:
        """The samples of a run whose last state is `last`."""
        samples = super().finish(last, canvas, seed)
        return dataclasses.replace(samples, accepted_B=last.accepted_B, drafter_calls_B=last.drafter_calls_B)

    def _run(self, params, canvas: Canvas, seed: int, progress: bool, watched: bool) -> Iterator[State]:
        self._check(canvas)
        check_seed(seed, "seed")
        masked_BL = ~canvas.condition_mask_BL
        total, first = int(masked_BL.sum(axis=1).max()), int(self.cached and canvas.condition_mask_BL.any() and masked_BL.any())
        seeds_L = np.asarray([piece_seed(seed, i) for i in range(canvas.length)], np.uint32)
        weights = {"verifier": params, "drafter": self.drafter.params}
        state = self._start(params, canvas)
        yield self._host_state(state, canvas, 0, total, first)
        step, known_B = 0, canvas.condition_mask_BL.sum(axis=1)
        with Progress(max(total, 1), "writing", " tokens", show=None if progress else False) as bar:
            while (known_B < canvas.length).any():
                step += 1
                state = self._call(weights, seeds_L, canvas.number_BL, state, np.int32(step))
                known_B = device_get(state.known_B)
                bar.reach(total - int((canvas.length - known_B).max()))
                if watched:
                    yield self._host_state(state, canvas, step, total, first)
        if not watched:
            yield self._host_state(state, canvas, step, total, first)

    def _start(self, params, canvas: Canvas) -> VerifiedState:
        """The state before the first call; a prompt is read in one call."""
        condition_BL, rows = canvas.condition_mask_BL, canvas.batch
        tokens_BL = jnp.asarray(np.where(condition_BL, canvas.tokens_BL, 0), jnp.int32)
        cache = None
        if self.cached:
            cache = empty_cache(self.network, rows, canvas.length)
            if condition_BL.any() and not condition_BL.all():
                cache = self._first(params, cache, tokens_BL)
        none_B = jnp.zeros(rows, jnp.int32)
        return VerifiedState(
            tokens_BL=tokens_BL,
            known_B=jnp.asarray(condition_BL.sum(axis=1), jnp.int32),
            confidence_BL=jnp.asarray(condition_BL, jnp.float32),
            fixed_BL=-jnp.asarray(~condition_BL, jnp.int32),
            verifier_calls_B=none_B,
            accepted_B=none_B,
            cache=cache,
        )

    def _host_state(self, state: VerifiedState, canvas: Canvas, step: int, total: int, first: int) -> State:
        """The state on the host; first: calls that read the prompt."""
        known_B, verifier_calls_B, accepted_B = (device_get(a_B) for a_B in (state.known_B, state.verifier_calls_B, state.accepted_B))
        masked_BL = np.arange(canvas.length) >= known_B[:, None]
        arrays = (device_get(a_BL).copy() for a_BL in (state.confidence_BL, state.fixed_BL))
        each = Counts.of_call(self.draft.depth if self.cached else canvas.length)
        each = each.plus(Counts(self.drafter.calls, self.drafter.calls, self.drafter.reads(canvas.length)))
        counts = Counts().plus(Counts.of_call(canvas.length), first).for_rows(canvas.batch).plus(each, verifier_calls_B)
        return State(
            step,
            max(step, total),
            float(masked_BL.sum(axis=1).max() / max(total, 1)),
            device_get(state.tokens_BL).copy(),
            masked_BL,
            *arrays,
            calls=first + step * each.calls_B,
            counts=counts,
            exit_nats_B=np.zeros(canvas.batch),
            accepted_B=accepted_B,
            drafter_calls_B=verifier_calls_B * self.drafter.calls,
        )

    # --- on the device ------------------------------------------------------------------------------------------------------

    def _first_cache(self, params, cache: Cache, tokens_BL: Int[Array, "B L"]) -> Cache:
        """The buffers after one call that reads all rows; entries behind the prompt are overwritten before use."""
        index_BL = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1]), tokens_BL.shape)
        return self._hidden(params, cache, self._read(tokens_BL), index_BL)[1]

    def _read(self, tokens_BL: Int[Array, "B L"]) -> Int[Array, "B L"]:
        """What the verifier reads: the row after a beginning of text."""
        return jnp.pad(tokens_BL[:, :-1], ((0, 0), (1, 0)), constant_values=self.process.bos_id)

    def _hidden(self, params, cache: Cache | None, read_BL, index_BD) -> tuple[Float[Array, "B D W"], Cache | None]:
        """States of the verifier at these positions, and its buffers after them."""
        length = read_BL.shape[1]
        at_BD = jnp.minimum(index_BD, length - 1)
        if cache is None:
            positions_BL = jnp.broadcast_to(jnp.arange(length), read_BL.shape)
            denoiser = self.network.bind(params, jnp.ones_like(read_BL), positions_BL, attention=Causal())
            hidden_BLW = denoiser.hidden(read_BL, jnp.zeros(read_BL.shape))
            return jnp.take_along_axis(hidden_BLW, at_BD[..., None], axis=1), None
        piece = bind_positions(self.network, params, cache, index_BD, Causal(), jnp.ones(read_BL.shape, bool))
        return piece.advance(jnp.take_along_axis(read_BL, at_BD, axis=1), jnp.zeros(index_BD.shape))

    def _keys(self, seeds_L, index_BD: Int[Array, "B D"]) -> Key[Array, "B*D"]:
        """The keys of `BlockSampler` for these positions: of the only step of the token's own piece."""
        rows, depth = index_BD.shape
        seeds_N = seeds_L[jnp.minimum(index_BD, len(seeds_L) - 1)].reshape(-1)
        keys_N = jax.vmap(jax.random.fold_in)(jax.vmap(jax.random.key)(seeds_N), jnp.repeat(jnp.arange(rows), depth))
        return jax.vmap(jax.random.fold_in, (0, None))(keys_N, 1)

    def _one_call(self, weights, seeds_L, number_BL, state: VerifiedState, step) -> VerifiedState:
        """Drafts, reads them with the verifier, and writes what the verdict gives."""
        length, depth = state.tokens_BL.shape[1], self.draft.depth
        index_BD = state.known_B[:, None] + jnp.arange(depth)
        number_BD = jnp.take_along_axis(number_BL, jnp.minimum(index_BD, length - 1), axis=1)
        keys_N = self._keys(seeds_L, index_BD)
        token_keys_N = split_rows(keys_N)[0]
        draft_keys_N = token_keys_N if self.verdict.shares_noise else jax.vmap(jax.random.fold_in, (0, None))(keys_N, _PROPOSAL)

        def drawn(of_N, logits_BDV):
            return draw_tokens(of_N, logits_BDV.reshape(-1, 1, logits_BDV.shape[-1])).reshape(logits_BDV.shape[:2])

        def draw(logits_BDV):
            return drawn(draft_keys_N, self._warp(self._held(logits_BDV, number_BD)))

        params, of_drafter = weights["verifier"], weights["drafter"]
        text = Text(state.tokens_BL, state.known_B, index_BD, state.cache)
        draft_BD, guess_BDV = self.drafter.propose(params if of_drafter is None else of_drafter, text, draw)
        guess_BDV = self._held(guess_BDV, number_BD)
        logits_BDV, cache = self._verify(params, state, index_BD, draft_BD, number_BD)
        token_BD = drawn(token_keys_N, self.verdict.logits(logits_BDV, guess_BDV, draft_BD, self._warp))
        return self._write(state._replace(cache=cache), step, draft_BD, token_BD, probability_of(jax.nn.log_softmax(logits_BDV), token_BD))

    def _warp(self, logits_BDV):
        return warp(logits_BDV, self.settings.temperature, self.settings.top_p)

    def _held(self, logits_BDV, number_BD):
        """The logits with the end of document held back."""
        hold_back = self.inner.hold_back
        if hold_back is None:
            return logits_BDV
        return held_back(logits_BDV, self.settings.end_ids, hold_back.factor(number_BD, jnp.zeros(number_BD.shape)))

    def _verify(self, params, state: VerifiedState, index_BD, draft_BD, number_BD) -> tuple[Float[Array, "B D V"], Cache | None]:
        """The verifier's logits of each draft's position, before temperature and nucleus, given the drafts before it; its buffers."""
        process = bind_process(self.inner.process, params)
        read_BL = self._read(written(state.tokens_BL, index_BD, draft_BD))
        hidden_BDW, cache = self._hidden(params, state.cache, read_BL, index_BD)
        ones_BD = jnp.ones_like(index_BD)
        head = self.network.bind(params, ones_BD, jnp.zeros_like(index_BD), attention=Causal())
        suppressed = self.inner._suppressed_ids
        denoise = StepDenoiser(process, PrecomputedDenoiser(head, hidden_BDW), self.settings, suppressed)
        if self.inner.hold_back is not None:
            denoise.end_factor_BL = self.inner.hold_back.factor(number_BD, jnp.zeros(number_BD.shape))
        read_BD, t_BD = jnp.take_along_axis(read_BL, jnp.minimum(index_BD, read_BL.shape[1] - 1), axis=1), jnp.zeros(index_BD.shape)
        denoise(read_BD, t_BD)
        return exclude(process.output.log_posterior(denoise.first_BLV, read_BD, t_BD), suppressed), cache

    def _write(self, state: VerifiedState, step, draft_BD, token_BD, confidence_BD) -> VerifiedState:
        """The state with the tokens up to the first that is not its draft, or the end of document."""
        length, depth = state.tokens_BL.shape[1], token_BD.shape[1]
        right_BD = token_BD == draft_BD
        ends_BD = jnp.zeros(token_BD.shape, bool) if self.eos_id is None else token_BD == self.eos_id
        goes_on_BD = jnp.cumprod(right_BD & ~ends_BD, axis=1)
        open_B = state.known_B < length
        count_B = jnp.where(open_B, jnp.minimum(1 + goes_on_BD[:, : depth - 1].sum(axis=1), length - state.known_B), 0)
        known_B = state.known_B + count_B
        offset_BL = jnp.arange(length) - state.known_B[:, None]
        at_BL = jnp.clip(offset_BL, 0, depth - 1)
        new_BL = (offset_BL >= 0) & (offset_BL < count_B[:, None])
        tokens_BL, confidence_BL = (
            jnp.where(new_BL, jnp.take_along_axis(a_BD, at_BL, axis=1), a_BL)
            for a_BD, a_BL in ((token_BD, state.tokens_BL), (confidence_BD, state.confidence_BL))
        )
        if self.eos_id is not None:
            ended_B = jnp.any(ends_BD & (jnp.arange(depth) < count_B[:, None]), axis=1)
            rest_BL = ended_B[:, None] & (jnp.arange(length) >= known_B[:, None])
            tokens_BL, confidence_BL = jnp.where(rest_BL, self.eos_id, tokens_BL), jnp.where(rest_BL, 1.0, confidence_BL)
            known_B, new_BL = jnp.where(ended_B, length, known_B), new_BL | rest_BL
        return state._replace(
            tokens_BL=tokens_BL.astype(jnp.int32),
            known_B=known_B.astype(jnp.int32),
            confidence_BL=confidence_BL.astype(jnp.float32),
            fixed_BL=jnp.where(new_BL, step, state.fixed_BL).astype(jnp.int32),
            verifier_calls_B=state.verifier_calls_B + open_B.astype(jnp.int32),
            accepted_B=(state.accepted_B + jnp.maximum(count_B - 1, 0)).astype(jnp.int32),
        )
