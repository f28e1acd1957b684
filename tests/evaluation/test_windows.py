"""Windows: every token scored exactly once, whatever the stride, the remainder, the batch and the hosts."""

import json

import numpy as np
import pytest

from dlmjax.data import Corpus, EvalWindows, eval_batches
from dlmjax.data.prepare import prepare
from dlmjax.data.roles import CONDITION, MESSAGE_START, SCORED, carries_loss, pack_role
from dlmjax.errors import InputError
from dlmjax.evaluation.text import Cut, _answers, corpus_text
from dlmjax.evaluation.windows import cut_windows

TOKENS = np.arange(1, 101, dtype=np.int32)  # a token is its place + 1
ENDS = np.array([7, 8, 60, 100])


def shown(windows, size=4, rows=None):
    """(window, token, scored, segment, position) of everything that is shown and no padding."""
    found = []
    for batch in windows.batches(size, rows):
        for b, w in zip(*np.nonzero(batch["segments"]), strict=True):
            names = ("tokens", "scored", "segments", "positions")
            found.append((int(batch["row"][b]), *(int(batch[name][b, w]) for name in names)))
    return sorted(found)


@pytest.mark.parametrize("packing", ["stream", "alone"])
@pytest.mark.parametrize("window, step", [(16, 16), (16, 5), (16, 1), (64, 33), (128, 128)])
def test_every_token_is_scored_once(packing, window, step):
    windows = cut_windows(TOKENS, ENDS, window=window, step=step, pad_id=0, packing=packing)
    seen = shown(windows)
    assert sorted(token for _, token, scored, _, _ in seen if scored) == TOKENS.tolist() and windows.complete
    for number in range(len(windows)):
        mine = [row for row in seen if row[0] == number]
        tokens, scored = [row[1] for row in mine], [row[2] for row in mine]
        assert tokens == list(range(tokens[0], tokens[0] + len(tokens))) and len(tokens) <= window, "a stretch of the text"
        new = sum(scored)
        assert scored == [0] * (len(scored) - new) + [1] * new, "context comes first"
        bounds = [0, *ENDS] if packing == "alone" else [0, 100]
        begins = max(b for b in bounds if b < tokens[-1])
        if step < window and tokens[-new] - 1 > begins:
            assert new <= step and len(tokens) == min(window, tokens[-1] - begins), "as much context as fits"
        elif step == window:
            assert new == len(tokens)


def test_documents_are_segments_with_positions_of_their_own():
    windows = cut_windows(TOKENS, ENDS, window=16, step=16, pad_id=0)
    first = [row[3:] for row in shown(windows) if row[0] == 0]
    assert first == [(1, p) for p in range(7)] + [(2, 0)] + [(3, p) for p in range(8)]
    alone = cut_windows(TOKENS, ENDS, window=16, step=4, pad_id=0, packing="alone")
    assert {row[3] for row in shown(alone)} == {1}


def test_remainders():
    kept = cut_windows(TOKENS, ENDS, window=32, step=32, pad_id=0)
    dropped = cut_windows(TOKENS, ENDS, window=32, step=32, pad_id=0, remainder="drop")
    assert (len(kept), len(dropped)) == (4, 3) and kept.complete and not dropped.complete
    truncated = cut_windows(TOKENS, ENDS, window=16, step=16, pad_id=0, packing="alone", remainder="truncate")
    assert (truncated.end_W - truncated.begin_W).tolist() == [7, 1, 16, 16]
    tail = cut_windows(TOKENS, ENDS, window=16, step=16, pad_id=0, packing="alone", remainder="tail")
    assert tail.begin_W.tolist() == tail.scored_W.tolist() == [0, 7, 44, 84] and tail.end_W.tolist() == ENDS.tolist()
    with pytest.raises(InputError, match="do not fill a window of 128"):
        cut_windows(TOKENS, ENDS, window=128, step=128, pad_id=0, remainder="drop")


def test_context_that_is_not_scorable_stays_unscored():
    scorable_T = np.ones(100, bool)
    scorable_T[:5] = False
    windows = cut_windows(TOKENS, ENDS, window=16, step=16, pad_id=0, packing="alone", scorable_T=scorable_T)
    assert [scored for _, _, scored, _, _ in shown(windows)][:7] == [0] * 5 + [1] * 2 and windows.complete


