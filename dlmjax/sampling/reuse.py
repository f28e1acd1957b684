"""Which positions of a row a network reads at a call; the keys and values of the others are reused from an earlier call.

A canvas is filled block by block, from left to right, and the network reads the whole row at the first call of each block (a refresh). At
the other calls it reads the positions that the policy names, and attends to the keys and values that earlier calls left of the rest. Where
tokens have changed since, these are not what a new pass would give: a policy is exact only under an attention mask that hides the change,
else it is an approximation, whose size `quality.drift` measures.

    prompt          all but the prompt, which is read once (LaViDa 2505.16839)
    prefix          the block and all behind it (Fast-dLLM 2505.22618)
    dual            the block alone (Fast-dLLM 2505.22618; `every` as dInfer's cache_update_freq)
    window          the block with a margin on each side (dInfer 2510.08666)
    delayed         masked positions and the tokens that the last call revealed: a token is kept one call after it (dKV-Cache 2505.15781)
    delayed_greedy  what this call reveals, what the last one revealed, and the masked positions nearest to the former (the same, Greedy)

Published sizes: blocks of 32, `window` 16 on the left, `delayed` every 8 calls (LLaDA) or 16 (Dream), `delayed_greedy` every 2, 4 beside.

Shapes: B rows, L positions of a row, W positions that a call reads.
"""

import dataclasses
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int

from dlmjax.choices import text_of
from dlmjax.errors import InputError
from dlmjax.flags import MOST_TOKENS
from dlmjax.sampling.by_name import build


class Row(NamedTuple):
    """What a policy chooses from, on the host.  start, stop: the block.  prompt_B: tokens of each row before the first generated one.

    masked_BL, changed_BL: positions that hold the mask, and those whose token is not the one that was read last; None where the policy
    does not look at them.  next_BL: masked positions that this call reveals; None where no policy asks.
    """

    start: int
    stop: int
    prompt_B: Int[np.ndarray, "B"]
    length: int
    masked_BL: Bool[np.ndarray, "B L"] | None = None
    changed_BL: Bool[np.ndarray, "B L"] | None = None
    next_BL: Bool[np.ndarray, "B L"] | None = None

    @property
    def index_L(self) -> np.ndarray:
        """Index of each position."""
        return np.arange(self.length)


@runtime_checkable
class Reuse(Protocol):
    """A policy, a frozen dataclass; `make_reuse` makes it from a text such as "dual(block=32, every=8)".

    block: tokens of a block; 0 = the whole canvas is one.  every: calls of a block from one refresh to the next; 0 = the first alone.
    by_state: whether `reads` looks at masked and changed positions, which the host then fetches before each call.
    by_order: whether it looks at what the call reveals, which the rule must know before the call. Then masked positions that are not read
      keep the output of the last call that read them.
    """

    block: int = 0
    every: int = 0
    by_state = False
    by_order = False

    def __post_init__(self):
        if not (0 <= self.block <= MOST_TOKENS and 0 <= self.every <= MOST_TOKENS):
            raise InputError(
                f"cache {type(self).__name__.lower()}: block is {self.block} and every {self.every}; each must be 0 to {MOST_TOKENS}"
            )

    def refreshes(self, call: int) -> bool:
        """Whether call number `call` of a block, from 0, reads the whole row."""
        return call == 0 or (self.every > 0 and call % self.every == 0)

    def reads(self, row: Row) -> Bool[np.ndarray, "B L"]:
        """The positions that a call between two refreshes reads; masked positions of the block that it reveals are among them."""
        ...

    def exact(self, context_size: int | None) -> bool:
        """Whether the text is that of reading everything, for any prompt. context_size: tokens of a block of a block-causal mask; None =
        a position attends to the whole row."""
        return self.every == 1


def _by_blocks(reuse: Reuse, context_size: int | None) -> bool:
    """Whether all that a call does not read is final, or not attended to, at the first call of a block."""
    return reuse.every == 1 or (context_size is not None and reuse.block % context_size == 0 and reuse.block > 0)


def _same_in_all(reads_L: np.ndarray, row: Row) -> np.ndarray:
    return np.broadcast_to(reads_L, (len(row.prompt_B), row.length))


@dataclasses.dataclass(frozen=True)
class Prompt(Reuse):
    """All but the prompt. Exact where no position of the prompt attends to one behind it."""

    every: int = 0
    block: int = 0

    def reads(self, row: Row) -> np.ndarray:
        return row.index_L >= row.prompt_B[:, None]


@dataclasses.dataclass(frozen=True)
class Prefix(Reuse):
    """The block and all behind it."""

    block: int = 32
    every: int = 0

    def reads(self, row: Row) -> np.ndarray:
        return _same_in_all(row.index_L >= row.start, row)

    def exact(self, context_size: int | None) -> bool:
        return _by_blocks(self, context_size)


