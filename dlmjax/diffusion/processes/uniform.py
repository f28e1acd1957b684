"""Uniform-state diffusion. q(z_t | x) keeps each token with probability alpha_t, else it is a uniform draw of all tokens.

The bound (UDLM 2412.10193; Duo 2506.10892 eq. 17) is exact and does not depend on the schedule. Its denoiser must be
conditioned on t. The bound uses the prediction of a token from all *others*, p(x_i | z_{-i}); the output of a network that predicts
p(x_i | z) instead is converted exactly, with `parameterisation="posterior"`.

At t -> 0 the integrand has a logarithmic singularity: where the rest of the text does not determine a token, a rare replaced token costs
log 1/t. So times cut at 1e-3 leave out some 0.4 % of the bound (masked noise: 0.01 %): draw all of [0, 1], with small t more often for
less variance (`power` times).

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

    @property
    def trained_schedule(self) -> Schedule:
        """The schedule of the noise that training draws."""
        return self.schedule

    def shares(self, t: Values) -> Shares:
        noise = self.trained_schedule.noise(t)
        return Shares(self.trained_schedule.alpha(t), noise, jnp.zeros_like(noise))

    def jumps(self, t: Values) -> tuple[Values, Values]:
        rate = -self.trained_schedule.alpha_prime(t)
        return rate, jnp.zeros_like(rate)

    @property
    def noise_mask(self) -> None:
        return None


@dataclasses.dataclass(frozen=True)
class Uniform(UniformNoise):
    """Uniform noise on any schedule.

    vocab: classes of the logits, special ids included; mask_id, excluded: ids that occur neither in text nor in noise.
    parameterisation: what the output means, "leave_one_out" or "posterior" (scores: process `score`).
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
