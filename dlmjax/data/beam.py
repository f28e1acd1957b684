"""`prepare --engine beam`: segments as independent work items on any number of machines.  Never imports jax.

There are three steps. Each keeps the results of an earlier run, or of a second execution of the same item:

  scan   one item per input file: the sizes of its pieces and the position after each -> .unfinished/scan-00000.zst
  plan   in this process: from those sizes, the starts of the segments, as one reader of all inputs would choose them
  make   one item per segment, or per several late in a compressed file: shards, counts and note -> .unfinished/segment-00000.json

Then this process writes the manifest. Workers return results in files, not in values, so that a runner requires no connection to this
process. A mistake in the input is also written to a file (.unfinished/failed-00000.json): a runner would retry an exception.
Only `on_beam` requires Apache Beam; an executor is any function that runs every item at least once.
"""

import contextlib
import functools
import hashlib
import io
import json
import pathlib
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dlmjax.data import counts, manifest
from dlmjax.data import encode as encoding
from dlmjax.data.formats import COMPRESSIONS, Position, Reader
from dlmjax.data.manifest import SPLITS, Manifest, Segment
from dlmjax.data.paths import PART, CorpusStore, Unreachable, size_of
from dlmjax.data.scan import read_scan, write_scan
from dlmjax.data.segments import Cutting, SegmentWriter, batch_bytes, batches
from dlmjax.data.tokenizers import Tokenizer, load_saved_tokenizer, save_tokenizer
from dlmjax.errors import InputError
from dlmjax.files import parse_json, sealed, unsealed
from dlmjax.progress import Progress

REQUEST = f"{manifest.WORK}/request.json"
REPEATED = 16  # bytes read per tokenized byte, at most: each item reads a compressed file from its start
SECONDS_BETWEEN_LOOKS = 5.0
Executor = Callable[[Callable, Sequence], None]


class ItemContext(NamedTuple):
    """What every item requires: the corpus directory, and the hash of its request.json."""

    store: CorpusStore
    request: str


class Task(NamedTuple):
    """One segment: its start, and the split of the document that is open there, or the start of that document."""

    number: int
    start: Position
    open_split: str | None = None
    document: Position | None = None
    known: Segment | None = None  # its entry in a manifest, if there is one


# ---- all steps, in the calling process --------------------------------------------------------------------------------------------


def prepare_in_items(
    execute: Executor, store: CorpusStore, cutting: Cutting, tokenizer: Tokenizer, request: dict, progress: bool | None = None
) -> Manifest:
    """Makes a corpus, or completes one, with every item run by `execute`.

    Args:
        execute: runs function(item) for every item at least once, in any order, on any machine.
        store: the corpus directory.
        request: as in the manifest.
        progress: as in `prepare`; counts items.
    Raises:
        InputError: as in `prepare`; Unreachable: storage did not answer.
    """
    identity = manifest.identity(request, tokenizer.describe())
    finished = _finished(store)
    earlier = finished and manifest.identity(finished.request, finished.tokenizer)
    if not finished and (note := store.read(REQUEST)) is not None:
        try:
            earlier = unsealed(parse_json(note), {"version", "request", "tokenizer"})
        except ValueError as error:
            raise InputError(f"the notes in {store.name(manifest.WORK)} are damaged ({error!r}); start again with --overwrite") from None
    if earlier:
        manifest.require_same(earlier, identity, store.root)
    store.make(manifest.WORK, manifest.TOKENIZER)
    content = json.dumps(sealed(identity), indent=1).encode()
    if store.read(REQUEST) != content:
        store.write(REQUEST, content)
    context = ItemContext(store, hashlib.sha256(content).hexdigest())
    _save_tokenizer(store, tokenizer)
    store.clear(manifest.WORK, lambda name: not name.startswith("failed-"))
    if finished:
        tasks = _tasks_of(finished)
    else:
        _carry_out(execute, functools.partial(scan, context), list(range(len(cutting.sources))), context, "scanning", "scan-", progress)
        tasks = list(plan(context, cutting))
    _carry_out(execute, functools.partial(make, context), group(tasks, cutting), context, "preparing", "segment-", progress, len(tasks))
    return _finish(context, cutting, tokenizer, request, tasks, finished)


