"""Text piece by piece, from left to right, until a document ends or the canvas is full.

    BlockSampler    block diffusion (BD3-LM 2503.09573 section 3.3): each block is denoised given the finished ones, whose keys and values
                    are kept in buffers of a fixed size (`models.cache`), so that a step costs a block and not a row; blocks of one token
                    are autoregression. For networks under a block-causal or causal mask.
    StrideSampler   semi-autoregression (MDLM 2406.07524 section 3.4): a window that slides by a stride; what stays in it is the prompt of
                    what comes in. For networks that see all of the window, to any length.

Guidance of blocks extrapolates from the text that begins where the prompt ends: the network reads it as a document of its own, as in
training on packed documents, from buffers of its own in which no position sees the prompt.

Inside a piece every order and method of `Sampler` serves. Both have the face of a `Sampler`: `sample`, `states`, `finish`.

Shapes: B rows, L positions of the canvas, S of a piece.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dlmjax.errors import InputError
from dlmjax.models.cache import Cache, bind_cached, empty_cache
from dlmjax.models.masks import BlockCausal
from dlmjax.progress import Progress
from dlmjax.sampling.canvas import Canvas
from dlmjax.sampling.sampler import Sampler
from dlmjax.sampling.samples import Samples, State, unigram_entropy
from dlmjax.sampling.settings import SampleSettings
from dlmjax.seeds import check_seed


class _CanvasState:
    """The canvas as it fills, on the host."""

    def __init__(self, canvas: Canvas, length: int, eos_id: int | None):
        pad = ((0, 0), (0, length - canvas.length))
        self.tokens_BL = np.pad(canvas.tokens_BL, pad)
        self.frozen_BL = np.pad(canvas.frozen_BL, pad)
        self.masked_BL = ~self.frozen_BL
        self.confidence_BL = self.frozen_BL.astype(np.float32)
        self.fixed_BL = -self.masked_BL.astype(np.int32)
        self.ended_B, self._eos_id = np.zeros(canvas.batch, bool), eos_id

    def piece(self, part: slice, fresh: slice) -> Canvas:
        """The canvas of one piece: what is made already is given; a row that has ended has nothing to make."""
        masked_BL = np.zeros_like(self.frozen_BL)
        masked_BL[:, fresh] = ~self.frozen_BL[:, fresh] & ~self.ended_B[:, None]
        masked_BS = masked_BL[:, part]
        return Canvas(self.tokens_BL[:, part].astype(np.int32), ~masked_BS, masked_BS.astype(np.float32))

    def put(self, state: State, part: slice, canvas: Canvas, steps: int) -> None:
        """Shows a state of a piece that `steps` steps went before."""
        made_BS = ~canvas.frozen_BL
        fixed_BS = np.where(state.fixed_BL > 0, state.fixed_BL + steps, state.fixed_BL)
        for mine_BL, theirs_BS in (
            (self.tokens_BL, state.tokens_BL),
            (self.masked_BL, state.masked_BL),
            (self.confidence_BL, state.confidence_BL),
            (self.fixed_BL, fixed_BS),
        ):
            mine_BL[:, part] = np.where(made_BS, theirs_BS, mine_BL[:, part])

    def end(self, made_BL: np.ndarray, step: int) -> None:
        """Rows in which an end of document has been made are that to their end."""
        if self._eos_id is None:
            return
        after_BL = np.cumsum(made_BL & (self.tokens_BL == self._eos_id), axis=1) > 0
        self.ended_B |= after_BL.any(axis=1)
        rest_BL = after_BL & ~self.frozen_BL
        new_BL = rest_BL & (self.masked_BL | (self.tokens_BL != self._eos_id))
        self.tokens_BL[rest_BL] = self._eos_id
        self.masked_BL[rest_BL] = False
        self.confidence_BL[new_BL], self.fixed_BL[new_BL] = 1.0, step

    def counted_BL(self, length: int) -> np.ndarray:
        """Made tokens up to a row's end of document."""
        if self._eos_id is None:
            return ~self.frozen_BL[:, :length]
        ends_BL = ~self.frozen_BL & (self.tokens_BL == self._eos_id)
        return (~self.frozen_BL & (np.cumsum(ends_BL, axis=1) - ends_BL == 0))[:, :length]


