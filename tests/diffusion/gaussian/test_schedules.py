"""Paths: closed forms against autodiff, ends, golden values, DDPM's betas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion.gaussian import make_path
from dlmjax.diffusion.gaussian.schedules import Cosine, LinearBeta, LogLinear, Sqrt, Straight, betas, fresh, snr_drop
from dlmjax.errors import InputError

PATHS = {
    "linear": LinearBeta(),
    "cosine": Cosine(),
    "sqrt": Sqrt(),
    "log_linear": LogLinear(),
    "straight": Straight(),
    "open_cosine": Cosine(low=0.0, high=1.0),
}
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


@every_path
def test_the_closed_forms_fit_together(path):
    with jax.enable_x64(True):
        t = jnp.linspace(0.01, 0.99, 99)
        now = path.at(t)
        np.testing.assert_allclose(now.gamma, 2 * jnp.log(now.s / now.a), rtol=1e-9, atol=1e-9)
        if path is not PATHS["straight"]:
            np.testing.assert_allclose(now.a**2 + now.s**2, 1, rtol=1e-12)
        slope = jax.vmap(jax.grad(lambda t: -jnp.exp(-path.at(t).gamma)))(t)
        np.testing.assert_allclose(path.snr_rate(t), slope, rtol=1e-8)
        np.testing.assert_allclose(now.straight, jax.nn.sigmoid(now.gamma / 2), rtol=1e-10)
        late, early = path.at(t[1:]), path.at(t[:-1])
        np.testing.assert_allclose(snr_drop(late, early), (early.a / early.s) ** 2 - (late.a / late.s) ** 2, rtol=1e-8)


@every_path
def test_finite_and_monotone_in_float32_up_to_both_ends(path):
    t = jnp.asarray(np.unique(np.concatenate([[0], np.logspace(-30, -1, 100), np.linspace(0.1, 1, 100), 1 - np.logspace(-7, -2, 50)])))
    now, rate = path.at(t.astype(jnp.float32)), path.snr_rate(t.astype(jnp.float32))
    for value in (*now, rate):
        assert value.dtype == jnp.float32 and jnp.isfinite(value).all()
    # Up to the last bit of a product of two sines.
    assert (jnp.diff(now.a) <= 1e-7).all() and (jnp.diff(now.s) >= -1e-7).all() and (jnp.diff(now.gamma) >= -1e-6).all()
    assert (rate >= 0).all()
    assert (fresh(path.at(t[1:]), path.at(t[:-1])) >= -1e-6).all()


def test_golden_values():
    """abar at t = 1/2, by hand."""
    golden = {
        "linear": math.exp(-0.05 - 19.9 / 8) * (1 - 1e-4),
        "cosine": 1e-5 + (1 - 1e-4 - 1e-5) * (math.cos(0.508 / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)) ** 2,
        "sqrt": 1e-5 + (1 - 1e-5) * (1 - math.sqrt(0.5001 / 1.0001)),
        "log_linear": 1 / (1 + math.exp(1.5)),
        "straight": 0.495**2,
    }
    for name, abar in golden.items():
        assert float(PATHS[name].at(0.5).a) ** 2 == pytest.approx(abar, rel=1e-5), name


def test_betas_are_those_of_ddpm():
    """1e-4 to 0.02 over 1000 steps, and their product is what is left of the signal."""
    beta = np.asarray(betas(LinearBeta(low=0.0, high=1.0), 1000), np.float64)
    assert beta.shape == (1000,) and beta[0] == pytest.approx(1e-4, rel=0.11) and beta[-1] == pytest.approx(0.02, rel=0.011)
    assert np.prod(1 - beta) == pytest.approx(math.exp(-10.05), rel=1e-3)
    for path in (Cosine(), Sqrt()):
        beta = np.asarray(betas(path, 50), np.float64)
        assert ((beta > 0) & (beta < 1)).all()
        ends = [float(path.at(t).a) ** 2 for t in (0.0, 1.0)]
        assert np.prod(1 - beta) == pytest.approx(ends[1] / ends[0], rel=1e-3)


def test_ends_by_gamma():
    for name in ("linear", "cosine", "log_linear", "straight"):
        assert float(make_path(name, gamma_0=-4.0).at(0.0).gamma) == pytest.approx(-4, rel=1e-4), name
    for name in ("cosine", "sqrt", "log_linear"):
        assert float(make_path(name, gamma_1=5.0).at(1.0).gamma) == pytest.approx(5, rel=1e-4), name
    assert float(make_path("sqrt").at(0.0).s) ** 2 == pytest.approx(0.01, rel=1e-3)


def test_bad_paths_are_refused():
    with pytest.raises(InputError, match="choose one of linear"):
        make_path("qubic")
    with pytest.raises(InputError, match="takes no gamma_1"):
        make_path("straight", gamma_1=5.0)
    with pytest.raises(InputError, match="below gamma_1"):
        LogLinear(3.0, 3.0)
    with pytest.raises(InputError, match="0 <= low < high"):
        Cosine(low=0.9, high=0.5)
    with pytest.raises(InputError, match="start"):
        Straight(0.0)
    with pytest.raises(InputError, match="offset"):
        Sqrt(offset=0.0)
