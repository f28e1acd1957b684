"""The manifest of a prepared corpus, a JSON file: the inputs and options, and size and checksum of each shard.

A corpus consists of *segments* of about `shard_bytes` of input, which depend on the text alone, with one shard per split that has text
in the segment. The entry of a segment also has the position after it, so any segment can be made again separately. The manifest has no
times, no absolute paths except those of the inputs, and no fact of the machine: equal inputs give equal bytes.

It decides which files are read and written, so it is checked completely: it has its own checksum (except in older versions), its names
must be names that `prepare` writes, and its numbers must agree with each other and with the files.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shlex
from typing import Any

from dlmjax.data.specs import SUPERVISED
from dlmjax.data.table_tokenizer import MOST_IDS
from dlmjax.errors import InputError, NoCorpus
from dlmjax.files import CHECKSUM, parse_json, sealed, unsealed, why, write_atomically
from dlmjax.files import remove_leftovers as remove_leftovers_in

FILE = "manifest.json"
WORK = ".unfinished"  # folder of the notes of a preparation, until its manifest is written
TOKENIZER = "tokenizer"
VERSION = 1
ROLES_VERSION = 2  # of a corpus with the column of roles, which an older dlmjax would misread
RECORD_TOKENS = 4096  # tokens of one ArrayRecord record, followed by their roles (1 byte each) if any; the last record is shorter
INDEX_ENTRIES = 16384  # document lengths (uint32) of one index record, after the token records
SPLITS = ("train", "valid", "test")
# The name of a shard; names of files that killed writers and interrupted transfers leave.
SHARD = re.compile(rf"({'|'.join(SPLITS)})-[0-9]{{5,9}}\.array_record")
LEFTOVER = re.compile(rf"{SHARD.pattern}(\.fetched|\.part)|.+\.[0-9a-f]{{32}}\.part")
WRITER_OPTIONS = "group_size:1,uncompressed"  # one seek per record; uncompressed bytes do not depend on the version of the library


@dataclasses.dataclass(frozen=True)
class Shard:
    """One ArrayRecord file: `records` token records, then the lengths of the documents that end in it."""

    file: str
    tokens: int
    documents: int  # documents that end in this shard; a very long one may begin in an earlier shard
    text_bytes: int  # UTF-8 bytes of the tokens
    file_bytes: int
    sha256: str

    @property
    def token_records(self) -> int:
        return -(-self.tokens // RECORD_TOKENS)

    @property
    def records(self) -> int:
        return self.token_records + -(-self.documents // INDEX_ENTRIES)


@dataclasses.dataclass(frozen=True)
class Segment:
    """The shards of one segment by split, the position after it, and the split of the document that is open there."""

    shards: dict[str, Shard]
    end: list | None  # formats.Position as a list; None at the end of the inputs
    open_split: str | None
    skipped: int = 0  # records whose text is null or empty

    def to_json(self) -> dict:
        """The entry in a manifest; a count of 0 is omitted, as in older versions."""
        return {
            **({"skipped": self.skipped} if self.skipped else {}),
            "end": self.end,
            "open_split": self.open_split,
            "shards": {k: dataclasses.asdict(v) for k, v in sorted(self.shards.items())},
        }

    @classmethod
    def from_json(cls, values: dict) -> "Segment":
        """Raises ValueError, KeyError, TypeError or AttributeError if the values are not those of `to_json`."""
        segment = cls(
            {split: Shard(**shard) for split, shard in values["shards"].items()},
            values["end"],
            values["open_split"],
            values.get("skipped", 0),
        )
        if not _is_count(segment.skipped):
            raise ValueError("the count of skipped records is not a count")
        for split, shard in segment.shards.items():
            if not isinstance(shard.file, str) or not SHARD.fullmatch(shard.file) or not shard.file.startswith(f"{split}-"):
                raise ValueError(f"{shard.file!r:.80} is not a name of a shard of {split!r:.20}")
            numbers = (shard.tokens, shard.documents, shard.text_bytes, shard.file_bytes)
            if not all(map(_is_count, numbers)) or not re.fullmatch("[0-9a-f]{64}", shard.sha256):
                raise ValueError(f"a number of {shard.file} is not valid")
        end = segment.end
        if end is not None and not (isinstance(end, list) and len(end) <= 4 and all(isinstance(n, int) and n >= 0 for n in end)):
            raise ValueError("the end of a segment is not a position")
        if segment.open_split not in (None, *SPLITS):
            raise ValueError(f"{segment.open_split!r:.20} is not a split")
        return segment

    def note(self) -> bytes:
        """The bytes of a note, the file of this segment until the manifest is written."""
        return json.dumps(sealed(self.to_json()), indent=1).encode()

    @classmethod
    def of_note(cls, content: bytes) -> "Segment":
        """The segment of a `note`. Raises ValueError, KeyError, TypeError or AttributeError for other bytes."""
        return cls.from_json(unsealed(parse_json(content), {"end", "open_split", "shards", "skipped"}))


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A prepared corpus. `request`: the inputs and options that determine its content; `tokenizer`: from `TableTokenizer.describe`."""

    request: dict
    tokenizer: dict
    segments: list[Segment]
    checked: bool = True  # has a checksum; the numbers of a manifest without one are counted from the shards when they are used

    @property
    def dtype(self) -> str:
        return token_dtype(self.tokenizer["vocab_size"])

    @property
    def has_roles(self) -> bool:
        """Whether each record holds the roles of its tokens after them (`roles.py`)."""
        return has_roles(self.request)

    @property
    def splits(self) -> list[str]:
        """Names of the splits with documents, in the order train, valid, test."""
        present = {split for segment in self.segments for split in segment.shards}
        return [split for split in SPLITS if split in present]

    @property
    def skipped(self) -> int:
        """Records of the inputs whose text is null or empty."""
        return sum(segment.skipped for segment in self.segments)

    def shards(self, split: str) -> list[Shard]:
        return [segment.shards[split] for segment in self.segments if split in segment.shards]

    def counts(self, split: str) -> dict[str, int]:
        """Documents, tokens (end-of-document tokens included) and UTF-8 bytes of text of a split."""
        shards = self.shards(split)
        return {
            "documents": sum(s.documents for s in shards),
            "tokens": sum(s.tokens for s in shards),
            "text_bytes": sum(s.text_bytes for s in shards),
        }

    def to_json(self) -> dict:
        return {
            "format": "dlmjax corpus",
            "version": version_of(self.request),
            "dtype": self.dtype,
            "record_tokens": RECORD_TOKENS,
            "tokenizer": self.tokenizer,
            "splits": {split: self.counts(split) | {"shards": len(self.shards(split))} for split in self.splits},
            "request": self.request,
            "segments": [segment.to_json() for segment in self.segments],
        }

    def prepare_command(self, directory: str | os.PathLike) -> str:
        """The command line that makes this corpus again."""
        return prepare_command(self.request, directory)

    @classmethod
    def load(cls, directory: pathlib.Path) -> "Manifest":
        """Reads the manifest in a corpus directory. Raises InputError: missing, unfinished, unreadable, another version."""
        path = directory / FILE
        if not os.path.lexists(path):
            if (directory / WORK).exists():
                raise InputError(f"{directory} holds an unfinished preparation; repeat the same dlmjax prepare command to continue")
            raise (InputError if os.path.lexists(directory) else NoCorpus)(
                f"{directory} holds no prepared corpus (no {FILE}); make one with: dlmjax prepare --input FILES... --output {directory}"
            )
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}); {_AGAIN}") from None
        return cls.parse(content, path, directory)

    @classmethod
    def parse(cls, content: bytes, path: str | os.PathLike, directory: str | os.PathLike) -> "Manifest":
        """The manifest with these bytes; `path` and `directory` are for messages. Raises InputError: damaged, another version."""
        try:
            values = parse_json(content)
            if values["format"] != "dlmjax corpus":
                raise ValueError("not a dlmjax corpus")
            if values["version"] != (wanted := version_of(values["request"])):
                raise InputError(
                    f"{path} has format version {values['version']}, but this dlmjax requires version {wanted}; prepare it again with: "
                    + prepare_command(values["request"], directory)
                )
            found = cls(values["request"], values["tokenizer"], [Segment.from_json(s) for s in values["segments"]], CHECKSUM in values)
            found._require_agreement(values)
            return found
        except InputError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{path} is damaged ({type(error).__name__}: {why(error)}); {_AGAIN}") from None

    def _require_agreement(self, values: dict) -> None:
        """Raises ValueError, KeyError or TypeError: fields contradict each other, or have the wrong type."""
        expected = self.to_json()
        values = unsealed(values, set(expected))
        vocab, ids = self.tokenizer["vocab_size"], [self.tokenizer[name] for name in ("mask_id", "pad_id", "eos_id")]
        if not all(map(_is_count, (vocab, *ids))) or not max(ids) < vocab <= MOST_IDS:
            raise ValueError("the ids of the tokenizer are not in its vocabulary")
        if not all(isinstance(self.tokenizer[name], str) for name in ("kind", "hash")):
            raise ValueError("the tokenizer has no kind or no hash")
        for name in ("dtype", "record_tokens", "splits"):
            if name in values and values[name] != expected[name]:
                raise ValueError(f"its {name} contradicts its other fields")
        ends = [segment.end for segment in self.segments]
        if not ends or ends[-1] is not None or None in ends[:-1]:
            raise ValueError("its segments are not complete")
        files = [shard.file for segment in self.segments for shard in segment.shards.values()]
        if len(set(files)) < len(files):
            raise ValueError("two of its shards have the same file")
        width = (2 if self.dtype == "uint16" else 4) + self.has_roles
        for segment in self.segments:
            for shard in segment.shards.values():
                if shard.tokens * width + shard.documents * 4 > shard.file_bytes or shard.documents > shard.tokens:
                    raise ValueError(f"{shard.file} cannot hold {shard.tokens:,} tokens of {shard.documents:,} documents")
        self.prepare_command("")  # checks the fields of the request that messages use

    def save(self, directory: pathlib.Path) -> None:
        write_atomically(directory / FILE, self.content())

    def content(self) -> bytes:
        """The bytes of the file; equal corpora have equal bytes."""
        return (json.dumps(sealed(self.to_json()), indent=1, ensure_ascii=False) + "\n").encode()


