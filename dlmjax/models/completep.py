"""CompleteP: hyperparameters tuned on a small model remain optimal on a wider and deeper one (Dey et al. 2505.01618, table 1, alpha = 1).

With m = width / base width and l = effective depth / base depth, the model divides every residual branch
by l and the logits by m (`denoiser.py`), starts hidden matrices with variance 1/m (`weights.py`), and the optimizer multiplies its
settings by

    leaves                               learning rate   weight decay   AdamW epsilon
    hidden matrices                      1/m             m              1/(m l)
    vectors and modulation in layers     1               1              1/(m l)
    embedding, head, last norm, time     1               1              1/m

A weight that is run `loops` times gets the sum of as many gradients, so the epsilons of layers, which scale with the gradient, are
`loops` times those of the table. This is an extension: the paper has no shared layers.

Weight decay is the decoupled one (a step shrinks a weight by rate * decay), so that rate * decay is unchanged. At the base size, and
with CompleteP off, all multipliers are 1.
"""

from __future__ import annotations

import jax

from dlmjax.models.spec import ModelSpec
from dlmjax.models.weights import describe_weights


def multipliers(spec: ModelSpec) -> tuple[dict, dict, dict]:
    """(learning rate, weight decay, epsilon): trees of factors, Python floats, with the structure of the weights (CompleteP 2505.01618)."""
    (hidden,) = describe_weights(spec, "hidden")
    m, l_ = spec.width_ratio, spec.depth_ratio
    rate = jax.tree.map(lambda inner: 1.0 / m if inner else 1.0, hidden)
    decay = jax.tree.map(lambda inner: m if inner else 1.0, hidden)
    epsilon = jax.tree_util.tree_map_with_path(lambda path, _: spec.loops / (m * l_) if path[0].key == "layers" else 1.0 / m, hidden)
    return rate, decay, epsilon
