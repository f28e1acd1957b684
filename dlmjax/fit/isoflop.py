"""Approach 2: at each budget a parabola of the loss in log N; power laws through the minima (2203.15556 section 3.2). Imports no jax.

A minimum counts only where the runs show one. Rejected, with the reason: a concave parabola; a minimum at or beyond the edge of the sizes
that were tried; sizes that span too little, or a curvature that does not stand out of the scatter. The parabola is an approximation: at
+-1.5 decades around the minimum its bias in N* reaches 8 %, at +-0.5 it is below 1 %.

Shapes: S resamples, R runs, G budgets. All resamples are solved together, as weights on the runs.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from dlmjax.fit import fitness
from dlmjax.fit.fitness import ISOFLOP_BUDGETS, ISOFLOP_SIZES, ISOFLOP_SPAN

MAX_SPREAD = 1.5  # of the FLOPs of one budget, as a factor
MIN_SIGNIFICANCE = 2.0  # curvature in standard errors
_FAR = 20.0  # factors of e beyond the sizes tried
MIN_FOR_FLOOR = 4  # minima from which the best loss may have a floor


@dataclasses.dataclass(frozen=True)
class Minimum:
    """One budget. flops: geometric mean over its runs. size, tokens, loss: of the minimum; nan where there is no parabola at all.
    curvature: nats per (factor e of N)^2. rejected: why it does not count; empty where it does."""

    flops: float
    runs: int
    size: float
    tokens: float
    loss: float
    curvature: float
    rejected: str


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """y = floor + coefficient x^exponent. Arrays [S] for resamples."""

    coefficient: float | np.ndarray
    exponent: float | np.ndarray
    floor: float | np.ndarray = 0.0

    def __call__(self, x):
        return self.floor + self.coefficient * np.asarray(x, float) ** self.exponent


@dataclasses.dataclass(frozen=True)
class IsoFlop:
    """All budgets, and the laws N*(C), D*(C), L*(C) = E + K C^-g through the minima that count (none with fewer than two)."""

    minima: tuple[Minimum, ...]
    laws: dict[str, PowerLaw]

    @property
    def accepted(self) -> tuple[Minimum, ...]:
        return tuple(minimum for minimum in self.minima if not minimum.rejected)


def power_law(x_SG: np.ndarray, y_SG: np.ndarray, weight_SG: np.ndarray) -> PowerLaw:
    """Least squares in logarithms, for each of S sets of weights; nan where fewer than two different x have weight."""
    x_SG, y_SG, weight_SG = np.broadcast_arrays(np.log(x_SG), np.log(y_SG), weight_SG)
    weight_SG = np.where(np.isfinite(y_SG) & np.isfinite(x_SG), weight_SG, 0.0)
    y_SG, x_SG = np.where(weight_SG > 0, y_SG, 0.0), np.where(weight_SG > 0, x_SG, 0.0)
    total_S = weight_SG.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        x_S, y_S = (weight_SG * x_SG).sum(-1) / total_S, (weight_SG * y_SG).sum(-1) / total_S
        spread_S = (weight_SG * (x_SG - x_S[..., None]) ** 2).sum(-1)
        slope_S = (weight_SG * (x_SG - x_S[..., None]) * (y_SG - y_S[..., None])).sum(-1) / spread_S
        slope_S = np.where(spread_S > 1e-9 * total_S, slope_S, math.nan)
        return PowerLaw(np.exp(y_S - slope_S * x_S), slope_S)


def has_floor(found: IsoFlop) -> bool:
    """Whether there are enough minima for a floor of the loss."""
    return len(found.accepted) >= MIN_FOR_FLOOR


def floored_power_law(x_G: np.ndarray, y_SG: np.ndarray, weight_SG: np.ndarray, floor: float = 0.0) -> PowerLaw:
    """y = E + K x^p for each of S sets: a straight line in logarithms for each of a hundred floors E, up to 95 % of the lowest y, and of
    these the one with the least squares in log y. Sets of fewer than MIN_FOR_FLOOR points have E = `floor`, or 95 % of their lowest y where
    that is less."""
    known_SG = np.isfinite(y_SG) & (weight_SG > 0)
    lowest_S = np.where(known_SG, y_SG, math.inf).min(-1)
    lowest_S = np.where(np.isfinite(lowest_S), lowest_S, 0.0)
    few_S = known_SG.sum(-1) < MIN_FOR_FLOOR
    floor_KS = np.linspace(0.0, 0.95, 96)[:, None] * lowest_S
    floor_KS = np.where(few_S, np.minimum(floor, 0.95 * lowest_S), floor_KS)
    law = power_law(x_G[None, None], y_SG - floor_KS[..., None], weight_SG)
    line_KSG = floor_KS[..., None] + law.coefficient[..., None] * x_G ** law.exponent[..., None]
    error_KSG = (np.log(line_KSG) - np.log(np.where(known_SG, y_SG, 1.0))) ** 2
    error_KS = np.where(known_SG, weight_SG * error_KSG, 0.0).sum(-1)
    best_KS = np.nan_to_num(error_KS, nan=math.inf).argmin(0)[None]
    return PowerLaw(*(np.take_along_axis(part, best_KS, 0)[0] for part in (law.coefficient, law.exponent, floor_KS)))


def parabola(x_R: np.ndarray, y_R: np.ndarray, weight_SR: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted least squares of y = low + curvature (x - at)^2: at, low, curvature, each [S]; nan with fewer than three different x."""
    middle, scale = x_R.mean(), max(np.ptp(x_R) / 2, 1e-12)
    basis_RP = np.vander((x_R - middle) / scale, 3)
    normal_SPP = np.einsum("sr,rp,rq->spq", weight_SR, basis_RP, basis_RP)
    right_SP = np.einsum("sr,rp,r->sp", weight_SR, basis_RP, y_R)
    usable_S = np.linalg.cond(normal_SPP) < 1e10
    normal_SPP[~usable_S] = np.eye(3)
    second_S, first_S, zeroth_S = np.linalg.solve(normal_SPP, right_SP[..., None])[..., 0].T
    with np.errstate(invalid="ignore", divide="ignore"):
        at_S = -first_S / (2 * second_S)
        low_S = zeroth_S - first_S**2 / (4 * second_S)
    hide = np.where(usable_S, 1.0, math.nan)
    return (middle + scale * at_S) * hide, low_S * hide, second_S / scale**2 * hide


