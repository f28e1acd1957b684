"""Weightings: what is trained in place of the bound, a factor on the nats of a process or another function of the denoiser's output.

Only with `Bound` is the trained loss a likelihood bound; the bound is reported whatever is trained. Every factor is computed from the
process's own w(t), so the corruption and the weight cannot use different schedules.

Shapes: elementwise over any leading shape `*n`; V columns of the denoiser's output. Units: nats.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float

from dlmjax.diffusion.shapes import AnyState, Ids, Mask, PerClass, Tokens, Values
from dlmjax.errors import InputError

# Names of the weightings by what they require of a process, which lists those that it supports (`Capabilities.weightings`).
OF_RATES = ("inverse_rate", "cross_entropy", "capped", "anchored")  # a loss that is a weight times a cross-entropy
OF_TOKENS = ("hybrid_lambda", "token_adaptive", "routed")  # the probability of each token
OF_JUMPS = ("clipped_jumps", "dynamic", "denoising", "contrastive")  # noise that replaces tokens
OF_VECTORS = ("simple", "end_to_end", "anchor")  # noise on vectors
OF_MASKS = ("context_adaptive",)  # a mask, and one schedule for all tokens
OF_SEEDS = ("joint",)  # a clean stream that predicts the next token
# Weightings with other names are accepted for every process.
NAMES = ("bound", *OF_RATES, *OF_TOKENS, *OF_JUMPS, *OF_VECTORS, *OF_MASKS, *OF_SEEDS)

SMALLEST = 1e-30  # a weight of exactly 0 (t = 1 on a cosine schedule) has nats of 0: any finite factor keeps them 0


@runtime_checkable
class Weighting(Protocol):
    """Either a factor on the nats, which defines `factor`, or another function, which defines `trained` and `is_factor = False`.

    name: as in the registry; also part of the name under which the trained loss is logged.
    is_bound: True where what is trained is the bound.
    of_time: True where the factor depends on t alone: what is trained then follows from the bound's nats.
    anchor_gamma: weight of the loss of an anchor network (`models.anchored`) on the tokens of `anchors`; 0 = none.
    ends_as_bound: True where the bound is trained in the last steps of a run, so that its boundary terms are trained then, too.
    exact_factor: the factor on exact losses (`Process.exact_mask`).
    text_weight: weight of the negative log-likelihood of the text, token by token from the clean stream, beside the process's loss.
    """

    name: str
    is_bound: bool = False
    is_factor: bool = True
    of_time: bool = False
    ends_as_bound: bool = False
    exact_factor: float = 1.0
    text_weight: float = 0.0
    anchor_gamma: float = 0.0

    def anchors(self, x_BL: Tokens, valid_BL: Mask) -> Mask:
        """The tokens on which an anchor network is trained, where `anchor_gamma` is not 0."""
        del x_BL
        return valid_BL

    @property
    def supported_as(self) -> str:
        """The name by which a process supports this weighting or refuses it."""
        return self.name

    def bound_share(self, progress: Float[Array, ""] | None) -> Float[Array, ""] | None:
        """The share a of the bound in what is trained, (1 - a) x this weighting + a x the bound, once the share `progress` of the run's
        steps is done; None where it is 0 at all steps."""
        del progress
        return None

    def factor(self, process: Any, x: Ids, z: AnyState, t: Values) -> Values:
        """The factor on the nats of a token x whose state is z at time t."""
        ...

    def trained(self, process: Any, logits: PerClass, x: Ids, z: AnyState, t: Values, nats: Values) -> Values:
        """The loss that is differentiated; `nats` is the bound's integrand, process.loss(logits, x, z, t)."""
        del logits
        return nats * self.factor(process, x, z, t)


@dataclasses.dataclass(frozen=True)
class Bound(Weighting):
    """The NELBO itself."""

    name = "bound"
    is_bound = True
    of_time = True

    def factor(self, process: Any, x: Ids, z: AnyState, t: Values) -> Values:
        del process, x, z
        return jnp.ones_like(t)


@dataclasses.dataclass(frozen=True)
class InverseRate(Weighting):
    """Cross-entropy divided by the mask rate (LLaDA 2502.09992 eq. 3). On a linear schedule it is the bound's diffusion part times a
    constant; on another schedule it is not a bound."""

    name = "inverse_rate"
    of_time = True

    def factor(self, process: Any, x: Ids, z: AnyState, t: Values) -> Values:
        del x, z
        return 1 / (jnp.maximum(process.cross_entropy_weight(t), SMALLEST) * jnp.maximum(process.noise_rate(t), SMALLEST))


@dataclasses.dataclass(frozen=True)
class CrossEntropy(Weighting):
    """Plain cross-entropy of the corrupted tokens, with the same weight at all t: a masked language model with a random rate.

    Not a bound."""

    name = "cross_entropy"
    of_time = True

    def factor(self, process: Any, x: Ids, z: AnyState, t: Values) -> Values:
        del x, z
        return 1 / jnp.maximum(process.cross_entropy_weight(t), SMALLEST)


