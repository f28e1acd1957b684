"""Temperature and nucleus on logits, in float32.  `dlmjax.diffusion.process.draw_tokens` draws from the result (high-precision Gumbel).

Shapes: V vocabulary; any leading axes.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dlmjax.diffusion.process import EXCLUDED


def warp(logits: Float[Array, "*n V"], temperature: float = 1.0, top_p: float = 1.0) -> Float[Array, "*n V"]:
    """Temperature, then nucleus (Holtzman et al. 1904.09751).  Ids at or below EXCLUDED keep probability 0.

    temperature: divides the logits; 0 gives the most likely token (of several, the first) all probability.
    top_p: probability of the nucleus, the smallest set of most likely tokens that reaches it; tokens as likely as its last one are kept.
    """
    if temperature == 0:
        best = jnp.argmax(logits, axis=-1, keepdims=True)
        return jnp.where(jnp.arange(logits.shape[-1]) == best, 0.0, EXCLUDED)
    logits = jnp.where(logits <= EXCLUDED, EXCLUDED, logits / temperature)
    if top_p < 1:
        p = jax.nn.softmax(logits)
        falling = -jnp.sort(-p, axis=-1)
        before = jnp.cumsum(falling, axis=-1) - falling  # probability of all more likely tokens
        # A top_p that float32 rounds to 0 keeps the most likely token; without the maximum it would keep none.
        edge = jnp.min(jnp.where(before < max(top_p, 1e-30), falling, 1.0), axis=-1, keepdims=True)
        logits = jnp.where(p >= edge, logits, EXCLUDED)
    return logits
