"""The opened runs: canvases, samplers and displayed text of what a request names.

Shapes: L positions, V vocabulary.
"""

import collections
import gc
import json
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from dlmjax.diffusion.process import bind_process, row_keys
from dlmjax.errors import InputError
from dlmjax.parallel.arrays import device_get, memory_bytes
from dlmjax.play.fields import Fields, Limits, check_size
from dlmjax.run import Run
from dlmjax.sampling import METHODS, RULES, Canvas
from dlmjax.sampling.canvas import parse_template
from dlmjax.sampling.rule_names import IN_TIME
from dlmjax.sampling.stops import STOPS
from dlmjax.sampling.text import piece

MOST_ALTERNATIVES = 20
MOST_LENGTHS = 8  # canvas lengths for which the program of the alternatives is kept
_WITH_VALUES = {"min_gap": "min_gap(rule=margin, d=2)"}  # rules that have no default


class PlayRun:
    """A run with its name on the page."""

    def __init__(self, name: str, run: Run, limits: Limits):
        self.name, self.run, self.limits = name, run, limits
        self._pieces: dict[int, str] = {}
        self._lengths: set[int] = set()
        self.description = self._describe()

    def _describe(self) -> dict[str, Any]:
        process, config = self.run.process, self.run.experiment.config
        rules = [rule for rule in (_WITH_VALUES.get(name, name) for name in RULES) if self._takes(rule=rule)]
        in_time = [IN_TIME] if self._takes() and not process.attention.causal else []
        methods = [name for name in METHODS if self._takes(method=name)] if in_time else []
        free = rules[0] if rules else IN_TIME
        stops = [name for name in STOPS if self._takes(rule=free, stop=name)]
        return {
            "name": self.name,
            "process": process.name,
            "family": config.model.family,
            "masks": process.capabilities.prior_mask_id is not None,
            "length": config.data.length,
            "rules": in_time + rules,
            "methods": methods,
            "stops": stops + (["end"] if self._takes(stop="end") else []),
            # With its hash: two tokenizers of one name may have other ids.
            "tokenizer": f"{self.run.tokenizer.name} {self.run.tokenizer.hash[:12]}",
            "step": self.run.step,
            "weights": self.run.weights,
        }

    def _takes(self, **settings: Any) -> bool:
        try:
            self.run.new_sampler(**settings)
        except InputError:
            return False
        return True

    # --- text ---------------------------------------------------------------------------------------------------------------

    def text(self, token: int) -> str:
        """Displayed text of an id."""
        if token not in self._pieces:
            self._pieces[token] = piece(self.run.tokenizer, token)
        return self._pieces[token]

    def token(self, token: int | None, **more: Any) -> dict[str, Any]:
        """An id with its displayed text; None: noise, or the mask."""
        return {"id": token, "text": "" if token is None else self.text(token)} | more

    def encode(self, text: str) -> list[dict[str, Any]]:
        """The tokens of a template; masked positions have no id. Raises InputError: a damaged marker, more tokens than a canvas takes."""
        found: list[dict[str, Any]] = []
        for content, kind in self._parsed(text):
            if kind == "mask":
                found += [self.token(None, held=False)] * content
            else:
                ids = self.run.tokenizer.encode(content)
                found += [self.token(int(token), held=kind == "condition") for token in ids[: self.limits.length + 1]]
            check_size(1, 1, max(1, len(found)), 1, self.limits)
        return found

    def _parsed(self, text: str) -> list[tuple[str | int, str]]:
        """The parts of a template. Raises InputError: a damaged marker, more masks than a canvas takes, which are not yet allocated."""
        parts = parse_template(text)
        if any(kind == "span" for _, kind in parts):
            raise InputError("the page does not show spans; write [MASK*12] in place of [SPAN*12]")
        masks = sum(content for content, kind in parts if kind == "mask")
        check_size(1, 1, max(1, masks), 1, self.limits)
        return parts

    # --- canvases -----------------------------------------------------------------------------------------------------------

    def canvas_of(self, fields: Fields) -> Canvas:
        """One row: `canvas`, a list of tokens, or `template`, a text, up to `length`; `start_t` for edited text.

        Raises InputError: neither or both, ids outside the vocabulary, nothing to fill in, a canvas that is too long.
        """
        length = fields.whole("length", None, 1, self.limits.length)
        start_t = fields.number("start_t", 1.0, 1e-6, 1.0) if "start_t" in fields else None
        if ("canvas" in fields) == ("template" in fields):
            raise InputError("give either canvas, a list of tokens, or template, a text")
        if "canvas" in fields:
            if length is not None:
                raise InputError("length belongs to a template; a canvas has its own number of tokens")
            return self.canvas_of_tokens(fields.get("canvas"), start_t)
        template = fields.text("template", "", self.limits.characters)
        parts = self._parsed(template)
        if length is None and all(kind == "condition" for _, kind in parts):
            length = self.run.experiment.config.data.length
        canvas = self.run.canvas(template=template, length=length, start_t=start_t)
        check_size(1, 1, canvas.length, 1, self.limits)
        return canvas

    def canvas_of_tokens(self, items: Any, start_t: float | None = None) -> Canvas:
        """A canvas of [{"id": 5 or null, "held": true}, ...]: null is denoised from t = 1; with `start_t`, ids not held are edited."""
        if not isinstance(items, list):
            raise InputError('canvas is not a list; give [{"id": 5, "held": true}, {"id": null}]')
        check_size(1, 1, len(items), 1, self.limits)
        tokens_L = np.full(len(items), self.run.tokenizer.mask_id, np.int32)
        start_L = np.ones(len(items), np.float32)
        for position, item in enumerate(items):
            fields = Fields(item, ("id", "held", "text"), f"token {position} of canvas")
            token = fields.whole("id", None, 0, self.run.process.vocab - 1)
            held = fields.switch("held")
            if token is not None and token != self.run.process.capabilities.prior_mask_id:
                tokens_L[position], start_L[position] = token, 0.0 if held or start_t is None else start_t
        if not start_L.any():
            raise InputError("the canvas leaves nothing to fill in; send a token back to noise")
        return _row(tokens_L, start_L)

    def ids(self, tokens_L: Any, masked_L: Any) -> list[int | None]:
        """Ids as JSON; None where masked."""
        return [None if masked else int(token) for token, masked in zip(tokens_L, masked_L, strict=True)]

    # --- alternatives -------------------------------------------------------------------------------------------------------

    def alternatives(self, canvas: Canvas, position: int, temperature: float, most: int = MOST_ALTERNATIVES) -> list[dict[str, Any]]:
        """The most likely tokens at a position that is sent back to noise, given the others (a causal process: those before it)."""
        process, length = self.run.process.bound, canvas.length
        if 4 * length * process.output.columns > memory_bytes() // 4:
            raise InputError(f"the alternatives of a canvas of {length} tokens do not fit in memory; use a shorter canvas")
        start_L = canvas.start_BL[0].copy()
        start_L[position] = 1.0
        if process.attention.causal and start_L[:position].any():
            raise InputError(f"process {process.name} is causal: the alternatives require a token at each position before")
        if length not in self._lengths and len(self._lengths) >= MOST_LENGTHS:
            self.run.forget()
            self._lengths.clear()
        self._lengths.add(length)
        logits_LV = self.run.logits(self._noisy(canvas.tokens_BL[0], start_L), start_L)
        log_p_V = _log_softmax(logits_LV[position].astype(np.float64))
        if temperature != 1:
            log_p_V = _log_softmax(log_p_V / max(temperature, 1e-6))
        best = np.argsort(-log_p_V, kind="stable")[:most]
        suppressed = set(self.run.suppressed_ids)
        return [self.token(int(token), p=float(np.exp(log_p_V[token]))) for token in best if int(token) not in suppressed]

    def _noisy(self, tokens_L: np.ndarray, start_L: np.ndarray) -> np.ndarray:
        """The tokens with noise of t = 1 where they are denoised from the start; the network learns nothing from it."""
        process = bind_process(self.run.process.bound, self.run.params)
        mask_id = process.capabilities.prior_mask_id
        if process.attention.causal or process.states.dim:
            return np.where(start_L > 0, 0, tokens_L)
        if mask_id is None:
            mask_id = device_get(process.prior(row_keys(jax.random.key(0), np.arange(1)), len(tokens_L)))[0]
        return np.where(start_L > 0, mask_id, tokens_L)


