"""The first tokens of a corpus: what is read of it, how often, and that a run knows it."""

import numpy as np
import pytest

from dlmjax import config as config_lib
from dlmjax.data.corpus import Corpus
from dlmjax.data.prepare import prepare
from dlmjax.data.token_budget import parse_path, with_tokens
from dlmjax.data.windows import TrainWindows
from dlmjax.errors import InputError
from dlmjax.experiment import claim_workdir

BUDGET = 12_345  # ends within a document of the third shard or so


@pytest.fixture(scope="module")
def budgeted(corpus) -> Corpus:
    return Corpus.open(with_tokens(corpus.directory, BUDGET))


def test_paths_with_a_value():
    assert parse_path("data/a") == ("data/a", None)
    assert parse_path("gs://b/c d(1)(tokens = 1_000)") == ("gs://b/c d(1)", 1000)
    assert parse_path(with_tokens("x", 7)) == ("x", 7)
    values = (
        "token=5",
        "tokens=0",
        "tokens=-3",
        "tokens=1e5",
        "tokens=",
        "tokens=5, tokens=5",
        "tokens=True",
        f"tokens={10**30}",
        "tokens=a",
    )
    for bad in (f"x({value})" for value in values):
        with pytest.raises(InputError, match=r"x\(tokens=100000\)"):
            parse_path(bad)
    with pytest.raises(InputError, match="has a token budget already"):
        with_tokens("x(tokens=5)", 5)


def test_the_stream_ends_where_the_token_budget_does(budgeted, corpus, stream):
    assert (budgeted.num_tokens, corpus.token_budget) == (BUDGET, None)
    np.testing.assert_array_equal(budgeted.read(0, BUDGET), stream[:BUDGET])
    with pytest.raises(InputError, match="stream of 12,345"):
        budgeted.read(BUDGET - 1, 2)
    np.testing.assert_array_equal(budgeted.counts_V, np.bincount(stream[:BUDGET], minlength=len(corpus.counts_V)))
    assert budgeted.num_bytes == sum(token != corpus.tokenizer.eos_id for token in stream[:BUDGET])
    whole = sum(token == corpus.tokenizer.eos_id for token in stream[:BUDGET])
    ends = np.concatenate(list(budgeted.document_ends()))
    assert budgeted.num_documents == len(ends) == whole + 1 and ends[-1] == BUDGET
    with pytest.raises(InputError, match="not 99,999,999; lower tokens="):
        Corpus.open(with_tokens(corpus.directory, 99_999_999))


def test_all_tokens_are_the_whole_stream(corpus):
    everything = Corpus.open(with_tokens(corpus.directory, corpus.num_tokens))
    np.testing.assert_array_equal(np.concatenate(list(everything.document_ends())), np.concatenate(list(corpus.document_ends())))
    assert (everything.num_documents, everything.num_bytes) == (corpus.num_documents, corpus.num_bytes)


def test_held_out_splits_stay_whole(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(f"line {number} of the text" for number in range(400)))
    prepare([tmp_path / "a.txt"], "bytes", tmp_path / "c", documents="line", valid_fraction=0.3)
    path = with_tokens(tmp_path / "c", 500)
    assert Corpus.open(path).num_tokens == 500
    assert Corpus.open(path, split="valid").num_tokens == Corpus.open(tmp_path / "c", split="valid").num_tokens > 500


def test_each_epoch_has_every_window_once_in_an_order_of_its_own(budgeted, stream):
    length = 64
    windows = TrainWindows([budgeted], None, length, 8, seed=3)
    (count,) = windows.windows_per_epoch
    assert count == BUDGET // length
    rows = [windows.rows(step, range(8))["tokens"] for step in range(-(-3 * count // 8))]
    seen = np.concatenate(rows)[: 3 * count].reshape(3, count, length)
    expected = {tuple(stream[i * length : (i + 1) * length]) for i in range(count)}
    for epoch in seen:
        assert len({tuple(row) for row in epoch.tolist()} & expected) == len(expected)
    assert (seen[0] != seen[1]).any() and (seen[1] != seen[2]).any()
    assert windows.epochs(count // 8)[0] == pytest.approx(1, abs=8 / count)


def test_packed_documents_of_a_budgeted_corpus(budgeted):
    windows = TrainWindows([budgeted], None, 128, 1, seed=0, packing="documents")
    (count,) = windows.windows_per_epoch
    for epoch in range(2):
        used = sum(int((windows.rows(epoch * count + step, [0])["segments"] > 0).sum()) for step in range(count))
        assert used == BUDGET


def test_a_run_with_another_token_budget_is_another_run(corpus, tmp_path):
    def config(*paths):
        made = config_lib.default()
        made.data.paths = tuple(map(str, paths))
        return made

    whole, some, other = config("a"), config("a(tokens=500)"), config("a(tokens=600)")
    assert len({config_lib.fingerprint(each) for each in (whole, some, other)}) == 3
    assert config_lib.fingerprint(whole) == config_lib.fingerprint(config("elsewhere"))
    assert config_lib.fingerprint(some) == config_lib.fingerprint(config("elsewhere(tokens=500)"))
    claim_workdir(tmp_path / "run", some, corpus.tokenizer)
    (tmp_path / "run" / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n')  # something was trained
    claim_workdir(tmp_path / "run", config("moved(tokens=500)"), corpus.tokenizer)
    for changed in (whole, other):
        with pytest.raises(InputError, match="another run; it differs in data.paths"):
            claim_workdir(tmp_path / "run", changed, corpus.tokenizer)
    with pytest.raises(InputError, match="one value"):
        config_lib.check(config("a(epochs=2)"))
