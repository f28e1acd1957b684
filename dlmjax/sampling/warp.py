"""Temperature and nucleus on logits, in float32.  The draw itself is `dlmjax.diffusion.process.draw_tokens` (high-precision Gumbel).

Shapes: V vocabulary; leading axes are free.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dlmjax.diffusion.process import EXCLUDED


def warp(logits: Float[Array, "*n V"], temperature: float = 1.0, top_p: float = 1.0) -> Float[Array, "*n V"]:
    """Temperature, then nucleus (Holtzman et al. 1904.09751).  Classes at or below EXCLUDED stay without probability.

    temperature 0 puts all probability on the most likely token (the first of equals).
    top_p keeps the smallest set of most likely tokens whose probability reaches top_p; equals at its edge are all kept.
    """
    if temperature == 0:
        best = jnp.argmax(logits, axis=-1, keepdims=True)
        return jnp.where(jnp.arange(logits.shape[-1]) == best, 0.0, EXCLUDED)
    logits = jnp.where(logits <= EXCLUDED, EXCLUDED, logits / temperature)
    if top_p < 1:
        p = jax.nn.softmax(logits)
        falling = -jnp.sort(-p, axis=-1)
        before = jnp.cumsum(falling, axis=-1) - falling  # probability of everything more likely
        # A top_p that float32 rounds to 0 is the most likely token too, and not no token at all.
        edge = jnp.min(jnp.where(before < max(top_p, 1e-30), falling, 1.0), axis=-1, keepdims=True)
        logits = jnp.where(p >= edge, logits, EXCLUDED)
    return logits
