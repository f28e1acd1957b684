"""How far weights have moved from others: |W - W_0| / |W_0|, in all and by weight.

Attention that stays block-causal is said to keep converted weights closer to their start than full attention does (Efficient-DLM
2512.14067); this is the number to compare.
"""

import math
from collections.abc import Iterator

import jax
import numpy as np


def drift_by_weight(params: dict, reference: dict) -> dict[str, float]:
    """|W - W_0| / |W_0| of each weight that both trees have in one shape, by its name; without those whose W_0 is zero."""
    there, found = dict(_named(reference)), {}
    for name, leaf in _named(params):
        old = there.get(name)
        if old is not None and old.shape == leaf.shape and (norm := float(np.linalg.norm(old))):
            found[name] = float(np.linalg.norm(leaf - old)) / norm
    return found


def total_drift(params: dict, reference: dict) -> float:
    """|W - W_0| / |W_0| over all weights of two equal trees together."""
    there = dict(_named(reference))
    moved = sum(float(np.sum((leaf - there[name]) ** 2)) for name, leaf in _named(params))
    return math.sqrt(moved / max(sum(float(np.sum(old**2)) for old in there.values()), 1e-300))


def _named(params: dict) -> Iterator[tuple[str, np.ndarray]]:
    """(name, float64 values) of each leaf."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        yield ".".join(str(getattr(key, "key", key)) for key in path), np.asarray(leaf, np.float64)
