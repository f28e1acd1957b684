"""Token counts: those of the text, stored with the corpus, and made again where they are not what they should be."""

import numpy as np
import pytest

from dlmjax.data import counts
from dlmjax.data.corpus import Corpus
from dlmjax.data.manifest import Manifest
from dlmjax.data.prepare import prepare
from tests.data.conftest import make_documents

OPTIONS = {"valid_fraction": 0.2, "documents": "blank-line", "shard_bytes": 5_000, "workers": 1, "progress": False}


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(text.replace("\n", " ") for text in make_documents(120, 700, 5)))
    return path


def _truth(corpus: Corpus) -> np.ndarray:
    return np.bincount(corpus.read(0, corpus.num_tokens), minlength=corpus.tokenizer.vocab_size)


def test_counts_are_those_of_the_stream(source, tmp_path, monkeypatch):
    monkeypatch.setattr(counts, "_RECORDS", 1)
    found = prepare([source], "bytes", tmp_path / "corpus", **OPTIONS)
    assert len(found.shards("train")) > 1 and sum(shard.token_records for shard in found.shards("train")) > 3
    for split in ("train", "valid"):
        corpus = Corpus.open(tmp_path / "corpus", split)
        np.testing.assert_array_equal(corpus.counts_V, _truth(corpus))
        assert corpus.counts_V.dtype == np.int64 and corpus.counts_V.sum() == corpus.num_tokens
        assert corpus.counts_V[corpus.tokenizer.eos_id] == corpus.num_documents
    stored = np.load(tmp_path / "corpus" / "counts.npy")
    np.testing.assert_array_equal(stored, Corpus.open(tmp_path / "corpus").counts_V)


def test_the_file_is_the_same_bytes_and_made_again_only_if_it_must_be(source, tmp_path, monkeypatch):
    directory = tmp_path / "corpus"
    prepare([source], "bytes", directory, **OPTIONS)
    path = directory / "counts.npy"
    before = path.read_bytes()

    calls = []
    count = counts.count_tokens
    monkeypatch.setattr(counts, "count_tokens", lambda *args: calls.append(args) or count(*args))
    prepare([source], "bytes", directory, **OPTIONS)
    assert not calls and path.read_bytes() == before
    for damage in (lambda: path.unlink(), lambda: path.write_bytes(before[:-9]), lambda: np.save(path, np.ones(7, np.int64))):
        damage()
        assert counts.load_counts(directory, Manifest.load(directory)) is None
        corpus = Corpus.open(directory)
        np.testing.assert_array_equal(corpus.counts_V, _truth(corpus))  # also before prepare is called again
        prepare([source], "bytes", directory, **OPTIONS)
        assert path.read_bytes() == before
    assert len(calls) == 6 and not list(directory.glob("*.part"))


def test_a_new_corpus_in_its_place_has_new_counts(source, tmp_path):
    directory = tmp_path / "corpus"
    prepare([source], "bytes", directory, **OPTIONS)
    before = np.load(directory / "counts.npy")
    source.write_text(source.read_text().upper())
    prepare([source], "bytes", directory, overwrite=True, **OPTIONS)
    corpus = Corpus.open(directory)
    np.testing.assert_array_equal(corpus.counts_V, _truth(corpus))
    assert not np.array_equal(corpus.counts_V, before)
