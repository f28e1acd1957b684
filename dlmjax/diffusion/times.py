"""How the time t of each row is drawn, and the weight 1/density by which the mean over draws is the integral over [0, 1].

A time distribution maps a uniform number u to t. A row's t depends on (key, row, global_batch) only: not on how rows are spread
over microbatches, hosts or devices. Stratified draws put exactly one row of the global batch into each of its equal cells,
(cell + u) / global_batch with one u per step (VDM 2107.00630 appendix I.1), which lowers the variance of the loss; the cells are
permuted so that t is independent of a row's index in the data. The cells are computed from integers: `arange(0, 1, 1/B)` has B + 1
elements for many B.

Shapes: B rows of this batch, L length.  Times and weights are float32.
"""

import abc
import dataclasses
import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from dlmjax.diffusion.shapes import Values
from dlmjax.errors import InputError

TIME_BINS = 10  # bins of t in which the integrand is reported


@runtime_checkable
class TimeDistribution(Protocol):
    """A density on [0, 1] given by the map that sends a uniform u to a draw of t."""

    def draw(self, u: Values) -> Values: ...

    def weight(self, t: Values) -> Values:
        """1 / density, finite for every t that can be drawn."""
        ...

    @property
    def covers(self) -> bool:
        """True where E[weight f(t)] is the integral of f over all of [0, 1]."""
        ...


