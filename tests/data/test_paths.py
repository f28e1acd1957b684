"""Files at URLs: distinguished from local ones, published atomically, fetched and verified, and named when storage fails."""

import pathlib
import uuid

import fsspec
import numpy as np
import pytest
from fsspec.registry import _registry, known_implementations

from dlmjax.data.corpus import Corpus
from dlmjax.data.formats import Position, Reader, make_source
from dlmjax.data.manifest import Manifest
from dlmjax.data.paths import CorpusStore, Unreachable, is_url, open_binary, size_of
from dlmjax.data.prepare import prepare
from dlmjax.data.training_text import train_tokenizer
from dlmjax.errors import InputError


@pytest.fixture
def bucket():
    """A store in memory that no other test sees."""
    url = f"memory://bucket-{uuid.uuid4().hex}"
    yield url
    filesystem, root = fsspec.core.url_to_fs(url)
    if filesystem.exists(root):
        filesystem.rm(root, recursive=True)


def put(url: str, content: bytes) -> None:
    filesystem, path = fsspec.core.url_to_fs(url)
    filesystem.pipe_file(path, content)


class Broken(fsspec.AbstractFileSystem):
    """A service that lists its files and then fails to send them: what no local filesystem can be made to do."""

    protocol = "broken"

    def info(self, path, **_):
        return {"name": path, "size": 3 << 20, "type": "file"}

    def _open(self, path, mode="rb", **_):
        return _BrokenFile()


class _BrokenFile:
    """Sends the first MiB and the last, and none between them."""

    at = 0

    def read(self, count):
        if self.at == 1 << 20:
            raise TimeoutError("no answer\nfor 60 s")
        count = min(count, (3 << 20) - self.at)
        self.at += count
        return b"a" * count

    def seek(self, offset, whence=0):
        self.at = offset
        return offset

    def tell(self):
        return self.at

    def close(self):
        pass


@pytest.fixture
def broken():
    fsspec.register_implementation("broken", Broken, clobber=True)
    yield "broken://service/a.txt"
    _registry.pop("broken")


def test_what_is_a_url():
    assert all(map(is_url, ["gs://b/a", "s3://b", "memory://a", "abfss+x://c", "file:///tmp"]))
    assert not any(map(is_url, ["a", "/a/b", "./gs://a", "C:\\a", "builtin:python-docs", pathlib.Path("/a/s3:/b"), ":///"]))


def test_sizes_and_what_is_not_a_file(bucket, tmp_path):
    put(f"{bucket}/d/a.txt", b"abc")
    (tmp_path / "a.txt").write_bytes(b"abc")
    for root in (f"{bucket}/d", str(tmp_path)):
        assert size_of(f"{root}/a.txt") == 3 and size_of(f"{root}/b.txt") is None
        with open_binary(f"{root}/a.txt") as file:
            assert (file.read(1), file.tell(), file.seek(0), file.read()) == (b"a", 1, 0, b"abc")
        with pytest.raises(IsADirectoryError):
            size_of(root)
    for name, message in [(f"{bucket}/d", "is a directory"), (f"{bucket}/d/b.txt", "does not exist")]:
        with pytest.raises(InputError, match=message):
            make_source(name, None, None, "file", "text")


