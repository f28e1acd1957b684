"""A regular expression as a deterministic automaton over bytes, and over the tokens of a tokenizer.

The syntax is Python's `re` (parsed by it): literals, classes, `.`, groups, alternation, repetition. The pattern is that of the whole text,
as for `re.fullmatch`. Characters are their UTF-8 bytes. Assertions (start, end, word boundary, lookaround), references to groups and flags
are refused: an automaton over bytes does not have them. States are bounded, since a pattern of a few characters may have a million.

Thompson's construction, then subsets; states from which no accepting state is reached are dropped.

Shapes: Q states, C classes of tokens that all states treat alike, V vocabulary.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from dlmjax.errors import InputError

# `re` has no public parser. These two modules have had their present form since Python 3.11, and a test holds each construct.
from re import _constants as codes, _parser  # type: ignore[attr-defined]  # isort: skip

MOST_STATES = 2048  # of the automaton of bytes
MOST_PIECES = 20_000  # of the construction before it
MOST_PATTERN = 10_000  # characters
LAST_CHARACTER = 0x10FFFF
SURROGATES = (0xD800, 0xDFFF)
# Characters of \d, \w and \s: those of ASCII, as with re.ASCII.
CATEGORIES = {
    codes.CATEGORY_DIGIT: ((48, 57),),
    codes.CATEGORY_WORD: ((48, 57), (65, 90), (95, 95), (97, 122)),
    codes.CATEGORY_SPACE: ((9, 13), (32, 32)),
}
OPPOSITES = {
    codes.CATEGORY_NOT_DIGIT: codes.CATEGORY_DIGIT,
    codes.CATEGORY_NOT_WORD: codes.CATEGORY_WORD,
    codes.CATEGORY_NOT_SPACE: codes.CATEGORY_SPACE,
}

Ranges = Sequence[tuple[int, int]]


@dataclasses.dataclass(frozen=True, eq=False)
class ByteAutomaton:
    """next_QB: the state after a byte, -1 where no text of the language goes on so.  accepts_Q.  State 0 is the first."""

    pattern: str
    next_QB: Int[np.ndarray, "Q 256"]
    accepts_Q: Bool[np.ndarray, "Q"]


@dataclasses.dataclass(frozen=True, eq=False)
class TokenAutomaton:
    """The same over token ids: class_V is the class of a token, next_QC the state after a token of a class, -1 where none is.

    The last state is that after an end of document: it accepts, and only further ends follow.
    """

    pattern: str
    class_V: Int[np.ndarray, "V"]
    next_QC: Int[np.ndarray, "Q C"]
    accepts_Q: Bool[np.ndarray, "Q"]


@functools.lru_cache(maxsize=32)
def byte_automaton(pattern: str) -> ByteAutomaton:
    """The automaton of a pattern. Raises InputError: not a pattern, a construct that it cannot have, too many states."""
    if len(pattern) > MOST_PATTERN:
        raise InputError(f"regex has {len(pattern)} characters; give at most {MOST_PATTERN}")
    try:
        parsed = _parser.parse(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(f"regex {pattern!r:.100} is not a regular expression: {error}") from None
    if parsed.state.flags & ~re.UNICODE.value:
        raise InputError(f"regex {pattern!r:.100} sets flags, which are not provided; leave them out")
    builder = _Builder(pattern)
    end = builder.add()
    start = builder.sequence(parsed, end)
    return _deterministic(pattern, builder, start, end)


def token_automaton(automaton: ByteAutomaton, token_bytes: Sequence[bytes], eos_id: int | None, vocab: int) -> TokenAutomaton:
    """The automaton over the ids of a vocabulary: a token goes where its bytes go one by one; ids without bytes go nowhere."""
    states = len(automaton.accepts_Q)
    next_QV = np.full((states + 1, vocab), -1, np.int32)
    # A state more, -1, from which every byte leads to itself.
    table = np.concatenate([automaton.next_QB, np.full((1, 256), -1, np.int32)])
    for token, piece in enumerate(token_bytes[:vocab]):
        if piece:
            reached_Q = np.arange(states)
            for byte in piece:
                reached_Q = table[reached_Q, byte]
            next_QV[:states, token] = reached_Q
    if eos_id is not None and eos_id < vocab:
        next_QV[:, eos_id] = np.where(np.append(automaton.accepts_Q, True), states, -1)
    columns, class_V = np.unique(next_QV, axis=1, return_inverse=True)
    accepts_Q = np.append(automaton.accepts_Q, True)
    return TokenAutomaton(automaton.pattern, class_V.reshape(-1).astype(np.int32), np.ascontiguousarray(columns, np.int32), accepts_Q)


def require_text(automaton: TokenAutomaton, tokens_BL: np.ndarray, free_BL: np.ndarray, suppressed_ids: Iterable[int] = ()) -> None:
    """Raises InputError: no text of the language has this length and these tokens outside of `free_BL`."""
    possible_C = np.zeros(automaton.next_QC.shape[1], bool)
    possible_C[np.delete(automaton.class_V, sorted(suppressed_ids))] = True
    for row, (tokens_L, free_L) in enumerate(zip(tokens_BL, free_BL, strict=True)):
        reached_Q = np.zeros(len(automaton.accepts_Q), bool)
        reached_Q[0] = True
        for token, free in zip(tokens_L, free_L, strict=True):
            columns = np.flatnonzero(possible_C) if free else [automaton.class_V[token]]
            targets = automaton.next_QC[reached_Q][:, columns]
            reached_Q = np.zeros_like(reached_Q)
            reached_Q[targets[targets >= 0]] = True
        if not (reached_Q & automaton.accepts_Q).any():
            fixed = f" with the tokens that row {row} of the canvas gives" if (~free_L).any() else ""
            raise InputError(
                f"regex {automaton.pattern!r:.100} is matched by no text of {len(tokens_L)} tokens{fixed}; change the length or the pattern"
            )


class _Builder:
    """Thompson's construction from the end: each state has bytes that lead on, or free moves."""

    def __init__(self, pattern: str):
        self._pattern = pattern
        self.free: list[list[int]] = []
        self.moves: list[list[tuple[int, int, int]]] = []  # (first byte, last byte, state)

    def add(self) -> int:
        if len(self.free) >= MOST_PIECES:
            raise InputError(f"regex {self._pattern!r:.100} is too large: more than {MOST_PIECES} pieces; shorten its repetitions")
        self.free.append([])
        self.moves.append([])
        return len(self.free) - 1

    def sequence(self, items: Any, end: int) -> int:
        """The state from which `items` lead to `end`."""
        for item in reversed(list(items)):
            end = self.item(*item, end)
        return end

    def item(self, code, value, end: int) -> int:
        """The state from which one construct of `re`'s parser leads to `end`."""
        if code in (codes.LITERAL, codes.NOT_LITERAL, codes.ANY, codes.IN):
            return self.characters(_ranges_of(code, value, self._pattern), end)
        if code is codes.SUBPATTERN:
            _, added, removed, items = value
            if not (added or removed):
                return self.sequence(items, end)
        if code is codes.BRANCH:
            return self.either([self.sequence(items, end) for items in value[1]])
        if code in (codes.MAX_REPEAT, codes.MIN_REPEAT):
            return self.repeated(*value, end)
        name = str(code).lower().replace("_", " ")
        raise InputError(f"regex {self._pattern!r:.100} has a construct that an automaton does not provide ({name}); leave it out")

    def either(self, states: Sequence[int]) -> int:
        state = self.add()
        self.free[state] = list(states)
        return state

    def repeated(self, least: int, most: int, items, end: int) -> int:
        if most == codes.MAXREPEAT:
            loop = self.add()
            self.free[loop] = [end, self.sequence(items, loop)]
            end = loop
        else:
            last = end
            for _ in range(most - least):
                end = self.either([last, self.sequence(items, end)])
        for _ in range(least):
            end = self.sequence(items, end)
        return end

    def characters(self, ranges: Ranges, end: int) -> int:
        """One character of the ranges, as UTF-8 bytes."""
        starts = []
        for steps in (steps for low, high in ranges for steps in _utf8_ranges(low, high)):
            state = end
            for low, high in reversed(steps):
                before = self.add()
                self.moves[before].append((low, high, state))
                state = before
            starts.append(state)
        return self.either(starts)


