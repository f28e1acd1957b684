"""The site of the documents: it is built without a warning, loads nothing from elsewhere, and shows the notebooks as they are."""

import importlib.util
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[1]
BOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))


def build(root: pathlib.Path, folder: pathlib.Path) -> subprocess.CompletedProcess:
    """What `make docs` runs."""
    pytest.importorskip("mkdocs", reason="requires the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(root / "mkdocs.yml"), "-d", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr + done.stdout
    return folder


def test_a_broken_link_ends_the_build(tmp_path):
    """A page, a source file and a heading that do not exist, in a page without an entry in mkdocs.yml."""
    copied = (
        "mkdocs.yml",
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "CITATION.cff",
        "docs",
        "dlmjax",
        "configs",
        "launch",
        "benchmarks",
        "notebooks",
    )
    for name in copied:
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    broken = ("nothing.md", "../configs/nothing.py", "config.md#no-such-heading")
    (tmp_path / "docs" / "extra.md").write_text("# Extra\n" + " ".join(f"[a link]({target})" for target in broken), encoding="utf-8")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0 and all(target in done.stderr for target in broken), done.stderr
    assert len(re.findall("WARNING", done.stderr)) == len(broken)


def test_a_page_loads_nothing_from_elsewhere(site):
    """Scripts, styles, fonts and pictures are files of the site."""
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)\b[^>]*?\bsrc=\"([^\"]+)", text)
        loaded += re.findall(r"<link\b[^>]*?\bhref=\"([^\"]+)", text)
        for target in loaded:
            assert not re.match(r"(https?:)?//", target), f"{page.name} loads {target}"
            here = page.name == "404.html" or target.startswith("data:")
            assert here or (page.parent / target.partition("?")[0]).exists(), f"{page.name}: {target}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//|@import", style.read_text(encoding="utf-8")), style


def test_every_link_between_pages_leads_to_a_page(site):
    """Also those that the site rewrites: pages outside docs/ and source files."""
    for page in site.rglob("*.html"):
        for target in re.findall(r"<a\b[^>]*?\bhref=\"([^\"#]+)", page.read_text(encoding="utf-8")):
            assert "://" in target or page.name == "404.html" or (page.parent / target).exists(), f"{page.name}: {target}"
    index = (site / "index.html").read_text(encoding="utf-8")
    assert 'href="processes.html"' in index and "figures/denoising.gif" in index and 'href="contributing.html"' in index
    assert 'href="source/configs/data_limited.py.html"' in (site / "processes.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", BOOKS, ids=lambda path: path.stem)
def test_the_page_of_a_notebook_is_of_its_present_cells(path):
    """`make notebooks` writes the page again; outputs are there, and none of them is an error."""
    page = (ROOT / "docs" / "notebooks" / f"{path.stem}.md").read_text(encoding="utf-8")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]).rstrip() for cell in cells if cell["cell_type"] == "code"]
    assert re.findall(r"^```python\n(.*?)\n```$", page, re.DOTALL | re.MULTILINE) == code, "the page is out of date; run: make notebooks"
    for cell in cells:
        assert cell["cell_type"] == "code" or "".join(cell["source"]).strip() in page
    assert page.count("\n```text\n") >= 3 and page.count("\n![picture") >= 1 and "Traceback" not in page


def test_a_page_of_a_notebook_holds_outputs_and_no_logs():
    spec = importlib.util.spec_from_file_location("notebooks", ROOT / "docs" / "site" / "notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    out = nbformat.v4.new_output
    outputs = [
        out("stream", name="stdout", text="\x1b[1mbold\x1b[0m ``` fence\n"),
        out("stream", name="stderr", text="a log line"),
        out("display_data", {"image/png": "aGVsbG8=", "text/plain": "<Figure>"}),
        out("execute_result", {"text/plain": "42"}, execution_count=1),
    ]
    cells = [nbformat.v4.new_markdown_cell("# Title"), nbformat.v4.new_code_cell("f()", outputs=outputs), nbformat.v4.new_code_cell("pass")]
    page, pictures = module.rendered(nbformat.v4.new_notebook(cells=cells), "book")
    assert pictures == {"1.png": b"hello"} and page.startswith("# Title\n\n*`notebooks/book.ipynb`")
    assert "````text\nbold ``` fence\n````" in page and "![picture 1 of the notebook](book/1.png)" in page
    assert "```text\n42\n```" in page and "a log line" not in page and "<Figure>" not in page
    assert page.rstrip().endswith("```python\npass\n```")