@pytest.mark.parametrize("kind", ["memory", "local", "file"])
def test_a_corpus_store(kind, bucket, tmp_path):
    store = CorpusStore({"memory": bucket, "local": str(tmp_path / "c"), "file": f"file://{tmp_path}/c"}[kind])
    assert store.names() == [] and store.read("a") is None and store.sha256("a") is None
    store.make(".unfinished")
    store.make(".unfinished")
    for content in (b"old", b"new"):
        store.write("a", content)
    store.write(".unfinished/b", b"b")
    assert store.names() == ["a"] and store.names(".unfinished") == ["b"] and store.read("a") == b"new"
    with store.scratch() as directory:
        (directory / "part").write_bytes(b"shard")
        store.publish(directory / "part", "a")
        assert not list(directory.iterdir())
    assert store.read("a") == b"shard" and store.names(".unfinished") == ["b"]
    store.fetch("a", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"shard"
    with pytest.raises(FileNotFoundError):
        store.fetch("none", tmp_path / "none")
    assert not list(tmp_path.glob("none*"))
    store.write("keep", b"")
    store.clear("", lambda name: name in ("keep", ".unfinished"))
    store.remove("a")
    assert store.names() == ["keep"] and store.names(".unfinished") == ["b"]


def test_storage_that_fails_is_not_taken_for_a_damaged_file(broken):
    source = make_source(broken, None, None, "file", "text")  # the first MiB and the last can be read
    with pytest.raises(Unreachable, match=r"broken://service/a\.txt cannot be reached \(TimeoutError: no answer for 60 s\)"):
        list(Reader([source], Position(0)))


def test_libraries_that_are_not_there_and_unknown_schemes():
    for name in ("nosuch://a/b.txt", "hdfsx://a"):
        with pytest.raises(InputError, match=f"{name} cannot be reached .*[Pp]rotocol"):
            make_source(name, None, None, "file", "text")


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(known_implementations, "far", {"class": "nosuch_fs.Far", "err": "Install nosuch_fs"})
    with pytest.raises(InputError, match=r"far://a/b.txt: the library of this kind of storage is not installed .*Install nosuch_fs"):
        size_of("far://a/b.txt")


# ---- corpora at a URL -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def remote(corpus, bucket, tmp_path, monkeypatch):
    """The corpus of the other tests, at a URL."""
    monkeypatch.setenv("DLMJAX_CACHE", str(tmp_path / "cache"))
    for path in corpus.directory.rglob("*"):
        if path.is_file():
            put(f"{bucket}/{path.relative_to(corpus.directory)}", path.read_bytes())
    return bucket


def test_a_corpus_at_a_url_is_read_from_a_verified_copy(corpus, remote, tmp_path):
    found = Corpus.open(remote)
    np.testing.assert_array_equal(found.read(0, found.num_tokens), corpus.read(0, corpus.num_tokens))
    assert found.directory.is_relative_to(tmp_path / "cache") and found.tokenizer.hash == corpus.tokenizer.hash
    before = {path: path.stat().st_mtime_ns for path in found.directory.glob("*.array_record")}
    assert Corpus.open(remote).directory == found.directory
    assert {path: path.stat().st_mtime_ns for path in before} == before  # fetched once

    torn, changed = sorted(before)[:2]
    torn.write_bytes(torn.read_bytes()[:-1])
    Corpus.open(remote)
    data = changed.read_bytes()
    changed.write_bytes(data[:-7] + b"changed")
    Corpus.open(remote, verify=True)
    assert changed.read_bytes() == data and sorted(before) == sorted(found.directory.glob("*.array_record*"))


def test_a_shard_that_is_wrong_at_the_url_is_never_used(remote):
    directory = Corpus.open(remote).directory
    shard = Manifest.load(directory).shards("train")[1]
    filesystem, root = fsspec.core.url_to_fs(remote)
    data = filesystem.cat_file(f"{root}/{shard.file}")
    here = directory / shard.file
    for wrong, message in [(data[:-7] + b"changed", "was changed since it was prepared"), (None, "is missing")]:
        here.unlink(missing_ok=True)
        if wrong:
            put(f"{remote}/{shard.file}", wrong)
        else:
            filesystem.rm_file(f"{root}/{shard.file}")
        with pytest.raises(InputError, match=rf"{shard.file} {message}.*--engine beam"):
            Corpus.open(remote)
        assert not list(directory.glob(f"{shard.file}*"))


def test_what_is_no_corpus_at_a_url(remote, bucket, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="has no split 'test'; it has: train"):
        Corpus.open(remote, "test")
    with pytest.raises(InputError, match="holds no prepared corpus"):
        Corpus.open(f"{bucket}/elsewhere")
    put(f"{bucket}/half/.unfinished/request.json", b"{}")
    with pytest.raises(InputError, match="holds an unfinished preparation"):
        Corpus.open(f"{bucket}/half")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DLMJAX_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="set DLMJAX_CACHE to another directory"):
        Corpus.open(remote)


def test_a_tokenizer_is_not_trained_beside_a_url(bucket):
    with pytest.raises(InputError, match=r"prepare a sample of the text locally.*sentencepiece:SAMPLE\.model"):
        train_tokenizer("train-sentencepiece:300", ["builtin:python-docs"], bucket)


def test_a_text_at_a_url_keeps_its_name_in_the_manifest(bucket, tmp_path):
    put(f"{bucket}/a.txt", b"some words")
    found = prepare([f"{bucket}/a.txt"], "bytes", tmp_path, progress=False)
    assert found.request["inputs"][0]["name"] == f"{bucket}/a.txt" and list(Corpus.open(tmp_path).documents()) == ["some words"]
