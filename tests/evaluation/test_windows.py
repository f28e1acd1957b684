"""Windows: every token scored exactly once, whatever the stride, the remainder, the batch and the hosts."""

import numpy as np
import pytest

from dlmjax.data import Corpus, EvalWindows, eval_batches
from dlmjax.errors import InputError
from dlmjax.evaluation.text import Cut, corpus_text
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
