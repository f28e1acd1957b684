"""Display text of tokens: one visible piece of text per id.

A model may produce any character, also escape codes that move a terminal's cursor or reverse the direction of text. They are replaced.
"""

import unicodedata
from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Tokenizer(Protocol):
    """The attributes of a tokenizer that the display of text requires."""

    mask_id: int
    pad_id: int
    bos_id: int
    eos_id: int
    vocab_size: int

    def decode(self, ids: np.ndarray) -> str: ...


def text_of(tokenizer: Tokenizer, tokens_L: np.ndarray) -> str:
    """The text of ids; those behind the tokenizer's, the pads of a tail, have none."""
    return tokenizer.decode(tokens_L[tokens_L < tokenizer.vocab_size])


def piece(tokenizer: Tokenizer | None, token: int) -> str:
    """Display text of one id, never empty: <eos>, <mask> ... for special ids, <id> for others without text."""
    if tokenizer is None:
        return f"<{token}>"
    specials = {tokenizer.bos_id: "<bos>", tokenizer.eos_id: "<eos>", tokenizer.pad_id: "<pad>", tokenizer.mask_id: "<mask>"}
    if token in specials:
        return specials[token]
    if token >= tokenizer.vocab_size:
        return f"<{token}>"
    alone = tokenizer.decode(np.asarray([token], np.int32))
    # Some tokenizers drop a space at the start of a text, so the piece is decoded after a copy of itself.
    doubled = tokenizer.decode(np.asarray([token, token], np.int32))
    if doubled.startswith(alone) and len(doubled) > 2 * len(alone):
        alone = doubled[len(alone) :]
    return visible(alone) or f"<{token}>"


def visible(text: str) -> str:
    """The text with line feeds as ↵ and a line feed, tabs as →, other control characters as their Unicode picture, and format or
    unassigned characters as �."""
    return "".join(_visible_character(c) for c in text)


def _visible_character(character: str) -> str:
    if character == "\n":
        return "↵\n"
    if character == "\t":
        return "→"
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return "\N{REPLACEMENT CHARACTER}"
    return character


def columns(text: str) -> int:
    """Width of a visible text without line feeds, terminal columns."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
