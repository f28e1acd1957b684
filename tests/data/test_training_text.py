"""A tokenizer is trained on the train split and on nothing else."""

import json

import pytest

from dlmjax.cli.main import main
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


def test_a_model_of_other_text_is_not_used_again(source, tmp_path):
    """It may have been trained on what is held out now; what differs is named, and --overwrite trains it again."""
    other = tmp_path / "other.jsonl"
    other.write_text(source.read_text(encoding="utf-8") + '{"text": "one more"}\n', encoding="utf-8")
    model, note, wanted = tmp_path / "data.model", tmp_path / "data.model.json", {"valid_fraction": 0.2, "split_seed": 5}

    def train(vocab=400, inputs=source, **options):
        return train_tokenizer(f"train-sentencepiece:{vocab}", [str(inputs)], str(tmp_path / "data"), **{**wanted, **options})

    assert train() == f"sentencepiece:{model}"
    first, when = model.read_bytes(), model.stat().st_mtime_ns
    changes = [{"vocab": 380}, {"inputs": other}, {"split_seed": 6}, {"valid_fraction": 0.1}, {"test_fraction": 0.1}, {"documents": "line"}]
    for change in changes:
        with pytest.raises(InputError, match=rf"trained with another request \({next(iter(change))}\).*delete it.*--overwrite"):
            train(**change)
    assert train() == train(overwrite=True) and model.stat().st_mtime_ns == when
    train(split_seed=6, overwrite=True)
    second = model.read_bytes()
    assert second != first and train(split_seed=6) and model.read_bytes() == second
    model.write_bytes(first)
    with pytest.raises(InputError, match=r"\(model_sha256\)"):
        train(split_seed=6)
    note.unlink()
    with pytest.raises(InputError, match=r"data\.model\.json is missing or not readable"):
        train()
    model.unlink()
    train()
    assert model.read_bytes() == first and note.exists()


def test_overwriting_a_corpus_trains_its_tokenizer_again(source, tmp_path, capsys):
    argv = ["prepare", "--input", str(source), "--output", str(tmp_path / "data"), "--tokenizer"]
    assert main([*argv, "train-sentencepiece:400"]) == 0
    assert main([*argv, "train-sentencepiece:380"]) == 2
    assert "was trained with another request (vocab)" in capsys.readouterr().err
    assert main([*argv, "train-sentencepiece:380", "--overwrite"]) == 0
    assert Corpus.open(tmp_path / "data").tokenizer.vocab_size == 380


def test_a_spec_without_a_size_is_refused(source, tmp_path):
    with pytest.raises(InputError, match="train-sentencepiece:4096"):
        train_tokenizer("train-sentencepiece", [str(source)], str(tmp_path / "x"))
    for size in ("", "x", "\u0661\u0662", "\u00b2", "-4", "4e3", "9" * 5000):
        with pytest.raises(InputError, match="train-sentencepiece:4096"):
            train_tokenizer(f"train-sentencepiece:{size}", [str(source)], str(tmp_path / "x"))
    assert train_tokenizer("bytes", [str(source)], str(tmp_path / "x")) == "bytes"


def test_a_bad_line_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"body": "b"}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"a\.jsonl, line 2 \(byte 17\): no field 'text'"):
        list(training_texts([str(tmp_path / "a.jsonl")]))
