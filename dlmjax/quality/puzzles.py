"""Puzzles as lines of text, `clue=answer`, with checkers of their rules.

    sudoku       clue: 81 digits, row by row, 0 for an empty cell; answer: 81 digits that obey the rules and keep the clue
    countdown    "003,005,012:041=003*012=036,005+036=041": every number is used exactly once, every result but the last, which is the
                 target, in a later equation; all are whole numbers from 0 to 999, written with three digits

All lines of a kind have the same length, so that a position always holds the same cell and a clue is a prompt of fixed length.
Any answer that obeys the rules solves a puzzle. The answer in the file only serves to compute the correct share of a wrong answer.

Countdown is that of Gandhi et al. (2404.03683); Ye et al. (2410.14157) train diffusion on Countdown and Sudoku. Their digits, difficulty
and splits differ, so the results are not comparable.
"""

import csv
import dataclasses
import gzip
import hashlib
import lzma
import pathlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np

from dlmjax.errors import InputError
from dlmjax.quality import boards

SPLITS = ("train", "valid", "test")


@runtime_checkable
class Kind(Protocol):
    """A kind of puzzle, as functions of text."""

    name: str

    def reads(self, clue: str, answer: str) -> bool:
        """Whether clue and answer have the format of the kind."""
        ...

    def solves(self, clue: str, answer: str) -> bool:
        """Whether the answer obeys all rules."""
        ...

    def partly(self, clue: str, answer: str, reference: str) -> float:
        """Share of the answer that is correct, in [0, 1]; reported beside the score."""
        ...


@dataclasses.dataclass(frozen=True)
class Puzzle:
    """One line of a puzzle file."""

    clue: str
    answer: str

    @property
    def line(self) -> str:
        return f"{self.clue}={self.answer}"

    @property
    def record(self) -> dict[str, str]:
        """The puzzle as supervised data, `dlmjax prepare --format prompt-answer --separator =`: the clue is given, the answer is scored."""
        return {"prompt": self.clue, "answer": self.answer}

    @property
    def board_record(self) -> dict[str, Any]:
        """A Sudoku as supervised data, `dlmjax prepare --format spans`: the cells of the clue are given in the board, the others scored."""
        return {"text": self.answer, "spans": [found.span() for found in re.finditer("0+", self.clue)]}


@dataclasses.dataclass(frozen=True)
class Sudoku:
    """Sudoku of 9 x 9 cells."""

    name = "sudoku"

    def reads(self, clue: str, answer: str) -> bool:
        return bool(re.fullmatch(r"[0-9]{81}", clue)) and bool(re.fullmatch(r"[1-9]{81}", answer))

    def solves(self, clue: str, answer: str) -> bool:
        if not self.reads(clue, answer):
            return False
        if any(clue_cell not in ("0", cell) for clue_cell, cell in zip(clue, answer, strict=True)):
            return False
        board = np.array([int(cell) for cell in answer]).reshape(9, 9)
        boxes = board.reshape(3, 3, 3, 3).swapaxes(1, 2).reshape(9, 9)
        return all((np.sort(part, axis=1) == np.arange(1, 10)).all() for part in (board, board.T, boxes))

    def partly(self, clue: str, answer: str, reference: str) -> float:
        """Share of the empty cells that are correct."""
        empty = [i for i, cell in enumerate(clue) if cell == "0"]
        return sum(answer[i : i + 1] == reference[i] for i in empty) / max(len(empty), 1)


_CLUE = re.compile(r"[0-9]{3}(,[0-9]{3})*:[0-9]{3}")
_EQUATION = re.compile(r"([0-9]{3})([-+*/])([0-9]{3})=([0-9]{3})")
LARGEST = 999


