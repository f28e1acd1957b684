"""MAUVE (Pillutla et al. 2102.01454; JMLR 2023) by its authors' library `mauve-text`, on the features of a scorer.

The features are the scorer's last hidden state at the last token, as in the paper; the library's default features would download a model.
MAUVE depends on scorer, length, number of texts and number of clusters, so compare runs under the same protocol only. It is biased for
small sets: the paper has 5000 texts, and a few hundred give an indication.

Shapes: N texts, D channels of the features.
"""

import importlib.util

import numpy as np

from dlmjax.quality.diversity import mean_with_error

SEEDS = 5


def available() -> bool:
    """Whether the library is installed."""
    return importlib.util.find_spec("mauve") is not None


def mauve_with_error(reference_ND: np.ndarray, generated_ND: np.ndarray, seeds: int = SEEDS) -> tuple[float, float]:
    """(MAUVE in (0, 1], mean over `seeds` k-means clusterings; its s.e. over the clusterings, which leaves out that of the texts).

    The number of clusters is the library's default, a tenth of the smaller set.
    """
    from mauve import compute_mauve

    features = np.ascontiguousarray(reference_ND, np.float32), np.ascontiguousarray(generated_ND, np.float32)
    scores = [compute_mauve(p_features=features[0], q_features=features[1], verbose=False, seed=seed).mauve for seed in range(seeds)]
    return mean_with_error(scores)
