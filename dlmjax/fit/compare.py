"""Two objectives compared: compute at equal loss, and the FLOPs where repeated data reverses their order. Imports no jax."""

import dataclasses
import math
from typing import Any

import numpy as np

from dlmjax.fit import bootstrap, fitness
from dlmjax.fit.analysis import Analysis, ScalingLaw
from dlmjax.fit.isoflop import PowerLaw, power_law
from dlmjax.fit.points import Points

METHODS = ("parametric", "isoflop")  # whose losses are compared; the envelope's has no floor


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Compute that `other` needs over that of `base` to reach the loss of the best `base` run of `flops`.

    within: other's runs (at their best) bracket this loss; otherwise its law is extrapolated. intervals: by kind of block.
    base_loss, other_loss: the lowest losses that were measured at a budget of these FLOPs; nan where there is no run. doubts: why the
    ratio is not to be trusted: the `fitness.doubts` of either law, and best runs whose order is the opposite.
    """

    base: str
    other: str
    method: str
    definition: str
    flops: float
    loss: float
    ratio: float
    within: bool
    intervals: dict[str, bootstrap.Interval]
    base_loss: float = math.nan
    other_loss: float = math.nan
    doubts: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """Plain JSON."""
        return dataclasses.asdict(self) | {"intervals": {blocks: each.record() for blocks, each in self.intervals.items()}}


def flops_at(law: ScalingLaw, loss: Any) -> Any:
    """FLOPs at which the law's best run has this loss; infinite where it never does, nan where there is no law. Arrays pairwise."""
    E, K, g = (np.asarray(part, float) for part in law.frontier())
    above = np.asarray(loss, float) - E
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.where(above > 0, (np.where(above > 0, above, 1.0) / K) ** (-1 / g), math.inf)
    return np.where(np.isnan(above + K + g), math.nan, found)


def compute_ratios(base: Analysis, other: Analysis) -> list[Ratio]:
    """The ratio at each of base's budgets (at its runs' lowest, middle and highest FLOPs where it has none), by method.

    Resamples of the two are paired: with one grid and one seed the same sweep points are drawn in both, and common effects cancel.
    """
    found = []
    budgets = sorted({minimum.flops for minimum in base.isoflop.minima}) or list(np.geomspace(*_range(base.points), 3))
    least, most = _best_losses(other)
    for method in [method for method in METHODS if method in base.laws and method in other.laws]:
        for flops in budgets:
            loss = float(base.laws[method].at(flops)["loss"])
            within = least <= loss <= most
            ratio = float(flops_at(other.laws[method], loss)) / flops
            intervals = {
                blocks: bootstrap.interval(ratio, flops_at(laws[method], base.resampled[blocks][method].at(flops)["loss"]) / flops)
                for blocks, laws in other.resampled.items()
            }
            names = (base.points.objective, other.points.objective, method, base.definition)
            losses = (base.measured(flops), other.measured(flops))
            reasons = _doubts(base, other, method, flops, ratio, losses)
            found.append(Ratio(*names, flops, loss, ratio, within, intervals, *losses, reasons))
    return found


def _doubts(base: Analysis, other: Analysis, method: str, flops: float, ratio: float, losses: tuple[float, float]) -> tuple[str, ...]:
    """The doubts of the two laws, and an order that the best runs of the same budget contradict."""
    reasons = [f"the {method} law of {each.points.objective}: {reason}" for each in (base, other) for reason in each.doubts.get(method, ())]
    if fitness.contradiction(ratio, *losses):
        ahead, behind = (base, other) if losses[0] < losses[1] else (other, base)
        low, high = sorted(losses)
        reasons.append(
            f"by the {method} laws {behind.points.objective} is ahead at {flops:.3g} FLOPs, by the best runs there "
            f"{ahead.points.objective} is: {low:.4f} against {high:.4f}"
        )
    return tuple(reasons)


def _range(points: Points) -> tuple[float, float]:
    return float(points.flops_R.min()), float(points.flops_R.max())


def _best_losses(analysis: Analysis) -> tuple[float, float]:
    """Lowest and highest loss among the runs on the envelope."""
    loss_R = analysis.points.loss_R[analysis.on_envelope_R]
    return float(loss_R.min()), float(loss_R.max())


@dataclasses.dataclass(frozen=True)
class Lowest:
    """The best run of an objective on one corpus. last: no run has more epochs, so that more may be better."""

    objective: str
    loss: float
    epochs: float
    last: bool


@dataclasses.dataclass(frozen=True)
class Crossing:
    """The FLOPs from which an objective is better than the base on a corpus of `unique` tokens.

    flops: of the crossing; nan where there is none among the runs. lowest: of the base, then of the other. interval: of `flops`
    by the standard errors of the losses; None where there is no crossing or
    an error is not known. said: the finding in words."""

    unique: float
    flops: float
    lowest: tuple[Lowest, Lowest]
    interval: bootstrap.Interval | None
    said: str

    def record(self) -> dict[str, Any]:
        """Plain JSON."""
        lowest = [{"series": each.objective, "loss": each.loss, "epochs": each.epochs, "last": each.last} for each in self.lowest]
        return dataclasses.asdict(self) | {"lowest": lowest, "interval": self.interval and self.interval.record()}


@dataclasses.dataclass(frozen=True)
class Crossings:
    """The crossings of two objectives: the corpora that both have, and C_crit = k U^p through their crossings; None with fewer than two."""

    base: str
    other: str
    corpora: tuple[Crossing, ...]
    law: PowerLaw | None
    exponent: bootstrap.Interval | None

    def record(self) -> dict[str, Any]:
        """Plain JSON."""
        found = {"base": self.base, "other": self.other, "corpora": [crossing.record() for crossing in self.corpora]}
        return found | {"law": self.law and dataclasses.asdict(self.law), "exponent": self.exponent and self.exponent.record()}


