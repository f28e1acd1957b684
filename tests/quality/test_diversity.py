"""Distinct-n and self-BLEU: by hand, by brute force, and beside NLTK."""

import math

import numpy as np
import pytest

from dlmjax.quality.diversity import distinct_n, mean_with_error, self_bleu

TEXTS = ["the cat sat on the mat", "the cat sat on a mat today", "a dog", "the the the the the", "on a mat the cat sat on"]
WORDS = [text.split() for text in TEXTS]


def test_distinct_n_by_hand():
    texts = [["a", "b", "a"], ["a", "c"]]
    assert distinct_n(texts, 1)[0] == 3 / 5  # a, b, c of a b a a c
    assert distinct_n(texts, 2)[0] == 1.0  # ab, ba, ac
    assert math.isnan(distinct_n(texts, 4)[0])


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_jackknife_leaves_each_text_out(n):
    """What the counts give is what leaving out one text after another gives."""
    value, error = distinct_n(WORDS, n)
    without = np.array([distinct_n(WORDS[:i] + WORDS[i + 1 :], n)[0] for i in range(len(WORDS))])
    assert error == pytest.approx(math.sqrt((len(WORDS) - 1) * without.var()))
    assert 0 < value <= 1


def test_self_bleu_by_hand():
    same = [["a", "b", "c", "d", "e"]] * 3
    assert self_bleu(same) == (1.0, 0.0)
    assert self_bleu([["a", "b", "c", "d"], ["e", "f", "g", "h"]])[0] == 0.0
    # Both: 4 of 5 words, 3 of 4 pairs, 2 of 3, 1 of 2, equal lengths.
    assert self_bleu([["a", "b", "c", "d", "e"], ["a", "b", "c", "d", "f"]])[0] == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert math.isnan(self_bleu([["a"], []])[0])


def test_self_bleu_is_nltks():
    bleu = pytest.importorskip("nltk.translate.bleu_score")
    smooth = bleu.SmoothingFunction().method1
    rng = np.random.default_rng(0)
    texts = WORDS + [rng.choice(list("abcdef"), rng.integers(1, 30)).tolist() for _ in range(30)]
    expected = [bleu.sentence_bleu(texts[:i] + texts[i + 1 :], text, smoothing_function=smooth) for i, text in enumerate(texts)]
    value, error = self_bleu(texts)
    assert (value, error) == pytest.approx(mean_with_error(expected))


def test_a_mean_of_one_has_no_error():
    assert mean_with_error([2.0])[0] == 2.0 and math.isnan(mean_with_error([2.0])[1])
    assert mean_with_error([1.0, 3.0]) == (2.0, 1.0)
