"""Rows of supervised data: each choice does what it says, and a row is a function of its key."""

import dataclasses
import types

import numpy as np
import pytest

from dlmjax.data import Corpus
from dlmjax.data.prepare import prepare
from dlmjax.data.roles import (
    ALL_SCORED,
    CONDITION,
    END,
    HIDDEN,
    PADDING,
    ROLES,
    SCORED,
    TAIL,
    is_filled,
    is_message_start,
    pack_role,
    use_of,
)
from dlmjax.data.supervised import INFILLS, TAILS, RandomTail, Spans, SupervisedRows, ToBlock, ToRow, held_out_rows, is_scored, make_choice
from dlmjax.errors import InputError

EOS, PAD, VOCAB, L = 90, 91, 92, 24
ROWS = SupervisedRows(seed=3, eos_id=EOS, pad_id=PAD, first_pad=VOCAB)
SAMPLES_B = np.arange(4096)
GIVEN_U, SCORED_A = pack_role(CONDITION, ROLES.index("user")), pack_role(SCORED, ROLES.index("assistant"))
ENDS = pack_role(TAIL, ROLES.index("tail"))


def chat(*messages: tuple[str, int], end: bool = True) -> tuple[list[int], list[int]]:
    """(tokens, roles) of a text of messages: ("user", 3) is a given one of 3 tokens. Tokens are their places: 1, 2, ..."""
    roles = []
    for who, count in messages:
        byte = GIVEN_U if who == "user" else SCORED_A
        roles += [byte | 32, *[byte] * (count - 1)]
    tokens = list(range(1, len(roles) + 1))
    return (tokens + [EOS], [*roles, ENDS | END]) if end else (tokens, roles)


def batch_of(*rows: list[tuple[list[int], list[int]]]) -> dict[str, np.ndarray]:
    """A batch of rows of texts, as the loader gives it."""
    batch = {name: np.zeros((len(rows), L), np.int32) for name in ("segments", "positions")}
    batch |= {"tokens": np.full((len(rows), L), PAD, np.int32), "roles": np.full((len(rows), L), PADDING, np.uint8)}
    for b, texts in enumerate(rows):
        at = 0
        for number, (tokens, roles) in enumerate(texts, 1):
            here = slice(at, at + len(tokens))
            batch["tokens"][b, here], batch["roles"][b, here], batch["segments"][b, here] = tokens, roles, number
            batch["positions"][b, here] = np.arange(len(tokens))
            at += len(tokens)
    return batch | {"row": np.arange(len(rows), dtype=np.int32)}


def repeated(texts: list, times: int = len(SAMPLES_B)) -> dict[str, np.ndarray]:
    return {name: np.repeat(array, times, axis=0) for name, array in batch_of(texts).items()}


TWO_TURNS = chat(("user", 3), ("assistant", 4), ("user", 2), ("assistant", 5))
ONE_TURN = chat(("user", 2), ("assistant", 3))
PLAIN = {name: array for name, array in repeated([(list(range(1, L)) + [EOS], [ALL_SCORED] * L)]).items() if name != "roles"}

EVERY = {
    "random length": dataclasses.replace(ROWS, random_length=0.5),
    "infilling": dataclasses.replace(ROWS, infill=Spans(share=0.5)),
    "one answer": dataclasses.replace(ROWS, answers="one"),
    "blocks": dataclasses.replace(ROWS, answers="blocks", block=4),
    "tail to block": dataclasses.replace(ROWS, answers="blocks", block=4, tail=ToBlock(pads=3)),
    "random tail": dataclasses.replace(ROWS, tail=RandomTail(most=5)),
    "tail to row": dataclasses.replace(ROWS, tail=ToRow(pads=7)),
    "all": dataclasses.replace(ROWS, random_length=0.2, infill=Spans(), answers="one", tail=RandomTail(pads=2)),
}


