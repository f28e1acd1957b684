"""Each token is made once, at a time drawn before the first call, so that no call is spent on a step in which nothing happens.

Under absorbing noise a token's time tau has P(tau <= t) = 1 - alpha_t, whatever the text is, and the reverse process is: at tau the
mask becomes a token drawn given what is shown. Both methods below draw the law of the ancestral sampler.

    predetermined   tau rounded to the grid: the calls are the distinct steps in which something happens (DNDM 2312.09193);
    first_hitting   tau as it is: one token per call, exact for a network without time input (2409.02908).

Shapes: B rows, L positions, N levels.
"""

import dataclasses

import jax.numpy as jnp

from dlmjax.diffusion.process import uniform_rows
from dlmjax.sampling.steppers import Stepper, StepSchedule, rank


@dataclasses.dataclass(frozen=True)
class Predetermined(Stepper):
    """Steps of the grid in which no token of the row changes are left out; NFE = the most distinct times of any row."""

    name = "predetermined"
    requires = "absorbing noise (masks) at one rate for all tokens, with a schedule from text alone at t = 0 to masks alone at t = 1"
    plans = True

    def plan(self, process, keys_B, masked_BL, start_BL, levels_BN):
        # Cell j holds the times in (levels[j + 1], levels[j]]; steps count from 0. By the noise: discrete time has no other times.
        noise_BL = self._noise(process, keys_B, start_BL)
        cell_BL = jnp.sum(noise_BL[..., None] <= process.schedule.noise(levels_BN)[:, None, 1:-1], axis=-1)
        used_BN = jnp.any((cell_BL[..., None] == jnp.arange(levels_BN.shape[1] - 1)) & masked_BL[..., None], axis=1)
        place_BN = jnp.cumsum(used_BN, axis=1)
        call_BL = jnp.where(masked_BL, jnp.take_along_axis(place_BN, cell_BL, axis=1), 0)
        # The levels in use, highest first, then zeros.
        return StepSchedule(_falling(jnp.where(used_BN, levels_BN[:, :-1], 0.0)), call_BL)

    def _noise(self, process, keys_B, start_BL):
        """1 - alpha at the tau of each position, given that the noise at its start level has hit it."""
        return jnp.maximum(uniform_rows(keys_B, start_BL.shape[1]), 1e-9) * process.schedule.noise(start_BL)


@dataclasses.dataclass(frozen=True)
class FirstHitting(Predetermined):
    """One call per hole, at the time drawn for it; the grid and the number of steps do not matter."""

    name = "first_hitting"

    def plan(self, process, keys_B, masked_BL, start_BL, levels_BN):
        del levels_BN
        tau_BL = process.schedule.inverse(1 - self._noise(process, keys_B, start_BL))
        # In discrete time a token is hit at a level, the first at the earliest.
        tau_BL = jnp.where(masked_BL, process.time_domain.quantize(tau_BL, masked_BL), 0.0)
        return StepSchedule(_falling(tau_BL), jnp.where(masked_BL, rank(tau_BL, masked_BL) + 1, 0))


def _falling(times_BN):
    return jnp.pad(-jnp.sort(-times_BN, axis=1), ((0, 0), (0, 1)))
