"""Searches of a run by its commands: scores by name, puzzles with their checker, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest

from dlmjax.cli.main import main
from dlmjax.errors import InputError
from dlmjax.quality.generated import make_texts
from dlmjax.quality.puzzles import make_countdown
from dlmjax.quality.solving import report, solve
from dlmjax.quality.verifiers import make_score, searcher
from dlmjax.run import open_run
from dlmjax.sampling import blank_canvas, sampler_for
from dlmjax.sampling.text import text_of
from tests.cli.test_main import refused


def letters(texts):
    """A score of one's own: how many letters `e` a text has."""
    return [text.count("e") for text in texts]


def none_of_it(texts):
    return ["?"] * len(texts)


def ones(tokens_BL, masked_BL):
    """A reward: shown spaces count 1."""
    return np.sum((tokens_BL == 32) & ~masked_BL, axis=1)


def odd_ids(p_BLV, t_BL):
    """A constraint: the mean probability of odd ids."""
    return p_BLV[..., 1::2].sum(axis=-1).mean(axis=1)


@pytest.fixture(scope="module")
def sampler(masked_run):
    return sampler_for(masked_run.process, masked_run.experiment.unpartitioned, masked_run.sample_settings(rule="random", steps=2))


@pytest.fixture(scope="module")
def candidates(masked_run, sampler):
    return searcher("best(n=2)", masked_run, sampler).sample(masked_run.params, blank_canvas(16, 2)).candidates


def test_scores_are_those_of_the_texts(masked_run, sampler, candidates):
    """`own` is `Run.score`, `likelihood` that of another run, one's own a function of the texts."""
    texts = [[text_of(masked_run.tokenizer, each.tokens_BL[p]) for each in candidates] for p in range(2)]
    own_PN, passes_PN = make_score("own(draws=4)", masked_run)(candidates)
    for p in range(2):
        wanted = masked_run.score("", texts[p], draws=4)
        np.testing.assert_allclose(own_PN[p], [each.log_likelihood for each in wanted], rtol=1e-6)
        assert passes_PN[p].tolist() == [each.passes for each in wanted] and passes_PN.min() > 1
    own = make_score(f"{__name__}.letters", masked_run)(candidates)
    assert own.tolist() == [[text.count("e") for text in row] for row in texts]
    found = searcher(f"smc(particles=2, reward={__name__}.ones)", masked_run, sampler).sample(masked_run.params, blank_canvas(16, 2))
    spaces_PN = np.stack([(each.tokens_BL == 32).sum(axis=1) for each in found.candidates], axis=1)
    assert found.scores_PN.shape == spaces_PN.shape == (2, 2)


@pytest.mark.slow
def test_another_run_judges(masked_run, sampler, causal_workdir):
    """The candidate that an autoregressive run holds for the most likely one."""
    judge, search = open_run(str(causal_workdir)), f"best(n=3, score=likelihood(run='{causal_workdir}'))"
    found = searcher(search, masked_run, sampler).sample(masked_run.params, blank_canvas(16, 2))
    for p in range(2):
        texts = [text_of(masked_run.tokenizer, each.tokens_BL[p]) for each in found.candidates]
        judged = judge.score("", texts)
        wanted = [each.log_likelihood for each in judged]
        assert found.samples.counts.extra_B[p] == sum(each.passes for each in judged) >= 3
        np.testing.assert_allclose(found.scores_PN[p], wanted, rtol=1e-6)
        assert (found.samples.tokens_BL[p] == found.candidates[int(np.argmax(wanted))].tokens_BL[p]).all()
    assert len(set(found.scores_PN.ravel())) == 6


@pytest.mark.parametrize(
    ("score", "match"),
    [
        ("owm", "unknown score 'owm'"),
        ("own(draws=0)", "draws is 0"),
        ("likelihood", "likelihood requires run"),
        ("likelihood(run='nowhere')", "nowhere"),
        ("nowhere.score", "cannot be imported"),
        (f"{__name__}.nothing", "cannot be imported"),
        (f"{__name__}.__name__", "is not a function"),
        (f"{__name__}.none_of_it", "does not give a number"),
    ],
)
def test_scores_that_mean_nothing_are_refused(masked_run, candidates, score, match):
    with pytest.raises(InputError, match=match) as caught:
        make_score(score, masked_run)(candidates)
    assert "\n" not in str(caught.value)


