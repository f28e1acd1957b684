"""Symmetric images of Sudoku boards: a training row shows another image of its board each time, a function of (seed, step, row).

An image renames the digits (9! ways), permutes the bands and the rows within a band, the stacks and the columns within a stack (6^8 ways)
and may exchange rows and columns: 1.2e12 images, each of which obeys the rules where the board does. Of a row `clue=answer` both boards
have the same image, and what is known of a token (its role) moves with its cell.

A row holds a board or a clue and its answer, each followed by one token more (`=`, the end of document), which stays in its place.

Shapes: B rows, L tokens of a row, C = 81 cells.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt64

from dlmjax.data.corpus import Corpus
from dlmjax.data.tokenizers import Tokenizer
from dlmjax.data.windows import make_keys, mix
from dlmjax.errors import InputError

CELLS = 81
LENGTHS = (CELLS + 1, 2 * (CELLS + 1))  # tokens of a board, and of a clue and its answer
DIGITS = "123456789"
_ROWS = 0x5ADC  # the stream of these keys beside those of the order of windows


def digit_ids(tokenizer: Tokenizer) -> Int[np.ndarray, "9"]:
    """The ids of the digits 1 to 9. Raises InputError: a tokenizer in which a digit is not one token of its own."""
    ids = np.asarray(tokenizer.encode(DIGITS), np.int32)
    if len(ids) != len(DIGITS) or len(set(ids.tolist())) != len(DIGITS):
        raise InputError(f"data.symmetries=sudoku requires a tokenizer with one token for each digit, such as bytes, not {tokenizer.name}")
    return ids


def draw(keys_B: UInt64[np.ndarray, "B"]) -> tuple[Int[np.ndarray, "B C"], Int[np.ndarray, "B 9"]]:
    """Uniform symmetries, one for each key.

    Returns:
      cells_BC: the cell of the board that each cell of its image shows.
      digits_B9: the new name, 0 to 8 for the digits 1 to 9, of each digit.
    """

    def permutations(start: int, *shape: int) -> np.ndarray:
        """Independent uniform permutations of the last axis, [B, *shape], from the key's numbers from `start` on."""
        number = np.arange(start, start + int(np.prod(shape)), dtype=np.uint64)
        return np.argsort(mix(keys_B[:, None] + number).reshape(len(keys_B), *shape), axis=-1, kind="stable")

    def lines(start: int) -> np.ndarray:
        """An order of nine rows (or columns) in which those of a band stay together, [B, 9]."""
        bands_B3, within_B33 = permutations(start, 3), permutations(start + 3, 3, 3)
        return (3 * bands_B3[:, :, None] + within_B33).reshape(-1, 9)

    digits_B9 = permutations(0, 9)
    rows_B9, columns_B9 = lines(9), lines(21)
    cells_B99 = 9 * rows_B9[:, :, None] + columns_B9[:, None, :]
    exchanged_B = (mix(keys_B + np.uint64(33)) >> np.uint64(63)).astype(bool)
    cells_B99 = np.where(exchanged_B[:, None, None], cells_B99.swapaxes(1, 2), cells_B99)
    return cells_B99.reshape(-1, CELLS), digits_B9


def of_boards(batch: dict[str, np.ndarray], ids_9: Int[np.ndarray, "9"], keys_B: UInt64[np.ndarray, "B"]) -> dict[str, np.ndarray]:
    """A batch of boards under the symmetries of `keys_B`; what is neither a token nor its role is unchanged."""
    cells_BC, digits_B9 = draw(keys_B)
    names_BV = np.broadcast_to(np.arange(int(ids_9.max()) + 1, dtype=np.int32), (len(keys_B), int(ids_9.max()) + 1)).copy()
    names_BV[:, ids_9] = ids_9[digits_B9]
    tokens_BL = batch["tokens"]
    known_BL = np.minimum(tokens_BL, names_BV.shape[1] - 1)
    renamed_BL = np.where(tokens_BL < names_BV.shape[1], np.take_along_axis(names_BV, known_BL, axis=1), tokens_BL)
    moved_BL = np.concatenate(
        [
            part
            for start in range(0, tokens_BL.shape[1], CELLS + 1)
            for part in (start + cells_BC, np.full((len(keys_B), 1), start + CELLS))
        ],
        axis=1,
    )
    columns = {"tokens": renamed_BL} | {name: batch[name] for name in ("roles",) if name in batch}
    return batch | {name: np.ascontiguousarray(np.take_along_axis(value_BL, moved_BL, axis=1)) for name, value_BL in columns.items()}


@dataclasses.dataclass(frozen=True)
class BoardSymmetries:
    """The view of a batch in which each board is replaced by one of its images.

    seed: of the run.  ids: ids of the digits 1 to 9.
    """

    seed: int
    ids: tuple[int, ...]

    def __call__(self, batch: dict[str, np.ndarray], samples_B: Int[np.ndarray, "B"]) -> dict[str, np.ndarray]:
        """The image of each row by the number of its sample in the run, step x rows of a step + row."""
        return of_boards(batch, np.array(self.ids, np.int32), make_keys(self.seed, _ROWS, samples_B))


def board_symmetries(corpora: Sequence[Corpus], length: int, seed: int) -> BoardSymmetries:
    """The symmetries of a run's rows.

    Raises InputError: a tokenizer without digits, rows that are not one board, or one clue with its answer, each.
    """
    if length not in LENGTHS:
        raise InputError(f"data.symmetries=sudoku requires data.length={LENGTHS[0]} (boards) or {LENGTHS[1]} (clue=answer), not {length}")
    for corpus in corpora:
        if corpus.num_tokens != corpus.num_documents * length:
            raise InputError(
                f"data.symmetries=sudoku requires boards of {length} tokens (data.length); {corpus.directory} has "
                f"{corpus.num_tokens:,} tokens in {corpus.num_documents:,} documents; prepare a file of "
                "`dlmjax puzzles --kind sudoku` by --documents line"
            )
    return BoardSymmetries(seed, tuple(digit_ids(corpora[0].tokenizer).tolist()))
