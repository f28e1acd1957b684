"""Small files in one move, as they were or whole; JSON from anywhere, within bounds; whether a path can be used. Imports no jax."""

import contextlib
import hashlib
import io
import itertools
import json
import math
import os
import pathlib
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from types import NoneType
from typing import Any, BinaryIO

from dlmjax.errors import InputError


@contextlib.contextmanager
def replaced(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file to write, which takes the name `path` when the block ends without an error. Until then, and after a kill, whatever has that
    name stays as it was: the new file lies beside it under a temporary name, and is synced to disk before it is renamed. Raises OSError."""
    path = pathlib.Path(path)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


PART = re.compile(r"\..+\.[a-z0-9_]{8}\.part")  # the temporary names of `replaced`


def sync(path: str | os.PathLike) -> None:
    """Returns when a file, or the names in a folder, are on disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a small file, text as UTF-8, and makes the folders it lies in: a reader (or a restart) sees the old content or the new one,
    never a part.  Raises InputError where that cannot be done; nothing is changed then."""
    make_folder(path)
    try:
        with replaced(path) as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
    except OSError as error:
        message = f"cannot write {path}: {why(error)}; free some space, or choose another path (nothing was changed)"
        raise InputError(message) from error


# ---- what files say is data ---------------------------------------------------------------------------------------------------------

CHECKSUM = "checksum"  # the field of a sealed object


def inside(folder: str | os.PathLike, name: Any, source: str | os.PathLike) -> pathlib.Path:
    """The path of a file that another file names: in the folder, or in a folder below it. Links are not looked at.

    Args:
      name: as it was read, of any type.
      source: the file that names it, for the message.

    Raises InputError: a name that leads out of the folder (`..`, absolute), or that is not the name of a file.
    """
    if (
        not isinstance(name, str)
        or not name
        or not name.isprintable()
        or "\\" in name
        or not set(name.split("/")).isdisjoint(("", ".", ".."))
    ):
        raise InputError(f"{source} names the file {name!r:.100}, which is not a name within its folder; restore it, or get it again")
    return pathlib.Path(folder) / name


def remove(path: str | os.PathLike) -> None:
    """Deletes a file, a folder with all that is in it, or a link (never what it points to); nothing where there is nothing.

    Raises OSError.
    """
    path = pathlib.Path(path)
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)


def sweep(folder: str | os.PathLike) -> None:
    """Deletes the files that killed writers (`replaced`) left in a folder. Requires its lock: a living writer would lose its file."""
    folder = pathlib.Path(folder)
    if folder.is_dir() and not folder.is_symlink():
        for path in folder.iterdir():
            if PART.fullmatch(path.name) and stat.S_ISREG(path.lstat().st_mode):
                path.unlink(missing_ok=True)


def open_lock(path: str | os.PathLike) -> io.FileIO:
    """The file of a lock, opened or made, for `fcntl.flock`; nothing in it is read or changed, and no link is followed. Raises OSError."""
    return open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "r+b", buffering=0)


def sealed(values: dict) -> dict:
    """A JSON object with its own checksum as its last field: one file, so one move, and no moment at which they do not agree."""
    return {**values, CHECKSUM: _checksum(values)}


def unsealed(values: Any, fields: set[str] | None = None) -> dict:
    """The object that `sealed` was given; one without a checksum is taken as it is, since older files have none.

    Args:
      fields: all that may be in it. A damaged name of the checksum's field would pass for none.

    Raises ValueError: no object, a checksum that is not its own, a field that is not known.
    """
    if not isinstance(values, dict):
        raise ValueError("it is no JSON object")
    rest = {name: value for name, value in values.items() if name != CHECKSUM}
    if CHECKSUM in values and values[CHECKSUM] != _checksum(rest):
        raise ValueError("it was changed since it was written: its checksum differs")
    if fields is not None and not rest.keys() <= fields:
        raise ValueError(f"it has the unknown field {min(rest.keys() - fields)!r:.60}")
    return rest


def _checksum(values: dict) -> str:
    plain = json.loads(json.dumps(values))  # names are texts from here on, and sort as such
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def as_json(value: Any, indent: int | None = None, default: Callable[[Any], Any] | None = None) -> str:
    """JSON that every reader takes: null in place of what is not finite. `default` converts what is not a JSON value, as in `json`."""
    return json.dumps(finite(value), indent=indent, default=default, allow_nan=False, ensure_ascii=False)


def finite(value: Any) -> Any:
    """A tree of JSON values with None in place of numbers that JSON does not have, arrays as lists."""
    if hasattr(value, "tolist"):
        return finite(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value


def write_json(path: str | os.PathLike, report: Any) -> None:
    """Writes a report for people and programs.  Raises InputError as `write_atomically`."""
    write_atomically(path, as_json(report, indent=2) + "\n")


def make_folder(path: str | os.PathLike) -> None:
    """Makes the folders of a file that is still to be written, so that nobody waits for a result that has no place.

    Raises InputError: a folder that cannot be made, or a folder where the file should be.
    """
    path = pathlib.Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {why(error)}; choose another place") from error
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; remove it, or choose another place")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"cannot write {path}: its folder is read-only; choose another place")


# ---- JSON from anywhere ----------------------------------------------------------------------------------------------------------

LARGEST_JSON = 1 << 28  # bytes; the largest tokenizer.json that is published has some 35 million
MOST_DIGITS = 300  # of an integer: every float of Python can be compared with it, and it can become one
DEEPEST_JSON = 64  # brackets inside each other; what comes after a reader may walk a tree by recursion
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(content: bytes | str, any_number: bool = False) -> Any:
    """The value of a JSON document that anybody may have written, within bounds that what reads it need not check again.

    Refused beside what is not JSON: more than LARGEST_JSON bytes; brackets deeper than DEEPEST_JSON; integers of more than 64 bits;
    numbers that are not finite (NaN, 1e999); a name twice in one object, since readers differ in which they take; half of a surrogate
    pair, which no file can hold as UTF-8.

    Args:
      any_number: for files that Python's own `json` wrote, as transformers does: also takes numbers that are not finite, and integers of
        up to MOST_DIGITS digits (int(1e30) stands for "no limit" in most tokenizers' files). Most of them are never used; what is used
        must be checked where it is.

    Raises ValueError: one line, with line and column where the text is not JSON.
    """
    if len(content) > LARGEST_JSON:
        raise ValueError(f"it has {len(content):,} bytes, more than the {LARGEST_JSON:,} that are read")
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8: byte 0x{content[error.start]:02x} at {error.start:,}") from None
    if text.count("[") + text.count("{") > DEEPEST_JSON:
        steps = (1 if bracket in "[{" else -1 for bracket in _BRACKET.findall(_STRING.sub("", text)))
        if max(itertools.accumulate(steps), default=0) > DEEPEST_JSON:
            raise ValueError(f"its brackets are nested deeper than {DEEPEST_JSON}")
    integer, real = (_long_integer, float) if any_number else (_integer, _real)
    value = json.loads(text, parse_int=integer, parse_float=real, parse_constant=real, object_pairs_hook=_object)
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("a text in it has half of a surrogate pair (\\ud800-\\udfff), which is no character") from None
    return value


def _integer(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
        raise ValueError(f"the integer {brief(digits)} does not fit in 64 bits")
    return int(digits)


def _long_integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"the integer {brief(digits)} has more than {MOST_DIGITS} digits")
    return int(digits)


def _real(digits: str) -> float:
    if not math.isfinite(float(digits)):
        raise ValueError(f"the number {brief(digits)} is not finite")
    return float(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
        raise ValueError(f"the field {brief(twice)!r} stands twice in one object")
    return value


def brief(text: str) -> str:
    """A text for a message: its start and its length where it is long."""
    return text if len(text) <= 40 else f"{text[:40]}... ({len(text):,} characters)"


Shape = Any  # a type, a tuple of types, {"field": Shape}, {str: Shape}, [Shape]
_WORDS = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    NoneType: "null",
}


def require_shape(value: Any, shape: Shape, name: str = "") -> Any:
    """Returns a JSON value that has the shape which its reader needs.

    Args:
      shape: a type or a tuple of types (a float may be written as an integer; true is no number); {"field": shape} for an object with at
        least these fields; {str: shape} for one of any names; [shape] for a list of any length.
      name: the field that holds the value, for the message.
    Raises ValueError: the first field that is missing or of another kind.
    """
    said = name or "the document"
    if isinstance(shape, dict):
        require_shape(value, dict, name)
        wanted = {field: shape[str] for field in value} if str in shape else shape
        for field, inner in wanted.items():
            if field not in value:
                raise ValueError(f"{said} has no field {field!r}")
            require_shape(value[field], inner, f"{name}.{brief(field)}" if name else brief(field))
    elif isinstance(shape, list):
        for index, item in enumerate(require_shape(value, list, name)):
            require_shape(item, shape[0], f"{name}[{index}]")
    else:
        kinds = shape if isinstance(shape, tuple) else (shape,)
        if type(value) not in kinds and not (float in kinds and type(value) is int):
            raise ValueError(f"{said} is {_WORDS[type(value)]}, not {' or '.join(_WORDS[kind] for kind in kinds)}")
    return value


def read_json(path: str | os.PathLike, shape: Shape = dict, advice: str = "restore it, or get it again", any_number: bool = False) -> Any:
    """The value of a JSON file, see `parse_json` and `require_shape`.

    Raises InputError: a file that cannot be read, is not JSON within the bounds, or differs in shape; it names the file, the line or the
    field, and ends with the advice.
    """
    content = read_bounded(path, LARGEST_JSON, advice)
    try:
        return require_shape(parse_json(content, any_number), shape)
    except ValueError as error:
        kind = "valid JSON" if isinstance(error, json.JSONDecodeError) else "readable"
        raise InputError(f"{path} is not {kind}: {error}; {advice}") from None


def read_bounded(path: str | os.PathLike, most: int = LARGEST_JSON, advice: str = "get it again") -> bytes:
    """The bytes of an ordinary file.  Raises InputError: it is missing, no ordinary file (a device has no end), or longer than `most`."""
    try:
        with open(path, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise InputError(f"{path} is not an ordinary file; {advice}")
            content = file.read(most + 1)
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise error if isinstance(error, InputError) else InputError(f"{path} cannot be read ({why(error)}); {advice}") from None
    if len(content) > most:
        raise InputError(f"{path} is longer than the {most:,} bytes that are read; {advice}")
    return content


# ---- whether a path can be used ---------------------------------------------------------------------------------------------------

LONGEST_NAME, LONGEST_PATH = 255, 4095  # bytes, of Linux's file systems
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


def read_lines(flag: str, file: str) -> list[str]:
    """The lines of a text file that a flag names. What else Unicode calls a line boundary (U+2028, form feed) is a character of its line.

    Raises InputError: it cannot be read, or is not UTF-8.
    """
    try:
        text = pathlib.Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{flag} {file} cannot be read as UTF-8 text ({error})") from error
    return text.removesuffix("\n").split("\n") if text else []


def why(error: Exception) -> str:
    """The reason of an error of the operating system, without its number and path."""
    return getattr(error, "strerror", None) or " ".join(str(error).split())


def flaw_of_path(text: str | os.PathLike, use: str) -> str:
    """Why a path cannot be used, as the end of a sentence that begins with its flag; "" where it can, as far as looking tells.

    Args:
      use: "input file", "input folder", "output file", "output folder", or "named folder", which may lie on another machine and is judged
        by its name alone. That an input exists is left to what opens it, which knows what
        should be there. URLs are left to the storage.
    """
    text = os.fspath(text)
    way, _, kind = use.partition(" ")
    if not text.strip():
        return f"is empty; name a {kind}"
    if "://" in text:
        return ""
    if _UNPRINTABLE.search(text):
        return f"is {brief(text)!r}, which holds control characters or bytes that are not UTF-8; rename it"
    longest = max(len(os.fsencode(part)) for part in text.split("/"))
    if longest > LONGEST_NAME or len(os.fsencode(text)) > LONGEST_PATH:
        return f"is {brief(text)!r}; a name takes at most {LONGEST_NAME} bytes and a path {LONGEST_PATH}"
    if way == "named":
        return ""
    if kind == "folder" and os.path.exists(text) and not os.path.isdir(text):
        return f"is {text}, a file; name a folder"
    if kind == "file" and os.path.isdir(text):
        return f"is {text}, a folder; name a file"
    return _flaw_of_output(pathlib.Path(text), text) if way == "output" else ""


def _flaw_of_output(path: pathlib.Path, text: str) -> str:
    """Where the nearest folder that is there takes nothing new, nothing can be written below it.

    Files are written beside their place and moved there, so a read-only file is replaced: its folder decides.
    """
    there = path
    while not os.path.lexists(there) and there != there.parent:
        there = there.parent
    if not os.path.exists(there):
        return f"is {text}, but {there} is a link that leads nowhere; restore what it led to, or choose another place"
    if there != path and not os.path.isdir(there):
        return f"is {text}, but {there} is not a folder; choose another place"
    folder = there if os.path.isdir(there) else there.parent
    if not os.access(folder, os.W_OK):
        return f"is {text}, but {folder} is read-only; choose another place"
    return ""


def require_path(flag: str, text: str | os.PathLike, use: str) -> str:
    """Returns a path that can be used, see `flaw_of_path`. Raises InputError: the flag as typed, what is wrong, what to do."""
    if flaw := flaw_of_path(text, use):
        raise InputError(f"{flag} {flaw}")
    return os.fspath(text)
