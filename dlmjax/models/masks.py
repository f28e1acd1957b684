"""Attention masks as descriptions: each is one predicate on index arrays, from which every backend is derived.

`allowed(q, k)` is defined on positions of one row. `allowed_in_batch` also requires that both positions have the same segment number.
Padding is segment 0, so padding attends only to padding: no token attends to it, and every row of scores has an entry (a fully padded
row has finite values, which no loss reads).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dlmjax.diffusion.declarations import Attention
from dlmjax.errors import InputError

# numpy or jax integer arrays (or scalars) that broadcast against each other; the result is boolean, of their common shape.
Index = Any


@runtime_checkable
class Mask(Protocol):
    """Frozen and hashable."""

    def allowed(self, q: Index, k: Index) -> Index:
        """Whether the query at index q may see the key at index k; broadcasts, works on numpy and jax arrays."""


@dataclasses.dataclass(frozen=True)
class Full:
    """Every position attends to every position."""

    def allowed(self, q: Index, k: Index) -> Index:
        return (q >= 0) & (k >= 0)


@dataclasses.dataclass(frozen=True)
class Causal:
    """A position attends to itself and to earlier positions."""

    def allowed(self, q: Index, k: Index) -> Index:
        return q >= k


@dataclasses.dataclass(frozen=True, eq=False)
class Annealed:
    """Causal attention on its way to full: a later position is seen where `opened_LL` says so, an array that may be traced."""

    opened_LL: Bool[Array, "L L"]

    @classmethod
    def draw(cls, key: Key[Array, ""], length: int, share: Float[Array, ""]) -> Annealed:
        """Opens each pair with probability `share`, one draw for all rows (DiffuLLaMA 2410.17891): 0 is causal attention, 1 is full."""
        return cls(jax.random.uniform(key, (length, length)) < share)

    def allowed(self, q: Index, k: Index) -> Index:
        return (q >= k) | self.opened_LL[q, k]


@dataclasses.dataclass(frozen=True, eq=False)
class Spans:
    """Every position attends to the plan and to its own span (planned diffusion, 2510.18087): spans do not see each other, and the plan,
    which sees itself alone, carries nothing from one to another. span_L: number of each position's span, 0 = the plan; may be traced."""

    span_L: Index

    def allowed(self, q: Index, k: Index) -> Index:
        span_q, span_k = self.span_L[q], self.span_L[k]
        return (span_k == 0) | (span_q == span_k)


@dataclasses.dataclass(frozen=True)
class BlockCausal:
    """Bidirectional inside blocks of `size` positions, causal between them; the first `offset` positions are before all blocks."""

    size: int
    offset: int = 0

    def __post_init__(self) -> None:
        _positive(self.size)

    def allowed(self, q: Index, k: Index) -> Index:
        return (q - self.offset) // self.size >= (k - self.offset) // self.size


@dataclasses.dataclass(frozen=True)
class BlockDiffusion:
    """Training mask over [noisy ; clean], each of `length` positions, in blocks of `size` (BD3-LM 2503.09573, section 3.2).

    A noisy block attends to itself and to the clean blocks before it; a clean block to itself and to the clean blocks before it.
    Allowed entries are length * (length + size) of 4 length^2.
    """

    size: int
    length: int

    def __post_init__(self) -> None:
        _positive(self.size)

    def allowed(self, q: Index, k: Index) -> Index:
        clean_q, clean_k = q >= self.length, k >= self.length
        block_q, block_k = (q % self.length) // self.size, (k % self.length) // self.size
        own = (block_q == block_k) & (clean_q == clean_k)
        earlier = (block_q > block_k) & clean_k & ~clean_q
        context = (block_q >= block_k) & clean_k & clean_q
        return own | earlier | context


