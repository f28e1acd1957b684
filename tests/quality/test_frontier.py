"""The frontier of rules: each row is what `evaluate` and the sampler say of its settings, and the speed of sampling honours all flags."""

import dataclasses
import json

import numpy as np
import pytest

from dlmjax.cli.main import main
from dlmjax.errors import InputError
from dlmjax.evaluate import EvaluationSettings, TextSettings, evaluate
from dlmjax.quality import frontier, latency, plot
from dlmjax.run import open_run
from dlmjax.sampling import SampleSettings, blank_canvas, make_rule, sampler_for
from dlmjax.sampling.rule_names import RULES
from tests.cli.test_main import refused

LIST = ("margin(count=16)", "threshold(value=0.2, on=drawn)", "entropy; stop=exit(bound=50)")


@pytest.fixture(scope="module")
def written(masked_workdir, causal_workdir, tmp_path_factory):
    """Written with a scorer, whose nats of the samples are other numbers than those of held-out text."""
    output = tmp_path_factory.mktemp("frontier")
    flags = ["--steps", "4", "--samples", "3", "--batch", "2", "--windows", "4", "--scorer-workdir", str(causal_workdir)]
    flags += ["--output", str(output)]
    assert main(["quality", "--workdir", str(masked_workdir), "--frontier", *LIST, *flags]) == 0
    return output


