"""Hybrid noise: a mixture of masks and uniform draws of the tokens (GIDD 2503.04482). The network also learns which tokens are wrong.

`Hybrid` is the paper's: with B = 2^gamma p_uniform / (1 - p_uniform), c_t = B (t (1 - t))^(gamma/2) and C = 1 + c_t (section 4.2)
    alpha_t = (1 - t)/C,   mask share t/C,   uniform share c_t/C;   the uniform share is p_uniform at t = 1/2 and 0 at both ends.
Jump rates in closed form, alpha_t times: to the mask 1/C^2, to a uniform draw c_t (t (1 - gamma) + gamma/2) / (t C^2).

`Mixed` has any mixing: a schedule gives the amount of noise and a `Mixing` its composition, as a function of the log-SNR
lambda = log(alpha / (1 - alpha)): pi = u(lambda) uniform + (1 - u(lambda)) mask. Then the jump rates are -alpha'/alpha times
    u - u'   to a uniform draw,      1 - u + u'   to the mask:
a rate that depends on the schedule only, times a mixing that depends on the log-SNR only.

The bound is that of interpolating.py, with one logarithm per class for every mixing. `Dynamic` and `ClippedJumps` (weightings/jumps.py)
are the paper's training weights; the reported bound has none of them.

Shapes: as in interpolating.py.
"""

import abc
import dataclasses
import functools
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from dlmjax.diffusion.declarations import Capabilities, Ends
from dlmjax.diffusion.process import cross_entropy
from dlmjax.diffusion.processes.interpolating import Interpolating, Shares
from dlmjax.diffusion.schedules import FLOOR, Linear, Schedule, real
from dlmjax.diffusion.shapes import Ids, Mask, PerClass, PerToken, Tokens, Values
from dlmjax.errors import InputError


class _MaskAndTokens(Interpolating):
    """Abstract: noise that contains masks; where it contains nothing else, the bound is the masked one and revealed tokens are clean."""

    mask_id: int

    @property
    @abc.abstractmethod
    def always_masks(self) -> bool:
        """Whether all noise is masks."""

    @property
    def absorbing_id(self) -> int | None:
        return self.mask_id if self.always_masks else None

    @functools.cached_property
    def capabilities(self) -> Capabilities:
        with jax.ensure_compile_time_eval(), jax.transfer_guard("allow"):
            masks = bool(self.shares(jnp.float32(1.0)).mask > 0)
        found = super().capabilities
        methods = (*found.methods, *(("acs",) if masks and not self.always_masks else ()))
        return dataclasses.replace(found, methods=methods, prior_mask_id=self.mask_id if masks else None)

    @property
    def stationary(self) -> bool:
        """False where the mixture of masks and uniform draws changes with t."""
        return self.always_masks

    def loss_mask(self, z_BL: Tokens, t_BL: PerToken) -> Mask:
        return z_BL == self.mask_id if self.always_masks else super().loss_mask(z_BL, t_BL)

    def loss(self, logits: PerClass, x: Ids, z: Ids, t: Values) -> Values:
        if not self.always_masks:
            return super().loss(logits, x, z, t)
        masked = z == self.mask_id
        t = jnp.where(masked, t, 1.0)
        weight = self.jumps(t)[1] / jnp.maximum(self.shares(t).mask, FLOOR)
        return jnp.where(masked, weight * cross_entropy(logits, x, self.suppressed_ids), 0.0)


@dataclasses.dataclass(frozen=True)
class Hybrid(_MaskAndTokens):
    """GIDD's noise.

    p_uniform: the share of uniform draws at t = 1/2. 0 is masked diffusion on the linear schedule; the limit 1 is uniform noise.
    gamma: in (0, 2]; the larger, the more the uniform share is concentrated around t = 1/2.
    """

    vocab: int
    mask_id: int
    excluded: tuple[int, ...] = ()
    parameterisation: str = "leave_one_out"
    p_uniform: float = 0.1
    gamma: float = 1.0

    name = "hybrid"

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.p_uniform < 1:
            raise InputError(f"process hybrid: p_uniform is {self.p_uniform}; it must lie in [0, 1); for 1 use process 'uniform'")
        if not 0 < self.gamma <= 2:
            raise InputError(f"process hybrid: gamma is {self.gamma}; it must lie in (0, 2], else a jump rate is negative")

    def shares(self, t: Values) -> Shares:
        t = real(t)
        bump = self._bump(t)
        return Shares((1 - t) / (1 + bump), bump / (1 + bump), t / (1 + bump))

    def jumps(self, t: Values) -> tuple[Values, Values]:
        # Not FLOOR: a rate that grows as an inverse root of t has a share of 1e-6 of its mass below that.
        t = jnp.maximum(real(t), 1e-30)
        bump = self._bump(t)
        square = (1 + bump) ** 2
        return bump * (t * (1 - self.gamma) + self.gamma / 2) / (t * square), 1 / square

    @property
    def always_masks(self) -> bool:
        return self.p_uniform == 0

    @property
    def ends(self) -> Ends:
        """A small uniform share shows near t = 1 as a root of the share of text that is left; a large one covers it."""
        return dataclasses.replace(Interpolating.ends, noise=6.5 if self._peak * 0.01 ** (self.gamma / 2) < 0.1 else 4.0)

    @property
    def _peak(self) -> float:
        """B."""
        return 2**self.gamma * self.p_uniform / (1 - self.p_uniform)

    def _bump(self, t: Values) -> Values:
        """c_t."""
        return self._peak * jnp.maximum(t * (1 - t), 0.0) ** (self.gamma / 2)


