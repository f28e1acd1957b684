"""Uniform noise as the argmax of Gaussian noise, and soft tokens drawn without a vector over the vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import Cosine, Denoiser, Linear, Objective, Uniform, row_keys
from dlmjax.diffusion.processes.duo import Duo, Poly9, argmax_alpha, signal, soft_tokens
from dlmjax.errors import InputError
from tests.diffusion.battery import batch_of, chi_square_sigmas


def test_two_tokens_in_closed_form():
    """For N = 2 the clean entry wins with probability Phi(ratio / sqrt 2)."""
    ratio_J = np.asarray([1e-6, 0.3, 1.0, 3.0])
    with jax.enable_x64(True):
        win_J = np.asarray(jax.scipy.special.ndtr(jnp.asarray(ratio_J) / np.sqrt(2)))
    np.testing.assert_allclose(argmax_alpha(ratio_J, 2), 2 * win_J - 1, rtol=1e-9)


@pytest.mark.parametrize("tokens", [2, 27, 50257])
def test_the_map_is_inverted(tokens):
    """alpha of the ratio that `signal` gives is alpha again, from nearly clean to nearly noise, for any vocabulary."""
    alpha_J = np.asarray([1e-4, 1e-3, 0.03, 0.2, 0.5, 0.8, 0.99, 1 - 1e-4, 1 - 1e-6])
    ratio_J = np.asarray(signal(jnp.asarray(alpha_J, jnp.float32), jnp.asarray(1 - alpha_J, jnp.float32), tokens), np.float64)
    again_J = argmax_alpha(ratio_J, tokens)
    np.testing.assert_allclose(again_J, alpha_J, rtol=1e-3)
    np.testing.assert_allclose(1 - again_J, 1 - alpha_J, rtol=2e-3)
    assert (np.diff(ratio_J) > 0).all()


@pytest.mark.parametrize("tokens", [2, 27, 50257])
def test_the_polynomial_is_the_map_and_its_slope(tokens):
    """Duo++: alpha and alpha' as a function of t, of the Gaussian whose -log SNR is linear in t, against the quadrature."""
    schedule, t_J = Poly9(tokens), np.linspace(0, 1, 101)
    ratio_J = np.exp(1.75 - 0.875 * t_J)
    alpha_J, step = argmax_alpha(ratio_J, tokens), 1e-4
    slope_J = (argmax_alpha(ratio_J * np.exp(-0.875 * step), tokens) - argmax_alpha(ratio_J * np.exp(0.875 * step), tokens)) / (2 * step)
    np.testing.assert_allclose(schedule.ratio(t_J), ratio_J, rtol=1e-6)
    np.testing.assert_allclose(schedule.alpha(t_J), alpha_J, atol=4e-5)
    np.testing.assert_allclose(schedule.alpha_prime(t_J), slope_J, atol=5e-3)
    np.testing.assert_allclose(schedule.alpha(t_J) + schedule.noise(t_J), 1, atol=1e-7)
    np.testing.assert_allclose(schedule.inverse(schedule.alpha(t_J)), t_J, atol=2e-3)
    np.testing.assert_allclose(schedule.ends, alpha_J[[0, -1]], atol=4e-5)
    assert (np.diff(schedule.alpha(t_J)) < 0).all() and schedule.has_boundary


VOCAB, BARRED, ROWS = 7, (2, 6), 4096  # five tokens: 0, 1, 3, 4, 5


@pytest.mark.parametrize("curve", ["schedule", "poly9"])
def test_the_argmax_has_the_distribution_of_uniform_noise(curve):
    process = Duo(VOCAB, 6, Cosine(), (2,), k=3, curve=curve, low=-1.0, high=1.0)
    keys_B = row_keys(jax.random.key(0), jnp.arange(ROWS))
    x_BL = jnp.full((ROWS, 3), 4)
    z_BL = process.corrupt(keys_B, x_BL, jnp.full(x_BL.shape, 0.45))
    counts_V = np.bincount(np.asarray(process.states.to_tokens(z_BL)).ravel(), minlength=VOCAB)
    noise = 1 - argmax_alpha(np.exp([0.05]), 5)[0] if curve == "poly9" else float(Cosine().noise(0.45))
    probability_V = noise / 5 * ~np.isin(np.arange(VOCAB), BARRED) + (1 - noise) * (np.arange(VOCAB) == 4)
    assert chi_square_sigmas(counts_V, probability_V) < 4
    assert (np.asarray(process.corrupted(x_BL, z_BL)) == np.asarray(process.states.to_tokens(z_BL) != 4)).all()


def test_soft_tokens_are_the_largest_entries_of_the_dense_softmax():
    """Against the V-wide way: the same mean weight of each token, the same second moment of every rank, all ids distinct tokens."""
    temperature, ratio, k, rows = 0.7, 0.8, 3, 20000
    keys_B = row_keys(jax.random.key(1), jnp.arange(ROWS))
    ids, weights = soft_tokens(keys_B, jnp.full((ROWS, 5), 4), jnp.full((ROWS, 5), ratio), temperature, k, VOCAB, BARRED)
    ids, weights = np.asarray(ids).reshape(-1, k), np.asarray(weights).reshape(-1, k)
    assert not np.isin(ids, BARRED).any() and (np.diff(np.sort(ids, axis=1)) > 0).all()
    assert (np.diff(weights) <= 0).all() and np.allclose(weights.sum(axis=1), 1, atol=1e-6)

    w = np.random.default_rng(2).normal(size=(rows, 5)) + ratio * (np.arange(5) == 3)
    order = np.argsort(-w, axis=1)[:, :k]
    dense = np.exp(np.take_along_axis(w, order, axis=1) / temperature)
    dense /= dense.sum(axis=1, keepdims=True)
    tokens = np.asarray([0, 1, 3, 4, 5])[order]
    for token in (0, 1, 3, 4, 5):
        ours, theirs = np.where(ids == token, weights, 0).sum(axis=1), np.where(tokens == token, dense, 0).sum(axis=1)
        error = np.sqrt(ours.var() / len(ours) + theirs.var() / rows)
        assert abs(ours.mean() - theirs.mean()) < 4 * error
    for rank in range(k):
        for power in (1, 2):
            ours, theirs = weights[:, rank] ** power, dense[:, rank] ** power
            assert abs(ours.mean() - theirs.mean()) < 4 * np.sqrt(ours.var() / len(ours) + theirs.var() / rows)


