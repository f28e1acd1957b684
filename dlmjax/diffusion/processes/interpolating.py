"""Interpolating noise: a token is kept with probability alpha_t, else replaced by a uniform draw of the tokens or by the mask:

    q_t(z | x) = alpha_t 1[z = x] + uniform_t / N 1[z is a token] + mask_t 1[z = mask],      alpha_t + uniform_t + mask_t = 1.

N counts the tokens that can occur in text: the mask, padding and special ids are neither drawn nor predicted. A process of this kind
defines its three shares and their rates; the forward and the reverse chain, the bound and its boundary terms follow here, exactly. No array
is larger than the logits: a likelihood has two values over the classes, so no N x N array is required.

The bound's integrand (GIDD 2503.04482 theorem 3.1; for uniform noise UDLM 2412.10193 and Duo 2506.10892 eq. 17) with the x0 prediction
p = p(x_i | z_{-i}), r_t(z) the jump rate into z and q_theta the marginal under p:
    w_t(z, x) [ KL(q_t(.|x) || q_theta) + IS(q_t(z|x) / q_theta(z)) ],  w = r_t(z) / q_t(z|x),  IS(r) = r - log r - 1.
With rho = alpha N / uniform it is a function of three numbers per position: log p_x, log p_z and sum_y log(1 + rho p_y).

Shapes: B batch, L length, V vocabulary; `*n` any shape. Losses in nats per token.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

from dlmjax.diffusion.declarations import Capabilities, Ends
from dlmjax.diffusion.process import Process, among, check_ids, draw_tokens, exclude, split_rows, uniform_rows
from dlmjax.diffusion.processes.parameterisation import PARAMETERISATIONS, Parameterisation
from dlmjax.diffusion.schedules import FLOOR
from dlmjax.diffusion.shapes import Flags, Ids, Logits, Mask, PerClass, PerToken, RowKeys, Tokens, Values
from dlmjax.diffusion.time_domain import AllTimes, TimeDomain
from dlmjax.diffusion.weightings.base import OF_JUMPS, OF_TOKENS
from dlmjax.errors import InputError

# Uniform draws alone: a logarithm at t = 0; near t = 1 a row of n tokens is as informative as sqrt(n) tokens under masks.
UNIFORM_ENDS = Ends(power=2.5, clean=0.0, noise=3.0)


class Shares(NamedTuple):
    """Probabilities under q_t(. | x) of the kept token, a uniform draw of the N tokens, the mask. They sum to 1."""

    alpha: Values
    uniform: Values
    mask: Values


@dataclasses.dataclass(frozen=True)
class _RevealedAreText(TimeDomain):
    """All times; 0 for revealed tokens, which are text: at time t the denoiser would take some of them for noise."""

    def revealed(self, masked_BL: Mask, t_BL: PerToken, start_BL: PerToken) -> PerToken:
        del start_BL
        return jnp.where(masked_BL, t_BL, 0.0)


class Interpolating(Process):
    """Abstract: interpolating noise. A subclass is a dataclass with `vocab`, `mask_id` (or None), `excluded` and `parameterisation`.

    It defines `shares` and `jumps`. The denoiser must be conditioned on t.
    """

    vocab: int
    mask_id: int | None
    excluded: tuple[int, ...]
    parameterisation: str
    time_input = True
    stationary = True  # whether noise has the distribution of `prior` at all times
    ends = Ends(power=2.5, clean=0.5, noise=4.25)

    @abc.abstractmethod
    def shares(self, t: Values) -> Shares:
        """The three shares at time t, each exact to rounding where it is small."""

    @abc.abstractmethod
    def jumps(self, t: Values) -> tuple[Values, Values]:
        """alpha_t times the rate of jumps (to a uniform draw, to the mask): finite where the rate, -alpha'/alpha in sum, is not."""

    def __post_init__(self):
        ids = {f"excluded[{i}]": id_ for i, id_ in enumerate(self.excluded)}
        check_ids(self.name, self.vocab, **ids, **({} if self.mask_id is None else {"mask_id": self.mask_id}))
        if self.parameterisation not in PARAMETERISATIONS:
            raise InputError(
                f"process {self.name}: parameterisation is {self.parameterisation!r}; choose one of {', '.join(PARAMETERISATIONS)}"
            )
        if self.parameterisation == "score" and self.name != "score":
            raise InputError(f"process {self.name} requires probabilities; a network that gives scores is trained by process 'score'")
        if self.tokens < 2:
            raise InputError(f"process {self.name}: {self.vocab} classes less the excluded leave {self.tokens}; noise requires two tokens")

    @property
    def output(self) -> Parameterisation:
        return PARAMETERISATIONS[self.parameterisation](self)

    @property
    def suppressed_ids(self) -> tuple[int, ...]:
        """Ids that do not occur in text, in order."""
        return tuple(sorted({*self.excluded, *(() if self.mask_id is None else (self.mask_id,))}))

    @property
    def tokens(self) -> int:
        """N, the number of ids that can occur in text."""
        return self.vocab - len(self.suppressed_ids)

    @property
    def capabilities(self) -> Capabilities:
        """`rdm` requires the noise of t = 1 at all t, and a schedule; `self_correct` requires noise that replaces tokens.

        Where noise replaces tokens, most tokens are decided at small t (python -m benchmarks.sampling_grids).
        """
        redrawn = ("rdm",) if self.stationary and self.schedule is not None else ()
        revised, grid = ((), "uniform") if self.absorbing_id is not None else (("self_correct",), "power(exponent=2)")
        accepted = ("accept", "accept_once") if self.noise_mask is None and self.absorbing_id is None and self.stationary else ()
        return Capabilities(
            methods=("ancestral", "tau_leap", "analytic", "psi", "gibbs", *redrawn, *revised, *accepted),
            weightings=("bound", *OF_JUMPS, *OF_TOKENS),
            sampling_grid=grid,
            prior_mask_id=self.absorbing_id,
        )

    def reverse_rates(self, logits_BLV: Logits, z_BL: Tokens, t_BL: PerToken) -> Logits:
        to_uniform_BL, to_mask_BL = self.jumps(t_BL)
        into_BL = jnp.where(self.is_token(z_BL), to_uniform_BL / self.tokens, to_mask_BL)
        into_BL /= jnp.maximum(self.shares(t_BL).alpha, FLOOR)
        score_BLV = jnp.exp(self.output.log_score(logits_BLV, z_BL, t_BL))
        return jnp.where(jnp.arange(self.vocab) == z_BL[..., None], 0.0, into_BL[..., None] * score_BLV)

    def replaced(self, t: Values) -> Values:
        return self.shares(t).uniform

    @property
    def time_domain(self) -> TimeDomain:
        return AllTimes() if self.absorbing_id is not None else _RevealedAreText()

    # --- forward ---------------------------------------------------------------------------------------------------------------

    def noise_share(self, t: Values) -> Values:
        _, uniform, mask = self.shares(t)
        return uniform + mask

    def corrupt(self, keys_B: RowKeys, x_BL: Tokens, t_BL: PerToken, valid_BL: Mask | None = None) -> Tokens:
        _, uniform_BL, mask_BL = self.shares(t_BL)
        return self._jump(keys_B, x_BL, uniform_BL, mask_BL, valid_BL)

    def forward_step(self, keys_B: RowKeys, z_BL: Tokens, s_BL: PerToken, t_BL: PerToken, valid_BL: Mask | None = None) -> Tokens:
        _, uniform_BL, mask_BL = self._between(s_BL, t_BL)
        return self._jump(keys_B, z_BL, uniform_BL, mask_BL, valid_BL)

    def _jump(self, keys_B, z_BL, uniform_BL, mask_BL, valid_BL):
        """z, or a uniform draw with probability `uniform`, or the mask with probability `mask`."""
        hit_B, kind_B, token_B = split_rows(keys_B, 3)
        length = z_BL.shape[1]
        noise_BL = uniform_BL + mask_BL
        hit_BL = uniform_rows(hit_B, length) < noise_BL
        new_BL = uniform_tokens(token_B, length, self.vocab, self.suppressed_ids)
        if self.noise_mask is not None:
            new_BL = jnp.where(uniform_rows(kind_B, length) * noise_BL < mask_BL, self.noise_mask, new_BL)
        return jnp.where(among(hit_BL, valid_BL), new_BL, z_BL)

    def _between(self, s: Values, t: Values) -> Shares:
        """Shares of q(z_t | z_s), s <= t."""
        before, after = self.shares(s), self.shares(t)
        keep = after.alpha / jnp.maximum(before.alpha, FLOOR)
        return Shares(keep, *(jnp.maximum(a - keep * b, 0.0) for a, b in zip(after[1:], before[1:], strict=True)))

    # --- the bridge between meanings of the output -----------------------------------------------------------------------------

    def log_likelihood(self, z: Ids, t: Values) -> PerClass:
        """log q_t(z | x = k): one value at k = z, another elsewhere; within -log(N / FLOOR) of 0, where it would be -inf."""
        alpha, uniform, mask = self.floored_shares(t)
        here, elsewhere = jnp.log(alpha + uniform / self.tokens), jnp.log(uniform / self.tokens)
        two = jnp.where(jnp.arange(self.vocab) == z[..., None], here[..., None], elsewhere[..., None])
        return two if self.noise_mask is None else jnp.where((z == self.noise_mask)[..., None], jnp.log(mask)[..., None], two)

    def log_marginal(self, log_p: PerClass, t: Values) -> PerClass:
        """log q_t(y | x ~ p) for every class y that can occur in z, EXCLUDED for the others."""
        alpha, uniform, mask = self.floored_shares(t)
        log_q = jnp.logaddexp(log_p + jnp.log(alpha)[..., None], jnp.log(uniform / self.tokens)[..., None])
        if self.noise_mask is not None:
            log_q = jnp.where(jnp.arange(self.vocab) == self.noise_mask, jnp.log(mask)[..., None], log_q)
        return exclude(log_q, self.unseen_ids)

    def log_unmixed(self, log_q: PerClass, t: Values) -> PerClass:
        """log p up to a constant from log q_t(. | x ~ p), the inverse of `log_marginal`."""
        log_uniform = jnp.log(self.floored_shares(t).uniform / self.tokens)[..., None]
        clean = jnp.maximum(-jnp.expm1(jnp.minimum(log_uniform - log_q, 0.0)), FLOOR)
        return exclude(log_q + jnp.log(clean), self.suppressed_ids)

    @property
    def unseen_ids(self) -> tuple[int, ...]:
        """Ids that occur neither in text nor in noise."""
        return tuple(id_ for id_ in self.suppressed_ids if id_ != self.noise_mask)

    @property
    def noise_mask(self) -> int | None:
        """The mask where noise contains it; None where it is only a special id."""
        return self.mask_id

    def floored_shares(self, t: Values) -> Shares:
        """Shares of at least FLOOR: logarithms and ratios of them are finite."""
        return Shares(*(jnp.maximum(share, FLOOR) for share in self.shares(t)))

    # --- the bound -------------------------------------------------------------------------------------------------------------

    def loss(self, logits: PerClass, x: Ids, z: Ids, t: Values) -> Values:
        """See the top of the file. Computed in ratios to alpha, so that no division is by 0 at t = 0 or t = 1."""
        alpha, uniform, _ = self.floored_shares(t)
        rho = alpha * self.tokens / uniform
        own, shown = z == x, self.is_token(z)
        # The bridge from a posterior shifts one logit only: log q_t(z | x = k) has two values over k.
        shift = jnp.where(shown, jnp.log1p(rho), 0.0) if self.parameterisation == "posterior" else jnp.zeros_like(rho)
        sums, log_p_x, log_p_z = mixture_sums(exclude(logits, self.suppressed_ids), x, z, jnp.log(rho), shift)
        # log of (1 + rho 1[y = x]) / (1 + rho p_y), at y = x and at y = z.
        at_x = jnp.log1p(rho) - jax.nn.softplus(jnp.log(rho) + log_p_x)
        at_z = jnp.where(own, at_x, -jax.nn.softplus(jnp.log(rho) + log_p_z))
        divergence = (jnp.log1p(rho) - sums) / rho + at_x
        return alpha * self.jump_weight(x, z, t) * (divergence + jnp.where(shown, (jnp.expm1(at_z) - at_z) / alpha, 0.0))

    def jump_weight(self, x: Ids, z: Ids, t: Values) -> Values:
        """w_t(z, x), the factor of KL + IS: the rate of jumps into z over the probability of z."""
        alpha, uniform, mask = self.floored_shares(t)
        to_uniform, to_mask = self.jumps(t)
        per_token = to_uniform / (jnp.where(z == x, alpha * self.tokens, 0.0) + uniform)
        return jnp.where(self.is_token(z), per_token, to_mask / mask) / alpha

    def is_token(self, z: Ids) -> Flags:
        """Where the state is a token, and not the mask of the noise."""
        return jnp.ones(z.shape, bool) if self.noise_mask is None else z != self.noise_mask

    def prior_nats(self, x: Ids) -> Values:
        """KL(q(z_1 | x) || p_1): in p_1 the share alpha_1 is uniform over the tokens."""
        if not self.boundary.any:
            return jnp.zeros(x.shape, jnp.float32)
        alpha, uniform, _ = self.shares(jnp.ones(x.shape))
        other, start = uniform / self.tokens, (uniform + alpha) / self.tokens
        own = alpha + other
        terms = ((weight, p) for weight, p in ((1, own), (self.tokens - 1, other)))
        return sum(weight * p * (jnp.log(jnp.maximum(p, FLOOR)) - jnp.log(jnp.maximum(start, FLOOR))) for weight, p in terms)

    def reconstruction(self, logits: PerClass, x: Ids, z0: Ids) -> Values:
        if not self.boundary.reconstruction:
            return jnp.zeros(x.shape, jnp.float32)
        log_p = self.output.log_posterior(logits, z0, jnp.zeros(x.shape))
        return -jnp.take_along_axis(log_p, x[..., None], axis=-1)[..., 0]

    # --- reverse ---------------------------------------------------------------------------------------------------------------

    def prior(self, keys_B: RowKeys, length: int) -> Int[Array, "B {length}"]:
        alpha, uniform, mask = self.shares(jnp.ones((keys_B.shape[0], length)))
        start_BL = jnp.zeros((keys_B.shape[0], length), jnp.int32)
        return self._jump(keys_B, start_BL, 1 - mask, mask, None)

    def reverse_step(self, keys_B: RowKeys, logits_BLV: Logits, z_BL: Tokens, t_BL: PerToken, s_BL: PerToken) -> Tokens:
        """Exact: p(z_s = y | z_t) is proportional to q(z_t | z_s = y) q_s(y | x ~ p), where p is the x0 prediction, and the first
        factor has two values over y.

        So z is redrawn from q_s(. | x ~ p) with some probability, else kept; the new state is a token drawn from p, a uniform draw or the
        mask. Each choice is a separate draw: rare jumps are then exact, where the noise of a draw over all classes would lose them.
        """
        keep_B, token_B, jump_B = split_rows(keys_B, 3)
        log_loo_BLV = self.output.log_loo(logits_BLV, z_BL, t_BL)
        loo_z_BL = jnp.exp(jnp.take_along_axis(log_loo_BLV, z_BL[..., None], axis=-1)[..., 0])
        before, step = self.shares(s_BL), self._between(s_BL, t_BL)
        token_BL = self.is_token(z_BL)
        # q_s(z | x ~ p), and the probability that a jump between s and t leads to z.
        there_BL = jnp.where(token_BL, before.alpha * loo_z_BL + before.uniform / self.tokens, before.mask)
        into_BL = jnp.where(token_BL, step.uniform / self.tokens, step.mask)
        anew_BL = into_BL / jnp.maximum(into_BL + step.alpha * there_BL, FLOOR**2)
        # At an s without masks no mask remains, however small their share was at t.
        anew_BL = jnp.where(token_BL | (before.mask > 0), anew_BL, 1.0)
        clean_BL = draw_tokens(token_B, log_loo_BLV)
        new_BL = self._jump(jump_B, clean_BL, before.uniform, before.mask, None)
        return jnp.where(uniform_rows(keep_B, z_BL.shape[1]) < anew_BL, new_BL, z_BL)

    def decode(self, keys_B: RowKeys, logits_BLV: Logits, z_BL: Tokens) -> Tokens:
        if not self.boundary.reconstruction:
            return z_BL
        return draw_tokens(keys_B, self.output.log_posterior(logits_BLV, z_BL, jnp.zeros(z_BL.shape)))


