"""prepare: complete, the same bytes however it was run, and harmless when something is wrong."""

import dataclasses
import json
import lzma
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dlmjax.cli.main import main
from dlmjax.data import manifest, segments
from dlmjax.data import prepare as preparing
from dlmjax.data.corpus import Corpus
from dlmjax.data.encode import document_share
from dlmjax.data.manifest import Manifest
from dlmjax.data.options import default_shard_bytes, parse_split_files
from dlmjax.data.prepare import prepare
from dlmjax.data.subword import train_sentencepiece
from dlmjax.data.tokenizers import load_tokenizer
from dlmjax.errors import InputError
from tests.data.conftest import NASTY, make_documents, shared_file

ROOT = pathlib.Path(__file__).resolve().parents[2]


def contents(directory: pathlib.Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def write_jsonl(path: pathlib.Path, texts: list[str]) -> pathlib.Path:
    data = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    path.write_bytes(lzma.compress(data) if path.suffix == ".xz" else data)
    return path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> list[pathlib.Path]:
    """1.2 MB in three files of different kinds, with a document longer than a shard and documents without text."""
    directory = tmp_path_factory.mktemp("inputs")
    (directory / "b.txt").write_text("\n\n".join(t.replace("\n", " ") for t in make_documents(60, 900, 2)) + "\n\n" + "long " * 60_000)
    return [
        write_jsonl(directory / "a.jsonl", ["", *NASTY, *make_documents(300, 1200, 1), ""]),
        directory / "b.txt",
        write_jsonl(directory / "c.jsonl.xz", make_documents(600, 3000, 3)),
    ]


OPTIONS = {"valid_fraction": 0.1, "test_fraction": 0.05, "documents": "blank-line", "shard_bytes": 100_000, "progress": False}


@pytest.fixture(scope="module")
def prepared(inputs, tmp_path_factory) -> pathlib.Path:
    """The corpus of `inputs`, made in one go by this process alone."""
    directory = tmp_path_factory.mktemp("prepared")
    prepare(inputs, "bytes", directory, workers=1, **OPTIONS)
    return directory


def expected_documents(inputs) -> list[str]:
    texts = [json.loads(line)["text"] for line in inputs[0].read_text().splitlines()]
    texts += inputs[1].read_text().split("\n\n")
    with lzma.open(inputs[2], "rt", encoding="utf-8") as file:
        texts += [json.loads(line)["text"] for line in file]
    return [text for text in texts if text]


def test_every_document_is_in_exactly_one_split_in_input_order(inputs, prepared):
    found = Manifest.load(prepared)
    splits = {split: list(Corpus.open(prepared, split, verify=True).documents()) for split in found.splits}
    expected: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for text in expected_documents(inputs):
        share = document_share(text.encode()[: 1 << 16], 0)  # no document here has a longer first piece that is cut earlier
        if len(text) >= 1 << 16:
            share = document_share(text.encode()[: (1 << 16) - 1], 0)  # "long long": cut before the last space
        expected["valid" if share < 0.1 else "test" if share < 0.15 else "train"].append(text)
    assert splits == expected
    assert 0.05 < len(splits["valid"]) / sum(map(len, splits.values())) < 0.15
    for split, texts in splits.items():
        size = sum(len(text.encode()) for text in texts)
        assert found.counts(split) == {"documents": len(texts), "tokens": size + len(texts), "text_bytes": size}
    assert len(found.segments) > 8 and len(found.shards("train")) > 8
    assert sorted(p.name for p in prepared.iterdir() if p.is_dir()) == ["tokenizer"]


def test_the_manifest_says_what_the_directory_holds(prepared):
    values = json.loads((prepared / "manifest.json").read_text())
    assert values["version"] == manifest.VERSION and values["tokenizer"]["hash"] == load_tokenizer("bytes").hash
    found = Manifest.load(prepared)
    listed = {shard.file: shard for split in found.splits for shard in found.shards(split)}
    assert sorted(listed) == sorted(p.name for p in prepared.glob("*.array_record"))
    for name, shard in listed.items():
        assert (prepared / name).stat().st_size == shard.file_bytes and manifest.sha256_of(prepared / name) == shard.sha256
    assert str(prepared) not in (prepared / "manifest.json").read_text()
    assert load_tokenizer(f"saved:{prepared / 'tokenizer'}").hash == values["tokenizer"]["hash"]


@pytest.mark.parametrize("workers", [2, 3])
def test_the_number_of_workers_does_not_matter(inputs, prepared, tmp_path, workers, monkeypatch):
    monkeypatch.setattr(preparing, "SMALL", 0)  # so that processes are started for little text
    monkeypatch.setattr(segments, "BATCH_BYTES", 1 << 15)  # batches are cut elsewhere, segments are not
    prepare(inputs, "bytes", tmp_path, workers=workers, **OPTIONS)
    assert {k: v for k, v in contents(tmp_path).items() if k.startswith("tokenizer")} == {
        k: v for k, v in contents(prepared).items() if k.startswith("tokenizer")
    }
    for split in ("train", "valid", "test"):
        assert list(Corpus.open(tmp_path, split).documents()) == list(Corpus.open(prepared, split).documents())
    monkeypatch.undo()
    again = tmp_path / "again"
    prepare(inputs, "bytes", again, workers=workers, **OPTIONS)
    assert contents(again) == contents(prepared)


KILLED = """
import sys
from dlmjax.data.prepare import prepare
if __name__ == "__main__":
    prepare(sys.argv[2:], "bytes", sys.argv[1], workers=2, valid_fraction=0.1, documents="blank-line", shard_bytes=200_000, progress=False)
"""


def _start(script: pathlib.Path, output: pathlib.Path, inputs) -> subprocess.Popen:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, str(script), str(output), *map(str, inputs)], env=env, stderr=subprocess.PIPE, text=True)


