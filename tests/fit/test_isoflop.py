"""Parabolas: the minima that count, the reasons of those that do not, and the sizes of the known errors."""

import re

import numpy as np
import pytest

from dlmjax.fit import envelope, forms, isoflop
from tests.fit.synthetic import LAW, NOISE, additive_loss, isoflop_grid


def fitted(noise=0.0, seed=0, law=LAW, **grid):
    size_R, tokens_R, flops_R, group_R = isoflop_grid(law=law, **grid)
    return isoflop.fit(size_R, tokens_R, flops_R, additive_loss(size_R, tokens_R, law, noise, seed), group_R)


def test_minima_lie_where_the_law_has_them():
    found = fitted()
    assert len(found.accepted) == 7
    for minimum in found.minima:
        size, tokens, loss = forms.optimum(LAW, minimum.flops)
        assert (minimum.size, minimum.tokens, minimum.loss) == pytest.approx((size, tokens, loss), rel=2e-3)
    assert found.laws["size"].exponent == pytest.approx(LAW["b"] / (LAW["a"] + LAW["b"]), abs=1e-6)
    # The floor stands on a grid of per cents; beyond the runs the loss is the law's.
    assert found.laws["loss"](1e24) == pytest.approx(forms.optimum(LAW, 1e24)[2], rel=5e-3)
    assert found.laws["size"].exponent + found.laws["tokens"].exponent == pytest.approx(1.0, abs=1e-9)


def test_the_published_exponents_of_von_ruettes_minima_come_back():
    """2512.10858: M* ~ C^.566, D* ~ C^.434 for masked diffusion: minima drawn on that law, in FLOPs per token, give it to three digits."""
    flops_R = np.repeat(np.geomspace(1e18, 1e21, 5), 9)
    group_R = np.repeat(np.arange(5), 9)
    best_R = 0.05 * flops_R**0.566
    size_R = best_R * np.tile(np.geomspace(1 / 4, 4, 9), 5)
    loss_R = 2.3 + 1e3 * flops_R**-0.16 + 0.02 * np.log(size_R / best_R) ** 2
    laws = isoflop.fit(size_R, flops_R / size_R, flops_R, loss_R, group_R).laws
    assert (round(laws["size"].exponent, 3), round(laws["tokens"].exponent, 3)) == (0.566, 0.434)


def test_scatter_is_of_the_known_size():
    """0.3 % noise, 7 budgets x 9 sizes: sd of the exponent about .005, N*(1e23) within -7..+11 %."""
    found = [fitted(NOISE, seed).laws["size"] for seed in range(60)]
    exponents = np.array([law.exponent for law in found])
    assert 0.0035 < exponents.std() < 0.0065
    true = forms.optimum(LAW, 1e23)[0]
    off = np.array([law(1e23) for law in found]) / true - 1
    assert np.percentile(off, 5) > -0.07 and np.percentile(off, 95) < 0.11


def test_bias_of_the_parabola_sits_in_the_intercept():
    """Uneven exponents on a grid off its centre: several per cent of N* at +-1.5 decades, below 1 % at +-0.5; the exponent is untouched."""
    law = {"E": 1.69, "A": 406.4, "a": 0.34, "B": 410.7, "b": 0.28}
    wide, near = (fitted(law=law, decades=decades, off=0.1) for decades in (1.5, 0.5))
    true = forms.optimum(law, 1e23)[0]
    assert 0.01 < abs(wide.laws["size"](1e23) / true - 1) < 0.12
    assert abs(near.laws["size"](1e23) / true - 1) < 0.01
    assert wide.laws["size"].exponent == pytest.approx(law["b"] / (law["a"] + law["b"]), abs=2e-3)


def test_resamples_that_lost_budgets_keep_the_floor():
    """With a floor in the estimate and none in resamples of three budgets, the estimate would lie outside of its own interval."""
    size_R, tokens_R, flops_R, group_R = isoflop_grid(budgets=4)
    arrays = size_R, tokens_R, flops_R, additive_loss(size_R, tokens_R), group_R
    whole, weight_SR = isoflop.fit(*arrays), np.where(group_R == [[-1], [3], [0]], 0.0, 1.0)
    assert isoflop.has_floor(whole) and whole.laws["loss"].floor > 1
    loss = isoflop.resample(*arrays, weight_SR)["loss"]
    np.testing.assert_allclose(loss.floor, whole.laws["loss"].floor, rtol=1e-9)
    np.testing.assert_allclose(loss(1e24), whole.laws["loss"](1e24), rtol=5e-3)


