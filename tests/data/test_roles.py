"""The column of roles: beside the tokens in the shards, at the same places in every row, and never absent where it is damaged."""

import dataclasses
import io
import json
import pathlib
import shutil

import numpy as np
import pytest

from dlmjax.cli.main import main
from dlmjax.data import manifest, roles
from dlmjax.data.corpus import Corpus
from dlmjax.data.loader import eval_batches, train_batches
from dlmjax.data.manifest import Manifest
from dlmjax.data.prepare import prepare
from dlmjax.data.windows import PACKINGS, EvalWindows, TrainWindows
from dlmjax.errors import InputError
from dlmjax.files import sealed
from tests.data.conftest import make_documents

EOS = 258  # of bytes

OPTIONS = {"format": "prompt-answer", "shard_bytes": 8_000, "progress": False}
CONDITION, SCORED, PADDING = roles.pack_role(0, 2), roles.pack_role(1, 3), roles.PADDING


def write_lines(path: pathlib.Path, records: list) -> pathlib.Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def records() -> list[dict]:
    texts = make_documents(240, 600, 5)
    long = {"prompt": "many words", "answer": " ".join(map(str, range(2000)))}  # of several records of a shard
    return [{"prompt": a, "answer": b} for a, b in zip(texts[::2], texts[1::2], strict=True)] + [long]


@pytest.fixture(scope="module")
def source(records, tmp_path_factory) -> pathlib.Path:
    return write_lines(tmp_path_factory.mktemp("answers") / "a.jsonl", records)


@pytest.fixture(scope="module")
def answers(source) -> Corpus:
    """`records` in some shards, as bytes: tokens and roles are known one by one."""
    prepare([source], "bytes", source.parent / "corpus", **OPTIONS)
    return Corpus.open(source.parent / "corpus", verify=True)


@pytest.fixture(scope="module")
def columns(records, answers) -> tuple[np.ndarray, np.ndarray]:
    """The tokens and the roles that the corpus should have."""
    tokens, found = [], []
    for record in records:
        prompt, answer = (record["prompt"] + "\n").encode(), record["answer"].encode()
        tokens += [*prompt, *answer, answers.tokenizer.eos_id]
        found += [CONDITION | roles.MESSAGE_START, *[CONDITION] * (len(prompt) - 1), SCORED | roles.MESSAGE_START, *[SCORED] * len(answer)]
    return np.array(tokens, np.int32), np.array(found, np.uint8)


def test_a_byte_is_use_role_and_turn():
    for number in range(64):
        assert roles.pack_role(roles.use_of(number), roles.role_of(number), roles.is_message_start(number)) == number
    assert (len(roles.USES), len(roles.ROLES)) == (4, 8) and roles.USES[roles.use_of(PADDING)] == "hidden"


def test_any_stretch_has_the_roles_of_its_tokens(answers, columns):
    tokens, expected = columns
    assert answers.has_roles and answers.num_tokens == len(tokens) and len(answers.shards) > 3
    starts = np.cumsum([0, *(shard.tokens for shard in answers.shards)]).tolist()
    edges = sorted({0, 1, *starts, *(s - 1 for s in starts[1:]), manifest.RECORD_TOKENS - 1, manifest.RECORD_TOKENS, len(tokens) - 1})
    for begin in edges:
        for end in [begin, begin + 1, *edges]:
            if begin <= end <= len(tokens):
                np.testing.assert_array_equal(answers.read(begin, end - begin), tokens[begin:end])
                np.testing.assert_array_equal(answers.read_roles(begin, end - begin), expected[begin:end])
    np.testing.assert_array_equal(answers.counts_V, np.bincount(tokens, minlength=259))
    answers.verify()


def in_threads(function, items) -> None:
    for item in items:
        function(item)


@pytest.mark.parametrize("how", ["beam", "workers", "resumed"])
def test_every_way_to_prepare_writes_the_same_bytes(answers, source, tmp_path, how, monkeypatch):
    if how == "workers":
        monkeypatch.setattr("dlmjax.data.prepare.SMALL", 0)
    prepare([source], "bytes", tmp_path, **OPTIONS, **({"execute": in_threads} if how == "beam" else {"workers": 2}))
    if how == "resumed":
        (tmp_path / answers.shards[1].file).unlink()
        prepare([source], "bytes", tmp_path, **OPTIONS)
    for shard in answers.shards:
        assert (tmp_path / shard.file).read_bytes() == (answers.directory / shard.file).read_bytes()
    assert (tmp_path / manifest.FILE).read_bytes() == (answers.directory / manifest.FILE).read_bytes()


