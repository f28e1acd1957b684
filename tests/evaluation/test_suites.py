"""Suites and the local files that they read."""

import dataclasses
import json
import lzma
import pathlib
import re

import numpy as np
import pytest

import dlmjax
from dlmjax.data.tokenizers import load_tokenizer
from dlmjax.errors import InputError
from dlmjax.evaluation.documents import encode_documents, fingerprint, read_documents, read_pairs
from dlmjax.evaluation.suites import SUITES, Suite, find_suite
from dlmjax.evaluation.text import Cut, pair_texts, suite_text
from tests.data.conftest import shared_file

BYTES = load_tokenizer("bytes")
LINES = Suite(name="lines", corpus="lines", split="test", documents="line", units=("perplexity",), window=16, words="spaces+lines")


def test_a_last_word_is_given_all_the_context_that_fits(tmp_path):
    """Whatever the length of the passage: its window ends with the word, and is never cut in it."""
    file = tmp_path / "passages.txt"
    file.write_text("".join(f"{'so it was ' * n}again\n" for n in (1, 5, 6, 30)))
    text = suite_text(SUITES["lambada_last"], [str(file)], BYTES, Cut(trained=32), None, None)
    batches = list(text.windows.batches(4))
    assert sum(int(batch["scored"].sum()) for batch in batches) == 4 * len(" again") and text.protocol["complete"]
    for batch in batches:
        for tokens_L, shown_L, scored_L in zip(batch["tokens"], batch["segments"] > 0, batch["scored"], strict=True):
            if shown_L.any():
                assert bytes(tokens_L[scored_L].astype(np.uint8)) == b" again" and scored_L[shown_L][-1]
                assert shown_L.sum() == 32 or bytes(tokens_L[shown_L].astype(np.uint8)).startswith(b"so it was")


def test_a_suite_says_all_of_its_protocol():
    for name, suite in SUITES.items():
        protocol = json.loads(json.dumps(suite.protocol()))
        assert {"corpus", "split", "detokeniser", "bos", "eos", "window", "stride", "remainder", "units"} <= set(protocol), name
        assert protocol["stride"] >= 1 and suite.units and find_suite(name) is suite
    wanted = {"text8", "char27", "wikitext2", "lm1b", "ptb", "lambada", "agnews", "pubmed", "arxiv", "blimp"}
    assert wanted <= set(SUITES)


OWN = {"name": "minutes", "corpus": "minutes of meetings", "split": "test", "documents": "line", "window": 16, "units": ["perplexity"]}
MALFORMED = [
    *((field, value) for field in Suite.__dataclass_fields__ for value in (None, 1.5, {}, [], "", "x\ny", "nothing of the kind")),
    *((field, value) for field in ("window", "stride") for value in (-1, 17 * (field == "stride"), True, "16", 2**40)),
    ("units", ["perplexity", "perplexity"]),
    ("units", ["perplexity", "ppl"]),
    ("units", "perplexity"),
    ("units", [["perplexity"]]),
    ("units", ["word_perplexity"]),
    ("units", ["accuracy"]),
    ("remainder", "truncate"),
    ("documents", "pair"),
    ("task", "pairs"),
    ("parts", [["valid", 0, 10]]),
    ("parts", [["test", 0, 10], ["test", 10, 20]]),
    ("parts", [["test", 10, 10]]),
    ("parts", [["test", -1, 10]]),
    ("parts", [["test", 0]]),
    ("parts", [["test", "0", "10"]]),
    ("parts", {"test": [0, 10]}),
    ("name", "lambada"),
    ("name", "../minutes"),
    ("windows", 16),
]
LEGAL = {("note", value) for value in ("", "x\ny", "nothing of the kind")} | {
    (field, "nothing of the kind") for field in ("corpus", "split", "field")
}


def test_malformed_suites_are_refused_in_one_line(tmp_path):
    """Every field with values of other types and out of its bounds; what lacks a field; what is not a suite at all."""
    file = tmp_path / "own.json"

    def refusal(text: str) -> str:
        file.write_text(text)
        with pytest.raises(InputError) as refused:
            find_suite(str(file))
        return str(refused.value)

    for field, value in MALFORMED:
        if (isinstance(value, str) and (field, value) in LEGAL) or (field, value) == ("parts", []):
            continue
        message = refusal(json.dumps({**OWN, field: value}))
        assert str(file) in message and field in message and "\n" not in message, (field, value, message)
    for field in OWN:
        assert f"requires {field}" in refusal(json.dumps({name: value for name, value in OWN.items() if name != field}))
    for text in ("", "[]", "null", '{"name": ', '{"name": "a", "name": "b"}'):
        assert str(file) in refusal(text)