def _finish(process: subprocess.Popen) -> None:
    _, error = process.communicate(timeout=200)
    assert process.returncode == 0, error


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(tmp_path):
    """SIGKILL three times, at moments given by how many segments are finished; worker processes must not outlive the killed one."""
    big = [
        write_jsonl(tmp_path / "a.jsonl", make_documents(2000, 8000, 4)),
        write_jsonl(tmp_path / "b.jsonl.xz", make_documents(800, 8000, 5)),
    ]
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    _finish(_start(script, tmp_path / "whole", big))
    segments = len(Manifest.load(tmp_path / "whole").segments)
    assert segments > 12
    output = tmp_path / "killed"
    kept: dict[pathlib.Path, int] = {}
    for target in (1, 5, segments - 2):
        process = _start(script, output, big)
        deadline = time.monotonic() + 100
        while not (output / ".unfinished" / f"segment-{target:05d}.json").exists():
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)  # returns when the workers, which hold the pipe too, have ended
        assert not (output / "manifest.json").exists()
        assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in kept.items())  # finished shards were not made again
        notes = sorted((output / ".unfinished").glob("segment-*.json"))
        names = [shard["file"] for note in notes for shard in json.loads(note.read_text())["shards"].values()]
        kept = {output / name: (output / name).stat().st_mtime_ns for name in names}
        assert len(notes) > target
    _finish(_start(script, output, big))
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in kept.items())
    assert contents(output) == contents(tmp_path / "whole")


def test_restart_from_any_segment_gives_the_same_bytes(inputs, prepared, tmp_path):
    """Losing any one shard of a finished corpus makes that segment again, nothing else."""
    prepare(inputs, "bytes", tmp_path, **OPTIONS)
    before = contents(prepared)
    for segment in Manifest.load(tmp_path).segments[::2]:
        victim = tmp_path / next(iter(segment.shards.values())).file
        victim.write_bytes(victim.read_bytes()[:-7] + b"changed")
        others = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.array_record") if p.stem[-5:] != victim.stem[-5:]}
        prepare(inputs, "bytes", tmp_path, **OPTIONS)
        assert contents(tmp_path) == before
        assert all(p.stat().st_mtime_ns == t for p, t in others.items())


def test_same_text_same_split_whatever_the_seed_of_the_process_or_the_format(inputs, prepared, tmp_path):
    texts = make_documents(300, 1200, 1)
    other = write_jsonl(tmp_path / "again.jsonl", texts[::-1])
    prepare([other], "bytes", tmp_path / "c", **OPTIONS)
    for split in ("train", "valid", "test"):
        here = set(Corpus.open(tmp_path / "c", split).documents())
        assert here <= set(Corpus.open(prepared, split).documents())
    prepare([other], "bytes", tmp_path / "d", **OPTIONS, split_seed=1)
    assert set(Corpus.open(tmp_path / "d", "valid").documents()) != set(Corpus.open(tmp_path / "c", "valid").documents())