def _ranges_of(code, value, pattern: str) -> Ranges:
    """The characters of a literal, of `.` or of a class."""
    if code is codes.LITERAL:
        return [(value, value)]
    if code is codes.NOT_LITERAL:
        return _others([(value, value)])
    if code is codes.ANY:
        return _others([(10, 10)])
    found: list[tuple[int, int]] = []
    negated = False
    for kind, inner in value:
        if kind is codes.NEGATE:
            negated = True
        elif kind is codes.LITERAL:
            found.append((inner, inner))
        elif kind is codes.RANGE:
            found.append(inner)
        elif inner in CATEGORIES:
            found.extend(CATEGORIES[inner])
        elif inner in OPPOSITES:
            found.extend(_others(CATEGORIES[OPPOSITES[inner]]))
        else:
            raise InputError(f"regex {pattern!r:.100} has a class that an automaton does not provide; leave it out")
    return _others(found) if negated else found


def _others(ranges: Ranges) -> Ranges:
    """All characters outside of the ranges."""
    found, start = [], 0
    for low, high in sorted(ranges):
        if low > start:
            found.append((start, low - 1))
        start = max(start, high + 1)
    return [*found, (start, LAST_CHARACTER)] if start <= LAST_CHARACTER else found


def _utf8_ranges(low: int, high: int) -> Iterable[list[tuple[int, int]]]:
    """The UTF-8 forms of the characters `low` to `high`: sequences of byte ranges whose product is a part of them. Surrogates have none."""
    for first, last in ((0, 0x7F), (0x80, 0x7FF), (0x800, SURROGATES[0] - 1), (SURROGATES[1] + 1, 0xFFFF), (0x10000, LAST_CHARACTER)):
        if max(low, first) <= min(high, last):
            yield from _same_length(list(chr(max(low, first)).encode()), list(chr(min(high, last)).encode()))


