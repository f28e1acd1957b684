"""Discrete flow matching: masked diffusion for a masked source, a documented looseness for a uniform one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import CrossEntropy, Denoising, FlowMatching, Masked, Objective, Polynomial, Uniform, row_keys
from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.process import is_tight
from dlmjax.errors import InputError
from tests.diffusion.battery import BOS, LINEAR, MASK, TOKENS, VOCAB, expected_nats
from tests.diffusion.cases_jump import CASES, IDS, flow_loss

BY_NAME = {str(case): case for case in CASES}
LAW = oracle.JointDistribution.random(TOKENS, 2, seed=1)


def test_a_masked_source_is_masked_diffusion():
    """The same loss and the same steps, bit for bit."""
    ours, theirs = FlowMatching(schedule=Polynomial(2.0), **IDS), Masked(VOCAB, MASK, Polynomial(2.0), (BOS,))
    logits = jax.random.normal(jax.random.key(0), (64, 3, VOCAB))
    x, t = jnp.arange(192).reshape(64, 3) % TOKENS, jnp.full((64, 3), 0.6)
    keys_B = row_keys(jax.random.key(1), jnp.arange(64))
    z = theirs.corrupt(keys_B, x, t)
    np.testing.assert_allclose(ours.loss(logits, x, z, t), theirs.loss(logits, x, z, t), rtol=1e-6)
    np.testing.assert_array_equal(ours.loss_mask(z, t), theirs.loss_mask(z, t))
    np.testing.assert_array_equal(ours.reverse_step(keys_B, logits, z, t, t / 2), theirs.reverse_step(keys_B, logits, z, t, t / 2))
    np.testing.assert_array_equal(ours.cross_entropy_weight(t), theirs.cross_entropy_weight(t))


def test_a_uniform_source_is_a_bound_but_a_loose_one():
    """More than the entropy, by what is enumerated; the same posterior under process `uniform` has none of it."""
    case = BY_NAME["flow_matching/uniform"]
    assert case.process.capabilities.is_bound and not is_tight(case.process) and is_tight(FlowMatching(**IDS))
    paid = expected_nats(case, LAW)
    assert paid == pytest.approx(oracle.diffusion_nats(LAW, case.kernel, loss=flow_loss, nodes=64), abs=1e-6)
    assert paid > 1.2 * LAW.entropy
    same = expected_nats(BY_NAME["uniform/cosine, posterior"], LAW)
    assert same == pytest.approx(LAW.entropy, abs=1e-6)
    # Of all posteriors the exact one pays least: the looseness is the path's, not the network's.
    kernel = oracle.uniform_kernel(TOKENS, *LINEAR)
    even = oracle.diffusion_nats(
        LAW, kernel, denoiser=lambda law, kernel, t: (oracle.leave_one_out(law, kernel, t) + 0.05) / 1.15, loss=flow_loss
    )
    assert even > paid


def test_the_gradient_is_zero_at_the_exact_posterior():
    """The generalised KL is least where the output is p(x | z)."""
    case = BY_NAME["flow_matching/uniform"]
    x_NL, z_NL, p_N = case.enumerate(LAW, 0.4)
    shown, which = np.unique(z_NL, axis=0, return_inverse=True)
    with jax.enable_x64(True):
        exact = case.denoiser(LAW).hidden(jnp.asarray(shown), jnp.full(shown.shape, 0.4))

        def mean(logits):
            nats = case.process.loss(logits[which.reshape(-1)], jnp.asarray(x_NL), jnp.asarray(z_NL), jnp.full(x_NL.shape, 0.4))
            return jnp.sum(nats * p_N[:, None])

        assert float(jnp.abs(jax.grad(mean)(exact)).max()) < 1e-10
        assert float(jnp.abs(jax.grad(mean)(exact + 0.1 * np.arange(VOCAB))).max()) > 1e-3


def test_an_euler_step_goes_to_the_posterior_at_the_rate_of_the_path():
    process = FlowMatching(noise="uniform", **IDS)
    keys_B = row_keys(jax.random.key(2), jnp.arange(4000))
    z_BL = jnp.zeros((4000, 2), jnp.int32)
    logits = jnp.broadcast_to(jnp.log(jnp.asarray([0.2, 0.5, 0.3, 0.9, 0.9])), (4000, 2, VOCAB))
    t_BL = jnp.full((4000, 2), 0.8)
    share = np.bincount(np.asarray(process.reverse_step(keys_B, logits, z_BL, t_BL, t_BL * 0.75)).ravel(), minlength=VOCAB) / 8000
    np.testing.assert_allclose(share, [0.75 + 0.25 * 0.2, 0.25 * 0.5, 0.25 * 0.3, 0, 0], atol=0.02)
    done = process.reverse_step(keys_B, logits, z_BL, t_BL, t_BL * 0)
    np.testing.assert_allclose(np.bincount(np.asarray(done).ravel(), minlength=VOCAB) / 8000, [0.2, 0.5, 0.3, 0, 0], atol=0.025)


def test_training_weights():
    """Cross-entropy of what carries loss for a masked source; for a uniform one it must be asked for by the name that says all tokens."""
    assert not Objective(FlowMatching(**IDS), weighting=CrossEntropy()).trains_bound
    with pytest.raises(InputError, match="cross_entropy conflicts with process flow_matching"):
        Objective(FlowMatching(noise="uniform", **IDS), weighting=CrossEntropy())
    process = FlowMatching(noise="uniform", **IDS)
    logits, x, t = jax.random.normal(jax.random.key(3), (9, VOCAB)), jnp.arange(9) % 3, jnp.full(9, 0.5)
    plain = -jax.nn.log_softmax(logits[:, :TOKENS])[jnp.arange(9), x]
    np.testing.assert_allclose(Denoising(True).trained(process, logits, x, x, t, t), plain, rtol=1e-6)
    assert is_tight(Uniform(**IDS).bound)
