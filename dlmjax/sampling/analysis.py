"""What a denoising trace says: when a text was settled, what was taken back, and in which order its tokens came.

A text is settled at the first state from which on it does not change any more. What is looked at is either the shown tokens of a trace,
where a hole is no token, or its completed texts (`completed`), in which the network's best guess stands in every hole: then a text may be
settled long before its last token is shown, and stopping there would have cost nothing.

Functions of plain arrays; nothing is sampled here. Shapes: S states (the start and one per step), B rows, L positions.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int

from dlmjax.sampling.trace import HIDDEN, Trace

Texts = Int[np.ndarray, "S B L"]


def made(trace: Trace) -> Bool[np.ndarray, "B L"]:
    """Positions that were not given."""
    return ~trace.canvas.frozen_BL


def completed(trace: Trace, guess: Callable[[np.ndarray, np.ndarray, float], np.ndarray]) -> Texts:
    """The text of each state with a best guess in every hole.

    guess(shown_BL, masked_BL, time) -> tokens [B, L]: what the network thinks most likely; read in holes only.
    """
    states = zip(trace.shown_SBL, trace.times_S, strict=True)
    return np.stack([np.where(shown_BL == HIDDEN, guess(shown_BL, shown_BL == HIDDEN, float(time)), shown_BL) for shown_BL, time in states])


def settled(texts_SBL: Texts) -> Int[np.ndarray, "B L"]:
    """For each token, the first state from which on it is the final one."""
    other_SBL = texts_SBL != texts_SBL[-1]
    return np.where(other_SBL.any(axis=0), len(other_SBL) - np.argmax(other_SBL[::-1], axis=0), 0)


def first_stable(texts_SBL: Texts, made_BL: Bool[np.ndarray, "B L"]) -> Int[np.ndarray, "B"]:
    """For each row, the first state from which on all of its made tokens are the final ones."""
    return np.max(settled(texts_SBL), axis=1, where=made_BL, initial=0)


def first_correct(texts_SBL: Texts, made_BL: Bool[np.ndarray, "B L"], reference_BL: Int[np.ndarray, "B L"]) -> Int[np.ndarray, "B"]:
    """For each row, the first state in which all of its made tokens are those of a reference; -1 = in none. They may change later on."""
    right_SB = np.all((texts_SBL == reference_BL) | ~made_BL, axis=2)
    return np.where(right_SB.any(axis=0), np.argmax(right_SB, axis=0), -1)


def flips(trace: Trace) -> Int[np.ndarray, "B"]:
    """For each row, how often a token that was shown became another one or was hidden again."""
    before_SBL, after_SBL = trace.shown_SBL[:-1], trace.shown_SBL[1:]
    return np.sum((before_SBL != HIDDEN) & (before_SBL != after_SBL) & made(trace), axis=(0, 2))


def order_tau(trace: Trace) -> Float[np.ndarray, "B"]:
    """For each row, Kendall's tau-b between the positions of its made tokens and the steps at which the final ones appeared: 1 from left
    to right, -1 from right to left, about 0 in any order; NaN where all came at once."""
    from scipy.stats import kendalltau  # a second to import, which only this figure requires

    appeared_BL, place_L = settled(trace.shown_SBL), np.arange(trace.canvas.length)
    taus = []
    for appeared_L, made_L in zip(appeared_BL, made(trace), strict=True):
        apart = len(np.unique(appeared_L[made_L])) > 1
        taus.append(kendalltau(place_L[made_L], appeared_L[made_L]).statistic if apart else np.nan)
    return np.asarray(taus, np.float64)
