"""The commit marker of a checkpoint, valid only when all of it is as a save wrote it.

    {"step", "meta", "leaves": {name: [shape, dtype, checksum]}, "files": {name: bytes}, "checksum"}

It decides which state a run resumes from, so it has a checksum of its own; markers of older versions have neither that nor a step.
"""

import json
import os
import pathlib
import stat
from types import NoneType
from typing import Any

from dlmjax.errors import InputError
from dlmjax.files import inside, remove_leftovers, replaced, require_shape, sealed, unsealed, why

MARKER = "dlmjax.json"
FIELDS = {"step", "meta", "leaves", "files"}
# Entries of the meta that readers use; older versions lack some.
_STEP = {
    "step": int,
    **dict.fromkeys(("loss", "grad_norm", "update_norm", "param_norm", "learning_rate"), float),
    **dict.fromkeys(("skipped", "skipped_total", "stopped"), int),
    "bad_microbatches": [bool],
    "parts": {"tokens": float},
}
INPUTS = {"texts": [str], "tokenizer": str, "files": {str: str}}
_META = {
    "step": int,
    "metric": (float, NoneType),
    "config": {str: (bool, int, float, str, list)},
    "given": INPUTS,
    "metrics": {"lines": int, "crc": int},
    "pending": [_STEP],
    "imported": {str: str},
}
LARGEST = 1 << 28  # bytes; a marker takes some hundred for each leaf and file


class Damaged(ValueError):
    """Why a checkpoint is not whole, as the predicate of a sentence that begins with its path."""


def read_marker(path: pathlib.Path, step: int) -> dict:
    """The marker in the folder of a checkpoint, without its "step"; the meta always has the step.

    Raises Damaged: it is missing, was changed, or belongs to another step.
    """
    if not os.path.lexists(path):
        raise Damaged("is missing")
    if not path.is_dir():
        raise Damaged("is not a folder")
    file = path / MARKER
    try:
        if file.stat().st_size > LARGEST:
            raise ValueError("it is too long")
        values = unsealed(json.loads(file.read_bytes()), FIELDS)
        _require_form(values)
    except FileNotFoundError:
        raise Damaged(f"has no {MARKER}, which a save writes before it names the folder") from None
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise Damaged(f"has an unreadable {MARKER} ({why(error)})") from None
    other = {values.pop("step", step), values["meta"].get("step", step)} - {step}
    if other:
        raise Damaged(f"holds step {other.pop()} under another name")
    values["meta"].setdefault("step", step)
    return values


def _require_form(values: dict) -> None:
    """Raises ValueError, KeyError, TypeError or AttributeError if a field does not have the form that `write_marker` writes."""
    leaves, files, meta = values["leaves"], values["files"], values["meta"]
    if not all(_whole(number) for shape, _, checksum in leaves.values() for number in (*shape, checksum)):
        raise ValueError("a leaf has no shape or no checksum")
    if not all(isinstance(dtype, str) for _, dtype, _ in leaves.values()) or not all(_whole(size) for size in files.values()):
        raise ValueError("a leaf has no dtype, or a file no size")
    for name, shape in _META.items():
        if name in meta and not (name == "metrics" and meta[name] is None):
            require_shape(meta[name], shape, f"meta.{name}")
    require_shape(meta.get("config", {}).get("data.paths", []), [str], "meta.config.data.paths")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def flaw_of_files(path: pathlib.Path, files: dict[str, int]) -> str:
    """The flaw of a checkpoint's files by their sizes, "" when there is none; a predicate as in `Damaged`."""
    for name, size in files.items():
        try:
            found = inside(path, name, path / MARKER).stat()
        except InputError as error:
            return f"has a damaged {MARKER} ({error})"
        except (OSError, ValueError):
            return f"lacks the file {name}"
        if not stat.S_ISREG(found.st_mode):
            return f"has {name}, which is not a file"
        if found.st_size != size:
            return f"is truncated: {name} has {found.st_size} of {size} bytes"
    return ""


def write_marker(path: pathlib.Path, marker: dict) -> None:
    """Lists the files of a checkpoint's folder and writes its marker atomically."""
    remove_leftovers(path)
    ours = (MARKER, MARKER + ".tmp")  # the latter is left by killed writers of older versions
    files = {str(file.relative_to(path)): file.stat().st_size for file in path.rglob("*") if file.is_file() and file.name not in ours}
    with replaced(path / MARKER) as file:
        file.write(json.dumps(sealed({**marker, "files": files})).encode())
