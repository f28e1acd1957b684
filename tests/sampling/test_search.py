"""Search: the distribution of what it returns by enumeration of a law of three tokens, what it costs, and that it replays from its seeds.

Shapes: N texts, P prompts, L positions.
"""

import dataclasses

import numpy as np
import pytest

from dlmjax.errors import InputError
from dlmjax.sampling import analysis
from dlmjax.sampling.canvas import Canvas, blank_canvas
from dlmjax.sampling.sampler import Sampler
from dlmjax.sampling.search import APART, Searcher, in_blocks
from dlmjax.sampling.search_kinds import Smc, Votes, make_search
from dlmjax.sampling.settings import SampleSettings
from dlmjax.sampling.trace import record
from tests.diffusion.battery import chi_square_sigmas
from tests.sampling.toy import Law

LAW = Law(symbols=3, length=4, seed=2, sharpness=1.0)
SETTINGS = SampleSettings(rule="random", steps=4, suppressed_ids=(LAW.mask_id,))
REWARD_LV = 0.6 * np.random.default_rng(3).normal(size=(LAW.length, LAW.vocab))
REWARD_LV[:, LAW.mask_id] = 0.0
REWARD_N = REWARD_LV[np.arange(LAW.length), LAW.texts_NL].sum(axis=1)
SAMPLERS = {}


def make(settings):
    """One sampler for equal settings, so that a test file compiles each step once."""
    if settings not in SAMPLERS:
        SAMPLERS[settings] = Sampler(LAW.process(), LAW.bind, settings)
    return SAMPLERS[settings]


def linear(state):
    """The reward: a number for each revealed token."""
    return np.where(state.masked_BL, 0.0, REWARD_LV[np.arange(LAW.length), state.tokens_BL]).sum(axis=1)


def score(candidates):
    return np.stack([REWARD_N[LAW.index(each.tokens_BL)] for each in candidates], axis=1)


def found(text, rows, settings=SETTINGS, seed=0, **how):
    return Searcher(text, make(settings), **how).sample(1.0, blank_canvas(LAW.length, rows), seed=seed)


def counts(result):
    return np.bincount(LAW.index(result.samples.tokens_BL), minlength=len(LAW.p_N))


def tilted(weight_N):
    p_N = LAW.p_N * weight_N
    return p_N / p_N.sum()


# --- sequential Monte Carlo ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resample", [0.0, 0.9])
def test_smc_draws_from_the_tilted_law_as_particles_become_many(resample):
    """With or without resampling; two particles are away from it, and so is particle 0."""
    wanted_N = tilted(np.exp(REWARD_N))
    many = found(f"smc(particles=32, resample={resample})", 1500, reward=linear)
    assert chi_square_sigmas(counts(many), wanted_N) < 4
    few = found(f"smc(particles=2, resample={resample})", 1500, reward=linear)
    assert chi_square_sigmas(counts(few), wanted_N) > 4
    if not resample:
        first_N = np.bincount(LAW.index(many.candidates[0].tokens_BL), minlength=len(LAW.p_N))
        assert chi_square_sigmas(first_N, LAW.p_N) < 4 and chi_square_sigmas(first_N, wanted_N) > 4
        # Weights that telescope: those at the end are exp(r(x)), normalised for each prompt.
        weight_PN = np.exp(score(many.candidates))
        np.testing.assert_allclose(many.scores_PN, weight_PN / weight_PN.sum(axis=1, keepdims=True), atol=1e-6)
    else:
        parents = [len(np.unique(rows, axis=0)) for rows in np.stack([each.tokens_BL for each in many.candidates], axis=1)]
        assert np.mean(parents) < 25, "particles with small weights have ended"


def test_smc_with_the_reward_confidence_draws_from_a_power_of_the_law():
    """One token a step from left to right: p(x)^(1 + power)."""
    settings = dataclasses.replace(SETTINGS, rule="left_to_right")
    made_N = counts(found("smc(particles=32, power=1.0)", 1500, settings))
    assert chi_square_sigmas(made_N, tilted(LAW.p_N)) < 4 < chi_square_sigmas(made_N, LAW.p_N)


def test_a_prompt_is_searched_by_itself_and_a_search_replays():
    """The particles of a prompt keep its tokens, whatever the others do; equal seeds give equal texts, other seeds other ones."""
    tokens_BL = np.full((6, LAW.length), LAW.mask_id, np.int32)
    tokens_BL[:, 0] = np.arange(6) % 3
    given_BL = tokens_BL != LAW.mask_id
    canvas = Canvas(tokens_BL, given_BL, 1 - given_BL.astype(np.float32))
    search = Searcher("smc(particles=8, resample=1.0)", make(SETTINGS), reward=linear)
    one, again, other = (search.sample(1.0, canvas, seed=seed) for seed in (5, 5, 6))
    assert all((each.tokens_BL[:, 0] == tokens_BL[:, 0]).all() for each in one.candidates)
    np.testing.assert_array_equal(one.samples.tokens_BL, again.samples.tokens_BL)
    assert (one.samples.tokens_BL != other.samples.tokens_BL).any()
    assert one.calls == 8 * 3 and len(one.candidates) == 8


# --- the best of several -----------------------------------------------------------------------------------------------------------