@dataclasses.dataclass(frozen=True)
class SeededBlocks:
    """Training mask over [noisy ; clean], each of `length` positions, in blocks of `size` whose first token is a seed.

    The clean stream is the text after a beginning of text, so its position p holds token p - 1, and it is causal. A noisy block attends to
    itself and to the clean tokens before it.
    """

    size: int
    length: int

    def __post_init__(self) -> None:
        _positive(self.size)

    def allowed(self, q: Index, k: Index) -> Index:
        clean_q, clean_k = q >= self.length, k >= self.length
        index_q, index_k = q % self.length, k % self.length
        own = (index_q // self.size == index_k // self.size) & ~clean_q & ~clean_k
        earlier = (index_k <= index_q // self.size * self.size) & clean_k & ~clean_q
        context = (index_q >= index_k) & clean_k & clean_q
        return own | earlier | context


@dataclasses.dataclass(frozen=True)
class Shadowed:
    """A mask over [shadow ; text], each of `length` positions: the text attends to itself, a shadow to itself and to all of the text but
    its own place (WINO 2507.18578). A shadow of masks predicts every token from the others in one pass; the states of these have read the
    token, though, so that only in a network of one layer the prediction does not depend on it."""

    length: int

    def allowed(self, q: Index, k: Index) -> Index:
        own = q % self.length == k % self.length
        text_q, text_k = q >= self.length, k >= self.length
        return (text_q & text_k) | (~text_q & (text_k ^ own))


@dataclasses.dataclass(frozen=True)
class Prefixed:
    """A mask with one more position at the start: all attend to it, and it attends only to itself, so it connects no documents."""

    mask: Mask

    def allowed(self, q: Index, k: Index) -> Index:
        return (k == 0) | ((q > 0) & self.mask.allowed(q - 1, k - 1))


@dataclasses.dataclass(frozen=True)
class Windowed:
    """A mask restricted to positions less than `size` away (Mistral 2310.06825).

    `period` > 0: the row is several streams of that many positions in sequence; the distance is taken within a stream.
    """

    mask: Mask
    size: int
    period: int = 0

    def allowed(self, q: Index, k: Index) -> Index:
        away = q % self.period - k % self.period if self.period else q - k
        return self.mask.allowed(q, k) & (away < self.size) & (away > -self.size)


# A board of 9 x 9 cells in a row of tokens: its cells row by row, then one token more (the sign before an answer, the end of document).
BOARD_CELLS, BOARD_PERIOD = 81, 82
BOARD_TABLE = 28  # vectors of rows, columns, boxes, and of a token that is no cell


def board_units(cell: Index) -> tuple[Index, Index, Index]:
    """Row, column and box of a cell of a board, each 0..8."""
    row, column = cell // 9, cell % 9
    return row, column, row // 3 * 3 + column // 3


def require_boards(length: int, what: str) -> None:
    """Raises InputError: rows of `length` tokens are not boards with one token after each. what: the option that requires them."""
    if length % BOARD_PERIOD:
        raise InputError(f"{what} requires rows of {BOARD_PERIOD} tokens, a board and one more, or a multiple of it, not {length}")


@dataclasses.dataclass(frozen=True)
class Peers:
    """A mask restricted to cells of a board that share a row, a column or a box; tokens that are no cells see all and are seen by all.

    It tells the network which cells the rules of Sudoku compare.
    """

    mask: Mask

    def allowed(self, q: Index, k: Index) -> Index:
        cell_q, cell_k = q % BOARD_PERIOD, k % BOARD_PERIOD
        shared = (cell_q == BOARD_CELLS) | (cell_k == BOARD_CELLS)
        for unit_q, unit_k in zip(board_units(cell_q), board_units(cell_k), strict=True):
            shared = shared | (unit_q == unit_k)
        return self.mask.allowed(q, k) & shared


def within(mask: Mask, window: int, peers: bool = False) -> Mask:
    """The mask of a network whose positions attend within a `window` of the row (0: all of it), and to `peers` on a board alone."""
    mask = Peers(mask) if peers else mask
    return Windowed(mask, window, mask.length if isinstance(mask, BlockDiffusion) else 0) if window else mask


def is_data(mask: Mask) -> bool:
    """Whether a mask holds an array, so that which pairs it allows is not known before the program runs."""
    while hasattr(mask, "mask"):
        mask = mask.mask
    return isinstance(mask, Annealed | Spans)


# Segment of a position that every segment attends to.
EVERYWHERE = -1


def as_mask(attention: str | Attention | Mask, length: int) -> Mask:
    """The mask of "full", "causal" or a process's attention in rows of `length`; a mask is returned unchanged."""
    if isinstance(attention, str):
        if attention not in ("full", "causal"):
            raise InputError(f"attention {attention!r} is unknown; choose full or causal, or pass a mask description")
        attention = Attention(causal=attention == "causal")
    if not isinstance(attention, Attention):
        return attention
    size = attention.block_size
    if attention.context_size is not None:
        return BlockCausal(attention.context_size)
    if size is None:
        return Causal() if attention.causal else Full()
    if length % size:
        raise InputError(f"data.length={length} is not a multiple of the block size {size}; change one of them")
    return (SeededBlocks if attention.seeded else BlockDiffusion)(size, length)


def allowed_in_batch(mask: Mask, segments_BL: Int[Array, "B L"]) -> Bool[Array, "B L L"]:
    """The dense mask, [b, q, k]: the predicate and equal segments."""
    index_L = jnp.arange(segments_BL.shape[1])
    q_BL1, k_B1L = segments_BL[:, :, None], segments_BL[:, None, :]
    same_BLL = (q_BL1 == k_B1L) | (k_B1L == EVERYWHERE)
    return mask.allowed(index_L[:, None], index_L[None, :])[None] & same_BLL


def _positive(size: int) -> None:
    if size < 1:
        raise InputError(f"block size {size} is not positive; give at least 1 position per block")
