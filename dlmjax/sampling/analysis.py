"""Statistics of a denoising trace: the step at which a text is settled, the tokens that change, and the order in which tokens are revealed.

A text is settled at the first state from which on it does not change. The functions take either the revealed tokens of a trace or its
completed texts (`completed`), which hold the most likely x0 prediction at every masked position. A completed text may be settled long
before its last token is revealed; sampling could then stop there without a change of the text.

Functions of arrays; no network is called here. Shapes: S states (the start and one per step), B rows, L positions.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int

from dlmjax.sampling.trace import MASKED, Trace

Texts = Int[np.ndarray, "S B L"]


def generated(trace: Trace) -> Bool[np.ndarray, "B L"]:
    """Positions that the sampler filled."""
    return ~trace.canvas.condition_mask_BL


def completed(trace: Trace, predict_x0: Callable[[np.ndarray, np.ndarray, float], np.ndarray]) -> Texts:
    """The text of each state with the most likely x0 prediction at every masked position.

    predict_x0(tokens_BL, masked_BL, time) -> most likely tokens [B, L]; only those at masked positions are used.
    """
    texts = []
    for tokens_BL, time in zip(trace.tokens_SBL, trace.times_S, strict=True):
        masked_BL = tokens_BL == MASKED
        texts.append(np.where(masked_BL, predict_x0(tokens_BL, masked_BL, float(time)), tokens_BL))
    return np.stack(texts)


def settled(texts_SBL: Texts) -> Int[np.ndarray, "B L"]:
    """First state from which on each token is the final one."""
    other_SBL = texts_SBL != texts_SBL[-1]
    return np.where(other_SBL.any(axis=0), len(other_SBL) - np.argmax(other_SBL[::-1], axis=0), 0)


def first_stable(texts_SBL: Texts, generated_BL: Bool[np.ndarray, "B L"]) -> Int[np.ndarray, "B"]:
    """First state of each row from which on all generated tokens are the final ones."""
    return np.max(settled(texts_SBL), axis=1, where=generated_BL, initial=0)


def first_correct(texts_SBL: Texts, generated_BL: Bool[np.ndarray, "B L"], reference_BL: Int[np.ndarray, "B L"]) -> Int[np.ndarray, "B"]:
    """First state of each row in which all generated tokens are those of a reference; -1 = none. They may change in later states."""
    right_SB = np.all((texts_SBL == reference_BL) | ~generated_BL, axis=2)
    return np.where(right_SB.any(axis=0), np.argmax(right_SB, axis=0), -1)


def flips(trace: Trace) -> Int[np.ndarray, "B"]:
    """Number of changes of revealed tokens in each row, to a different token or to the mask."""
    before_SBL, after_SBL = trace.tokens_SBL[:-1], trace.tokens_SBL[1:]
    return np.sum((before_SBL != MASKED) & (before_SBL != after_SBL) & generated(trace), axis=(0, 2))


def order_tau(trace: Trace) -> Float[np.ndarray, "B"]:
    """Kendall's tau-b of each row between the positions of generated tokens and the states at which the final ones appeared.

    1: from left to right; -1: from right to left; about 0: in random order; NaN: all in the same state.
    """
    from scipy.stats import kendalltau  # takes a second to import

    appeared_BL, index_L = settled(trace.tokens_SBL), np.arange(trace.canvas.length)
    taus = []
    for appeared_L, generated_L in zip(appeared_BL, generated(trace), strict=True):
        differ = len(np.unique(appeared_L[generated_L])) > 1
        taus.append(kendalltau(index_L[generated_L], appeared_L[generated_L]).statistic if differ else np.nan)
    return np.asarray(taus, np.float64)