def uniform_tokens(keys_B: RowKeys, length: int, vocab: int, suppressed_ids: tuple[int, ...] = ()) -> Int[Array, "B {length}"]:
    """Token ids drawn uniformly from those of [0, vocab) that are not suppressed."""
    count = vocab - len(suppressed_ids)
    ids_BL = jax.vmap(lambda key: jax.random.randint(key, (length,), 0, count, jnp.int32))(keys_B)
    for id_ in sorted(suppressed_ids):
        ids_BL += ids_BL >= id_
    return ids_BL


@jax.custom_vjp
def mixture_sums(logits: PerClass, x: Ids, z: Ids, log_rho: Values, shift: Values) -> tuple[Values, Values, Values]:
    """(sum_y log(1 + rho p_y), log p_x, log p_z) with p = softmax(logits less `shift` at z).

    One derivative for all three: the backward pass reads the logits once and writes their gradient once, as cross-entropy does, where
    automatic differentiation would store and read a [*n, V] array for each term. `shift` is a constant.
    """
    return _mixture_forward(logits, x, z, log_rho, shift)[0]


def _mixture_forward(logits, x, z, log_rho, shift):
    log_total, sums, pull = by_rows(_sums, logits, z, log_rho, shift)
    logit_x, logit_z = (jnp.take_along_axis(logits, i[..., None], axis=-1)[..., 0] for i in (x, z))
    log_p_x, log_p_z = logit_x - jnp.where(x == z, shift, 0.0) - log_total, logit_z - shift - log_total
    return (sums, log_p_x, log_p_z), (logits, x, z, log_total, log_rho, shift, pull)