class Samplers:
    """Compiled samplers of all runs, by run, settings and shape of the canvas; the `most` that were used last are kept.

    One of the quickstart's run that is dropped leaves 4 MB, and 1.5 MB where the collector runs at once: what jax keeps of thousands of
    traced functions. All of that is dropped after each 32, and those that are kept are compiled anew, from the run's folder of programs.
    """

    def __init__(self, most: int = 12):
        self._most, self._dropped = most, 0
        self._kept: collections.OrderedDict[tuple, Any] = collections.OrderedDict()

    def get(self, play: PlayRun, settings: dict[str, Any], shape: tuple[int, ...]) -> Any:
        """The sampler. Raises InputError: settings that the run's process does not support."""
        key = play.name, json.dumps(settings, sort_keys=True), shape
        if key not in self._kept:
            sampler = play.run.new_sampler(**settings)
            while len(self._kept) >= self._most:
                self._drop()
            self._kept[key] = sampler
        self._kept.move_to_end(key)
        return self._kept[key]

    def _drop(self) -> None:
        """Drops the sampler that was used longest ago, with what it has compiled."""
        self._kept.popitem(last=False)
        self._dropped += 1
        gc.collect()
        if self._dropped % 32 == 0:
            jax.clear_caches()


def canvas_of_ids(run: Run, prompt: Sequence[int], suffix: Sequence[int], masked: int, rows: int) -> Canvas:
    """Equal rows of a prompt, positions to fill and a suffix, all as ids."""
    tokens_L = np.asarray([*prompt, *[run.tokenizer.mask_id] * masked, *suffix], np.int32)
    start_L = np.zeros(len(tokens_L), np.float32)
    start_L[len(prompt) : len(prompt) + masked] = 1.0
    return _row(tokens_L, start_L, rows)


def _row(tokens_L: np.ndarray, start_L: np.ndarray, rows: int = 1) -> Canvas:
    tokens_BL, start_BL = (np.tile(row_L, (rows, 1)) for row_L in (tokens_L, start_L))
    return Canvas(tokens_BL, start_BL == 0, start_BL)


def _log_softmax(logits_V: Float[np.ndarray, "V"]) -> Float[np.ndarray, "V"]:
    shifted_V = logits_V - logits_V.max()
    return shifted_V - np.log(np.exp(shifted_V).sum())
