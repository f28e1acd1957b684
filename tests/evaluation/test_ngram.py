"""Counting: by hand, against a naive model, and against published reference values where the corpora are at hand."""

import collections
import lzma
import pathlib
from pydoc_data import topics

import numpy as np
import pytest

from dlmjax.errors import InputError
from dlmjax.evaluation.ngram import empirical_entropy, entropy_baselines, witten_bell_bits

SHARED = pathlib.Path(__file__).resolve().parents[2].parent / "shared"


def letters27(path) -> np.ndarray:
    """Space and a to z as 0 to 26."""
    with lzma.open(path) as file:
        letters = np.frombuffer(file.read(), np.uint8)
    return np.where(letters == ord(" "), 0, letters - (ord("a") - 1)).astype(np.uint8)


def naive_witten_bell(train, held_out, order, symbols):
    """The recursion as it is written, with dictionaries."""
    counts, followers = collections.Counter(), collections.defaultdict(set)
    for n in range(1, order + 1):
        for i in range(len(train) - n + 1):
            gram = tuple(train[i : i + n])
            counts[gram] += 1
            followers[gram[:-1]].add(gram[-1])
    totals = collections.Counter()
    for gram, count in counts.items():
        totals[gram[:-1]] += count

    def p(context, symbol):
        lower = p(context[1:], symbol) if context else 1 / symbols
        if not totals[context]:
            return lower
        return (counts[*context, symbol] + len(followers[context]) * lower) / (totals[context] + len(followers[context]))

    return [
        -np.mean([np.log2(p(tuple(held_out[max(0, i - n + 1) : i]), held_out[i])) for i in range(len(held_out))])
        for n in range(1, order + 1)
    ]


@pytest.mark.parametrize(("symbols", "order"), [(3, 4), (60, 5), (3000, 3)], ids=["dense", "sparse", "large alphabet"])
def test_witten_bell_equals_the_naive_model(symbols, order):
    """The held-out text has symbols and contexts that the training text lacks."""
    random = np.random.default_rng(0)
    train = random.integers(0, symbols - 1, 400) // random.integers(1, 5, 400)
    held_out = random.integers(0, symbols, 100)
    np.testing.assert_allclose(
        witten_bell_bits(train, held_out, order, symbols), naive_witten_bell(train, held_out, order, symbols), rtol=1e-12
    )


def test_by_hand():
    """Train aab, alphabet {a, b}: c(a)=2, c(b)=1, T=2, so P(a) = (2 + 2/2)/5 = 3/5."""
    assert witten_bell_bits(np.array([0, 0, 1]), np.array([0]), 1, 2).tolist() == [-np.log2(3 / 5)]
    # After a: aa and ab once each, T(a) = 2: P(a|a) = (1 + 2 * 3/5) / 4; the first symbol has no context.
    expected = -(np.log2(3 / 5) + np.log2((1 + 6 / 5) / 4)) / 2
    np.testing.assert_allclose(witten_bell_bits(np.array([0, 0, 1]), np.array([0, 0]), 2, 2)[1], expected)


def test_empirical_entropy_is_that_of_a_known_chain():
    random = np.random.default_rng(1)
    switch = random.random(200_000) < 0.1
    text = np.cumsum(switch) % 2
    assert empirical_entropy(text, 1, 2) == pytest.approx(1, abs=1e-3)
    assert empirical_entropy(text, 2, 2) == pytest.approx(-(0.1 * np.log2(0.1) + 0.9 * np.log2(0.9)), abs=5e-3)
    assert empirical_entropy(b"aaaa", 1) == 0


def test_marks_of_the_quickstart_corpus():
    """The first 95 % of CPython's help topics against the last 5 %: 4.59 and 3.23 bits per byte on Python 3.11's text."""
    text = "\n\n".join(topics.topics.values()).encode()
    cut = int(len(text) * 0.95)
    baselines = entropy_baselines(text[:cut], text[cut:])
    assert baselines.train_symbols + baselines.held_out_symbols == len(text)
    assert baselines.unigram == pytest.approx(4.59, abs=0.15) and baselines.bigram == pytest.approx(3.23, abs=0.15)
    assert baselines.own_unigram < baselines.unigram and baselines.own_bigram < baselines.bigram < baselines.own_unigram
    if len(text) == 466_273:  # Python 3.11
        assert (round(baselines.unigram, 2), round(baselines.bigram, 2)) == (4.59, 3.23)


def test_documents_are_joined_as_they_come():
    assert entropy_baselines([b"ab", b"", b"cab"], iter([b"a", b"bc"])) == entropy_baselines(b"abcab", b"abc")
    assert entropy_baselines(np.frombuffer(b"abcab", np.uint8), b"abc") == entropy_baselines(b"abcab", b"abc")


def test_one_symbol_texts():
    assert witten_bell_bits(b"a", b"a", 3).shape == (3,)
    with pytest.raises(InputError, match="no n-grams of order 2"):
        entropy_baselines(b"ab", b"a")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((b"", b"a", 1), "training text is empty"),
        ((b"a", [], 1), "held-out text is empty"),
        ((b"a", b"b", 0), "order of an n-gram table is 0"),
        ((b"a", b"b", 8), "does not fit"),
        ((b"a", b"b", 1, 90), "symbols from 97 to 97, but the alphabet has 90"),
        ((np.array([0.5]), b"b", 1), "integers"),
        ((np.array([-1]), b"b", 1), "symbols from -1"),
    ],
)
def test_bad_texts(arguments, message):
    with pytest.raises(InputError, match=message):
        witten_bell_bits(*arguments)


def test_reference_values_of_text8_head():
    """Character tables of orders 1 to 4 on the head of text8: the values in the data set's README."""
    path = SHARED / "data" / "text8_head" / "text8_head.xz"
    if not path.exists():
        pytest.skip("the corpus text8_head is not here")
    symbols = letters27(path)
    bits = witten_bell_bits(symbols[:11_500_000], symbols[12_000_000:12_500_000], 4, 27)
    np.testing.assert_allclose(bits, [4.126, 3.432, 2.885, 2.365], atol=5e-4)


@pytest.mark.nightly
def test_reference_values_of_novels27():
    """All eight orders on 65 million characters: half a minute and 1.6 GB."""
    path = SHARED / "data" / "novels27"
    if not path.exists():
        pytest.skip("the corpus novels27 is not here")
    bits = witten_bell_bits(letters27(path / "train.txt.xz"), letters27(path / "test.txt.xz"), 8, 27)
    np.testing.assert_allclose(bits, [4.077, 3.312, 2.706, 2.227, 1.951, 1.822, 1.777, 1.776], atol=5e-4)
