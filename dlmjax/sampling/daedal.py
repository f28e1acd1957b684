"""DAEDAL (2508.00819): a canvas that gets longer where the end of document is not likely enough; see `growth` for its sampler.

e is the probability of the end, summed over those of the last `window` positions of a row where the end is the most likely token, divided
by `window`.

    first     from `initial` masks, while e is below `enough`, `add` masks more; then half a window more
    then      in windows of `window` positions, from left to right: reveal every position whose largest probability is above `high`, at
              least the surest; while e is below `sure`, the least sure masked position of the window, if its probability is below `low`,
              becomes `add` masked positions

Sharpened: what is revealed together costs what it costs, and the length is decided by thresholds.

All decisions are made on the host, of each row by itself.  Shapes: P tokens of a prompt, B rows, S positions of a bucket.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import numpy as np

from dlmjax.errors import InputError
from dlmjax.sampling.by_name import build


@dataclasses.dataclass(frozen=True)
class Daedal:
    """See the module. longest: most generated positions; the length of the canvas is a bound too.  add: masks of a growth."""

    initial: int = 64
    window: int = 32
    enough: float = 0.5
    sure: float = 0.9
    high: float = 0.9
    low: float = 0.1
    add: int = 8
    longest: int = 2048

    name: ClassVar[str] = "daedal"
    source: ClassVar[str] = "DAEDAL 2508.00819, LLaDA_DAEDAL.py: 64, 32, 0.5, 0.9, 0.9, 0.1, 8, 2048"

    def __post_init__(self):
        for name in ("initial", "window", "add", "longest"):
            if not 1 <= getattr(self, name) <= 2**20:
                raise InputError(f"grow daedal: {name} is {getattr(self, name)}; it must be 1 to {2**20}")
        for name in ("enough", "sure", "high", "low"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"grow daedal: {name} is {getattr(self, name)}; it is a probability and must lie in [0, 1]")
        if self.longest < self.initial:
            raise InputError(f"grow daedal: longest is {self.longest}; it must be at least initial, {self.initial}")


GROWTHS: dict[str, type[Daedal]] = {Daedal.name: Daedal}


def make_growth(text: str) -> Daedal:
    """The growth of a text: "daedal(initial=32)". Raises InputError: no such one, a value that it does not take."""
    return build("grow", text, GROWTHS)


class Look(NamedTuple):
    """What the host knows of a call: drawn tokens and their probability, the largest one, that of the end, whether the end is likeliest."""

    drawn_BS: Any
    p_drawn_BS: Any
    best_BS: Any
    end_BS: Any
    is_end_BS: Any


@dataclasses.dataclass
class Row:
    """One row on the host. filled: tokens, -1 where masked; prompt: number of tokens that condition."""

    prompt_P: np.ndarray
    filled: np.ndarray
    confidence: np.ndarray
    fixed: np.ndarray
    growing: bool = True  # in the first stage

    def masks(self, at: int, count: int) -> None:
        """Inserts masked positions."""
        self.filled = np.insert(self.filled, at, np.full(count, -1))
        self.confidence = np.insert(self.confidence, at, np.zeros(count))
        self.fixed = np.insert(self.fixed, at, np.full(count, -1))

    def end_share(self, look: Look, window: int, end_id: int) -> float:
        """e of the module; an end that is revealed counts 1."""
        some = slice(max(len(self.filled) - window, 0), len(self.filled))
        shown = self.filled[some]
        p_end = np.where(shown < 0, look.end_BS[some] * look.is_end_BS[some], shown == end_id)
        return float(p_end.sum() / len(p_end))


def next_of(growth: Daedal, row: Row, look: Look, *, most: int, end_id: int, step: int) -> None:
    """The row after a call; `look` is of its generated positions alone, `most` the largest number of them."""
    share, length = row.end_share(look, growth.window, end_id), len(row.filled)
    if row.growing:
        if share < growth.enough and length < most:
            row.masks(length, min(growth.add, most - length))
            return
        row.masks(length, min(growth.window // 2, most - length))
        row.growing = False
        if len(row.filled) > length:
            return
    masked = np.flatnonzero(row.filled < 0)
    start = masked[0] // growth.window * growth.window
    masked = masked[masked < start + growth.window]
    best = look.best_BS[masked]
    new = masked[(best > growth.high) | (np.arange(len(masked)) == best.argmax())]
    row.filled[new], row.confidence[new], row.fixed[new] = look.drawn_BS[new], look.p_drawn_BS[new], step
    left = masked[row.filled[masked] < 0]
    if share < growth.sure and length < most and len(left):
        least = left[look.best_BS[left].argmin()]
        if look.best_BS[least] < growth.low:
            row.masks(int(least) + 1, min(growth.add - 1, most - length))
