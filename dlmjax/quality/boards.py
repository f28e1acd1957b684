"""Sudoku puzzles from a seed: solved boards, clues that are solved by elementary steps, and the split of a board.

A clue is what is left where cells are taken out of a solved board in random order, as long as naked and hidden singles still solve it (a
cell with one candidate; a digit with one cell in a row, column or box). So its solution is unique, and no cell can be left out. Such clues
have about 24 to 27 cells and are easy for a person; the hard ones of puzzle collections are not among them.

Boards that are symmetric images of one another (`data.symmetries`) have the same `signature`, and its hash decides on the split: no image
of a test board is trained on.

Shapes: N boards, C = 81 cells, U = 27 units (9 rows, 9 columns, 9 boxes), 9 cells of a unit. Digits are bits 1 << 0 .. 1 << 8; 0: empty.
"""

import hashlib
import itertools
from collections.abc import Iterable

import numpy as np
from jaxtyping import Int

_CELLS = np.arange(81).reshape(9, 9)
_BOXES = _CELLS.reshape(3, 3, 3, 3).swapaxes(1, 2).reshape(9, 9)
UNITS_U9 = np.concatenate([_CELLS, _CELLS.T, _BOXES])
_UNITS_OF_C3 = np.stack([np.flatnonzero((cell == UNITS_U9).any(1)) for cell in range(81)])
_ALL = 0x1FF


def solved_board(rng: np.random.Generator) -> Int[np.ndarray, "81"]:
    """A solved board of digits 1 to 9, by search in random order."""
    cells = [0] * 81
    free = [_ALL] * 27  # digits that a unit still lacks
    units = _UNITS_OF_C3.tolist()

    def search(empty: list[int]) -> bool:
        """Fills the empty cells, the one with the fewest candidates first."""
        if not empty:
            return True
        candidates = [(free[units[c][0]] & free[units[c][1]] & free[units[c][2]]).bit_count() for c in empty]
        cell = empty[candidates.index(min(candidates))]
        left = [c for c in empty if c != cell]
        open_digits = free[units[cell][0]] & free[units[cell][1]] & free[units[cell][2]]
        for digit in rng.permutation(9).tolist():
            bit = 1 << digit
            if open_digits & bit:
                cells[cell] = digit + 1
                for unit in units[cell]:
                    free[unit] ^= bit
                if search(left):
                    return True
                for unit in units[cell]:
                    free[unit] ^= bit
        return False

    search(list(range(81)))
    return np.array(cells)


def singles(clues_NC: Int[np.ndarray, "N C"]) -> Int[np.ndarray, "N C"]:
    """Boards of digits (0: empty) filled by naked and hidden singles as far as these go."""
    shown_NC = np.where(clues_NC > 0, 1 << np.maximum(clues_NC - 1, 0), 0).astype(np.uint16)
    going_N = np.arange(len(shown_NC))
    while len(going_N):
        new_NC = shown_NC[going_N] | _step(shown_NC[going_N])
        moved_N = (new_NC != shown_NC[going_N]).any(1)
        shown_NC[going_N] = new_NC
        going_N = going_N[moved_N]
    digit_of = np.zeros(_ALL + 1, np.int64)
    digit_of[1 << np.arange(9)] = np.arange(1, 10)
    return digit_of[np.where(np.isin(shown_NC, 1 << np.arange(9)), shown_NC, 0)]


def _step(shown_NC: np.ndarray) -> np.ndarray:
    """The digits of the empty cells that are singles, as bits; two singles of a cell (of no puzzle with a solution) stay two bits."""
    used_NU = np.bitwise_or.reduce(shown_NC[:, UNITS_U9], axis=2)
    used_NC = np.bitwise_or.reduce(used_NU[:, _UNITS_OF_C3], axis=2)
    open_NC = np.where(shown_NC == 0, ~used_NC & _ALL, 0).astype(np.uint16)
    once_NU, more_NU = np.zeros_like(used_NU), np.zeros_like(used_NU)
    for index in range(9):
        here_NU = open_NC[:, UNITS_U9[:, index]]
        more_NU |= once_NU & here_NU
        once_NU |= here_NU
    hidden_NC = open_NC & np.bitwise_or.reduce((once_NU & ~more_NU)[:, _UNITS_OF_C3], axis=2)
    naked_NC = np.where(open_NC & (open_NC - np.uint16(1)), 0, open_NC)
    return np.where(hidden_NC, hidden_NC, naked_NC).astype(np.uint16)


def clues(boards_NC: Int[np.ndarray, "N C"], rng: np.random.Generator) -> Int[np.ndarray, "N C"]:
    """A clue of each solved board, 0 where a cell is empty."""
    clues_NC = boards_NC.copy()
    order_NC = rng.permuted(np.tile(np.arange(81), (len(boards_NC), 1)), axis=1)
    row_N = np.arange(len(boards_NC))
    for index in range(81):
        fewer_NC = clues_NC.copy()
        fewer_NC[row_N, order_NC[:, index]] = 0
        keeps_N = (singles(fewer_NC) == boards_NC).all(1)
        clues_NC[keeps_N] = fewer_NC[keeps_N]
    return clues_NC


def signature(board_C: Int[np.ndarray, "81"]) -> str:
    """A text that is equal for all symmetric images of a board, and seldom for others.

    Two lines (rows, or columns) of a board are a permutation of the digits; the lengths of its cycles do not depend on names or on the
    order of cells. Pairs within a band and across each two bands are sorted within, then the bands, then rows and columns.
    """
    board_99 = np.asarray(board_C).reshape(9, 9) - 1
    halves = []
    for lines in (board_99, board_99.T):
        types = {pair: _cycles(lines[pair[0]], lines[pair[1]]) for pair in itertools.combinations(range(9), 2)}
        bands = [sorted(types[pair] for pair in itertools.combinations(range(3 * band, 3 * band + 3), 2)) for band in range(3)]
        across = [
            sorted(types[a, b] for a in range(3 * p, 3 * p + 3) for b in range(3 * q, 3 * q + 3)) for p, q in ((0, 1), (0, 2), (1, 2))
        ]
        halves.append(repr((sorted(bands), sorted(across))))
    return "|".join(sorted(halves))


def _cycles(first_9: np.ndarray, second_9: np.ndarray) -> tuple[int, ...]:
    """Lengths of the cycles of the permutation that sends each digit of a line to the one beside it in another line, sorted."""
    image, left, lengths = dict(zip(first_9.tolist(), second_9.tolist(), strict=True)), set(range(9)), []
    while left:
        digit, length = left.pop(), 1
        while (digit := image[digit]) in left:
            left.remove(digit)
            length += 1
        lengths.append(length)
    return tuple(sorted(lengths))


def split_number(board_C: Int[np.ndarray, "81"]) -> int:
    """A number from 0 to 9 that is equal for all symmetric images of a board; it decides on the split."""
    return hashlib.sha256(signature(board_C).encode()).digest()[0] % 10


def shared_boards(boards: Iterable[np.ndarray], others: Iterable[np.ndarray]) -> int:
    """How many of the boards have the signature of one of the others: an upper bound on those that are images of one of these."""
    known = {signature(board_C) for board_C in others}
    return sum(signature(board_C) in known for board_C in boards)
