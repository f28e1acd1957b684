"""How a token is shown to a person: one visible, harmless piece of text per id.

A model may produce anything, also the escape codes that move a terminal's cursor or turn text around; nothing of the kind is passed on.
"""

import unicodedata
from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Tokenizer(Protocol):
    """What showing text needs of a tokenizer."""

    mask_id: int
    pad_id: int
    bos_id: int
    eos_id: int

    def decode(self, ids: np.ndarray) -> str: ...


def piece(tokenizer: Tokenizer | None, token: int) -> str:
    """Display text of one id, never empty: <eos>, <mask> ... for special ids, <id> for others without text."""
    if tokenizer is None:
        return f"<{token}>"
    specials = {tokenizer.bos_id: "<bos>", tokenizer.eos_id: "<eos>", tokenizer.pad_id: "<pad>", tokenizer.mask_id: "<mask>"}
    if token in specials:
        return specials[token]
    alone = tokenizer.decode(np.asarray([token], np.int32))
    # Some tokenizers drop the space that begins a text: a piece is read in front of which the same piece already stands.
    doubled = tokenizer.decode(np.asarray([token, token], np.int32))
    if doubled.startswith(alone) and len(doubled) > 2 * len(alone):
        alone = doubled[len(alone) :]
    return visible(alone) or f"<{token}>"


def visible(text: str) -> str:
    """Line feeds as ↵ and a line feed, tabs as →, every other control, format or unassigned character as a picture of itself or �."""
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
    """How many terminal columns a visible text without line feeds takes."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
