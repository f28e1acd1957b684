"""Files at local paths or at URLs that fsspec supports (gs://, s3://, hdfs://, memory://, ...).

Local files are opened directly, without the buffers of fsspec. A URL requires the library of its protocol (gs: gcsfs, s3: s3fs), which
also finds the credentials. Never imports jax.
"""

import contextlib
import dataclasses
import hashlib
import io
import os
import pathlib
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from typing import BinaryIO

import fsspec

from dlmjax.data.manifest import WORK
from dlmjax.errors import InputError
from dlmjax.files import remove, replaced

PART = ".part"
_CHUNK = 1 << 23
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://")


class Unreachable(InputError):
    """A storage service did not answer, or refused the request. Unlike after other InputErrors, a retry may help."""


def is_url(name: str | os.PathLike) -> bool:
    """Whether a name starts with a scheme; `DIR/a://b` does not."""
    return bool(_URL.match(os.fspath(name)))


@contextlib.contextmanager
def _reaching(name: str) -> Iterator[None]:
    """Converts errors of storage libraries, except FileNotFoundError, to an InputError of one line."""
    try:
        yield
    except (InputError, FileNotFoundError):
        raise
    except IsADirectoryError:
        raise a_folder(name) from None
    except ImportError as error:
        raise InputError(f"{name}: the library of this kind of storage is not installed ({_line(error)})") from None
    except Exception as error:  # every service has its own exceptions
        raise Unreachable(f"{name} cannot be reached ({_line(error)}); check name and credentials, or repeat the command") from error


def a_folder(name: str | os.PathLike) -> InputError:
    """The error for a folder that has the name of a file of the corpus."""
    return InputError(f"{name} is a folder, but a file of the corpus has this name; remove the folder, and repeat the same command")


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _filesystem(name: str) -> tuple[fsspec.AbstractFileSystem, str]:
    with _reaching(name):
        return fsspec.core.url_to_fs(name)


class _Remote(io.RawIOBase):
    """Reads a file of a storage service. Failures of the service raise Unreachable, so that they are not taken for damage in the file."""

    def __init__(self, name: str):
        filesystem, path = _filesystem(name)
        self._name = name
        with _reaching(name):
            self._file = filesystem.open(path, "rb")

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        """Fills the buffer with what the service sends; 0 at the end (`io.RawIOBase`)."""
        with _reaching(self._name):
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        with _reaching(self._name):
            return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def open_binary(name: str) -> io.BufferedReader:
    """Opens a file for reading. Raises OSError for a local one, FileNotFoundError or Unreachable for a URL."""
    return io.BufferedReader(_Remote(name), 1 << 20) if is_url(name) else open(name, "rb")


def size_of(name: str) -> int | None:
    """Bytes of a file; None if there is no such file. Raises IsADirectoryError for a directory, Unreachable for a URL's service."""
    if not is_url(name):
        path = pathlib.Path(name)
        if path.is_dir():
            raise IsADirectoryError(name)
        return path.stat().st_size if path.is_file() else None
    filesystem, path = _filesystem(name)
    try:
        with _reaching(name):
            found = filesystem.info(path)
    except FileNotFoundError:
        return None
    if found["type"] == "directory":
        raise IsADirectoryError(name)
    if found["size"] is None:  # some web servers do not provide it
        raise InputError(f"{name}: its server does not provide the size; copy the file to a storage with random access")
    return found["size"]


