"""Repair of planted errors: what is planted, that shares are those of a recount, and which ways a process has."""

import json

import numpy as np
import pytest

from dlmjax.cli.main import main
from dlmjax.errors import InputError
from dlmjax.quality import repair
from dlmjax.sampling import Canvas, SampleSettings, sampler_for
from tests.cli.test_main import refused
from tests.quality.conftest import random_run

ROWS, LENGTH = 6, 32


@pytest.fixture(scope="module")
def hybrid_run():
    return random_run(process__name="hybrid(p_uniform=0.3)", model__time_input="adaln")


@pytest.fixture(scope="module")
def right_NL():
    return np.random.default_rng(0).integers(97, 122, (ROWS, LENGTH)).astype(np.int32)


def test_uniform_errors_are_as_many_as_asked_for_wrong_and_of_all_other_ids(masked_run):
    right_NL = np.full((400, LENGTH), 100, np.int32)
    planted = repair.plant(masked_run, right_NL, 5, seed=3)
    assert (planted.wrong_NL.sum(axis=1) == 5).all() and ((planted.tokens_NL != right_NL) == planted.wrong_NL).all()
    counts = np.bincount(planted.tokens_NL[planted.wrong_NL], minlength=masked_run.experiment.process.vocab)
    ids_K = np.setdiff1d(np.arange(len(counts)), [*masked_run.sample_settings().suppressed_ids, 100])
    assert counts.sum() == counts[ids_K].sum() and abs(counts[ids_K].mean() - 2000 / len(ids_K)) < 1e-6
    assert counts[ids_K].max() < 30, "no id stands for the right one"
    assert planted.wrong_NL.any(axis=0).all() and (repair.plant(masked_run, right_NL, 5, seed=4).tokens_NL != planted.tokens_NL).any()


def test_own_errors_are_what_one_parallel_step_gets_wrong(masked_run, right_NL):
    planted = repair.plant(masked_run, right_NL, 4, kind="own", batch=4, seed=1)
    assert ((planted.tokens_NL != right_NL) == planted.wrong_NL).all()
    assert (planted.wrong_NL.sum(axis=1) <= 4).all() and planted.wrong_NL.sum() > 2 * ROWS
    again = repair.plant(masked_run, right_NL, 4, kind="own", batch=4, seed=1)
    assert (again.tokens_NL == planted.tokens_NL).all()


SLOW = ("gibbs(rounds=3, count=2)", "ancestral; start=0.4; steps=2", "self_correct(by=probability, rounds=4, patience=1)")


@pytest.mark.parametrize("way", ["t2t", *(pytest.param(way, marks=pytest.mark.slow) for way in SLOW)])
def test_shares_are_those_of_a_recount(way, masked_run, hybrid_run, right_NL):
    """From the texts that the same sampler makes, batch by batch; after each step too."""
    run = masked_run if way.startswith("gibbs") else hybrid_run
    found = repair.way_of(run, way, run.sample_settings())
    planted = repair.plant(run, right_NL, 6, seed=2)
    row = repair.repair(run, found, planted, batch=4, seed=5)
    sampler = sampler_for(run.experiment.process, run.experiment.unpartitioned, found.settings, tokenizer=run.experiment.tokenizer)
    texts, calls = [], []
    for number, part in enumerate((slice(0, 4), slice(4, 6))):
        tokens_BL = planted.tokens_NL[part]
        start_BL = np.full(tokens_BL.shape, 0.4 if "start" in way else 1e-9, np.float32)
        samples = sampler.sample(run.params, Canvas(tokens_BL, np.zeros(tokens_BL.shape, bool), start_BL), seed=5 + number)
        texts.append(samples.tokens_BL)
        calls.extend(samples.calls_B.tolist())
    same_NL = np.concatenate(texts) == right_NL
    assert row["repaired"] == pytest.approx(same_NL[planted.wrong_NL].mean())
    assert row["collateral"] == pytest.approx(1 - same_NL[~planted.wrong_NL].mean())
    assert row["left"] == pytest.approx((~same_NL).sum() / planted.wrong_NL.sum()) and row["calls"] == pytest.approx(np.mean(calls))
    assert row["rounds"][-1]["repaired"] == row["repaired"] and row["rounds"][0]["collateral"] == 0 or "start" in way


def test_a_process_has_the_ways_that_it_declares(masked_run, hybrid_run):
    names = {name: [way.partition("(")[0] for way in repair.default_ways(run)] for name, run in (("m", masked_run), ("h", hybrid_run))}
    assert names["m"] == ["ancestral", "psi", "gibbs", "remask"]
    assert names["h"] == ["ancestral", "psi", "gibbs", "self_correct", "self_correct", "t2t"]
    for run in (masked_run, hybrid_run):
        for text in repair.default_ways(run):
            way = repair.way_of(run, text, run.sample_settings())
            assert way.start == (0.3 if text.partition("(")[0] in ("ancestral", "psi", "remask") else 1e-9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gibs", "did you mean 'gibbs'"),
        ("psi(kappa=2)", "kappa is 2"),
        ("psi; start=1.5", "start=1.5 is not a time"),
        ("psi; start=x", "is not a time"),
        ("psi; step=3", "--by"),
        ("margin", "reveals masks"),
        ("t2t", "requires noise that replaces tokens"),
    ],
)
def test_ways_that_are_none_are_refused(text, message, masked_run):
    with pytest.raises(InputError, match=message):
        repair.way_of(masked_run, text, SampleSettings())


def test_the_command_prints_and_writes_the_table(masked_workdir, causal_workdir, tmp_path, capsys):
    flags = ["--repair", "3", "--samples", "3", "--batch", "2", "--by", "gibbs(rounds=2)", "psi; steps=2", "--output", str(tmp_path)]
    assert main(["quality", "--workdir", str(masked_workdir), *flags]) == 0
    printed, report = capsys.readouterr().out, json.loads((tmp_path / "repair.json").read_text())
    assert [row["label"] for row in report["rows"]] == ["gibbs(rounds=2)", "psi; steps=2"] and report["wrong_tokens"] == 3
    assert len(report["rows"][0]["rounds"]) == 4 and "| `gibbs(rounds=2)` | as it is | 3 |" in printed
    for more, said in (
        (["--repair", "17"], "--repair is 17; it must be 1 to 16"),
        (["--repair", "3", "--latency"], "--repair conflicts with --latency"),
        (["--repair", "3", "--samples", "100000"], "--samples 100000"),
        (["--repair", "3", "--by", "margin"], "reveals masks"),
    ):
        assert said in refused(capsys, "quality", "--workdir", masked_workdir, *more), more
    assert "sampled at once" in refused(capsys, "quality", "--workdir", causal_workdir, "--repair", "3", "--samples", "3")
