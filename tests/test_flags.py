"""The types of flags: what each takes and what it refuses, in one line with the flag as typed."""

import io
import pathlib
import sys

import pytest

from dlmjax import config as config_lib
from dlmjax import flags
from dlmjax.cli.main import _parser
from dlmjax.errors import InputError
from launch import kubernetes, slurm, tpu_vm


def read(kind, text):
    """One flag of a type, read from a command line."""
    parser = flags.Parser(prog="x")
    parser.add_argument("--flag", type=kind)
    return parser.parse_args([f"--flag={text}"]).flag


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        *(
            (flags.whole(1, 100), text)
            for text in (
                "",
                " 3",
                "1e25",
                "0",
                "101",
                "-1",
                "nan",
                "1.5",
                "1e-1",
                "1e999999999",
                "-1e-999999999",
                "0e" + "9" * 20,
                "1e",
                "_1",
                "1__0",
                "1_",
                "١",
                "1" + "0" * 5000,
                "0x1",
                "3\n",
            )
        ),
        *(
            (flags.number(0, 1, open_low=True), text)
            for text in ("", "0", "1.5", "nan", "inf", "-inf", "1e400", "٠", " 1", "_1", "1_", "1._5", "1" * 500)
        ),
        *((flags.wholes(1, 64), text) for text in ("", ",", "1,x", "1,65", "0,1", "١,2")),
        *((flags.word, text) for text in ("", "  ", "a\udcff")),
        (flags.text, "a\udcff"),
        (None, ""),
        (flags.output_folder, ""),
        (flags.input_file, "a" * 300),
    ],
)
def test_what_a_type_does_not_take_is_told_in_one_line(kind, text):
    with pytest.raises(InputError, match=r"\A--flag is [^\n]*; [^\n]*\Z|--flag is [^\n]* not UTF-8[^\n]*\Z"):
        read(kind, text)


def test_what_a_type_takes():
    assert [read(flags.whole(-5, 5_000), text) for text in ("-5", "0", "+3", "5_000", "1e3", "1_0e2", "4.0", "0.5e1", "1e-0")] == [
        *(-5, 0, 3, 5000, 1000, 1000, 4, 5, 1),
    ]
    assert read(flags.whole(0, 2**63), str(2**53 + 1)) == 2**53 + 1 and type(read(flags.whole(), "1e3")) is int
    assert [read(flags.number(0), text) for text in ("0", ".5", "1e22", "3.", "1E-3", "1_000.5")] == [0, 0.5, 1e22, 3, 1e-3, 1000.5]
    assert read(flags.wholes(1), "4,8, 1.6e1,") == (4, 8, 16) and read(flags.text, "") == "" and read(None, "a b") == "a b"


@pytest.mark.parametrize("text", ["1000", "1_000", "1e3", "1000.0", "+1000", "0x3e8", "1_", "1.5", "1e3.0", "nan", "one"])
def test_a_flag_takes_the_numbers_that_a_config_takes(text):
    """But for other bases, which a config reads as Python does."""

    def taken(call):
        try:
            return call()
        except InputError:
            return None

    config = taken(lambda: config_lib.override(config_lib.default(), [f"train.steps={text}"]).train.steps)
    assert taken(lambda: read(flags.whole(), text)) == (None if text.startswith("0x") else config)
    config = taken(lambda: config_lib.override(config_lib.default(), [f"optimizer.lr={text}"]).optimizer.lr)
    assert taken(lambda: read(flags.number(), text)) == (None if text.startswith("0x") else config)


def parsers():
    """Every parser of a command, of an action of a command, and of a launcher."""
    waiting, found = [_parser(), *(launcher.parser() for launcher in (kubernetes, slurm, tpu_vm))], []
    while waiting:
        parser = waiting.pop()
        found.append(parser)
        for action in parser._actions:
            if isinstance(action.choices, dict):
                waiting += action.choices.values()
    return found


def test_every_flag_has_a_type_with_bounds():
    """A plain int or float takes 10**400, nan and other alphabets' digits: none may come back."""
    names = [(parser.prog, action.dest, action.type) for parser in parsers() for action in parser._actions if action.nargs != 0]
    assert len(names) > 150
    assert [name for name in names if name[2] in (int, float)] == []
    assert all(isinstance(parser, flags.Parser) for parser in parsers())


def test_a_message_is_one_line_of_bounded_length():
    assert flags.one_line("a\nb\tc \x1b[31m\n") == "a\\nb\\tc \\x1b[31m"
    long = flags.one_line("--flag is " + "x" * 10**6 + "; give less")
    assert len(long) <= flags.LONGEST_LINE and long.startswith("--flag is xxx") and long.endswith("xxx; give less")


def test_a_terminal_that_knows_only_ascii_is_written_to(monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    flags.print_anything()
    print("1.5 ± 0.1 ≤ 2 → \u4e2d \U0001f600 \udcff", flush=True)
    assert sys.stdout.buffer.getvalue() == rb"1.5 +- 0.1 <= 2 -> \u4e2d \U0001f600 \udcff" + b"\n"
    print("é", file=sys.stderr, flush=True)
    assert sys.stderr.buffer.getvalue() == b"\\xe9\n"


def test_a_current_folder_that_is_gone_is_told(tmp_path, monkeypatch):
    """Python names no file then; the same error with the folder in place is a defect of ours."""
    assert flags.message_of(FileNotFoundError(2, "No such file or directory")) == ""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(FileNotFoundError) as error:
        pathlib.Path("runs").absolute()
    assert (
        flags.message_of(error.value)
        == "the folder that this command was started in is gone; change to one that is there, and start it again"
    )
    monkeypatch.chdir(tmp_path)
