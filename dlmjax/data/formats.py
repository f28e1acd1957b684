"""Reads input files as a stream of pieces of documents, which can be resumed at any piece.

A *piece* is at most PIECE_BYTES of one document (a JSON line or parquet cell of any size is one piece). Pieces are tokenized
independently of each other, so the cuts are part of the format and depend only on the text. Every piece has the position after it;
reading from that position gives exactly the following pieces.

  txt      (and .md) documents = "file" (one file is one document), "blank-line", "line", or "separator:TEXT" (a line that is TEXT)
  jsonl    one JSON object per line, its text in a named field
  parquet  one document per row, in a named column of strings, plain or as a dictionary
A record whose text is null or empty is skipped and counted, in either format.
txt and jsonl may be compressed (.gz, .bz2, .xz, .zst); parquet has its own compression. `builtin:python-docs` is text of CPython.
"""

import bz2
import codecs
import dataclasses
import gzip
import hashlib
import io
import lzma
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

from dlmjax.data import paths
from dlmjax.errors import InputError

PIECE_BYTES = 1 << 16
LONGEST_LINE = 1 << 26  # bytes of a JSON line or parquet cell, which is in memory as a whole
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
# First bytes of compressed files, supported or not: long enough that no text begins with them.
_PACKED = (
    (re.compile(rb"\x1f\x8b\x08"), ".gz"),
    (re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"), ".bz2"),  # a block, or the end of an empty file
    (re.compile(rb"\xfd7zXZ\x00"), ".xz"),
    (re.compile(rb"\x28\xb5\x2f\xfd"), ".zst"),
    # Version and flags, whose high bytes are small; a known method.
    (re.compile(rb"PK\x03\x04[\x00-\x3f][\x00-\x13].[\x00-\x3f][\x00-\x0e\x10-\x14\x5d-\x63]\x00", re.DOTALL), "zip"),
    (re.compile(rb"PK\x05\x06\x00\x00\x00\x00"), "zip"),  # an empty archive
    (re.compile(rb"7z\xbc\xaf\x27\x1c"), "7z"),
    (re.compile(rb"\x04\x22\x4d\x18[\x40-\x7f]"), "lz4"),
    (re.compile(rb"Rar!\x1a\x07[\x00\x01]"), "rar"),
)
_TEXT = (".txt", ".text", ".md", ".markdown", ".raw", ".tokens")
FORMATS = {**dict.fromkeys(_TEXT, "txt"), ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
ENDINGS = f".txt, .md, .jsonl (each also {', '.join(COMPRESSIONS)}) and .parquet"
BUILTIN = "builtin:python-docs"


class Position(NamedTuple):
    """A position in the inputs. offset: bytes of (decompressed) text, or rows of a parquet file; inside: is it within a document."""

    file: int
    offset: int = 0
    line: int = 0
    inside: bool = False


class Piece(NamedTuple):
    """Part of a document: bytes that are not yet checked to be UTF-8, or a JSON line; `at` is its start, `next` the position after it."""

    data: bytes
    kind: str  # "text" or "json"
    starts: bool
    ends: bool
    at: Position
    next: Position


@dataclasses.dataclass(frozen=True)
class Source:
    """One input. `split` is None when documents are divided by hash."""

    name: str
    format: str  # txt, jsonl, parquet, builtin
    split: str | None
    documents: str
    text_field: str
    size: int  # stored bytes
    fingerprint: str  # sha256 of size, first and last MiB: changes when the file does, without reading all of it

    def describe(self) -> dict:
        """The entry of an input in a manifest."""
        return {"name": self.name, "format": self.format, "split": self.split, "bytes": self.size, "fingerprint": self.fingerprint}


def builtin_documents() -> list[str]:
    """The 79 topics of CPython's help, 465 kB of English about Python; 3.11, 3.12 and 3.13 have the same module."""
    from pydoc_data.topics import topics

    return [topics[key] for key in sorted(topics)]


def format_of(name: str) -> str | None:
    """The format that the end of a file's name stands for (in either case, before the end of a compression); None if it is unknown."""
    path = pathlib.PurePath(name)
    plain = path.with_suffix("") if path.suffix in COMPRESSIONS else path
    return FORMATS.get(plain.suffix.lower())


def make_source(name: str, split: str | None, format: str | None, documents: str, text_field: str) -> Source:
    """The source of one input file. Raises InputError: it is missing, is empty, is a directory, or has an unknown format."""
    if name == BUILTIN:
        content = "\0".join(builtin_documents()).encode("utf-8")
        return Source(name, "builtin", split, "file", text_field, len(content), hashlib.sha256(content).hexdigest())
    path = pathlib.PurePath(name)
    try:
        size = paths.size_of(name)
    except IsADirectoryError:  # of a local folder, `CorpusOptions.files` reads the files
        raise InputError(f"input {name} is a directory; give its files (or the built-in text {BUILTIN})") from None
    if size is None:
        raise InputError(f"input {name} does not exist (or the built-in text {BUILTIN})")
    if size == 0:
        raise InputError(f"input {name} is empty (0 bytes); leave it out or get the file again")
    if format is None:
        format = format_of(name)
        if format is None:
            raise InputError(f"input {name}: its name does not end like a known format ({ENDINGS}); give --format")
    if format == "parquet" and path.suffix in COMPRESSIONS:
        raise InputError(f"input {name}: parquet has its own compression; unpack it first")
    digest = hashlib.sha256(str(size).encode())
    try:
        with paths.open_binary(name) as file:
            head = file.read(1 << 20)
            digest.update(head)
            file.seek(max(0, size - (1 << 20)))
            digest.update(file.read())
    except OSError as error:
        raise InputError(f"input {name} cannot be read: {error.strerror}") from None
    packed = next((kind for magic, kind in _PACKED if magic.match(head)), None)
    if packed and path.suffix != packed and format != "parquet":
        readable = f"; rename it so that it ends in {packed}"
        cure = readable if packed in COMPRESSIONS else ", which is not supported; unpack it first"
        raise InputError(f"input {name} is packed as {packed.lstrip('.')}{cure}")
    return Source(name, format, split, documents, text_field, size, digest.hexdigest())


# ---- where a long text is cut ---------------------------------------------------------------------------------------------------


def _is_letter(byte: int) -> bool:
    return 65 <= byte <= 90 or 97 <= byte <= 122


def cut_point(data: bytes) -> int:
    """Number of bytes of the first piece of a text that is longer than PIECE_BYTES.

    The cut is before the last single space between two ASCII letters: GPT-2's pattern, SentencePiece and char27 begin a new unit there,
    so the tokens are those of the uncut text. If the second half has no such space, the cut is at a character, which can add a token.
    """
    end = PIECE_BYTES
    while (end := data.rfind(b" ", PIECE_BYTES // 2, end + 1)) > 0:
        if end + 1 < len(data) and _is_letter(data[end - 1]) and _is_letter(data[end + 1]):
            return end
        end -= 1
    end = PIECE_BYTES
    while end > PIECE_BYTES - 4 and data[end] & 0xC0 == 0x80:
        end -= 1
    return end


def cut(data: bytes) -> list[bytes]:
    """A document's pieces, each at most PIECE_BYTES long."""
    pieces = []
    while len(data) > PIECE_BYTES:
        at = cut_point(data[: PIECE_BYTES + 2])
        pieces.append(data[:at])
        data = data[at:]
    return [*pieces, data]


# ---- streams ---------------------------------------------------------------------------------------------------------------------


class _Zstd(io.RawIOBase):
    """Decompresses consecutive zstandard frames. Unlike the reader of the library, it detects a truncated file."""

    def __init__(self, file: BinaryIO):
        import zstandard

        self._library, self._file, self._frame, self._input, self._ready = zstandard, file, None, b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        """Fills the buffer with decompressed bytes; 0 at the end (`io.RawIOBase`)."""
        while not self._ready:
            if not self._input:
                self._input = self._file.read(1 << 17)
            if not self._input:
                if self._frame is not None:
                    raise EOFError("the last frame has no end")
                return 0
            if self._frame is None:
                self._frame = self._library.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
            self._ready = self._frame.decompress(self._input)
            self._input = b""
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count


class _Text(io.RawIOBase):
    """Reads the text of a file and counts its bytes; raises InputError with the count if the file is truncated or damaged."""

    def __init__(self, name: str):
        self.name, self.count = name, 0
        self.file = paths.open_binary(name)
        suffix = pathlib.Path(name).suffix
        opener = {".gz": lambda f: gzip.GzipFile(fileobj=f), ".bz2": bz2.BZ2File, ".xz": lzma.LZMAFile, ".zst": _Zstd}.get(suffix)
        self._inner = opener(self.file) if opener else self.file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        """Fills the buffer with decompressed bytes; 0 at the end (`io.RawIOBase`)."""
        try:
            count = self._inner.readinto(buffer)
        except InputError:  # from the storage service, not the file
            raise
        except (EOFError, OSError, lzma.LZMAError, zlib.error, ValueError, RuntimeError) as error:
            raise self._broken(error) from None
        except Exception as error:
            if type(error).__name__ == "ZstdError":  # not importable without the library
                raise self._broken(error) from None
            raise
        self.count += count
        return count

    def _broken(self, error: Exception) -> InputError:
        return InputError(
            f"input {self.name} is truncated or damaged: it ends after {self.count:,} bytes of text, at byte "
            f"{self.file.tell():,} of {paths.size_of(self.name):,} of the file ({error}); get the file again "
            "(nothing already prepared was changed)"
        )

    def close(self) -> None:
        self.file.close()
        super().close()


def _skip(stream: io.BufferedReader, text: _Text, offset: int) -> None:
    """Moves to a position in the text: a plain file is seeked, a compressed one is read up to there."""
    if pathlib.Path(text.name).suffix not in COMPRESSIONS:
        text.file.seek(offset)
        text.count = offset
        return
    while offset > 0:
        got = len(stream.read(min(offset, 1 << 20)))
        if got == 0:
            raise InputError(f"input {text.name} is shorter than when its preparation began; prepare it again with --overwrite")
        offset -= got


# ---- documents -------------------------------------------------------------------------------------------------------------------


def _whole_file(stream: io.BufferedReader, start: Position) -> Iterator[Piece]:
    at, data = start, b""
    while True:
        data += stream.read(PIECE_BYTES + 2 - len(data))
        if not data:
            return
        last = len(data) <= PIECE_BYTES
        end = len(data) if last else cut_point(data)
        following = Position(start.file, at.offset + end, 0, not last)
        yield Piece(data[:end], "text", not at.inside, last, at, following)
        if last:
            return
        at, data = following, data[end:]


class _OpenDocument:
    """Collects the lines of one text document and yields its pieces when they are full. The last line end is dropped."""

    def __init__(self, start: Position):
        self._begin(start)

    def _begin(self, start: Position) -> None:
        self.at = start
        self.parts: list[bytes] = []
        self.size = 0
        self.line_end = b""

    def add(self, content: bytes, line_end: bytes) -> Iterator[Piece]:
        self.parts += [self.line_end, content]
        self.size += len(self.line_end) + len(content)
        self.line_end = line_end
        if self.size > PIECE_BYTES + 1:
            yield from self._cut(lambda data: len(data) > PIECE_BYTES + 1)

    def _cut(self, more: Callable[[bytes], bool]) -> Iterator[Piece]:
        data = b"".join(self.parts)
        while more(data):
            end = cut_point(data)
            lines = data.count(b"\n", 0, end)
            following = Position(self.at.file, self.at.offset + end, self.at.line + lines, True)
            yield Piece(data[:end], "text", not self.at.inside, False, self.at, following)
            self.at, data = following, data[end:]
        self.parts, self.size = [data], len(data)

    def finish(self, following: Position) -> Iterator[Piece]:
        """The last piece (none for an empty document), and a new document that begins at `following`."""
        yield from self._cut(lambda data: len(data) > PIECE_BYTES)
        if self.size or self.at.inside:
            yield Piece(b"".join(self.parts), "text", not self.at.inside, True, self.at, following)
        self._begin(following)


def _by_lines(stream: io.BufferedReader, start: Position, documents: str) -> Iterator[Piece]:
    separator = documents.partition(":")[2].encode("utf-8")
    each_line = documents == "line"
    document = _OpenDocument(start)
    offset, line = start.offset, start.line
    rest_of_line = start.inside  # the rest of that line then belongs to the open document
    while fragment := stream.readline(PIECE_BYTES):
        offset += len(fragment)
        ended = fragment.endswith(b"\n")
        line += ended
        line_end = b"" if not ended else b"\r\n" if fragment.endswith(b"\r\n") else b"\n"
        content = fragment[: len(fragment) - len(line_end)]
        stripped = content.strip()
        divides = not rest_of_line and (stripped == separator if separator else not stripped)
        rest_of_line = not ended
        if not divides:
            yield from document.add(content, line_end)
        if divides or (each_line and ended):
            yield from document.finish(Position(start.file, offset, line, False))
    yield from document.finish(Position(start.file, offset, line, False))


def _json_lines(stream: io.BufferedReader, start: Position, name: str) -> Iterator[Piece]:
    at = start
    while content := stream.readline(LONGEST_LINE + 1):
        if len(content) > LONGEST_LINE:
            where = f"input {name}, line {at.line + 1:,} (byte {at.offset:,})"
            raise InputError(f"{where} is longer than {LONGEST_LINE >> 20} MiB; split that document")
        following = Position(at.file, at.offset + len(content), at.line + 1)
        if content.removeprefix(codecs.BOM_UTF8).strip():
            yield Piece(content, "json", True, True, at, following)
        at = following


def _parquet(source: Source, start: Position, progress: Callable[[float], None]) -> Iterator[Piece]:
    import pyarrow
    from pyarrow import parquet

    row = start.offset
    try:
        stored = paths.open_binary(source.name) if paths.is_url(source.name) else source.name
        with parquet.ParquetFile(stored, pre_buffer=False, buffer_size=1 << 20) as file:
            schema = file.schema_arrow
            if source.text_field not in schema.names:
                raise InputError(f"input {source.name} has no column {source.text_field!r}; its columns: {', '.join(schema.names)}")
            if schema.names.count(source.text_field) > 1:
                raise InputError(f"input {source.name} has several columns {source.text_field!r}; rename all but one")
            kind = schema.field(source.text_field).type
            dictionary = pyarrow.types.is_dictionary(kind)
            values_are = kind.value_type if dictionary else kind
            tests = (pyarrow.types.is_string, pyarrow.types.is_large_string, pyarrow.types.is_string_view, pyarrow.types.is_null)
            if not any(test(values_are) for test in tests):
                raise InputError(f"input {source.name}: column {source.text_field!r} holds {kind}, not text")
            groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
            first, skip = 0, start.offset
            while first < len(groups) and skip >= groups[first]:
                skip -= groups[first]
                first += 1
            rest = list(range(first, len(groups)))
            for batch in file.iter_batches(batch_size=64, row_groups=rest, columns=[source.text_field], use_threads=False):
                column = batch.column(0).dictionary_decode() if dictionary else batch.column(0)
                values = column.cast(pyarrow.large_binary()).to_pylist()
                dropped, skip = min(skip, len(values)), max(0, skip - len(values))
                for value in values[dropped:]:
                    if value and len(value) > LONGEST_LINE:
                        where = f"input {source.name}, row {row:,}"
                        raise InputError(f"{where} is longer than {LONGEST_LINE >> 20} MiB; split that document")
                    yield Piece(value or b"", "text", True, True, Position(start.file, row), Position(start.file, row + 1))
                    row += 1
                progress(row / max(1, sum(groups)))
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"input {source.name} is truncated or damaged: not readable at row {row:,} ({reason})") from None


class Reader:
    """The pieces of all inputs in order, from a position on."""

    def __init__(self, sources: Sequence[Source], start: Position):
        self.sources, self.start = sources, start
        self._before = [0]
        for source in sources:
            self._before.append(self._before[-1] + source.size)
        self._done = self._before[start.file]
        self._open: _Text | None = None

    @property
    def stored(self) -> int:
        """Bytes of the input files, as stored, that were read."""
        return self._done + (self._open.file.tell() if self._open else 0)

    def __iter__(self) -> Iterator[Piece]:
        position = self.start
        for number in range(position.file, len(self.sources)):
            yield from self._one(number, position if number == position.file else Position(number))
            self._open, self._done = None, self._before[number + 1]

    def _one(self, number: int, start: Position) -> Iterator[Piece]:
        source = self.sources[number]
        if source.format == "builtin":
            for i, text in list(enumerate(builtin_documents()))[start.offset :]:
                yield Piece(text.encode("utf-8"), "text", True, True, Position(number, i), Position(number, i + 1))
            return
        if source.format == "parquet":
            yield from _parquet(source, start, lambda share: self._reached(number, share))
            return
        with _Text(source.name) as text, io.BufferedReader(text, 1 << 17) as stream:
            _skip(stream, text, start.offset)
            if source.format == "jsonl":
                pieces = _json_lines(stream, start, source.name)
            elif source.documents == "file":
                pieces = _whole_file(stream, start)
            else:
                pieces = _by_lines(stream, start, source.documents)
            self._open = text
            yield from pieces
            self._open = None
            if text.count == 0:
                raise InputError(f"input {source.name} holds no text (0 bytes after decompression); leave it out or get the file again")

    def _reached(self, number: int, share: float) -> None:
        self._done = self._before[number] + int(share * self.sources[number].size)


def location(source: Source, at: Position) -> str:
    """A position as text for a message: the file, and the line, row or byte."""
    if source.format in ("parquet", "builtin"):
        return f"input {source.name}, row {at.offset:,}"
    if source.format == "jsonl":
        return f"input {source.name}, line {at.line + 1:,} (byte {at.offset:,})"
    return f"input {source.name}, byte {at.offset:,}"
