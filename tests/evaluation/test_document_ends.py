"""What it costs to say where documents end: the identity by enumeration, a law of lengths, and numbers of both kinds of network."""

import math

import numpy as np
import pytest

from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.errors import InputError
from dlmjax.evaluation.document_ends import LengthLaw, ends_of_windows, lengths_of
from dlmjax.evaluation.windows import cut_windows

# Texts of 0 to 2 tokens of two kinds, then the end (2) up to the row's end.
END, ROW = 2, 3


def text_law(seed: int) -> oracle.JointDistribution:
    weight = np.zeros((3,) * ROW)
    for x in oracle.enumerate_sequences(3, ROW):
        ends = np.flatnonzero(x == END)
        if len(ends) and (x[ends[0] :] == END).all():
            weight[tuple(x)] = np.exp(np.random.default_rng(seed + int(x @ [9, 3, 1])).normal())
    return oracle.JointDistribution(weight / weight.sum())


def length_of(x_n: np.ndarray) -> int:
    return int(np.flatnonzero(x_n == END)[0]) + 1


def test_a_known_end_is_worth_the_entropy_of_the_length():
    """The exact denoiser of rows whose padding is known reads H - H(length); with -log p(length) added it is H, which the exact
    autoregressive network reads."""
    law = text_law(3)
    p_N = np.bincount([length_of(x) for x in law.sequences_Xn if law.table[tuple(x)] > 0], minlength=1) * 0.0
    by_length: dict[int, np.ndarray] = {}
    for x, p in zip(law.sequences_Xn, law.probability_X, strict=True):
        if p > 0:
            n = length_of(x)
            p_N[n] += p
            by_length.setdefault(n, np.zeros((3,) * n))[tuple(x[:n])] += p
    known = sum(p_N[n] * masked_nats(oracle.JointDistribution(table / table.sum())) for n, table in by_length.items())
    h_length = -sum(p * math.log(p) for p in p_N if p > 0)
    assert h_length > 0.5 and known == pytest.approx(law.entropy - h_length, abs=1e-6)
    nats_N = -np.log(np.where(p_N > 0, p_N, 1.0))
    assert known + float(p_N @ nats_N) == pytest.approx(left_to_right_nats(law), abs=1e-6)
    # Noised up to the row's end, with the ends as tokens like the others, the length is paid for.
    assert masked_nats(law) == pytest.approx(law.entropy, abs=1e-6)


def masked_nats(law: oracle.JointDistribution) -> float:
    """The bound of masked diffusion with the exact denoiser, by enumeration and quadrature."""
    kernel = oracle.masked_kernel(3, lambda t: 1 - t, lambda t: -1.0)
    return float(sum(w * oracle.integrand(law, kernel, float(t)) for t, w in zip(*oracle.quadrature(64), strict=True)))


def left_to_right_nats(law: oracle.JointDistribution) -> float:
    """The chain rule over tokens."""
    prefixes = [law.table.sum(axis=tuple(range(i, ROW))) for i in range(1, ROW + 1)]
    entropies = [0.0, *(oracle.JointDistribution(table).entropy for table in prefixes)]
    return float(np.sum(np.diff(entropies)))


@pytest.mark.parametrize("lengths", [[1], [5, 5, 5], [3, 4, 9, 4, 4, 30], [*[2] * 50, 90_000], list(range(1, 200))], ids=str)
def test_the_law_of_lengths_is_one(lengths):
    """It sums to 1 over all lengths, those never seen included, and is finite at each."""
    law = LengthLaw.fit(np.asarray(lengths))
    nats_N = law.nats(np.arange(1, 200_000))
    assert np.isfinite(nats_N).all() and np.exp(-nats_N).sum() == pytest.approx(1, abs=1e-9)
    assert np.isfinite(law.nats(np.asarray([10**7]))).all()


def test_the_law_of_lengths_costs_little_more_than_their_entropy():
    rng = np.random.default_rng(0)
    train, held_out = (1 + rng.poisson(30, 20_000) for _ in range(2))
    p_N = np.bincount(held_out) / len(held_out)
    entropy = -np.sum(p_N[p_N > 0] * np.log(p_N[p_N > 0]))
    assert entropy < LengthLaw.fit(train).nats(held_out).mean() < entropy + 0.01
    with pytest.raises(InputError, match="requires training documents"):
        LengthLaw.fit(np.zeros(0, np.int64))


def test_each_end_that_is_scored_counts_once():
    """Over windows of any stride: documents that end in the scored tokens; the last one, which is cut off, has no end."""
    tokens_T = np.asarray([5, 5, 7, 5, 5, 5, 5, 7, 7, 5, 5])  # 7 ends a document
    ends_D = np.asarray([3, 8, 9, 11])
    nats_D = np.asarray([1.0, 10.0, 100.0, 1000.0])
    np.testing.assert_array_equal(lengths_of([ends_D]), [3, 5, 1, 2])
    for window, step in ((4, 4), (4, 2), (11, 11), (3, 3)):
        windows = cut_windows(tokens_T, ends_D, window=window, step=step, pad_id=0)
        found_W = ends_of_windows(windows, 7, nats_D)
        assert found_W.sum() == 111 and len(found_W) == len(windows)
    np.testing.assert_array_equal(ends_of_windows(cut_windows(tokens_T, ends_D, window=4, step=4, pad_id=0), 7, nats_D), [1, 10, 100])