def test_split_files(inputs, tmp_path):
    files = {
        "valid": [write_jsonl(tmp_path / "v.jsonl", ["valid one", "valid two"])],
        "test": [write_jsonl(tmp_path / "t.jsonl", ["test"])],
    }
    prepare([inputs[0]], "char27", tmp_path / "c", split_files=files)
    assert list(Corpus.open(tmp_path / "c", "valid").documents()) == ["valid one", "valid two"]
    assert list(Corpus.open(tmp_path / "c", "test").documents()) == ["test"]
    assert Corpus.open(tmp_path / "c").num_documents == 309
    words = [f"valid={tmp_path / 'v.jsonl'}", f"test={tmp_path / 't.jsonl'}"]
    assert parse_split_files(words) == {"valid": [str(tmp_path / "v.jsonl")], "test": [str(tmp_path / "t.jsonl")]}
    prepare([inputs[0]], "char27", tmp_path / "c", split_files=words)  # the same request: finished already
    assert Manifest.load(tmp_path / "c").prepare_command(tmp_path / "c") == (
        f"dlmjax prepare --input {inputs[0]} --tokenizer char27 --output {tmp_path / 'c'} --split-files {' '.join(words)}"
    )


def test_the_command_in_a_message_can_be_given_to_a_shell(tmp_path):
    (tmp_path / "a b.txt").write_text("one\n%%% $HOME\ntwo")
    found = prepare([tmp_path / "a b.txt"], "bytes", tmp_path / "it's", documents="separator:%%% $HOME")
    words = shlex.split(found.prepare_command(tmp_path / "it's"))
    assert words[:4] == ["dlmjax", "prepare", "--input", str(tmp_path / "a b.txt")]
    assert words[-4:] == ["--output", str(tmp_path / "it's"), "--documents", "separator:%%% $HOME"]


@pytest.mark.parametrize("tokenizer", ["bytes", "train-sentencepiece:300"])
@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_that_the_hash_does_not_take_is_refused(inputs, tmp_path, tokenizer, seed, capsys):
    argv = ["prepare", "--input", str(inputs[0]), "--output", str(tmp_path / "c"), "--tokenizer", tokenizer, "--valid-fraction", "0.1"]
    assert main([*argv, f"--split-seed={seed}"]) == 2
    assert f"--split-seed is {seed}; give a whole number from 0 to 18446744073709551615" in capsys.readouterr().err


def test_python_docs_need_no_download(tmp_path):
    found = prepare(["builtin:python-docs"], "bytes", tmp_path, valid_fraction=0.1)
    counts = {split: found.counts(split) for split in found.splits}
    assert sorted(counts) == ["train", "valid"]
    assert sum(c["documents"] for c in counts.values()) > 60
    assert 400_000 < sum(c["text_bytes"] for c in counts.values()) < 1_000_000
    assert 0.03 < counts["valid"]["tokens"] / counts["train"]["tokens"] < 0.3


def test_a_document_longer_than_a_shard_is_one_document(tmp_path):
    text = " ".join(make_documents(400, 4000, 6))
    (tmp_path / "a.txt").write_text(text)
    for name in ("bytes", "char27"):
        found = prepare([tmp_path / "a.txt"], name, tmp_path / name, shard_bytes=1, workers=1)
        assert len(found.segments) >= 6 and found.counts("train")["documents"] == 1
        tokenizer = load_tokenizer(name)
        corpus = Corpus.open(tmp_path / name)
        np.testing.assert_array_equal(corpus.read(0, corpus.num_tokens), [*tokenizer.encode(text), tokenizer.eos_id])


def test_subword_tokens_are_those_of_the_uncut_text(tmp_path):
    """Pieces are cut where a SentencePiece model begins a new piece anyway; the corpus holds the tokenizer it was made with."""
    texts = make_documents(300, 5000, 7)
    tokenizer = train_sentencepiece(texts, 500, tmp_path / "sp.model")
    text = "".join(texts) * 2
    (tmp_path / "a.txt").write_text(text)
    prepare([tmp_path / "a.txt"], f"sentencepiece:{tmp_path / 'sp.model'}", tmp_path / "c")
    (tmp_path / "sp.model").unlink()
    corpus = Corpus.open(tmp_path / "c")
    assert corpus.tokenizer.hash == tokenizer.hash
    np.testing.assert_array_equal(corpus.read(0, corpus.num_tokens), [*tokenizer.encode(text), tokenizer.eos_id])
    assert corpus.num_bytes == len(text.encode())


