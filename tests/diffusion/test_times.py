"""How levels are drawn: what they depend on, their law, and weights that keep the mean an integral."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import (
    Denoiser,
    Masked,
    Mixture,
    Objective,
    PerRow,
    Piecewise,
    Power,
    Times,
    UniformTimes,
    importance_heights,
    over_length,
)
from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.registry import TIMES, make_process, make_times
from dlmjax.diffusion.times import Beta, TwoMode
from dlmjax.errors import InputError
from tests.diffusion.battery import BOS, LINEAR, MASK, TOKENS, VOCAB, Case, batch_of, expected_nats, sample_joint
from tests.diffusion.enumerated import MaskedToy

LAWS = {
    "flat": UniformTimes(),
    "power": Power(0.5),
    "piecewise": Piecewise((5.0, 3.0, 1.0, 0.5)),
    "mixture": Mixture((UniformTimes(), Power(0.3), Piecewise((1.0, 2.0))), (0.5, 0.3, 0.2)),
    "beta": Beta(2.5, 2.5),
    "beta of the ends": Beta(0.5, 0.7, flat=0.0),
    "two modes": TwoMode(0.15, 0.85, share=0.6),
    "mixture with a part": Mixture((UniformTimes(), UniformTimes(0.4, 0.6)), (0.75, 0.25)),
}
every_distribution = pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
ROWS = 4096


@functools.cache
def _drawn(times, batch, length):
    """As one program: operation by operation each of them would be compiled for each batch size."""
    return jax.jit(lambda key: times.draw(key, jnp.arange(batch), batch, length))


def _draw(times, batch=ROWS, length=3, seed=0):
    return _drawn(times, batch, length)(jax.random.key(seed))


@every_distribution
@pytest.mark.parametrize("stratified", [True, False])
def test_weighted_means_are_integrals(law, stratified):
    """E[weight f(t)] = integral of f, for functions that see both ends; exactly so far as the error of the mean tells."""
    times = PerRow(law, stratified)
    assert isinstance(times, Times) and times.covers
    t_BL, weight_BL = _draw(times)
    assert t_BL.shape == weight_BL.shape == (ROWS, 3) and t_BL.dtype == jnp.float32
    assert ((t_BL >= 0) & (t_BL <= 1) & jnp.isfinite(weight_BL) & (weight_BL >= 0)).all()
    t, weight = np.asarray(t_BL[:, 0], np.float64), np.asarray(weight_BL[:, 0], np.float64)
    for f, integral in ((np.ones_like, 1.0), (np.exp, np.e - 1), (lambda t: np.sqrt(1 - t), 2 / 3), (lambda t: t**4, 0.2)):
        values = weight * f(t)
        error = values.std() / np.sqrt(ROWS) + 1e-6
        assert abs(values.mean() - integral) < 4 * error
        if stratified:
            assert abs(values.mean() - integral) < 5e-3


@every_distribution
def test_draws_of_t_have_their_density(law):
    """The histogram of draws has the mass that the integral of 1/weight gives."""
    t = np.asarray(_draw(PerRow(law))[0][:, 0])
    edges = np.linspace(0, 1, 9)
    # By midpoints of v, t = v^4: densities may be singular at 0.
    v = (np.arange(400_000) + 0.5) / 400_000
    density = 4 * v**3 / np.asarray(law.weight(jnp.asarray(v**4, jnp.float32)), np.float64)
    mass = np.histogram(v**4, edges, weights=density)[0] / v.size
    assert mass.sum() == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(np.histogram(t, edges)[0] / ROWS, mass, atol=3e-3)


def test_weights_of_bumps_are_bounded_and_their_peaks_are_where_they_should_be():
    t = jnp.linspace(0, 1, 1001)
    for law, peaks in ((Beta(2.5, 2.5), [0.5]), (Beta(3.0, 1.5, 0.05), [0.8]), (TwoMode(0.15, 0.85), [0.15, 0.85])):
        weight = np.asarray(law.weight(t))
        assert weight.max() <= 1 / law.flat * (1 + 1e-6)
        inner = (weight[1:-1] < weight[:-2]) & (weight[1:-1] < weight[2:])
        np.testing.assert_allclose(np.asarray(t)[1:-1][inner], peaks, atol=2e-2)


@pytest.mark.parametrize("batch", [1, 2, 7, 49, 98, 103, 512])
def test_stratified_times_fill_every_cell_once(batch):
    """Also for the batch sizes at which arange(0, 1, 1/B) has an element too many; permuted, and anew at each step."""
    t = np.asarray(_draw(PerRow(), batch, 1)[0][:, 0])
    assert sorted((t * batch).astype(int)) == list(range(batch))
    offsets = (t * batch) % 1
    assert offsets.max() - offsets.min() < 1e-3, "one offset for all rows of the step"
    if batch > 7:
        assert not (np.diff(t) > 0).all()
        other = np.asarray(_draw(PerRow(), batch, 1, seed=1)[0][:, 0])
        assert not np.array_equal(np.argsort(t), np.argsort(other))


def test_stratified_times_vary_less_and_are_uniform_for_each_row():
    means = {}
    first = []
    for stratified in (True, False):
        draws = [np.asarray(_draw(PerRow(stratified=stratified), 64, 1, seed)[0][:, 0]) for seed in range(60)]
        means[stratified] = np.std([t.mean() for t in draws])
        first.append([t[0] for t in draws])
    assert means[True] < means[False] / 5
    for values in first:
        assert np.histogram(values, 4, (0, 1))[0].min() > 5
    # Some row gets the smallest levels: nothing is cut off at t = 0.
    assert min(np.asarray(_draw(PerRow(), 1024, 1, seed)[0]).min() for seed in range(5)) < 1e-3


@pytest.mark.parametrize("stratified", [True, False])
def test_times_depend_on_key_row_and_global_batch_only(stratified):
    times, key = PerRow(Power(0.5), stratified), jax.random.key(3)
    whole = times.draw(key, jnp.arange(8), 8, 5)
    rows = jnp.asarray([6, 1, 3])
    some = times.draw(key, rows, 8, 5)
    for a, b in zip(whole, some, strict=True):
        np.testing.assert_array_equal(a[rows], b)
    jitted = jax.jit(lambda key, rows: times.draw(key, rows, 8, 5))(key, rows)
    np.testing.assert_array_equal(jitted[0], some[0])
    assert not np.array_equal(times.draw(jax.random.key(4), jnp.arange(8), 8, 5)[0], whole[0])


def test_times_from_an_interval_are_not_a_bound():
    """U[1e-2, 1] leaves out the integral from 0 to 1e-2: `covers` is False, and that is what is missing."""
    assert not PerRow(UniformTimes(1e-2, 1.0)).covers
    assert Mixture((UniformTimes(1e-2, 1.0), UniformTimes()), (0.5, 0.5)).covers
    t_BL, weight_BL = _draw(PerRow(UniformTimes(1e-2, 1.0)))
    assert float(t_BL.min()) >= 1e-2
    assert float((weight_BL * 1.0).mean()) == pytest.approx(0.99, rel=1e-5)
    law = oracle.JointDistribution.random(TOKENS, 2, seed=1)
    nodes, weights = np.polynomial.legendre.leggauss(8)
    case = Case(
        "cut",
        Masked(VOCAB, MASK, excluded=(BOS,)),
        oracle.masked_kernel(TOKENS, *LINEAR),
        grid=lambda length: (0.505 + 0.495 * nodes, 0.495 * weights),
    )
    missing = law.entropy - expected_nats(case, law)
    assert 1e-3 * law.entropy < missing < 2e-2 * law.entropy


def test_over_length():
    level_BL = over_length(jnp.asarray([0.25, 0.5]), 3)
    assert level_BL.shape == (2, 3) and (level_BL[1] == 0.5).all()


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: UniformTimes(0.5, 0.5), "low < high"),
        (lambda: Power(1.5), r"\(0, 1\]"),
        (lambda: Power(0.0), r"\(0, 1\]"),
        (lambda: Piecewise((1.0, 0.0)), "bias"),
        (lambda: Piecewise(()), "must be positive and finite"),
        (lambda: Mixture((UniformTimes(),), (0.5,)), "sum to 1"),
        (lambda: Beta(0.0, 1.0), "must be positive"),
        (lambda: Beta(2.0, 1.0, flat=0.0), "weights are unbounded"),
        (lambda: TwoMode(0.5, 0.5), "low < high"),
        (lambda: TwoMode(share=1.0), "share"),
        (lambda: Mixture((UniformTimes(),), (0.5, 0.5)), "numbers must be equal"),
    ],
)
def test_impossible_time_distributions_are_refused(make, says):
    with pytest.raises(InputError, match=says):
        make()


# --- the density correction, and the density of least variance ---------------------------------------------------------------------

VALUES = {"importance": {"heights": (3.0, 1.0)}, "mixture": {"parts": [{"law": "beta"}, {}], "probabilities": (0.5, 0.5)}}
UNCORRECTED = {name: make_times(name, corrected=False, **VALUES.get(name, {})) for name in TIMES}
UNCORRECTED["per_block"] = make_times("per_block", size=1, law="beta", corrected=False)


@pytest.mark.parametrize("name", UNCORRECTED)
def test_without_the_correction_what_is_trained_has_no_weight_and_is_no_bound(name):
    """And what is reported has it: the same bound as with the correction, from the same draws."""
    toy = MaskedToy(oracle.JointDistribution.random(TOKENS, 2, seed=1))
    facts = {"vocab": VOCAB, "mask_id": MASK, "bos_id": BOS, "excluded": (BOS,)}
    process = make_process("blocks", size=1, **facts) if name == "per_block" else make_process("masked", **facts)
    times = process.time_domain.adapt(UNCORRECTED[name])
    corrected = dataclasses.replace(times, corrected=True)
    batch, key = batch_of(sample_joint(toy.law, 64, seed=0)), jax.random.key(0)
    found = []
    denoiser = toy.denoiser if name != "per_block" else Blind()
    for one in (times, corrected):
        objective = Objective(process, one)
        total, terms = objective(denoiser, batch, key, 64)
        report = objective.report(jax.device_get(terms))
        found.append((objective, float(total), report))
    (plain, total, report), (bound, of_bound, with_weight) = found
    assert plain.is_bound and not plain.trains_bound and bound.trains_bound
    assert report["nelbo"] == with_weight["nelbo"] == with_weight["loss"] and "loss" not in report
    tokens = batch["tokens"].size
    assert report["loss_bound_uncorrected_not_a_bound"] == pytest.approx(total / tokens)
    assert plain.summary(report)["trained"].startswith("bound_uncorrected ") and "trained" not in bound.summary(with_weight)
    is_flat = name in ("uniform", "stratified")
    assert (total == pytest.approx(of_bound, rel=1e-5)) == is_flat


class Blind(Denoiser):
    """Knows nothing: the same logits everywhere, also for states of a noisy and a clean token."""

    def hidden(self, z_BL, t_BL, hint_BLI=None):
        return jnp.zeros((*t_BL.shape, VOCAB))

    def logits(self, hidden):
        return hidden

    def expect(self, hidden, table_VI=None):
        return jax.nn.softmax(hidden)

    def row_losses(self, hidden_BLD, loss_mask_BL, loss_fn, args, weight_BL):
        nats_BL = jnp.where(loss_mask_BL, loss_fn(hidden_BLD, *args), 0.0)
        return jnp.sum(nats_BL * weight_BL), nats_BL


def test_measured_second_moments_give_the_density_of_least_variance():
    """By enumeration over texts and masks: the second moment of the weighted loss under p is the integral of E[l^2 | t] / p, least at p*
    proportional to its root, where it is the square of the integral of the root (Cauchy-Schwarz). No other heights come below."""
    toy = MaskedToy(oracle.JointDistribution.random(TOKENS, 3, seed=2))
    t_J = (np.arange(4000) + 0.5) / 4000
    for weight_J in (np.ones(4000), 1 / np.maximum(t_J, 1e-3)):
        mean_J, square_J = (toy.law.probability_X @ moment_XJ for moment_XJ in toy.moments(t_J, weight_J))

        def second_moment(heights, square_J=square_J):
            return float(np.mean(square_J * np.asarray(Piecewise(heights).weight(jnp.asarray(t_J, jnp.float32)), np.float64)))

        least, uniform = np.sqrt(square_J).mean() ** 2, square_J.mean()
        found = second_moment(importance_heights(t_J, np.sqrt(square_J)))
        fine = second_moment(importance_heights(t_J, np.sqrt(square_J), bins=200))
        means = tuple(mean_J.reshape(10, -1).mean(axis=1))  # first moments, of which heights could be made, too
        assert least <= fine * (1 + 1e-6) < found * (1 + 1e-6) < uniform and fine < least * 1.03
        assert found < second_moment(means)
        rng = np.random.default_rng(0)
        best = importance_heights(t_J, np.sqrt(square_J))
        for _ in range(20):
            assert second_moment(tuple(best * np.exp(0.2 * rng.normal(size=10)))) > found


def test_heights_are_measured_positive_and_short():
    rng = np.random.default_rng(0)
    t_N = rng.uniform(size=20_000)
    heights = importance_heights(t_N, (t_N > 0.1) * (1 + t_N) * rng.choice([-1, 1], t_N.size), bins=10)
    assert heights[0] == 0.01 and heights[-1] == 1.0 and heights[4] == pytest.approx(1.45 / 1.95, rel=0.02)
    assert Piecewise(heights).covers and all(len(str(height)) <= 5 for height in heights)
    for losses in (np.zeros(3), np.array([1.0, np.nan, 1.0])):
        with pytest.raises(InputError, match="finite, and not all 0"):
            importance_heights(np.array([0.1, 0.5, 0.9]), losses)