def test_short_documents_have_short_rows_in_multiples():
    windows = cut_windows(TOKENS, ENDS, window=96, step=96, pad_id=0, packing="alone", multiple=24)
    assert windows.lengths == (96, 48, 24) and windows.lengths_W().tolist() == [24, 24, 96, 48]
    assert {batch["tokens"].shape for batch in windows.batches(3)} == {(3, 24), (3, 48), (3, 96)}
    for window, step in ((16, 0), (16, 17), (20, 20)):
        with pytest.raises(InputError, match="multiple of 8"):
            cut_windows(TOKENS, ENDS, window=window, step=step, pad_id=0, multiple=8)


def test_neither_batch_nor_hosts_change_what_is_shown():
    windows = cut_windows(TOKENS, ENDS, window=16, step=5, pad_id=0, packing="alone")
    everything = shown(windows, 4)
    assert shown(windows, 7) == everything
    hosts = [shown(windows, 6, rows) for rows in (range(0, 3), range(3, 6))]
    assert sorted(hosts[0] + hosts[1]) == everything and min(map(len, hosts)) > 0


def test_a_corpus_is_cut_as_the_trainer_evaluates_it(small_corpus):
    corpus = Corpus.open(small_corpus, split="valid")
    for limit in (None, 5):
        text = corpus_text(corpus, Cut(trained=32, limit=limit))
        trainers = eval_batches(EvalWindows(corpus, 32, limit=limit), batch_size=8)
        for ours, theirs in zip(text.windows.batches(8), trainers, strict=True):
            real = theirs["segments"] > 0
            np.testing.assert_array_equal(ours["scored"], real)
            for name in ("tokens", "segments", "positions"):
                np.testing.assert_array_equal(ours[name][real], theirs[name][real])
            np.testing.assert_array_equal(ours["row"][real.any(axis=1)], theirs["row"][real.any(axis=1)])
        assert text.protocol["complete"] == (limit is None)


def test_each_answer_of_a_conversation_has_a_copy_that_ends_with_it():
    """What came before is given there, what follows is not there; the end of the text goes with the last answer."""
    user, assistant, start = pack_role(CONDITION, 2), pack_role(SCORED, 3), MESSAGE_START
    roles_L = np.asarray([user | start, user, assistant | start, assistant, user | start, assistant | start, assistant], np.uint8)
    tokens_L = np.arange(7, dtype=np.int32)
    copies = _answers(tokens_L, roles_L)
    assert [tokens.tolist() for tokens, _ in copies] == [[0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6]]
    assert [np.flatnonzero(carries_loss(roles)).tolist() for _, roles in copies] == [[2, 3], [5, 6]]
    np.testing.assert_array_equal(copies[1][1] >> 2, roles_L >> 2)


@pytest.mark.parametrize("copies", [False, True])
def test_supervised_text_scores_the_answers_of_each_document(copies, tmp_path):
    """Every answer once with what came before it; a prompt that is too long for a window loses its start."""
    records = [{"prompt": "a" * n, "answer": "b" * (1 + n % 5)} for n in (3, 40, 7)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    prepare([tmp_path / "a.jsonl"], "bytes", tmp_path / "data", format="prompt-answer", progress=False)
    corpus = Corpus.open(tmp_path / "data")
    text = corpus_text(corpus, Cut(trained=16), copies)
    rows = {name: np.concatenate([batch[name] for batch in text.windows.batches(1)]) for name in ("tokens", "scored")}
    scored = sorted(bytes(row[on].tolist()[:-1]) for row, on in zip(rows["tokens"], rows["scored"], strict=True))
    assert scored == [b"b", b"bbb", b"bbbb"] and text.windows.complete and len(text.windows) == 3
    prompts = sorted((row == ord("a")).sum() for row in rows["tokens"])
    assert prompts == [3, 7, 16 - 3], "of 40 tokens those that leave room for the separator, the answer and its end"
    assert corpus_text(corpus, Cut(trained=16, limit=2), copies).protocol["complete"] is False
