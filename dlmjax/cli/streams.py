"""Standard output and error that can fail while a command works: the command goes on, and writes its files.

A reader that leaves (`dlmjax evaluate --json F ... | head -1`), a full disk behind `> FILE` and a terminal that is gone make a write fail.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from dlmjax.errors import READER_LEFT
from dlmjax.files import why


class LastingStream:
    """A text stream whose writes do not fail: what cannot be written is dropped, with all that follows.

    failure: the error of the first write that failed; None where all were written.
    """

    def __init__(self, stream: Any):
        self._stream = stream
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """Writes or drops the text; returns its length."""
        return self._attempt(lambda: self._stream.write(text), len(text))

    def flush(self) -> None:
        """Hands all that was written to the operating system, or drops it."""
        self._attempt(self._stream.flush, None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _attempt(self, call: Callable[[], Any], dropped: Any) -> Any:
        try:
            return call()
        except OSError as error:
            if self.failure is None:
                self.failure = error
                # Python keeps what it could not write, and tries again at its end; libraries and child processes write to the same number.
                with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
                    os.dup2(nowhere.fileno(), self._stream.fileno())
            return dropped


@contextlib.contextmanager
def lasting() -> Iterator[Callable[[int], int]]:
    """Standard output and error as lasting streams. Gives the exit code of a command from its own: where that is 0 and standard output
    failed, READER_LEFT of a closed pipe, and 2 with one line on standard error of any other cause."""
    before = sys.stdout, sys.stderr
    out, error = streams = [None if stream is None else LastingStream(stream) for stream in before]  # None: closed from the start

    def code_of(code: int) -> int:
        if out is not None:
            out.flush()
        if code or out is None or out.failure is None:
            return code
        if out.failure.errno == errno.EPIPE:
            return READER_LEFT
        print(f"dlmjax: standard output cannot be written: {why(out.failure)}; all files were written", file=error)
        return 2

    sys.stdout, sys.stderr = streams
    try:
        yield code_of
    finally:
        for stream in filter(None, streams):
            stream.flush()
        sys.stdout, sys.stderr = before


def nobody_reads() -> bool:
    """Whether standard output has failed: a command that only shows something has nothing left to do."""
    return getattr(sys.stdout, "failure", None) is not None
