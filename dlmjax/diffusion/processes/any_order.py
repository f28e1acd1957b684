"""The forms of masked diffusion's bound for a network without time input (RADD 2406.03736 section 4): all have the same expectation.

    t-form       E_t  -alpha'/(1 - alpha) sum of CE of the masked         process `masked`, any schedule
    lambda-form  E_lambda ~ U[0,1]  1/lambda sum of CE of the masked      process `masked_lambda`: t is the mask rate
    k-form       E_k ~ U{1..n}  n/k sum of CE of exactly k masked         process `masked_count`
    any order    E over orders  sum_j CE of the j-th token given the j - 1 before it       `any_order_nats`, n passes

The k-form is the any-order form with one rank of the order drawn for each row, averaged over all tokens that can have it; to draw the
token as well would only add variance. `any_order_nats` has no weights, hence the lowest variance per row, and is meant for evaluation: a
row of n tokens costs n passes of the network.

Shapes: B batch, L length.
"""

from typing import Any

import jax
import jax.numpy as jnp

from dlmjax.diffusion.process import Process
from dlmjax.diffusion.shapes import Mask, PerToken, RowKeys, Tokens
from dlmjax.errors import InputError


def any_order_nats(process: Process, denoiser: Any, x_BL: Tokens, valid_BL: Mask, keys_B: RowKeys) -> PerToken:
    """-log p(x_i | the tokens before i in a random order) of every token, with one order per row; 0 on padding. In nats.

    The mean over orders of a row's sum is the bound of a network without time input, and for a fixed order the sum is an exact negative
    log-likelihood (of the model that decodes in this order). L passes of the network.
    """
    if process.time_input:
        raise InputError(f"process {process.name} has a time-conditioned network; any-order likelihoods require one without time input")
    length = x_BL.shape[1]
    bits_BL = jax.vmap(lambda key: jax.random.bits(key, (length,)) >> 1)(keys_B).astype(jnp.int32)
    # Rank of a token in the order; padding has the last ranks and is never masked.
    rank_BL = jnp.argsort(jnp.lexsort((bits_BL, ~valid_BL), axis=1), axis=1)
    count_B1 = jnp.maximum(jnp.sum(valid_BL, axis=1, keepdims=True), 1)

    def one(nats_BL, rank):
        z_BL = jnp.where(valid_BL & (rank_BL >= rank), process.mask_id, x_BL)
        t_BL = jnp.broadcast_to(jnp.clip((count_B1 - rank) / count_B1, 0, 1), x_BL.shape).astype(jnp.float32)
        now_BL = valid_BL & (rank_BL == rank)
        hidden_BLD = denoiser.hidden(z_BL, process.time_embedding_input(t_BL))
        ones_BL = jnp.ones(x_BL.shape, jnp.float32)
        now_nats_BL = denoiser.row_losses(hidden_BLD, now_BL, process.reconstruction, (x_BL, z_BL), ones_BL)[1]
        return nats_BL + now_nats_BL.astype(nats_BL.dtype), None

    # float32, or float64 where that is switched on: the carry must have one type, whatever the type of the network's output.
    return jax.lax.scan(one, jnp.zeros(x_BL.shape), jnp.arange(length))[0]
