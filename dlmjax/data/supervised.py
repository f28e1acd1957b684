"""What is made of the rows of supervised data before they are trained on: each is a function of (seed, step, row), by the row's key.

Hidden tokens become padding. Then in this order, each where it is asked for:

  random length  a share of the rows is cut to U{1 .. L} tokens (LLaDA 2502.09992): a network that only knows full rows writes full rows
  infilling      in a share of the rows only the tokens inside drawn spans stay scored; the text around them is given
  one answer     one scored message of each text stays scored, those before it are given and what follows is hidden. A network that reads
                 the whole row would otherwise see the question behind an answer, and its loss would be below -log p(answer | what came
                 before). The mean over the texts of a batch then counts each answer of a text with n answers by 1/n
  block edges    for a network that reads blocks from left to right: a message behind a scored one begins a block, since a block that holds
                 the end of an answer and the start of the next question shows that question to the answer
  tail           tokens behind each text's end, noised and scored with `process.tail_weight`: the end-of-text token again, or `pads` ids
                 after those of the tokenizer in turn (2510.03680), since a long run of one token is what an empty canvas is surest of

Filled positions belong to the text that they follow. What no longer fits is cut off at the row's end.

Shapes: B rows, L length, P points.  `roles.py` says what a role byte holds.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8, UInt64

from dlmjax.choices import build, lookup, parse
from dlmjax.data.corpus import Corpus
from dlmjax.data.roles import (
    ALL_SCORED,
    CONDITION,
    END,
    FILLED,
    HIDDEN,
    PADDING,
    ROLES,
    SCORED,
    TAIL,
    carries_loss,
    is_message_start,
    pack_role,
    use_of,
)
from dlmjax.data.windows import make_keys, mix
from dlmjax.errors import InputError

Batch = dict[str, np.ndarray]
_ROWS = (1 << 32) + 17  # of the keys of these draws, beside those of corpora
_LENGTH, _INFILL, _ANSWER, _TAIL = range(4)  # streams of a row's key
MOST_SPANS = 16
_FILLED = pack_role(TAIL, ROLES.index("tail")) | FILLED


def uniforms(keys_B: UInt64[np.ndarray, "B"], stream: int, count: int) -> Float[np.ndarray, "B {count}"]:
    """Numbers in [0, 1) of a stream of each row's key."""
    number_N = mix((np.uint64(stream) << np.uint64(32)) + np.arange(count, dtype=np.uint64))
    return (mix(keys_B[:, None] ^ number_N) >> np.uint64(11)).astype(np.float64) * 2.0**-53


# ---- the choices of a config -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Spans:
    """Infilling: in a share of the rows, 1 + geometric spans with uniform ends are scored.

    share: of the rows.  mean: number of spans, at most MOST_SPANS.
    """

    share: float = 0.3
    mean: float = 2.0

    def __post_init__(self):
        if not (0 < self.share <= 1 and 1 <= self.mean <= MOST_SPANS):
            raise InputError(f"spans: share is {self.share} and requires (0, 1]; mean is {self.mean} and requires [1, {MOST_SPANS}]")

    def inside(self, keys_B: UInt64[np.ndarray, "B"], visible_BL: Bool[np.ndarray, "B L"]) -> Bool[np.ndarray, "B L"]:
        """Tokens that stay scored: all in rows that are not drawn, at least one in the others."""
        draws_BP = uniforms(keys_B, _INFILL, 2 + 2 * MOST_SPANS)
        tail = 1 - 1 / self.mean
        more_B = np.floor(np.log(np.maximum(draws_BP[:, 1], 1e-300)) / np.log(tail)) if tail else np.zeros(len(keys_B))
        spans_B1 = np.minimum(1 + more_B, MOST_SPANS)[:, None]
        rank_BL, count_B1 = np.cumsum(visible_BL, axis=1) - 1, visible_BL.sum(axis=1, keepdims=True)
        # Points beyond those of the spans lie behind the last token.
        used_BP = np.arange(2 * MOST_SPANS) < 2 * spans_B1
        points_BP = np.sort(np.where(used_BP, np.floor(draws_BP[:, 2:] * (count_B1 + 1)), count_B1), axis=1)
        inside_BL = (points_BP[:, None, :] <= rank_BL[:, :, None]).sum(axis=2) % 2 == 1
        none_B1 = ~(inside_BL & visible_BL).any(axis=1, keepdims=True)
        inside_BL |= none_B1 & (rank_BL == np.minimum(points_BP[:, :1], count_B1 - 1))
        return np.where(draws_BP[:, :1] < self.share, inside_BL, True)


