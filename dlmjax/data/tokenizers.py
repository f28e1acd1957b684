"""Tokenizers by spec: bytes and char27, which require no file, those of `subword`, and stored ones.

Text is never encoded as a special id (mask, pad, end of document): "<mask>" or "<|endoftext|>" in a text is encoded as ordinary
characters.
"""

import json
import os
import pathlib
import re

import numpy as np
from jaxtyping import Int

from dlmjax.data.specs import FROM_FILE, NAMES, TRAINED
from dlmjax.data.table_tokenizer import MOST_IDS, TableTokenizer, Tokenizer
from dlmjax.errors import InputError
from dlmjax.files import inside, read_json, write_atomically

DESCRIPTION = "dlmjax_tokenizer.json"


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

    A-Z become lower case, each digit its English name between spaces, every other run of characters (also accented letters) one
    space; runs of spaces become one. A second application changes nothing.
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
    """Builds the tokenizer that a spec of `specs.TOKENIZERS` names (saved:DIR: also the folder itself).

    Raises InputError for an unknown spec, a missing or damaged file, and a tokenizer that does not decode text unchanged (except
    char27 and wordpiece, which clean text and decode the cleaned text).
    """
    kind, _, location = spec.partition(":")
    if kind in ("bytes", "char27") and not location:
        return ByteTokenizer() if kind == "bytes" else Char27Tokenizer()
    if kind == TRAINED:
        raise InputError(f"tokenizer {spec!r:.100} is trained by `dlmjax prepare` alone; give the model that it wrote: sentencepiece:FILE")
    if kind in FROM_FILE and location:
        path = pathlib.Path(location)
        if not os.path.exists(path):
            raise InputError(f"tokenizer {spec}: {path} does not exist; give one of: {NAMES}")
        if kind == "saved":
            return load_saved_tokenizer(_saved_in(path))
        from dlmjax.data import subword  # its libraries are not needed for bytes and char27

        loaders = {"gpt2": subword.load_gpt2, "hf": subword.load_hf, "wordpiece": subword.load_wordpiece}
        return {**loaders, "sentencepiece": subword.load_sentencepiece}[kind](path)
    raise InputError(f"unknown tokenizer {spec!r:.200}; give one of: {NAMES}")


def _saved_in(path: pathlib.Path) -> pathlib.Path:
    """The folder of a tokenizer: the path itself, or the folder `tokenizer` of a prepared corpus or of a run's workdir."""
    found = next((folder for folder in (path, path / "tokenizer") if os.path.isfile(folder / DESCRIPTION)), None)
    if found is None:
        raise InputError(f"tokenizer saved:{path}: {path} is not a prepared corpus, nor the workdir of a run (no tokenizer/{DESCRIPTION})")
    return found


def save_tokenizer(tokenizer: Tokenizer, directory: pathlib.Path) -> None:
    """Writes the tokenizer's files and its description, so that `load_tokenizer("saved:DIR")` requires no other file."""
    if not isinstance(tokenizer, TableTokenizer):
        raise InputError(f"tokenizer {tokenizer.name}: only dlmjax's own tokenizers can be stored")
    directory.mkdir(parents=True, exist_ok=True)
    description = tokenizer.describe() | {"files": sorted(tokenizer.files)}
    contents = tokenizer.files | {DESCRIPTION: (json.dumps(description, indent=1) + "\n").encode("utf-8")}
    for file, content in contents.items():
        path = directory / file
        if not path.is_file() or path.read_bytes() != content:
            write_atomically(path, content)


_RESTORE = "restore the folder from a copy (a run has the tokenizer of its corpus), or prepare the corpus again"


def load_saved_tokenizer(directory: pathlib.Path) -> Tokenizer:
    """The tokenizer that `save_tokenizer` wrote there. Raises InputError: it is missing, or its hash differs."""
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
        raise InputError(f"the tokenizer files in {directory} differ from those of the prepared corpus (by their hash); {_RESTORE}")
    return tokenizer
