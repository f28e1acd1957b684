"""Projection of token distributions onto a constraint (constrained discrete diffusion, 2503.09790 section 4):

    y* = argmin KL(y || p)   subject to   g(y) <= tau,        y, p: a product of one distribution per position,

by the augmented Lagrangian KL(y || p) + (max(0, lambda + mu (g - tau))^2 - lambda^2) / (2 mu), minimised `steps` steps at a time, with
lambda += mu (g - tau), at least 0, and mu doubled after each of the rounds. Start values and the largest mu are those of a port of the
method: 0, 1 and 1000.

Steps are Newton's with g linearised, in the logits u of y. With c = max(0, lambda + mu (g - tau)) and the slope s of g, y is the minimum
where u = log p - c s. Towards it u moves by r - s mu <s, r> / (1 + mu <s, s>), r = log p - c s - u and <a, b> the covariance under y,
summed over positions; by at most one nat a step, since g is only linearised. Where g is linear in y, y* is the tilt p exp(-c s), which
this reaches; else a minimum near p. Rows with g(p) <= tau keep p bit for bit.

Shapes: B rows, L positions, V vocabulary.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dlmjax.diffusion.process import EXCLUDED

FIRST_PENALTY, LARGEST_PENALTY = 1.0, 1000.0
LARGEST_MOVE = 1.0  # nats, of one logit in one step

Violation = Callable[[Float[Array, "B L V"]], Float[Array, "B"]]


def project(log_p_BLV: Float[Array, "B L V"], violation: Violation, tau: float, rounds: int, steps: int) -> Float[Array, "B L V"]:
    """log y* of each row; log_p_BLV: normalised. The rows of `violation` do not depend on each other."""

    def step(_, carry):
        """One Newton step of the logits, at constant lambda and mu."""
        u_BLV, lambda_B, penalty = carry
        y_BLV = jax.nn.softmax(u_BLV)
        g_B, back = jax.vjp(violation, y_BLV)
        (slope_BLV,) = back(jnp.ones_like(g_B))
        price_B = jnp.maximum(lambda_B + penalty * (g_B - tau), 0.0)
        rest_BLV = log_p_BLV - price_B[:, None, None] * slope_BLV - u_BLV
        stiff_B = jnp.where(price_B > 0, penalty, 0.0)
        back_B = stiff_B * _covariance(y_BLV, slope_BLV, rest_BLV) / (1 + stiff_B * _covariance(y_BLV, slope_BLV, slope_BLV))
        move_BLV = rest_BLV - back_B[:, None, None] * slope_BLV
        # A constant of a position changes nothing: what counts is the distance from the mean.
        move_BLV -= jnp.sum(y_BLV * move_BLV, axis=-1, keepdims=True)
        far_B = jnp.max(jnp.abs(move_BLV), axis=(1, 2), where=log_p_BLV > EXCLUDED / 2, initial=0.0)
        move_BLV *= (LARGEST_MOVE / jnp.maximum(far_B, LARGEST_MOVE))[:, None, None]
        moves_B = jnp.any(u_BLV != log_p_BLV, axis=(1, 2)) | (price_B > 0)
        return jnp.where(moves_B[:, None, None], u_BLV + move_BLV, u_BLV), lambda_B, penalty

    def one_round(_, carry):
        u_BLV, lambda_B, penalty = jax.lax.fori_loop(0, steps, step, carry)
        gap_B = violation(jax.nn.softmax(u_BLV)) - tau
        return u_BLV, jnp.maximum(lambda_B + penalty * gap_B, 0.0), jnp.minimum(2 * penalty, LARGEST_PENALTY)

    start = log_p_BLV, jnp.zeros(len(log_p_BLV)), jnp.float32(FIRST_PENALTY)
    u_BLV, _, _ = jax.lax.fori_loop(0, rounds, one_round, start)
    kept_B = jnp.all(u_BLV == log_p_BLV, axis=(1, 2))
    return jnp.where(kept_B[:, None, None], log_p_BLV, jax.nn.log_softmax(u_BLV))


def _covariance(y_BLV, a_BLV, b_BLV) -> Float[Array, "B"]:
    """The covariance of a and b under y, summed over positions."""
    away_BLV = a_BLV - jnp.sum(y_BLV * a_BLV, axis=-1, keepdims=True)
    return jnp.sum(y_BLV * away_BLV * b_BLV, axis=(1, 2))
