"""Local files -> the documents of a suite, and documents -> token ids.

Files are .txt, .jsonl or .parquet, plain or .gz, .bz2, .xz, .zst (a file of another name is read as text). One process reads every document
in the order of the files, so no score depends on a number of workers.

Shapes: T tokens of all documents together, D documents, N tokens of one.
"""

import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from dlmjax.data.encode import json_line, mistake, text_of
from dlmjax.data.formats import COMPRESSIONS, FORMATS, Piece, Position, Reader, Source, cut, make_source
from dlmjax.data.tokenizers import Tokenizer
from dlmjax.errors import InputError
from dlmjax.evaluation.detokenise import detokenise
from dlmjax.evaluation.suites import Suite

HEADING = re.compile(r"^ = [^=].* = $")  # of an article of WikiText
PAIR_FIELDS = ("UID", "pairID", "field", "sentence_good", "sentence_bad")


@dataclasses.dataclass(frozen=True)
class Document:
    """A text to score. context: text before it, which is not scored.  words: number of words, None where the suite counts none."""

    id: str
    text: str
    context: str = ""
    words: int | None = None


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two sentences of which `good` should be likelier. Accuracies are averaged over groups, and also listed for each field."""

    id: str
    good: str
    bad: str
    group: str
    field: str


def read_documents(suite: Suite, files: Sequence[str], split: str | None = None, limit: int | None = None) -> list[Document]:
    """The documents of a suite in local files.

    Args:
      split: part of the file, for suites with `parts`; default: the suite's.
      limit: number of documents, spread evenly over all; None: all.
    Raises:
      InputError: a missing or damaged file, a record without the suite's field, a file shorter than the suite's split, no document.
    """
    documents = []
    for source in map(_source(suite), files):
        if source.format in ("jsonl", "parquet"):
            texts: Iterator[str] = (text for text, _ in _records(source))
        else:
            texts = iter(_split(suite, _part(suite, source, _whole(source), split)))
        documents += [_document(suite, str(len(documents) + i), text) for i, text in enumerate(texts)]
    documents = [document for document in documents if document.text]
    if not documents:
        raise InputError(f"suite {suite.name}: --input {', '.join(files)} has no document; give files that hold text")
    return _spread(documents, limit)


def read_pairs(suite: Suite, files: Sequence[str], limit: int | None = None) -> list[Pair]:
    """Minimal pairs: JSON lines with UID, pairID, field, sentence_good and sentence_bad (BLiMP's), spread evenly under a limit.

    Raises:
      InputError: a missing or damaged file, a line without these fields.
    """
    found = [piece for source in map(_source(suite), files) for piece in _objects(source)]
    if not found:
        raise InputError(f"suite {suite.name}: --input {', '.join(files)} has no pair; give files that hold pairs")
    pairs = []
    for values, where in _spread(found, limit):
        if not isinstance(values, dict) or not all(isinstance(values.get(name), str) for name in PAIR_FIELDS):
            raise InputError(f"{where}: a pair requires the text fields {', '.join(PAIR_FIELDS)}")
        uid, number, field, good, bad = (values[name] for name in PAIR_FIELDS)
        pairs.append(Pair(f"{uid}/{number}", detokenise(suite.detokeniser, good), detokenise(suite.detokeniser, bad), uid, field))
    return pairs


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Documents as one stream of tokens.

    scorable_T: False for context.  ends_D: the offset after each document.  lossless: whether the tokens decode to the texts (char27, for
    one, changes them).
    """

    tokens_T: Int[np.ndarray, "T"]
    scorable_T: Bool[np.ndarray, "T"]
    ends_D: Int[np.ndarray, "D"]
    lossless: bool


def encode_documents(documents: Sequence[Document], tokenizer: Tokenizer, bos: bool, eos: bool) -> Encoded:
    """Token ids of documents, in order. bos: a BOS before each, not scored; eos: an EOS after each, scored."""
    lossless, tokens, scorable, lengths = True, [], [], []
    for document in documents:
        before_N = np.append(np.full(int(bos), tokenizer.bos_id, np.int32), _encode(document.context, tokenizer))
        here_N = _encode(document.text, tokenizer)
        lossless = lossless and tokenizer.decode(here_N) == document.text
        here_N = np.append(here_N, np.full(int(eos), tokenizer.eos_id, np.int32))
        tokens += [before_N, here_N]
        scorable.append(np.repeat([False, True], [len(before_N), len(here_N)]))
        lengths.append(len(before_N) + len(here_N))
    return Encoded(np.concatenate(tokens).astype(np.int32), np.concatenate(scorable), np.cumsum(lengths), lossless)


def fingerprint(tokens_T: Int[np.ndarray, "T"]) -> str:
    """The first 16 digits of a sha256 of the tokens: equal for equal texts under equal tokenizers, on every machine."""
    return hashlib.sha256(tokens_T.astype("<i4").tobytes()).hexdigest()[:16]


# ---- files -----------------------------------------------------------------------------------------------------------------------


def _source(suite: Suite):
    def make(name: str) -> Source:
        path = pathlib.PurePath(name)
        plain = path.with_suffix("") if path.suffix in COMPRESSIONS else path
        kind = "jsonl" if suite.documents == "pair" else FORMATS.get(plain.suffix, "txt")
        return make_source(name, None, kind, "file", suite.field)

    return make


def _pieces(source: Source) -> Iterator[Piece]:
    return iter(Reader([source], Position(0)))


def _whole(source: Source) -> str:
    """A text file, whole."""
    data = b"".join(piece.data for piece in _pieces(source))
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        bad = f"0x{data[error.start]:02x}"
        raise InputError(
            f"input {source.name}: not valid UTF-8 at byte {error.start:,} of the text ({bad}); convert the file to UTF-8"
        ) from None


def _records(source: Source) -> Iterator[tuple[str, Piece]]:
    """The texts of the records of a .jsonl or .parquet file."""
    for piece in _pieces(source):
        try:
            yield text_of(piece.data, piece.kind == "json", source.text_field).decode("utf-8"), piece
        except (ValueError, RecursionError):
            raise InputError(mistake(piece, source)) from None


def _objects(source: Source) -> Iterator[tuple[Any, str]]:
    """The value of each JSON line, with its file and line number."""
    for piece in _pieces(source):
        where = f"input {source.name}, line {piece.at.line + 1:,}"
        try:
            values = json_line(piece.data)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not valid JSON ({error})") from None
        yield values, where


def _part(suite: Suite, source: Source, text: str, split: str | None) -> str:
    """The characters of the requested split."""
    if not suite.parts:
        return text
    parts = {name: (first, end) for name, first, end in suite.parts}
    name = split or suite.split
    if name not in parts:
        raise InputError(f"suite {suite.name} has no split {name!r}; choose one of {', '.join(parts)}")
    first, end = parts[name]
    if len(text) < end:
        raise InputError(
            f"{source.name} has {len(text):,} characters; the {name} split of suite {suite.name} is characters {first:,} to {end:,} of "
            "the whole file. For a file that holds one split use suite char27"
        )
    return text[first:end]


def _split(suite: Suite, text: str) -> list[str]:
    """The documents of a text file."""
    if suite.documents == "file":
        return [text]
    lines = text.splitlines(keepends=True) if suite.documents == "article" else text.split("\n")
    if suite.documents == "line":
        return [line for line in lines if line.strip()]
    starts = [number for number, line in enumerate(lines) if HEADING.match(line.rstrip("\n"))]
    # The empty line before the first heading belongs to the first article.
    bounds = [0, *starts[1:], len(lines)]
    return ["".join(lines[a:b]) for a, b in zip(bounds, bounds[1:], strict=False)]


def _document(suite: Suite, id_: str, raw: str) -> Document:
    words = None
    if suite.words != "none":
        words = len(raw.split()) + (suite.words == "spaces+lines") * max(raw.count("\n"), 1)
    lines = [raw] if suite.documents == "line" else raw.splitlines(keepends=True)
    text = "".join(detokenise(suite.detokeniser, line) for line in lines)
    if suite.task != "last_word":
        return Document(id_, text, words=words)
    context, _, last = text.rstrip().rpartition(" ")
    return Document(id_, f" {last}" if context else last, context, words=1)


def _encode(text: str, tokenizer: Tokenizer) -> Int[np.ndarray, "N"]:
    """Token ids of a text, in the pieces that `dlmjax prepare` cuts, so that a text has the same tokens in a corpus and in a suite."""
    if not text:
        return np.zeros(0, np.int32)
    return np.concatenate(tokenizer.encode_many([part.decode("utf-8") for part in cut(text.encode("utf-8"))]))


def _spread(values: list, limit: int | None) -> list:
    if limit is not None and limit < 1:
        raise InputError(f"--documents is {limit}; give at least 1")
    if limit is None or limit >= len(values):
        return values
    return [values[i * len(values) // limit] for i in range(limit)]