@dataclasses.dataclass(frozen=True)
class UniformTimes(TimeDistribution):
    """Uniform on [low, high]. Other intervals than [0, 1] leave a part of the bound out: ~1e-4 nats for masked noise cut at 1e-3."""

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self):
        if not 0 <= self.low < self.high <= 1:
            raise InputError(f"times: low and high must satisfy 0 <= low < high <= 1, not {self.low} and {self.high}")

    def draw(self, u: Values) -> Values:
        return self.low + (self.high - self.low) * u

    def weight(self, t: Values) -> Values:
        # A mixture also evaluates this at times that another part has drawn.
        inside = (t >= self.low) & (t <= self.high)
        return jnp.where(inside, jnp.full_like(t, self.high - self.low), jnp.inf)

    @property
    def covers(self) -> bool:
        return (self.low, self.high) == (0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Power(TimeDistribution):
    """t = u^(1/exponent), density exponent * t^(exponent - 1), exponent in (0, 1]: small t more often, with less weight."""

    exponent: float = 0.5

    def __post_init__(self):
        if not 0 < self.exponent <= 1:
            raise InputError(f"times: exponent is {self.exponent}; it must lie in (0, 1], else weights are unbounded at t = 0")

    def draw(self, u: Values) -> Values:
        return u ** (1 / self.exponent)

    def weight(self, t: Values) -> Values:
        return t ** (1 - self.exponent) / self.exponent

    @property
    def covers(self) -> bool:
        return True


@dataclasses.dataclass(frozen=True)
class Piecewise(TimeDistribution):
    """Density proportional to `heights` on equal bins of [0, 1], for instance the measured loss by time (importance sampling)."""

    heights: tuple[float, ...]

    def __post_init__(self):
        if not self.heights or not all(height > 0 and math.isfinite(height) for height in self.heights):
            raise InputError(f"times: heights are {self.heights}; each must be positive and finite: a zero would bias the bound")

    @property
    def _mass(self) -> tuple[float, ...]:
        return tuple(height / sum(self.heights) for height in self.heights)

    def draw(self, u: Values) -> Values:
        bins = len(self.heights)
        edges = jnp.asarray([math.fsum(self._mass[:i]) for i in range(bins + 1)], u.dtype)
        chosen = jnp.clip(jnp.searchsorted(edges, u, side="right") - 1, 0, bins - 1)
        inside = (u - edges[chosen]) / (edges[chosen + 1] - edges[chosen])
        return jnp.clip((chosen + inside) / bins, 0, 1)

    def weight(self, t: Values) -> Values:
        bins = len(self.heights)
        density = jnp.asarray(self._mass, t.dtype) * bins
        return 1 / density[jnp.clip((t * bins).astype(jnp.int32), 0, bins - 1)]

    @property
    def covers(self) -> bool:
        return True


@dataclasses.dataclass(frozen=True)
class Mixture(TimeDistribution):
    """A mixture of distributions with the probabilities `probabilities`; u selects the part and, rescaled, is the u of its draw."""

    parts: tuple[TimeDistribution, ...]
    probabilities: tuple[float, ...]

    def __post_init__(self):
        if len(self.parts) != len(self.probabilities) or not self.parts:
            raise InputError(
                f"times: parts has {len(self.parts)} entries and probabilities {len(self.probabilities)}; the numbers must be equal"
            )
        if not all(p > 0 for p in self.probabilities) or abs(sum(self.probabilities) - 1) > 1e-6:
            raise InputError(f"times: probabilities is {self.probabilities}; they must be positive and sum to 1")

    def draw(self, u: Values) -> Values:
        t, start = jnp.zeros_like(u), 0.0
        for part, probability in zip(self.parts, self.probabilities, strict=True):
            t = jnp.where(u >= start, part.draw(jnp.clip((u - start) / probability, 0, 1)), t)
            start += probability
        return t

    def weight(self, t: Values) -> Values:
        return 1 / sum(p / part.weight(t) for part, p in zip(self.parts, self.probabilities, strict=True))

    @property
    def covers(self) -> bool:
        return any(part.covers for part in self.parts)


class _Betas(TimeDistribution):
    """Abstract: a mixture of a uniform part (share `flat`) and Beta densities. The weights of a Beta alone are unbounded where its density
    goes to 0; with the uniform part no weight exceeds 1/flat."""

    flat: float

    @property
    @abc.abstractmethod
    def _parts(self) -> tuple[tuple[float, float, float], ...]:
        """(share, a, b) of each Beta; the shares and `flat` sum to 1."""

    def draw(self, u: Values) -> Values:
        t, start = u / max(self.flat, 1e-30), self.flat
        for share, a, b in self._parts:
            inside = _beta_quantile(jnp.clip((u - start) / share, 0, 1), a, b)
            t, start = jnp.where(u >= start, inside, t), start + share
        return jnp.clip(t, 0, 1)

    def weight(self, t: Values) -> Values:
        return 1 / (self.flat + sum(share * _beta_density(t, a, b) for share, a, b in self._parts))

    @property
    def covers(self) -> bool:
        return True


@dataclasses.dataclass(frozen=True)
class Beta(_Betas):
    """Beta(a, b) with a uniform part; the default is FiLM's distribution of the mask rate (2310.09930, the command its authors published).

    flat: share of uniform draws; 0 only where a, b <= 1, whose density is nowhere 0.
    """

    a: float = 2.5
    b: float = 2.5
    flat: float = 0.1

    def __post_init__(self):
        if not (self.a > 0 and self.b > 0):
            raise InputError(f"times: a ({self.a}) and b ({self.b}) must be positive")
        if not (0 if max(self.a, self.b) <= 1 else 1e-6) <= self.flat < 1:
            raise InputError(f"times: flat is {self.flat}; it must lie in (0, 1), else weights are unbounded where the Beta density is 0")

    @property
    def _parts(self) -> tuple[tuple[float, float, float], ...]:
        return ((1 - self.flat, self.a, self.b),)


@dataclasses.dataclass(frozen=True)
class TwoMode(_Betas):
    """Two modes, of little and of much noise, and a uniform part: as in the two-mode schedules of 2509.05056, with the weight 1/density,
    which keeps the bound. The defaults are ours. In the paper the modes are Gaussians, 60 % at 0.12 (deviation 0.02) and the rest at a mean
    that moves from 0.4 to 0.85 during training (deviation 0.08), and the weight is softened.

    low, high: t of the two modes.  share: share of the low mode in the draws outside the uniform part.
    sharpness: inverse width; each is Beta(1 + mode x sharpness, 1 + (1 - mode) x sharpness).  flat: share of uniform draws.
    """

    low: float = 0.15
    high: float = 0.85
    share: float = 0.5
    sharpness: float = 20.0
    flat: float = 0.2

    def __post_init__(self):
        if not 0 <= self.low < self.high <= 1:
            raise InputError(f"times: low and high must satisfy 0 <= low < high <= 1, not {self.low} and {self.high}")
        if not (0 < self.share < 1 and 0 < self.flat < 1 and self.sharpness > 0):
            raise InputError(
                f"times: share ({self.share}) and flat ({self.flat}) must lie in (0, 1) and sharpness ({self.sharpness}) be positive"
            )

    @property
    def _parts(self) -> tuple[tuple[float, float, float], ...]:
        rest = 1 - self.flat
        bumps = ((self.share, self.low), (1 - self.share, self.high))
        return tuple((rest * part, 1 + mode * self.sharpness, 1 + (1 - mode) * self.sharpness) for part, mode in bumps)


def _beta_density(t: Values, a: float, b: float) -> Values:
    log_scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    return jnp.exp(jax.scipy.special.xlogy(a - 1, t) + jax.scipy.special.xlog1py(b - 1, -t) + log_scale)


def _beta_quantile(u: Values, a: float, b: float) -> Values:
    """The t below which Beta(a, b) has the mass u, by bisection: exact to the rounding of the distribution function."""

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        below = jax.scipy.special.betainc(a, b, middle) < u
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    low, high = jax.lax.fori_loop(0, 50, halve, (jnp.zeros_like(u), jnp.ones_like(u)))
    return (low + high) / 2


@runtime_checkable
class Times(Protocol):
    """Draws the times of a batch."""

    def draw(
        self, key: Key[Array, ""], row_B: Int[Array, "B"], global_batch: int, length: int
    ) -> tuple[Float[Array, "B {length}"], Float[Array, "B {length}"]]: ...

    @property
    def covers(self) -> bool:
        """True where E[weight f(t)] is the integral of f over all of [0, 1], for the time of every token."""
        ...

    def tokens_per_time(self, length: int) -> int:
        """A number of neighbouring tokens, counted from the start of a row of `length`, that always have one time; it divides the length.
        1 = each has its own."""
        del length
        return 1

    @property
    def corrected(self) -> bool:
        """Whether what is trained has the weight, as what is reported has; without it the loss at frequent times counts more."""
        return True


@dataclasses.dataclass(frozen=True)
class PerRow(Times):
    """One time per row, broadcast over its tokens.

    distribution: of t.
    stratified: one row of the global batch in each of its `global_batch` equal cells of u, instead of independent rows.
    corrected: False = the loss that is trained has no weight 1/density, and is not a bound; the reported bound has it.
    """

    distribution: TimeDistribution = UniformTimes()
    stratified: bool = True
    corrected: bool = True

    def draw(
        self, key: Key[Array, ""], row_B: Int[Array, "B"], global_batch: int, length: int
    ) -> tuple[Float[Array, "B {length}"], Float[Array, "B {length}"]]:
        """Times and weights of the rows `row_B` (indices in the global batch) at the training step whose key is `key`.

        Returns:
          t_BL in [0, 1] and weight_BL = 1/density(t): E[weight f(t)] is the integral of f over [0, 1] where `covers`.
        """
        if self.stratified:
            shift_key, order_key = jax.random.split(key)
            cell_B = jax.random.permutation(order_key, global_batch)[row_B]
            u_B = (cell_B + jax.random.uniform(shift_key)) / global_batch
        else:
            u_B = jax.vmap(lambda row: jax.random.uniform(jax.random.fold_in(key, row)))(row_B)
        t_B = self.distribution.draw(u_B)
        return over_length(t_B, length), over_length(self.distribution.weight(t_B), length)

    def tokens_per_time(self, length: int) -> int:
        return length

    @property
    def covers(self) -> bool:
        return self.distribution.covers


def importance_heights(t_N: Float[np.ndarray, "N"], loss_N: Float[np.ndarray, "N"], bins: int = TIME_BINS) -> tuple[float, ...]:
    """Heights of the `Piecewise` distribution under which the estimate of the mean loss varies least: the density is proportional to
    sqrt(E[loss^2 | t]), by the Cauchy-Schwarz inequality, here with the mean square of each of equal bins of t.

    Args:
      t_N, loss_N: times, and the trained loss of the row (or block) at each, without a weight for the density of the times.
      bins: number of bins. Beside a mean square of 0, or an empty bin, no height is below 1 % of the largest: a zero would bias the bound.
    Returns:
      Heights with three digits, the largest 1.
    Raises:
      InputError: no loss that is not 0, or one that is not finite.
    """
    bin_N = np.clip((np.asarray(t_N, np.float64) * bins).astype(int), 0, bins - 1)
    square_N = np.asarray(loss_N, np.float64) ** 2
    if not np.isfinite(square_N).all() or not square_N.any():
        raise InputError("importance_heights: the losses must be finite, and not all 0")
    counts = np.bincount(bin_N, minlength=bins)
    root = np.sqrt(np.bincount(bin_N, square_N, minlength=bins) / np.maximum(counts, 1))
    return tuple(float(f"{max(height, 0.01):.3g}") for height in root / root.max())


def over_length(value_B: Float[Array, "B"], length: int) -> Float[Array, "B {length}"]:
    """A number per row (time or weight) as a number per token."""
    return jnp.broadcast_to(value_B[:, None], (value_B.shape[0], length))
