"""The canvas: which tokens are given, which are to be made, and how noisy each position starts.

One description serves every sampler and every task: free text (all holes), continuation (prompt), infilling (prompt and suffix),
templates (holes anywhere), and editing (given text sent back to noise level t and denoised from there).

Shapes: B batch, L length.  Noise levels: 0 = clean (kept), 1 = nothing is known.
"""

import dataclasses
import re
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int32

from dlmjax.errors import InputError
from dlmjax.flags import MOST_TOKENS

EDIT_LEVEL = 0.5  # where editing starts when the caller names no level: about half of the tokens are looked at again

_HOLE = r"\[MASK(?:\*(?P<count>\d+))?\]"
_EDIT = r"\[EDIT:(?P<edit>[^\]]*)\]"
_UNDERSCORES = r"(?P<line>_{3,})"
_BROKEN = r"(?P<broken>\[MASK(?![A-Za-z])|\[EDIT:)"  # a marker that does not end as one
_MARKER = re.compile(rf"(?P<kept>\\(?=\[MASK|\[EDIT:|___))|{_HOLE}|{_EDIT}|{_UNDERSCORES}|{_BROKEN}")


@runtime_checkable
class CanvasTokenizer(Protocol):
    """What a canvas needs of a tokenizer."""

    mask_id: int

    def encode(self, text: str) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Canvas:
    """What a sampler starts from.

    tokens_BL: the given tokens; what stands in a hole is ignored.
    frozen_BL: True where the token is given and stays as it is, bit for bit.
    start_BL: noise level a position starts from: 0 where frozen, 1 in a hole, between for text that is to be edited.
    """

    tokens_BL: Int32[np.ndarray, "B L"]
    frozen_BL: Bool[np.ndarray, "B L"]
    start_BL: Float32[np.ndarray, "B L"]

    def __post_init__(self):
        if self.tokens_BL.size == 0:
            raise InputError("the canvas is empty: it requires at least one row and one position")
        if not (self.tokens_BL.shape == self.frozen_BL.shape == self.start_BL.shape):
            shapes = f"{self.tokens_BL.shape}, {self.frozen_BL.shape} and {self.start_BL.shape}"
            raise InputError(f"the canvas's tokens, frozen and start have different shapes: {shapes}")
        if not np.all(np.where(self.frozen_BL, self.start_BL == 0, (self.start_BL > 0) & (self.start_BL <= 1))):
            raise InputError("the canvas's start level must be 0 where frozen and in (0, 1] elsewhere")

    @property
    def batch(self) -> int:
        return self.tokens_BL.shape[0]

    @property
    def length(self) -> int:
        return self.tokens_BL.shape[1]

    @property
    def segments_BL(self) -> Int32[np.ndarray, "B L"]:
        """One document per row, no padding."""
        return np.ones(self.tokens_BL.shape, np.int32)

    @property
    def positions_BL(self) -> Int32[np.ndarray, "B L"]:
        return np.broadcast_to(np.arange(self.length, dtype=np.int32), self.tokens_BL.shape).copy()

    @property
    def masked_B(self) -> np.ndarray:
        """How many positions of each row are to be made (holes and edited tokens)."""
        return (~self.frozen_BL).sum(axis=1)


def blank_canvas(length: int, batch: int = 1, fill: int = 0) -> Canvas:
    """Nothing is given: [batch, length] holes."""
    _check_size(batch, length)
    return _rows(np.full(length, fill), np.zeros(length, bool), np.ones(length), batch)


def suppressed_ids(tokenizer, vocab: int) -> tuple[int, ...]:
    """Ids that a sampler must not produce: mask, pad, BOS unless the same id also ends a document, and those for which the tokenizer has
    no token, within its vocabulary (`absent_ids`) and beyond it in a network with `vocab` classes."""
    suppressed = {tokenizer.mask_id, tokenizer.pad_id, tokenizer.bos_id} - {tokenizer.eos_id, None}
    absent = getattr(tokenizer, "absent_ids", ())  # a caller's own tokenizer need not have gaps
    ids = {*map(int, suppressed), *map(int, absent), *range(tokenizer.vocab_size, vocab)}
    return tuple(sorted(i for i in ids if i >= 0))


def build_canvas(
    tokenizer: CanvasTokenizer,
    *,
    length: int | None = None,
    batch: int = 1,
    prompt: str = "",
    suffix: str = "",
    template: str | None = None,
    edit: str | None = None,
    start_t: float | None = None,
) -> Canvas:
    """Builds a canvas of `batch` equal rows from text.

    Three ways to say what is given:
      prompt and suffix: frozen at the two ends of `length` tokens, holes between (either may be empty);
      template: text with holes, e.g. "The [MASK*12] of ___ is [EDIT:very old].".  `[MASK]` is one hole, `[MASK*12]` twelve, a run of
        three or more underscores as many holes as underscores; `[EDIT:words]` is text to be edited; a backslash right before a marker
        keeps it as text.  A longer `length` adds holes after the template;
      edit: all of this text is to be edited.
    start_t: noise level in (0, 1] from which edited text starts (default 0.5); an error where nothing is edited.
    Text between two markers is tokenized on its own, so that no token straddles the edge of a hole.

    Raises InputError when the texts do not fit into `length`, leave nothing to make, or contradict each other.
    """
    _check_size(batch, 1 if length is None else length)
    for name, text in (("prompt", prompt), ("suffix", suffix), ("template", template), ("edit", edit)):
        _check_text(name, text)
    if template is not None and (prompt or suffix or edit is not None):
        raise InputError("give either a template or a prompt, suffix or edit, not both: a template holds all of the text")
    if edit is not None and (prompt or suffix):
        raise InputError("give either an edit or a prompt and suffix; to keep some of the text use a template with [EDIT:...]")
    if edit is not None:
        pieces = [(edit, "edit")]
    elif template is not None:
        pieces = parse_template(template)
    else:
        return _ends_canvas(tokenizer, prompt, suffix, length, batch, start_t)
    return _template_canvas(tokenizer, pieces, length, batch, start_t)