def fit(size_R: np.ndarray, tokens_R: np.ndarray, flops_R: np.ndarray, loss_R: np.ndarray, group_R: np.ndarray) -> IsoFlop:
    """Parabolas and laws for runs in budgets `group_R` (-1: in none)."""
    minima = [
        _minimum(size_R[group_R == g], tokens_R[group_R == g], flops_R[group_R == g], loss_R[group_R == g])
        for g in range(int(group_R.max(initial=-1)) + 1)
    ]
    good = [minimum for minimum in minima if not minimum.rejected]
    if len(good) < ISOFLOP_BUDGETS:
        return IsoFlop(tuple(minima), {})
    flops_G = np.array([minimum.flops for minimum in good])
    values = {name: np.array([[getattr(minimum, name) for minimum in good]]) for name in ("size", "tokens", "loss")}
    return IsoFlop(tuple(minima), {name: first(law) for name, law in _laws(flops_G, values, np.ones((1, len(good)))).items()})


def first(law: PowerLaw) -> PowerLaw:
    """The law of the first of the resamples, as numbers."""
    return PowerLaw(*(float(np.atleast_1d(part)[0]) for part in (law.coefficient, law.exponent, law.floor)))


def _laws(flops_G: np.ndarray, values: dict[str, np.ndarray], weight_SG: np.ndarray, floor: float = 0.0) -> dict[str, PowerLaw]:
    """Sizes and tokens on power laws, losses on one with a floor, which is `floor` where there are too few minima for it."""
    laws = {name: power_law(flops_G[None], values[name], weight_SG) for name in ("size", "tokens")}
    return laws | {"loss": floored_power_law(flops_G, values["loss"], weight_SG, floor)}


def resample(
    size_R: np.ndarray,
    tokens_R: np.ndarray,
    flops_R: np.ndarray,
    loss_R: np.ndarray,
    group_R: np.ndarray,
    weight_SR: np.ndarray,
    times: int = 1,
) -> dict[str, PowerLaw]:
    """The laws of S resamples.

    times: 1, or how often as many runs were drawn in each budget as it has (`bootstrap.draw`). A parabola through few runs scatters too
    much where a resample lost some of its sizes, and too little otherwise, since it takes three parameters from n runs. With times > 1
    hardly a size is lost, and each minimum's deviation is stretched by sqrt(times n / (n - 3)), right for both to first order.

    In each, concave parabolas and minima beyond the sizes are left out as they are in `fit`; a budget that
    was rejected as a whole stays out, and a budget counts as often as its runs were drawn (over how many it has). A resample with too few
    budgets for a floor of the loss has that of all runs: otherwise it would follow another law than the estimate."""
    whole = fit(size_R, tokens_R, flops_R, loss_R, group_R)
    at_GS, values = [], {"size": [], "tokens": [], "loss": []}
    weights = []
    for g, minimum in enumerate(whole.minima):
        if minimum.rejected:
            continue
        in_R = group_R == g
        x_R = np.log(size_R[in_R])
        at_S, low_S, curvature_S = parabola(x_R, loss_R[in_R], weight_SR[:, in_R])
        if times > 1:
            stretch = math.sqrt(times * minimum.runs / (minimum.runs - 3))
            at_S = math.log(minimum.size) + stretch * (at_S - math.log(minimum.size))
            low_S = minimum.loss + stretch * (low_S - minimum.loss)
        inside_S = (curvature_S > 0) & (at_S > x_R.min()) & (at_S < x_R.max())
        size_S = np.where(inside_S, np.exp(np.where(inside_S, at_S, 0.0)), math.nan)
        values["size"].append(size_S)
        values["tokens"].append(_tokens_at(size_R[in_R], tokens_R[in_R])(size_S))
        values["loss"].append(np.where(inside_S, low_S, math.nan))
        weights.append(np.where(inside_S, weight_SR[:, in_R].sum(1) / in_R.sum(), 0.0))
        at_GS.append(minimum.flops)
    if len(at_GS) < ISOFLOP_BUDGETS:
        return {}
    flops_G, weight_SG = np.array(at_GS), np.stack(weights, axis=1)
    return _laws(flops_G, {name: np.stack(found, axis=1) for name, found in values.items()}, weight_SG, whole.laws["loss"].floor)


