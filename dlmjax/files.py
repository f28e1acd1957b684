"""Atomic writing of files, bounded reading of JSON from any source, and checks of paths. Imports no jax."""

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
    """A file to write, which gets the name `path` when the block ends without an error. Until then, and after a kill, a file of that name
    is unchanged: the new one has a temporary name in the same folder, and is synced to disk before it is renamed. Raises OSError."""
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


# ---- names, links and checksums in files of unknown origin ---------------------------------------------------------------------------

CHECKSUM = "checksum"  # the field of a sealed object


def inside(folder: str | os.PathLike, name: Any, source: str | os.PathLike) -> pathlib.Path:
    """The path of a file that another file names, which must be in the folder or below it. Links are not examined.

    Args:
      name: the name as it was read, of any type.
      source: the file that contains the name, for the message.

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
    """Deletes a file, a folder with its content, or a link (not its target); does nothing if the path does not exist.

    Raises OSError.
    """
    path = pathlib.Path(path)
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Deletes the files that killed writers (`replaced`) left in a folder. Requires its lock: a living writer would lose its file."""
    folder = pathlib.Path(folder)
    if folder.is_dir() and not folder.is_symlink():
        for path in folder.iterdir():
            if PART.fullmatch(path.name) and stat.S_ISREG(path.lstat().st_mode):
                path.unlink(missing_ok=True)


def open_lock(path: str | os.PathLike) -> io.FileIO:
    """Opens or creates a lock file for `fcntl.flock`, without following links or changing its content. Raises OSError."""
    return open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "r+b", buffering=0)


def sealed(values: dict) -> dict:
    """A JSON object with its own checksum as its last field: both are in one file, so they are replaced together."""
    return {**values, CHECKSUM: _checksum(values)}


def unsealed(values: Any, fields: set[str] | None = None) -> dict:
    """The argument of `sealed`. An object without a checksum is returned unchanged, since older files have none.

    Args:
      fields: names of all fields that are allowed; without them, damage in the name of the checksum field is not detected.

    Raises ValueError: not an object, a checksum that differs, a field that is not allowed.
    """
    if not isinstance(values, dict):
        raise ValueError("it is not a JSON object")
    rest = {name: value for name, value in values.items() if name != CHECKSUM}
    if CHECKSUM in values and values[CHECKSUM] != _checksum(rest):
        raise ValueError("it was changed since it was written: its checksum differs")
    if fields is not None and not rest.keys() <= fields:
        raise ValueError(f"it has the unknown field {min(rest.keys() - fields)!r:.60}")
    return rest


def _checksum(values: dict) -> str:
    plain = json.loads(json.dumps(values))  # all names become strings, so that they sort
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def as_json(value: Any, indent: int | None = None, default: Callable[[Any], Any] | None = None) -> str:
    """JSON that every reader accepts: null in place of numbers that are not finite. default: as in `json.dumps`."""
    return json.dumps(finite(value), indent=indent, default=default, allow_nan=False, ensure_ascii=False)


def finite(value: Any) -> Any:
    """A tree of JSON values: None in place of numbers that are not finite, lists in place of arrays."""
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
    """Writes a report as indented JSON.  Raises InputError as `write_atomically` does."""
    write_atomically(path, as_json(report, indent=2) + "\n")


def make_folder(path: str | os.PathLike) -> None:
    """Makes the folders of a file that will be written later, so that a long computation does not end without its result.

    Raises InputError: a folder that cannot be made or written to, or a folder that has the name of the file.
    """
    path = pathlib.Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {path}: {why(error)}; choose another path") from error
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; remove it, or choose another path")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"cannot write {path}: its folder is read-only; choose another path")


# ---- bounded reading of JSON -----------------------------------------------------------------------------------------------------

