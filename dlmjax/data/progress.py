"""A progress bar on a terminal, a line now and then elsewhere (a log file should not fill with bars)."""

import sys
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Counts towards a total with speed and time left, on stderr.

    Args:
        total: what 100 % is, in `unit`.
        what: said before the numbers.
        unit: e.g. "B" for bytes (shown with k, M, G).
        show: None decides by whether stderr is a terminal; False is silent.
    """

    def __init__(self, total: int, what: str, unit: str, show: bool | None = None):
        self.total, self.what, self.unit = total, what, unit
        terminal = sys.stderr.isatty()
        self._lines = show is not False and not terminal
        self._bar = tqdm(
            total=total, desc=what, unit=unit, unit_scale=True, file=sys.stderr, disable=show is False or not terminal, leave=True
        )
        self._said = time.monotonic()
        self._first: tuple[float, int] | None = None  # when the first count came, and which
        self._now = 0

    def reach(self, value: int) -> None:
        """Sets the count (never back)."""
        value = max(value, self._now)
        if self._first is None:
            self._first = time.monotonic(), value
            self._bar.unpause()  # the bar's clock begins here, too
            self._bar.initial = self._bar.last_print_n = value
        self._bar.update(value - self._now)
        self._now = value
        if self._lines and time.monotonic() - self._said > SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            (begin, first), scaled = self._first, tqdm.format_sizeof
            # Until a second count comes, nobody knows how fast they come.
            left = (self._said - begin) * (self.total - value) / (value - first) if value > first else None
            clock = "" if left is None else f", {tqdm.format_interval(left)} left"
            print(f"{self.what}: {scaled(value)} of {scaled(self.total)}{self.unit}{clock}", file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()
