"""Checkers that cannot be fooled, a generator that repeats itself, files that are what they say."""

import itertools

import numpy as np
import pytest

from dlmjax.cli.main import main
from dlmjax.data.corpus import Corpus
from dlmjax.data.prepare import prepare
from dlmjax.data.roles import SCORED, use_of
from dlmjax.errors import InputError
from dlmjax.quality.puzzles import KINDS, SPLITS, Puzzle, kind_of, make_countdown, make_sudoku, parse, read_sudoku
from tests.data.conftest import shared_file

SUDOKU, COUNTDOWN = KINDS["sudoku"], KINDS["countdown"]
ANSWER = "".join(str((3 * (r % 3) + r // 3 + c) % 9 + 1) for r in range(9) for c in range(9))
CLUE = "".join(cell if i % 3 else "0" for i, cell in enumerate(ANSWER))


def test_a_right_board_is_right():
    assert SUDOKU.solves(CLUE, ANSWER) and SUDOKU.solves("0" * 81, ANSWER)
    assert SUDOKU.partly(CLUE, ANSWER, ANSWER) == 1.0


def swapped(text: str, i: int, j: int) -> str:
    cells = list(text)
    cells[i], cells[j] = cells[j], cells[i]
    return "".join(cells)


def test_no_wrong_board_passes():
    """Every single cell changed, every two cells of a row, a column or a box exchanged: none obeys the rules."""
    for i, digit in itertools.product(range(81), "0123456789"):
        assert SUDOKU.solves("0" * 81, ANSWER[:i] + digit + ANSWER[i + 1 :]) == (digit == ANSWER[i])
    for i, j in itertools.combinations(range(81), 2):
        assert not SUDOKU.solves("0" * 81, swapped(ANSWER, i, j)) or ANSWER[i] == ANSWER[j]


@pytest.mark.parametrize(
    "answer",
    ["", ANSWER[:80], ANSWER + "1", ANSWER + "\n", "1" * 81, "123456789" * 9, ANSWER.replace("9", "٩"), ANSWER.replace("1", "x")],
    ids=repr,
)
def test_what_is_no_board_is_not_solved(answer):
    assert not SUDOKU.solves("0" * 81, answer)


def test_rows_alone_and_rows_with_columns_are_not_enough():
    latin = "".join(str((r + c) % 9 + 1) for r in range(9) for c in range(9))  # rows and columns right, boxes not
    assert not SUDOKU.solves("0" * 81, latin)


def test_a_board_that_ignores_the_clue_is_not_solved():
    renamed = ANSWER.translate(str.maketrans("12", "21"))
    assert SUDOKU.solves("0" * 81, renamed) and not SUDOKU.solves(CLUE, renamed)
    assert 0 < SUDOKU.partly(CLUE, renamed, ANSWER) < 1


RIGHT = ("003,005,012:041", "003*012=036,005+036=041")


def test_countdown_takes_any_way_that_is_right():
    assert COUNTDOWN.solves(*RIGHT)
    assert COUNTDOWN.solves("003,005,012:041", "012*003=036,036+005=041")
    assert COUNTDOWN.solves("004,004,004:005", "004/004=001,004+001=005")
    assert COUNTDOWN.solves("006,003:000", "006-006=000") is False and COUNTDOWN.solves("003,003:000", "003-003=000")


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("003*012=036,005+036=042", "a false equation"),
        ("003*012=041,005+036=041", "a result out of nothing"),
        ("005+036=041,003*012=036", "a result before it is made"),
        ("003+005=008,012-008=004", "another target"),
        ("003*012=036", "a number left over"),
        ("003*012=036,036+005=041,041+000=041", "a zero out of nothing"),
        ("003*012=036,003+036=039", "a number used twice"),
        ("012-005=007,003-007=-04", "below zero"),
        ("012/005=002,003+002=005", "a division that leaves a rest"),
        ("012/000=000,003+005=008", "a division by zero"),
        ("3*12=36,5+36=41", "digits left out"),
        ("003*012=036,005+036=041\n", "a line end"),
        ("003*012=036,005+036=041,", "a comma too many"),
        ("٠٠٣*٠١٢=٠٣٦,٠٠٥+٠٣٦=٠٤١", "other digits"),
        ("041=041=041,041=041=041", "no operator"),
        ("", "nothing"),
    ],
    ids=lambda value: value if " " in value else "",
)
def test_countdown_is_not_fooled(answer, why):
    assert not COUNTDOWN.solves(RIGHT[0], answer), why


def test_countdown_says_how_far_an_answer_is_right():
    assert COUNTDOWN.partly(*RIGHT, RIGHT[1]) == 1.0
    assert COUNTDOWN.partly(RIGHT[0], "003*012=036,005+036=040", RIGHT[1]) == 0.5
    assert COUNTDOWN.partly(RIGHT[0], "nonsense", RIGHT[1]) == 0.0


@pytest.mark.parametrize("numbers", [2, 3, 4])
def test_generated_puzzles_are_solved_by_their_answers(numbers):
    puzzles = make_countdown(200, numbers=numbers, seed=3)
    assert all(COUNTDOWN.solves(puzzle.clue, puzzle.answer) for puzzle in puzzles)
    assert len({puzzle.clue for puzzle in puzzles}) == 200 and len({len(puzzle.line) for puzzle in puzzles}) == 1
    assert puzzles == make_countdown(200, numbers=numbers, seed=3) != make_countdown(200, numbers=numbers, seed=4)


def test_splits_share_no_numbers():
    sets = [{tuple(sorted(puzzle.clue[:-4].split(","))) for puzzle in make_countdown(300, split=split)} for split in SPLITS]
    assert not sets[0] & sets[1] and not sets[0] & sets[2] and not sets[1] & sets[2]


def test_puzzles_that_cannot_be_made_are_refused():
    with pytest.raises(InputError, match="only [0-9]+ different puzzles"):
        make_countdown(500, numbers=2, largest=2)
    with pytest.raises(InputError, match="2 to 8 numbers"):
        make_countdown(1, numbers=9)


def test_more_cells_make_a_puzzle_easier_and_leave_it_right():
    rows = [{"puzzle": "0" * 81, "solution": ANSWER}, {"puzzle": CLUE, "solution": ANSWER}]
    easier = list(read_sudoku(rows, givens=60))
    for row, puzzle in zip(rows, easier, strict=True):
        assert sum(cell != "0" for cell in puzzle.clue) == 60 and SUDOKU.solves(puzzle.clue, puzzle.answer)
        assert all(given in ("0", cell) for given, cell in zip(row["puzzle"], puzzle.clue, strict=True))
    assert easier == list(read_sudoku(rows, givens=60)) != list(read_sudoku(rows, givens=60, seed=1))
    assert [puzzle.clue for puzzle in read_sudoku(rows, givens=10)][1] == CLUE


def test_a_bad_table_is_refused():
    with pytest.raises(InputError, match="row 1 .* breaks a rule"):
        list(read_sudoku([{"puzzle": CLUE, "solution": ANSWER[::-1]}]))
    with pytest.raises(InputError, match="requires columns puzzle and solution"):
        list(read_sudoku([{"quiz": CLUE}]))


def test_a_file_is_read_back_and_mixed_files_are_refused():
    puzzles = make_countdown(5)
    lines = [puzzle.line for puzzle in puzzles]
    assert parse(lines) == puzzles
    several = [*lines, Puzzle(CLUE, ANSWER).line]
    for bad, said in (([], "`dlmjax puzzles` writes one"), (["hello"], "`dlmjax puzzles` writes such files"), (several, "several kinds")):
        with pytest.raises(InputError, match=said):
            parse(bad)


@pytest.mark.parametrize("in_place", [True, False], ids=["board", "clue=answer"])
def test_the_clue_of_a_record_is_given_and_the_rest_is_scored(in_place, tmp_path):
    """From the command to the stored roles: exactly the cells of the clue (and what stands before an answer) carry no loss."""
    flags = ["--answers-only"] * in_place
    assert main(["puzzles", "--kind", "sudoku", "--count", "3", "--output", str(tmp_path / "p.jsonl"), *flags]) == 0
    options = {"format": "spans"} if in_place else {"format": "prompt-answer", "separator": "="}
    prepare([tmp_path / "p.jsonl"], "bytes", tmp_path / "data", workers=1, **options)
    corpus = Corpus.open(tmp_path / "data")
    length = 82 if in_place else 164
    for puzzle, start in zip(make_sudoku(3), range(0, 3 * length, length), strict=True):
        tokens, scored = corpus.read(start, length), use_of(corpus.read_roles(start, length)) == SCORED
        assert bytes(tokens[:-1].astype(np.uint8)).decode() == (puzzle.answer if in_place else puzzle.line)
        given = [cell != "0" for cell in puzzle.clue] if in_place else [True] * 82
        assert (~scored[: len(given)] == given).all() and scored[len(given) : -1].all()


def test_the_data_set_keeps_the_rules():
    import csv
    import lzma

    with lzma.open(shared_file("sudoku/valid.csv.xz"), "rt", encoding="utf-8", newline="") as file:
        rows = list(itertools.islice(csv.DictReader(file), 200))
    puzzles = list(read_sudoku(rows))
    assert len(puzzles) == 200 and {kind_of(puzzle).name for puzzle in puzzles} == {"sudoku"}
    assert 22 <= np.mean([sum(cell != "0" for cell in puzzle.clue) for puzzle in puzzles]) <= 37
