"""The canvas: the tokens that condition the sample, the masked positions, and the time t from which each position is denoised.

All samplers take a canvas for all tasks: free text (all masked), continuation (prompt), infilling (prompt and suffix), templates (masks
anywhere), and editing (noise of time t is added to the text, which is then denoised).

Shapes: B batch, L length.  Times: 0 = clean, 1 = prior.
"""

import dataclasses
import re
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int32

from dlmjax import checks
from dlmjax.errors import InputError
from dlmjax.flags import MOST_TOKENS

EDIT_TIME = 0.5  # default start time of edited text: about half of the tokens receive noise

_MASK = r"\[MASK(?:\*(?P<count>\d+))?\]"
_SPAN = r"\[SPAN(?:\*(?P<span>\d+))?\]"
_EDIT = r"\[EDIT:(?P<edit>[^\]]*)\]"
_UNDERSCORES = r"(?P<line>_{3,})"
_BROKEN = r"(?P<broken>\[MASK(?![A-Za-z])|\[SPAN(?![A-Za-z])|\[EDIT:)"  # the start of a marker without its end
_MARKER = re.compile(rf"(?P<kept>\\(?=\[MASK|\[SPAN|\[EDIT:|___))|{_MASK}|{_SPAN}|{_EDIT}|{_UNDERSCORES}|{_BROKEN}")


@runtime_checkable
class CanvasTokenizer(Protocol):
    """The attributes of a tokenizer that a canvas requires."""

    mask_id: int

    def encode(self, text: str) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Canvas:
    """Rows to be filled by a sampler.

    tokens_BL: token ids; those of masked positions are ignored.
    condition_mask_BL: True where the token conditions the sample; it stays as it is, bit for bit.
    start_BL: time t from which a position is denoised: 0 where it conditions, 1 where it is masked, between for edited text.
    before_B: of a piece of a longer canvas, the number of generated positions left of it; None = 0.
    spans_L: number of each position's span, 0 = the plan, which holds no position to fill; a span reads the plan and itself
      (`models.masks.Spans`). None = every position reads all.
    """

    tokens_BL: Int32[np.ndarray, "B L"]
    condition_mask_BL: Bool[np.ndarray, "B L"]
    start_BL: Float32[np.ndarray, "B L"]
    before_B: np.ndarray | None = dataclasses.field(default=None, kw_only=True)
    spans_L: np.ndarray | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        if self.tokens_BL.size == 0:
            raise InputError("the canvas is empty; it requires at least one row and one position")
        if not (self.tokens_BL.shape == self.condition_mask_BL.shape == self.start_BL.shape):
            shapes = f"{self.tokens_BL.shape}, {self.condition_mask_BL.shape} and {self.start_BL.shape}"
            raise InputError(f"tokens_BL, condition_mask_BL and start_BL of the canvas have different shapes: {shapes}")
        if not np.all(np.where(self.condition_mask_BL, self.start_BL == 0, (self.start_BL > 0) & (self.start_BL <= 1))):
            raise InputError("start_BL of the canvas, the start time, must be 0 where condition_mask_BL is true and in (0, 1] elsewhere")

        if self.spans_L is not None and (self.spans_L.shape != self.tokens_BL.shape[1:] or (self.spans_L < 0).any()):
            raise InputError(f"spans_L of the canvas requires {self.tokens_BL.shape[1]} numbers of spans, 0 = the plan")
        if self.spans_L is not None and (~self.condition_mask_BL & (self.spans_L == 0)).any():
            raise InputError(
                "spans are drawn given the plan, which requires text alone; sample the plan first, and give it with [SPAN*12] for each span"
            )

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
    def number_BL(self) -> Int32[np.ndarray, "B L"]:
        """Number of generated positions before each position of the row."""
        generated_BL = ~self.condition_mask_BL
        before_B = np.zeros(self.batch, np.int64) if self.before_B is None else self.before_B
        return (before_B[:, None] + np.cumsum(generated_BL, axis=1) - generated_BL).astype(np.int32)

    def padded(self, batch: int) -> "Canvas":
        """The canvas with rows added up to `batch`. They condition everywhere, so that a sampler has nothing to do there."""
        more = batch - self.batch
        if more <= 0:
            return self
        of_rows = (field.name for field in dataclasses.fields(self) if field.name.rpartition("_")[2].startswith("B"))
        arrays = {name: getattr(self, name) for name in of_rows}
        arrays = {name: array[np.minimum(np.arange(batch), self.batch - 1)] for name, array in arrays.items() if array is not None}
        arrays["condition_mask_BL"][-more:], arrays["start_BL"][-more:] = True, 0.0
        return dataclasses.replace(self, **arrays)

    @property
    def masked_B(self) -> np.ndarray:
        """Number of positions of each row that a sampler fills, masked and edited ones."""
        return (~self.condition_mask_BL).sum(axis=1)