LARGEST_JSON = 1 << 28  # bytes; the largest published tokenizer.json has about 35 million
MOST_DIGITS = 300  # of an integer: such an integer can still be converted to a float
DEEPEST_JSON = 64  # levels of nested brackets; code that uses the value may be recursive
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BRACKET = re.compile(r"[\[\]{}]")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(content: bytes | str, any_number: bool = False) -> Any:
    """The value of a JSON document of unknown origin, within bounds that the caller need not check again.

    Refused, besides text that is not JSON: more than LARGEST_JSON bytes; brackets nested deeper than DEEPEST_JSON; integers of more than
    64 bits; numbers that are not finite (NaN, 1e999); a name that occurs twice in one object, since readers differ in which value they
    use; half of a surrogate pair, which UTF-8 cannot encode.

    Args:
      any_number: for files that Python's own `json` wrote, as transformers does: also accepts numbers that are not finite, and integers
        of up to MOST_DIGITS digits (int(1e30) means "no limit" in most tokenizer files). Callers check the numbers that they use.

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
            raise ValueError("a text in it has half of a surrogate pair (\\ud800-\\udfff), which is not a character") from None
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
        raise ValueError(f"the field {brief(twice)!r} occurs twice in one object")
    return value


def brief(text: str) -> str:
    """A text for a message: if it is long, its start and its length."""
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
    """Returns a JSON value after checking that it has the shape.

    Args:
      shape: a type or a tuple of types (an integer is also a float; true is not a number); {"field": shape} for an object with at
        least these fields; {str: shape} for one with any names; [shape] for a list of any length.
      name: the field that holds the value, for the message.
    Raises ValueError: names the first field that is missing or has the wrong type.
    """
    label = name or "the document"
    if isinstance(shape, dict):
        require_shape(value, dict, name)
        wanted = {field: shape[str] for field in value} if str in shape else shape
        for field, inner in wanted.items():
            if field not in value:
                raise ValueError(f"{label} has no field {field!r}")
            require_shape(value[field], inner, f"{name}.{brief(field)}" if name else brief(field))
    elif isinstance(shape, list):
        for index, item in enumerate(require_shape(value, list, name)):
            require_shape(item, shape[0], f"{name}[{index}]")
    else:
        kinds = shape if isinstance(shape, tuple) else (shape,)
        if type(value) not in kinds and not (float in kinds and type(value) is int):
            raise ValueError(f"{label} is {_WORDS[type(value)]}, not {' or '.join(_WORDS[kind] for kind in kinds)}")
    return value


def read_json(path: str | os.PathLike, shape: Shape = dict, advice: str = "restore it, or get it again", any_number: bool = False) -> Any:
    """The value of a JSON file, see `parse_json` and `require_shape`.

    Raises InputError: the file cannot be read, is not JSON within the bounds, or has another shape. The message names the file, the line
    or the field, and ends with the advice.
    """
    content = read_bounded(path, LARGEST_JSON, advice)
    try:
        return require_shape(parse_json(content, any_number), shape)
    except ValueError as error:
        kind = "valid JSON" if isinstance(error, json.JSONDecodeError) else "readable"
        raise InputError(f"{path} is not {kind}: {error}; {advice}") from None


def read_bounded(path: str | os.PathLike, most: int = LARGEST_JSON, advice: str = "get it again") -> bytes:
    """The bytes of a file.  Raises InputError: it is missing, is not an ordinary file (a device has no end), or is longer than `most`."""
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
    """The lines of a text file that a flag names. Only a line feed ends a line; Unicode's other line boundaries (U+2028) do not.

    Raises InputError: the file cannot be read, or is not UTF-8.
    """
    try:
        text = pathlib.Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{flag} {file} cannot be read as UTF-8 text ({error})") from error
    return text.removesuffix("\n").split("\n") if text else []


def why(error: Exception) -> str:
    """The reason in an error of the operating system, without its number and path."""
    return getattr(error, "strerror", None) or " ".join(str(error).split())


def flaw_of_path(text: str | os.PathLike, use: str) -> str:
    """Why a path cannot be used, as the predicate of a sentence that begins with its flag; "" if nothing is wrong with it.

    Args:
      use: "input file", "input folder", "output file", "output folder", or "named folder". The last may be on another machine, so only
        its name is checked. Whether an input exists is checked when it is opened; URLs are checked by the storage.
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
    """Checks the nearest folder that exists: if it is not writable, nothing can be written below it.

    A read-only file can be replaced, since files are written under a temporary name and renamed; its folder must be writable.
    """
    nearest = path
    while not os.path.lexists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    if not os.path.exists(nearest):
        return f"is {text}, but {nearest} is a link that leads nowhere; restore its target, or choose another path"
    if nearest != path and not os.path.isdir(nearest):
        return f"is {text}, but {nearest} is not a folder; choose another path"
    folder = nearest if os.path.isdir(nearest) else nearest.parent
    if not os.access(folder, os.W_OK):
        return f"is {text}, but {folder} is read-only; choose another path"
    return ""


def require_path(flag: str, text: str | os.PathLike, use: str) -> str:
    """Returns the path if it can be used, see `flaw_of_path`.  Raises InputError: names the flag as typed, the flaw and the remedy."""
    if flaw := flaw_of_path(text, use):
        raise InputError(f"{flag} {flaw}")
    return os.fspath(text)
