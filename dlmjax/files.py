"""Small files in one move, as they were or whole; reports as JSON. Imports no jax."""

import hashlib
import json
import math
import os
import pathlib
import re
import shutil
import stat
import tempfile
from collections.abc import Callable
from typing import Any

from dlmjax.errors import InputError


def write_atomically(path: str | os.PathLike, content: str | bytes) -> None:
    """Writes a small file, text as UTF-8, and the folders it lies in: a reader (or a restart) sees the old content or the new one, never
    a part.  Raises InputError where that cannot be done; nothing is changed then."""
    path = pathlib.Path(path)
    make_folder(path)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes files private; a report is an ordinary file
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            pathlib.Path(temporary).unlink(missing_ok=True)
        message = f"cannot write {path}: {error.strerror}; free some room or choose another place (nothing was changed)"
        raise InputError(message) from error


# ---- what files say is data ---------------------------------------------------------------------------------------------------------

CHECKSUM = "checksum"  # the field of a sealed object


def inside(folder: str | os.PathLike, name: Any, source: str | os.PathLike) -> pathlib.Path:
    """The path of a file that another file names: in the folder, or in a folder below it. Links are not looked at.

    Args:
      name: as it was read, of any type.
      source: the file that names it, for the message.

    Raises InputError: a name that leads out of the folder (`..`, absolute), or that is no name of a file.
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
    """Deletes what killed calls of `write_atomically` left in a folder. For the one who holds its lock: a living writer loses its file."""
    folder = pathlib.Path(folder)
    if folder.is_dir() and not folder.is_symlink():
        for path in folder.iterdir():
            if _PART.fullmatch(path.name) and stat.S_ISREG(path.lstat().st_mode):
                path.unlink(missing_ok=True)


_PART = re.compile(r"\..+\.[a-z0-9_]{8}\.part")  # the names that `write_atomically` gives


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
    """JSON that every reader takes: null in place of what is not finite. `default` turns what is no JSON value into one, as in `json`."""
    return json.dumps(finite(value), indent=indent, default=default, allow_nan=False, ensure_ascii=False)


def finite(value: Any) -> Any:
    """A tree of JSON values with None in place of numbers that JSON does not have."""
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
        raise InputError(f"cannot write {path}: {error.strerror}; choose another place") from error
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; choose another place")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"cannot write {path}: its folder is read-only; choose another place")