def blank_canvas(length: int, batch: int = 1, fill: int = 0) -> Canvas:
    """A canvas of [batch, length] masked positions."""
    _check_size(batch, length)
    return _rows(np.full(length, fill), np.zeros(length, bool), np.ones(length), batch)


def suppressed_ids(tokenizer, vocab: int, pads: int = 0) -> tuple[int, ...]:
    """Ids that a sampler does not produce: mask, pad, BOS unless the same id also ends a document, and ids without a token.

    vocab: the network's vocabulary, `process.vocab`. Ids without a token are gaps of the tokenizer (`absent_ids`) and the ids from
      `tokenizer.vocab_size` to `vocab`, but for the first `pads` of these, which a tail is made of (`data.tail`).
    """
    suppressed = {tokenizer.mask_id, tokenizer.pad_id, tokenizer.bos_id} - {tokenizer.eos_id, None}
    absent = getattr(tokenizer, "absent_ids", ())  # tokenizers of other packages may lack it
    ids = {*map(int, suppressed), *map(int, absent), *range(tokenizer.vocab_size + pads, vocab)}
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
    """Builds a canvas of `batch` equal rows from one of three descriptions.

    Args:
      length: tokens of a row; optional with a template or an edit, where a longer length adds masks at the end.
      prompt, suffix: text at the start and the end of the row, masks between (either may be empty).
      template: text with markers, as in "The [MASK*12] of ___ is [EDIT:very old].".  `[MASK]` is one masked token, `[MASK*12]` twelve, a
        run of three or more underscores one for each underscore; `[EDIT:words]` is edited text; `[SPAN*12]` is a span of twelve masked
        tokens, which reads the text and no other span; a backslash right before a marker keeps it as text.  Text between two markers is
        tokenized separately, so that no token reaches over a marker.
      edit: text that is edited as a whole.
      start_t: time in (0, 1] from which edited text is denoised (0.5).

    Raises InputError: the texts do not fit into `length`, leave no position to fill, or conflict with each other; `start_t` without
      edited text.
    """
    _check_size(batch, 1 if length is None else length)
    for name, text in (("prompt", prompt), ("suffix", suffix), ("template", template), ("edit", edit)):
        checks.text(f"the {name}", text or "")
    if template is not None and (prompt or suffix or edit is not None):
        raise InputError("give either a template or a prompt, suffix or edit, not both")
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
    """Splits a template into pieces: (text, "condition"), (number of masked tokens, "mask" or "span") or (text, "edit")."""
    pieces: list[tuple[str | int, str]] = []
    text, cursor = "", 0
    while match := _MARKER.search(template, cursor):
        text += template[cursor : match.start()]
        cursor = match.end()
        if match.group("broken") is not None:
            raise InputError(
                f"the template has {template[match.start() : match.start() + 16]!r}, which is not a marker; write [MASK], [MASK*12], "
                f"[SPAN*12] or [EDIT:words], or \\{match.group()} to keep it as text"
            )
        if match.group("kept") is not None:
            literal = re.compile(r"\[|_+").match(template, cursor)
            text += literal.group()
            cursor = literal.end()
            continue
        if text:
            pieces.append((text, "condition"))
            text = ""
        if match.group("edit") == "":
            raise InputError("the template has [EDIT:] without words; write the text after the colon, or use [MASK]")
        if match.group("edit") is not None:
            pieces.append((match.group("edit"), "edit"))
        elif match.group("line") is not None:
            pieces.append((len(match.group("line")), "mask"))
        else:
            kind = "span" if match.group().startswith("[SPAN") else "mask"
            count = match.group("count") or match.group("span") or "1"
            if len(count) > 12 or int(count) > MOST_TOKENS:
                raise InputError(f"the template has {match.group()[:24]}; a canvas has at most {MOST_TOKENS} tokens")
            if int(count) == 0:
                raise InputError(f"the template has {match.group()}, which masks no token; give at least 1, or leave the marker out")
            pieces.append((int(count), kind))
    text += template[cursor:]
    if text:
        pieces.append((text, "condition"))
    return pieces


