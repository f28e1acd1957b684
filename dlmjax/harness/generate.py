"""Text that continues prompts, in batches of prompts of any length, until a text ends: what lm-eval calls generate_until.

Which sampler, by process:
  causal, blocks   `BlockSampler`: token by token, or block by block, with its buffers.
  masked           semi-autoregression on the whole canvas (LLaDA 2502.09992 section 2.4): prompt and masks for all that may be made are
                   read at once, and the masks of one block after another are shown.  A network that is not told where a text ends sees
                   how long it may become: `length` is part of the result.
  any other        the whole canvas at once by the reverse process, at temperature 1: there is no other way to draw from it.
A text ends at its end of document or its first stop string; a batch is left when all of its texts have ended.

Shapes: B rows, L canvas, P prompt, G made.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from dlmjax.errors import InputError
from dlmjax.evaluation.conditional import row_width
from dlmjax.sampling import BlockSampler, Canvas, Sampler, SampleSettings, suppressed_ids
from dlmjax.seeds import following


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How texts are made.

    length: tokens that a text may have.  until: strings at which it ends; they are not part of it.
    temperature, top_p: as for `SampleSettings`; 0 = the most likely tokens, the surest first.
    block: tokens of a block of masked processes.  tokens_per_step: shown by each network call (1 = best and slowest).
    """

    length: int = 256
    until: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    block: int = 32
    tokens_per_step: int = 1

    def __post_init__(self):
        for name in ("length", "block", "tokens_per_step"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} of generated text is {getattr(self, name)}; it must be at least 1")


@dataclasses.dataclass(frozen=True)
class RaggedCanvas(Canvas):
    """A canvas whose rows end at `length_B`; what comes after is padding, which nothing sees."""

    length_B: Int[np.ndarray, "B"]

    @property
    def segments_BL(self):
        """1 on the text, 0 on padding."""
        return (np.arange(self.length) < self.length_B[:, None]).astype(np.int32)


