"""The protocol of tokenizers, and the base class of all of them: a table of byte strings.

An id represents the UTF-8 bytes `token_bytes[id]`; those of a special id are empty. So `decode` is a concatenation, `byte_lengths_V` is
exact (bits per byte requires no second encoding), and `decode(encode(text)) == text` (char27: the cleaned text).

`bos_id` is `eos_id`: documents end with EOS, so in the packed stream the first token of a document follows the EOS of the document before
it, and a row that starts with a text begins the same way.

Shapes: N tokens of a text, V ids (specials included).
"""

import copy
import functools
import hashlib
import json
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from dlmjax.errors import InputError

MOST_IDS = 1 << 24  # of a vocabulary; published ones have a few hundred thousand ids, so a larger number is an error in the file


@runtime_checkable
class Tokenizer(Protocol):
    """Members that other packages use. `hash` is the same in every process and for every copy of the files."""

    name: str
    vocab_size: int  # specials included
    mask_id: int
    pad_id: int
    bos_id: int
    eos_id: int
    hash: str
    byte_lengths_V: np.ndarray

    def encode(self, text: str) -> np.ndarray: ...

    def encode_many(self, texts: list[str]) -> list[np.ndarray]: ...

    def decode(self, ids) -> str: ...


class TableTokenizer:
    """Base class: a table of one byte string per id. Subclasses provide the table and `encode`.

    Args:
        name: short name, also the kind under which `save_tokenizer` stores it.
        token_bytes: V byte strings, b"" for ids without text (specials).
        mask_id, pad_id, eos_id: distinct ids of the table whose byte string is empty.
        files: content by file name, from which the tokenizer can be built again; stored with a prepared corpus.
    """

    def __init__(self, name: str, token_bytes: list[bytes], mask_id: int, pad_id: int, eos_id: int, files: dict[str, bytes] | None = None):
        self.name = name
        self.files = files or {}
        self._set_ids(token_bytes, mask_id, pad_id, eos_id)

    def _set_ids(self, token_bytes: list[bytes], mask_id: int, pad_id: int, eos_id: int) -> None:
        self.token_bytes = token_bytes
        self.mask_id, self.pad_id, self.eos_id, self.bos_id = mask_id, pad_id, eos_id, eos_id
        specials = (mask_id, pad_id, eos_id)
        if len(set(specials)) < 3 or not 0 <= min(specials) <= max(specials) < len(token_bytes) or any(token_bytes[i] for i in specials):
            raise InputError(f"tokenizer {self.name}: mask, pad and end of document must be three ids without text, got {specials}")
        self.byte_lengths_V = np.array([len(b) for b in token_bytes], np.int32)

    def with_ids(self, *, mask_id: int, pad_id: int, eos_id: int, vocab_size: int) -> "TableTokenizer":
        """The same tokenizer with other special ids, which no text is encoded as, and ids without text up to `vocab_size`.

        Raises InputError: the special ids are not distinct, or have text.
        """
        other = copy.copy(self)
        for cached in ("hash", "absent_ids"):
            vars(other).pop(cached, None)
        table = self.token_bytes[:vocab_size]
        if any(self.token_bytes[vocab_size:]):
            raise InputError(f"tokenizer {self.name}: a vocabulary of {vocab_size:,} ids leaves out ids that have text")
        other._set_ids(table + [b""] * (vocab_size - len(table)), mask_id, pad_id, eos_id)
        return other

    @property
    def vocab_size(self) -> int:
        return len(self.token_bytes)

    @functools.cached_property
    def hash(self) -> str:
        """sha256 over the kind, the special ids, the table and the model files."""
        digest = hashlib.sha256(json.dumps([self.name, self.mask_id, self.pad_id, self.eos_id, self.vocab_size]).encode())
        digest.update(b"".join(len(b).to_bytes(4, "little") + b for b in self.token_bytes))
        for file, content in sorted(self.files.items()):
            digest.update(file.encode() + b"\0" + hashlib.sha256(content).digest())
        return digest.hexdigest()

    def _own_ids(self) -> Int[np.ndarray, "N"]:
        """Ids that have a token in the tokenizer's own file, with or without text."""
        return np.flatnonzero(self.byte_lengths_V)

    @functools.cached_property
    def absent_ids(self) -> Int[np.ndarray, "N"]:
        """Ids of the vocabulary without a token, in rising order: gaps in the tokenizer's file, and ids between the last of the file
        and a special id that follows it."""
        specials = (self.mask_id, self.pad_id, self.eos_id)
        return np.setdiff1d(np.arange(self.vocab_size), np.concatenate([self._own_ids(), specials]))

    def encode(self, text: str) -> Int[np.ndarray, "N"]:
        raise TypeError(f"{type(self).__name__} does not define encode")

    def encode_many(self, texts: list[str]) -> list[np.ndarray]:
        """Encodes texts independently of each other; subclasses override it if their library is faster on many texts."""
        return [self.encode(text) for text in texts]

    def encode_at(
        self, text: str, edges: Sequence[int], rendered: bool = False, ordinary: Sequence[tuple[int, int]] = ()
    ) -> tuple[Int[np.ndarray, "N"], Int[np.ndarray, "E"], Int[np.ndarray, "E"]]:
        """The tokens of a text, and where characters of it fall among them.

        Args:
            edges: positions in characters, 0 to len(text).
            rendered: special tokens in the text stand for their ids (only a tokenizer of Hugging Face has such texts).
            ordinary: ranges of characters in which they do not.
        Returns:
            The ids; for each edge, the first token that ends after it, and the number of tokens that begin before it. The two differ by
            one where a token lies across the edge.
        """
        ids = self.encode(text)
        ends_N = np.cumsum(self.byte_lengths_V[ids], dtype=np.int64)
        bytes_E = [len(text[:edge].encode("utf-8")) for edge in edges]
        if len(ids) and ends_N[-1] == len(text.encode("utf-8")):
            return ids, np.searchsorted(ends_N, bytes_E, side="right"), np.searchsorted(ends_N - self.byte_lengths_V[ids], bytes_E)
        # The tokenizer cleans its text: the edge is where the tokens of the text before it end.
        at_E = np.array([len(self.encode(text[:edge])) for edge in edges], np.int64)
        return ids, at_E, at_E

    @property
    def control_texts(self) -> dict[str, int]:
        """The texts that stand for special ids in what a chat template writes, with their ids."""
        return {}

    def control_text(self, number: int) -> str:
        """The text of a special id, for a message."""
        return next((text for text, found in self.control_texts.items() if found == number), f"<{number}>")

    def decode(self, ids) -> str:
        """The text of ids (any integer sequence or 1-D array); specials have no text, invalid UTF-8 becomes U+FFFD.

        Raises InputError for an id outside the vocabulary.
        """
        table = self.token_bytes
        ids = np.asarray(ids).reshape(-1).tolist()
        if ids and not 0 <= min(ids) <= max(ids) < len(table):
            raise InputError(f"tokenizer {self.name}: ids run from {min(ids)} to {max(ids)}, the vocabulary from 0 to {len(table) - 1}")
        return b"".join([table[i] for i in ids]).decode("utf-8", "replace")

    def describe(self) -> dict:
        """The part of a manifest that names a tokenizer: kind, hash, size and special ids."""
        return {
            "kind": self.name,
            "hash": self.hash,
            "vocab_size": self.vocab_size,
            "mask_id": self.mask_id,
            "pad_id": self.pad_id,
            "eos_id": self.eos_id,
        }