def _carry_out(
    execute: Executor,
    function: Callable,
    items: list,
    context: ItemContext,
    label: str,
    note: str,
    progress: bool | None,
    total: int | None = None,
) -> None:
    """Runs a step; raises InputError with the first mistake in input order."""
    over = threading.Event()

    def look(bar: Progress) -> None:
        while not over.wait(SECONDS_BETWEEN_LOOKS):
            bar.reach(sum(name.startswith(note) for name in context.store.names(manifest.WORK)))

    with Progress(total or len(items), label, " items", progress) as bar:
        looking = threading.Thread(target=look, args=(bar,), daemon=True)
        looking.start()
        try:
            execute(function, items)
        finally:
            over.set()
            looking.join()
    failed = _failures(context.store)
    if failed:
        content = context.store.read(f"{manifest.WORK}/{failed[0]}")
        raise InputError(json.loads(content)["error"] if content else f"a work item failed ({failed[0]})")


def _failures(store: CorpusStore) -> list[str]:
    return [name for name in store.names(manifest.WORK) if name.startswith("failed-") and name.endswith(".json")]


def _finished(store: CorpusStore) -> Manifest | None:
    content = store.read(manifest.FILE)
    return None if content is None else Manifest.parse(content, store.name(manifest.FILE), store.root)


def _tasks_of(found: Manifest) -> list[Task]:
    """The tasks that would make a finished corpus again."""
    tasks, start, open_split = [], Position(0), None
    for number, segment in enumerate(found.segments):
        tasks.append(Task(number, start, open_split, None, segment))
        if segment.end is not None:
            start, open_split = Position(*segment.end), segment.open_split
    return tasks


def _save_tokenizer(store: CorpusStore, tokenizer: Tokenizer) -> None:
    with store.scratch() as directory:
        save_tokenizer(tokenizer, directory)
        for path in sorted(directory.iterdir()):
            name = f"{manifest.TOKENIZER}/{path.name}"
            if store.read(name) != path.read_bytes():
                store.publish(path, name)


def _finish(
    context: ItemContext, cutting: Cutting, tokenizer: Tokenizer, request: dict, tasks: list[Task], finished: Manifest | None
) -> Manifest:
    """Writes counts and manifest, then removes the notes."""
    store = context.store
    segments = []
    for task in tasks:
        segment = task.known or _note(store, task.number)
        if segment is None:
            raise InputError(f"{store.root}: segment {task.number:,} was not made by the runner; repeat the same command to continue")
        segments.append(segment)
    result = Manifest(request, tokenizer.describe(), segments)
    cutting.check_splits(result)
    if "train" in result.splits:
        stored = store.read(counts.FILE)
        if stored is None or counts.fitting(counts.parse(stored), result) is None:
            store.write(counts.FILE, counts.content(_sum_counts(store, result)))
    if finished is None:
        store.write(manifest.FILE, result.content())
    store.clear(manifest.WORK, lambda name: name == "lock")
    store.drop(manifest.WORK)
    store.clear("", lambda name: not manifest.LEFTOVER.fullmatch(name))
    return finished or result


def _sum_counts(store: CorpusStore, result: Manifest) -> np.ndarray:
    """Counts of the train split: the sum of the items' counts; segments without them (of another engine) are counted here."""
    total_V = np.zeros(result.tokenizer["vocab_size"], np.int64)
    for number, segment in enumerate(result.segments):
        if "train" not in segment.shards:
            continue
        note = store.read(_counts_name(number))
        part_V = None if note is None else counts.parse(note)
        if part_V is None or int(part_V.sum()) != segment.shards["train"].tokens:
            with tempfile.TemporaryDirectory() as directory:
                store.fetch(segment.shards["train"].file, pathlib.Path(directory) / segment.shards["train"].file)
                one = Manifest(result.request, result.tokenizer, [segment])
                part_V = counts.count_tokens(pathlib.Path(directory), one, "train")
        total_V += part_V
    return total_V


# ---- the plan: where segments start -----------------------------------------------------------------------------------------------


