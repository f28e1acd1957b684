"""Acceptance under uniform noise: the chain of `accept` by enumeration, and `accept_once` beside the masked sampler that it is."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion.processes.blocks import Blockwise
from dlmjax.diffusion.processes.masked import Masked
from dlmjax.diffusion.processes.uniform import Uniform
from dlmjax.errors import InputError
from dlmjax.models import Execution, build_network
from dlmjax.sampling.blocks import BlockSampler
from dlmjax.sampling.canvas import Canvas, blank_canvas
from dlmjax.sampling.methods import make_method
from dlmjax.sampling.sampler import Sampler
from dlmjax.sampling.settings import SampleSettings
from tests.models.tiny import lively, spec
from tests.sampling.toy import Bound, Law, chi_square_tail

LAW = Law(symbols=3, length=4, seed=1, sharpness=3.0)
PROCESS = Uniform(LAW.vocab, LAW.mask_id)


def exact(law: Law):
    """p(x_i | z of the others) under uniform noise of time t_j at each position j, t = 1 - alpha, by enumeration."""
    texts_NL, p_N = jnp.asarray(law.texts_NL), jnp.asarray(law.p_N)

    def denoise(z_BL, t_BL):
        q_BNL = jnp.where(z_BL[:, None] == texts_NL, 1 - t_BL[:, None], 0.0) + t_BL[:, None] / law.symbols
        log_q_BNL = jnp.log(jnp.maximum(q_BNL, 1e-30))
        others_BNL = jnp.sum(log_q_BNL, axis=2, keepdims=True) - log_q_BNL + jnp.log(p_N)[:, None]
        is_BLVN = (texts_NL.T[:, None] == jnp.arange(law.vocab)[:, None])[None]
        return jax.nn.logsumexp(jnp.where(is_BLVN, jnp.moveaxis(others_BNL, 1, 2)[:, :, None], -1e9), axis=-1)

    return lambda *_, **__: Bound(denoise)


def run(process, bind, canvas, **settings):
    how = SampleSettings(suppressed_ids=(LAW.mask_id,), **settings)
    return Sampler(process, bind, how).sample(jnp.float32(1), canvas, seed=2)


def test_accept_once_is_the_masked_sampler(gamma=0.5):
    """Levels of t = 0 and 1 for each position: with the exact denoiser of each noise the same tokens in the same steps as under masks."""
    tokens_BL = np.tile(np.array([[0, 1, 2, 1]], np.int32), (300, 1))
    condition_BL = np.zeros(tokens_BL.shape, bool)
    condition_BL[100:, 2] = True  # a prompt in the middle of most rows
    canvas = Canvas(tokens_BL, condition_BL, 1 - condition_BL.astype(np.float32))
    here = run(PROCESS, exact(LAW), canvas, method=f"accept_once(gamma={gamma})")
    there = run(Masked(LAW.vocab, LAW.mask_id), LAW.bind, canvas, rule=f"entropy_bound(gamma={gamma})")
    for field in ("tokens_BL", "fixed_BL", "calls_B"):
        np.testing.assert_array_equal(getattr(here, field), getattr(there, field))
    np.testing.assert_allclose(here.confidence_BL, there.confidence_BL, atol=1e-4)
    assert len(np.unique(here.calls_B)) > 1 and (here.fixed_BL[condition_BL] == 0).all()


def test_accept_has_the_law_of_its_chain():
    """Two positions of three tokens, two steps: noise, an accepted set with fresh noise beside it, then the most likely tokens."""
    law, gamma, high, low = Law(symbols=3, length=2, seed=4, sharpness=1.0), 0.3, 0.9, 0.5
    states_SL = np.array(list(itertools.product(range(3), repeat=2)), np.int32)
    denoise = exact(law)()

    def tempered(t):
        """p of each state of all positions at time t, to the power of 1 / temperature."""
        z_SL, t_SL = jnp.asarray(states_SL), jnp.full(states_SL.shape, t)
        process = Uniform(law.vocab, law.mask_id)
        log_p_SLV = process.output.log_posterior(denoise.hidden(z_SL, t_SL), z_SL, t_SL)[..., :3]
        p_SLK = np.asarray(jax.nn.softmax(log_p_SLV / (low + (high - low) * t)), np.float64)
        return p_SLK

    p_N, first_SLK, last_SLK = np.zeros(9), tempered(1.0), tempered(0.5)
    for p_LK in first_SLK:  # from each state of pure noise
        entropy_L = -np.sum(p_LK * np.log(p_LK), axis=1)
        first = int(entropy_L.argmin())
        accepted_L = np.array([True, True]) if entropy_L[first] <= gamma else np.arange(2) == first
        next_2K = np.where(accepted_L[:, None], p_LK, 1 / 3)
        for (a, b), q_LK in zip(states_SL, last_SLK, strict=True):
            text = q_LK.argmax(axis=1)
            p_N[3 * text[0] + text[1]] += next_2K[0, a] * next_2K[1, b] / 9
    how = SampleSettings(
        steps=2, grid="uniform", suppressed_ids=(law.mask_id,), method=f"accept(gamma={gamma}, high={high}, low={low}, stable=0)"
    )
    made = Sampler(Uniform(law.vocab, law.mask_id), exact(law), how).sample(jnp.float32(1), blank_canvas(2, 6000), seed=1)
    counts_N = np.bincount(made.tokens_BL @ [3, 1], minlength=9)
    assert p_N.sum() == pytest.approx(1, abs=1e-5) and (p_N > 0.02).sum() > 2 and chi_square_tail(counts_N, p_N) < 4
    assert chi_square_tail(counts_N, law.p_N) > 4, "it has no claim on the distribution of the text"


def test_a_row_that_is_stable_is_frozen_whatever_stands_beside_it():
    """Also what makes it stable: the most likely tokens of two steps are equal, and unsure rows take all steps."""
    sure = Law(symbols=3, length=4, seed=1, sharpness=60.0)
    how = {"steps": 12, "grid": "uniform", "method": "accept"}
    made = run(PROCESS, exact(sure), blank_canvas(4, 40), **how)
    two = run(PROCESS, exact(sure), blank_canvas(4, 2), **how)
    np.testing.assert_array_equal(made.tokens_BL[:2], two.tokens_BL)
    np.testing.assert_array_equal(made.calls_B[:2], two.calls_B)
    assert (made.tokens_BL == sure.texts_NL[sure.p_N.argmax()]).all() and 2 <= made.calls_B.max() < 12
    assert (made.fixed_BL.max(axis=1) <= made.calls_B).all()
    assert run(PROCESS, exact(LAW), blank_canvas(4, 40), **how).calls_B.max() == 12
    assert run(PROCESS, exact(sure), blank_canvas(4, 2), **{**how, "method": "accept(stable=0)"}).calls_B.tolist() == [12, 12]


@pytest.mark.parametrize("method", ["accept", "accept_once(gamma=1)"])
def test_blocks_take_both_and_buffers_change_no_token(method):
    net = build_network(spec(vocab=5, time_input="adaln"), Execution())
    params = lively(net.init(jax.random.key(4)), seed=5)
    settings = SampleSettings(steps=3, suppressed_ids=(4,), method=method)
    made = [
        BlockSampler(Blockwise(Uniform(5, 4), 4), net, settings, cached=cached).sample(params, blank_canvas(8, 3), seed=3)
        for cached in (True, False)
    ]
    np.testing.assert_array_equal(made[0].tokens_BL, made[1].tokens_BL)
    assert made[0].tokens_BL.max() < 4 and len(np.unique(made[0].tokens_BL)) > 1


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("accept(gamma=-1)", "gamma is -1"),
        ("accept(low=0)", "low"),
        ("accept(stable=-1)", "count is -1"),
        ("accept_once(gamma=-1)", "gamma is -1"),
        ("accept_onse", "did you mean 'accept_once'"),
    ],
)
def test_bad_values_are_one_line(method, message):
    with pytest.raises(InputError, match=message):
        make_method(method)


@pytest.mark.parametrize("method", ["accept", "accept_once"])
def test_masks_are_refused(method):
    with pytest.raises(InputError, match=f"method {method} requires uniform noise on tokens"):
        Sampler(LAW.process(), LAW.bind, SampleSettings(method=method))