class _SemiAutoregressive:
    """What both samplers share: the walk over the pieces of a canvas. `inner` samples one piece; `size` is how many tokens it adds."""

    inner: Sampler
    size: int
    eos_id: int | None

    @property
    def name(self) -> str:
        """Of the process."""
        return self.process.name

    @property
    def settings(self) -> SampleSettings:
        """As they were applied."""
        return self.inner.settings

    @property
    def _reveals(self) -> int:
        """Steps of a piece of holes in a reveal order, at most."""
        return self.size if self.settings.threshold is not None else min(self.settings.steps, self.size)

    @property
    def _steps_each(self) -> int:
        """Steps of a piece, as far as they are known before."""
        if self.inner.causal:
            return 1
        return self.settings.steps if self.settings.order == "ancestral" else self._reveals

    def sample(self, params, canvas: Canvas, *, seed: int = 0, progress: bool = False) -> Samples:
        """Makes all pieces and returns the finished rows.  Raises InputError when the canvas does not suit the process."""
        *_, last = self._run(params, canvas, seed, progress, watched=False)
        return self.finish(last, canvas, seed)

    def states(self, params, canvas: Canvas, *, seed: int = 0) -> Iterator[State]:
        """Yields the whole canvas before the first step and after each one."""
        return self._run(params, canvas, seed, progress=False, watched=True)

    def finish(self, last: State, canvas: Canvas, seed: int) -> Samples:
        """The samples of a run whose last state is `last`; its entropy counts made tokens up to the end of the document."""
        canvas_state = _CanvasState(canvas, canvas.length, self.eos_id)
        canvas_state.tokens_BL = last.tokens_BL
        return Samples(
            tokens_BL=last.tokens_BL,
            frozen_BL=canvas.frozen_BL,
            confidence_BL=last.confidence_BL,
            fixed_BL=last.fixed_BL,
            entropy_B=unigram_entropy(last.tokens_BL, canvas_state.counted_BL(canvas.length)),
            steps=last.step,
            evaluations=last.calls,
            seed=seed,
            process=self.name,
            settings=self.settings,
        )

    def _run(self, params, canvas: Canvas, seed: int, progress: bool, watched: bool) -> Iterator[State]:
        self._check(canvas)
        check_seed(seed, "seed")
        canvas_state = _CanvasState(canvas, self._length(canvas), self.eos_id)
        starts = self._starts(canvas_state)
        caches, calls = self._begin(params, canvas_state, starts)
        step, total = 0, len(starts) * self._steps_each
        with Progress(len(starts), "denoising", " pieces", show=None if progress else False) as bar:
            yield self._state(canvas_state, canvas, 0, total, 1.0, calls)
            for index, start in enumerate(starts):
                part, fresh = self._span(start)
                piece = canvas_state.piece(part, fresh)
                if piece.masked_B.any():
                    inner_params, spent = self._prepared(params, caches, canvas_state, start)
                    states = self.inner.states(inner_params, piece, seed=_piece_seed(seed, start))
                    *before, last = states if watched else [*states][-1:]
                    for state in before[1:]:
                        canvas_state.put(state, part, piece, step)
                        yield self._state(canvas_state, canvas, step + state.step, total, state.time, calls + spent + state.calls)
                    canvas_state.put(last, part, piece, step)
                    step, calls = step + last.step, calls + spent + last.calls
                    made_BL = np.zeros_like(canvas_state.frozen_BL)
                    made_BL[:, part] = ~piece.frozen_BL
                    canvas_state.end(made_BL, step)
                    yield self._state(canvas_state, canvas, step, total, last.time, calls)
                bar.reach(index + 1)
                if canvas_state.ended_B.all() or index + 1 == len(starts):
                    return
                caches, spent = self._kept(params, caches, canvas_state, start)
                calls += spent

    def _state(self, canvas_state: _CanvasState, canvas: Canvas, step: int, total: int, time: float, calls: int) -> State:
        arrays = (
            a[:, : canvas.length].copy()
            for a in (canvas_state.tokens_BL, canvas_state.masked_BL, canvas_state.confidence_BL, canvas_state.fixed_BL)
        )
        return State(step, max(step, total), time, *arrays, calls)

    def _check(self, canvas: Canvas) -> None:
        if np.diff(canvas.frozen_BL.astype(np.int8), axis=1).max(initial=0) > 0:
            raise InputError(f"process {self.name} is sampled from left to right: it can continue a prompt, not fill in before given text")
        if (canvas.start_BL % 1).any():
            raise InputError(f"process {self.name} is sampled from left to right: it cannot edit text, only continue a prompt")
        if canvas.tokens_BL.max() >= self.process.vocab or canvas.tokens_BL.min() < 0:
            raise InputError(
                f"the canvas holds token ids outside the vocabulary of {self.process.vocab}; it was encoded with another tokenizer"
            )

    def _length(self, canvas: Canvas) -> int:
        """Tokens of the canvas, rounded up to whole pieces."""
        ...

    def _starts(self, canvas_state: _CanvasState) -> list[int]:
        """Where the pieces that have something to make start, in rising order."""
        ...

    def _span(self, start: int) -> tuple[slice, slice]:
        """(positions of the piece at `start`, those of them in which it makes tokens)."""
        ...

    def _begin(self, params, canvas_state: _CanvasState, starts: list[int]) -> tuple[Any, int]:
        """(caches before the first piece, the network calls that filled them)."""
        return None, 0

    def _prepared(self, params, caches, canvas_state: _CanvasState, start: int) -> tuple[Any, int]:
        """(the weights and more that `inner` takes for this piece, the network calls that made them)."""
        return params, 0

    def _kept(self, params, caches, canvas_state: _CanvasState, start: int) -> tuple[Any, int]:
        """(caches after this piece, the network calls that filled them)."""
        return caches, 0


