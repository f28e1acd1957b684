"""CompleteP: hyperparameters tuned on a small model remain optimal on a wider and deeper one (Dey et al. 2505.01618, table 1, alpha = 1).

With m = width / base width and l = effective depth / base depth, the model divides every residual branch
by l and the logits by m (`denoiser.py`), starts hidden matrices with variance 1/m (`weights.py`), and the optimizer multiplies its
settings by

    leaves                               learning rate   weight decay   AdamW epsilon
    hidden matrices                      1/m             m              1/(m l)
    vectors and modulation in layers     1               1              1/(m l)
    embedding, head, last norm, time     1               1              1/m

A weight that is run several times gets the sum of as many gradients, so the epsilons of layers, which scale with the gradient, are
those of the table times the number of runs of the layer. This is an extension: the paper has no shared layers.

Weight decay is the decoupled one (a step shrinks a weight by rate * decay), so that rate * decay is unchanged. At the base size, and
with CompleteP off, all multipliers are 1, but for the epsilons of layers that are run several times.
"""

from __future__ import annotations

import jax
import numpy as np

from dlmjax.models.spec import ModelSpec
from dlmjax.models.weights import abstract_weights, describe_weights


def multipliers(spec: ModelSpec) -> tuple[dict, dict, dict]:
    """(learning rate, weight decay, epsilon): trees of factors with the structure of the weights (CompleteP 2505.01618).

    Factors are Python floats; the epsilons of stacked layers are arrays [N, 1, ...] where some layers are run more often than others.
    """
    (hidden,) = describe_weights(spec, "hidden")
    m, l_ = spec.width_ratio, spec.depth_ratio
    rate = jax.tree.map(lambda inner: 1.0 / m if inner else 1.0, hidden)
    decay = jax.tree.map(lambda inner: m if inner else 1.0, hidden)
    runs_N = np.concatenate([np.full(end - first, runs, np.float32) for first, end, runs in spec.spans])

    def epsilon_of(path: tuple, weight: jax.ShapeDtypeStruct) -> float | np.ndarray:
        if path[0].key != "layers":
            return 1.0 / m
        if len(spec.spans) == 1:
            return spec.loops / (m * l_)
        return (runs_N / (m * l_)).reshape(-1, *(1,) * (weight.ndim - 1))

    return rate, decay, jax.tree_util.tree_map_with_path(epsilon_of, abstract_weights(spec))
