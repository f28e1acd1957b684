"""Detokenisers: rules that restore the text of corpora that were published as tokens between spaces.

A zero-shot number depends on this step as much as on the model, so the rules are those of papers, in their order: WikiText's and PTB's
from Megatron-LM's evaluation (1909.08053), LM1B's from SEDD (2310.16834), all as MDLM (2406.07524) applies them, to one line or one
record at a time. One published rule is left out: a pattern for "' 5" that was written with slashes in it and does not match anything.

A detokeniser is a tuple of steps (what, by), applied in order; `what` is plain text or a compiled pattern.
"""

import re

from dlmjax.errors import InputError

Steps = tuple[tuple[str | re.Pattern, str], ...]


def _tight(opening: str, closing: str) -> tuple[re.Pattern, str]:
    """No spaces just inside a pair of brackets or quotes."""
    return re.compile(rf"{re.escape(opening)}\s*([^{re.escape(closing)}]*?)\s*{re.escape(closing)}"), rf"{opening}\1{closing}"


def _spaced(opening: str, inner: str, closing: str) -> tuple[re.Pattern, str]:
    """The same for exactly one space on either side."""
    return re.compile(rf"{re.escape(opening)} ({inner}+) {re.escape(closing)}"), rf"{opening}\1{closing}"


WIKITEXT: Steps = (
    ("s '", "s'"),
    (" @-@ ", "-"),
    (" @,@ ", ","),
    (" @.@ ", "."),
    *((f" {mark} ", f"{mark} ") for mark in ":;.!?,"),
    _tight("(", ")"),
    _tight("[", "]"),
    _tight("{", "}"),
    _tight('"', '"'),
    _tight("'", "'"),
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)
PTB: Steps = (
    (" 's", "'s"),
    ("s ' ", "s' "),
    (" n't", "n't"),
    (" \n ", "\n"),
    ("\\/", "/"),
    # A number is "N"; neighbours share a space, which is why the published rule is applied ten times over.
    (re.compile(r"(?<= )N(?= )"), "1"),
    ("$ 1", "$1"),
    ("# 1", "#1"),
    ("<unk>", "?"),
)
LM1B: Steps = (
    ("http : / / ", "http://"),
    ("https : / / ", "https://"),
    (re.compile(r" '(\w+)"), r"'\1"),
    (re.compile(r" (\w+) \. "), r" \1. "),
    (re.compile(r" (\w+) \.$"), r" \1."),
    (" ? ", "? "),
    (re.compile(r" \?$"), "?"),
    (" ! ", "! "),
    (re.compile(r" !$"), "!"),
    *((f" {mark} ", f"{mark} ") for mark in ",:;"),
    (" / ", "/"),
    _spaced('"', '[^"]', '"'),
    _spaced("'", "[^']", "'"),
    _spaced("(", "[^()]", ")"),
    _spaced("[", r"[^\[\]]", "]"),
    ("$ ", "$"),
    ("£ ", "£"),
)
LAMBADA: Steps = (
    ("\N{LEFT DOUBLE QUOTATION MARK}", '"'),
    ("\N{RIGHT DOUBLE QUOTATION MARK}", '"'),
    (re.compile(r"\s+\Z"), ""),
    (re.compile(r"\A\s*"), "\n"),
)
DETOKENISERS: dict[str, Steps] = {
    "none": (),
    "wikitext": WIKITEXT,
    "ptb": PTB,
    "lm1b": LM1B,
    "lambada": LAMBADA,
    "papers": (*WIKITEXT, *LM1B),
}


def detokenise(name: str, text: str) -> str:
    """The text as a person would write it.

    Args:
      name: one of `DETOKENISERS`: none, wikitext, ptb, lm1b, lambada, papers (arXiv and PubMed: WikiText's steps, then LM1B's).
      text: one line or one record; the patterns are meant for nothing longer.
    Raises:
      InputError: no such detokeniser.
    """
    if name not in DETOKENISERS:
        raise InputError(f"detokeniser {name!r} is unknown; choose one of {', '.join(DETOKENISERS)}")
    for what, by in DETOKENISERS[name]:
        text = text.replace(what, by) if isinstance(what, str) else what.sub(by, text)
    return text
