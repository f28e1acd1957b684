"""Contract 6: the same rows on any number of hosts, with any accumulation, and after a restart, bit for bit."""

import itertools

import numpy as np
import pytest

from dlmjax.data.loader import eval_batches, train_batches
from dlmjax.data.windows import EvalWindows, TrainWindows
from dlmjax.errors import InputError

BATCH = 32
LENGTH = 256
STEPS = 32  # an epoch of the second corpus is 24 of them


@pytest.fixture(scope="module", params=["concat", "documents"])
def windows(request, corpus) -> TrainWindows:
    return TrainWindows([corpus, corpus], [2, 1], LENGTH, BATCH, seed=5, packing=request.param)


@pytest.fixture(scope="module")
def reference(windows) -> list[dict[str, np.ndarray]]:
    """The first batches, computed row by row."""
    batches = []
    for step in range(STEPS):
        rows = [windows.row(step, r) for r in range(BATCH)]
        batches.append({key: np.stack([row[key] for row in rows]) for key in rows[0]} | {"row": np.arange(BATCH, dtype=np.int32)})
    return batches


def assert_equal(left: dict, right: dict) -> None:
    assert left.keys() == right.keys()
    for key in left:
        assert left[key].dtype == right[key].dtype == np.int32
        np.testing.assert_array_equal(left[key], right[key])


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_hosts_and_accumulation_do_not_matter(windows, reference, hosts, accumulation):
    """Each host reads the contiguous rows it owns of each microbatch; together they are the batch that one host alone reads."""
    micro = BATCH // accumulation
    share = micro // hosts
    iterators = [
        [train_batches(windows, range(m * micro + h * share, m * micro + (h + 1) * share), 0) for h in range(hosts)]
        for m in range(accumulation)
    ]
    for expected in reference[:12]:
        parts = [next(host) for microbatch in iterators for host in microbatch]
        assert_equal({key: np.concatenate([part[key] for part in parts]) for key in parts[0]}, expected)


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_a_restart_in_the_middle_of_an_epoch_goes_on_with_the_same_bits(windows, reference, ahead):
    epochs = [windows.epochs(step)[1] for step in range(len(reference))]
    assert epochs[-1] > 1  # past the end of an epoch
    for start in (0, 1, 7, next(i for i, e in enumerate(epochs) if e > 1) - 1, len(reference) - 2):
        batches = list(train_batches(windows, range(BATCH), start, stop_step=len(reference), ahead=ahead))
        assert len(batches) == len(reference) - start
        for batch, expected in zip(batches, reference[start:], strict=True):
            assert_equal(batch, expected)


def test_training_never_runs_out(windows):
    for batch in itertools.islice(train_batches(windows, range(2), 10**9), 3):
        assert batch["tokens"].shape == (2, LENGTH)
    far = next(train_batches(windows, range(BATCH), 10**9))
    assert_equal(far, windows.rows(10**9, range(BATCH)))


@pytest.mark.parametrize("batch_size, hosts", [(1, 1), (8, 1), (8, 4), (6, 3)])
def test_held_out_batches(corpus, stream, batch_size, hosts):
    evals = EvalWindows(corpus, 300)
    share = batch_size // hosts
    parts = [list(eval_batches(evals, batch_size, range(h * share, (h + 1) * share))) for h in range(hosts)]
    assert {len(part) for part in parts} == {-(-len(evals) // batch_size)}
    tokens = []
    for batch in zip(*parts, strict=True):
        assert all(part["tokens"].shape == (share, 300) for part in batch)
        tokens += [part["tokens"][part["segments"] > 0] for part in batch]
    np.testing.assert_array_equal(np.concatenate(tokens), stream)
    assert [r for batch in zip(*parts, strict=True) for part in batch for r in part["row"]] == list(range(len(parts[0]) * batch_size))
    if hosts == 1:
        for left, right in zip(eval_batches(evals, batch_size), parts[0], strict=True):
            assert_equal(left, right)


def test_rows_that_are_no_part_of_the_batch_are_refused(windows, corpus):
    for rows in (range(0), range(BATCH + 1), [3, 2], range(-1, 2)):
        with pytest.raises(InputError, match="are not ascending indices of rows of a batch of 32"):
            train_batches(windows, rows, 0)
    with pytest.raises(InputError, match="are not ascending indices of rows of a batch of 4"):
        eval_batches(EvalWindows(corpus, 10), 4, range(2, 5))


@pytest.mark.parametrize("ahead", [0, 2])
def test_an_error_in_the_thread_arrives_as_it_is(windows, ahead):
    batches = train_batches(windows, range(BATCH), -1, ahead=ahead)
    with pytest.raises(InputError, match="steps begin at 0"):
        next(batches)


def test_corpora_are_found_by_name_without_loading_jax_for_those_who_do_not_need_it():
    import dlmjax.data

    assert dlmjax.data.train_batches is train_batches and dlmjax.data.TrainWindows is TrainWindows
    with pytest.raises(AttributeError, match="has no nonsense"):
        dlmjax.data.nonsense  # noqa: B018


def test_hosts_that_take_turns_see_the_rows_of_one(windows, reference):
    """On a torus the hosts of one row of chips own every second pair of rows."""
    for mine in ([0, 1, 4, 5], [2, 3, 6, 31]):
        for step, batch in enumerate(itertools.islice(train_batches(windows, mine, 0), 3)):
            assert_equal(batch, {key: value[mine] for key, value in reference[step].items()})


def test_a_host_reads_its_own_rows_and_no_others(corpus, monkeypatch):
    """Bytes that reach the process: of eight hosts each reads about an eighth of what one host alone reads."""
    windows = TrainWindows([corpus], None, LENGTH, BATCH, seed=5, packing="concat")
    count = []
    read = type(corpus)._read_records

    def counted(self, number, records):
        found = read(self, number, records)
        count.append(sum(len(record) for record in found))
        return found

    def bytes_of(rows):
        count.clear()
        for _ in itertools.islice(train_batches(windows, rows, 0, ahead=0), 8):
            pass
        return sum(count)

    bytes_of(range(BATCH))  # what is read once, to find out where documents end
    monkeypatch.setattr(type(corpus), "_read_records", counted)
    whole, share = bytes_of(range(BATCH)), bytes_of(range(4, 8))
    # A record holds 16 windows, so rows that fall into one record are read together when one host asks for both.
    assert 0 < share <= whole and share <= 8 * 4 * 2 * 2 * 4096
