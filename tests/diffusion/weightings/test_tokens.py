"""Training losses of single tokens: their values by hand, under their own names, beside the bound and never in its place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import Masked, Objective, row_keys
from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.oracle import toy
from dlmjax.diffusion.processes.d3pm import make_d3pm
from dlmjax.diffusion.processes.state_dependent import GenMd4
from dlmjax.diffusion.processes.uniform import Uniform
from dlmjax.diffusion.weightings.tokens import ContextAdaptive, HybridLambda, Routed, TokenAdaptive, token_nats
from dlmjax.errors import InputError
from tests.diffusion.battery import BOS, MASK, TOKENS, VOCAB, batch_of, sample_joint

IDS = {"vocab": VOCAB, "mask_id": MASK, "excluded": (BOS,)}
X, T = jnp.asarray([0, 1, 2, 0]), jnp.asarray([0.25, 0.5, 0.75, 0.5])
LOGITS = jnp.asarray(np.random.default_rng(0).normal(size=(4, VOCAB)), jnp.float32)
LOG_P = np.log(np.exp(LOGITS[:, :TOKENS]) / np.exp(LOGITS[:, :TOKENS]).sum(axis=1, keepdims=True))
CE = -LOG_P[np.arange(4), np.asarray(X)]


def test_values_for_masked_noise():
    """A shown token costs nothing; the others by the formulas."""
    process, z = Masked(**IDS), jnp.asarray([MASK, MASK, 2, MASK])
    masked = np.asarray([1, 1, 0, 1])
    nats = process.loss(LOGITS, X, z, T)
    args = process, LOGITS, X, z, T, nats
    np.testing.assert_allclose(nats, masked * CE / np.asarray(T), rtol=1e-5)
    np.testing.assert_allclose(HybridLambda(0.1).trained(*args), nats + 0.1 * masked * CE, rtol=1e-5)
    np.testing.assert_allclose(TokenAdaptive(2.0, 0.5).trained(*args), nats * 0.5 * (1 - np.exp(-CE)) ** 2, rtol=1e-5)
    np.testing.assert_allclose(TokenAdaptive(0.0).trained(*args), nats)
    np.testing.assert_allclose(Routed().trained(*args), masked * CE * (1 - np.asarray(T)), rtol=1e-5)
    np.testing.assert_allclose(Routed(linear=False).trained(*args), masked * CE, rtol=1e-5)
    np.testing.assert_allclose(token_nats(GenMd4(**IDS), LOGITS, X, z, T), masked * CE, rtol=1e-5)


@pytest.mark.parametrize("make", [Uniform, make_d3pm])
def test_values_for_noise_that_replaces_tokens(make):
    """All tokens count, by their posterior: the guess from the others times what is seen."""
    z = jnp.asarray([0, 2, 2, 1])
    seen_NK = (1 - np.asarray(T))[:, None] * np.eye(TOKENS)[np.asarray(z)] + np.asarray(T)[:, None] / TOKENS
    posterior_NK = np.exp(LOG_P) * seen_NK
    truth = -np.log((posterior_NK / posterior_NK.sum(axis=1, keepdims=True))[np.arange(4), np.asarray(X)])
    np.testing.assert_allclose(token_nats(make(**IDS), LOGITS, X, z, T), truth, rtol=1e-5)
    np.testing.assert_allclose(token_nats(make(**IDS, parameterisation="posterior"), LOGITS, X, z, T), CE, rtol=1e-5)
    changed = np.asarray([0, 1, 0, 1])
    trained = Routed().trained(make(**IDS), LOGITS, X, z, T, jnp.zeros(4))
    np.testing.assert_allclose(trained, changed * truth * (1 - np.asarray(T)), rtol=1e-5)


@pytest.mark.parametrize("parameterisation", ["leave_one_out", "posterior"])
def test_lambda_is_on_the_scale_of_the_whole_bound(parameterisation):
    """Eq. 5 of D3PM: lambda beside all T steps. The released code draws one step's KL and adds lambda to that: T times as much, here in
    numpy, step by step."""
    steps, level, lam = 8, np.asarray([2, 4, 6, 8]), 0.01
    z, t = np.asarray([0, 2, 2, 1]), jnp.asarray(level / steps, jnp.float32)
    process = make_d3pm(**IDS, steps=steps, parameterisation=parameterisation)

    def seen(at_N):
        """q(z_i | x) for every pair, [N, x, z]."""
        keep_N = 1 - at_N[:, None, None] / steps
        return keep_N * np.eye(TOKENS) + (1 - keep_N) / TOKENS

    keep_N = (1 - level / steps) / (1 - (level - 1) / steps)
    step_NKK = keep_N[:, None, None] * np.eye(TOKENS) + (1 - keep_N)[:, None, None] / TOKENS
    row = np.arange(4)
    bridge_NxK = seen(level - 1) * step_NKK[row, :, z][:, None, :]
    bridge_NxK = bridge_NxK / bridge_NxK.sum(axis=2, keepdims=True)
    guess_NK = np.exp(LOG_P) * (seen(level)[row, :, z] if parameterisation == "leave_one_out" else 1)
    guess_NK = guess_NK / guess_NK.sum(axis=1, keepdims=True)
    q_NK, p_NK = bridge_NxK[row, np.asarray(X)], np.einsum("nx,nxk->nk", guess_NK, bridge_NxK)
    one_step = np.sum(q_NK * np.log(q_NK / p_NK), axis=1) - lam * np.log(guess_NK[row, np.asarray(X)])
    zs = jnp.asarray(z)
    trained = HybridLambda(lam * steps).trained(process, LOGITS, X, zs, t, process.loss(LOGITS, X, zs, t))
    np.testing.assert_allclose(trained / steps, one_step, rtol=2e-4)


@pytest.mark.parametrize("weighting", [HybridLambda(), TokenAdaptive(0.5), Routed()], ids=lambda weighting: weighting.name)
def test_what_is_reported_stays_the_bound(weighting):
    """Through the objective: `nats` is that of the plain bound, the trained loss is logged as no bound, gradients are finite."""
    law = oracle.JointDistribution.random(TOKENS, 2, seed=1)
    denoiser, batch = toy.ToyDenoiser(law, VOCAB, toy.masked_likelihood(TOKENS, MASK)), batch_of(sample_joint(law, 64, 0))
    plain, objective = Objective(Masked(**IDS)), Objective(Masked(**IDS), weighting=weighting)
    truth, parts = plain(denoiser, batch, jax.random.key(0), 64)[1], objective(denoiser, batch, jax.random.key(0), 64)[1]
    np.testing.assert_allclose(parts["nats"], truth["nats"], rtol=1e-6)
    assert abs(float(parts["loss"] - truth["nats"])) > 1e-3
    assert not objective.trains_bound and f"loss_{weighting.name}_not_a_bound" in objective.report(parts)

    def total(logits):
        z, x = jnp.full(4, MASK), jnp.asarray([0, 1, 2, 0])
        process = Masked(**IDS)
        return jnp.sum(weighting.trained(process, logits, x, z, T, process.loss(logits, x, z, T)))

    for scale in (1.0, 1e4):
        assert np.isfinite(np.asarray(jax.grad(total)(scale * jax.nn.one_hot(X, VOCAB)))).all()


def test_visible_text_near_a_token_decides_its_weight():
    """CART: each visible token counts by its distance; in a long row the mean is the share of visible text, on masks alone it is 0."""
    weighting, process = ContextAdaptive(), Masked(**IDS)
    long = 129

    def weights(z_BL):
        # The factor is on nats with the bound's weight.
        return np.asarray(
            weighting.factor(process, z_BL, z_BL, jnp.full(z_BL.shape, 0.3)) * process.cross_entropy_weight(jnp.full(z_BL.shape, 0.3))
        )

    alone_BL = jnp.full((1, long), MASK).at[:, 60].set(1)
    away_L = np.abs(np.arange(long) - 60)
    np.testing.assert_allclose(weights(alone_BL)[0], np.where(away_L > 0, 0.15 * 0.7 ** (away_L - 1.0), 0), rtol=1e-5, atol=1e-12)
    assert not weights(jnp.full((1, long), MASK)).any()
    assert weights(jnp.ones((1, long), jnp.int32))[0, 64] == pytest.approx(1, abs=1e-6)
    for share in (0.1, 0.5, 0.9):
        z_BL = process.corrupt(row_keys(jax.random.key(0), jnp.arange(64)), jnp.ones((64, 512), jnp.int32), jnp.full((64, 512), share))
        assert weights(z_BL)[:, 30:-30].mean() == pytest.approx(1 - share, abs=0.01)


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="at least 0"):
        HybridLambda(-1.0)
    with pytest.raises(InputError, match="beta"):
        TokenAdaptive(-1.0)
