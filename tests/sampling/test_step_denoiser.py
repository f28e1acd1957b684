"""StepDenoiser of the network: guidance, the answer that is kept, hints, and what precision must not take away."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion.processes.masked import Masked
from dlmjax.diffusion.schedules import Cosine
from dlmjax.errors import InputError
from dlmjax.sampling.canvas import Canvas, blank_canvas
from dlmjax.sampling.sampler import Sampler, sample
from dlmjax.sampling.settings import SampleSettings
from dlmjax.sampling.step_denoiser import FunctionDenoiser
from tests.diffusion.battery import chi_square_sigmas
from tests.sampling.toy import Law

LAW = Law(symbols=3, length=2, seed=6)


def prompted(first, rows):
    tokens = np.tile([first, LAW.mask_id], (rows, 1)).astype(np.int32)
    frozen = np.tile([True, False], (rows, 1))
    return Canvas(tokens, frozen, (~frozen).astype(np.float32))


# --- guidance ------------------------------------------------------------------------------------------------------------------


def test_guidance_has_the_law_of_its_formula():
    """One hole: p(x | prompt)^(1 + w) / p(x)^w, normalised. tests/sampling/test_laws.py has all processes."""
    w = 3.0
    samples = Sampler(LAW.process(), LAW.bind, SampleSettings(steps=4, guidance=w)).sample(1.0, prompted(1, 5000), seed=1)
    assert (samples.tokens_BL[:, 0] == 1).all() and samples.evaluations == 8
    joint_KK = LAW.p_N.reshape(3, 3)
    guided_K = (joint_KK[1] / joint_KK[1].sum()) ** (1 + w) / joint_KK.sum(axis=0) ** w
    counts_K = np.bincount(samples.tokens_BL[:, 1], minlength=3)
    assert chi_square_sigmas(counts_K, guided_K / guided_K.sum()) < 4
    assert chi_square_sigmas(counts_K, joint_KK[1] / joint_KK[1].sum()) > 4


@pytest.mark.parametrize("order", ["ancestral", "confidence"])
def test_guidance_of_nothing_is_plain_sampling(order):
    """Weight 0 is off; without a prompt given and not given are the same text, whatever the weight."""
    canvas = prompted(1, 40)
    plain, off = (
        Sampler(LAW.process(), LAW.bind, SampleSettings(steps=3, rule=order, **g)).sample(1.0, canvas) for g in ({}, {"guidance": 0.0})
    )
    assert (plain.tokens_BL == off.tokens_BL).all() and plain.evaluations == off.evaluations
    blank = blank_canvas(2, 40)
    free, guided = (
        Sampler(LAW.process(), LAW.bind, SampleSettings(steps=3, rule=order, guidance=w)).sample(1.0, blank) for w in (0.0, 2.0)
    )
    assert (free.tokens_BL == guided.tokens_BL).all() and guided.evaluations == 2 * free.evaluations


# --- the answer that is kept ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ancestral", "remask(eta=0.05)"])
def test_kept_answers_change_no_bit_and_are_counted(method):
    """As many calls as there were steps after a change, which the states show."""
    made = {}
    for cache in (False, True):
        settings = SampleSettings(steps=40, method=method, cache=cache)
        made[cache] = list(Sampler(LAW.process(Cosine()), LAW.bind, settings).states(1.0, blank_canvas(2, 2), seed=3))
    for plain, cached in zip(made[False], made[True], strict=True):
        assert (plain.tokens_BL == cached.tokens_BL).all() and (plain.masked_BL == cached.masked_BL).all()
        assert (plain.confidence_BL == cached.confidence_BL).all() and (plain.fixed_BL == cached.fixed_BL).all()
    tokens = [s.tokens_BL for s in made[True]]
    changes = sum(int((a != b).any()) for a, b in zip(tokens[:-2], tokens[1:-1], strict=True))
    assert made[True][-1].calls == 1 + changes < 12 and made[False][-1].calls == 40


def test_the_network_is_really_left_out():
    calls = []

    def denoise(z_BL, t_BL):
        jax.debug.callback(lambda: calls.append(1), ordered=True)
        return LAW.denoise(z_BL)

    samples = sample(LAW.process(), denoise, blank_canvas(2, 1), steps=50, cache=True, seed=4)
    jax.effects_barrier()
    assert len(calls) == samples.evaluations <= 3


# --- hints ---------------------------------------------------------------------------------------------------------------------


def test_a_network_that_takes_hints_is_given_its_last_estimate():
    """Self-conditioning: zeros at the first call, then the estimate of the call before."""
    heard = []

    class Denoiser:
        reads_hidden = False

        def hidden(self, z_BL, t_BL, hint_BLI=None):
            if hint_BLI is None:  # asked only for the shape of its answer
                return LAW.denoise(z_BL)
            jax.debug.callback(lambda h: heard.append(np.asarray(h)), hint_BLI, ordered=True)
            return LAW.denoise(z_BL) + 0 * hint_BLI[..., :1]

        def logits(self, hidden_BLV):
            return hidden_BLV

        def expect(self, hidden_BLV, table_VI=None):
            return jax.nn.softmax(hidden_BLV)

    sampler = Sampler(LAW.process(), lambda *_, **__: Denoiser(), SampleSettings(steps=3), self_condition=True)
    states = list(sampler.states((), blank_canvas(2, 5), seed=5))
    jax.effects_barrier()
    assert len(heard) == 3 and (heard[0] == 0).all()
    for hint, state in zip(heard[1:], states, strict=False):
        np.testing.assert_allclose(hint, jax.nn.softmax(LAW.denoise(state.tokens_BL)), atol=1e-6)
    with pytest.raises(InputError, match="leave cache off"):
        Sampler(LAW.process(), LAW.bind, SampleSettings(cache=True), self_condition=True)


# --- precision -----------------------------------------------------------------------------------------------------------------


@pytest.mark.nightly
def test_a_real_vocabulary_loses_no_entropy_to_precision():
    """50,257 tokens, one of them with 499 in 500 of the probability: each of the others has 4e-8, a tail that plain float32 Gumbel noise,
    which ends at 15.94, draws five times too rarely. One step; the rate of the others is that of the law, and no two are the same."""
    vocab, rare = 50_257, 2e-3
    logits_V = jnp.full(vocab + 1, np.log(rare / (vocab - 1)), jnp.float32).at[7].set(np.log(1 - rare)).at[vocab].set(-1e30)
    sampler = Sampler(
        Masked(vocab + 1, vocab),
        lambda *_, **__: FunctionDenoiser(lambda z, t: jnp.broadcast_to(logits_V, (*z.shape, vocab + 1))),
        SampleSettings(steps=1),
    )
    tokens_N = np.concatenate([sampler.sample((), blank_canvas(50, 8), seed=seed).tokens_BL.ravel() for seed in range(12)])
    seen_N = tokens_N[tokens_N != 7]
    expected = rare * len(tokens_N)
    assert tokens_N.max() < vocab and len(np.unique(seen_N)) == len(seen_N)
    assert abs(len(seen_N) - expected) < 2 * np.sqrt(expected), (len(seen_N), expected)


@functools.cache
def wide(vocab=5_000, share=0.5):
    """A law with half of its probability spread evenly over all tokens but ten: 1e-4 each, or 1e-5 at 50,257."""
    p_V = np.full(vocab + 1, share / (vocab - 10))
    p_V[:10], p_V[-1] = (1 - share) / 10, 1e-30
    return np.log(p_V)


LARGE = [(method, 5_000, 4) for method in ("ancestral", "tau_leap", "remask", "first_hitting", "rdm(route=random)")]


@pytest.mark.parametrize(("method", "vocab", "steps"), [*LARGE, ("ancestral", 50_257, 1)])
def test_bfloat16_logits_and_a_large_vocabulary_keep_the_rare_tokens(method, vocab, steps):
    """The rate of rare tokens is that of the law, they are drawn evenly, and no mask is left."""
    logits_V = jnp.asarray(wide(vocab), jnp.bfloat16)
    exact_V = np.asarray(logits_V, np.float64)
    p_V = np.exp(exact_V[:-1] - exact_V[:-1].max())
    rare = p_V[10:].sum() / p_V.sum()
    samples = sample(
        Masked(vocab + 1, vocab),
        lambda z, t: jnp.broadcast_to(logits_V, (*z.shape, vocab + 1)),
        blank_canvas(6, 40),
        steps=steps,
        method=method,
        seed=6,
    )
    assert samples.tokens_BL.max() < vocab
    seen = (samples.tokens_BL >= 10).mean()
    assert abs(seen - rare) < 4 * np.sqrt(rare * (1 - rare) / 240)
    rare_tokens = samples.tokens_BL[samples.tokens_BL >= 10]
    assert len(np.unique(rare_tokens)) > 0.9 * len(rare_tokens)
