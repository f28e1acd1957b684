"""Diversity of a set of texts, from counts of n-grams. A text is a sequence of units, such as words; each number comes with its s.e.

    distinct-n   different n-grams / n-grams, over all texts (Li et al. 1510.03055); falls with the number and length of the texts, so
                 compare sets of the same size only. s.e.: jackknife over texts.
    self-BLEU    mean over texts of the BLEU-4 of each against all others (Zhu et al. 1802.01886); 1 = all texts are equal.
                 s.e.: over texts, as if independent.

BLEU is that of Papineni et al. with 0.1 in place of zero counts (method 1 of Chen & Cherry 2014); the numbers equal NLTK's. NLTK compares
all pairs of texts; here the two largest counts of each n-gram are computed once, so the cost is linear in the length of the texts.

Shapes: N texts, K orders of n-grams.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

ORDER = 4
EPSILON = 0.1

Text = Sequence[Hashable]


def ngrams(text: Text, n: int) -> Counter:
    """Counts of the n-grams of a text."""
    return Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1))


def distinct_n(texts: Sequence[Text], n: int) -> tuple[float, float]:
    """(different n-grams / n-grams, its jackknife s.e.); both nan where no text has n units, the s.e. nan for one text."""
    counts = [ngrams(text, n) for text in texts]
    owners = Counter(gram for of_text in counts for gram in of_text)
    total_N = np.array([sum(of_text.values()) for of_text in counts], np.float64)
    alone_N = np.array([sum(owners[gram] == 1 for gram in of_text) for of_text in counts], np.float64)
    different, total = len(owners), total_N.sum()
    if total == 0:
        return math.nan, math.nan
    left_N = total - total_N
    if len(texts) < 2 or not left_N.all():
        return different / total, math.nan
    without_N = (different - alone_N) / left_N
    spread = float(np.sum((without_N - without_N.mean()) ** 2))
    return float(different / total), math.sqrt((len(texts) - 1) / len(texts) * spread)


def self_bleu(texts: Sequence[Text]) -> tuple[float, float]:
    """(mean BLEU-4 of each text against the others, s.e.), in [0, 1]; nan for fewer than two non-empty texts."""
    texts = [text for text in texts if len(text)]
    if len(texts) < 2:
        return math.nan, math.nan
    precisions_KN = np.array([_clipped_precisions(texts, n) for n in range(1, ORDER + 1)])
    # A text that shares no unit with the others has BLEU 0; the addition to zero counts of longer n-grams does not apply.
    some_N = precisions_KN[0] > 0
    counts_KN = np.array([[max(1, len(text) - n + 1) for text in texts] for n in range(1, ORDER + 1)])
    precisions_KN = np.where(precisions_KN == 0, EPSILON, precisions_KN) / counts_KN
    bleu_N = np.where(some_N, np.exp(np.log(precisions_KN).mean(axis=0)) * _brevity(texts), 0.0)
    return float(bleu_N.mean()), float(bleu_N.std(ddof=1) / math.sqrt(len(texts)))


def _clipped_precisions(texts: Sequence[Text], n: int) -> list[int]:
    """Number of n-grams of each text, each n-gram counted at most as often as it occurs in any one other text."""
    counts = [ngrams(text, n) for text in texts]
    largest: dict[Hashable, tuple[int, int, int]] = {}  # n-gram -> largest count, its text, largest count of other texts
    for owner, of_text in enumerate(counts):
        for gram, count in of_text.items():
            most, whose, second = largest.get(gram, (0, -1, 0))
            largest[gram] = (count, owner, most) if count > most else (most, whose, max(second, count))

    def others(gram: Hashable, owner: int) -> int:
        most, whose, second = largest[gram]
        return second if whose == owner else most

    return [sum(min(count, others(gram, owner)) for gram, count in of_text.items()) for owner, of_text in enumerate(counts)]


def _brevity(texts: Sequence[Text]) -> np.ndarray:
    """Brevity penalty of each text of c units: exp(1 - r / c) for c < r, else 1; r is the nearest length of another text (of two, the
    shorter)."""
    lengths = np.array([len(text) for text in texts])
    penalties = []
    for i, length in enumerate(lengths):
        others = np.delete(lengths, i)
        nearest = others[np.lexsort((others, np.abs(others - length)))[0]]
        penalties.append(1.0 if length >= nearest else math.exp(1 - nearest / length))
    return np.array(penalties)


def mean_with_error(values_N: Sequence[float]) -> tuple[float, float]:
    """(mean, its s.e.) of independent numbers; the s.e. of one number is nan."""
    values_N = np.asarray(values_N, np.float64)
    if len(values_N) < 2:
        return float(values_N.mean()), math.nan
    return float(values_N.mean()), float(values_N.std(ddof=1) / math.sqrt(len(values_N)))