def without_ends(bytes_N: np.ndarray) -> np.ndarray:
    """Bytes of roles without the bit of the last token of a document."""
    return bytes_N & np.uint8(roles.END - 1)


def row_of(batch: dict, number: int, length: int, tokens: np.ndarray, expected: np.ndarray) -> None:
    """Asserts that a row is some stretch of the stream (a ring), with its roles at the same places, and padding after it."""
    count = int((batch["segments"][number] > 0).sum())
    row = batch["tokens"][number, :count]
    ring, ring_roles = np.append(tokens, tokens[:length]), np.append(expected, expected[:length])
    at = next(i for i in np.flatnonzero(ring == row[0]) if np.array_equal(ring[i : i + count], row))
    np.testing.assert_array_equal(without_ends(batch["roles"][number, :count]), ring_roles[at : at + count])
    np.testing.assert_array_equal(batch["roles"][number, :count] & roles.END > 0, row == EOS)
    assert (batch["roles"][number, count:] == PADDING).all()


@pytest.mark.parametrize("packing", PACKINGS)
def test_rows_carry_the_roles_of_their_tokens(answers, columns, packing):
    windows = TrainWindows([answers], None, 256, 8, seed=3, packing=packing)
    batch = windows.rows(5, range(8))
    assert batch["roles"].dtype == np.uint8 and batch["roles"].shape == batch["tokens"].shape
    for number in range(8):
        row_of(batch, number, 256, *columns)
    # The same places for any host, and after a restart.
    np.testing.assert_array_equal(windows.rows(5, [3, 6])["roles"], batch["roles"][[3, 6]])
    np.testing.assert_array_equal(windows.row(5, 6)["roles"], batch["roles"][6])
    resumed = next(train_batches(windows, [2, 3], start_step=5, ahead=0))
    np.testing.assert_array_equal(resumed["roles"], batch["roles"][2:4])


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_mixture_scores_all_tokens_of_a_corpus_without_roles(answers, columns, corpus, stream, packing):
    windows = TrainWindows([answers, corpus], [1, 1], 200, 8, seed=1, packing=packing)
    batch, of_plain = windows.rows(2, range(8)), 0
    for number in range(8):
        count = int((batch["segments"][number] > 0).sum())
        if (without_ends(batch["roles"][number, :count]) == roles.ALL_SCORED).all():
            of_plain += 1
            row_of(batch, number, 200, np.array(stream), np.full(len(stream), roles.ALL_SCORED))
        else:
            row_of(batch, number, 200, *columns)
    assert of_plain == 4
    without = TrainWindows([corpus], None, 200, 8, seed=1, packing=packing).rows(2, range(8))
    assert "roles" not in without and (corpus.read_roles(3, 5) == roles.ALL_SCORED).all()


def test_held_out_windows_keep_answers_with_their_prompts(answers, columns):
    tokens, expected = columns
    held_out = EvalWindows(answers, 1300)
    batches = list(eval_batches(held_out, 4, ahead=0))
    valid = np.concatenate([batch["segments"] for batch in batches]) > 0
    np.testing.assert_array_equal(np.concatenate([batch["tokens"] for batch in batches])[valid], tokens)
    np.testing.assert_array_equal(without_ends(np.concatenate([batch["roles"] for batch in batches])[valid]), expected)
    first = np.array([row["roles"][0] for number in range(len(held_out)) if (row := held_out.row(number))])
    cut = 8890 // 1300 + 1  # windows that begin within the one long answer
    assert (roles.is_message_start(first) & (roles.use_of(first) == roles.CONDITION)).sum() >= len(first) - cut


def test_the_roles_are_in_the_fingerprint_and_in_the_identity(answers, source, tmp_path):
    lines = [{"text": r["prompt"] + "\n" + r["answer"], "spans": [[0, 1]]} for r in map(json.loads, source.read_text().splitlines())]
    prepare([write_lines(tmp_path / "b.jsonl", lines)], "bytes", tmp_path / "b", **OPTIONS | {"format": "spans"})
    other = Corpus.open(tmp_path / "b")
    np.testing.assert_array_equal(other.read(0, other.num_tokens), answers.read(0, answers.num_tokens))
    assert other.fingerprint != answers.fingerprint
    with pytest.raises(InputError, match="different corpus .*separator"):
        prepare([source], "bytes", answers.directory, **OPTIONS, separator="\n\n")


