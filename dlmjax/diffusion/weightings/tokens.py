"""Training losses that depend on the cross-entropy of each token; none is a bound, each is logged under its own name.

`HybridLambda`   the bound + lambda x cross-entropy (D3PM 2107.03006 eq. 5): larger gradients where those of the bound are small
`TokenAdaptive`  the bound's nats x (1 - p(x))^beta: difficult tokens have more weight (MGDM 2410.14157 section 3.2)
`Routed`         cross-entropy of the corrupted tokens x (1 - t): the bound without the terms of a sampler that decides which tokens
                 are denoised (RDM 2302.05737; `reweighting_type=linear` of its code)
`ContextAdaptive`  cross-entropy of masked tokens x how much visible text is near (CART of Dream 2508.15487)

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
from dlmjax.diffusion.weightings.base import SMALLEST, Weighting
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
class ContextAdaptive(Weighting):
    """Cross-entropy of a masked token i times w_i = sum over visible j of 1/2 p (1 - p)^(|i - j| - 1) (CART, Dream 2508.15487).

    In a long row the mean of w is the share 1 - t of visible text. On a row of masks alone it is 0: the state in which sampling
    starts is not trained. Padding, which text never holds, counts as not visible; documents are not told apart.

    p: how fast the weight of a visible token falls with its distance, in (0, 1).
    """

    p: float = 0.3
    name = "context_adaptive"

    def __post_init__(self):
        if not 0 < self.p < 1:
            raise InputError(f"weighting context_adaptive: p is {self.p}; it must lie between 0 and 1")

    def factor(self, process: Any, x: Ids, z: Ids, t: Values) -> Values:
        del x
        index_L = jnp.arange(z.shape[-1])
        away_LL = jnp.abs(index_L[:, None] - index_L)
        weight_LL = jnp.where(away_LL > 0, 0.5 * self.p * (1 - self.p) ** (away_LL - 1.0), 0.0)
        visible = ~jnp.isin(z, jnp.asarray(process.suppressed_ids))
        near = jnp.einsum("...j,ij->...i", visible.astype(weight_LL.dtype), weight_LL, precision="highest")
        return near / jnp.maximum(process.cross_entropy_weight(t), SMALLEST)


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
