"""Small files in one move, and reports as JSON that every reader takes."""

import json
import subprocess
import sys

import numpy as np
import pytest

from dlmjax.errors import InputError
from dlmjax.files import as_json, make_folder, write_atomically, write_json


def test_text_and_bytes_are_written_whole_in_folders_that_are_made(tmp_path):
    file = tmp_path / "a" / "b" / "c.txt"
    for content, stored in (("n\u00e9\r\n", "n\u00e9\r\n".encode()), (b"\x00\xff", b"\x00\xff")):
        write_atomically(file, content)
        assert file.read_bytes() == stored and [path.name for path in file.parent.iterdir()] == ["c.txt"]
    plain = tmp_path / "plain"
    plain.touch()
    assert file.stat().st_mode == plain.stat().st_mode, "a report is an ordinary file"


def test_a_place_that_cannot_be_written_to_is_told_in_a_line(tmp_path):
    (tmp_path / "file").write_text("old")
    for place, said in ((tmp_path / "file" / "x", "Not a directory|File exists"), (tmp_path, "it is a folder")):
        for write in (make_folder, lambda path: write_atomically(path, "new")):
            with pytest.raises(InputError, match=said):
                write(place)
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "old"


def test_json_has_no_numbers_that_are_none(tmp_path):
    write_json(tmp_path / "r.json", {"rows": [{"a": float("nan")}, (np.float64("inf"), 1.5)], "name": "n\u00e9"})
    text = (tmp_path / "r.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"rows": [{"a": None}, [None, 1.5]], "name": "n\u00e9"} and "NaN" not in text and "n\u00e9" in text
    assert as_json({"stderr": float("nan"), "n": np.int64(3)}, default=int) == '{"stderr": null, "n": 3}'


def test_nothing_heavy_is_imported():
    code = "import sys, dlmjax.files; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
