"""The causal corner is the chain rule: no noise, no gap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import Autoregressive, Objective, row_keys
from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.oracle.toy import ToyDenoiser
from dlmjax.errors import InputError
from dlmjax.evaluation import Evaluator
from tests.diffusion.battery import BOS, MASK, TOKENS, VOCAB, batch_of

LAW = oracle.JointDistribution.random(TOKENS, 3, seed=2)
PROCESS = Autoregressive(VOCAB, BOS, MASK)


def test_loss_is_the_sum_of_conditionals():
    """For every sequence the nats of the row are -log p(x), whatever the step's key."""
    x_BL = LAW.sequences_Xn.astype(np.int32)
    x = jnp.asarray(x_BL)
    read = PROCESS.corrupt(row_keys(jax.random.key(0), jnp.arange(27)), x, jnp.full(x.shape, 0.3))
    denoiser = ToyDenoiser(LAW, VOCAB)
    nats_BL = PROCESS.loss(denoiser.logits(denoiser.hidden(read, jnp.zeros(x.shape))), x, read, jnp.zeros(x.shape))
    np.testing.assert_allclose(nats_BL.sum(axis=1), -np.log(LAW.probability_X), rtol=1e-5)
    # p(x_1) from the table's margin, p(x_2 | x_1) from the next.
    margin = LAW.table.sum(axis=2)
    np.testing.assert_allclose(nats_BL[:, 0], -np.log(margin.sum(axis=1))[x_BL[:, 0]], rtol=1e-5)
    second = margin / margin.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(nats_BL[:, 1], -np.log(second)[x_BL[:, 0], x_BL[:, 1]], rtol=1e-5)

    totals = [float(Objective(PROCESS)(denoiser, batch_of(x_BL), jax.random.key(seed), 27)[0]) for seed in (0, 1)]
    assert totals[0] == totals[1] == pytest.approx(-np.log(LAW.probability_X).sum(), rel=1e-5)


def test_the_row_is_shifted_and_documents_see_the_end_of_the_one_before():
    """Two documents that end with EOS (= BOS) and padding: every document's first slot reads a BOS, padding stays."""
    x = jnp.asarray([[0, 1, BOS, 2, 2, BOS, 0, 0]], jnp.int32)
    segments = jnp.asarray([[1, 1, 1, 2, 2, 2, 0, 0]])
    z = PROCESS.corrupt(row_keys(jax.random.key(0), jnp.arange(1)), x, jnp.zeros(x.shape), segments > 0)
    assert z.tolist() == [[BOS, 0, 1, BOS, 2, 2, 0, 0]]
    assert PROCESS.loss_mask(z, jnp.zeros(x.shape)).all()


def test_a_token_cannot_see_itself():
    x = jnp.asarray([[0, 1, 2, 0]], jnp.int32)
    y = x.at[0, 3].set(2)
    keys_B, t = row_keys(jax.random.key(0), jnp.arange(1)), jnp.zeros(x.shape)
    np.testing.assert_array_equal(PROCESS.corrupt(keys_B, x, t), PROCESS.corrupt(keys_B, y, t))


def test_mask_class_is_left_out_of_the_normaliser():
    logits, x, z, t = jnp.zeros((1, VOCAB)).at[0, MASK].set(99.0), jnp.asarray([1]), jnp.asarray([0]), jnp.zeros(1)
    assert float(PROCESS.loss(logits, x, z, t)[0]) == pytest.approx(np.log(4))
    assert float(Autoregressive(VOCAB, BOS).loss(jnp.zeros((1, VOCAB)), x, z, t)[0]) == pytest.approx(np.log(5))


def test_reverse_steps_write_from_left_to_right():
    z, keys_B = PROCESS.prior(row_keys(jax.random.key(0), jnp.arange(2)), 4), row_keys(jax.random.key(1), jnp.arange(2))
    for i in range(4):
        logits = jnp.zeros((2, 4, VOCAB)).at[..., i % TOKENS].set(60.0).at[..., MASK].set(99.0)
        z = PROCESS.reverse_step(keys_B, logits, z, jnp.full(z.shape, 1 - i / 4), jnp.full(z.shape, 1 - (i + 1) / 4))
        assert z[0, : i + 1].tolist() == [0, 1, 2, 0][: i + 1]
        assert (z[:, i + 1 :] == BOS).all()


