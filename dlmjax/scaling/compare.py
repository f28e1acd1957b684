"""Two series against each other: compute at equal loss, and where repeated data turns the order round. Imports no jax."""

import dataclasses
import math
from typing import Any

import numpy as np

from dlmjax.scaling import bootstrap
from dlmjax.scaling.analysis import Analysis, Law
from dlmjax.scaling.isoflop import PowerLaw, power_law
from dlmjax.scaling.points import Points


@dataclasses.dataclass(frozen=True)
class Ratio:
    """Compute that `other` needs over that of `base` to reach the loss of the best `base` run of `flops`.

    within: other's runs (at their best) bracket this loss; otherwise its law is extrapolated. intervals: by kind of block.
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


def flops_at(law: Law, loss: Any) -> Any:
    """FLOPs at which the law's best run has this loss; infinite where it never does, nan where there is no law. Arrays pairwise."""
    E, K, g = (np.asarray(part, float) for part in law.frontier())
    above = np.asarray(loss, float) - E
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.where(above > 0, (np.where(above > 0, above, 1.0) / K) ** (-1 / g), math.inf)
    return np.where(np.isnan(above + K + g), math.nan, found)


def compute_ratios(base: Analysis, other: Analysis) -> list[Ratio]:
    """The ratio at each of base's budgets (at its runs' lowest, middle and highest FLOPs where it has none), by method.

    Resamples of the two are paired: with one grid and one seed the same cells are drawn in both, and what they share cancels.
    """
    found = []
    budgets = sorted({minimum.flops for minimum in base.isoflop.minima}) or list(np.geomspace(*_range(base.points), 3))
    least, most = _best_losses(other)
    for method in [method for method in ("parametric", "isoflop") if method in base.laws and method in other.laws]:
        for flops in budgets:
            loss = float(base.laws[method].at(flops)["loss"])
            within = least <= loss <= most
            ratio = float(flops_at(other.laws[method], loss)) / flops
            intervals = {
                blocks: bootstrap.interval(ratio, flops_at(laws[method], base.resampled[blocks][method].at(flops)["loss"]) / flops)
                for blocks, laws in other.resampled.items()
            }
            names = (base.points.series, other.points.series, method, base.definition)
            found.append(Ratio(*names, flops, loss, ratio, within, intervals))
    return found


def _range(points: Points) -> tuple[float, float]:
    return float(points.flops_R.min()), float(points.flops_R.max())


def _best_losses(analysis: Analysis) -> tuple[float, float]:
    """Lowest and highest loss among the runs on the envelope."""
    loss_R = analysis.points.loss_R[analysis.on_envelope_R]
    return float(loss_R.min()), float(loss_R.max())


@dataclasses.dataclass(frozen=True)
class Crossing:
    """Where `other` overtakes `base` on a corpus of `unique` tokens. flops: of the crossing; nan where there is none among the runs.
    said: what is seen in words."""

    base: str
    other: str
    unique: float
    flops: float
    said: str


def crossings(base: Points, other: Points) -> tuple[list[Crossing], PowerLaw | None]:
    """For each corpus that both series were trained on: the FLOPs from which `other` has the lower loss, and C_crit = k U^p through them.

    Each series is taken at its best up to each compute (over sizes and epochs: one may stop early), between runs straight in log FLOPs.
    The law needs two crossings; published for masked against autoregressive: C_crit = 2.12 * 10^1.956 U^2.174 (2507.15857).
    """
    found = []
    shared = sorted(set(base.unique_R[np.isfinite(base.unique_R)]) & set(other.unique_R[np.isfinite(other.unique_R)]))
    for unique in shared:
        one, two = base.take(base.unique_R == unique), other.take(other.unique_R == unique)
        if len(one) < 2 or len(two) < 2:
            continue
        found.append(_crossing(one, two, float(unique)))
    crossed = [crossing for crossing in found if math.isfinite(crossing.flops)]
    if len(crossed) < 2:
        return found, None
    unique_G, flops_G = (np.array([getattr(crossing, name) for crossing in crossed]) for name in ("unique", "flops"))
    law = power_law(unique_G, flops_G[None], np.ones((1, len(crossed))))
    return found, PowerLaw(float(law.coefficient[0]), float(law.exponent[0]))


def _crossing(base: Points, other: Points, unique: float) -> Crossing:
    low = math.log(max(base.flops_R.min(), other.flops_R.min()))
    high = math.log(min(base.flops_R.max(), other.flops_R.max()))
    if low >= high:
        return Crossing(base.series, other.series, unique, math.nan, "the runs share no range of FLOPs")
    at = np.linspace(low, high, 2001)
    gap = _best_until(other, at) - _best_until(base, at)
    span = f"between {math.exp(low):.2e} and {math.exp(high):.2e} FLOPs"
    behind = np.flatnonzero(gap > 0)
    if not len(behind):
        return Crossing(base.series, other.series, unique, math.nan, f"{other.series} is ahead everywhere {span}")
    if behind[-1] == len(at) - 1:
        return Crossing(base.series, other.series, unique, math.nan, f"{other.series} is behind by {gap[-1]:.3f} nats at the end {span}")
    place = behind[-1]
    flops = math.exp(at[place] + (at[place + 1] - at[place]) * gap[place] / (gap[place] - gap[place + 1]))
    return Crossing(base.series, other.series, unique, flops, f"{other.series} is ahead from {flops:.2e} FLOPs on")


def _best_until(points: Points, at: np.ndarray) -> np.ndarray:
    """Lowest loss of any run up to each log FLOPs, straight between the runs that lower it."""
    order = np.argsort(points.flops_R)
    loss_R = np.minimum.accumulate(points.loss_R[order])
    keep_R = np.concatenate([[True], np.diff(loss_R) < 0])
    return np.interp(at, np.log(points.flops_R[order])[keep_R], loss_R[keep_R])
