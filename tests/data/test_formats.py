"""Files become pieces of documents: the same text whatever the format, continuable anywhere, and honest about damage."""

import bz2
import gzip
import io
import itertools
import json
import lzma
import pathlib
import zipfile

import pytest

from dlmjax.data import formats
from dlmjax.data.corpus import Corpus
from dlmjax.data.formats import PIECE_BYTES, Position, Reader, cut, make_source
from dlmjax.data.prepare import prepare
from dlmjax.errors import InputError
from tests.data.conftest import NASTY, make_documents

COMPRESS = {
    "": lambda data: data,
    ".gz": lambda data: gzip.compress(data[: len(data) // 2]) + gzip.compress(data[len(data) // 2 :]),  # two members
    ".bz2": lambda data: bz2.compress(data[: len(data) // 2]) + bz2.compress(data[len(data) // 2 :]),
    ".xz": lambda data: lzma.compress(data[: len(data) // 2]) + lzma.compress(data[len(data) // 2 :]),
    ".zst": lambda data: _zstd(data[: len(data) // 2]) + _zstd(data[len(data) // 2 :]),
}


def _zstd(data: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor().compress(data)


def _write(path: pathlib.Path, data: bytes) -> str:
    path.write_bytes(COMPRESS[path.suffix if path.suffix in COMPRESS else ""](data))
    return str(path)


def _source(name: str, documents: str = "file", text_field: str = "text") -> formats.Source:
    return make_source(name, None, None, documents, text_field)


def _texts(sources: list[formats.Source], start: Position | None = None) -> list[str]:
    """Documents put together again from pieces, without those that have no text."""
    result: list[bytes] = []
    for piece in Reader(sources, start or Position(0)):
        if not piece.data and piece.starts and piece.ends:
            continue
        data = piece.data if piece.kind == "text" else json.loads(piece.data)[sources[piece.at.file].text_field].encode()
        if piece.starts:
            result.append(b"")
        result[-1] += data
    return [data.decode("utf-8") for data in result]


def _long(seed: int) -> str:
    """A document of several pieces, with and without places that are good to cut at."""
    return "".join(make_documents(300, 900, seed)) + "\u4e2d" * PIECE_BYTES + " x" * 5 + "A b" * PIECE_BYTES


@pytest.mark.parametrize("suffix", list(COMPRESS))
def test_whole_files(tmp_path, suffix):
    texts = ["short\r\n\n", _long(1), "x" * PIECE_BYTES, "x" * (PIECE_BYTES + 1), *NASTY]
    sources = [_source(_write(tmp_path / f"{i}.txt{suffix}", t.encode())) for i, t in enumerate(texts)]
    assert _texts(sources) == texts


@pytest.mark.parametrize("suffix", list(COMPRESS))
def test_documents_within_a_text_file(tmp_path, suffix):
    data = "\n \t\n\none\ntwo\r\n\r\n \r\nthree\n\n" + _long(2).replace("\n", "") + "\nlast"
    name = _write(tmp_path / f"a.txt{suffix}", data.encode())
    assert _texts([_source(name, "blank-line")]) == ["one\ntwo", "three", _long(2).replace("\n", "") + "\nlast"]
    assert _texts([_source(name, "line")]) == ["one", "two", "three", _long(2).replace("\n", ""), "last"]
    name = _write(tmp_path / f"b.txt{suffix}", b"<|endoftext|>\nA\n\nB\n<|endoftext|>\r\n <|endoftext|> \nC <|endoftext|>\n")
    assert _texts([_source(name, "separator:<|endoftext|>")]) == ["A\n\nB", "C <|endoftext|>"]


@pytest.mark.parametrize("suffix", list(COMPRESS))
def test_json_lines(tmp_path, suffix):
    texts = [*NASTY, _long(3)]
    lines = [json.dumps({"id": i, "body": t}, ensure_ascii=i % 2 == 0) for i, t in enumerate(texts)]
    name = _write(tmp_path / f"a.jsonl{suffix}", ("\n".join(lines[:4]) + "\n\n" + "\n".join(lines[4:])).encode())
    assert _texts([_source(name, text_field="body")]) == texts


def _parquet(path: pathlib.Path, texts: list[str | None], **options) -> str:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"n": list(range(len(texts))), "text": texts}), path, **options)
    return str(path)


def test_parquet(tmp_path):
    texts = [*make_documents(500, 300), _long(4), *NASTY]
    with_nulls: list[str | None] = [None, *itertools.chain.from_iterable((t, None) for t in texts)]
    assert _texts([_source(_parquet(tmp_path / "a.parquet", with_nulls, row_group_size=150))]) == texts


@pytest.mark.parametrize("kind", ["file", "blank-line", "line", "separator:===", "jsonl", "parquet", "builtin"])
def test_reading_goes_on_from_any_piece(tmp_path, kind, monkeypatch):
    """The pieces behind a position are the same whether reading came there or began there: what a restart relies on."""
    monkeypatch.setattr(formats, "PIECE_BYTES", 1 << 10)
    body = "\n".join(make_documents(30, 300)) + "\n\n \n===\n" + _long(5)[-9000:] + " \n  \n\n===\nend\n  " + " \n" * 3
    hard = body + "\n\n" + "\n".join("\u4e2d" * 40 for _ in range(50)) + "\n" + "\n   " * 2000 + "x"  # cut between lines and in blanks
    if kind == "builtin":
        sources = [_source(formats.BUILTIN)]
    elif kind == "parquet":
        sources = [_source(_parquet(tmp_path / f"{i}.parquet", make_documents(150, 300, i), row_group_size=40)) for i in range(2)]
    elif kind == "jsonl":
        lines = "\n".join(json.dumps({"text": t}) for t in make_documents(40, 500))
        sources = [_source(_write(tmp_path / f"{i}.jsonl{s}", lines.encode())) for i, s in enumerate(("", ".xz"))]
    else:
        sources = [_source(_write(tmp_path / f"{i}.txt{s}", hard.encode()), kind) for i, s in enumerate(("", ".gz", ".zst"))]
    pieces = list(Reader(sources, Position(0)))
    chosen = {
        *range(0, len(pieces), max(1, len(pieces) // 25)),
        *(i for i, p in enumerate(pieces) if not p.ends and i % 3 == 0),
        len(pieces) - 1,
    }
    for i in chosen:
        assert pieces[i].next.inside is not pieces[i].ends
        for n, (went_on, was_there) in enumerate(zip(Reader(sources, pieces[i].next), pieces[i + 1 :], strict=False)):
            assert went_on == was_there
            if n > 8:
                break
    assert list(Reader(sources, pieces[-1].next)) == []
    assert pieces[0].starts and all(b.starts is a.ends for a, b in itertools.pairwise(pieces))


def test_pieces_are_cut_before_a_space_between_letters():
    text = ("word  two, 3 four. Five six; " * 9000).encode()
    pieces = cut(text)
    assert b"".join(pieces) == text and len(pieces) > 2
    for left, right in itertools.pairwise(pieces):
        assert PIECE_BYTES // 2 < len(left) <= PIECE_BYTES
        assert left[-1:].isalpha() and right[:1] == b" " and right[1:2].isalpha()
    for character in ("\u00e9", "\u4e2d", "\U0001f600"):
        for shift in range(4):
            text = ("." * shift + character * PIECE_BYTES).encode()
            assert b"".join(cut(text)) == text
            assert all(piece.decode("utf-8") and len(piece) > PIECE_BYTES - 4 for piece in cut(text)[:-1])
    assert cut(b"") == [b""] and cut(b"a" * PIECE_BYTES) == [b"a" * PIECE_BYTES]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("documents", ["file", "line"])
def test_truncated_archive_is_named_with_its_position(tmp_path, suffix, documents):
    data = "".join(make_documents(800, 2000)).encode()
    path = tmp_path / f"a.txt{suffix}"
    _write(path, data)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 100])
    with pytest.raises(
        InputError, match=rf"a\.txt\{suffix} is truncated or damaged: it ends after [\d,]+ bytes of text, at byte [\d,]+ of "
    ):
        list(Reader([_source(str(path), documents)], Position(0)))
    path.write_bytes(b"garbage" + whole)
    with pytest.raises(InputError, match="truncated or damaged: it ends after 0 bytes"):
        list(Reader([_source(str(path), documents)], Position(0)))


def test_truncated_parquet_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    _parquet(path, make_documents(300, 300))
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(InputError, match=r"a\.parquet is truncated or damaged: not readable at row 0"):
        list(Reader([_source(str(path))], Position(0)))
    _parquet(path, make_documents(3, 300))
    with pytest.raises(InputError, match="no column 'body'; its columns: n, text"):
        list(Reader([_source(str(path), text_field="body")], Position(0)))
    with pytest.raises(InputError, match="column 'n' holds int64, not text"):
        list(Reader([_source(str(path), text_field="n")], Position(0)))


def test_inputs_that_cannot_be_used_are_named_before_anything_is_read(tmp_path, monkeypatch):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "text8").write_bytes(b"words")
    (tmp_path / "a.parquet.gz").write_bytes(b"x")
    cases = {
        "empty.txt": "is empty",
        "none.txt": "does not exist",
        "": "is a directory",
        "text8": "its name does not end like a known format",
        "a.parquet.gz": "unpack it",
    }
    for name, message in cases.items():
        with pytest.raises(InputError, match=message):
            _source(str(tmp_path / name))
    assert make_source(str(tmp_path / "text8"), None, "txt", "file", "text").format == "txt"
    (tmp_path / "empty.txt.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(InputError, match=r"empty\.txt\.gz holds no text"):
        list(Reader([_source(str(tmp_path / "empty.txt.gz"))], Position(0)))
    monkeypatch.setattr(formats, "LONGEST_LINE", 100)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": ""}\n' + b"x" * 200)
    with pytest.raises(InputError, match=r"a\.jsonl, line 2 \(byte 13\) is longer than"):
        list(Reader([_source(str(tmp_path / "a.jsonl"))], Position(0)))
    _parquet(tmp_path / "a.parquet", ["x", "x" * 200])
    with pytest.raises(InputError, match=r"a\.parquet, row 1 is longer than"):
        list(Reader([_source(str(tmp_path / "a.parquet"))], Position(0)))


@pytest.mark.parametrize("coded", ["string", "large_string", "string_view"])
@pytest.mark.parametrize("index", [None, "int8", "int32"])
def test_every_column_of_strings_is_read(tmp_path, coded, index):
    """Plain ones, and dictionaries of them as pandas' categories and polars' enums are written; nulls are documents without text."""
    import pyarrow
    from pyarrow import parquet

    texts = ["one text", None, "another", "one text", "", "\u00e9 three"] * 30
    column = pyarrow.array(texts, getattr(pyarrow, coded)())
    if index and coded == "string_view":
        pytest.skip("pyarrow has no dictionary of string views")
    if index:
        column = column.dictionary_encode().cast(pyarrow.dictionary(getattr(pyarrow, index)(), getattr(pyarrow, coded)()))
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet", row_group_size=50)
    assert _texts([_source(str(tmp_path / "a.parquet"))]) == [text for text in texts if text]
    assert _texts([_source(str(tmp_path / "a.parquet"))], Position(0, 70)) == [text for text in texts[70:] if text]


def _zip(method=None):
    """An archive of one file, of none without a method."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method or zipfile.ZIP_STORED) as archive:
        if method is not None:
            archive.writestr("a.txt", "x" * 99)
    return content.getvalue()


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (gzip.compress(b"x" * 99), "is packed as gz; rename it so that it ends in .gz"),
        (bz2.compress(b"x" * 99), "is packed as bz2; rename it so that it ends in .bz2"),
        (lzma.compress(b"x" * 99), "is packed as xz; rename it so that it ends in .xz"),
        (bz2.compress(b""), "is packed as bz2; rename it so that it ends in .bz2"),
        (_zip(zipfile.ZIP_STORED), "is packed as zip, which is not supported; unpack it first"),
        (_zip(zipfile.ZIP_LZMA), "is packed as zip, which is not supported; unpack it first"),
        (_zip(), "is packed as zip, which is not supported; unpack it first"),
        (b"7z\xbc\xaf\x27\x1c\x00\x04", "is packed as 7z, which is not supported"),
        (b"\x04\x22\x4d\x18\x64\x40\xa7", "is packed as lz4, which is not supported"),
        (b"Rar!\x1a\x07\x00\xcf\x90\x73", "is packed as rar, which is not supported; unpack it first"),
        (b"Rar!\x1a\x07\x01\x00", "is packed as rar, which is not supported; unpack it first"),
    ],
    # Packed bytes hold the time: as names of tests they would differ between the processes that share the tests.
    ids=["gz", "bz2", "xz", "bz2-empty", "zip-stored", "zip-lzma", "zip", "7z", "lz4", "rar4", "rar5"],
)
def test_a_packed_file_of_another_name_is_reported_with_its_format(tmp_path, start, said):
    """In place of "not valid UTF-8; convert the file", which would not help."""
    for name in ("a.jsonl", "a.txt.br", "a.txt.lz4"):
        (tmp_path / name).write_bytes(start)
        with pytest.raises(InputError, match=said):
            make_source(str(tmp_path / name), None, "jsonl", "file", "text")


@pytest.mark.parametrize("start", ["Rar!", "BZh", "BZh9 is how", "BZh91", "PK\x03\x04", "PK\x05\x06", "7z", "(", "\x04", "\x1f"])
@pytest.mark.parametrize("format", [None, "txt"])
def test_text_that_begins_as_packed_files_do_is_text(tmp_path, start, format):
    """The first letters of these signatures are letters: what decides is the rest, which no text has."""
    (tmp_path / "a.txt").write_text(f"{start} said the tiger.\n")
    source = make_source(str(tmp_path / "a.txt"), None, format, "file", "text")
    assert _texts([source]) == [f"{start} said the tiger.\n"]


def test_fingerprint_changes_with_the_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"a" * 3_000_000)
    before = _source(str(path))
    assert before == _source(str(path))
    path.write_bytes(b"a" * 2_999_999 + b"b")
    assert before.fingerprint != _source(str(path)).fingerprint


STRANGE = {
    "a long number": b'{"text": "a", "id": 1' + b"0" * 5000 + b"}\n",
    "a long negative number": b'{"id": [{"x": -7' + b"7" * 5000 + b'}], "text": "a"}\n',
    "a number of 400 digits": b'{"text": "a", "id": ' + b"9" * 400 + b"}\n",
    "no finite number": b'{"text": "a", "id": [NaN, -Infinity, 1e999]}\n',
    "a byte-order mark": b'\xef\xbb\xbf{"text": "a"}\n',
    "a byte-order mark of a file that was appended": b'{"text": ""}\n\xef\xbb\xbf{"text": "a"}\n',
    "a byte-order mark alone": b'\xef\xbb\xbf\r\n{"text": "a"}\n',
    "half a pair beside the text": b'{"text": "a", "x": "\\ud800"}\n',
    "a field twice": b'{"text": "b", "text": "a"}\n',
}


@pytest.mark.parametrize("name", list(STRANGE))
def test_json_is_read_whatever_stands_beside_the_text(tmp_path, name):
    (tmp_path / "a.jsonl").write_bytes(STRANGE[name])
    prepare([tmp_path / "a.jsonl"], "bytes", tmp_path / "c")
    assert list(Corpus.open(tmp_path / "c").documents()) == ["a"]
    (tmp_path / "b.jsonl").write_bytes(STRANGE[name] + b'{"text": "b\xff"}\n')  # the place is counted in the file's own bytes
    with pytest.raises(InputError, match=rf"line {STRANGE[name].count(10) + 1}: .* byte {len(STRANGE[name]) + 11:,} of the text"):
        prepare([tmp_path / "b.jsonl"], "bytes", tmp_path / "d")
