"""Traces: every state of a sampling run with its confidences, as data that replays bit for bit.

A trace holds the canvas, the settings and the seed. `replay` runs the sampler again with the weights and checks that each recorded state
is the state of the sampler.

Shapes: S states (the start and one per step), B rows, L positions.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dlmjax.errors import InputError
from dlmjax.files import write_atomically
from dlmjax.sampling.canvas import Canvas
from dlmjax.sampling.pieces import PieceSampler
from dlmjax.sampling.sampler import Sampler
from dlmjax.sampling.samples import Samples, State
from dlmjax.sampling.settings import SampleSettings
from dlmjax.sampling.text import Tokenizer, piece, text_of

AnySampler = Sampler | PieceSampler

FORMAT = "dlmjax-trace-1"
MASKED = -1  # entry of `tokens_SBL` at masked positions
_CONFIDENCE_DIGITS = 4


@dataclasses.dataclass(frozen=True)
class Trace:
    """A recorded run of a sampler.

    tokens_SBL: token ids of each state, MASKED at masked positions.  times_S: time t of each state.
    confidence_SBL: see `State.confidence_BL`, rounded to 4 digits.  pieces: display text of each id that occurs.
    texts: the finished rows, decoded; empty without a tokenizer.
    """

    process: str
    settings: SampleSettings
    seed: int
    canvas: Canvas
    tokens_SBL: Int[np.ndarray, "S B L"]
    confidence_SBL: Float[np.ndarray, "S B L"]
    times_S: Float[np.ndarray, "S"]
    steps: int
    pieces: dict[int, str] = dataclasses.field(default_factory=dict)
    texts: tuple[str, ...] = ()

    @property
    def states(self) -> int:
        return len(self.tokens_SBL)

    def to_json(self) -> dict[str, Any]:
        """The trace as plain JSON; each state is stored as changes of the one before ([position, id], id -1 = masked again)."""
        changes = []
        for before_BL, after_BL in zip(self.tokens_SBL, self.tokens_SBL[1:], strict=False):
            changes.append(
                [[[int(i), int(row[1][i])] for i in np.flatnonzero(row[0] != row[1])] for row in zip(before_BL, after_BL, strict=True)]
            )
        return {
            "format": FORMAT,
            "process": self.process,
            "settings": self.settings.to_json(),
            "seed": self.seed,
            "steps": self.steps,
            "canvas": {
                "tokens": self.canvas.tokens_BL.tolist(),
                "frozen": self.canvas.condition_mask_BL.astype(int).tolist(),
                "start": self.canvas.start_BL.tolist(),
                **({} if self.canvas.spans_L is None else {"spans": self.canvas.spans_L.tolist()}),
            },
            "times": self.times_S.tolist(),
            "first": self.tokens_SBL[0].tolist(),
            "changes": changes,
            "confidence": np.round(self.confidence_SBL * 10**_CONFIDENCE_DIGITS).astype(int).tolist(),
            "pieces": {str(token): text for token, text in sorted(self.pieces.items())},
            "texts": list(self.texts),
        }

    @staticmethod
    def from_json(record: Any) -> "Trace":
        """The trace of a `to_json` record.  Raises InputError where the record is not a trace."""
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise InputError(f"this is not a denoising trace of format {FORMAT}; write one with: dlmjax sample --trace FILE")
        try:
            canvas = record["canvas"]
            shown = [np.asarray(record["first"], np.int32)]
            for step in record["changes"]:
                state_BL = shown[-1].copy()
                for row, changes in enumerate(step):
                    for position, token in changes:
                        state_BL[row, position] = token
                shown.append(state_BL)
            return Trace(
                process=record["process"],
                settings=SampleSettings.from_json(record["settings"]),
                seed=record["seed"],
                canvas=Canvas(
                    np.asarray(canvas["tokens"], np.int32),
                    np.asarray(canvas["frozen"], bool),
                    np.asarray(canvas["start"], np.float32),
                    spans_L=np.asarray(canvas["spans"], np.int32) if "spans" in canvas else None,
                ),
                tokens_SBL=np.stack(shown),
                confidence_SBL=np.asarray(record["confidence"], np.float64) / 10**_CONFIDENCE_DIGITS,
                times_S=np.asarray(record["times"], np.float64),
                steps=record["steps"],
                pieces={int(token): text for token, text in record["pieces"].items()},
                texts=tuple(record["texts"]),
            )
        except (KeyError, TypeError, IndexError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(f"the denoising trace is damaged ({type(error).__name__}: {error}); record it again") from error

    def write_json(self, path: str | os.PathLike) -> None:
        write_atomically(path, json.dumps(self.to_json(), allow_nan=False) + "\n")


def record(
    sampler: AnySampler,
    params,
    canvas: Canvas,
    *,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
    on_state: Callable[[State], None] | None = None,
) -> tuple[Samples, Trace]:
    """Runs the sampler once and records every state.

    on_state: called with each state when it is computed (the live view).
    Returns samples, bit for bit those of `sampler.sample` with the same seed, and their trace.
    """
    states = []
    for state in sampler.states(params, canvas, seed=seed):
        states.append(state)
        if on_state is not None:
            on_state(state)
    return record_of(states, sampler, canvas, seed=seed, tokenizer=tokenizer)


def record_of(
    states: Sequence[State], sampler: AnySampler, canvas: Canvas, *, seed: int, tokenizer: Tokenizer | None = None
) -> tuple[Samples, Trace]:
    """Samples and trace of the states that `sampler.states` has yielded, to the last one."""
    tokens_SBL = np.stack([_tokens_of(state) for state in states])
    samples = sampler.finish(states[-1], canvas, seed)
    trace = Trace(
        process=sampler.name,
        settings=sampler.settings,
        seed=seed,
        canvas=canvas,
        tokens_SBL=tokens_SBL,
        confidence_SBL=np.stack([_rounded(state) for state in states]),
        times_S=np.asarray([state.time for state in states], np.float64),
        steps=samples.steps,
        pieces={int(t): piece(tokenizer, int(t)) for t in np.unique(tokens_SBL) if t != MASKED},
        texts=tuple(text_of(tokenizer, tokens_L) for tokens_L in samples.tokens_BL) if tokenizer is not None else (),
    )
    return samples, trace


def first_difference(trace: Trace, sampler: AnySampler, params) -> int | None:
    """Runs the sampler again from the trace's canvas and seed; returns the first state (0 = the start) that differs, None if none does.

    Tokens and masked positions are compared exactly, confidences after the rounding of the trace.
    Raises InputError: a sampler of a different process or settings.
    """
    if sampler.settings != trace.settings or sampler.name != trace.process:
        raise InputError(
            f"the trace is of process {trace.process} with {trace.settings}, the sampler of process {sampler.name} with {sampler.settings}"
        )
    index = -1
    for index, state in enumerate(sampler.states(params, trace.canvas, seed=trace.seed)):
        if index >= trace.states:
            return index
        same_tokens = np.array_equal(_tokens_of(state), trace.tokens_SBL[index])
        if not (same_tokens and np.array_equal(_rounded(state), trace.confidence_SBL[index])):
            return index
    return None if index + 1 == trace.states else index + 1


def replay(trace: Trace, sampler: AnySampler, params) -> int:
    """Checks a trace by running the sampler again; returns the number of states.  Raises InputError, with the first state that differs."""
    step = first_difference(trace, sampler, params)
    if step is not None:
        raise InputError(
            f"the trace does not replay: state {step} of {trace.states - 1} differs; the weights or the seed are not those of the trace"
        )
    return trace.states


def _tokens_of(state: State) -> np.ndarray:
    return np.where(state.masked_BL, MASKED, state.tokens_BL).astype(np.int32)


def _rounded(state: State) -> np.ndarray:
    scale = 10**_CONFIDENCE_DIGITS
    return np.round(state.confidence_BL.astype(np.float64) * scale) / scale
