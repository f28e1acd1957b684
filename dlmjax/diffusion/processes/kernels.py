"""Transition kernels of discrete-time diffusion (D3PM 2107.03006 section 3.1) on K tokens, without a K x K array per level.

Convention: Q[x, z] = q(z | x), one row per token x, summing to 1; a row vector p of probabilities steps forward as p @ Q.

All kernels here are symmetric (so the column of z is the row of z), have the uniform distribution as their limit, and are a semigroup in
one number: Q(keep) with Q(1) = 1, Q(0) = all rows uniform, Q(a) Q(b) = Q(a b). So the `keep` of a level is the product over its steps, any
sequence of steps is one kernel, and the chain has a limit in continuous time. `keep` is the share of the slowest mode that is left;
`gone` = 1 - keep is a separate argument, since float32 cannot compute it from a `keep` near 1.

    Uniform     Q = keep 1 + gone / K                                             D3PM's uniform kernel
    Path        Q = exp(tau G), G: jumps to the next lower and higher token       its discretised Gaussian: the heat kernel of ordinal
                tokens, reflected at both ends, of variance 2 tau. The paper's table instead renormalises every step's truncated
                Gaussian; its steps do not commute, so each level would need a K x K array.
    Neighbours  Q = exp(tau G), G: jumps to near neighbours in an embedding       its k-nearest-neighbour kernel (appendix A.2.4)

For the last two tau = -log(keep) / (slowest rate). Absorbing noise is not symmetric and has no kernel here: see d3pm.py.

Shapes: `*n` any shape, K tokens, M modes.
"""

import abc
import dataclasses
import functools
import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from dlmjax.diffusion.process import EXCLUDED, draw_tokens, split_rows, uniform_rows
from dlmjax.diffusion.processes.table import Table
from dlmjax.diffusion.schedules import FLOOR
from dlmjax.diffusion.shapes import Flags, Ids, PerToken, RowKeys, Tokens, Values
from dlmjax.errors import InputError

TINY = 1e-30  # least probability under a logarithm
DENSE = 4096  # tokens above which a K x K array of eigenvectors is refused: 64 MiB in float32


@runtime_checkable
class Kernel(Protocol):
    """A family Q(keep). Probabilities are in the dtype of `keep`."""

    tokens: int

    def row(self, x: Ids, keep: Values, gone: Values) -> Float[Array, "*n K"]:
        """Q[x, :], which is also Q[:, x]."""
        ...

    def spread(self, p: Float[Array, "*n K"], keep: Values, gone: Values) -> Float[Array, "*n K"]:
        """p @ Q."""
        ...

    def draw(self, keys_B: RowKeys, x_BL: Tokens, keep_BL: PerToken, gone_BL: PerToken) -> Tokens:
        """z ~ Q[x, :]. Row by row of the batch: no [B, L, K] array."""

        def row(args):
            key, x_L, keep_L, gone_L = args
            p_LK = self.row(x_L, keep_L, gone_L)
            log_LK = jnp.where(p_LK > 0, jnp.log(jnp.maximum(p_LK, TINY)), EXCLUDED)
            return draw_tokens(key[None], log_LK[None])[0]

        return jax.lax.map(row, (keys_B, x_BL, keep_BL, gone_BL))


@dataclasses.dataclass(frozen=True)
class Uniform(Kernel):
    """A token is kept with probability `keep`, else replaced by a uniform draw of the K tokens."""

    tokens: int

    def row(self, x: Ids, keep: Values, gone: Values) -> Float[Array, "*n K"]:
        own = x[..., None] == jnp.arange(self.tokens)
        return jnp.where(own, keep[..., None], 0.0) + gone[..., None] / self.tokens

    def spread(self, p: Float[Array, "*n K"], keep: Values, gone: Values) -> Float[Array, "*n K"]:
        return keep[..., None] * p + gone[..., None] / self.tokens

    def draw(self, keys_B: RowKeys, x_BL: Tokens, keep_BL: PerToken, gone_BL: PerToken) -> Tokens:
        del keep_BL
        which_B, token_B = split_rows(keys_B)
        token_BL = jax.vmap(lambda key: jax.random.randint(key, x_BL.shape[1:], 0, self.tokens))(token_B)
        return jnp.where(uniform_rows(which_B, x_BL.shape[1]) < gone_BL, token_BL, x_BL)


