"""Whether a law is to be trusted: one test, which table, pictures, report and predictions share. Imports no jax.

A law that is not trusted is still printed, with a mark and its reasons, and dotted in the pictures of its objective; pictures that
compare objectives omit it, and a config is written from it only where --method names it.
"""

import math
from typing import Any, Protocol, runtime_checkable

import numpy as np

OFF = 0.05  # of the loss: how far the best loss of a law may lie from the best run of the same budget
FLAT = 1e-9  # of the loss: losses that differ by less are equal, and have no minimum
SAME_BUDGET = 0.05  # decades of FLOPs within which runs have the same budget

# What laws require; below, `fit` refuses them and `sweep plan` warns.
PARAMETRIC_SIZES = 3  # and numbers of tokens: E, A and a are three numbers
ISOFLOP_SIZES, ISOFLOP_SPAN = 4, 0.3  # sizes at a budget, and decades of N that they span (a factor of two)
ISOFLOP_BUDGETS, ENVELOPE_BUDGETS = 2, 3
PARABOLA_VALUES = 3  # of a learning rate or a batch
AGAIN, REPEATED_RUNS = 1.5, 3  # epochs from which a run is one of repeated data, and how many of these there are at least


@runtime_checkable
class BestRuns(Protocol):
    """The part of a law that is tested here: size, tokens and loss of the best run at given FLOPs, and the exponents of the first two."""

    def at(self, flops: Any) -> dict[str, Any]: ...

    def exponents(self) -> dict[str, Any]: ...


def is_flat(loss_R: np.ndarray) -> bool:
    """Are all losses equal, to rounding?"""
    return bool(np.ptp(loss_R) <= FLAT * np.abs(loss_R).max())


def best_runs(flops_R: np.ndarray, loss_R: np.ndarray, group_R: np.ndarray) -> list[tuple[float, float]]:
    """(FLOPs, lowest loss) of each budget; FLOPs are the geometric mean of its runs. Runs of no budget (-1) are left out."""
    groups = [group_R == g for g in range(int(group_R.max(initial=-1)) + 1)]
    return [(float(np.exp(np.log(flops_R[in_R]).mean())), float(loss_R[in_R].min())) for in_R in groups]


def measured(flops_R: np.ndarray, loss_R: np.ndarray, group_R: np.ndarray, flops: float) -> float:
    """The lowest loss among the runs of a budget of `flops`, or of no budget and `flops`; nan where there are none."""
    budgets = best_runs(flops_R, loss_R, group_R)
    alone_R = group_R < 0
    budgets += list(zip(flops_R[alone_R].tolist(), loss_R[alone_R].tolist(), strict=True))
    return min((loss for at, loss in budgets if abs(math.log10(at / flops)) <= SAME_BUDGET), default=math.nan)


def doubts(law: BestRuns, budgets: list[tuple[float, float]], boundaries: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Why a law is not to be trusted, a line each; none where it is.

    Args:
      budgets: (FLOPs, lowest loss) of the runs that it was fitted to. boundaries: of the fit of its parameters.
    """
    reasons = [f"boundary: {reason}" for reason in boundaries]
    best = [(flops, loss, law.at(flops)) for flops, loss in budgets]
    if not all(math.isfinite(number) for _, _, at in best for number in at.values()):
        return (*reasons, "no numbers: its best size, tokens or loss are not finite at the budgets of its runs")
    for name, text in (("size", "N*"), ("tokens", "D*")):
        exponent = float(law.exponents()[name])
        if exponent < 0:
            reasons.append(f"falling: {text} ~ C^{exponent:.3g} falls as FLOPs grow")
    if len(best) > 1 and best[-1][2]["loss"] > best[0][2]["loss"]:
        reasons.append("rising: its best loss grows with FLOPs")
    worst = max(best, key=lambda row: abs(row[2]["loss"] / row[1] - 1), default=None)
    if worst and abs(worst[2]["loss"] / worst[1] - 1) > OFF:
        flops, loss, at = worst
        far = at["loss"] - loss
        reasons.append(
            f"off its runs: at {flops:.3g} FLOPs its best loss is {abs(far):.3g} nats {'below' if far < 0 else 'above'} the best run's, "
            f"{loss:.4g}"
        )
    return tuple(reasons)


def edge(size_R: np.ndarray, loss_R: np.ndarray, group_R: np.ndarray) -> str:
    """Why the best runs of the budgets do not say how the best size grows; empty where at least two lie between other sizes.

    A budget counts where it has three sizes: with fewer, none lies between others.
    """
    ends = []
    for g in range(int(group_R.max(initial=-1)) + 1):
        sizes, losses = size_R[group_R == g], loss_R[group_R == g]
        if len(np.unique(sizes)) >= 3:
            best = sizes[losses.argmin()]
            ends.append("smallest" if best == sizes.min() else "largest" if best == sizes.max() else "")
    inside = ends.count("")
    if not ends or inside >= 2:
        return ""
    found = [(ends.count(end), end) for end in ("smallest", "largest") if end in ends]
    counts = " and ".join(f"the {end} size in {count} of {len(ends)} budgets" for count, end in found)
    add = " and ".join({"smallest": "smaller", "largest": "larger"}[end] for _, end in found)
    return f"edge: the best run has {counts}; add {add} sizes"


def contradiction(ratio: float, base: float, other: float) -> bool:
    """Whether a ratio of compute puts one objective ahead where the best runs of the same budget put the other ahead.

    base, other: the lowest losses of the two; nan where there is no run.
    """
    return (ratio < 1 and other > base) or (ratio > 1 and other < base)
