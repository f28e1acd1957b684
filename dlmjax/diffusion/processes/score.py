"""Score entropy (SEDD, Lou et al. 2310.16834): the network gives the log of the ratios p_t(z with z_i := y) / p_t(z).

The loss is the path KL of the reversed chain, the bound of masked or uniform diffusion in other variables (their eq. 7 and 5.1):
    -alpha'/alpha sum_{y != z} R(y) [ s_y - r_y log s_y + r_y (log r_y - 1) ],    r_y = q_t(y|x) / q_t(z|x),
with R = 1 for masked noise, 1/N for uniform noise; nothing constrains the s_y, and the exact scores bring it to the entropy.

Masked noise: the ratios are r = alpha/(1 - alpha) = 1/(e^sigma - 1) times a distribution of N tokens. The output is scaled as the paper's,
log s_y = output_y + log r - log N, so that it need not depend on t, and with Z = logsumexp(output) - log N the loss is
    -alpha'/(1 - alpha) [ cross-entropy(output, x) + e^Z - 1 - Z ]:
masked diffusion's loss plus a penalty on scores with the wrong sum. In this form nothing cancels at small sigma.
Uniform noise: output_y = log s_y. The loss is one sum of exponentials and one plain sum over the classes.

In both, the entry y = z counts as 0. An output (masked: its Z) above LIMIT is compressed to at most LIMIT + 8: any scores give a bound, and
this one is finite for every output; a distribution of tokens has such scores only at t < 1e-10.

Shapes: B batch, L length, V vocabulary; `*n` any shape. Losses in nats per token.
"""

import abc
import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

from dlmjax.diffusion.declarations import Ends
from dlmjax.diffusion.process import EXCLUDED, Process, cross_entropy, exclude
from dlmjax.diffusion.processes.interpolating import UNIFORM_ENDS, Interpolating, Shares, by_rows
from dlmjax.diffusion.processes.parameterisation import LeaveOneOut, Scores
from dlmjax.diffusion.schedules import Linear, Schedule
from dlmjax.diffusion.shapes import Ids, Mask, PerClass, PerToken, Tokens, Values
from dlmjax.errors import InputError

ROUNDING = 1e-5  # of a log-probability in float32
LIMIT = 36.0  # e^(LIMIT + 8) / r is a float32 for every r
NOISES = ("mask", "uniform")


class OneNoise(Interpolating):
    """Abstract: noise of one kind, `noise` = "mask" or "uniform", on a schedule. A subclass defines the loss."""

    schedule: Schedule
    noise: str

    def __post_init__(self):
        super().__post_init__()
        if self.noise not in NOISES:
            raise InputError(f"process {self.name}: noise is {self.noise!r}; choose one of {', '.join(NOISES)}")
        if self.noise == "mask" and self.mask_id is None:
            raise InputError(f"process {self.name} with noise 'mask' requires mask_id; take it from the tokenizer")

    @abc.abstractmethod
    def loss(self, logits: PerClass, x: Ids, z: Ids, t: Values) -> Values: ...

    def shares(self, t: Values) -> Shares:
        alpha, noise = self.schedule.alpha(t), self.schedule.noise(t)
        none = jnp.zeros_like(noise)
        return Shares(alpha, none, noise) if self.noise_mask is not None else Shares(alpha, noise, none)

    def jumps(self, t: Values) -> tuple[Values, Values]:
        rate = -self.schedule.alpha_prime(t)
        none = jnp.zeros_like(rate)
        return (none, rate) if self.noise_mask is not None else (rate, none)

    @property
    def ends(self) -> Ends:
        return UNIFORM_ENDS if self.noise_mask is None else Process.ends

    def log_unmixed(self, log_q: PerClass, t: Values) -> PerClass:
        # Masks have no uniform share, so none is subtracted, not even the floor of a share of 0.
        return super().log_unmixed(log_q, t) if self.noise_mask is None else exclude(log_q, self.suppressed_ids)

    def loss_mask(self, z_BL: Tokens, t_BL: PerToken) -> Mask:
        return super().loss_mask(z_BL, t_BL) if self.noise_mask is None else z_BL == self.noise_mask

    @property
    def absorbing_id(self) -> int | None:
        return self.noise_mask

    @property
    def noise_mask(self) -> int | None:
        return self.mask_id if self.noise == "mask" else None


