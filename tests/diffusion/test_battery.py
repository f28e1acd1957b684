"""What every process must satisfy, checked by enumeration on laws small enough to list. See cases.py for the cases."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import Objective, PerRow, Piecewise, Process, nats_at, row_keys
from dlmjax.diffusion.oracle import claims
from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.process import is_tight
from dlmjax.diffusion.times import Mixture, Power, UniformTimes
from tests.diffusion.battery import (
    MASK,
    TOKENS,
    VOCAB,
    batch_of,
    chi_square_sigmas,
    expected_boundary,
    expected_nats,
    index_of,
    nats_by_time,
    prior_distribution,
    prior_gap,
    reconstruction_gap,
    sample_joint,
    to_ids,
    to_states,
)
from tests.diffusion.cases import CASES, NOISY
from tests.diffusion.cases_blocks import INNER, in_blocks

every_case = pytest.mark.parametrize("case", CASES, ids=str)
noisy_case = pytest.mark.parametrize("case", NOISY, ids=str)
# Schedules of one kind of noise: the pointwise tests have all of them, those that draw have one there, and the others in the slow form.
SCHEDULES = ("masked/cosine", "masked/polynomial", "masked/geometric", "masked/log_linear", "uniform/geometric", "uniform/polynomial")


def _param(case, *values):
    return pytest.param(case, *values, marks=pytest.mark.slow if str(case) in SCHEDULES else (), id="-".join([str(case), *values]))


# Variants of a process that differ in no draw are left out where drawing takes the time.
drawn_case = pytest.mark.parametrize("case", [_param(case) for case in CASES if not case.light])

LAW2 = oracle.JointDistribution.random(TOKENS, 2, seed=1)
LAW3 = oracle.JointDistribution.random(TOKENS, 3, seed=2)
LAW4 = oracle.JointDistribution.random(TOKENS, 4, seed=3)
# Text on which an output that is joint over tokens, or any other loss that is no bound, is furthest from one; and text on which it is none.
FULLY_DEPENDENT = claims.fully_dependent(TOKENS, 2, leak=0.01)
INDEPENDENT = claims.independent(TOKENS, 2)
# One shape for all tests that draw: tests that work operation by operation share what is compiled.
ROWS = 4096


@every_case
def test_case_is_a_process(case):
    assert isinstance(case.process, Process)
    assert hash(case.process) == hash(case.process)
    assert case.process.vocab == VOCAB
    assert case.process.attention.block_size is None


# --- the bound ---------------------------------------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize(
    "law",
    [
        pytest.param(LAW2, id="2 tokens"),
        pytest.param(INDEPENDENT, id="independent"),
        pytest.param(FULLY_DEPENDENT, id="fully dependent"),
        pytest.param(LAW3, id="3 tokens", marks=pytest.mark.nightly),
    ],
)
def test_bound_is_tight(case, law):
    """With the exact denoiser the whole NELBO is the entropy, but for what the ends get wrong, which is enumerated too.

    For an output that is joint over tokens the exact denoiser gives the joint posterior: test_claims.py shows that this test fails on one.
    """
    if case.light and law is LAW3:
        return
    gap = prior_gap(case, law) + reconstruction_gap(case, law) if case.process.boundary.any else 0.0
    assert gap < (0.03 if law in (LAW2, LAW3) else 0.2)
    assert is_tight(case.process) == (case.gap is None and not case.process.boundary.any)
    if case.gap is not None:
        # Not a tight bound, but one, and loose by what the enumeration says.
        gap += case.gap(case, law)
        assert gap > 0.05 or law is INDEPENDENT
    assert expected_nats(case, law) + expected_boundary(case, law) == pytest.approx(law.entropy + gap, abs=1e-6)


@pytest.mark.parametrize("case", [_param(case) for case in INNER])
def test_the_bound_in_blocks_is_that_of_each_block_given_the_text_before(case):
    """-log p(x) is the sum over blocks of -log p(block | text before), and so is the bound: level by level, and as tight as the inner."""
    blocks = in_blocks(case, size=1)
    bound = expected_nats(blocks, LAW2) + expected_boundary(blocks, LAW2)
    inner = sum(p * (expected_nats(case, law) + expected_boundary(case, law)) for p, law in blocks.blocks(LAW2))
    assert bound == pytest.approx(inner, abs=1e-9)
    if is_tight(blocks.process):
        assert bound == pytest.approx(LAW2.entropy, abs=1e-6)


@pytest.mark.parametrize("case", [case for case in INNER if str(case) in ("masked/linear", "uniform/linear", "hybrid/0.2")], ids=str)
def test_blocks_of_two_tokens_have_the_bound_of_each_block(case):
    """Of four tokens, at some levels: blocks whose tokens are noised together, after a clean block of two."""
    levels = (np.asarray([0.1, 0.4, 0.8]), np.ones(3))
    blocks = dataclasses.replace(in_blocks(case, size=2), grid=lambda length: levels)
    inner = dataclasses.replace(case, grid=lambda length: levels)
    by_block = sum(p * nats_by_time(inner, law) for p, law in blocks.blocks(LAW4))
    np.testing.assert_allclose(nats_by_time(blocks, LAW4), by_block, rtol=1e-9)


@noisy_case
def test_leaving_out_the_boundary_is_seen(case):
    """Where a process has boundary terms they matter: without them the sum is below the entropy, that is no bound."""
    if case.process.boundary.any:
        assert expected_nats(case, LAW2) < LAW2.entropy - 1e-3
    else:
        assert expected_boundary(case, LAW2) == 0.0


@noisy_case
@pytest.mark.parametrize("dtype, tolerance", [(jnp.float64, 1e-10), (jnp.float32, 1e-5)])
def test_pointwise_loss_is_the_oracles(case, dtype, tolerance):
    """Every (x, z) at many levels under random logits: both forms of the oracle agree with the loss, and with each other."""
    rng = np.random.default_rng(3)
    levels = [float(np.float32(level)) for level in (0.01, 0.1, 0.35, 0.5, 0.8, 0.999)]  # what both types can hold
    x, z, t, logits, truth = [], [], [], [], []
    for level in levels:
        for clean in range(TOKENS):
            for state in range(case.states):
                if case.kernel.matrix(level)[clean, state] == 0:
                    continue
                logits_V = rng.normal(size=VOCAB) * 3
                guess_K = np.exp(logits_V[:TOKENS]) / np.exp(logits_V[:TOKENS]).sum()
                nats = float(case.point(case.kernel, level, np.asarray([state]), guess_K[None])[0, clean])
                if case.point is oracle.kl_is_loss:
                    by_path = float(oracle.path_loss(case.kernel, level, np.asarray([state]), guess_K[None])[0, clean])
                    assert nats == pytest.approx(by_path, rel=1e-9, abs=1e-9)
                # The other classes say anything, and no one listens.
                logits_V[:TOKENS] = case.express(case.kernel, level, state, guess_K)
                x, z, t = [*x, clean], [*z, int(to_ids(np.asarray(state)))], [*t, level]
                logits, truth = [*logits, logits_V], [*truth, nats]
    with jax.enable_x64(dtype == jnp.float64):
        nats = case.process.loss(jnp.asarray(logits, dtype), jnp.asarray(x), jnp.asarray(z), jnp.asarray(t, dtype))
    assert nats.dtype == dtype
    np.testing.assert_allclose(np.asarray(nats), truth, rtol=tolerance, atol=tolerance)
    assert np.max(truth) > 1  # the comparison is not one of zeros


TIMES = {
    "stratified": PerRow(),
    "uniform": PerRow(stratified=False),
    "power": PerRow(Power(0.5)),
    "importance": PerRow(Piecewise((4.0, 2.0, 1.0, 1.0, 0.5))),
    "mixture": PerRow(Mixture((UniformTimes(), Power(0.6)), (0.5, 0.5))),
}
# Every process with stratified times, and every way to draw times with the processes whose losses differ most in them.
DRAWS = [_param(case, case.times) for case in CASES if not case.light]
DRAWS += [_param(in_blocks(case, size=2), case.times) for case in INNER if str(case) in ("uniform/linear", "hybrid/0.2")]
DRAWS += [_param(case, times) for case in CASES if str(case) in ("masked/cosine", "masked_count") for times in list(TIMES)[1:]]


@pytest.mark.parametrize("case, times", DRAWS)
def test_monte_carlo_is_unbiased(case, times):
    """Steps of training on the law, through the whole objective: the mean of `nats` is the bound, within its standard error."""
    objective = Objective(case.process, TIMES[times], boundary=True)
    assert objective.is_bound
    steps = 16
    denoiser = case.denoiser(LAW3)
    x_SBL = sample_joint(LAW3, ROWS * steps, seed=4).reshape(steps, ROWS, 3)

    @jax.jit
    def step(x_BL, key):
        batch = {"tokens": x_BL, "segments": jnp.ones_like(x_BL), "row": jnp.arange(ROWS, dtype=jnp.int32)}
        parts = objective(denoiser, batch, key, ROWS)[1]
        return parts["nats"] / parts["tokens"]

    keys_S = jax.random.split(jax.random.key(5), steps)
    means_S = np.asarray([step(jnp.asarray(x_BL), key) for x_BL, key in zip(x_SBL, keys_S, strict=True)], np.float64)
    error = means_S.std(ddof=1) / np.sqrt(steps)
    truth = (expected_nats(case, LAW3) + expected_boundary(case, LAW3)) / 3
    assert error < 0.03 * truth
    assert abs(means_S.mean() - truth) < 4 * error


# --- the forward chain -------------------------------------------------------------------------------------------------------------


@drawn_case
@pytest.mark.parametrize("steps", [1, 6])
def test_composed_steps_are_the_one_shot_marginal(case, steps):
    """One corruption, and six small ones, both have the kernel's law q(z_t | x) over all positions jointly."""
    if case.kernel is None:
        return
    x_L = np.asarray([2, 0, 1], np.int32)
    point = np.zeros((TOKENS,) * 3)
    point[tuple(x_L)] = 1
    end = 2 / 3
    _, z_NL, p_N = case.enumerate(oracle.JointDistribution(point), end)
    probability_Z = np.bincount(index_of(to_states(z_NL), case.states), p_N, case.states**3)

    x_BL = jnp.broadcast_to(jnp.asarray(x_L), (ROWS, 3))
    levels = np.linspace(0, 1, steps) ** 1.5 * end
    counts_Z = np.zeros(case.states**3)
    for repeat in range(4):
        keys = jax.random.split(jax.random.key(repeat), steps)
        keys_B = row_keys(keys[0], jnp.arange(ROWS))
        z_BL = case.process.corrupt(keys_B, x_BL, jnp.full(x_BL.shape, end if steps == 1 else 0.0))
        for key, s, t in zip(keys[1:], levels[:-1], levels[1:], strict=True):
            keys_B = row_keys(key, jnp.arange(ROWS))
            z_BL = case.process.forward_step(keys_B, z_BL, jnp.full(x_BL.shape, s), jnp.full(x_BL.shape, t))
        counts_Z += np.bincount(index_of(to_states(np.asarray(z_BL)), case.states), minlength=counts_Z.size)
    assert chi_square_sigmas(counts_Z, probability_Z) < 4