# ---- what is wrong, and where -------------------------------------------------------------------------------------------------------


BAD = {
    "bad.txt": (b"fine \xc3\xa9 text, then \xff broken", r"bad\.txt: not valid UTF-8 at byte 19 of the text \(0xff\)"),
    "late.txt": (b"word " * 50_000 + b"\xe4\xb8", r"late\.txt: not valid UTF-8 at byte 250,000 of the text \(0xe4\)"),
    "bad.jsonl": (b'{"text": "a"}\n\n{"text": "b\xff"}\n', r"bad\.jsonl, line 3: not valid UTF-8 at byte 26 of the text"),
    "json.jsonl": (b'{"text": "a"}\n{"text": \n', r"json\.jsonl, line 2 \(byte 14\): not valid JSON"),
    "deep.jsonl": (b'{"text": "a"}\n' + b"[" * 100_000, r"deep\.jsonl, line 2 \(byte 14\): not valid JSON .*correct or remove the line"),
    "list.jsonl": (b'{"text": "a"}\n["text"]\n', r"list\.jsonl, line 2 \(byte 14\): no field 'text' \(it is not an object\)"),
    "field.jsonl": (b'{"body": "a"}\n', r"field\.jsonl, line 1 \(byte 0\): no field 'text' \('body'\); name the field"),
    "type.jsonl": (b'{"text": 3}\n', r"type\.jsonl, line 1 \(byte 0\): field 'text' holds a number, not text"),
    "half.jsonl": (b'{"text": "\\ud800"}\n', r"half\.jsonl, line 1 \(byte 0\): the text has half of a surrogate pair"),
    "short.txt.xz": (lzma.compress(b"word " * 300_000)[:-40], r"short\.txt\.xz is truncated or damaged: it ends after [\d,]+ bytes"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_a_bad_input_is_named_with_its_position_and_harms_nothing(inputs, tmp_path, name):
    data, message = BAD[name]
    (tmp_path / name).write_bytes(data)
    output = tmp_path / "c"
    options = {"shard_bytes": 100_000, "progress": False, "documents": "file"}
    with pytest.raises(InputError, match=message) as caught:
        prepare([inputs[0], tmp_path / name], "bytes", output, **options)
    assert "\n" not in str(caught.value)
    notes = [json.loads(note.read_text())["shards"]["train"]["file"] for note in (output / ".unfinished").glob("segment-*.json")]
    assert sorted(p.name for p in output.glob("*.array_record*")) == sorted(notes) and notes  # finished shards, and no parts of others
    with pytest.raises(InputError, match="unfinished preparation; repeat the same dlmjax prepare command"):
        Corpus.open(output)
    # A finished corpus beside it stays as it was, and the same output can be used once the input is mended.
    (tmp_path / name).unlink()
    mended = tmp_path / ("mended.jsonl" if "jsonl" in name else "mended.txt")
    mended.write_bytes(b'{"text": "fine"}\n' if "jsonl" in name else b"fine")
    with pytest.raises(InputError, match=r"already holds a different corpus \(inputs\).* overwrite"):
        prepare([inputs[0], mended], "bytes", output, **options)
    prepare([inputs[0], mended], "bytes", output, overwrite=True, **options)
    assert list(Corpus.open(output).documents())[-1] == "fine"


@pytest.mark.parametrize("other", ["./{name}", "{folder}/../{last}/{name}", "{folder}/link.txt"])
def test_one_file_under_two_names_is_given_twice(tmp_path, other, monkeypatch):
    (tmp_path / "m.txt").write_text("text")
    (tmp_path / "link.txt").symlink_to("m.txt")
    monkeypatch.chdir(tmp_path)
    again = other.format(name="m.txt", folder=tmp_path, last=tmp_path.name)
    for options in ({"inputs": ["m.txt", again]}, {"inputs": ["m.txt"], "split_files": {"valid": [again]}}):
        with pytest.raises(InputError, match="is given twice: it is the file m.txt"):
            prepare(tokenizer="bytes", output=tmp_path / "c", **options)
    assert not (tmp_path / "c").exists()


def test_inputs_without_any_text_are_reported_as_such(tmp_path):
    (tmp_path / "null.jsonl").write_text('{"text": null}\n{"text": ""}\n')
    (tmp_path / "white.txt").write_text(" \n\n \n")
    (tmp_path / "fine.txt").write_text("fine")
    for options, said in (
        ({"inputs": ["null.jsonl"]}, "the inputs hold no text .* all 2 records"),
        ({"inputs": ["null.jsonl"], "valid_fraction": 0.5}, "the inputs hold no text .* all 2 records"),
        ({"inputs": ["white.txt"], "documents": "blank-line"}, "the inputs hold no text"),
        ({"inputs": ["fine.txt"], "split_files": {"valid": ["null.jsonl"]}}, "the files of the split 'valid' hold no text"),
    ):
        files = {split: [tmp_path / name for name in names] for split, names in options.pop("split_files", {}).items()}
        inputs = [tmp_path / name for name in options.pop("inputs")]
        with pytest.raises(InputError, match=said) as told:
            prepare(inputs, "bytes", tmp_path / "c", split_files=files or None, overwrite=True, **options)
        assert "split_files" not in str(told.value) and "\n" not in str(told.value)


def test_the_first_mistake_in_input_order_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "BATCH_BYTES", 1)
    for i in range(6):
        (tmp_path / f"{i}.txt").write_bytes(b"\xff" if i in (2, 3, 5) else b"fine")
    with pytest.raises(InputError, match=r"2\.txt: not valid UTF-8 at byte 0"):
        prepare([tmp_path / f"{i}.txt" for i in range(6)], "bytes", tmp_path / "c")


def test_a_finished_corpus_is_left_alone(inputs, prepared, tmp_path):
    before = {p: p.stat().st_mtime_ns for p in prepared.rglob("*")}
    assert prepare(inputs, "bytes", prepared, **OPTIONS) == Manifest.load(prepared)
    for change, named in [
        ({"valid_fraction": 0.2}, "valid_fraction"),
        ({"documents": "line"}, "documents"),
        ({"shard_bytes": 200_000}, "shard_bytes"),
    ]:
        with pytest.raises(InputError, match=f"a different corpus \\({named}\\)"):
            prepare(inputs, "bytes", prepared, **(OPTIONS | change))
    with pytest.raises(InputError, match="a different corpus \\(tokenizer\\)"):
        prepare(inputs, "char27", prepared, **OPTIONS)
    with pytest.raises(InputError, match="does not exist"):
        prepare([tmp_path / "none.txt"], "bytes", prepared, overwrite=True)
    assert {p: p.stat().st_mtime_ns for p in prepared.rglob("*")} == {p: t for p, t in before.items() if p in before}


def test_notes_that_are_damaged_are_not_trusted(inputs, tmp_path):
    (tmp_path / ".unfinished").mkdir()
    (tmp_path / ".unfinished" / "request.json").write_text("{")
    with pytest.raises(InputError, match="notes in .* are damaged .* overwrite"):
        prepare(inputs, "bytes", tmp_path, **OPTIONS)


def _tree(folder: pathlib.Path) -> dict:
    """All that is in a folder, links as where they lead."""
    return {
        str(path.relative_to(folder)): str(path.readlink()) if path.is_symlink() else path.is_dir() or path.read_bytes()
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("in_items", [False, True])
@pytest.mark.parametrize("name", ["counts.npy", "train-00000.array_record", "valid-00007.array_record.part", "tokenizer", ".unfinished"])
@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_prepare_did_not_write_is_replaced_only_when_asked(tmp_path, name, kind, in_items):
    (tmp_path / "a.txt").write_text("some text")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").write_text("mine")
    output = tmp_path / "c"
    output.mkdir()
    path = output / name
    if kind == "file":
        path.write_text("mine")
    elif kind == "folder":
        path.mkdir()
        (path / "mine").write_text("mine")
    else:
        path.symlink_to(tmp_path / "elsewhere")
    options = {"execute": (lambda function, items: [function(item) for item in items])} if in_items else {}
    before = _tree(tmp_path)
    if name == ".unfinished" and kind == "folder":  # notes' own folder, with nothing in it that is a note
        prepare([tmp_path / "a.txt"], "bytes", output, **options)
        return
    with pytest.raises(InputError, match=" another output") as told:
        prepare([tmp_path / "a.txt"], "bytes", output, **options)
    assert str(path) in str(told.value) or str(output) in str(told.value) and "\n" not in str(told.value)
    assert {key: value for key, value in _tree(tmp_path).items() if key != "c/.unfinished"} == {
        key: value for key, value in before.items() if key != "c/.unfinished"
    }
    if name != ".unfinished":
        prepare([tmp_path / "a.txt"], "bytes", output, overwrite=True, **options)
        assert list(Corpus.open(output, verify=True).documents()) == ["some text"]
    assert _tree(tmp_path / "elsewhere") == {"mine": b"mine"}


@pytest.mark.parametrize("in_items", [False, True])
@pytest.mark.parametrize("name", ["counts.npy", "manifest.json", "train-00000.array_record", "train-00000.array_record.part", "tokenizer"])
def test_a_folder_where_a_file_belongs_is_named_with_its_cure(tmp_path, name, in_items):
    """And a file where the tokenizer's folder belongs; in a corpus that is finished otherwise."""
    (tmp_path / "a.txt").write_text("some text")
    options = {"execute": (lambda function, items: [function(item) for item in items])} if in_items else {}
    prepare([tmp_path / "a.txt"], "bytes", tmp_path / "c", **options)
    path = tmp_path / "c" / name
    if name == "tokenizer":
        shutil.rmtree(path)
        path.write_text("mine")
    else:
        path.unlink(missing_ok=True)
        path.mkdir()
        if name.endswith(".part"):  # so that the shard is made again
            path.with_suffix("").unlink()
            if in_items:
                return  # items write under names of their own
    with pytest.raises(InputError, match="remove (the folder|the file|it,)|restore it") as told:
        prepare([tmp_path / "a.txt"], "bytes", tmp_path / "c", **options)
    assert str(path) in str(told.value) and "\n" not in str(told.value) and "space" not in str(told.value)


def test_two_preparations_of_one_directory_do_not_meet(inputs, tmp_path):
    with preparing._only_one(tmp_path), pytest.raises(InputError, match="another dlmjax prepare is writing"):
        prepare(inputs, "bytes", tmp_path, **OPTIONS)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"valid_fraction": -0.1}, "must be at least 0"),
        ({"valid_fraction": 0.6, "test_fraction": 0.4}, "together below 1"),
        ({"valid_fraction": 0.1, "split_files": ["valid=x"]}, "not both"),
        ({"split_files": ["dev=x"]}, "SPLIT=FILE"),
        ({"split_files": {"dev": ["x"]}}, "unknown split 'dev'"),
        ({"format": "csv"}, "format is 'csv'"),
        ({"documents": "page"}, "documents is 'page'"),
        ({"documents": "separator:"}, "without a text"),
        ({"workers": 0}, "at least 1"),
        ({"tokenizer": "words"}, "unknown tokenizer"),
        ({"inputs": []}, "no input files"),
        ({"inputs": ["builtin:python-docs", "builtin:python-docs"]}, "given twice"),
        ({"valid_fraction": 1e-9}, "no document fell into the split 'valid'"),
    ],
)
def test_arguments_that_cannot_be_meant(tmp_path, options, message):
    arguments = {"inputs": ["builtin:python-docs"], "tokenizer": "bytes", "output": tmp_path / "c"} | options
    with pytest.raises(InputError, match=message):
        prepare(**arguments)
    assert not (tmp_path / "c" / "manifest.json").exists()