def _sums(logits, z, log_rho, shift):
    """log sum e^logits, and over the classes the sums of log(1 + rho p) and of its derivative in log p."""
    logits = _shifted(logits, z, shift)
    log_total = jax.nn.logsumexp(logits, axis=-1)
    ratio = jnp.exp(logits - (log_total - log_rho)[..., None])
    return log_total, jnp.sum(jnp.log1p(ratio), axis=-1), jnp.sum(ratio / (1 + ratio), axis=-1)


def _shifted(logits, z, shift):
    return jnp.where(jnp.arange(logits.shape[-1]) == z[..., None], logits - shift[..., None], logits)


def _mixture_backward(saved, cotangents):
    logits, x, z, log_total, log_rho, shift, pull = saved
    of_sums, of_x, of_z = (cotangent[..., None] for cotangent in cotangents)
    p = jnp.exp(_shifted(logits, z, shift) - log_total[..., None])
    ratio = p * jnp.exp(log_rho)[..., None]
    class_V = jnp.arange(logits.shape[-1])
    gradient = of_sums * (ratio / (1 + ratio)) - p * (of_sums * pull[..., None] + of_x + of_z)
    gradient += jnp.where(class_V == x[..., None], of_x, 0.0) + jnp.where(class_V == z[..., None], of_z, 0.0)
    return gradient.astype(logits.dtype), None, None, cotangents[0] * pull, None


mixture_sums.defvjp(_mixture_forward, _mixture_backward)


ROWS = 8  # rows of 50,000 classes that fit into the cache of a CPU core


def by_rows(function: Callable[..., Any], logits: PerClass, *args: Shaped[Array, "*n"]) -> Any:
    """function(logits, *args), a reduction over the classes: on a CPU a few rows at a time.

    XLA's CPU compiler does not vectorise a reduction over the last axis of an intermediate array; a few rows, which fit into the cache, can
    be written to memory first, which is three times faster. Accelerators process all rows at once.
    """
    if logits.size < 2**20:
        return function(logits, *args)
    shape, vocab = logits.shape[:-1], logits.shape[-1]

    def in_parts(logits, *args):
        flat = (logits.reshape(-1, vocab), *(jnp.broadcast_to(a, shape).reshape(-1) for a in args))
        parts = jax.lax.map(lambda row: function(*row), flat, batch_size=ROWS)
        return jax.tree.map(lambda part: part.reshape(shape), parts)

    return jax.lax.platform_dependent(logits, *args, cpu=in_parts, default=function)
