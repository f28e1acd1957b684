"""`prepare`: text files -> a directory of token shards and one manifest.  Never imports jax.

This process reads the inputs as pieces, worker processes tokenize batches of pieces, and this process writes the results in input
order. The inputs are divided into segments, which depend on the text alone. When a segment is finished, its shards are renamed and a note
is written, so a preparation that was killed continues after the last finished segment. The result is the same, byte for byte, as without
the kill, for any number of workers. Memory: about 2 MiB per batch in progress and 1 MiB per shard, for inputs of any size.

    DIR/manifest.json                 written last; there is no corpus without it
    DIR/tokenizer/                    the tokenizer itself
    DIR/counts.npy                    number of occurrences of each token in the train split
    DIR/train-00000.array_record      one shard per segment and split (valid-, test-)
    DIR/.unfinished/                  request.json, segment-00000.json, ...: only until the manifest is written
"""

import collections
import concurrent.futures
import contextlib
import fcntl
import json
import multiprocessing
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dlmjax.data import counts, formats, manifest
from dlmjax.data import encode as encoding
from dlmjax.data.beam import REQUEST, Executor, prepare_in_items
from dlmjax.data.manifest import Manifest, Segment, Shard
from dlmjax.data.marking import Marking
from dlmjax.data.options import CorpusOptions, default_shard_bytes, text_request
from dlmjax.data.paths import CorpusStore, is_url
from dlmjax.data.segments import Batch, Cutting, SegmentWriter, batches, writing
from dlmjax.data.tokenizers import Tokenizer, load_tokenizer, save_tokenizer
from dlmjax.data.training_text import train_tokenizer
from dlmjax.errors import InputError, names_arguments
from dlmjax.files import open_lock, parse_json, sealed, unsealed
from dlmjax.progress import Progress

SMALL = 1 << 20  # stored bytes below which starting worker processes would take longer than the work


