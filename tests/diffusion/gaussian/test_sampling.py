"""Whole runs of the pure steps with the exact denoiser: the law of what is drawn becomes the data's as steps grow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import row_keys
from dlmjax.diffusion.gaussian import GaussianEmbedding, Plaid
from dlmjax.diffusion.gaussian import steps as laws
from dlmjax.diffusion.gaussian.process import normals
from dlmjax.diffusion.oracle.gaussian import ExactDenoiser
from dlmjax.diffusion.process import split_rows
from tests.diffusion.battery import index_of
from tests.diffusion.gaussian.battery import CASES, FREE, MASK, TOKENS, TWO, make

ROWS = 20000


def _sample(process, denoise, keys_B, grid_N, method, eta=0.0):
    """Two tokens a row, by steps from grid[0] to grid[-1] and p(x | z_0)."""
    start_B, step_B, last_B = split_rows(keys_B, 3)

    def read(z_BLE, t):
        t_BL = jnp.full(z_BLE.shape[:2], t)
        output = denoise(z_BLE, process.time_embedding_input(t_BL))
        return process.clean(output, z_BLE, t_BL), output

    def step(z_BLE, place):
        t, s, i = place
        now, to = process.curve.at(t), process.curve.at(s)
        noise_BLE = normals(jax.vmap(jax.random.fold_in, (0, None))(step_B, i), 2, process.dim)
        x0_BLE, output = read(z_BLE, t)
        if method == "ddpm":
            return laws.ancestral(
                noise_BLE, x0_BLE, z_BLE, now, to, laws.reverse_variance(process.variance, now, to, process.share(output))
            ), None
        if method == "ddim":
            return laws.ddim(noise_BLE, x0_BLE, z_BLE, now, to, eta), None
        next_BLE = laws.euler(x0_BLE, z_BLE, now, to)
        if method == "heun":
            next_BLE = laws.heun(x0_BLE, read(next_BLE, s)[0], z_BLE, next_BLE, now, to)
        return next_BLE, None

    places = (grid_N[:-1], grid_N[1:], jnp.arange(grid_N.shape[0] - 1))
    z_BLE, _ = jax.lax.scan(step, process.prior(start_B, 2), places)
    return process.decode(last_B, read(z_BLE, grid_N[-1])[1], z_BLE)


def _distance(process, count, **values):
    """Total variation between what is drawn and the law of two tokens."""
    denoiser = ExactDenoiser.of(TWO, process)
    # Equal steps of the straight path's time, mapped to t: neither end is rushed.
    grid = _even_grid(process, count)
    run = jax.jit(functools.partial(_sample, process, denoiser.hidden, **values))
    x_BL = np.asarray(run(row_keys(jax.random.key(0), jnp.arange(ROWS)), grid_N=jnp.asarray(grid)))
    assert x_BL.shape == (ROWS, 2) and (x_BL != MASK).all()
    share = np.bincount(index_of(x_BL, TOKENS), minlength=TOKENS**2) / ROWS
    return 0.5 * np.abs(share - TWO.probability_X).sum()


def _even_grid(process, count):
    t = np.linspace(0, 1, 2001)
    straight = np.asarray(process.curve.at(jnp.asarray(t, jnp.float32)).straight)
    return np.interp(np.linspace(straight[-1], straight[0], count + 1), straight, t).astype(np.float32)


METHODS = {
    "ddpm": {"method": "ddpm"},
    "ddim": {"method": "ddim"},
    "ddim_half": {"method": "ddim", "eta": 0.5},
    "euler": {"method": "euler"},
    "heun": {"method": "heun"},
}
# Of the counts of 20000 draws over 9 cells: about 0.008 by chance.
CHANCE = 0.016


LIGHT = {"heun": (), "ddpm": pytest.mark.slow}


@pytest.mark.parametrize("method", [pytest.param(name, marks=LIGHT.get(name, pytest.mark.nightly)) for name in METHODS])
def test_total_variation_falls_to_chance_as_steps_grow(method):
    process = CASES["embedding_flow"]()
    few, many = _distance(process, 3, **METHODS[method]), _distance(process, 128, **METHODS[method])
    assert many < CHANCE < few


FURTHER = [pytest.param(name, marks=pytest.mark.nightly) for name in ("linear/eps", "diffusion_lm")]


@pytest.mark.parametrize("name", ["plaid", "cosine/v", *FURTHER])
def test_every_path_and_prediction_draws_the_joint_distribution(name):
    assert _distance(CASES[name](), 96, method="heun") < CHANCE


def test_heun_needs_fewer_steps_than_euler():
    process = make(GaussianEmbedding)
    assert _distance(process, 12, method="heun") < 0.6 * _distance(process, 12, method="euler")


def test_discrete_variances_draw_the_joint_distribution():
    for variance in ("fixed_large", "learned_range"):
        process = make(GaussianEmbedding, prediction="x0", steps=256, variance=variance)
        assert _distance(process, 256, method="ddpm") < 1.5 * CHANCE, variance


def test_the_process_steps_as_the_sampler_does():
    """`prior`, `reverse_step` and `decode` in a plain loop, as any sampler of the house calls them."""
    process = make(Plaid, **FREE, gamma_0=-6.0, gamma_1=9.0)
    denoiser = ExactDenoiser.of(TWO, process)
    keys_B = row_keys(jax.random.key(3), jnp.arange(ROWS))

    @jax.jit
    def step(i, z_BLE, t, s):
        t_BL, s_BL = jnp.full(z_BLE.shape[:2], t), jnp.full(z_BLE.shape[:2], s)
        output = denoiser.hidden(z_BLE, process.time_embedding_input(t_BL))
        return process.reverse_step(jax.vmap(jax.random.fold_in, (0, None))(keys_B, i), output, z_BLE, t_BL, s_BL)

    z_BLE, grid = process.prior(keys_B, 2), _even_grid(process, 96)
    for i, (t, s) in enumerate(zip(grid, grid[1:], strict=False)):
        z_BLE = step(i + 1, z_BLE, t, s)
    output = denoiser.hidden(z_BLE, process.time_embedding_input(jnp.zeros(z_BLE.shape[:2])))
    x_BL = process.decode(jax.vmap(jax.random.fold_in, (0, None))(keys_B, 1000), output, z_BLE)
    share = np.bincount(index_of(np.asarray(x_BL), TOKENS), minlength=TOKENS**2) / ROWS
    assert 0.5 * np.abs(share - TWO.probability_X).sum() < CHANCE
    # With so little noise left, the nearest embedding is the token.
    assert float(jnp.mean(process.states.to_tokens(z_BLE) == x_BL)) > 0.999
