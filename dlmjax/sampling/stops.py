"""Stops: when a row's masked positions are all revealed at once, before its rule has come to its end.

    exit      bounded: KL(text || sampled) grows by at most `bound` nats, since the tokens are drawn and their entropies are known
    others    sharpened: each position takes its most likely token

All is per row. `exit_nats_B` of the samples is the certificate: the sum of the entropies less the largest of what was revealed at once. The
gaps of prophet and sched are differences of log-probabilities, before temperature and nucleus.

Shapes: B rows, L positions.
"""

import abc
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dlmjax.errors import InputError
from dlmjax.sampling.by_name import build_own, import_own
from dlmjax.sampling.rules import View


class Stop(abc.ABC):
    """Abstract: a frozen dataclass; `make_stop` makes it from a text such as "exit(bound=0.1)".

    name: as in STOPS.  source: of its form and its default.  draws: whether the tokens are drawn; else they are the most likely ones.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    draws: ClassVar[bool] = False

    def begin(self, shape: tuple[int, int]) -> Any:
        """The memory before the first step; `shape` is [B, L]."""
        del shape
        return ()

    @abc.abstractmethod
    def done(self, view: View, memory: Any) -> tuple[Bool[Array, "B"], Any]:
        """(the rows that end with this step, memory)."""


def nats_at_most(view: View) -> Float[Array, "B"]:
    """What revealing all masked positions of a row at once may cost: the sum of their entropies less the largest, nats."""
    entropy_BL = jnp.where(view.masked_BL, -view.scores_of("entropy"), 0.0)
    return jnp.sum(entropy_BL, axis=1) - jnp.max(entropy_BL, axis=1)


@dataclasses.dataclass(frozen=True)
class Exit(Stop):
    """Where revealing all at once costs at most `bound` nats."""

    bound: float = 0.1

    name = "exit"
    source = "derived: the bound of a parallel step"
    draws = True

    def __post_init__(self):
        _check(self, bound=self.bound)

    def done(self, view, memory):
        return nats_at_most(view) <= self.bound, memory


@dataclasses.dataclass(frozen=True)
class Prophet(Stop):
    """Where the mean gap of the two best logits is at least `early`, `middle` or `late`, by thirds of the positions that are revealed.

    region: number of positions at the end of the row whose masked ones are read; 0 = all.
    """

    early: float = 7.5
    middle: float = 5.0
    late: float = 2.5
    region: int = 0

    name = "prophet"
    source = "Prophet, generate_earlyexit.py: 7.5, 5.0, 2.5"

    def __post_init__(self):
        _check(self, early=self.early, middle=self.middle, late=self.late, region=self.region)

    def done(self, view, memory):
        length = view.masked_BL.shape[1]
        inside_L = jnp.arange(length) >= (length - self.region if self.region else 0)
        share_B = _revealed_share(view)
        least_B = jnp.where(share_B < 1 / 3, self.early, jnp.where(share_B < 2 / 3, self.middle, self.late))
        return _mean(_gaps(view), view.masked_BL & inside_L, empty=jnp.inf) >= least_B, memory


@dataclasses.dataclass(frozen=True)
class Sched(Stop):
    """Where the mean gap of all masked positions is at least a threshold that falls from `high` to `low` with the share that is revealed,
    and their most likely tokens are those of the step before.

    curve: linear, cosine, or exp, low + (high - low) exp(-k u).
    """

    high: float = 7.5
    low: float = 2.5
    curve: str = "cosine"
    k: float = 4.0

    name = "sched"
    source = "SchED, sched.py: 7.5, 2.5, cosine; there over the batch, here for each row"

    CURVES: ClassVar[tuple[str, ...]] = ("linear", "cosine", "exp")

    def __post_init__(self):
        _check(self, high=self.high, low=self.low, k=self.k)
        if self.curve not in self.CURVES:
            raise InputError(f"stop sched: curve is {self.curve!r}; choose one of {', '.join(self.CURVES)}")

    def begin(self, shape):
        return jnp.full(shape, -1, jnp.int32)

    def done(self, view, memory):
        share_B = _revealed_share(view)
        falls_B = {"linear": 1 - share_B, "cosine": (1 + jnp.cos(jnp.pi * share_B)) / 2, "exp": jnp.exp(-self.k * share_B)}[self.curve]
        best_BL = _best(view)
        same_B = jnp.all((best_BL == memory) | ~view.masked_BL, axis=1)
        wide_B = _mean(_gaps(view), view.masked_BL, empty=jnp.inf) >= self.low + (self.high - self.low) * falls_B
        return same_B & wide_B, best_BL


@dataclasses.dataclass(frozen=True)
class Stable(Stop):
    """Where the most likely tokens of all masked positions have been the same in `count` steps before, and their mean entropy is below
    `entropy` nats."""

    count: int = 1
    entropy: float = 0.005

    name = "stable"
    source = "transformers, generation_diffusion_gemma.py: 1, 0.005"

    def __post_init__(self):
        _check(self, entropy=self.entropy)
        if not 1 <= self.count <= 2**20:
            raise InputError(f"stop stable: count is {self.count}; it must be 1 to {2**20} steps")

    def begin(self, shape):
        return jnp.full(shape, -1, jnp.int32), jnp.zeros(shape[0], jnp.int32)

    def done(self, view, memory):
        (last_BL, same_B), best_BL = memory, _best(view)
        same_B = jnp.where(jnp.all((best_BL == last_BL) | ~view.masked_BL, axis=1), same_B + 1, 0)
        low_B = _mean(-view.scores_of("entropy"), view.masked_BL, empty=0.0) < self.entropy
        return (same_B >= self.count) & low_B, (best_BL, same_B)


STOPS: dict[str, type[Stop]] = {cls.name: cls for cls in (Exit, Prophet, Sched, Stable)}


def make_stop(text: str) -> Stop:
    """The stop of a text: "exit(bound=0.1)", or one's own by its dotted name (see `by_name`).

    Raises InputError: no such stop, a value that it does not take.
    """
    if text.strip() == "end":
        raise InputError("stop end requires a sampler of blocks, of a stride or of a causal process: dlmjax sample, or Run.sample")
    return build_own("stop", text, STOPS, Stop)


def import_stop(text: str) -> Stop:
    """`make_stop` of a text that a person has typed: the module of a dotted name is imported."""
    import_own("stop", text)
    return make_stop(text)


def _check(stop: Stop, **values: float | int) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1e6:
            raise InputError(f"stop {stop.name}: {name} is {value}; it must be 0 to 1e6")


def _best(view: View) -> Array:
    return jnp.argmax(view.log_p(), axis=-1).astype(jnp.int32)


def _gaps(view: View) -> Float[Array, "B L"]:
    top_BL2 = jax.lax.top_k(view.log_p(), 2)[0]
    return top_BL2[..., 0] - top_BL2[..., 1]


def _revealed_share(view: View) -> Float[Array, "B"]:
    return 1 - view.masked_BL.sum(axis=1) / jnp.maximum(view.start_masked_BL.sum(axis=1), 1)


def _mean(value_BL: Array, among_BL: Array, empty: float) -> Float[Array, "B"]:
    """Mean over some positions; `empty` where there are none."""
    count_B = among_BL.sum(axis=1)
    return jnp.where(count_B > 0, jnp.sum(jnp.where(among_BL, value_BL, 0.0), axis=1) / jnp.maximum(count_B, 1), empty)
