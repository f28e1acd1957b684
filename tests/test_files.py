"""Small files in one move, and reports as JSON that every reader takes."""

import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

import dlmjax
from dlmjax.errors import InputError
from dlmjax.files import (
    CHECKSUM,
    as_json,
    inside,
    make_folder,
    read_json,
    remove,
    remove_leftovers,
    replaced,
    require_path,
    require_shape,
    sealed,
    unsealed,
    write_atomically,
    write_json,
)


def test_text_and_bytes_are_written_whole_in_folders_that_are_made(tmp_path):
    file = tmp_path / "a" / "b" / "c.txt"
    for content, stored in (("n\u00e9\r\n", "n\u00e9\r\n".encode()), (b"\x00\xff", b"\x00\xff")):
        write_atomically(file, content)
        assert file.read_bytes() == stored and [path.name for path in file.parent.iterdir()] == ["c.txt"]
    plain = tmp_path / "plain"
    plain.touch()
    assert file.stat().st_mode == plain.stat().st_mode, "a report is an ordinary file"


def test_a_place_that_cannot_be_written_to_is_reported_in_a_line(tmp_path):
    (tmp_path / "file").write_text("old")
    for place, said in ((tmp_path / "file" / "x", "Not a directory|File exists"), (tmp_path, "it is a folder")):
        for write in (make_folder, lambda path: write_atomically(path, "new")):
            with pytest.raises(InputError, match=said):
                write(place)
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/etc/passwd",
        "a/../../x",
        "a//b",
        "",
        ".",
        "..",
        "a/.",
        "a\\..\\b",
        "a\0b",
        "a\nb",
        "x/",
        None,
        3,
        ["a"],
        {"a": "b"},
        "~\x1b[2J",
    ],
    ids=repr,
)
def test_no_name_in_a_file_leads_out_of_its_folder(tmp_path, name):
    with pytest.raises(InputError, match=r"index\.json names the file .* not a name within its folder; restore it") as error:
        inside(tmp_path, name, "index.json")
    assert "\n" not in str(error.value)
    for fine in ("model-00001-of-00002.safetensors", "state/d/0123abc", "\u00fc..x", "..x", "a b"):
        assert inside(tmp_path, fine, "index.json") == tmp_path / fine