def test_the_page_lists_every_suite():
    page = (pathlib.Path(dlmjax.__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    rows = []
    for suite in SUITES.values():
        stride, eos = str(suite.step) if suite.step < suite.window else "no context", "yes" if suite.eos else "no"
        cells = (f"`{suite.name}`", suite.corpus, suite.documents, suite.detokeniser, eos, f"{suite.window}, {stride}")
        rows.append(f"| {' | '.join((*cells, f'{suite.packing}, {suite.remainder}', suite.units[0]))} |")
    listed = re.findall(r"^\| `\w+` \| .* \| \w+, \w+ \| \w+ \|$", page, re.MULTILINE)
    assert rows == listed, "\n".join(["missing:", *(row for row in rows if row not in listed)])


def test_a_suite_of_a_file_is_one_of_the_package(tmp_path):
    """Every shipped suite, written as JSON and read, is itself: a file can define all that the package can."""
    for suite in SUITES.values():
        (tmp_path / "suite.json").write_text(json.dumps(dataclasses.asdict(suite)))
        assert find_suite(str(tmp_path / "suite.json")) == suite
    (tmp_path / "own.json").write_text(json.dumps(OWN))
    assert find_suite(str(tmp_path / "own.json")).protocol()["stride"] == 16
    with pytest.raises(InputError, match="nowhere.json cannot be read"):
        find_suite(str(tmp_path / "nowhere.json"))
    with pytest.raises(InputError, match="--suite 'wikitext' is neither a file .* did you mean 'wikitext2'"):
        find_suite("wikitext")


@pytest.mark.parametrize("documents", ["file", "line", "article"])
def test_a_detokeniser_is_applied_to_documents_of_every_kind(tmp_path, documents):
    """In a text file and in a record; a suite of whole files recorded its detokeniser and left the text as it was."""
    suite = dataclasses.replace(SUITES["wikitext2"], name="x", documents=documents)
    (tmp_path / "a.txt").write_text("A @-@ b\n")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "A @-@ b"}) + "\n")
    for name in ("a.txt", "a.jsonl"):
        assert [document.text.strip() for document in read_documents(suite, [str(tmp_path / name)])] == ["A-b"]


def test_lines_records_and_files(tmp_path):
    plain, packed = tmp_path / "a.txt", tmp_path / "b.jsonl.xz"
    plain.write_text("one two\n\n  \nthree\n")
    with lzma.open(packed, "wt") as file:
        file.write('{"text": "four five six"}\n{"text": ""}\n')
    found = read_documents(LINES, [str(plain), str(packed)])
    assert [(d.id, d.text, d.words) for d in found] == [("0", "one two", 3), ("1", "three", 2), ("2", "four five six", 4)]
    assert [d.text for d in read_documents(LINES, [str(plain), str(packed)], limit=2)] == ["one two", "three"]
    whole = read_documents(SUITES["char27"], [str(plain)])
    assert [d.text for d in whole] == ["one two\n\n  \nthree\n"]


def test_articles_are_cut_at_their_headings(tmp_path):
    file = tmp_path / "wiki.raw"
    file.write_text(" \n = One = \n \n A @-@ b . \n = = Part = = \n c \n = Two = \n d \n")
    found = read_documents(SUITES["wikitext2"], [str(file)])
    assert [d.text for d in found] == ["\n = One =\n\n A-b.\n == Part ==\n c\n", " = Two =\n d\n"]
    assert [d.words for d in found] == [3 + 4 + 5 + 1 + 6, 3 + 1 + 2], "words and lines of the file as it is"