@runtime_checkable
class Mixing(Protocol):
    """The composition of noise at a log-SNR. Both functions give (uniform, mask), which sum to 1, each exact to rounding where small."""

    def shares(self, log_snr: Values) -> tuple[Values, Values]:
        """(u, 1 - u): shares of the noise at that log-SNR."""
        ...

    def jumps(self, log_snr: Values) -> tuple[Values, Values]:
        """(u - u', 1 - u + u'): shares of the jumps at that log-SNR. Neither may be negative."""
        ...


@dataclasses.dataclass(frozen=True)
class Constant(Mixing):
    """The same mixture at every t."""

    uniform: float = 0.1

    def __post_init__(self):
        if not 0 <= self.uniform <= 1:
            raise InputError(f"process mixed: mixing {self} has a share or a jump rate outside [0, 1]")

    def shares(self, log_snr: Values) -> tuple[Values, Values]:
        return jnp.full_like(log_snr, self.uniform), jnp.full_like(log_snr, 1 - self.uniform)

    def jumps(self, log_snr: Values) -> tuple[Values, Values]:
        return self.shares(log_snr)


@dataclasses.dataclass(frozen=True)
class Sigmoid(Mixing):
    """u = sigmoid(steepness x log-SNR + shift), as in 2512.10858.

    For steepness in (0, 1] the noise is uniform at small t and masks at t = 1; for steepness in [-1, 0) the reverse.
    """

    steepness: float = 1.0
    shift: float = -1.0

    def __post_init__(self):
        if not -1 <= self.steepness <= 1:
            raise InputError(f"process mixed: mixing {self} has a share or a jump rate outside [0, 1]")

    def shares(self, log_snr: Values) -> tuple[Values, Values]:
        inner = self.steepness * log_snr + self.shift
        return jax.nn.sigmoid(inner), jax.nn.sigmoid(-inner)

    def jumps(self, log_snr: Values) -> tuple[Values, Values]:
        # u' = steepness u (1 - u); all terms are positive, so that u - u' = u^2 keeps its digits.
        uniform, mask = self.shares(log_snr)
        up, down = max(self.steepness, 0.0), max(-self.steepness, 0.0)
        return uniform * ((1 - up) + up * uniform + down * mask), mask * ((1 - down) + down * mask + up * uniform)


MIXINGS: dict[str, type[Mixing]] = {"constant": Constant, "sigmoid": Sigmoid}


@dataclasses.dataclass(frozen=True)
class Mixed(_MaskAndTokens):
    """Hybrid noise with any mixing on any schedule.

    mixing: one of MIXINGS or a `Mixing`.  values: the fields of a named mixing, in order.
    """

    vocab: int
    mask_id: int
    schedule: Schedule = Linear()
    excluded: tuple[int, ...] = ()
    parameterisation: str = "leave_one_out"
    mixing: str | Mixing = "sigmoid"
    values: tuple[float, ...] = ()

    name = "mixed"

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.mixing, str):
            if self.mixing not in MIXINGS:
                raise InputError(f"process mixed: mixing is {self.mixing!r}; choose one of {', '.join(MIXINGS)}")
            fields = [field.name for field in dataclasses.fields(MIXINGS[self.mixing])]
            if len(self.values) > len(fields):
                raise InputError(f"process mixed: values is {self.values}; mixing {self.mixing!r} takes {', '.join(fields)}")
            object.__setattr__(self, "mixing", MIXINGS[self.mixing](*self.values))
            object.__setattr__(self, "values", ())
        log_snr = jnp.linspace(-25.0, 25.0, 101)
        parts = jnp.stack([*self.mixing.shares(log_snr), *self.mixing.jumps(log_snr)])
        if not bool(jnp.all((parts >= 0) & (parts <= 1 + 1e-6))):
            raise InputError(f"process mixed: mixing {self.mixing} has a share or a jump rate outside [0, 1]")

    def shares(self, t: Values) -> Shares:
        noise, log_snr = self.schedule.noise(t), self.schedule.log_snr(t)
        uniform, mask = self.mixing.shares(log_snr)
        return Shares(self.schedule.alpha(t), noise * uniform, noise * mask)

    def jumps(self, t: Values) -> tuple[Values, Values]:
        rate = -self.schedule.alpha_prime(t)
        uniform, mask = self.mixing.jumps(self.schedule.log_snr(t))
        return rate * uniform, rate * mask

    @property
    def always_masks(self) -> bool:
        return self.mixing == Constant(0.0)