class Heat(Kernel):
    """Abstract: exp(tau G) for a symmetric generator G of eigenvalues -rate: a change of basis, a decay per mode, and back.

    Only the difference from 1, or from 1 + tau G where tau is small, is transformed: rounding errors of a transform are relative to its
    largest numbers, and the small entries of a single step, which are multiplied by 1/t, must be right to a few digits.
    """

    @property
    @abc.abstractmethod
    def rate_M(self) -> Float64[np.ndarray, "M"]:
        """Decay of each mode, in units of the slowest that decays."""

    @abc.abstractmethod
    def analyse(self, p: Float[Array, "*n K"]) -> Array:
        """Coefficients [*n, M] of p."""

    def analyse_one(self, x: Ids, dtype: jnp.dtype) -> Array:
        """Coefficients of the token x."""
        return self.analyse((x[..., None] == jnp.arange(self.tokens)).astype(dtype))

    @abc.abstractmethod
    def synthesise(self, coefficients: Array) -> Float[Array, "*n K"]:
        """p from its coefficients."""

    @abc.abstractmethod
    def jumps(self, x: Ids, dtype: jnp.dtype) -> Float[Array, "*n K"]:
        """G[x, :] in the units of `rate_M`."""

    def row(self, x: Ids, keep: Values, gone: Values) -> Float[Array, "*n K"]:
        tau = _tau(keep, gone)[..., None]
        decay = tau * jnp.asarray(self.rate_M, keep.dtype)
        short = tau * float(self.rate_M.max()) < 1
        gain = jnp.where(short, _second_order(decay), jnp.expm1(-decay))
        own = (x[..., None] == jnp.arange(self.tokens)).astype(keep.dtype)
        first = jnp.where(short, tau * self.jumps(x, keep.dtype), 0.0)
        return jnp.maximum(own + first + self.synthesise(gain * self.analyse_one(x, keep.dtype)), 0.0)

    def spread(self, p: Float[Array, "*n K"], keep: Values, gone: Values) -> Float[Array, "*n K"]:
        gain = jnp.expm1(-_tau(keep, gone)[..., None] * jnp.asarray(self.rate_M, keep.dtype))
        return jnp.maximum(p + self.synthesise(gain * self.analyse(p)), 0.0)


@dataclasses.dataclass(frozen=True)
class Path(Heat):
    """Ordinal tokens 0 .. K - 1: jumps to the next lower and higher token, reflected at both ends; cosine transform, O(K log K)."""

    tokens: int

    @functools.cached_property
    def rate_M(self) -> Float64[np.ndarray, "M"]:
        return (np.sin(np.pi * np.arange(self.tokens + 1) / (2 * self.tokens)) / math.sin(math.pi / (2 * self.tokens))) ** 2

    def analyse(self, p: Float[Array, "*n K"]) -> Array:
        # With the mirror image appended, the ends are reflecting.
        return jnp.fft.rfft(jnp.concatenate([p, p[..., ::-1]], axis=-1), axis=-1)

    def synthesise(self, coefficients: Array) -> Float[Array, "*n K"]:
        return jnp.fft.irfft(coefficients, n=2 * self.tokens, axis=-1)[..., : self.tokens]

    def jumps(self, x: Ids, dtype: jnp.dtype) -> Float[Array, "*n K"]:
        apart = jnp.abs(x[..., None] - jnp.arange(self.tokens))
        degree = 2 - (x == 0) - (x == self.tokens - 1)
        unit = 4 * math.sin(math.pi / (2 * self.tokens)) ** 2
        return jnp.where(apart == 0, -degree[..., None], apart == 1).astype(dtype) / unit


