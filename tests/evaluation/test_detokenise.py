"""Detokenisers: each published rule by an example written out by hand, and real lines."""

import lzma

import pytest

from dlmjax.errors import InputError
from dlmjax.evaluation.detokenise import DETOKENISERS, detokenise
from tests.data.conftest import shared_file

EXAMPLES = [
    ("none", " as @-@ is ", " as @-@ is "),
    ("wikitext", " = Robert Boulter = \n", " = Robert Boulter =\n"),
    (
        "wikitext",
        "a guest @-@ starring role in 1 @,@ 000 @.@ 5 films , twice . Then",
        "a guest-starring role in 1,000.5 films, twice. Then",
    ),
    ("wikitext", 'as " Craig " in " Teddy \'s Story " of it', 'as "Craig" in "Teddy\'s Story" of it'),
    ("wikitext", "( a ; b ) [ c ] { d } at 5 ° C : e ! f ? g", "(a; b) [c] {d} at 5°C: e! f? g"),
    ("wikitext", " = = = Life = = = \n", " === Life ===\n"),
    ("wikitext", "the authors ' book and N of it", "the authors' book and 1 of it"),
    ("ptb", "the company 's N N shares were n't $ N <unk> or # N \\/", "the company's 1 1 shares weren't $1 ? or #1 /"),
    ("ptb", "companies ' stock \n next", "companies' stock\nnext"),
    ("ptb", "a N N N N N N N N N N N N b", "a 1 1 1 1 1 1 1 1 1 1 1 1 b"),
    ("lm1b", 'He said : " I do n\'t ( really ) know , " at http : / / x .', 'He said: "I do n\'t (really) know," at http://x .'),
    ("lm1b", "It 's $ 5 or £ 6 ? Yes !", "It's $5 or £6? Yes!"),
    ("lm1b", "What ?", "What?"),
    ("lm1b", "and / or [ sic ] ; fine . Next one .", "and/or [sic]; fine. Next one."),
    ("lambada", "  \u201cFigured,\u201d he said. \n", '\n"Figured," he said.'),
    ("papers", "we use @xmath0 ( see [ 1 ] ) , then stop .", "we use @xmath0 (see [1]), then stop."),
]


@pytest.mark.parametrize("name, text, wanted", EXAMPLES, ids=[f"{name}-{i}" for i, (name, _, _) in enumerate(EXAMPLES)])
def test_each_rule(name, text, wanted):
    assert detokenise(name, text) == wanted


def test_every_detokeniser_has_an_example():
    assert set(DETOKENISERS) == {name for name, _, _ in EXAMPLES}
    with pytest.raises(InputError, match="detokeniser 'wiki' is unknown"):
        detokenise("wiki", "text")


def test_the_real_file_loses_its_marks():
    with lzma.open(shared_file("wikitext2/wiki.test.raw.xz"), "rt", encoding="utf-8", newline="") as file:
        lines = [detokenise("wikitext", line) for line in file]
    text = "".join(lines)
    assert " @-@ " not in text and " @,@ " not in text and " , " not in text and " \n" not in text
    assert len(lines) == 4358 and "guest-starring role" in text
