"""A tokenizer is trained on the train split and on nothing else."""

import json

import pytest

from dlmjax.__main__ import main
from dlmjax.data import Corpus
from dlmjax.data.training_text import train_tokenizer, training_texts
from dlmjax.errors import InputError


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "documents.jsonl"
    texts = [f"document {i} " + " ".join(f"word{i}x{j}" for j in range(60)) for i in range(60)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def test_the_texts_are_those_of_the_train_split(source, tmp_path):
    split = {"valid_fraction": 0.2, "test_fraction": 0.2, "split_seed": 5}
    flags = ["--valid-fraction", "0.2", "--test-fraction", "0.2", "--split-seed", "5"]
    assert main(["prepare", "--input", str(source), "--output", str(tmp_path / "data"), *flags]) == 0
    prepared = list(Corpus.open(tmp_path / "data", split="train").documents())
    assert list(training_texts([str(source)], **split)) == prepared
    assert 20 < len(prepared) < 60
    files = {"valid": [str(source)]}
    other = tmp_path / "train.txt"
    other.write_text("only this", encoding="utf-8")
    assert list(training_texts([str(other)], split_files=files)) == ["only this"]


def test_one_command_trains_the_tokenizer_and_prepares(source, tmp_path):
    argv = ["prepare", "--input", str(source), "--tokenizer", "train-sentencepiece:400", "--output", str(tmp_path / "data")]
    assert main(argv) == 0
    corpus = Corpus.open(tmp_path / "data", split="train")
    assert corpus.tokenizer.vocab_size == 400
    assert corpus.num_tokens < corpus.num_bytes / 1.5
    model = (tmp_path / "data.model").read_bytes()
    assert main(argv) == 0  # prepared already; the model is used again
    assert (tmp_path / "data.model").read_bytes() == model


def test_a_spec_without_a_size_is_refused(source, tmp_path):
    with pytest.raises(InputError, match="train-sentencepiece:4096"):
        train_tokenizer("train-sentencepiece", [str(source)], str(tmp_path / "x"))
    assert train_tokenizer("bytes", [str(source)], str(tmp_path / "x")) == "bytes"


def test_a_bad_line_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"body": "b"}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"a\.jsonl, line 2 \(byte 17\): no field 'text'"):
        list(training_texts([str(tmp_path / "a.jsonl")]))
