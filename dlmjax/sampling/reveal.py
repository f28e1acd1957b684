"""Reveal orders: which of the drawn tokens are revealed next (MaskGIT 2202.04200; LLaDA 2502.09992; Dream 2508.15487).

Shapes: B rows, L positions, V vocabulary.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dlmjax.diffusion.process import uniform_rows


def order_scores(
    order: str, keys_B: Key[Array, "B"], log_p_BLV: Float[Array, "B L V"], p_x0_BL: Float[Array, "B L"]
) -> Float[Array, "B L"]:
    """Score of each position; higher scores are revealed first.

    log_p_BLV is p(x_i | z), before temperature and nucleus. confidence: probability of the drawn token, `p_x0_BL`; entropy: minus the
    entropy of the position (nats); margin: largest minus second-largest probability; random: uniform draw with the row's key;
    left_to_right: minus the index of the position.
    """
    length = p_x0_BL.shape[1]
    if order == "confidence":
        return p_x0_BL
    if order == "entropy":
        return jnp.sum(jnp.exp(log_p_BLV) * log_p_BLV, axis=-1)
    if order == "margin":
        top_BL2 = jnp.exp(jax.lax.top_k(log_p_BLV, 2)[0])
        return top_BL2[..., 0] - top_BL2[..., 1]
    if order == "random":
        return uniform_rows(keys_B, length)
    return jnp.broadcast_to(-jnp.arange(length, dtype=jnp.float32), p_x0_BL.shape)


def planned_reveals(remainder: str, masked_B: Int[Array, "B"], steps_B: Int[Array, "B"], step: Int[Array, ""]) -> Int[Array, "B"]:
    """Number of tokens of each row that are revealed after step `step` of its `steps_B` steps (at most one step per masked position).

    With M masked positions and N steps, each step reveals M // N tokens, and M % N of the steps reveal one token more: "spread" evenly over
    the steps, floor(M k / N) after step k, or the "first" ones (get_num_transfer_tokens of LLaDA's generate.py).
    """
    base_B, more_B = masked_B // steps_B, masked_B % steps_B
    more_B = more_B * step // steps_B if remainder == "spread" else jnp.minimum(step, more_B)
    return jnp.where(step >= steps_B, masked_B, base_B * step + more_B)


def probability_of(log_p_BLV: Float[Array, "B L V"], tokens_BL: Int[Array, "B L"]) -> Float[Array, "B L"]:
    """Probability of each token."""
    return jnp.exp(jnp.take_along_axis(log_p_BLV, tokens_BL[..., None], axis=-1)[..., 0])
