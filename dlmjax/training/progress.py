"""Speed of a run and its remaining time: tokens per second, share of the device's peak, a progress bar."""

import contextlib
import time

import jax

from dlmjax.progress import Progress


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
        self._tokens, self._devices, self.flops_per_step, self._peak = tokens_per_step, devices, flops_per_step, peak
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
        if self.flops_per_step and self._peak:
            rates["mfu"] = self.flops_per_step / seconds / self._devices / self._peak
        return rates


class TrainingProgress(Progress):
    """The progress of a run in steps, with the newest values of its curves. Only the first process of the run writes."""

    scaled, last_line = False, True

    def __init__(self, total: int, initial: int = 0):
        super().__init__(total, "train", "step", None if jax.process_index() == 0 else False, initial)
        self._begun = initial

    def update(self, steps: int = 1, values: dict[str, float | str] | None = None, running: int = 0) -> None:
        """Adds `steps`, of which the newest `running` may not be finished yet. values: shown next to the bar until the next values."""
        self._begun += steps
        pairs = values and [f"{name} {value if isinstance(value, str) else format(value, '.4g')}" for name, value in values.items()]
        self.reach(self._begun - running, values=None if values is None else ", ".join(pairs))

    def _count(self) -> str:
        return f"{self._label} {self._now}/{self._total}"