@dataclasses.dataclass(frozen=True)
class Capped(Weighting):
    """The bound's weight, at most `cap`: less variance from nearly clean text, and not a bound."""

    cap: float = 20.0
    name = "capped"
    of_time = True

    def __post_init__(self):
        if not self.cap > 0:
            raise InputError(f"weighting capped: cap is {self.cap}; it must be positive")

    def factor(self, process: Any, x: Ids, z: AnyState, t: Values) -> Values:
        del x, z
        weight = jnp.maximum(process.cross_entropy_weight(t), SMALLEST)
        return jnp.minimum(weight, self.cap) / weight


@dataclasses.dataclass(frozen=True)
class Anchored(Weighting):
    """The bound, and gamma times the same loss of the anchor network's own prediction, on the rare tokens of a row (ADLM 2505.18456).

    Its ANELBO, sum of lambda_t [ -log psi - gamma 1[x is an anchor] log pi ], with lambda_t the weight of the bound. What gamma adds is not
    negative, so the sum is an upper bound of the bound; the bound is reported. Requires model.anchor_depth of at least 1.

    gamma: at least 0.  most: a token is an anchor where it occurs at most so often in its row.
    """

    gamma: float = 0.1
    most: int = 5
    name = "anchored"

    def __post_init__(self):
        if not 0 <= self.gamma < float("inf") or self.most < 1:
            raise InputError(
                f"weighting anchored: gamma is {self.gamma} and most is {self.most}; gamma must be at least 0 and most at least 1"
            )

    @property
    def is_bound(self) -> bool:
        return self.gamma == 0

    @property
    def anchor_gamma(self) -> float:
        return self.gamma

    def anchors(self, x_BL: Tokens, valid_BL: Mask) -> Mask:
        count_BL = jnp.sum((x_BL[:, :, None] == x_BL[:, None, :]) & valid_BL[:, None, :], axis=-1)
        return valid_BL & (count_BL <= self.most)

    def factor(self, process: Any, x: Ids, z: AnyState, t: Values) -> Values:
        del process, x, z
        return jnp.ones_like(t)


@dataclasses.dataclass(frozen=True)
class Joint(Weighting):
    """diffusion x the loss of seeded blocks + text x the negative log-likelihood of every token given all before it, from the clean
    stream of the same pass (as in Nemotron-Labs-Diffusion and I-DLM 2604.11035). The weights stay those of an autoregressive model, too.

    diffusion, text: the two weights, positive.

    inner: how the loss of the blocks is weighted.
    """

    diffusion: float = 0.3
    text: float = 1.0
    inner: Weighting = Bound()
    name = "joint"

    def __post_init__(self):
        if not (0 < self.diffusion < float("inf") and 0 < self.text < float("inf")):
            raise InputError(f"weighting joint: diffusion and text are {self.diffusion} and {self.text}; both must be positive")

    @property
    def exact_factor(self) -> float:
        return self.diffusion

    @property
    def text_weight(self) -> float:
        return self.text

    @property
    def of_time(self) -> bool:
        return self.inner.of_time

    def factor(self, process: Any, x: Ids, z: AnyState, t: Values) -> Values:
        return self.diffusion * self.inner.factor(process, x, z, t)


@dataclasses.dataclass(frozen=True)
class Annealed(Weighting):
    """From another weighting to the bound during a run: (1 - a) x start + a x bound, where a rises linearly from 0 to 1.

    Cross-entropy, whose weight is the same at all t, has a gradient of less variance, and learns faster in the first steps;
    the bound is what is wanted in the end. Named as no bound, also after `end`: the name is that of the whole run.

    start: what is trained first.  begin, end: shares of the run's steps, between which a rises.
    """

    start: Weighting = CrossEntropy()
    begin: float = 0.0
    end: float = 0.5
    name = "annealed"
    ends_as_bound = True

    def __post_init__(self):
        if self.start.is_bound or self.start.ends_as_bound or self.start.anchor_gamma or self.start.text_weight:
            raise InputError(f"weighting annealed: start is {self.start.name}; give one such as cross_entropy")
        if not 0 <= self.begin < self.end <= 1:
            raise InputError(f"weighting annealed: begin and end must satisfy 0 <= begin < end <= 1, not {self.begin} and {self.end}")

    @property
    def is_factor(self) -> bool:
        return self.start.is_factor

    @property
    def of_time(self) -> bool:
        return self.start.of_time

    @property
    def supported_as(self) -> str:
        return self.start.supported_as

    def bound_share(self, progress: Float[Array, ""] | None) -> Float[Array, ""]:
        if progress is None:
            raise InputError("weighting annealed requires the share of the run that is done: make_train_step(..., steps=) passes it")
        return jnp.clip((progress - self.begin) / (self.end - self.begin), 0.0, 1.0)

    def factor(self, process: Any, x: Ids, z: AnyState, t: Values) -> Values:
        return self.start.factor(process, x, z, t)

    def trained(self, process: Any, logits: PerClass, x: Ids, z: AnyState, t: Values, nats: Values) -> Values:
        return self.start.trained(process, logits, x, z, t, nats)