# --- the reverse chain -------------------------------------------------------------------------------------------------------------


@functools.cache
def _stepper(case):
    """One reverse step, and the last act, of ROWS rows with the exact denoiser."""
    process, denoiser = case.process, case.denoiser(LAW3)

    def denoise(keys_B, z_BL, t_BL):
        read_BL = process.corrupt(keys_B, z_BL, t_BL) if process.attention.causal else z_BL
        return denoiser.logits(denoiser.hidden(read_BL, t_BL))

    def step(key, z_BL, t, s):
        keys_B, t_BL, s_BL = row_keys(key, jnp.arange(ROWS)), jnp.full(z_BL.shape, t), jnp.full(z_BL.shape, s)
        return process.reverse_step(keys_B, denoise(keys_B, z_BL, t_BL), z_BL, t_BL, s_BL)

    def decode(key, z_BL):
        keys_B = row_keys(key, jnp.arange(ROWS))
        return process.decode(keys_B, denoise(keys_B, z_BL, jnp.zeros(z_BL.shape)), z_BL)

    return jax.jit(step), jax.jit(decode)


def _sample(case, times, seed):
    """Counts [X] of the rows that the process itself draws, stepping through `times`."""
    step, decode = _stepper(case)
    keys = jax.random.split(jax.random.key(seed), len(times) + 1)
    z_BL = case.process.prior(row_keys(keys[-1], jnp.arange(ROWS)), LAW3.length)
    for key, t, s in zip(keys, np.float32(times[:-1]), np.float32(times[1:]), strict=False):
        z_BL = step(key, z_BL, t, s)
    x_BL = np.asarray(decode(keys[-2], z_BL))
    assert x_BL.min() >= 0 and x_BL.max() < TOKENS, "a mask or a special id is left"
    return np.bincount(index_of(x_BL, TOKENS), minlength=TOKENS**3)