@dataclasses.dataclass(frozen=True)
class Countdown:
    """Countdown: numbers that are combined by + - * / into a target."""

    name = "countdown"

    def reads(self, clue: str, answer: str) -> bool:
        return bool(_CLUE.fullmatch(clue)) and all(_EQUATION.fullmatch(part) for part in answer.split(","))

    def solves(self, clue: str, answer: str) -> bool:
        if not self.reads(clue, answer):
            return False
        numbers, target = self._clue(clue)
        pool, equations = Counter(numbers), answer.split(",")
        if len(equations) != len(numbers) - 1:
            return False
        return all(_use(pool, equation) for equation in equations) and pool == Counter([target])

    def partly(self, clue: str, answer: str, reference: str) -> float:
        """Share of the equations before the first one that is false or uses a number that is not available."""
        pool, right, equations = Counter(self._clue(clue)[0]), 0, answer.split(",")
        for equation in equations:
            if not _EQUATION.fullmatch(equation) or not _use(pool, equation):
                break
            right += 1
        return min(1.0, right / len(reference.split(",")))

    @staticmethod
    def _clue(clue: str) -> tuple[list[int], int]:
        numbers, _, target = clue.partition(":")
        return [int(number) for number in numbers.split(",")], int(target)


def apply(a: int, operator: str, b: int) -> int | None:
    """Result of `a operator b`; None where it is not a whole number from 0 to LARGEST."""
    if operator == "/":
        result = a // b if b and a % b == 0 else None
    else:
        result = {"+": a + b, "-": a - b, "*": a * b}[operator]
    return result if result is not None and 0 <= result <= LARGEST else None


def _use(pool: Counter, equation: str) -> bool:
    """Replaces the operands of an equation in the pool by its result; False where it is false or an operand is not in the pool."""
    a, operator, b, result = _EQUATION.fullmatch(equation).groups()
    for number in (int(a), int(b)):
        if not pool[number]:
            return False
        pool[number] -= 1
    if apply(int(a), operator, int(b)) != int(result):
        return False
    pool[int(result)] += 1
    return True


KINDS: dict[str, Kind] = {kind.name: kind for kind in (Sudoku(), Countdown())}


def kind_of(puzzle: Puzzle) -> Kind:
    """The kind of a puzzle.  Raises InputError where it has the format of no kind."""
    for kind in KINDS.values():
        if kind.reads(puzzle.clue, puzzle.answer):
            return kind
    raise InputError(f"{puzzle.line[:60]!r} is not a line of a puzzle file; `dlmjax puzzles` writes such files ({', '.join(KINDS)})")


def parse(lines: Iterable[str]) -> list[Puzzle]:
    """The puzzles of the lines of a file.  Raises InputError: no lines, a line that is not a puzzle, lines of several kinds or lengths."""
    puzzles = [Puzzle(*line.rstrip("\n").partition("=")[::2]) for line in lines if line.strip()]
    if not puzzles:
        raise InputError("the puzzle file is empty; `dlmjax puzzles` writes one")
    shapes = {(kind_of(puzzle).name, len(puzzle.clue), len(puzzle.answer)) for puzzle in puzzles}
    if len(shapes) > 1:
        raise InputError("the puzzle file has puzzles of several kinds or lengths; write each kind to a separate file")
    return puzzles


def read_table(file: str) -> list[dict[str, str]]:
    """The rows of a table of puzzles.  Raises InputError: the file is not readable as a table."""
    opener = {".xz": lzma.open, ".gz": gzip.open}.get(pathlib.Path(file).suffix, open)
    try:
        with opener(file, "rt", encoding="utf-8", newline="") as table:
            return list(csv.DictReader(table))
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, csv.Error) as error:
        raise InputError(f"{file} cannot be read as a table of puzzles ({error}); give a .csv, plain or .gz/.xz") from error


def read_sudoku(rows: Iterable[dict[str, str]], givens: int = 0, seed: int = 0) -> Iterator[Puzzle]:
    """The puzzles of a table with columns `puzzle` and `solution`.

    givens: least number of cells in a clue; missing ones are added from the solution, which keeps the solution unique. The added cells
      are drawn from the seed and the puzzle.
    Raises InputError: a missing column, a solution that breaks a rule or the clue.
    """
    sudoku = KINDS["sudoku"]
    for number, row in enumerate(rows):
        try:
            clue, answer = row["puzzle"].replace(".", "0"), row["solution"]
        except (KeyError, AttributeError) as error:
            raise InputError(f"row {number + 1} of the table of puzzles has no {error}; it requires columns puzzle and solution") from error
        if not sudoku.solves(clue, answer):
            raise InputError(f"row {number + 1} of the table of puzzles: the solution breaks a rule or the clue; correct the file")
        empty = [i for i, cell in enumerate(clue) if cell == "0"]
        more = max(0, givens - (81 - len(empty)))
        rng = np.random.default_rng([seed, int.from_bytes(hashlib.sha256(clue.encode()).digest()[:8], "little")])
        shown = set(rng.choice(empty, min(more, len(empty)), replace=False).tolist()) if more else set()
        yield Puzzle("".join(answer[i] if i in shown else cell for i, cell in enumerate(clue)), answer)


