"""A whole sampling run of a Gaussian process in one scan: DDPM, DDIM, Euler or Heun, with or without the clamping trick.

Shapes: B batch, L length; states [B, L, E]; the grid runs from noise to clean.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dlmjax.diffusion.gaussian import embedding, steps
from dlmjax.diffusion.gaussian.process import GaussianEmbedding, normals
from dlmjax.diffusion.process import split_rows
from dlmjax.errors import InputError

METHODS = ("ddpm", "ddim", "euler", "heun")


def sample(
    process: GaussianEmbedding,
    denoise: Callable[[Array, Array], Array],
    keys_B: Key[Array, "B"],
    length: int,
    grid_N: Float[Array, "N"],
    method: str = "ddpm",
    eta: float = 0.0,
    clamp_below: float = 0.0,
) -> Int[Array, "B {length}"]:
    """Tokens drawn by steps from grid[0] to grid[-1] and p(x | z_0).

    Args:
      process: with its learned values in place.
      denoise: (z [B, L, E], clock [B, L]) -> the network's output.
      grid_N: falling levels, from 1 to 0.
      eta: share of the noise that ddim draws. clamp_below: levels t below which the estimate is moved to the nearest embedding; 1 = always.
    """
    if method not in METHODS:
        raise InputError(f"unknown sampling method {method!r}; choose one of {', '.join(METHODS)}")
    start_B, step_B, last_B = split_rows(keys_B, 3)

    def output(z_BLE: Array, t: Array) -> Array:
        return denoise(z_BLE, process.clock(jnp.full(z_BLE.shape[:2], t)))

    def clean(said_BLV: Array, z_BLE: Array, t: Array) -> Array:
        x0_BLE = process.clean(said_BLV, z_BLE, jnp.full(z_BLE.shape[:2], t))
        if not clamp_below:
            return x0_BLE
        return jnp.where(t < clamp_below, embedding.clamp(x0_BLE, process.table, process.excluded), x0_BLE)

    def step(z_BLE: Array, place: tuple[Array, Array, Array]) -> tuple[Array, None]:
        t, s, i = place
        now, to = process.curve.level(t), process.curve.level(s)
        noise_BLE = normals(jax.vmap(jax.random.fold_in, (0, None))(step_B, i), length, process.dim)
        said_BLV = output(z_BLE, t)
        x0_BLE = clean(said_BLV, z_BLE, t)
        if method == "ddpm":
            variance = steps.reverse_variance(process.variance, now, to, process.share(said_BLV))
            return steps.ancestral(noise_BLE, x0_BLE, z_BLE, now, to, variance), None
        if method == "ddim":
            return steps.ddim(noise_BLE, x0_BLE, z_BLE, now, to, eta), None
        next_BLE = steps.euler(x0_BLE, z_BLE, now, to)
        if method == "heun":
            next_BLE = steps.heun(x0_BLE, clean(output(next_BLE, s), next_BLE, s), z_BLE, next_BLE, now, to)
        return next_BLE, None

    places = (grid_N[:-1], grid_N[1:], jnp.arange(grid_N.shape[0] - 1))
    z_BLE, _ = jax.lax.scan(step, process.prior(start_B, length), places)
    return process.decode(last_B, output(z_BLE, grid_N[-1]), z_BLE)
