"""Tails of supervised data in an evaluation: their nats are in the bound of the answers, their tokens are not counted."""

import dataclasses

import numpy as np
import pytest

from dlmjax.data import Corpus
from dlmjax.data.prepare import prepare
from dlmjax.data.roles import is_filled
from dlmjax.data.supervised import make_choice
from dlmjax.evaluation.text import Cut, corpus_text

LENGTH = 24


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root = tmp_path_factory.mktemp("answers")
    lines = "".join(f'{{"prompt": "{a}+{a}=", "answer": "{a + a}."}}\n' for a in range(60))
    (root / "sums.jsonl").write_text(lines + '{"prompt": "long", "answer": "' + 40 * "x" + '"}\n')
    prepare([root / "sums.jsonl"], "bytes", root / "data", format="prompt-answer", valid_fraction=0, progress=False)
    return Corpus.open(root / "data", split="train")


def rows(corpus, tail: str):
    text = corpus_text(corpus, Cut(LENGTH, tail=make_choice("tail", tail)), copies=True)
    return text, [batch for batch in text.windows.batches(8)]


@pytest.mark.parametrize("tail", ["row", "row(pads=3)", "random(most=5)", "none"])
def test_the_text_stays_and_its_tail_follows(corpus, tail):
    """Counted tokens do not depend on the tail, windows keep their numbers, and a text that fills its window has none."""
    plain, plain_rows = rows(corpus, "none")
    text, found_rows = rows(corpus, tail)
    sums = {"none": 0, "found": 0}
    for name, batches in (("none", plain_rows), ("found", found_rows)):
        for batch in batches:
            of_rows = {int(row): int(n) for row, n in zip(batch["row"], batch["counted"].sum(axis=1), strict=True) if n}
            sums[name] += sum(of_rows.values())
            assert not (batch["counted"] & ~batch["scored"]).any()
    assert sums["none"] == sums["found"] and len(text.windows) == len(plain.windows)
    is_tail_T = is_filled(text.roles_T)
    assert is_tail_T.any() == (tail != "none")
    assert np.array_equal(text.windows.tokens_T[~is_tail_T], plain.windows.tokens_T)
    assert text.ends_hidden is False  # the long text is cut into windows, which show its end
    ids = set(text.windows.tokens_T[is_tail_T].tolist())
    tokenizer = corpus.tokenizer
    expected = {tokenizer.vocab_size + k for k in range(3)} if "pads" in tail else {tokenizer.eos_id}
    assert ids == (expected if tail != "none" else set())


def test_a_row_that_is_filled_hides_where_its_text_ends(corpus):
    short = dataclasses.replace(Cut(64, tail=make_choice("tail", "row")))
    text = corpus_text(corpus, short, copies=True)
    assert text.ends_hidden and set(text.windows.lengths_W().tolist()) == {64}