@dataclasses.dataclass(frozen=True)
class Neighbours(Heat):
    """Jumps between near neighbours of an embedding table.

    embedding_KE: one row per token, array or Table.  neighbours: number of nearest tokens that a token jumps to; jumps go both ways, with
    half the rate where only one of the two tokens is among the nearest of the other.
    """

    embedding_KE: Any
    neighbours: int = 8

    def __post_init__(self):
        object.__setattr__(self, "embedding_KE", Table(self.embedding_KE))
        shape = self.embedding_KE.array.shape
        if len(shape) != 2:
            raise InputError(f"kernel neighbours: embedding has the shape {shape}; it must have one row for each token")
        if shape[0] > DENSE:
            raise InputError(
                f"kernel neighbours: {shape[0]:,} tokens require a basis of {shape[0] ** 2 * 4 >> 20:,} MiB; at most {DENSE:,} tokens, "
                "use kernel 'uniform' or 'gaussian' for more"
            )
        if not 1 <= self.neighbours < shape[0]:
            raise InputError(f"kernel neighbours: neighbours is {self.neighbours}; it must be at least 1 and below the {shape[0]} tokens")
        if np.sum(self._modes[0] < 1e-9) > 1:
            raise InputError(f"kernel neighbours: neighbours is {self.neighbours}, too few to connect all tokens by jumps; give more")

    @property
    def tokens(self) -> int:
        return self.embedding_KE.array.shape[0]

    @functools.cached_property
    def generator_KK(self) -> Float64[np.ndarray, "K K"]:
        """G: off its diagonal the jump rates (A + A') / 2k of the neighbour graph A, rows summing to 0 (D3PM eq. A.14)."""
        point_KE = self.embedding_KE.array.astype(np.float64)
        square_K = np.sum(point_KE**2, axis=1)
        apart_KK = square_K[:, None] + square_K - 2 * point_KE @ point_KE.T
        np.fill_diagonal(apart_KK, np.inf)
        near_KN = np.argsort(apart_KK, axis=1, kind="stable")[:, : self.neighbours]
        tie_KK = np.zeros_like(apart_KK)
        np.put_along_axis(tie_KK, near_KN, 1.0, axis=1)
        tie_KK = (tie_KK + tie_KK.T) / (2 * self.neighbours)
        return tie_KK - np.diag(tie_KK.sum(axis=1))

    @functools.cached_property
    def _modes(self) -> tuple[np.ndarray, np.ndarray]:
        """(rates, eigenvectors in columns) of -G; the first rate is exactly 0."""
        rate_M, mode_KM = np.linalg.eigh(-self.generator_KK)
        rate_M[0] = 0
        return rate_M, mode_KM

    @functools.cached_property
    def rate_M(self) -> Float64[np.ndarray, "M"]:
        return np.maximum(self._modes[0] / self._modes[0][1], 0)

    def analyse(self, p: Float[Array, "*n K"]) -> Array:
        return jnp.dot(p, jnp.asarray(self._modes[1], p.dtype), precision="highest")

    def analyse_one(self, x: Ids, dtype: jnp.dtype) -> Array:
        return jnp.asarray(self._modes[1], dtype)[x]

    def synthesise(self, coefficients: Array) -> Float[Array, "*n K"]:
        return jnp.dot(coefficients, jnp.asarray(self._modes[1], coefficients.dtype).T, precision="highest")

    def jumps(self, x: Ids, dtype: jnp.dtype) -> Float[Array, "*n K"]:
        return jnp.asarray(self.generator_KK / self._modes[0][1], dtype)[x]


def _tau(keep: Values, gone: Values) -> Values:
    """-log keep, at most 27.6: there the slowest mode is a trillionth."""
    return jnp.where(gone < 0.5, -jnp.log1p(-jnp.minimum(gone, 0.5)), -jnp.log(jnp.maximum(keep, FLOOR)))


def _second_order(decay: Array) -> Array:
    """exp(-d) - 1 + d, by its series where d is small and float32 would cancel."""
    series = decay**2 / 2 * (1 - decay / 3 * (1 - decay / 4 * (1 - decay / 5 * (1 - decay / 6 * (1 - decay / 7)))))
    return jnp.where(decay < 0.1, series, jnp.expm1(-decay) + decay)


# --- one step back ---------------------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """The two kernels of a step back from level t to level s < t, for every position: clean to s, and s to t."""

    keep: Float[Array, "*n"]
    gone: Float[Array, "*n"]
    step_keep: Float[Array, "*n"]
    step_gone: Float[Array, "*n"]


def divergence(kernel: Kernel, log_p: Float[Array, "*n K"], x: Ids, z: Ids, step: Step) -> Values:
    """KL(q(z_s | z_t = z, x) || sum_x' q(z_s | z, x') p(x' | z)) in nats, where p(x' | z) follows from `log_p`, the
    leave-one-out x0 prediction.

    With a = q(z_s | x), b = q(z_s | x' ~ p) and c = q(z | z_s) these are a c / A and b c / B. The event z_s = z is computed separately:
    near t = 0 it has almost all the probability, and its distance from 1 determines the KL. At s = 0 the KL is -log p(x | z_t).
    """
    a, c = kernel.row(x, step.keep, step.gone), kernel.row(z, step.step_keep, step.step_gone)
    b = kernel.spread(jnp.exp(log_p), step.keep, step.gone)
    # Level 0 has no noise, and there p may be far below the smallest float.
    log_b = jnp.where((step.gone > 0)[..., None], jnp.log(jnp.maximum(b, TINY)), jnp.maximum(log_p, EXCLUDED / 2))
    leaves = z[..., None] != jnp.arange(kernel.tokens)
    true, model = a * c, b * c
    true_sum, model_sum = (jnp.maximum(jnp.sum(w, axis=-1), TINY) for w in (true, model))
    true_left, model_left = (jnp.sum(jnp.where(leaves, w, 0.0), axis=-1) / s for w, s in ((true, true_sum), (model, model_sum)))
    scale = jnp.log(model_sum) - jnp.log(true_sum)
    ratio = jnp.log(jnp.maximum(a, TINY)) - log_b + scale[..., None]
    leaving = jnp.sum(jnp.where(leaves & (true > 0), true * ratio, 0.0), axis=-1) / true_sum

    def at(values):
        return jnp.take_along_axis(values, z[..., None], axis=-1)[..., 0]

    true_stay = at(true) / true_sum
    log_c = jnp.log(jnp.maximum(at(c), TINY))
    staying = _log_rest(true_left, jnp.log(jnp.maximum(at(a), TINY)) + log_c - jnp.log(true_sum)) - _log_rest(
        model_left, at(log_b) + log_c - jnp.log(model_sum)
    )
    return leaving + jnp.where(true_stay > 0, true_stay * staying, 0.0)