def plan(context: ItemContext, cutting: Cutting) -> Iterator[Task]:
    """The starts of the segments, from the scans, by the rule of `segments.batches`. Memory: one block of a scan."""
    full = batch_bytes(cutting.shard_bytes)
    number = size = in_segment = 0
    waiting: Task | None = Task(0, Position(0))  # yielded once more text follows; the first one always
    for file in range(len(cutting.sources)):
        document = Position(file)
        for block in read_scan(context.store, _scan_name(file)):
            if waiting:
                yield waiting
                waiting = None
            ends = np.cumsum(block.sizes, dtype=np.int64)
            starts = np.maximum.accumulate(np.where(block.inside, -1, np.arange(len(ends))))
            before = 0
            while (j := int(np.searchsorted(ends, before + full - size))) < len(ends):
                in_segment += size + int(ends[j]) - before
                before, size = int(ends[j]), 0
                if in_segment < cutting.shard_bytes:
                    continue
                in_segment, number = 0, number + 1
                opened = (document if starts[j] < 0 else block.position(file, int(starts[j]))) if block.inside[j] else None
                task = Task(number, block.position(file, j), None, opened)
                if j + 1 < len(ends):
                    yield task
                else:
                    waiting = task
            size += int(ends[-1]) - before
            document = document if starts[-1] < 0 else block.position(file, int(starts[-1]))
    if waiting and waiting.number == 0:
        yield waiting  # no text: one empty segment, as with one reader


def group(tasks: list[Task], cutting: Cutting) -> list[list[Task]]:
    """Tasks -> items: one task each; several consecutive ones where a compressed file would otherwise be read many times."""
    items: list[list[Task]] = []
    for task in tasks:
        first = items[-1][0] if items else None
        again = first and first.start.file == task.start.file and cutting.sources[task.start.file].name.endswith(COMPRESSIONS)
        if again and (task.start.offset - first.start.offset) * REPEATED < first.start.offset:
            items[-1].append(task)
        else:
            items.append([task])
    return items


# ---- the work items, on any machine ---------------------------------------------------------------------------------------------------


def scan(context: ItemContext, file: int) -> None:
    """Writes the scan of one input file. Memory: one block of pieces, about 25 MB."""
    try:
        cutting = _cutting(context)
        if size_of(context.store.name(_scan_name(file))) is None:
            write_scan(context.store, _scan_name(file), cutting.sources, file)
    except Unreachable:
        raise  # the runner retries
    except InputError as error:
        _fail(context.store, f"scan-{file:05d}", error)


def make(context: ItemContext, tasks: list[Task]) -> None:
    """Makes those of some consecutive segments that are missing or damaged.

    Memory: a batch of 1 MiB and its tokens. Disk of the machine: the shards of a segment.
    """
    number = tasks[0].number
    try:
        if any(int(name.removesuffix(".json").rsplit("-", 1)[1]) < number for name in _failures(context.store)):
            return  # an earlier mistake ends the preparation
        missing = [task for task in tasks if not _is_whole(context.store, task)]
        if missing:
            with context.store.scratch() as directory:
                for task, segment, counts_V in _segments(context, missing[0], directory):
                    number = task.number
                    known = tasks[number - tasks[0].number].known
                    if known and known != segment:
                        raise InputError(f"{context.store.root}: the inputs differ from those of the corpus; replace it with --overwrite")
                    context.store.write(_counts_name(number), counts.content(counts_V))
                    context.store.write(_note_name(number), segment.note())
                    if number >= missing[-1].number:
                        return
    except Unreachable:
        raise
    except InputError as error:
        _fail(context.store, f"segment-{number:05d}", error)


def _segments(context: ItemContext, task: Task, directory: pathlib.Path) -> Iterator[tuple[Task, Segment, np.ndarray]]:
    """Publishes the segments from a task on; yields them with the counts of their train shards."""
    cutting = _cutting(context)
    tokenizer = _tokenizer(context)
    writer: SegmentWriter | None = None
    try:
        for batch in batches(cutting.sources, task.start, cutting.shard_bytes):
            if writer is None:
                open_split = task.open_split or _open_split(cutting, task)
                writer = SegmentWriter(cutting, task.number, open_split, directory, context.store.publish, tokenizer.vocab_size)
            result = encoding.encode(encoding.columns(batch.pieces), cutting.sources, tokenizer, cutting.split_seed, cutting.marking)
            cutting.check(batch, result)
            writer.add(result)
            if batch.ends_segment:
                segment = writer.close(batch.next)
                yield task, segment, writer.counts_V
                task = Task(task.number + 1, batch.next, segment.open_split) if batch.next else task
                writer = None
    finally:
        if writer:
            writer.abandon()