@pytest.mark.parametrize("view", EVERY.values(), ids=EVERY)
def test_a_row_is_a_function_of_its_sample_and_stays_a_row(view):
    """Any part of a batch gives the same rows, another seed others; what is read is changed in no place; padding is padding."""
    batch = batch_of(*[[TWO_TURNS, ONE_TURN], [ONE_TURN, ONE_TURN], [TWO_TURNS]] * 40)
    before = {name: array.copy() for name, array in batch.items()}
    samples_B = np.arange(120) + 7
    whole = view(batch, samples_B)
    for name, array in before.items():
        np.testing.assert_array_equal(batch[name], array)
    some = np.asarray([5, 17, 60])
    part = view({name: array[some] for name, array in batch.items()}, samples_B[some])
    for name in batch:
        assert whole[name].dtype == batch[name].dtype
        np.testing.assert_array_equal(part[name], whole[name][some])
    assert not (whole["roles"] & END).any()
    if not (view.answers == "blocks" or isinstance(view.tail, ToRow)):
        again = dataclasses.replace(view, seed=4)(batch, samples_B)
        assert any((again[name] != whole[name]).any() for name in batch)
    hidden_BL = whole["segments"] == 0
    assert (whole["tokens"][hidden_BL] == PAD).all() and (whole["roles"][hidden_BL] == PADDING).all()
    assert (whole["positions"][hidden_BL] == 0).all() and (use_of(whole["roles"])[~hidden_BL] != 3).all()
    # Positions count the tokens of a text in their order.
    for b in range(120):
        for segment in set(whole["segments"][b]) - {0}:
            found = whole["positions"][b][whole["segments"][b] == segment]
            assert (np.diff(found) > 0).all() and found[0] == 0


def test_a_share_of_the_rows_is_cut_to_a_uniform_length():
    view = dataclasses.replace(ROWS, random_length=0.25)
    lengths_B = (view(PLAIN, SAMPLES_B)["segments"] > 0).sum(axis=1)
    assert "roles" not in view(PLAIN, SAMPLES_B), "all that is left is scored"
    counts = np.bincount(lengths_B, minlength=L + 1)
    assert counts[0] == 0 and abs(counts[L] / 4096 - 0.75 - 0.25 / L) < 0.03
    assert np.abs(counts[1:L] / 4096 - 0.25 / L).max() < 0.006


@pytest.mark.parametrize("mean", [1.0, 2.5])
def test_infilling_scores_spans_between_given_text(mean):
    rows = dataclasses.replace(ROWS, infill=Spans(share=0.4, mean=mean))(PLAIN, SAMPLES_B)
    scored_BL = is_scored(rows)
    drawn_B = ~scored_BL.all(axis=1)
    assert scored_BL.any(axis=1).all() and abs(drawn_B.mean() - 0.4) < 0.03
    np.testing.assert_array_equal(rows["tokens"], PLAIN["tokens"])
    spans_B = (np.diff(scored_BL.astype(int), axis=1, prepend=0) == 1).sum(axis=1)[drawn_B]
    assert spans_B.max() == 1 if mean == 1 else 1.4 < spans_B.mean() < mean
    # Of one span with uniform ends a token is inside with the probability 2 p (1 - p), at p of the row: most in the middle.
    share_L = scored_BL[drawn_B].mean(axis=0)
    if mean == 1:
        p_L = (np.arange(L) + 1) / (L + 1)
        np.testing.assert_allclose(share_L, 2 * p_L * (1 - p_L), atol=0.07)


