"""The variance of the training loss by cause: against sums over all texts, masks and times of a small distribution."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlmjax.choices import parse
from dlmjax.diffusion import Autoregressive, Masked, Objective, PerRow, Piecewise, UniformTimes, make_process, make_times, make_weighting
from dlmjax.diffusion.declarations import Capabilities
from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.oracle import toy
from dlmjax.evaluation import Evaluator
from dlmjax.evaluation.interval import gradient_norms
from dlmjax.evaluation.likelihood import PairedNats, TokenNats
from dlmjax.evaluation.noise import NoiseObserver, NoiseSamples, exact_positions, factor_of, measure_noise, samples_of, second_moments
from tests.diffusion.battery import BOS, MASK, TOKENS, VOCAB, batch_of, sample_joint
from tests.diffusion.enumerated import MaskedToy
from tests.test_families import experiment_of, text

TOY = MaskedToy(oracle.JointDistribution.random(TOKENS, 3, seed=2))
MASKED = Masked(VOCAB, MASK, excluded=(BOS,))
ROWS = 4096
OBJECTIVES = {  # (times, weighting, share of the run that is done)
    "cross-entropy": ("stratified", "cross_entropy", 1.0),
    "bound at rising times": ("power(exponent=0.5)", "bound", 1.0),
    "capped": ("uniform", "capped(cap=3.0)", 1.0),
    "bell, corrected": ("beta(a=2.0, b=2.0, flat=0.3)", "cross_entropy", 1.0),
    "bell, not corrected": ("beta(a=2.0, b=2.0, flat=0.3, corrected=False)", "cross_entropy", 1.0),
    "annealed": ("power(exponent=0.5)", "annealed", 0.125),
}


def objective_of(times, weighting):
    times, of_times = parse(times)
    weighting, of_weighting = parse(weighting)
    return Objective(MASKED, make_times(times, **of_times), make_weighting(weighting, **of_weighting))


def enumerated(objective, progress):
    """Mean, A, B and C of the loss of a row, per token, by sums over texts and masks and a fine grid of times."""
    t_J, weight_J = oracle.quadrature(400)
    inverse_J = np.asarray(objective.times.distribution.weight(jnp.asarray(t_J, jnp.float32)), np.float64)
    omega_J = inverse_J if objective.times.corrected else np.ones_like(inverse_J)
    weight_J = weight_J / inverse_J
    nats_J = omega_J * factor_of(objective, progress)(t_J) / t_J / TOY.law.length
    g_XJ, square_XJ = TOY.moments(t_J, nats_J)
    p_X, mean_X = TOY.law.probability_X, g_XJ @ weight_J
    mean = p_X @ mean_X
    return mean, p_X @ ((square_XJ - g_XJ**2) @ weight_J), p_X @ (g_XJ**2 @ weight_J - mean_X**2), p_X @ (mean_X - mean) ** 2


def agree(found, expected, spread=4.5):
    """Each estimate is within its error of what it estimates, and the error is a small share of the variance."""
    total = sum(expected[1:])
    for name, value in zip(("mean", "masks", "times", "texts"), expected, strict=True):
        estimate, error = getattr(found, name), getattr(found, f"stderr_{name}")
        assert abs(estimate - value) < spread * error + 2e-3 * (value if name == "mean" else total), (name, estimate, value, error)
        assert error < 0.15 * (value if name == "mean" else total)


@pytest.fixture(scope="module")
def paired():
    """The observed samples of an evaluation of the exact denoiser."""

    class Keep(NoiseObserver):
        def see(self, batch):
            self.samples = samples_of(batch.scored_BL, batch.paired(), None)
            super().see(batch)

    observer = Keep(objective_of("stratified", "cross_entropy"))
    evaluator = Evaluator(MASKED, lambda params, segments, positions, attention: TOY.denoiser, nodes=24)
    batch = jax.device_get(batch_of(sample_joint(TOY.law, ROWS, seed=1)))
    evaluator({}, [batch | {"positions": np.zeros_like(batch["segments"])}], observers=[observer])
    return observer


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_evaluation_splits_the_variance_as_enumeration_does(paired, name):
    """From one second draw of masks at the nodes of an evaluation, for every weighting and density of times."""
    times, weighting, progress = OBJECTIVES[name]
    objective = objective_of(times, weighting)
    report = measure_noise(paired.samples, objective, progress)
    assert report.trained and report.windows == ROWS
    agree(report.variance, enumerated(objective, progress))
    if name == "cross-entropy":
        assert paired.report.variance == report.variance


# Of a loss with the factor 1/t, uniform times are too rare where it is large for an error bar to hold: left to the nodes.
@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "bound at rising times"])
def test_drawn_times_split_the_variance_as_enumeration_does(name):
    """Four random times of each window, each under two draws of masks, as `dlmjax interval` measures; in numpy, from enumerated costs."""
    rng = np.random.default_rng(0)
    x_W = rng.choice(len(TOY.law.probability_X), 16 * ROWS, p=TOY.law.probability_X)
    t_JW = rng.uniform(size=(4, x_W.size))
    masks_2JW = (rng.uniform(size=(2, 4, x_W.size, TOY.law.length)) < t_JW[..., None]) @ 2 ** np.arange(TOY.law.length)[::-1]
    nats_2JW = TOY.cost_XS()[x_W, masks_2JW] / t_JW / TOY.law.length
    samples = NoiseSamples(t_JW[..., None], nats_2JW[..., None], np.ones((x_W.size, 1), bool))
    times, weighting, progress = OBJECTIVES[name]
    objective = objective_of(times, weighting)
    agree(measure_noise(samples, objective, progress).variance, enumerated(objective, progress))


def test_blocks_have_times_of_their_own(paired):
    """A row of two independent blocks has the sum of their variances, and the loss by time is that of a block."""
    samples, half = paired.samples, ROWS // 2
    nats_2JWU = np.stack([samples.nats_2JWU[:, :, :half, 0], samples.nats_2JWU[:, :, half:, 0]], axis=3) / 2
    t_JWU = np.broadcast_to(samples.t_JWU[:, :half], nats_2JWU.shape[1:])
    blocks = NoiseSamples(t_JWU, nats_2JWU, np.ones((half, 2), bool), samples.weight_J)
    objective = objective_of("uniform", "cross_entropy")
    mean, *parts = enumerated(objective, 1.0)
    found = measure_noise(blocks, objective)
    agree(found.variance, (mean, *(part / 2 for part in parts)))
    np.testing.assert_allclose(second_moments(blocks, np.ones_like), second_moments(samples, np.ones_like), rtol=1e-9)


@pytest.mark.parametrize("name", ["cross-entropy", "capped", "bell, not corrected"])
def test_an_exact_part_keeps_its_weight(paired, name):
    """Seeds of blocks cost the same at every time and have no factor of time: a constant of theirs moves the mean alone."""
    times, weighting, progress = OBJECTIVES[name]
    objective, samples = objective_of(times, weighting), paired.samples
    seeds_2JWU = np.full(samples.nats_2JWU.shape, 0.7)
    seeded = dataclasses.replace(samples, nats_2JWU=samples.nats_2JWU + seeds_2JWU, exact_2JWU=seeds_2JWU)
    plain, found = (measure_noise(one, objective, progress).variance for one in (samples, seeded))
    assert found.mean == pytest.approx(plain.mean + 0.7, rel=1e-6)
    for part in ("masks", "times", "texts"):
        assert getattr(found, part) == pytest.approx(getattr(plain, part), rel=1e-6, abs=1e-9)
    blocks = make_process("blocks", vocab=VOCAB, mask_id=MASK, bos_id=BOS, size=4, seeded=True)
    assert exact_positions(blocks, 8).tolist() == [True, False, False, False] * 2 and exact_positions(MASKED, 8) is None


@pytest.mark.parametrize("factor", [np.ones_like, lambda t: t], ids=["bound", "cross-entropy"])
def test_second_moments_by_time_are_those_of_enumeration(paired, factor):
    t_F, square_F = second_moments(paired.samples, factor)
    exact_F = TOY.law.probability_X @ TOY.moments(t_F, factor(t_F) / t_F / TOY.law.length)[1]
    np.testing.assert_allclose(square_F[10:-10], exact_F[10:-10], rtol=0.1)


def test_only_a_bound_is_said_to_stay_one(paired):
    class NoPlain(Masked):  # plain cross-entropy would be the larger gain
        capabilities = Capabilities(weightings=("bound", "capped"))

    for weighting, stays in (("bound", True), ("capped(cap=3.0)", False)):
        objective = objective_of("importance(heights=(1.0, 1.0, 1.0, 1.0, 0.02))", weighting)
        advice = measure_noise(paired.samples, dataclasses.replace(objective, process=NoPlain(VOCAB, MASK, excluded=(BOS,)))).advice
        assert "times=" in advice and advice.endswith("(still a bound)") == stays, advice


def test_a_likelihood_without_noise_varies_between_texts_alone():
    law = TOY.law
    process, observer = Autoregressive(VOCAB, BOS, MASK), NoiseObserver(Objective(Autoregressive(VOCAB, BOS, MASK)))
    evaluator = Evaluator(process, lambda params, segments, positions, attention: toy.ToyDenoiser(law, VOCAB))
    batch = jax.device_get(batch_of(sample_joint(law, ROWS, seed=1)))
    evaluator({}, [batch | {"positions": np.zeros_like(batch["segments"])}], observers=[observer])
    nats_X = -np.log(law.probability_X) / law.length
    expected = law.probability_X @ (nats_X - law.probability_X @ nats_X) ** 2
    found = observer.report.variance
    assert abs(found.masks) < 1e-9 and abs(found.times) < 1e-9 and observer.report.advice == ""
    assert abs(found.texts - expected) < 4 * found.stderr_texts < 0.2 * expected


def test_the_advice_is_a_change_that_does_what_it_says(paired):
    """The gain of the named change, by enumeration of both; and no advice for what is the best already."""
    objective = objective_of("uniform", "cross_entropy")
    report = measure_noise(paired.samples, objective)
    found = re.fullmatch(r"most of the variance depends on t: stratified times would lower it (.*) times", report.advice)
    _, masks, times, texts = enumerated(objective, 1.0)
    assert float(found[1]) == pytest.approx((masks + times + texts) / (masks + texts), rel=0.1)
    # Many times drawn where the loss hardly varies: importance is the cure.
    poor = objective_of("importance(heights=(1.0, 1.0, 1.0, 1.0, 0.02))", "cross_entropy")
    report = measure_noise(paired.samples, poor)
    words, _, override = report.advice.partition('--config.process.times="')
    name, values = parse(override.partition('"')[0])
    better = dataclasses.replace(poor, times=make_times(name, **values))
    before, after = (enumerated(one, 1.0) for one in (poor, better))
    assert words == "most of the variance depends on t: " and isinstance(better.times.distribution, Piecewise)
    gain = float(re.search(r"would lower it (\S+) times", report.advice)[1])
    assert gain == pytest.approx((before[1] + before[3]) / (after[1] + after[3]), rel=0.25) and gain > 1.25
    assert "times=" not in measure_noise(paired.samples, better).advice
    # Without the weight of their density, other times train another loss: no gain of one over the other can be told.
    other = dataclasses.replace(poor, times=dataclasses.replace(poor.times, corrected=False))
    assert "times=" not in measure_noise(paired.samples, other).advice


@pytest.mark.parametrize("scale", [0.0, np.nan, np.inf])
def test_a_loss_that_is_not_finite_or_nothing_does_not_end_a_run(paired, scale):
    """A diverged network is evaluated, too: there is then no report."""
    observer, samples = NoiseObserver(objective_of("stratified", "bound")), paired.samples
    found = PairedNats(samples.t_JWU[:, 0, 0], samples.weight_J, np.full((*samples.nats_2JWU.shape[:3], 3), scale))
    whole_BL = np.ones((ROWS, 3), bool)
    observer.see(TokenNats(np.arange(ROWS), np.zeros((ROWS, 3), int), whole_BL, whole_BL, np.zeros((ROWS, 3)), lambda: found))
    assert observer.report is None


def test_a_loss_that_is_not_a_function_of_time_is_named(paired):
    report = measure_noise(paired.samples, objective_of("stratified", "token_adaptive"))
    assert not report.trained and report.advice == "" and "not of the trained loss" in report.summary()


@pytest.mark.parametrize("name", ["masked", "blocks(size=2)"])
def test_gradient_norms_by_time_are_those_of_a_batch_at_these_times(name):
    """Of each bin, as training on that interval has it, without the width by which its loss is weighted; one program for all bins."""
    experiment = experiment_of("masked" if name == "masked" else "blocks", jax.devices()[:1], name)
    params, batch, key = experiment.init(jax.random.key(0)), jax.tree.map(jnp.asarray, text()), jax.random.key(5)
    process, objective = experiment.process, dataclasses.replace(experiment.objective, times=PerRow())
    found = gradient_norms(objective, experiment.network.bind, params, batch, key, bins=4)
    for index in (0, 3):
        within = dataclasses.replace(objective, times=PerRow(UniformTimes(index / 4, (index + 1) / 4)))

        def loss(params, within=within):
            denoiser = experiment.network.bind(params, batch["segments"], batch["positions"], process.attention)
            return 4 * within(denoiser, batch, key, 8)[0] / (batch["segments"] > 0).sum()

        assert found[index] == pytest.approx(float(optax.tree.norm(jax.jit(jax.grad(loss))(params))), rel=1e-3)
    assert len(found) == 4 and min(found) > 0
