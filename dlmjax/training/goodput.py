"""Goodput: the share of a run's wall time that went into steps it kept, over all its starts, and where the rest went.

    start        from the call to the end of the first step: corpus, restore, compilation
    data         waiting for a batch
    checkpoint   the part of saving that the loop waits for
    evaluation   held-out bounds and samples
    lost         steps that were done again after a kill
    down         between the end of one start and the next

The account lies in `goodput.json` in the workdir and is written every few seconds and at each checkpoint, so a kill costs little of it.
"""

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator

import jax

from dlmjax.files import write_atomically

FILE = "goodput.json"
WRITE_EVERY = 10.0  # seconds
CAUSES = ("start", "data", "checkpoint", "evaluation")


@dataclasses.dataclass
class Life:
    """One start of a run. Times in seconds since the epoch, `seconds` by cause; steps between `first` and `last` were done in it."""

    began: float
    ended: float
    first: int
    last: int
    seconds: dict[str, float]

    @property
    def stepping(self) -> float:
        """Seconds in steps."""
        return max(self.ended - self.began - sum(self.seconds.values()), 0.0)


class Goodput:
    """The account of a run; of several processes, only the first one keeps it.

    Args:
      workdir: of the run.
      step: updates done so far: where this start goes on.
      began: time.time() when the command was called.
    """

    def __init__(self, workdir: pathlib.Path, step: int, began: float):
        self._path = workdir / FILE if jax.process_index() == 0 else None
        self._before = read_lives(self._path) if self._path else []
        self._life = Life(began, time.time(), step, step, dict.fromkeys(CAUSES, 0.0))
        self._written = 0.0

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
        life.ended = time.time()
        if life.last == life.first:
            life.seconds["start"] = life.ended - life.began - sum(life.seconds[cause] for cause in CAUSES if cause != "start")
        life.last = done
        if life.ended - self._written > WRITE_EVERY:
            self.write()

    def write(self) -> None:
        """Puts the account on disk."""
        self._life.ended = self._written = time.time()
        if self._path:
            lives = [dataclasses.asdict(life) for life in (*self._before, self._life)]
            write_atomically(self._path, json.dumps({"starts": lives}, indent=1) + "\n")

    def shares(self) -> dict[str, float]:
        """{"goodput": share of the wall time, "wall", "productive", "lost", "down" and each cause: seconds, "starts": how often}."""
        self._life.ended = time.time()
        lives = [*self._before, self._life]
        lost = down = 0.0
        for life, following in zip(lives, lives[1:], strict=False):
            again = max(life.last - following.first, 0)
            lost += life.stepping * min(again / max(life.last - life.first, 1), 1.0)
            down += max(following.began - life.ended, 0.0)
        wall = lives[-1].ended - lives[0].began
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
        return (
            f"goodput {found['goodput']:.1%}: {found['productive']:.1f} s of kept steps in {found['wall']:.1f} s of wall time; {rest} "
            f"({starts} start{'s' if starts > 1 else ''})"
        )


def read_lives(path: pathlib.Path) -> list[Life]:
    """Earlier starts; an account that cannot be read is begun anew, since no result depends on it."""
    try:
        return [Life(**life) for life in json.loads(path.read_text(encoding="utf-8"))["starts"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []
