"""Batches in a background thread, by Grain.

Guarantee: batch i of the iterator is exactly `windows.rows(start_step + i, rows)`. So the step is the only state of a loader, and a host
that reads some rows of the global batch gets the same rows as a single host. Cost: memory of `ahead` batches, which are made while the
last one is used. There are no worker processes: they take seconds to start, and a restart would require the same number of them.
"""

from collections.abc import Iterator, Sequence

import grain
import numpy as np

from dlmjax.data.windows import EvalWindows, TrainWindows
from dlmjax.errors import InputError

LAST_STEP = 1 << 40  # unlimited: Grain requires a length


def _check_rows(rows: Sequence[int], batch: int) -> None:
    if not len(rows) or not 0 <= rows[0] <= rows[-1] < batch or any(a >= b for a, b in zip(rows, rows[1:], strict=False)):
        raise InputError(f"rows {rows} are not ascending indices of rows of a batch of {batch}")


def _iterate(first: int, last: int, make, ahead: int) -> Iterator[dict[str, np.ndarray]]:
    options = grain.ReadOptions(num_threads=1 if ahead else 0, prefetch_buffer_size=ahead)
    return iter(grain.MapDataset.range(first, last).map(make).to_iter_dataset(options))


def train_batches(
    windows: TrainWindows, rows: Sequence[int], start_step: int, stop_step: int | None = None, ahead: int = 2
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of this host's rows, from `start_step` on.

    Args:
        windows: all rows of the run.
        rows: the rows of the global batch that this host's devices own, ascending: range(0, global_batch) on one host.
        start_step: 0, or the step of the checkpoint that a run resumes from.
        stop_step: end of the range of steps, exclusive; None: unlimited.
        ahead: batches made in advance, in a thread; 0: none, in the calling thread.
    Yields:
        {"tokens", "segments", "positions": int32 [len(rows), L], "row": int32 [len(rows)]}, and "roles": uint8 [len(rows), L] (see
        `roles.py`) where a corpus has them
    """
    _check_rows(rows, windows.global_batch)
    return _iterate(start_step, LAST_STEP if stop_step is None else stop_step, lambda step: windows.rows(int(step), rows), ahead)


def eval_batches(evals: EvalWindows, batch_size: int, rows: Sequence[int] | None = None, ahead: int = 2) -> Iterator[dict[str, np.ndarray]]:
    """All held-out windows, `batch_size` at a time over all hosts; every host gets the same number of batches of the same shape.

    Args:
        rows: the rows of each batch on this host, ascending; None: all.
    Yields:
        As train_batches, with "row" the window number; rows after the last window are padding (segments 0).
    """
    rows = range(batch_size) if rows is None else rows
    _check_rows(rows, batch_size)
    batches = -(-len(evals) // batch_size)

    def make(number) -> dict[str, np.ndarray]:
        first = int(number) * batch_size
        return evals.rows([first + row for row in rows])

    return _iterate(0, batches, make, ahead)
