"""Rows by number: each epoch shows what its packing promises, in an order of its own; segments never join two documents."""

import itertools

import numpy as np
import pytest

from dlmjax.data.corpus import Corpus
from dlmjax.data.prepare import prepare
from dlmjax.data.windows import PERIOD, EvalWindows, Mixture, TrainWindows, make_keys, pack, permute, segments_and_positions
from dlmjax.errors import InputError
from tests.data.conftest import make_documents


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Corpus:
    """A second, small corpus of the same tokenizer."""
    directory = tmp_path_factory.mktemp("other")
    (directory / "a.txt").write_text("\n".join(t.replace("\n", "") for t in make_documents(40, 300, 9)))
    prepare([directory / "a.txt"], "bytes", directory / "c", documents="line")
    return Corpus.open(directory / "c")


# ---- permutation --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 16, 17, 99, 100, 101, 1000, 65_537])
def test_permutation_is_a_bijection_for_every_key(size):
    for seed in range(3):
        image = permute(np.arange(size), size, make_keys(seed, 0, np.full(size, 5)))
        np.testing.assert_array_equal(np.sort(image), np.arange(size))


def test_permutations_are_drawn_evenly():
    """All 24 orders of 4 items, chi-square over keys; and every neighbour of an item is equally likely among 50."""
    count = 24_000
    keys = make_keys(3, 1, np.arange(count))
    orders = np.stack([permute(np.full(count, i), 4, keys) for i in range(4)], axis=1)
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24 and ((counts - 1000) ** 2 / 1000).sum() < 55  # 23 degrees of freedom: p = 2e-4
    step = (permute(np.full(count, 20), 50, keys) - permute(np.full(count, 19), 50, keys)) % 50
    counts = np.bincount(step, minlength=50)[1:]
    assert ((counts - count / 49) ** 2 / (count / 49)).sum() < 95  # 48 degrees of freedom: p = 6e-5


def test_keys_differ_by_seed_corpus_and_epoch():
    keys = {int(make_keys(s, c, np.array([e]))[0]) for s in range(10) for c in range(10) for e in range(10)}
    assert len(keys) == 1000


# ---- packing ------------------------------------------------------------------------------------------------------------------------


