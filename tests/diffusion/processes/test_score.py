"""Score entropy against the paper's formula, its scaling, and what it costs at the ends."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import Geometric, Masked, ScoreEntropy, Uniform, make_process, row_keys
from dlmjax.diffusion.process import EXCLUDED, is_tight
from dlmjax.diffusion.processes.score import LIMIT, score_entropy
from dlmjax.errors import InputError
from tests.diffusion.battery import BOS, MASK, TOKENS, VOCAB
from tests.diffusion.cases_jump import IDS

SCHEDULE = Geometric(1e-3, 8.0)


def sedd_loss(output, x, z, t, noise):
    """SEDD's loss as its paper and code have it, from sigma, for scores that belong to no law: output is the network's."""
    sigma, sigma_prime = float(SCHEDULE.sigma(t)), math.log(8e3) * float(SCHEDULE.sigma(t))
    em1 = math.expm1(sigma)
    if noise == "mask":
        if z != MASK:
            return 0.0
        log_s = output[:TOKENS] - math.log(em1) - math.log(TOKENS)
        ratio = 1 / em1
        return sigma_prime * (np.exp(log_s).sum() - ratio * log_s[x] + ratio * (math.log(ratio) - 1))
    alpha = math.exp(-sigma)
    q = alpha * np.eye(TOKENS)[x] + (1 - alpha) / TOKENS
    total = 0.0
    for y in range(TOKENS):
        if y != z:
            r = q[y] / q[z]
            total += math.exp(output[y]) - r * output[y] + r * (math.log(r) - 1)
    return sigma_prime / TOKENS * total


@pytest.mark.parametrize("noise", ["mask", "uniform"])
def test_the_loss_is_the_papers_for_any_output(noise):
    rng = np.random.default_rng(0)
    process = ScoreEntropy(schedule=SCHEDULE, noise=noise, **IDS)
    output, x, t = rng.normal(size=(200, VOCAB)) * 2, rng.integers(0, TOKENS, 200), rng.uniform(0.02, 1, 200)
    z = rng.choice([0, 1, 2] if noise == "uniform" else [MASK], 200)
    with jax.enable_x64(True):
        truth = [sedd_loss(*point, noise) for point in zip(output, x, z, t, strict=True)]
        ours = process.loss(*map(jnp.asarray, (output, x, z, t)))
    np.testing.assert_allclose(ours, truth, rtol=1e-9, atol=1e-10)
    single = process.loss(*(jnp.asarray(a, jnp.float32 if a.dtype == float else jnp.int32) for a in (output, x, z, t)))
    np.testing.assert_allclose(single, truth, rtol=3e-5, atol=1e-5)


def test_the_written_derivative_is_the_numeric_one():
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        output, x, z = rng.normal(size=(8, 5)) * 2, jnp.asarray([0, 1, 2, 3] * 2), jnp.asarray([0, 1, 0, 1] * 2)
        output[:, 4], output[3, 2] = EXCLUDED, LIMIT + 3
        output, rho = jnp.asarray(output), jnp.asarray(np.exp(rng.normal(size=8) * 3))

        def total(output):
            return jnp.sum(score_entropy(output, x, z, rho) * jnp.arange(1.0, 9.0))

        gradient = np.asarray(jax.grad(total)(output))
        for i, j in ((0, 1), (1, 2), (2, 2), (2, 3), (3, 2), (5, 0), (6, 1)):
            step = 1e-5
            up, down = (score_entropy(output.at[i, j].add(sign * step), x, z, rho)[i] for sign in (1, -1))
            assert gradient[i, j] == pytest.approx(float((i + 1) * (up - down) / (2 * step)), rel=1e-5, abs=1e-6)
        assert (gradient[:, 4] == 0).all() and (gradient[np.arange(8), z] == 0).all()


def test_masked_scores_are_masked_diffusion_plus_their_normaliser():
    """Normalised outputs cost what masked diffusion costs; a constant c added to all costs hazard x (e^c - 1 - c) more."""
    masked, process = Masked(VOCAB, MASK, SCHEDULE, (BOS,)), ScoreEntropy(schedule=SCHEDULE, **IDS)
    with jax.enable_x64(True):
        rng = np.random.default_rng(2)
        x, t, z = jnp.asarray(rng.integers(0, 3, 50)), jnp.asarray(rng.uniform(0.1, 1, 50)), jnp.full(50, MASK)
        logits = jax.nn.log_softmax(jnp.asarray(rng.normal(size=(50, 3)))) + math.log(TOKENS)
        logits = jnp.pad(logits, ((0, 0), (0, 2)))
        plain = masked.loss(logits, x, z, t)
        np.testing.assert_allclose(process.loss(logits, x, z, t), plain, rtol=1e-10)
        more = process.loss(logits + 0.7, x, z, t) - plain
        np.testing.assert_allclose(more, SCHEDULE.hazard(t) * (math.expm1(0.7) - 0.7), rtol=1e-8)


def test_small_sigma_does_not_cancel():
    """At sigma = 1e-7 in float32 the loss of good scores is right to a part in a thousand, where e^sigma - 1 would have lost it."""
    schedule = Geometric(1e-7, 1.0)
    t = jnp.zeros(3)
    x = z = jnp.asarray([0, 1, 2])
    process = ScoreEntropy(schedule=schedule, noise="uniform", **IDS)
    noise = -math.expm1(-1e-7) / TOKENS
    with jax.enable_x64(True):
        output = jnp.full((3, VOCAB), math.log(noise / (math.exp(-1e-7) + noise)) + 0.1)
        exact = process.loss(output, x, z, jnp.zeros(3))
    single = process.loss(output.astype(jnp.float32), x, z, t)
    np.testing.assert_allclose(single, exact, rtol=1e-3)
    assert (np.asarray(exact) > 0).all()


@pytest.mark.parametrize("noise", ["mask", "uniform"])
def test_reverse_steps_are_those_of_the_same_x0_prediction(noise):
    """The analytic step from scores draws what the process of probabilities draws from the guess they stand for, bit for bit."""
    process = ScoreEntropy(noise=noise, **IDS)
    twin = Masked(VOCAB, MASK, excluded=(BOS,)) if noise == "mask" else Uniform(**IDS)
    keys_B = row_keys(jax.random.key(0), jnp.arange(256))
    logits = jnp.pad(jax.nn.log_softmax(jax.random.normal(jax.random.key(1), (256, 4, TOKENS))), ((0, 0), (0, 0), (0, 2)))
    z_BL = jax.random.randint(jax.random.key(2), (256, 4), 0, TOKENS)
    z_BL = jnp.where(z_BL == 1, MASK, z_BL) if noise == "mask" else z_BL
    t_BL, s_BL = jnp.full((256, 4), 0.7), jnp.full((256, 4), 0.3)
    if noise == "mask":
        shown = z_BL != MASK
        stepped = process.reverse_step(keys_B, logits + 2.0, z_BL, t_BL, s_BL)
        assert (stepped == z_BL)[shown].all()
        rate = float(jnp.mean(stepped[~shown] != MASK))
        assert abs(rate - (0.7 - 0.3) / 0.7) < 4 * math.sqrt(0.25 / int((~shown).sum()))
    else:
        scores = twin.output.log_score(logits, z_BL, t_BL)
        ours, theirs = process.reverse_step(keys_B, scores, z_BL, t_BL, s_BL), twin.reverse_step(keys_B, logits, z_BL, t_BL, s_BL)
        assert float(jnp.mean(ours == theirs)) > 0.999 and float(jnp.mean(ours != z_BL)) > 0.1


@pytest.mark.parametrize("t", [1e-6, 0.5, 1.0])
def test_masked_scores_mean_their_softmax_at_every_time(t):
    """Where nothing of the text is left, a score still says which token it would be: sampling starts there."""
    process = ScoreEntropy(noise="mask", **IDS)
    output = jax.random.normal(jax.random.key(3), (7, VOCAB))
    found = process.output.log_loo(output, jnp.full((7,), MASK), jnp.full((7,), t))
    np.testing.assert_allclose(found[:, :TOKENS], jax.nn.log_softmax(output[:, :TOKENS]), atol=1e-4)
    shown = process.output.log_loo(output, jnp.full((7,), 1), jnp.full((7,), t))
    np.testing.assert_allclose(np.exp(shown[:, :TOKENS]), np.tile([0.0, 1.0, 0.0], (7, 1)), atol=1e-6)


def test_names_and_refusals():
    assert is_tight(make_process("score", vocab=VOCAB, mask_id=MASK, noise="uniform"))
    with pytest.raises(InputError, match="requires mask_id"):
        ScoreEntropy(VOCAB)
    with pytest.raises(InputError, match="noise is 'absorb'"):
        ScoreEntropy(VOCAB, MASK, noise="absorb")
