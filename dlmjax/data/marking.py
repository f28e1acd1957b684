"""Records of supervised data: which characters of a text are given and which are scored, and the bytes of its tokens.  Never imports jax.

    spans           {"text": TEXT, "spans": [SPAN, ...]}; a SPAN is [START, END] or {"start": , "end": , "use": , "role": }, in characters
    prompt-answer   {"prompt": TEXT, "answer": TEXT}: the prompt and a separator are given, the answer and its EOS are scored
    chat            {"messages": [...], "tools": [...]}: what a chat template writes; the messages of the assistant are scored (`chat.py`)

A text is tokenized once, as a whole, so that its tokens are those of the text; a token that lies across the edge of a scored span is
scored.
Shapes: N tokens of a text, E edges.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from dlmjax.data.chat import ChatTemplate
from dlmjax.data.roles import CONDITION, END, MESSAGE_START, ROLES, SCORED, TAIL, USES, pack_role
from dlmjax.data.spans import Span, Unmarked
from dlmjax.data.specs import SUPERVISED
from dlmjax.data.table_tokenizer import TableTokenizer

_TEXT, _USER, _ASSISTANT, _TAIL = (ROLES.index(name) for name in ("text", "user", "assistant", "tail"))


class MarkedText(NamedTuple):
    """A text and its spans, in order and without overlap; what is in none of them is given text.

    rendered: whether special tokens in the text stand for their ids, as in what a chat template writes.
    ends: use and role of the EOS behind the text; None: those of the last token, and given where that is not noised.
    ordinary: ranges of characters with the text of a special token that does not stand for its id.
    """

    text: str
    spans: list[Span]
    rendered: bool = False
    ends: tuple[int, int] | None = None
    ordinary: tuple[tuple[int, int], ...] = ()


@dataclasses.dataclass(frozen=True)
class Marking:
    """How the records of a corpus are read. `format`: one of `specs.SUPERVISED`; the other fields are those of `CorpusOptions`."""

    format: str
    text_field: str = "text"
    prompt_field: str = "prompt"
    answer_field: str = "answer"
    separator: str = "\n"
    length: int | None = None
    template: ChatTemplate | None = None

    @classmethod
    def from_request(cls, request: dict) -> "Marking | None":
        """The marking that a manifest's request describes; None where its text is not supervised."""
        if request["format"] not in SUPERVISED:
            return None
        named = {field.name for field in dataclasses.fields(cls)} - {"template"}
        template = ChatTemplate.from_request(request["template"]) if "template" in request else None
        return cls(**{name: request[name] for name in named if name in request}, template=template)

    def describe(self) -> dict[str, Any]:
        """What a request holds of it beside format and text field."""
        if self.format == "chat":
            return {"template": self.template.describe()} | ({} if self.length is None else {"length": self.length})
        names = {"prompt-answer": ("prompt_field", "answer_field", "separator"), "spans": ()}[self.format]
        own = {name: getattr(self, name) for name in names}
        return own | ({} if self.length is None else {"length": self.length})

    def read(self, record: Any, control_texts: Iterable[str] = ()) -> MarkedText:
        """The text and the spans of a record, a JSON value. control_texts: texts that stand for special ids in what a template writes.

        Raises Unmarked with what is wrong."""
        if not isinstance(record, dict):
            raise Unmarked("it is not an object")
        if self.format == "chat":
            text, spans, ordinary = self.template.spans(record, control_texts)
            return MarkedText(text, spans, True, (TAIL, _TAIL), ordinary)
        return self._answered(record) if self.format == "prompt-answer" else self._spanned(record)

    def _answered(self, record: dict) -> MarkedText:
        prompt, answer = _text(record, self.prompt_field, "--prompt-field"), _text(record, self.answer_field, "--answer-field")
        if not answer:
            raise Unmarked(f"nothing to score: the field {self.answer_field!r} is empty; remove the line")
        head = prompt + (self.separator if prompt else "")
        text = head + answer
        spans = [Span(0, len(head), CONDITION, _USER, True)] if head else []
        return MarkedText(text, [*spans, Span(len(head), len(text), SCORED, _ASSISTANT, True)])

    def _spanned(self, record: dict) -> MarkedText:
        text = _text(record, self.text_field, "--text-field")
        found = record.get("spans")
        if not isinstance(found, list):
            raise Unmarked(f"no list in the field 'spans' ({', '.join(map(repr, record))})")
        return MarkedText(text, [span_of(value, number, len(text)) for number, value in enumerate(found, start=1)])

    def encode(self, marked: MarkedText, tokenizer: TableTokenizer) -> tuple[Int[np.ndarray, "N"], UInt8[np.ndarray, "N"]]:
        """The tokens of a text, its EOS included, and their bytes as shards hold them.

        Raises Unmarked: spans that overlap, nothing to score, a special token in the text, more tokens than `length`.
        """
        spans = marked.spans
        for number, (one, other) in enumerate(zip(spans, spans[1:], strict=False), start=1):
            if other.start < one.end:
                raise Unmarked(f"spans {number} and {number + 1} overlap or are out of order ({one.end} is after {other.start})")
        edges = [edge for span in spans for edge in span[:2]]
        ids, first_E, last_E = tokenizer.encode_at(marked.text, edges, marked.rendered, marked.ordinary)
        if special := {tokenizer.mask_id: "mask", tokenizer.pad_id: "pad"}.keys() & set(ids.tolist()):
            raise Unmarked(f"the text has the special token {tokenizer.control_text(min(special))!r}, which the corpus uses for itself")
        roles = np.full(len(ids), pack_role(CONDITION, _TEXT), np.uint8)
        for noised in (False, True):
            for span, first, last in zip(spans, first_E[::2], last_E[1::2], strict=True):
                if (span.use in (SCORED, TAIL)) == noised:
                    roles[first:last] = pack_role(span.use, span.role)
        if marked.rendered:
            self._score_ends_of_messages(ids, roles, spans, first_E, last_E, tokenizer)
        for span, first in zip(spans, first_E[::2], strict=True):
            if span.starts_message and first < len(ids):
                roles[first] |= MESSAGE_START
        if not len(ids) or ids[-1] != tokenizer.eos_id or not marked.rendered:
            last = int(roles[-1]) & ~MESSAGE_START if len(ids) else 0
            use, role = (last & 3, last >> 2) if last & 3 in (SCORED, TAIL) else marked.ends or (CONDITION, last >> 2)
            ids, roles = np.append(ids, tokenizer.eos_id), np.append(roles, np.uint8(pack_role(use, role)))
        self._check(roles)
        roles[-1] |= END
        return ids, roles

    @staticmethod
    def _score_ends_of_messages(ids, roles, spans, first_E, last_E, tokenizer) -> None:
        """Scores the special token behind an answer where the template's own mark of the answer ends before it: the model must learn to
        stop. A token that begins the next turn stays given."""
        begins = {int(first) for span, first in zip(spans, first_E[::2], strict=True) if span.starts_message}
        for span, last in zip(spans, last_E[1::2], strict=True):
            following = int(last)
            if span.use != SCORED or not 0 < following < len(ids) or following in begins or roles[following] & 3 == SCORED:
                continue
            if tokenizer.byte_lengths_V[ids[following]] == 0 and tokenizer.byte_lengths_V[ids[following - 1]] > 0:
                roles[following] = pack_role(SCORED, span.role)

    def _check(self, roles: UInt8[np.ndarray, "N"]) -> None:
        scored = np.flatnonzero(roles & 3 == SCORED)
        if not len(scored):
            raise Unmarked("nothing to score: all of its tokens are given; remove the line")
        if self.length is not None and len(roles) > self.length:
            prompt = int(scored[0])
            what = f"it has {len(roles):,} tokens, {prompt:,} of them before the first that is scored"
            what = f"its prompt has {prompt:,} tokens" if prompt >= self.length else what
            raise Unmarked(f"{what}, but rows have --length {self.length:,}; shorten it, or raise --length with data.length")


