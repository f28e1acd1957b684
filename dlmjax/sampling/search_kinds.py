"""The ways to search among candidates, by name: what each takes, and which values are refused. `search.Searcher` runs them."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import numpy as np

from dlmjax.errors import InputError
from dlmjax.sampling.by_name import build

MOST = 4096


@runtime_checkable
class Search(Protocol):
    """A way to search.

    name: as in SEARCHES.  width: candidates of a prompt; of a beam, the states that it keeps.  score: what decides, by name; "" = votes.
    of_states: whether the score is of unfinished texts, a function (tokens_BL, masked_BL) -> [B], and not of finished ones.
    """

    name: str
    score: str
    of_states: bool = False

    @property
    def width(self) -> int:
        """Candidates of each prompt."""
        return 1


def _check_count(search: Any, name: str, least: int = 1) -> None:
    value = getattr(search, name)
    if not least <= value <= MOST:
        raise InputError(f"search {search.name}: {name} is {value}; it must be {least} to {MOST}")


@dataclasses.dataclass(frozen=True)
class Best(Search):
    """The candidate with the highest score. score: `confidence`, the mean log-probability that its tokens had when they were revealed;
    other names as in `quality.verifiers`."""

    n: int = 8
    score: str = "confidence"

    name = "best"

    def __post_init__(self):
        _check_count(self, "n", 2)

    @property
    def width(self):
        return self.n


@dataclasses.dataclass(frozen=True)
class Votes(Search):
    """The answer with the most votes.

    n: seeds.  blocks: sizes, positions: each seed is decoded once with each size, block by block, `steps` steps each; () = the whole
      canvas.
    over: "samples", or "steps": the completed text of each step of one sample votes.
    weight: of the vote of step k of K, from 1: equal, linear k / K, or exponential exp(a k / K); a = 11 is the published code's.
    mark: the answer is the text behind its last occurrence; "" = the whole text.
    """

    n: int = 8
    blocks: tuple[int, ...] = ()
    over: str = "samples"
    weight: str = "exponential"
    a: float = 11.0
    mark: str = ""

    name = "votes"
    score = ""

    def __post_init__(self):
        _check_count(self, "n")
        if any(not 1 <= size <= MOST for size in self.blocks) or len(set(self.blocks)) < len(self.blocks):
            raise InputError(f"search votes: blocks is {self.blocks}; give different sizes of 1 to {MOST} positions")
        if self.over not in ("samples", "steps") or self.weight not in ("equal", "linear", "exponential"):
            raise InputError(
                f"search votes: over is {self.over!r} and weight {self.weight!r}; choose samples or steps, and equal, linear or exponential"
            )
        if not 0 < self.a <= 50:
            raise InputError(f"search votes: a is {self.a}; it must lie in (0, 50]")
        if self.over == "steps" and (self.n, self.blocks) != (8, ()):
            raise InputError("search votes: over=steps takes one sample; leave n and blocks out")
        if self.over == "samples" and self.n * max(1, len(self.blocks)) < 2:
            raise InputError("search votes has one candidate; give a larger n, or several blocks")

    @property
    def width(self):
        return 1 if self.over == "steps" else self.n * max(1, len(self.blocks))

    def weight_of(self, step: int, steps: int) -> float:
        """Weight of the vote of step `step`, 1 to `steps`, relative to the last one's where it is exponential."""
        share = step / steps
        return {"equal": 1.0, "linear": share, "exponential": float(np.exp(self.a * (share - 1)))}[self.weight]


@dataclasses.dataclass(frozen=True)
class Smc(Search):
    """Sequential Monte Carlo. reward: "confidence", or a function by its dotted name, (tokens_BL, masked_BL) -> [B] in nats, of texts in
    which masked positions have no meaning yet.

    resample: particles of a prompt are resampled where their effective number is below this share of them.  every: steps between two looks.
    power: what the reward is multiplied by.
    """

    particles: int = 4
    reward: str = "confidence"
    resample: float = 0.5
    every: int = 1
    power: float = 1.0

    name = "smc"
    of_states = True

    def __post_init__(self):
        _check_count(self, "particles", 2)
        _check_count(self, "every")
        if not 0 <= self.resample <= 1 or not 0 < abs(self.power) < 1e6:
            raise InputError(f"search smc: resample is {self.resample} and power {self.power}; they require a share in [0, 1], and not 0")

    @property
    def score(self):
        return self.reward

    @property
    def width(self):
        return self.particles


@dataclasses.dataclass(frozen=True)
class Beam(Search):
    """The `width` best states of a text after each step, each of which continues in `branch` ways.

    score: "confidence", the mean log-probability that the tokens of a state had when they were revealed, masked positions with their most
      likely token, or a function by its dotted name, (tokens_BL, masked_BL) -> [B], of texts in which masked positions have no meaning yet.
    every: steps between two choices.
    """

    width: int = 4
    branch: int = 2
    score: str = "confidence"
    every: int = 1

    name = "beam"
    of_states = True

    def __post_init__(self):
        for name in ("width", "branch", "every"):
            _check_count(self, name)
        if self.rows > MOST:
            raise InputError(f"search beam: width {self.width} times branch {self.branch} is {self.rows}; it must be at most {MOST}")

    @property
    def rows(self) -> int:
        """States that are continued at a time, of each prompt."""
        return self.width * self.branch


@dataclasses.dataclass(frozen=True)
class Paths(Search):
    """Neighbours of the best sample so far, the pivot, `rounds` times `n` of them (zero-order search and search over paths, 2501.09732
    section 3.2). A neighbour has the pivot's noise but in a share of the steps, whose keys are folded again with another seed.

    redraw: "end", the last steps, so that neighbours branch off from the pivot's path, or "any", steps by chance, the first noise included.
    score: as of `Best`.
    """

    n: int = 4
    rounds: int = 2
    share: float = 0.5
    redraw: str = "end"
    score: str = "confidence"

    name = "paths"

    def __post_init__(self):
        _check_count(self, "n")
        _check_count(self, "rounds")
        if self.n * self.rounds > MOST:
            raise InputError(f"search paths: n {self.n} times rounds {self.rounds} must be at most {MOST}")
        if not 0 < self.share <= 1 or self.redraw not in ("end", "any"):
            raise InputError(
                f"search paths: share is {self.share} and redraw {self.redraw!r}; they require a share of the steps in (0, 1], and end or "
                "any"
            )

    @property
    def width(self):
        return 1 + self.n * self.rounds


SEARCHES: dict[str, type[Search]] = {cls.name: cls for cls in (Best, Votes, Smc, Beam, Paths)}


def make_search(text: str) -> Search:
    """The search of a text, "best(n=4, score=own)". Raises InputError: no such search, a value that it does not take."""
    return build("search", text, SEARCHES)
