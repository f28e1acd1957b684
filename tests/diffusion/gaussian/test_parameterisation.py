"""Converters round-trip; the posterior is Bayes' rule by quadrature; the exact score gives the posterior mean."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion.gaussian.parameterisation import NAMES, convert, posterior, target, to_eps, to_x0
from dlmjax.diffusion.gaussian.schedules import Cosine, LinearBeta, Straight, betas
from dlmjax.errors import InputError

PATHS = {"cosine": Cosine(), "linear": LinearBeta(), "straight": Straight()}


def _draw(path):
    x0, eps = jnp.asarray(np.random.default_rng(0).normal(size=(2, 40, 3)))
    t = jnp.linspace(0.05, 0.9, 40)
    now, to = path.at(t).over(), path.at(t - 0.02).over()
    return x0, eps, now.a * x0 + now.s * eps, now, to


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_every_pair_of_parameterisations_round_trips(path):
    with jax.enable_x64(True):
        x0, eps, z, now, to = _draw(path)
        for source, into in itertools.product(NAMES, NAMES):
            said = target(source, x0, eps, now, to)
            other = convert(said, z, source, into, now, to)
            np.testing.assert_allclose(other, target(into, x0, eps, now, to), rtol=1e-10, atol=1e-10)
            np.testing.assert_allclose(convert(other, z, into, source, now, to), said, rtol=1e-9, atol=1e-9)


def test_targets_are_what_their_names_say():
    with jax.enable_x64(True):
        path = Cosine()
        x0, eps, z, now, to = _draw(path)
        np.testing.assert_allclose(target("v", x0, eps, now), now.a * eps - now.s * x0)
        # The score of q(z | x0) by autodiff of its log density.
        score = jax.grad(lambda z: jnp.sum(-((z - now.a * x0) ** 2) / (2 * now.s**2)))(jnp.asarray(z))
        np.testing.assert_allclose(target("score", x0, eps, now), score, rtol=1e-9)
        # The velocity is dz/dt of the straight path.
        t = jnp.linspace(0.1, 0.9, 5)
        line = jax.vmap(jax.jvp, (None, 0, 0))(lambda t: (1 - t) * 0.7 + t * -0.4, (t,), (jnp.ones(5),))[1]
        np.testing.assert_allclose(line, -0.4 - 0.7)
        np.testing.assert_allclose(target("velocity", jnp.asarray([0.7]), jnp.asarray([-0.4]), Straight().at(jnp.asarray([0.3]))), -1.1)


def test_posterior_is_bayes_rule_by_quadrature():
    """q(z_s | z_t, x0) is proportional to q(z_t | z_s) q(z_s | x0), normalised on a grid; the variance is DDPM's beta_tilde."""
    with jax.enable_x64(True):
        path, steps = Cosine(), 20
        beta, lattice = np.asarray(betas(path, steps)), np.linspace(-12, 12, 40001)
        for i in (1, 2, 7, 19, 20):
            now, to = path.at(i / steps), path.at((i - 1) / steps)
            x0, z = 0.8, -0.6
            a_step = np.sqrt(1 - beta[i - 1])
            weight = np.exp(-((z - a_step * lattice) ** 2) / (2 * beta[i - 1]) - (lattice - float(to.a) * x0) ** 2 / (2 * float(to.s) ** 2))
            weight /= weight.sum()
            mean = weight @ lattice
            c, d, variance = (float(v) for v in posterior(now, to))
            assert c * z + d * x0 == pytest.approx(mean, rel=1e-8, abs=1e-10)
            assert variance == pytest.approx(weight @ (lattice - mean) ** 2, rel=1e-7)
            abar, abar_to = float(now.a) ** 2, float(to.a) ** 2
            assert variance == pytest.approx((1 - abar_to) / (1 - abar) * beta[i - 1], rel=1e-9)


def test_the_exact_score_of_a_mixture_gives_the_posterior_mean():
    with jax.enable_x64(True):
        weight, centre = jnp.asarray([0.2, 0.5, 0.3]), jnp.asarray([-1.5, 0.2, 1.0])
        now = Cosine().at(0.4)

        def log_density(z):
            return jax.nn.logsumexp(jnp.log(weight) - (z - now.a * centre) ** 2 / (2 * now.s**2))

        z = jnp.linspace(-3, 3, 31)
        score = jax.vmap(jax.grad(log_density))(z)
        likelihood = weight * jnp.exp(-((z[:, None] - now.a * centre) ** 2) / (2 * now.s**2))
        mean = likelihood @ centre / likelihood.sum(axis=1)
        np.testing.assert_allclose(to_x0("score", score, z, now), mean, rtol=1e-10)
        np.testing.assert_allclose(to_eps("score", score, z, now), (z - now.a * mean) / now.s, rtol=1e-10, atol=1e-12)


def test_bad_names_are_refused():
    now = Cosine().at(0.5)
    with pytest.raises(InputError, match="choose one of x0, eps"):
        target("noise", jnp.zeros(1), jnp.zeros(1), now)
    with pytest.raises(InputError, match="it requires `to`"):
        target("mu", jnp.zeros(1), jnp.zeros(1), now)