def _text(record: dict, field: str, flag: str) -> str:
    if field not in record:
        raise Unmarked(f"no field {field!r} ({', '.join(map(repr, record))}); name it with {flag}")
    text = record[field]
    if not isinstance(text, str):
        kind = {dict: "an object", list: "a list", bool: "true or false", type(None): "null"}.get(type(text), "a number")
        raise Unmarked(f"field {field!r} holds {kind}, not text")
    return text


def span_of(value: Any, number: int, length: int) -> Span:
    """A span of a record. Raises Unmarked: it is not one, or it is outside the text of `length` characters."""
    whole = {"start", "end"} <= value.keys() if isinstance(value, dict) else isinstance(value, list) and len(value) == 2
    if not whole:
        raise Unmarked(f"span {number} is {value!r:.60}; give [START, END] or an object with start and end")
    values = value if isinstance(value, dict) else {"start": value[0], "end": value[1]}
    if unknown := sorted(values.keys() - {"start", "end", "use", "role"}):
        raise Unmarked(f"span {number} has the unknown field {unknown[0]!r:.60}; give start, end, use and role")
    start, end = values["start"], values["end"]
    if not all(type(edge) is int for edge in (start, end)):
        raise Unmarked(f"span {number} runs from {start!r:.30} to {end!r:.30}; give whole numbers of characters")
    if not 0 <= start < end <= length:
        what = "ends after the text" if start < end and end > length else "is empty or not in order"
        raise Unmarked(f"span {number} [{start}, {end}] {what} (a text of {length:,} characters)")
    use, role = values.get("use", "scored"), values.get("role", "text")
    for name, known in ((use, USES), (role, ROLES)):
        if not isinstance(name, str) or name not in known:
            raise Unmarked(f"span {number} names {name!r:.60}; give one of {', '.join(known)}")
    return Span(start, end, USES.index(use), ROLES.index(role), False)