@dataclasses.dataclass(frozen=True)
class ScoreEntropy(OneNoise):
    """Score entropy on masked or uniform noise.

    noise: "mask" (the paper's absorb) or "uniform". The reverse step is the analytic one (Tweedie, their section 4.2): exact for exact
    scores, at any step size, since scores determine p(x_i | z_{-i}) and with it p(z_s | z_t).
    """

    vocab: int
    mask_id: int | None = None
    schedule: Schedule = Linear()
    excluded: tuple[int, ...] = ()
    noise: str = "mask"

    name = "score"
    parameterisation = "score"

    @property
    def output(self) -> "ScaledScore":
        return ScaledScore(self)

    def loss(self, logits: PerClass, x: Ids, z: Ids, t: Values) -> Values:
        return self._uniform(logits, x, z, t) if self.noise_mask is None else self._masked(logits, x, z, t)

    def _masked(self, output, x, z, t):
        masked = z == self.noise_mask
        weight = self.schedule.hazard(jnp.where(masked, t, 1.0))
        output = exclude(output, self.suppressed_ids)
        norm = _limited(jax.nn.logsumexp(output, axis=-1) - math.log(self.tokens))
        return jnp.where(masked, weight * (cross_entropy(output, x) + jnp.expm1(norm) - norm), 0.0)

    def _uniform(self, output, x, z, t):
        alpha, uniform, _ = self.floored_shares(t)
        nats = score_entropy(exclude(output, self.suppressed_ids), x, z, alpha * self.tokens / uniform)
        return -self.schedule.alpha_prime(t) / (alpha * self.tokens) * nats


@dataclasses.dataclass(frozen=True)
class ScaledScore(Scores):
    """The log of the scores, less the scaling at the top of the file where noise is masks."""

    process: ScoreEntropy

    def log_score(self, logits: PerClass, z: Ids, t: Values) -> PerClass:
        """log s_y, 0 at y = z."""
        output = exclude(logits, self.process.suppressed_ids)
        if self.process.noise_mask is None:
            scores = _limited(output)
        else:
            norm = jax.nn.logsumexp(output, axis=-1, keepdims=True) - math.log(self.process.tokens)
            alpha, _, mask = self.process.floored_shares(t)
            scores = output - norm + _limited(norm) + (jnp.log(alpha) - jnp.log(mask))[..., None] - math.log(self.process.tokens)
            # A revealed token is clean.
            scores = jnp.where(self.process.is_token(z)[..., None], EXCLUDED, scores)
        return jnp.where(jnp.arange(self.process.vocab) == z[..., None], 0.0, scores)

    def log_outputs(self, log_loo: PerClass, z: Ids, t: Values) -> PerClass:
        """The output whose scores are those of log p(x_i | z_{-i}), which must be normalised: the inverse of `log_loo`."""
        if self.process.noise_mask is not None:
            return exclude(log_loo + math.log(self.process.tokens), self.process.suppressed_ids)
        return LeaveOneOut(self.process).log_score(log_loo, z, t)

    def suppressed(self, logits: PerClass, ids: tuple[int, ...], z: Ids, t: Values) -> PerClass:
        """Scores are relative to z: where z is one of `ids`, it must be noise, and the others have larger scores accordingly."""
        logits = exclude(logits, ids)
        shown = tuple(id_ for id_ in ids if id_ not in self.process.suppressed_ids)
        if self.process.noise_mask is not None or not shown:
            return logits
        log_p = jax.nn.log_softmax(exclude(self.log_loo(logits, z, t), shown), axis=-1)
        noise = jnp.any(z[..., None] == jnp.asarray(shown), axis=-1, keepdims=True)
        return jnp.where(noise, self.log_outputs(log_p, z, t), logits)

    def shifted(self, logits: PerClass, shift: PerClass, z: Ids, t: Values) -> PerClass:
        log_p = jax.nn.log_softmax(exclude(self.log_loo(logits, z, t) + shift, self.process.suppressed_ids), axis=-1)
        return self.log_outputs(log_p, z, t)

    def guided(self, conditional: PerClass, unconditional: PerClass, weight: float | Array, z: Ids, t: Values) -> PerClass:
        """Scores contain the noise, so powers of them are not scores of a distribution: they are converted to x0 predictions and back.

        A network's scores may give a token less than its share of the noise; that does not depend on the condition, so guidance does not
        change such tokens.
        """
        outputs = conditional, unconditional
        log_conditional, log_unconditional = (self.log_loo(output, z, t) for output in outputs)
        apart = log_conditional - log_unconditional
        if self.process.noise_mask is None:
            log_uniform = jnp.log(self.process.floored_shares(t).uniform / self.process.tokens)[..., None]
            above = (jax.nn.log_softmax(self.log_score(output, z, t), axis=-1) - log_uniform > ROUNDING for output in outputs)
            apart = jnp.where(functools.reduce(jnp.logical_and, above), apart, 0.0)
        log_p = jax.nn.log_softmax(exclude(log_conditional + weight * apart, self.process.suppressed_ids), axis=-1)
        return self.log_outputs(log_p, z, t)


