"""The interval of times t in which the loss of a model varies least, and how much its training loss varies, by cause (`noise`).

Training on these times alone lowers the variance of the gradient (BD3-LM 2503.09573 section 5.2); the training loss is then not a bound.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key

from dlmjax.diffusion import Objective, PerRow, TimeDistribution, nats_at, row_keys
from dlmjax.diffusion.hyperschedule import choose_interval
from dlmjax.diffusion.process import bind_process
from dlmjax.diffusion.shapes import Values
from dlmjax.diffusion.times import TIME_BINS
from dlmjax.errors import InputError
from dlmjax.evaluation.noise import NoiseReport, NoiseSamples, exact_positions, measure_noise


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
    noise: the variance of the training loss by cause, and the times of least variance.  gradient_norms: see the function of that name."""

    low: float
    high: float
    variance: float
    variance_of_all: float
    samples: int
    noise: NoiseReport
    gradient_norms: tuple[float, ...]


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
    """Measures the loss of blocks or rows at random times, and chooses the interval.  Cost: windows x draws x 2 forward passes, and for the
    gradients ten training passes of the first batch.

    Args:
      batches: batches of `EvalWindows`, each put on the devices by `put_batch`.

    Raises:
      InputError: a process without times; too few windows.
    """
    process = objective.process
    if process.attention.causal:
        raise InputError(f"an interval requires a process with times t; process.name={process.name} is causal and has none")
    batches = list(batches)
    samples = _measure(process, bind, params, batches, settings, put_batch, self_condition)
    t_N = samples.t_JWU[:, samples.whole_WU].ravel()
    nats_2N = (samples.nats_2JWU * samples.t_JWU.shape[2])[:, :, samples.whole_WU].reshape(2, -1)
    low, high = choose_interval(np.tile(t_N, 2), nats_2N.ravel(), settings.least)
    inside_N = (t_N >= low) & (t_N <= high)
    variances = float(nats_2N[:, inside_N].var()), float(nats_2N.var())
    norms = gradient_norms(objective, bind, params, put_batch(batches[0]), jax.random.key(settings.seed))
    return Interval(low, high, *variances, t_N.size, measure_noise(samples, objective), norms)


@dataclasses.dataclass(frozen=True)
class _Bin(TimeDistribution):
    """Uniform on one of `bins` equal bins of [0, 1], whose index may be traced; without the weight of its width."""

    index: Any
    bins: int
    covers = False

    def draw(self, u: Values) -> Values:
        return (self.index + u) / self.bins

    def weight(self, t: Values) -> Values:
        return jnp.ones_like(t)


def gradient_norms(
    objective: Objective, bind: Callable, params: dict, batch: dict, key: Key[Array, ""], bins: int = TIME_BINS
) -> tuple[float, ...]:
    """The norm of the gradient of the training loss, in nats per token, over a batch whose rows have their times in one bin of [0, 1], for
    each of `bins` equal ones; what a weighting changes is part of it, the density of the run's times is not.

    batch: on the devices. Of a small batch the norm is mostly that of its noise.
    """
    rows = batch["tokens"].shape[0]

    def norm(params, batch, key, index):
        within = dataclasses.replace(objective, times=PerRow(_Bin(index, bins)))

        def loss(params):
            denoiser = bind(params, batch["segments"], batch["positions"], objective.process.attention)
            # At the end of a run, for a weighting that changes. A mean over the rows of this batch, whatever their numbers are.
            numbered = {**batch, "row": jnp.arange(rows)}
            total, terms = within.bind(params)(denoiser, numbered, key, rows, jnp.float32(1))
            return total / jnp.maximum(terms["tokens"], 1)

        return optax.tree.norm(jax.grad(loss)(params))

    run = jax.jit(lambda params, batch, key: jax.lax.map(lambda index: norm(params, batch, key, index), jnp.arange(bins)))
    return tuple(np.asarray(run(params, batch, key), np.float64).tolist())


def _measure(process, bind, params, batches, settings: IntervalSettings, put_batch, self_condition: bool) -> NoiseSamples:
    """Each window at `draws` times of its own, one for each block or row, under two draws of noise."""
    times = process.time_domain.adapt(PerRow(stratified=False))

    def losses(params, batch, key):
        """(t, nats under either draw and exact ones among them, whether it has no padding) of every block or row; the tokens of rows."""
        length = batch["tokens"].shape[1]
        size = process.attention.block_size or length
        t_BL, _ = times.draw(key, batch["row"], settings.windows, length)
        denoiser = bind(params, batch["segments"], batch["positions"], process.attention)
        found, exact, exact_L = [], [], exact_positions(process, length)

        def of_units(nats_BL):
            return nats_BL.reshape(-1, length // size, size).sum(axis=2)

        for noise in (1, 2):
            keys_B = row_keys(jax.random.fold_in(key, noise), batch["row"])
            args = (bind_process(process, params), denoiser, batch["tokens"], batch["segments"], keys_B, t_BL, self_condition)
            nats_BL = nats_at(*args)
            found.append(of_units(nats_BL))
            exact.append(of_units(nats_BL * (0 if exact_L is None else exact_L)))
        valid_BL = batch["segments"] > 0
        whole_BU = valid_BL.reshape(-1, length // size, size).all(axis=2)
        return t_BL[:, ::size], (found, exact), whole_BU, valid_BL.sum(axis=1)

    found, compiled = [], jax.jit(losses)
    for batch in batches:
        keys = [jax.random.fold_in(jax.random.key(settings.seed), draw) for draw in range(settings.draws)]
        placed = put_batch(batch)
        t_J, nats_J, whole_J, tokens_J = zip(*(jax.device_get(compiled(params, placed, key)) for key in keys), strict=True)
        rows_B = tokens_J[0] > 0
        both_2J2BU = np.asarray(nats_J, np.float64).transpose(1, 0, 2, 3, 4)  # nats, and exact ones among them
        found.append((np.stack(t_J)[:, rows_B], both_2J2BU[:, :, :, rows_B], whole_J[0][rows_B], tokens_J[0][rows_B]))
    t, nats, whole, tokens = zip(*found, strict=True)
    nats_2JWU, exact_2JWU = np.concatenate(nats, axis=3).swapaxes(1, 2) / np.concatenate(tokens).mean()
    return NoiseSamples(np.concatenate(t, axis=1).astype(np.float64), nats_2JWU, np.concatenate(whole), exact_2JWU=exact_2JWU)