def test_a_corpus_without_roles_is_as_before(corpus):
    """Its version, and a record: the tokens alone."""
    values = json.loads((corpus.directory / manifest.FILE).read_bytes())
    assert values["version"] == 1 and not corpus.has_roles
    assert set(values["request"]) == {
        *("inputs", "tokenizer", "split_by", "valid_fraction", "test_fraction", "split_seed", "format", "documents", "text_field"),
        "shard_bytes",
    }


# ---- damage -----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(answers, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(answers.directory, tmp_path / "copy"))


def forged(copy: pathlib.Path, number: int, change) -> None:
    """Writes a shard again with each token record changed, and a manifest that agrees with the file."""
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

    found = Manifest.load(copy)
    shard = found.segments[number].shards["train"]
    reader = ArrayRecordReader(str(copy / shard.file))
    records = reader.read_all()
    reader.close()
    writer = ArrayRecordWriter(str(copy / shard.file), manifest.WRITER_OPTIONS)
    for i, record in enumerate(records):
        writer.write(change(record) if i < shard.token_records else record)
    writer.close()
    path = copy / shard.file
    shard = dataclasses.replace(shard, file_bytes=path.stat().st_size, sha256=manifest.sha256_of(path))
    found.segments[number].shards["train"] = shard
    (copy / manifest.FILE).write_text(json.dumps(sealed(found.to_json())))