@drawn_case
def test_reverse_sampling_reproduces_the_joint_distribution(case):
    """Many small steps with the exact denoiser draw the data's own law, and no mask is left."""
    if case.kernel is None:
        assert chi_square_sigmas(_sample(case, np.linspace(1, 0, 4), seed=8), LAW3.probability_X) < 4
        return
    times = np.linspace(1, 0, 33)
    truth_X = _enumerated(case, LAW3, times)
    assert chi_square_sigmas(_sample(case, times, seed=8), truth_X) < 4
    # What is left between the two laws is what the ends get wrong.
    assert np.abs(truth_X - LAW3.probability_X).sum() / 2 < (0.05 if case.process.boundary.any else 0.035)


@noisy_case
def test_few_reverse_steps_have_the_enumerated_distribution(case):
    """With a few uneven steps a sampler is not exact, but it must be inexact in the way the reverse process is."""
    if case.light:
        return
    times = np.asarray([1.0, 0.7, 0.0])
    counts_X = _sample(case, times, seed=9)
    assert chi_square_sigmas(counts_X, _enumerated(case, LAW3, times)) < 4
    # The test has the power to tell this law from the data's.
    assert chi_square_sigmas(counts_X, LAW3.probability_X) > 4


def _enumerated(case, law, times):
    """The law of a sampler's rows: p_1, the reverse steps, then p(x | z_0)."""
    z_Z = case.reverse(law, case.kernel, list(times), prior_distribution(case, law))
    decode_ZnK = oracle.posterior(law, case.kernel, 0.0)
    x_Xn = law.sequences_Xn
    p_ZX = np.ones((len(z_Z), len(x_Xn)))
    for i in range(law.length):
        p_ZX *= decode_ZnK[:, i][:, x_Xn[:, i]]
    return z_Z @ p_ZX


