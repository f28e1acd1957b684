"""The fitting engine: it finds the law, says when it did not, and agrees with scipy."""

import numpy as np
import pytest
from scipy.optimize import minimize

from dlmjax.errors import InputError
from dlmjax.fit import huber
from dlmjax.fit.forms import ADDITIVE
from tests.fit.synthetic import LAW, NOISE, additive_loss, isoflop_grid


def columns(size_R, tokens_R):
    return {"log_N": np.log(size_R), "log_D": np.log(tokens_R)}


def test_a_law_without_noise_is_found_exactly():
    size_R, tokens_R, _, _ = isoflop_grid()
    found = huber.fit(ADDITIVE, columns(size_R, tokens_R), additive_loss(size_R, tokens_R))
    for name, value in LAW.items():
        assert found.values[name] == pytest.approx(value, rel=1e-7), name
    assert not found.boundaries and found.agree == 1.0 and found.objective < 1e-20


def test_exponents_come_back_within_the_published_spread():
    """7 budgets x 9 sizes with 0.3 % noise: the exponent of N* scatters by about .005 (three times that is allowed for one draw)."""
    size_R, tokens_R, _, _ = isoflop_grid()
    true = LAW["b"] / (LAW["a"] + LAW["b"])
    found = [huber.fit(ADDITIVE, columns(size_R, tokens_R), additive_loss(size_R, tokens_R, noise=NOISE, seed=s)).values for s in range(5)]
    exponents = np.array([each["b"] / (each["a"] + each["b"]) for each in found])
    assert np.abs(exponents - true).max() < 0.015
    assert np.sqrt(np.mean((exponents - true) ** 2)) < 0.008


def test_runs_that_went_wrong_do_not_move_the_law():
    size_R, tokens_R, _, _ = isoflop_grid()
    loss_R = additive_loss(size_R, tokens_R)
    loss_R[[3, 30, 50]] *= (1.3, 1.1, 1.5)
    found = huber.fit(ADDITIVE, columns(size_R, tokens_R), loss_R)
    assert found.values["a"] == pytest.approx(LAW["a"], abs=1e-3)
    assert found.residuals_R[3] == pytest.approx(np.log(1.3), rel=0.05)


def test_the_optimum_is_scipys():
    """The same objective by BFGS alone from the true law ends no lower."""
    size_R, tokens_R, _, _ = isoflop_grid()
    loss_R = additive_loss(size_R, tokens_R, noise=NOISE)
    given = columns(size_R, tokens_R)
    found = huber.fit(ADDITIVE, given, loss_R)

    def objective(theta):
        return huber.huber(np.log(loss_R) - ADDITIVE.log_loss(theta, given)).sum() * 1e6

    other = minimize(objective, ADDITIVE.theta(LAW), method="BFGS", options={"gtol": 1e-8, "maxiter": 2000})
    assert found.objective <= other.fun / 1e6 * (1 + 1e-6)
    np.testing.assert_allclose(found.objective, other.fun / 1e6, rtol=1e-3)


def test_resamples_are_solved_as_if_alone():
    size_R, tokens_R, _, _ = isoflop_grid()
    loss_R = additive_loss(size_R, tokens_R, noise=NOISE)
    given, count = columns(size_R, tokens_R), len(loss_R)
    start = huber.fit(ADDITIVE, given, loss_R).theta_P
    weight_SR = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=20)
    together_SP, value_S = huber.solve(ADDITIVE, given, np.log(loss_R), weight_SR, np.tile(start, (20, 1)))
    for s in (0, 7, 19):
        index = np.repeat(np.arange(count), weight_SR[s])
        alone = huber.fit(ADDITIVE, {name: column[index] for name, column in given.items()}, loss_R[index])
        assert value_S[s] == pytest.approx(alone.objective, rel=1e-4)
        np.testing.assert_allclose(ADDITIVE.values(together_SP[s])["a"], alone.values["a"], atol=1e-3)


def test_a_boundary_is_reported():
    """Without a data term the fit says that B and b have nothing to say (or ended at their bounds)."""
    size_R, tokens_R, _, _ = isoflop_grid()
    found = huber.fit(ADDITIVE, columns(size_R, tokens_R), 2.0 + 800 / size_R**0.38)
    assert any("log_B" in reason or reason.startswith("b ") for reason in found.boundaries)


def test_too_few_runs_are_refused_in_one_line():
    with pytest.raises(InputError, match="5 runs for the 5 parameters of the additive law; at least 6 are needed"):
        huber.fit(ADDITIVE, columns(np.arange(1.0, 6), np.arange(2.0, 7)), np.full(5, 3.0))


def test_the_huber_loss_is_continuous_and_linear_beyond_delta():
    assert huber.huber(np.array([1e-3]))[0] == pytest.approx(0.5e-6)
    assert huber.huber(np.array([1.0]))[0] == pytest.approx(1e-3 * (1 - 0.5e-3))
