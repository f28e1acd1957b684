"""Masks of a training row in the order of the network's own confidence: progressive unmasking (PUMA 2602.10314), without a state.

A sampler that reveals the most confident tokens first meets other states than independent masks are. With `Progressive(phases=K)` a row
whose time t lies in phase j of K (the share 1 - t is in [j/K, (j+1)/K)) is made in two steps:

    z0      independent masks at a time of phase j - 1, drawn from the row's key
    z       z0 with its most confident masked tokens revealed, until as many are masked as by independent masks at t

so it costs one more forward pass of all rows, and depends on (weights, seed, step, row) alone: the paper keeps a pool of rows between
steps instead, whose chains have all K steps. In phase 0 the masks are independent.

Missing at random: which tokens are revealed depends on z0 and the weights, never on the value of a hidden token. So p(x_i | z) is that of
independent masks, and remains the minimiser of the cross-entropy. The distribution of z is another, so the loss is not a bound.

Shapes: B rows, L positions, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dlmjax.diffusion.process import Process, exclude
from dlmjax.diffusion.shapes import Mask, PerToken
from dlmjax.errors import InputError

MOST_PHASES = 4096


@dataclasses.dataclass(frozen=True)
class Progressive:
    """The masks of this module. phases: K, equal parts of the way from masks to text; more phases reveal fewer tokens by confidence.

    Raises InputError: fewer than 2 phases.
    """

    phases: int = 8

    name = "progressive"

    def __post_init__(self):
        if not 2 <= self.phases <= MOST_PHASES:
            raise InputError(f"masks progressive: phases is {self.phases}; it must be from 2 to {MOST_PHASES}")

    def suits(self, process: Process) -> bool:
        """Whether the posterior of a process depends on the revealed tokens alone, and its rows are read as a whole, once."""
        able = process.capabilities
        return able.any_order and not process.attention.sequential and able.denoisings == 1

    def require_process(self, process: Process) -> None:
        """Raises InputError: these masks do not suit the process."""
        if not self.suits(process):
            raise InputError(
                f"masks progressive requires a process that masks all tokens at one rate, and denoises whole rows once; {process.name} "
                "as configured does not; leave process.masks at 'independent'"
            )

    def earlier(self, t_BL: PerToken, uniform_B1: Float[Array, "B 1"]) -> PerToken:
        """A time of the phase before that of t, above t; t itself in phase 0. uniform_B1: in [0, 1), where in that phase."""
        phase_BL = jnp.floor((1 - t_BL) * self.phases)
        return jnp.where(phase_BL < 1, t_BL, 1 - (phase_BL - 1 + uniform_B1) / self.phases)


def log_confidence(process: Process, logits: Float[Array, "*n V"]) -> Float[Array, "*n"]:
    """The largest log-probability of a token. Not that of the true token, which would tell of it by being revealed."""
    return jnp.max(jax.nn.log_softmax(exclude(logits, process.suppressed_ids)), axis=-1)


def most_confident(score_BL: Float[Array, "B L"], masked_BL: Mask, count_B: Int[Array, "B"]) -> Mask:
    """The `count_B` masked positions of each row with the highest scores; of equal scores, those further left."""
    order_BL = jnp.argsort(jnp.where(masked_BL, -score_BL, jnp.inf), axis=1, stable=True)
    rank_BL = jnp.argsort(order_BL, axis=1)
    return masked_BL & (rank_BL < count_B[:, None])
