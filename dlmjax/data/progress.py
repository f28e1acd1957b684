"""A progress bar on a terminal, a line every 30 seconds elsewhere (such as in a log file)."""

import sys
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Counts towards a total with speed and time left, on stderr.

    Args:
        total: value of 100 %, in `unit`.
        what: label before the numbers.
        unit: e.g. "B" for bytes (shown with k, M, G).
        show: None shows a bar on a terminal and lines elsewhere; False shows nothing.
    """

    def __init__(self, total: int, what: str, unit: str, show: bool | None = None):
        self.total, self.what, self.unit = total, what, unit
        terminal = sys.stderr.isatty()
        self._lines = show is not False and not terminal
        self._bar = tqdm(
            total=total, desc=what, unit=unit, unit_scale=True, file=sys.stderr, disable=show is False or not terminal, leave=True
        )
        self._logged = time.monotonic()
        self._first: tuple[float, int] | None = None  # time and value of the first count
        self._now = 0

    def reach(self, value: int) -> None:
        """Sets the count, which never decreases."""
        value = max(value, self._now)
        if self._first is None:
            self._first = time.monotonic(), value
            self._bar.unpause()  # the bar's clock starts here too
            self._bar.initial = self._bar.last_print_n = value
        self._bar.update(value - self._now)
        self._now = value
        if self._lines and time.monotonic() - self._logged > SECONDS_BETWEEN_LINES:
            self._logged = time.monotonic()
            (begin, first), scaled = self._first, tqdm.format_sizeof
            # The speed is unknown before the second count.
            left = (self._logged - begin) * (self.total - value) / (value - first) if value > first else None
            clock = "" if left is None else f", {tqdm.format_interval(left)} left"
            print(f"{self.what}: {scaled(value)} of {scaled(self.total)}{self.unit}{clock}", file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()
