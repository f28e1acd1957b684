"""Continuations of prompts of any length, in batches, until each text ends: the generate_until requests of lm-eval.

The process decides between three samplers:
  causal, blocks   `BlockSampler`: token by token, or block by block, with its caches.
  masked           semi-autoregression on the whole canvas (LLaDA 2502.09992 section 2.4): the network reads the prompt and masks for the
                   longest text, and reveals one block after another.  It sees how long the text may become, so `length` changes the
                   result.
  any other        the whole canvas at once by the reverse process, at temperature 1, which is the only way to sample from it.
A text ends at its end of document or its first stop string; a batch ends when all of its texts have ended.

Shapes: B rows, L canvas, P prompt, G generated.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from dlmjax.errors import InputError
from dlmjax.evaluation.conditional import row_width
from dlmjax.sampling import BlockSampler, CachedSampler, Canvas, Sampler, SampleSettings, make_reuse, make_rule, suppressed_ids
from dlmjax.sampling.drafting import DraftingSampler
from dlmjax.sampling.drafts import make_draft
from dlmjax.sampling.ends import make_hold_back
from dlmjax.sampling.stops import make_stop
from dlmjax.seeds import following


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Settings of generated text.

    length: longest text, tokens.  until: strings at which a text ends; they are not part of it.
    temperature, top_p: as for `SampleSettings`; temperature 0 = the most likely tokens, those of highest probability first.
    block: tokens of a block of masked processes.  tokens_per_step: tokens that each network call reveals (1 = best and slowest).
    rule: which of them, as for `SampleSettings`; None = the most likely ones (confidence). Rules that decide the number of tokens of a step
      themselves, as threshold, ignore `tokens_per_step`. Causal processes have no other rule than from left to right.
    eos: how far the end of document is held back, as for `SampleSettings`.  draft: as there; the text stays the same.
    stop: when the rest of a block is revealed at once, as there; a text ends at its end of document in any case.
    cache: reused keys and values, a policy of `sampling.reuse`, whose blocks are counted from the start of the prompt, in place of `block`;
      None = none. Masked processes.

    Raises InputError: a number below 1 where a count is required; no such rule.
    """

    length: int = 256
    until: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    block: int = 32
    tokens_per_step: int = 1
    rule: str | None = None
    eos: str | None = None
    draft: str | None = None
    stop: str | None = None
    cache: str | None = None

    def __post_init__(self):
        for name in ("length", "block", "tokens_per_step"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} of generated text is {getattr(self, name)}; give at least 1")
        if self.rule is not None:
            make_rule(self.rule)
        if self.eos is not None:
            make_hold_back(self.eos)
        if self.draft is not None:
            make_draft(self.draft)
        if self.stop is not None:
            make_stop(self.stop)
        if self.cache is not None:
            make_reuse(self.cache)


@dataclasses.dataclass(frozen=True)
class RaggedCanvas(Canvas):
    """A canvas whose rows end at `length_B`; the rest is padding, to which no position attends."""

    length_B: Int[np.ndarray, "B"]

    @property
    def segments_BL(self):
        """1 on the text, 0 on padding."""
        return (np.arange(self.length) < self.length_B[:, None]).astype(np.int32)