def test_no_deletion_follows_a_link(tmp_path):
    kept, folder = tmp_path / "kept", tmp_path / "folder"
    for path in (kept / "inner" / "file", folder / "sub" / "own", tmp_path / "single"):
        write_atomically(path, "text")
    for link, target in ((folder / "to-folder", kept), (folder / "to-file", kept / "inner" / "file"), (tmp_path / "link", kept)):
        link.symlink_to(target)
    for name in ("link", "single", "nothing", "folder"):
        remove(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"] and (kept / "inner" / "file").read_text() == "text"


def test_only_what_our_own_writers_left_is_removed(tmp_path):
    folder, elsewhere = tmp_path / "workdir", tmp_path / "elsewhere"
    ours, others = ".config.json.ab12_xyz.part", ["notes.part", "movie.mkv.part", ".x.part", ".config.json.ABCDEFGH.part"]
    for name in (ours, *others):
        write_atomically(folder / name, "")
        write_atomically(elsewhere / name, "")
    (folder / ".link.json.abcdefgh.part").symlink_to(elsewhere / ours)
    (folder / ".dir.json.abcdefgh.part").mkdir()
    (tmp_path / "linked").symlink_to(elsewhere)
    for place in (folder, tmp_path / "linked", tmp_path / "nothing"):
        remove_leftovers(place)
    assert sorted(path.name for path in folder.iterdir()) == sorted([*others, ".link.json.abcdefgh.part", ".dir.json.abcdefgh.part"])
    assert sorted(path.name for path in elsewhere.iterdir()) == sorted([ours, *others])


def test_what_a_killed_writer_leaves_is_removed(tmp_path):
    with pytest.raises(FileNotFoundError), replaced(tmp_path / "config.json"):
        assert len(list(tmp_path.iterdir())) == 1
        remove_leftovers(tmp_path)
        assert not list(tmp_path.iterdir())


def test_a_writer_that_fails_leaves_the_old_file_alone(tmp_path):
    write_atomically(tmp_path / "a", "old")
    for error in (OSError, ValueError, KeyboardInterrupt):
        with pytest.raises(error), replaced(tmp_path / "a") as file:
            file.write(b"half")
            raise error
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "old"


def test_one_function_puts_files_in_place():
    """What a file must survive (a kill, a full disk, a reader at the same time) is in one function; the others that sync are listed."""
    root = pathlib.Path(dlmjax.__file__).parent
    syncing = {
        str(path.relative_to(root)) for path in root.rglob("*.py") if re.search(r"\b(fsync|mkstemp|os\.replace)\(", path.read_text())
    }
    assert syncing == {"files.py", "sweep/records.py"}, "a record is appended, all else goes through files.replaced"


def test_any_flipped_bit_of_a_sealed_file_is_seen(tmp_path):
    """Each bit in turn: the text is no JSON any more, or what it says is told to be changed, or it says the very same."""
    values = {"step": 12, "meta": {"metric": 2.5, "of": None}, "files": {"state/d/1": 17}, "unset": True}
    content = json.dumps(sealed(values), indent=1).encode()
    seen = 0
    for position in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        try:
            assert unsealed(json.loads(bytes(damaged)), set(values)) == values
        except ValueError:
            seen += 1
    assert seen > 0.9 * 8 * len(content)
    assert unsealed(json.loads(content), set(values)) == values
    assert unsealed(values) == values and CHECKSUM not in unsealed(sealed(values)), "older files have no checksum"
    assert sealed({"a": (1, 2)})[CHECKSUM] == sealed({"a": [1, 2]})[CHECKSUM]


def test_json_has_no_numbers_that_are_none(tmp_path):
    write_json(tmp_path / "r.json", {"rows": [{"a": float("nan")}, (np.float64("inf"), 1.5)], "name": "n\u00e9"})
    text = (tmp_path / "r.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"rows": [{"a": None}, [None, 1.5]], "name": "n\u00e9"} and "NaN" not in text and "n\u00e9" in text
    assert as_json({"stderr": float("nan"), "n": np.int64(3)}, default=int) == '{"stderr": null, "n": 3}'


def test_nothing_heavy_is_imported():
    code = "import sys, dlmjax.files; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


NESTED = "[" * 100_000 + "]" * 100_000
HOSTILE_JSON = {
    "no JSON": (b"{", "not valid JSON"),
    "empty": (b"", "not valid JSON"),
    "not UTF-8": (b'{"a": "\xff"}', "not UTF-8: byte 0xff at 7"),
    "deep lists": (NESTED.encode(), "nested deeper than 64"),
    "deep objects": (b'{"a":' * 70 + b"1" + b"}" * 70, "nested deeper than 64"),
    "a long integer": (b'{"a": 1' + b"0" * 400 + b"}", "does not fit in 64 bits"),
    "a longer integer": (b'{"a": -1' + b"0" * 10_000 + b"}", "does not fit in 64 bits"),
    "just too long an integer": (b'{"a": %d}' % 2**64, "does not fit in 64 bits"),
    "nan": (b'{"a": NaN}', "NaN is not finite"),
    "a number past the floats": (b'{"a": 1e999}', "1e999 is not finite"),
    "a name that occurs twice": (b'{"a": 1, "b": 2, "a": 3}', "'a' occurs twice"),
    "half a surrogate pair": (rb'{"a": "\ud800"}', "surrogate"),
    "another shape": (b"[1]", "the document is a list, not an object"),
}


@pytest.mark.parametrize("kind", HOSTILE_JSON)
def test_json_that_cannot_be_used_is_reported_in_one_line_with_its_file(tmp_path, kind):
    content, said = HOSTILE_JSON[kind]
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError) as refused:
        read_json(tmp_path / "x.json", advice="restore it")
    assert str(refused.value).startswith(f"{tmp_path / 'x.json'} is not ") and str(refused.value).endswith("; restore it")
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_json_within_the_bounds_is_read_as_it_is(tmp_path):
    value = {"deep": [[[[]]]] * 3, "brackets in a text": "[" * 500 + '\\"{', "n": [2**64 - 1, -(2**63), 1.5e300], "pair": "\U0001f600"}
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False), "\ufeff" + json.dumps(value)):
        (tmp_path / "x.json").write_text(text, encoding="utf-8")
        assert read_json(tmp_path / "x.json") == value


def test_files_of_others_may_hold_numbers_that_ours_do_not(tmp_path):
    """int(1e30) is transformers' "no limit"; Infinity is how Python writes one. What is longer than any float is still refused."""
    value = {"model_max_length": int(1e30), "time_step_limit": [0.0, float("inf")], "x": [float("nan"), 0.0, -(10**299 - 1)]}
    (tmp_path / "x.json").write_text(json.dumps(value))
    value = read_json(tmp_path / "x.json", any_number=True)
    assert value["model_max_length"] == 1000000000000000019884624838656 and value["time_step_limit"][1] == float("inf")
    assert value["x"][2] == -(10**299 - 1) and float(value["x"][2]) < 0
    with pytest.raises(InputError, match="1000000000000000019884624838656 does not fit in 64 bits"):
        read_json(tmp_path / "x.json")
    for digits in (301, 10_000):
        (tmp_path / "x.json").write_text('{"a": 1%s}' % ("0" * digits))
        with pytest.raises(InputError, match="has more than 300 digits"):
            read_json(tmp_path / "x.json", any_number=True)