_AGAIN = "restore it, or prepare the corpus again with --overwrite"


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def token_dtype(vocab_size: int) -> str:
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def has_roles(request: dict) -> bool:
    """Whether a request asks for supervised data, whose tokens have roles."""
    return request["format"] in SUPERVISED


def version_of(request: dict) -> int:
    """The version of the format of a corpus of this request."""
    return ROLES_VERSION if has_roles(request) else VERSION


def identity(request: dict, tokenizer: dict) -> dict:
    """The fields that must agree with those of an earlier run before its segments are used (the tokenizer by hash, not by spec)."""
    kept = {key: value for key, value in request.items() if key != "tokenizer"}
    return {"version": version_of(request), "request": kept, "tokenizer": tokenizer}


def require_same(found: dict, wanted: dict, output: str | os.PathLike) -> None:
    """Raises InputError with the differing fields when a directory holds segments of another identity."""
    if found != wanted:
        raise InputError(
            f"{output} already holds a different corpus ({differences(found, wanted)}); "
            "choose another --output, or replace it with --overwrite"
        )


def differences(old: dict, new: dict) -> str:
    """The fields in which two identities differ, as text for a message."""
    names = []
    if old["version"] != new["version"]:
        names.append("version")
    if old["tokenizer"] != new["tokenizer"]:
        names.append("tokenizer")
    names += [key for key in new["request"] if old["request"].get(key) != new["request"][key]]
    return ", ".join(names)


