"""Number of occurrences of each token in a corpus, for masking by frequency.  Never imports jax.

`prepare` writes the counts of the train split before the manifest, so that every corpus has them; they depend only on the shards, so a
restart (or a corpus without the file) computes the same bytes.

    DIR/counts.npy    int64 [V], EOS included
"""

import io
import pathlib

import numpy as np
from jaxtyping import Int64

from dlmjax.data.manifest import Manifest
from dlmjax.files import write_atomically

FILE = "counts.npy"
_RECORDS = 256  # records read at a time: 2 MiB of tokens


def count_tokens(directory: pathlib.Path, found: Manifest, split: str) -> Int64[np.ndarray, "V"]:
    """Occurrences of every id in a split, read from its shards (about 200 million tokens a second)."""
    from array_record.python.array_record_module import ArrayRecordReader

    counts_V = np.zeros(found.tokenizer["vocab_size"], np.int64)
    for shard in found.shards(split):
        reader = ArrayRecordReader(str(directory / shard.file), "readahead_buffer_size:0,max_parallelism:0")
        for start in range(0, shard.token_records, _RECORDS):
            records = reader.read(start, min(start + _RECORDS, shard.token_records))
            if found.has_roles:  # the tokens of a record, without their roles
                width = np.dtype(found.dtype).itemsize
                records = [record[: len(record) // (width + 1) * width] for record in records]
            counts_V += np.bincount(np.frombuffer(b"".join(records), found.dtype), minlength=len(counts_V))
        reader.close()
    return counts_V


def load_counts(directory: pathlib.Path, found: Manifest) -> Int64[np.ndarray, "V"] | None:
    """The stored counts of the train split; None if there are none, or if they cannot be those of this corpus."""
    return fitting(read_counts(directory), found)


def fitting(counts_V: np.ndarray | None, found: Manifest) -> Int64[np.ndarray, "V"] | None:
    """The counts, if shape and sum fit the train split of the corpus; otherwise None."""
    if counts_V is None:
        return None
    fits = counts_V.shape == (found.tokenizer["vocab_size"],) and counts_V.dtype == np.int64
    return counts_V if fits and int(counts_V.sum()) == found.counts("train")["tokens"] else None


def save_counts(directory: pathlib.Path, found: Manifest) -> None:
    """Counts the train split and writes the file atomically, unless it exists."""
    if "train" not in found.splits or load_counts(directory, found) is not None:
        return
    write_counts(directory, count_tokens(directory, found, "train"))


def read_counts(directory: pathlib.Path) -> np.ndarray | None:
    """The counts that a directory holds; None if there are none."""
    try:
        return parse((directory / FILE).read_bytes())
    except OSError:
        return None


def parse(data: bytes) -> np.ndarray | None:
    """Counts from the bytes of their file; None if they are damaged."""
    try:
        return np.load(io.BytesIO(data), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None


def content(counts_V: Int64[np.ndarray, "V"]) -> bytes:
    """The bytes of a file of counts."""
    file = io.BytesIO()
    np.save(file, counts_V, allow_pickle=False)
    return file.getvalue()


def write_counts(directory: pathlib.Path, counts_V: Int64[np.ndarray, "V"]) -> None:
    """Writes the file atomically."""
    write_atomically(directory / FILE, content(counts_V))


def corpus_counts(directory: pathlib.Path, found: Manifest, split: str) -> Int64[np.ndarray, "V"]:
    """The stored counts of a split, or counts of its shards."""
    stored = load_counts(directory, found) if split == "train" else None
    return count_tokens(directory, found, split) if stored is None else stored