def _tokens_at(size_R: np.ndarray, tokens_R: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Tokens at a size in between, for the same budget: log D is close to linear in log N (exactly so for C = 6 N D)."""
    slope, level = np.polyfit(np.log(size_R), np.log(tokens_R), 1) if len(np.unique(size_R)) > 1 else (0.0, np.log(tokens_R).mean())
    return lambda size: np.exp(level + slope * np.log(size))


def _minimum(size_R: np.ndarray, tokens_R: np.ndarray, flops_R: np.ndarray, loss_R: np.ndarray) -> Minimum:
    flops, runs = float(np.exp(np.log(flops_R).mean())), len(size_R)
    sizes = np.unique(size_R)
    nothing = Minimum(flops, runs, math.nan, math.nan, math.nan, math.nan, "")
    if len(sizes) < ISOFLOP_SIZES:
        return dataclasses.replace(nothing, rejected=f"too narrow: {len(sizes)} sizes, at least {ISOFLOP_SIZES} are needed")
    spread = flops_R.max() / flops_R.min()
    if spread > MAX_SPREAD:
        return dataclasses.replace(nothing, rejected=f"no budget: its runs differ by a factor of {spread:.2g} in FLOPs; name their budgets")
    if fitness.is_flat(loss_R):
        return dataclasses.replace(nothing, rejected=f"flat: all losses are equal, {loss_R[0]:.6g}")
    x_R = np.log(size_R)
    at, low, curvature = (float(each[0]) for each in parabola(x_R, loss_R, np.ones((1, runs))))
    span = np.ptp(x_R) / math.log(10)
    if span < ISOFLOP_SPAN:
        return dataclasses.replace(nothing, rejected=f"too narrow: the sizes span a factor of {10**span:.2g}, at least 2 is needed")
    if not curvature > 0:  # nan: sizes that are equal but for rounding
        reason = "concave: the loss has no minimum between the sizes tried"
        return dataclasses.replace(nothing, curvature=curvature, rejected=reason)
    size = near_exp(at, x_R)
    found = Minimum(flops, runs, size, float(_tokens_at(size_R, tokens_R)(np.float64(size))), low, curvature, "")
    if not sizes[0] < size < sizes[-1]:
        edge, word = ("smallest", "smaller") if size <= sizes[0] else ("largest", "larger")
        return dataclasses.replace(found, rejected=f"edge: the minimum, {size:.3g}, lies beyond the {edge} size tried; add {word} ones")
    significance = _significance(x_R, loss_R, curvature)
    if significance < MIN_SIGNIFICANCE:
        reason = f"too narrow: the curvature is only {significance:.1f} standard errors from none; try a wider range of sizes"
        return dataclasses.replace(found, rejected=reason)
    return found


def near_exp(at: float, x_R: np.ndarray) -> float:
    """exp(at), taken no further than a factor of e^20 from the values tried: a parabola that is all but flat has its vertex anywhere."""
    return math.exp(min(max(at, float(x_R.min()) - _FAR), float(x_R.max()) + _FAR))


def _significance(x_R: np.ndarray, loss_R: np.ndarray, curvature: float) -> float:
    """Curvature in standard errors of its own, by the scatter around the parabola; infinite where no degree of freedom is left."""
    freedom = len(x_R) - 3
    if freedom < 1:
        return math.inf
    basis = np.vander(x_R - x_R.mean(), 3)
    coefficients, *_ = np.linalg.lstsq(basis, loss_R, rcond=None)
    variance = ((loss_R - basis @ coefficients) ** 2).sum() / freedom * np.linalg.inv(basis.T @ basis)[0, 0]
    return curvature / math.sqrt(variance) if variance > 0 else math.inf
