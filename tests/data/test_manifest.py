"""The files of a corpus are data: no name leads out of its folder, no number that contradicts another is used, no link is followed."""

import hashlib
import json
import pathlib
import shutil

import pytest

from dlmjax.data.corpus import Corpus
from dlmjax.data.manifest import Manifest
from dlmjax.data.prepare import prepare
from dlmjax.errors import InputError
from dlmjax.files import CHECKSUM, sealed
from tests.data.test_paths import bucket, put  # noqa: F401

OPTIONS = {"documents": "line", "valid_fraction": 0.3, "shard_bytes": 200, "progress": False}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> pathlib.Path:
    """Some shards of both splits, in a folder of its own."""
    root = tmp_path_factory.mktemp("small")
    (root / "a.txt").write_text("".join(f"line {n} of some text\n" for n in range(60)))
    prepare([root / "a.txt"], "bytes", root / "c", **OPTIONS)
    return root / "c"


@pytest.fixture
def copy(small, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(small, tmp_path / "in" / "copy"))


def shard_of(values: dict, split: str = "train") -> dict:
    return next(segment["shards"][split] for segment in values["segments"] if split in segment["shards"])


def change(values: dict, path: str, value) -> None:
    """Sets a field, as in "tokenizer.vocab_size"; "shard." is the first shard of the train split."""
    at = shard_of(values) if path.startswith("shard.") else values
    *parents, last = path.removeprefix("shard.").split(".")
    for name in parents:
        at = at[int(name) if name.isdigit() else name]
    at[int(last) if last.isdigit() else last] = value


OUTSIDE = ["../outside", "/tmp/outside", "..", "", "a/../../outside", "train-00000.array_record/../../x", "manifest.json", None, 3]
LIES = [
    *(
        ("shard.file", name)
        for name in (*OUTSIDE, "valid-00000.array_record", "train-00001.array_record", "train-\u0663\u0663\u0663\u0663\u0663.array_record")
    ),
    *((f"shard.{field}", value) for field in ("tokens", "documents", "text_bytes", "file_bytes") for value in (-1, 1.5, "9", True, 10**30)),
    ("shard.sha256", "0"),
    ("shard.sha256", None),
    *((f"tokenizer.{name}", value) for name in ("vocab_size", "mask_id", "pad_id", "eos_id") for value in (7, 10**12, -1, "x", None)),
    ("tokenizer.hash", "0" * 64),
    ("tokenizer.kind", "char27"),
    ("tokenizer", None),
    ("dtype", "uint32"),
    ("dtype", "object"),
    ("record_tokens", 4095),
    ("splits.train.tokens", 1),
    ("splits.valid.text_bytes", 1),
    ("splits", {}),
    ("request", None),
    ("request", {}),
    ("request.inputs", 3),
    ("segments", []),
    ("segments", None),
    ("segments.0.end", None),
    ("segments.0.end", ["../x"]),
    ("segments.0.open_split", "../x"),
    ("segments.0.shards", []),
    ("format", "other"),
    ("version", None),
    ("more", 1),
]


@pytest.mark.parametrize(("field", "value"), LIES, ids=[f"{field}={value!r:.40}" for field, value in LIES])
def test_a_manifest_that_lies_is_told_whatever_its_checksum(copy, field, value):
    """Changed by hand (the checksum of before), made to pass for whole (its own checksum), or for an older version's (none)."""
    path = copy / "manifest.json"
    whole = path.read_text()
    before = set(copy.parent.rglob("*"))
    for checksum in ("before", "own", "none"):
        values = json.loads(whole)
        kept = values.pop(CHECKSUM)
        change(values, field, value)
        path.write_text(json.dumps({**values, CHECKSUM: kept} if checksum == "before" else sealed(values) if checksum == "own" else values))
        with pytest.raises(InputError) as told:
            Corpus.open(copy)
        said = str(told.value)
        assert "\n" not in said and "manifest.json" in said and ("prepare" in said or "put back" in said), said
    assert set(copy.parent.rglob("*")) == before


