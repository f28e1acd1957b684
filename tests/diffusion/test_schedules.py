"""Schedules: golden values, monotone, finite at both ends, consistent with each other."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import Clipped, Cosine, Geometric, Linear, Polynomial, Schedule, llada, log_linear, symmetric
from dlmjax.errors import InputError

SCHEDULES = {
    "linear": Linear(),
    "cosine": Cosine(),
    "square": Polynomial(2.0),
    "cubic": Polynomial(3.0),
    "geometric": Geometric(1e-3, 10.0),
    "log_linear": log_linear(1e-3),
    "llada": llada(1e-3),
    "clipped": symmetric(Cosine(), 1e-4),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)

ROOT = math.sqrt(0.5)
# alpha, alpha', hazard at t = 1/2, by hand.
GOLDEN = {
    "linear": (0.5, -1.0, 2.0),
    "cosine": (1 - ROOT, -math.pi / 2 * ROOT, math.pi / 2),
    "square": (0.75, -1.0, 4.0),
    "cubic": (0.875, -0.75, 6.0),
    "geometric": (math.exp(-0.1), -0.1 * math.log(1e4) * math.exp(-0.1), 0.1 * math.log(1e4) / math.expm1(0.1)),
    "log_linear": (0.5005, -0.999, 2.0),
    "llada": (0.4995, -0.999, 0.999 / 0.5005),
    "clipped": (1e-4 + 0.9998 * (1 - ROOT), -0.9998 * math.pi / 2 * ROOT, 0.9998 * math.pi / 2 * ROOT / (1e-4 + 0.9998 * ROOT)),
}
ENDS = {"geometric": (math.exp(-1e-3), math.exp(-10)), "log_linear": (1, 1e-3), "llada": (0.999, 0), "clipped": (0.9999, 1e-4)}


@pytest.mark.parametrize("name", SCHEDULES)
def test_golden_values(name):
    schedule, half = SCHEDULES[name], jnp.float32(0.5)
    alpha, slope, hazard = GOLDEN[name]
    assert isinstance(schedule, Schedule)
    assert float(schedule.alpha(half)) == pytest.approx(alpha, rel=1e-6)
    assert float(schedule.noise(half)) == pytest.approx(1 - alpha, rel=1e-6)
    assert float(schedule.alpha_prime(half)) == pytest.approx(slope, rel=1e-6)
    assert float(schedule.hazard(half)) == pytest.approx(hazard, rel=1e-6)
    assert float(schedule.log_snr(half)) == pytest.approx(math.log(alpha / (1 - alpha)), rel=1e-5, abs=1e-6)
    assert schedule.ends == pytest.approx(ENDS.get(name, (1, 0)), rel=1e-12)
    assert schedule.has_boundary == (name in ENDS)
    assert [float(a) for a in schedule.alpha(jnp.asarray([0.0, 1.0]))] == pytest.approx(schedule.ends, rel=1e-5, abs=1e-12)


@every_schedule
def test_monotone_and_finite_in_float32_up_to_both_ends(schedule):
    near = np.concatenate([[0], np.logspace(-38, -1, 200), np.linspace(0.1, 0.9, 100), 1 - np.logspace(-1, -7, 100), [1]])
    t = jnp.asarray(np.unique(near.astype(np.float32)))
    alpha, noise, slope = schedule.alpha(t), schedule.noise(t), schedule.alpha_prime(t)
    assert alpha.dtype == noise.dtype == slope.dtype == jnp.float32
    assert (jnp.diff(alpha) <= 0).all() and (jnp.diff(noise) >= 0).all() and (slope <= 0).all()
    assert ((alpha >= 0) & (alpha <= 1) & (noise >= 0) & (noise <= 1)).all()
    assert (jnp.diff(schedule.log_snr(t)) <= 0).all()
    assert (schedule.hazard(t) >= 0).all()
    for value in (alpha, noise, slope, schedule.hazard(t), schedule.log_snr(t)):
        assert jnp.isfinite(value).all()
    gradients = [jax.vmap(jax.grad(f))(t) for f in (schedule.alpha, schedule.noise, schedule.alpha_prime)]
    assert all(jnp.isfinite(g).all() for g in gradients)


@every_schedule
def test_derivative_inverse_and_hazard_fit_together(schedule):
    with jax.enable_x64(True):
        t = jnp.linspace(1e-3, 1 - 1e-3, 101)
        np.testing.assert_allclose(schedule.alpha_prime(t), jax.vmap(jax.grad(schedule.alpha))(t), rtol=1e-9)
        np.testing.assert_allclose(schedule.alpha(t) + schedule.noise(t), 1.0, rtol=1e-12)
        np.testing.assert_allclose(schedule.hazard(t), -schedule.alpha_prime(t) / (1 - schedule.alpha(t)), rtol=1e-7)
        np.testing.assert_allclose(schedule.log_snr(t), jnp.log(schedule.alpha(t) / (1 - schedule.alpha(t))), atol=1e-7)
        np.testing.assert_allclose(schedule.inverse(schedule.alpha(t)), t, atol=1e-9)
    t = jnp.linspace(0, 1, 101)
    np.testing.assert_allclose(schedule.inverse(schedule.alpha(t)), t, atol=2e-3 if isinstance(schedule, Geometric) else 3e-4)
    assert [float(v) for v in schedule.inverse(jnp.asarray([1.0, 0.0]))] == pytest.approx([0, 1], abs=1e-5)


def test_linear_weight_is_exactly_one_over_t():
    t = jax.random.uniform(jax.random.key(0), (10_000,)) + jnp.float32(1e-7)
    np.testing.assert_array_equal(Linear().hazard(t), 1 / t)


@every_schedule
def test_low_precision_and_plain_numbers_are_computed_in_float32(schedule):
    """In bfloat16 1 - 1e-3 is 1: the level is widened before anything else."""
    t = jnp.asarray([0.0, 0.00390625, 0.5, 1.0], jnp.bfloat16)
    assert schedule.alpha(t).dtype == jnp.float32
    np.testing.assert_array_equal(schedule.noise(t), schedule.noise(t.astype(jnp.float32)))
    assert float(schedule.alpha(0.25)) == pytest.approx(float(schedule.alpha(jnp.float32(0.25))))
    assert float(schedule.alpha(1)) == pytest.approx(schedule.ends[1], abs=1e-7)
    assert schedule.alpha(jnp.zeros((2, 3, 4))).shape == (2, 3, 4)


def test_log_linear_is_sedds():
    """SEDD's total noise sigma = -log(1 - (1 - eps) t); LLaDA's mask rate p = (1 - eps) t + eps."""
    t = jnp.linspace(0, 1, 50)
    np.testing.assert_allclose(-jnp.log(log_linear(0.01).alpha(t)), -jnp.log1p(-(1 - 0.01) * t), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(llada(0.01).noise(t), (1 - 0.01) * t + 0.01, rtol=1e-6)


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: Polynomial(0.5), "at least 1"),
        (lambda: Geometric(1.0, 0.5), "sigma_min < sigma_max"),
        (lambda: Clipped(Linear(), 0.5, 0.2), "low < high"),
        (lambda: symmetric(Linear(), 0.5), r"\(0, 0.5\)"),
    ],
)
def test_impossible_schedules_are_refused(make, says):
    with pytest.raises(InputError, match=says):
        make()
