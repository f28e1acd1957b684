"""Every method of stepping, in law against its own chain written out in float64, and against the text's law as steps grow.

A row of METHODS below is a (process, method) pair and what it should draw from one level to the next. Shapes: Z noisy texts, n positions.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.processes.masked import Llada, Masked
from dlmjax.diffusion.schedules import Cosine, Linear
from dlmjax.errors import InputError
from dlmjax.sampling.canvas import Canvas, blank_canvas
from dlmjax.sampling.methods import METHODS, make_method
from dlmjax.sampling.remask import Remask
from dlmjax.sampling.sampler import Sampler, sample
from dlmjax.sampling.settings import SampleSettings
from dlmjax.sampling.steppers import Rdm
from tests.diffusion.battery import COSINE, LINEAR, chi_square_sigmas
from tests.diffusion.test_extension import Uniform
from tests.sampling.toy import Law

LAW = Law(symbols=3, length=3, seed=4)
TABLE = oracle.JointDistribution(LAW.p_N.reshape(3, 3, 3))
MASK = LAW.mask_id
ROWS = 6000
CURVES = {"linear": (Linear(), LINEAR), "cosine": (Cosine(), COSINE)}
STATES_Zn = oracle.enumerate_sequences(4, 3)
POSTERIOR_ZnK = np.exp(LAW._answers[..., :3].astype(np.float64))


def hide_and_show(hide, show):
    """The chain [Z, Z] that hides a shown token with one probability and shows a hidden one with another, position by position."""
    chain_ZZ = np.ones((64, 64))
    for i in range(3):
        masked_Z = STATES_Zn[:, i] == MASK
        to_ZS = np.where(masked_Z[:, None], np.c_[show * POSTERIOR_ZnK[:, i], np.full(64, 1 - show)], 0.0)
        shown = np.flatnonzero(~masked_Z)
        to_ZS[shown, STATES_Zn[shown, i]], to_ZS[shown, MASK] = 1 - hide, hide
        chain_ZZ *= to_ZS[:, STATES_Zn[:, i]]
    return chain_ZZ


def ancestral(curve, t, s):
    alpha, _ = curve
    return hide_and_show(0.0, (alpha(s) - alpha(t)) / (1 - alpha(t)))


def euler(curve, t, s):
    alpha, slope = curve
    return hide_and_show(0.0, 1.0 if s == 0 else min(1.0, -slope(t) / (1 - alpha(t)) * (t - s)))


def remasked(rule, eta):
    def chain(curve, t, s):
        alpha, _ = curve
        most = 1.0 if alpha(t) <= 0 else min(1.0, (1 - alpha(s)) / alpha(t))
        sigma = eta * most if rule == "rescale" else min(eta, most)
        return hide_and_show(sigma, (alpha(s) - (1 - sigma) * alpha(t)) / (1 - alpha(t)))

    return chain


PAIRS = [
    ("linear", "ancestral", ancestral),
    ("cosine", "ancestral", ancestral),
    ("cosine", "tau_leap", euler),
    ("linear", "predetermined", ancestral),
    ("cosine", "predetermined", ancestral),
    ("linear", "remask(rule=cap, eta=0.3)", remasked("cap", 0.3)),
    ("cosine", "remask(rule=rescale, eta=0.5)", remasked("rescale", 0.5)),
]
every_pair = pytest.mark.parametrize(("schedule", "method", "chain"), PAIRS, ids=[f"{m}/{s}" for s, m, _ in PAIRS])


def draw(method, schedule="linear", rows=ROWS, seed=1, **settings):
    process = Masked(LAW.vocab, MASK, CURVES[schedule][0])
    return Sampler(process, LAW.bind, SampleSettings(method=method, **settings)).sample(1.0, blank_canvas(3, rows), seed=seed)


def tally(tokens_BL, base=3):
    assert tokens_BL.max() < base, "a mask is left"
    return np.bincount(np.ravel_multi_index(tuple(tokens_BL.T), (base,) * 3), minlength=base**3)


@functools.cache
def law_of(schedule, chain, levels):
    now_Z = np.eye(64)[63]
    for t, s in itertools.pairwise(levels):
        now_Z = now_Z @ chain(CURVES[schedule][1], t, s)
    return now_Z


@every_pair
def test_few_steps_have_the_law_of_their_chain(schedule, method, chain):
    """Uneven steps, in which every method is wrong in its own way: the draws are wrong in just that way."""
    levels = (1.0, 0.6, 0.25, 0.0)
    truth_Z = law_of(schedule, chain, levels)
    assert truth_Z.sum() == pytest.approx(1) and truth_Z[(STATES_Zn == MASK).any(axis=1)].sum() < 1e-12
    truth_N = truth_Z[(STATES_Zn != MASK).all(axis=1)]
    counts_N = tally(draw(method, schedule, steps=3, grid=f"listed(points={levels})").tokens_BL)
    assert chi_square_sigmas(counts_N, truth_N) < 4
    assert chi_square_sigmas(counts_N, LAW.p_N) > 4, "the test has the power to tell this law from the text's"


@every_pair
def test_the_distance_to_the_texts_law_falls_to_nothing(schedule, method, chain):
    """By enumeration, with the chain that the test above has shown the method to draw."""
    del method
    distances = []
    for steps in (2, 8, 32, 128):
        law_Z = law_of(schedule, chain, tuple(np.linspace(1, 0, steps + 1)))
        distances.append(np.abs(law_Z[(STATES_Zn != MASK).all(axis=1)] - LAW.p_N).sum() / 2)
    assert all(b < 0.7 * a for a, b in itertools.pairwise(distances)) and distances[-1] < 0.03


def test_one_step_between_levels():
    """The states after one step of a remasking chain, masks and all."""
    sampler = Sampler(
        LAW.process(), LAW.bind, SampleSettings(steps=3, method="remask(rule=cap, eta=0.3)", grid="listed(points=(1, 0.6, 0.25, 0))")
    )
    states = list(sampler.states(1.0, blank_canvas(3, ROWS), seed=2))
    chain = remasked("cap", 0.3)
    for i, levels in ((1, (1.0, 0.6)), (2, (1.0, 0.6, 0.25))):
        assert chi_square_sigmas(tally(states[i].tokens_BL, 4), law_of("linear", chain, levels)) < 4
    back = states[2].masked_BL & ~states[1].masked_BL
    assert back.any() and (states[2].fixed_BL[back] == -1).all()


# --- each token at a time of its own ---------------------------------------------------------------------------------------------


def test_first_hitting_draws_the_law_itself_one_token_per_call():
    samples = draw("first_hitting", "cosine", steps=1)
    assert samples.evaluations == samples.steps == 3
    assert (np.sort(samples.fixed_BL, axis=1) == [1, 2, 3]).all()
    assert chi_square_sigmas(tally(samples.tokens_BL), LAW.p_N) < 4


def test_first_hitting_tells_the_times_at_which_tokens_appear():
    """The largest of n noise levels is the n-th root of a uniform number: P(first clock <= t) = noise(t)^n."""
    clocks = []

    def denoise(z_BL, t_BL):
        jax.debug.callback(lambda t: clocks.append(np.asarray(t)), t_BL, ordered=True)
        return LAW.denoise(z_BL)

    sample(Masked(4, 3, Cosine()), denoise, blank_canvas(3, 2000), method="first_hitting", seed=3)
    jax.effects_barrier()
    times_BN = np.stack(clocks)[:, :, 0].T
    assert times_BN.shape == (2000, 3) and (np.diff(times_BN, axis=1) <= 0).all()
    noise_BN = np.sort(np.asarray(Cosine().noise(times_BN)), axis=0)
    for column, power in ((0, lambda u: u**3), (2, lambda u: 1 - (1 - u) ** 3)):
        assert np.abs(power(noise_BN[:, column]) - (np.arange(2000) + 0.5) / 2000).max() < 1.63 / np.sqrt(2000)  # Kolmogorov, 1 %


def test_predetermined_times_spend_calls_only_where_a_token_changes():
    samples = draw("predetermined", steps=200, rows=50)
    assert samples.evaluations == samples.steps == max(len(set(row)) for row in samples.fixed_BL.tolist()) <= 3
    one = draw("predetermined", steps=1, rows=50)
    assert one.evaluations == 1
    many = draw("predetermined", steps=200)
    assert chi_square_sigmas(tally(many.tokens_BL), LAW.p_N) < 4


@pytest.mark.parametrize("method", ["predetermined", "first_hitting", "remask", "rdm"])
def test_edited_and_frozen_text(method):
    """Frozen tokens are untouched; edited text is hidden to its level and no more; nothing is left hidden."""
    rows = 3000
    canvas = Canvas(
        np.tile([2, 1, 0], (rows, 1)).astype(np.int32),
        np.tile([True, False, False], (rows, 1)),
        np.tile([0, 0.3, 1], (rows, 1)).astype(np.float32),
    )
    states = list(Sampler(LAW.process(), LAW.bind, SampleSettings(method=method, steps=20)).states(1.0, canvas, seed=4))
    assert all((state.tokens_BL[:, 0] == 2).all() for state in states)
    assert not states[-1].masked_BL.any() and (states[-1].tokens_BL < 3).all()
    assert abs(states[0].masked_BL[:, 1].mean() - 0.3) < 0.03 and states[0].masked_BL[:, 2].all()
    if method != "remask":
        kept = ~states[0].masked_BL[:, 1]
        assert (states[-1].tokens_BL[kept, 1] == 1).all()


# --- remasking ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=["linear", "cosine"])
@pytest.mark.parametrize("method", [Remask("cap", 0.2), Remask("cap", 1.0), Remask("rescale", 0.7), Remask("loop", 0.4)], ids=str)
def test_remasking_preserves_the_marginals(method, schedule):
    """Shown before and kept, or hidden before and shown now: together alpha_s, to rounding; and both are probabilities."""
    levels = np.linspace(1, 0, 21)
    t, s = (a.ravel()[None] for a in np.meshgrid(levels, levels))
    t, s = (jnp.asarray(a[:, (s <= t)[0] & (t > 0)[0]], jnp.float32) for a in (t, s))
    hide, show = method.rates(Masked(4, 3, schedule), t, s)
    assert ((hide >= 0) & (hide <= 1) & (show >= 0) & (show <= 1 + 1e-6)).all()
    after = schedule.alpha(t) * (1 - hide) + schedule.noise(t) * show
    np.testing.assert_allclose(after, schedule.alpha(s), atol=1e-6)
    assert (hide > 0).any() and (np.asarray(hide)[np.asarray(s) == 0] == 0).all()


def test_the_loop_renews_text_at_one_level():
    """Between the two falls of the clock tokens are hidden and shown, as many as before; outside of it none is hidden."""
    settings = SampleSettings(steps=60, method="remask(rule=loop, eta=0.5)", grid="hold(at=0.3, share=0.5)")
    states = list(Sampler(LAW.process(), LAW.bind, settings).states(1.0, blank_canvas(3, 2000), seed=5))
    times = np.array([s.time for s in states])
    held = np.flatnonzero(times[:-1] == times[1:]) + 1
    assert len(held) == 30
    hidden_SB = np.stack([s.masked_BL for s in states])
    back_S = (hidden_SB[1:] & ~hidden_SB[:-1]).any(axis=(1, 2))
    assert back_S[held - 1].all() and back_S.sum() == 30
    assert np.abs(hidden_SB[held].mean(axis=(1, 2)) - 0.3).max() < 0.03


# --- routing and self-correction ----------------------------------------------------------------------------------------------


def test_random_routing_one_token_at_a_time_draws_the_law_and_topk_sharpens_it():
    samples = draw("rdm(route=random)", steps=3)
    assert (np.sort(samples.fixed_BL, axis=1) == [1, 2, 3]).all()
    assert chi_square_sigmas(tally(samples.tokens_BL), LAW.p_N) < 4
    sharp = draw("rdm", steps=3)
    assert chi_square_sigmas(tally(sharp.tokens_BL), LAW.p_N) > 20
    mean = [tally(s.tokens_BL) @ np.log(LAW.p_N) / ROWS for s in (sharp, samples)]
    assert mean[0] > mean[1] + 0.1


@pytest.mark.parametrize("process", [LAW.process(), Uniform(LAW.vocab, LAW.symbols)], ids=["masked", "uniform"])
def test_routing_keeps_the_text_where_the_clock_stands_still(process):
    """No position falls: all stays. In a step of others, a position whose level stays keeps its token."""
    z_BL, t_BL = jnp.asarray([[0, 1, 2], [2, 1, 0]]), jnp.full((2, 3), 0.3)
    keys_B = jax.random.split(jax.random.key(0), 2)

    def denoise(z_BL, t_BL):
        return jnp.zeros((*z_BL.shape, process.vocab))

    assert (Rdm().step(process, keys_B, denoise, z_BL, t_BL, t_BL) == z_BL).all()
    s_BL = t_BL.at[:, 1:].set(0.0)
    assert (Rdm().step(process, keys_B, denoise, z_BL, t_BL, s_BL)[:, 0] == z_BL[:, 0]).all()


UNIFORM = Uniform(LAW.vocab, LAW.symbols)


def uniform_denoiser(z_BL, t_BL):
    """log p(x_i | z) of the law under uniform noise, exact for any levels."""
    likelihood_BLK = UNIFORM.marginal(jax.nn.one_hot(z_BL, 3), t_BL)
    log_q_BLK = jnp.log(jnp.maximum(likelihood_BLK, 1e-30))
    onehot_NLK = np.eye(3)[LAW.texts_NL]
    log_joint_BN = np.log(LAW.p_N) + jnp.einsum("blk,nlk->bn", log_q_BLK, onehot_NLK)
    p_BLK = jnp.einsum("bn,nlk->blk", jax.nn.softmax(log_joint_BN), onehot_NLK)
    return jnp.pad(jnp.log(jnp.maximum(p_BLK, 1e-30)), ((0, 0), (0, 0), (0, 1)), constant_values=-1e9)


def test_uniform_noise_given_frozen_text_draws_the_conditional_law():
    """The network is told that the frozen token is clean; were it told the clock, it would doubt it and the law would be another."""
    tokens = np.tile([0, 2, 0], (ROWS, 1)).astype(np.int32)
    frozen = np.tile([False, True, False], (ROWS, 1))
    samples = sample(UNIFORM, uniform_denoiser, Canvas(tokens, frozen, (~frozen).astype(np.float32)), steps=60, seed=6)
    assert (samples.tokens_BL[:, 1] == 2).all()
    p_N = np.where(LAW.texts_NL[:, 1] == 2, LAW.p_N, 0)
    assert chi_square_sigmas(tally(samples.tokens_BL), p_N / p_N.sum()) < 4


def test_self_correction_mends_what_few_steps_have_spoilt():
    plain = sample(UNIFORM, uniform_denoiser, blank_canvas(3, 2000), steps=2, seed=7)
    mended = sample(UNIFORM, uniform_denoiser, blank_canvas(3, 2000), steps=2, seed=7, method="self_correct(rounds=6, level=0.3)")
    assert (plain.evaluations, mended.evaluations, mended.steps) == (2, 8, 2)
    before, after = (tally(s.tokens_BL) @ np.log(LAW.p_N) / 2000 for s in (plain, mended))
    assert after > before + 0.3
    changed = (plain.tokens_BL != mended.tokens_BL).any(axis=1)
    assert 0.1 < changed.mean() < 1


def test_self_correction_leaves_frozen_text_alone():
    canvas = Canvas(
        np.tile([0, 2, 0], (200, 1)).astype(np.int32),
        np.tile([False, True, False], (200, 1)),
        np.tile([1, 0, 1], (200, 1)).astype(np.float32),
    )
    samples = sample(UNIFORM, uniform_denoiser, canvas, steps=2, seed=8, method="self_correct(rounds=3, level=0.9)")
    assert (samples.tokens_BL[:, 1] == 2).all()


def test_routing_under_uniform_noise():
    samples = sample(UNIFORM, uniform_denoiser, blank_canvas(3, 2000), steps=12, seed=9, method="rdm")
    assert tally(samples.tokens_BL) @ np.log(LAW.p_N) / 2000 > LAW.p_N @ np.log(LAW.p_N)


# --- levels that sweep over the row --------------------------------------------------------------------------------------------


def test_a_window_of_one_position_is_the_chain_rule():
    """As many steps as positions: each is made in the step that passes over it, given those to its left, and the law is exact."""
    samples = draw("ancestral", steps=3, sweep=1)
    assert (samples.fixed_BL == [1, 2, 3]).all() and samples.evaluations == 3
    assert chi_square_sigmas(tally(samples.tokens_BL), LAW.p_N) < 4


def test_a_sweep_steps_through_the_levels_of_its_hyperschedule():
    """Three steps of a window of two over three positions; frozen text stays at level 0, edited text waits for its level."""
    seen = []

    def denoise(z_BL, t_BL):
        jax.debug.callback(lambda t: seen.append(np.asarray(t)[:2]), t_BL, ordered=True)
        return LAW.denoise(z_BL)

    frozen = np.array([[False] * 3, [True, False, False]])
    start = np.array([[1, 1, 1], [0, 0.5, 1]], np.float32)
    sample(LAW.process(), denoise, Canvas(np.zeros((2, 3), np.int32), frozen, start), steps=4, sweep=2, method="remask")
    jax.effects_barrier()
    np.testing.assert_allclose([t[0] for t in seen], [[1, 1, 1], [0.5, 1, 1], [0, 0.5, 1], [0, 0, 0.5]], atol=1e-6)
    np.testing.assert_allclose([t[1] for t in seen], [[0, 0.5, 1], [0, 0.5, 1], [0, 0.5, 1], [0, 0, 0.5]], atol=1e-6)
    many = draw("ancestral", steps=120, sweep=2)
    assert chi_square_sigmas(tally(many.tokens_BL), LAW.p_N) < 4


# --- settings ------------------------------------------------------------------------------------------------------------------


def test_every_method_is_recorded_with_its_values():
    for name in METHODS:
        assert SampleSettings.from_json(SampleSettings(method=name).to_json()).method == name == make_method(name).name
    assert make_method("remask(rule=cap, eta=1)") == Remask("cap", 1.0)


@pytest.mark.parametrize(
    ("process", "settings", "message"),
    [
        (UNIFORM, {"method": "first_hitting"}, "first_hitting requires absorbing noise"),
        (UNIFORM, {"method": "remask"}, "remask requires absorbing noise"),
        (UNIFORM, {"cache": True}, "leave cache off"),
        (Llada(4, 3), {"method": "predetermined"}, "text alone at t = 0"),
        (Masked(4, 3), {"method": "self_correct"}, "requires noise that replaces tokens"),
        (Masked(4, 3), {"method": "hitting"}, "unknown method 'hitting'; did you mean 'first_hitting'"),
        (Masked(4, 3), {"method": "remask(eta=2)"}, "eta is 2"),
        (Masked(4, 3), {"method": "remask(rule=none)"}, "rule is 'none'"),
        (Masked(4, 3), {"method": "rdm(route=best)"}, "route is 'best'"),
        (Masked(4, 3), {"method": "self_correct(rounds=0)"}, "rounds"),
        (Masked(4, 3), {"method": "tau_leap", "rule": "random"}, "require steps in time"),
        (Masked(4, 3), {"guidance": -1.0}, "guidance is -1"),
        (Masked(4, 3), {"sweep": 0}, "sweep is 0"),
        (Masked(4, 3), {"sweep": 2, "method": "first_hitting"}, "a method that follows the grid"),
        (Masked(4, 3), {"sweep": 2, "rule": "random"}, "require steps in time"),
    ],
)
def test_what_does_not_go_together_is_refused(process, settings, message):
    with pytest.raises(InputError, match=message):
        Sampler(process, LAW.bind, SampleSettings(**settings))