def test_output_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "c").write_text("x")
    with pytest.raises(InputError, match="corpus directory .* cannot be made"):
        prepare(["builtin:python-docs"], "bytes", tmp_path / "c")


def _die(*_) -> None:
    os._exit(1)


def test_a_dead_worker_is_reported(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "SMALL", 0)
    monkeypatch.setattr(preparing.encoding, "start_worker", _die)  # pickled by name: found in the worker too
    with pytest.raises(InputError, match="a tokenizing process died"):
        prepare(inputs, "bytes", tmp_path, workers=2, **OPTIONS)


FULL = """
import resource, signal, sys
from dlmjax.data.prepare import prepare
from dlmjax.errors import InputError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
try:
    prepare(sys.argv[2:], "bytes", sys.argv[1], shard_bytes=15_000, progress=False)
except InputError as error:
    print(error)
"""


def test_a_disk_that_takes_no_more_leaves_finished_shards_and_says_so(inputs, tmp_path):
    """A limit on the size of files stands for a full disk; the same preparation goes on without it."""
    (tmp_path / "script.py").write_text(FULL)
    big = write_jsonl(tmp_path / "big.jsonl", ["word " * 40_000])
    output = tmp_path / "c"
    command = [sys.executable, str(tmp_path / "script.py"), str(output), str(inputs[0]), str(big)]
    result = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=100)
    assert "cannot be written (" in result.stdout and "repeat the same command" in result.stdout, result
    finished = {path: path.stat().st_mtime_ns for path in output.glob("*.array_record")}
    assert len(finished) > 1 and not list(output.glob("*.part")) and not (output / "manifest.json").exists()
    prepare([str(inputs[0]), str(big)], "bytes", output, shard_bytes=15_000, progress=False)
    assert Corpus.open(output, verify=True).num_documents == len(NASTY) + 300 + 1
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in finished.items())


