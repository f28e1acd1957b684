"""Supervised data from the files to the number: one corpus trains and evaluates every family, from the weights of a base run."""

import json

import numpy as np
import pytest

from dlmjax import config as config_lib
from dlmjax.data import Corpus
from dlmjax.data.prepare import prepare
from dlmjax.errors import InputError
from dlmjax.evaluate import EvaluationSettings, TextSettings, evaluate
from dlmjax.run import open_run
from dlmjax.train import train
from dlmjax.training import read
from tests.test_train import tiny_config

RECORDS = [{"prompt": f"{a}+{b}=", "answer": f"{a + b}."} for a in range(12) for b in range(12)]
FAMILIES = {
    "masked_count": {},
    "autoregressive": {},
    "blocks": {"process__name": "blocks(size=4)"},
    "uniform": {"model__time_input": "adaln"},
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """A corpus of sums: the prompt is given, the answer and its end are scored."""
    root = tmp_path_factory.mktemp("sums")
    (root / "sums.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    prepare([root / "sums.jsonl"], "bytes", root / "data", format="prompt-answer", valid_fraction=0.2, progress=False)
    return root / "data"


def answers_config(answers, name: str, **changes):
    values = {"process__name": name, **FAMILIES[name], "data__packing": "documents", "train__steps": 2, "log__sample": 0, "log__every": 1}
    return tiny_config(answers, **{**values, "model__vocab": 264, **changes})


def lines_of(workdir, kind: str) -> list[dict]:
    return read(workdir / "metrics.jsonl", kind)


@pytest.mark.parametrize("name", ["masked_count", *(pytest.param(name, marks=pytest.mark.slow) for name in list(FAMILIES)[1:])])
def test_one_corpus_trains_every_family(answers, name, tmp_path):
    """Two steps, the second run from the weights of the first; only answers count, in training and in the held-out bound."""
    config = answers_config(answers, name, data__tail="random(most=3)", process__tail_weight=0.5, log__evaluate=2)
    train(config, str(tmp_path / "base"))
    train(config, str(tmp_path / "run"), init=str(tmp_path / "base"))
    line = lines_of(tmp_path / "run", "train")[-1]
    assert 3 < line["tokens_per_text"] < 8 and 0.1 < line["tail_share"] < 0.7 and 0 < line["tail_nats_share"] < 1
    assert any(key.endswith("tail_weight_not_a_bound") for key in line)
    run = open_run(tmp_path / "run")
    found = evaluate(run, TextSettings(), EvaluationSettings(nodes=2))
    corpus = Corpus.open(answers, split="valid")
    assert found.result.tokens < 0.6 * corpus.num_tokens
    # As the run was trained: the nats of its tails belong to the bound of the answers before them, whose tokens alone are counted.
    answer, tail = found.report["roles"]
    assert (answer["role"], tail["role"], answer["tokens"]) == ("assistant", "tail", found.result.tokens) and tail["tokens"] > 0
    nats = sum(row["tokens"] * row["nats_per_token"] for row in (answer, tail))
    assert nats / answer["tokens"] == pytest.approx(found.result.nats_per_token)
    alone = evaluate(run, TextSettings(tail="none"), EvaluationSettings(nodes=2))
    assert [row["role"] for row in alone.report["roles"]] == ["assistant"] and alone.result.tokens == found.result.tokens
    assert alone.report["roles"][0]["nats_per_token"] == pytest.approx(alone.result.nats_per_token)


def test_a_tail_that_cannot_be_is_refused(answers, small_corpus, tmp_path):
    cases = [
        (answers_config(answers, "masked_count", data__tail="block"), "requires a process in blocks"),
        (answers_config(answers, "masked_count", data__tail="row(pads=7)"), "model.vocab=266"),
        (tiny_config(small_corpus, data__tail="row"), "requires a corpus with answers"),
    ]
    for config, message in cases:
        with pytest.raises(InputError, match=message):
            train(config, str(tmp_path / "run"))
        assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="config field data.tail.*most is 0"):
        tiny_config(small_corpus, data__tail="random(most=0)")


def test_a_tail_of_text_without_answers_is_refused(small_corpus, tmp_path):
    train(tiny_config(small_corpus, train__steps=2, log__evaluate=0, log__sample=0), str(tmp_path / "run"))
    run = open_run(tmp_path / "run")
    for settings in (dict(tail="row"), dict(tail="none")):
        with pytest.raises(InputError, match="tail .* requires a corpus with answers"):
            evaluate(run, TextSettings(**settings), EvaluationSettings(nodes=2))
    with pytest.raises(InputError, match="tail row requires a corpus with answers"):
        TextSettings(texts=["a"], tail="row")
    with pytest.raises(InputError, match="tail"):
        evaluate(run, TextSettings(tail="rwo"), EvaluationSettings(nodes=2))


def test_infilling_and_random_lengths_train_on_any_corpus(small_corpus, tmp_path):
    config = tiny_config(
        small_corpus, data__infill="spans(share=1.0)", data__random_length=0.5, train__steps=2, log__evaluate=0, log__sample=0
    )
    train(config, str(tmp_path / "run"))
    line = lines_of(tmp_path / "run", "train")[-1]
    assert line["tokens_per_text"] < 20 and np.isfinite(line["nelbo"])
    assert config_lib.fingerprint(config) != config_lib.fingerprint(tiny_config(small_corpus, train__steps=2))
