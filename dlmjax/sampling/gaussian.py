"""Step methods of Gaussian processes on embeddings, from the network's x0 prediction (formulas: `diffusion.gaussian.steps`).

    ddpm    the ancestral step, with the process's variance                                  one call
    ddim    the same marginals with a share eta of its noise; eta = 0 is deterministic       one call
    heun    the probability-flow ODE to second order                                         two calls

clamp_below: time below which the x0 prediction is moved to the nearest embedding (Diffusion-LM 2205.14217 section 4.2); 0 = off.
"""

import dataclasses

import jax.numpy as jnp

from dlmjax.diffusion.gaussian import embedding, steps
from dlmjax.diffusion.gaussian.process import normals
from dlmjax.errors import InputError
from dlmjax.sampling.steppers import Stepper


@dataclasses.dataclass(frozen=True)
class Ddpm(Stepper):
    """Ancestral step (2006.11239), with clamping."""

    clamp_below: float = 0.0

    name = "ddpm"
    requires = "Gaussian noise on embeddings"

    def __post_init__(self):
        if not 0 <= self.clamp_below <= 1:
            raise InputError(f"method {self.name}: clamp_below is {self.clamp_below}; it is a time and must lie in [0, 1]")

    def step(self, process, keys_B, denoise, z, t_BL, s_BL):
        output_BLV = denoise(z, t_BL)
        now, to = self._curve_at(process, t_BL, s_BL)
        variance = steps.reverse_variance(process.variance, now, to, process.share(output_BLV))
        return steps.ancestral(normals(keys_B, z.shape[1], process.dim), self._x0(process, output_BLV, z, t_BL), z, now, to, variance)

    def _curve_at(self, process, t_BL, s_BL):
        return process.curve.at(t_BL).over(), process.curve.at(s_BL).over()

    def _x0(self, process, output_BLV, z, t_BL):
        x0_BLE = process.clean(output_BLV, z, t_BL)
        if not self.clamp_below:
            return x0_BLE
        near_BLE = embedding.clamp(x0_BLE, process.table, process.excluded)
        return jnp.where((t_BL < self.clamp_below)[..., None], near_BLE, x0_BLE)


@dataclasses.dataclass(frozen=True)
class Ddim(Ddpm):
    """DDIM (2010.02502). eta: share of the ancestral step's noise, in [0, 1]."""

    eta: float = 0.0

    name = "ddim"

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise InputError(f"method ddim: eta is {self.eta}; it is a share of the noise and must lie in [0, 1]")

    def step(self, process, keys_B, denoise, z, t_BL, s_BL):
        now, to = self._curve_at(process, t_BL, s_BL)
        x0_BLE = self._x0(process, denoise(z, t_BL), z, t_BL)
        return steps.ddim(normals(keys_B, z.shape[1], process.dim), x0_BLE, z, now, to, self.eta)


@dataclasses.dataclass(frozen=True)
class Heun(Ddpm):
    """Heun's method (2206.00364): an Euler step, then a step with the mean of the slopes at t and s."""

    name = "heun"

    def step(self, process, keys_B, denoise, z, t_BL, s_BL):
        now, to = self._curve_at(process, t_BL, s_BL)
        x0_BLE = self._x0(process, denoise(z, t_BL), z, t_BL)
        # A position with t = s keeps its vector, also as input of the second call.
        moves_BL1 = (s_BL < t_BL)[..., None]
        next_BLE = jnp.where(moves_BL1, steps.euler(x0_BLE, z, now, to), z)
        x0_next_BLE = self._x0(process, denoise(next_BLE, s_BL), next_BLE, s_BL)
        return jnp.where(moves_BL1, steps.heun(x0_BLE, x0_next_BLE, z, next_BLE, now, to), z)
