"""Images of boards: they obey the rules, what is given moves with its cell, each row has an image of its own, and a step says which."""

import numpy as np
import pytest

from dlmjax.data import TrainWindows
from dlmjax.data.corpus import Corpus
from dlmjax.data.prepare import prepare
from dlmjax.data.symmetries import board_symmetries, draw, of_boards
from dlmjax.data.tokenizers import load_tokenizer
from dlmjax.data.windows import make_keys
from dlmjax.errors import InputError

BOARD = np.array([(3 * (r % 3) + r // 3 + c) % 9 + 1 for r in range(9) for c in range(9)])
DIGITS = np.frombuffer(b"123456789", np.uint8).astype(np.int32)
KEYS = make_keys(3, 1, np.arange(400))


def obeys(board: np.ndarray) -> bool:
    """The rules, written out."""
    grid = board.reshape(9, 9).tolist()
    units = [[(r, c) for c in range(9)] for r in range(9)] + [[(r, c) for r in range(9)] for c in range(9)]
    units += [[(3 * b + i, 3 * s + j) for i in range(3) for j in range(3)] for b in range(3) for s in range(3)]
    return all({grid[r][c] for r, c in unit} == set(range(1, 10)) for unit in units)


def text(board: np.ndarray) -> str:
    return "".join(map(str, board.tolist()))


@pytest.mark.parametrize("boards", [1, 2], ids=["board", "clue=answer"])
def test_an_image_obeys_the_rules_and_what_is_given_moves_with_its_cell(boards):
    """Both forms of a row; the roles are those of a clue of 30 cells, and the token after a board stays in its place."""
    shown = np.isin(np.arange(81), np.random.default_rng(0).permutation(81)[:30])
    answer, clue = BOARD + 48, np.where(shown, BOARD, 0) + 48
    parts = [np.append(answer, 258)] if boards == 1 else [np.append(clue, ord("=")), np.append(answer, 258)]
    given = np.append(np.where(shown, 0, 1), 0)
    tokens = np.tile(np.concatenate(parts).astype(np.int32), (len(KEYS), 1))
    roles = np.tile(np.concatenate([given] * boards).astype(np.uint8), (len(KEYS), 1))
    batch = {"tokens": tokens, "roles": roles, "positions": tokens * 0, "row": np.arange(len(KEYS))}
    image = of_boards(batch, DIGITS, KEYS)
    assert (image["tokens"].dtype, image["roles"].dtype) == (np.int32, np.uint8)
    assert image["positions"] is batch["positions"] and image["row"] is batch["row"]
    for row, use in zip(image["tokens"], image["roles"], strict=True):
        assert row[-1] == 258 and obeys(row[-82:-1] - 48)
        assert use[:81].tolist() == use[-82:-1].tolist() and (use == 0).sum() == 31 * boards
        if boards == 2:
            assert row[81] == ord("=") and all(row[:81] == np.where(use[:81] == 0, row[82:163], 48))
    assert len({row.tobytes() for row in image["tokens"]}) == len(KEYS)
    again = of_boards({"tokens": tokens[5:6]}, DIGITS, KEYS[5:6])["tokens"]
    assert again[0].tobytes() == image["tokens"][5].tobytes(), "a row's image depends on its key alone"


def test_images_are_drawn_evenly():
    """Where the first cell comes from, what its digit becomes, and whether rows and columns are exchanged: chi-square over keys."""
    cells, digits = draw(make_keys(0, 0, np.arange(16_200)))
    for counts, most in ((np.bincount(cells[:, 0], minlength=81), 130), (np.bincount(digits[:, 0], minlength=9), 30)):
        expected = counts.sum() / len(counts)
        assert ((counts - expected) ** 2 / expected).sum() < most  # p below 1e-3 for 80 and 8 degrees of freedom
    exchanged = cells[:, 1] // 9 != cells[:, 0] // 9
    assert abs(exchanged.mean() - 0.5) < 0.02


def corpus_of(lines: list[str], folder, tokenizer="bytes") -> Corpus:
    (folder / "p.txt").write_text("".join(line + "\n" for line in lines))
    prepare([folder / "p.txt"], tokenizer, folder / "c", documents="line", workers=1)
    return Corpus.open(folder / "c")


def test_rows_of_a_run_show_an_image_each_time_and_the_step_decides(tmp_path):
    corpus = corpus_of([text(BOARD)] * 5, tmp_path)

    def rows(seed: int, step: int, which) -> np.ndarray:
        view = board_symmetries([corpus], 82, seed)
        return TrainWindows([corpus], None, 82, 8, seed, "documents", [view]).rows(step, which)["tokens"]

    first = rows(0, 7, range(8))
    assert all(obeys(row[:81] - 48) for row in first) and len({row.tobytes() for row in first}) == 8
    assert (rows(0, 7, [2, 5]) == first[[2, 5]]).all(), "another host reads the same rows"
    assert all((rows(*other, range(8)) != first).any() for other in ((1, 7), (0, 8)))


def test_what_is_no_board_is_refused(tmp_path):
    corpus = corpus_of([text(BOARD), "a line of another length"], tmp_path)
    with pytest.raises(InputError, match="requires boards of 82 tokens"):
        board_symmetries([corpus], 82, 0)
    with pytest.raises(InputError, match=r"requires data.length=82 \(boards\) or 164"):
        board_symmetries([corpus], 81, 0)


def test_a_tokenizer_without_digits_is_refused():
    from dlmjax.data.symmetries import digit_ids

    assert digit_ids(load_tokenizer("bytes")).tolist() == DIGITS.tolist()
    with pytest.raises(InputError, match="one token for each digit"):
        digit_ids(load_tokenizer("char27"))