MEMORY = r"""
import re, resource, sys
from dlmjax.data.prepare import prepare
if __name__ == "__main__":
    prepare([sys.argv[1]], "bytes", sys.argv[2], workers=2, progress=False)
    assert not {"jax", "grain", "flax"} & set(sys.modules), "prepare imports jax"
    print(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])  # ru_maxrss of this process begins with its parent's
    print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_input_and_jax_is_not_imported(tmp_path):
    """One document of 60 MB: each process stays below 160 MB (of which Python, numpy and the libraries are 70)."""
    line = " ".join(make_documents(20, 5000, 8)).encode().replace(b"\n", b" ")
    (tmp_path / "a.txt").write_bytes(line * (60_000_000 // len(line)))
    (tmp_path / "script.py").write_text(MEMORY)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "a.txt"), str(tmp_path / "c")]
    result = subprocess.run(command, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert max(map(int, result.stdout.split())) < 160_000, result.stdout


def test_shards_grow_with_the_input():
    assert [default_shard_bytes(n) for n in (0, 1 << 30, 1 << 38, 1 << 50)] == [1 << 27, 1 << 27, 1 << 29, 2 << 30]


def test_novels27_is_its_own_cleaning(tmp_path):
    """Every character of an already cleaned text becomes one token."""
    found = prepare([shared_file("novels27/valid.txt.xz")], "char27", tmp_path)
    assert found.counts("train") == {"documents": 1, "tokens": 2_827_978, "text_bytes": 2_827_977}


def test_request_differences_name_the_field():
    request = {"inputs": [], "documents": "file"}
    old = {"version": 1, "tokenizer": {"hash": "a"}, "request": request}
    new = {"version": 2, "tokenizer": {"hash": "b"}, "request": request | {"documents": "line"}}
    assert manifest.differences(old, new) == "version, tokenizer, documents"
    shard = manifest.Shard("x", 4097, 16385, 1, 1, "")
    assert (shard.token_records, shard.records) == (2, 4)
    assert dataclasses.replace(shard, tokens=0, documents=0).records == 0


@pytest.mark.parametrize("shard_bytes", [1, 40, 10**6])
def test_records_without_text_are_left_out_and_counted_whatever_the_format(tmp_path, shard_bytes, capsys):
    """JSON lines and parquet of the same rows, nulls and empty texts at the ends and where segments meet: one corpus, one count."""
    import pyarrow
    from pyarrow import parquet

    rows = [None, "", "the first text", None, "a second one", "", "", "the third", None]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    parquet.write_table(pyarrow.table({"text": rows}), tmp_path / "a.parquet", row_group_size=4)
    kinds = {"jsonl": "a.jsonl", "parquet": "a.parquet"}
    found = {kind: prepare([tmp_path / name], "bytes", tmp_path / kind, shard_bytes=shard_bytes) for kind, name in kinds.items()}
    in_items = prepare([tmp_path / "a.parquet"], "bytes", tmp_path / "i", shard_bytes=shard_bytes, execute=lambda f, x: [f(i) for i in x])
    assert in_items == found["parquet"] and contents(tmp_path / "i") == contents(tmp_path / "parquet")
    for kind, made in found.items():
        assert made.skipped == 6 and made.counts("train")["documents"] == 3
        assert list(Corpus.open(tmp_path / kind).documents()) == [text for text in rows if text]
        assert prepare([tmp_path / kinds[kind]], "bytes", tmp_path / kind, shard_bytes=shard_bytes) == made  # again: nothing to do
    assert main(["prepare", "--input", str(tmp_path / "a.jsonl"), "--output", str(tmp_path / "c")]) == 0
    assert "6 records without text are left out" in capsys.readouterr().out
    assert main(["prepare", "--input", "builtin:python-docs", "--output", str(tmp_path / "d")]) == 0
    assert "left out" not in capsys.readouterr().out and "skipped" not in (tmp_path / "d" / "manifest.json").read_text()
