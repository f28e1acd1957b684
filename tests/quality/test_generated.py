"""The steps-quality curve: every number with its protocol, files whole, MAUVE as its library gives it, and the grid of times."""

import json
import math

import numpy as np
import pytest

from dlmjax.cli.main import main
from dlmjax.errors import InputError
from dlmjax.quality import generated, latency, mauve_score, plot
from dlmjax.quality.hf_scorer import open_scorer
from dlmjax.quality.scorers import RunScorer
from dlmjax.sampling import SampleSettings, suppressed_ids
from tests.cli.test_main import refused
from tests.quality.conftest import random_run


@pytest.fixture(scope="module")
def written(masked_workdir, causal_workdir, small_corpus, tmp_path_factory):
    """What the command prints nothing of and writes all of."""
    output = tmp_path_factory.mktemp("quality") / "out"
    flags = ["--steps", "2,4", "--samples", "6", "--batch", "4", "--temperature", "0.9", "--output", str(output)]
    assert main(["quality", "--workdir", str(masked_workdir), "--scorer-workdir", str(causal_workdir), *flags]) == 0
    return output


def test_no_number_stands_without_its_protocol(written, causal_workdir):
    report = json.loads((written / "quality.json").read_text())
    assert [row["steps"] for row in report["rows"]] == [2, 4] and report["length"] == 32
    for row in report["rows"]:
        assert (row["calls"], row["samples"], row["temperature"]) == (row["steps"], 6, 0.9) and "float32" in row["precision"]
        assert row["perplexity"] == pytest.approx(math.exp(row["nats_per_token"])) and row["scored_tokens"] == 6 * 32
        for name in ("perplexity", "nats_per_token", "bits_per_byte", "entropy"):
            assert row[name] > 0 and row[f"stderr_{name}"] > 0, name
        assert 0 < row["distinct_2"] <= 1 and 0 <= row["self_bleu"] < 0.5 and row["stderr_self_bleu"] >= 0
    assert report["scorer"]["scorer"] == str(causal_workdir) and report["scorer"]["tokens"] == "as made"
    assert report["held_out"]["samples"] == 6 and report["held_out"]["perplexity"] > 1 and report["held_out"]["split"] == "valid"


def test_the_texts_are_kept_and_are_those_that_were_measured(written, masked_run, causal_workdir):
    lines = [json.loads(line) for line in (written / "samples.jsonl").read_text().splitlines()]
    assert [(line["steps"], line["sample"]) for line in lines] == [(steps, n) for steps in (2, 4) for n in range(6)]
    tokenizer = masked_run.experiment.tokenizer
    samples = [generated.make_sample(tokenizer, np.array(line["token_ids"])) for line in lines[:6]]
    row, _ = generated.measure(samples, open_scorer(tokenizer, None, str(causal_workdir)))
    report = json.loads((written / "quality.json").read_text())["rows"][0]
    assert row["perplexity"] == pytest.approx(report["perplexity"]) and row["entropy"] == pytest.approx(report["entropy"])
    assert [sample.text for sample in samples] == [line["text"] for line in lines[:6]]