def slow_next_fit(lengths: list[int], length: int) -> list[int]:
    """Window starts, one document after the other."""
    starts, used, at = [], length + 1, 0
    for document in lengths:
        for piece in [length] * (document // length) + [document % length] * (document % length > 0):
            if used + piece > length:
                starts.append(at)
                used = 0
            used += piece
            at += piece
    return [*starts, at]


@pytest.mark.parametrize("seed", range(6))
def test_next_fit_in_stretches_of_any_length(seed):
    rng = np.random.default_rng(seed)
    lengths = np.maximum(1, (rng.random(300) ** 3 * 400).astype(int))
    lengths[:3] = [128, 256, 1]
    ends = np.cumsum(lengths)
    expected = slow_next_fit(lengths.tolist(), 128)
    for cuts in ([], [1], [150], sorted(rng.integers(0, 300, 20).tolist())):
        np.testing.assert_array_equal(pack(np.split(ends, cuts), 128, alone=False), expected)
        alone = pack(np.split(ends, cuts), 128, alone=True)
        assert set(ends.tolist()) <= set(alone.tolist()) and (np.diff(alone) <= 128).all()
        assert len(alone) - 1 == sum(-(-n // 128) for n in lengths.tolist())
    np.testing.assert_array_equal(pack([], 128, alone=False), [0])


def test_segments_and_positions_by_hand():
    ends = np.array([[0, 1, 1, 0, 0, 1], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]], bool)
    segments, positions = segments_and_positions(ends, np.array([6, 3, 0]))
    assert segments.tolist() == [[1, 1, 2, 3, 3, 3], [1, 2, 2, 0, 0, 0], [0] * 6]
    assert positions.tolist() == [[0, 1, 0, 0, 1, 2], [0, 0, 1, 0, 0, 0], [0] * 6]


def check_row(row: dict, corpus: Corpus, window: int) -> int:
    """Shapes, padding, and that a segment is a stretch of exactly one document. Returns the number of tokens."""
    tokens, segments, positions = row["tokens"], row["segments"], row["positions"]
    assert all(v.shape == (window,) and v.dtype == np.int32 for v in (tokens, segments, positions))
    count = int((segments > 0).sum())
    assert (segments[count:] == 0).all() and (tokens[count:] == corpus.tokenizer.pad_id).all() and (positions[count:] == 0).all()
    assert corpus.tokenizer.pad_id not in tokens[:count]
    for segment in range(1, segments.max(initial=0) + 1):
        here = np.flatnonzero(segments == segment)
        assert (np.diff(here) == 1).all()
        assert positions[here].tolist() == list(range(len(here)))
        assert corpus.tokenizer.eos_id not in tokens[here][:-1]
        assert tokens[here[-1]] == corpus.tokenizer.eos_id or here[-1] == count - 1
    return count


@pytest.mark.parametrize("length", [7, 64, 250])
def test_an_epoch_of_concat_covers_the_ring_but_the_remainder(corpus, stream, length):
    windows = TrainWindows([corpus], None, length, 8, seed=3)
    (count,) = windows.windows_per_epoch
    assert count == len(stream) // length
    ring = np.array(stream * 2, np.int32)
    missing = []
    for epoch in range(3):
        samples = np.arange(epoch * count, (epoch + 1) * count)
        offsets, counts = windows._epochs[0].locate(samples)
        assert (counts == length).all()
        covered = np.zeros(len(stream), int)
        np.add.at(covered, (offsets[:, None] + np.arange(length)) % len(stream), 1)
        left_out = np.flatnonzero(covered == 0)
        assert covered.max() == 1 and len(left_out) == len(stream) % length
        missing.append(tuple(left_out.tolist()))
        assert (np.diff(offsets) != length).any()  # shuffled
        for sample in range(epoch * count, (epoch + 1) * count, max(1, count // 40)):
            row = windows.row(*divmod(sample, 8))
            assert check_row(row, corpus, length) == length
            begin = int(offsets[sample - epoch * count])
            np.testing.assert_array_equal(row["tokens"], ring[begin : begin + length])
    assert len(set(missing)) == 3  # the remainder and the cuts fall elsewhere each time


@pytest.mark.parametrize("packing", ["documents", "alone"])
@pytest.mark.parametrize("length", [120, 400, 20_000])
def test_an_epoch_of_documents_shows_every_token_once(corpus, stream, texts, length, packing):
    windows = TrainWindows([corpus], None, length, 4, seed=1, packing=packing)
    (count,) = windows.windows_per_epoch
    pieces, total = [], 0
    for sample in range(count):
        row = windows.row(*divmod(sample, 4))
        total += check_row(row, corpus, length)
        assert packing != "alone" or row["segments"].max() == 1
        for segment in range(1, row["segments"].max() + 1):
            pieces.append(row["tokens"][row["segments"] == segment].tolist())
    assert total == len(stream)
    whole = [[*corpus.tokenizer.encode(t).tolist(), corpus.tokenizer.eos_id] for t in texts]
    expected = [d[at : at + length] for d in whole for at in range(0, len(d), length)]  # no short document is split
    assert sorted(pieces) == sorted(expected)
    if packing == "documents" and length == 400:
        assert total / (count * length) > 0.7


def test_epochs_and_seeds_differ_and_rows_are_pure(corpus):
    def first(seed: int, step: int) -> bytes:
        return TrainWindows([corpus], None, 64, 4, seed).rows(step, range(4))["tokens"].tobytes()

    steps = TrainWindows([corpus], None, 64, 4, 0).windows_per_epoch[0] // 4
    assert first(0, 3) == first(0, 3)
    assert len({first(0, 3), first(1, 3), first(0, 4), first(0, 3 + steps)}) == 4
    windows = TrainWindows([corpus], None, 64, 4, 0)
    batch = windows.rows(7, range(1, 3))
    assert batch["row"].tolist() == [1, 2] and batch["row"].dtype == np.int32
    for i, row in enumerate((1, 2)):
        for key, values in windows.row(7, row).items():
            np.testing.assert_array_equal(values, batch[key][i])


# ---- mixtures -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [[1.0], [1, 1], [0.7, 0.2, 0.1], [1000, 1, 3, 3], [0.001, 0.999]])
def test_mixture_is_exact_and_even(weights):
    mixture = Mixture(weights)
    samples = np.arange(2 * PERIOD + 1000)
    corpus, ranks = mixture.choose(samples)
    shares = np.array(weights) / sum(weights)
    for number, share in enumerate(shares.tolist()):
        mine = corpus == number
        np.testing.assert_array_equal(ranks[mine], np.arange(mine.sum()))  # each of that corpus's samples once, in order
        assert np.abs(np.cumsum(mine) - (samples + 1) * share).max() <= len(weights) / 2 + 1
        if len(weights) > 1:
            assert abs(int(mine[:PERIOD].sum()) - share * PERIOD) < 1
            assert mine[:PERIOD].sum() == mine[PERIOD : 2 * PERIOD].sum() == mixture.count_C[number]


def test_mixed_rows_come_from_their_corpora(corpus, other):
    windows = TrainWindows([corpus, other], [3, 1], 32, 8, seed=0)
    alone = [TrainWindows([c], None, 32, 1, seed=0) for c in (corpus, other)]
    text = [np.concatenate([c.read(0, c.num_tokens)] * 2).astype(np.uint16).tobytes() for c in (corpus, other)]
    counts = [0, 0]
    for step in range(40):
        for tokens in windows.rows(step, range(8))["tokens"]:
            origin = [tokens.astype(np.uint16).tobytes() in t for t in text]
            assert any(origin)
            counts[0 if origin[0] else 1] += 1
    assert counts[0] >= 240 and counts[1] >= 70 and sum(counts) == 320
    assert windows.epochs(40)[1] == pytest.approx(80 / alone[1].windows_per_epoch[0], rel=1e-3)
    # The first corpus's rows are those it would give alone, in order: a mixture decides only who is next.
    chosen, rank = windows._mixture.choose(np.arange(16))
    for sample in np.flatnonzero(chosen == 0).tolist():
        row = windows.row(*divmod(sample, 8))
        np.testing.assert_array_equal(row["tokens"], alone[0].row(int(rank[sample]), 0)["tokens"])


def test_weights_default_to_tokens(corpus, other):
    windows = TrainWindows([corpus, other], None, 32, 8, seed=0)
    share = corpus.num_tokens / (corpus.num_tokens + other.num_tokens)
    assert windows._mixture.count_C[0] / PERIOD == pytest.approx(share, abs=1e-4)
    assert windows.epochs(1000)[0] == pytest.approx(windows.epochs(1000)[1], rel=0.05)


# ---- held-out -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 33, 1024, 10_000_000])
def test_held_out_windows_show_every_token_once_in_order(corpus, stream, length):
    length = min(length, len(stream) + 5)
    evals = EvalWindows(corpus, length)
    assert len(evals) == -(-len(stream) // length)
    numbers = range(0, len(evals), max(1, len(evals) // 300))
    for number in numbers:
        row = evals.row(number)
        count = check_row(row, corpus, length) if number % 7 == 0 else int((row["segments"] > 0).sum())
        assert row["tokens"][:count].tolist() == stream[number * length : (number + 1) * length]
    everything = evals.rows(range(len(evals) + 2))
    np.testing.assert_array_equal(everything["tokens"][everything["segments"] > 0], stream)
    assert (everything["segments"][-2:] == 0).all() and everything["row"].tolist() == list(range(len(evals) + 2))
    with pytest.raises(InputError, match="held-out windows"):
        evals.row(len(evals))
    first = EvalWindows(corpus, length, limit=3)
    assert len(first) == min(3, len(evals))
    batch = first.rows(range(5))
    np.testing.assert_array_equal(batch["tokens"][batch["segments"] > 0], stream[: 3 * length])


# ---- refusals -----------------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_trained_on_is_refused(corpus, other, tmp_path):
    arguments = {"corpora": [corpus, other], "weights": None, "length": 32, "global_batch": 8, "seed": 0}
    cases = [
        ({"length": 0}, "window length is 0"),
        ({"global_batch": 0}, "global_batch is 0"),
        ({"seed": -1}, "seed -1"),
        ({"packing": "greedy"}, "packing is 'greedy'; give one of: concat, documents, alone"),
        ({"corpora": []}, "no corpus"),
        ({"weights": [1.0]}, "1 mixture weights for 2 corpora"),
        ({"weights": [1.0, -1.0]}, "must be positive"),
        ({"weights": [1.0, float("nan")]}, "must be positive"),
        ({"weights": [1.0, 1e-7]}, "below 1/65536"),
        ({"length": 100_000}, r"tokens, fewer than one window of 100,000; prepare more text"),
    ]
    for change, message in cases:
        with pytest.raises(InputError, match=message):
            TrainWindows(**(arguments | change))
    prepare(["builtin:python-docs"], "char27", tmp_path)
    with pytest.raises(InputError, match="different tokenizers"):
        TrainWindows(**(arguments | {"corpora": [corpus, Corpus.open(tmp_path)]}))
    windows = TrainWindows(**arguments)
    for step, rows in [(-1, range(8)), (0, range(9)), (0, range(-1, 3))]:
        with pytest.raises(InputError, match="a step has rows 0 to 7"):
            windows.rows(step, rows)
    with pytest.raises(InputError, match="window length"):
        EvalWindows(corpus, 0)
    assert TrainWindows(**(arguments | {"corpora": [corpus], "length": 100_000, "packing": "documents"})).windows_per_epoch == [1]


def test_all_steps_of_a_run_are_distinct_rows(corpus):
    """Within an epoch no window comes twice, whatever the batch size."""
    for batch in (1, 3, 8):
        windows = TrainWindows([corpus], None, 128, batch, seed=0, packing="alone")
        (count,) = windows.windows_per_epoch
        offsets = [windows._epochs[0].locate(np.array([g]))[0][0] for g in range(count)]
        assert len(set(offsets)) == count
        assert [int(o) for o, _ in itertools.pairwise(offsets)] != sorted(offsets[:-1])