def escaped(text: str) -> str:
    r"""A text as a flag takes it: a line end is \n, a tab \t, a backslash twice."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")


def unescaped(text: str) -> str:
    """The text of an `escaped` one."""
    return re.sub(r"\\(.)", lambda found: {"n": "\n", "t": "\t", "\\": "\\"}.get(found[1], found[0]), text)


def prepare_command(request: dict, directory: str | os.PathLike) -> str:
    """`dlmjax prepare ...` with the arguments of a request, quoted for a shell, for error messages."""
    # The options have the names of prepare's arguments; default values are omitted.
    fixed: dict[str, list[str]] = {}
    plain = []
    for source in request["inputs"]:
        if request["split_by"] == "files" and source["split"] != "train":
            fixed.setdefault(source["split"], []).append(source["name"])
        else:
            plain.append(source["name"])
    words = ["dlmjax", "prepare", "--input", *plain, "--tokenizer", request["tokenizer"], "--output", str(directory)]
    if fixed:
        words += ["--split-files", *(f"{split}={name}" for split, names in fixed.items() for name in names)]
    options = {"valid_fraction": 0.0, "test_fraction": 0.0, "split_seed": 0, "format": None, "documents": "file", "text_field": "text"}
    supervised = {"prompt_field": "prompt", "answer_field": "answer", "separator": "\n", "chat_template": None, "length": None}
    for key, default in {**options, **supervised}.items():
        value = request.get(key, default) if key in supervised else request[key]
        if value != default:
            words += ["--" + key.replace("_", "-"), escaped(value) if key == "separator" else str(value)]
    return shlex.join(words)


def remove_leftovers(directory: pathlib.Path) -> None:
    """Deletes the files that killed writers left in a corpus directory, but no links or folders. Requires the lock of the directory."""
    for folder in (directory, directory / TOKENIZER):
        remove_leftovers_in(folder)
        if folder.is_dir() and not (folder.is_symlink() and folder != directory):
            for path in folder.iterdir():
                if LEFTOVER.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                    path.unlink(missing_ok=True)


def sha256_of(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
