"""Tables and per-document vectors: each adds up to the whole, and says what was put in."""

import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.errors import InputError
from dlmjax.evaluation import breakdown
from dlmjax.evaluation.breakdown import ByDocument, ByFrequency, ByPosition
from dlmjax.evaluation.likelihood import Evaluator, TokenNats
from dlmjax.evaluation.windows import cut_windows
from tests.sampling.toy import Law

LAW = Law(length=4)
LENGTHS = np.array([1, 2, 3, 0])


@pytest.fixture(scope="module")
def seen():
    """An evaluation with every observer: 50 tokens in windows of 4, three new ones in each."""
    tokens = np.random.default_rng(0).integers(0, 3, 50).astype(np.int32)
    windows = cut_windows(tokens, np.array([9, 30, 50]), window=4, step=3, pad_id=0)
    observers = ByDocument(windows, LENGTHS), ByPosition(4), ByFrequency(np.array([90, 9, 0, 0]))
    evaluator = Evaluator(LAW.process(), LAW.bind, nodes=3, draws=2)
    result = evaluator(jnp.float32(1.0), windows.batches(8), byte_lengths_V=LENGTHS, observers=observers)
    return tokens, windows, result, *observers


def test_every_table_adds_up_to_the_whole(seen):
    tokens, _, result, documents, positions, frequencies = seen
    whole = result.nats_per_token * result.tokens
    assert result.tokens == 50 and documents.tokens_D.tolist() == [9, 21, 20] and documents.bytes_D.sum() == result.bytes
    assert documents.nats_D.sum() == pytest.approx(whole, rel=1e-12)
    for table in (positions.table(), frequencies.table()):
        assert sum(row["tokens"] for row in table) == 50
        assert sum(row["tokens"] * row["nats_per_token"] for row in table) == pytest.approx(whole, rel=1e-12)
    assert [row["tokens"] for row in frequencies.table()] == [(tokens == i).sum() for i in range(3)]


def test_positions_and_frequencies_are_those_of_the_tokens(seen):
    *_, positions, frequencies = seen
    assert [(row["first"], row["end"], row["tokens"]) for row in positions.table()] == [(0, 1, 1), (1, 2, 16), (2, 3, 16), (3, 4, 17)]
    shares = [(row["share_from"], row["share_below"]) for row in frequencies.table()]
    assert shares == [(0.1, 1.0), (0.01, 0.1), (0.0, 0.0)], "90 of 99, 9 of 99, never"


def test_a_token_that_is_not_scored_is_nowhere():
    """Nats where nothing is scored would show up in a table: they are left out."""
    batch = TokenNats(np.array([0]), np.array([[0, 1]]), *2 * [np.array([[True, False]])], np.array([[2.0, 100.0]]))
    windows = cut_windows(np.array([0, 1], np.int32), np.array([2]), window=2, step=2, pad_id=0)
    for observer in (ByDocument(windows, LENGTHS), ByPosition(2), ByFrequency(np.array([1, 1, 0, 0]))):
        observer.see(batch)
        if isinstance(observer, ByDocument):
            assert observer.nats_D.tolist() == [2.0] and observer.tokens_D.tolist() == [1]
        else:
            assert [(row["tokens"], row["nats_per_token"]) for row in observer.table()] == [(1, 2.0)]


def test_long_windows_have_sixteen_stretches():
    positions = ByPosition(100)
    positions.see(TokenNats(np.array([0]), np.zeros((1, 100), int), *2 * [np.ones((1, 100), bool)], np.arange(100.0)[None]))
    table = positions.table()
    assert len(table) == 15 and table[0]["nats_per_token"] == 3.0 and (table[-1]["first"], table[-1]["end"]) == (98, 100)


def test_documents_go_into_one_file(seen, tmp_path):
    _, _, _, documents, *_ = seen
    documents.write(str(tmp_path / "d.npz"), ["a", "b", "c"])
    with np.load(tmp_path / "d.npz") as found:
        assert found["ids"].tolist() == ["a", "b", "c"] and found["nats"].tolist() == documents.nats_D.tolist()
        assert found["tokens"].sum() == 50 and found["bytes"].dtype == np.int64
    assert [path.name for path in tmp_path.iterdir()] == ["d.npz"]
    with pytest.raises(InputError, match="cannot write"):
        documents.write(str(tmp_path / "d.npz" / "below-a-file.npz"), ["a", "b", "c"])


def test_tables_as_text_and_picture(seen, tmp_path):
    _, _, result, _, positions, frequencies = seen
    tables = {"level": list(result.levels), "position": positions.table(), "frequency": frequencies.table()}
    text = breakdown.as_text(tables)
    assert "t = 1.000" in text and "0-0" in text and ">= 1e-01" in text and "unseen" in text
    pytest.importorskip("matplotlib")
    breakdown.plot(tables, str(tmp_path / "p.png"), "title")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
