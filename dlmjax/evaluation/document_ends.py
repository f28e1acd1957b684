"""What it costs to say where documents end, for networks that are shown it.

The attention of a row follows its documents, and positions restart in each, so a network that reads a whole row knows the length of every
document: its bound is one of -log p(tokens | lengths), where an autoregressive network pays for each end as for any other token. The two
differ by the entropy of a length, per document:

    -log p(text) = -log p(tokens | lengths) - log p(lengths)

`LengthLaw` is the second term: a law of lengths that is fitted on training documents. With it the sum bounds the same law of text as the
number of a network that reads from left to right.

Shapes: D documents, N lengths, W windows. Units: nats.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Int

from dlmjax.data import Corpus
from dlmjax.errors import InputError
from dlmjax.evaluation.windows import Windows

KNOWN, COUNTED = "known", "counted"
_WEIGHTS = 10.0 ** (np.arange(-2, 13) / 2)


@dataclasses.dataclass(frozen=True)
class LengthLaw:
    """p(n) = (c_n + a g(n)) / (D + a) for documents of n = 1, 2, ... tokens, their end included: c_n of D training documents have n tokens,
    g is the geometric distribution of their mean, and a is the weight under which each training document is most probable by the others.
    """

    counts_N: Int[np.ndarray, "N"]
    stop: float  # 1 / mean of g
    weight: float

    @classmethod
    def fit(cls, lengths_D: Int[np.ndarray, "D"]) -> "LengthLaw":
        """The law of training documents. Raises InputError: none."""
        if not len(lengths_D):
            raise InputError("--document-ends counted requires training documents, and there are none; give --document-ends known")
        stop = len(lengths_D) / (float(lengths_D.sum()) + 1)  # a length above those that were seen is possible, too
        laws = [cls(np.bincount(lengths_D), stop, float(weight)) for weight in _WEIGHTS]
        return max(laws, key=lambda law: law._left_out(lengths_D))

    def _left_out(self, lengths_D: Int[np.ndarray, "D"]) -> float:
        """log p of each training document by the others, summed."""
        log_top_D = self._log_top(lengths_D, self.counts_N[lengths_D] - 1)
        return float(np.sum(log_top_D - np.log(len(lengths_D) - 1 + self.weight)))

    def _log_top(self, lengths_D: Int[np.ndarray, "D"], seen_D: Int[np.ndarray, "D"]) -> Float[np.ndarray, "D"]:
        """log(seen + a g(n)): in logarithms, since no float holds g of a length that is thousands of times the mean."""
        log_base_D = np.log(self.weight * self.stop) + (lengths_D - 1.0) * np.log1p(-self.stop)
        log_seen_D = np.full(len(lengths_D), -np.inf)
        np.log(seen_D, out=log_seen_D, where=seen_D > 0)
        return np.logaddexp(log_base_D, log_seen_D)

    def nats(self, lengths_D: Int[np.ndarray, "D"]) -> Float[np.ndarray, "D"]:
        """-log p of each length, in nats."""
        longest = len(self.counts_N) - 1
        seen_D = np.where(lengths_D <= longest, self.counts_N[np.minimum(lengths_D, longest)], 0)
        return np.log(self.counts_N.sum() + self.weight) - self._log_top(lengths_D, seen_D)


def lengths_of(ends: Iterable[Int[np.ndarray, "D"]]) -> Int[np.ndarray, "D"]:
    """Lengths of documents in tokens, from the offsets after their ends, in any number of arrays."""
    return np.diff(np.concatenate([[0], *ends])).astype(np.int64)


def document_lengths(corpus: Corpus) -> Int[np.ndarray, "D"]:
    """Lengths of the documents of a split, tokens, without their ends."""
    return lengths_of(corpus.document_ends()) - 1


def ends_of_windows(windows: Windows, eos_id: int, nats_D: Float[np.ndarray, "D"]) -> Float[np.ndarray, "W"]:
    """The nats of the documents that end inside the scored tokens of each window. nats_D: of each document; one that is cut off has no
    end."""
    total_W = np.zeros(len(windows))
    for w, (scored, end) in enumerate(zip(windows.scored_W, windows.end_W, strict=True)):
        first, last = np.searchsorted(windows.ends_D, (scored, end), side="right")
        ending_N = np.arange(first, last)
        total_W[w] = nats_D[ending_N[windows.tokens_T[windows.ends_D[ending_N] - 1] == eos_id]].sum()
    return total_W