class Generator:
    """Continues prompts with one process and network.  Keep it: it compiles on first use, once for each width and `Decoding`.

    network: a `models.Network` on one device.  longest: tokens of prompt and text together, those of training.  batch: prompts at a time.
    """

    def __init__(self, process, network, tokenizer, *, longest: int, batch: int = 8, seed: int = 0):
        self.process, self.network, self.tokenizer = process, network, tokenizer
        self.longest, self.batch, self.seed = longest, batch, seed
        self.walks = process.attention.sequential
        self.masked = process.bound.capabilities.any_order and not self.walks
        self._samplers: dict[SampleSettings, Sampler | BlockSampler] = {}

    def __call__(self, params, prompts: Sequence[np.ndarray], decoding: Decoding) -> list[str]:
        """The text after each prompt, without the stop string or what comes after it.

        A prompt that leaves no room for `decoding.length` tokens is cut from the left, to no less than half of `longest`; what then
        still has no room is not made.
        """
        return [self._text(made_G, decoding.until)[0] for made_G in self.tokens(params, prompts, decoding)]

    def tokens(self, params, prompts: Sequence[np.ndarray], decoding: Decoding) -> list[np.ndarray]:
        """The ids made after each prompt; behind an end of document or a stop string there may be more, and the pad id for the rest."""
        made: list[np.ndarray] = [np.zeros(0, np.int32)] * len(prompts)
        longest_first = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        for number, start in enumerate(range(0, len(prompts), self.batch)):
            chunk = longest_first[start : start + self.batch]
            canvas, prompt_B = self._canvas([prompts[i] for i in chunk], decoding.length)
            for tokens_BL in self._stages(params, canvas, decoding, following(self.seed, number)):
                for b, i in enumerate(chunk):
                    made[i] = tokens_BL[b, prompt_B[b] : canvas.length_B[b]]
                if all(self._text(made[i], decoding.until)[1] for i in chunk):
                    break
        return made

    def _canvas(self, prompts: list[np.ndarray], length: int) -> tuple[RaggedCanvas, np.ndarray]:
        """Prompts and holes, and the tokens of each prompt that are kept; rows that fill up the batch have one token and no hole."""
        room = [min(length, max(self.longest - len(prompt), self.longest // 2)) for prompt in prompts]
        kept = [prompt[max(len(prompt) + new - self.longest, 0) :] for prompt, new in zip(prompts, room, strict=True)]
        length_B = np.ones(self.batch, np.int32)
        length_B[: len(prompts)] = [len(prompt) + new for prompt, new in zip(kept, room, strict=True)]
        prompt_B = np.asarray([len(prompt) for prompt in kept])
        size = self.process.attention.block_size or 1
        tokens_BL = np.full((self.batch, row_width(int(length_B.max()), self.longest, size)), self.tokenizer.pad_id, np.int32)
        frozen_BL = np.ones(tokens_BL.shape, bool)
        for b, prompt in enumerate(kept):
            tokens_BL[b, : len(prompt)] = prompt
            # Behind the end of a row blocks are made all the same, from left to right: they change nothing before them.
            frozen_BL[b, len(prompt) : None if self.walks else length_B[b]] = False
        return RaggedCanvas(tokens_BL, frozen_BL, 1.0 - frozen_BL.astype(np.float32), length_B), prompt_B

    def _stages(self, params, canvas: RaggedCanvas, decoding: Decoding, seed: int) -> Iterator[np.ndarray]:
        """The tokens after each piece of text, the pad id where nothing is made yet."""
        if self.walks:
            yield from self._walk(params, canvas, decoding, seed)
        elif self.masked:
            yield from self._semi_autoregression(params, canvas, decoding, seed)
        else:
            settings = SampleSettings(
                steps=max(decoding.length // decoding.tokens_per_step, 1), suppressed_ids=suppressed_ids(self.tokenizer, self.process.vocab)
            )
            yield self._sampler(settings).sample(params, canvas, seed=seed).tokens_BL

    def _walk(self, params, canvas: RaggedCanvas, decoding: Decoding, seed: int) -> Iterator[np.ndarray]:
        order = "left_to_right" if self.process.attention.causal else "confidence"
        sampler = self._sampler(self._settings(order, decoding, self.process.attention.block_size or 1))
        before = -1
        for state in sampler.states(params, canvas, seed=seed):
            # Checked where the row that is furthest behind has got ahead: not at every step inside a block.
            reached = int(np.cumprod(~state.masked_BL, axis=1).sum(axis=1).min())
            if reached > before:
                before = reached
                yield np.where(state.masked_BL, self.tokenizer.pad_id, state.tokens_BL)

    def _semi_autoregression(self, params, canvas: RaggedCanvas, decoding: Decoding, seed: int) -> Iterator[np.ndarray]:
        masked_BL, tokens_BL = ~canvas.frozen_BL, canvas.tokens_BL.copy()
        tokens_BL[masked_BL] = self.tokenizer.mask_id
        index_BL = np.cumsum(masked_BL, axis=1) - 1
        sampler = self._sampler(self._settings("confidence", decoding, min(decoding.block, decoding.length)))
        for block in range(-(-int(masked_BL.sum(axis=1).max()) // decoding.block)):
            now_BL = masked_BL & (index_BL // decoding.block == block)
            # Later blocks are masks that are given: the network reads them, nothing is shown there.
            part = RaggedCanvas(tokens_BL.copy(), ~now_BL, now_BL.astype(np.float32), canvas.length_B)
            tokens_BL = sampler.sample(params, part, seed=following(seed, block << 16)).tokens_BL
            yield np.where(tokens_BL == self.tokenizer.mask_id, self.tokenizer.pad_id, tokens_BL)

    def _settings(self, order: str, decoding: Decoding, block: int) -> SampleSettings:
        return SampleSettings(
            steps=-(-block // decoding.tokens_per_step),
            order=order,
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            suppressed_ids=suppressed_ids(self.tokenizer, self.process.vocab),
        )

    def _sampler(self, settings: SampleSettings) -> Any:
        if settings not in self._samplers:
            if self.walks:
                self._samplers[settings] = BlockSampler(self.process, self.network, settings, eos_id=self.tokenizer.eos_id)
            else:
                hints = self.network.spec.self_condition
                self._samplers[settings] = Sampler(self.process, self.network.bind, settings, self_condition=hints)
        return self._samplers[settings]

    def _text(self, made_G: np.ndarray, until: tuple[str, ...]) -> tuple[str, bool]:
        """(the text up to its end, whether it has come to one)."""
        ends = np.flatnonzero((made_G == self.tokenizer.eos_id) | (made_G == self.tokenizer.pad_id))
        ended = bool(ends.size) and made_G[ends[0]] == self.tokenizer.eos_id
        text = self.tokenizer.decode(made_G[: ends[0]] if ends.size else made_G)
        stops = [text.find(string) for string in until if string and string in text]
        return (text[: min(stops)], True) if stops else (text, bool(ended) or not ends.size)
