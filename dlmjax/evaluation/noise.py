"""How much the training loss of a row varies, and by which cause: masks, times or texts. The gradient's noise follows it.

The loss that a step draws for a row is l = omega(t) f(t) n(x, t, masks), in nats per token: n the bound's integrand under one draw of
masks, f the factor of the weighting, t drawn with the density p of the run's times, and omega = 1/p (1 where the times are not corrected).
With g(x, t) the mean of omega f n over masks, its variance over draws is the sum of three parts:

    masks   A = E_x E_t Var_masks(l)        times   B = E_x Var_t(g)        texts   C = Var_x(E_t g)

Stratified times remove B, up to a share that falls with the square of the batch; C and A fall with the windows of a step alone. Under
another density the second moment of l is the integral of E[(f n)^2 | t] / p, least for p proportional to the root of what it divides.

Every estimate here is unbiased: each window is measured at each time under two independent draws of masks, whose difference is A, whose
product replaces a square of their mean in B, and whose covariance over windows is C. Times are the nodes of an evaluation, whose sums are
integrals, or drawn ones. Blocks of a row have times of their own, and are read given clean text: A and B are sums over blocks.

Shapes: J times, W windows, U units (blocks, or 1 for a whole row). Units: nats per token.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from dlmjax.choices import text_of
from dlmjax.diffusion import (
    Objective,
    PerBlock,
    PerRow,
    Piecewise,
    Process,
    TimeDistribution,
    UniformTimes,
    importance_heights,
    make_weighting,
)
from dlmjax.errors import InputError
from dlmjax.evaluation.likelihood import PairedNats, TokenNats

LEAST_GAIN = 1.25  # factor by which a variance must fall for advice to be given
FINE = 1000  # times at which moments between nodes are read


@dataclasses.dataclass(frozen=True)
class NoiseSamples:
    """The bound's integrand of windows under two draws of masks.

    t_JWU: times.  nats_2JWU: nats of each unit under either draw, over the mean number of tokens of a window, so that the sum over units is
    the loss of a row.  weight_J: of the times in an integral over [0, 1]; None = each is drawn uniformly, on its own.
    whole_WU: units without padding.  exact_2JWU: the part of the nats that is exact whatever the time is (`Process.exact_mask`: seeds of
    blocks), which a weighting multiplies by a number of its own; None = there is none.
    """

    t_JWU: Float64[np.ndarray, "J W U"]
    nats_2JWU: Float64[np.ndarray, "2 J W U"]
    whole_WU: np.ndarray
    weight_J: Float64[np.ndarray, "J"] | None = None
    exact_2JWU: Float64[np.ndarray, "2 J W U"] | None = None

    @property
    def weights_J(self) -> Float64[np.ndarray, "J"]:
        """Of the times in an integral over [0, 1]."""
        return np.full(len(self.t_JWU), 1 / len(self.t_JWU)) if self.weight_J is None else self.weight_J

    def weighted(self, factor: Callable[[np.ndarray], np.ndarray], exact_factor: float = 1.0) -> Float64[np.ndarray, "2 J W U"]:
        """The loss f n under a weighting: its factor f(t) on nats of the noise, and `exact_factor` on exact ones."""
        factor_JWU = factor(self.t_JWU)
        if self.exact_2JWU is None:
            return factor_JWU * self.nats_2JWU
        return factor_JWU * (self.nats_2JWU - self.exact_2JWU) + exact_factor * self.exact_2JWU


def samples_of(valid_BL: np.ndarray, paired: PairedNats, size: int | None, exact_L: np.ndarray | None = None) -> NoiseSamples:
    """Samples of a batch at the nodes of an evaluation. valid_BL: False on padding.  size: tokens of a block, None = the whole row.
    exact_L: positions whose nats are exact whatever the time is."""
    kept_B = valid_BL.any(axis=1)
    windows, length = int(kept_B.sum()), valid_BL.shape[1]
    units = length // (size or length)
    tokens = valid_BL[kept_B].sum(axis=1).mean()

    def of_units(nats_2JBL: np.ndarray) -> np.ndarray:
        return nats_2JBL[:, :, kept_B].reshape(2, len(paired.t_J), windows, units, -1).sum(axis=4) / tokens

    nats_2JWU = of_units(paired.nats_2JBL)
    return NoiseSamples(
        t_JWU=np.broadcast_to(paired.t_J[:, None, None], nats_2JWU.shape[1:]),
        nats_2JWU=nats_2JWU,
        exact_2JWU=None if exact_L is None else of_units(paired.nats_2JBL * exact_L),
        whole_WU=valid_BL[kept_B].reshape(windows, units, -1).all(axis=2),
        weight_J=paired.weight_J,
    )


class NoiseObserver:
    """Measures the noise of an objective on the first batch of an evaluation; see `likelihood.Observer`.

    Costs one network call for each window of that batch and node, forward alone.
    """

    def __init__(self, objective: Objective, progress: float = 1.0):
        self._objective, self._progress = objective, progress
        self.report: NoiseReport | None = None

    def see(self, batch: TokenNats) -> None:
        """Takes the first batch that has two whole windows; a loss by time requires rows, or blocks, without padding."""
        if self.report is not None or batch.paired is None or not can_measure(self._objective):
            return
        if batch.scored_BL.all(axis=1).sum() < 2:
            return
        exact_L = exact_positions(self._objective.process, batch.scored_BL.shape[1])
        samples = samples_of(batch.scored_BL, batch.paired(), self._objective.process.attention.block_size, exact_L)
        # A loss that is not finite, or 0, has no density of least variance; the bound itself shows it.
        if np.isfinite(samples.nats_2JWU).all() and samples.nats_2JWU.any():
            self.report = measure_noise(samples, self._objective, self._progress)


@dataclasses.dataclass(frozen=True)
class Variance:
    """The mean of the loss of a row and the variance of its draws, by cause, in nats/token and its square, each with a standard error."""

    mean: float
    masks: float
    times: float
    texts: float
    stderr_mean: float
    stderr_masks: float
    stderr_times: float
    stderr_texts: float

    def of_step(self, stratified: bool) -> float:
        """What is left for a row of a large batch: stratified times have no part of their own."""
        return max(self.masks, 0.0) + max(self.texts, 0.0) + (0.0 if stratified else max(self.times, 0.0))


@dataclasses.dataclass(frozen=True)
class NoiseReport:
    """Variance of the training loss of a row.

    trained: whether it is that of the trained loss; where its weighting is not a function of t alone, it is that of the bound.
    second_moments: (t, mean square of the unweighted loss f n of a unit) at some times.  heights: of times `importance`.
    advice: what would lower the variance; "" = no change by a factor of LEAST_GAIN is known.
    """

    variance: Variance
    trained: bool
    windows: int
    second_moments: tuple[tuple[float, float], ...]
    heights: tuple[float, ...]
    advice: str

    def scalars(self) -> dict[str, float]:
        """The curves' values."""
        values = {name: float(value) for name, value in dataclasses.asdict(self.variance).items()}
        return values | {f"second_moment_by_t/{t:.4g}": value for t, value in self.second_moments}

    def summary(self) -> str:
        """One line: the variance by cause, in shares. An unbiased estimate of a small part may be below 0, which is shown as 0."""
        parts = {name: max(getattr(self.variance, name), 0.0) for name in ("masks", "times", "texts")}
        total = sum(parts.values())
        shares = ", ".join(f"{name} {100 * value / total:.0f} %" for name, value in parts.items()) if total > 0 else "none"
        what = "training loss" if self.trained else "bound (not of the trained loss)"
        return f"variance of the {what} of a row {total:.4g} nats^2/token^2: {shares}"