@dataclasses.dataclass(frozen=True)
class Tail(abc.ABC):
    """Abstract: tokens behind the end of each text.  pads: number of ids that follow one another in turn; 0: the end of text alone.
    hides_end: whether a network that reads the whole row cannot tell from its length where the text ends.
    """

    pads: int = 0
    hides_end: ClassVar[bool] = False

    def __post_init__(self):
        if self.pads < 0:
            raise InputError(f"tail: pads is {self.pads} and requires at least 0 ids")

    @abc.abstractmethod
    def count(self, at: int, u: float, length: int, block: int) -> int:
        """How many tokens to fill. at: the index of the first.  u: of the text, in [0, 1).  length: of the row.  block: of its blocks."""


@dataclasses.dataclass(frozen=True)
class ToBlock(Tail):
    """To the end of the block that the text ends in."""

    def count(self, at: int, u: float, length: int, block: int) -> int:
        return -at % block


@dataclasses.dataclass(frozen=True)
class ToRow(Tail):
    """To the end of the row: what follows in it is cut off."""

    hides_end = True

    def count(self, at: int, u: float, length: int, block: int) -> int:
        return length - at


@dataclasses.dataclass(frozen=True)
class RandomTail(Tail):
    """A random number of tokens, uniform on 0 .. most."""

    most: int = 64

    def __post_init__(self):
        super().__post_init__()
        if self.most < 1:
            raise InputError(f"random: most is {self.most} and requires at least 1 token")

    def count(self, at: int, u: float, length: int, block: int) -> int:
        return int(u * (self.most + 1))


def _none() -> None:
    """Nothing is changed."""


INFILLS: dict[str, Callable[..., Spans | None]] = {"none": _none, "spans": Spans}
TAILS: dict[str, Callable[..., Tail | None]] = {"none": _none, "block": ToBlock, "random": RandomTail, "row": ToRow}


def make_choice(kind: str, text: str) -> Any:
    """The object of a text of `data.infill` or `data.tail`, kind "infill" or "tail"; None where nothing is changed.

    Raises InputError: an unknown name or value, or one out of its range.
    """
    name, values = parse(text, kind)
    return build(f"{kind} {name}", lookup(kind, name, {"infill": INFILLS, "tail": TAILS}[kind]), values)


