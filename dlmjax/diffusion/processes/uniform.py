"""Uniform-state diffusion. q(z_t | x) keeps each token with probability alpha_t, else shows a uniform draw of all tokens.

The bound (UDLM 2412.10193; Duo 2506.10892 eq. 17) is exact and does not depend on the schedule. Its denoiser must be told t, and
what it wants is the guess of a token from all *others*, p(x_i | z_{-i}); a network that gives p(x_i | z) says so by `parameterisation`
and is brought there by the exact bridge.

At t -> 0 the integrand has a logarithmic singularity: where the rest of the text leaves a token in doubt, the rare replaced token costs
log 1/t, and a guess of p(x_i | z_{-i}) a fixed rate. So times cut at 1e-3 leave out some 0.4 % of the bound (masked noise: 0.01 %):
draw all of [0, 1], small levels more often if variance matters (`power` times).

Shapes: B batch, L length, V vocabulary; `*n` any shape. Losses in nats per token.
"""

import abc
import dataclasses

import jax.numpy as jnp

from dlmjax.diffusion.processes.interpolating import UNIFORM_ENDS, Interpolating, Shares
from dlmjax.diffusion.schedules import Linear, Schedule
from dlmjax.diffusion.shapes import Values


class UniformNoise(Interpolating):
    """Abstract: uniform noise on a schedule; `bound` is the process whose network reads the tokens themselves."""

    schedule: Schedule
    ends = UNIFORM_ENDS

    @property
    @abc.abstractmethod
    def bound(self) -> "Uniform": ...

    def shares(self, t: Values) -> Shares:
        noise = self.schedule.noise(t)
        return Shares(self.schedule.alpha(t), noise, jnp.zeros_like(noise))

    def jumps(self, t: Values) -> tuple[Values, Values]:
        rate = -self.schedule.alpha_prime(t)
        return rate, jnp.zeros_like(rate)

    @property
    def noise_mask(self) -> None:
        return None


@dataclasses.dataclass(frozen=True)
class Uniform(UniformNoise):
    """Uniform noise on any schedule.

    vocab: classes of the logits, special ids included; mask_id, excluded: ids that are neither text nor noise.
    parameterisation: what the output means, "leave_one_out" or "posterior" (for scores there is process `score`).
    """

    vocab: int
    mask_id: int | None = None
    schedule: Schedule = Linear()
    excluded: tuple[int, ...] = ()
    parameterisation: str = "leave_one_out"

    name = "uniform"

    @property
    def bound(self) -> "Uniform":
        return self
