"""Speed of a run and its remaining time: tokens per second, share of the device's peak, a progress bar."""

import contextlib
import sys
import time

import jax
import tqdm


class Throughput:
    """Seconds per step and rates derived from them, without pauses (evaluation, samples).

    Args:
      tokens_per_step: tokens of one step over all devices.
      devices: number of devices of the run.
      flops_per_step: model FLOPs of one step over all devices, forward and backward, attention counted in full (not causal halves),
        without recomputation; None = no MFU.
      peak: FLOP/s of one device (`peak_flops`); None = no MFU.
    """

    def __init__(self, tokens_per_step: int, devices: int, flops_per_step: float | None = None, peak: float | None = None):
        self._tokens, self._devices, self._flops, self._peak = tokens_per_step, devices, flops_per_step, peak
        self.reset()

    def reset(self) -> None:
        """Starts the clock; to be called after the first step, which compiles."""
        self._start, self._paused = time.perf_counter(), 0.0

    @contextlib.contextmanager
    def pause(self):
        """The time inside `with throughput.pause():` does not count."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - start

    def rates(self, steps: int) -> dict[str, float]:
        """Seconds per step, tokens per second and device, and "mfu" if known, over the steps since the last call or reset."""
        seconds = max(time.perf_counter() - self._start - self._paused, 1e-9) / max(steps, 1)
        self.reset()
        rates = {"seconds_per_step": seconds, "tokens_per_second_per_device": self._tokens / seconds / self._devices}
        if self._flops and self._peak:
            rates["mfu"] = self._flops / seconds / self._devices / self._peak
        return rates


class Progress:
    """A bar with the time left on stderr; one line per `every` seconds where stderr is not a terminal. Only the first process writes.

    The time left is estimated from the steps after the first, which compiles.
    """

    def __init__(self, total: int, initial: int = 0, desc: str = "train", every: float = 30.0):
        self._first = jax.process_index() == 0
        self._live = sys.stderr.isatty() and self._first
        self._bar = tqdm.tqdm(total=total, initial=initial, desc=desc, unit="step", dynamic_ncols=True, disable=not self._live)
        self._total, self._begun, self._done, self._desc, self._every = total, initial, initial, desc, every
        self._logged = time.monotonic()
        self._timed: tuple[float, int] | None = None  # when the first step was done, and the steps until then
        self._values = ""

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def update(self, steps: int = 1, values: dict[str, float | str] | None = None, running: int = 0) -> None:
        """Adds `steps`, of which the newest `running` may not be finished yet. values: shown beside the bar until the next values."""
        self._begun += steps
        moved = max(self._begun - running - self._done, 0)
        self._done += moved
        if values is not None:
            self._values = ", ".join(
                f"{name} {value if isinstance(value, str) else format(value, '.4g')}" for name, value in values.items()
            )
            self._bar.set_postfix_str(self._values, refresh=False)
        now = time.monotonic()
        if self._timed is None:
            self._timed = now, self._done
            self._bar.unpause()  # the bar's clock starts here too
            self._bar.initial = self._bar.last_print_n = self._done
        self._bar.update(moved)
        if not self._live and (now - self._logged >= self._every or self._done == self._total):
            self._logged = now
            self._log(", ".join(filter(None, (f"{self._desc} {self._done}/{self._total}", self._left(now), self._values))))

    def _left(self, now: float) -> str:
        """The time left as text; empty before a step was timed."""
        since, done = self._timed
        if self._done == done < self._total:
            return ""
        rest = (now - since) / max(self._done - done, 1) * (self._total - self._done)
        return f"{tqdm.tqdm.format_interval(rest)} left"

    def write(self, text: str) -> None:
        """Writes a line above the bar."""
        if self._live:
            self._bar.write(text, file=sys.stderr)
        else:
            self._log(text)

    def _log(self, text: str) -> None:
        if self._first:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends the bar in its present state."""
        self._bar.close()
