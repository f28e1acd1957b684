"""One segment of a corpus: a part of the inputs -> its shards, which always have the same bytes.

Segments depend on the text alone (`batches`), so a segment can be made from its start and the split of the document that is open there.
`prepare` makes them in order with several processes, `beam` as work items on any machine. Never imports jax.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from dlmjax.data import encode as encoding
from dlmjax.data import formats, manifest
from dlmjax.data.manifest import SPLITS, Manifest, Segment, Shard
from dlmjax.data.marking import Marking
from dlmjax.data.paths import a_folder
from dlmjax.errors import InputError
from dlmjax.files import sync, why

BATCH_BYTES = 1 << 20


def normal_documents(documents: str) -> str:
    """A rule for documents without redundant white space."""
    return "separator:" + documents.partition(":")[2].strip() if documents.startswith("separator:") else documents


def batch_bytes(shard_bytes: int) -> int:
    """Bytes of pieces that fill a batch."""
    return min(BATCH_BYTES, shard_bytes)


@dataclasses.dataclass(frozen=True)
class Cutting:
    """The options that determine the content of every segment, besides the tokenizer."""

    sources: tuple[formats.Source, ...]
    shard_bytes: int
    valid_fraction: float
    test_fraction: float
    split_seed: int
    marking: Marking | None = None  # of supervised data

    @classmethod
    def from_request(cls, request: dict) -> "Cutting":
        """The options in a manifest's request, for work items."""
        documents = normal_documents(request["documents"])
        sources = tuple(
            formats.Source(s["name"], s["format"], s["split"], documents, request["text_field"], s["bytes"], s["fingerprint"])
            for s in request["inputs"]
        )
        sizes = (request["shard_bytes"], request["valid_fraction"], request["test_fraction"], request["split_seed"])
        return cls(sources, *sizes, Marking.from_request(request))

    def split_of(self, file: int, share: float) -> int:
        """The number of the split of a document that begins in this input and has this share (see `encode.document_share`)."""
        fixed = self.sources[file].split
        if fixed is not None:
            return SPLITS.index(fixed)
        return 1 if share < self.valid_fraction else 2 if share < self.valid_fraction + self.test_fraction else 0

    def splits(self, result: encoding.Encoded, open_split: str | None) -> np.ndarray:
        """The number of the split of each piece. A piece that does not start a document has the split of the piece before it."""
        fixed = np.array([-1 if s.split is None else SPLITS.index(s.split) for s in self.sources])
        valid, test = self.valid_fraction, self.test_fraction
        by_hash_P = np.where(result.share_P < valid, 1, np.where(result.share_P < valid + test, 2, 0))
        split_P = np.where(fixed[result.file_P] >= 0, fixed[result.file_P], by_hash_P)
        last_start_P = np.maximum.accumulate(np.where(result.starts_P, np.arange(len(split_P)), -1))
        inherited = SPLITS.index(open_split) if open_split else 0
        return np.where(last_start_P >= 0, split_P[last_start_P], inherited)

    def check(self, batch: "Batch", result: encoding.Encoded) -> None:
        """Raises InputError for the first piece of a batch that is not text."""
        if result.bad is not None:
            piece = batch.pieces[result.bad]
            source = self.sources[piece.at.file]
            wrong = f"{formats.location(source, piece.at)}: {result.why}" if result.why else encoding.mistake(piece, source)
            raise InputError(f"{wrong} (nothing already prepared was changed)")

    def check_splits(self, result: Manifest) -> None:
        """Raises InputError for a requested split without documents."""
        wanted = {source.split for source in self.sources} - {None}
        if None in {source.split for source in self.sources}:
            fractions = {"valid": self.valid_fraction, "test": self.test_fraction}
            wanted |= {"train"} | {split for split, fraction in fractions.items() if fraction > 0}
        empty = [split for split in SPLITS if split in wanted and split not in result.splits]
        if empty:
            count = sum(result.counts(split)["documents"] for split in result.splits)
            by_files = empty[0] in {source.split for source in self.sources}
            if count == 0 or by_files:
                whose = f"the files of the split {empty[0]!r}" if count else "the inputs"
                cause = f"null or empty in all {result.skipped:,} records" if result.skipped and not count else "null, empty or white space"
                raise InputError(
                    f"{whose} hold no text ({cause}); give files that do, or name the field that holds the text with --text-field"
                )
            raise InputError(
                f"no document fell into the split {empty[0]!r} ({count:,} documents in all); give its files with --split-files, a larger "
                "fraction, another --split-seed, or smaller documents (--documents blank-line)"
            )


@dataclasses.dataclass(frozen=True)
class Batch:
    pieces: list[formats.Piece]
    ends_segment: bool
    next: formats.Position | None
    stored: int


def batches(sources: Sequence[formats.Source], start: formats.Position, shard_bytes: int) -> Iterator[Batch]:
    """Batches of about 1 MiB. A segment ends with the batch in which it reaches `shard_bytes`, and with the last batch."""
    reader = formats.Reader(sources, start)
    pieces: list[formats.Piece] = []
    size = in_segment = 0
    waiting: Batch | None = None  # yielded once it is known whether a piece follows
    for piece in reader:
        if waiting:
            yield waiting
            waiting = None
        pieces.append(piece)
        size += len(piece.data)
        if size >= batch_bytes(shard_bytes):
            in_segment += size
            full = in_segment >= shard_bytes
            waiting = Batch(pieces, full, piece.next, reader.stored)
            pieces, size, in_segment = [], 0, 0 if full else in_segment
    if waiting:
        yield dataclasses.replace(waiting, ends_segment=True, next=None, stored=reader.stored)
    else:
        yield Batch(pieces, True, None, reader.stored)


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Converts an error of the disk, such as no space, to an InputError. Finished files stay."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # ArrayRecord raises RuntimeError
        reason = why(error)
        in_the_way = isinstance(error, FileExistsError | IsADirectoryError | NotADirectoryError)
        cure = "remove the file or folder of that name" if in_the_way else "free some space"
        raise InputError(f"{path} cannot be written ({reason}); {cure} and repeat the same command to continue") from None