def uniform_divergence(sums: Values, log_p_x: Values, log_p_z: Values, own: Flags, tokens: int, step: Step) -> Values:
    """`divergence` of the `Uniform` kernel in closed form: it requires three numbers of the x0 prediction p and no array of K.

    sums: sum_y log(1 + rho p_y), rho = `mixing(tokens, step)`; own: z = x. Away from x and z all a are gone/K and all c step_gone/K.
    """
    share, step_share, rho = step.gone / tokens, step.step_gone / tokens, mixing(tokens, step)
    # log of b over its uniform share; where there is no noise, b is p.
    over_x, over_z = (jax.nn.softplus(jnp.log(rho) + log_p) for log_p in (log_p_x, log_p_z))
    log_share = jnp.log(jnp.maximum(share, TINY))
    log_b_x, log_b_z = (jnp.where(step.gone > 0, log_share + o, p) for o, p in ((over_x, log_p_x), (over_z, log_p_z)))
    a_z = jnp.where(own, step.keep + share, share)
    true_sum = jnp.maximum(step_share + step.step_keep * a_z, TINY)
    model_sum = jnp.maximum(step_share + step.step_keep * jnp.exp(log_b_z), TINY)
    scale = jnp.log(model_sum) - jnp.log(true_sum)
    # 1 - a_z and 1 - b_z, from small numbers where they are small.
    others = step.gone * ((tokens - 1) / tokens)
    true_left = step_share * jnp.where(own, others, 1 - share) / true_sum
    model_left = step_share * (others - step.keep * jnp.expm1(jnp.minimum(log_p_z, 0))) / model_sum
    rest = share * ((tokens - 1 - ~own) * scale - (sums - over_z - jnp.where(own, 0.0, over_x)))
    to_x = (step.keep + share) * (jnp.log(jnp.maximum(step.keep + share, TINY)) - log_b_x + scale)
    leaving = step_share / true_sum * (rest + jnp.where(own, 0.0, to_x))
    log_c = jnp.log(jnp.maximum(step.step_keep + step_share, TINY))
    log_stay = jnp.log(jnp.maximum(a_z, TINY)) + log_c - jnp.log(true_sum)
    staying = _log_rest(true_left, log_stay) - _log_rest(model_left, log_b_z + log_c - jnp.log(model_sum))
    return leaving + jnp.where(a_z > 0, jnp.exp(log_stay) * staying, 0.0)


def mixing(tokens: int, step: Step) -> Values:
    """keep at level s over the uniform share of each token, finite at both ends."""
    return jnp.maximum(step.keep, FLOOR) * tokens / jnp.maximum(step.gone, FLOOR)


def _log_rest(left: Array, log_stay: Array) -> Array:
    """log(1 - left), from the more exact of the two arguments."""
    return jnp.where(left < 0.5, jnp.log1p(-jnp.minimum(left, 0.5)), log_stay)


def backward_logits(kernel: Kernel, log_p: Float[Array, "*n K"], z: Ids, step: Step) -> Float[Array, "*n K"]:
    """log p(z_s | z_t = z) up to a constant, for the leave-one-out x0 prediction `log_p`."""
    c = kernel.row(z, step.step_keep, step.step_gone)
    b = kernel.spread(jnp.exp(log_p), step.keep, step.gone)
    return jnp.where((b > 0) & (c > 0), jnp.log(jnp.maximum(b, TINY)) + jnp.log(jnp.maximum(c, TINY)), EXCLUDED)
