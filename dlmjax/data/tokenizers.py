"""Text <-> token ids.  One protocol, one base class, and the two tokenizers that need no file: bytes and char27.

Every tokenizer is a table of byte strings: an id stands for the UTF-8 bytes `token_bytes[id]`, a special id for none. Hence
`decode` is a concatenation, `byte_lengths_V` is exact (bits per byte needs no re-encoding), and what "round-trips" means is the
same for all: `decode(encode(text)) == text` (char27: the cleaned text).

Special ids (mask, pad, end of document) come from the tokenizer, never from text: a text that happens to contain "<mask>" or
"<|endoftext|>" is encoded as ordinary characters. `bos_id` is `eos_id`: documents end with EOS, so in the packed stream the token
before a document's first one is the EOS of the document before it, and a row that starts a text must look the same.

Shapes: N tokens of a text, V ids (specials included).
"""

import copy
import functools
import hashlib
import json
import os
import pathlib
import re
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from dlmjax.errors import InputError
from dlmjax.files import inside, read_json, write_atomically

DESCRIPTION = "dlmjax_tokenizer.json"
MOST_IDS = 1 << 24  # of a vocabulary; a file that says more is damaged: the largest that are published have a few hundred thousand
SPECS = (
    "bytes, char27, gpt2:DIR (vocab.json + merges.txt), hf:FILE (a tokenizer.json), wordpiece:FILE (BERT's), "
    "sentencepiece:FILE (a .model), saved:DIR (that of a prepared corpus or of a run)"
)


@runtime_checkable
class Tokenizer(Protocol):
    """What the rest of the package may use of a tokenizer. `hash` is the same in every process and for every copy of its files."""

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
    """Base: ids are rows of a table of byte strings. Subclasses set the table and write `encode`.

    Args:
        name: short name, also the kind under which `save_tokenizer` stores it.
        token_bytes: V byte strings, b"" for ids that stand for no text (specials).
        mask_id, pad_id, eos_id: distinct ids of the table whose byte string is empty.
        files: file name -> content: all that is needed to build the tokenizer again (goes into a prepared corpus).
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
        """The same tokenizer with other special ids, which text never produces, and ids without text up to `vocab_size`.

        Raises InputError for special ids that are not three, or that stand for text.
        """
        other = copy.copy(self)
        for cached in ("hash", "absent_ids"):
            vars(other).pop(cached, None)
        table = self.token_bytes[:vocab_size]
        if any(self.token_bytes[vocab_size:]):
            raise InputError(f"tokenizer {self.name}: {vocab_size:,} ids leave out some that stand for text")
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
        """Ids that the tokenizer's own file gives a token, text or not."""
        return np.flatnonzero(self.byte_lengths_V)

    @functools.cached_property
    def absent_ids(self) -> Int[np.ndarray, "N"]:
        """Ids within the vocabulary that are no token, in rising order: gaps of the tokenizer's file, and those below a special id that
        stands behind the file's own."""
        specials = (self.mask_id, self.pad_id, self.eos_id)
        return np.setdiff1d(np.arange(self.vocab_size), np.concatenate([self._own_ids(), specials]))

    def encode(self, text: str) -> Int[np.ndarray, "N"]:
        raise TypeError(f"{type(self).__name__} does not say how to encode")

    def encode_many(self, texts: list[str]) -> list[np.ndarray]:
        """Encodes texts independently of each other; tokenizers whose library has a faster call for many override it."""
        return [self.encode(text) for text in texts]

    def decode(self, ids) -> str:
        """The text of ids (any integer sequence or 1-D array); specials give nothing, broken UTF-8 gives U+FFFD.

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


class ByteTokenizer(TableTokenizer):
    """UTF-8 bytes: ids 0..255 are the bytes, 256 mask, 257 pad, 258 end of document."""

    def __init__(self):
        super().__init__("bytes", [bytes([b]) for b in range(256)] + [b""] * 3, mask_id=256, pad_id=257, eos_id=258)

    def encode(self, text: str) -> Int[np.ndarray, "N"]:
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)


ALPHABET = b" abcdefghijklmnopqrstuvwxyz"
_DIGITS = [b"zero", b"one", b"two", b"three", b"four", b"five", b"six", b"seven", b"eight", b"nine"]
# A-Z to a-z; a-z and digits stay; every other byte (so also every byte of a non-ASCII character) to a space.
_TO_27 = bytes(
    b + 32 if 65 <= b <= 90 else b if 97 <= b <= 122 or 48 <= b <= 57 else 32  #
    for b in range(256)
)
_ID_OF_BYTE = np.zeros(256, np.uint8)
_ID_OF_BYTE[np.frombuffer(ALPHABET, np.uint8)] = np.arange(27)


def clean27(text: str) -> bytes:
    """text8's cleaning rule (Mahoney's wikifil.pl): 27 symbols, the space and a-z.

    A-Z become lower case, each digit its English name between spaces, every other run of characters (accented letters too) one
    space; runs of spaces become one. Applying it twice changes nothing.
    """
    data = text.encode("utf-8").translate(_TO_27)
    if re.search(rb"[0-9]", data):
        for digit, word in enumerate(_DIGITS):
            data = data.replace(b"%d" % digit, b" " + word + b" ")
    values = np.frombuffer(data, np.uint8)
    space = values == 32
    return values[~(space & np.concatenate([[False], space[:-1]]))].tobytes() if len(values) else b""


class Char27Tokenizer(TableTokenizer):
    """text8's alphabet: 0 is the space, 1..26 are a..z, 27 mask, 28 pad, 29 end of document. `encode` cleans the text first."""

    def __init__(self):
        super().__init__("char27", [bytes([b]) for b in ALPHABET] + [b""] * 3, mask_id=27, pad_id=28, eos_id=29)

    def encode(self, text: str) -> Int[np.ndarray, "N"]:
        return _ID_OF_BYTE[np.frombuffer(clean27(text), np.uint8)].astype(np.int32)


