"""Safetensors files, one or sharded with an index: read through a memory map, written one tensor at a time.

    8 bytes      length of the header, little-endian
    header       JSON: {name: {"dtype": "F32", "shape": [...], "data_offsets": [begin, end]}, "__metadata__": {...}}, padded with spaces
    data         the tensors, row-major, one after another

The safetensors library writes a file from tensors that are all in memory, and its numpy reader does not read bfloat16; a model may be
larger than memory, and the format is the four lines above. The tests read these files with the library, and its files with this reader.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import ml_dtypes
import numpy as np

from dlmjax.errors import InputError
from dlmjax.files import inside, parse_json, read_json, replaced, why

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_ALIGNMENT = 8
# As in the library: a file that begins with a larger number is something else.
_LARGEST_HEADER = 100_000_000
_MOST_AXES, _LONGEST_AXIS = 8, 1 << 40


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor to be written. `load()` returns it, as an array of this shape and type; it is called once, when the tensor is written."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def write_sharded(directory: str | os.PathLike, tensors: Iterable[Tensor], shard_bytes: int = 5 * 10**9) -> list[str]:
    """Writes tensors in their order into shards of at most `shard_bytes` (a larger tensor has one of its own), and the index.

    One tensor is in memory at a time. Files appear under their names when they are complete, the index
    (or the only file) last; an earlier index is deleted first.

    Returns the names of the files, weights first.
    """
    root = pathlib.Path(directory)
    root.mkdir(parents=True, exist_ok=True)
    shards = _shards(list(tensors), shard_bytes)
    for old in (root / INDEX, *root.glob("model*.safetensors")):
        old.unlink(missing_ok=True)
    names = [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)] if len(shards) > 1 else [SINGLE]
    for name, shard in zip(names, shards, strict=True):
        _write_file(root / name, shard)
    if len(shards) > 1:
        where = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        index = {"metadata": {"total_size": sum(t.bytes for shard in shards for t in shard)}, "weight_map": where}
        _write_whole(root / INDEX, lambda file: file.write((json.dumps(index, indent=2) + "\n").encode()))
        names.append(INDEX)
    return names


def _shards(tensors: list[Tensor], shard_bytes: int) -> list[list[Tensor]]:
    shards: list[list[Tensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.bytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.bytes
    return shards


def _write_file(path: pathlib.Path, tensors: list[Tensor]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses files without it
    end = 0
    for tensor in tensors:
        begin, end = end, end + tensor.bytes
        header[tensor.name] = {"dtype": _CODES[np.dtype(tensor.dtype)], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % _ALIGNMENT)

    def write(file: Any) -> None:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            array = tensor.load()
            if array.shape != tensor.shape or array.dtype != tensor.dtype:
                raise ValueError(f"{tensor.name} came as {array.dtype}{array.shape}, not {tensor.dtype}{tensor.shape}")
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    _write_whole(path, write)


def _write_whole(path: pathlib.Path, write: Callable[[Any], object]) -> None:
    try:
        with replaced(path) as file:
            write(file)
    except OSError as error:
        raise InputError(f"{path} could not be written ({error.strerror}); free some space or choose another directory") from error


@dataclasses.dataclass(frozen=True)
class TensorEntry:
    file: pathlib.Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int


class Reader:
    """The tensors of a directory with `model.safetensors` or shards and their index, or of one file. Opening reads the headers alone.

    Raises InputError: no such files, a damaged or unfinished one, a tensor of the index that its file lacks.
    """

    def __init__(self, source: str | os.PathLike):
        self.source = pathlib.Path(source)
        self._entries: dict[str, TensorEntry] = {}
        wanted: dict[str, str] = {}
        for file, named in _files(self.source).items():
            for name, entry in _header(file).items():
                if name in self._entries:
                    raise InputError(f"{self.source}: {name} is in {self._entries[name].file.name} and in {file.name}; copy it again")
                self._entries[name] = entry
            wanted.update(dict.fromkeys(named, file.name))
        lacking = sorted(name for name in wanted if name not in self._entries or self._entries[name].file.name != wanted[name])
        if lacking:
            raise InputError(f"{self.source}: {wanted[lacking[0]]} lacks {some(lacking)}, which the index assigns to it; copy it again")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tensors, file by file."""
        return tuple(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._entries[name].shape

    def dtype(self, name: str) -> np.dtype:
        """Type of a tensor as stored."""
        return self._entries[name].dtype

    def read(self, name: str) -> np.ndarray:
        """The tensor as a read-only view of the file: only the parts that are used are read."""
        entry = self._entries[name]
        if not math.prod(entry.shape):
            return np.zeros(entry.shape, entry.dtype)
        return np.memmap(entry.file, entry.dtype, "r", entry.offset, entry.shape)


def _files(source: pathlib.Path) -> dict[pathlib.Path, list[str]]:
    """The files of a checkpoint, each with the tensors that the index assigns to it."""
    if source.is_file():
        return {source: []}
    if (source / INDEX).is_file():
        index = read_json(source / INDEX, {"weight_map": {str: str}}, advice="it must be the index of safetensors files; copy it again")
        files: dict[pathlib.Path, list[str]] = {}
        for name, file in index["weight_map"].items():
            files.setdefault(inside(source, file, source / INDEX), []).append(name)
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise InputError(f"{source} lacks {some(missing)}, which its index names; copy the rest of the checkpoint")
        return files
    if (source / SINGLE).is_file():
        return {source / SINGLE: []}
    others = sorted(path.name for path in source.glob("*.bin")) if source.is_dir() else []
    hint = f"; it has {others[0]}: convert it with save_pretrained(safe_serialization=True)" if others else ""
    raise InputError(f"{source} holds no {SINGLE} and no {INDEX}{hint}")


def _header(file: pathlib.Path) -> dict[str, TensorEntry]:
    """The entries of a file, checked against its size."""
    size = file.stat().st_size
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 2 <= length <= min(size, _LARGEST_HEADER):
                raise ValueError(f"its header would be {length:,} bytes long")
            header = parse_json(opened.read(length))
        entries = {}
        for name, value in header.items():
            if name == "__metadata__":
                continue
            code, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
            if code not in DTYPES:
                raise InputError(f"{file}: {name} is of type {code}, which cannot be read here; convert it to one of {', '.join(DTYPES)}")
            dtype = DTYPES[code]
            if len(shape) > _MOST_AXES or not all(type(axis) is int and 0 <= axis < _LONGEST_AXIS for axis in (*shape, begin, end)):
                raise ValueError(f"{name} has the shape {str(list(shape)):.80}, or offsets, that no tensor has")
            if end - begin != math.prod(shape) * dtype.itemsize:
                raise ValueError(f"{name} is not as long as its shape requires")
            if begin < 0 or 8 + length + end > size:
                raise ValueError(f"the file ends within {name}: it has {size:,} of at least {8 + length + end:,} bytes")
            entries[name] = TensorEntry(file, dtype, shape, 8 + length + begin)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{file} cannot be read ({why(error)}); copy it again") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} is not a whole safetensors file ({error}); copy it again") from None
    return entries


def some(names: list[str]) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