@pytest.mark.parametrize("change", [lambda r: r[:-1], lambda r: r[: len(r) // 3 * 2], lambda r: r + b"\x01", lambda r: b""])
def test_a_column_of_another_size_is_one_line(copy, change):
    """Also where size and hash of the file are those of the manifest."""
    forged(copy, 1, change)
    damaged = Corpus.open(copy)
    for read in (damaged.read, damaged.read_roles):
        with pytest.raises(InputError, match="too (short|long).*tokens with their roles; prepare it again") as told:
            read(0, damaged.num_tokens)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize("format", [None, "jsonl", "txt", 7, ["chat"]])
def test_a_manifest_that_hides_the_column_is_refused(copy, format):
    values = json.loads((copy / manifest.FILE).read_bytes())
    values["request"]["format"] = format
    (copy / manifest.FILE).write_text(json.dumps(sealed({k: v for k, v in values.items() if k != "checksum"})))
    with pytest.raises(InputError, match="version 2|damaged"):
        Corpus.open(copy)


def test_a_manifest_that_invents_the_column_is_refused(corpus, tmp_path):
    copy = pathlib.Path(shutil.copytree(corpus.directory, tmp_path / "copy"))
    values = json.loads((copy / manifest.FILE).read_bytes())
    values["request"]["format"], values["version"] = "spans", 2
    (copy / manifest.FILE).write_text(json.dumps(sealed({k: v for k, v in values.items() if k != "checksum"})))
    with pytest.raises(InputError, match="too short|damaged|cannot hold"):
        Corpus.open(copy).read_roles(0, 100)


def test_the_loss_has_masks_in_the_place_of_roles():
    """Given tokens condition the others; the tail carries loss, and is named; a batch without roles is as it was."""
    batch = {"tokens": np.arange(4), "roles": np.asarray([CONDITION, SCORED, roles.pack_role(roles.TAIL, 6), PADDING], np.uint8)}
    found = roles.with_scored(batch)
    assert found["scored"].tolist() == [False, True, True, False] and found["tail"].tolist() == [False, False, True, False]
    assert "roles" not in found and roles.with_scored({"tokens": 1}) == {"tokens": 1}


# ---- what a person sees -----------------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("kind", ["terminal", "no colour", "file"])
def test_show_marks_what_is_given_and_scored(tmp_path, monkeypatch, kind):
    lines = [
        {"text": "a\x1b[2Jbcdefgh\u00e9", "spans": [[2, 4], {"start": 9, "end": 11, "use": "tail"}]},
        {"text": "xy", "spans": [[1, 2]]},
    ]
    source = write_lines(tmp_path / "a.jsonl", lines)
    stream = io.StringIO() if kind == "file" else Terminal()
    monkeypatch.setattr("sys.stdout", stream)
    monkeypatch.setenv("NO_COLOR", "1" if kind == "no colour" else "")
    assert main(["prepare", "--input", str(source), "--format", "spans", "--output", str(tmp_path / "c"), "--show", "2"]) == 0
    _, legend, *shown = stream.getvalue().splitlines()
    if kind == "terminal":
        assert legend == "shown: \x1b[2mgiven\x1b[0m, \x1b[32mscored\x1b[0m, \x1b[33mtail\x1b[0m"
        assert shown[3] == "\x1b[2mx\x1b[0m\x1b[32my<eos>\x1b[0m" and shown[1].count("\x1b") == 10
    else:
        assert legend == "shown: given, [scored], <tail>"
        assert shown == ["--- document 1 of train", "a\u241b[[2]Jbcde<fg>h\u00e9<eos>", "--- document 2 of train", "x[y<eos>]"]


# ---- bad records --------------------------------------------------------------------------------------------------------------------

TEXT = {"text": "abcdef"}
BAD = {
    "past the end": ("spans", TEXT | {"spans": [[2, 7]]}, "ends after the text"),
    "before the start": ("spans", TEXT | {"spans": [[-1, 2]]}, "not in order"),
    "empty span": ("spans", TEXT | {"spans": [[2, 2]]}, "is empty"),
    "overlap": ("spans", TEXT | {"spans": [[0, 3], [2, 4]]}, "spans 1 and 2 overlap"),
    "out of order": ("spans", TEXT | {"spans": [[3, 4], [0, 1]]}, "out of order"),
    "fraction": ("spans", TEXT | {"spans": [[0, 1.5]]}, "whole numbers"),
    "true": ("spans", TEXT | {"spans": [[False, True]]}, "whole numbers"),
    "not a span": ("spans", TEXT | {"spans": [3]}, "give [START, END]"),
    "role": ("spans", TEXT | {"spans": [{"start": 0, "end": 1, "role": "bot"}]}, "'bot'; give one of text, system"),
    "use": ("spans", TEXT | {"spans": [{"start": 0, "end": 1, "use": ["x"]}]}, "give one of given"),
    "unknown field": ("spans", TEXT | {"spans": [{"start": 0, "end": 1, "usage": 1}]}, "unknown field 'usage'"),
    "no spans": ("spans", TEXT, "no list in the field 'spans'"),
    "nothing scored": ("spans", TEXT | {"spans": []}, "nothing to score"),
    "given alone": ("spans", TEXT | {"spans": [{"start": 0, "end": 6, "use": "given"}]}, "nothing to score"),
    "no text": ("spans", {"spans": []}, "no field 'text'"),
    "empty answer": ("prompt-answer", {"prompt": "a", "answer": ""}, "nothing to score"),
    "no answer": ("prompt-answer", {"prompt": "a"}, "--answer-field"),
    "null": ("prompt-answer", {"prompt": None, "answer": "b"}, "holds null"),
    "number": ("prompt-answer", {"prompt": "a", "answer": 4}, "holds a number"),
    "list": ("prompt-answer", [1], "not an object"),
    "surrogate": ("prompt-answer", {"prompt": "\ud800", "answer": "b"}, "surrogate"),
    "long prompt": ("prompt-answer", {"prompt": "a" * 40, "answer": "b"}, "its prompt has 41 tokens, but rows have --length 32"),
    "long": ("prompt-answer", {"prompt": "a", "answer": "b" * 40}, "has 43 tokens"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_record_is_one_line_with_its_number(tmp_path, capsys, kind):
    format, record, message = BAD[kind]
    good = {"text": "ab", "spans": [[0, 1]], "prompt": "a", "answer": "b"}
    source = write_lines(tmp_path / "a.jsonl", [good, record, good])
    assert main(["prepare", "--input", str(source), "--format", format, "--length", "32", "--output", str(tmp_path / "c")]) == 2
    err = capsys.readouterr().err
    assert "a.jsonl, line 2 (byte" in err and message in err and err.count("\n") == 1
    assert not (tmp_path / "c" / manifest.FILE).exists() and not list((tmp_path / "c").glob("*.array_record*"))


@pytest.mark.parametrize("tokenizer", ["bytes", "char27"])
def test_a_text_is_tokenized_as_a_whole(tmp_path, tokenizer):
    """Also by a tokenizer that cleans its text: the answer begins where the tokens of the prompt end."""
    source = write_lines(tmp_path / "a.jsonl", [{"prompt": "What is 2?", "answer": "It is  two, na\u00efve"}])
    prepare([source], tokenizer, tmp_path / "c", format="prompt-answer", progress=False)
    found = Corpus.open(tmp_path / "c")
    tokens, scored = found.read(0, found.num_tokens), roles.use_of(found.read_roles(0, found.num_tokens)) == roles.SCORED
    whole = found.tokenizer.encode("What is 2?\nIt is  two, na\u00efve")
    np.testing.assert_array_equal(tokens, [*whole, found.tokenizer.eos_id])
    given = found.tokenizer.encode("What is 2?\n")
    assert (scored == (np.arange(len(tokens)) >= len(given))).all()
