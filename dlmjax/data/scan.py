"""Scans: the positions of all pieces of an input file, from which segments are planned before tokenization.  Never imports jax.

    blocks of at most BLOCK pieces, one zstandard stream with a checksum; each block is four arrays (.npy):
    sizes (uint32), differences of offset and of line between pieces (uint64), inside (bool): the position after each piece
    an empty block is the end

A scan depends only on the file, and has about 2.5 bytes per piece.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from dlmjax.data.formats import Position, Reader, Source
from dlmjax.data.paths import CorpusStore, open_binary
from dlmjax.errors import InputError

BLOCK = 1 << 17


@dataclasses.dataclass(frozen=True)
class Block:
    """P consecutive pieces of a file."""

    sizes: np.ndarray  # [P] bytes
    offsets: np.ndarray  # [P] of the position after each piece, like lines and inside
    lines: np.ndarray  # [P]
    inside: np.ndarray  # [P] bool

    def position(self, file: int, piece: int) -> Position:
        """The position after a piece."""
        return Position(file, int(self.offsets[piece]), int(self.lines[piece]), bool(self.inside[piece]))


def write_scan(store: CorpusStore, name: str, sources: Sequence[Source], file: int) -> None:
    """Reads one input file and publishes its scan. Raises InputError for a file that cannot be read to its end."""
    import zstandard

    # Later files are not read.
    reader = iter(Reader(list(sources[: file + 1]), Position(file)))
    compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
    with store.replaced(name) as stored, compressor.stream_writer(stored, closefd=False) as stream:
        last, pieces = (0, 0), [()]
        while pieces:
            block = itertools.islice(reader, BLOCK)
            pieces = [(len(piece.data), piece.next.offset, piece.next.line, piece.next.inside) for piece in block]
            last = _write_block(stream, pieces, last)  # an empty block is the end


def _write_block(stream, rows: list[tuple], last: tuple[int, int]) -> tuple[int, int]:
    sizes, offsets, lines, inside = zip(*rows, strict=True) if rows else ((), (), (), ())
    for values, dtype in (
        (np.array(sizes, np.int64), np.uint32),
        (np.diff(np.array(offsets, np.int64), prepend=last[0]), np.uint64),
        (np.diff(np.array(lines, np.int64), prepend=last[1]), np.uint64),
        (np.array(inside, np.bool_), np.bool_),
    ):
        np.lib.format.write_array(stream, values.astype(dtype), allow_pickle=False)
    return (offsets[-1], lines[-1]) if rows else last


def read_scan(store: CorpusStore, name: str) -> Iterator[Block]:
    """The blocks of a scan. Raises InputError: it is missing or damaged."""
    import zstandard

    damaged = f"the scan {store.name(name)} is missing or damaged; delete it and repeat the same command"
    try:
        with open_binary(store.name(name)) as stored, zstandard.ZstdDecompressor().stream_reader(stored) as stream:
            offset = line = 0
            while True:
                sizes, offsets, lines, inside = (np.lib.format.read_array(stream, allow_pickle=False) for _ in range(4))
                if len(sizes) == 0:
                    return
                offsets, lines = offset + np.cumsum(offsets.astype(np.int64)), line + np.cumsum(lines.astype(np.int64))
                yield Block(sizes, offsets, lines, inside)
                offset, line = int(offsets[-1]), int(lines[-1])
    except (FileNotFoundError, EOFError, ValueError, zstandard.ZstdError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{damaged} ({' '.join(str(error).split())})") from None
