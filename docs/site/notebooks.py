"""Writes docs/notebooks/NAME.md, a page with the cells and outputs of notebooks/NAME.ipynb, which itself is kept without outputs.

python docs/site/notebooks.py [NAME ...]     (make notebooks; about five minutes on two CPU cores)

Runs each notebook in an empty folder. Pictures are files in docs/notebooks/NAME/. Standard error of a notebook (logs) is left out.
"""

import argparse
import base64
import os
import pathlib
import re
import shutil
import tempfile

import nbformat
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).resolve().parents[2]
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def fenced(text: str, language: str) -> str:
    """A block of code whose fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def rendered(book: nbformat.NotebookNode, name: str) -> tuple[str, dict[str, bytes]]:
    """(page, pictures by file name) of a notebook that has run."""
    note = f"*`notebooks/{name}.ipynb` and its outputs on two CPU cores, written by `make notebooks`.*"
    blocks, pictures = [], {}
    for cell in book.cells:
        if cell.cell_type != "code":
            blocks.append(cell.source.strip())
            continue
        blocks.append(fenced(cell.source, "python"))
        printed = "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout")
        blocks += [fenced(COLOURS.sub("", printed), "text")] if printed.strip() else []
        for data in (output.data for output in cell.outputs if output.output_type in ("display_data", "execute_result")):
            if "image/png" in data:
                file = f"{len(pictures) + 1}.png"
                pictures[file] = base64.b64decode(data["image/png"])
                blocks.append(f"![picture {len(pictures)} of the notebook]({name}/{file})")
            elif "text/plain" in data:
                blocks.append(fenced(data["text/plain"], "text"))
    return "\n\n".join([blocks[0], note, *blocks[1:]]) + "\n", pictures


def write_page(path: pathlib.Path, folder: pathlib.Path) -> None:
    """Runs the notebook at `path` and writes its page and pictures into `folder`. Raises nbclient's error where a cell fails."""
    book = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as place:
        NotebookClient(book, timeout=1800, resources={"metadata": {"path": place}}).execute()
    page, pictures = rendered(book, path.stem)
    shutil.rmtree(folder / path.stem, ignore_errors=True)
    (folder / path.stem).mkdir(parents=True)
    for file, content in pictures.items():
        (folder / path.stem / file).write_bytes(content)
    (folder / f"{path.stem}.md").write_text(page, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="names of notebooks without .ipynb (all)")
    names = parser.parse_args().names
    os.environ["PYTHONPATH"] = str(ROOT)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        if not names or path.stem in names:
            write_page(path, ROOT / "docs" / "notebooks")
            print(ROOT / "docs" / "notebooks" / f"{path.stem}.md")


if __name__ == "__main__":
    main()