def _same_length(low: list[int], high: list[int]) -> Iterable[list[tuple[int, int]]]:
    """The byte strings from `low` to `high` of one length, whose further bytes are 0x80 to 0xBF, as products of ranges."""
    if len(low) == 1:
        yield [(low[0], high[0])]
        return
    floor, ceiling = [0x80] * (len(low) - 1), [0xBF] * (len(low) - 1)
    if low[0] == high[0]:
        yield from ([(low[0], low[0]), *rest] for rest in _same_length(low[1:], high[1:]))
        return
    start, stop = low[0], high[0]
    if low[1:] != floor:
        yield from ([(start, start), *rest] for rest in _same_length(low[1:], ceiling))
        start += 1
    whole_last = high[1:] == ceiling
    if start <= stop - (not whole_last):
        yield [(start, stop - (not whole_last)), *[(0x80, 0xBF)] * len(floor)]
    if not whole_last:
        yield from ([(stop, stop), *rest] for rest in _same_length(floor, high[1:]))


def _deterministic(pattern: str, builder: _Builder, start: int, end: int) -> ByteAutomaton:
    """The automaton of subsets, without states from which no accepting one is reached."""

    def closed(states: Iterable[int]) -> frozenset[int]:
        seen, left = set(), list(states)
        while left:
            if (state := left.pop()) not in seen:
                seen.add(state)
                left.extend(builder.free[state])
        return frozenset(state for state in seen if builder.moves[state] or state == end)

    numbers = {closed([start]): 0}
    rows: list[np.ndarray] = []
    for subset in (queue := list(numbers)):
        row_B = np.full(256, -1, np.int32)
        moves = [move for state in subset for move in builder.moves[state]]
        edges = sorted({low for low, _, _ in moves} | {high + 1 for _, high, _ in moves})
        for low, above in zip(edges, edges[1:], strict=False):
            if reached := closed([state for first, last, state in moves if first <= low <= last]):
                if reached not in numbers:
                    if len(numbers) >= MOST_STATES:
                        raise InputError(f"regex {pattern!r:.100} has more than {MOST_STATES} states; shorten its repetitions")
                    numbers[reached] = len(numbers)
                    queue.append(reached)
                row_B[low:above] = numbers[reached]
        rows.append(row_B)
    next_QB, accepts_Q = np.stack(rows), np.array([end in subset for subset in numbers])
    alive_Q = accepts_Q.copy()
    while True:
        wider_Q = alive_Q | (alive_Q[np.maximum(next_QB, 0)] & (next_QB >= 0)).any(axis=1)
        if (wider_Q == alive_Q).all():
            break
        alive_Q = wider_Q
    next_QB = np.where((next_QB >= 0) & alive_Q[np.maximum(next_QB, 0)], next_QB, -1)
    return ByteAutomaton(pattern, next_QB.astype(np.int32), accepts_Q)