def lie_about(copy, split, field, by):
    """A manifest that agrees with itself and with its checksum, but not with its shards."""
    path = copy / "manifest.json"
    values = json.loads(path.read_text())
    del values[CHECKSUM]
    shard_of(values, split)[field] += by
    values["splits"][split][field] += by
    return path, values


@pytest.mark.parametrize("split", ["train", "valid"])
@pytest.mark.parametrize(
    ("field", "by"), [("text_bytes", 1), ("documents", 1), ("documents", -1), ("tokens", 1), ("tokens", -1), ("tokens", 5000)]
)
def test_counts_are_compared_with_the_tokens(copy, split, field, by):
    path, values = lie_about(copy, split, field, by)
    path.write_text(json.dumps(sealed(values)))
    with pytest.raises(InputError, match="prepare it again|prepare the corpus again"):
        Corpus.open(copy, split, verify=True)
    path.write_text(json.dumps(values))  # an older version's: counted where the number is used
    with pytest.raises(InputError, match="prepare it again|prepare the corpus again") as told:
        _ = Corpus.open(copy, split).num_bytes
    assert "\n" not in str(told.value)


def test_a_stream_that_is_shorter_than_told_is_no_traceback(copy):
    path, values = lie_about(copy, "train", "tokens", 1)
    path.write_text(json.dumps(sealed(values)))
    found = Corpus.open(copy)
    with pytest.raises(InputError, match="too short|records"):
        found.read(0, found.num_tokens)


def test_a_corpus_of_an_older_version_opens(copy):
    path = copy / "manifest.json"
    values = json.loads(path.read_text())
    del values[CHECKSUM]
    path.write_text(json.dumps(values, indent=1))
    found = Corpus.open(copy, verify=True)
    assert found.num_bytes == values["splits"]["train"]["text_bytes"] and not found.manifest.checked


@pytest.mark.parametrize("name", ["../../outside", "/{tmp}/outside", "../tokenizer/x"])
def test_a_manifest_at_a_url_writes_nothing_outside_its_cache(small, bucket, tmp_path, monkeypatch, name):  # noqa: F811
    """The bytes are there and have the size and the hash in the manifest: only the name is wrong."""
    monkeypatch.setenv("DLMJAX_CACHE", str(tmp_path / "deep" / "cache"))
    name = name.replace("/{tmp}", str(tmp_path))
    values = json.loads((small / "manifest.json").read_text())
    del values[CHECKSUM]
    shard = shard_of(values)
    data = (small / shard["file"]).read_bytes()
    for path in small.rglob("*"):
        if path.is_file():
            put(f"{bucket}/{path.relative_to(small)}", path.read_bytes())
    put(f"{bucket}/{name}", data)
    shard["file"] = name
    for content in (values, sealed(values)):
        put(f"{bucket}/manifest.json", json.dumps(content).encode())
        with pytest.raises(InputError, match="is damaged .*is not a name of a shard"):
            Corpus.open(bucket)
    assert hashlib.sha256(data).hexdigest() == shard["sha256"]
    cache = tmp_path / "deep" / "cache"
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(cache)]


