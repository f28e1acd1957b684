"""Small files in one move, as they were or whole; reports as JSON. Imports no jax."""

import json
import math
import os
import pathlib
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
