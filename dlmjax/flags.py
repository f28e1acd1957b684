"""Types of command-line flags: whole numbers, numbers and paths, each with its bounds. Imports nothing heavy.

Every flag of every command and launcher has one of these types or a list of choices, which checks its text once.
"""

import argparse
import codecs
import decimal
import errno
import functools
import math
import os
import re
import sys
from collections.abc import Callable
from textwrap import shorten

from dlmjax.errors import InputError
from dlmjax.files import brief, flaw_of_path, why
from dlmjax.seeds import SEEDS, SPLIT_SEEDS

MOST = 2**31 - 1  # of a count: the largest that all libraries take
MOST_TOKENS = 2**24  # of a row or a canvas
# As in a config: 1_000, 1e3 and 1000.0 are one number. float() also takes other alphabets' digits and white space.
_NUMBER = re.compile(r"[+-]?({0}\.?({0})?|\.{0})([eE][+-]?[0-9]{{1,9}})?".format("[0-9]+(?:_[0-9]+)*"))


_refuse = argparse.ArgumentTypeError  # `Parser.error` prints its text after the flag


def _brief(text: str) -> str:
    return repr(brief(text))


def whole(least: int = 1, most: int = MOST) -> Callable[[str], int]:
    """A whole number from `least` to `most`, both included."""
    wanted = f"give a whole number from {least} to {most}"

    def read(text: str) -> int:
        value = decimal.Decimal(text) if _NUMBER.fullmatch(text) and len(text) <= 40 else None  # exact, also beyond 2^53
        if value is None or not value.is_finite():
            raise _refuse(f"is {_brief(text)}; {wanted}")
        if not least <= value <= most or value != int(value):
            raise _refuse(f"is {text}; {wanted}")
        return int(value)

    return read


seed = whole(0, SEEDS - 1)
split_seed = whole(0, SPLIT_SEEDS - 1)
tokens = whole(1, MOST_TOKENS)


def number(
    least: float | int = -math.inf, most: float | int = math.inf, *, open_low: bool = False, open_high: bool = False
) -> Callable[[str], float]:
    """A finite number in an interval; an open end is not itself allowed."""
    low, high = "(" if open_low or math.isinf(least) else "[", ")" if open_high or math.isinf(most) else "]"
    positive = open_low and least == 0 and math.isinf(most)
    wanted = "give a positive number" if positive else f"give a number in {low}{least:g}, {most:g}{high}"

    def read(text: str) -> float:
        if not _NUMBER.fullmatch(text) or len(text) > 400 or not math.isfinite(float(text)):
            raise _refuse(f"is {_brief(text)}; {wanted}")
        value = float(text)
        if not least <= value <= most or (open_low and value == least) or (open_high and value == most):
            raise _refuse(f"is {text}; {wanted}")
        return value

    return read


share = number(0, 1)


def wholes(least: int = 1, most: int = MOST) -> Callable[[str], tuple[int, ...]]:
    """Whole numbers with commas between them: "1e3, 8," is (1000, 8)."""

    def read(text: str) -> tuple[int, ...]:
        numbers = [number.strip() for number in text.split(",") if number.strip()]
        if not numbers:
            raise _refuse(f"is {_brief(text)}; give whole numbers with commas between them, such as 4,8,16")
        return tuple(whole(least, most)(number) for number in numbers)

    return read


WEIGHT_TYPES = ("float32", "bfloat16")  # of an opened run; see `parallel.placement`


def text(value: str) -> str:
    """Any text that can be written as UTF-8, the empty one too."""
    _check_utf8(value)
    return value


def word(value: str) -> str:
    """A text that is not empty."""
    if not value.strip():
        raise _refuse("is empty; leave it out, or give a value")
    _check_utf8(value)
    return value


def _check_utf8(value: str) -> None:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise _refuse(f"is {_brief(value)}, which holds bytes that are not UTF-8") from None


def _path(use: str, value: str) -> str:
    if flaw := flaw_of_path(value, use):
        raise _refuse(flaw)
    return value


input_file = functools.partial(_path, "input file")
input_folder = functools.partial(_path, "input folder")
output_file = functools.partial(_path, "output file")
named_folder = functools.partial(_path, "named folder")
output_folder = functools.partial(_path, "output folder")


class Parser(argparse.ArgumentParser):
    """Bad flags are an InputError: one line with the flag as typed. A flag that names no type takes a `word`."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.register("type", None, word)

    def add_subparsers(self, **options):
        """As argparse; the words after a command are for its own parser."""
        action = super().add_subparsers(**options)
        action.type = str
        return action

    def error(self, message):
        """Raises InputError: the message of argparse, or `FLAG is ...` of the types above."""
        said = re.sub(r"^argument (\S+): is ", r"\1 is ", message)
        raise InputError(f"{' '.join(said.split())} (see: {self.prog} --help)")


# ---- errors that a person can mend ---------------------------------------------------------------------------------------------------

# A retry does not help with these: a name is wrong, or access is denied. Others (a failing disk, a lost server) are errors of the machine.
_OF_NAMES = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ELOOP,
}


_CONTROL = {code: repr(chr(code))[1:-1] for code in (*range(32), 127)}
LONGEST_LINE = 1500  # characters; a text that is typed may have any number


def one_line(text: str) -> str:
    """A message as one line of bounded length: control characters as Python writes them, a long message without its middle."""
    line = text.strip().translate(_CONTROL)
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE - 500]} ... {line[-495:]}"


def _folder_is_there() -> bool:
    try:
        return bool(os.getcwd())
    except FileNotFoundError:
        return False


def message_of(error: Exception) -> str:
    """One line for an error that a person can correct; "" for a defect of the project or of the machine.

    Such errors are every InputError, a file that the operating system refuses by its name, and an array that does not fit in memory.
    """
    if isinstance(error, InputError):
        return one_line(str(error))
    if isinstance(error, OSError) and error.errno in _OF_NAMES and error.filename is not None:
        return one_line(f"{error.filename} cannot be used: {why(error)}; correct the path, or choose another path")
    if isinstance(error, FileNotFoundError) and error.filename is None and not _folder_is_there():
        return "the folder that this command was started in is gone; change to one that is there, and start it again"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)[:200]:
        detail = shorten(" ".join(str(error).split()), 120, placeholder=" ...")
        return f"out of memory ({detail}); ask for less at a time: a smaller batch, length or count"
    return ""


# ---- terminals that show less than Unicode -----------------------------------------------------------------------------------------

_PLAIN = {"±": "+-", "≤": "<=", "≥": ">=", "→": "->", "×": "x", "·": "*", "…": "...", "–": "-", "—": "-", "█": "#", "░": "."}


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    said = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in said), error.end


def print_anything() -> None:
    """Makes standard output and error take every text: characters that their encoding lacks are written in ASCII."""
    codecs.register_error("dlmjax-plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="dlmjax-plain")
