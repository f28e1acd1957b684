"""Time grids of samplers: N + 1 times that fall from exactly 1 to exactly 0, so that N steps are N calls.

Computed from the integers k = 0 .. N: rounding cannot add an entry (`arange(0, 1, 1 / N)` has N + 1 entries for many N).
A sampler multiplies the times by the start time of the canvas.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from dlmjax.errors import InputError
from dlmjax.sampling.by_name import build


@runtime_checkable
class TimeGrid(Protocol):
    """A frozen dataclass; `make_grid` makes it from a name such as "shifted(alpha=3)"."""

    def times(self, steps: int) -> Float[np.ndarray, "{steps}+1"]:
        """Times from 1 to 0, both exact.  Raises InputError where the grid does not allow this number of steps."""
        ...


@dataclasses.dataclass(frozen=True)
class Uniform(TimeGrid):
    """Equal steps of t."""

    def times(self, steps: int) -> np.ndarray:
        return _fall(steps)


@dataclasses.dataclass(frozen=True)
class Cosine(TimeGrid):
    """t = sin(pi/2 (N - k) / N): small steps first, at high noise (the masking schedule of MaskGIT 2202.04200)."""

    def times(self, steps: int) -> np.ndarray:
        return np.sin(np.pi / 2 * _fall(steps))


@dataclasses.dataclass(frozen=True)
class Power(TimeGrid):
    """t = u^exponent, u uniform: an exponent above 1 puts more steps at low noise, where wrong tokens are replaced."""

    exponent: float = 2.0

    def __post_init__(self):
        if not 0 < self.exponent <= 4:
            raise InputError(f"grid power: exponent is {self.exponent}; it must lie in (0, 4] (1 = equal steps)")

    def times(self, steps: int) -> np.ndarray:
        return _fall(steps) ** self.exponent


@dataclasses.dataclass(frozen=True)
class Shifted(TimeGrid):
    """u -> alpha u / (1 + (alpha - 1) u) (timestep shift, 2403.03206 eq. 23; LaViDa 2505.16839): alpha > 1 puts more steps at
    high noise, alpha < 1 at low noise."""

    alpha: float = 3.0

    def __post_init__(self):
        if not 0 < self.alpha < float("inf"):
            raise InputError(f"grid shifted: alpha is {self.alpha}; it must be above 0 and finite (1 = equal steps)")

    def times(self, steps: int) -> np.ndarray:
        u = _fall(steps)
        return self.alpha * u / (1 + (self.alpha - 1) * u)


@dataclasses.dataclass(frozen=True)
class Listed(TimeGrid):
    """The times themselves: 1 first, 0 last, falling."""

    points: tuple[float | int, ...] = (1.0, 0.0)

    def __post_init__(self):
        falls = all(a > b for a, b in zip(self.points, self.points[1:], strict=False))
        if len(self.points) < 2 or self.points[0] != 1 or self.points[-1] != 0 or not falls:
            raise InputError(f"grid listed: points must fall from 1 to 0, each below the one before, not {self.points}")

    def times(self, steps: int) -> np.ndarray:
        if steps != len(self.points) - 1:
            raise InputError(f"grid listed has {len(self.points)} points: set steps to {len(self.points) - 1}, not {steps}")
        return np.asarray(self.points, np.float64)


@dataclasses.dataclass(frozen=True)
class Hold(TimeGrid):
    """Equal steps down to time `at`, a share of all steps at this time, then equal steps to 0 (the loop of ReMDM 2503.00307).

    The only grid with steps from a time to itself: method `remask` resamples text in them at constant time.
    """

    at: float = 0.1
    share: float = 0.5

    def __post_init__(self):
        if not (0 < self.at < 1 and 0 <= self.share < 1):
            raise InputError(f"grid hold: at ({self.at}) must lie in (0, 1) and share ({self.share}) in [0, 1)")

    def times(self, steps: int) -> np.ndarray:
        moving = steps - int(steps * self.share)
        if moving < 2:
            raise InputError(f"grid hold requires two steps beside those at time {self.at}, and {steps} steps leave {moving}; raise steps")
        down = min(max(round(moving * (1 - self.at)), 1), moving - 1)
        above = self.at + (1 - self.at) * _fall(down)
        return np.concatenate([above, np.full(steps - moving, self.at), self.at * _fall(moving - down)[1:]])


GRIDS = {"uniform": Uniform, "cosine": Cosine, "power": Power, "shifted": Shifted, "listed": Listed, "hold": Hold}


def make_grid(text: str) -> TimeGrid:
    """The grid of a name, with its values written as a call: "cosine", "shifted(alpha=3)", "listed(points=(1, 0.4, 0))"."""
    return build("grid", text, GRIDS)


def _fall(steps: int) -> np.ndarray:
    """1 to 0 in equal steps."""
    return (steps - np.arange(steps + 1)) / steps
