"""Beams and paths: which states go on, against a choice by hand; what they find, what it costs, and that it replays from its seeds.

Shapes: P prompts, N candidates, S steps and the start, B rows, L positions.
"""

import dataclasses

import numpy as np
import pytest

from dlmjax.errors import InputError
from dlmjax.sampling.canvas import Canvas, blank_canvas
from dlmjax.sampling.sampler import Sampler
from dlmjax.sampling.search import APART, Searcher, mean_log_p
from dlmjax.sampling.search_kinds import make_search
from dlmjax.sampling.settings import SampleSettings
from tests.diffusion.battery import BOS, MASK
from tests.sampling.test_laws import ALL, Trained
from tests.sampling.test_search import LAW, REWARD_N, SETTINGS, found, linear, make, score

LEFT = dataclasses.replace(SETTINGS, rule="left_to_right")


def some_given(prompts=6):
    """The first token of each prompt conditions the rest."""
    tokens_BL = np.full((prompts, LAW.length), LAW.mask_id, np.int32)
    tokens_BL[:, 0] = np.arange(prompts) % 3
    mask_BL = tokens_BL != LAW.mask_id
    return Canvas(tokens_BL, mask_BL, 1 - mask_BL.astype(np.float32))


def clearly_above(a_P, b_P):
    """Whether a is above b on average, by more than four standard errors of the paired differences."""
    return np.mean(a_P - b_P) > 4 * np.std(a_P - b_P) / np.sqrt(len(a_P))


# --- beams -------------------------------------------------------------------------------------------------------------------------


def test_a_beam_of_one_state_is_the_sample_without_a_search():
    result, plain = found("beam(width=1, branch=1)", 50, seed=3), make(SETTINGS).sample(1.0, blank_canvas(LAW.length, 50), seed=3)
    for name in ("tokens_BL", "confidence_BL", "fixed_BL", "entropy_B", "calls_B"):
        np.testing.assert_array_equal(getattr(result.samples, name), getattr(plain, name))
    assert result.calls == plain.evaluations == 4


