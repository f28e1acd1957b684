"""Goodput: the share of a run's wall time that was spent in steps that it kept, over all its starts, and the causes of the rest.

    start        from the call to the end of the first step: corpus, restore, compilation
    data         waiting for a batch
    checkpoint   the part of saving that the loop waits for
    evaluation   held-out bounds and samples
    lost         steps that were repeated after a kill
    down         between the end of one start and the next

Within a start, time is measured by a monotonic clock. Between two starts only the time of day is known: if it was set back, `down` is 0,
and the summary says so.

The counters are in `goodput.json` in the workdir and are written every few seconds and at each checkpoint, so a kill loses little.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Iterator, Sequence

import jax

from dlmjax.errors import InputError
from dlmjax.files import read_json, write_atomically

FILE = "goodput.json"
WRITE_EVERY = 10.0  # seconds
CAUSES = ("start", "data", "checkpoint", "evaluation")


@dataclasses.dataclass
class Attempt:
    """One start of a run: its steps from `first` to `last`, `began` and `ended` in seconds since the epoch, `seconds` by cause."""

    began: float
    ended: float
    first: int
    last: int
    seconds: dict[str, float]

    @property
    def lasted(self) -> float:
        """Duration in seconds."""
        return max(self.ended - self.began, 0.0)

    @property
    def stepping(self) -> float:
        """Seconds in steps."""
        return max(self.lasted - sum(self.seconds.values()), 0.0)


class Goodput:
    """Counters of a run's wall time; of several processes, only the first one writes them.

    Args:
      workdir: folder of the run.
      step: number of updates done before this start.
      began: time.time() when the command was called.

    Raises InputError: `goodput.json` is a folder.
    """

    def __init__(self, workdir: pathlib.Path, step: int, began: float):
        self._path = workdir / FILE if jax.process_index() == 0 else None
        self._before = read_attempts(self._path) if self._path else []
        if self._path and self._path.is_dir():
            raise InputError(f"{self._path} is a folder; the counters of the run have this name: move the folder away")
        now = time.time()
        self._attempt = Attempt(began, now, step, step, dict.fromkeys(CAUSES, 0.0))
        self._clock = time.perf_counter() - max(now - began, 0.0)  # when this start began
        self._written = 0.0

    def _ends(self) -> float:
        """Sets the end of this attempt to now, and returns it."""
        self._attempt.ended = self._attempt.began + time.perf_counter() - self._clock
        return self._attempt.ended

    @contextlib.contextmanager
    def spent(self, cause: str) -> Iterator[None]:
        """`with goodput.spent("data"): ...` counts the time of the block for a cause."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._attempt.seconds[cause] += time.perf_counter() - start

    def stepped(self, done: int) -> None:
        """Notes that `done` updates are done. The time before the first update of this start counts as `start`."""
        attempt = self._attempt
        self._ends()
        if attempt.last == attempt.first:
            attempt.seconds["start"] = attempt.lasted - sum(attempt.seconds[cause] for cause in CAUSES if cause != "start")
        attempt.last = done
        if attempt.ended - self._written > WRITE_EVERY:
            self.write()

    def write(self) -> None:
        """Writes the counters to `goodput.json`."""
        self._written = self._ends()
        if self._path:
            attempts = [dataclasses.asdict(attempt) for attempt in (*self._before, self._attempt)]
            write_atomically(self._path, json.dumps({"starts": attempts}, indent=1) + "\n")

    def shares(self) -> dict[str, float]:
        """`shares_of` all attempts, this one included."""
        self._ends()
        return shares_of([*self._before, self._attempt])

    def summary(self) -> str:
        """The shares as one line of text."""
        found = self.shares()
        rest = ", ".join(f"{cause} {found[cause]:.1f} s" for cause in (*CAUSES, "lost", "down"))
        starts = int(found["starts"])
        attempts = [*self._before, self._attempt]
        if any(following.began < attempt.ended - 1 for attempt, following in zip(attempts, attempts[1:], strict=False)):
            rest += " (too low: the clock was set back between starts)"
        return (
            f"goodput {found['goodput']:.1%}: {found['productive']:.1f} s of kept steps in {found['wall']:.1f} s of wall time; {rest} "
            f"({starts} start{'s' if starts > 1 else ''})"
        )


def shares_of(attempts: Sequence[Attempt]) -> dict[str, float]:
    """{"goodput": share of the wall time; "wall", "productive", "lost", "down" and each cause, in seconds; "starts": their number}."""
    lost = down = 0.0
    for attempt, following in zip(attempts, attempts[1:], strict=False):
        again = max(attempt.last - following.first, 0)
        lost += attempt.stepping * min(again / max(attempt.last - attempt.first, 1), 1.0)
        down += max(following.began - attempt.ended, 0.0)
    wall = sum(attempt.lasted for attempt in attempts) + down
    productive = sum(attempt.stepping for attempt in attempts) - lost
    causes = {cause: sum(attempt.seconds[cause] for attempt in attempts) for cause in CAUSES}
    return {
        "goodput": productive / max(wall, 1e-9),
        "wall": wall,
        "productive": productive,
        **causes,
        "lost": lost,
        "down": down,
        "starts": float(len(attempts)),
    }


def read_attempts(path: pathlib.Path) -> list[Attempt]:
    """Earlier starts; counters that cannot be read are dropped, since no result depends on them."""
    try:
        attempts = [Attempt(**attempt) for attempt in read_json(path)["starts"]]
        times = [
            value
            for attempt in attempts
            for value in (attempt.began, attempt.ended, attempt.first, attempt.last, *map(attempt.seconds.get, CAUSES))
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        return []
    return attempts if all(type(value) in (int, float) and math.isfinite(value) for value in times) else []
