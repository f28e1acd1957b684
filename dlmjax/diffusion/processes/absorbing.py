"""Absorbing noise: a token is kept or replaced by the mask, and a mask stays a mask until the reverse chain unmasks it.

Common to all such processes, whatever the rate of masking: the mask has no probability and unmasked tokens are carried over, so only
masked positions carry loss; the prior is all masks, except for the share alpha(1) of a clipped schedule, which is uniform.

Shapes: B batch, L length, V vocabulary; `*n` any shape. Losses in nats per token.
"""

import abc
import math

import jax.numpy as jnp
from jaxtyping import Array, Int

from dlmjax.diffusion.process import Process, among, check_ids, cross_entropy, draw_tokens, exclude, split_rows, uniform_rows
from dlmjax.diffusion.shapes import Ids, Logits, Mask, PerClass, PerToken, RowKeys, Tokens, Values


class Absorbing(Process):
    """Abstract. A subclass is a dataclass with `vocab`, `mask_id` and `excluded`, and defines `left`, the noise, the loss and the step.

    vocab: classes of the logits, special ids included; mask_id: the absorbing class; excluded: further classes that do not occur in text.
    """

    vocab: int
    mask_id: int
    excluded: tuple[int, ...]

    def __post_init__(self):
        check_ids(self.name, self.vocab, mask_id=self.mask_id, **{f"excluded[{i}]": id_ for i, id_ in enumerate(self.excluded)})

    @property
    def absorbing_id(self) -> int:
        return self.mask_id

    @property
    def suppressed_ids(self) -> tuple[int, ...]:
        """Ids that do not occur in text."""
        return (self.mask_id, *self.excluded)

    @property
    def tokens(self) -> int:
        """K, the number of ids that can occur in text."""
        return self.vocab - len(set(self.suppressed_ids))

    @property
    @abc.abstractmethod
    def left(self) -> float:
        """alpha(1), the same for all tokens."""

    @abc.abstractmethod
    def noise_of(self, x: Ids, t: Values) -> Values:
        """1 - alpha_x(t): the probability that a token x is masked at time t."""

    def corrupt(self, keys_B: RowKeys, x_BL: Tokens, t_BL: PerToken, valid_BL: Mask | None = None) -> Tokens:
        # u < noise, u in [0, 1): never where the noise is 0, always where it is 1.
        hit_BL = uniform_rows(keys_B, x_BL.shape[1]) < self.noise_of(x_BL, t_BL)
        return jnp.where(among(hit_BL, valid_BL), self.mask_id, x_BL)

    @abc.abstractmethod
    def loss(self, logits: PerClass, x: Ids, z: Ids, t: Values) -> Values: ...

    def loss_mask(self, z_BL: Tokens, t_BL: PerToken) -> Mask:
        del t_BL
        return z_BL == self.mask_id

    def prior_nats(self, x: Ids) -> Values:
        """KL(q(z_1 | x) || p_1) = alpha_1 log K: p_1 is the mask, except for alpha_1, which is uniform over the K tokens."""
        return jnp.full(x.shape, self.left * math.log(self.tokens), jnp.float32)

    def reconstruction(self, logits: PerClass, x: Ids, z0: Ids) -> Values:
        return jnp.where(z0 == self.mask_id, cross_entropy(logits, x, self.suppressed_ids), 0.0)

    def prior(self, keys_B: RowKeys, length: int) -> Int[Array, "B {length}"]:
        masks_BL = jnp.full((keys_B.shape[0], length), self.mask_id, jnp.int32)
        if self.left == 0:
            return masks_BL
        which_B, token_B = split_rows(keys_B)
        uniform_BLV = exclude(jnp.zeros((keys_B.shape[0], length, self.vocab)), self.suppressed_ids)
        return jnp.where(uniform_rows(which_B, length) < self.left, draw_tokens(token_B, uniform_BLV), masks_BL)

    def decode(self, keys_B: RowKeys, logits_BLV: Logits, z_BL: Tokens) -> Tokens:
        return jnp.where(z_BL == self.mask_id, draw_tokens(keys_B, exclude(logits_BLV, self.suppressed_ids)), z_BL)