def test_a_damaged_copy_of_a_tokenizer_is_fetched_again(small, bucket, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("DLMJAX_CACHE", str(tmp_path / "cache"))
    for path in small.rglob("*"):
        if path.is_file():
            put(f"{bucket}/{path.relative_to(small)}", path.read_bytes())
    directory = Corpus.open(bucket).directory
    for left in (".manifest.json.abcdefgh.part", f"train-00000.array_record.fetched.{'0' * 32}.part", "train-00000.array_record.fetched"):
        (directory / left).write_text("of a kill")
    (directory / "tokenizer" / "dlmjax_tokenizer.json").write_text("{")
    assert Corpus.open(bucket).num_tokens and not [*directory.glob("*.part"), *directory.glob("*.fetched")]


@pytest.mark.parametrize("name", ["../../elsewhere", "/etc/hostname", "a/../../b", 3, None])
def test_a_tokenizer_names_files_of_its_own_folder(copy, name):
    path = copy / "tokenizer" / "dlmjax_tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"kind": "hf", "files": [name]}))
    with pytest.raises(InputError, match=r"dlmjax_tokenizer\.json") as told:
        Corpus.open(copy)
    assert "\n" not in str(told.value)


def tree(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_no_deletion_of_prepare_follows_a_link(copy, tmp_path):
    """--overwrite removes what is named like the files of a corpus; what their links lead to stays."""
    (tmp_path / "a.txt").write_text("another text\n" * 20)
    elsewhere = tmp_path / "elsewhere"
    shutil.move(copy / "tokenizer", elsewhere / "tokenizer")
    shutil.move(copy / "train-00000.array_record", elsewhere / "shard")
    (elsewhere / "notes").write_text("mine")
    (copy / "tokenizer").symlink_to(elsewhere / "tokenizer")
    (copy / "train-00000.array_record").symlink_to(elsewhere / "shard")
    (copy / ".unfinished").mkdir()
    for name, target in (("scratch-x", elsewhere), ("lock", elsewhere / "notes")):
        (copy / ".unfinished" / name).symlink_to(target)
    before = tree(elsewhere)
    with pytest.raises(InputError, match="lock cannot be opened"):
        prepare([tmp_path / "a.txt"], "bytes", copy, overwrite=True, progress=False)
    (copy / ".unfinished" / "lock").unlink()
    prepare([tmp_path / "a.txt"], "bytes", copy, overwrite=True, progress=False)
    assert tree(elsewhere) == before
    assert not (copy / "tokenizer").is_symlink() and Corpus.open(copy, verify=True).num_documents == 1


def test_what_kills_left_is_swept_and_nothing_else(small, copy, tmp_path):
    ours = ["train-00007.array_record.part", ".manifest.json.ab12_xyz.part", "tokenizer/.x.json.ab12_xyz.part"]
    others = ["movie.part", "train-1.array_record.part", "notes.fetched", "train-00009.array_record.txt.part"]
    for name in (*ours, *others):
        (copy / name).write_text("left")
    (copy / "valid-00008.array_record.part").symlink_to(tmp_path)
    source = Manifest.load(copy).request["inputs"][0]["name"]
    prepare([source], "bytes", copy, **OPTIONS)
    assert not [name for name in ours if (copy / name).exists()] and all((copy / name).exists() for name in others)
    assert (copy / "valid-00008.array_record.part").is_symlink()
    for name in (*others, "valid-00008.array_record.part"):
        (copy / name).unlink()
    assert tree(copy) == tree(small)


@pytest.mark.parametrize("note", ["request.json", "segment-00000.json"])
def test_any_flipped_bit_of_a_note_is_told(small, copy, tmp_path, note):
    """Reading continues where the notes end: with a changed number there the corpus would differ, and nothing would show it."""
    found = Manifest.load(copy)
    source = found.request["inputs"][0]["name"]
    work = copy / ".unfinished"
    work.mkdir()
    (copy / "manifest.json").unlink()
    request = {"version": 1, "request": {k: v for k, v in found.request.items() if k != "tokenizer"}, "tokenizer": found.tokenizer}
    (work / "request.json").write_text(json.dumps(sealed(request), indent=1))
    (work / "segment-00000.json").write_bytes(found.segments[0].note())
    content = (work / note).read_bytes()
    told = 0
    for position in range(3, 8 * len(content), 61):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        (work / note).write_bytes(damaged)
        try:
            prepare([source], "bytes", copy, **OPTIONS)
            assert tree(copy) == tree(small)
            pytest.fail("only white space may be changed unseen") if bytes(damaged).split() == content.split() else None
            break  # what was flipped does not matter, and the corpus is finished
        except InputError as error:
            assert "\n" not in str(error) and ("with overwrite" in str(error) or "no longer" in str(error))
            told += 1
    assert told > 5
