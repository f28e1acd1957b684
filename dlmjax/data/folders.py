"""The text files of a folder, in an order that depends on their names alone.  Never imports jax."""

import collections
import dataclasses
import os
import pathlib
from collections.abc import Sequence

from dlmjax.checks import one_line
from dlmjax.data import formats
from dlmjax.data.paths import is_url
from dlmjax.data.tokenizers import DESCRIPTION
from dlmjax.errors import InputError

MOST_ENDINGS = 8  # that a line lists


@dataclasses.dataclass(frozen=True)
class Folder:
    """The files of one input folder. files: what is read, sorted by their names below the folder; left_out: how many entries by reason."""

    name: str
    files: tuple[str, ...]
    left_out: dict[str, int]

    def describe(self) -> str:
        """One line: how many files are read, how many entries are left out, and why."""
        left = "; left out: " + ", ".join(f"{count:,} {reason}" for reason, count in self.left_out.items()) if self.left_out else ""
        return f"{one_line(self.name)}: {len(self.files):,} file{'s' * (len(self.files) != 1)}{left}"


def folders(inputs: Sequence[str | os.PathLike], format: str | None = None) -> list[Folder]:
    """Those of the inputs that are local folders, with their files."""
    return [read_folder(name, format) for name in map(os.fspath, inputs) if is_folder(name)]


def is_folder(name: str) -> bool:
    """Whether an input is a local folder (or a link to one that is named by the user)."""
    return name != formats.BUILTIN and not is_url(name) and "\0" not in name and os.path.isdir(name)


def read_folder(name: str, format: str | None = None) -> Folder:
    """The files of a folder and of the folders in it.

    Left out and counted: hidden entries, links (so that nothing outside the folder is read, and no file twice), prepared corpora and
    workdirs, empty files, and files whose names do not end like a known format. With `format`, every ending is read as that format.
    Raises InputError: a folder that cannot be listed, or that holds no file to read.
    """
    found: list[str] = []
    counts: dict[str, int] = collections.Counter()
    endings: dict[str, int] = collections.Counter()
    waiting = [pathlib.Path(name)]
    while waiting:
        folder = waiting.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            raise InputError(f"input {name}: the folder {folder} cannot be read ({error.strerror}); check its permissions") from None
        for entry in entries:
            if entry.name.startswith("."):
                counts["hidden"] += 1
            elif entry.is_symlink():
                counts["links"] += 1
            elif entry.is_dir():
                if os.path.isfile(os.path.join(entry.path, "tokenizer", DESCRIPTION)):
                    counts["prepared corpora or workdirs"] += 1
                else:
                    waiting.append(pathlib.Path(entry.path))
            elif not entry.is_file() or (format is None and formats.format_of(entry.name) is None):
                endings[pathlib.PurePath(entry.name).suffix or "no ending"] += 1
            elif entry.stat().st_size == 0:
                counts["empty"] += 1
            else:
                found.append(entry.path)
    if endings:
        most = sorted(endings, key=lambda ending: (-endings[ending], ending))
        listed = ", ".join(most[:MOST_ENDINGS]) + (", ..." if most[MOST_ENDINGS:] else "")
        counts[f"of other formats ({one_line(listed)})"] = endings.total()
    files = sorted(found, key=lambda path: pathlib.PurePath(path).relative_to(name).parts)
    result = Folder(name, tuple(files), dict(sorted(counts.items())))
    if not files:
        held = result.describe().rpartition("left out: ")[2] if counts else "it is empty"
        cure = "give files of other endings with --format txt" if endings else "give a folder with text"
        raise InputError(f"input {one_line(name)} is a folder without a text file ({held}); {formats.ENDINGS} are read; {cure}")
    return result
