"""Step methods that draw the time of each token before the first call, and call the network only at these times.

Under absorbing noise the time tau at which a token is masked has P(tau <= t) = 1 - alpha_t, independent of the text. In reverse, the mask
at this position becomes a token at tau, drawn conditional on the tokens revealed by then. Both methods draw from the distribution of the
ancestral sampler.

    predetermined   tau rounded to the grid; one call for each distinct time (DNDM 2312.09193)
    first_hitting   tau itself; one call per token, exact for a network that is not conditioned on t (2409.02908)

Shapes: B rows, L positions, N times of the grid.
"""

import dataclasses

import jax.numpy as jnp

from dlmjax.diffusion.process import uniform_rows
from dlmjax.sampling.steppers import Stepper, StepSchedule, rank


@dataclasses.dataclass(frozen=True)
class Predetermined(Stepper):
    """Leaves out the steps of the grid in which no token of the row changes; NFE is the largest number of distinct times of a row."""

    name = "predetermined"
    requires = "absorbing noise (masks) at one rate for all tokens, with a schedule from text alone at t = 0 to masks alone at t = 1"
    plans = True

    def plan(self, process, keys_B, masked_BL, start_BL, times_BN):
        # tau lies in (times[j + 1], times[j]] for index j. Compared by 1 - alpha, which is exact in discrete time too.
        noise_BL = self._noise(process, keys_B, start_BL)
        index_BL = jnp.sum(noise_BL[..., None] <= process.schedule.noise(times_BN)[:, None, 1:-1], axis=-1)
        used_BN = jnp.any((index_BL[..., None] == jnp.arange(times_BN.shape[1] - 1)) & masked_BL[..., None], axis=1)
        number_BN = jnp.cumsum(used_BN, axis=1)
        call_BL = jnp.where(masked_BL, jnp.take_along_axis(number_BN, index_BL, axis=1), 0)
        # The times in use, highest first, then zeros.
        return StepSchedule(_falling(jnp.where(used_BN, times_BN[:, :-1], 0.0)), call_BL)

    def _noise(self, process, keys_B, start_BL):
        """1 - alpha at the tau of each position, conditional on tau being at most its start time."""
        return jnp.maximum(uniform_rows(keys_B, start_BL.shape[1]), 1e-9) * process.schedule.noise(start_BL)


@dataclasses.dataclass(frozen=True)
class FirstHitting(Predetermined):
    """One call per masked position, at its tau; the grid and the number of steps have no effect."""

    name = "first_hitting"

    def plan(self, process, keys_B, masked_BL, start_BL, times_BN):
        del times_BN
        tau_BL = process.schedule.inverse(1 - self._noise(process, keys_B, start_BL))
        # In discrete time tau is one of the levels, at least the first.
        tau_BL = jnp.where(masked_BL, process.time_domain.quantize(tau_BL, masked_BL), 0.0)
        return StepSchedule(_falling(tau_BL), jnp.where(masked_BL, rank(tau_BL, masked_BL) + 1, 0))


def _falling(times_BN):
    """Each row sorted from high to low, with a 0 appended."""
    return jnp.pad(-jnp.sort(-times_BN, axis=1), ((0, 0), (0, 1)))