def test_a_large_vocabulary_needs_no_vector_over_it():
    """At 50257 tokens the compiled draw holds a few numbers for every kept token."""

    def draw(keys_B, x_BL, ratio_BL):
        return soft_tokens(keys_B, x_BL, ratio_BL, 1e-3, 4, 50257, (50256,))

    keys_B = row_keys(jax.random.key(3), jnp.arange(64))
    x_BL, ratio_BL = jnp.full((64, 16), 50255), jnp.full((64, 16), 4.0)
    compiled = jax.jit(draw).lower(keys_B, x_BL, ratio_BL).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 64 * 16 * 4 * 100
    ids, weights = compiled(keys_B, x_BL, ratio_BL)
    assert int(ids.max()) < 50256 and int(ids.min()) >= 0 and np.isfinite(weights).all()
    kept = float(jnp.mean(ids[..., 0] == 50255))
    assert abs(kept - float(argmax_alpha(np.asarray([4.0]), 50256)[0])) < 0.08


def test_the_curriculum_is_a_training_loss_and_uniform_noise_its_bound():
    process = Duo(VOCAB, 6, Linear(), (2,), k=3, temperature=0.5)
    assert process.bound == Uniform(VOCAB, 6, Linear(), (2,)) and not process.capabilities.is_bound
    x_BL = jnp.asarray([[0, 1, 3], [4, 5, 0]])
    keys_B, t_BL = row_keys(jax.random.key(4), jnp.arange(2)), jnp.asarray([[0.0, 0.5, 1.0]] * 2)
    z_BL = process.corrupt(keys_B, x_BL, t_BL, jnp.asarray([[True, True, False]] * 2))
    assert z_BL.shape == (2, 3, 3, 2) and z_BL.dtype == jnp.float32
    np.testing.assert_array_equal(z_BL[:, 0], process.states.of_tokens(x_BL)[:, 0])  # clean text
    np.testing.assert_array_equal(z_BL[:, 2], process.states.of_tokens(x_BL)[:, 2])  # padding
    assert (z_BL[:, 1, :, 1] < 1).all()
    logits = jax.random.normal(jax.random.key(5), (2, 3, VOCAB))
    ours = process.loss(logits, x_BL, z_BL, t_BL)
    np.testing.assert_array_equal(ours, process.bound.loss(logits, x_BL, process.states.to_tokens(z_BL), t_BL))
    drawn = Duo(VOCAB, 6, Linear(), (2,), k=3, curve="poly9")
    of_curve = Uniform(VOCAB, 6, Poly9(5), (2,)).loss(logits, x_BL, process.states.to_tokens(z_BL), t_BL)
    np.testing.assert_array_equal(drawn.loss(logits, x_BL, z_BL, t_BL), of_curve)
    assert drawn.bound == process.bound and not drawn.boundary.any and np.abs(of_curve - ours).max() > 0.01
    with pytest.raises(InputError, match="provides no forward steps"):
        process.forward_step(keys_B, z_BL, t_BL, t_BL)
    with pytest.raises(InputError, match="k is 9"):
        Duo(VOCAB, 6, k=9)
    for values, message in (
        ({"until": -3}, "until is -3"),
        ({"curve": "poly8"}, "curve is 'poly8'; choose one of schedule, poly9"),
        ({"curve": "poly9", "low": -1.0, "high": -2.0}, "low=-1.0 to high=-2.0 .* requires"),
        ({"curve": "poly9", "low": -9.0, "high": 9.0}, "is too wide: .* give a narrower range"),
    ):
        with pytest.raises(InputError, match=message):
            Duo(VOCAB, 6, **values)


class _Mean(Denoiser):
    """A denoiser that reads soft tokens: logits are the weighted mean of one-hot rows."""

    def hidden(self, z_BL, t_BL, hint_BLI=None):
        return jnp.einsum("blk,blkv->blv", z_BL[..., 1], jax.nn.one_hot(z_BL[..., 0].astype(int), VOCAB))

    def row_losses(self, hidden_BLD, loss_mask_BL, loss_fn, args, weight_BL):
        nats_BL = loss_fn(hidden_BLD, *args)
        nats_BL = nats_BL[0] if isinstance(nats_BL, tuple) else nats_BL
        return jnp.sum(nats_BL * weight_BL), nats_BL


def test_the_objective_takes_soft_states():
    objective = Objective(Duo(VOCAB, 6, Linear(), (2,), k=3, temperature=0.5))
    total, parts = objective(_Mean(), batch_of(np.asarray([[0, 1, 3], [4, 5, 0]])), jax.random.key(6), 2)
    assert np.isfinite(float(total)) and not objective.is_bound
    assert "partial_nelbo" in objective.report(parts)