def measure_noise(samples: NoiseSamples, objective: Objective, progress: float = 1.0) -> NoiseReport:
    """The report of an objective from samples of its bound. progress: share of the run that is done, for a weighting that changes."""
    factor, causal, times = factor_of(objective, progress), objective.process.attention.causal, objective.times
    # A likelihood without noise has no times, and one node stands for all.
    exact = objective.weighting.exact_factor if factor else 1.0
    drawn = _Draws(times.distribution, times.corrected, factor or np.ones_like, exact)
    now = _Draws(UniformTimes(), True, np.ones_like) if causal else drawn
    found = variance_of(samples, now)
    t_F, square_F = second_moments(samples, now.factor, now.exact_factor)
    shown = slice(FINE // 20, None, FINE // 10)
    report = NoiseReport(
        variance=found,
        trained=factor is not None,
        windows=samples.t_JWU.shape[1],
        second_moments=() if causal else tuple(zip(t_F[shown].tolist(), square_F[shown].tolist(), strict=True)),
        heights=() if causal else importance_heights(t_F, np.sqrt(square_F)),
        advice="",
    )
    return dataclasses.replace(report, advice=_advice(samples, objective, now, report))


def exact_positions(process: Process, length: int) -> np.ndarray | None:
    """Which positions of a row have an exact loss whatever the time is: seeds of blocks. None where the process has none."""
    if not process.attention.seeded:
        return None
    with jax.ensure_compile_time_eval(), jax.transfer_guard("allow"):
        return np.asarray(process.exact_mask(jnp.zeros((1, length, 2), jnp.int32)))[0]


def can_measure(objective: Objective) -> bool:
    """Whether the noise of an objective follows from its bound at times that a row, or a block of it, has in common."""
    return isinstance(objective.times, PerRow | PerBlock)


@dataclasses.dataclass(frozen=True)
class _Draws:
    """How times are drawn and weighted. factor: t -> f(t), of a weighting.  exact_factor: of its exact losses."""

    distribution: TimeDistribution
    corrected: bool
    factor: Callable[[np.ndarray], np.ndarray]
    exact_factor: float = 1.0

    def density_and_loss(self, samples: NoiseSamples) -> tuple[np.ndarray, np.ndarray]:
        """(p, omega f n) at the times of samples."""
        inverse = np.asarray(_on_host(self.distribution.weight, samples.t_JWU), np.float64)
        density = np.where(np.isfinite(inverse), 1 / np.where(inverse > 0, inverse, np.inf), 0.0)
        omega = np.where(density > 0, inverse if self.corrected else 1.0, 0.0)
        return density, np.where(density > 0, omega, 0.0) * samples.weighted(self.factor, self.exact_factor)


def factor_of(objective: Objective, progress: float = 1.0) -> Callable[[np.ndarray], np.ndarray] | None:
    """f(t) of a weighting that is a function of t alone; None for others, whose loss does not follow from the bound's nats."""
    weighting = objective.weighting
    if not weighting.of_time:
        return None

    def factor(t: jax.Array) -> jax.Array:
        share, nothing = weighting.bound_share(jnp.asarray(progress, jnp.float32)), jnp.zeros(t.shape, jnp.int32)
        f = weighting.factor(objective.process, nothing, nothing, t)
        return f if share is None else f + share * (1 - f)

    return lambda t: np.asarray(_on_host(factor, t), np.float64)


def variance_of(samples: NoiseSamples, draws: _Draws) -> Variance:
    """The variance by cause under some density of times and factor."""
    density_JWU, (first_JWU, second_JWU) = draws.density_and_loss(samples)
    # Under p the integral of p (omega f n); each time of the samples stands for its weight of [0, 1].
    weight_JWU = samples.weights_J[:, None, None] * density_JWU
    masks_W = np.sum(weight_JWU * (first_JWU - second_JWU) ** 2 / 2, axis=(0, 2))
    mean_2WU = np.stack([np.sum(weight_JWU * value_JWU, axis=0) for value_JWU in (first_JWU, second_JWU)])
    square_WU = mean_2WU[0] * mean_2WU[1]
    if samples.weight_J is None and (times := len(samples.t_JWU)) > 1:
        # Of drawn times, only products of two different ones are unbiased for the square of the integral.
        same_WU = np.sum(weight_JWU**2 * first_JWU * second_JWU, axis=0)
        square_WU = (square_WU - same_WU) * times / (times - 1)
    times_W = np.sum(np.sum(weight_JWU * first_JWU * second_JWU, axis=0) - square_WU, axis=1)
    mean_2W = mean_2WU.sum(axis=2)
    noise_W = np.zeros(len(masks_W))
    if samples.weight_J is None:
        # Both draws share their times: the covariance over windows holds the variance of a mean over drawn times, too.
        drawn_WU = np.mean((density_JWU * first_JWU) * (density_JWU * second_JWU), axis=0) - square_WU
        noise_W = drawn_WU.sum(axis=1) / len(samples.t_JWU)
    centred_2W = mean_2W - mean_2W.mean(axis=1, keepdims=True)
    windows = len(masks_W)
    texts_W = centred_2W[0] * centred_2W[1] * windows / max(windows - 1, 1) - noise_W
    rows = {"mean": mean_2W.mean(axis=0), "masks": masks_W, "times": times_W, "texts": texts_W}
    errors = {
        f"stderr_{name}": float(value_W.std(ddof=1) / math.sqrt(windows)) if windows > 1 else math.nan for name, value_W in rows.items()
    }
    return Variance(**{name: float(value_W.mean()) for name, value_W in rows.items()}, **errors)


def second_moments(
    samples: NoiseSamples, factor: Callable[[np.ndarray], np.ndarray], exact_factor: float = 1.0
) -> tuple[Float64[np.ndarray, "F"], Float64[np.ndarray, "F"]]:
    """Times from 0 to 1, and the mean square there of the loss f n of a whole unit, in nats per token of the unit.

    Between two nodes it is a power of t, as it is where text is nearly clean; drawn times are put into bins.
    """
    whole_WU, units = samples.whole_WU, samples.t_JWU.shape[2]
    if not whole_WU.any():
        raise InputError("every window has padding, and a loss by time requires whole rows, or blocks; prepare a longer text")
    square_JN = np.mean((samples.weighted(factor, exact_factor) * units)[:, :, whole_WU] ** 2, axis=0)
    t_JN = samples.t_JWU[:, whole_WU]
    t_F = (np.arange(FINE) + 0.5) / FINE
    if samples.weight_J is None:
        bins = max(min(20, t_JN.size // 16), 1)
        bin_JN = np.clip((t_JN * bins).astype(int), 0, bins - 1)
        count_K = np.maximum(np.bincount(bin_JN.ravel(), minlength=bins), 1)
        square_K = np.bincount(bin_JN.ravel(), square_JN.ravel(), minlength=bins) / count_K
        return t_F, square_K[np.minimum((t_F * bins).astype(int), bins - 1)]
    log_square_J = np.log(np.maximum(square_JN.mean(axis=1), 1e-30))
    return t_F, np.exp(np.interp(np.log(t_F), np.log(np.maximum(t_JN[:, 0], 1e-30)), log_square_J))


def _advice(samples: NoiseSamples, objective: Objective, now: _Draws, report: NoiseReport) -> str:
    """The change by which the variance of a step falls most, in one line; "" = none by LEAST_GAIN."""
    stratified, supported = objective.times.stratified, objective.process.capabilities.weightings
    left, mean = report.variance.of_step(stratified), max(report.variance.mean, 1e-30)
    if not report.heights or not left > 0 or not report.trained:
        return ""
    found, kept = [], " (still a bound)" if objective.trains_bound else ""
    if now.corrected:  # without the weight of its density, another distribution of times trains another loss
        other = dataclasses.replace(now, distribution=Piecewise(report.heights))
        changed = variance_of(samples, other).of_step(stratified)
        times = text_of("importance", {"heights": report.heights})
        found.append((left / max(changed, 1e-30), f'--config.process.times="{times}" would lower it {{gain:.2g}} times{kept}'))
    if not stratified:
        gain = left / max(report.variance.of_step(True), 1e-30)
        found.append((gain, f"stratified times would lower it {{gain:.2g}} times{kept}"))
    if "cross_entropy" in supported and objective.weighting.name != "cross_entropy":
        plain = dataclasses.replace(objective, weighting=make_weighting("cross_entropy"), boundary=None)
        simple = variance_of(samples, dataclasses.replace(now, factor=factor_of(plain), exact_factor=plain.weighting.exact_factor))
        gain = (left / mean**2) / max(simple.of_step(stratified) / max(simple.mean, 1e-30) ** 2, 1e-30)
        words = "--config.process.weighting=cross_entropy would lower it {gain:.2g} times relative to the square of the loss (not a bound)"
        found.append((gain, words))
    gain, words = max(found, default=(0.0, ""))
    if gain >= LEAST_GAIN:
        return "most of the variance depends on t: " + words.format(gain=gain)
    if report.variance.texts > 0.5 * left:
        return "most of the variance is between texts: more windows in a step (data.batch) lower it, times and weightings do not"
    return ""


def _on_host(function: Callable, t: np.ndarray) -> np.ndarray:
    with jax.transfer_guard("allow"):
        return np.asarray(function(jnp.asarray(t, jnp.float32)))
