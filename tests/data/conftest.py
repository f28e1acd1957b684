"""Texts and small prepared corpora that the data tests share."""

import pathlib
import random

import pytest

from dlmjax.data.corpus import Corpus
from dlmjax.data.prepare import prepare
from dlmjax.data.tokenizers import load_tokenizer

SHARED = pathlib.Path(__file__).resolve().parents[2].parent / "shared" / "data"
# Everything that has gone wrong in some tokenizer: spaces, line ends, names of special tokens, astral and private characters, U+2581, NUL.
NASTY = [
    "Hello,  World!\n\n\tIt's 12,345 \u2013 na\u00efve caf\u00e9; e\u0301 \u4e2d\u6587 \U0001f600 \ufeff\u00a0 \r\n x",
    " leading and trailing \n",
    "<mask> <|endoftext|> </s> [MASK] <pad> <eos> <unk> <0x41> <s>",
    "\u2581under\u2581\u2581score\u2581",
    "\x00 a \x00\x7f\x01",
    "\ue000\uffff\U0010ffff\u200d\u0e33",
    "a",
    " ",
    "\n",
]


def make_documents(count: int, longest: int, seed: int = 0) -> list[str]:
    """Distinct documents of words, most of them short, with some non-ASCII text."""
    rng = random.Random(seed)
    words = ["tree", "river", "na\u00efve", "42", "\u4e2d\u6587", "The", "of", "window", "\U0001f600", "light", "isn't"]
    result = []
    for number in range(count):
        length = max(3, int(longest * rng.random() ** 4))
        text = f"document {number}:"
        while len(text) < length:
            text += " " + rng.choice(words) + rng.choice(["", "", "", ".", ",\n"])
        result.append(text)
    return result


def shared_file(name: str) -> pathlib.Path:
    """A file of the optional corpora beside the project; skips the test where they are not there."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"the optional corpus file {name} is not beside this project")
    return path


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return make_documents(200, 1500)


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer("bytes")


@pytest.fixture(scope="session")
def stream(texts, tokenizer) -> list[int]:
    """The tokens of `texts` as a corpus should have them: one EOS after each document."""
    return [i for text in texts for i in [*tokenizer.encode(text).tolist(), tokenizer.eos_id]]


@pytest.fixture(scope="session")
def text_file(texts, tmp_path_factory) -> pathlib.Path:
    """`texts` as a txt file, documents parted by lines "===" (they contain line ends themselves)."""
    path = tmp_path_factory.mktemp("text") / "texts.txt"
    path.write_bytes("\n===\n".join(texts).encode("utf-8"))
    return path


@pytest.fixture(scope="session")
def corpus(text_file, tmp_path_factory) -> Corpus:
    """`texts` as bytes in about ten shards."""
    directory = tmp_path_factory.mktemp("corpus")
    prepare([text_file], "bytes", directory, documents="separator:===", shard_bytes=8_000, progress=False)
    return Corpus.open(directory)