# --- ends, padding, rows -----------------------------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_loss_and_gradient_are_finite_at_the_ends(case, dtype, scale):
    """Every state at t -> 0 and t -> 1, with mild and with extreme logits: numbers, not NaN or infinity."""
    levels = jnp.asarray([0.0, 1e-30, 1e-12, 1e-6, 1 - 1e-6, 1.0])
    t, x, z = (a.reshape(-1) for a in jnp.meshgrid(levels, jnp.arange(TOKENS), jnp.asarray([0, 1, 2, MASK]), indexing="ij"))
    logits = (scale * jax.random.normal(jax.random.key(10), (t.size, VOCAB))).astype(dtype)

    def total(logits):
        nats = case.process.loss(logits, x, z, t)
        return jnp.sum(nats), nats

    (_, nats), gradient = jax.value_and_grad(total, has_aux=True)(logits)
    assert nats.dtype == jnp.float32
    assert np.isfinite(np.asarray(nats)).all()
    assert np.isfinite(np.asarray(gradient, np.float32)).all()
    reconstructed, gradient = jax.value_and_grad(lambda logits: jnp.sum(case.process.reconstruction(logits, x, z)))(logits)
    assert np.isfinite(float(reconstructed)) and np.isfinite(np.asarray(gradient, np.float32)).all()


@every_case
def test_corruption_at_the_ends(case):
    """All noise at t = 1 and none at t = 0, where the schedule says so."""
    process, keys_B = case.process, row_keys(jax.random.key(11), jnp.arange(64))
    x_BL = jnp.asarray(np.random.default_rng(0).integers(0, TOKENS, (64, 8)), jnp.int32)
    if case.kernel is None or process.boundary.any:
        return
    z_BL = process.corrupt(keys_B, x_BL, jnp.ones(x_BL.shape))
    counts_S = np.bincount(to_states(np.asarray(z_BL)).ravel(), minlength=case.states)
    assert chi_square_sigmas(counts_S, case.kernel.matrix(1.0).mean(axis=0)) < 4  # the mask alone, or a uniform draw
    assert (process.corrupt(keys_B, x_BL, jnp.zeros(x_BL.shape)) == x_BL).all()
    assert process.loss_mask(z_BL, jnp.ones(x_BL.shape)).all()