def _cores() -> int:
    """Number of cores that this process may use (a batch system may grant fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@names_arguments(input="inputs")
def prepare(
    inputs: Sequence[str | os.PathLike],
    tokenizer: str | Tokenizer,
    output: str | os.PathLike,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
    execute: Executor | None = None,
    **options: Any,
) -> Manifest:
    """Tokenizes text files into a corpus directory; called again after a kill, it continues after the last finished segment.

    Args:
        inputs: files (.txt, .md, .jsonl, .parquet, all but the last also compressed, see `formats`), folders of such files (see
            `folders`) or "builtin:python-docs", in the order of the corpus. Local, or files at URLs that fsspec reads (gs://, s3://, ...).
        tokenizer: a spec of `specs.TOKENIZERS` ("bytes", "train-sentencepiece:4096", ...) or a tokenizer.
        output: the corpus directory; made if missing. With `execute` also a URL.
        workers: number of tokenizing processes; None for one per core. The result does not depend on it.
        overwrite: delete a corpus (or unfinished preparation) of other inputs in `output` first, instead of refusing.
        progress: show a progress bar; None: on a terminal, with sparse lines elsewhere.
        execute: runs the corpus as independent work items instead of with processes of this machine: `beam.on_beam(flags)` for Apache
            Beam. The result is the same, byte for byte, and each engine continues where the other stopped.
        options: the fields of `CorpusOptions`, such as valid_fraction=0.05, documents="blank-line".
    Returns:
        The manifest. A corpus that is already prepared is returned at once (damaged shards are made again).
    Raises:
        InputError: contradictory arguments; an input that is missing, empty, truncated, not UTF-8, not JSON (with its position); a
            split without documents; an output that holds a different corpus or that another process is writing. What was prepared stays.
        TypeError: an option that is not a field of `CorpusOptions`.
    """
    if is_url(output) and execute is None:
        raise InputError(f"--output {output}: only --engine beam writes to a URL; or prepare into a local directory and copy that there")
    if execute and workers is not None:
        raise InputError("--workers conflicts with --engine beam; give --direct_running_mode=multi_processing --direct_num_workers=N")
    workers = _cores() if workers is None else workers
    if workers < 1:
        raise InputError(f"--workers is {workers}; give at least 1")
    if isinstance(tokenizer, str) and tokenizer.startswith("train-"):
        tokenizer = train_tokenizer(tokenizer, inputs, os.fspath(output), overwrite=overwrite, **options)
    store = CorpusStore(os.fspath(output))
    spec = tokenizer if isinstance(tokenizer, str) else tokenizer.name
    sources, text = text_request(inputs, wanted := CorpusOptions(**options), spec)
    tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
    shard_bytes = wanted.shard_bytes or default_shard_bytes(sum(source.size for source in sources))
    request = {"inputs": text["inputs"], "tokenizer": spec, **text, "shard_bytes": shard_bytes}
    fractions = (text["valid_fraction"], text["test_fraction"])
    cutting = Cutting(tuple(sources), shard_bytes, *fractions, wanted.split_seed, Marking.from_request(request))
    store.make()
    with _only_one(store.local) if store.local else contextlib.nullcontext():
        if overwrite:
            _clear(store)
        _require_own(store)
        if execute:
            return prepare_in_items(execute, store, cutting, tokenizer, request, progress)
        return _Job(store.local, cutting, tokenizer, request, workers, progress).run()


@contextlib.contextmanager
def _only_one(output: pathlib.Path) -> Iterator[None]:
    """Holds the lock of the output directory, which the system releases when the process is killed."""
    work = output / manifest.WORK
    if work.is_symlink():
        raise InputError(f"{work} is a link, and notes are not written through links; remove it, or choose another --output")
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder {work} cannot be made ({error.strerror}); remove it, or choose another --output") from None
    try:
        lock = open_lock(work / "lock")
    except OSError as error:
        raise InputError(f"{work / 'lock'} cannot be opened ({error.strerror}); remove it, or choose another --output") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"another dlmjax prepare is writing to {output}; wait for it, or choose another --output") from None
        try:
            yield
        finally:
            # Only the lock is left: the corpus is finished, or nothing was begun.
            if {path.name for path in work.iterdir()} <= {"lock"}:
                shutil.rmtree(work, ignore_errors=True)


def _clear(store: CorpusStore) -> None:
    """Deletes only what prepare writes; the manifest first, so that a partly deleted corpus is not taken for a whole one."""
    store.remove(manifest.FILE)
    store.clear("", lambda name: not _is_name_of_ours(name))
    store.clear(manifest.WORK, lambda name: name == "lock")


def _is_name_of_ours(name: str) -> bool:
    """Whether prepare writes files of this name; the manifest and the notes are not included."""
    return bool(name in (counts.FILE, manifest.TOKENIZER) or manifest.SHARD.fullmatch(name) or manifest.LEFTOVER.fullmatch(name))


def _require_own(store: CorpusStore) -> None:
    """Raises InputError if the directory holds files with names that prepare uses, and no note of an earlier prepare."""
    found = store.entries()
    if manifest.FILE in found or store.read(REQUEST) is not None:
        return
    foreign = list(filter(_is_name_of_ours, found))
    if foreign:
        more = f" and {len(foreign) - 1:,} more" if foreign[1:] else ""
        raise InputError(
            f"{store.name(foreign[0])}{more} would be replaced, but {store.root} has no notes of a preparation that wrote it; choose "
            "another --output, or replace it with --overwrite"
        )


class _Job:
    """One call of prepare, with checked arguments and the lock of the directory."""

    def __init__(self, output, cutting, tokenizer, request, workers, progress):
        self.output, self.cutting, self.tokenizer, self.request = output, cutting, tokenizer, request
        self.sources = cutting.sources
        self.workers, self.progress = workers, progress
        self.work = output / manifest.WORK

    def run(self) -> Manifest:
        """Continues from the segments that exist to the finished corpus."""
        manifest.remove_leftovers(self.output)
        done = self._done()
        missing = self._missing(done)
        if missing is not None:
            with writing(self.work):  # before all other files: without this note, files are not ours
                manifest.write_atomically(self.output / REQUEST, json.dumps(sealed(self._identity()), indent=1))
        with writing(self.output / manifest.TOKENIZER):
            save_tokenizer(self.tokenizer, self.output / manifest.TOKENIZER)
        if missing is None:
            return self._finish(done)
        total = sum(source.size for source in self.sources)
        with Progress(total, "preparing", "B", self.progress) as progress, self._pool() as submit:
            while missing is not None:
                self._make(missing, done, submit, progress)
                missing = self._missing(done)
        return self._finish(done)

    def _identity(self) -> dict:
        return manifest.identity(self.request, self.tokenizer.describe())

    def _done(self) -> dict[int, Segment]:
        """Whole segments of an earlier run of the same request. Raises InputError: the directory holds another corpus."""
        try:
            if (self.output / manifest.FILE).exists():
                found = Manifest.load(self.output)
                identity = manifest.identity(found.request, found.tokenizer)
                segments = dict(enumerate(found.segments))
            elif (self.output / REQUEST).exists():
                identity = unsealed(parse_json((self.output / REQUEST).read_bytes()), {"version", "request", "tokenizer"})
                names = sorted(self.work.glob("segment-*.json"))
                segments = {int(n.stem[8:]): Segment.of_note(n.read_bytes()) for n in names}
                manifest.require_same(identity, self._identity(), self.output)
            else:
                return {}
        except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"the notes in {self.work} are damaged ({error!r}); start again with --overwrite") from None
        manifest.require_same(identity, self._identity(), self.output)
        return {number: segment for number, segment in segments.items() if all(self._is_whole(s) for s in segment.shards.values())}

    def _is_whole(self, shard: Shard) -> bool:
        path = self.output / shard.file
        return path.is_file() and path.stat().st_size == shard.file_bytes and manifest.sha256_of(path) == shard.sha256

    def _missing(self, done: dict[int, Segment]) -> int | None:
        """The number of the first missing segment; None if no segment is missing."""
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
            initargs=(str(self.output / manifest.TOKENIZER), self.sources, self.request["split_seed"], self.cutting.marking),
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
        future.set_result(encoding.encode(batch, self.sources, self.tokenizer, self.request["split_seed"], self.cutting.marking))
        return future

    def _encoded(self, start: formats.Position, submit: Callable) -> Iterator[tuple[Batch, encoding.Encoded]]:
        """Results in input order; a few batches are submitted ahead, so that no worker waits."""
        waiting: collections.deque = collections.deque()
        depth = self.workers + max(2, self.workers // 2)
        for batch in batches(self.sources, start, self.request["shard_bytes"]):
            waiting.append((batch, submit(encoding.columns(batch.pieces))))
            if len(waiting) > depth:
                head, future = waiting.popleft()
                yield head, future.result()
        while waiting:
            head, future = waiting.popleft()
            yield head, future.result()

    def _make(self, number: int, done: dict[int, Segment], submit: Callable, progress: Progress) -> None:
        """Makes segments from `number` on, up to one that exists or to the end."""
        before = done.get(number - 1)
        start = formats.Position(*before.end) if before else formats.Position(0)
        writer = self._writer(number, before.open_split if before else None)
        try:
            for batch, result in self._encoded(start, submit):
                self.cutting.check(batch, result)
                writer.add(result)
                progress.reach(batch.stored)
                if batch.ends_segment:
                    done[number] = writer.close(batch.next)
                    note = self.work / f"segment-{number:05d}.json"
                    with writing(note):
                        manifest.write_atomically(note, done[number].note())
                    number += 1
                    if number in done:
                        return
                    writer = self._writer(number, writer.open_split)
        finally:
            writer.abandon()

    def _writer(self, number: int, open_split: str | None) -> SegmentWriter:
        return SegmentWriter(self.cutting, number, open_split, self.output, CorpusStore(str(self.output)).publish)

    def _finish(self, done: dict[int, Segment]) -> Manifest:
        """Writes the manifest, then removes the notes."""
        result = Manifest(self.request, self.tokenizer.describe(), [done[number] for number in range(self._count(done))])
        self.cutting.check_splits(result)
        with writing(self.output / counts.FILE):
            counts.save_counts(self.output, result)
        if (self.output / manifest.FILE).exists():
            # Segments made again must equal the earlier ones; a change of the inputs may have escaped their fingerprint.
            if Manifest.load(self.output).segments != result.segments:
                raise InputError(f"{self.output}: the inputs differ from those of the corpus; replace it with --overwrite")
        else:
            with writing(self.output / manifest.FILE):
                result.save(self.output)
        CorpusStore(str(self.output)).clear(manifest.WORK, lambda name: name == "lock")
        return Manifest.load(self.output)

    def _count(self, done: dict[int, Segment]) -> int:
        return next(number for number in range(len(done)) if done[number].end is None) + 1
