"""Patterns, guidance, guides and tables reach the texts of `quality`, the answers of `solve` and likelihoods."""

import jax.numpy as jnp
import pytest

from dlmjax.evaluate import EvaluationSettings, TextSettings, likelihoods
from dlmjax.quality.frontier import entries_of
from dlmjax.quality.generated import make_texts
from dlmjax.quality.puzzles import make_countdown
from dlmjax.quality.solving import solve
from dlmjax.run import open_run
from dlmjax.sampling import blank_canvas, sampler_for

PUZZLES = make_countdown(2, numbers=2, split="test")
DIGITS = len(PUZZLES[0].answer)


def seven(p_BLV, t_BL):
    """log p(c) of a class whose texts are sevens."""
    return 100 * jnp.sum(p_BLV[..., ord("7")], axis=1)


@pytest.mark.parametrize(
    ("how", "of"),
    [({"regex": "[ab]{16}"}, "ab"), pytest.param({"guide": f"classifier(of={__name__}.seven)"}, "7", marks=pytest.mark.slow)],
)
def test_texts_of_quality_are_controlled(masked_run, how, of):
    made = make_texts(masked_run, masked_run.sample_settings(rule="random", steps=2, **how), count=3, length=16, batch=2)
    assert len(made.samples) == 3 and all(len(each.text) == 16 and set(each.text) <= set(of) for each in made.samples)
    assert made.counts == {"calls": 2.0, "rows": 2.0, "reads": 32.0, "extra": 6.0 if "guide" in how else 0.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "of", "rows"),
    [
        ({"regex": f"[^=]*=[5-7]{{{DIGITS}}}"}, "567", 2),
        ({"guide": f"classifier(of={__name__}.seven)"}, "7", 2),
        ({"guide": f"classifier(of={__name__}.seven)", "guidance": 1.0}, "7", 4),
    ],
)
def test_answers_of_solve_are_controlled(masked_run, how, of, rows):
    made = solve(masked_run, PUZZLES, masked_run.sample_settings(rule="random", steps=2, **how))
    assert all(len(answer) == DIGITS and set(answer) <= set(of) for answer in made.answers)
    assert made.counts["rows"] == rows and made.counts["extra"] == 3 * rows * ("guide" in how) / (2 if "guidance" in how else 1)


@pytest.mark.slow
def test_guidance_changes_answers(masked_run):
    """By the clue: with an untrained network the distributions with and without it differ a little, and a large weight shows it."""
    plain, guided = (
        solve(masked_run, PUZZLES, masked_run.sample_settings(rule="random", steps=2, temperature=0.0, guidance=w)) for w in (0.0, 50.0)
    )
    assert plain.answers != guided.answers and guided.counts["rows"] == 2 * plain.counts["rows"]


@pytest.mark.slow
def test_the_table_of_pc_is_that_of_the_corpus_for_every_command(masked_workdir):
    """As the rule, within min_gap, in a list of rules, and as a likelihood, which is that of the rule with the table by name."""
    run = open_run(str(masked_workdir))
    text = run.rule_text("pc")
    assert "table=" in text and run.rule_text(text) == text and run.rule_text("margin(count=2)") == "margin(count=2)"
    within = run.sample_settings(rule="min_gap(rule=pc, d=2)", steps=2)
    made = sampler_for(run.process, run.experiment.unpartitioned, within).sample(run.params, blank_canvas(16, 2))
    assert (made.tokens_BL != run.tokenizer.mask_id).all()
    assert [entry.rule for entry in entries_of(run, ["pc"], run.sample_settings(), [4], 16)] == [text]
    names = ["order:pc", f"order:{text}", "order:confidence"]
    nats = [found[0].nats_per_token for found in likelihoods(run, TextSettings(windows=2), EvaluationSettings(batch=2), names).values()]
    assert nats[0] == nats[1] != nats[2]
