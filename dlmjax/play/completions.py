"""Completions in the usual shape: `POST /v1/completions` of a prompt, with a suffix an infilling.

The canvas is prompt, `max_tokens` positions and suffix, as `dlmjax sample --prompt --suffix --length` makes it, `n` rows with one seed: the
tokens are those of that command. A text ends at its end of document or before a stop string.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from dlmjax.errors import InputError
from dlmjax.play.fields import Fields, Limits, check_size, setting_kinds, settings_of
from dlmjax.play.jobs import check_sampler
from dlmjax.play.runs import PlayRun, Samplers, canvas_of_ids
from dlmjax.play.worker import Job
from dlmjax.run import Run
from dlmjax.sampling import Canvas, SampleSettings, State
from dlmjax.sampling.reveal import shows_wrong_tokens
from dlmjax.sampling.text import text_of
from dlmjax.seeds import SEEDS

USUAL = ("model", "prompt", "suffix", "max_tokens", "temperature", "top_p", "n", "seed", "stop", "stream", "stream_options", "echo", "user")
# Fields of other servers that would change the text, with the values that change nothing.
NOTHING = {"logprobs": (False,), "best_of": (1,), "presence_penalty": (0,), "frequency_penalty": (0,), "logit_bias": ({},)}
MOST_STOPS, LONGEST_STOP = 8, 200
_KEEPING_RULES = ("random", "left_to_right", "confidence", "margin", "entropy", "threshold", "entropy_bound", "factor", "profile")
_KEEPING_RULES += ("spread", "klass", "pipeline", "pc")
_KEEPING_METHODS = ("ancestral", "tau_leap", "first_hitting", "predetermined")


@dataclasses.dataclass(frozen=True)
class Ask:
    """A request for completions, checked. prompts, suffix: ids.  limit: tokens to generate.  texts: the prompts as text."""

    prompts: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    suffix: tuple[int, ...]
    limit: int
    rows: int
    seed: int
    stops: tuple[str, ...]
    stream: bool
    usage: bool
    echo: bool
    settings: dict[str, Any]


def read_ask(values: Any, play: PlayRun) -> Ask:
    """The request of a JSON body. Raises InputError: an unknown field, another type, more than the limits allow."""
    limits = play.limits
    kinds = [name for name in setting_kinds() if name not in USUAL]
    fields = Fields(values, (*USUAL, *NOTHING, *kinds))
    nothing = NOTHING | {"best_of": (1, fields.get("n"))}
    for name, values_of_none in nothing.items():
        value = fields.get(name)
        if value is not None and (isinstance(value, bool) != (name == "logprobs") or value not in values_of_none):
            raise InputError(f"{name} is not provided here; leave it out{_INSTEAD.get(name, '')}")
    settings = settings_of({name: fields.get(name) for name in (*kinds, "temperature", "top_p") if name in fields}, limits)
    limit = fields.whole("max_tokens", 16, 1, limits.length)
    rows = fields.whole("n", 1, 1, limits.rows)
    options = fields.get("stream_options")
    prompts, texts = _prompts(fields.get("prompt"), play.run, limits)
    suffix = fields.text("suffix", "", limits.characters)
    ask = Ask(
        prompts=prompts,
        texts=texts,
        suffix=_encoded(play.run, suffix) if suffix else (),
        limit=limit,
        rows=rows,
        seed=fields.whole("seed", 0, 0, SEEDS - 1),
        stops=_stops(fields.get("stop")),
        stream=fields.switch("stream"),
        usage=options is not None and Fields(options, ("include_usage",), "stream_options").switch("include_usage"),
        echo=fields.switch("echo"),
        settings=settings,
    )
    fields.text("user", None, 1000)
    longest = max(map(len, prompts)) + limit + len(ask.suffix)
    check_size(len(prompts), rows, longest, settings.get("steps", SampleSettings.steps), limits)
    if rows * longest > 4 * limits.length:
        raise InputError(f"{rows} texts of {longest} tokens at once are more than {4 * limits.length:,}; give a smaller n or max_tokens")
    return ask


_INSTEAD = {"logprobs": "; likelihoods are bounds here, which dlmjax lm-eval and Run.score compute"}


def _prompts(prompt: Any, run: Run, limits: Limits) -> tuple[tuple[tuple[int, ...], ...], tuple[str, ...]]:
    """Ids and texts of a text, a list of texts, a list of ids or a list of these."""
    if prompt is None:
        prompt = ""
    if isinstance(prompt, list) and prompt and all(isinstance(item, int) and not isinstance(item, bool) for item in prompt):
        prompt = [prompt]
    prompts = prompt if isinstance(prompt, list) else [prompt]
    if not 1 <= len(prompts) <= limits.rows:
        raise InputError(f"prompt has {len(prompts)} texts; give 1 to {limits.rows}")
    ids, texts = [], []
    for item in prompts:
        if isinstance(item, str):
            if len(item) > limits.characters:
                raise InputError(f"prompt has {len(item):,} characters; give at most {limits.characters:,}")
            ids.append(_encoded(run, item))
            texts.append(item)
        elif isinstance(item, list) and all(isinstance(token, int) and not isinstance(token, bool) for token in item):
            if len(item) > limits.length:
                raise InputError(f"prompt has {len(item):,} ids; a canvas here has 1 to {limits.length:,}")
            outside = [token for token in item if not 0 <= token < run.process.vocab]
            if outside:
                raise InputError(f"prompt has the id {outside[0]}; the vocabulary of this run has {run.process.vocab} ids")
            ids.append(tuple(item))
            texts.append(text_of(run.tokenizer, np.asarray(item, np.int32)))
        else:
            raise InputError("prompt is neither a text nor a list of token ids, nor a list of these")
    return tuple(ids), tuple(texts)


def _encoded(run: Run, text: str) -> tuple[int, ...]:
    return tuple(int(token) for token in run.tokenizer.encode(text)) if text else ()


def _stops(stop: Any) -> tuple[str, ...]:
    stops = [] if stop is None else stop if isinstance(stop, list) else [stop]
    if len(stops) > MOST_STOPS or not all(isinstance(text, str) and len(text) <= LONGEST_STOP for text in stops):
        raise InputError(f"stop is a text or a list of at most {MOST_STOPS} texts, each of at most {LONGEST_STOP} characters")
    return tuple(text for text in stops if text)


# --- the text of a row ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Cut:
    """The text of a completion, the number of its tokens, and whether it has ended: at an end of document or before a stop string."""

    text: str
    tokens: int
    ended: bool


def cut(run: Run, prompt: Sequence[int], generated_L: np.ndarray, stops: Sequence[str]) -> Cut:
    """The text of generated tokens up to its end."""
    ends = np.flatnonzero(np.isin(generated_L, run.end_ids))
    count = int(ends[0]) if len(ends) else len(generated_L)
    text, ended = _after(run, prompt, generated_L[:count]), len(ends) > 0
    found = [at for at in (text.find(stop) for stop in stops) if at >= 0]
    if found:
        text, ended = text[: min(found)], True
        low, high = 0, count
        while low < high:  # the fewest tokens that hold the text
            middle = (low + high) // 2
            low, high = (low, middle) if _after(run, prompt, generated_L[:middle]).startswith(text) else (middle + 1, high)
        count = low
    return Cut(text, count, ended)


def _after(run: Run, prompt: Sequence[int], generated_L: np.ndarray) -> str:
    """The text behind a prompt; some tokenizers drop a space at the start of a text."""
    head = np.asarray(prompt, np.int32)
    whole, before = text_of(run.tokenizer, np.concatenate([head, generated_L])), text_of(run.tokenizer, head)
    return whole.removeprefix(before) if whole.startswith(before) else text_of(run.tokenizer, generated_L)


def keeps_tokens(sampler: Any) -> bool:
    """Whether a token that a sampler has revealed stays, so that its text can be sent before the last step."""
    inner = getattr(sampler, "inner", sampler)
    if inner.causal:
        return True
    if inner.mask_id is None or shows_wrong_tokens(inner.process, 0.5):
        return False
    rule = inner.rule
    if rule is None:
        return inner.stepper.name in _KEEPING_METHODS
    return rule.name in _KEEPING_RULES and not getattr(rule, "remask", False)


class _Written:
    """The text of a row that is sent while the row is sampled: what no later token, stop string or character of several tokens changes."""

    def __init__(self, run: Run, prompt: Sequence[int], stops: Sequence[str]):
        self._run, self._prompt, self._stops = run, prompt, stops
        self._tokens, self._sent, self.ended = 0, "", False
        self.final = Cut("", 0, False)
        self._held = max((len(stop) for stop in stops), default=1) - 1

    def more(self, generated_L: np.ndarray, masked_L: np.ndarray) -> str:
        """The text that is new in a state."""
        count = int(np.argmax(masked_L)) if masked_L.any() else len(generated_L)
        if self.ended or count == self._tokens:
            return ""
        self._tokens = count
        found = cut(self._run, self._prompt, generated_L[:count], self._stops)
        self.ended = found.ended
        text = found.text if found.ended else found.text.rstrip("\ufffd")
        text = text[: len(text) - self._held] if self._held and not found.ended else text
        return self._next(text)

    def rest(self, text: str) -> str:
        """What is left of the finished text."""
        return self._next(text)

    def _next(self, text: str) -> str:
        if not text.startswith(self._sent):
            return ""
        new, self._sent = text[len(self._sent) :], text
        return new


# --- the work -------------------------------------------------------------------------------------------------------------------


def completing(job: Job, play: PlayRun, samplers: Samplers, ask: Ask) -> Iterator[None]:
    """Samples each prompt; emits ("text", (index, text, finish_reason or None)) where it streams, and at the end all choices."""
    choices, generated = [], 0
    for number, prompt in enumerate(ask.prompts):
        canvas = canvas_of_ids(play.run, prompt, ask.suffix, ask.limit, ask.rows)
        sampler = samplers.get(play, ask.settings, canvas.tokens_BL.shape)
        check_sampler(sampler, canvas, play.limits)
        rows = [_Written(play.run, prompt, ask.stops) for _ in range(ask.rows)]
        part = slice(len(prompt), len(prompt) + ask.limit)
        if ask.stream and ask.echo:
            for row in range(ask.rows):
                job.emit("text", (number * ask.rows + row, ask.texts[number], None))
        yield from _rows(job, play, sampler, canvas, ask, rows, part, number * ask.rows)
        for row, written in enumerate(rows):
            found = written.final
            reason = "stop" if found.ended else "length"
            generated += found.tokens
            index = number * ask.rows + row
            if ask.stream:
                job.emit("text", (index, written.rest(found.text), reason))
            choices.append({"text": (ask.texts[number] if ask.echo else "") + found.text, "index": index, "logprobs": None})
            choices[-1]["finish_reason"] = reason
    asked = sum(map(len, ask.prompts)) + len(ask.suffix) * len(ask.prompts)
    usage = {"prompt_tokens": asked, "completion_tokens": generated, "total_tokens": asked + generated}
    job.emit("end", {"choices": choices, "usage": usage})


def _rows(job: Job, play: PlayRun, sampler: Any, canvas: Canvas, ask: Ask, rows: list[_Written], part: slice, first: int) -> Iterator[None]:
    """The steps of one canvas; ends early where each row's text has ended and its tokens stay. Sets `final` of each row."""
    keeps, prompt, state = keeps_tokens(sampler), canvas.tokens_BL[0, : part.start], None
    for state in sampler.states(play.run.params, canvas, seed=ask.seed):
        if keeps:
            for row, written in enumerate(rows):
                text = written.more(state.tokens_BL[row, part], state.masked_BL[row, part])
                if ask.stream and text:
                    job.emit("text", (first + row, text, None))
            if all(written.ended for written in rows):
                break
        yield
    for row, written in enumerate(rows):
        written.final = cut(play.run, prompt, _shown_prefix(state, row, part), ask.stops)


def _shown_prefix(state: State, row: int, part: slice) -> np.ndarray:
    tokens_L, masked_L = state.tokens_BL[row, part], state.masked_BL[row, part]
    return tokens_L[: int(np.argmax(masked_L))] if masked_L.any() else tokens_L
