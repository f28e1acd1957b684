"""Goodput: the share of a run's wall time that went into steps it kept, over all its starts, and where the rest went.

    start        from the call to the end of the first step: corpus, restore, compilation
    data         waiting for a batch
    checkpoint   the part of saving that the loop waits for
    evaluation   held-out bounds and samples
    lost         steps that were done again after a kill
    down         between the end of one start and the next

Within a start time is that of a clock that nobody sets. Between two starts there is only the time of day: where it was set back, `down` is
0, and the line for people says so.

The account lies in `goodput.json` in the workdir and is written every few seconds and at each checkpoint, so a kill costs little of it.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Iterator

import jax

from dlmjax.errors import InputError
from dlmjax.files import read_json, write_atomically

FILE = "goodput.json"
WRITE_EVERY = 10.0  # seconds
CAUSES = ("start", "data", "checkpoint", "evaluation")


@dataclasses.dataclass
class Life:
    """One start of a run. `began` in seconds since the epoch, `ended` so many later as it lasted, `seconds` by cause; steps between `first`
    and `last` were done in it."""

    began: float
    ended: float
    first: int
    last: int
    seconds: dict[str, float]

    @property
    def lasted(self) -> float:
        """Seconds."""
        return max(self.ended - self.began, 0.0)

    @property
    def stepping(self) -> float:
        """Seconds in steps."""
        return max(self.lasted - sum(self.seconds.values()), 0.0)


class Goodput:
    """The account of a run; of several processes, only the first one keeps it.

    Args:
      workdir: of the run.
      step: updates done so far: where this start goes on.
      began: time.time() when the command was called.

    Raises InputError: a folder is in the place of the account.
    """

    def __init__(self, workdir: pathlib.Path, step: int, began: float):
        self._path = workdir / FILE if jax.process_index() == 0 else None
        self._before = read_lives(self._path) if self._path else []
        if self._path and self._path.is_dir():
            raise InputError(f"{self._path} is a folder; the account of the run lies there: move the folder away")
        now = time.time()
        self._life = Life(began, now, step, step, dict.fromkeys(CAUSES, 0.0))
        self._clock = time.perf_counter() - max(now - began, 0.0)  # when this start began
        self._written = 0.0

    def _ends(self) -> float:
        """The life ends now; its end."""
        self._life.ended = self._life.began + time.perf_counter() - self._clock
        return self._life.ended

    @contextlib.contextmanager
    def spent(self, cause: str) -> Iterator[None]:
        """`with goodput.spent("data"): ...`"""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._life.seconds[cause] += time.perf_counter() - start

    def stepped(self, done: int) -> None:
        """`done` updates are done. What this start took until its first one was start-up."""
        life = self._life
        self._ends()
        if life.last == life.first:
            life.seconds["start"] = life.lasted - sum(life.seconds[cause] for cause in CAUSES if cause != "start")
        life.last = done
        if life.ended - self._written > WRITE_EVERY:
            self.write()

    def write(self) -> None:
        """Puts the account on disk."""
        self._written = self._ends()
        if self._path:
            lives = [dataclasses.asdict(life) for life in (*self._before, self._life)]
            write_atomically(self._path, json.dumps({"starts": lives}, indent=1) + "\n")

    def shares(self) -> dict[str, float]:
        """{"goodput": share of the wall time, "wall", "productive", "lost", "down" and each cause: seconds, "starts": how often}."""
        self._ends()
        lives = [*self._before, self._life]
        lost = down = 0.0
        for life, following in zip(lives, lives[1:], strict=False):
            again = max(life.last - following.first, 0)
            lost += life.stepping * min(again / max(life.last - life.first, 1), 1.0)
            down += max(following.began - life.ended, 0.0)
        wall = sum(life.lasted for life in lives) + down
        productive = sum(life.stepping for life in lives) - lost
        causes = {cause: sum(life.seconds[cause] for life in lives) for cause in CAUSES}
        return {
            "goodput": productive / max(wall, 1e-9),
            "wall": wall,
            "productive": productive,
            **causes,
            "lost": lost,
            "down": down,
            "starts": float(len(lives)),
        }

    def summary(self) -> str:
        """One line for people."""
        found = self.shares()
        rest = ", ".join(f"{cause} {found[cause]:.1f} s" for cause in (*CAUSES, "lost", "down"))
        starts = int(found["starts"])
        lives = [*self._before, self._life]
        if any(following.began < life.ended - 1 for life, following in zip(lives, lives[1:], strict=False)):
            rest += " (less than it was: the clock was set back between starts)"
        return (
            f"goodput {found['goodput']:.1%}: {found['productive']:.1f} s of kept steps in {found['wall']:.1f} s of wall time; {rest} "
            f"({starts} start{'s' if starts > 1 else ''})"
        )


def read_lives(path: pathlib.Path) -> list[Life]:
    """Earlier starts; an account that cannot be read is begun anew, since no result depends on it."""
    try:
        lives = [Life(**life) for life in read_json(path)["starts"]]
        times = [value for life in lives for value in (life.began, life.ended, life.first, life.last, *map(life.seconds.get, CAUSES))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        return []
    return lives if all(type(value) in (int, float) and math.isfinite(value) for value in times) else []
