"""One split of a prepared corpus as a stream of tokens with random access.

The stream is the split's documents in sequence, each followed by one EOS; shards are consecutive parts of it. Reading n tokens at an offset
costs the ArrayRecord records that hold them (4,096 tokens each), at any offset. Supervised data have a second column, the roles
(`roles.py`), with the same offsets: a record holds its tokens, then their roles.

Shapes: B rows, L tokens of a row, S shards, D documents.
"""

import functools
import hashlib
import os
import pathlib
import threading
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int, UInt8

from dlmjax.data import counts, manifest
from dlmjax.data.manifest import Manifest, Shard
from dlmjax.data.paths import is_url
from dlmjax.data.roles import ALL_SCORED, END
from dlmjax.data.stage import cache_directory, stage
from dlmjax.data.token_budget import parse_path
from dlmjax.data.tokenizers import Tokenizer, load_saved_tokenizer
from dlmjax.errors import InputError, NoSplit

OPEN_SHARDS = 512  # most readers that are open at a time; the usual limit is 1,024 files
_COUNTED = 1 << 20  # tokens read at a time when the start of the stream is counted


class Corpus:
    """One split of a prepared corpus, from `Corpus.open`. Several threads may read it.

    tokens: token budget: the stream ends after this many tokens (`token_budget.py`); None = all.
    Raises InputError: the split has fewer tokens.
    """

    def __init__(self, directory: pathlib.Path, split: str, manifest: Manifest, tokenizer: Tokenizer, tokens: int | None = None):
        self.directory, self.split, self.manifest, self.tokenizer, self.token_budget = directory, split, manifest, tokenizer, tokens
        self.shards = manifest.shards(split)
        self._sums = manifest.counts(split)
        if tokens is not None and tokens > self._sums["tokens"]:
            raise InputError(f"{directory} ({split}) has {self._sums['tokens']:,} tokens, not {tokens:,}; lower tokens=...")
        self.num_tokens: int = self._sums["tokens"] if tokens is None else tokens
        self.dtype = np.dtype(manifest.dtype)
        self.has_roles: bool = manifest.has_roles
        self._starts_S = np.concatenate([[0], np.cumsum([shard.tokens for shard in self.shards], dtype=np.int64)])
        self._readers: dict[int, tuple] = {}  # shard -> reader, lock; the most recently used last
        self._lock = threading.Lock()

    @classmethod
    def open(cls, directory: str | os.PathLike, split: str = "train", verify: bool = False) -> "Corpus":
        """Opens a split, and compares the size of every shard with the manifest; with `verify` also its sha256 (about 1 GB/s).

        A corpus at a URL (gs://, s3://, ...) is first copied to this machine, see `stage`. `DIR(tokens=N)` is the first N tokens of the
        split "train"; other splits are whole, see `token_budget.py`.
        Raises InputError: no corpus, unfinished, another version, no such split, a shard missing or changed, fewer tokens.
        """
        directory, tokens = parse_path(directory)
        directory = stage(os.fspath(directory), split, verify) if is_url(directory) else pathlib.Path(directory)
        found = Manifest.load(directory)
        if split not in found.splits:
            raise NoSplit(f"{directory} has no split {split!r}; it has: {', '.join(found.splits)}")
        for shard in found.shards(split):
            _check(directory, shard, found, verify)
        tokenizer = load_saved_tokenizer(directory / manifest.TOKENIZER)
        if differing := tokenizer.describe().items() - found.tokenizer.items():
            name, here = min(differing)
            raise InputError(
                f"{directory / manifest.FILE} names a tokenizer with {name} {found.tokenizer.get(name)!r}, but the folder "
                f"{manifest.TOKENIZER}/ has one with {here!r}; restore the one that was changed, or {_again(directory, found)}"
            )
        opened = cls(directory, split, found, tokenizer, tokens if split == "train" else None)
        if verify:
            opened._require_counts()
        return opened

    def __repr__(self) -> str:
        return f"Corpus({str(self.directory)!r}, {self.split!r}: {self.num_documents:,} documents, {self.num_tokens:,} tokens)"

    @property
    def fingerprint(self) -> str:
        """A hash of the stream's content: it depends on text, tokens and token budget, but not on the directory."""
        parts = [str(self.num_tokens), self.manifest.dtype, *(shard.sha256 for shard in self.shards)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]

    def read(self, offset: int, count: int) -> Int[np.ndarray, "L"]:
        """`count` tokens of the stream from `offset` on (int32). Raises InputError: the range is outside the stream."""
        return self._read(offset, count)[0]

    def read_roles(self, offset: int, count: int) -> UInt8[np.ndarray, "L"]:
        """The roles of `count` tokens from `offset` on, as in `roles.py` without bit 6; all scored text where the corpus has no roles.

        Raises InputError: the range is outside the stream."""
        return self._read(offset, count)[1] & ~np.uint8(END)

    def _read(self, offset: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        if not 0 <= offset <= offset + count <= self.num_tokens:
            raise InputError(f"{self.directory} ({self.split}): tokens {offset:,} to {offset + count:,} of a stream of {self.num_tokens:,}")
        tokens_1L, roles_1L = np.empty((1, count), np.int32), np.full((1, count), ALL_SCORED, np.uint8)
        self.read_into(tokens_1L, np.array([0]), np.array([offset]), np.array([count]), roles_1L)
        return tokens_1L[0], roles_1L[0]

    def read_into(
        self,
        out_BL: Int[np.ndarray, "B L"],
        rows_N: Int[np.ndarray, "N"],
        offsets_N: Int[np.ndarray, "N"],
        counts_N: Int[np.ndarray, "N"],
        roles_BL: UInt8[np.ndarray, "B L"] | None = None,
    ) -> None:
        """Fills out_BL[rows[n], :counts[n]] with the stream from offsets[n] on; the stream is read as a ring.

        roles_BL: filled at the same places with the stored bytes of the roles, bit 6 included, if the corpus has them."""
        size = manifest.RECORD_TOKENS
        # shard -> record -> targets of its tokens: (row, column, first token in the record, number of tokens)
        wanted: dict[int, dict[int, list[tuple[int, int, int, int]]]] = {}
        for row, offset, count in zip(rows_N.tolist(), offsets_N.tolist(), counts_N.tolist(), strict=True):
            column = 0
            while column < count:
                at = (offset + column) % self.num_tokens
                number = int(np.searchsorted(self._starts_S, at, side="right")) - 1
                local = at - int(self._starts_S[number])
                record, first = divmod(local, size)
                here = min(count - column, size - first, self.shards[number].tokens - local)
                wanted.setdefault(number, {}).setdefault(record, []).append((row, column, first, here))
                column += here
        for number, records in wanted.items():
            for data, (record, requests) in zip(self._read_records(number, list(records)), records.items(), strict=True):
                tokens, roles = self._columns(data, number, record)
                for row, column, first, here in requests:
                    out_BL[row, column : column + here] = tokens[first : first + here]
                    if roles is not None and roles_BL is not None:
                        roles_BL[row, column : column + here] = roles[first : first + here]

    def _columns(self, data: bytes, number: int, record: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The tokens of a record and their roles. Raises InputError: the record has another size."""
        count = min(manifest.RECORD_TOKENS, self.shards[number].tokens - record * manifest.RECORD_TOKENS)
        if len(data) != (wanted := count * (self.dtype.itemsize + self.has_roles)):
            file, kind = self.directory / self.shards[number].file, "tokens with their roles" if self.has_roles else "tokens"
            size = "short" if len(data) < wanted else "long"
            wrong = f"{file} has a record that is too {size}: {len(data):,} bytes, not the {wanted:,} of {count:,} {kind}"
            raise InputError(f"{wrong}; {_again(self.directory, self.manifest)}")
        tokens = np.frombuffer(data, self.dtype, count)
        return tokens, np.frombuffer(data, np.uint8, count, count * self.dtype.itemsize) if self.has_roles else None

    def document_ends(self) -> Iterator[np.ndarray]:
        """Offsets after each document's EOS, in order: one int64 array [D] per shard."""
        for ends_D in self._all_ends():
            whole = int(np.searchsorted(ends_D, self.num_tokens))
            yield np.minimum(ends_D[: whole + 1], self.num_tokens)
            if whole < len(ends_D):
                return

    def _all_ends(self) -> Iterator[np.ndarray]:
        """As `document_ends` without a token budget."""
        for number, shard in enumerate(self.shards):
            records = self._read_records(number, list(range(shard.token_records, shard.records)))
            lengths = np.concatenate([np.zeros(0, np.uint32), *(np.frombuffer(record, np.uint32) for record in records)])
            yield np.cumsum(lengths, dtype=np.int64) + int(self._starts_S[number])

    def documents(self) -> Iterator[str]:
        """The texts of the split, in order (char27: cleaned text). For statistics and inspection."""
        begin = 0
        for ends_D in self.document_ends():
            for end in ends_D.tolist():
                yield self.tokenizer.decode(self.read(begin, end - begin))
                begin = end

    @functools.cached_property
    def num_documents(self) -> int:
        """Number of documents of the stream; with a token budget the last one may be cut."""
        return self._sums["documents"] if self.token_budget is None else sum(len(ends_D) for ends_D in self.document_ends())

    @functools.cached_property
    def num_bytes(self) -> int:
        """UTF-8 bytes of the stream's text. Raises InputError: the manifest differs from the tokens."""
        if not self.manifest.checked:
            self._require_counts()
        if self.token_budget is None:
            return self._sums["text_bytes"]
        return int(self.counts_V @ self.tokenizer.byte_lengths_V.astype(np.int64))

    @functools.cached_property
    def counts_V(self) -> Int[np.ndarray, "V"]:
        """Number of occurrences of each token in the stream, EOS included (int64), for schedules by frequency."""
        if self.token_budget is not None:
            starts = range(0, self.token_budget, _COUNTED)
            parts = (self.read(start, min(_COUNTED, self.token_budget - start)) for start in starts)
            return sum(np.bincount(part, minlength=self.tokenizer.vocab_size) for part in parts)
        return counts.corpus_counts(self.directory, self.manifest, self.split)

    def verify(self) -> None:
        """Compares every shard of the split with its sha256, and the manifest's counts with the tokens.

        Raises InputError with the first difference.
        """
        for shard in self.shards:
            _check(self.directory, shard, self.manifest, by_hash=True)
        self._require_counts()

    def _require_counts(self) -> None:
        """Raises InputError: the manifest's number of bytes, documents or tokens of the split differs from its shards."""
        counts_V = counts.count_tokens(self.directory, self.manifest, self.split)
        lengths_V = self.tokenizer.byte_lengths_V.astype(np.int64)
        # A chat template may write the token of EOS after every answer.
        documents = sum(map(len, self._all_ends())) if self.has_roles else counts_V[self.tokenizer.eos_id]
        found = {"tokens": counts_V.sum(), "documents": documents, "text_bytes": counts_V @ lengths_V}
        for name, number in found.items():
            if number != self._sums[name]:
                raise InputError(
                    f"{self.directory / manifest.FILE} lists {self._sums[name]:,} {name} in {self.split}, but its shards have "
                    f"{number:,}; {_again(self.directory, self.manifest)}"
                )

    def _read_records(self, number: int, records: list[int]) -> list[bytes]:
        if not records:
            return []
        try:
            reader, lock = self._reader(number)
            # One record at a time in this thread: reading ten of 8 kB in the library's thread pool takes five times as long.
            with lock:
                return [reader.seek(record) or reader.read() for record in records]
        except (RuntimeError, ValueError, IndexError, OSError) as error:
            _check(self.directory, self.shards[number], self.manifest, by_hash=True)
            raise InputError(f"{self.directory / self.shards[number].file} cannot be read ({error})") from None

    def _reader(self, number: int) -> tuple:
        """The reader of a shard and its lock (a reader has a position in its file, so calls take turns)."""
        with self._lock:
            found = self._readers.pop(number, None)
            if found is None:
                from array_record.python.array_record_module import ArrayRecordReader

                path = str(self.directory / self.shards[number].file)
                # Random access: read-ahead would only cost time.
                found = (ArrayRecordReader(path, "readahead_buffer_size:0,max_parallelism:0"), threading.Lock())
                if (records := found[0].num_records()) != self.shards[number].records:
                    raise ValueError(f"it has {records:,} records, but {self.shards[number].records:,} in the manifest")
                if len(self._readers) >= OPEN_SHARDS:
                    del self._readers[next(iter(self._readers))]  # the least recently used one; its file closes with its last user
            self._readers[number] = found
            return found


def _again(directory: pathlib.Path, found: Manifest) -> str:
    """How to repair a corpus, as the end of a message: a copy of one at a URL is fetched again."""
    if directory.parent == cache_directory():
        return f"delete {directory}, and it is fetched again"
    return f"prepare it again with: {found.prepare_command(directory)} (nothing else was changed)"


def _check(directory: pathlib.Path, shard: Shard, found: Manifest, by_hash: bool) -> None:
    """Compares a shard file with the manifest. Raises InputError with the flaw and the command that makes the shard again."""
    path = directory / shard.file
    again = _again(directory, found)
    if not path.is_file():
        raise InputError(f"{path} is missing; {again}")
    size = path.stat().st_size
    if size < shard.file_bytes:
        # All records but the last have equal sizes, so the share of bytes gives the number of whole ones.
        left = shard.records * size // shard.file_bytes
        raise InputError(f"{path} ends after {left:,} of {shard.records:,} records; {again}")
    if size > shard.file_bytes:
        raise InputError(f"{path} has {size:,} bytes, but {shard.file_bytes:,} in the manifest; {again}")
    if by_hash and manifest.sha256_of(path) != shard.sha256:
        raise InputError(f"{path} was changed since it was prepared (its sha256 differs from the manifest's); {again}")