@dataclasses.dataclass(frozen=True)
class Dual(Reuse):
    """The block alone."""

    block: int = 32
    every: int = 0

    def reads(self, row: Row) -> np.ndarray:
        return _same_in_all((row.index_L >= row.start) & (row.index_L < row.stop), row)

    def exact(self, context_size: int | None) -> bool:
        return _by_blocks(self, context_size)


@dataclasses.dataclass(frozen=True)
class Window(Reuse):
    """The block, `left` positions before and `right` behind it.  warmup: calls of each block that read the whole row, at least 1."""

    block: int = 32
    left: int = 16
    right: int = 16
    warmup: int = 1
    every: int = 0

    def __post_init__(self):
        super().__post_init__()
        if not (0 <= self.left <= MOST_TOKENS and 0 <= self.right <= MOST_TOKENS and 1 <= self.warmup <= MOST_TOKENS):
            raise InputError(
                f"cache window: left ({self.left}) and right ({self.right}) must be 0 to {MOST_TOKENS}, warmup ({self.warmup}) at least 1"
            )

    def refreshes(self, call: int) -> bool:
        return call < self.warmup or super().refreshes(call)

    def reads(self, row: Row) -> np.ndarray:
        return _same_in_all((row.index_L >= row.start - self.left) & (row.index_L < row.stop + self.right), row)

    def exact(self, context_size: int | None) -> bool:
        return _by_blocks(self, context_size)


@dataclasses.dataclass(frozen=True)
class Delayed(Reuse):
    """Masked positions of the whole row, and tokens that have changed since they were read: those that the last call revealed."""

    every: int = 8
    block: int = 0

    by_state = True

    def reads(self, row: Row) -> np.ndarray:
        return row.masked_BL | row.changed_BL


@dataclasses.dataclass(frozen=True)
class DelayedGreedy(Reuse):
    """What the call reveals, tokens that have changed since they were read, and the `window` masked positions nearest to the former."""

    every: int = 2
    window: int = 4
    block: int = 0

    by_state = True
    by_order = True

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.window <= MOST_TOKENS:
            raise InputError(f"cache delayed_greedy: window is {self.window}; it must be 0 to {MOST_TOKENS} positions")

    def reads(self, row: Row) -> np.ndarray:
        others_BL = row.masked_BL & ~row.next_BL
        distance_BL = np.where(others_BL, _distance_to(row.next_BL), row.length)
        rank_BL = np.argsort(np.argsort(distance_BL, axis=1, kind="stable"), axis=1)
        beside_BL = others_BL & (rank_BL < self.window) & row.next_BL.any(axis=1, keepdims=True)
        return row.next_BL | row.changed_BL | beside_BL


def _distance_to(these_BL: Bool[np.ndarray, "B L"]) -> Int[np.ndarray, "B L"]:
    """The distance of each position to the nearest of these, in positions; more than the length where there is none."""
    length = these_BL.shape[1]
    index_L = np.arange(length)
    before_BL = np.maximum.accumulate(np.where(these_BL, index_L, -2 * length), axis=1)
    after_BL = np.minimum.accumulate(np.where(these_BL, index_L, 3 * length)[:, ::-1], axis=1)[:, ::-1]
    return np.minimum(index_L - before_BL, after_BL - index_L)


REUSES: dict[str, type] = {
    "prompt": Prompt,
    "prefix": Prefix,
    "dual": Dual,
    "window": Window,
    "delayed": Delayed,
    "delayed_greedy": DelayedGreedy,
}


def make_reuse(text: str) -> Reuse:
    """The policy of a name, with its values written as a call: "prompt", "window(block=16, left=8)"."""
    return build("cache", text, REUSES)


def reuse_text(reuse: Reuse) -> str:
    """The text that `make_reuse` reads as this policy."""
    name = next(name for name, make in REUSES.items() if type(reuse) is make)
    return text_of(name, dataclasses.asdict(reuse))


def index_of(reads_BL: Bool[np.ndarray, "B L"]) -> Int[np.ndarray, "B W"]:
    """The indices of each row's positions, then L for none: W is one of `width_of`, so that few programs are compiled."""
    length = reads_BL.shape[1]
    width = width_of(int(reads_BL.sum(axis=1).max(initial=1)), length)
    first_BL = np.argsort(~reads_BL, axis=1, kind="stable")
    return np.where(np.take_along_axis(reads_BL, first_BL, axis=1), first_BL, length)[:, :width].astype(np.int32)


def width_of(count: int, length: int) -> int:
    """The least of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... and `length` that is not below `count`."""
    power = 1 << max(count - 1, 0).bit_length()
    between = power * 3 // 4
    return min(length, between if power >= 4 and count <= between else power)
