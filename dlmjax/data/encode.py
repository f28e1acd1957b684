"""Tokenizes batches of pieces, in this process or in worker processes.  Imports no module that imports jax.

Workers are started with "spawn" and load the tokenizer from the prepared directory. The index of an invalid piece is returned,
not raised, so that the first mistake in input order is reported for any number of workers.
"""

import dataclasses
import hashlib
import json
import multiprocessing
import os
import pathlib
import signal
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dlmjax.data.formats import Piece, Source, cut, location
from dlmjax.data.manifest import token_dtype
from dlmjax.data.marking import Marking
from dlmjax.data.spans import Unmarked
from dlmjax.data.tokenizers import Tokenizer, load_saved_tokenizer
from dlmjax.files import MOST_DIGITS
from dlmjax.seeds import SPLIT_SEEDS, check_seed


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The ids of P pieces in sequence (documents without text are left out), and the properties of each piece for the writer."""

    tokens: np.ndarray  # uint16 or uint32; each document's last piece ends with EOS
    lengths_P: np.ndarray  # int64, ids of each piece
    text_bytes_P: np.ndarray  # int64, UTF-8 bytes of those ids
    starts_P: np.ndarray  # bool
    ends_P: np.ndarray  # bool
    share_P: np.ndarray  # float64 in [0, 1): decides the split; a function of the document's first piece of text
    file_P: np.ndarray  # int32, number of the input
    skipped: int = 0  # documents that are null or empty
    bad: int | None = None  # index of the first piece that is not text; `mistake` gives the reason, where `why` is None
    roles: np.ndarray | None = None  # uint8, one a token: of supervised data
    why: str | None = None  # what is wrong with the bad piece of supervised data


def check_split_seed(seed: int) -> None:
    """Raises InputError for a seed outside the range of the hash."""
    check_seed(seed, "split_seed", SPLIT_SEEDS)


def document_share(first_piece: bytes, seed: int) -> float:
    """A number in [0, 1) that depends only on the text, so that copies of a document are in the same split."""
    digest = hashlib.blake2b(first_piece, digest_size=8, salt=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little") / 2**64


class Columns(NamedTuple):
    """A batch of pieces in columns, which pickle several times faster than a list of Pieces."""

    data: list[bytes]
    json: list[bool]
    starts: list[bool]
    ends: list[bool]
    file: list[int]


def columns(pieces: list[Piece]) -> Columns:
    return Columns(
        [piece.data for piece in pieces],
        [piece.kind == "json" for piece in pieces],
        [piece.starts for piece in pieces],
        [piece.ends for piece in pieces],
        [piece.at.file for piece in pieces],
    )


class _NoText(ValueError):
    """A JSON line that is valid but does not hold a text."""


_HALF = "the text has half of a surrogate pair (\\ud800-\\udfff), which is not a character"


def _whole_number(digits: str) -> int | float:
    return int(digits) if len(digits) <= MOST_DIGITS else float(digits)


_LINE = json.JSONDecoder(parse_int=_whole_number)


def json_line(data: bytes) -> Any:
    """The value of a line of a .jsonl file. A byte order mark, which some programs write at the start of a file, is skipped. An integer of
    more than MOST_DIGITS digits becomes the nearest float, since a field that is not used must not stop a preparation.

    Raises ValueError (UnicodeDecodeError or JSONDecodeError) or RecursionError: the line is not valid."""
    return _LINE.decode(data.decode("utf-8").removeprefix("\ufeff"))


def text_of(data: bytes, is_json: bool, text_field: str) -> bytes:
    """The UTF-8 text of a piece. Raises ValueError (of several kinds, see `mistake`) or RecursionError if it is not valid."""
    if not is_json:
        data.decode("utf-8")
        return data
    values = json_line(data)
    if not isinstance(values, dict) or text_field not in values:
        fields = ", ".join(map(repr, values)) if isinstance(values, dict) else "it is not an object"
        raise _NoText(f"no field {text_field!r} ({fields}); name the field that holds the text with --text-field")
    text = "" if values[text_field] is None else values[text_field]
    if not isinstance(text, str):
        kind = {dict: "an object", list: "a list", bool: "true or false"}.get(type(text), "a number")
        raise _NoText(f"field {text_field!r} holds {kind}, not text")
    return text.encode("utf-8")


def mistake(piece: Piece, source: Source) -> str:
    """The position and the mistake of the piece at which `encode` stopped, for a message."""
    where = location(source, piece.at)
    try:
        text_of(piece.data, piece.kind == "json", source.text_field)
    except UnicodeDecodeError as error:
        bad = f"0x{error.object[error.start]:02x}"
        if source.format == "parquet":
            return f"{where}: not valid UTF-8 (byte {bad} at {error.start:,} of that text)"
        line = f", line {piece.at.line + 1:,}" if source.format == "jsonl" else ""
        at = piece.at.offset + error.start
        return f"input {source.name}{line}: not valid UTF-8 at byte {at:,} of the text ({bad}); convert the file to UTF-8"
    except UnicodeEncodeError:
        return f"{where}: {_HALF}"
    except _NoText as error:
        return f"{where}: {error}"
    except (ValueError, RecursionError) as error:
        return f"{where}: not valid JSON ({error}); correct or remove the line"
    return f"{where}: cannot be read"


def encode(batch: Columns, sources: Sequence[Source], tokenizer: Tokenizer, split_seed: int, marking: Marking | None = None) -> Encoded:
    """Tokenizes pieces; stops at the first mistake, which ends the preparation."""
    if marking:
        return _encode_marked(batch, tokenizer, split_seed, marking)
    texts: list[str] = []
    owner: list[int] = []
    with_text: list[int] = []
    shares: list[float] = []
    bad, skipped = None, 0
    fields = [source.text_field for source in sources]
    columns = zip(batch.data, batch.json, batch.starts, batch.ends, batch.file, strict=True)
    for number, (data, is_json, starts, ends, file) in enumerate(columns):
        try:
            text = text_of(data, is_json, fields[file])
        except (ValueError, RecursionError):
            bad = number
            break
        if not text:
            skipped += starts and ends
            continue
        parts = cut(text)
        shares.append(document_share(parts[0], split_seed) if starts else 0.0)
        texts += [part.decode("utf-8") for part in parts]
        owner += [len(with_text)] * len(parts)
        with_text.append(number)
    count = len(with_text)
    ids = tokenizer.encode_many(texts)
    ends_P = np.array(batch.ends, bool)[with_text]
    lengths_P = np.bincount(owner, [len(part) for part in ids], count).astype(np.int64) + ends_P
    tokens = np.full(int(lengths_P.sum()), tokenizer.eos_id, token_dtype(tokenizer.vocab_size))
    if count:
        is_text = np.ones(len(tokens), bool)
        is_text[(np.cumsum(lengths_P) - 1)[ends_P]] = False
        tokens[is_text] = np.concatenate(ids)
    return Encoded(
        tokens=tokens,
        lengths_P=lengths_P,
        text_bytes_P=_sums(tokenizer.byte_lengths_V[tokens], lengths_P),
        starts_P=np.array(batch.starts, bool)[with_text],
        ends_P=ends_P,
        share_P=np.array(shares, np.float64),
        file_P=np.array(batch.file, np.int32)[with_text],
        skipped=skipped,
        bad=bad,
    )


def _encode_marked(batch: Columns, tokenizer: Tokenizer, split_seed: int, marking: Marking) -> Encoded:
    """As `encode` for records of supervised data: each piece is a JSON line, and a whole document."""
    ids, roles, shares = [np.zeros(0, np.int32)], [np.zeros(0, np.uint8)], []
    bad = why = None
    for number, data in enumerate(batch.data):
        try:
            marked = marking.read(json_line(data), tokenizer.control_texts)
            shares.append(document_share(cut(marked.text.encode("utf-8"))[0], split_seed))
            of_text, of_roles = marking.encode(marked, tokenizer)
        except (ValueError, RecursionError) as error:
            bad, why = number, str(error) if isinstance(error, Unmarked) else _HALF if isinstance(error, UnicodeEncodeError) else None
            break
        ids.append(of_text)
        roles.append(of_roles)
    lengths_P = np.array([len(part) for part in ids[1:]], np.int64)
    tokens, count = np.concatenate(ids).astype(token_dtype(tokenizer.vocab_size)), len(lengths_P)
    return Encoded(
        tokens=tokens,
        lengths_P=lengths_P,
        text_bytes_P=_sums(tokenizer.byte_lengths_V[tokens], lengths_P),
        starts_P=np.ones(count, bool),
        ends_P=np.ones(count, bool),
        share_P=np.array(shares[:count], np.float64),
        file_P=np.array(batch.file[:count], np.int32),
        bad=bad,
        roles=np.concatenate(roles),
        why=why,
    )


def _sums(values: np.ndarray, lengths_P: np.ndarray) -> np.ndarray:
    totals = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    ends = np.cumsum(lengths_P)
    return totals[ends] - totals[ends - lengths_P]


# ---- in a process of its own -------------------------------------------------------------------------------------------------------

_worker: dict = {}  # what `start_worker` loads once per process


def _leave_with(parent) -> None:
    parent.join()
    os._exit(1)


def start_worker(tokenizer_directory: str, sources: Sequence[Source], split_seed: int, marking: Marking | None = None) -> None:
    """Initializes a worker process. A worker ends when its parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C stops the parent, which stops its workers
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a process: the processes are the parallelism
    threading.Thread(target=_leave_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    _worker.update(sources=sources, seed=split_seed, marking=marking, tokenizer=load_saved_tokenizer(pathlib.Path(tokenizer_directory)))


def encode_in_worker(batch: Columns) -> Encoded:
    return encode(batch, _worker["sources"], _worker["tokenizer"], _worker["seed"], _worker["marking"])
