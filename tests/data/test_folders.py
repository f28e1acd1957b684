"""A folder as an input: every text file in it, in an order that its names decide, and one line for what is left out."""

import gzip
import json
import pathlib

import pytest

from dlmjax.__main__ import main
from dlmjax.data.corpus import Corpus
from dlmjax.data.folders import read_folder
from dlmjax.data.prepare import prepare
from dlmjax.data.specs import FROM_FILE, TOKENIZERS
from dlmjax.data.tokenizers import load_tokenizer
from dlmjax.errors import InputError

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    """Every format, in folders, beside all that is not read: hidden, linked, empty, of other kinds, and a corpus."""
    from pyarrow import parquet, table

    root = tmp_path / "text"
    for name in ("b/deep", "a", ".git"):
        (root / name).mkdir(parents=True)
    (root / "b/deep/one.TXT").write_text("in b/deep/one")
    (root / "b/note.md").write_text("# in b/note")
    (root / "a/lines.jsonl").write_text(json.dumps({"text": "in a/lines"}) + "\n")
    (root / "a.txt.gz").write_bytes(gzip.compress(b"in a.txt.gz"))
    parquet.write_table(table({"text": ["in z"]}), root / "z.parquet")
    for name, content in {".hidden.txt": "x", ".git/x.txt": "x", "empty.txt": "", "p.png": "x", "q.png": "x", "LICENSE": "x"}.items():
        (root / name).write_text(content)
    (tmp_path / "secret.txt").write_text("secret")
    (root / "out.txt").symlink_to(tmp_path / "secret.txt")
    (root / "up").symlink_to(tmp_path)
    prepare([root / "b/note.md"], "bytes", root / "corpus")
    (root / "corpus/metrics.jsonl").write_text("{}\n")
    return root


TEXTS = ["in a/lines", "in a.txt.gz", "in b/deep/one", "# in b/note", "in z"]  # by the parts of their names: a/lines.jsonl, a.txt.gz, ...
LEFT = "2 hidden, 2 links, 3 of other formats (.png, no ending), 1 prepared corpora or workdirs"


def test_a_folder_is_its_text_files_in_order_of_their_names(folder, tmp_path, capsys):
    output = str(tmp_path / "c")
    assert main(["prepare", "--input", str(folder), "--output", output]) == 0
    assert list(Corpus.open(output, split="train").documents()) == TEXTS
    line = f"input {folder}: 5 files; left out: 1 empty, {LEFT}\n"
    assert capsys.readouterr().out.startswith(line)
    assert main(["prepare", "--input", str(folder), "--output", output]) == 0  # the same corpus, found again
    (tmp_path / "named").symlink_to(folder)  # a link that the user names is followed
    (tmp_path / "x.txt").write_text("first")
    options = {"split_files": {"valid": [str(folder / "b")]}}
    prepare([tmp_path / "x.txt", tmp_path / "named/a"], "bytes", tmp_path / "d", **options)
    assert list(Corpus.open(tmp_path / "d", split="train").documents()) == ["first", "in a/lines"]
    assert list(Corpus.open(tmp_path / "d", split="valid").documents()) == ["in b/deep/one", "# in b/note"]
    with pytest.raises(InputError, match="given twice"):
        prepare([folder, folder / "a/lines.jsonl"], "bytes", tmp_path / "e")


def test_a_format_for_all_reads_files_of_every_ending(tmp_path):
    (tmp_path / "a.rst").write_text("a")
    (tmp_path / "b.py").write_text("b")
    assert [pathlib.Path(name).name for name in read_folder(str(tmp_path), "txt").files] == ["a.rst", "b.py"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], r"without a text file \(it is empty\)"),
        (["a.pdf", "b.docx"], r"2 of other formats \(.docx, .pdf\).*--format txt"),
        ([".a.txt"], r"1 hidden.*give a folder with text"),
    ],
)
@pytest.mark.parametrize("flag", ["--input", "--split-files"])
def test_a_folder_without_text_is_one_line(tmp_path, capsys, names, said, flag):
    (tmp_path / "f").mkdir()
    for name in names:
        (tmp_path / "f" / name).write_text("x")
    (tmp_path / "train.txt").write_text("x")
    inputs = [str(tmp_path / "f")] if flag == "--input" else [str(tmp_path / "train.txt"), flag, f"valid={tmp_path / 'f'}"]
    with pytest.raises(InputError, match=said):
        read_folder(str(tmp_path / "f"))
    assert main(["prepare", "--input", *inputs, "--output", str(tmp_path / "c")]) == 2
    error = capsys.readouterr().err
    assert "without a text file" in error and error.count("\n") == 1 and not (tmp_path / "c").exists()


def test_help_messages_and_page_list_the_same_tokenizers(capsys):
    """One list: what the help and the messages name is what exists, and docs/data.md has a row for each."""
    with pytest.raises(InputError) as unknown:
        load_tokenizer("nonsense")
    with pytest.raises(SystemExit):
        main(["prepare", "--help"])
    helped = " ".join(capsys.readouterr().out.split()).replace("- ", "-")
    page = (ROOT / "docs/data.md").read_text()
    for spec, what in TOKENIZERS.items():
        assert spec in str(unknown.value) and what in helped
        assert spec in helped and f"| `{spec}` |" in page, spec
    rows = [line.split("`")[1] for line in page.partition("| spec | ids |")[2].splitlines() if line.startswith("| `")]
    assert rows[: len(TOKENIZERS)] == list(TOKENIZERS)
    for kind in FROM_FILE:  # none of them is unknown to the loader
        with pytest.raises(InputError, match="^(?!unknown tokenizer)"):
            load_tokenizer(f"{kind}:none")
