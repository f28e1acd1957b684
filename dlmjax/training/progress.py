"""How fast a run goes and how long it will take: tokens per second, share of the device's peak, a bar with the time left."""

import contextlib
import sys
import time

import jax
import tqdm

# Dense bfloat16 peak of one device as jax counts them, FLOP/s. Sources: Google Cloud TPU documentation, "System architecture" pages of
# each version; NVIDIA A100, H100 and H200 datasheets (without sparsity). Longer names first: the first that matches is taken.
PEAKS = (
    ("TPU v6 lite", 918e12),
    ("TPU v6e", 918e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5p", 459e12),
    ("TPU v5", 459e12),
    ("TPU v4", 275e12),
    ("NVIDIA A100", 312e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H100 NVL", 835e12),
    ("NVIDIA H100", 989e12),
    ("NVIDIA H200 NVL", 835e12),
    ("NVIDIA H200", 989e12),
)


def peak_flops(device_kind: str) -> float | None:
    """bfloat16 FLOP/s of `jax.Device.device_kind`, None where it is not known (and MFU is then not printed)."""
    return next((peak for name, peak in PEAKS if device_kind.startswith(name)), None)


class Throughput:
    """Seconds per step and what follows from them, pauses (evaluation, samples) left out.

    Args:
      tokens_per_step: over all devices.
      devices: all of the run.
      flops_per_step: model FLOPs of one step over all devices, forward and backward, attention counted in full (not causal halves), nothing
        for recomputation; None = no MFU.
      peak: FLOP/s of one device (`peak_flops`); None = no MFU.
    """

    def __init__(self, tokens_per_step: int, devices: int, flops_per_step: float | None = None, peak: float | None = None):
        self._tokens, self._devices, self._flops, self._peak = tokens_per_step, devices, flops_per_step, peak
        self.reset()

    def reset(self) -> None:
        """Starts the clock: call it after the first step, which compiles."""
        self._start, self._paused = time.perf_counter(), 0.0

    @contextlib.contextmanager
    def pause(self):
        """`with throughput.pause(): evaluate` does not count."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - start

    def rates(self, steps: int) -> dict[str, float]:
        """Seconds per step, tokens per second and device and, where known, "mfu", of the steps since the last call or reset."""
        seconds = max(time.perf_counter() - self._start - self._paused, 1e-9) / max(steps, 1)
        self.reset()
        rates = {"seconds_per_step": seconds, "tokens_per_second_per_device": self._tokens / seconds / self._devices}
        if self._flops and self._peak:
            rates["mfu"] = self._flops / seconds / self._devices / self._peak
        return rates


class Progress:
    """A bar with the time left on stderr; one line per `every` seconds where stderr is not a terminal. The first process speaks for all.

    The time left follows from the steps after the first, which compiles.
    """

    def __init__(self, total: int, initial: int = 0, desc: str = "train", every: float = 30.0):
        self._first = jax.process_index() == 0
        self._live = sys.stderr.isatty() and self._first
        self._bar = tqdm.tqdm(total=total, initial=initial, desc=desc, unit="step", dynamic_ncols=True, disable=not self._live)
        self._total, self._begun, self._done, self._desc, self._every = total, initial, initial, desc, every
        self._said = time.monotonic()
        self._timed: tuple[float, int] | None = None  # when the first step was done, and the steps until then
        self._values = ""

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def update(self, steps: int = 1, values: dict[str, float | str] | None = None, running: int = 0) -> None:
        """Moves on by `steps`, of which the newest `running` may still be under way; `values`, numbers or numbers with their units, are
        shown beside the bar until the next ones."""
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
            self._bar.unpause()  # the bar's clock begins here, too
            self._bar.initial = self._bar.last_print_n = self._done
        self._bar.update(moved)
        if not self._live and (now - self._said >= self._every or self._done == self._total):
            self._said = now
            self._say(", ".join(filter(None, (f"{self._desc} {self._done}/{self._total}", self._left(now), self._values))))

    def _left(self, now: float) -> str:
        """The time left; nothing where no step was timed yet."""
        since, done = self._timed
        if self._done == done < self._total:
            return ""
        rest = (now - since) / max(self._done - done, 1) * (self._total - self._done)
        return f"{tqdm.tqdm.format_interval(rest)} left"

    def write(self, text: str) -> None:
        """A line above the bar."""
        if self._live:
            self._bar.write(text, file=sys.stderr)
        else:
            self._say(text)

    def _say(self, text: str) -> None:
        if self._first:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()
