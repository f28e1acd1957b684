"""Training losses that look at the cross-entropy of each token; none is the bound, each is reported under its own name.

`HybridLambda`   the bound + lambda x cross-entropy (D3PM 2107.03006 eq. 5): a denser signal where the bound's is faint
`TokenAdaptive`  the bound's nats x (1 - p(x))^beta: tokens that are still hard count more (MGDM 2410.14157 section 3.2)
`Routed`         cross-entropy of the corrupted tokens x (1 - t): what is left of the bound when a sampler decides which tokens are
                 denoised (RDM 2302.05737; `reweighting_type=linear` of its code)

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
    """The bound and, at every level alike, `lam` times the cross-entropy. The two have one minimiser.

    `lam` stands beside the whole bound, as in the paper's equation. Its released code adds its 0.01 to the KL of one of T steps, which is
    lam = 0.01 T here, and takes the cross-entropy of the network's softmax itself.
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
    """The bound's nats times scale (1 - p(x | z))^beta, of which the gradient takes part, as in the focal loss."""

    beta: float = 1.0
    scale: float = 1.0
    name = "token_adaptive"
    is_factor = False

    def __post_init__(self):
        if not (self.beta >= 0 and self.scale > 0):
            raise InputError(f"weighting token_adaptive: beta ({self.beta}) must be at least 0 and scale ({self.scale}) positive")

    def trained(self, process: Any, logits: PerClass, x: Ids, z: Ids, t: Values, nats: Values) -> Values:
        # Kept off 0, where a power below 1 has no derivative.
        doubt = jnp.maximum(-jnp.expm1(-token_nats(process, logits, x, z, t)), 1e-6)
        return nats * self.scale * doubt**self.beta


@dataclasses.dataclass(frozen=True)
class Routed(Weighting):
    """Cross-entropy of the corrupted tokens, with weight 1 - t or, with linear=False, all levels alike."""

    linear: bool = True
    name = "routed"
    is_factor = False

    def trained(self, process: Any, logits: PerClass, x: Ids, z: Ids, t: Values, nats: Values) -> Values:
        del nats
        wanted = jnp.where(z != x, token_nats(process, logits, x, z, t), 0.0)
        return (1 - t) * wanted if self.linear else wanted


def token_nats(process: Any, logits: PerClass, x: Ids, z: Ids, t: Values) -> Values:
    """-log p(x | z) of every token, 0 where z is x for certain."""
    if isinstance(process, (Interpolating, D3pm)):
        return cross_entropy(process.output.log_posterior(process, logits, z, t), x)
    return process.reconstruction(logits, x, z)