@jax.custom_vjp
def score_entropy(output: PerClass, x: Ids, z: Ids, rho: Values) -> Values:
    """sum over y != z of s - r log s + r (log r - 1) for uniform noise, rho = alpha N / (1 - alpha); excluded classes left out.

    A term is r (e^d - 1 - d) with d = log s - log r, which does not cancel near the true scores. r is one number for all classes but x
    (1/(1 + rho) where z = x, else 1); the further rho of x enters linearly. The derivative in log s is s - r, which the backward pass
    writes once. Not differentiable in rho.
    """
    return _score_entropy_forward(output, x, z, rho)[0]


def _score_entropy_forward(output, x, z, rho):
    log_r = jnp.where(z == x, -jnp.log1p(rho), 0.0)
    sums = by_rows(lambda output, z, log_r: jnp.sum(_terms(output, z, log_r)[0], axis=-1), output, z, log_r)
    score_x = _limited(jnp.take_along_axis(output, x[..., None], axis=-1)[..., 0])
    more = jnp.where(z == x, 0.0, (1 + rho) * jnp.log1p(rho) - rho * (1 + score_x))
    return jnp.exp(log_r) * sums + more, (output, x, z, rho, log_r)


def _score_entropy_backward(saved, cotangent):
    output, x, z, rho, log_r = saved
    excess, slope = _terms(output, z, log_r)[1:]
    at_x = (jnp.arange(output.shape[-1]) == x[..., None]) & (z != x)[..., None]
    gradient = jnp.exp(log_r)[..., None] * excess - jnp.where(at_x, rho[..., None], 0.0)
    return (cotangent[..., None] * gradient * slope).astype(output.dtype), None, None, None


def _terms(output, z, log_r):
    """(e^d - 1 - d, e^d - 1, the slope of what limits the scores) of every class; 0, 0 where a class does not count."""
    counted = (jnp.arange(output.shape[-1]) != z[..., None]) & (output > EXCLUDED / 2)
    output = jnp.where(counted, output, 0.0)
    apart = jnp.where(counted, _limited(output) - log_r[..., None], 0.0)
    excess = jnp.expm1(apart)
    return excess - apart, excess, _slope(output)


score_entropy.defvjp(_score_entropy_forward, _score_entropy_backward)


def _limited(score: Values) -> Values:
    """`score`, compressed above LIMIT to at most LIMIT + 8."""
    excess = jnp.maximum(score - LIMIT, 0.0)
    return jnp.minimum(score, LIMIT) + excess / (1 + excess / 8)


def _slope(score: Values) -> Values:
    """The derivative of `_limited`."""
    return 1 / (1 + jnp.maximum(score - LIMIT, 0.0) / 8) ** 2
