"""Correctors: what leaves a distribution as it is and what does not, by enumeration; GIDD's rule by definition, and its stop."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.process import draw_tokens, row_keys
from dlmjax.diffusion.processes.masked import Masked
from dlmjax.errors import InputError
from dlmjax.sampling.canvas import Canvas, blank_canvas
from dlmjax.sampling.correctors import Gibbs
from dlmjax.sampling.methods import make_method
from dlmjax.sampling.steppers import SelfCorrect
from tests.diffusion.battery import chi_square_sigmas
from tests.sampling.revised import LAW, LENGTH, NOISES, distance
from tests.sampling.test_psi import chain

ROWS = 20_000
by_noise = pytest.mark.parametrize("name", ["masked", "hybrid", pytest.param("uniform", marks=pytest.mark.slow)])


def finished(tokens_BL) -> Canvas:
    """A canvas of text with next to no noise, every position of which may be corrected."""
    tokens_BL = np.asarray(tokens_BL, np.int32)
    return Canvas(tokens_BL, np.zeros(tokens_BL.shape, bool), np.full(tokens_BL.shape, 1e-9, np.float32))


def drawn(p_Z, states_Zn, rows=ROWS, seed=0):
    return states_Zn[np.random.default_rng(seed).choice(len(p_Z), rows, p=p_Z / p_Z.sum())].astype(np.int32)


@by_noise
def test_redraws_keep_the_law_of_finished_text_one_position_at_a_time(name):
    """Text of the law stays text of the law; two positions in one call are drawn without seeing each other, and it does not."""
    noise, canvas = NOISES[name], finished(drawn(LAW.probability_X, LAW.sequences_Xn))
    tallies = {}
    for count in (1, 2):
        samples = noise.sampler(steps=1, method=f"gibbs(rounds=3, count={count})").sample(1.0, canvas, seed=2)
        assert samples.evaluations == 4 and (samples.tokens_BL != canvas.tokens_BL).any()
        tallies[count] = noise.tally_Z(samples.tokens_BL)[noise.full_N]
    assert chi_square_sigmas(tallies[1], LAW.probability_X) < 4
    assert chi_square_sigmas(tallies[2], LAW.probability_X) > 10


def redraw_ZZ(noise, s, renoised=True):
    """One redraw at level s as a chain over all states."""
    q_KS = noise.kernel.matrix(s if renoised else 0.0)
    anew_ZnS = oracle.leave_one_out(LAW, noise.kernel, s) @ q_KS
    stay_ZnS = np.eye(q_KS.shape[1])[noise.states_Zn]
    one = [noise.product_ZZ(np.where((np.arange(LENGTH) == i)[None, :, None], anew_ZnS, stay_ZnS)) for i in range(LENGTH)]
    return sum(one) / LENGTH


@by_noise
def test_a_redraw_at_a_level_keeps_its_law_only_with_the_noise_of_the_level(name):
    noise, s = NOISES[name], 0.5
    q_Z = noise.marginal_Z(s)
    assert distance(q_Z @ redraw_ZZ(noise, s), q_Z) < 1e-9, "by enumeration"
    assert distance(q_Z @ redraw_ZZ(noise, s, renoised=False), q_Z) > 0.03
    z_BL, keys_B = jnp.asarray(drawn(q_Z, noise.states_Zn)), row_keys(jax.random.key(3), jnp.arange(ROWS))
    level_BL, all_BL = jnp.full(z_BL.shape, s), jnp.ones(z_BL.shape, bool)

    def denoise(z_BL, t_BL):
        denoiser = noise.bind(None, None, None)
        return denoiser.logits(denoiser.hidden(z_BL, t_BL))

    # Without masks alone a position need not be hidden: the output tells p(x_i | others) from its own noise.
    for gibbs in (Gibbs(), Gibbs(level=0.01))[: 1 if name == "masked" else 2]:
        redrawn_BL = jax.jit(lambda z_BL, g=gibbs: g.redrawn(noise.process, keys_B, denoise, z_BL, level_BL, all_BL))(z_BL)
        assert (redrawn_BL != z_BL).sum(axis=1).max() == 1
        counts_Z = noise.tally_Z(redrawn_BL)
        assert chi_square_sigmas(counts_Z, q_Z) < 4
    assert chi_square_sigmas(counts_Z, 0.99 * q_Z @ redraw_ZZ(noise, s, renoised=False) + 0.01 * q_Z) > 10


@by_noise
def test_redraws_between_steps_have_the_law_of_their_chain_which_is_nearer_to_the_text(name):
    noise, levels = NOISES[name], (1.0, 0.6, 0.25, 0.0)
    now_Z = noise.marginal_Z(1.0)
    for t, s in itertools.pairwise(levels):
        now_Z = now_Z @ noise.product_ZZ(noise.ancestral_ZnS(t, s))
        now_Z = now_Z @ redraw_ZZ(noise, s) @ redraw_ZZ(noise, s) if s else now_Z
    sampler = noise.sampler(steps=3, method="gibbs(rounds=0, between=2)", grid=f"listed(points={levels})")
    samples = sampler.sample(1.0, blank_canvas(LENGTH, ROWS), seed=1)
    if name == "masked":
        # At s = 0 a redraw is one of finished text, which masked states write as the step to 0 does.
        full_ZZ = np.eye(len(now_Z))
        full_ZZ[np.ix_(noise.full_N, noise.full_N)] = redraw_of_text()
        now_Z = now_Z @ full_ZZ @ full_ZZ
    else:
        text_X = now_Z[noise.full_N] @ redraw_of_text() @ redraw_of_text()
        now_Z = np.zeros_like(now_Z)
        now_Z[noise.full_N] = text_X
    assert chi_square_sigmas(noise.tally_Z(samples.tokens_BL), now_Z) < 4
    assert samples.evaluations == 9
    plain = distance(chain(noise, 1.0, levels)[noise.full_N], LAW.probability_X)
    assert distance(now_Z[noise.full_N], LAW.probability_X) < 0.7 * plain


@functools.cache
def redraw_of_text():
    """One redraw of a random position of text given the others: [X, X]"""
    texts_Xn, p_X = LAW.sequences_Xn, LAW.probability_X
    chain_XX = np.zeros((len(p_X),) * 2)
    for i in range(LENGTH):
        same_XX = (np.delete(texts_Xn, i, 1)[:, None] == np.delete(texts_Xn, i, 1)[None]).all(axis=2)
        chain_XX += same_XX * p_X / (same_XX @ p_X)[:, None] / LENGTH
    return chain_XX


def test_adaptive_correction_has_the_law_of_its_chain():
    noise, levels, eta = NOISES["hybrid"], (1.0, 0.6, 0.25, 0.0), 0.4
    now_Z = noise.marginal_Z(1.0)
    masked_Zn = noise.states_Zn == LAW.tokens
    for t, s in itertools.pairwise(levels):
        rate_Zn1 = np.where(masked_Zn, 1 - s / t, eta * s / t)[..., None]
        anew_ZnS = np.pad(oracle.leave_one_out(LAW, noise.kernel, t), ((0, 0), (0, 0), (0, 1)))
        to_ZnS = rate_Zn1 * anew_ZnS + (1 - rate_Zn1) * np.eye(LAW.tokens + 1)[noise.states_Zn]
        now_Z = now_Z @ noise.product_ZZ(to_ZnS if s else noise.ancestral_ZnS(t, s))
    samples = noise.sampler(steps=3, method=f"acs(eta={eta})", grid=f"listed(points={levels})").sample(
        1.0, blank_canvas(LENGTH, ROWS), seed=4
    )
    assert chi_square_sigmas(noise.tally_Z(samples.tokens_BL), now_Z) < 4


# --- GIDD's rule and stop ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["gain", "probability"])
def test_self_correction_swaps_what_its_rule_says(by):
    """Which of the drawn tokens replace the present ones, in numpy, from the same draws."""
    draw, temperature, keys_B = np.random.default_rng(5), 0.5, row_keys(jax.random.key(0), jnp.arange(50))
    p_BLK = draw.dirichlet(np.full(3, 0.6), (50, 8)) * 0.97 + 0.01
    z_BL, editable_BL = draw.integers(0, 3, (50, 8)).astype(np.int32), draw.random((50, 8)) < 0.8
    process, level_BL = NOISES["uniform"].process, jnp.where(editable_BL, 0.01, 0.0)
    logits_BLK = jnp.log(jnp.asarray(p_BLK, jnp.float32)) + process.log_likelihood(jnp.asarray(z_BL), level_BL)
    stepper = SelfCorrect(count=2, temperature=temperature, by=by)
    found_BL = stepper.corrector_step(process, keys_B, lambda *_: logits_BLK, jnp.asarray(z_BL), jnp.asarray(editable_BL))
    y_BL = np.asarray(draw_tokens(keys_B, jnp.log(jnp.asarray(p_BLK, jnp.float32)) / temperature))
    sharp_BLK = p_BLK ** (1 / temperature) / np.sum(p_BLK ** (1 / temperature), axis=2, keepdims=True)
    at = functools.partial(np.take_along_axis, axis=2)
    own_BL, new_BL, sharp_BL = (
        at(*pair)[..., 0] for pair in ((p_BLK, z_BL[..., None]), (p_BLK, y_BL[..., None]), (sharp_BLK, y_BL[..., None]))
    )
    may_BL = editable_BL & (new_BL > own_BL if by == "gain" else y_BL != z_BL)
    for row, score_L in enumerate(new_BL / own_BL if by == "gain" else sharp_BL):
        best = sorted(np.flatnonzero(may_BL[row]), key=lambda i: -score_L[i])[:2]
        assert np.flatnonzero(np.asarray(found_BL)[row] != z_BL[row]).tolist() == sorted(best)
        assert (np.asarray(found_BL)[row, best] == y_BL[row, best]).all()
    assert (may_BL.sum(axis=1) > 2).sum() > 10


def test_self_correction_ends_where_nothing_changes_or_agreement_has_not_risen():
    """Each row by itself: its text and calls are those of the row alone; the run ends with its last row."""
    noise = NOISES["uniform"]
    canvas = finished(drawn(np.full(27, 1 / 27), LAW.sequences_Xn, rows=64))
    how = {"steps": 1, "grid": "uniform"}
    sampler = noise.sampler(method="self_correct(by=probability, rounds=40, patience=3)", **how)
    samples = sampler.sample(1.0, canvas, seed=6)
    assert 2 < samples.evaluations < 41 and samples.calls_B.max() == samples.evaluations and len(set(samples.calls_B.tolist())) > 1
    states = list(sampler.states(1.0, canvas, seed=6))
    for row in range(64):
        last = int(samples.calls_B[row])
        assert all((state.tokens_BL[row] == states[last].tokens_BL[row]).all() for state in states[last:])
    all_rounds = noise.sampler(method="self_correct(by=probability, rounds=40)", **how).sample(1.0, canvas, seed=6)
    assert all_rounds.evaluations == 41


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gibbs(rounds=-1)", "rounds is -1"),
        ("gibbs(count=0)", "count is 0"),
        ("gibbs(level=1.5)", "level is 1.5"),
        ("acs(eta=2)", "eta is 2"),
        ("self_correct(by=best)", "by is 'best'"),
        ("self_correct(patience=-1)", "patience is -1"),
    ],
)
def test_values_out_of_range_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        make_method(text)


def test_calls_are_not_left_out_where_a_method_reads_another_canvas():
    with pytest.raises(InputError, match="leave cache off"):
        NOISES["masked"].sampler(method="gibbs", cache=True)
    with pytest.raises(InputError, match="level requires noise that replaces tokens"):
        make_method("gibbs(level=0.1)").check(Masked(4, 3))
    with pytest.raises(InputError, match="acs requires noise of masks and of wrong tokens"):
        make_method("acs").check(Masked(4, 3))
