"""`prepare`: text files -> a directory of token shards and one manifest.  Never imports jax.

One reader (this process) cuts the inputs into pieces, workers tokenize batches of them, this process writes the results in input
order. The inputs are divided into segments by their text alone; a finished segment's shards are renamed into place and noted, so a
preparation that was killed goes on behind the last finished segment, and the result is byte for byte that of an uninterrupted run with any
number of workers. Memory: about 2 MiB a batch in flight and 1 MiB a shard, whatever the inputs' size.

    DIR/manifest.json                 written last; there is no corpus without it
    DIR/tokenizer/                    the tokenizer itself
    DIR/counts.npy                    how often each token occurs in the train split
    DIR/train-00000.array_record      one shard a segment and split (valid-, test-)
    DIR/.unfinished/                  request.json, segment-00000.json, ...: only until the manifest is written
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import json
import multiprocessing
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from dlmjax.data import counts, formats, manifest
from dlmjax.data import encode as encoding
from dlmjax.data.manifest import Manifest, Segment, Shard
from dlmjax.data.progress import Progress
from dlmjax.data.tokenizers import Tokenizer, load_tokenizer, save_tokenizer
from dlmjax.errors import InputError

BATCH_BYTES = 1 << 20
SPLITS = ("train", "valid", "test")
SMALL = 1 << 20  # stored bytes below which starting worker processes would take longer than the work


def parse_split_files(values: Sequence[str]) -> dict[str, list[str]]:
    """["valid=a.txt", "test=b.txt"] (as on the command line) -> {"valid": ["a.txt"], "test": ["b.txt"]}."""
    result: dict[str, list[str]] = {}
    for value in values:
        split, equals, name = value.partition("=")
        if not equals or split not in SPLITS or not name:
            raise InputError(f"--split-files {value}: give SPLIT=FILE with one of the splits {', '.join(SPLITS)}")
        result.setdefault(split, []).append(name)
    return result


def _cores() -> int:
    """Cores this process may use (a batch system may grant fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_shard_bytes(stored: int) -> int:
    """128 MiB of text; more for inputs above 64 GiB (as stored), so that there are not many thousand shards; at most 2 GiB."""
    return min(2 << 30, max(128 << 20, stored // 512))


def prepare(
    inputs: Sequence[str | os.PathLike],
    tokenizer: str | Tokenizer,
    output: str | os.PathLike,
    *,
    valid_fraction: float | int = 0,
    test_fraction: float | int = 0,
    split_seed: int = 0,
    split_files: Mapping[str, Sequence[str | os.PathLike]] | Sequence[str] | None = None,
    format: str | None = None,
    documents: str = "file",
    text_field: str = "text",
    workers: int | None = None,
    shard_bytes: int | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Manifest:
    """Tokenizes text files into a corpus directory; called again after being killed, it goes on where it was.

    Args:
        inputs: files (.txt, .jsonl, .parquet, the first two also .gz, .xz, .zst) or "builtin:python-docs". Their order is the corpus's.
        tokenizer: a spec for `load_tokenizer` ("bytes", "gpt2:DIR", ...) or a tokenizer.
        output: the corpus directory; made if missing.
        valid_fraction, test_fraction: expected share of the *documents* in those splits, chosen by a hash of each document's first
            64 KiB of text: copies of a document share a split, and adding documents moves none. 0 for none.
        split_seed: another seed chooses other documents.
        split_files: instead of fractions: split -> files (or ["valid=FILE", ...]); `inputs` are then the train split.
        format: "txt", "jsonl" or "parquet" for all inputs; None tells by each file's name.
        documents: what a document of a txt file is: "file" (all of it), "blank-line" (paragraphs), "line", or "separator:TEXT" (parted by
            lines that are TEXT). Documents of only white space are dropped, except with "file".
        text_field: JSON field or parquet column with the text.
        workers: processes that tokenize; None for one a core. The result does not depend on it.
        shard_bytes: input text per segment (so about per shard); a restart repeats at most one segment. None: see `default_shard_bytes`.
        overwrite: delete a corpus (or unfinished preparation) of other inputs in `output` first, instead of refusing.
        progress: show a progress bar; None: on a terminal, with sparse lines elsewhere.
    Returns:
        The manifest. A corpus that is already prepared is returned at once (damaged shards are made again).
    Raises:
        InputError: contradictory arguments; an input that is missing, empty, truncated, not UTF-8, not JSON (with its position); a
            split without documents; an output that holds another corpus or is being written by another process. What was prepared stays.
    """
    output = pathlib.Path(output)
    sources, split_by = make_sources(inputs, split_files, valid_fraction, test_fraction, format, documents, text_field)
    spec = tokenizer if isinstance(tokenizer, str) else tokenizer.name
    tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
    workers = _cores() if workers is None else workers
    shard_bytes = default_shard_bytes(sum(source.size for source in sources)) if shard_bytes is None else shard_bytes
    if workers < 1 or shard_bytes < 1 or split_seed < 0:
        raise InputError(f"workers ({workers}) and shard_bytes ({shard_bytes}) must be at least 1, split_seed ({split_seed}) at least 0")
    request = {
        "inputs": [source.describe() for source in sources],
        "tokenizer": spec,
        "split_by": split_by,
        "valid_fraction": float(valid_fraction),
        "test_fraction": float(test_fraction),
        "split_seed": split_seed,
        "format": format,
        "documents": documents,
        "text_field": text_field,
        "shard_bytes": shard_bytes,
    }
    job = _Job(output, sources, tokenizer, request, workers, progress)
    with _only_one(output):
        if overwrite:
            _clear(output)
        return job.run()


def make_sources(inputs, split_files, valid_fraction, test_fraction, format, documents, text_field) -> tuple[list[formats.Source], str]:
    """All inputs with their splits, checked before anything is written."""
    if not (valid_fraction >= 0 and test_fraction >= 0 and valid_fraction + test_fraction < 1):
        raise InputError(f"valid_fraction ({valid_fraction}) and test_fraction ({test_fraction}) must be at least 0 and together below 1")
    if format not in (None, "txt", "jsonl", "parquet"):
        raise InputError(f"format is {format!r}; give txt, jsonl or parquet")
    if documents not in ("file", "blank-line", "line") and not documents.removeprefix("separator:").strip() != documents.strip():
        raise InputError(f"documents is {documents!r}; give file, blank-line, line or separator:TEXT")
    if documents.startswith("separator:") and not documents.partition(":")[2].strip():
        raise InputError("documents is 'separator:' without a text; give separator:TEXT")
    documents = "separator:" + documents.partition(":")[2].strip() if documents.startswith("separator:") else documents
    if isinstance(split_files, (list, tuple)):
        split_files = parse_split_files(split_files)
    wanted: list[tuple[str, str | None]] = []
    if split_files:
        if valid_fraction or test_fraction:
            raise InputError("give either fractions or split files, not both")
        unknown = [split for split in split_files if split not in SPLITS]
        if unknown:
            raise InputError(f"unknown split {unknown[0]!r}; the splits are {', '.join(SPLITS)}")
        files = {"train": [*inputs, *split_files.get("train", [])]} | {s: list(split_files.get(s, [])) for s in ("valid", "test")}
        wanted = [(os.fspath(name), split) for split in SPLITS for name in files[split]]
    else:
        only = "train" if valid_fraction == test_fraction == 0 else None
        wanted = [(os.fspath(name), only) for name in inputs]
    if not wanted:
        raise InputError(f"no input files; give text files or the built-in {formats.BUILTIN}")
    twice = [name for name, count in collections.Counter(name for name, _ in wanted).items() if count > 1]
    if twice:
        raise InputError(f"input {twice[0]} is given twice")
    sources = [formats.make_source(name, split, format, documents, text_field) for name, split in wanted]
    return sources, "files" if split_files else "hash"


@contextlib.contextmanager
def _only_one(output: pathlib.Path) -> Iterator[None]:
    """Holds the output directory's lock; a killed process lets go of it by itself."""
    work = output / manifest.WORK
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output} cannot be made a corpus directory: {error.strerror}") from None
    with open(work / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"another dlmjax prepare is writing to {output}; wait for it, or choose another --output") from None
        try:
            yield
        finally:
            # Nothing but the lock left: this is a finished corpus, or one that never began.
            if {path.name for path in work.iterdir()} <= {"lock"}:
                shutil.rmtree(work, ignore_errors=True)


def _clear(output: pathlib.Path) -> None:
    """Deletes what prepare writes, and nothing else; the manifest first, so that no half corpus is ever taken for a whole one."""
    (output / manifest.FILE).unlink(missing_ok=True)
    (output / counts.FILE).unlink(missing_ok=True)
    for split in SPLITS:
        for path in output.glob(f"{split}-[0-9]*.array_record*"):
            path.unlink()
    for path in (output / manifest.WORK).glob("*.json*"):
        path.unlink()
    shutil.rmtree(output / manifest.TOKENIZER, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class _Batch:
    pieces: list[formats.Piece]
    ends_segment: bool
    next: formats.Position | None
    stored: int


def _batches(sources: list[formats.Source], start: formats.Position, shard_bytes: int) -> Iterator[_Batch]:
    """Batches of about 1 MiB; a segment ends with the batch that brings it to `shard_bytes`, and with the last one."""
    reader = formats.Reader(sources, start)
    pieces: list[formats.Piece] = []
    size = in_segment = 0
    waiting: _Batch | None = None  # handed out once it is known whether anything follows
    for piece in reader:
        if waiting:
            yield waiting
            waiting = None
        pieces.append(piece)
        size += len(piece.data)
        if size >= min(BATCH_BYTES, shard_bytes):
            in_segment += size
            full = in_segment >= shard_bytes
            waiting = _Batch(pieces, full, piece.next, reader.stored)
            pieces, size, in_segment = [], 0, 0 if full else in_segment
    if waiting:
        yield dataclasses.replace(waiting, ends_segment=True, next=None, stored=reader.stored)
    else:
        yield _Batch(pieces, True, None, reader.stored)


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[None]:
    """A disk that is full or gone is for a person to mend; what is finished stays."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # ArrayRecord raises RuntimeError
        reason = " ".join(str(error).split())
        raise InputError(f"{path} cannot be written ({reason}); free some space and give the same command again: it goes on") from None


class _ShardWriter:
    """Writes one shard under a temporary name; `close` renames it."""

    def __init__(self, path: pathlib.Path):
        from array_record.python.array_record_module import ArrayRecordWriter

        self.path, self._part = path, path.with_name(path.name + ".part")
        self._writer = ArrayRecordWriter(str(self._part), manifest.WRITER_OPTIONS)
        self._waiting: list[np.ndarray] = []
        self._count = self.tokens = self.text_bytes = self._open = 0
        self._lengths: list[np.ndarray] = []

    def add(self, tokens: np.ndarray, lengths_P: np.ndarray, ends_P: np.ndarray, text_bytes: int) -> None:
        """Appends pieces: their tokens, and which of them end a document."""
        ends = np.cumsum(lengths_P)[ends_P]
        if len(ends):
            self._lengths.append(np.diff(ends, prepend=-self._open).astype(np.uint32))
            self._open = len(tokens) - int(ends[-1])
        else:
            self._open += len(tokens)
        self.tokens += len(tokens)
        self.text_bytes += text_bytes
        self._waiting.append(tokens)
        self._count += len(tokens)
        if self._count >= 1 << 18:
            with _writing(self._part):
                self._write(self._count // manifest.RECORD_TOKENS * manifest.RECORD_TOKENS)

    def _write(self, count: int) -> None:
        tokens = np.concatenate(self._waiting)
        for at in range(0, count, manifest.RECORD_TOKENS):
            self._writer.write(tokens[at : min(count, at + manifest.RECORD_TOKENS)].tobytes())
        self._waiting, self._count = [tokens[count:]], self._count - count

    def close(self) -> Shard:
        lengths = np.concatenate([np.zeros(0, np.uint32), *self._lengths])
        with _writing(self._part):
            self._write(self._count)
            for at in range(0, len(lengths), manifest.INDEX_ENTRIES):
                self._writer.write(lengths[at : at + manifest.INDEX_ENTRIES].tobytes())
            self._writer.close()
            with open(self._part, "rb") as file:
                os.fsync(file.fileno())
        digest, size = manifest.sha256_of(self._part), self._part.stat().st_size
        self._part.replace(self.path)
        return Shard(self.path.name, self.tokens, len(lengths), self.text_bytes, size, digest)

    def abandon(self) -> None:
        with contextlib.suppress(RuntimeError):  # a full disk refuses the rest once more
            self._writer.close()
        self._part.unlink(missing_ok=True)


class _Job:
    """One call of prepare, its arguments checked and the directory locked."""

    def __init__(self, output, sources, tokenizer, request, workers, progress):
        self.output, self.sources, self.tokenizer, self.request = output, sources, tokenizer, request
        self.workers, self.progress = workers, progress
        self.work = output / manifest.WORK

    def run(self) -> Manifest:
        """Goes on from what is there, to the finished corpus."""
        done = self._done()
        missing = self._missing(done)
        with _writing(self.output):
            save_tokenizer(self.tokenizer, self.output / manifest.TOKENIZER)
        if missing is None:
            return self._finish(done)
        with _writing(self.work):
            manifest.write_atomically(self.work / "request.json", json.dumps(self._identity(), indent=1))
        total = sum(source.size for source in self.sources)
        with Progress(total, "preparing", "B", self.progress) as progress, self._pool() as submit:
            while missing is not None:
                self._make(missing, done, submit, progress)
                missing = self._missing(done)
        return self._finish(done)

    def _identity(self) -> dict:
        """What must agree for an earlier run's segments to be used."""
        request = {key: value for key, value in self.request.items() if key != "tokenizer"}
        return {"version": manifest.VERSION, "request": request, "tokenizer": self.tokenizer.describe()}

    def _done(self) -> dict[int, Segment]:
        """Whole segments of an earlier run of the same request. Raises InputError when the directory holds something else."""
        try:
            if (self.output / manifest.FILE).exists():
                found = Manifest.load(self.output)
                request = {key: value for key, value in found.request.items() if key != "tokenizer"}
                identity = {"version": manifest.VERSION, "request": request, "tokenizer": found.tokenizer}
                segments = dict(enumerate(found.segments))
            elif (self.work / "request.json").exists():
                identity = json.loads((self.work / "request.json").read_text(encoding="utf-8"))
                names = sorted(self.work.glob("segment-*.json"))
                segments = {int(n.stem[8:]): Segment.from_json(json.loads(n.read_text(encoding="utf-8"))) for n in names}
            else:
                return {}
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"the notes in {self.work} are damaged ({error!r}); start afresh with --overwrite") from None
        if identity != self._identity():
            raise InputError(
                f"{self.output} already holds a corpus made otherwise ({_differences(identity, self._identity())}); "
                "choose another --output, or replace it with --overwrite"
            )
        return {number: segment for number, segment in segments.items() if all(self._is_whole(s) for s in segment.shards.values())}

    def _is_whole(self, shard: Shard) -> bool:
        path = self.output / shard.file
        return path.is_file() and path.stat().st_size == shard.file_bytes and manifest.sha256_of(path) == shard.sha256

    def _missing(self, done: dict[int, Segment]) -> int | None:
        """The first segment that is not there; None when they reach the end of the inputs."""
        number = 0
        while number in done:
            if done[number].end is None:
                return None
            number += 1
        return number

    @contextlib.contextmanager
    def _pool(self) -> Iterator[Callable]:
        """Yields submit(columns of a batch) -> future."""
        if self.workers == 1 or sum(source.size for source in self.sources) < SMALL:
            yield self._encode_here
            return
        executor = concurrent.futures.ProcessPoolExecutor(
            self.workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=encoding.start_worker,
            initargs=(str(self.output / manifest.TOKENIZER), self.sources, self.request["split_seed"]),
        )
        try:
            yield lambda batch: executor.submit(encoding.encode_in_worker, batch)
        except concurrent.futures.process.BrokenProcessPool:
            raise InputError(
                "a tokenizing process died: out of memory (give the same command again, with fewer --workers, and it goes on), or the "
                "calling script lacks `if __name__ == '__main__':`"
            ) from None
        finally:
            executor.shutdown(wait=True, cancel_futures=True)

    def _encode_here(self, batch: encoding.Columns) -> concurrent.futures.Future:
        future: concurrent.futures.Future = concurrent.futures.Future()
        future.set_result(encoding.encode(batch, self.sources, self.tokenizer, self.request["split_seed"]))
        return future

    def _encoded(self, start: formats.Position, submit: Callable) -> Iterator[tuple[_Batch, encoding.Encoded]]:
        """Results in input order, a few batches ahead of the writer so that no worker waits."""
        waiting: collections.deque = collections.deque()
        depth = self.workers + max(2, self.workers // 2)
        for batch in _batches(self.sources, start, self.request["shard_bytes"]):
            waiting.append((batch, submit(encoding.columns(batch.pieces))))
            if len(waiting) > depth:
                head, future = waiting.popleft()
                yield head, future.result()
        while waiting:
            head, future = waiting.popleft()
            yield head, future.result()

    def _make(self, number: int, done: dict[int, Segment], submit: Callable, progress: Progress) -> None:
        """Makes segments from `number` on, until one that is already there or the end."""
        before = done.get(number - 1)
        start = formats.Position(*before.end) if before else formats.Position(0)
        open_split = before.open_split if before else None
        writers: dict[str, _ShardWriter] = {}
        try:
            for batch, result in self._encoded(start, submit):
                if result.bad is not None:
                    piece = batch.pieces[result.bad]
                    wrong = encoding.mistake(piece, self.sources[piece.at.file])
                    raise InputError(f"{wrong} (nothing already prepared was changed)")
                open_split = self._write(result, writers, number, open_split)
                progress.reach(batch.stored)
                if batch.ends_segment:
                    shards = {split: writers[split].close() for split in sorted(writers)}
                    writers.clear()
                    done[number] = Segment(shards, list(batch.next) if batch.next else None, open_split)
                    note = self.work / f"segment-{number:05d}.json"
                    with _writing(note):
                        manifest.write_atomically(note, json.dumps(done[number].to_json(), indent=1))
                    number += 1
                    if number in done:
                        return
        finally:
            for writer in writers.values():
                writer.abandon()

    def _write(self, result: encoding.Encoded, writers: dict[str, _ShardWriter], number: int, open_split: str | None) -> str | None:
        """Appends a batch to the shards of its splits; returns the split of the document that is still open after it."""
        split_P = self._splits(result, open_split)
        for index in np.unique(split_P).tolist():
            split = SPLITS[index]
            here_P = split_P == index
            if split not in writers:
                writers[split] = _ShardWriter(self.output / f"{split}-{number:05d}.array_record")
            tokens = result.tokens[np.repeat(here_P, result.lengths_P)]
            writers[split].add(tokens, result.lengths_P[here_P], result.ends_P[here_P], int(result.text_bytes_P[here_P].sum()))
        if len(split_P) == 0:
            return open_split
        return None if result.ends_P[-1] else SPLITS[int(split_P[-1])]

    def _splits(self, result: encoding.Encoded, open_split: str | None) -> np.ndarray:
        """For each piece the number of its split. A piece that starts no document belongs to the one before it."""
        fixed = np.array([-1 if s.split is None else SPLITS.index(s.split) for s in self.sources])
        valid, test = self.request["valid_fraction"], self.request["test_fraction"]
        by_hash_P = np.where(result.share_P < valid, 1, np.where(result.share_P < valid + test, 2, 0))
        split_P = np.where(fixed[result.file_P] >= 0, fixed[result.file_P], by_hash_P)
        last_start_P = np.maximum.accumulate(np.where(result.starts_P, np.arange(len(split_P)), -1))
        inherited = SPLITS.index(open_split) if open_split else 0
        return np.where(last_start_P >= 0, split_P[last_start_P], inherited)

    def _finish(self, done: dict[int, Segment]) -> Manifest:
        """Writes the manifest, then removes the notes."""
        result = Manifest(self.request, self.tokenizer.describe(), [done[number] for number in range(self._count(done))])
        self._check_splits(result)
        with _writing(self.output / counts.FILE):
            counts.save_counts(self.output, result)
        if (self.output / manifest.FILE).exists():
            # Segments that were made again must be what they were, also where the inputs changed unnoticed.
            if Manifest.load(self.output).segments != result.segments:
                raise InputError(f"{self.output}: the inputs are no longer those of the prepared corpus; replace it with --overwrite")
        else:
            with _writing(self.output / manifest.FILE):
                result.save(self.output)
        for path in self.work.glob("*.json*"):
            path.unlink()
        for path in self.output.glob("*.array_record.part"):
            path.unlink()
        return Manifest.load(self.output)

    def _count(self, done: dict[int, Segment]) -> int:
        return next(number for number in range(len(done)) if done[number].end is None) + 1

    def _check_splits(self, result: Manifest) -> None:
        wanted = {source.split for source in self.sources} - {None}
        if None in {source.split for source in self.sources}:
            fractions = {"valid": self.request["valid_fraction"], "test": self.request["test_fraction"]}
            wanted |= {"train"} | {split for split, fraction in fractions.items() if fraction > 0}
        empty = [split for split in SPLITS if split in wanted and split not in result.splits]
        if empty:
            count = sum(result.counts(split)["documents"] for split in result.splits)
            raise InputError(
                f"no document fell into the split {empty[0]!r} ({count:,} documents in all); give its files with --split-files, a larger "
                "fraction, another --split-seed, or smaller documents (--documents blank-line)"
            )


def _differences(old: dict, new: dict) -> str:
    """The fields in which two requests differ, for a person."""
    names = []
    if old["version"] != new["version"]:
        names.append("version")
    if old["tokenizer"] != new["tokenizer"]:
        names.append("tokenizer")
    names += [key for key in new["request"] if old["request"].get(key) != new["request"][key]]
    return ", ".join(names)
