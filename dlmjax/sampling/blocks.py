"""Sampling in pieces, from left to right, until a document ends or the canvas is full.

    BlockSampler    block diffusion (BD3-LM 2503.09573 section 3.3): each block is denoised conditional on the finished ones. Their keys
                    and values are kept in buffers of a fixed size (`models.cache`), so that a step computes one block and not the row.
                    Blocks of one token are autoregression. Requires a network under a block-causal or causal mask.
    StrideSampler   semi-autoregressive sampling (MDLM 2406.07524 section 3.4): a window slides over the canvas by a stride; the tokens that
                    stay in the window are the prompt of the new ones. Requires a network with full attention; any length.

Guidance in blocks needs the output without the prompt. The network reads the text after the prompt as a separate document, as in
training on packed documents, with its own buffers, under a mask in which no position of it attends to the prompt.

Seeded blocks are read one position later, after a beginning of text: the pass that caches a block gives the first token of the next one,
and the rest of that is denoised given it.

Within a piece all orders and methods of `Sampler` apply. Both classes have the methods of a `Sampler`: `sample`, `states`, `finish`.

Shapes: B rows, L positions of the canvas, S positions of a piece, R rows (twice B with guidance).
"""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dlmjax.errors import InputError
from dlmjax.models.cache import Cache, bind_cached, empty_cache
from dlmjax.models.masks import BlockCausal, Causal
from dlmjax.sampling.cached import CachedSampler
from dlmjax.sampling.canvas import Canvas
from dlmjax.sampling.drafters import Drafter, JointDrafter
from dlmjax.sampling.drafting import DraftingSampler
from dlmjax.sampling.drafts import make_draft
from dlmjax.sampling.growth import GrowingSampler
from dlmjax.sampling.pieces import CanvasState, PieceSampler
from dlmjax.sampling.regex import byte_automaton, token_automaton
from dlmjax.sampling.sampler import Sampler
from dlmjax.sampling.samples import Counts
from dlmjax.sampling.settings import SampleSettings
from dlmjax.sampling.step_denoiser import PrecomputedDenoiser
from dlmjax.sampling.verified import VerifiedSampler


