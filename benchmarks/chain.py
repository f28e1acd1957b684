"""A first-order Markov chain as text: its entropy, its texts and its exact denoiser p(x_i | revealed tokens), for experiments on rules.

K symbols, each different from the one before, all of these equally likely. Its law is the same from
every position on, so a window of a long text is one of its texts.

Shapes: B rows, L positions, K symbols; V = K + 1 with the mask, id K.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from dlmjax.diffusion import Denoiser
from dlmjax.diffusion.processes.masked import Masked
from dlmjax.diffusion.schedules import Linear
from dlmjax.evaluation.paths import path_evaluator


@dataclasses.dataclass(frozen=True)
class Chain:
    """symbols: K; length: L."""

    symbols: int = 8
    length: int = 32

    @property
    def entropy(self) -> float:
        """Of a text, nats."""
        return np.log(self.symbols) + (self.length - 1) * np.log(self.symbols - 1)

    @property
    def correlation(self) -> float:
        """TC + DTC of a text, nats: L (Z(0) - Z(L - 1)), Z(j) the mean entropy of a token given j others."""
        k = self.symbols
        # The neighbours of a token are equal with probability 1 / (K - 1), which leaves it K - 1 values, else K - 2.
        inside = (np.log(k - 1) + (k - 2) * np.log(k - 2)) / (k - 1)
        return self.length * np.log(k) - 2 * np.log(k - 1) - (self.length - 2) * inside

    def texts(self, count: int, seed: int = 0) -> np.ndarray:
        """Texts of the chain. -> [count, L]"""
        rng = np.random.default_rng(seed)
        steps_BL = rng.integers(1, self.symbols, size=(count, self.length))
        steps_BL[:, 0] = rng.integers(0, self.symbols, size=count)
        return (np.cumsum(steps_BL, axis=1) % self.symbols).astype(np.int32)

    @property
    def process(self) -> Masked:
        """Masked diffusion of these texts."""
        return Masked(self.symbols + 1, self.symbols, Linear())

    def log_p(self, z_BL: jax.Array, t_BL=None) -> jax.Array:
        """log p(x_i | revealed tokens of z) by messages from both sides, -1e9 for the mask; `z` may hold tokens that cannot be neighbours.
        -> [B, L, V]"""
        del t_BL
        known_BLK = jax.nn.one_hot(z_BL, self.symbols)
        seen_BLK = jnp.where((z_BL == self.symbols)[..., None], 1.0, known_BLK)

        def message(before_BK, seen_BK):
            after_BK = before_BK * seen_BK
            after_BK = (after_BK.sum(axis=1, keepdims=True) - after_BK) / (self.symbols - 1) + 1e-30
            return after_BK / after_BK.sum(axis=1, keepdims=True), before_BK

        start_BK = jnp.full((z_BL.shape[0], self.symbols), 1 / self.symbols)
        left_LBK = jax.lax.scan(message, start_BK, jnp.moveaxis(seen_BLK, 1, 0))[1]
        right_LBK = jax.lax.scan(message, start_BK, jnp.moveaxis(seen_BLK, 1, 0), reverse=True)[1]
        p_BLK = jnp.moveaxis(left_LBK * right_LBK, 0, 1) * seen_BLK
        log_p_BLK = jnp.log(jnp.maximum(p_BLK / jnp.maximum(p_BLK.sum(axis=-1, keepdims=True), 1e-30), 1e-30))
        return jnp.concatenate([jnp.where(p_BLK > 0, log_p_BLK, -1e9), jnp.full((*z_BL.shape, 1), -1e9)], axis=-1)

    def bind(self, params, segments_BL, positions_BL, attention=None) -> "ExactDenoiser":
        """The exact denoiser as a network is bound."""
        del params, segments_BL, positions_BL, attention
        return ExactDenoiser(self.log_p)

    def violations(self, tokens_BL: np.ndarray) -> np.ndarray:
        """Number of equal neighbours of each row."""
        return np.sum(tokens_BL[:, 1:] == tokens_BL[:, :-1], axis=1)


class ExactDenoiser(Denoiser):
    """A denoiser around a function (z_BL, t_BL) -> logits_BLV."""

    def __init__(self, log_p):
        self._log_p = log_p

    def hidden(self, z_BL, t_BL):
        return self._log_p(z_BL, t_BL)

    def logits(self, logits_BLV):
        return logits_BLV

    def row_losses(self, logits_BLV, loss_mask_BL, loss_fn, args, weight_BL):
        nats_BL = jnp.where(loss_mask_BL, loss_fn(logits_BLV, *args), 0.0)
        return jnp.sum(weight_BL * nats_BL), nats_BL


def windows(texts_BL: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Texts as one batch of an evaluator."""
    index_BL = np.broadcast_to(np.arange(texts_BL.shape[1], dtype=np.int32), texts_BL.shape)
    ones_BL, row_B = np.ones_like(texts_BL), np.arange(len(texts_BL), dtype=np.int32)
    return [{"tokens": texts_BL, "segments": ones_BL, "positions": index_BL, "scored": ones_BL > 0, "row": row_B}]


def path_nats(process, bind, params, rule: str, texts_BL: np.ndarray) -> tuple[np.ndarray, float]:
    """(-log q of each text under a rule, parallel steps included; mean network calls of a text)."""
    measured = path_evaluator(process, bind, likelihood=f"order:{rule}").measure(params, windows(texts_BL))
    return measured.nats_W, measured.calls


def random_order_nats(log_p, mask_id: int, texts_BL: np.ndarray, steps: int, seed: int = 0) -> np.ndarray:
    """-log q(x | order) of each text, one random order each, the same number of tokens in each of `steps` steps: its mean over orders."""
    length = texts_BL.shape[1]
    rank_BL = np.random.default_rng(seed).random(texts_BL.shape).argsort(axis=1).argsort(axis=1)
    step_BL = rank_BL * steps // length
    of_step = _compiled(log_p, mask_id)
    return sum(np.asarray(of_step(texts_BL, step_BL, step)).astype(np.float64) for step in range(steps))


@functools.lru_cache(maxsize=8)
def _compiled(log_p, mask_id: int):
    @jax.jit
    def of_step(texts_BL, step_BL, step):
        log_p_BLV = log_p(jnp.where(step_BL < step, texts_BL, mask_id))
        nats_BL = -jnp.take_along_axis(jax.nn.log_softmax(log_p_BLV), texts_BL[..., None], axis=-1)[..., 0]
        return jnp.sum(jnp.where(step_BL == step, nats_BL, 0.0), axis=1)

    return of_step
