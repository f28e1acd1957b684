"""Uniform noise against the papers' formula, its memory at a real vocabulary, and the simple losses that are no bound."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import (
    Contrastive,
    Cosine,
    Denoising,
    Hybrid,
    Linear,
    Masked,
    Objective,
    PerRow,
    Power,
    Process,
    ScoreEntropy,
    Uniform,
    make_process,
    make_weighting,
    row_keys,
    symmetric,
)
from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.processes.interpolating import by_rows, mixture_sums, uniform_tokens
from dlmjax.errors import InputError
from tests.diffusion.battery import BOS, LINEAR, MASK, TOKENS, VOCAB, batch_of, expected_nats, sample_joint
from tests.diffusion.cases_jump import CASES, IDS

LAW = oracle.JointDistribution.random(TOKENS, 2, seed=1)
BY_NAME = {str(case): case for case in CASES}


def udlm_loss(logits, x, z, alpha, alpha_prime):
    """UDLM eq. 18 as printed, with its [*n, K] arrays; logits of the K tokens only."""
    count = logits.shape[-1]
    guess = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    true = count * alpha[:, None] * np.eye(count)[x] + 1 - alpha[:, None]
    model = count * alpha[:, None] * guess + 1 - alpha[:, None]
    true_z, model_z = true[np.arange(len(z)), z][:, None], model[np.arange(len(z)), z][:, None]
    inner = count / true_z[:, 0] - count / model_z[:, 0]
    inner -= (true / true_z * np.log(model_z * true / (model * true_z))).sum(axis=-1)
    return alpha_prime / (count * alpha) * inner


@pytest.mark.parametrize("count", [3, 40])
def test_the_loss_is_the_papers(count):
    rng = np.random.default_rng(0)
    x, z, t = rng.integers(0, count, 300), rng.integers(0, count, 300), rng.uniform(0.001, 0.999, 300)
    z[:100] = x[:100]
    logits = rng.normal(size=(300, count)) * 3
    with jax.enable_x64(True):
        schedule = Cosine()
        truth = udlm_loss(logits, x, z, np.asarray(schedule.alpha(t)), np.asarray(schedule.alpha_prime(t)))
        ours = Uniform(count, schedule=schedule).loss(*map(jnp.asarray, (logits, x, z, t)))
        np.testing.assert_allclose(ours, truth, rtol=1e-9, atol=1e-9)
        assert (np.asarray(ours) > -1e-12).all()


def test_special_ids_take_no_part_in_noise_or_loss():
    """Never drawn, never likely; their logits have no say and no gradient, so the loss is that of the smaller vocabulary."""
    process, small = Uniform(7, 1, Cosine(), (6,)), Uniform(5, schedule=Cosine())
    ids = np.asarray([0, 2, 3, 4, 5])
    keys_B = row_keys(jax.random.key(0), jnp.arange(500))
    for z_BL in (process.corrupt(keys_B, jnp.full((500, 20), 3), jnp.ones((500, 20))), process.prior(keys_B, 20)):
        counts = np.bincount(np.asarray(z_BL).ravel(), minlength=7)
        np.testing.assert_array_equal(np.flatnonzero(counts), ids)
        assert np.abs(counts[ids] / 2000 - 1).max() < 4 * math.sqrt(5 / 10000)
    np.testing.assert_array_equal(np.unique(uniform_tokens(keys_B, 20, 5)), np.arange(5))

    logits = jax.random.normal(jax.random.key(1), (60, 7)).at[:, 1].set(50.0)
    x, z, t = jnp.arange(60) % 5, (jnp.arange(60) // 5) % 5, jnp.linspace(0.01, 0.99, 60)
    ours, gradient = jax.value_and_grad(lambda logits: process.loss(logits, jnp.asarray(ids)[x], jnp.asarray(ids)[z], t).sum())(logits)
    theirs, expected = jax.value_and_grad(lambda logits: small.loss(logits, x, z, t).sum())(logits[:, ids])
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    np.testing.assert_allclose(gradient[:, ids], expected, rtol=1e-5, atol=1e-6)
    assert (gradient[:, [1, 6]] == 0).all()


def test_the_written_derivative_is_the_numeric_one():
    """Of the three sums in every logit and in rho, for kept and replaced tokens, with and without the shift of a posterior."""
    rng = np.random.default_rng(3)
    with jax.enable_x64(True):
        logits, x, z = jnp.asarray(rng.normal(size=(6, 4)) * 2), jnp.asarray([0, 1, 2, 3, 0, 1]), jnp.asarray([0, 2, 2, 1, 0, 1])
        log_rho, weights = jnp.asarray(rng.normal(size=6) * 4), jnp.asarray(rng.normal(size=(3, 6)))
        shift = jnp.asarray([0.0, 0.0, 0.0, 1.5, 2.5, 3.5])

        def total(logits, log_rho):
            return jnp.sum(weights * jnp.stack(mixture_sums(logits, x, z, log_rho, shift)))

        def plain(logits, log_rho):
            logits = logits - shift[:, None] * jax.nn.one_hot(z, 4)
            p = jax.nn.log_softmax(logits)
            at = [jnp.take_along_axis(p, i[:, None], axis=1)[:, 0] for i in (x, z)]
            return jnp.sum(weights * jnp.stack([jnp.sum(jnp.log1p(jnp.exp(p + log_rho[:, None])), axis=1), *at]))

        ours, theirs = (jax.value_and_grad(f, argnums=(0, 1))(logits, log_rho) for f in (total, plain))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), ours, theirs)


REAL = {"vocab": 50257, "mask_id": 50256, "excluded": (50255,)}


@pytest.mark.parametrize(
    "process, arrays",
    [
        (Uniform(**REAL), 0.25),
        (Uniform(parameterisation="posterior", **REAL), 0.25),
        (Hybrid(**REAL), 0.25),
        (ScoreEntropy(noise="uniform", **REAL), 1.1),
    ],
    ids=lambda value: value.name if isinstance(value, Process) else "",
)
def test_a_real_vocabulary_needs_no_square_array(process, arrays):
    """Value and gradient at 50257 classes: on a CPU hardly one more array of the size of the logits, let alone N x N; and the rows, taken
    a few at a time, cost what they cost alone."""
    rows = 128
    logits = jax.random.normal(jax.random.key(0), (rows, 50257))
    x, t = jnp.arange(rows) * 7, jnp.linspace(0.01, 0.99, rows)
    z = jnp.where(jnp.arange(rows) % 3 == 0, x, x + 5)

    def total(logits):
        nats = process.loss(logits, x, z, t)
        return nats.sum(), nats

    run = jax.jit(jax.grad(total, has_aux=True)).lower(logits).compile()
    assert run.memory_analysis().temp_size_in_bytes < arrays * logits.nbytes
    gradient, whole = run(logits)
    assert np.isfinite(gradient).all() and (gradient[:, [50255, 50256]] == 0).all()
    for i in (0, 60, 120):
        few = process.loss(logits[i : i + 8], x[i : i + 8], z[i : i + 8], t[i : i + 8])
        np.testing.assert_allclose(whole[i : i + 8], few, rtol=2e-5, atol=1e-5)


def test_rows_in_parts_are_all_rows():
    """Also where the rows do not divide, and with leading axes."""
    logits = jax.random.normal(jax.random.key(2), (3, 7, 65536))
    scale = jnp.broadcast_to(jnp.arange(7.0), (3, 7))
    parts = by_rows(lambda logits, scale: (jnp.max(logits, axis=-1) * scale, jnp.min(logits, axis=-1)), logits, scale)
    np.testing.assert_array_equal(parts[0], logits.max(axis=-1) * scale)
    np.testing.assert_array_equal(parts[1], logits.min(axis=-1))


def test_what_a_cut_of_the_times_leaves_out():
    """The logarithm at t -> 0: [1e-3, 1] holds 0.2 to 1 % less than [0, 1] for uniform noise, a tenth of that for masked noise."""
    missing = {}
    for name, kernel in (("uniform", oracle.uniform_kernel(TOKENS, *LINEAR)), ("masked", oracle.masked_kernel(TOKENS, *LINEAR))):
        t_J, w_J = oracle.quadrature(48)
        missing[name] = sum(w * 1e-3 * oracle.integrand(LAW, kernel, t * 1e-3) for t, w in zip(t_J, w_J, strict=True)) / LAW.entropy
    assert 2e-3 < missing["uniform"] < 1e-2
    assert missing["masked"] < missing["uniform"] / 4


# --- simple losses -----------------------------------------------------------------------------------------------------------------


def test_simple_losses_are_named_and_are_what_they_say():
    rng = np.random.default_rng(5)
    logits = jnp.asarray(rng.normal(size=(40, VOCAB)), jnp.float32)
    x, z, t = jnp.asarray(rng.integers(0, 3, 40)), jnp.asarray(rng.integers(0, 3, 40)), jnp.linspace(0.01, 0.99, 40)
    log_p = np.log(np.exp(logits[:, :3]) / np.exp(logits[:, :3]).sum(axis=1, keepdims=True))
    at_x = -log_p[np.arange(40), x]
    process = Uniform(parameterisation="posterior", **IDS)
    np.testing.assert_allclose(Denoising().trained(process, logits, x, z, t, t), np.where(z != x, at_x, 0), rtol=1e-5)
    np.testing.assert_allclose(Denoising(everywhere=True).trained(process, logits, x, z, t, t), at_x, rtol=1e-5)
    contrast = np.where(z != x, at_x + 0.3 * log_p.mean(axis=1), 0)
    np.testing.assert_allclose(Contrastive(0.3).trained(process, logits, x, z, t, t), contrast, rtol=1e-4, atol=1e-6)
    assert make_weighting("denoising", everywhere=True) == Denoising(True)
    objective = Objective(process, weighting=Denoising())
    assert objective.is_bound and not objective.trains_bound
    parts = objective(BY_NAME["uniform/cosine, posterior"].denoiser(LAW), batch_of(sample_joint(LAW, 8, seed=0)), jax.random.key(0), 8)[1]
    assert {"nelbo", "loss_denoising_not_a_bound"} <= set(objective.report(parts))
    with pytest.raises(InputError, match="denoising conflicts with process masked"):
        Objective(Masked(VOCAB, MASK), weighting=Denoising())


@pytest.mark.parametrize("parameterisation", ["leave_one_out", "posterior"])
def test_cross_entropy_of_all_tokens_is_least_for_the_truth(parameterisation):
    """Its minimiser is the exact output under either meaning, so a model trained by it has an honest bound: the gradient of its
    expectation at the exact output is 0. For replaced tokens only that is not so."""
    case = BY_NAME["uniform/linear" if parameterisation == "leave_one_out" else "uniform/cosine, posterior"]
    x_NL, z_NL, p_N = case.enumerate(LAW, 0.4)
    with jax.enable_x64(True):
        x, z = jnp.asarray(x_NL), jnp.asarray(z_NL)
        t = jnp.full(x.shape, 0.4)
        # One output for each z: gradients of all x that show as it add up.
        shown, which = np.unique(z_NL, axis=0, return_inverse=True)
        denoiser = case.denoiser(LAW)
        exact = denoiser.hidden(jnp.asarray(shown), jnp.full(shown.shape, 0.4))
        sizes = []
        for weighting in (Denoising(everywhere=True), Denoising()):

            def mean(logits, weighting=weighting):
                nats = weighting.trained(case.process, logits[which.reshape(-1)], x, z, t, t)
                return jnp.sum(nats * p_N[:, None])

            sizes.append(float(jnp.abs(jax.grad(mean)(exact)).max()))
    assert sizes[0] < 1e-12 < 1e-3 < sizes[1]


def test_power_times_lower_the_variance():
    """Small levels drawn more often: less spread of the estimated bound than with stratified levels of the same batch."""
    case, spread = BY_NAME["uniform/linear"], {}
    for name, times in (("flat", PerRow()), ("power", PerRow(Power(0.5)))):
        objective = Objective(case.process, times)
        totals = []
        for seed in range(12):
            batch = batch_of(sample_joint(LAW, 512, seed=seed))
            totals.append(float(objective(case.denoiser(LAW), batch, jax.random.key(seed), 512)[1]["nats"]) / 512)
        spread[name] = np.std(totals)
        assert abs(np.mean(totals) - expected_nats(case, LAW)) < 5 * spread[name] / math.sqrt(12)
    assert spread["power"] < spread["flat"]


def test_boundary_of_a_clipped_schedule():
    """p_1 is uniform, so what text is left at t = 1 costs a KL; at t = 0 the token is decoded with the noise that is there."""
    process = make_process("uniform", vocab=VOCAB, mask_id=MASK, excluded=(BOS,), schedule=symmetric(Linear(), 0.2))
    own, other = 0.2 + 0.8 / 3, 0.8 / 3
    truth = own * math.log(own * 3) + 2 * other * math.log(other * 3)
    np.testing.assert_allclose(process.prior_nats(jnp.zeros(2, int)), truth, rtol=1e-5)
    flat = jnp.zeros((3, VOCAB))
    right, wrong = (0.8 + 0.2 / 3), 0.2 / 3
    nats = process.reconstruction(flat, jnp.asarray([0, 1, 2]), jnp.asarray([0, 0, 2]))
    np.testing.assert_allclose(nats, -np.log([right, wrong, right]), rtol=1e-5)