def test_last_words_are_given_their_passage(tmp_path):
    file = tmp_path / "lambada.jsonl"
    file.write_text('{"text": "care about signs"}\n{"text": "alone"}\n')
    first, second = read_documents(SUITES["lambada_last"], [str(file)])
    assert (first.context, first.text, first.words) == ("care about", " signs", 1) and (second.context, second.text) == ("", "alone")
    encoded = encode_documents([first, second], BYTES, bos=True, eos=True)
    assert BYTES.decode(encoded.tokens_T[encoded.scorable_T]) == " signsalone" and encoded.lossless
    assert encoded.ends_D.tolist() == [1 + 16 + 1, 18 + 1 + 5 + 1] and not encoded.scorable_T[[0, 18]].any()
    assert (encoded.tokens_T[encoded.ends_D - 1] == BYTES.eos_id).all() and encoded.scorable_T[encoded.ends_D - 1].all()


def test_a_tokenizer_that_changes_the_text_is_noticed(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("Two Words\n")
    for name, words in (("bytes", 3), ("char27", None)):
        text = suite_text(LINES, [str(file)], load_tokenizer(name), Cut(trained=16), None, None)
        assert text.words == words and text.protocol["lossless"] == (name == "bytes")
    assert fingerprint(np.array([1, 2], np.int32)) == fingerprint(np.array([1, 2], np.int64)) != fingerprint(np.array([2, 1]))


def test_bad_files_are_named(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"good \xff bad\n")
    with pytest.raises(InputError, match="not valid UTF-8 at byte 5"):
        read_documents(LINES, [str(file)])
    file.write_text("\n \n")
    with pytest.raises(InputError, match="no document"):
        read_documents(LINES, [str(file)])
    with pytest.raises(InputError, match="has 3 characters; the test split of suite text8"):
        read_documents(SUITES["text8"], [str(file)])
    with pytest.raises(InputError, match="no split 'dev'"):
        read_documents(SUITES["text8"], [str(file)], split="dev")
    records = tmp_path / "a.jsonl"
    records.write_text('{"body": "x"}\n')
    with pytest.raises(InputError, match="no field 'text'"):
        read_documents(LINES, [str(records)])
    for line in ('{"UID": "a"}', "[1]", "{"):
        records.write_text(line + "\n")
        with pytest.raises(InputError, match="line 1"):
            read_pairs(SUITES["blimp"], [str(records)])
    with pytest.raises(InputError, match="--documents is 0"):
        read_documents(LINES, [str(tmp_path / "b.txt")] if (tmp_path / "b.txt").write_text("a\nb\n") else [], limit=0)


def test_both_sides_of_a_pair_have_one_number(tmp_path):
    file = tmp_path / "pairs.jsonl"
    rows = [{"UID": "u", "pairID": str(n), "field": "f", "sentence_good": "ab" * n, "sentence_bad": "c" * n} for n in (1, 2, 9)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    good, bad, pairs = pair_texts(SUITES["blimp"], [str(file)], BYTES, Cut(trained=32), None)
    assert len(good.windows) == len(bad.windows) == len(pairs) == 3 and good.ids == ["u/1", "u/2", "u/9"]
    with pytest.raises(InputError, match="longer than the window, 16 tokens"):
        pair_texts(SUITES["blimp"], [str(file)], BYTES, Cut(trained=16), None)


# --- the real files -----------------------------------------------------------------------------------------------------------


def test_wikitext_has_the_published_counts():
    found = read_documents(SUITES["wikitext2"], [str(shared_file("wikitext2/wiki.test.raw.xz"))])
    assert len(found) == 62 and sum(document.words for document in found) == 245_569


def test_lambada_is_whole():
    found = read_documents(SUITES["lambada_last"], [str(shared_file("lambada/lambada_test.jsonl.xz"))])
    assert len(found) == 5153 and found[0].text == " signs" and found[0].context.endswith("I don't care about")


def test_blimp_is_whole():
    pairs = read_pairs(SUITES["blimp"], [str(shared_file("blimp/blimp.jsonl.xz"))], limit=67 * 5)
    assert len({pair.group for pair in pairs}) == 67 and len(pairs) == 335, "a limit is spread over all paradigms"


def test_a_part_of_text8_is_where_it_should_be():
    text = read_documents(SUITES["text8_head"], [str(shared_file("text8_head/text8_head.xz"))])[0].text
    assert len(text) == 500_000 and set(text) <= set("abcdefghijklmnopqrstuvwxyz ")
