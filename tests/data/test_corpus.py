"""A corpus can be read anywhere, and reports its damage."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from dlmjax.data import corpus as corpora
from dlmjax.data.corpus import Corpus
from dlmjax.data.manifest import RECORD_TOKENS
from dlmjax.data.prepare import prepare
from dlmjax.errors import InputError


def test_any_stretch_of_the_stream_can_be_read(corpus, stream):
    assert corpus.num_tokens == len(stream) and len(corpus.shards) > 5
    starts = np.cumsum([0, *(shard.tokens for shard in corpus.shards)]).tolist()
    edges = sorted({0, 1, *starts, *(s - 1 for s in starts[1:]), RECORD_TOKENS - 1, RECORD_TOKENS, len(stream) - 1})
    for begin in edges:
        for end in [begin, begin + 1, *edges]:
            if begin <= end <= len(stream):
                np.testing.assert_array_equal(corpus.read(begin, end - begin), stream[begin:end])
    for begin, count in [(-1, 2), (0, len(stream) + 1), (5, -1)]:
        with pytest.raises(InputError, match="of a stream of"):
            corpus.read(begin, count)


def test_reading_many_rows_fills_only_what_was_asked_and_wraps(corpus, stream):
    out_BL = np.full((4, 9000), -1, np.int32)
    offsets = [100, len(stream) - 50, 0]
    corpus.read_into(out_BL, np.array([3, 0, 1]), np.array(offsets), np.array([9000, 200, 0]))
    np.testing.assert_array_equal(out_BL[3], stream[100:9100])
    np.testing.assert_array_equal(out_BL[0, :200], stream[-50:] + stream[:150])
    assert (out_BL[0, 200:] == -1).all() and (out_BL[1:3] == -1).all()


def test_document_ends_and_texts(corpus, stream, texts):
    ends = np.concatenate(list(corpus.document_ends()))
    np.testing.assert_array_equal(ends, np.flatnonzero(np.array(stream) == corpus.tokenizer.eos_id) + 1)
    assert list(corpus.documents()) == texts
    assert corpus.num_documents == len(texts) and corpus.num_bytes == sum(len(t.encode()) for t in texts)
    assert "documents" in repr(corpus)


def test_few_shards_are_kept_open(corpus, stream, monkeypatch):
    monkeypatch.setattr(corpora, "OPEN_SHARDS", 2)
    fresh = Corpus.open(corpus.directory)
    for begin in np.random.default_rng(0).integers(0, len(stream) - 100, 50).tolist():
        np.testing.assert_array_equal(fresh.read(begin, 100), stream[begin : begin + 100])
        assert len(fresh._readers) <= 2


@pytest.fixture
def copy(corpus, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(corpus.directory, tmp_path / "copy"))


def test_truncated_shard(copy):
    path = copy / "train-00003.array_record"
    records = Corpus.open(copy).shards[3].records
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(
        InputError, match=rf"train-00003\.array_record ends after \d of {records} records; prepare it again with: dlmjax prepare"
    ) as caught:
        Corpus.open(copy)
    assert str(caught.value).endswith(f"--output {copy} --documents separator:=== (nothing else was changed)")


def test_missing_longer_and_changed_shards(copy):
    path = copy / "train-00001.array_record"
    good = path.read_bytes()
    path.write_bytes(good + b"more")
    with pytest.raises(InputError, match="has [\\d,]+ bytes, but [\\d,]+ in the manifest"):
        Corpus.open(copy)
    changed = bytearray(good)
    changed[len(good) // 2] ^= 1
    path.write_bytes(changed)
    opened = Corpus.open(copy)  # sizes agree
    with pytest.raises(InputError, match="its sha256 differs"):
        opened.verify()
    with pytest.raises(InputError, match="its sha256 differs"):
        Corpus.open(copy, verify=True)
    begin = opened.shards[0].tokens
    with pytest.raises(InputError, match="its sha256 differs"):  # Riegeli's own checksum finds it when the record is read
        opened.read(begin, opened.shards[1].tokens)
    path.unlink()
    with pytest.raises(InputError, match="is missing; prepare it again"):
        Corpus.open(copy)


def test_not_a_corpus(copy, tmp_path):
    with pytest.raises(InputError, match="has no split 'test'; it has: train"):
        Corpus.open(copy, "test")
    with pytest.raises(InputError, match="holds no prepared corpus .*make one with: dlmjax prepare"):
        Corpus.open(tmp_path)
    path = copy / "manifest.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"version": 99}))
    with pytest.raises(
        InputError, match="has format version 99, but this dlmjax requires version 1; prepare it again with: dlmjax prepare --input"
    ):
        Corpus.open(copy)
    path.write_text(json.dumps(values)[:-100])
    with pytest.raises(InputError, match="is damaged .*prepare the corpus again with --overwrite"):
        Corpus.open(copy)
    path.write_text(json.dumps({"format": "something else"}))
    with pytest.raises(InputError, match="not a dlmjax corpus"):
        Corpus.open(copy)


def test_vocabulary_of_more_than_65536_ids_needs_four_bytes(tmp_path):
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    vocabulary = {c: i for i, c in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), *(f"never{i}" for i in range(70_000))])}
    vocabulary["zz"] = len(vocabulary)
    backend = Backend(models.BPE(vocabulary, [("z", "z")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "a.txt").write_text("a zz b")
    prepare([tmp_path / "a.txt"], f"hf:{tmp_path}", tmp_path / "c")
    corpus = Corpus.open(tmp_path / "c")
    assert corpus.manifest.dtype == "uint32"
    assert vocabulary["zz"] in corpus.read(0, corpus.num_tokens).tolist() and list(corpus.documents()) == ["a zz b"]