class StrideSampler(PieceSampler):
    """Slides a window of `window` tokens by `stride` over a canvas of any length. `bind` as for `Sampler`."""

    def __init__(self, process, bind, settings: SampleSettings, *, window: int, stride: int, eos_id: int | None = None, **options):
        if not 0 < stride <= window:
            raise InputError(f"the stride is {stride} and the window {window}; the stride must lie between 1 and the window")
        if process.attention.sequential:
            raise InputError(f"process {process.name} does not attend to a whole window; leave the stride out")
        self.process, self.inner = process, Sampler(process, bind, settings, **options)
        self.size, self.window, self.eos_id = stride, window, eos_id

    def _length(self, canvas: Canvas) -> int:
        if canvas.length <= self.window:
            raise InputError(f"the canvas of {canvas.length} tokens fits into the window of {self.window}; leave the stride out")
        return self.window + -(-(canvas.length - self.window) // self.size) * self.size

    def _starts(self, canvas_state: CanvasState) -> list[int]:
        starts = range(0, canvas_state.tokens_BL.shape[1] - self.window + 1, self.size)
        return [start for start in starts if not canvas_state.condition_mask_BL[:, self._span(start, 0)[1]].all()]

    def _span(self, start: int, length: int) -> tuple[slice, slice]:
        del length
        stop = start + self.window
        return slice(start, stop), slice(0 if start == 0 else stop - self.size, stop)


class BlockSampler(PieceSampler):
    """Appends blocks of `size` tokens, each conditional on the finished ones.

    process: "blocks" with any noise (its block size), an autoregressive process (size 1), or any masked process whose network was trained
      under `BlockCausal(size)`.  network: a `models.TrainableNetwork`, on one device or a mesh.
    eos_id: token that ends a row; None = rows end with the canvas.
    cached: False reads the whole row at every call and gives the same tokens; tests compare the buffers with it.
    """

    def __init__(
        self, process, network, settings: SampleSettings, *, size: int | None = None, eos_id: int | None = None, cached: bool = True
    ):
        self.causal, self.seeded = process.attention.causal, process.attention.seeded
        self.process, self.network, self.eos_id, self.cached = process, network, eos_id, cached and network.caches
        self.size = 1 if self.causal else process.attention.block_size or size
        inner = process.bound if self.causal else process.capabilities.in_blocks
        if inner is None:
            raise InputError(
                f"process {process.name} is not sampled in blocks; BlockSampler requires a masked, block or autoregressive process"
            )
        if self.size is None or self.size < 1:
            raise InputError(f"size, the length of a block of process {process.name}, is {self.size}; give at least 1")
        rule = settings.make_rule()
        if rule is not None and rule.shadows:
            raise InputError(f"rule {rule.name} requires a network that reads the whole canvas, not block by block; use another rule")
        hints = network.self_condition and not self.causal
        self.inner = Sampler(inner, self._bind, settings, self_condition=hints, layout=network.layout)
        self._mask = BlockCausal(self.size, offset=int(self.seeded))
        self._text_mask = Causal() if self.seeded else self._mask  # of finished text
        self._first = self._sampler_of_seeds(settings) if self.seeded else None
        self._advance, self._advance_unprompted = jax.jit(self._advanced), jax.jit(self._advanced_unprompted)
        self._whole, self._pairs = jax.jit(self._whole_row), jax.jit(self._whole_pairs)

    def _sampler_of_seeds(self, settings: SampleSettings) -> Sampler:
        """The sampler of the first token of a block: of a causal process, whose state the reading of the text before it gave."""
        if settings.guidance:
            raise InputError("process blocks with seeded=True has no output without its prompt for the first tokens; leave guidance at 0")
        plain = dataclasses.replace(SampleSettings(), steps=1, rule="left_to_right")
        kept = {name: getattr(settings, name) for name in ("temperature", "top_p", "suppressed_ids", "eos", "end_ids")}
        settings = dataclasses.replace(plain, **kept)
        return Sampler(self.process.capabilities.seeds, self._bind_first, settings, layout=self.network.layout)

    # --- the network, bound to a block for the inner sampler, and the reads that fill the buffers ------------------------------

    def _bind(self, args, segments_BS, positions_BS, attention):
        """The denoiser of one block; `args` is the result of `_piece_params`."""
        del segments_BS, positions_BS, attention
        if self.causal:
            # `_piece_params` has made the only call for this token; it also wrote the buffers.
            head = self._piece(args["params"], args["cache"], args["start"]) if self.cached else _WholeRowDenoiser(self, args)
            return PrecomputedDenoiser(head, args["hidden"], 1 if self.cached else args["length"])
        if not self.cached:
            return (_WholeRowPairs if self.seeded else _WholeRowDenoiser)(self, args)
        if self.seeded:
            return _SeededDenoiser(self._piece(args["params"], args["cache"], args["start"] + 1))
        piece = self._piece(args["params"], args["cache"], args["start"])
        return _GuidedDenoiser(piece, self, args) if self.settings.guidance else piece

    def _bind_first(self, args, segments_B1, positions_B1, attention):
        """The denoiser of the first token of a block, whose state is known."""
        ones_B1 = jnp.ones_like(segments_B1)
        return PrecomputedDenoiser(self.network.bind(args["params"], ones_B1, ones_B1), args["hidden"])

    def _piece(self, params, cache: Cache, start):
        return bind_cached(self.network, params, cache, start, self.size, self._mask)

    def _advanced(self, params, cache: Cache, read_BS, start):
        piece = bind_cached(self.network, params, cache, start, read_BS.shape[1], self._text_mask)
        return piece.advance(read_BS, jnp.zeros(read_BS.shape))

    def _advanced_unprompted(self, params, cache: Cache, read_BS, start, prompt_B) -> Cache:
        def advance(piece, read_1S, t_1S):
            return Cache(*(buffer[:, 0] for buffer in piece.advance(read_1S, t_1S)[1]))

        return self._unprompted(advance, 1, params, cache, start, prompt_B, read_BS, jnp.zeros(read_BS.shape))

    def _unprompted(self, run, out_axis: int, params, cache: Cache, start, prompt_B, *arrays_BS):
        """run(denoiser, *arrays) of each row, under a mask in which no later position attends to the first `prompt_B` positions."""
        network, split = self.network, self.inner.rows.axes
        if network.layout.mesh is not None:
            network = dataclasses.replace(network, layout=dataclasses.replace(network.layout, one_row=True))

        def row(cache: Cache, prompt, *arrays_S):
            one = Cache(*(buffer[:, None] for buffer in cache))
            piece = bind_cached(network, params, one, start, arrays_S[0].shape[0], _PromptSeparatedMask(self._mask, prompt))
            return run(piece, *(array_S[None] for array_S in arrays_S))

        return jax.vmap(row, (1, 0, *(0 for _ in arrays_BS)), out_axis, spmd_axis_name=split)(cache, prompt_B, *arrays_BS)

    def _whole_row(self, params, read_BL, t_BL, prompt_B=0):
        """Hidden states of all positions, without buffers; the first `prompt_B` positions of each row are a separate document."""
        index_L = jnp.arange(read_BL.shape[1])
        segments_BL = jnp.broadcast_to(1 + (index_L >= jnp.reshape(prompt_B, (-1, 1))), read_BL.shape)
        return self.network.bind(params, segments_BL, jnp.broadcast_to(index_L, read_BL.shape), self._mask).hidden(read_BL, t_BL)

    def _whole_pairs(self, params, noisy_BL, read_BL, t_BL):
        """Hidden states of all positions by the two streams of training, which need no buffers."""
        index_BL = jnp.broadcast_to(jnp.arange(noisy_BL.shape[1]), noisy_BL.shape)
        denoiser = self.network.bind(params, jnp.ones_like(index_BL), index_BL, self.process.attention)
        return denoiser.hidden(jnp.stack([noisy_BL, read_BL], axis=-1), t_BL)

    def _read(self, canvas_state: CanvasState) -> np.ndarray:
        """The network's input for the finished positions; causal networks read the row after BOS, seeded blocks also its last token."""
        if self.seeded:
            return np.pad(canvas_state.tokens_BL.astype(np.int32), ((0, 0), (1, 0)), constant_values=self.process.seed_bos)
        if not self.causal:
            return canvas_state.tokens_BL.astype(np.int32)
        first_B1 = np.full_like(canvas_state.tokens_BL[:, :1], self.process.bos_id)
        return np.concatenate([first_B1, canvas_state.tokens_BL[:, :-1]], axis=1).astype(np.int32)

    # --- the pieces ----------------------------------------------------------------------------------------------------------

    def _length(self, canvas: Canvas) -> int:
        return -(-canvas.length // self.size) * self.size

    def _starts(self, canvas_state: CanvasState) -> list[int]:
        starts = range(0, canvas_state.tokens_BL.shape[1], self.size)
        return [start for start in starts if not canvas_state.condition_mask_BL[:, start : start + self.size].all()]

    def _span(self, start: int, length: int) -> tuple[slice, slice]:
        del length
        return slice(start, start + self.size), slice(start, start + self.size)

    def _parts(self, start: int, length: int) -> list[tuple[Sampler, slice, slice]]:
        whole, new = self._span(start, length)
        if not self.seeded:
            return [(self.inner, whole, new)]
        seed = slice(start, start + 1)
        return [(self._first, seed, seed), (self.inner, whole, slice(start + 1, start + self.size))]

    def _has_calls(self, inner: Sampler) -> bool:
        # The pass that gave the state of a first token is counted where it fills the buffers.
        return not (self.seeded and inner is self._first)

    @property
    def _steps_each(self) -> int:
        return super()._steps_each + self.seeded

    def _first_caches(self, params, canvas_state: CanvasState, starts: list[int]) -> tuple[Any, Counts]:
        """Empty buffers, or buffers after one call that reads the whole prompt; entries beyond the prompt are overwritten before use.

        `_advanced_caches` reads each finished block again, with the prompt tokens in it, so that only the blocks before the first new one
        are read here. Under a causal mask tokens are not read again, so any prompt of any row is read here.
        """
        if self.seeded:
            rows, length = canvas_state.tokens_BL.shape
            if not self.cached or not starts:
                return [None], Counts()
            hidden_BLD, cache = self._advance(params, empty_cache(self.network, rows, length + 1), self._read(canvas_state), np.int32(0))
            return [cache, hidden_BLD[:, starts[0]][:, None]], Counts.of_call(length + 1)
        streams = 2 if self.settings.guidance else 1
        caches = [empty_cache(self.network, *canvas_state.tokens_BL.shape) if self.network.caches else None for _ in range(streams)]
        prompted = canvas_state.condition_mask_BL[~canvas_state.ended_B].any()
        if not self.cached or not starts or not (prompted if self.causal else starts[0]):
            return caches, Counts()
        # The buffers without the prompt stay empty.
        read_BL = self._read(canvas_state)
        return [self._advance(params, caches[0], read_BL, np.int32(0))[1], *caches[1:]], Counts.of_call(read_BL.shape[1])

    def _piece_params(self, params, caches, canvas_state: CanvasState, start: int) -> dict[str, Any]:
        args = {"params": params, "start": np.int32(start), "process": params.get("process")}
        if self.causal:
            read_BL = self._read(canvas_state)
            if self.cached:
                hidden_B1D, self._next = self._advance(params, caches[0], read_BL[:, start : start + 1], np.int32(start))
            else:
                hidden_B1D = self._whole(params, read_BL, np.zeros(read_BL.shape, np.float32))[:, start : start + 1]
            return {**args, "cache": caches[0], "hidden": hidden_B1D, "length": np.int32(read_BL.shape[1])}
        if self.seeded:
            if self.cached:
                return {**args, "cache": caches[0], "hidden": caches[1]}
            tokens_BL = canvas_state.tokens_BL.astype(np.int32)
            hidden_BLD = self._pairs(params, tokens_BL, self._read(canvas_state)[:, :-1], np.zeros(tokens_BL.shape, np.float32))
            return {**args, "tokens": tokens_BL, "hidden": hidden_BLD[:, start : start + 1]}
        prompt_B = canvas_state.condition_mask_BL.sum(axis=1).astype(np.int32)
        if self.cached:
            return {
                **args,
                "cache": caches[0],
                **({"unprompted_cache": caches[1], "prompt": prompt_B} if self.settings.guidance else {}),
            }
        tokens_BL, none_B = canvas_state.tokens_BL.astype(np.int32), np.zeros_like(prompt_B)
        if not self.settings.guidance:
            return {**args, "tokens": tokens_BL, "prompt": none_B}
        return {**args, "tokens": np.concatenate([tokens_BL] * 2), "prompt": np.concatenate([none_B, prompt_B])}

    def _advanced_caches(self, params, caches, canvas_state: CanvasState, start: int) -> tuple[Any, Counts]:
        if not self.cached:
            return caches, Counts()
        if self.causal:
            return [self._next], Counts()
        if self.seeded:
            read_BS = self._read(canvas_state)[:, start + 1 : start + 1 + self.size]
            hidden_BSD, cache = self._advance(params, caches[0], read_BS, np.int32(start + 1))
            return [cache, hidden_BSD[:, -1:]], Counts.of_call(self.size)
        part, _ = self._span(start, canvas_state.tokens_BL.shape[1])
        read_BS = self._read(canvas_state)[:, part]
        kept = [self._advance(params, caches[0], read_BS, np.int32(start))[1]]
        if self.settings.guidance:
            prompt_B = canvas_state.condition_mask_BL.sum(axis=1).astype(np.int32)
            kept.append(self._advance_unprompted(params, caches[1], read_BS, np.int32(start), prompt_B))
        return kept, Counts(len(kept), len(kept), len(kept) * self.size)


def sampler_for(
    process,
    network,
    settings: SampleSettings,
    *,
    stride: int | None = None,
    window: int = 0,
    eos_id: int | None = None,
    tokenizer=None,
    drafter: Drafter | None = None,
) -> Sampler | PieceSampler:
    """The sampler of a process, for a network on one device or a mesh: in blocks where the process has blocks or is causal, with a sliding
    window where `stride` is set, with reused keys and values where `settings.cache` names a policy, otherwise the whole canvas at once
    (`eos_id` must then be None), with `settings.draft` several steps a call.

    stride, window: step and length of the sliding window, tokens.  eos_id: token that ends a row.
    tokenizer: of the run, for `settings.regex`.  drafter: of another run, where `settings.draft` names one.
    Raises InputError: a stride or an end that the process does not support."""
    if settings.grow:
        if stride is not None or eos_id is not None:
            raise InputError(f"grow {settings.grow} decides itself where a text ends: it conflicts with a stride and with stop end")
        return GrowingSampler(process, network.bind, settings, self_condition=network.self_condition, layout=network.layout)
    if settings.regex and (process.attention.sequential or isinstance(settings.cache, str) or stride is not None or tokenizer is None):
        raise InputError("regex is matched by a whole canvas: it conflicts with blocks, a stride, a cache policy and causal processes")
    if settings.guide and (process.attention.sequential or isinstance(settings.cache, str) or stride is not None):
        raise InputError("guide reads a whole canvas: it conflicts with blocks, a stride, a cache policy and causal processes")
    if settings.draft is not None and make_draft(settings.draft).verifies:
        if stride is not None or settings.cache:
            raise InputError(
                f"draft {settings.draft} keeps keys and values itself: it conflicts with a stride and with cache; leave them out"
            )
        return _verified_sampler(process, network, settings, drafter, eos_id)
    if process.attention.sequential and not isinstance(settings.cache, str):
        if stride is not None:
            raise InputError(f"process {process.name} is sampled in blocks, to any length; leave the stride out")
        return BlockSampler(process, network, settings, eos_id=eos_id)
    options = {"self_condition": network.self_condition, "layout": network.layout}
    if isinstance(settings.cache, str):
        if stride is not None:
            raise InputError(f"cache {settings.cache} fills a canvas block by block and conflicts with a stride; leave one of them out")
        return CachedSampler(process, network, settings, eos_id=eos_id)
    if stride is not None:
        return StrideSampler(process, network.bind, settings, window=window, stride=stride, eos_id=eos_id, **options)
    if eos_id is not None:
        raise InputError(
            f"process {process.name} samples all tokens at once and cannot stop at an end; give a stride, or cut the text afterwards"
        )
    if settings.regex:
        automaton = byte_automaton(settings.regex)
        options["constraint"] = token_automaton(automaton, tokenizer.token_bytes, tokenizer.eos_id, process.vocab)
    make = Sampler if settings.draft is None else DraftingSampler
    return make(process, network.bind, settings, **options)


def _verified_sampler(process, network, settings: SampleSettings, drafter: Drafter | None, eos_id: int | None) -> VerifiedSampler:
    """The sampler of `sampler_for` where `settings.draft` has a verifier."""
    draft = make_draft(str(settings.draft))
    if draft.of_process:
        drafter, process = JointDrafter(process, network, draft.depth, settings.suppressed_ids), process.capabilities.seeds
    elif not process.attention.causal:
        raise InputError(
            f"draft {settings.draft} requires an autoregressive run, which verifies the drafts, and this one is of process {process.name}; "
            "give the drafting run in draft, and the autoregressive one as the run that is sampled"
        )
    elif drafter is None:
        raise InputError(
            f"draft {settings.draft} names a run, which is not opened here; give it to dlmjax sample, solve or quality as --draft"
        )
    if network.layout.mesh is not None:
        raise InputError(f"draft {settings.draft} requires a network on one device; leave the mesh out")
    plain = BlockSampler(process, network, dataclasses.replace(settings, draft=None), eos_id=eos_id)
    return VerifiedSampler(plain, settings, drafter)


@dataclasses.dataclass(frozen=True)
class _PromptSeparatedMask:
    """A mask in which the first `prompt` positions (may be traced) are a separate document."""

    mask: Any
    prompt: Any

    def allowed(self, q, k):
        return self.mask.allowed(q, k) & ((q < self.prompt) == (k < self.prompt))


@dataclasses.dataclass(frozen=True)
class _OfPiece(abc.ABC):
    """Abstract: a denoiser whose states are made of those of a piece of the row, with its head."""

    piece: Any

    @abc.abstractmethod
    def hidden(self, z_RS, t_RS, *hints_RSI):
        """Final states of the block."""

    @property
    def reads_hidden(self):
        return self.piece.reads_hidden

    def logits(self, hidden_RSD):
        return self.piece.logits(hidden_RSD)

    def expect(self, hidden_RSD, table_VI=None):
        return self.piece.expect(hidden_RSD, table_VI)


@dataclasses.dataclass(frozen=True)
class _GuidedDenoiser(_OfPiece):
    """The denoiser of a block for guidance: first the rows with the prompt, then the same rows without it."""

    sampler: BlockSampler
    args: Any

    def hidden(self, z_RS, t_RS, *hints_RSI):
        rows = z_RS.shape[0] // 2
        conditional = self.piece.hidden(*(array[:rows] for array in (z_RS, t_RS, *hints_RSI)))
        args, arrays = self.args, (array[rows:] for array in (z_RS, t_RS, *hints_RSI))
        bound = args["params"], args["unprompted_cache"], args["start"], args["prompt"]
        unconditional = self.sampler._unprompted(lambda piece, *of_row: piece.hidden(*of_row)[0], 0, *bound, *arrays)
        return jnp.concatenate([conditional, unconditional])


@dataclasses.dataclass(frozen=True)
class _SeededDenoiser(_OfPiece):
    """The denoiser of a seeded block: each token is predicted from the position before it, the first one elsewhere."""

    def hidden(self, z_BS, t_BS, *hints_BSI):
        # In training the time of a seed is that of its block.
        hidden_BSD = self.piece.hidden(z_BS, t_BS.at[:, 0].set(jnp.max(t_BS, axis=1)), *hints_BSI)
        return jnp.concatenate([hidden_BSD[:, :1], hidden_BSD[:, :-1]], axis=1)


@dataclasses.dataclass(frozen=True)
class _WholeRowDenoiser:
    """The denoiser of a block that reads the whole row at every call. streams: in how many of training's it reads it."""

    sampler: BlockSampler
    args: Any

    streams = 1

    @property
    def reads_R(self):
        return self.streams * self.args["tokens"].shape[1]

    def hidden(self, z_BS, t_BS):
        start = self.args["start"]
        row_BL = jax.lax.dynamic_update_slice_in_dim(self.args["tokens"], z_BS, start, axis=1)
        t_BL = jax.lax.dynamic_update_slice_in_dim(jnp.zeros(row_BL.shape), t_BS, start, axis=1)
        hidden_BLD = self.sampler._whole_row(self.args["params"], row_BL, t_BL, self.args["prompt"])
        return jax.lax.dynamic_slice_in_dim(hidden_BLD, start, z_BS.shape[1], axis=1)

    def logits(self, hidden_BSD):
        network = self.sampler.network
        return network.bind(self.args["params"], jnp.ones((1, 1), jnp.int32), jnp.zeros((1, 1), jnp.int32)).logits(hidden_BSD)


@dataclasses.dataclass(frozen=True)
class _WholeRowPairs(_WholeRowDenoiser):
    """The same of a seeded block, by the two streams of training."""

    streams = 2

    def hidden(self, z_BS, t_BS):
        start, tokens_BL = self.args["start"], self.args["tokens"]
        noisy_BL = jax.lax.dynamic_update_slice_in_dim(tokens_BL, z_BS, start, axis=1)
        t_BS = t_BS.at[:, 0].set(jnp.max(t_BS, axis=1))
        t_BL = jax.lax.dynamic_update_slice_in_dim(jnp.zeros(tokens_BL.shape), t_BS, start, axis=1)
        read_BL = jnp.pad(tokens_BL[:, :-1], ((0, 0), (1, 0)), constant_values=self.sampler.process.seed_bos)
        hidden_BLD = self.sampler._whole_pairs(self.args["params"], noisy_BL, read_BL, t_BL)
        return jax.lax.dynamic_slice_in_dim(hidden_BLD, start, z_BS.shape[1], axis=1)