def test_one_answer_of_a_text_is_scored_and_what_follows_is_hidden():
    rows = dataclasses.replace(ROWS, answers="one")(repeated([TWO_TURNS, ONE_TURN]), SAMPLES_B)
    first_L, second_L = (np.isin(np.arange(L), range(*ends)) for ends in ((3, 7), (9, 15)))
    scored_BL, text_BL = is_scored(rows), rows["segments"] == 1
    is_first_B = scored_BL[:, 3]
    assert abs(is_first_B.mean() - 0.5) < 0.03
    for chosen_B, scored_L, visible in ((is_first_B, first_L, 7), (~is_first_B, second_L, 15)):
        np.testing.assert_array_equal(scored_BL[chosen_B] & text_BL[chosen_B], np.broadcast_to(scored_L, (chosen_B.sum(), L)))
        np.testing.assert_array_equal(text_BL[chosen_B].sum(axis=1), visible)
    # A text with one answer is as it was.
    np.testing.assert_array_equal(rows["tokens"][:, 15:21], np.tile([*ONE_TURN[0]], (4096, 1)))
    assert (scored_BL[:, 17:21].all()) and not scored_BL[:, 15:17].any()


def test_hidden_tokens_are_padding():
    tokens, roles = ONE_TURN
    secret = (tokens, [*roles[:1], pack_role(HIDDEN, 7), *roles[2:]])
    rows = ROWS(batch_of([secret]), np.arange(1))
    np.testing.assert_array_equal(rows["tokens"][0, :6], [1, PAD, 3, 4, 5, EOS])
    np.testing.assert_array_equal(rows["segments"][0, :6], [1, 0, 1, 1, 1, 1])


def test_in_blocks_a_question_behind_an_answer_begins_a_block():
    view = dataclasses.replace(ROWS, answers="blocks", block=4)
    rows = view(batch_of([TWO_TURNS, ONE_TURN]), np.arange(1))
    # 3 given, 4 scored, 1 filled; 2 given, 5 scored and the end; the next text follows.
    expected = [1, 2, 3, 4, 5, 6, 7, EOS, 8, 9, 10, 11, 12, 13, 14, EOS, 1, 2, 3, 4, 5, EOS, PAD, PAD]
    np.testing.assert_array_equal(rows["tokens"][0], expected)
    np.testing.assert_array_equal(rows["positions"][0], [*range(16), *range(6), 0, 0])
    assert use_of(rows["roles"])[0, 7] == TAIL and rows["segments"][0, 7] == 1
    asked_L = is_message_start(rows["roles"])[0] & ~is_scored(rows)[0]
    behind_L = np.pad(is_scored(rows)[0], (1, 0))[:-1] & (np.diff(rows["segments"][0], prepend=0) == 0)
    assert np.flatnonzero(asked_L & behind_L).tolist() == [8]


def test_tails_follow_the_end_of_a_text():
    texts = [chat(("user", 3), ("assistant", 4)), ONE_TURN]
    tail = dataclasses.replace(ROWS, tail=ToRow(pads=3))(batch_of([ONE_TURN]), np.arange(1))
    np.testing.assert_array_equal(tail["tokens"][0, :10], [1, 2, 3, 4, 5, EOS, VOCAB, VOCAB + 1, VOCAB + 2, VOCAB])
    assert (tail["segments"] == 1).all() and (use_of(tail["roles"])[0, 6:] == TAIL).all()
    blocks = dataclasses.replace(ROWS, tail=ToBlock(), answers="blocks", block=4)(batch_of(texts), np.arange(1))
    np.testing.assert_array_equal(np.flatnonzero(np.diff(blocks["segments"][0])) + 1, [8, 16])
    np.testing.assert_array_equal(blocks["tokens"][0, 13:16], [EOS] * 3)
    counts = dataclasses.replace(ROWS, tail=RandomTail(most=5))(repeated([ONE_TURN]), SAMPLES_B)["segments"].sum(axis=1) - 6
    assert np.abs(np.bincount(counts, minlength=6) / 4096 - 1 / 6).max() < 0.03
    # A text that is cut off has no end, and gets no tail.
    cut = batch_of([chat(("user", 2), ("assistant", 3), end=False)])
    for view in (ToRow(), RandomTail()):
        np.testing.assert_array_equal(dataclasses.replace(ROWS, tail=view)(cut, np.arange(1))["tokens"], cut["tokens"])