def crossings(base: Points, other: Points, *, resamples: int = 0, seed: int = 0) -> Crossings:
    """For each corpus of both objectives: the FLOPs from which `other` has the lower loss, and C_crit = k U^p through them.

    Each objective is taken at its best up to each compute (over sizes and epochs: one may stop early), between runs straight in log FLOPs.
    The law needs two crossings; published for masked against autoregressive: C_crit = 2.12 * 10^1.956 U^2.174 (2507.15857).

    Args:
      resamples: for the intervals losses are drawn so often from their standard errors, each by itself. The choice of
        the validation text, which all runs share, would cancel: the intervals are too wide. They omit the effect of the training seed.
    """
    found, meetings = [], []
    shared = sorted(set(base.unique_R[np.isfinite(base.unique_R)]) & set(other.unique_R[np.isfinite(other.unique_R)]))
    for unique in shared:
        one, two = base.take(base.unique_R == unique), other.take(other.unique_R == unique)
        if len(one) < 2 or len(two) < 2:
            continue
        drawn_S = _drawn(one, two, resamples, [seed, len(found)])
        found.append(_crossing(one, two, float(unique), drawn_S))
        meetings.append(drawn_S)
    unique_G = np.array([crossing.unique for crossing in found])
    law = _law(unique_G, np.array([crossing.flops for crossing in found]))
    exponent = None
    if law is not None and all(drawn_S is not None for drawn_S in meetings):
        laws = [_law(unique_G, drawn_G) for drawn_G in np.stack(meetings, 1)]
        exponent = bootstrap.interval(law.exponent, np.array([each.exponent if each else math.nan for each in laws]))
    return Crossings(base.objective, other.objective, tuple(found), law, exponent)


def _law(unique_G: np.ndarray, flops_G: np.ndarray) -> PowerLaw | None:
    """The power law through the crossings; None with fewer than two."""
    there_G = np.isfinite(flops_G) & (flops_G > 0)
    if there_G.sum() < 2:
        return None
    law = power_law(unique_G[there_G], flops_G[there_G][None], np.ones((1, there_G.sum())))
    return PowerLaw(float(law.coefficient[0]), float(law.exponent[0]))


def _crossing(base: Points, other: Points, unique: float, drawn_S: np.ndarray | None) -> Crossing:
    lowest = (_lowest(base), _lowest(other))
    low, high = _shared(base, other)
    if low >= high:
        return Crossing(unique, math.nan, lowest, None, "the runs share no range of FLOPs")
    flops, gap = _meeting(base, other, base.loss_R, other.loss_R)
    span = f"between {math.exp(low):.2e} and {math.exp(high):.2e} FLOPs"
    if flops == 0:
        return Crossing(unique, math.nan, lowest, None, f"{other.objective} is ahead everywhere {span}")
    if math.isinf(flops):
        return Crossing(unique, math.nan, lowest, None, f"{other.objective} is behind by {gap:.3f} nats at the end {span}")
    interval = None if drawn_S is None else bootstrap.interval(flops, drawn_S)
    return Crossing(unique, flops, lowest, interval, f"{other.objective} is ahead from {flops:.2e} FLOPs on")


def _lowest(points: Points) -> Lowest:
    best = int(points.loss_R.argmin())
    return Lowest(
        points.objective, float(points.loss_R[best]), float(points.epochs_R[best]), bool(points.epochs_R[best] == points.epochs_R.max())
    )


def _shared(base: Points, other: Points) -> tuple[float, float]:
    """The range of log FLOPs that the runs of both objectives cover."""
    return math.log(max(base.flops_R.min(), other.flops_R.min())), math.log(min(base.flops_R.max(), other.flops_R.max()))


def _drawn(base: Points, other: Points, resamples: int, seed: list[int]) -> np.ndarray | None:
    """Crossings of losses drawn from their standard errors, as `_meeting` gives them, [S]; None where an error is not known."""
    errors_R = np.concatenate([base.stderr_R, other.stderr_R])
    low, high = _shared(base, other)
    if not resamples or not np.isfinite(errors_R).all() or low >= high:
        return None
    noise_SR = np.random.default_rng(seed).standard_normal((resamples, len(errors_R))) * errors_R
    return np.array([_meeting(base, other, base.loss_R + e[: len(base)], other.loss_R + e[len(base) :])[0] for e in noise_SR])


def _meeting(base: Points, other: Points, base_R: np.ndarray, other_R: np.ndarray) -> tuple[float, float]:
    """(FLOPs from which `other` is ahead, its distance at the end in nats); 0 where it is ahead everywhere, infinite where it is behind at
    the end. base_R, other_R: the losses."""
    at = np.linspace(*_shared(base, other), 2001)
    gap = _best_until(other.flops_R, other_R, at) - _best_until(base.flops_R, base_R, at)
    behind = np.flatnonzero(gap > 0)
    if not len(behind):
        return 0.0, float(gap[-1])
    index = behind[-1]
    if index == len(at) - 1:
        return math.inf, float(gap[-1])
    return math.exp(at[index] + (at[index + 1] - at[index]) * gap[index] / (gap[index] - gap[index + 1])), float(gap[-1])


def _best_until(flops_R: np.ndarray, loss_R: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Lowest loss of any run up to each log FLOPs, straight between the runs that lower it."""
    order = np.argsort(flops_R)
    lowest_R = np.minimum.accumulate(loss_R[order])
    keep_R = np.concatenate([[True], np.diff(lowest_R) < 0])
    return np.interp(at, np.log(flops_R[order])[keep_R], lowest_R[keep_R])
