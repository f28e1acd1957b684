"""The oracle against closed forms of other papers, against itself, and against the traps it is there to catch."""

import numpy as np
import pytest

from dlmjax.diffusion.oracle import enumeration as oracle
from tests.diffusion.battery import COSINE, LINEAR

LAW = oracle.JointDistribution.random(3, 2, seed=0)
KERNELS = {
    "masked": oracle.masked_kernel(3, *LINEAR),
    "uniform": oracle.uniform_kernel(3, *LINEAR),
    "uniform, cosine": oracle.uniform_kernel(3, *COSINE),
    "hybrid": oracle.hybrid_kernel(3, 0.2),
    "hybrid, gamma 2": oracle.hybrid_kernel(3, 0.4, gamma=2.0),
}
every_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
LEVELS = (0.01, 0.3, 0.7, 0.99)


def at(loss, kernel, t, x, z, guess_K):
    """One entry of a loss."""
    return float(loss(kernel, t, np.asarray([z]), np.asarray(guess_K)[None])[0, x])


@every_kernel
def test_kernels_are_markov_chains(kernel):
    states = kernel.noise(0.5).size
    for s, t in ((0.2, 0.5), (0.01, 0.9)):
        np.testing.assert_allclose(kernel.matrix(t).sum(axis=1), 1)
        np.testing.assert_allclose(kernel.matrix(s) @ kernel.step(s, t), kernel.matrix(t), atol=1e-12)
        assert (kernel.step(s, t) > -1e-12).all()
        slope = (kernel.noise(t + 1e-6) - kernel.noise(t - 1e-6)) / 2e-6
        np.testing.assert_allclose(kernel.noise_prime(t), slope, atol=1e-6)
        assert kernel.alpha_prime(t) == pytest.approx((kernel.alpha(t + 1e-6) - kernel.alpha(t - 1e-6)) / 2e-6, abs=1e-6)
        # The rate into a state is what a short step adds there.
        short = kernel.step(t, t + 1e-7)
        np.testing.assert_allclose(short[0, 1:] / 1e-7, kernel.rate_into(t)[1:], rtol=1e-5, atol=1e-5)
    assert kernel.matrix(0.0) == pytest.approx(np.eye(3, states))


@every_kernel
@pytest.mark.parametrize("loss", [oracle.kl_is_loss, oracle.path_loss])
def test_bound_is_tight_at_the_leave_one_out_posterior(kernel, loss):
    assert oracle.diffusion_nats(LAW, kernel, oracle.leave_one_out, loss) == pytest.approx(LAW.entropy, abs=1e-6)


@every_kernel
def test_both_forms_agree_pointwise(kernel):
    rng = np.random.default_rng(1)
    for t in LEVELS:
        for x in range(3):
            for z in range(kernel.noise(t).size):
                guess_K = rng.dirichlet(np.ones(3))
                one, two = (at(f, kernel, t, x, z, guess_K) for f in (oracle.kl_is_loss, oracle.path_loss))
                assert one == pytest.approx(two, rel=1e-9, abs=1e-11)
                assert one >= 0


def test_a_chain_may_differ_between_tokens():
    """Two tokens that mask at different rates and turn into each other: transitions compose, rates are what a short step adds, and the path
    KL is tight. A kernel written as a chain has the kernel's loss."""
    rates_SS = np.asarray([[0.0, 0.7, 0.4], [0.2, 0.0, 2.0], [0.0, 0.0, 0.0]])
    generator_SS = rates_SS - np.diag(rates_SS.sum(axis=1))
    own_S, vector_SS = np.linalg.eig(generator_SS)

    def transition(t):  # from clean text at t = 0 to nothing but masks at t = 1
        return (vector_SS * (1 - t) ** -own_S) @ np.linalg.inv(vector_SS)

    chain, law = oracle.Chain(2, transition, lambda t: rates_SS / (1 - t)), oracle.JointDistribution.random(2, 2, seed=0)
    np.testing.assert_allclose(chain.matrix(0.2) @ chain.step(0.2, 0.5), chain.matrix(0.5), atol=1e-12)
    short_SS = (chain.step(0.3, 0.3 + 1e-7) - np.eye(3)) / 1e-7
    np.testing.assert_allclose(short_SS, generator_SS / 0.7, atol=1e-5)
    assert oracle.diffusion_nats(law, chain, oracle.leave_one_out, oracle.path_loss) == pytest.approx(law.entropy, abs=1e-6)

    kernel = KERNELS["hybrid"]
    same = oracle.Chain(3, lambda t: kernel.step(0.0, t), kernel.rates)
    np.testing.assert_allclose(same.step(0.3, 0.6)[:3], kernel.step(0.3, 0.6)[:3], atol=1e-12)
    arguments = 0.4, np.arange(4), np.full((4, 3), 1 / 3)
    np.testing.assert_allclose(oracle.path_loss(same, *arguments), oracle.kl_is_loss(kernel, *arguments), rtol=1e-9)


