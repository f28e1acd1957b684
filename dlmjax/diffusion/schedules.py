"""Noise schedules: alpha(t) is the chance that a token is still clean at time t; it falls from 1 at t = 0 to 0 at t = 1.

Every schedule is a frozen dataclass of pure functions of t in [0, 1], of any shape. They compute in at least float32, whatever the type of
t (float64 where it is switched on): in bfloat16 1 - 1e-3 == 1. `noise` is 1 - alpha without cancellation, which the corruption and the
weights near t = 0 require.

A masked bound does not depend on the schedule (MDLM 2406.07524 section 3.4); its variance and a sampler's step sizes do.
For a schedule whose ends are not exactly 1 and 0 (`has_boundary`) the bound includes a reconstruction and a prior term.
"""

import dataclasses
import math
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Real

from dlmjax.errors import InputError

# A t below FLOOR counts as 0: no float32 draw lies between, and weights of at most 1/FLOOR stay finite.
FLOOR = 1e-12


def real(t: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
    """t as at least float32."""
    t = jnp.asarray(t)
    return t.astype(jnp.promote_types(t.dtype, jnp.float32))


def share_gone(noise_t: Float[Array, "*t"], noise_s: Float[Array, "*t"]) -> Float[Array, "*t"]:
    """Share of the noise at t that is gone at s <= t: all of it where s has none, however little t has."""
    return jnp.where(noise_s > 0, (noise_t - noise_s) / jnp.maximum(noise_t, FLOOR), 1.0)


@runtime_checkable
class Schedule(Protocol):
    """alpha and functions of it. A new schedule defines the first five members; the others have defaults."""

    def alpha(self, t: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        """Chance that a token is clean at time t."""
        ...

    def noise(self, t: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        """1 - alpha(t), exact to rounding near t = 0."""
        ...

    def alpha_prime(self, t: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        """d alpha / dt, at most 0."""
        ...

    def inverse(self, alpha: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        """The t in [0, 1] at which alpha(t) is the given value; values outside the schedule's range give the nearer end."""
        ...

    @property
    def ends(self) -> tuple[float, float]:
        """(alpha(0), alpha(1))."""
        ...

    def hazard(self, t: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        """-alpha'(t) / (1 - alpha(t)): the weight of a masked token's cross-entropy; at most 1/FLOOR where it diverges (t = 0)."""
        return -self.alpha_prime(t) / jnp.maximum(self.noise(t), FLOOR)

    def log_snr(self, t: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        """log(alpha / (1 - alpha)), within +-log(1/FLOOR) at the ends."""
        return jnp.log(jnp.maximum(self.alpha(t), FLOOR)) - jnp.log(jnp.maximum(self.noise(t), FLOOR))

    @property
    def has_boundary(self) -> bool:
        """True where some noise is left at t = 0 or some text at t = 1."""
        return self.ends != (1.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Linear(Schedule):
    """alpha = 1 - t. The masked weight is exactly 1/t (LLaDA 2502.09992; SEDD's and MDLM's log-linear with eps = 0)."""

    def alpha(self, t: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        return 1 - real(t)

    def noise(self, t: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        return real(t)

    def alpha_prime(self, t: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        return jnp.full_like(real(t), -1.0)

    def inverse(self, alpha: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        return jnp.clip(1 - real(alpha), 0, 1)

    @property
    def ends(self) -> tuple[float, float]:
        return 1.0, 0.0


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
    """alpha = 1 - cos(pi/2 (1 - t)) (MD4 2406.04329 table 4): a reverse chain reveals few tokens while most are masked."""

    def alpha(self, t: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        # Each half in the form that does not cancel there, so that the ends are exact.
        t = real(t)
        return jnp.where(t < 0.5, 1 - jnp.sin(jnp.pi / 2 * t), 2 * jnp.sin(jnp.pi / 4 * (1 - t)) ** 2)

    def noise(self, t: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        return jnp.sin(jnp.pi / 2 * real(t))

    def alpha_prime(self, t: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        # As a sine of 1 - t this is exactly 0 at t = 1, where the cosine of t rounds to below 0.
        return -jnp.pi / 2 * jnp.sin(jnp.pi / 2 * (1 - real(t)))

    def inverse(self, alpha: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        alpha = jnp.clip(real(alpha), 0, 1)
        early = 2 / jnp.pi * jnp.arcsin(1 - alpha)
        late = 1 - 4 / jnp.pi * jnp.arcsin(jnp.sqrt(alpha / 2))
        return jnp.clip(jnp.where(alpha > 0.5, early, late), 0, 1)

    @property
    def ends(self) -> tuple[float, float]:
        return 1.0, 0.0


@dataclasses.dataclass(frozen=True)
class Polynomial(Schedule):
    """alpha = 1 - t^power (MD4 table 4); power = 1 is linear, the masked weight is power / t."""

    power: float = 2.0

    def __post_init__(self):
        if not self.power >= 1:
            raise InputError(f"polynomial schedule: power is {self.power}; it must be at least 1, else alpha' is infinite at t = 0")

    def alpha(self, t: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        return 1 - real(t) ** self.power

    def noise(self, t: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        return real(t) ** self.power

    def alpha_prime(self, t: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        return -self.power * real(t) ** (self.power - 1)

    def hazard(self, t: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        # t^power underflows long before t does.
        return self.power / jnp.maximum(real(t), self.power * FLOOR)

    def inverse(self, alpha: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        return jnp.clip(1 - real(alpha), 0, 1) ** (1 / self.power)

    @property
    def ends(self) -> tuple[float, float]:
        return 1.0, 0.0


@dataclasses.dataclass(frozen=True)
class Geometric(Schedule):
    """alpha = exp(-sigma), sigma = sigma_min^(1-t) sigma_max^t (SEDD 2310.16834 section 5.1).

    Not quite clean at t = 0 nor all noise at t = 1: it has boundary terms, about sigma_min x log V nats per token.
    """

    sigma_min: float = 1e-4
    sigma_max: float = 20.0

    def __post_init__(self):
        if not 0 < self.sigma_min < self.sigma_max:
            raise InputError(f"geometric schedule: requires 0 < sigma_min < sigma_max, not {self.sigma_min} and {self.sigma_max}")

    def sigma(self, t: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        """-log alpha(t)."""
        return self.sigma_min * jnp.exp(self._log_ratio * real(t))

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        return jnp.exp(-self.sigma(t))

    def noise(self, t: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        return -jnp.expm1(-self.sigma(t))

    def alpha_prime(self, t: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        sigma = self.sigma(t)
        return -self._log_ratio * sigma * jnp.exp(-sigma)

    def hazard(self, t: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        sigma = self.sigma(t)
        return self._log_ratio * sigma * jnp.exp(-sigma) / -jnp.expm1(-sigma)

    def log_snr(self, t: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        sigma = self.sigma(t)
        return -sigma - jnp.log(-jnp.expm1(-sigma))

    def inverse(self, alpha: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        low, high = math.exp(-self.sigma_max), math.exp(-self.sigma_min)
        sigma = -jnp.log(jnp.clip(real(alpha), low, high))
        return jnp.clip(jnp.log(sigma / self.sigma_min) / self._log_ratio, 0, 1)

    @property
    def ends(self) -> tuple[float, float]:
        return math.exp(-self.sigma_min), math.exp(-self.sigma_max)


@dataclasses.dataclass(frozen=True)
class Clipped(Schedule):
    """alpha of another schedule, rescaled from [0, 1] to [low, high]: finite log-SNR and weights, paid for by boundary terms, with which
    a bound is valid and no longer tight (`is_tight`): by 1e-3 nats a row of three tokens at high = 0.95, by 7e-3 at low = 0.05.

    The corruption and the weight both follow from this one alpha, so the two can never use different epsilons.
    """

    base: Schedule
    low: float
    high: float

    def __post_init__(self):
        if not 0 <= self.low < self.high <= 1:
            raise InputError(f"clipped schedule: low and high must satisfy 0 <= low < high <= 1, not {self.low} and {self.high}")

    def alpha(self, t: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        return self.low + (self.high - self.low) * self.base.alpha(t)

    def noise(self, t: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        return (1 - self.high) + (self.high - self.low) * self.base.noise(t)

    def alpha_prime(self, t: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        return (self.high - self.low) * self.base.alpha_prime(t)

    def inverse(self, alpha: Real[ArrayLike, "*t"]) -> Float[Array, "*t"]:
        return self.base.inverse(jnp.clip((real(alpha) - self.low) / (self.high - self.low), 0, 1))

    @property
    def ends(self) -> tuple[float, float]:
        start, stop = self.base.ends
        return self.low + (self.high - self.low) * start, self.low + (self.high - self.low) * stop


def log_linear(eps: float = 1e-3) -> Clipped:
    """alpha = 1 - (1 - eps) t: total noise -log(1 - (1 - eps) t) (SEDD section 5.1; MDLM). Clean at t = 0, alpha = eps at t = 1."""
    return Clipped(Linear(), low=eps, high=1.0)


def llada(eps: float = 1e-3) -> Clipped:
    """Mask rate p = (1 - eps) t + eps (LLaDA 2502.09992; SMDM 2410.18514): rate eps at t = 0, all masked at t = 1."""
    return Clipped(Linear(), low=0.0, high=1.0 - eps)


def symmetric(base: Schedule, eps: float) -> Clipped:
    """alpha of `base` in [eps, 1 - eps] (MD4)."""
    if not 0 < eps < 0.5:
        raise InputError(f"schedule: eps is {eps}; it must lie in (0, 0.5), or be absent, for the exact ends 1 and 0")
    return Clipped(base, low=eps, high=1.0 - eps)