class Generator:
    """Continues prompts with one process and network.  Compiles on first use, once for each width and `Decoding`; keep the object.

    network: a `models.Network`.  longest: most tokens of prompt and text together, the training length.  batch: prompts in a batch.
    """

    def __init__(self, process, network, tokenizer, *, longest: int, batch: int = 8, seed: int = 0):
        self.process, self.network, self.tokenizer = process, network, tokenizer
        self.longest, self.batch, self.seed = longest, batch, seed
        self.walks = process.attention.sequential
        self.masked = process.bound.capabilities.any_order and not self.walks
        self._samplers: dict[SampleSettings, Sampler | BlockSampler | CachedSampler] = {}

    def __call__(self, params, prompts: Sequence[np.ndarray], decoding: Decoding) -> list[str]:
        """The text after each prompt, which ends before the first stop string.

        A prompt that leaves no room for `decoding.length` tokens is cut from the left, to no less than half of `longest`; the text is
        then as long as fits.
        """
        return [self._text(generated_G, decoding.until)[0] for generated_G in self.tokens(params, prompts, decoding)]

    def tokens(self, params, prompts: Sequence[np.ndarray], decoding: Decoding) -> list[np.ndarray]:
        """The ids generated after each prompt; ids after an end of document or a stop string have no meaning."""
        generated: list[np.ndarray] = [np.zeros(0, np.int32)] * len(prompts)
        longest_first = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        for number, start in enumerate(range(0, len(prompts), self.batch)):
            chunk = longest_first[start : start + self.batch]
            canvas, prompt_B = self._canvas([prompts[i] for i in chunk], decoding)
            for tokens_BL in self._stages(params, canvas, decoding, following(self.seed, number)):
                for b, i in enumerate(chunk):
                    generated[i] = tokens_BL[b, prompt_B[b] : canvas.length_B[b]]
                if all(self._text(generated[i], decoding.until)[1] for i in chunk):
                    break
        return generated

    def _canvas(self, prompts: list[np.ndarray], decoding: Decoding) -> tuple[RaggedCanvas, np.ndarray]:
        """(canvas of prompts and masks, length of each prompt as cut); rows that pad the batch have one token and no mask."""
        room = [min(decoding.length, max(self.longest - len(prompt), self.longest // 2)) for prompt in prompts]
        kept = [prompt[max(len(prompt) + new - self.longest, 0) :] for prompt, new in zip(prompts, room, strict=True)]
        length_B = np.ones(self.batch, np.int32)
        length_B[: len(prompts)] = [len(prompt) + new for prompt, new in zip(kept, room, strict=True)]
        prompt_B = np.asarray([len(prompt) for prompt in kept])
        # Whole blocks, so that those of a text do not depend on the longest one of its batch.
        size = self.process.attention.block_size or (make_reuse(decoding.cache).block if decoding.cache else 0) or 1
        tokens_BL = np.full((self.batch, row_width(int(length_B.max()), self.longest, size)), self.tokenizer.pad_id, np.int32)
        condition_mask_BL = np.ones(tokens_BL.shape, bool)
        for b, prompt in enumerate(kept):
            tokens_BL[b, : len(prompt)] = prompt
            # `BlockSampler` also generates the blocks after the end of a row; they do not change the tokens before them.
            condition_mask_BL[b, len(prompt) : None if self.walks else length_B[b]] = False
        return RaggedCanvas(tokens_BL, condition_mask_BL, 1.0 - condition_mask_BL.astype(np.float32), length_B), prompt_B

    def _stages(self, params, canvas: RaggedCanvas, decoding: Decoding, seed: int) -> Iterator[np.ndarray]:
        """The tokens after each stage of sampling; the pad id where none is generated yet."""
        if self.walks or decoding.cache is not None:
            yield from self._walk(params, canvas, decoding, seed)
        elif self.masked:
            yield from self._semi_autoregression(params, canvas, decoding, seed)
        else:
            if decoding.rule is not None:
                raise InputError(f"rule {decoding.rule} requires masked tokens, but process {self.process.name} has none; leave rule out")
            settings = SampleSettings(steps=max(decoding.length // decoding.tokens_per_step, 1), **self._ids(decoding))
            yield self._sampler(settings).sample(params, canvas, seed=seed).tokens_BL

    def _walk(self, params, canvas: RaggedCanvas, decoding: Decoding, seed: int) -> Iterator[np.ndarray]:
        of_cache = make_reuse(decoding.cache).block or decoding.length if decoding.cache else 1
        sampler = self._sampler(self._settings(decoding, self.process.attention.block_size or of_cache))
        before = -1
        for state in sampler.states(params, canvas, seed=seed):
            # Yielded when the shortest finished prefix has grown, not at every step inside a block.
            reached = int(np.cumprod(~state.masked_BL, axis=1).sum(axis=1).min())
            if reached > before:
                before = reached
                yield np.where(state.masked_BL, self.tokenizer.pad_id, state.tokens_BL)

    def _semi_autoregression(self, params, canvas: RaggedCanvas, decoding: Decoding, seed: int) -> Iterator[np.ndarray]:
        masked_BL, tokens_BL = ~canvas.condition_mask_BL, canvas.tokens_BL.copy()
        tokens_BL[masked_BL] = self.tokenizer.mask_id
        index_BL = np.cumsum(masked_BL, axis=1) - 1
        sampler = self._sampler(self._settings(decoding, min(decoding.block, decoding.length)))
        for block in range(-(-int(masked_BL.sum(axis=1).max()) // decoding.block)):
            now_BL = masked_BL & (index_BL // decoding.block == block)
            # Later blocks are frozen masks: the network reads them, and none is revealed.
            before_B = np.full(len(now_BL), block * decoding.block)
            part = RaggedCanvas(tokens_BL.copy(), ~now_BL, now_BL.astype(np.float32), canvas.length_B, before_B=before_B)
            tokens_BL = sampler.sample(params, part, seed=following(seed, block << 16)).tokens_BL
            yield np.where(tokens_BL == self.tokenizer.mask_id, self.tokenizer.pad_id, tokens_BL)

    def _settings(self, decoding: Decoding, block: int) -> SampleSettings:
        rule = decoding.rule or ("left_to_right" if self.process.attention.causal else "confidence")
        return SampleSettings(
            steps=-(-block // decoding.tokens_per_step),
            rule=rule,
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            **self._ids(decoding),
        )

    def _ids(self, decoding: Decoding) -> dict[str, Any]:
        """The settings of what ids are produced, and of what saves calls."""
        end_ids = () if decoding.eos is None or self.tokenizer.eos_id is None else (int(self.tokenizer.eos_id),)
        ids = {"suppressed_ids": suppressed_ids(self.tokenizer, self.process.vocab), "end_ids": end_ids}
        return {**ids, "eos": decoding.eos, "draft": decoding.draft, "stop": decoding.stop, "cache": decoding.cache or False}

    def check(self, decoding: Decoding) -> None:
        """Raises InputError: drafts, a stop or a cache that the process or the network cannot serve."""
        if (decoding.draft, decoding.stop, decoding.cache) != (None, None, None):
            self._sampler(self._settings(decoding, 1) if self.walks or self.masked else SampleSettings(**self._ids(decoding)))

    def _sampler(self, settings: SampleSettings) -> Any:
        if settings not in self._samplers:
            if isinstance(settings.cache, str):
                self._samplers[settings] = CachedSampler(self.process, self.network, settings, eos_id=self.tokenizer.eos_id)
            elif self.walks:
                self._samplers[settings] = BlockSampler(self.process, self.network, settings, eos_id=self.tokenizer.eos_id)
            else:
                hints = self.network.self_condition
                how = {"self_condition": hints, "layout": self.network.layout}
                make = Sampler if settings.draft is None else DraftingSampler
                self._samplers[settings] = make(self.process, self.network.bind, settings, **how)
        return self._samplers[settings]

    def _text(self, generated_G: np.ndarray, until: tuple[str, ...]) -> tuple[str, bool]:
        """(the text up to its end, whether it has ended)."""
        ends = np.flatnonzero((generated_G == self.tokenizer.eos_id) | (generated_G == self.tokenizer.pad_id))
        ended = bool(ends.size) and generated_G[ends[0]] == self.tokenizer.eos_id
        text = self.tokenizer.decode(generated_G[: ends[0]] if ends.size else generated_G)
        stops = [text.find(string) for string in until if string and string in text]
        return (text[: min(stops)], True) if stops else (text, bool(ended) or not ends.size)