# ---- the view ----------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SupervisedRows:
    """The view of a batch that the top of this file describes.

    seed: of the run.  eos_id, pad_id, first_pad: the end of text, the id of padding, the first of a tail's `pads` ids.
    answers: "one" answer of each text is scored, "all" are, or all in "blocks", whose size is `block`.
    has_roles: whether the rows that are read have roles.
    """

    seed: int
    eos_id: int
    pad_id: int
    first_pad: int
    random_length: float = 0.0
    infill: Spans | None = None
    tail: Tail | None = None
    answers: str = "all"
    block: int = 1
    has_roles: bool = True

    @property
    def gives_roles(self) -> bool:
        """Whether batches have "roles"."""
        return self.has_roles or self.infill is not None

    def __call__(self, batch: Batch, samples_B: Int[np.ndarray, "B"]) -> Batch:
        """The rows of these samples of the run (step x rows of a step + row), with "roles" where some tokens are not scored."""
        keys_B, length = make_keys(self.seed, _ROWS, samples_B.astype(np.int64)), batch["tokens"].shape[1]
        if self.random_length:
            draws_B2 = uniforms(keys_B, _LENGTH, 2)
            kept_B = np.where(draws_B2[:, 0] < self.random_length, 1 + np.floor(draws_B2[:, 1] * length), length)
            batch = self._hide(batch, np.arange(length) >= kept_B[:, None])
        if self.infill is not None:
            batch = _with_roles(batch)
            outside_BL = ~self.infill.inside(keys_B, batch["segments"] > 0) & is_scored(batch)
            batch = _conditioning(batch, outside_BL)
        if "roles" not in batch:
            return batch
        batch = self._hide(batch, use_of(batch["roles"]) == HIDDEN)
        # A text ends where it is stored to end, or behind the answer that is kept of it; one that is cut off has no end.
        # The token of EOS says nothing about that: a chat template may write it after every answer.
        ends_BL = _last_of_text(batch["segments"]) & (batch["roles"] & END > 0)
        if self.answers == "one":
            before_BL = batch["segments"]
            batch = self._one_answer(batch, uniforms(keys_B, _ANSWER, length + 1))
            ends_BL |= _last_of_text(batch["segments"]) & ~_last_of_text(before_BL)
        if self.answers == "blocks" or self.tail is not None:
            batch = self._filled(batch, ends_BL & is_scored(batch), uniforms(keys_B, _TAIL, length + 1))
        return {**batch, "roles": batch["roles"] & ~np.uint8(END)}

    def _hide(self, batch: Batch, cut_BL: Bool[np.ndarray, "B L"]) -> Batch:
        """Padding in the place of tokens."""
        values = {"tokens": self.pad_id, "segments": 0, "positions": 0, "roles": PADDING}
        return {
            name: np.where(cut_BL, np.asarray(values[name], array.dtype), array) if name in values else array
            for name, array in batch.items()
        }

    def _one_answer(self, batch: Batch, draws_BM: Float[np.ndarray, "B M"]) -> Batch:
        """One scored message of each text; draws_BM: the draw of each segment number."""
        segments_BL, scored_BL = batch["segments"], is_scored(batch)
        message_BL = np.cumsum(is_message_start(batch["roles"]) | _first_of_text(segments_BL), axis=1)
        cut_BL, condition_BL = np.zeros_like(scored_BL), np.zeros_like(scored_BL)
        for b in np.flatnonzero(scored_BL.any(axis=1)):
            for segment in np.unique(segments_BL[b][scored_BL[b]]):
                of_text_L = segments_BL[b] == segment
                answers_N = np.unique(message_BL[b][of_text_L & (use_of(batch["roles"][b]) == SCORED)])
                if len(answers_N):
                    chosen = answers_N[int(draws_BM[b, segment] * len(answers_N))]
                    cut_BL[b] |= of_text_L & (message_BL[b] > chosen)
                    condition_BL[b] |= of_text_L & scored_BL[b] & (message_BL[b] < chosen)
        return self._hide(_conditioning(batch, condition_BL), cut_BL)

    def _filled(self, batch: Batch, ends_BL: Bool[np.ndarray, "B L"], draws_BM: Float[np.ndarray, "B M"]) -> Batch:
        """Tails behind the last tokens of texts, `ends_BL`, and in blocks behind answers that a message follows."""
        out = {name: array.copy() for name, array in batch.items()}
        segments_BL, scored_BL, length = batch["segments"], is_scored(batch), batch["tokens"].shape[1]
        ends_BL = ends_BL & (self.tail is not None)
        asks_BL = np.pad((is_message_start(batch["roles"]) & ~scored_BL)[:, 1:], ((0, 0), (0, 1)))
        edges_BL = scored_BL & ~_last_of_text(segments_BL) & asks_BL & (self.answers == "blocks")
        for b in np.flatnonzero((ends_BL | edges_BL).any(axis=1)).tolist():
            source, rank, begin, at = [], [], 0, 0  # of each new position: the old one, or -1; its place in a filling
            for i in np.flatnonzero(ends_BL[b] | edges_BL[b]).tolist():
                at += i + 1 - begin
                fill = -at % self.block if edges_BL[b, i] else self.tail.count(at, draws_BM[b, segments_BL[b, i]], length, self.block)
                source += [np.arange(begin, i + 1), np.full(max(fill, 0), -1)]
                rank += [np.zeros(i + 1 - begin, np.int64), np.arange(fill)]
                begin, at = i + 1, at + max(fill, 0)
            last = int(np.flatnonzero(segments_BL[b])[-1]) + 1
            source, rank = [*source, np.arange(begin, last)], [*rank, np.zeros(max(last - begin, 0), np.int64)]
            self._write(out, batch, b, np.concatenate(source)[:length], np.concatenate(rank)[:length])
        return out

    def _write(self, out: Batch, batch: Batch, b: int, source_N: Int[np.ndarray, "N"], rank_N: Int[np.ndarray, "N"]) -> None:
        """Row b with the old tokens at `source_N`, and filling where that is -1."""
        filled_N, count = source_N < 0, len(source_N)
        before_N = np.maximum.accumulate(source_N)  # a filling belongs to the text before it
        pads = self.tail.pads if self.tail is not None else 0
        fill_N = self.first_pad + rank_N % pads if pads else np.full(count, self.eos_id)
        segments_N = batch["segments"][b, before_N]
        first_N = np.maximum.accumulate(np.where(np.diff(segments_N, prepend=-1) != 0, np.arange(count), 0))
        values = {
            "tokens": np.where(filled_N, fill_N, batch["tokens"][b, before_N]),
            "segments": segments_N,
            "positions": np.where(segments_N > 0, np.arange(count) - first_N, 0),
            "roles": np.where(filled_N, _FILLED, batch["roles"][b, before_N]),
        }
        padding = {"tokens": self.pad_id, "segments": 0, "positions": 0, "roles": PADDING}
        for name, array_N in values.items():
            out[name][b, :count], out[name][b, count:] = array_N, padding[name]


def held_out_rows(batches: Iterator[Batch], corpus: Corpus, seed: int, attention: Any, tail: Tail | None) -> Iterator[Batch]:
    """Batches of held-out windows in which no answer is scored with a look at what follows it; without roles, as they are.

    attention: `Process.attention` of the process that is evaluated.  tail: as the run is trained, since a network that has only seen
    canvases with a tail says little of one without."""
    ids, block = corpus.tokenizer, attention.block_size
    answers = "blocks" if block else "all" if attention.causal else "one"
    view = SupervisedRows(seed, ids.eos_id, ids.pad_id, ids.vocab_size, tail=tail, answers=answers, block=block or 1)
    return (view(batch, batch["row"]) for batch in batches) if corpus.has_roles else batches


