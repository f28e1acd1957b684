"""Whole runs with the exact denoiser: the law of what is drawn becomes the data's as steps grow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import row_keys
from dlmjax.diffusion.gaussian import EmbeddingFlow, GaussianEmbedding, Plaid
from dlmjax.diffusion.gaussian.exact import ExactDenoiser
from dlmjax.diffusion.gaussian.sampling import sample
from dlmjax.errors import InputError
from tests.diffusion.battery import index_of
from tests.diffusion.gaussian.battery import CASES, FREE, MASK, TOKENS, TWO, make

ROWS = 20000


def _distance(process, count, **values):
    """Total variation between what is drawn and the law of two tokens."""
    denoiser = ExactDenoiser.of(TWO, process)
    # Equal steps of the straight path's time, mapped to t: neither end is rushed.
    grid = _even_grid(process, count)
    run = jax.jit(functools.partial(sample, process, denoiser.hidden, length=2, **values))
    x_BL = np.asarray(run(row_keys(jax.random.key(0), jnp.arange(ROWS)), grid_N=jnp.asarray(grid)))
    assert x_BL.shape == (ROWS, 2) and (x_BL != MASK).all()
    share = np.bincount(index_of(x_BL, TOKENS), minlength=TOKENS**2) / ROWS
    return 0.5 * np.abs(share - TWO.probability_X).sum()


def _even_grid(process, count):
    t = np.linspace(0, 1, 2001)
    straight = np.asarray(process.curve.level(jnp.asarray(t, jnp.float32)).straight)
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


@pytest.mark.parametrize("method", METHODS)
def test_total_variation_falls_to_chance_as_steps_grow(method):
    process = make(EmbeddingFlow, **FREE)
    few, many = _distance(process, 3, **METHODS[method]), _distance(process, 128, **METHODS[method])
    assert many < CHANCE < few


@pytest.mark.parametrize("name", ["plaid", "cosine/v", "linear/eps", "diffusion_lm"])
def test_every_path_and_prediction_draws_the_law(name):
    assert _distance(CASES[name](), 96, method="heun") < CHANCE


def test_heun_needs_fewer_steps_than_euler():
    process = make(GaussianEmbedding)
    assert _distance(process, 12, method="heun") < 0.6 * _distance(process, 12, method="euler")


def test_discrete_variances_draw_the_law():
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
        output = denoiser.hidden(z_BLE, process.clock(t_BL))
        return process.reverse_step(jax.vmap(jax.random.fold_in, (0, None))(keys_B, i), output, z_BLE, t_BL, s_BL)

    z_BLE, grid = process.prior(keys_B, 2), _even_grid(process, 96)
    for i, (t, s) in enumerate(zip(grid, grid[1:], strict=False)):
        z_BLE = step(i + 1, z_BLE, t, s)
    output = denoiser.hidden(z_BLE, process.clock(jnp.zeros(z_BLE.shape[:2])))
    x_BL = process.decode(jax.vmap(jax.random.fold_in, (0, None))(keys_B, 1000), output, z_BLE)
    share = np.bincount(index_of(np.asarray(x_BL), TOKENS), minlength=TOKENS**2) / ROWS
    assert 0.5 * np.abs(share - TWO.probability_X).sum() < CHANCE
    # With so little noise left, the nearest embedding is the token.
    assert float(jnp.mean(process.show(z_BLE) == x_BL)) > 0.999


def test_clamping_moves_the_estimate_to_an_embedding():
    """Clamped from the start every estimate is an embedding; below t = 0, none: the run is the same."""
    process = make(GaussianEmbedding)
    denoiser = ExactDenoiser.of(TWO, process)
    keys_B, grid = row_keys(jax.random.key(0), jnp.arange(64)), jnp.linspace(1, 0, 5)
    runs = [sample(process, denoiser.hidden, keys_B, 2, grid, "ddim", clamp_below=level) for level in (0.0, 1e-9, 2.0)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).any()
    # A network that always says 0: unclamped it leaves pure noise, clamped it ends at the embedding nearest to 0.
    flat = make(GaussianEmbedding, prediction="x0")
    clamped = sample(flat, lambda z, t: jnp.zeros_like(z), keys_B, 2, grid, "ddim", clamp_below=2.0)
    assert (clamped == 1).all()


def test_unknown_methods_are_refused():
    process = make(GaussianEmbedding)
    with pytest.raises(InputError, match="choose one of ddpm"):
        sample(process, lambda z, t: z, row_keys(jax.random.key(0), jnp.arange(2)), 2, jnp.linspace(1, 0, 3), "dpm")
