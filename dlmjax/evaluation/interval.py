"""The interval of times t in which the loss of a model varies least, and how much its training loss varies, by cause (`noise`).

Training on these times alone lowers the variance of the gradient (BD3-LM 2503.09573 section 5.2); the training loss is then not a bound.
"""

import dataclasses
from collections.abc import Callable, Iterable

import jax
import numpy as np

from dlmjax.diffusion import Objective, PerRow, nats_at, row_keys
from dlmjax.diffusion.hyperschedule import choose_interval
from dlmjax.diffusion.process import bind_process
from dlmjax.errors import InputError
from dlmjax.evaluation.noise import NoiseReport, NoiseSamples, measure_noise


@dataclasses.dataclass(frozen=True)
class IntervalSettings:
    """windows: number of windows in all batches.  draws: times of each window, each with two corruptions.  least: width of the narrowest
    interval that is considered."""

    windows: int = 256
    draws: int = 4
    least: float = 0.5
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Interval:
    """Times in [low, high].  variance, variance_of_all: of nats/token inside it, and over all times.  samples: times that were measured.
    noise: the variance of the training loss by cause, and the times of least variance."""

    low: float
    high: float
    variance: float
    variance_of_all: float
    samples: int
    noise: NoiseReport


def measure_interval(
    objective: Objective,
    bind: Callable,
    params: dict,
    batches: Iterable[dict],
    settings: IntervalSettings,
    *,
    put_batch: Callable[[dict], dict],
    self_condition: bool = False,
) -> Interval:
    """Measures the loss of blocks or rows at random times, and chooses the interval.  Cost: windows x draws x 2 forward passes.

    Args:
      batches: batches of `EvalWindows`, each put on the devices by `put_batch`.

    Raises:
      InputError: a process without times; too few windows.
    """
    process = objective.process
    if process.attention.causal:
        raise InputError(f"an interval requires a process with times t; process.name={process.name} is causal and has none")
    samples = _measure(process, bind, params, batches, settings, put_batch, self_condition)
    t_N = samples.t_JWU[:, samples.whole_WU].ravel()
    nats_2N = (samples.nats_2JWU * samples.t_JWU.shape[2])[:, :, samples.whole_WU].reshape(2, -1)
    low, high = choose_interval(np.tile(t_N, 2), nats_2N.ravel(), settings.least)
    inside_N = (t_N >= low) & (t_N <= high)
    variances = float(nats_2N[:, inside_N].var()), float(nats_2N.var())
    return Interval(low, high, *variances, t_N.size, measure_noise(samples, objective))


def _measure(process, bind, params, batches, settings: IntervalSettings, put_batch, self_condition: bool) -> NoiseSamples:
    """Each window at `draws` times of its own, one for each block or row, under two draws of noise."""
    times = process.time_domain.adapt(PerRow(stratified=False))

    def losses(params, batch, key):
        """(t, nats under either draw, whether it has no padding) of every block or row, and the tokens of every row."""
        length = batch["tokens"].shape[1]
        size = process.attention.block_size or length
        t_BL, _ = times.draw(key, batch["row"], settings.windows, length)
        denoiser = bind(params, batch["segments"], batch["positions"], process.attention)
        found = []
        for noise in (1, 2):
            keys_B = row_keys(jax.random.fold_in(key, noise), batch["row"])
            args = (bind_process(process, params), denoiser, batch["tokens"], batch["segments"], keys_B, t_BL, self_condition)
            found.append(nats_at(*args).reshape(-1, length // size, size).sum(axis=2))
        valid_BL = batch["segments"] > 0
        whole_BU = valid_BL.reshape(-1, length // size, size).all(axis=2)
        return t_BL[:, ::size], found, whole_BU, valid_BL.sum(axis=1)

    found, compiled = [], jax.jit(losses)
    for batch in batches:
        keys = [jax.random.fold_in(jax.random.key(settings.seed), draw) for draw in range(settings.draws)]
        placed = put_batch(batch)
        t_J, nats_J, whole_J, tokens_J = zip(*(jax.device_get(compiled(params, placed, key)) for key in keys), strict=True)
        rows_B = tokens_J[0] > 0
        nats_2JBU = np.asarray(nats_J, np.float64).swapaxes(0, 1)
        found.append((np.stack(t_J)[:, rows_B], nats_2JBU[:, :, rows_B], whole_J[0][rows_B], tokens_J[0][rows_B]))
    t, nats, whole, tokens = zip(*found, strict=True)
    nats_2JWU = np.concatenate(nats, axis=2) / np.concatenate(tokens).mean()
    return NoiseSamples(np.concatenate(t, axis=1).astype(np.float64), nats_2JWU, np.concatenate(whole))
