"""A progress bar on a terminal, a line every 30 seconds elsewhere (such as in a log file). Both go to stderr."""

import sys
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Counts towards a total, with speed and time left; both are estimated from the first count on, which follows start-up.

    Args:
        total: value of 100 %, in `unit`.
        label: text before the numbers.
        unit: e.g. "B" for bytes (shown with k, M, G).
        show: None shows a bar on a terminal and lines elsewhere; False shows nothing.
        initial: value at the start.
    """

    scaled, last_line = True, False  # numbers with k, M, G; a line at the total, however soon

    def __init__(self, total: int, label: str, unit: str, show: bool | None = None, initial: int = 0):
        self._total, self._label, self._unit = total, label, unit
        shown, terminal = show is not False, sys.stderr.isatty()
        self._on_terminal, self._lines = shown and terminal, shown and not terminal
        self._bar = tqdm(
            total=total,
            initial=initial,
            desc=label,
            unit=unit,
            unit_scale=self.scaled,
            dynamic_ncols=True,
            file=sys.stderr,
            disable=not self._on_terminal,
        )
        self._logged = time.monotonic()
        self._first: tuple[float, int] | None = None  # time and value of the first count
        self._now, self._values = initial, ""

    def reach(self, value: int, values: str | None = None) -> None:
        """Sets the count, which never decreases. values: text shown next to it, until the next such text."""
        value, time_now = max(value, self._now), time.monotonic()
        if values is not None:
            self._values = values
            self._bar.set_postfix_str(values, refresh=False)
        if self._first is None:
            self._first = time_now, value
            self._bar.unpause()  # the bar's clock starts here too
            self._bar.initial = self._bar.last_print_n = value
        self._bar.update(value - self._now)
        self._now = value
        if time_now - self._logged >= SECONDS_BETWEEN_LINES or (self.last_line and value == self._total):
            self._logged = time_now
            self._write_line(", ".join(filter(None, (self._count(), self._time_left(time_now), self._values))))

    def _count(self) -> str:
        return f"{self._label}: {tqdm.format_sizeof(self._now)} of {tqdm.format_sizeof(self._total)}{self._unit}"

    def _time_left(self, time_now: float) -> str:
        """The time left as text; empty before the second count, when the speed is unknown."""
        begin, first = self._first
        if self._now == first < self._total:
            return ""
        left = (time_now - begin) / max(self._now - first, 1) * (self._total - self._now)
        return f"{tqdm.format_interval(left)} left"

    def write(self, text: str) -> None:
        """Writes a line above the bar."""
        if self._on_terminal:
            self._bar.write(text, file=sys.stderr)
        else:
            self._write_line(text)

    def _write_line(self, text: str) -> None:
        if self._lines:
            print(text, file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()