def one_budget(size_R, loss_R):
    flops_R = np.full(len(size_R), 1e18)
    return isoflop.fit(size_R, flops_R / 6 / size_R, flops_R, loss_R, np.zeros(len(size_R), int)).minima[0]


@pytest.mark.parametrize(
    "shape, reason",
    [
        (lambda x: 3 - 0.1 * x**2, "concave"),
        (lambda x: 3 + 0.1 * (x - 3) ** 2, "edge: the minimum, .* beyond the largest size tried; add larger ones"),
        (lambda x: 3 + 0.1 * (x + 3) ** 2, "edge: the minimum, .* beyond the smallest size tried; add smaller ones"),
        (lambda x: 3 + 2e-3 * x**2 + 0.01 * np.resize([1, -1, 1, 0, -1, 0], len(x)), "too narrow: the curvature is only"),
    ],
    ids=["concave", "largest", "smallest", "flat"],
)
def test_what_is_no_minimum_is_rejected(shape, reason):
    x = np.linspace(-1, 1, 9)
    minimum = one_budget(1e8 * np.exp(x), shape(x))
    assert minimum.rejected and re.match(reason, minimum.rejected), minimum.rejected


def test_too_few_sizes_and_too_small_a_span_are_rejected():
    x = np.linspace(-1, 1, 3)
    assert "3 sizes, at least 4" in one_budget(1e8 * np.exp(x), 3 + x**2).rejected
    x = np.linspace(-0.1, 0.1, 9)
    assert "span a factor of 1.2" in one_budget(1e8 * np.exp(x), 3 + x**2).rejected


def test_runs_of_unequal_flops_are_no_budget():
    """As where a table names no budgets and its runs lie close together all the way."""
    x = np.linspace(-1, 1, 9)
    size_R, flops_R = 1e8 * np.exp(x), np.geomspace(1e18, 2e18, 9)
    minimum = isoflop.fit(size_R, flops_R / 6 / size_R, flops_R, 3 + x**2, np.zeros(9, int)).minima[0]
    assert minimum.rejected.startswith("no budget: its runs differ by a factor of 2 in FLOPs")


def test_a_rejected_budget_does_not_bend_the_law():
    size_R, tokens_R, flops_R, group_R = isoflop_grid()
    loss_R = additive_loss(size_R, tokens_R)
    loss_R[group_R == 3] = 6.0 - 0.1 * np.log(size_R[group_R == 3] / size_R[group_R == 3].mean()) ** 2
    found = isoflop.fit(size_R, tokens_R, flops_R, loss_R, group_R)
    assert [bool(minimum.rejected) for minimum in found.minima] == [False] * 3 + [True] + [False] * 3
    assert found.laws["size"].exponent == pytest.approx(LAW["b"] / (LAW["a"] + LAW["b"]), abs=1e-6)


def test_resamples_with_all_weights_one_are_the_fit():
    size_R, tokens_R, flops_R, group_R = isoflop_grid()
    loss_R = additive_loss(size_R, tokens_R, noise=NOISE)
    laws = isoflop.fit(size_R, tokens_R, flops_R, loss_R, group_R).laws
    drawn = isoflop.resample(size_R, tokens_R, flops_R, loss_R, group_R, np.ones((2, len(size_R))))
    for name, law in laws.items():
        np.testing.assert_allclose(drawn[name].exponent, law.exponent, rtol=1e-9)
        np.testing.assert_allclose(drawn[name].coefficient, law.coefficient, rtol=1e-6)


def test_the_envelope_is_what_nothing_cheaper_beats():
    flops_R = np.array([1e18, 1e18, 1e19, 1e19, 1e20, 1e20])
    loss_R = np.array([3.0, 3.2, 2.8, 2.7, 2.75, 2.9])
    group_R = np.array([0, 0, 1, 1, 2, 2])
    on_R = envelope.front(flops_R, loss_R, group_R, np.ones((1, 6)))[0]
    assert on_R.tolist() == [True, False, False, True, False, False]
    without = np.array([[1, 1, 1, 0, 1, 1]])
    assert envelope.front(flops_R, loss_R, group_R, without)[0].tolist() == [True, False, True, False, True, False]


def test_the_envelopes_exponents_are_near_the_laws():
    """Sizes come in the steps of the grid (9 in 1.5 decades), so that is how near."""
    size_R, tokens_R, flops_R, group_R = isoflop_grid()
    laws = envelope.laws(size_R, tokens_R, flops_R, additive_loss(size_R, tokens_R), group_R, np.ones((1, len(size_R))))
    assert laws["size"].exponent[0] == pytest.approx(LAW["b"] / (LAW["a"] + LAW["b"]), abs=0.01)