def _open_split(cutting: Cutting, task: Task) -> str | None:
    """The split of the document that is open at the start of a segment, from its first piece."""
    if task.document is None:
        return None
    piece = next(iter(Reader(cutting.sources, task.document)))
    share = encoding.document_share(encoding.cut(piece.data)[0], cutting.split_seed)
    return SPLITS[cutting.split_of(piece.at.file, share)]


def _is_whole(store: CorpusStore, task: Task) -> bool:
    segment = task.known or _note(store, task.number)
    return segment is not None and all(store.sha256(shard.file) == shard.sha256 for shard in segment.shards.values())


def _note(store: CorpusStore, number: int) -> Segment | None:
    content = store.read(_note_name(number))
    try:
        return None if content is None else Segment.of_note(content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _fail(store: CorpusStore, name: str, error: InputError) -> None:
    store.write(f"{manifest.WORK}/failed-{name}.json", json.dumps({"error": str(error)}).encode())


def _scan_name(file: int) -> str:
    return f"{manifest.WORK}/scan-{file:05d}.zst"


def _note_name(number: int) -> str:
    return f"{manifest.WORK}/segment-{number:05d}.json"


def _counts_name(number: int) -> str:
    return f"{manifest.WORK}/counts-{number:05d}.npy"


@functools.lru_cache(maxsize=4)
def _cutting(context: ItemContext) -> Cutting:
    """The options in the request that the calling process wrote."""
    content = context.store.read(REQUEST)
    if content is None or hashlib.sha256(content).hexdigest() != context.request:
        raise InputError(f"{context.store.root} is being prepared by another command; wait for it, or choose another --output")
    return Cutting.from_request(json.loads(content)["request"])


@functools.lru_cache(maxsize=4)
def _tokenizer(context: ItemContext) -> Tokenizer:
    """The tokenizer in the output directory, loaded once per process."""
    with tempfile.TemporaryDirectory() as directory:
        for name in context.store.names(manifest.TOKENIZER):
            if not name.endswith(PART):
                context.store.fetch(f"{manifest.TOKENIZER}/{name}", pathlib.Path(directory) / name)
        return load_saved_tokenizer(pathlib.Path(directory))


# ---- Apache Beam ---------------------------------------------------------------------------------------------------------------------


def on_beam(flags: Sequence[str], checked: Sequence[str] = ()) -> Executor:
    """An executor that runs each step as a Beam pipeline.

    Args:
        flags: flags of Beam's PipelineOptions, such as --runner=DataflowRunner (default: DirectRunner); unknown ones go to the runner.
        checked: flags that must be known to Beam, since they may be misspelt flags of dlmjax.
    Raises:
        InputError: Apache Beam is not installed or refuses the flags; from the executor: the pipeline failed.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise InputError(f"--engine beam requires Apache Beam ({error}); install it with: pip install 'dlmjax[beam]'") from None
    options = _options(PipelineOptions, flags, checked)

    def execute(function: Callable, items: Sequence) -> None:
        """One pipeline; returns when all items are done."""
        try:
            with beam.Pipeline(options=options) as pipeline:
                created = pipeline | "Items" >> beam.Create(list(items))
                # Without a reshuffle a runner may keep all items on the machine that listed them.
                created | "Distribute" >> beam.Reshuffle() | "Work" >> beam.Map(function)
        except InputError:
            raise
        except Exception as error:  # each runner has its own
            reason = (str(error).strip().splitlines() or [""])[-1][:300]
            raise InputError(
                f"the Beam pipeline failed ({type(error).__name__}: {reason}); finished segments are kept; repeat the command to continue"
            ) from error

    return execute


def _options(kind: type, flags: Sequence[str], checked: Sequence[str]):
    """PipelineOptions of all flags. Raises InputError where Beam's parser exits."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            if checked:
                known = kind(list(checked)).get_all_options()
                everything = kind(list(checked)).get_all_options(retain_unknown_options=True)
                unknown = sorted(set(everything) - set(known))
                if unknown:
                    raise InputError(f"--{unknown[0]} is not a flag of dlmjax prepare or of Beam; give flags of a runner after --")
            options = kind([*checked, *flags])
            options.get_all_options(retain_unknown_options=True)
    except SystemExit:
        line = (errors.getvalue().strip().splitlines() or ["?"])[-1]
        raise InputError(f"the flags for Beam are not valid ({line}); see the documentation of the runner") from None
    return options