def _ends_canvas(tokenizer, prompt, suffix, length, batch, start_t) -> Canvas:
    if length is None:
        raise InputError("the length of the canvas is missing; give its number of tokens, prompt and suffix included")
    if start_t is not None:
        raise InputError("start_t requires edited text; give --edit TEXT or a template with [EDIT:...]")
    head, tail = _encode(tokenizer, prompt), _encode(tokenizer, suffix)
    needed = len(head) + len(tail)
    if needed >= length:
        what = f"the prompt has {len(head)} tokens" + (f" and the suffix {len(tail)}" if len(tail) else "")
        raise InputError(f"{what}, which leaves nothing to fill in on a canvas of {length}; give a length above {needed}")
    tokens_L = np.full(length, tokenizer.mask_id)
    tokens_L[: len(head)] = head
    tokens_L[length - len(tail) :] = tail
    condition_mask_L = np.ones(length, bool)
    condition_mask_L[len(head) : length - len(tail)] = False
    return _rows(tokens_L, condition_mask_L, np.where(condition_mask_L, 0.0, 1.0), batch)


def _template_canvas(tokenizer, pieces, length, batch, start_t) -> Canvas:
    edits = any(kind == "edit" for _, kind in pieces)
    if start_t is not None and not edits:
        raise InputError("start_t requires edited text, but the template has no [EDIT:...]")
    start = EDIT_TIME if start_t is None else float(start_t)
    if not 0 < start <= 1:
        raise InputError(f"start_t is {start}; it must lie in (0, 1]")
    _check_size(batch, max(1, sum(content for content, kind in pieces if kind in ("mask", "span"))))
    tokens, starts, spans, number = [], [], [], 0
    for content, kind in pieces:
        piece = np.full(content, tokenizer.mask_id) if kind in ("mask", "span") else _encode(tokenizer, content)
        number += kind == "span"
        tokens.append(piece)
        starts.append(np.full(len(piece), {"mask": 1.0, "span": 1.0, "edit": start, "condition": 0.0}[kind]))
        spans.append(np.full(len(piece), number if kind == "span" else 0, np.int32))
    tokens_L = np.concatenate([*tokens, np.zeros(0, np.int64)])
    start_L = np.concatenate([*starts, np.zeros(0)])
    if length is not None:
        extra = length - len(tokens_L)
        if extra < 0:
            raise InputError(f"the text has {len(tokens_L)} tokens, masks included, but the canvas {length}; raise the length")
        tokens_L = np.concatenate([tokens_L, np.full(extra, tokenizer.mask_id)])
        start_L = np.concatenate([start_L, np.ones(extra)])
        spans.append(np.zeros(extra, np.int32))
    if not np.any(start_L > 0):
        raise InputError("the template leaves nothing to fill in; write [MASK], [MASK*12] or ___ for masks, [EDIT:words] for edited text")
    return _rows(tokens_L, start_L == 0, start_L, batch, np.concatenate(spans) if number else None)


def _encode(tokenizer, text: str) -> np.ndarray:
    return np.asarray(tokenizer.encode(text), np.int64) if text else np.zeros(0, np.int64)


def _rows(tokens_L, condition_mask_L, start_L, batch: int, spans_L: np.ndarray | None = None) -> Canvas:
    def tile(row_L, dtype):
        return np.tile(np.asarray(row_L).astype(dtype), (batch, 1))

    return Canvas(tile(tokens_L, np.int32), tile(condition_mask_L, bool), tile(start_L, np.float32), spans_L=spans_L)


def _check_size(batch: int, length: int) -> None:
    for name, value in (("batch", batch), ("length", length)):
        if value < 1:
            raise InputError(f"the {name} of the canvas is {value}; it must be at least 1")
    if batch * length > MOST_TOKENS:
        raise InputError(f"the canvas has {batch} rows of {length} tokens; it must have at most {MOST_TOKENS} tokens in all")
