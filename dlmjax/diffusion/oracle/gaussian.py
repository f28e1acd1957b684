"""The exact denoiser of an enumerable joint distribution under Gaussian noise, with the interface of a network: for tests.

Shapes: B batch, L length, X = K^L clean sequences, V vocabulary (K tokens first, then special ids), E dim.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dlmjax.diffusion.gaussian import parameterisation
from dlmjax.diffusion.gaussian.process import EmbeddingNoise
from dlmjax.diffusion.gaussian.schedules import Point
from dlmjax.diffusion.oracle.enumeration import JointDistribution
from dlmjax.diffusion.oracle.toy import EnumeratedDenoiser
from dlmjax.diffusion.shapes import Logits, PerToken, VectorState

_IMPOSSIBLE = -1e9


@dataclasses.dataclass(frozen=True, eq=False)
class ExactDenoiser(EnumeratedDenoiser):
    """The output of a perfect network for `process`, whose parameters must be bound. Hidden states are outputs."""

    process: EmbeddingNoise

    @classmethod
    def of(cls, joint: JointDistribution, process: EmbeddingNoise) -> "ExactDenoiser":
        return cls(joint, process.vocab, process)

    def hidden(self, z_BL: VectorState, t_BL: PerToken, hint_BLI: Array | None = None) -> Logits:
        """`t_BL` is `process.time_embedding_input` of t; an exact prediction does not depend on a hint."""
        del hint_BLI
        process, (now, to) = self.process, self.process.input_points(t_BL)
        log_p_BLK, log_q_BLK = self.posterior(z_BL, now)
        if process.prediction == "logits":
            known_BLK = log_p_BLK - log_q_BLK if process.output_prior else log_p_BLK
            special = ((0, 0), (0, 0), (0, self.vocab - self.joint.tokens))
            return jnp.pad(jnp.maximum(known_BLK, _IMPOSSIBLE), special, constant_values=_IMPOSSIBLE)
        mean_BLE = jnp.einsum("blk,ke->ble", jnp.exp(log_p_BLK), self._table, precision="highest")
        output_BLE = parameterisation.convert(mean_BLE, z_BL, "x0", process.prediction, now, to)
        middle = jnp.zeros((*z_BL.shape[:2], process.output.columns - process.dim), output_BLE.dtype)
        return jnp.concatenate([output_BLE, middle], axis=-1)

    def posterior(self, z_BL: VectorState, now: Point) -> tuple[Float[Array, "B L K"], Float[Array, "B L K"]]:
        """(log p(x_i = k | z), log q(z_i | x_i = k) up to a constant) at the point `now` of the path."""
        onehot_XLK = np.eye(self.joint.tokens)[self.joint.sequences_Xn]
        far_BLKE = z_BL[:, :, None, :] - now.a[..., None] * self._table
        log_q_BLK = -jnp.sum(far_BLKE**2, axis=-1) / (2 * now.s**2)
        log_joint_BX = np.log(self.joint.probability_X) + jnp.einsum("blk,xlk->bx", log_q_BLK, onehot_XLK, precision="highest")
        log_p_BX = jax.nn.log_softmax(log_joint_BX, axis=-1)
        fits_XLK = jnp.asarray(np.where(onehot_XLK > 0, 0.0, -np.inf), log_p_BX.dtype)
        return jax.nn.logsumexp(log_p_BX[:, :, None, None] + fits_XLK, axis=1), log_q_BLK

    @property
    def _table(self) -> Any:
        return self.process.table[: self.joint.tokens]
