"""MAUVE (Pillutla et al. 2102.01454; JMLR 2023) by its authors' library `mauve-text`, on feature vectors that are handed to it.

The library's own default features are those of a model that it downloads; here they are the last hidden state of the scorer at the last
token, as in the paper, and nothing is downloaded. The number depends on scorer, length, number of texts and number of clusters: it compares
runs under one protocol and nothing else. It is biased for small sets (the paper has 5000 texts); a few hundred are an indication.

Shapes: N texts, D channels of the features.
"""

import importlib.util

import numpy as np

from dlmjax.quality.diversity import mean_with_error

SEEDS = 5


def available() -> bool:
    """Is the library installed?"""
    return importlib.util.find_spec("mauve") is not None


def mauve_with_error(reference_ND: np.ndarray, made_ND: np.ndarray, seeds: int = SEEDS) -> tuple[float, float]:
    """(MAUVE in (0, 1], mean over `seeds` k-means clusterings; its s.e. over these, which leaves out the choice of the texts).

    The clusters are a tenth of the texts of the smaller set, the library's rule.
    """
    from mauve import compute_mauve

    features = np.ascontiguousarray(reference_ND, np.float32), np.ascontiguousarray(made_ND, np.float32)
    scores = [compute_mauve(p_features=features[0], q_features=features[1], verbose=False, seed=seed).mauve for seed in range(seeds)]
    return mean_with_error(scores)
