"""The interval of times t in which the loss of a model varies least, and the density of times by which its mean varies least.

Training on these times alone lowers the variance of the gradient (BD3-LM 2503.09573 section 5.2); the training loss is then not a bound.
With the density it stays one."""

import dataclasses
from collections.abc import Callable, Iterable

import jax
import numpy as np

from dlmjax.diffusion import PerRow, Process, importance_heights, nats_at, row_keys
from dlmjax.diffusion.hyperschedule import choose_interval
from dlmjax.diffusion.process import bind_process
from dlmjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class IntervalSettings:
    """windows: number of windows in all batches.  draws: times and corruptions of each window.  least: width of the narrowest interval
    that is considered."""

    windows: int = 256
    draws: int = 4
    least: float = 0.5
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Interval:
    """Times in [low, high].  variance, variance_of_all: of nats/token inside it, and over all times.  samples: measured (t, loss) pairs.

    heights: of times `importance`, from the second moments of the loss by time.
    """

    low: float
    high: float
    variance: float
    variance_of_all: float
    samples: int
    heights: tuple[float, ...]


def measure_interval(
    process: Process,
    bind: Callable,
    params: dict,
    batches: Iterable[dict],
    settings: IntervalSettings,
    *,
    put_batch: Callable[[dict], dict],
    self_condition: bool = False,
) -> Interval:
    """Measures the loss of blocks or rows at random times, and chooses the interval.  Cost: windows x draws forward passes.

    Args:
      batches: batches of `EvalWindows`, each put on the devices by `put_batch`.

    Raises:
      InputError: a process without times; too few windows.
    """
    if process.attention.causal:
        raise InputError(f"an interval requires a process with times t; process.name={process.name} is causal and has none")
    times = process.time_domain.adapt(PerRow(stratified=False))

    def losses(params, batch, key):
        """(t, mean nats per token, whether it has no padding) of every block or row."""
        length = batch["tokens"].shape[1]
        size = process.attention.block_size or length
        t_BL, _ = times.draw(key, batch["row"], settings.windows, length)
        denoiser = bind(params, batch["segments"], batch["positions"], process.attention)
        keys_B = row_keys(jax.random.fold_in(key, 1), batch["row"])
        nats_BL = nats_at(bind_process(process, params), denoiser, batch["tokens"], batch["segments"], keys_B, t_BL, self_condition)
        whole_BN = (batch["segments"].reshape(-1, length // size, size) > 0).all(axis=2)
        return t_BL[:, ::size], nats_BL.reshape(-1, length // size, size).mean(axis=2), whole_BN

    found, compiled = [], jax.jit(losses)
    for batch in batches:
        for draw in range(settings.draws):
            key = jax.random.fold_in(jax.random.key(settings.seed), draw)
            t_BN, nats_BN, whole_BN = (np.asarray(a) for a in compiled(params, put_batch(batch), key))
            found.append((t_BN[whole_BN], nats_BN[whole_BN]))
    t_N, nats_N = (np.concatenate(column) for column in zip(*found, strict=True))
    low, high = choose_interval(t_N, nats_N, settings.least)
    inside_N = (t_N >= low) & (t_N <= high)
    return Interval(low, high, float(nats_N[inside_N].var()), float(nats_N.var()), t_N.size, importance_heights(t_N, nats_N))