@pytest.mark.parametrize("name", [name for name, view in EVERY.items() if view.random_length == 0])
def test_only_the_stored_end_of_a_text_is_one(name):
    """A template that writes EOS after every answer, and a row that ends, is cut or is hidden right behind such an EOS."""
    tokens, roles = TWO_TURNS
    tokens = [EOS if i == 6 else token for i, token in enumerate(tokens)]
    view = dataclasses.replace(EVERY[name], answers=EVERY[name].answers.replace("one", "all"))
    if view.tail is None:
        view = dataclasses.replace(view, tail=ToRow())
    hidden = [*roles[:7], *[pack_role(HIDDEN, 7)] * (len(roles) - 7)]
    for texts in ((tokens[:7], roles[:7]), (tokens, hidden)):
        rows = view(batch_of([texts]), np.arange(1))
        assert (rows["segments"][0] > 0).sum() == 7, "nothing is filled in"
    cut = dataclasses.replace(view, random_length=1.0, infill=None)(repeated([(tokens, roles)]), SAMPLES_B)
    counts_B = (cut["segments"] > 0).sum(axis=1)
    assert abs((counts_B == 7).mean() - 1 / L) < 0.012, "nothing is filled into the rows that are cut there"


def test_the_answer_that_is_kept_of_several_has_a_tail():
    rows = dataclasses.replace(ROWS, answers="one", tail=ToRow(pads=2))(repeated([TWO_TURNS], 64), np.arange(64))
    assert (rows["segments"] == 1).all() and set(rows["tokens"][:, 7]) == {VOCAB, 8}


@pytest.mark.parametrize(
    "kind, text, message",
    [
        ("infill", "span", "span"),
        ("infill", "spans(share=0.0)", r"share is 0.*\(0, 1\]"),
        ("infill", "spans(mean=0.5)", r"mean is 0.5.*\[1, 16\]"),
        ("infill", "spans(size=3)", "size"),
        ("tail", "rainbow", "rainbow"),
        ("tail", "random(most=0)", "most is 0"),
        ("tail", "row(pads=-1)", "pads is -1"),
        ("tail", "block(pads=x)", "pads"),
    ],
)
def test_bad_choices_are_refused_in_one_line(kind, text, message):
    with pytest.raises(InputError, match=message) as refused:
        make_choice(kind, text)
    assert "\n" not in str(refused.value)
    assert make_choice(kind, "none") is None and set(INFILLS) | set(TAILS) >= {"none", "spans", "block", "random", "row"}


def test_held_out_rows_have_the_tails_of_training(tmp_path):
    """Their tail is scored and, as of "roles", told apart from the text."""
    (tmp_path / "sums.jsonl").write_text("".join(f'{{"prompt": "{a}=", "answer": "{a}."}}\n' for a in range(20)))
    prepare([tmp_path / "sums.jsonl"], "bytes", tmp_path / "data", format="prompt-answer", valid_fraction=0, progress=False)
    corpus = Corpus.open(tmp_path / "data", split="train")
    begin, end = 0, int(next(iter(corpus.document_ends()))[0])
    row = {name: np.zeros((1, 16), kind) for name, kind in (("tokens", np.int32), ("segments", np.int32), ("positions", np.int32))}
    row |= {"roles": np.full((1, 16), PADDING), "row": np.array([0])}
    row["tokens"][0, : end - begin], row["roles"][0, : end - begin] = corpus.read(begin, end), corpus.read_roles(begin, end)
    row["segments"][0, : end - begin], row["positions"][0, : end - begin] = 1, np.arange(end)
    row["roles"][0, end - 1] |= END
    attention = types.SimpleNamespace(block_size=None, causal=False)
    for tail, filled in ((None, 0), (make_choice("tail", "row"), 16 - end)):
        (found,) = held_out_rows(iter([row]), corpus, 0, attention, tail)
        assert is_filled(found["roles"]).sum() == filled and (found["segments"] > 0).sum() == end + filled
