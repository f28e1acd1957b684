"""The methods on every family of noise, in law against the enumerated reverse process of the battery's own cases."""

import functools
import itertools

import numpy as np
import pytest

from dlmjax.diffusion.declarations import Attention
from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.errors import InputError
from dlmjax.sampling.canvas import Canvas, blank_canvas
from dlmjax.sampling.sampler import Sampler
from dlmjax.sampling.settings import SampleSettings
from tests.diffusion.battery import MASK, TOKENS, chi_square_sigmas, index_of, to_states
from tests.diffusion.cases_jump import CASES

LAW = oracle.JointDistribution.random(TOKENS, 2, seed=5, sharpness=1.5)
CASE = {str(case): case for case in CASES}
ROWS = 5000


class Closed:
    """The case's exact denoiser as a network is bound; `attention` is what the process asks for."""

    def __init__(self, case, law=LAW):
        self.denoiser = case.denoiser(law)

    def __call__(self, params, segments_BL, positions_BL, attention):
        assert attention in ("full", Attention())
        return self.denoiser


def euler_chain(case, t, s):
    """One tau-leap between all noisy texts: rates from the leave-one-out guess, at most one jump per position."""
    kernel, z_Zn = case.kernel, oracle.enumerate_sequences(case.states, LAW.length)
    model_ZnS = oracle.leave_one_out(LAW, kernel, t) @ kernel.matrix(t)
    chain_ZZ = np.ones((len(z_Zn), len(z_Zn)))
    for i in range(LAW.length):
        own = z_Zn[:, i]
        score_ZS = model_ZnS[:, i] / np.maximum(model_ZnS[np.arange(len(own)), i, own], 1e-300)[:, None]
        rates_ZS = kernel.rate_into(t)[own][:, None] * score_ZS
        rates_ZS[np.arange(len(own)), own] = 0
        total_Z = rates_ZS.sum(axis=1)
        leap_Z = np.minimum(1.0, total_Z * (t - s))
        to_ZS = leap_Z[:, None] * np.divide(rates_ZS, total_Z[:, None], out=np.zeros_like(rates_ZS), where=total_Z[:, None] > 0)
        to_ZS[np.arange(len(own)), own] = 1 - leap_Z
        chain_ZZ *= to_ZS[:, own]
    return chain_ZZ


def exact_chain(case, t, s):
    start_Z = np.eye(case.states**LAW.length)
    step = getattr(case, "reverse", None) or oracle.reverse_distribution
    return np.stack([step(LAW, case.kernel, [t, s], row_Z) for row_Z in start_Z])


@functools.cache
def draw(name, method, levels, rows=ROWS, seed=1):
    case = CASE[name]
    settings = SampleSettings(steps=len(levels) - 1, method=method, grid=f"listed(points={levels})", suppressed_ids=(3,))
    return Sampler(case.process, Closed(case), settings).sample((), blank_canvas(LAW.length, rows), seed=seed)


def tally(tokens_BL, states):
    return np.bincount(index_of(to_states(tokens_BL), states), minlength=states**LAW.length)


LATE = (0.9, 0.6, 0.3, 0.0)


def draw_late(name, method):
    """Text of the law sent to level 0.9 and back: at t = 1 a rate has no value, and a score tells nothing."""
    case = CASE[name]
    chosen = np.random.default_rng(2).choice(len(LAW.sequences_Xn), size=ROWS, p=LAW.probability_X)
    tokens_BL = LAW.sequences_Xn[chosen].astype(np.int32)
    canvas = Canvas(tokens_BL, np.zeros(tokens_BL.shape, bool), np.full(tokens_BL.shape, 0.9, np.float32))
    settings = SampleSettings(steps=3, method=method, grid=f"listed(points={tuple(level / 0.9 for level in LATE)})", suppressed_ids=(3,))
    tokens_BL = Sampler(case.process, Closed(case), settings).sample((), canvas, seed=3).tokens_BL
    return case, tally(tokens_BL, case.states), oracle.evidence(LAW, case.kernel, 0.9).sum(axis=0)


def and_at_night(*names):
    return [pytest.param(name, marks=pytest.mark.nightly) for name in names]


@pytest.mark.parametrize(
    "name",
    [
        "uniform/linear",
        "hybrid/0.2",
        "score/mask, linear",
        "score/uniform, linear",
        *and_at_night("mixed/sigmoid", "flow_matching/uniform"),
    ],
)
def test_analytic_steps_from_exact_scores_are_ancestral(name):
    case, counts_Z, start_Z = draw_late(name, "analytic")
    assert chi_square_sigmas(counts_Z, oracle.reverse_distribution(LAW, case.kernel, list(LATE), start_Z)) < 4


@pytest.mark.parametrize(
    "name",
    [
        *("uniform/linear", "hybrid/0.2", "score/mask, linear"),
        *and_at_night("mixed/sigmoid", "score/uniform, linear", "flow_matching/uniform", "flow_matching/mask"),
    ],
)
def test_tau_leaps_have_the_law_of_frozen_rates(name):
    case, counts_Z, now_Z = draw_late(name, "tau_leap")
    exact_Z = oracle.reverse_distribution(LAW, case.kernel, list(LATE), now_Z)
    for t, s in itertools.pairwise(LATE):
        now_Z = now_Z @ (exact_chain if s == 0 else euler_chain)(case, t, s)
    assert chi_square_sigmas(counts_Z, now_Z) < 4
    # On the linear schedule of masks the rate times the step is the ancestral probability; elsewhere the chain is another.
    assert (np.abs(now_Z - exact_Z).sum() > 0.01) == (name != "score/mask, linear")


@pytest.mark.parametrize("method", ["ancestral", "tau_leap", "analytic"])
def test_many_steps_draw_the_text(method):
    samples = draw("hybrid/0.2", method, tuple(np.linspace(1, 0, 49).tolist()))
    assert chi_square_sigmas(tally(samples.tokens_BL, TOKENS), LAW.probability_X) < 4


def test_self_correction_under_hybrid_noise():
    plain = draw("hybrid/0.2", "ancestral", (1.0, 0.5, 0.0))
    mended = draw("hybrid/0.2", "self_correct(rounds=4, level=0.2)", (1.0, 0.5, 0.0))
    before, after = (tally(s.tokens_BL, TOKENS) @ np.log(LAW.probability_X) / ROWS for s in (plain, mended))
    assert after > before + 0.1 and mended.tokens_BL.max() < TOKENS and mended.evaluations == plain.evaluations + 4


def test_frozen_text_under_hybrid_noise():
    case, level = CASE["hybrid/0.2"], (1.0, 0.8, 0.6, 0.4, 0.2, 0.0)
    tokens, frozen = np.tile([1, MASK], (ROWS, 1)).astype(np.int32), np.tile([True, False], (ROWS, 1))
    settings = SampleSettings(steps=5, grid=f"listed(points={level})", suppressed_ids=(3,))
    samples = Sampler(case.process, Closed(case), settings).sample((), Canvas(tokens, frozen, (~frozen).astype(np.float32)), seed=4)
    assert (samples.tokens_BL[:, 0] == 1).all()
    p_K = LAW.probability_X.reshape(TOKENS, TOKENS)[1]
    assert chi_square_sigmas(np.bincount(samples.tokens_BL[:, 1], minlength=TOKENS), p_K / p_K.sum()) < 4


def test_scores_are_no_law_of_tokens():
    case = CASE["score/mask, linear"]
    with pytest.raises(InputError, match="require a network that predicts logits"):
        Sampler(case.process, Closed(case), SampleSettings(temperature=0.5))