@pytest.mark.parametrize("name", ["uniform", "hybrid"])
def test_the_full_posterior_is_not_the_minimiser(name):
    """The trap: p(x_i | z) where the bound wants p(x_i | z_{-i}) costs a third of the entropy and more; the bridge mends it exactly."""
    kernel = KERNELS[name]
    assert oracle.diffusion_nats(LAW, kernel, oracle.posterior, nodes=32) > LAW.entropy + 0.5
    for t in LEVELS:
        mended = oracle.bridge(oracle.posterior(LAW, kernel, t), kernel, t)
        np.testing.assert_allclose(mended, oracle.leave_one_out(LAW, kernel, t), atol=1e-10)


def test_masked_noise_has_one_posterior():
    """Under a mask p(x_i | z) and p(x_i | z_{-i}) are the same."""
    kernel = KERNELS["masked"]
    masked_Zn = oracle.enumerate_sequences(4, 2) == 3
    for t in LEVELS:
        one, two = oracle.posterior(LAW, kernel, t), oracle.leave_one_out(LAW, kernel, t)
        np.testing.assert_allclose(one[masked_Zn], two[masked_Zn], atol=1e-12)


def test_uniform_loss_is_udlms_closed_form():
    """UDLM 2412.10193 eq. 14, Duo 2506.10892."""
    rng = np.random.default_rng(2)
    for t in LEVELS:
        for x in range(3):
            for z in range(3):
                guess_K = rng.dirichlet(np.ones(3))
                alpha, slope = 1 - t, -1.0
                xbar, ybar = 3 * alpha * np.eye(3)[x] + 1 - alpha, 3 * alpha * guess_K + 1 - alpha
                inner = 3 / xbar[z] - 3 / ybar[z] - np.sum(xbar / xbar[z] * np.log(ybar[z] * xbar / (ybar * xbar[z])))
                truth = slope / (3 * alpha) * inner
                assert at(oracle.kl_is_loss, KERNELS["uniform"], t, x, z, guess_K) == pytest.approx(truth, rel=1e-9, abs=1e-11)


def test_masked_loss_is_sedds_score_entropy():
    """SEDD 2310.16834, absorbing: sigma' [sum_y s_y - r log s_x + r (log r - 1)] under a mask, r = 1/(e^sigma - 1)."""
    guess_K = np.asarray([0.2, 0.5, 0.3])
    for t in LEVELS:
        sigma, rate = -np.log(1 - t), 1 / (1 - t)
        r = 1 / np.expm1(sigma)
        score_K = r * guess_K
        truth = rate * (score_K.sum() - r * np.log(score_K[1]) + r * (np.log(r) - 1))
        assert at(oracle.kl_is_loss, KERNELS["masked"], t, 1, 3, guess_K) == pytest.approx(truth, rel=1e-9)
        assert at(oracle.kl_is_loss, KERNELS["masked"], t, 1, 1, guess_K) == 0


def test_hybrid_weights_are_gidds():
    """GIDD 2503.04482: closed forms of w_t(z, x); without uniform noise the process is masked diffusion."""
    for t in LEVELS:
        kernel, clean = KERNELS["hybrid"], 3
        bump = 2 * 0.2 / 0.8 * np.sqrt(t * (1 - t))
        slope = 0.5 * (1 - 2 * t) / (t * (1 - t)) * bump
        weight = {
            "mask": 1 / (t * (1 - t)),
            "other": (bump + (1 - t) * slope) / ((1 - t) * bump),
            "same": (bump + (1 - t) * slope) / clean / ((1 - t) * (1 - t + bump / clean)),
        }
        q_S, rate_S = kernel.matrix(t)[0], kernel.rate_into(t)
        assert rate_S[3] / q_S[3] == pytest.approx(weight["mask"])
        assert rate_S[1] / q_S[1] == pytest.approx(weight["other"])
        assert rate_S[0] / q_S[0] == pytest.approx(weight["same"])
        np.testing.assert_allclose(oracle.hybrid_kernel(3, 0.0).matrix(t), KERNELS["masked"].matrix(t))


@every_kernel
def test_the_reverse_distribution_approaches_the_data(kernel):
    clean_Z = (oracle.enumerate_sequences(kernel.noise(0.5).size, 2) < 3).all(axis=1)
    distances = []
    for steps in (4, 16, 64):
        law_Z = oracle.reverse_distribution(LAW, kernel, list(np.linspace(1 - 1e-9, 0, steps + 1)))
        assert law_Z.sum() == pytest.approx(1)
        distances.append(np.abs(law_Z[clean_Z] - LAW.probability_X).sum() / 2)
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 0.015


def test_quadrature_integrates_singular_ends():
    t_J, weight_J = oracle.quadrature(48)
    assert np.sum(weight_J) == pytest.approx(1, abs=1e-9)
    assert np.sum(weight_J * np.log(t_J)) == pytest.approx(-1, abs=1e-8)
    assert np.sum(weight_J / np.sqrt(t_J)) == pytest.approx(2, abs=1e-8)
    assert ((t_J > 0) & (t_J < 1)).all()


def test_joint_distributions():
    even = oracle.JointDistribution(np.full((2, 2, 2), 1 / 8))
    assert even.entropy == pytest.approx(3 * np.log(2))
    assert (even.tokens, even.length) == (2, 3)
    assert even.sequences_Xn[5].tolist() == [1, 0, 1]
    assert oracle.JointDistribution.random(3, 2, seed=0).entropy == LAW.entropy
    certain = oracle.JointDistribution(np.asarray([[1.0, 0.0], [0.0, 0.0]]))
    assert certain.entropy == 0
