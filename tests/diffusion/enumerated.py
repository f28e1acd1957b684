"""Masked noise on the linear schedule with an exact denoiser, summed over all texts and masks: moments of a row's loss at a time."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from dlmjax.diffusion import cross_entropy
from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.oracle import toy
from tests.diffusion.battery import BOS, MASK, VOCAB


@dataclasses.dataclass(frozen=True, eq=False)
class MaskedToy:
    """A distribution of texts, and the cross-entropy of the masked tokens of each text x under each of the 2^L sets S of masks."""

    law: oracle.JointDistribution

    @property
    def denoiser(self) -> toy.ToyDenoiser:
        return toy.ToyDenoiser(self.law, VOCAB, toy.masked_likelihood(self.law.tokens, MASK))

    @property
    def masks_SL(self) -> np.ndarray:
        return oracle.enumerate_sequences(2, self.law.length).astype(bool)

    def cost_XS(self) -> np.ndarray:
        """Nats of the masked tokens, summed over the row."""
        x_XL, masks_SL = self.law.sequences_Xn, self.masks_SL
        x_NL = np.repeat(x_XL, len(masks_SL), axis=0)
        masked_NL = np.tile(masks_SL, (len(x_XL), 1))
        z_NL = jnp.asarray(np.where(masked_NL, MASK, x_NL))
        nats_NL = cross_entropy(self.denoiser.hidden(z_NL, jnp.zeros(z_NL.shape)), jnp.asarray(x_NL), (MASK, BOS))
        return np.where(masked_NL, nats_NL, 0.0).sum(axis=1).reshape(len(x_XL), len(masks_SL)).astype(np.float64)

    def moments(self, t_J: np.ndarray, weight_J: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """E[l | x, t] and E[l^2 | x, t], [X, J], of a loss l that is weight(t) times the cross-entropy of the masked tokens."""
        masked_S = self.masks_SL.sum(axis=1)
        probability_JS = t_J[:, None] ** masked_S * (1 - t_J[:, None]) ** (self.law.length - masked_S)
        cost_XS = self.cost_XS()
        return cost_XS @ probability_JS.T * weight_J, cost_XS**2 @ probability_JS.T * weight_J**2
