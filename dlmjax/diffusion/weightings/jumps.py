"""Training losses of uniform and hybrid noise that are not the bound, each logged under its own name. The bound is still reported.

The bound's weights differ by orders of magnitude between a masked, a replaced and a kept token and grow without limit at t -> 0;
`ClippedJumps` and `Dynamic` (GIDD 2503.04482) limit them. The simple losses have no weights: `Denoising` is the cross-entropy of replaced
tokens only (SDDLM 2510.22926), or of all, which learns the posterior exactly; `Contrastive` adds a negative gradient, as SDDLM does.

Shapes: elementwise over any leading shape `*n`; V classes. Units: nats.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from dlmjax.diffusion.process import cross_entropy, exclude
from dlmjax.diffusion.shapes import Ids, PerClass, Values
from dlmjax.diffusion.weightings.base import SMALLEST, Weighting
from dlmjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class ClippedJumps(Weighting):
    """The bound's w_t(z, x), at most `cap`."""

    cap: float = 1.0
    name = "clipped_jumps"

    def __post_init__(self):
        _positive(self)

    def factor(self, process: Any, x: Ids, z: Ids, t: Values) -> Values:
        weight = jnp.maximum(process.jump_weight(x, z, t), SMALLEST)
        return jnp.minimum(weight, self.cap) / weight


@dataclasses.dataclass(frozen=True)
class Dynamic(Weighting):
    """`cap` times 2 for a masked token, 1 for a replaced one, and for a kept one the probability that it was replaced by itself,
    (uniform/N) / (alpha + uniform/N): for small p_uniform the paper's (B/N) e^(-lambda/2). The paper's code caps the weights at 2, which
    none of these exceeds."""

    cap: float = 1.0
    name = "dynamic"

    def __post_init__(self):
        _positive(self)

    def factor(self, process: Any, x: Ids, z: Ids, t: Values) -> Values:
        alpha, uniform, _ = process.shares(t)
        by_noise = uniform / jnp.maximum(alpha * process.tokens + uniform, SMALLEST)
        wanted = jnp.where(process.is_token(z), jnp.where(z == x, by_noise, 1.0), 2.0)
        return self.cap * wanted / jnp.maximum(process.jump_weight(x, z, t), SMALLEST)


@dataclasses.dataclass(frozen=True)
class Denoising(Weighting):
    """Cross-entropy of the clean token, with the same weight at all t.

    everywhere: False = of replaced tokens only: the entry x_i = z_i of the output is then not trained, so the output is p(x_i | z_{-i})
      except for that entry, and the reported bound is larger for it. True = of all tokens, by their posterior under the process's
      parameterisation: the minimiser is the true posterior (or leave-one-out posterior), whose bound is tight.
    """

    everywhere: bool = False
    name = "denoising"
    is_factor = False

    def trained(self, process: Any, logits: PerClass, x: Ids, z: Ids, t: Values, nats: Values) -> Values:
        """Cross-entropy in nats; 0 for tokens that are not trained."""
        del nats
        if self.everywhere:
            return cross_entropy(process.output.log_posterior(logits, z, t), x)
        return jnp.where(z != x, cross_entropy(logits, x, process.suppressed_ids), 0.0)


@dataclasses.dataclass(frozen=True)
class Contrastive(Weighting):
    """Cross-entropy of replaced tokens, less `negative` times that of tokens drawn uniformly, in expectation over them (SDDLM draws some).

    The default is ours. The second term penalises uniform predictions. It is unbounded below: keep `negative` small.
    """

    negative: float = 0.1
    name = "contrastive"
    is_factor = False

    def __post_init__(self):
        if not 0 <= self.negative < 1:
            raise InputError(f"weighting contrastive: negative is {self.negative}; it must lie in [0, 1), else the loss is unbounded below")

    def trained(self, process: Any, logits: PerClass, x: Ids, z: Ids, t: Values, nats: Values) -> Values:
        """The difference of two cross-entropies, in nats; 0 for tokens that were not replaced. It may be negative."""
        del t, nats
        logits = exclude(logits, process.suppressed_ids)
        text_V = ~jnp.isin(jnp.arange(logits.shape[-1]), jnp.asarray(process.suppressed_ids, jnp.int32))
        at_x = cross_entropy(logits, x)
        own = jnp.take_along_axis(logits, x[..., None], axis=-1)[..., 0]
        # -log p_y = -log p_x + logit_x - logit_y.
        at_uniform = at_x + own - jnp.sum(jnp.where(text_V, logits, 0.0), axis=-1) / process.tokens
        return jnp.where(z != x, at_x - self.negative * at_uniform, 0.0)


def _positive(weighting: ClippedJumps | Dynamic) -> None:
    if not weighting.cap > 0:
        raise InputError(f"weighting {weighting.name}: cap is {weighting.cap}; it must be positive")