def load_tokenizer(spec: str) -> Tokenizer:
    """Builds the tokenizer that a spec names: bytes, char27, gpt2:DIR, hf:FILE, wordpiece:FILE, sentencepiece:FILE, or saved:DIR (that
    of a prepared corpus, of a run's workdir, or the folder itself).

    Raises InputError for an unknown spec, a missing or damaged file, and a tokenizer that does not give text back unchanged (those whose
    job is to clean it, char27 and wordpiece, give back the cleaned text).
    """
    kind, _, location = spec.partition(":")
    if kind in ("bytes", "char27") and not location:
        return ByteTokenizer() if kind == "bytes" else Char27Tokenizer()
    if kind in ("gpt2", "hf", "wordpiece", "sentencepiece", "saved") and location:
        path = pathlib.Path(location)
        if not os.path.exists(path):
            raise InputError(f"tokenizer {spec}: there is no {path}; give one of: {SPECS}")
        if kind == "saved":
            return load_saved_tokenizer(_saved_in(path))
        from dlmjax.data import subword  # its libraries are not needed for bytes and char27

        loaders = {"gpt2": subword.load_gpt2, "hf": subword.load_hf, "wordpiece": subword.load_wordpiece}
        return {**loaders, "sentencepiece": subword.load_sentencepiece}[kind](path)
    raise InputError(f"unknown tokenizer {spec!r:.200}; give one of: {SPECS}")


def _saved_in(path: pathlib.Path) -> pathlib.Path:
    """The folder of a tokenizer: itself, or that of a prepared corpus or of a run's workdir, which keep theirs in `tokenizer`."""
    found = next((folder for folder in (path, path / "tokenizer") if os.path.isfile(folder / DESCRIPTION)), None)
    if found is None:
        raise InputError(f"tokenizer saved:{path}: {path} is not a prepared corpus, nor the workdir of a run (no tokenizer/{DESCRIPTION})")
    return found


def save_tokenizer(tokenizer: Tokenizer, directory: pathlib.Path) -> None:
    """Writes the tokenizer's files and its description, so that `load_tokenizer("saved:DIR")` needs nothing else."""
    if not isinstance(tokenizer, TableTokenizer):
        raise InputError(f"tokenizer {tokenizer.name}: only dlmjax's own tokenizers can be stored")
    directory.mkdir(parents=True, exist_ok=True)
    description = tokenizer.describe() | {"files": sorted(tokenizer.files)}
    contents = tokenizer.files | {DESCRIPTION: (json.dumps(description, indent=1) + "\n").encode("utf-8")}
    for file, content in contents.items():
        path = directory / file
        if not path.is_file() or path.read_bytes() != content:
            write_atomically(path, content)


_RESTORE = "restore the folder from a copy; that of a run is the one of its corpus, and that of a corpus is made by preparing it again"


def load_saved_tokenizer(directory: pathlib.Path) -> Tokenizer:
    """The tokenizer that `save_tokenizer` wrote there. Raises InputError when it is missing or no longer the same (hash)."""
    numbers = dict.fromkeys(("mask_id", "pad_id", "eos_id", "vocab_size"), int)
    description = read_json(directory / DESCRIPTION, {"kind": str, "hash": str, "files": [str], **numbers}, _RESTORE)
    kind, expected, files = description["kind"], description["hash"], description["files"]
    file = inside(directory, files[0], directory / DESCRIPTION) if files else directory
    location = {"bytes": "", "char27": "", "gpt2": f":{directory}"}.get(kind, f":{file}")
    ids = {name: description[name] for name in numbers}
    if not all(0 <= value < MOST_IDS for value in ids.values()):
        raise InputError(f"{directory / DESCRIPTION} has the ids {ids}; {_RESTORE}")
    tokenizer = load_tokenizer(f"{kind}{location}")
    if any(getattr(tokenizer, name) != value for name, value in ids.items()):
        tokenizer = tokenizer.with_ids(**ids)
    if tokenizer.hash != expected:
        raise InputError(f"the tokenizer files in {directory} are not those the corpus was prepared with (hash differs); {_RESTORE}")
    return tokenizer
