"""Work items make the corpus that one reader makes, byte for byte, however often and in whatever order they are run."""

import concurrent.futures
import gzip
import json
import lzma
import os
import pathlib
import random
import subprocess
import sys
import uuid

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from dlmjax.data import beam, scan, segments
from dlmjax.data.corpus import Corpus
from dlmjax.data.formats import Position
from dlmjax.data.manifest import Manifest
from dlmjax.data.paths import CorpusStore
from dlmjax.data.prepare import prepare
from dlmjax.errors import InputError
from tests.data.conftest import NASTY, make_documents

ROOT = pathlib.Path(__file__).resolve().parents[2]
OPTIONS = {"valid_fraction": 0.1, "test_fraction": 0.05, "documents": "blank-line", "shard_bytes": 60_000, "progress": False}


def at_once(function, items) -> None:
    """Every item, in order, here."""
    for item in items:
        function(item)


def anyhow(function, items) -> None:
    """Every item twice, shuffled, four at a time: what a runner may do with slow machines and lost answers."""
    twice = [*items, *items]
    random.Random(len(items)).shuffle(twice)
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        for _ in threads.map(function, twice):
            pass


def contents(directory: pathlib.Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def contents_of(url: str) -> dict[str, bytes]:
    filesystem, root = fsspec.core.url_to_fs(url)
    return {name.removeprefix(root).lstrip("/"): filesystem.cat_file(name) for name in sorted(filesystem.find(root))}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> list[str]:
    """0.7 MB in five files: every format, texts that span segments, a text longer than several, a file without documents between."""
    directory = tmp_path_factory.mktemp("inputs")
    lines = "".join(json.dumps({"text": text}) + "\n\n" for text in ["", *NASTY, *make_documents(150, 1200, 1), ""])
    (directory / "a.jsonl").write_text(lines)
    paragraphs = "\n\n".join(t.replace("\n", " ") for t in make_documents(60, 900, 2))
    (directory / "b.txt.gz").write_bytes(gzip.compress((paragraphs + "\n\n\n" + "long words of one text " * 15_000 + "\n\nend").encode()))
    (directory / "c.txt").write_text("\n \n\n")
    rows = pyarrow.table({"text": pyarrow.array([None, *make_documents(120, 1500, 3), "", None])})
    pyarrow.parquet.write_table(rows, directory / "d.parquet", row_group_size=50)
    data = "".join(json.dumps({"text": text}) + "\n" for text in make_documents(200, 1500, 4)).encode()
    (directory / "e.jsonl.xz").write_bytes(lzma.compress(data))
    return [str(directory / name) for name in ("a.jsonl", "b.txt.gz", "c.txt", "d.parquet", "e.jsonl.xz")]


@pytest.fixture(scope="module")
def local(inputs, tmp_path_factory) -> pathlib.Path:
    """The corpus as one reader makes it."""
    directory = tmp_path_factory.mktemp("local")
    prepare(inputs, "bytes", directory, workers=1, **OPTIONS)
    found = Manifest.load(directory)
    spans = [segment.open_split for segment in found.segments]
    assert len(found.segments) > 8 and len([s for s in spans if s]) > 2  # else these tests would show little
    return directory


@pytest.mark.parametrize("execute", [at_once, anyhow])
def test_work_items_make_the_same_bytes(inputs, local, tmp_path, execute):
    found = prepare(inputs, "bytes", tmp_path, execute=execute, **OPTIONS)
    assert contents(tmp_path) == contents(local)
    assert found == Manifest.load(local)


@pytest.mark.parametrize("documents", ["file", "line", "separator: end "])
@pytest.mark.parametrize("shard_bytes", [1, 40_000, 1 << 30])
def test_the_plan_is_what_one_reader_does(inputs, tmp_path, documents, shard_bytes, monkeypatch):
    """Also for blocks of a scan of very few pieces, and for segments smaller than a document and larger than everything."""
    monkeypatch.setattr(scan, "BLOCK", 7)
    options = {"documents": documents, "shard_bytes": shard_bytes, "progress": False, "test_fraction": 0.3}
    chosen = inputs[1:3] if shard_bytes == 1 else inputs  # a segment a piece
    prepare(chosen, "char27", tmp_path / "a", workers=1, **options)
    prepare(chosen, "char27", tmp_path / "b", execute=at_once, **options)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_batches_that_are_full_just_where_a_file_ends(tmp_path):
    """The last piece of a file, and of all files, completes a segment: no empty segment follows the last."""
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text("x" * 1000)
    files = [tmp_path / f"{name}.txt" for name in "abc"]
    for shard_bytes, count in [(1000, 3), (2000, 2), (3000, 1)]:
        options = {"shard_bytes": shard_bytes, "progress": False}
        found = prepare(files, "bytes", tmp_path / f"l{shard_bytes}", workers=1, **options)
        assert len(found.segments) == count
        prepare(files, "bytes", tmp_path / f"i{shard_bytes}", execute=anyhow, **options)
        assert contents(tmp_path / f"l{shard_bytes}") == contents(tmp_path / f"i{shard_bytes}")


# ---- what is there already, whole or not --------------------------------------------------------------------------------------------


def test_a_preparation_goes_on_whoever_began_it(inputs, local, tmp_path):
    """A mistake stops the reader in the last file; work items continue after it, and the other way round."""
    for first, second in [(None, at_once), (at_once, None)]:
        output, broken = tmp_path / uuid.uuid4().hex, pathlib.Path(inputs[-1])
        whole = broken.read_bytes()
        options = OPTIONS | {"shard_bytes": 60_000}

        def failing(function, items):
            at_once(function, items[: len(items) // 2])
            raise InputError("stopped")

        if first is None:
            with pytest.raises(InputError, match="stopped"):
                _stop_after_three_segments(inputs, output, options)
        else:
            with pytest.raises(InputError, match="stopped"):
                prepare(inputs, "bytes", output, execute=failing, **options)
            with pytest.raises(InputError, match="stopped"):  # the scans are there: now some segments are made too
                prepare(inputs, "bytes", output, execute=lambda f, i: at_once(f, i) if "scan" in str(f) else failing(f, i), **options)
        noted = {note.stem[-5:] for note in (output / ".unfinished").glob("segment-*.json")}
        shards = [path for path in output.glob("*.array_record") if path.stem[-5:] in noted]
        before = {path: path.stat().st_mtime_ns for path in shards}
        assert len(noted) > 2 and not (output / "manifest.json").exists()
        prepare(inputs, "bytes", output, execute=second, **options)
        assert contents(output) == contents(local)
        assert {path: path.stat().st_mtime_ns for path in before} == before  # nothing was made twice
        assert broken.read_bytes() == whole


def _stop_after_three_segments(inputs, output, options) -> None:
    from dlmjax.data import prepare as preparing

    with pytest.MonkeyPatch.context() as patch:
        real, made = preparing.manifest.write_atomically, []

        def write(path, content):
            made.append(path)
            if len(made) > 4:
                raise InputError("stopped")
            real(path, content)

        patch.setattr(preparing.manifest, "write_atomically", write)
        prepare(inputs, "bytes", output, workers=1, **options)


def test_damage_is_mended_and_nothing_else_is_touched(inputs, local, tmp_path):
    prepare(inputs, "bytes", tmp_path, execute=at_once, **OPTIONS)
    shards = sorted(tmp_path.glob("*.array_record"))
    shards[1].write_bytes(shards[1].read_bytes()[:-9])
    shards[5].unlink()
    shards[-1].write_bytes(shards[-1].read_bytes()[:-7] + b"changed")
    (tmp_path / "counts.npy").write_bytes(b"\x93NUM")
    same = {path: path.stat().st_mtime_ns for path in shards if path not in (shards[1], shards[5], shards[-1])}
    prepare(inputs, "bytes", tmp_path, execute=anyhow, **OPTIONS)
    assert contents(tmp_path) == contents(local)
    changed = {path.stem[-5:] for path in (shards[1], shards[5], shards[-1])}
    assert all(path.stat().st_mtime_ns == then for path, then in same.items() if path.stem[-5:] not in changed)


def test_torn_notes_and_parts_of_a_killed_worker_do_no_harm(inputs, local, tmp_path):
    with pytest.raises(InputError, match="stopped"):

        def stop(function, items):
            if isinstance(items[0], list):
                at_once(function, items[2:5])
                raise InputError("stopped")
            at_once(function, items)

        prepare(inputs, "bytes", tmp_path, execute=stop, **OPTIONS)
    work = tmp_path / ".unfinished"
    notes = sorted(work.glob("segment-*.json"))
    notes[0].write_bytes(notes[0].read_bytes()[:50])
    (tmp_path / "train-00001.array_record.part").write_bytes(b"half")
    (work / "scratch-killed").mkdir()
    (work / "scratch-killed" / "train-00001.array_record.part").write_bytes(b"half")
    (work / "counts-00003.npy").write_bytes(b"torn")
    prepare(inputs, "bytes", tmp_path, execute=anyhow, **OPTIONS)
    assert contents(tmp_path) == contents(local)


def test_inputs_that_changed_after_the_corpus_was_finished_are_noticed(tmp_path):
    source = tmp_path / "a.txt"
    source.write_bytes(b"some words " * 300_000)  # its middle is in no fingerprint
    options = {"shard_bytes": 500_000, "progress": False}
    prepare([source], "bytes", tmp_path / "c", execute=at_once, **options)
    data = bytearray(source.read_bytes())
    data[1_600_000:1_600_004] = b"SOME"
    source.write_bytes(data)
    (tmp_path / "c" / "train-00003.array_record").unlink()
    with pytest.raises(InputError, match="the inputs differ from those of the corpus"):
        prepare([source], "bytes", tmp_path / "c", execute=at_once, **options)


def test_a_damaged_scan_is_named(inputs, tmp_path):
    with pytest.raises(InputError, match="stopped"):

        def scan_only(function, items):
            if isinstance(items[0], list):
                raise InputError("stopped")
            at_once(function, items)

        prepare(inputs, "bytes", tmp_path, execute=scan_only, **OPTIONS)
    path = tmp_path / ".unfinished" / "scan-00003.zst"
    for data in (path.read_bytes()[:-30], b"", path.read_bytes()[:40] + b"\x00" * 20 + path.read_bytes()[60:]):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"scan-00003\.zst is missing or damaged"):
            prepare(inputs, "bytes", tmp_path, execute=at_once, **OPTIONS)


# ---- mistakes -----------------------------------------------------------------------------------------------------------------------


def test_the_first_mistake_in_input_order_is_one_line(tmp_path):
    for i in range(6):
        text = "\n".join(json.dumps({"text": "fine words"}) for _ in range(40)) + "\n"
        (tmp_path / f"{i}.jsonl").write_text(text if i not in (2, 4) else text + '{"body": 1}\n' + text)
    files = [tmp_path / f"{i}.jsonl" for i in range(6)]
    options = {"shard_bytes": 200, "progress": False}
    with pytest.raises(InputError) as one:
        prepare(files, "bytes", tmp_path / "l", workers=1, **options)
    for execute in (at_once, anyhow):
        with pytest.raises(InputError, match=r"2\.jsonl, line 41") as many:
            prepare(files, "bytes", tmp_path / "i", execute=execute, **options)
        assert str(many.value) == str(one.value) and "\n" not in str(many.value)
    assert not (tmp_path / "i" / "manifest.json").exists()
    (tmp_path / "broken.txt.xz").write_bytes(lzma.compress(b"word " * 300_000)[:-40])
    with pytest.raises(InputError, match=r"broken\.txt\.xz is truncated or damaged: it ends after"):
        prepare([files[0], tmp_path / "broken.txt.xz"], "bytes", tmp_path / "b", execute=anyhow, **options)


def test_what_cannot_be_meant(inputs, local, tmp_path):
    with pytest.raises(InputError, match="a different corpus \\(test_fraction\\)"):
        prepare(inputs, "bytes", local, execute=at_once, **(OPTIONS | {"test_fraction": 0.1}))
    with pytest.raises(InputError, match="only engine beam writes to a URL"):
        prepare(inputs, "bytes", "memory://nowhere", **OPTIONS)
    with pytest.raises(InputError, match="^workers conflicts with engine beam"):
        prepare(inputs, "bytes", tmp_path, execute=at_once, workers=2, **OPTIONS)
    with pytest.raises(InputError, match="no document fell into the split 'valid'"):
        prepare(inputs[1:2], "bytes", tmp_path / "v", execute=at_once, valid_fraction=1e-9, progress=False)
    with pytest.raises(InputError, match="was not made by the runner"):
        prepare(inputs, "bytes", tmp_path / "r", execute=lambda f, i: at_once(f, i) if "scan" in str(f) else None, **OPTIONS)
    prepare(inputs[:1], "char27", tmp_path / "o", progress=False)
    prepare(inputs, "bytes", tmp_path / "o", execute=at_once, overwrite=True, **OPTIONS)
    assert contents(tmp_path / "o") == contents(local)


def test_an_item_of_another_request_is_refused(inputs, tmp_path):
    """A worker that wakes up after its command was replaced by another writes nothing."""
    store = CorpusStore(str(tmp_path))
    store.make(".unfinished")
    work = beam.ItemContext(store, "0" * 64)
    store.write(beam.REQUEST, b"{}")
    beam.make(work, [beam.Task(0, Position(0))])
    assert store.names() == [] and store.names(".unfinished") == ["failed-segment-00000.json", "request.json"]
    assert "is being prepared by another command" in json.loads(store.read(".unfinished/failed-segment-00000.json"))["error"]


def test_items_deep_in_a_compressed_file_are_several_segments():
    """Reading to an item's beginning costs at most REPEATED times what it tokenizes, so the whole costs a multiple of the text."""
    for name, most in [("a.jsonl.xz", None), ("a.jsonl", 0)]:
        cutting = segments.Cutting((beam_source(name),), 1, 0.0, 0.0, 0)
        tasks = [beam.Task(i, Position(0, i * 1000)) for i in range(400)]
        items = beam.group(tasks, cutting)
        assert [task for item in items for task in item] == tasks
        read_again = sum(item[0].start.offset for item in items) if most is None else 0
        assert read_again <= 400_000 * (beam.REPEATED + 1)
        assert (len(items) == 400) == (most == 0)


def beam_source(name: str):
    from dlmjax.data.formats import Source

    return Source(name, "jsonl", "train", "file", "text", 1, "")


# ---- elsewhere than on this machine -------------------------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "file"])
def bucket(request, tmp_path):
    """A store that no other test sees: all in memory, or files behind URLs."""
    url = f"memory://bucket-{uuid.uuid4().hex}" if request.param == "memory" else f"file://{tmp_path}/bucket"
    yield url
    filesystem, root = fsspec.core.url_to_fs(url)
    if filesystem.exists(root):
        filesystem.rm(root, recursive=True)


def test_inputs_and_output_in_a_store(inputs, local, bucket, tmp_path, monkeypatch):
    filesystem, root = fsspec.core.url_to_fs(bucket)
    filesystem.makedirs(f"{root}/in")
    names = []
    for path in map(pathlib.Path, inputs):
        filesystem.pipe_file(f"{root}/in/{path.name}", path.read_bytes())
        names.append(f"{bucket}/in/{path.name}")
    # Readers of one file in memory share their place in it: no two items at a time.
    execute = anyhow if bucket.startswith("file") else lambda function, items: at_once(function, [*items, *items[::-1]])
    prepare(names, "bytes", f"{bucket}/out", execute=execute, **OPTIONS)
    found, here = contents_of(f"{bucket}/out"), contents(local)
    assert sorted(found) == sorted(here)
    assert all(found[name] == here[name] for name in here if name != "manifest.json")  # it names its inputs, which are elsewhere
    filesystem.invalidate_cache()
    assert not filesystem.exists(f"{root}/out/.unfinished")
    there, here = found["manifest.json"].decode().replace(f"{bucket}/in", os.path.dirname(inputs[0])), here["manifest.json"].decode()
    assert there.partition('"checksum"')[0] == here.partition('"checksum"')[0] and json.loads(there).keys() == json.loads(here).keys()

    monkeypatch.setenv("DLMJAX_CACHE", str(tmp_path / "cache"))
    corpus = Corpus.open(f"{bucket}/out", "valid", verify=True)
    assert list(corpus.documents()) == list(Corpus.open(local, "valid").documents())
    np.testing.assert_array_equal(Corpus.open(f"{bucket}/out").counts_V, Corpus.open(local).counts_V)
    # The local engine reads from a store too.
    prepare(names, "bytes", tmp_path / "c", workers=1, **OPTIONS)
    assert contents(tmp_path / "c") == found
    prepare(names, "bytes", f"{bucket}/out", execute=at_once, overwrite=True, **(OPTIONS | {"shard_bytes": 1 << 20}))
    assert len([name for name in contents_of(f"{bucket}/out") if name.startswith("train")]) == 1


# ---- Apache Beam ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_command(tmp_path_factory):
    """`dlmjax prepare` in a process of its own: Beam's libraries warn, and their warnings are not ours to mend."""
    pytest.importorskip("apache_beam", reason="Apache Beam is not installed: pip install 'dlmjax[beam]'")

    def run(*words):
        command = [sys.executable, "-m", "dlmjax", "prepare", *map(str, words)]
        env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, cwd=tmp_path_factory.mktemp("cwd"))

    return run


FLAGS = ["--valid-fraction", 0.1, "--test-fraction", 0.05, "--documents", "blank-line"]


SCRIPT = """
import json, sys
from dlmjax.data.beam import on_beam
from dlmjax.data.prepare import prepare
if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    prepare(given["inputs"], "bytes", given["output"], execute=on_beam(given["flags"]), **given["options"])
"""


@pytest.mark.parametrize(
    "flags",
    [[], pytest.param(["--direct_running_mode=multi_processing", "--direct_num_workers=2"], marks=pytest.mark.nightly)],
    ids=["threads", "processes"],
)
def test_beam_makes_the_same_bytes(inputs, local, tmp_path, flags, run_command):
    (tmp_path / "script.py").write_text(SCRIPT)
    words = json.dumps({"inputs": inputs, "output": str(tmp_path / "c"), "flags": flags, "options": OPTIONS})
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "script.py", words], env=env, capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path / "c") == contents(local)


