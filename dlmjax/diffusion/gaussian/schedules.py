"""Paths of Gaussian noise: z_t = a(t) e + s(t) eps, with a falling and s rising from t = 0 (clean) to t = 1 (noise).

A path is determined by its signal-to-noise ratio SNR = a^2 / s^2 = exp(-gamma): two paths with the same gamma(t) are one diffusion in
two units
(VDM 2107.00630 section 3), and the bound depends on gamma only. Most paths preserve variance, a^2 + s^2 = 1, and are given by abar = a^2;
`Straight` is the path of flow matching, a = 1 - t, s = t.

Every path has some noise at t = 0, since the bound would be infinite without it: the reconstruction term accounts for that noise, and the
prior term for the signal that is left at t = 1. All forms are closed, and none cancels.

Shapes: t of any shape, in at least float32.
"""

import abc
import dataclasses
import math
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Real

from dlmjax.diffusion.schedules import FLOOR, real
from dlmjax.diffusion.shapes import Values
from dlmjax.errors import InputError


class Point(NamedTuple):
    """A path at one time: signal a, noise s, gamma = -log SNR."""

    a: Array
    s: Array
    gamma: Array

    def over(self, axes: int = 1) -> "Point":
        """With further axes of size 1 at the end, to multiply vectors."""
        return Point(*(value[(..., *(None,) * axes)] for value in self))

    @property
    def straight(self) -> Array:
        """The time in [0, 1] at which the straight path has this SNR."""
        return self.s / (self.a + self.s)


@runtime_checkable
class Path(Protocol):
    """a, s, gamma and the rate at which the SNR falls, as functions of t."""

    def at(self, t: Real[ArrayLike, "*n"]) -> Point:
        """(a, s, gamma) at time t; gamma within +-log(1/FLOOR) where it diverges."""
        ...

    def snr_rate(self, t: Real[ArrayLike, "*n"]) -> Values:
        """-d SNR / dt, at least 0: half of it is the weight of the squared error of the clean vector in the bound."""
        ...


def snr_drop(late: Point, early: Point) -> Values:
    """SNR(early) - SNR(late), at least 0: half of it is the weight of a step in a discrete bound."""
    return jnp.exp(-early.gamma) * fresh(late, early)


def fresh(late: Point, early: Point) -> Values:
    """1 - SNR(late) / SNR(early): the share of the noise at `late` that was added after `early`."""
    return -jnp.expm1(early.gamma - late.gamma)


# --- paths that preserve variance, from abar ---------------------------------------------------------------------------------------


class _Preserving(Path):
    """Abstract: a path from abar. `high` < 1 is abar(0): the embedding itself is a little noisy, q(z_0 | x) = N(e_x, sigma_0^2) of
    Diffusion-LM; `low` is abar(1)."""

    low: float
    high: float

    @abc.abstractmethod
    def abar(self, t: Values) -> Values: ...

    @abc.abstractmethod
    def lost(self, t: Values) -> Values:
        """1 - abar, without cancellation."""

    @abc.abstractmethod
    def abar_prime(self, t: Values) -> Values: ...

    def __post_init__(self):
        if not 0 <= self.low < self.high <= 1:
            raise InputError(f"path {type(self).__name__.lower()}: requires 0 <= low < high <= 1, not {self.low} and {self.high}")

    def at(self, t: Real[ArrayLike, "*n"]) -> Point:
        t = real(t)
        signal = jnp.maximum(self.low + (self.high - self.low) * self.abar(t), FLOOR)
        noise = jnp.maximum((1 - self.high) + (self.high - self.low) * self.lost(t), FLOOR)
        return Point(jnp.sqrt(signal), jnp.sqrt(noise), jnp.log(noise) - jnp.log(signal))

    def snr_rate(self, t: Real[ArrayLike, "*n"]) -> Values:
        t = real(t)
        noise = jnp.maximum((1 - self.high) + (self.high - self.low) * self.lost(t), FLOOR)
        return -(self.high - self.low) * self.abar_prime(t) / noise**2


@dataclasses.dataclass(frozen=True)
class LinearBeta(_Preserving):
    """abar = exp(-b0 t - (b1 - b0) t^2 / 2): DDPM's linear betas, 1e-4 to 0.02 in 1000 steps, in continuous time (2011.13456 eq. 33)."""

    low: float = 0.0
    high: float = 1 - 1e-4
    start: float = 0.1
    stop: float = 20.0

    def abar(self, t: Values) -> Values:
        return jnp.exp(-self._total(t))

    def lost(self, t: Values) -> Values:
        return -jnp.expm1(-self._total(t))

    def abar_prime(self, t: Values) -> Values:
        return -(self.start + (self.stop - self.start) * t) * self.abar(t)

    def _total(self, t: Values) -> Values:
        return self.start * t + (self.stop - self.start) * t**2 / 2


