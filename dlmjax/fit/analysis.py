"""One objective under one definition of N: the three approaches, their error bars, their predictions of a held-out budget. Imports no jax.

The result of each approach is a `ScalingLaw`: best size, tokens and loss at given FLOPs; its numbers may be arrays of resamples.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dlmjax.errors import InputError
from dlmjax.fit import bootstrap, envelope, fitness, forms, huber, isoflop
from dlmjax.fit.fitness import ENVELOPE_BUDGETS, PARAMETRIC_SIZES
from dlmjax.fit.forms import ADDITIVE, Compute
from dlmjax.fit.isoflop import IsoFlop, PowerLaw
from dlmjax.fit.points import FREE_EPOCHS, Points

METHODS = ("parametric", "isoflop", "envelope")
FAR = 300.0  # larger logarithms overflow in sums and powers
BEST = ("size", "tokens", "loss")


@dataclasses.dataclass(frozen=True)
class ScalingLaw:
    """Best size, tokens and loss at given FLOPs.

    values: E, A, B, a, b (parametric), or size_coefficient, size_exponent, tokens_..., loss_..., loss_floor (the other two).
    They are numbers or arrays [S].
    compute: FLOPs of a run; used by the parametric law alone.
    """

    method: str
    values: Mapping[str, Any]
    compute: Compute = Compute()

    def at(self, flops: Any) -> dict[str, Any]:
        """size, tokens and loss (nats per token) of the best run of these FLOPs."""
        if self.method == "parametric":
            return dict(zip(BEST, forms.optimum(self.values, flops, self.compute), strict=True))
        return {name: self._power(name)(flops) for name in BEST}

    def frontier(self) -> tuple[Any, Any, Any]:
        """E, K, g of the best loss L(C) = E + K C^-g; E = 0 where the law has none."""
        if self.method != "parametric":
            law = self._power("loss")
            return law.floor, law.coefficient, -np.asarray(law.exponent)
        a, b = np.asarray(self.values["a"]), np.asarray(self.values["b"])
        g = a * b / (a + self.compute.rho * b)
        scale = 1e18  # any compute does: the law is exact; a large one keeps its terms small
        K = (self.at(scale)["loss"] - np.asarray(self.values["E"])) * scale**g
        return np.asarray(self.values["E"]), K, g

    def exponents(self) -> dict[str, Any]:
        """Of N*(C) and D*(C)."""
        if self.method != "parametric":
            return {name: self.values[f"{name}_exponent"] for name in ("size", "tokens")}
        a, b = np.asarray(self.values["a"]), np.asarray(self.values["b"])
        return {"size": b / (a + self.compute.rho * b), "tokens": a / (a + self.compute.rho * b)}

    def _power(self, name: str) -> PowerLaw:
        floor = self.values["loss_floor"] if name == "loss" else 0.0
        return PowerLaw(self.values[f"{name}_coefficient"], self.values[f"{name}_exponent"], floor)


@dataclasses.dataclass(frozen=True)
class Analysis:
    """All fits to the runs of one objective under one definition of N.

    points: the runs that were used, see `usable`; group_R: their budgets. laws: by method, those that could be fitted; refused: why
    the others could not. resampled: by blocks and method. held_out: by method, how the law of all but the largest budget does there.
    doubts: by method, why a law is not to be trusted (`fitness`); laws without an entry are trusted.
    """

    points: Points
    definition: str
    group_R: np.ndarray
    compute: Compute
    laws: dict[str, ScalingLaw]
    refused: dict[str, str]
    parametric: huber.Fit | None
    isoflop: IsoFlop
    on_envelope_R: np.ndarray
    resampled: dict[str, dict[str, ScalingLaw]]
    held_out: dict[str, dict[str, float]]
    doubts: dict[str, tuple[str, ...]]

    @property
    def trusted(self) -> tuple[str, ...]:
        """Methods whose laws are to be trusted, in the order of METHODS."""
        return tuple(method for method in METHODS if method in self.laws and method not in self.doubts)

    def measured(self, flops: float) -> float:
        """Lowest loss of the runs of a budget; nan where there are none."""
        return fitness.measured(self.points.flops_R, self.points.loss_R, self.group_R, flops)


def usable(points: Points) -> tuple[Points, int]:
    """The runs of at most FREE_EPOCHS epochs, and the number of runs with more."""
    repeated_R = points.epochs_R > FREE_EPOCHS
    return points.take(~repeated_R), int(repeated_R.sum())


def compute_of(points: Points, definition: str) -> Compute:
    """C = k N^rho D through the runs (least squares in logarithms); k = 1, rho = 1 where N is FLOPs per token.

    Raises InputError: FLOPs that do not follow such a law.
    """
    size_R, per_token_R = points.sizes[definition], points.flops_R / points.tokens_R
    if definition == "flops_per_token":
        return Compute(1.0, 1.0)
    if np.allclose(per_token_R, 6 * size_R, rtol=1e-3) or len(np.unique(size_R)) < 2:
        return Compute(float(np.exp(np.log(per_token_R / size_R).mean())), 1.0)
    rho, log_k = np.polyfit(np.log(size_R), np.log(per_token_R), 1)
    off_R = np.log(per_token_R) - log_k - rho * np.log(size_R)
    if not max(abs(log_k), np.abs(off_R).max()) < FAR:
        raise InputError(
            f"objective {points.objective!r}: FLOPs per token do not follow N = {definition}; check parameters, tokens and FLOPs"
        )
    worst = np.abs(np.expm1(off_R)).max()
    return Compute(math.exp(log_k), float(rho), float(worst))


def analyse(points: Points, definition: str = "total", *, resamples: int = 1000, seed: int = 0) -> Analysis:
    """Fits all three approaches.

    Args:
      points: runs of one objective, as `usable` returns them.
      resamples: of the bootstrap, for each kind of block; 0 = no error bars. seed: of the resamples; the same seed and grid draw the same
        runs of two objectives, so that common effects (data order, validation set) cancel where they are compared.
    Raises InputError: no approach has enough runs, or all losses are equal.
    """
    if not len(points):
        raise InputError(
            f"objective {points.objective!r} has no run of at most {FREE_EPOCHS:g} epochs; the laws of new tokens require some"
        )
    if len(points) > 1 and fitness.is_flat(points.loss_R):
        raise InputError(
            f"objective {points.objective!r}: these losses have no minimum, all {len(points)} are {points.loss_R[0]:.6g}; "
            "give the runs' own validation losses"
        )
    group_R = points.groups()
    compute = compute_of(points, definition)
    laws, refused, parametric, iso = _fit(points, definition, group_R, compute)
    if not laws:
        reasons = "; ".join(f"{method}: {reason}" for method, reason in refused.items())
        raise InputError(f"objective {points.objective!r} has too few runs for any law ({reasons}); add sizes and budgets")
    on_R = envelope.front(points.flops_R, points.loss_R, group_R, np.ones((1, len(points))))[0]
    resampled = {}
    for blocks in bootstrap.BLOCKS if resamples else ():
        weight_SR = bootstrap.draw(group_R, resamples, blocks, seed, point_R=points.point_R)
        times = 2 if blocks == "runs" else 1
        drawn_SR = weight_SR if times == 1 else bootstrap.draw(group_R, resamples, blocks, seed, times, points.point_R)
        resampled[blocks] = {}
        if parametric is not None:
            resampled[blocks]["parametric"] = _resampled_parametric(points, definition, compute, parametric, weight_SR)
        if "envelope" in laws:
            through = envelope.laws(*_arrays(points, definition, group_R), weight_SR)
            resampled[blocks]["envelope"] = ScalingLaw("envelope", _powers(through), compute)
        if "isoflop" in laws:
            found = isoflop.resample(*_arrays(points, definition, group_R), drawn_SR, times=times)
            resampled[blocks]["isoflop"] = ScalingLaw("isoflop", _powers(found), compute)
    held_out = _held_out(points, definition, group_R, iso, parametric)
    doubts = _doubts(points, definition, group_R, laws, parametric)
    return Analysis(points, definition, group_R, compute, laws, refused, parametric, iso, on_R, resampled, held_out, doubts)


def _doubts(
    points: Points, definition: str, group_R: np.ndarray, laws: Mapping[str, ScalingLaw], parametric: huber.Fit | None
) -> dict[str, tuple[str, ...]]:
    budgets = fitness.best_runs(points.flops_R, points.loss_R, group_R)
    at_edge = fitness.edge(points.sizes[definition], points.loss_R, group_R)
    found = {}
    for method, law in laws.items():
        boundaries = parametric.boundaries if method == "parametric" and parametric is not None else ()
        reasons = fitness.doubts(law, budgets, boundaries)
        if method == "envelope" and at_edge:
            reasons = (at_edge, *reasons)
        if reasons:
            found[method] = reasons
    return found


def _arrays(points: Points, definition: str, group_R: np.ndarray) -> tuple[np.ndarray, ...]:
    return points.sizes[definition], points.tokens_R, points.flops_R, points.loss_R, group_R


def _powers(found: Mapping[str, PowerLaw]) -> dict[str, Any]:
    parts = {f"{name}_coefficient": law.coefficient for name, law in found.items()}
    parts |= {f"{name}_exponent": law.exponent for name, law in found.items()}
    return parts | {"loss_floor": found["loss"].floor}


def _fit(
    points: Points, definition: str, group_R: np.ndarray, compute: Compute, warm: np.ndarray | None = None
) -> tuple[dict[str, ScalingLaw], dict[str, str], huber.Fit | None, IsoFlop]:
    """Laws by method, reasons for those that are missing, and the details of two of them."""
    laws, refused, parametric = {}, {}, None
    try:
        sizes, tokens = len(np.unique(points.sizes[definition])), len(np.unique(points.tokens_R))
        if min(sizes, tokens) < 2:
            raise InputError("runs of one size, or of one number of tokens, do not determine the other exponent")
        if min(sizes, tokens) < PARAMETRIC_SIZES:
            raise InputError(f"runs of {sizes} sizes and {tokens} numbers of tokens; at least {PARAMETRIC_SIZES} of each are needed")
        if not compute.rho > 0:
            raise InputError(f"FLOPs per token do not grow with N (C ~ N^{compute.rho:.3g} D), so no size is the best")
        parametric = huber.fit(ADDITIVE, points.columns(definition), points.loss_R, warm=warm)
        laws["parametric"] = ScalingLaw("parametric", parametric.values, compute)
    except InputError as error:
        refused["parametric"] = str(error)
    iso = isoflop.fit(*_arrays(points, definition, group_R))
    if iso.laws:
        laws["isoflop"] = ScalingLaw("isoflop", _powers(iso.laws), compute)
    else:
        refused["isoflop"] = f"{len(iso.accepted)} of {len(iso.minima)} budgets have a minimum that counts; at least 2 are needed"
    every = np.ones((1, len(points)))
    through = {name: isoflop.first(law) for name, law in envelope.laws(*_arrays(points, definition, group_R), every).items()}
    count = envelope.front(points.flops_R, points.loss_R, group_R, every).sum()
    if len(np.unique(points.sizes[definition])) < 2:
        refused["envelope"] = "runs of one size do not determine the best one"
    elif count >= ENVELOPE_BUDGETS:
        laws["envelope"] = ScalingLaw("envelope", _powers(through), compute)
    else:
        refused["envelope"] = f"{count} runs are the best at their compute; at least {ENVELOPE_BUDGETS} are needed"
    return laws, refused, parametric, iso


def _resampled_parametric(points: Points, definition: str, compute: Compute, parametric: huber.Fit, weight_SR: np.ndarray) -> ScalingLaw:
    """The parametric law of each set of weights. Fits start from the whole one: resamples lie near it."""
    columns = {name: points.columns(definition)[name] for name in ADDITIVE.columns}
    start_SP = np.tile(parametric.theta_P, (len(weight_SR), 1))
    theta_SP, _ = huber.solve(ADDITIVE, columns, np.log(points.loss_R), weight_SR, start_SP)
    return ScalingLaw("parametric", ADDITIVE.values(theta_SP), compute)


def _held_out(points: Points, definition: str, group_R: np.ndarray, iso: IsoFlop, parametric: huber.Fit | None) -> dict:
    """The laws of all smaller budgets against the largest: error of the loss of its runs (parametric), N* against its own minimum."""
    largest = group_R.max(initial=-1)
    rest_R = group_R != largest
    if largest < 1 or rest_R.all():
        return {}
    rest, last = points.take(rest_R), points.take(~rest_R)
    warm = parametric.theta_P if parametric is not None else None
    laws, _, fitted, of_rest = _fit(rest, definition, rest.groups(), compute_of(rest, definition), warm)
    target = iso.minima[largest]
    found = {}
    for method, law in laws.items():
        best = law.at(target.flops)
        row = {"flops": target.flops, "runs": len(last)}
        if not target.rejected:
            row |= {"size_ratio": float(best["size"] / target.size)}
            # A law that has no floor because minima are too few is not the law whose error is measured here.
            if method != "isoflop" or isoflop.has_floor(iso) == isoflop.has_floor(of_rest):
                row |= {"loss_error": float(best["loss"] / target.loss - 1)}
        if method == "parametric" and fitted is not None:
            columns = {name: last.columns(definition)[name] for name in ADDITIVE.columns}
            error_R = np.exp(ADDITIVE.log_loss(fitted.theta_P, columns)) / last.loss_R - 1
            row |= {"mean_abs_error": float(np.abs(error_R).mean()), "bias": float(error_R.mean())}
        found[method] = row
    return found
