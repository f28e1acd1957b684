"""N-gram baselines of a text, for comparison with the bits per byte of a trained model.

There are two kinds of number, which are not comparable:
  cross-entropy under a table counted on the TRAINING text (`witten_bell_bits`, `EntropyBaselines.unigram`, `.bigram`): the score of an
    n-gram model on the held-out text; a model above the bigram baseline has learnt less than pairs of symbols.
  empirical entropy of the HELD-OUT text itself (`empirical_entropy`, `EntropyBaselines.own_unigram`, `.own_bigram`): the score of a table
    counted on the held-out text; it is lower, and for pairs too low on short texts.

Symbols are bytes, characters or token ids: integers below `symbols`.  Units: bits per symbol.  N symbols in a text.
"""

import dataclasses
import math
from collections.abc import Iterable

import numpy as np

from dlmjax.errors import InputError

_DENSE = 1 << 24  # tables up to this many cells are counted by index, larger ones by sorting
Text = bytes | np.ndarray | Iterable[bytes | np.ndarray]


@dataclasses.dataclass(frozen=True)
class EntropyBaselines:
    """Baselines of one held-out text, in bits per symbol (bytes: bits per byte).

    unigram, bigram: cross-entropy of the held-out text under Witten-Bell tables of order 1 and 2 counted on the training text.
    own_unigram, own_bigram: H(X_i) and H(X_i | X_{i-1}) of the held-out text's own counts.
    """

    unigram: float
    bigram: float
    own_unigram: float
    own_bigram: float
    train_symbols: int
    held_out_symbols: int


def entropy_baselines(train: Text, held_out: Text, symbols: int = 256) -> EntropyBaselines:
    """Unigram and bigram baselines of `held_out`, of both kinds of the module docstring.

    train, held_out: bytes, an integer array, or an iterable of documents (joined in their order).  symbols: size of the alphabet.
    Raises InputError when a text is empty or holds a symbol outside the alphabet.
    """
    train_N, held_N = as_symbols(train, symbols, "training text"), as_symbols(held_out, symbols, "held-out text")
    unigram, bigram = witten_bell_bits(train_N, held_N, 2, symbols)
    return EntropyBaselines(
        unigram=float(unigram),
        bigram=float(bigram),
        own_unigram=empirical_entropy(held_N, 1, symbols),
        own_bigram=empirical_entropy(held_N, 2, symbols),
        train_symbols=len(train_N),
        held_out_symbols=len(held_N),
    )


def witten_bell_bits(train: Text, held_out: Text, order: int, symbols: int = 256) -> np.ndarray:
    """Bits per symbol of `held_out` under interpolated Witten-Bell tables of orders 1..order counted on `train`.  -> [order]

    P_n(w | h) = (c(hw) + T(h) P_{n-1}(w | h')) / (c(h) + T(h)), with h the n-1 symbols before, h' without its first, T(h) the number of
    different symbols seen after h, P_0 = 1 / symbols; where h was never seen, P_n = P_{n-1} (Witten and Bell 1991, method C; Chen and
    Goodman 1998 section 2.5).  Contexts run on across joined documents; the first n-1 symbols use what context they have.
    Raises InputError on empty texts, symbols outside the alphabet, or an order too high for 62-bit n-gram codes.
    """
    if order < 1:
        raise InputError(f"the order of an n-gram table is {order}; it must be at least 1")
    if order * math.log2(max(symbols, 2)) > 62:
        raise InputError(f"order {order} over {symbols} symbols does not fit 62-bit codes; lower the order")
    train_N, held_N = as_symbols(train, symbols, "training text"), as_symbols(held_out, symbols, "held-out text")
    p_N = np.full(len(held_N), 1.0 / symbols)
    bits = []
    for n in range(1, order + 1):
        if len(held_N) >= n and len(train_N) >= n:
            codes = _codes(held_N, n, symbols)
            seen, context, kinds = _Table(train_N, n, symbols).look_up(codes)
            lower = p_N[n - 1 :]
            p_N[n - 1 :] = np.where(context > 0, (seen + kinds * lower) / np.maximum(context + kinds, 1), lower)
        bits.append(-np.log2(p_N).mean())
    return np.asarray(bits)


