"""Windows over documents, in which every token is scored exactly once.

The first window of a stretch scores all of its `window` tokens; each further one scores the `step` tokens that follow, with as many tokens
before them as fit as clean context, which earlier windows scored. For a diffusion model the number is then a bound of the sum over windows
of -log p(scored tokens | context in the window); with step = window there is no context and the windows are independent.

Windows are numbered; noise is drawn from the number. Rows are as short as their window allows, in a few lengths that depend on the window
alone, and rows of one length share batches. So the batch size, the mesh and the number of hosts change only the order of additions.

Shapes: T tokens of the stream, D documents, W windows, B rows of a batch, L length of its rows.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int

from dlmjax.errors import InputError

SHORTEST = 16  # tokens of the shortest rows
BUCKETS = 6  # row lengths: the window and its halves


@dataclasses.dataclass(frozen=True)
class Windows:
    """A stream of documents and windows of it, as `cut_windows` returns them.

    Window w holds tokens [begin_W[w], end_W[w]) and scores those from scored_W[w] on that are scorable.  tail_T: tokens of tails, which are
    scored but no tokens of the text; None: there are none.
    """

    tokens_T: Int[np.ndarray, "T"]
    scorable_T: Bool[np.ndarray, "T"]
    ends_D: Int[np.ndarray, "D"]
    begin_W: Int[np.ndarray, "W"]
    scored_W: Int[np.ndarray, "W"]
    end_W: Int[np.ndarray, "W"]
    lengths: tuple[int, ...]
    pad_id: int
    tail_T: Bool[np.ndarray, "T"] | None = None

    def __len__(self) -> int:
        return len(self.begin_W)

    @property
    def complete(self) -> bool:
        """Whether every scorable token is scored."""
        scored = sum(int(self.scorable_T[a:b].sum()) for a, b in zip(self.scored_W, self.end_W, strict=True))
        return scored == int(self.scorable_T.sum())

    def lengths_W(self) -> Int[np.ndarray, "W"]:
        """Length of the row of each window."""
        rising = np.array(sorted(self.lengths))
        return rising[np.searchsorted(rising, self.end_W - self.begin_W)]

    def batches(self, size: int, rows: Sequence[int] | None = None) -> Iterator[dict[str, np.ndarray]]:
        """All windows, `size` at a time over all hosts, rows of one length together.

        Args:
          rows: the rows of each batch that this host owns, ascending; None: all.
        Yields:
          {"tokens", "segments", "positions": int32 [B, L], "scored", "counted" (not of a tail): bool [B, L], "row": int32 [B], the
          window's number}. Segments number the documents of a row from 1; positions count from the start of a document in the row.
          Missing rows are padding.
        """
        rows = range(size) if rows is None else rows
        lengths_W = self.lengths_W()
        for length in sorted(set(lengths_W.tolist())):
            numbers = np.flatnonzero(lengths_W == length)
            for first in range(0, len(numbers), size):
                chunk = numbers[first : first + size]
                yield self._rows([int(chunk[row]) if row < len(chunk) else -1 for row in rows], length)

    def _rows(self, numbers: list[int], length: int) -> dict[str, np.ndarray]:
        shape = (len(numbers), length)
        batch = {name: np.zeros(shape, np.int32) for name in ("segments", "positions")}
        batch |= {"tokens": np.full(shape, self.pad_id, np.int32), "scored": np.zeros(shape, bool), "counted": np.zeros(shape, bool)}
        for row, number in enumerate(numbers):
            if number < 0:
                continue
            begin, end = int(self.begin_W[number]), int(self.end_W[number])
            at_N = np.arange(begin, end)
            document_N = np.searchsorted(self.ends_D, at_N, side="right")
            starts_N = np.maximum(np.concatenate([[0], self.ends_D])[document_N], begin)
            batch["tokens"][row, : end - begin] = self.tokens_T[begin:end]
            batch["segments"][row, : end - begin] = document_N - document_N[0] + 1
            batch["positions"][row, : end - begin] = at_N - starts_N
            scored_N = self.scorable_T[begin:end] & (at_N >= self.scored_W[number])
            batch["scored"][row, : end - begin] = scored_N
            batch["counted"][row, : end - begin] = scored_N if self.tail_T is None else scored_N & ~self.tail_T[begin:end]
        return batch | {"row": np.array(numbers, np.int32).clip(0)}

    def first(self, count: int | None) -> "Windows":
        """Only the first windows; None: all."""
        if count is None:
            return self
        return dataclasses.replace(self, begin_W=self.begin_W[:count], scored_W=self.scored_W[:count], end_W=self.end_W[:count])


def cut_windows(
    tokens_T: Int[np.ndarray, "T"],
    ends_D: Int[np.ndarray, "D"],
    *,
    window: int,
    step: int,
    pad_id: int,
    packing: str = "stream",
    remainder: str = "keep",
    scorable_T: Bool[np.ndarray, "T"] | None = None,
    multiple: int = 1,
) -> Windows:
    """Windows over a stream of documents.

    Args:
      ends_D: the offset after each document.
      window, step: tokens of a window; scored tokens of each window but the first of a stretch.
      packing, remainder: see `suites.Suite`; "alone" makes each document a stretch of its own.
      scorable_T: False for tokens that are only context; None: all are scored.
      multiple: row lengths are multiples of it (a process in blocks, a mesh that splits the length).
    Raises:
      InputError: an empty stream, a step outside 1 .. window, a window that is not a multiple.
    """
    if not 1 <= step <= window or window % multiple:
        raise InputError(f"window {window}, stride {step}: a stride lies in 1 .. window, and a window here is a multiple of {multiple}")
    if not len(tokens_T):
        raise InputError("an evaluation requires at least one token, and the text has none; give another text")
    bounds = np.concatenate([[0], ends_D]) if packing == "alone" else np.array([0, len(tokens_T)])
    cuts = [cut for a, b in zip(bounds, bounds[1:], strict=False) for cut in _stretch(int(a), int(b), window, step, remainder)]
    if not cuts:
        raise InputError(f"{len(tokens_T):,} tokens do not fill a window of {window}, and the remainder is dropped; give --remainder keep")
    begin_W, scored_W, end_W = np.array(cuts).T
    halves = [window >> k for k in range(BUCKETS) if packing == "alone" or k == 0]
    lengths = tuple(n for n in halves if n == window or (n >= SHORTEST and n % multiple == 0))
    scorable_T = np.ones(len(tokens_T), bool) if scorable_T is None else scorable_T
    return Windows(tokens_T, scorable_T, np.asarray(ends_D, np.int64), begin_W, scored_W, end_W, lengths, pad_id)


def _stretch(first: int, end: int, window: int, step: int, remainder: str) -> Iterator[tuple[int, int, int]]:
    """(begin, first scored, end) of the windows over tokens [first, end)."""
    if remainder == "tail":
        yield max(first, end - window), max(first, end - window), end
        return
    scored, until = first, first + window
    while scored < end:
        if until > end and remainder == "drop":
            return
        stop = min(until, end)
        # With a stride the last window is whole too: it holds more context.
        yield (max(first, stop - window) if step < window and scored > first else scored), scored, stop
        if remainder == "truncate":
            return
        scored, until = stop, stop + step