class StrideSampler(_SemiAutoregressive):
    """Slides a window of `window` tokens by `stride` over a canvas of any length. `bind` as for `Sampler`."""

    def __init__(self, process, bind, settings: SampleSettings, *, window: int, stride: int, eos_id: int | None = None, **options):
        if not 0 < stride <= window:
            raise InputError(f"the stride is {stride} and the window {window}; the stride must lie between 1 and the window")
        if process.attention.sequential:
            raise InputError(f"process {process.name} does not see a whole window; leave the stride out")
        self.process, self.inner = process, Sampler(process, bind, settings, **options)
        self.size, self.window, self.eos_id = stride, window, eos_id

    def _length(self, canvas: Canvas) -> int:
        if canvas.length <= self.window:
            raise InputError(f"the canvas of {canvas.length} tokens fits into the window of {self.window}; leave the stride out")
        return self.window + -(-(canvas.length - self.window) // self.size) * self.size

    def _starts(self, canvas_state: _CanvasState) -> list[int]:
        starts = range(0, canvas_state.tokens_BL.shape[1] - self.window + 1, self.size)
        return [start for start in starts if not canvas_state.frozen_BL[:, self._span(start)[1]].all()]

    def _span(self, start: int) -> tuple[slice, slice]:
        stop = start + self.window
        return slice(start, stop), slice(0 if start == 0 else stop - self.size, stop)


class BlockSampler(_SemiAutoregressive):
    """Appends blocks of `size` tokens, given the finished ones. `network` is a `models.Network` on one device.

    process: "blocks" with any noise (its own size), an autoregressive process (size 1), or any masked process whose network was trained
      under `BlockCausal(size)`. eos_id: a row ends when it has made this token; None = at the end of the canvas.
    cached: False reads the whole row at every call, to the same tokens: what the buffers are tested against.
    """

    def __init__(
        self, process, network, settings: SampleSettings, *, size: int | None = None, eos_id: int | None = None, cached: bool = True
    ):
        self.causal = process.attention.causal
        self.process, self.network, self.eos_id, self.cached = process, network, eos_id, cached
        self.size = 1 if self.causal else process.attention.block_size or size
        inner = process.bound if self.causal else process.capabilities.in_blocks
        if inner is None:
            raise InputError(f"process {process.name} is not sampled in blocks: that requires masked, block or autoregressive processes")
        if self.size is None or self.size < 1:
            raise InputError(f"the size of the blocks of process {process.name} is {self.size}; give at least 1")
        self.inner = Sampler(inner, self._bind, settings, self_condition=network.spec.self_condition and not self.causal)
        self._mask = BlockCausal(self.size)
        self._advance, self._advance_alone = jax.jit(self._advanced), jax.jit(self._advanced_alone)
        self._whole = jax.jit(self._whole_row)

    # --- the network, as the inner sampler and as the buffers see it ----------------------------------------------------------

    def _bind(self, given, segments_BS, positions_BS, attention):
        """The denoiser of one block; `given` is what `_prepared` made."""
        del segments_BS, positions_BS, attention
        if self.causal:
            # The one call for this token is made: it wrote the buffers besides.
            head = self._piece(given["params"], given["cache"], given["start"])
            return _PrecomputedDenoiser(head, given["hidden"])
        if not self.cached:
            return _WholeRowDenoiser(self, given)
        piece = self._piece(given["params"], given["cache"], given["start"])
        return _GuidedDenoiser(self, given, piece) if self.settings.guidance else piece

    def _piece(self, params, cache: Cache, start, size: int | None = None):
        return bind_cached(self.network, params, cache, start, size or self.size, self._mask)

    def _advanced(self, params, cache: Cache, read_BS, start):
        return self._piece(params, cache, start, read_BS.shape[1]).advance(read_BS, jnp.zeros(read_BS.shape))

    def _advanced_alone(self, params, cache: Cache, read_BS, start, given_B) -> Cache:
        def kept(piece, read_1S, t_1S):
            return Cache(*(buffer[:, 0] for buffer in piece.advance(read_1S, t_1S)[1]))

        return self._alone(kept, 1, params, cache, start, given_B, read_BS, jnp.zeros(read_BS.shape))

    def _alone(self, run, out_axis: int, params, cache: Cache, start, given_B, *arrays_BS):
        """run(denoiser, *arrays) of each row by itself, under a mask in which nothing sees its first `given_B` positions."""

        def row(cache: Cache, given, *arrays_S):
            one = Cache(*(buffer[:, None] for buffer in cache))
            piece = bind_cached(self.network, params, one, start, arrays_S[0].shape[0], _PromptHiddenMask(self._mask, given))
            return run(piece, *(array_S[None] for array_S in arrays_S))

        return jax.vmap(row, (1, 0, *(0 for _ in arrays_BS)), out_axis)(cache, given_B, *arrays_BS)

    def _whole_row(self, params, read_BL, t_BL, given_B=0):
        """Hidden states of all positions, without buffers; the first `given_B` of each row are a document of their own."""
        place_L = jnp.arange(read_BL.shape[1])
        segments_BL = jnp.broadcast_to(1 + (place_L >= jnp.reshape(given_B, (-1, 1))), read_BL.shape)
        return self.network.bind(params, segments_BL, jnp.broadcast_to(place_L, read_BL.shape), self._mask).hidden(read_BL, t_BL)

    def _read(self, canvas_state: _CanvasState) -> np.ndarray:
        """What the network reads of a finished row."""
        if not self.causal:
            return canvas_state.tokens_BL.astype(np.int32)
        first_B1 = np.full_like(canvas_state.tokens_BL[:, :1], self.process.bos_id)
        return np.concatenate([first_B1, canvas_state.tokens_BL[:, :-1]], axis=1).astype(np.int32)

    # --- the walk ------------------------------------------------------------------------------------------------------------

    def _length(self, canvas: Canvas) -> int:
        return -(-canvas.length // self.size) * self.size

    def _starts(self, canvas_state: _CanvasState) -> list[int]:
        starts = range(0, canvas_state.tokens_BL.shape[1], self.size)
        return [start for start in starts if not canvas_state.frozen_BL[:, start : start + self.size].all()]

    def _span(self, start: int) -> tuple[slice, slice]:
        return slice(start, start + self.size), slice(start, start + self.size)

    def _begin(self, params, canvas_state: _CanvasState, starts: list[int]) -> tuple[Any, int]:
        """Empty buffers, or with the whole prompt read in one call; what that wrote beyond the prompt is written anew before it is read.

        Blocks are read once more when they are finished, prompts in them too; a token never is, so that under a causal mask every prompt
        is read here, also beside a row that has none and may have ended before the others begin.
        """
        streams = 2 if self.settings.guidance else 1
        caches = [empty_cache(self.network, *canvas_state.tokens_BL.shape) for _ in range(streams)]
        if not self.cached or not starts or not (canvas_state.frozen_BL.any() if self.causal else starts[0]):
            return caches, 0
        # The stream that does not see the prompt has nothing to read yet.
        return [self._advance(params, caches[0], self._read(canvas_state), np.int32(0))[1], *caches[1:]], 1

    def _prepared(self, params, caches, canvas_state: _CanvasState, start: int) -> tuple[Any, int]:
        given = {"params": params, "start": np.int32(start), "process": params.get("process")}
        if self.causal:
            read_BL = self._read(canvas_state)
            if self.cached:
                hidden_B1D, self._next = self._advance(params, caches[0], read_BL[:, start : start + 1], np.int32(start))
            else:
                hidden_B1D = self._whole(params, read_BL, np.zeros(read_BL.shape, np.float32))[:, start : start + 1]
            return {**given, "cache": caches[0], "hidden": hidden_B1D}, 0
        prompt_B = canvas_state.frozen_BL.sum(axis=1).astype(np.int32)
        if self.cached:
            return {**given, "cache": caches[0], **({"alone": caches[1], "prompt": prompt_B} if self.settings.guidance else {})}, 0
        tokens_BL, none_B = canvas_state.tokens_BL.astype(np.int32), np.zeros_like(prompt_B)
        if not self.settings.guidance:
            return {**given, "tokens": tokens_BL, "prompt": none_B}, 0
        return {**given, "tokens": np.concatenate([tokens_BL] * 2), "prompt": np.concatenate([none_B, prompt_B])}, 0

    def _kept(self, params, caches, canvas_state: _CanvasState, start: int) -> tuple[Any, int]:
        if not self.cached:
            return caches, 0
        if self.causal:
            return [self._next], 0
        part, _ = self._span(start)
        read_BS = self._read(canvas_state)[:, part]
        kept = [self._advance(params, caches[0], read_BS, np.int32(start))[1]]
        if self.settings.guidance:
            prompt_B = canvas_state.frozen_BL.sum(axis=1).astype(np.int32)
            kept.append(self._advance_alone(params, caches[1], read_BS, np.int32(start), prompt_B))
        return kept, len(kept)


def sampler_for(
    process, network, settings: SampleSettings, *, stride: int | None = None, window: int = 0, eos_id: int | None = None
) -> Sampler | BlockSampler | StrideSampler:
    """The sampler that suits a process and a network on one device: block by block where the process is made of blocks or causal, a
    sliding window where a stride is given, else the whole canvas at once, which knows no end (`eos_id` must be None)."""
    if process.attention.sequential:
        if stride is not None:
            raise InputError(f"process {process.name} is sampled block by block, to any length; leave the stride out")
        return BlockSampler(process, network, settings, eos_id=eos_id)
    options = {"self_condition": network.spec.self_condition}
    if stride is not None:
        return StrideSampler(process, network.bind, settings, window=window, stride=stride, eos_id=eos_id, **options)
    if eos_id is not None:
        raise InputError(f"process {process.name} makes all tokens at once and cannot stop at an end; give a stride, or cut the text after")
    return Sampler(process, network.bind, settings, **options)


@dataclasses.dataclass(frozen=True)
class _PrecomputedDenoiser:
    """A denoiser whose call is made already."""

    head: Any
    hidden_BSD: Any

    def hidden(self, z_BS, t_BS):
        del z_BS, t_BS
        return self.hidden_BSD

    def logits(self, hidden_BSD):
        return self.head.logits(hidden_BSD)


@dataclasses.dataclass(frozen=True)
class _PromptHiddenMask:
    """A mask in which the first `given` positions (may be traced) are another document."""

    mask: Any
    given: Any

    def allowed(self, q, k):
        return self.mask.allowed(q, k) & ((q < self.given) == (k < self.given))


@dataclasses.dataclass(frozen=True)
class _GuidedDenoiser:
    """The denoiser of a block given all before it, and of the same block without the prompt, one below the other."""

    sampler: BlockSampler
    given: Any
    piece: Any

    def hidden(self, z_RS, t_RS, *hints_RSI):
        rows = z_RS.shape[0] // 2
        seen = self.piece.hidden(*(array[:rows] for array in (z_RS, t_RS, *hints_RSI)))
        given, arrays = self.given, (array[rows:] for array in (z_RS, t_RS, *hints_RSI))
        places = given["params"], given["alone"], given["start"], given["prompt"]
        alone = self.sampler._alone(lambda piece, *of_row: piece.hidden(*of_row)[0], 0, *places, *arrays)
        return jnp.concatenate([seen, alone])

    def logits(self, hidden_RSD):
        return self.piece.logits(hidden_RSD)

    def expect(self, hidden_RSD, table_VI=None):
        return self.piece.expect(hidden_RSD, table_VI)


@dataclasses.dataclass(frozen=True)
class _WholeRowDenoiser:
    """The denoiser of a block that reads the whole row every time."""

    sampler: BlockSampler
    given: Any

    def hidden(self, z_BS, t_BS):
        start = self.given["start"]
        row_BL = jax.lax.dynamic_update_slice_in_dim(self.given["tokens"], z_BS, start, axis=1)
        t_BL = jax.lax.dynamic_update_slice_in_dim(jnp.zeros(row_BL.shape), t_BS, start, axis=1)
        hidden_BLD = self.sampler._whole_row(self.given["params"], row_BL, t_BL, self.given["prompt"])
        return jax.lax.dynamic_slice_in_dim(hidden_BLD, start, z_BS.shape[1], axis=1)

    def logits(self, hidden_BSD):
        network = self.sampler.network
        return network.bind(self.given["params"], jnp.ones((1, 1), jnp.int32), jnp.zeros((1, 1), jnp.int32)).logits(hidden_BSD)


def _piece_seed(seed: int, start: int) -> int:
    """Every piece draws from a stream of its own."""
    return int(np.random.SeedSequence((seed, start)).generate_state(1)[0])