@every_case
def test_padding_is_untouched_and_carries_no_loss(case):
    process = case.process
    rng = np.random.default_rng(12)
    x_BL = rng.integers(0, TOKENS, (16, 3)).astype(np.int32)
    segments_BL = np.ones_like(x_BL)
    segments_BL[:, 2] = 0
    segments_BL[3] = 0  # a row of nothing but padding
    valid_BL = jnp.asarray(segments_BL > 0)
    keys_B, t_BL = row_keys(jax.random.key(13), jnp.arange(16)), jnp.full(x_BL.shape, 0.9)
    t_BL = process.time_domain.quantize(t_BL, valid_BL)
    z_BL = process.corrupt(keys_B, jnp.asarray(x_BL), t_BL, valid_BL)
    assert (np.asarray(z_BL)[segments_BL == 0] == x_BL[segments_BL == 0]).all()
    assert (np.asarray(z_BL)[segments_BL > 0] != x_BL[segments_BL > 0]).any()

    objective = Objective(process, boundary=True)
    total, parts = objective(case.denoiser(LAW3), batch_of(x_BL, segments_BL), jax.random.key(14), 16)
    assert int(parts["tokens"]) == 30
    assert float(jnp.sum(parts["tokens_by_level"])) == 30
    assert int(parts["corrupted"]) <= 30
    silent = np.zeros_like(segments_BL)
    total, parts = objective(case.denoiser(LAW3), batch_of(x_BL, silent), jax.random.key(14), 16)
    assert float(total) == 0 and all(float(jnp.sum(part)) == 0 for part in parts.values())


@drawn_case
def test_a_batch_is_its_rows(case):
    """Eight rows at once, or four and four: the same levels and the same noise bit for bit, the same sums."""
    process, objective = case.process, Objective(case.process, PerRow(), boundary=True)
    x_BL = sample_joint(LAW3, 8, seed=15)
    whole, halves = batch_of(x_BL), [batch_of(x_BL[:4]), batch_of(x_BL[4:], first_row=4)]
    key = jax.random.key(16)

    def noise(batch):
        t_BL, weight_BL = objective.times.draw(key, batch["row"], 8, 3)
        t_BL = process.time_domain.quantize(t_BL, batch["segments"] > 0)
        return t_BL, weight_BL, process.corrupt(row_keys(key, batch["row"]), batch["tokens"], t_BL)

    for one, two in zip(noise(whole), zip(*map(noise, halves), strict=True), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.concatenate(two))
    denoiser = case.denoiser(LAW3)
    parts = objective(denoiser, whole, key, 8)[1]
    sums = jax.tree.map(lambda a, b: a + b, *(objective(denoiser, half, key, 8)[1] for half in halves))
    for name in parts:
        np.testing.assert_allclose(parts[name], sums[name], rtol=2e-6, err_msg=name)
    # Row numbers, not places in the batch, decide; another step draws anew.
    back = jax.tree.map(lambda a: a[::-1], whole)
    np.testing.assert_array_equal(np.asarray(noise(back)[2])[::-1], np.asarray(noise(whole)[2]))


@pytest.mark.parametrize("case", [case for case in CASES if str(case) in ("masked/clipped", "masked_count", "autoregressive")], ids=str)
def test_jit_changes_nothing(case):
    """Under jit, and with the key traced, the objective gives the numbers it gives line by line."""
    objective = Objective(case.process, boundary=True)
    batch, key = batch_of(sample_joint(LAW3, 8, seed=17)), jax.random.key(18)

    def run(batch, key):
        return objective(case.denoiser(LAW3), batch, key, 8)

    eager, jitted = run(batch, key), jax.jit(run)(batch, key)
    np.testing.assert_allclose(eager[0], jitted[0], rtol=1e-5)
    np.testing.assert_array_equal(eager[1]["corrupted"], jitted[1]["corrupted"])


@drawn_case
def test_nats_at_is_what_an_evaluation_integrates(case):
    """The mean over noise of `nats_at` at fixed levels, summed by quadrature, is what enumeration gives at them."""
    x_BL = jnp.asarray(sample_joint(LAW3, ROWS, seed=19))
    process, (levels, weights) = case.process.bound, np.polynomial.legendre.leggauss(6)
    levels, weights = (levels + 1) / 2, weights / 2

    denoiser = case.denoiser(LAW3)

    @jax.jit
    def at(i, t):
        keys_B = row_keys(jax.random.fold_in(jax.random.key(20), i), jnp.arange(ROWS))
        return nats_at(process, denoiser, x_BL, jnp.ones_like(x_BL), keys_B, jnp.full(x_BL.shape, t))

    total_B = sum(w * np.asarray(at(i, t)).sum(axis=1) for i, (t, w) in enumerate(zip(levels, weights, strict=True)))
    error = total_B.std(ddof=1) / np.sqrt(ROWS)
    same = case if case.kernel is None else dataclasses.replace(case, process=process, pairs=None, grid=lambda length: (levels, weights))
    assert abs(total_B.mean() - expected_nats(same, LAW3)) < 4 * error