def make_sudoku(count: int, *, seed: int = 0, split: str = "train") -> list[Puzzle]:
    """`count` different Sudoku puzzles with one solution each (`boards.clues`), about 24 cells given; equal for equal arguments.

    split: a hash of what all symmetric images of a board have in common assigns each board to one split (8/10 train, 1/10 valid, 1/10
      test), so no image of a test board is a training board.
    Raises InputError: an unknown split, a count below 1.
    """
    if count < 1 or split not in SPLITS:
        raise InputError(f"sudoku requires count 1 or more, split {', '.join(SPLITS)}")
    rng, found = np.random.default_rng([seed, SPLITS.index(split)]), {}
    while len(found) < count:
        board_C = boards.solved_board(rng)
        if _split_of_number(boards.split_number(board_C)) == split:
            found.setdefault(board_C.tobytes(), board_C)
    solved_NC = np.stack(list(found.values()))
    clues = boards.clues(solved_NC, rng)
    return [Puzzle(*("".join(map(str, line.tolist())) for line in pair)) for pair in zip(clues, solved_NC, strict=True)]


def make_countdown(count: int, *, numbers: int = 3, largest: int = 20, seed: int = 0, split: str = "train") -> list[Puzzle]:
    """`count` different Countdown puzzles with answers; equal for equal arguments, on any machine.

    numbers: numbers of a puzzle, 2 to 8.  largest: largest of the numbers.
    split: a hash of the sorted numbers assigns each puzzle to one split (8/10 train, 1/10 valid, 1/10 test), so train and test have no set
      of numbers in common.
    Raises InputError: sizes out of range; fewer than `count` puzzles found.
    """
    if not 2 <= numbers <= 8 or not 2 <= largest <= LARGEST or count < 1 or split not in SPLITS:
        raise InputError(f"countdown requires 2 to 8 numbers, largest 2 to {LARGEST}, count 1 or more, split {', '.join(SPLITS)}")
    rng, found = np.random.default_rng([seed, SPLITS.index(split), numbers, largest]), {}
    for _ in range(1000 + 40 * count):
        chosen = rng.integers(1, largest + 1, numbers).tolist()
        puzzle = _derived(rng, chosen) if _split_of(chosen) == split else None
        if puzzle is not None:
            found.setdefault(puzzle.clue, puzzle)
        if len(found) == count:
            return list(found.values())
    raise InputError(f"countdown found only {len(found)} different puzzles of {numbers} numbers up to {largest}; lower --count")


def _split_of(numbers: list[int]) -> str:
    digest = hashlib.sha256(",".join(str(n) for n in sorted(numbers)).encode()).digest()
    return _split_of_number(digest[0] % 10)


def _split_of_number(number: int) -> str:
    """The split of a number from 0 to 9."""
    return SPLITS[max(0, number - 7)]


def _derived(rng: np.random.Generator, numbers: list[int]) -> Puzzle | None:
    """A puzzle whose answer combines the numbers at random; None where a result is out of range or the target is 0."""
    pool, equations = list(numbers), []
    while len(pool) > 1:
        i, j = rng.choice(len(pool), 2, replace=False).tolist()
        operator = "+-*/"[rng.integers(4)]
        result = apply(pool[i], operator, pool[j])
        if result is None:
            return None
        equations.append(f"{pool[i]:03d}{operator}{pool[j]:03d}={result:03d}")
        pool = [n for k, n in enumerate(pool) if k not in (i, j)] + [result]
    clue = ",".join(f"{n:03d}" for n in numbers) + f":{pool[0]:03d}"
    return Puzzle(clue, ",".join(equations)) if pool[0] else None
