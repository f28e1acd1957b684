"""Two objectives: compute at equal loss, and the crossing in repeated data."""

import dataclasses

import numpy as np
import pytest

from dlmjax.fit import compare, forms
from dlmjax.fit.analysis import ScalingLaw, analyse
from dlmjax.fit.points import from_records
from tests.fit.synthetic import SMALL, points, sweep


def test_flops_at_a_loss_undo_the_law():
    law = ScalingLaw("parametric", forms.QUOKKA_MASKED, forms.Compute(21.0, 0.92))
    for flops in (1e13, 1e20):
        assert compare.flops_at(law, law.at(flops)["loss"]) == pytest.approx(flops, rel=1e-9)
    assert compare.flops_at(law, 2.0) == np.inf  # below E no compute helps


@pytest.fixture(scope="module")
def ratios():
    found = from_records(sweep())
    return compare.compute_ratios(*(analyse(found[name], resamples=300) for name in ("ar", "masked")))


def test_the_ratio_is_the_laws(ratios):
    """The parametric ratio at each budget against the true laws': within 20 %, and inside twice its 95 % interval."""
    rows = [ratio for ratio in ratios if ratio.method == "parametric"]
    assert len(rows) == 4
    masked = ScalingLaw("parametric", SMALL["masked"])
    for ratio in rows:
        true = float(compare.flops_at(masked, forms.optimum(SMALL["ar"], ratio.flops)[2])) / ratio.flops
        interval = ratio.intervals["runs"]
        assert ratio.ratio == pytest.approx(true, rel=0.20)
        assert abs(ratio.ratio - true) < 2 * (interval.high_95 - interval.low_95)
        assert interval.low_95 < ratio.ratio < interval.high_95


def test_a_ratio_beyond_the_runs_says_so(ratios):
    assert {ratio.within for ratio in ratios if ratio.method == "parametric"} == {True, False}


def repeated(objective, floor, gain, unique, flops=None):
    flops_R = np.geomspace(1e12, 1e15, 13) if flops is None else flops
    size_R = np.full(len(flops_R), 1e5)
    loss_R = floor + gain * (flops_R / 1e12) ** -0.3
    return points(size_R, flops_R / 6e5, flops_R, loss_R, unique_R=np.full(len(flops_R), unique), objective=objective)


def test_a_crossing_is_found_where_the_curves_meet():
    """AR stops at its floor; masked falls on: they meet where 2.0 + 1 x = 1.8 + 1.4 x, x = (C / 1e12)^-0.3 = 1/2."""
    ar, masked = repeated("ar", 2.0, 1.0, 1e6), repeated("masked", 1.8, 1.4, 1e6)
    crossed = compare.crossings(ar, masked, resamples=50)
    (found,) = crossed.corpora
    assert crossed.law is None and found.flops == pytest.approx(1e12 * 2 ** (1 / 0.3), rel=0.02)
    assert found.interval is None  # errors of the losses are not known
    one, two = found.lowest
    assert (one.objective, two.objective) == ("ar", "masked") and two.loss < one.loss and one.last
    assert one.epochs == pytest.approx(1e15 / 6e5 / 1e6)


def test_no_crossing_is_said_in_words():
    (never,) = compare.crossings(repeated("ar", 1.5, 1.0, 1e6), repeated("masked", 1.8, 1.4, 1e6)).corpora
    assert np.isnan(never.flops) and "behind by" in never.said
    (always,) = compare.crossings(repeated("ar", 2.0, 1.5, 1e6), repeated("masked", 1.8, 1.4, 1e6)).corpora
    assert "ahead everywhere" in always.said


def test_crossings_of_several_corpora_give_a_law():
    """C_crit grows as U^2 by construction."""
    pairs = []
    for unique in (1e5, 1e6):
        scale = (unique / 1e5) ** 2
        flops = np.geomspace(1e12, 1e15, 25) * scale
        pairs.append([repeated(n, f, g * scale**0.3, unique, flops) for n, f, g in (("ar", 2.0, 1.0), ("masked", 1.8, 1.4))])
    ar, masked = (known(join(*pair), 0.01) for pair in zip(*pairs, strict=True))
    found = compare.crossings(ar, masked, resamples=200)
    assert len(found.corpora) == 2 and found.law.exponent == pytest.approx(2.0, abs=0.02)
    assert found.exponent.low_95 < 2.0 < found.exponent.high_95


def test_the_error_of_a_crossing_is_that_of_its_losses():
    """Of 80 pairs of curves whose losses are off by their standard error, the 95 % intervals hold the true crossing of 85 to 100 %."""
    true, errors = 1e12 * 2 ** (1 / 0.3), np.random.default_rng(0)
    held = 0
    for seed in range(80):
        pair = [known(repeated(*law, 1e6), 0.02) for law in (("ar", 2.0, 1.0), ("masked", 1.8, 1.4))]
        pair = [dataclasses.replace(each, loss_R=each.loss_R + 0.02 * errors.standard_normal(len(each))) for each in pair]
        (found,) = compare.crossings(*pair, resamples=100, seed=seed).corpora
        held += found.interval.low_95 <= true <= found.interval.high_95
    assert 68 <= held <= 80


def test_a_crossing_that_may_not_be_there_has_no_upper_end():
    """The last losses differ by less than their error: half of the draws see no crossing before the runs end."""
    flops = np.geomspace(1e12, 1e12 * 2.05 ** (1 / 0.3), 13)
    pair = [known(repeated(*law, 1e6, flops), 0.05) for law in (("ar", 2.0, 1.0), ("masked", 1.8, 1.4))]
    (found,) = compare.crossings(*pair, resamples=200).corpora
    assert np.isfinite(found.flops) and found.interval.high_95 == np.inf
    assert found.record()["interval"]["95"][1] is None


def known(runs, stderr):
    return dataclasses.replace(runs, stderr_R=np.full(len(runs), stderr))


def join(one, two):
    arrays = [np.concatenate([getattr(each, name) for each in (one, two)]) for name in ("tokens_R", "flops_R", "loss_R")]
    size_R, unique_R = (np.concatenate(pair) for pair in ((one.sizes["total"], two.sizes["total"]), (one.unique_R, two.unique_R)))
    return points(size_R, *arrays, unique_R=unique_R, objective=one.objective)