def parse_template(template: str) -> list[tuple[str | int, str]]:
    """Splits a template into pieces: (text, "frozen"), (number of holes, "hole") or (text, "edit")."""
    pieces: list[tuple[str | int, str]] = []
    text, cursor = "", 0
    while match := _MARKER.search(template, cursor):
        text += template[cursor : match.start()]
        cursor = match.end()
        if match.group("broken") is not None:
            raise InputError(
                f"the template has {template[match.start() : match.start() + 16]!r}, which is not a marker; write [MASK], [MASK*12] or "
                f"[EDIT:words], or \\{match.group()} to keep it as text"
            )
        if match.group("kept") is not None:
            literal = re.compile(r"\[|_+").match(template, cursor)
            text += literal.group()
            cursor = literal.end()
            continue
        if text:
            pieces.append((text, "frozen"))
            text = ""
        if match.group("edit") == "":
            raise InputError("the template has [EDIT:] without words; write the text that is to be edited after the colon, or [MASK]")
        if match.group("edit") is not None:
            pieces.append((match.group("edit"), "edit"))
        elif match.group("line") is not None:
            pieces.append((len(match.group("line")), "hole"))
        else:
            count = match.group("count") or "1"
            if len(count) > 12 or int(count) > MOST_TOKENS:
                raise InputError(f"the template has {match.group()[:24]}; a canvas has at most {MOST_TOKENS} tokens")
            if int(count) == 0:
                raise InputError(f"the template has {match.group()}, which leaves nothing to fill in; give at least 1 token, or no marker")
            pieces.append((int(count), "hole"))
    text += template[cursor:]
    if text:
        pieces.append((text, "frozen"))
    return pieces


def _ends_canvas(tokenizer, prompt, suffix, length, batch, start_t) -> Canvas:
    if length is None:
        raise InputError("the length of the canvas is missing: say how many tokens it has, prompt and suffix included")
    if start_t is not None:
        raise InputError("a start level only applies to text that is edited; give --edit TEXT or a template with [EDIT:...]")
    head, tail = _encode(tokenizer, prompt), _encode(tokenizer, suffix)
    given = len(head) + len(tail)
    if given >= length:
        what = f"the prompt has {len(head)} tokens" + (f" and the suffix {len(tail)}" if len(tail) else "")
        raise InputError(f"{what}, which leaves nothing to fill in on a canvas of {length}; set a length above {given}")
    tokens_L = np.full(length, tokenizer.mask_id)
    tokens_L[: len(head)] = head
    tokens_L[length - len(tail) :] = tail
    frozen_L = np.ones(length, bool)
    frozen_L[len(head) : length - len(tail)] = False
    return _rows(tokens_L, frozen_L, np.where(frozen_L, 0.0, 1.0), batch)


def _template_canvas(tokenizer, pieces, length, batch, start_t) -> Canvas:
    edits = any(kind == "edit" for _, kind in pieces)
    if start_t is not None and not edits:
        raise InputError("a start level only applies to text that is edited; the template has no [EDIT:...]")
    level = EDIT_LEVEL if start_t is None else float(start_t)
    if not 0 < level <= 1:
        raise InputError(f"the start level of an edit is {level}; it must lie in (0, 1], 1 being all noise")
    _check_size(batch, max(1, sum(content for content, kind in pieces if kind == "hole")))
    tokens, starts = [], []
    for content, kind in pieces:
        piece = np.full(content, tokenizer.mask_id) if kind == "hole" else _encode(tokenizer, content)
        tokens.append(piece)
        starts.append(np.full(len(piece), {"hole": 1.0, "edit": level, "frozen": 0.0}[kind]))
    tokens_L = np.concatenate([*tokens, np.zeros(0, np.int64)])
    start_L = np.concatenate([*starts, np.zeros(0)])
    if length is not None:
        extra = length - len(tokens_L)
        if extra < 0:
            raise InputError(f"the text has {len(tokens_L)} tokens, holes included, but the canvas only {length}; raise the length")
        tokens_L = np.concatenate([tokens_L, np.full(extra, tokenizer.mask_id)])
        start_L = np.concatenate([start_L, np.ones(extra)])
    if not np.any(start_L > 0):
        raise InputError("the template leaves nothing to fill in; mark holes with [MASK], [MASK*12] or ___, edits with [EDIT:words]")
    return _rows(tokens_L, start_L == 0, start_L, batch)


def _encode(tokenizer, text: str) -> np.ndarray:
    return np.asarray(tokenizer.encode(text), np.int64) if text else np.zeros(0, np.int64)


def _rows(tokens_L, frozen_L, start_L, batch: int) -> Canvas:
    def tile(row_L, dtype):
        return np.tile(np.asarray(row_L).astype(dtype), (batch, 1))

    return Canvas(tile(tokens_L, np.int32), tile(frozen_L, bool), tile(start_L, np.float32))


def _check_size(batch: int, length: int) -> None:
    for name, value in (("batch", batch), ("length", length)):
        if value < 1:
            raise InputError(f"the {name} of the canvas is {value}; it must be at least 1")
    if batch * length > MOST_TOKENS:
        raise InputError(f"the canvas has {batch} rows of {length} tokens; it must have at most {MOST_TOKENS} tokens in all")


def _check_text(name: str, text: str | None) -> None:
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the {name} is not Unicode text: character {error.start + 1} is half of a surrogate pair; leave it out") from None
