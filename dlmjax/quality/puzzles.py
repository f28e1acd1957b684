"""Puzzles as text, `clue=answer`, with checkers that look at the rules and at nothing else.

    sudoku       81 digits, 0 an empty cell, row by row = 81 digits that obey the rules and keep the clue
    countdown    "003,005,012:041" = "003*012=036,005+036=041": every number used exactly once, each result used in a later equation but
                 the last, which is the target; whole numbers from 0 to 999 all the way, three digits each

Every line of one kind has the same length, so that position says which cell a character is, and a clue is a prompt of fixed length.
A puzzle counts as solved by any answer that obeys the rules: the answer in the file only serves to say how much of a wrong one is right.

Countdown after Gandhi et al. (2404.03683), diffusion on it after Ye et al. (2410.14157); Sudoku after the same; their digits, difficulty
and splits differ, and so do the numbers.
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
from typing import Protocol, runtime_checkable

import numpy as np

from dlmjax.errors import InputError

SPLITS = ("train", "valid", "test")


@runtime_checkable
class Kind(Protocol):
    """A kind of puzzle: pure functions of text."""

    name: str

    def reads(self, clue: str, answer: str) -> bool:
        """Is this a line of the kind?"""
        ...

    def solves(self, clue: str, answer: str) -> bool:
        """Does the answer obey every rule?"""
        ...

    def partly(self, clue: str, answer: str, reference: str) -> float:
        """How much of the answer is right, in [0, 1]; for people, not for scores."""
        ...


@dataclasses.dataclass(frozen=True)
class Puzzle:
    """One line of a puzzle file."""

    clue: str
    answer: str

    @property
    def line(self) -> str:
        return f"{self.clue}={self.answer}"


@dataclasses.dataclass(frozen=True)
class Sudoku:
    """9 x 9."""

    name = "sudoku"

    def reads(self, clue: str, answer: str) -> bool:
        return bool(re.fullmatch(r"[0-9]{81}", clue)) and bool(re.fullmatch(r"[1-9]{81}", answer))

    def solves(self, clue: str, answer: str) -> bool:
        if not self.reads(clue, answer):
            return False
        if any(given not in ("0", cell) for given, cell in zip(clue, answer, strict=True)):
            return False
        board = np.array([int(cell) for cell in answer]).reshape(9, 9)
        boxes = board.reshape(3, 3, 3, 3).swapaxes(1, 2).reshape(9, 9)
        return all((np.sort(part, axis=1) == np.arange(1, 10)).all() for part in (board, board.T, boxes))

    def partly(self, clue: str, answer: str, reference: str) -> float:
        """Share of the empty cells that are right."""
        empty = [i for i, given in enumerate(clue) if given == "0"]
        return sum(answer[i : i + 1] == reference[i] for i in empty) / max(len(empty), 1)


_CLUE = re.compile(r"[0-9]{3}(,[0-9]{3})*:[0-9]{3}")
_EQUATION = re.compile(r"([0-9]{3})([-+*/])([0-9]{3})=([0-9]{3})")
LARGEST = 999


@dataclasses.dataclass(frozen=True)
class Countdown:
    """Numbers to be joined by + - * / into a target."""

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
        """Share of the equations, up to the first bad one, that are true and use what is there."""
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
    """a operator b as a whole number from 0 to LARGEST; None where it is none."""
    if operator == "/":
        result = a // b if b and a % b == 0 else None
    else:
        result = {"+": a + b, "-": a - b, "*": a * b}[operator]
    return result if result is not None and 0 <= result <= LARGEST else None


def _use(pool: Counter, equation: str) -> bool:
    """Takes the operands of an equation out of the pool and puts its result in; False where that cannot be."""
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
    """The kind whose line this is.  Raises InputError for a line of none."""
    for kind in KINDS.values():
        if kind.reads(puzzle.clue, puzzle.answer):
            return kind
    raise InputError(f"{puzzle.line[:60]!r} is not a line of a puzzle file; `dlmjax puzzles` writes them ({', '.join(KINDS)})")


def parse(lines: Iterable[str]) -> list[Puzzle]:
    """The puzzles of the lines of a file.  Raises InputError: none, a line that is no puzzle, lines of several kinds or lengths."""
    puzzles = [Puzzle(*line.rstrip("\n").partition("=")[::2]) for line in lines if line.strip()]
    if not puzzles:
        raise InputError("the puzzle file is empty; `dlmjax puzzles` writes one")
    shapes = {(kind_of(puzzle).name, len(puzzle.clue), len(puzzle.answer)) for puzzle in puzzles}
    if len(shapes) > 1:
        raise InputError("the puzzle file holds puzzles of several kinds or lengths; give each kind a file of its own")
    return puzzles


def read_table(file: str) -> list[dict[str, str]]:
    """The rows of a table of puzzles. Raises InputError: it cannot be read."""
    opener = {".xz": lzma.open, ".gz": gzip.open}.get(pathlib.Path(file).suffix, open)
    try:
        with opener(file, "rt", encoding="utf-8", newline="") as table:
            return list(csv.DictReader(table))
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, csv.Error) as error:
        raise InputError(f"{file} cannot be read as a table of puzzles ({error}); give a .csv, plain or .gz/.xz") from error


def read_sudoku(rows: Iterable[dict[str, str]], givens: int = 0, seed: int = 0) -> Iterator[Puzzle]:
    """The puzzles of a table with columns `puzzle` and `solution`; with `givens` cells of the solution given at least, which makes them
    easier (a puzzle with one solution keeps it when more cells are given). Which cells is drawn from the seed and the puzzle.

    Raises InputError: a missing column, a solution that is none.
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


def make_countdown(count: int, *, numbers: int = 3, largest: int = 20, seed: int = 0, split: str = "train") -> list[Puzzle]:
    """`count` distinct Countdown puzzles, each made with its answer; the same for the same arguments, on any machine.

    A set of numbers belongs to one split, whatever its order and target (by a hash: 8/10 train, 1/10 valid, 1/10 test): the numbers of a
    test puzzle are never trained on.
    Raises InputError: sizes out of range; fewer puzzles than asked for were found.
    """
    if not 2 <= numbers <= 8 or not 2 <= largest <= LARGEST or count < 1 or split not in SPLITS:
        raise InputError(f"countdown: 2 to 8 numbers up to 2 to {LARGEST}, at least 1 puzzle, split {', '.join(SPLITS)}")
    rng, found = np.random.default_rng([seed, SPLITS.index(split), numbers, largest]), {}
    for _ in range(1000 + 40 * count):
        chosen = rng.integers(1, largest + 1, numbers).tolist()
        puzzle = _derived(rng, chosen) if _split_of(chosen) == split else None
        if puzzle is not None:
            found.setdefault(puzzle.clue, puzzle)
        if len(found) == count:
            return list(found.values())
    raise InputError(f"countdown: only {len(found)} different puzzles of {numbers} numbers up to {largest}; set fewer or larger ones")


def _split_of(numbers: list[int]) -> str:
    digest = hashlib.sha256(",".join(str(n) for n in sorted(numbers)).encode()).digest()
    return SPLITS[max(0, digest[0] % 10 - 7)]


def _derived(rng: np.random.Generator, numbers: list[int]) -> Puzzle | None:
    """A puzzle whose answer joins the numbers at random; None where that led out of range, or nowhere (target 0)."""
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
