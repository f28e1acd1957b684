"""A verified local copy of a corpus at a URL: training reads records in random order.  Never imports jax.

    CACHE/<hash of the manifest>/    manifest.json, tokenizer/, counts.npy and the shards of the splits that were opened

CACHE is $DLMJAX_CACHE, by default ~/.cache/dlmjax. A copy is named by a hash of the manifest, so a corpus that is replaced at its URL gets
another copy, and the processes of a machine share one. Copies are not deleted automatically.
"""

import concurrent.futures
import contextlib
import fcntl
import hashlib
import os
import pathlib
import shutil

from dlmjax.data import counts, manifest
from dlmjax.data.manifest import Manifest, Shard
from dlmjax.data.paths import CorpusStore
from dlmjax.data.tokenizers import load_saved_tokenizer
from dlmjax.errors import InputError, NoSplit
from dlmjax.files import inside, open_lock
from dlmjax.progress import Progress

AT_ONCE = 8  # files that are fetched concurrently


def cache_directory() -> pathlib.Path:
    """The directory of all copies: $DLMJAX_CACHE, else ~/.cache/dlmjax."""
    return pathlib.Path(os.environ.get("DLMJAX_CACHE") or pathlib.Path.home() / ".cache" / "dlmjax")


def stage(url: str, split: str, verify: bool = False) -> pathlib.Path:
    """The local copy of one split of a corpus at a URL; fetches missing files.

    Args:
        url: a corpus directory, such as gs://BUCKET/books.
        split: name of the split.
        verify: also compare existing shards with their sha256; fetched ones are always compared.
    Raises:
        InputError: no corpus, no such split, a shard that differs from the manifest, no space left; Unreachable.
    """
    store = CorpusStore(url)
    content = store.read(manifest.FILE)
    if content is None:
        what = "an unfinished preparation" if store.names(manifest.WORK) else f"no prepared corpus (no {manifest.FILE})"
        raise InputError(f"{url} holds {what}; make one with: dlmjax prepare --engine beam --input FILES... --output {url}")
    found = Manifest.parse(content, store.name(manifest.FILE), url)
    if split not in found.splits:
        raise NoSplit(f"{url} has no split {split!r}; it has: {', '.join(found.splits)}")
    directory = cache_directory() / hashlib.sha256(content).hexdigest()[:32]
    try:
        (directory / manifest.TOKENIZER).mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(directory):
            _fetch_all(store, directory, found, split, verify)
            manifest.write_atomically(directory / manifest.FILE, content)
    except OSError as error:
        raise InputError(f"{url} cannot be copied to {directory} ({error}); set DLMJAX_CACHE to another directory") from None
    return directory


@contextlib.contextmanager
def _one_at_a_time(directory: pathlib.Path):
    """Holds the lock of the copy, so that only one process fetches, and removes files that killed processes left."""
    with open_lock(directory / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        manifest.remove_leftovers(directory)
        yield


def _fetch_tokenizer(store: CorpusStore, directory: pathlib.Path, found: Manifest) -> None:
    """Fetches the tokenizer's files, unless the local ones have the hash in the manifest."""
    folder = directory / manifest.TOKENIZER
    with contextlib.suppress(InputError):
        if load_saved_tokenizer(folder).hash == found.tokenizer["hash"]:
            return
    for name in store.names(manifest.TOKENIZER):
        store.fetch(f"{manifest.TOKENIZER}/{name}", inside(folder, name, store.root))


def _fetch_all(store: CorpusStore, directory: pathlib.Path, found: Manifest, split: str, verify: bool) -> None:
    _fetch_tokenizer(store, directory, found)
    if not (directory / counts.FILE).exists():
        with contextlib.suppress(FileNotFoundError):  # the tokens are then counted when the counts are used
            store.fetch(counts.FILE, directory / counts.FILE)
    missing = [shard for shard in found.shards(split) if not _is_here(directory / shard.file, shard, verify)]
    size = sum(shard.file_bytes for shard in missing)
    free = shutil.disk_usage(directory).free
    if size > free:
        raise InputError(
            f"{store.root}: the split {split!r} requires {size:,} bytes in {directory}, which has {free:,} left; set DLMJAX_CACHE to "
            "another directory, or mount the bucket and give its directory"
        )
    with Progress(size, "fetching", "B") as progress, concurrent.futures.ThreadPoolExecutor(AT_ONCE) as threads:
        fetched = 0
        for shard in threads.map(lambda shard: _fetch(store, directory, shard, found), missing):
            fetched += shard.file_bytes
            progress.reach(fetched)


def _is_here(path: pathlib.Path, shard: Shard, verify: bool) -> bool:
    return path.is_file() and path.stat().st_size == shard.file_bytes and (not verify or manifest.sha256_of(path) == shard.sha256)


def _fetch(store: CorpusStore, directory: pathlib.Path, shard: Shard, found: Manifest) -> Shard:
    """Fetches a shard. It gets its name only if its size and hash equal those in the manifest."""
    again = f"prepare it again with: {found.prepare_command(store.root)} --engine beam (nothing else was changed)"
    arrived = directory / f"{shard.file}.fetched"
    try:
        store.fetch(shard.file, arrived)
    except FileNotFoundError:
        raise InputError(f"{store.name(shard.file)} is missing; {again}") from None
    if arrived.stat().st_size != shard.file_bytes or manifest.sha256_of(arrived) != shard.sha256:
        arrived.unlink()
        raise InputError(f"{store.name(shard.file)} was changed since it was prepared (its sha256 differs from the manifest's); {again}")
    arrived.replace(directory / shard.file)
    return shard