def test_best_of_n_has_the_law_of_the_best():
    """P(best = x) = P(score <= s)^n - P(score < s)^n; candidate 0 is the sample without a search, and candidate j that of its seed."""
    n, rows = 3, 4000
    result = found(f"best(n={n})", rows, score=score, seed=9)
    below_N = np.array([LAW.p_N[s > REWARD_N].sum() for s in REWARD_N])
    assert chi_square_sigmas(counts(result), (below_N + LAW.p_N) ** n - below_N**n) < 4
    for j, candidate in enumerate(result.candidates):
        assert result.seeds[j] == 9 + j * APART
        plain = make(SETTINGS).sample(1.0, blank_canvas(LAW.length, rows), seed=result.seeds[j])
        np.testing.assert_array_equal(candidate.tokens_BL, plain.tokens_BL)
    assert result.calls == result.samples.evaluations == 3 * 4
    shown = result.to_json(str)["prompts"][7]
    best = max(shown["candidates"], key=lambda each: each["score"])
    assert shown["candidates"][shown["chosen"]] == best and len(shown["candidates"]) == n


def test_confidence_ranks_by_the_probabilities_of_revealed_tokens():
    """From left to right with one token a step, the mean over positions is log p(x) / L."""
    settings = dataclasses.replace(SETTINGS, rule="left_to_right")
    result = found("best(n=2)", 50, settings)
    log_p_PN = np.log(np.stack([LAW.p_N[LAW.index(each.tokens_BL)] for each in result.candidates], axis=1))
    np.testing.assert_allclose(result.scores_PN, log_p_PN / LAW.length, atol=1e-4)


# --- votes -------------------------------------------------------------------------------------------------------------------------


def test_votes_choose_the_most_frequent_answer_and_ties_go_to_the_larger_block():
    result = found("votes(n=3, blocks=(1, 2))", 400, answer=lambda tokens_L: str(tokens_L[3]))
    assert result.blocks == (2, 2, 2, 1, 1, 1)
    answers_PN = np.stack([each.tokens_BL[:, 3] for each in result.candidates], axis=1)
    for answers_N, chosen, shares_N in zip(answers_PN, result.chosen_P, result.scores_PN, strict=True):
        votes = np.bincount(answers_N, minlength=3)
        assert votes[answers_N[chosen]] == votes.max() and chosen == list(votes[answers_N]).index(votes.max())
        np.testing.assert_allclose(shares_N, votes[answers_N] / 6)


def test_blocks_are_filled_from_left_to_right_and_have_the_law_of_the_text():
    made = in_blocks(make(SETTINGS), 1.0, blank_canvas(LAW.length, 3000), 2, seed=4)
    assert chi_square_sigmas(np.bincount(LAW.index(made.tokens_BL), minlength=len(LAW.p_N)), LAW.p_N) < 4
    assert made.evaluations == 4 and (made.fixed_BL[:, :2].max(axis=1) < made.fixed_BL[:, 2:].min(axis=1)).all()


@pytest.mark.parametrize("weight", ["equal", "linear", "exponential"])
def test_votes_over_steps_are_those_of_the_completed_texts(weight):
    """The completed texts are those of `analysis.completed`, which calls the network again for each state."""
    search = Searcher(f"votes(over=steps, weight={weight}, a=2.0)", make(SETTINGS), answer=lambda tokens_L: str(tokens_L.tolist()))
    result = search.sample(1.0, blank_canvas(LAW.length, 30), seed=2)
    _, trace = record(make(SETTINGS), 1.0, blank_canvas(LAW.length, 30), seed=2)

    def predict(tokens_BL, masked_BL, time):
        return np.argmax(LAW.denoise(np.where(masked_BL, LAW.mask_id, tokens_BL)), axis=-1)

    texts_SBL = analysis.completed(trace, predict)[1:]
    np.testing.assert_array_equal(np.stack([each.tokens_BL for each in result.candidates]), texts_SBL)
    weights = {"equal": [1, 1, 1, 1], "linear": [1, 2, 3, 4], "exponential": np.exp(2.0 * np.array([1, 2, 3, 4]) / 4)}[weight]
    for p in range(30):
        votes = {}
        for w, text in zip(weights, texts_SBL[:, p].tolist(), strict=True):
            votes[tuple(text)] = votes.get(tuple(text), 0.0) + w / np.sum(weights)
        assert votes[tuple(result.samples.tokens_BL[p].tolist())] == pytest.approx(max(votes.values()))
    assert result.calls == 4


# --- refused -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("bets(n=4)", "did you mean 'best'"),
        ("best(n=1)", "n is 1"),
        ("best(m=4)", "has no value 'm'"),
        ("votes(n=1)", "one candidate"),
        ("votes(blocks=(2, 2))", "give different sizes"),
        ("votes(blocks=(0,))", "give different sizes"),
        ("votes(over=time)", "over is 'time'"),
        ("votes(over=steps, n=4)", "takes one sample"),
        ("votes(weight=square)", "weight 'square'"),
        ("smc(particles=1)", "particles is 1"),
        ("smc(resample=2)", "resample is 2"),
        ("smc(power=0)", "power 0"),
    ],
)
def test_searches_that_mean_nothing_are_refused(text, match):
    with pytest.raises(InputError, match=match) as caught:
        make_search(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["votes(blocks=(2,), n=2)", "votes(over=steps)"])
def test_what_needs_a_rule_is_refused_without_one(text):
    with pytest.raises(InputError, match="give --rule"):
        Searcher(text, make(dataclasses.replace(SETTINGS, rule="ancestral")))


def test_a_score_that_is_no_number_is_refused():
    with pytest.raises(InputError, match="not a number"):
        found("best(n=2)", 4, score=lambda candidates: np.full((4, 2), np.nan))
    with pytest.raises(InputError, match="not a finite number"):
        found("smc(particles=2)", 4, reward=lambda state: np.full(len(state.tokens_BL), np.inf))


def test_weights_of_steps():
    votes = Votes(over="steps", weight="exponential", a=11.0)
    assert votes.weight_of(4, 8) / votes.weight_of(8, 8) == pytest.approx(np.exp(-5.5))
    assert Smc().width == 4 and votes.width == 1