@pytest.mark.parametrize("every", [1, 2])
def test_the_best_states_go_on_and_each_in_as_many_ways(every):
    """Every row of a step continues one of the states that a choice by hand keeps, copies last, and the text with the best score is
    returned."""
    prompts, rows, seen = 6, 6, []

    def watched(state):
        seen.append(state)
        return linear(state)

    search = Searcher(f"beam(width=2, branch=3, every={every})", make(SETTINGS), reward=watched)
    result = search.sample(1.0, some_given(prompts), seed=8)
    assert [state.step for state in seen] == ([1, 2, 3] if every == 1 else [2, 3])
    for before, after in zip(seen, seen[1:], strict=False):
        scores_NP = linear(before).reshape(rows, prompts)
        for p in range(prompts):
            states = [(tuple(before.tokens_BL[j * prompts + p]), tuple(before.masked_BL[j * prompts + p])) for j in range(rows)]
            ranked = sorted(dict.fromkeys(states), key=lambda one, states=states, p=p: -scores_NP[states.index(one), p])
            kept = (ranked + [one for i, one in enumerate(states) if one in states[:i]])[:2]
            for j in range(rows):
                tokens, masked = kept[j // 3]
                shown = ~np.array(masked)
                assert (after.tokens_BL[j * prompts + p][shown] == np.array(tokens)[shown]).all()
    np.testing.assert_allclose(result.scores_PN, score(result.candidates))
    np.testing.assert_array_equal(result.scores_PN[np.arange(prompts), result.chosen_P], result.scores_PN.max(axis=1))
    assert (result.samples.tokens_BL[:, 0] == np.arange(prompts) % 3).all() and result.calls == 6 * 3


def test_a_wide_beam_finds_the_most_likely_text_and_replays():
    """Left to right with the score `confidence`; one draw finds it as often as it is likely."""
    wide, again = (found("beam(width=24, branch=4)", 20, LEFT, seed=1) for _ in range(2))
    assert (LAW.index(wide.samples.tokens_BL) == np.argmax(LAW.p_N)).mean() >= 0.9 > 3 * LAW.p_N.max()
    np.testing.assert_array_equal(wide.samples.tokens_BL, again.samples.tokens_BL)
    narrow = found("beam(width=2, branch=2)", 200, LEFT, seed=1)
    plain = make(LEFT).sample(1.0, blank_canvas(LAW.length, 200), seed=1)
    assert clearly_above(narrow.scores_PN.max(axis=1), mean_log_p(plain.confidence_BL, plain.condition_mask_BL))


# --- paths -------------------------------------------------------------------------------------------------------------------------


def of_paths(text, prompts=40, settings=SETTINGS):
    result = found(text, prompts, settings, seed=9, score=score)
    return result, np.stack(result.seeds)


def test_the_first_candidate_is_the_sample_without_a_search_and_the_best_is_returned():
    result, _ = of_paths("paths(n=3, rounds=2)", 200)
    plain = make(SETTINGS).sample(1.0, blank_canvas(LAW.length, 200), seed=9)
    for name in ("tokens_BL", "confidence_BL", "fixed_BL"):
        np.testing.assert_array_equal(getattr(result.candidates[0], name), getattr(plain, name))
    best_P = REWARD_N[LAW.index(result.samples.tokens_BL)]
    np.testing.assert_allclose(best_P, score(result.candidates).max(axis=1))
    assert clearly_above(best_P, score([plain])[:, 0]) and result.calls == 4 * 7 and len(result.candidates) == 7


@pytest.mark.parametrize("redraw", ["end", "any"])
def test_a_neighbour_has_the_noise_of_the_pivot_but_in_a_share_of_the_steps(redraw):
    """Seeds by hand: each neighbour's are those of the best candidate of the rounds before, or new ones; equal steps give equal tokens."""
    result, seeds_NPS = of_paths(f"paths(n=3, rounds=2, share=0.5, redraw={redraw})")
    for j in range(1, 7):
        best_P = np.argmax(result.scores_PN[:, : 1 if j < 4 else 4], axis=1)
        pivot_PS = seeds_NPS[best_P, np.arange(40)]
        redrawn_PS = seeds_NPS[j] != pivot_PS
        assert (seeds_NPS[j][redrawn_PS] == 9 + j * APART).all() and redrawn_PS.any(axis=1).all()
        if redraw == "end":
            assert (redrawn_PS == [False, False, False, True, True]).all()
            pivot_BL = np.stack([result.candidates[best].tokens_BL[p] for p, best in enumerate(best_P)])
            early_BL = result.candidates[j].fixed_BL <= 2
            assert (result.candidates[j].tokens_BL == pivot_BL)[early_BL].all() and early_BL.sum(axis=1).tolist() == [2] * 40
    if redraw == "any":
        share = (seeds_NPS[1:4] != 9).mean()
        assert 0.4 < share < 0.75 and (seeds_NPS[1:4, :, 0] != 9).any() and not (seeds_NPS[1:4, :, 0] != 9).all()


def test_every_candidate_replays_from_the_seeds_of_its_record():
    result, _ = of_paths("paths(n=2, rounds=2, redraw=any)")
    record = result.to_json(str)["prompts"]
    for j in (0, 3):
        seeds_BS = np.array([row["candidates"][j]["seed"] for row in record])
        again = make(SETTINGS).sample_by_step(1.0, blank_canvas(LAW.length, 40), seeds_BS)
        np.testing.assert_array_equal(again.tokens_BL, result.candidates[j].tokens_BL)


def test_the_first_noise_of_uniform_noise_is_searched_too():
    """Steps in time: the score of the chosen texts is above that of the first candidate, whose steps are those of one seed."""
    case = ALL["uniform/linear"]
    sampler = Sampler(case.process, Trained(case), SampleSettings(steps=3, suppressed_ids=(BOS, MASK)))

    def twos(candidates):
        return np.stack([(each.tokens_BL == 2).sum(axis=1) for each in candidates], axis=1)

    result = Searcher("paths(n=3, rounds=2, redraw=any)", sampler, score=twos).sample((), blank_canvas(2, 60), seed=4)
    np.testing.assert_array_equal(result.candidates[0].tokens_BL, sampler.sample((), blank_canvas(2, 60), seed=4).tokens_BL)
    assert clearly_above(twos([result.samples])[:, 0], twos(result.candidates[:1])[:, 0])


# --- refused -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("beam(width=0)", "width is 0"),
        ("beam(branch=0)", "branch is 0"),
        ("beam(width=4096, branch=2)", "is 8192"),
        ("beam(n=4)", "has no value 'n'"),
        ("paths(n=0)", "n is 0"),
        ("paths(rounds=5000)", "rounds is 5000"),
        ("paths(n=100, rounds=100)", "must be at most 4096"),
        ("paths(share=0)", "share is 0"),
        ("paths(redraw=middle)", "redraw 'middle'"),
    ],
)
def test_beams_and_paths_that_mean_nothing_are_refused(text, match):
    with pytest.raises(InputError, match=match) as caught:
        make_search(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["beam(width=2)", "paths(n=2)"])
def test_they_require_a_sampler_of_the_whole_canvas(text):
    with pytest.raises(InputError, match="requires a sampler of the whole canvas"):
        Searcher(text, object())
