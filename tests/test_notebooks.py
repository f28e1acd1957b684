"""All notebooks run from the first cell to the last."""

import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

BOOKS = sorted((pathlib.Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
LIGHT = {"03_scaling_laws": ()}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("path", [pytest.param(book, marks=LIGHT.get(book.stem, pytest.mark.slow), id=book.stem) for book in BOOKS])
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("DLMJAX_NOTEBOOK_STEPS", "40")  # the training notebook's short form
    monkeypatch.setenv("PYTHONPATH", str(path.parents[1]))
    book = nbformat.read(path, as_version=4)
    NotebookClient(book, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert all(output.output_type != "error" for cell in book.cells if cell.cell_type == "code" for output in cell.outputs)