def test_beams_and_paths_take_scores_of_their_own(masked_run, sampler):
    """A beam scores unfinished texts, paths finished ones; both record what they decided by."""
    beam = searcher(f"beam(width=2, branch=2, score={__name__}.ones)", masked_run, sampler).sample(masked_run.params, blank_canvas(16, 2))
    spaces_PN = np.stack([(each.tokens_BL == 32).sum(axis=1) for each in beam.candidates], axis=1)
    np.testing.assert_array_equal(beam.scores_PN, spaces_PN)
    paths = searcher(f"paths(n=1, rounds=1, score={__name__}.letters)", masked_run, sampler)
    found = paths.sample(masked_run.params, blank_canvas(16, 2))
    texts = [[text_of(masked_run.tokenizer, each.tokens_BL[p]) for each in found.candidates] for p in range(2)]
    assert found.scores_PN.tolist() == [[text.count("e") for text in row] for row in texts]
    with pytest.raises(InputError, match="unknown score 'own'"):
        searcher("beam(score=own)", masked_run, sampler)


def test_puzzles_are_searched_and_one_candidate_is_the_answer_without_a_search(masked_run):
    """Each candidate is the run of its seed; pass@1 and the oracle are counted by hand."""
    puzzles, settings = make_countdown(3, numbers=2), masked_run.sample_settings(rule="random", steps=2)
    how = {"batch": 2, "seed": 7}
    plain = solve(masked_run, puzzles, settings, **how)
    for search in ("paths(n=1, rounds=1, score=checker)", "best(n=2, score=checker)", "votes(n=2)"):
        found = solve(masked_run, puzzles, settings, search=search, **how)
        assert [own[0]["answer"] for own in found.candidates] == list(plain.answers)
        assert all(answer in [each["answer"] for each in own] for answer, own in zip(found.answers, found.candidates, strict=True))
        assert found.calls == 2 * 2 and len(found.candidates) == 3
    right = dataclasses.replace(found, candidates=tuple(({**own[0], "solved": i == 0}, own[1]) for i, own in enumerate(found.candidates)))
    rates = report(masked_run, puzzles, right, in_place=False, seed=7)["search"]
    assert rates["pass_1"] == pytest.approx(1 / 6) and rates["pass_any"] == pytest.approx(1 / 3) and len(rates["found"]) == 3
    json.dumps(rates, allow_nan=False)


def test_quality_measures_chosen_texts(masked_run):
    settings = masked_run.sample_settings(rule="random", steps=2)
    texts = make_texts(masked_run, settings, count=3, length=16, batch=2, search="best(n=2)")
    assert texts.calls == 4 and len(texts.samples) == 3


def test_the_command_writes_every_candidate(masked_workdir, tmp_path, capsys):
    flags = [
        "sample",
        "--workdir",
        masked_workdir,
        "--weights",
        "raw",
        "--length",
        "12",
        "--count",
        "2",
        "--steps",
        "2",
        "--rule",
        "random",
    ]
    assert main([str(flag) for flag in [*flags, "--search", f"best(n=2, score={__name__}.letters)", "--json", tmp_path / "s.json"]]) == 0
    record = json.loads((tmp_path / "s.json").read_text())
    prompts = record["search"]["prompts"]
    assert [len(each["candidates"]) for each in prompts] == [2, 2] and record["search"]["calls"] == record["evaluations"] == 4
    for row, sample in zip(prompts, record["samples"], strict=True):
        assert row["candidates"][row["chosen"]]["text"] == sample["text"]
        assert max(each["score"] for each in row["candidates"]) == sample["text"].count("e")
    assert "2 candidates" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["--search", "best(n=1)"], "n is 1"),
        (["--search", "bets"], "did you mean 'best'"),
        (["--search", "best(score=nowhere.score)"], "cannot be imported"),
        (["--search", "best", "--watch"], "--search conflicts with --watch"),
        (["--search", "votes(over=steps)"], "give --rule"),
    ],
)
def test_flags_that_mean_nothing_are_refused(masked_workdir, capsys, more, match):
    flags = ["sample", "--workdir", masked_workdir, "--weights", "raw", "--length", "8"]
    assert match in refused(capsys, *flags, *more)


def test_the_command_says_how_many_texts_satisfy_a_constraint(masked_workdir, tmp_path, capsys):
    """Every token an even id, in steps in time and under a rule; the record has the violation of each text."""
    flags = ["sample", "--workdir", masked_workdir, "--weights", "raw", "--length", "12", "--count", "2", "--steps", "2"]
    flags += ["--guide", f"project(of={__name__}.odd_ids)", "--json", str(tmp_path / "made.json")]
    assert main([*map(str, flags)]) == 0
    assert "(guide: 2 of 2 texts have a violation of at most 0, the largest 0)" in capsys.readouterr().out
    made = json.loads((tmp_path / "made.json").read_text())
    assert made["violation"] == [0, 0] and all(id_ % 2 == 0 for row in made["samples"] for id_ in row["token_ids"])