@dataclasses.dataclass(frozen=True)
class Cosine(_Preserving):
    """abar = f(t) / f(0), f = cos^2(pi/2 (t + offset) / (1 + offset)) (2102.09672 eq. 17)."""

    low: float = 1e-5
    high: float = 1 - 1e-4
    offset: float = 0.008

    def abar(self, t: Values) -> Values:
        # As a sine of 1 - t: exactly 0 at t = 1.
        return (jnp.sin(self._slope * (1 - t)) / math.cos(self._start)) ** 2

    def lost(self, t: Values) -> Values:
        # cos^2 A - cos^2 B = sin(B - A) sin(B + A)
        return jnp.sin(self._slope * t) * jnp.sin(2 * self._start + self._slope * t) / math.cos(self._start) ** 2

    def abar_prime(self, t: Values) -> Values:
        return -self._slope * jnp.sin(2 * self._slope * (1 - t)) / math.cos(self._start) ** 2

    @property
    def _slope(self) -> float:
        return math.pi / 2 / (1 + self.offset)

    @property
    def _start(self) -> float:
        return self._slope * self.offset


@dataclasses.dataclass(frozen=True)
class Sqrt(_Preserving):
    """abar = 1 - sqrt((t + offset) / (1 + offset)) (Diffusion-LM 2205.14217 section 4.3): noise grows fast at first, because a little noise
    does not move an embedding to another token. The division by 1 + offset, not in the paper, makes abar(1) = 0 and not -5e-5."""

    low: float = 1e-5
    high: float = 1.0
    offset: float = 1e-4

    def __post_init__(self):
        super().__post_init__()
        if not self.offset > 0:
            raise InputError(f"path sqrt: offset is {self.offset}; it must be positive")

    def abar(self, t: Values) -> Values:
        return (1 - t) / (1 + self.offset) / (1 + self.lost(t))

    def lost(self, t: Values) -> Values:
        return jnp.sqrt((t + self.offset) / (1 + self.offset))

    def abar_prime(self, t: Values) -> Values:
        return -0.5 / jnp.sqrt((t + self.offset) * (1 + self.offset))


# --- paths from gamma --------------------------------------------------------------------------------------------------------------


class _FromGamma(Path):
    """Abstract: a path that preserves variance, from gamma(t): a^2 = sigmoid(-gamma)."""

    @abc.abstractmethod
    def gamma(self, t: Values) -> Values: ...

    @abc.abstractmethod
    def gamma_prime(self, t: Values) -> Values: ...

    def at(self, t: Real[ArrayLike, "*n"]) -> Point:
        gamma = self.gamma(real(t))
        return Point(jnp.exp(jax.nn.log_sigmoid(-gamma) / 2), jnp.exp(jax.nn.log_sigmoid(gamma) / 2), gamma)

    def snr_rate(self, t: Real[ArrayLike, "*n"]) -> Values:
        t = real(t)
        return jnp.exp(-self.gamma(t)) * self.gamma_prime(t)


@dataclasses.dataclass(frozen=True)
class LogLinear(_FromGamma):
    """gamma = gamma_0 + (gamma_1 - gamma_0) t (VDM; Plaid's schedule before training)."""

    gamma_0: float = -3.0
    gamma_1: float = 6.0

    def __post_init__(self):
        if not self.gamma_0 < self.gamma_1:
            raise InputError(f"path log_linear: gamma_0 is {self.gamma_0}; it must lie below gamma_1, {self.gamma_1}")

    def gamma(self, t: Values) -> Values:
        return self.gamma_0 + (self.gamma_1 - self.gamma_0) * t

    def gamma_prime(self, t: Values) -> Values:
        return jnp.full_like(t, self.gamma_1 - self.gamma_0)


# --- the straight path -------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Straight(Path):
    """a = 1 - u, s = u, u = start + (1 - start) t: the path of flow matching and rectified flow (2210.02747 example II; 2209.03003).

    As a diffusion it has gamma = 2 log(u / (1 - u)). At t = 1 the signal is exactly 0.
    """

    start: float = 1e-2

    def __post_init__(self):
        if not 0 < self.start < 1:
            raise InputError(f"path straight: start is {self.start}; it must lie in (0, 1); at 0 the bound is infinite")

    def at(self, t: Real[ArrayLike, "*n"]) -> Point:
        signal, noise = self._ends(real(t))
        return Point(signal, noise, 2 * (jnp.log(jnp.maximum(noise, FLOOR)) - jnp.log(jnp.maximum(signal, FLOOR))))

    def snr_rate(self, t: Real[ArrayLike, "*n"]) -> Values:
        signal, noise = self._ends(real(t))
        return 2 * (1 - self.start) * signal / noise**3

    def _ends(self, t: Values) -> tuple[Values, Values]:
        return (1 - self.start) * (1 - t), self.start + (1 - self.start) * t


PATHS = {"linear": LinearBeta, "cosine": Cosine, "sqrt": Sqrt, "log_linear": LogLinear, "straight": Straight}


# --- discrete grids ----------------------------------------------------------------------------------------------------------------


def betas(path: Path, steps: int) -> Float[Array, "{steps}"]:
    """beta_i = 1 - (a_i / a_{i-1})^2 at t = i / steps, i = 1 .. steps: the variances of DDPM (2006.11239 eq. 2) on a variance-preserving
    path, from the same curve as the bound. The noise at t = 0 belongs to no step."""
    t = jnp.arange(1, steps + 1) / steps
    late, early = path.at(t), path.at(t - 1 / steps)
    return late.s**2 * fresh(late, early)
