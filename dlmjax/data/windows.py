"""Windows of a corpus by number: a training row depends only on (seed, step, row), a held-out row only on its window number.

Train.  Sample g = step * global_batch + row of the run. A fixed pattern gives the corpus of sample g and its index j among that corpus's
samples. If an epoch has N windows, this is window j mod N of epoch j div N, in the order of a keyed permutation for each epoch (a Feistel
network, which requires no table). So any host can compute any row, and the step is the only state of the loader.

Packing.  A window is a range of the stream of documents (each ends with EOS) of at most `length` tokens:
  "concat"     ranges of exactly `length` tokens, wherever documents end. The stream is a ring; each epoch begins at a random offset,
               so that cuts and the remainder (num_tokens mod length tokens, left out in that epoch) differ between epochs. A corpus with a
               token budget is cut the same way in every epoch, so that exactly its num_tokens div length windows are repeated.
  "documents"  whole documents in order, as many as fit (next fit); a document longer than `length` is cut into parts of `length`, its
               remainder is packed like a short document. No token is left out; the rest of the row is padding.
  "alone"      as "documents", but one document (or part of a long one) per window.
Every part of a document in a row is a segment (1, 2, ...; 0 is padding) with positions from 0, so attention within equal segments does not
cross documents. Both follow from the positions of EOS in the row, since no text is encoded as EOS; in supervised data, where a chat
template may write EOS after every answer, from the column of roles.

Held-out.  Windows of exactly `length` tokens in stream order, every token once; the last one is padded. Of supervised data, windows as in
"documents" packing, so that answers stay with their prompts.

Roles.  A batch has "roles" (`roles.py`) where at least one corpus of the run has them; tokens of other corpora are then scored text.

Shapes: B rows, L length, C corpora, M period of the mixture, N windows of an epoch.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Int, UInt64

from dlmjax.data.corpus import Corpus
from dlmjax.data.roles import ALL_SCORED, END, PADDING
from dlmjax.errors import InputError

PACKINGS = ("concat", "documents", "alone")
View = Callable[[dict[str, np.ndarray], np.ndarray], dict[str, np.ndarray]]
PERIOD = 1 << 16  # samples after which a mixture's pattern repeats; the resolution of its weights


# ---- keyed permutation -----------------------------------------------------------------------------------------------------------


def mix(values: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """A bijection of 64-bit numbers that scatters them (the finaliser of SplitMix64, Steele et al. 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def make_keys(seed: int, corpus: int, epochs_B: Int[np.ndarray, "B"]) -> UInt64[np.ndarray, "B"]:
    """One key for each (seed, corpus, epoch)."""
    base = mix(mix(np.array([seed], np.uint64)) ^ np.uint64(corpus))
    return mix(base ^ epochs_B.astype(np.uint64))


def permute(index_B: Int[np.ndarray, "B"], size: int, key_B: UInt64[np.ndarray, "B"]) -> Int[np.ndarray, "B"]:
    """The image of each index under the permutation of 0..size-1 that its key selects: a bijection for every key, without a table.

    A Feistel network on a grid of about sqrt(size) x sqrt(size) cells, its halves added modulo the grid's sides (Black & Rogaway
    2002, "generalised Feistel"); results not below `size` are mapped again until they are ("cycle walking").
    """
    if size <= 1:
        return np.zeros_like(index_B)
    high = math.isqrt(size - 1) + 1
    sides = (high, -(-size // high))
    values = index_B.astype(np.uint64)
    outside = np.flatnonzero(values < size)
    while len(outside):
        values[outside] = _feistel(values[outside], sides, key_B[outside])
        outside = outside[values[outside] >= size]
    return values.astype(np.int64)


def _feistel(values_B: UInt64[np.ndarray, "B"], sides: tuple[int, int], key_B: UInt64[np.ndarray, "B"]) -> UInt64[np.ndarray, "B"]:
    high, low = np.uint64(sides[0]), np.uint64(sides[1])
    left, right = np.divmod(values_B, low)
    round_keys = mix(key_B + np.arange(8, dtype=np.uint64)[:, None])
    for number in range(0, 8, 2):
        left = (left + _scramble(right, round_keys[number]) % high) % high
        right = (right + _scramble(left, round_keys[number + 1]) % low) % low
    return left * low + right


def _scramble(values_B: UInt64[np.ndarray, "B"], key_B: UInt64[np.ndarray, "B"]) -> UInt64[np.ndarray, "B"]:
    """Half of `mix`: enough for one of eight rounds."""
    values_B = (values_B ^ key_B) * np.uint64(0xBF58476D1CE4E5B9)
    return (values_B ^ (values_B >> np.uint64(32))) * np.uint64(0x94D049BB133111EB) >> np.uint64(24)


# ---- packing ---------------------------------------------------------------------------------------------------------------------


def pack(document_ends: Iterable[np.ndarray], length: int, alone: bool) -> Int[np.ndarray, "W"]:
    """The starts of the windows of "documents" (next fit) or "alone" packing; window i is [starts[i], starts[i+1]).

    Args:
        document_ends: increasing end offsets of the documents (int64), in any number of arrays.
    Returns:
        The N window starts and the end of the last window (W = N + 1).
    Time: about 20 ns per document and 100 ns per window; memory: 8 bytes per window.
    """
    starts: list[np.ndarray] = []
    waiting = np.zeros(0, np.int64)  # ends of the items of the last window, which may get further items
    begin = 0  # start of the first waiting item
    for ends_D in document_ends:
        previous = waiting[-1] if len(waiting) else begin
        item_ends = np.concatenate([waiting, _item_ends(ends_D, int(previous), length)])
        if len(item_ends) == 0:
            continue
        item_starts = np.concatenate([[begin], item_ends[:-1]])
        if alone:
            starts.append(item_starts)
            begin, waiting = int(item_ends[-1]), item_ends[:0]
            continue
        following = np.searchsorted(item_ends, item_starts + length, side="right").tolist()
        chosen, item = [], 0
        while following[item] < len(item_ends):
            chosen.append(item)
            item = following[item]
        starts.append(item_starts[chosen])
        begin, waiting = int(item_starts[item]), item_ends[item:]
    if len(waiting):
        starts.append(np.array([begin]))
        begin = int(waiting[-1])
    return np.concatenate([*starts, [begin]]).astype(np.int64)


def _item_ends(ends_D: Int[np.ndarray, "D"], begin: int, length: int) -> Int[np.ndarray, "I"]:
    """Ends of documents cut to at most `length` tokens each."""
    starts_D = np.concatenate([[begin], ends_D[:-1]]).astype(np.int64)[: len(ends_D)]
    pieces_D = -(-(ends_D - starts_D) // length)
    number = np.arange(int(pieces_D.sum())) - np.repeat(np.cumsum(pieces_D) - pieces_D, pieces_D)
    return np.minimum(np.repeat(starts_D, pieces_D) + (number + 1) * length, np.repeat(ends_D, pieces_D))


def segments_and_positions(
    ends_BL: Bool[np.ndarray, "B L"], counts_B: Int[np.ndarray, "B"]
) -> tuple[Int[np.ndarray, "B L"], Int[np.ndarray, "B L"]]:
    """Segments (1, 2, ...; 0 from counts on) and positions within them, from where documents end in each row."""
    column_L = np.arange(ends_BL.shape[1], dtype=np.int32)
    begins_BL = np.empty_like(ends_BL)
    begins_BL[:, 0] = True
    begins_BL[:, 1:] = ends_BL[:, :-1]
    segments_BL = np.cumsum(begins_BL, axis=1, dtype=np.int32)
    positions_BL = column_L - np.maximum.accumulate(np.where(begins_BL, column_L, np.int32(0)), axis=1)
    if int(counts_B.min(initial=ends_BL.shape[1])) < ends_BL.shape[1]:
        padding_BL = column_L >= counts_B[:, None]
        segments_BL[padding_BL] = 0
        positions_BL[padding_BL] = 0
    return segments_BL, positions_BL


class _Rows:
    """The rows of a batch while they are read: B rows of L tokens, all padding at first. counts_B: tokens of each row."""

    def __init__(self, batch: int, length: int, corpora: Sequence[Corpus]):
        tokenizer = corpora[0].tokenizer
        self.eos_id = tokenizer.eos_id
        self.tokens_BL = np.full((batch, length), tokenizer.pad_id, np.int32)
        self.counts_B = np.zeros(batch, np.int64)
        self.roles_BL = np.full((batch, length), PADDING, np.uint8) if any(corpus.has_roles for corpus in corpora) else None
        self._has_roles_B = np.zeros(batch, bool)

    def read(self, corpus: Corpus, rows_N: Int[np.ndarray, "N"], offsets_N: Int[np.ndarray, "N"], counts_N: Int[np.ndarray, "N"]) -> None:
        """Reads these ranges of a corpus into these rows."""
        self.counts_B[rows_N] = counts_N
        self._has_roles_B[rows_N] = corpus.has_roles
        corpus.read_into(self.tokens_BL, rows_N, offsets_N, counts_N, self.roles_BL)

    def batch(self, numbers_B: np.ndarray) -> dict[str, np.ndarray]:
        """The batch as the loader yields it; numbers_B: the number of each row or window."""
        ends_BL = self.tokens_BL == self.eos_id
        if self.roles_BL is not None:
            written_BL = np.arange(ends_BL.shape[1]) < self.counts_B[:, None]
            plain_B1 = ~self._has_roles_B[:, None]
            ends_BL = np.where(plain_B1, ends_BL, self.roles_BL & END > 0)
            # Padding has the byte of padding, and END stands where documents end, in rows of both kinds.
            roles_BL = np.where(plain_B1 & written_BL, np.uint8(ALL_SCORED) | END * ends_BL.astype(np.uint8), self.roles_BL)
        segments_BL, positions_BL = segments_and_positions(ends_BL, self.counts_B)
        found = {"tokens": self.tokens_BL, "segments": segments_BL, "positions": positions_BL, "row": numbers_B.astype(np.int32)}
        return found if self.roles_BL is None else {**found, "roles": roles_BL}


def _row(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {key: values[0] for key, values in batch.items() if key != "row"}


def _check_length(length: int) -> None:
    if length < 1:
        raise InputError(f"the window length is {length}; give at least 1")


# ---- one corpus ------------------------------------------------------------------------------------------------------------------


class _Epochs:
    """The windows of one corpus by number, one epoch after the other."""

    def __init__(self, corpus: Corpus, number: int, length: int, seed: int, packing: str):
        self.corpus, self.number, self.length, self.seed = corpus, number, length, seed
        self._starts = None if packing == "concat" else pack(corpus.document_ends(), length, packing == "alone")
        self.count = corpus.num_tokens // length if self._starts is None else len(self._starts) - 1
        if self.count == 0:
            raise InputError(
                f"{corpus.directory} ({corpus.split}) has {corpus.num_tokens:,} tokens, fewer than one window of {length:,}; "
                "prepare more text, lower data.length, or set data.packing=documents, which pads"
            )

    def locate(self, samples_B: Int[np.ndarray, "B"]) -> tuple[Int[np.ndarray, "B"], Int[np.ndarray, "B"]]:
        """Offset in the stream and number of tokens of this corpus's samples."""
        epochs_B, index_B = np.divmod(samples_B, self.count)
        keys_B = make_keys(self.seed, self.number, epochs_B)
        window_B = permute(index_B, self.count, keys_B)
        if self._starts is not None:
            return self._starts[window_B], self._starts[window_B + 1] - self._starts[window_B]
        if self.corpus.token_budget is not None:
            return window_B * self.length, np.full(len(samples_B), self.length, np.int64)
        # The ring begins at a random offset; read_into takes offsets modulo the stream's length.
        offset_B = (mix(keys_B) % np.uint64(self.corpus.num_tokens)).astype(np.int64)
        return (offset_B + window_B * self.length) % self.corpus.num_tokens, np.full(len(samples_B), self.length, np.int64)


class Mixture:
    """The corpus of each sample, of C corpora: in exact proportion and at regular distances, a function of the number of the sample.

    Of every PERIOD samples, corpus c has round(weight_c * PERIOD); of any first samples, its number is within C/2 + 1 of its share.
    """

    def __init__(self, weights: Sequence[float | int]):
        weights_C = np.asarray(weights, np.float64)
        if len(weights_C) == 0 or not np.isfinite(weights_C).all() or (weights_C <= 0).any():
            raise InputError(f"mixture weights {list(weights)} must be positive numbers")
        share_C = weights_C / weights_C.sum()
        period = PERIOD if len(share_C) > 1 else 1
        self.count_C = np.floor(share_C * period).astype(np.int64)
        missing = period - int(self.count_C.sum())
        self.count_C[np.argsort(-(share_C * period - self.count_C), kind="stable")[:missing]] += 1
        if (self.count_C == 0).any():
            raise InputError(f"mixture weights {list(weights)}: one is below 1/{PERIOD} of the whole; leave that corpus out")
        corpus_M = np.repeat(np.arange(len(share_C)), self.count_C)
        rank_M = np.concatenate([np.arange(n) for n in self.count_C])
        order_M = np.argsort((rank_M + 0.5) / self.count_C[corpus_M], kind="stable")
        self._corpus_M, self._rank_M = corpus_M[order_M], rank_M[order_M]

    def choose(self, samples_B: Int[np.ndarray, "B"]) -> tuple[Int[np.ndarray, "B"], Int[np.ndarray, "B"]]:
        """For samples of the run: the corpus, and the index among that corpus's samples."""
        block_B, within_B = np.divmod(samples_B, len(self._corpus_M))
        corpus_B = self._corpus_M[within_B]
        return corpus_B, block_B * self.count_C[corpus_B] + self._rank_M[within_B]


class TrainWindows:
    """The rows of a training run, as described at the top of this file.

    Args:
        corpora: splits to draw from, all prepared with one tokenizer.
        weights: share of the rows from each corpus; None: in proportion to its tokens.
        length: tokens of a row.
        global_batch: rows of a step, over all hosts and microbatches.
        seed: seed of the order of windows.
        packing: "concat", "documents" or "alone".
        views: what is made of the rows once they are read, one after the other: (batch, number of each row's sample in the run) -> batch.
    Raises:
        InputError: corpora of different tokenizers, a corpus smaller than a window, bad weights or packing.
    """

    def __init__(
        self,
        corpora: Sequence[Corpus],
        weights: Sequence[float | int] | None,
        length: int,
        global_batch: int,
        seed: int,
        packing: str = "concat",
        views: Sequence[View] = (),
    ):
        _check_length(length)
        if global_batch < 1 or seed < 0:
            raise InputError(f"global_batch is {global_batch} (at least 1), seed {seed} (at least 0)")
        if packing not in PACKINGS:
            raise InputError(f"packing is {packing!r}; give one of: {', '.join(PACKINGS)}")
        if not corpora:
            raise InputError("no corpus to train on")
        weights = [float(corpus.num_tokens) for corpus in corpora] if weights is None else weights
        if len(weights) != len(corpora):
            raise InputError(f"{len(weights)} mixture weights for {len(corpora)} corpora")
        other = next((corpus for corpus in corpora if corpus.tokenizer.hash != corpora[0].tokenizer.hash), None)
        if other:
            raise InputError(
                f"{corpora[0].directory} and {other.directory} were prepared with different tokenizers; prepare one of them again"
            )
        self.corpora, self.length, self.global_batch, self.seed, self.packing = list(corpora), length, global_batch, seed, packing
        self.tokenizer, self._views = corpora[0].tokenizer, tuple(views)
        self._mixture = Mixture(weights)
        self._epochs = [_Epochs(corpus, number, length, seed, packing) for number, corpus in enumerate(corpora)]

    @property
    def windows_per_epoch(self) -> list[int]:
        """Number of windows in an epoch of each corpus."""
        return [epochs.count for epochs in self._epochs]

    def epochs(self, step: int) -> list[float]:
        """Number of epochs of each corpus before this step."""
        samples = step * self.global_batch
        counts = self._mixture.count_C
        return [samples * int(n) / int(counts.sum()) / epochs.count for n, epochs in zip(counts, self._epochs, strict=True)]

    def row(self, step: int, row: int) -> dict[str, np.ndarray]:
        """One row of a step's global batch: {"tokens", "segments", "positions"}, int32 [L], and "roles", uint8 [L], if any."""
        return _row(self.rows(step, range(row, row + 1)))

    def rows(self, step: int, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """Rows of a step's global batch: {"tokens", "segments", "positions": int32 [B, L], "row": int32 [B]}, and "roles": uint8 [B, L]
        where a corpus has them."""
        if step < 0 or (len(rows) and not 0 <= min(rows) <= max(rows) < self.global_batch):
            raise InputError(f"step {step}, rows {rows}: a step has rows 0 to {self.global_batch - 1}, steps begin at 0")
        rows_B = np.array(rows, np.int64)
        corpus_B, samples_B = self._mixture.choose(step * self.global_batch + rows_B)
        found = _Rows(len(rows_B), self.length, self.corpora)
        for number in np.unique(corpus_B).tolist():
            here_N = np.flatnonzero(corpus_B == number)
            found.read(self.corpora[number], here_N, *self._epochs[number].locate(samples_B[here_N]))
        batch = found.batch(rows_B)
        for view in self._views:
            batch = view(batch, step * self.global_batch + rows_B)
        return batch


class EvalWindows:
    """Every token of a split exactly once, in order: window i is [i * length, (i + 1) * length); the last one is padded (segments 0).
    Windows of supervised data hold whole documents where these fit, and are padded.

    limit: only the first windows; None: all.
    """

    def __init__(self, corpus: Corpus, length: int, limit: int | None = None):
        _check_length(length)
        self.corpus, self.length, self.tokenizer, self.limit = corpus, length, corpus.tokenizer, limit
        self._starts = pack(corpus.document_ends(), length, alone=False) if corpus.has_roles else None

    def _start(self, numbers: np.ndarray) -> np.ndarray:
        """The offsets of windows in the stream; of the number after the last one, the end of the stream."""
        return np.minimum(numbers * self.length, self.corpus.num_tokens) if self._starts is None else self._starts[numbers]

    def __len__(self) -> int:
        every = -(-self.corpus.num_tokens // self.length) if self._starts is None else len(self._starts) - 1
        return every if self.limit is None else min(self.limit, every)

    def row(self, number: int) -> dict[str, np.ndarray]:
        """One window: {"tokens", "segments", "positions"}, int32 [L], and "roles", uint8 [L], if any."""
        if not 0 <= number < len(self):
            raise InputError(f"window {number} of {len(self)} held-out windows")
        return _row(self.rows(range(number, number + 1)))

    def rows(self, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        """Windows as a batch, as from `TrainWindows.rows` with "row" the window number; numbers after the last one give rows of padding."""
        numbers_B = np.array(numbers, np.int64)
        found = _Rows(len(numbers_B), self.length, [self.corpus])
        here_N = np.flatnonzero(numbers_B < len(self))
        starts_N, ends_N = self._start(numbers_B[here_N]), self._start(numbers_B[here_N] + 1)
        found.read(self.corpus, here_N, starts_N, ends_N - starts_N)
        return found.batch(numbers_B)
