"""What a worker process does: a batch of pieces in, token ids out.  Imports neither jax nor anything that does.

Workers are started with "spawn" and load the tokenizer from the prepared directory. A mistake in the input comes back as a value
(not as an exception), so that the first mistake in input order is the one that is reported, whatever the number of workers.
"""

import dataclasses
import hashlib
import json
import multiprocessing
import os
import pathlib
import signal
import threading

import numpy as np

from dlmjax.data.formats import Piece, Source, cut, place
from dlmjax.data.manifest import token_dtype
from dlmjax.data.tokenizers import Tokenizer, load_saved_tokenizer


@dataclasses.dataclass(frozen=True)
class Encoded:
    """P pieces (documents without text are left out): their ids one after another, and what the writer needs to know of each."""

    tokens: np.ndarray  # uint16 or uint32; each document's last piece ends with EOS
    lengths_P: np.ndarray  # int64, ids of each piece
    text_bytes_P: np.ndarray  # int64, UTF-8 bytes that those ids stand for
    starts_P: np.ndarray  # bool
    ends_P: np.ndarray  # bool
    share_P: np.ndarray  # float64 in [0, 1): decides the split; a function of the document's first piece of text
    file_P: np.ndarray  # int32, number of the input
    mistake: str | None = None


def document_share(first_piece: bytes, seed: int) -> float:
    """A number in [0, 1) that depends on the text alone, so that copies of a document always land in the same split."""
    digest = hashlib.blake2b(first_piece, digest_size=8, salt=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little") / 2**64


def _text_of(piece: Piece, source: Source) -> tuple[bytes, str | None]:
    """The UTF-8 text of a piece, or what is wrong with it."""
    where = place(source, piece.at)
    try:
        if piece.kind == "text":
            piece.data.decode("utf-8")
            return piece.data, None
        values = json.loads(piece.data.decode("utf-8"))
        if not isinstance(values, dict) or source.text_field not in values:
            fields = ", ".join(map(repr, values)) if isinstance(values, dict) else "it is not an object"
            return b"", f"{where}: no field {source.text_field!r} ({fields}); name the field that holds the text with --text-field"
        text = values[source.text_field]
        if not isinstance(text, str):
            return b"", f"{where}: field {source.text_field!r} holds {type(text).__name__}, not text"
        return text.encode("utf-8"), None
    except UnicodeDecodeError as error:
        bad = error.object[error.start]
        if source.format == "parquet":
            return b"", f"{where}: not valid UTF-8 (byte 0x{bad:02x} at {error.start:,} of that text)"
        line = f", line {piece.at.line + 1:,}" if source.format == "jsonl" else ""
        at = piece.at.offset + error.start
        return b"", f"input {source.name}{line}: not valid UTF-8 at byte {at:,} of the text (0x{bad:02x}); convert the file to UTF-8"
    except UnicodeEncodeError:
        return b"", f"{where}: the text has half of a surrogate pair (\\ud800-\\udfff), which is no character"
    except (json.JSONDecodeError, RecursionError) as error:
        return b"", f"{where}: not valid JSON ({error})"


def encode(pieces: list[Piece], sources: list[Source], tokenizer: Tokenizer, split_seed: int) -> Encoded:
    """Tokenizes pieces; stops at the first mistake, which makes the whole preparation stop there."""
    texts: list[str] = []
    owner: list[int] = []
    kept: list[Piece] = []
    shares: list[float] = []
    mistake = None
    for piece in pieces:
        data, mistake = _text_of(piece, sources[piece.at.file])
        if mistake:
            break
        if not data:
            continue
        parts = cut(data)
        shares.append(document_share(parts[0], split_seed) if piece.starts else 0.0)
        texts += [part.decode("utf-8") for part in parts]
        owner += [len(kept)] * len(parts)
        kept.append(piece)
    count = len(kept)
    ids = tokenizer.encode_many(texts)
    ends_P = np.array([piece.ends for piece in kept], bool)
    lengths_P = np.zeros(count, np.int64)
    np.add.at(lengths_P, owner, [len(part) for part in ids])
    lengths_P += ends_P
    tokens = np.full(int(lengths_P.sum()), tokenizer.eos_id, token_dtype(tokenizer.vocab_size))
    if count:
        is_text = np.ones(len(tokens), bool)
        is_text[(np.cumsum(lengths_P) - 1)[ends_P]] = False
        tokens[is_text] = np.concatenate(ids)
    return Encoded(
        tokens=tokens,
        lengths_P=lengths_P,
        text_bytes_P=_sums(tokenizer.byte_lengths_V[tokens], lengths_P),
        starts_P=np.array([piece.starts for piece in kept], bool),
        ends_P=ends_P,
        share_P=np.array(shares, np.float64),
        file_P=np.array([piece.at.file for piece in kept], np.int32),
        mistake=mistake,
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


def start_worker(tokenizer_directory: str, sources: list[Source], split_seed: int) -> None:
    """Runs once in each new worker. A worker whose parent is killed ends too, instead of waiting for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C stops the parent, which stops its workers
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread a process: the processes are the parallelism
    threading.Thread(target=_leave_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    _worker.update(sources=sources, seed=split_seed, tokenizer=load_saved_tokenizer(pathlib.Path(tokenizer_directory)))


def encode_in_worker(pieces: list[Piece]) -> Encoded:
    return encode(pieces, _worker["sources"], _worker["tokenizer"], _worker["seed"])
