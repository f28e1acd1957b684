"""What is read, what is left out, and what is refused."""

import sys

import numpy as np
import pytest

from dlmjax.errors import InputError
from dlmjax.fit import points
from tests.fit.synthetic import record, sweep


def test_runs_that_did_not_finish_are_counted():
    runs = sweep(series=("masked",)) + [
        record("bad", status="diverged", loss=None),
        record("gone", status="failed", loss=None),
        record("grid", cell={"batch": 64, "lr": 1e-3}),
    ]
    found = points.from_records(runs)["masked"]
    assert len(found) == 20
    assert found.left_out == {"diverged": 1, "failed": 1, "in a grid of batch or learning rate": 1}


def test_a_run_that_saw_a_part_of_its_corpus_repeats_nothing():
    found = points.from_records([record("a", tokens=1000, unique_tokens=4000), record("b", tokens=8000, unique_tokens=4000)])["masked"]
    assert sorted(np.exp(found.columns()["log_U"])) == pytest.approx([1000, 4000])
    assert sorted(found.epochs_R) == [0.25, 2.0]


def test_the_training_loss_is_not_there():
    found = points.from_records([record("a", loss=3.0, train_loss=1.0)])["masked"]
    assert found.loss_R.tolist() == [3.0]


def test_one_series_has_one_validation_set():
    with pytest.raises(InputError, match="objective 'masked': a was measured on .* and b on '8 windows'.*one validation set"):
        points.from_records([record("a"), record("b", validation="8 windows")])


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"vocab": 50257}, "vocabulary, 28 and 50257 ids"),
        ({"config": {"data.paths": ["/else/c4/data"]}}, "corpora, novels and c4"),
        ({"config": {"data.paths": ["/else/novels/data", "c4"]}}, "corpora, novels and c4, novels"),
    ],
)
def test_one_series_has_one_tokenizer_and_corpus(changes, words):
    first = record("a", config={"data.paths": ["runs/novels/data"]})
    with pytest.raises(InputError, match=f"objective 'masked': a and b differ in {words}; fit them apart"):
        points.from_records([record("plain"), first, record("b", **changes)])


def test_token_budgets_of_a_corpus_and_other_machines_are_one_curve():
    paths = (["runs/novels/data"], ["/else/novels/data(tokens=1000)"], ["/else/novels"])
    runs = [record(f"r{i}", config={"data.paths": path}) for i, path in enumerate(paths)]
    assert len(points.from_records([*runs, record("unsaid")])["masked"]) == 4


def test_each_definition_of_size_says_something_of_its_own():
    runs = [record(f"r{i}", size=10.0**i, flops_per_token=7.0 * 10**i, flops=7e7 * 10**i) for i in (5, 6)]
    assert set(points.from_records(runs)["masked"].sizes) == {"total", "non_embedding", "flops_per_token"}
    sparse = [record("s", size=1e6, active=250_000)]
    assert set(points.from_records(sparse)["masked"].sizes) == {"total", "non_embedding", "active"}


def test_budgets_are_those_that_were_planned_or_lie_apart():
    planned = points.from_records(sweep(series=("masked",)))["masked"]
    assert np.bincount(planned.groups()).tolist() == [5, 5, 5, 5]
    flops = [1e18, 1.05e18, 1.1e18, 1e19, 1.02e19, 5e20]
    runs = [record(f"r{i}", size=1e8, tokens=value / 6e8) for i, value in enumerate(flops)]
    assert points.from_records(runs)["masked"].groups().tolist() == [0, 0, 0, 1, 1, -1]


TABLE = """Model Size,Training FLOP,loss,colour
1e8,6e18,3.2,#fff
2e8,6e18,3.1,#eee
"""


def test_a_table_in_chinchillas_format(tmp_path):
    """The columns of the public extraction: sizes, FLOPs and losses; tokens follow from 6 N D."""
    (tmp_path / "runs.csv").write_text(TABLE)
    found = points.from_csv(tmp_path / "runs.csv")["runs"]
    np.testing.assert_allclose(found.tokens_R, [1e10, 5e9])
    assert any("'Model Size' is read as parameters" in note for note in found.notes)
    assert any("not read: colour" in note for note in found.notes)
    assert any("tokens are not given" in note for note in found.notes)


def test_a_table_may_have_series_and_other_names(tmp_path):
    (tmp_path / "t.csv").write_text("Objective,N,D,Val Loss\nar,1e8,1e9,3\nmasked,1e8,1e9,3.3\nmasked,2e8,1e9,3.2\n")
    found = points.from_csv(tmp_path / "t.csv")
    assert {name: len(each) for name, each in found.items()} == {"ar": 1, "masked": 2}
    np.testing.assert_allclose(found["ar"].flops_R, 6e17)


@pytest.mark.parametrize("held_out", ["val_loss", "Validation Loss", "nelbo", "eval/loss"])
def test_the_held_out_loss_of_a_table_wins(tmp_path, held_out):
    (tmp_path / "t.csv").write_text(f"N,D,loss,{held_out}\n1e8,1e9,1,3\n2e8,1e9,1,3.2\n")
    found = points.from_csv(tmp_path / "t.csv")["t"]
    assert found.loss_R.tolist() == [3.0, 3.2]
    assert any(f"column {held_out!r} is read as loss" in note for note in found.notes)


@pytest.mark.parametrize("content", ["params,tokens,loss\n1e8,1e9,3,ä\n".encode("latin-1"), b'params,tokens,loss\n"' + b"1" * 140_000])
def test_a_file_that_is_no_table_is_refused(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(InputError, match="t.csv cannot be read as a table"):
        points.from_csv(tmp_path / "t.csv")


@pytest.mark.parametrize(
    "text, words",
    [
        ("size,weight\n1,2\n", "no column for loss and tokens .or flops.; its columns are size, weight; known names: loss: val_loss"),
        ("params,tokens,loss\n1e8,x,3\n", "line 2 of .*: tokens is 'x', not a number"),
        ("params,tokens,loss\n1e8,1e9,3\n1e8,1e9,-1\n", "line 3 of .*: loss is '-1'; it must be a positive number"),
        ("params,tokens,loss\n", "a header and no runs"),
    ],
)
def test_a_table_that_cannot_be_read_says_why(tmp_path, text, words):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        points.from_csv(tmp_path / "t.csv")


def test_a_missing_table_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        points.from_csv(tmp_path / "none.csv")


def test_the_room_of_fits_imports_no_jax():
    """In a process of its own: a fit runs where jax is not installed."""
    import subprocess

    code = (
        "import sys, dlmjax.cli.fit, dlmjax.fit.pipeline, dlmjax.fit.text, dlmjax.fit.report;"
        "print(sorted(name for name in sys.modules if name.split('.')[0] in ('jax', 'jaxlib', 'flax', 'matplotlib')))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
