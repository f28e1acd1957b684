"""Training losses that depend on the cross-entropy of each token; none is a bound, each is logged under its own name.

`HybridLambda`   the bound + lambda x cross-entropy (D3PM 2107.03006 eq. 5): larger gradients where those of the bound are small
`TokenAdaptive`  the bound's nats x (1 - p(x))^beta: difficult tokens have more weight (MGDM 2410.14157 section 3.2)
`Routed`         cross-entropy of the corrupted tokens x (1 - t): the bound without the terms of a sampler that decides which tokens
                 are denoised (RDM 2302.05737; `reweighting_type=linear` of its code)

Cross-entropy is that of the clean token under p(x_i | z), whatever the network's output means.

Shapes: elementwise over any leading shape `*n`; V classes. Units: nats.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from dlmjax.diffusion.process import cross_entropy
from dlmjax.diffusion.processes.d3pm import D3pm
from dlmjax.diffusion.processes.interpolating import Interpolating
from dlmjax.diffusion.shapes import Ids, PerClass, Values
from dlmjax.diffusion.weightings.base import Weighting
from dlmjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class HybridLambda(Weighting):
    """The bound plus, with the same weight at all t, `lam` times the cross-entropy. The two have the same minimiser.

    `lam` is relative to the whole bound, as in the paper's equation. The paper's code adds 0.01 times it to the KL of one of T steps,
    which is lam = 0.01 T here, and uses the cross-entropy of the network's softmax.
    """

    lam: float = 0.01
    name = "hybrid_lambda"
    is_factor = False

    def __post_init__(self):
        if not self.lam >= 0:
            raise InputError(f"weighting hybrid_lambda: lam is {self.lam}; it must be at least 0")

    def trained(self, process: Any, logits: PerClass, x: Ids, z: Ids, t: Values, nats: Values) -> Values:
        return nats + self.lam * token_nats(process, logits, x, z, t)


@dataclasses.dataclass(frozen=True)
class TokenAdaptive(Weighting):
    """The bound's nats times scale (1 - p(x | z))^beta, through which the gradient flows, as in the focal loss."""

    beta: float = 1.0
    scale: float = 1.0
    name = "token_adaptive"
    is_factor = False

    def __post_init__(self):
        if not (self.beta >= 0 and self.scale > 0):
            raise InputError(f"weighting token_adaptive: beta ({self.beta}) must be at least 0 and scale ({self.scale}) positive")

    def trained(self, process: Any, logits: PerClass, x: Ids, z: Ids, t: Values, nats: Values) -> Values:
        # At least 1e-6: at 0 a power below 1 has no derivative.
        miss = jnp.maximum(-jnp.expm1(-token_nats(process, logits, x, z, t)), 1e-6)
        return nats * self.scale * miss**self.beta


@dataclasses.dataclass(frozen=True)
class Routed(Weighting):
    """Cross-entropy of the corrupted tokens, with weight 1 - t; with linear=False the weight is 1 at all t."""

    linear: bool = True
    name = "routed"
    is_factor = False

    def trained(self, process: Any, logits: PerClass, x: Ids, z: Ids, t: Values, nats: Values) -> Values:
        nats = jnp.where(z != x, token_nats(process, logits, x, z, t), 0.0)
        return (1 - t) * nats if self.linear else nats


def token_nats(process: Any, logits: PerClass, x: Ids, z: Ids, t: Values) -> Values:
    """-log p(x | z) of every token; 0 where z determines x."""
    if isinstance(process, (Interpolating, D3pm)):
        return cross_entropy(process.output.log_posterior(logits, z, t), x)
    return process.reconstruction(logits, x, z)