def test_the_command_with_beam(inputs, tmp_path, run_command):
    words = ["--input", *inputs, *FLAGS, "--output"]
    result = run_command(*words, tmp_path / "b", "--engine", "beam", "--runner", "DirectRunner", "--direct_num_workers=1")
    assert result.returncode == 0 and "is prepared: train" in result.stdout, result
    assert run_command(*words, tmp_path / "l").stdout == result.stdout.replace(str(tmp_path / "b"), str(tmp_path / "l"))
    assert contents(tmp_path / "b") == contents(tmp_path / "l")


@pytest.mark.nightly  # the same lines as of the items run in threads, above
def test_mistakes_under_beam_are_one_line(inputs, tmp_path, run_command):
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": \n')
    for words, message in [
        ([], "bad.jsonl, line 2 (byte 14): not valid JSON"),
        (["--runer=DirectRunner"], "--runer is not a flag of dlmjax prepare or of Beam"),
        (["--direct_num_workers=two"], "the flags for Beam are not valid"),
        (["--", "--runner=NoSuchRunner"], "NoSuchRunner"),
    ]:
        result = run_command("--input", tmp_path / "bad.jsonl", "--output", tmp_path / "c", "--engine", "beam", *words)
        lines = [line for line in result.stderr.splitlines() if line.startswith("dlmjax: ")]
        assert result.returncode == 2 and len(lines) == 1 and message in lines[0], result
        assert "Traceback" not in result.stderr


def test_without_beam_the_command_says_what_to_install(tmp_path, monkeypatch, capsys):
    from dlmjax.cli.main import main

    monkeypatch.setitem(sys.modules, "apache_beam", None)  # the interpreter's way to say: not importable
    assert main(["prepare", "--input", "builtin:python-docs", "--output", str(tmp_path), "--engine", "beam"]) == 2
    assert "pip install 'dlmjax[beam]'" in capsys.readouterr().err
    for words in (["--runner=DirectRunner"], ["--", "--runner=DirectRunner"]):
        assert main(["prepare", "--input", "builtin:python-docs", "--output", str(tmp_path / "x"), *words]) == 2
        assert "unrecognized arguments: --runner=DirectRunner" in capsys.readouterr().err