def test_each_row_is_what_evaluate_and_the_sampler_say(written, masked_workdir):
    report = json.loads((written / "frontier.json").read_text())
    rows, run = report["rows"], open_run(masked_workdir)
    assert [row["label"] for row in rows] == [*LIST[:2], "entropy; steps=4; stop=exit(bound=50)"]
    assert [row["guarantee"] for row in rows] == ["bounded", "sharpened", "bounded"]
    assert ["no_likelihood" in row for row in rows] == [False, True, False]
    found = evaluate(run, TextSettings(windows=4, window=32), EvaluationSettings(likelihood="order:margin(count=16)"))
    assert rows[0]["nats_per_token"] == pytest.approx(found.result.nats_per_token, abs=1e-6) and rows[0]["calls_held_out"] == 2
    for name in ("nats_per_token", "stderr_nats_per_token"):
        assert rows[0][name.replace("nats_per_token", "price")] == pytest.approx(found.report["parallel"][name], abs=1e-6)
    for row in rows:
        sampler = sampler_for(run.experiment.process, run.experiment.unpartitioned, SampleSettings.from_json(row["settings"]))
        calls = [sampler.sample(run.params, blank_canvas(32, 2), seed=seed).calls_B for seed in (0, 1)]
        assert row["calls"] == pytest.approx(np.mean(np.concatenate(calls)[:3])), row["label"]
        assert row["perplexity"] == pytest.approx(np.exp(row["scorer_nats_per_token"])) and ("nats_per_token" in row) != (
            "no_likelihood" in row
        )
        assert row["seconds_per_token"] > 0 and row["stderr_seconds_per_token"] >= 0 and row["entropy"] > 0 and row["samples"] == 3
    if plot.available():
        assert (written / "frontier.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_equal_quality_has_the_fewest_calls_within_the_price():
    def row(label, difference, calls, temperature=1.0):
        return {"label": label, "difference": difference, "calls_held_out": calls, "temperature": temperature, "difference_calls": 90.0}

    rows = [row("one", 0.0, 90.0), row("good", 0.009, 30.0), row("hot", 0.0, 9.0, 1.1), row("bad", 0.02, 9.0), {"label": "none"}]
    found = frontier.equal_quality(rows, 0.01)
    assert (found["label"], found["times"]) == ("good", 3) and frontier.equal_quality(rows, 0.02)["label"] == "bad"
    assert frontier.equal_quality(rows[3:], 0.01) is None


def test_perplexity_at_an_entropy_lies_between_temperatures():
    rows = [
        {"label": f"a; temperature={t}", "temperature": t, "entropy": t, "perplexity": np.exp(3 * t), "stderr_perplexity": 0.1}
        | {"calls": 8.0, "seconds_per_token": 0.1}
        for t in (0.6, 0.8, 1.2)
    ]
    (one,) = frontier.at_entropy(rows, 0.9)
    assert one["perplexity"] == pytest.approx(np.exp(2.7)) and one["label"] == "a" and one["temperature"] == pytest.approx(0.9)
    assert not list(frontier.at_entropy(rows, 1.3)), "no temperature reaches it"


@pytest.mark.parametrize("name", RULES)
def test_every_rule_has_a_likelihood_or_a_reason(name, masked_run):
    """Of every rule, with stops, caches and temperatures: what has one is a likelihood that can be evaluated, of as many steps."""
    rule = "min_gap(rule=margin, d=2)" if name == "min_gap" else name
    for changes in ({}, {"temperature": 0.8}, {"stop": "exit(bound=0.1)"}, {"stop": "stable"}, {"cache": "dual"}, {"top_p": 0.5}):
        settings = SampleSettings(steps=4, rule=rule, **changes)
        text, why = frontier.likelihood_of(masked_run, settings)
        if text is None:
            assert why and "\n" not in why
            continue
        form = frontier.parse_likelihood(text)
        assert form.temperature == settings.temperature and form.stop == settings.stop and "cache" not in changes and not why
        assert form.make_rule().steps_of(32, 2**20) == make_rule(rule).steps_of(32, 4), "as many steps as the sampler"
        label = frontier.label_of(settings)
        assert frontier.parse_entry(label, dataclasses.replace(settings, stop=None, temperature=1.0)) == settings, label


@pytest.mark.parametrize("run", ["masked_run", "causal_run"])
def test_what_changes_the_text_otherwise_has_no_nats(run, request):
    """Every setting, those of a later version too, that the likelihood does not know: its nats would be those of another sampler."""
    run = request.getfixturevalue(run)
    rule = "left_to_right(count=1)" if run.experiment.process.attention.causal else "margin(count=1)"
    plain = SampleSettings(rule=rule)
    assert frontier.likelihood_of(run, plain)[0] and frontier.likelihood_of(run, dataclasses.replace(plain, cache=True))[0]
    others = {"top_p": 0.5, "guidance": 1.0, "guide": "a", "cache": "dual", "regex": "a", "eos": "a", "grow": "a", "sweep": 4}
    others |= {"draft": "a"}  # the text is the same, the calls are not those along held-out text
    same = {"steps", "rule", "temperature", "stop", "suppressed_ids", "end_ids", "method", "grid"}
    assert {field.name for field in dataclasses.fields(SampleSettings)} <= same | set(others), (
        "say whether the new setting changes the text"
    )
    for name, value in others.items():
        changed = dataclasses.replace(plain)
        object.__setattr__(changed, name, value)
        text, why = frontier.likelihood_of(run, changed)
        assert text is None and name in why, name


def test_bad_lists_end_in_one_line(masked_workdir, capsys):
    for flags, said in (
        (["--frontier", "margni"], "did you mean 'margin'"),
        (["--frontier", "margin; steps"], "'steps' is not NAME=VALUE"),
        (["--frontier", "margin; steps=4; steps=8"], "once each"),
        (["--frontier", "margin; steps=x"], "steps is 'x'; give a number"),
        (["--frontier", "margin; stop=prophte"], "prophet"),
        (["--frontier", "ancestral; stop=sched"], "requires a rule"),
        (["--frontier", "margin", "--temperatures", "0.5,x"], "--temperatures"),
        (["--frontier", "margin", "--latency"], "--frontier conflicts with --latency"),
        (["--frontier", "no_such_module.Mine"], "cannot be imported"),
    ):
        assert said in refused(capsys, "quality", "--workdir", masked_workdir, *flags), flags


@pytest.mark.parametrize(
    "changes",
    [{"method": "tau_leap", "grid": "cosine", "temperature": 0.7}, {"rule": "margin", "stop": "exit(bound=0.1)", "top_p": 0.9}],
    ids=["method", "rule"],
)
def test_the_speed_of_sampling_is_that_of_the_settings(changes, masked_run):
    """Of the whole canvas and of blocks; autoregression takes the temperature and top-p alone."""
    *others, causal = latency.ways_of(masked_run, [2], 16, [4], SampleSettings(**changes))
    for way in others:
        assert {name: getattr(way.sampler.settings, name) for name in changes} == changes, way.name
    kept = {name: value for name, value in changes.items() if name in ("temperature", "top_p")}
    assert {name: getattr(causal.sampler.settings, name) for name in kept} == kept
    with pytest.raises(InputError, match="self_correct requires"):
        list(latency.ways_of(masked_run, [2], 16, [4], SampleSettings(method="self_correct")))