@dataclasses.dataclass(frozen=True)
class CorpusStore:
    """A corpus directory, local or at a URL, to which any number of machines publish files atomically.

    A file is written on this machine, copied to the directory under a temporary name, and renamed: readers, and another worker with the
    same task, see the old file or the new one. (An object store renames by copying within the store.)
    The `scratch` directory of a local store is in its folder of notes, which must exist.
    """

    root: str

    @property
    def local(self) -> pathlib.Path | None:
        return None if is_url(self.root) else pathlib.Path(self.root)

    def name(self, file: str) -> str:
        return f"{self.root.rstrip('/')}/{file}" if self.root.strip("/") else f"{self.root}{file}"

    def _at(self, file: str) -> tuple[fsspec.AbstractFileSystem, str]:
        filesystem, path = _filesystem(self.name(file))
        filesystem.invalidate_cache()  # other machines write here too
        return filesystem, path

    def make(self, *folders: str) -> None:
        """Makes the directory and folders in it. Raises InputError if that fails."""
        for folder in ("", *folders):
            filesystem, path = self._at(folder)
            try:
                with contextlib.nullcontext() if self.local else _reaching(self.root):
                    filesystem.makedirs(path.rstrip("/"), exist_ok=True)
            except OSError as error:
                what = f"folder {self.name(folder)} cannot be made" if folder else f"corpus directory {self.root} cannot be made"
                cure = "remove the file of that name, or choose another --output"
                raise InputError(f"{what}: {error.strerror}; {cure}") from None

    def names(self, folder: str = "") -> list[str]:
        """Files directly in a folder of the directory, sorted, without the folder's name; [] if it is missing."""
        filesystem, path = self._at(folder)
        try:
            with _reaching(self.name(folder)):
                found = filesystem.ls(path.rstrip("/"), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(entry["name"].rsplit("/", 1)[-1] for entry in found if entry["type"] == "file")

    def entries(self) -> list[str]:
        """All names directly in the directory: of files, folders and links, sorted; [] if it is missing."""
        filesystem, path = self._at("")
        try:
            with _reaching(self.root):
                found = filesystem.ls(path.rstrip("/"), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in found)

    def read(self, file: str) -> bytes | None:
        """All of a small file; None if it is missing. Raises InputError: it is a folder."""
        filesystem, path = self._at(file)
        try:
            with _reaching(self.name(file)):
                return filesystem.cat_file(path)
        except FileNotFoundError:
            return None

    def sha256(self, file: str) -> str | None:
        """The hash of a file, read once; None if it is missing or a folder."""
        try:
            with open_binary(self.name(file)) as stream:
                digest = hashlib.sha256()
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
        except (FileNotFoundError, IsADirectoryError):
            return None
        return digest.hexdigest()

    @contextlib.contextmanager
    def scratch(self) -> Iterator[pathlib.Path]:
        """A new empty directory on this machine for files that will be published; on the same file system as a local store."""
        with tempfile.TemporaryDirectory(prefix="scratch-", dir=self.local and self.local / WORK) as directory:
            yield pathlib.Path(directory)

    def publish(self, file: pathlib.Path, name: str) -> None:
        """Moves a synced file of `scratch` to its name. Raises InputError: a folder has that name."""
        if self.local:
            try:
                file.replace(self.local / name)
            except IsADirectoryError:
                raise a_folder(self.name(name)) from None
            return
        filesystem, path = self._at(name)
        part = f"{path}.{uuid.uuid4().hex}{PART}"
        with _reaching(self.name(name)):
            filesystem.put_file(str(file), part)
            filesystem.mv(part, path)
        file.unlink()

    @contextlib.contextmanager
    def replaced(self, name: str) -> Iterator[BinaryIO]:
        """As `files.replaced`, for a file of the directory, also at a URL."""
        with self.scratch() as directory:
            with replaced(directory / "file") as file:
                yield file
            self.publish(directory / "file", name)

    def write(self, name: str, content: bytes) -> None:
        """Writes a small file atomically."""
        with self.replaced(name) as file:
            file.write(content)

    def remove(self, name: str) -> None:
        """Deletes a file, if it exists."""
        filesystem, path = self._at(name)
        with contextlib.suppress(FileNotFoundError), _reaching(self.name(name)):
            filesystem.rm_file(path)

    def clear(self, folder: str, keep: Callable[[str], bool]) -> None:
        """Deletes the contents of a folder, except the names to keep. A link is deleted, its target is not."""
        if self.local:
            _clear_here(self.local / folder, keep, linked=not folder)
            return
        filesystem, path = self._at(folder)
        with contextlib.suppress(FileNotFoundError), _reaching(self.name(folder)):
            found = filesystem.ls(path.rstrip("/"), detail=False)
            gone = [name for name in found if not keep(name.rstrip("/").rsplit("/", 1)[-1])]
            if gone:
                filesystem.rm(gone, recursive=True)

    def drop(self, folder: str) -> None:
        """Removes a folder if it is empty and the storage has folders."""
        filesystem, path = self._at(folder)
        with contextlib.suppress(Exception):  # a missing folder, or one that is not empty, is left
            filesystem.rmdir(path.rstrip("/"))

    def fetch(self, name: str, target: pathlib.Path) -> None:
        """Copies a file to this machine, atomically. Raises FileNotFoundError."""
        with open_binary(self.name(name)) as source, replaced(target) as copy:
            shutil.copyfileobj(source, copy, _CHUNK)


def _clear_here(folder: pathlib.Path, keep: Callable[[str], bool], linked: bool) -> None:
    """As `CorpusStore.clear`. linked: whether the folder may be a link, as a folder named by the user may."""
    try:
        if folder.is_symlink() and not linked:
            folder.unlink()
            return
        for path in list(folder.iterdir()) if folder.is_dir() else ():
            if not keep(path.name):
                remove(path)
    except OSError as error:
        raise InputError(f"{folder} cannot be cleared ({error.strerror}); check its permissions, and repeat the same command") from error