def test_the_picture_is_one(written):
    if not plot.available():
        pytest.skip("matplotlib is not installed")
    assert (written / "quality.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_batch_that_is_cut_leaves_the_first_texts_as_they_are(masked_run):
    settings = SampleSettings(steps=2, suppressed_ids=suppressed_ids(masked_run.experiment.tokenizer, masked_run.experiment.process.vocab))
    six = generated.make_texts(masked_run, settings, count=6, length=16, batch=4)
    four = generated.make_texts(masked_run, settings, count=4, length=16, batch=4)
    assert six.ids_NL.shape == (6, 16) and (six.ids_NL[:4] == four.ids_NL).all()
    assert len({tuple(ids_L) for ids_L in six.ids_NL}) == 6, "each batch has a seed of its own"


def test_without_a_scorer_counting_is_left(masked_run):
    settings = SampleSettings(
        rule="random", suppressed_ids=suppressed_ids(masked_run.experiment.tokenizer, masked_run.experiment.process.vocab)
    )
    curve = generated.steps_curve(masked_run, settings, [4, 8, 16, 32], count=2, length=8)
    assert [row["steps"] for row in curve.rows] == [4, 8], "8 holes take no more than 8 steps; the same texts are not shown twice"
    assert "perplexity" not in curve.rows[0] and curve.held_out is None
    table = generated.table(curve)
    assert table.count("\n") == 3 and "length, 10/50/90 %" in table
    for row, texts in zip(curve.rows, curve.texts, strict=True):
        (entry,) = row["lengths"]
        ends_NL = texts.ids_NL == masked_run.experiment.tokenizer.eos_id
        assert entry["end_share"] == ends_NL.mean() and entry["without_end"] == (~ends_NL.any(axis=1)).sum() and "data" not in entry


def test_an_autoregressive_run_has_one_row(causal_run):
    settings = SampleSettings(suppressed_ids=suppressed_ids(causal_run.experiment.tokenizer, causal_run.experiment.process.vocab))
    curve = generated.steps_curve(causal_run, settings, [2, 4], count=2, length=8)
    assert [(row["steps"], row["calls"]) for row in curve.rows] == [(8, 8)]


def test_mauve_is_the_librarys():
    library = pytest.importorskip("mauve")
    rng = np.random.default_rng(0)
    p_ND, q_ND = rng.normal(size=(60, 8)), rng.normal(size=(60, 8)) + 0.7
    value, error = mauve_score.mauve_with_error(p_ND, q_ND)
    expected = [library.compute_mauve(p_features=p_ND, q_features=q_ND, seed=seed, verbose=False).mauve for seed in range(5)]
    assert value == pytest.approx(np.mean(expected), abs=1e-3) and error == pytest.approx(np.std(expected, ddof=1) / 5**0.5, abs=1e-3)
    assert mauve_score.mauve_with_error(p_ND, p_ND)[0] > 0.99 > value > mauve_score.mauve_with_error(p_ND, q_ND + 5)[0]


def test_mauve_of_a_run_comes_with_its_curve(masked_run, causal_run, small_corpus):
    pytest.importorskip("mauve")
    from dlmjax.data import Corpus

    tokenizer = masked_run.experiment.tokenizer
    settings, judge = (
        SampleSettings(suppressed_ids=suppressed_ids(tokenizer, causal_run.experiment.process.vocab)),
        RunScorer(causal_run, tokenizer),
    )
    corpus = Corpus.open(small_corpus, split="valid")
    curve = generated.steps_curve(masked_run, settings, [4], count=20, length=32, scorer=judge, corpus=corpus, mauve=True)
    assert 0 < curve.rows[0]["mauve"] < 1 and "mauve" in generated.table(curve)


def test_bad_calls_end_in_one_line(masked_workdir, causal_workdir, tmp_path, capsys):
    work = ["quality", "--workdir", masked_workdir]
    for flags, said in (
        (["--steps", "4,x"], "--steps is 'x'; give a whole number"),
        (["--scorer", tmp_path], "nothing is downloaded"),
        (["--scorer-workdir", masked_workdir], "must be autoregressive"),
        (["--scorer", "a", "--scorer-workdir", "b"], "not both"),
        (["--samples", "0", "--steps", "1"], "--samples is 0; give a whole number from 1"),
        (["--data", tmp_path / "none"], "none"),
        (["--latency", "--blocks", "64"], "--blocks 64 requires a --length above 64"),
    ):
        assert said in refused(capsys, *work, *flags)


@pytest.mark.parametrize(
    ("changes", "ways"),
    [
        ({"process__name": "blocks(size=4)", "process__self_condition": 0.5}, [("blocks, cache", 2), ("blocks, cache", 4)]),
        ({"process__name": "autoregressive", "model__time_input": "adaln"}, [("autoregressive, cache", 16)]),
    ],
    ids=["blocks", "autoregressive"],
)
def test_a_network_that_fits_no_other_process_is_timed_under_its_own(changes, ways):
    run = random_run(model__depth=1, **changes)
    assert [(way.name, way.steps) for way in latency.ways_of(run, [2, 4], 16, [4])] == ways


def test_a_cache_policy_is_timed_after_the_same_steps_without_reuse(masked_run, causal_run):
    ways = [
        (way.name, way.steps, way.sampler.settings.cache)
        for way in latency.ways_of(masked_run, [4, 16], 16, [8], SampleSettings(cache="dual(block=4)"))
    ]
    fresh, cached = "dual(block=4, every=1)", "dual(block=4)"
    assert ways[:4] == [(f"masked, {text}", steps, text) for steps in (1, 4) for text in (fresh, cached)]
    assert all(cache is False for *_, cache in ways[4:]) and len(ways) == 9
    with pytest.raises(InputError, match="requires a process that reads the whole row"):
        list(latency.ways_of(causal_run, [4], 16, [8], SampleSettings(cache="dual")))
    common = {"steps": 4, "batch": 1, "calls": 16, "tokens_per_second": 10.0, "milliseconds_per_call": 100.0}
    common["positions_read_per_token"] = 4.25
    drift = [{"age": 0, "nats": 0.0, "flips": 0.0, "positions": 6}, {"age": 1, "nats": 0.4, "flips": 0.5, "positions": 2}]
    rows = [{"way": "a", **common}, {"way": "b", **common, "drift": drift}]
    assert latency.table(rows).endswith("| 100.00 | 4.2 | 0.1000 | 12.5 % |")


def test_drafts_are_timed_beside_the_same_sampler_without_them(masked_run, causal_run):
    settings = SampleSettings(rule="margin", draft="own(depth=2)")
    plain, drafting, *others = latency.ways_of(masked_run, [4], 16, [8], settings)
    assert drafting.name == "masked, own(depth=2)" and drafting.texts_of is plain
    assert [way.sampler.settings.draft for way in (plain, drafting, *others)] == [None, "own(depth=2)", None, None]
    with pytest.raises(InputError, match="draft own requires a sampler of the whole canvas"):
        list(latency.ways_of(causal_run, [4], 16, [8], SampleSettings(draft="own")))
    rows = latency.latency_grid(masked_run, [plain, drafting], [2], length=16, repeats=2)
    assert rows[0]["calls"] == 4 >= rows[1]["calls"] and "changed_texts" not in rows[0]
    assert rows[1]["mean_calls"] * (1 + rows[1]["drafts_accepted_per_call"]) == pytest.approx(4)
    assert rows[1]["positions_read_per_token"] == 3 * rows[1]["calls"] and 0 <= rows[1]["changed_texts"] <= 1
    assert latency.table(rows).splitlines()[0].endswith("| calls of a text | drafts accepted/call | changed texts |")


@pytest.mark.nightly
def test_the_cache_of_the_grid_is_measured(masked_run):
    """What drifts is measured on the text that is timed: nothing with a refresh at every call, something without."""
    ways = list(latency.ways_of(masked_run, [16], 16, [8], SampleSettings(cache="dual(block=4)")))[:2]
    fresh, cached = latency.latency_grid(masked_run, ways, [3], length=16, repeats=1)
    assert (fresh["calls"], cached["calls"]) == (16, 16)
    assert fresh["positions_read_per_token"] > 10 > cached["positions_read_per_token"] > 4
    assert [each["age"] for each in fresh["drift"]] == [0] and [each["age"] for each in cached["drift"]] == [0, 1, 2, 3]
    assert all(each["nats"] > 1e-6 for each in cached["drift"][1:]) and abs(fresh["drift"][0]["nats"]) < 1e-6


@pytest.mark.nightly
def test_the_grid_has_every_way_and_divides_rightly(masked_run, causal_run):
    """A clock that says one second a batch: tokens per second are then tokens."""
    ticks = iter(range(10_000))
    ways = list(latency.ways_of(masked_run, [8], 16, [4]))
    rows = latency.latency_grid(masked_run, ways, [3], length=16, repeats=2, clock=lambda: float(next(ticks)))
    # A finished block is read once more for the cache, the last one is not.
    assert [(row["way"], row["steps"], row["calls"]) for row in rows] == [
        ("masked, whole canvas", 8, 8),
        ("blocks of 4, cache", 2, 4 * 2 + 3),
        ("autoregressive, cache", 16, 16),
    ]
    assert all(row["tokens_per_second"] == 16 * 3 and row["seconds"] == 1 and row["batch"] == 3 for row in rows)
    assert rows[0]["milliseconds_per_call"] == 125 and latency.table(rows).count("\n") == 4
    ways = [(way.name, way.steps) for way in latency.ways_of(masked_run, [2, 8, 16], 16, [4, 8])]
    assert ways == [
        *(("masked, whole canvas", steps) for steps in (2, 8, 16)),
        *(("blocks of 4, cache", steps) for steps in (1, 2, 4)),
        *(("blocks of 8, cache", steps) for steps in (1, 4, 8)),
        ("autoregressive, cache", 16),
    ]
    assert [way.name for way in latency.ways_of(causal_run, [2], 16, [4])] == [
        "masked, whole canvas",
        "blocks of 4, cache",
        "autoregressive, cache",
    ]