def test_a_json_file_is_an_ordinary_file_of_bounded_size(tmp_path, monkeypatch):
    monkeypatch.setattr("dlmjax.files.LARGEST_JSON", 10)
    (tmp_path / "large").write_text("[" + " " * 20 + "]")
    for path, said in (("/dev/zero", "not an ordinary file"), (tmp_path / "large", "longer than"), (tmp_path, "cannot be read")):
        with pytest.raises(InputError, match=said):
            read_json(path, list)
    for name in (tmp_path / "none", "a\0b", "a" * 300):
        with pytest.raises(InputError, match="cannot be read"):
            read_json(name)


@pytest.mark.parametrize(
    ("value", "shape", "said"),
    [
        ({"a": 1}, {"b": int}, "the document has no field 'b'"),
        ({"a": True}, {"a": int}, "a is true or false, not a whole number"),
        ({"a": 1.0}, {"a": int}, "a is a number, not a whole number"),
        ({"a": {"b": [1, "x"]}}, {"a": {"b": [int]}}, r"a.b\[1\] is a text, not a whole number"),
        ({"a": {"x": 1}}, {"a": {str: str}}, "a.x is a whole number, not a text"),
        ({"a": []}, {"a": (str, type(None))}, "a is a list, not a text or null"),
        (3, {"a": int}, "the document is a whole number, not an object"),
    ],
)
def test_json_of_another_shape_is_reported_by_its_field(value, shape, said):
    with pytest.raises(ValueError, match=said):
        require_shape(value, shape)


def test_json_of_the_shape_is_given_back():
    value = {"a": 1, "b": {"x": "y"}, "more": None, "c": [{"d": 1.5}, {"d": 2}], "e": None}
    assert require_shape(value, {"a": float, "b": {str: str}, "c": [{"d": float}], "e": (str, type(None))}) is value


def by_mode(path, mode):
    """`os.access` as it answers somebody who is not root."""
    return bool(os.stat(path).st_mode & 0o200) or mode != os.W_OK


@pytest.mark.parametrize(
    ("path", "use", "said"),
    [
        ("", "output folder", "--x is empty; name a folder"),
        ("  ", "input file", "--x is empty; name a file"),
        ("file", "output folder", "a file; name a folder"),
        ("file", "input folder", "a file; name a folder"),
        ("", "named folder", "--x is empty; name a folder"),
        ("folder", "output file", "a folder; name a file"),
        ("file/x/y", "output file", "is not a folder"),
        ("link", "output file", "link is a link that leads nowhere"),
        ("link", "output folder", "link is a link that leads nowhere"),
        ("link/x", "output file", "link is a link that leads nowhere"),
        ("closed/new", "output file", "closed is read-only"),
        ("closed/there", "output file", "closed is read-only"),
        ("closed/new/er", "output folder", "closed is read-only"),
        ("a" * 256, "output file", "at most 255 bytes"),
        ("a" * 256, "named folder", "at most 255 bytes"),
        ("\u20ac" * 86, "input file", "at most 255 bytes"),
        ("a/" * 3000, "output folder", "a path 4095"),
        ("a\0b", "output folder", "control characters"),
        ("a\nb", "input folder", "control characters"),
        ("a\udcff", "input file", "not UTF-8"),
    ],
)
def test_a_path_that_cannot_be_used_is_reported_with_its_flag(tmp_path, monkeypatch, path, use, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nothing")
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "there").touch()
    (tmp_path / "closed").chmod(0o500)
    monkeypatch.setattr("os.access", by_mode)
    with pytest.raises(InputError) as refused:
        require_path("--x", path, use)
    assert said in str(refused.value) and "\n" not in str(refused.value) and str(refused.value).startswith("--x is ")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder", "link", "closed"}


def test_a_path_that_can_be_used_is_given_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.access", by_mode)
    (tmp_path / "file").touch()
    (tmp_path / "file").chmod(0o400)  # what is written is moved into its place
    for path, use in (
        ("new/er", "output folder"),
        (".", "output folder"),
        ("file", "output file"),
        ("none", "input folder"),
        ("\u00e9 1", "input file"),
    ):
        assert require_path("--x", path, use) == path
    write_atomically("file", "new")
    assert (tmp_path / "file").read_text() == "new"
    assert require_path("--x", "/mnt/of/another/machine", "named folder") and require_path("--x", "file", "named folder")
    assert require_path("--x", "gs://bucket/" + "a" * 300, "output folder")
