"""The texts of the decoding experiments in benchmarks/: what a question masks, where a value stands, and the nats of an answer."""

import numpy as np
import pytest

from benchmarks import early_edit, lengths, needle, reversal, toy_runs
from dlmjax.data import load_tokenizer

IDS = load_tokenizer("char27")


def test_every_fact_has_a_name_and_a_description_of_its_own_and_questions_mask_them():
    names, descriptions = reversal.facts_of(200)
    assert len(set(names)) == len(set(descriptions)) == 200
    assert {len(IDS.encode(text)) for text in names} == {reversal.NAME}
    assert {len(IDS.encode(text)) for text in descriptions} == {reversal.DESCRIPTION}
    for kind, (facts, backwards, answer) in reversal.questions(names, descriptions).items():
        wanted = descriptions if kind == "forward" else names
        for i in facts[:5]:
            text = reversal.JOIN.join((descriptions[i], names[i]) if backwards else (names[i], descriptions[i]))
            assert text[answer] == wanted[i] and len(text) + 1 == reversal.LENGTH
        assert {i % 2 for i in facts} == {"forward": {0, 1}, "reversed, trained": {0}}.get(kind, {1})
    with pytest.raises(SystemExit, match="--facts is 9999; .* give fewer"):
        reversal.facts_of(9999)


def test_a_value_stands_behind_its_key_where_the_distance_says():
    texts, distance_BQ = needle.question_texts(50, seed=3)
    for text, distance_Q in zip(texts, distance_BQ, strict=True):
        assert len(IDS.encode(text)) + 1 == needle.LENGTH
        for index, distance in zip(needle.ANSWERS, distance_Q, strict=True):
            pair = text[index - 2 : index + 1]
            assert pair[0] == " " and text[index - distance - 2 : index - distance + 1] == pair
            assert text.count(pair[:2]) == 2, "each key stands once in the context"
    for text in needle.training_texts(20, seed=0):
        pairs = {text[i + 1] + text[i + 2] for i, letter in enumerate(text) if letter == " "}
        assert len(IDS.encode(text)) + 1 == needle.LENGTH and len({pair[0] for pair in pairs}) == len(pairs) <= needle.PAIRS


def test_documents_have_the_lengths_that_the_page_states():
    lengths_N = lengths.lengths_of(20_000, np.random.default_rng(0))
    short_N = lengths_N <= 20
    assert set(lengths_N) == {*range(4, 21), *range(40, 73)} and short_N.mean() == pytest.approx(0.5, abs=0.02)
    assert lengths_N[short_N].mean() == pytest.approx(12, abs=0.2) and lengths_N[~short_N].mean() == pytest.approx(56, abs=0.3)


def test_sums_of_the_test_are_not_trained_on_and_a_planted_digit_is_on_the_canvas(masked_run):
    train_N2, test_N2 = early_edit.sums(7000)
    assert len({*map(tuple, train_N2)} | {*map(tuple, test_N2)}) == 8100 == len(train_N2) + len(test_N2)
    texts_BL = np.frombuffer(b"23+34=057\n", np.uint8)[None].astype(np.int32)
    for start in (0.0, 0.5):
        canvas = early_edit.canvas_of(masked_run, texts_BL, np.array([ord("1")]), start)
        assert bytes(canvas.tokens_BL[0, :7].tolist()) == b"23+34=1" and (canvas.tokens_BL[0, 7:] == masked_run.tokenizer.mask_id).all()
        assert canvas.start_BL[0].tolist() == [0.0] * 6 + [start] + [1.0] * 3
        assert canvas.condition_mask_BL[0].tolist() == [True] * 6 + [start == 0] + [False] * 3


def test_nats_of_an_answer_are_those_of_the_score(causal_run, masked_run):
    """Autoregressive, exactly; masked, one token behind its prompt, whose bound is exact."""
    for run, answer in ((causal_run, "xyz"), (masked_run, "x")):
        text_BL = run.tokenizer.encode("abcd" + answer)[None]
        nats_B = toy_runs.answer_nats(run, text_BL, slice(4, 4 + len(answer)), slice(4, 4 + len(answer)))
        assert nats_B == pytest.approx([-run.score("abcd", answer, draws=4).log_likelihood], abs=1e-4)