class _ShardWriter:
    """Writes one shard under a temporary name; `close` publishes it."""

    def __init__(self, directory: pathlib.Path, name: str):
        from array_record.python.array_record_module import ArrayRecordWriter

        self._name, self._part = name, directory / (name + ".part")
        if self._part.is_dir():
            raise a_folder(self._part)
        with writing(self._part):
            self._writer = ArrayRecordWriter(str(self._part), manifest.WRITER_OPTIONS)
        self._waiting: list[np.ndarray] = []
        self._roles: list[np.ndarray] = []  # of the waiting tokens, if they have any
        self._count = self.tokens = self.text_bytes = self._open = 0
        self._lengths: list[np.ndarray] = []

    def add(self, tokens: np.ndarray, lengths_P: np.ndarray, ends_P: np.ndarray, text_bytes: int, roles: np.ndarray | None = None) -> None:
        """Appends pieces: their tokens, the roles of these if they have any, and which pieces end a document."""
        ends = np.cumsum(lengths_P)[ends_P]
        if len(ends):
            self._lengths.append(np.diff(ends, prepend=-self._open).astype(np.uint32))
            self._open = len(tokens) - int(ends[-1])
        else:
            self._open += len(tokens)
        self.tokens += len(tokens)
        self.text_bytes += text_bytes
        self._waiting.append(tokens)
        if roles is not None:
            self._roles.append(roles)
        self._count += len(tokens)
        if self._count >= 1 << 18:
            with writing(self._part):
                self._write(self._count // manifest.RECORD_TOKENS * manifest.RECORD_TOKENS)

    def _write(self, count: int) -> None:
        columns = [np.concatenate(waiting) for waiting in (self._waiting, self._roles) if waiting]
        for at in range(0, count, manifest.RECORD_TOKENS):
            self._writer.write(b"".join(column[at : min(count, at + manifest.RECORD_TOKENS)].tobytes() for column in columns))
        for waiting, column in zip((self._waiting, self._roles), columns, strict=False):
            waiting[:] = [column[count:]]
        self._count -= count

    def close(self, publish: Callable[[pathlib.Path, str], None]) -> Shard:
        lengths = np.concatenate([np.zeros(0, np.uint32), *self._lengths])
        with writing(self._part):
            self._write(self._count)
            for at in range(0, len(lengths), manifest.INDEX_ENTRIES):
                self._writer.write(lengths[at : at + manifest.INDEX_ENTRIES].tobytes())
            self._writer.close()
            sync(self._part)
        digest, size = manifest.sha256_of(self._part), self._part.stat().st_size
        publish(self._part, self._name)
        return Shard(self._name, self.tokens, len(lengths), self.text_bytes, size, digest)

    def abandon(self) -> None:
        with contextlib.suppress(RuntimeError):  # on a full disk this write fails too
            self._writer.close()
        self._part.unlink(missing_ok=True)


class SegmentWriter:
    """Writes the shards of segment `number`, one per split, from batches.

    Args:
        directory: folder of unfinished shards under temporary names.
        publish: called with each finished, synced file and the name of its shard; moves it atomically.
        open_split: split of the document that is open at the start of the segment.
        counted: size of the vocabulary, if `counts_V` is to hold the token counts of the train split; None: no counts.
    """

    def __init__(
        self,
        cutting: Cutting,
        number: int,
        open_split: str | None,
        directory: pathlib.Path,
        publish: Callable[[pathlib.Path, str], None],
        counted: int | None = None,
    ):
        self.open_split = open_split
        self.counts_V = None if counted is None else np.zeros(counted, np.int64)
        self._cutting, self._number, self._directory, self._publish = cutting, number, directory, publish
        self._writers: dict[str, _ShardWriter] = {}
        self._skipped = 0

    def add(self, result: encoding.Encoded) -> None:
        """Appends a batch to the shards of its splits."""
        split_P = self._cutting.splits(result, self.open_split)
        self._skipped += result.skipped
        for index in np.unique(split_P).tolist():
            split = SPLITS[index]
            here_P = split_P == index
            if split not in self._writers:
                self._writers[split] = _ShardWriter(self._directory, f"{split}-{self._number:05d}.array_record")
            here = np.repeat(here_P, result.lengths_P)
            tokens = result.tokens[here]
            roles = None if result.roles is None else result.roles[here]
            if self.counts_V is not None and split == "train":
                self.counts_V += np.bincount(tokens, minlength=len(self.counts_V))
            text_bytes = int(result.text_bytes_P[here_P].sum())
            self._writers[split].add(tokens, result.lengths_P[here_P], result.ends_P[here_P], text_bytes, roles)
        if len(split_P):
            self.open_split = None if result.ends_P[-1] else SPLITS[int(split_P[-1])]

    def close(self, end: formats.Position | None) -> Segment:
        """Finishes and publishes the shards; `end` is the position after the segment."""
        shards = {split: self._writers[split].close(self._publish) for split in sorted(self._writers)}
        self._writers.clear()
        return Segment(shards, list(end) if end else None, self.open_split, self._skipped)

    def abandon(self) -> None:
        """Deletes unpublished shards."""
        for writer in self._writers.values():
            writer.abandon()
