"""Steps: composed they are one shot, DDIM and Euler and DDPM agree where they must, Heun is of second order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion.gaussian import steps
from dlmjax.diffusion.gaussian.parameterisation import posterior
from dlmjax.diffusion.gaussian.schedules import Cosine, LinearBeta, Sqrt, Straight, fresh
from dlmjax.errors import InputError

PATHS = {"cosine": Cosine(), "linear": LinearBeta(), "sqrt": Sqrt(), "straight": Straight()}
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
NOISE, X0, Z = np.random.default_rng(0).normal(size=(3, 5, 2))


@every_path
def test_composed_steps_are_one_shot(path):
    """Mean and variance of z_t | x after T forward steps, and of z_0 | x after T ancestral steps with the true x0."""
    with jax.enable_x64(True):
        grid = np.linspace(0, 1, 13)
        level = [path.at(t) for t in grid]
        mean, variance = level[0].a, level[0].s ** 2
        for early, late in zip(level, level[1:], strict=False):
            keep = late.a / early.a
            mean, variance = keep * mean, keep**2 * variance + late.s**2 * fresh(late, early)
            np.testing.assert_allclose([mean, variance], [late.a, late.s**2], rtol=1e-9, atol=1e-14)
        for to, now in zip(level[-2::-1], level[:0:-1], strict=True):
            c, d, spread = posterior(now, to)
            mean, variance = c * mean + d, c**2 * variance + spread
            np.testing.assert_allclose([mean, variance], [to.a, to.s**2], rtol=1e-9)


@every_path
def test_ddim_is_ancestral_at_one_and_euler_at_zero(path):
    with jax.enable_x64(True):
        noise, x0, z = (jnp.asarray(value) for value in (NOISE, X0, Z))
        for t, s in ((1.0, 0.8), (0.5, 0.3), (0.05, 0.0)):
            now, to = path.at(t), path.at(s)
            np.testing.assert_allclose(steps.ddim(noise, x0, z, now, to, 1.0), steps.ancestral(noise, x0, z, now, to), rtol=1e-7)
            np.testing.assert_allclose(steps.ddim(noise, x0, z, now, to), steps.euler(x0, z, now, to), rtol=1e-7)
            np.testing.assert_array_equal(steps.ddim(noise, x0, z, now, to), steps.ddim(0 * noise, x0, z, now, to))
            # With the true x0 every eta keeps the marginal: the mean and the variance of z_s given x0.
            for eta in (0.3, 0.7):
                still = steps.ddim(0 * noise, x0, now.a * x0, now, to, eta)
                np.testing.assert_allclose(still, to.a * x0, rtol=1e-9)
                one = jnp.ones_like(x0)
                through = steps.ddim(0 * noise, x0, now.a * x0 + now.s * one, now, to, eta) - to.a * x0
                drawn = steps.ddim(one, x0, now.a * x0, now, to, eta) - to.a * x0
                np.testing.assert_allclose(through**2 + drawn**2, to.s**2 * one, rtol=1e-7)


def test_heun_is_of_second_order():
    """x ~ N(0, v): the flow keeps z over its standard deviation. Halving the steps divides Euler's error by 2 and Heun's by 4."""
    path, v = Straight(), 0.3

    def deviation(level):
        return jnp.sqrt(level.a**2 * v + level.s**2)

    def x0(z, level):
        return level.a * v / deviation(level) ** 2 * z

    def error(second_order, count):
        z = jnp.asarray([0.7]) * deviation(path.at(0.9))
        grid = np.linspace(0.9, 0.1, count + 1)
        for t, s in zip(grid, grid[1:], strict=False):
            now, to = path.at(t), path.at(s)
            nearer = steps.euler(x0(z, now), z, now, to)
            z = steps.heun(x0(z, now), x0(nearer, to), z, nearer, now, to) if second_order else nearer
        return float(jnp.abs(z / deviation(path.at(0.1)) - 0.7)[0])

    with jax.enable_x64(True):
        assert error(False, 16) / error(False, 32) == pytest.approx(2, rel=0.15)
        assert error(True, 16) / error(True, 32) == pytest.approx(4, rel=0.15)
        assert error(True, 32) < error(False, 32) / 20


def test_reverse_variances():
    with jax.enable_x64(True):
        now, to = Cosine().at(0.5), Cosine().at(0.45)
        small, large = (float(steps.reverse_variance(name, now, to)) for name in ("fixed_small", "fixed_large"))
        assert small == pytest.approx(float(posterior(now, to)[2])) and large == pytest.approx(1 - float(now.a / to.a) ** 2)
        share = jnp.asarray([0.0, 0.5, 1.0])
        np.testing.assert_allclose(
            steps.reverse_variance("learned_range", now, to, share), [small, (small * large) ** 0.5, large], rtol=1e-9
        )
        # x0 ~ N(0, 1): the reverse step from the posterior mean has variance beta, for which fixed_large is right.
        c, d, spread = posterior(now, to)
        assert float(spread + d**2 * now.s**2) == pytest.approx(large, rel=1e-9)
    with pytest.raises(InputError, match="choose one of fixed_small"):
        steps.reverse_variance("small", now, to)
    with pytest.raises(InputError, match="requires the share"):
        steps.reverse_variance("learned_range", now, to)


def test_normal_kl_by_quadrature():
    x = np.linspace(-15, 15, 200001)

    def log_density(mean, variance):
        return -((x - mean) ** 2) / (2 * variance) - 0.5 * np.log(2 * np.pi * variance)

    q, p = log_density(0.3, 0.7), log_density(-0.4, 1.9)
    truth = np.sum(np.exp(q) * (q - p)) * (x[1] - x[0])
    assert float(steps.normal_kl(*(jnp.asarray(v) for v in (0.3, 0.7, -0.4, 1.9)))) == pytest.approx(truth, rel=1e-5)
