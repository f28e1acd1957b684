"""A denoiser without a network: the exact posterior of an enumerable joint distribution, behind the same interface as a trained one.

Tests and notebooks use it as a perfect network: its loss must be the entropy, and a sampler must draw from the joint distribution.

Shapes: B batch, L length, X = K^L clean sequences, V vocabulary (K tokens first, then special ids).
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dlmjax.diffusion.oracle.enumeration import JointDistribution
from dlmjax.diffusion.shapes import Logits, PerToken, Tokens

_IMPOSSIBLE = -1e9


@dataclasses.dataclass(frozen=True, eq=False)
class EnumeratedDenoiser(abc.ABC):
    """Abstract: the exact denoiser of `joint`, whose hidden states are its outputs over `vocab` classes."""

    joint: JointDistribution
    vocab: int

    reads_hidden = False  # an exact prediction does not depend on a hint

    def without_gradient(self) -> "EnumeratedDenoiser":
        """The same: it has no weights."""
        return self

    def with_tokens_per_time(self, tokens: int) -> "EnumeratedDenoiser":
        """The same: it reads the time of each position."""
        del tokens
        return self

    @abc.abstractmethod
    def hidden(self, z_BL: Array, t_BL: PerToken, hint_BLI: Array | None = None) -> Logits: ...

    def logits(self, hidden: Float[Array, "*rows V"]) -> Float[Array, "*rows V"]:
        return hidden

    def expect(self, hidden: Float[Array, "*rows V"], table_VI: Float[Array, "V I"] | None = None) -> Float[Array, "*rows I"]:
        """Mean of the table's rows under the posterior; without a table the posterior itself."""
        p = jax.nn.softmax(hidden, axis=-1)
        return p if table_VI is None else jnp.dot(p, table_VI, precision="highest")

    def row_losses(
        self, hidden_BLD: Array, loss_mask_BL: Array, loss_fn: Callable[..., Any], args: tuple[Any, ...], weight_BL: Array
    ) -> tuple[Array, Array]:
        """Computed densely: nats of every position, then 0 outside `loss_mask_BL`."""
        nats = loss_fn(hidden_BLD, *args)
        trained_BL, nats_BL = (jnp.where(loss_mask_BL, n, 0.0) for n in (nats if isinstance(nats, tuple) else (nats, nats)))
        return jnp.sum(trained_BL * weight_BL), jax.lax.stop_gradient(nats_BL)


@dataclasses.dataclass(frozen=True, eq=False)
class ToyDenoiser(EnumeratedDenoiser):
    """Discrete noise; logits are log-probabilities over `vocab` classes, the special ids far below the tokens.

    log_likelihood: (z_BL, t_BL) -> log q_t(z_i | x_i = k) up to a constant, [B, L, K]; see `masked_likelihood`. None = causal: z is the
      row shifted right by one, and the output at i is p(x_i | x_<i).
    """

    log_likelihood: Callable[[Array, Array], Array] | None = None

    def hidden(self, z_BL: Tokens, t_BL: PerToken, hint_BLI: Array | None = None) -> Logits:
        """The logits of the exact posterior, in place of hidden states; an exact prediction does not depend on a hint."""
        del hint_BLI
        onehot_XLK = np.eye(self.joint.tokens)[self.joint.sequences_Xn]
        log_p_X = np.log(np.maximum(self.joint.probability_X, 1e-300))
        if self.log_likelihood is None:
            # Position i has read z_1..z_i, which are x_0..x_{i-1}: prefixes that disagree are impossible.
            agree_BLX = self.joint.sequences_Xn.T[None, :-1, :] == z_BL[:, 1:, None]
            clash_BLX = jnp.cumsum(jnp.pad(~agree_BLX, ((0, 0), (1, 0), (0, 0))), axis=1) > 0
            log_joint_BLX = jnp.where(clash_BLX, _IMPOSSIBLE, log_p_X)
        else:
            log_q_BLK = self.log_likelihood(z_BL, t_BL)
            log_joint_BX = log_p_X + jnp.einsum("blk,xlk->bx", log_q_BLK, onehot_XLK, precision="highest")
            log_joint_BLX = jnp.broadcast_to(log_joint_BX[:, None, :], (*z_BL.shape, log_p_X.size))
        weight_BLX = jax.nn.softmax(log_joint_BLX, axis=-1)
        p_BLK = jnp.einsum("blx,xlk->blk", weight_BLX, onehot_XLK, precision="highest")
        log_p_BLK = jnp.where(p_BLK > 0, jnp.log(jnp.where(p_BLK > 0, p_BLK, 1.0)), _IMPOSSIBLE)
        special = ((0, 0), (0, 0), (0, self.vocab - self.joint.tokens))
        return jnp.pad(log_p_BLK, special, constant_values=_IMPOSSIBLE)


def masked_likelihood(tokens: int, mask_id: int) -> Callable[[Array, Array], Array]:
    """log q(z | x = k) of absorbing noise without its factor in t: 0 under a mask or at k = z, impossible elsewhere."""

    def log_likelihood(z_BL: Array, t_BL: Array) -> Array:
        del t_BL
        fits_BLK = (z_BL == mask_id)[..., None] | (z_BL[..., None] == jnp.arange(tokens))
        return jnp.where(fits_BLK, 0.0, _IMPOSSIBLE)

    return log_likelihood
