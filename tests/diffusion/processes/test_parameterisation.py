"""Posterior, leave-one-out and score: the same knowledge, and the way from each to the others, against the oracle's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import Cosine, FlowMatching, Hybrid, Mixed, ScoreEntropy, Uniform, symmetric
from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.process import EXCLUDED
from dlmjax.diffusion.processes.parameterisation import PARAMETERISATIONS, LeaveOneOut, Posterior, Score
from dlmjax.errors import InputError
from tests.diffusion.battery import BOS, MASK, TOKENS, VOCAB, to_ids
from tests.diffusion.cases_jump import CASES, IDS

LAW = oracle.JointDistribution.random(TOKENS, 2, seed=7)
BY_NAME = {str(case): case for case in CASES}
NAMES = ("uniform/linear", "uniform/clipped, posterior", "hybrid/0.2", "mixed/sigmoid", "flow_matching/uniform")
MIXING = [BY_NAME[name] for name in NAMES]


def _exact(case, t):
    """(z ids, leave-one-out, posterior), at every position of every noisy pair that can occur."""
    loo_ZnK, posterior_ZnK = oracle.leave_one_out(LAW, case.kernel, t), oracle.posterior(LAW, case.kernel, t)
    z_Zn = oracle.enumerate_sequences(case.states, 2)
    return to_ids(z_Zn.reshape(-1)), loo_ZnK.reshape(-1, TOKENS), posterior_ZnK.reshape(-1, TOKENS)


def _logits(p_NK):
    """Log-probabilities, up to a constant, among classes that say anything."""
    log_p = np.full((len(p_NK), VOCAB), 5.0)
    log_p[:, :TOKENS] = np.log(p_NK) + 1.3
    return jnp.asarray(log_p)


@pytest.mark.parametrize("case", MIXING, ids=str)
@pytest.mark.parametrize("t", [1e-6, 0.3, 0.999])
def test_the_bridge_is_the_oracles(case, t):
    """From either probability to the other and to the scores, and back from the scores."""
    with jax.enable_x64(True):
        z_N, loo_NK, posterior_NK = _exact(case, t)
        z, times = jnp.asarray(z_N), jnp.full(len(z_N), t)
        for kind, said in ((LeaveOneOut(case.process), loo_NK), (Posterior(case.process), posterior_NK)):
            loo = kind.log_loo(_logits(said), z, times)
            posterior = kind.log_posterior(_logits(said), z, times)
            np.testing.assert_allclose(np.exp(loo[:, :TOKENS]), loo_NK, rtol=1e-7)
            np.testing.assert_allclose(np.exp(posterior[:, :TOKENS]), posterior_NK, rtol=1e-7)
            assert (loo[:, TOKENS:] == EXCLUDED).all() and (posterior[:, TOKENS:] == EXCLUDED).all()
            score = kind.log_score(_logits(said), z, times)
            model_NS = loo_NK @ case.kernel.matrix(t)
            for state in range(case.states):
                own_N = model_NS[np.arange(len(z_N)), np.where(z_N == MASK, TOKENS, z_N)]
                np.testing.assert_allclose(np.exp(score[:, int(to_ids(np.asarray(state)))]), model_NS[:, state] / own_N, rtol=1e-7)
            assert (score[:, BOS] == EXCLUDED).all()
            # A score network may say anything about its own entry.
            own = jnp.arange(VOCAB) == z[:, None]
            back = Score(case.process).log_loo(jnp.where(own, 9.0, score), z, times)
            # Near t = 0 scores hold the guess only as a small difference from uniform noise, and the other way at t = 1.
            np.testing.assert_allclose(np.exp(back[:, :TOKENS]), loo_NK, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("case", [case for case in CASES if str(case) != "hybrid/0"], ids=str)
def test_the_likelihood_is_the_kernels(case):
    """log q_t(z | x = k), which the exact denoisers of the battery rely on, for every state that a token can show as."""
    with jax.enable_x64(True):
        for t in (1e-4, 0.4, 0.97):
            states_S = np.arange(case.states)
            log_q = case.process.log_likelihood(jnp.asarray(to_ids(states_S)), jnp.full(case.states, t))[:, :TOKENS]
            np.testing.assert_allclose(np.exp(log_q).T, case.kernel.matrix(t), rtol=1e-9, atol=1e-11)


def test_scores_of_no_distribution_still_give_an_x0_prediction():
    """Ratios that no mixture with noise can have: the guess is a law with finite logs and gradients."""
    process = Uniform(schedule=Cosine(), **IDS)
    output, z, t = 30 * jax.random.normal(jax.random.key(0), (64, VOCAB)), jnp.arange(64) % TOKENS, jnp.linspace(0, 1, 64)

    def total(output):
        log_loo = Score(process).log_loo(output, z, t)[:, :TOKENS]
        return jnp.sum(log_loo), log_loo

    gradient, log_loo = jax.grad(total, has_aux=True)(output)
    assert np.isfinite(np.asarray(log_loo)).all() and np.isfinite(np.asarray(gradient)).all()
    np.testing.assert_allclose(np.exp(log_loo).sum(axis=1), 1, rtol=1e-5)


def test_names():
    assert set(PARAMETERISATIONS) == {"posterior", "leave_one_out", "score"}
    assert isinstance(Uniform(8, parameterisation="posterior").output, Posterior)
    assert ScoreEntropy(8, 7).parameterisation == "score" and FlowMatching(8, 7).parameterisation == "posterior"
    with pytest.raises(InputError, match="choose one of leave_one_out, posterior, score"):
        Uniform(8, parameterisation="x0")
    for make in (Uniform, Hybrid, Mixed):
        with pytest.raises(InputError, match="trained by process 'score'"):
            make(8, 7, parameterisation="score")
    with pytest.raises(InputError, match="noise requires two tokens"):
        Uniform(3, 2, symmetric(Cosine(), 0.1), (1,))
