"""Traces of finished samples, of which the last are kept, and saved traces that are opened again.

Shapes: S states, B rows, L positions.
"""

import collections
from typing import Any

from dlmjax.errors import InputError
from dlmjax.files import parse_json
from dlmjax.play.fields import Limits
from dlmjax.sampling import Trace
from dlmjax.sampling.trace import MASKED

_BEGIN, _END = '<script type="application/json" id="trace">', "</script>"


class Traces:
    """The traces of the last samples, by job: at most `most`, with at most `positions` positions in all their states."""

    def __init__(self, most: int = 32, positions: int = 2**23):
        self._most, self._positions = most, positions
        self._kept: collections.OrderedDict[str, Trace] = collections.OrderedDict()

    def keep(self, job: str, trace: Trace) -> None:
        """Keeps a trace in place of the oldest ones."""
        self._kept[job] = trace
        while len(self._kept) > self._most or sum(trace.tokens_SBL.size for trace in self._kept.values()) > self._positions:
            self._kept.popitem(last=False)

    def get(self, job: str) -> Trace | None:
        """The trace of a job; None where it is not kept."""
        return self._kept.get(job)


def read_trace(content: bytes, limits: Limits) -> Trace:
    """The trace of a page or a JSON file that `--trace`, or this page, has saved.

    Raises InputError: not a trace, damaged, or larger than the limits, before its states are made.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError("the trace is not UTF-8 text; open the page or JSON file that was saved") from None
    if text.lstrip()[:1] == "<":
        _, found, rest = text.partition(_BEGIN)
        if not found or _END not in rest:
            raise InputError("this page holds no denoising trace; save one with: dlmjax sample --trace FILE")
        text = rest.partition(_END)[0]
    try:
        record = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the trace is not readable JSON: {error}; save it again") from None
    _check_size(record, limits)
    trace = Trace.from_json(record)
    _check_arrays(trace)
    return trace


def _check_size(record: Any, limits: Limits) -> None:
    first, changes = (record.get("first"), record.get("changes")) if isinstance(record, dict) else (None, None)
    if not (isinstance(first, list) and isinstance(changes, list) and first and all(isinstance(row, list) for row in first)):
        return  # not a trace, as `Trace.from_json` says in one line
    positions = len(first) * max(map(len, first)) * (len(changes) + 1)
    if positions > limits.positions:
        raise InputError(f"the trace has {positions:,} positions in all states; this page opens at most {limits.positions:,}")


def _check_arrays(trace: Trace) -> None:
    shape = trace.tokens_SBL.shape
    texts = all(isinstance(text, str) for text in (*trace.pieces.values(), *trace.texts, trace.process))
    whole = all(isinstance(value, int) for value in (trace.seed, trace.steps))
    same = trace.confidence_SBL.shape == shape and trace.times_S.shape == shape[:1] and trace.canvas.tokens_BL.shape == shape[1:]
    if not (len(shape) == 3 and texts and whole and same):
        raise InputError("the denoising trace is damaged: its fields do not fit together; record it again")


def trace_states(trace: Trace, row: int = 0) -> dict[str, Any]:
    """A row of a trace as the page shows it: settings, tokens of the canvas, states. Raises InputError: no such row."""
    if not 0 <= row < trace.tokens_SBL.shape[1]:
        raise InputError(f"row is {row}; the trace has {trace.tokens_SBL.shape[1]} rows, 0 first")

    def text(token: int) -> str:
        return "" if token == MASKED else trace.pieces.get(token, f"<{token}>")

    def ids(tokens_L) -> list[int | None]:
        return [None if token == MASKED else token for token in tokens_L]

    start_L, held_L = trace.tokens_SBL[0, row].tolist(), trace.canvas.condition_mask_BL[row].tolist()
    open_ids = [token if held else None for token, held in zip(start_L, held_L, strict=True)]
    rows = [tokens_L.tolist() for tokens_L in trace.tokens_SBL[:, row]]
    return {
        "process": trace.process,
        "settings": trace.settings.to_json(),
        "seed": trace.seed,
        "rows": trace.tokens_SBL.shape[1],
        "tokens": [
            {"id": token, "text": "" if token is None else text(token), "held": held} for token, held in zip(open_ids, held_L, strict=True)
        ],
        "states": [
            {
                "type": "state",
                "step": step,
                "steps": trace.states - 1,
                "time": float(trace.times_S[step]),
                "ids": ids(tokens_L),
                "texts": [text(token) for token in tokens_L],
                "confidence": trace.confidence_SBL[step, row].tolist(),
            }
            for step, tokens_L in enumerate(rows)
        ],
    }
