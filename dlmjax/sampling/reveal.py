"""Reveal orders: which of the drawn tokens to show next (MaskGIT 2202.04200; LLaDA 2502.09992; Dream 2508.15487).

Shapes: B rows, L positions, V vocabulary.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dlmjax.diffusion.process import uniform_rows


def order_scores(
    order: str, keys_B: Key[Array, "B"], log_p_BLV: Float[Array, "B L V"], p_guess_BL: Float[Array, "B L"]
) -> Float[Array, "B L"]:
    """How willingly each position is revealed (higher first).

    confidence: probability of the drawn token; entropy: minus the entropy of the position (nats); margin: best minus second-best
    probability; random: uniform noise of the row's key; left_to_right: minus the position.
    """
    length = p_guess_BL.shape[1]
    if order == "confidence":
        return p_guess_BL
    if order == "entropy":
        return jnp.sum(jnp.exp(log_p_BLV) * log_p_BLV, axis=-1)
    if order == "margin":
        top_BL2 = jnp.exp(jax.lax.top_k(log_p_BLV, 2)[0])
        return top_BL2[..., 0] - top_BL2[..., 1]
    if order == "random":
        return uniform_rows(keys_B, length)
    return jnp.broadcast_to(-jnp.arange(length, dtype=jnp.float32), p_guess_BL.shape)


def probability_of(log_p_BLV, tokens_BL):
    return jnp.exp(jnp.take_along_axis(log_p_BLV, tokens_BL[..., None], axis=-1)[..., 0])
