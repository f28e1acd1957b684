"""Error bars by resampling, as weights on the runs, so that all resamples are fitted together. Imports no jax.

Two kinds of blocks. "runs": each budget keeps its number of runs, and its runs are drawn again with replacement: what another set of
runs on the same grid would have given. "budgets": budgets are drawn with replacement and then runs within each: effects that are common
to a budget (a learning rate that suits one scale less) then are part of the error; with few budgets these intervals are rough.
Intervals are percentiles of the resamples, 80 % and 95 %.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

LEVELS = (0.80, 0.95)
BLOCKS = ("runs", "budgets")


@dataclasses.dataclass(frozen=True)
class Interval:
    """Percentile intervals of one number, infinite at an end beyond which there is no bound. lost: resamples that gave no value (of
    `resamples`)."""

    estimate: float
    low_80: float
    high_80: float
    low_95: float
    high_95: float
    resamples: int
    lost: int

    def record(self) -> dict[str, float | list[float] | int | None]:
        """Plain JSON in full precision, null for what is infinite or not known."""
        result = {"estimate": _plain(self.estimate), "80": [_plain(self.low_80), _plain(self.high_80)]}
        return result | {"95": [_plain(self.low_95), _plain(self.high_95)], "resamples": self.resamples, "lost": self.lost}


def draw(group_R: np.ndarray, resamples: int, blocks: str, seed: int, times: int = 1, point_R: np.ndarray | None = None) -> np.ndarray:
    """Weights of the runs, [S, R]: how often each is drawn, over `times`. Runs in no budget (-1), and those that are alone in theirs, are
    one block together: drawn from a block of one, a run would have no error.

    blocks: "runs" or "budgets". times: multiple of its runs that is drawn from a budget.
    point_R: what distinguishes the runs of a budget (their sizes); equal seeds draw the same sweep points of two objectives.
    """
    labels, counts = np.unique(group_R, return_counts=True)
    group_R = np.where(np.isin(group_R, labels[counts == 1]), -1, group_R)
    labels = np.unique(group_R)
    weight_SR = np.zeros((resamples, len(group_R)))
    times_SG = np.ones((resamples, len(labels)), int)
    if blocks == "budgets" and len(labels) > 1:
        rng = np.random.default_rng(seed)
        times_SG = rng.multinomial(len(labels), np.full(len(labels), 1 / len(labels)), size=resamples)
    for g, label in enumerate(labels):
        rng = np.random.default_rng(
            [seed, g]
        )  # one for each budget: a run that one of two objectives lacks moves the draws of its budget alone
        index = np.flatnonzero(group_R == label)
        if point_R is not None:
            index = index[np.argsort(point_R[index], kind="stable")]
        draws_S = times * times_SG[:, g] * len(index)
        weight_SR[:, index] = rng.multinomial(draws_S, np.full(len(index), 1 / len(index))) / times
    return weight_SR


def interval(estimate: float, values_S: np.ndarray) -> Interval:
    """Percentiles of the values that there are; infinite ones count as what they are, and are not interpolated."""
    known = values_S[~np.isnan(values_S)]
    if not len(known):
        return Interval(float(estimate), *[np.nan] * 4, len(values_S), len(values_S))
    method = "linear" if np.isfinite(known).all() else "inverted_cdf"
    low_95, low_80, high_80, high_95 = np.percentile(known, [2.5, 10, 90, 97.5], method=method)
    return Interval(float(estimate), low_80, high_80, low_95, high_95, len(values_S), len(values_S) - len(known))


def intervals(estimates: Mapping[str, float], values: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """`interval` of each by name, as JSON."""
    return {name: interval(estimates[name], np.asarray(values[name])).record() for name in estimates}


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
