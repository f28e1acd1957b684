"""Approach 1: the best run at each compute, and power laws through these (2203.15556 section 3.1). Imports no jax.

Only ends of runs are used, never points during a run: before the learning rate has decayed, the loss is above what the budget can reach.
Hence sizes come in the steps of the grid, and so do the laws; the envelope is a check on the others more than a law of its own.
"""

import numpy as np

from dlmjax.fit.isoflop import PowerLaw, power_law

BIN = 0.25  # decades of FLOPs that compete with each other where runs have no budgets


def bins(flops_R: np.ndarray, group_R: np.ndarray) -> np.ndarray:
    """Which runs compete: those of a budget, or of a quarter of a decade, numbered by FLOPs [R]."""
    if (group_R >= 0).all():
        return group_R
    _, label_R = np.unique(np.floor(np.log10(flops_R) / BIN), return_inverse=True)
    return label_R


def front(flops_R: np.ndarray, loss_R: np.ndarray, group_R: np.ndarray, weight_SR: np.ndarray) -> np.ndarray:
    """The runs on the envelope, [S, R] booleans: best of their bin, and better than everything that cost less."""
    bin_R = bins(flops_R, group_R)
    drawn_SR = np.where(weight_SR > 0, loss_R, np.inf)
    on_SR = np.zeros(drawn_SR.shape, bool)
    least_S = np.full(len(drawn_SR), np.inf)
    for b in range(bin_R.max() + 1):
        index = np.flatnonzero(bin_R == b)
        best_S = index[drawn_SR[:, index].argmin(1)]
        loss_S = np.take_along_axis(drawn_SR, best_S[:, None], 1)[:, 0]
        better_S = loss_S < least_S
        on_SR[np.flatnonzero(better_S), best_S[better_S]] = True
        least_S = np.minimum(least_S, loss_S)
    return on_SR


def laws(
    size_R: np.ndarray, tokens_R: np.ndarray, flops_R: np.ndarray, loss_R: np.ndarray, group_R: np.ndarray, weight_SR: np.ndarray
) -> dict[str, PowerLaw]:
    """N(C), D(C) and L(C) along the envelope of each resample; nan where it has fewer than two runs."""
    on_SR = front(flops_R, loss_R, group_R, weight_SR).astype(float)
    return {
        name: power_law(flops_R[None], values[None], on_SR) for name, values in (("size", size_R), ("tokens", tokens_R), ("loss", loss_R))
    }
