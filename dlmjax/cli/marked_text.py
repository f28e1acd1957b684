"""Documents of a corpus for a person: what is given, scored and tail, in colour on a terminal and between marks elsewhere."""

import os
from collections.abc import Iterator

import numpy as np

from dlmjax.data.corpus import Corpus
from dlmjax.data.roles import USES, use_of
from dlmjax.sampling.text import visible

MOST_TOKENS = 4096  # of a document
COLOURS = {"given": "2", "scored": "32", "tail": "33", "hidden": "31"}  # dim, green, yellow, red
BRACKETS = {"given": ("", ""), "scored": ("[", "]"), "tail": ("<", ">"), "hidden": ("{", "}")}


def in_colour(terminal: bool) -> bool:
    """Whether to write colours: to a terminal, where the variable NO_COLOR is not set."""
    return terminal and not os.environ.get("NO_COLOR")


def legend(colour: bool) -> str:
    """What the colours or the marks mean, in one line."""
    return "shown: " + ", ".join(_marked(use, use, colour) for use in USES[:3])


def marked_documents(corpus: Corpus, count: int, colour: bool) -> Iterator[str]:
    """The first documents of a split, one text each; special tokens by their names."""
    names = {corpus.tokenizer.eos_id: "<eos>"} | {number: text for text, number in corpus.tokenizer.control_texts.items()}
    begin = 0
    for end in (end for ends_D in corpus.document_ends() for end in ends_D.tolist()):
        if count == 0:
            return
        count -= 1
        length = min(end - begin, MOST_TOKENS)
        tokens_L, use_L = corpus.read(begin, length), use_of(corpus.read_roles(begin, length))
        edges = [0, *(np.flatnonzero(np.diff(use_L)) + 1).tolist(), length]
        parts = [
            _marked(_text(corpus, tokens_L[a:b], names), USES[use_L[a]], colour) for a, b in zip(edges, edges[1:], strict=False) if b > a
        ]
        more = f" ... and {end - begin - length:,} more tokens" if end - begin > length else ""
        yield "".join(parts) + more
        begin = end


def _text(corpus: Corpus, tokens_N: np.ndarray, names: dict[int, str]) -> str:
    """Display text of tokens: bytes of ordinary tokens are decoded together, so that a character of several tokens is whole."""
    special_N = np.isin(tokens_N, list(names))
    edges = [0, *(np.flatnonzero(np.diff(special_N)) + 1).tolist(), len(tokens_N)]
    parts = []
    for a, b in zip(edges, edges[1:], strict=False):
        parts += [names[token] for token in tokens_N[a:b].tolist()] if special_N[a] else [visible(corpus.tokenizer.decode(tokens_N[a:b]))]
    return "".join(parts)


def _marked(text: str, use: str, colour: bool) -> str:
    if not colour:
        left, right = BRACKETS[use]
        return f"{left}{text}{right}"
    return "\n".join(f"\x1b[{COLOURS[use]}m{line}\x1b[0m" if line else "" for line in text.split("\n"))