def empirical_entropy(text: Text, order: int, symbols: int = 256) -> float:
    """H(X_i | the order-1 symbols before) of the text's own counts, in bits per symbol; order 1 is the plain unigram entropy."""
    text_N = as_symbols(text, symbols, "text")
    if order < 1 or len(text_N) < order:
        raise InputError(f"a text of {len(text_N)} symbols has no n-grams of order {order}")
    codes = _codes(text_N, order, symbols)
    joint = _entropy_of_counts(np.unique(codes, return_counts=True)[1])
    return joint - _entropy_of_counts(np.unique(codes // symbols, return_counts=True)[1])


def as_symbols(text: Text, symbols: int, name: str) -> np.ndarray:
    """The text as one array of symbols, checked.  -> [N], the smallest integer type given"""
    if isinstance(text, np.ndarray):
        array_N = text.reshape(-1)
    elif isinstance(text, bytes | bytearray):
        array_N = np.frombuffer(text, np.uint8)
    else:
        parts = [as_symbols(part, symbols, name) for part in text if len(part)]
        array_N = np.concatenate(parts) if parts else np.zeros(0, np.uint8)
    if len(array_N) == 0:
        raise InputError(f"the {name} is empty; counts require at least one symbol")
    if array_N.dtype.kind not in "ui":
        raise InputError(f"the {name} holds {array_N.dtype} values; symbols are integers")
    low, high = int(array_N.min()), int(array_N.max())
    if low < 0 or high >= symbols:
        raise InputError(f"the {name} holds symbols from {low} to {high}, but the alphabet has {symbols}")
    return array_N


class _Table:
    """Counts of all n-grams of a text, with c(h) and T(h) of their contexts."""

    def __init__(self, text_N: np.ndarray, n: int, symbols: int):
        self._symbols = symbols
        codes = _codes(text_N, n, symbols)
        self._dense = symbols**n <= _DENSE
        if self._dense:
            self._counts = np.bincount(codes, minlength=symbols**n)
            by_context = self._counts.reshape(-1, symbols)
            self._context, self._kinds = by_context.sum(axis=1), (by_context > 0).sum(axis=1)
            return
        self._grams, self._counts = np.unique(codes, return_counts=True)
        self._contexts, first = np.unique(self._grams // symbols, return_index=True)
        self._context = np.add.reduceat(self._counts, first)
        self._kinds = np.diff(np.append(first, len(self._grams)))

    def look_up(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """c(hw), c(h), T(h) for each code; 0 where unseen."""
        if self._dense:
            contexts = codes // self._symbols
            return self._counts[codes], self._context[contexts], self._kinds[contexts]
        at, known = _find(self._contexts, codes // self._symbols)
        context, kinds = np.where(known, self._context[at], 0), np.where(known, self._kinds[at], 0)
        at, known = _find(self._grams, codes)
        return np.where(known, self._counts[at], 0), context, kinds


def _codes(text_N: np.ndarray, n: int, symbols: int) -> np.ndarray:
    """Number of the n-gram that starts at each index, base `symbols`.  -> [N - n + 1]"""
    count = len(text_N) - n + 1
    codes = text_N[:count].astype(np.int64)
    for offset in range(1, n):
        codes *= symbols
        codes += text_N[offset : offset + count]
    return codes


def _find(sorted_values: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    at = np.minimum(np.searchsorted(sorted_values, wanted), len(sorted_values) - 1)
    return at, sorted_values[at] == wanted


def _entropy_of_counts(counts: np.ndarray) -> float:
    share = counts / counts.sum()
    return -float(np.sum(share * np.log2(share)))