def test_what_it_has_not_is_said():
    assert not PROCESS.boundary.any and PROCESS.capabilities.is_bound and PROCESS.attention.causal
    keys_B, x, t = row_keys(jax.random.key(0), jnp.arange(1)), jnp.zeros((1, 3), jnp.int32), jnp.zeros((1, 3))
    with pytest.raises(InputError, match="no forward steps"):
        PROCESS.forward_step(keys_B, x, t, t)
    with pytest.raises(InputError, match="bos_id is 9"):
        Autoregressive(5, 9)
    with pytest.raises(InputError, match="input_mask is 1"):
        Autoregressive(VOCAB, BOS, MASK, input_mask=1.0)
    with pytest.raises(InputError, match="this vocabulary has none"):
        Autoregressive(VOCAB, BOS, input_mask=0.1)


# --- input masking ---------------------------------------------------------------------------------------------------------------------

HIDING = Autoregressive(VOCAB, BOS, MASK, input_mask=0.3)


def test_training_hides_a_share_of_what_is_read_and_nothing_else():
    rng = np.random.default_rng(0)
    x = jnp.asarray(np.where(rng.uniform(size=(500, 40)) < 0.1, BOS, rng.integers(0, TOKENS, (500, 40))), jnp.int32)
    valid, t, keys_B = jnp.arange(40) < 30, jnp.zeros(x.shape), row_keys(jax.random.key(0), jnp.arange(500))
    valid = jnp.broadcast_to(valid, x.shape)
    read = PROCESS.corrupt(keys_B, x, t, valid)
    np.testing.assert_array_equal(HIDING.corrupt(keys_B, x, t, valid), read)
    ((z, level),) = HIDING.noisy_views(keys_B, x, t, valid)
    hidden, may = np.asarray(z == MASK), np.asarray(valid & (read != BOS))
    assert not hidden[~may].any() and not hidden[:, 0].any()
    assert hidden[may].mean() == pytest.approx(0.3, abs=4 * np.sqrt(0.21 / may.sum()))
    np.testing.assert_array_equal(np.where(hidden, read, z), read)
    np.testing.assert_array_equal(HIDING.corrupted(x, z), hidden)
    assert level is t and not PROCESS.corrupted(x, read).any() and PROCESS.noisy_views(keys_B, x, t, valid)[0][0].tolist() == read.tolist()
    # A row's draw is its key's alone: microbatches and meshes cannot change it.
    np.testing.assert_array_equal(HIDING.noisy_views(keys_B[7:9], x[7:9], t[7:9], valid[7:9])[0][0], z[7:9])


def test_what_is_hidden_is_still_predicted_and_the_likelihood_stays_exact():
    """Training counts every token and no longer is the likelihood; an evaluation is, to the bit."""
    batch, denoiser = batch_of(LAW.sequences_Xn.astype(np.int32)), ToyDenoiser(LAW, VOCAB)
    objective = Objective(HIDING)
    totals, parts = zip(*(objective(denoiser, batch, jax.random.key(seed), 27) for seed in (0, 1)), strict=True)
    assert totals[0] != totals[1] and parts[0]["tokens"] == 81 and 0 < int(parts[0]["corrupted"]) < 54
    assert set(objective.report(parts[0])) >= {"partial_nelbo", "loss_cross_entropy_not_a_bound"}
    assert HIDING.bound == PROCESS and not objective.is_bound

    hiding, plain = (
        Evaluator(process, lambda params, segments, positions, attention: denoiser).measure({}, [jax.device_get(batch)])
        for process in (HIDING, PROCESS)
    )
    np.testing.assert_array_equal(hiding.nats_WD, plain.nats_WD)
    np.testing.assert_allclose(plain.nats_WD[:, 0], -np.log(LAW.probability_X), rtol=1e-5)
