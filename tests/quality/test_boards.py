"""Generated boards: solved by the rules, clues with one solution of which no cell can be left out, splits that no symmetry crosses."""

import itertools

import numpy as np
import pytest

from dlmjax.data.symmetries import draw
from dlmjax.data.windows import make_keys
from dlmjax.errors import InputError
from dlmjax.quality import boards
from dlmjax.quality.puzzles import KINDS, SPLITS, make_sudoku

PUZZLES = make_sudoku(12, seed=1)


def solutions(clue: str, most: int = 2) -> list[str]:
    """Solutions of a clue by plain search, at most `most`: another solver than the one under test."""
    empty = [i for i, cell in enumerate(clue) if cell == "0"]
    if not empty:
        return [clue]

    def open_digits(i: int) -> set[str]:
        r, c = divmod(i, 9)
        seen = {clue[j] for j in range(81) if j // 9 == r or j % 9 == c or (j // 27 == r // 3 and j % 9 // 3 == c // 3)}
        return set("123456789") - seen

    i = min(empty, key=lambda i: len(open_digits(i)))
    found = []
    for digit in sorted(open_digits(i)):
        found += solutions(clue[:i] + digit + clue[i + 1 :], most - len(found))
        if len(found) >= most:
            break
    return found


def test_a_clue_has_one_solution_and_singles_find_it():
    for puzzle in PUZZLES:
        assert KINDS["sudoku"].solves(puzzle.clue, puzzle.answer)
        assert 17 <= sum(cell != "0" for cell in puzzle.clue) <= 32
    assert all(solutions(puzzle.clue) == [puzzle.answer] for puzzle in PUZZLES[:3])
    clues = np.array([[int(cell) for cell in puzzle.clue] for puzzle in PUZZLES])
    answers = np.array([[int(cell) for cell in puzzle.answer] for puzzle in PUZZLES])
    assert (boards.singles(clues) == answers).all()


def test_no_cell_of_a_clue_can_be_left_out():
    clue = np.array([int(cell) for cell in PUZZLES[0].clue])
    fewer = np.stack([np.where(np.arange(81) == i, 0, clue) for i in np.flatnonzero(clue)])
    assert (boards.singles(fewer) == 0).any(1).all()


def test_singles_stop_where_they_know_no_more():
    """An empty board, a board where two cells may exchange their digits, and a puzzle that singles alone do not solve (one of those that
    collections call very hard): filled cells are right, the others stay empty."""
    hard = "800000000003600000070090200050007000000045700000100030001000068008500010090000400"
    answer = np.array([int(cell) for cell in solutions(hard)[0]])
    clues = np.stack([np.zeros(81, int), np.array([int(cell) for cell in hard])])
    filled = boards.singles(clues)
    assert (filled[0] == 0).all()
    assert (filled[1] == 0).any() and ((filled[1] == 0) | (filled[1] == answer)).all()


def test_puzzles_are_a_function_of_the_arguments():
    assert make_sudoku(12, seed=1) == PUZZLES and make_sudoku(4, seed=1) != PUZZLES[:4]
    assert len({puzzle.answer for puzzle in PUZZLES}) == 12
    assert not {puzzle.answer for puzzle in make_sudoku(4, seed=2)} & {puzzle.answer for puzzle in PUZZLES}
    with pytest.raises(InputError, match="sudoku requires count 1 or more, split train, valid, test"):
        make_sudoku(0)


def test_no_image_of_a_board_is_in_another_split():
    """Images have the signature of their board, boards of different signatures are not images, and each split has its own."""
    solved = np.array([[int(cell) for cell in puzzle.answer] for puzzle in PUZZLES])
    cells, digits = draw(make_keys(0, 0, np.arange(len(solved))))
    images = np.take_along_axis(digits, np.take_along_axis(solved, cells, axis=1) - 1, axis=1) + 1
    signatures = [boards.signature(board) for board in solved]
    assert [boards.signature(image) for image in images] == signatures and len(set(signatures)) == len(signatures)
    assert boards.shared_boards(images, solved) == 12 and boards.shared_boards(images[:6], solved[6:]) == 0
    found = [{boards.split_number(np.array(list(map(int, p.answer)))) for p in make_sudoku(4, split=split)} for split in SPLITS]
    assert all(not one & other for one, other in itertools.combinations(found, 2))