def with_tail(
    tokens_L: Int[np.ndarray, "L"], roles_L: UInt8[np.ndarray, "L"], tail: Tail | None, tokenizer: Any, **sizes: int
) -> tuple[Int[np.ndarray, "M"], UInt8[np.ndarray, "M"]]:
    """A text that ends with an answer, and its roles, with the tail that a run's rows of `length` tokens have behind it.

    tokenizer: of the text.  sizes: "length" of a row, "block" as in `SupervisedRows`, "number" of the text, which draws a random tail.
    """
    if tail is None or not carries_loss(roles_L)[-1:].any():
        return tokens_L, roles_L
    u = uniforms(make_keys(0, _ROWS, np.array([sizes["number"]])), _TAIL, 1)[0, 0]
    count = tail.count(len(tokens_L), u, sizes["length"], sizes["block"])
    fill_N = np.arange(max(min(count, sizes["length"] - len(tokens_L)), 0))
    ids_N = tokenizer.vocab_size + fill_N % tail.pads if tail.pads else np.full(len(fill_N), tokenizer.eos_id)
    return np.append(tokens_L, ids_N.astype(tokens_L.dtype)), np.append(roles_L, np.full(len(fill_N), _FILLED, np.uint8))


def pads_of(text: str) -> int:
    """The number of ids behind the tokenizer's that a text of `data.tail` uses."""
    tail = make_choice("tail", text)
    return 0 if tail is None else tail.pads


def is_scored(batch: Batch) -> Bool[np.ndarray, "B L"]:
    """Tokens that carry loss, the tail included."""
    return carries_loss(batch["roles"]) & (batch["segments"] > 0)


def _with_roles(batch: Batch) -> Batch:
    if "roles" in batch:
        return batch
    return {**batch, "roles": np.where(batch["segments"] > 0, np.uint8(ALL_SCORED), np.uint8(PADDING))}


def _conditioning(batch: Batch, condition_BL: Bool[np.ndarray, "B L"]) -> Batch:
    """The batch in which these tokens condition the others."""
    roles_BL = batch["roles"]
    return {**batch, "roles": np.where(condition_BL, (roles_BL & ~np.uint8(3)) | np.uint8(CONDITION), roles_BL).astype(np.uint8)}


def _last_of_text(segments_BL: Int[np.ndarray, "B L"]) -> Bool[np.ndarray, "B L"]:
    return (np.diff(segments_BL, axis=1, append=-1) != 0) & (segments_BL > 0)


def _first_of_text(segments_BL: Int[np.ndarray, "B L"]) -> Bool[np.ndarray, "B L"]:
    return np.diff(segments_BL, axis=1, prepend=-1) != 0


def supervised_rows(corpora: Sequence[Corpus], data: Any, seed: int, attentions: Sequence[Any], vocab: int) -> SupervisedRows | None:
    """The view of a run's rows; None where they are trained on as they are read.

    Args:
      data: the section of the config: `random_length`, `infill`, `tail`.
      attentions: `Process.attention` of each phase.  vocab: classes of the network.

    Raises InputError: a tail for corpora without roles, one to the end of blocks without blocks, or pads for which there are no ids.
    """
    infill, tail, has_roles = make_choice("infill", data.infill), make_choice("tail", data.tail), any(c.has_roles for c in corpora)
    if not (has_roles or infill or tail or data.random_length):
        return None
    sizes = [attention.block_size for attention in attentions if attention.block_size]
    if tail is not None and not has_roles:
        raise InputError(f"data.tail={data.tail} requires a corpus with answers (dlmjax prepare --format chat, prompt-answer or spans)")
    if isinstance(tail, ToBlock) and not sizes:
        raise InputError(f"data.tail={data.tail} requires a process in blocks; give random(most=64), row or none")
    tokenizer = corpora[0].tokenizer
    if tail is not None and vocab < tokenizer.vocab_size + tail.pads:
        raise InputError(
            f"data.tail={data.tail} requires {tail.pads} ids after the {tokenizer.vocab_size} of the tokenizer; "
            f"give --config.model.vocab={tokenizer.vocab_size + tail.pads} or more"
        )
    whole = any(not attention.sequential for attention in attentions)
    return SupervisedRows(
        seed=seed,
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        first_pad=tokenizer.vocab_size,
        random_length=data.random_length,
        infill=infill,
        tail=tail,
        answers="one" if whole else "blocks" if sizes else "all",
        block=int(np.lcm.reduce(sizes)) if sizes else 1,
        has_roles=has_roles,
    )
