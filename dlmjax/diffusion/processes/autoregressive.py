"""Autoregressive modelling as a process: the chain rule, for the same denoiser under a causal mask.

-log p(x) = sum_i -log p(x_i | x_<i): exact, so its "bound" has neither gap nor noise. The network reads the row shifted right by one, BOS
first, and its output at i predicts x_i: unshifted, like every other process. It is also block diffusion with blocks of one token at
t = 1 (BD3-LM 2503.09573).

In a packed row the first position of a document reads the end-of-document token of the previous one, which serves as BOS.

`input_mask` masks a share of the tokens that are read in training: regularisation where little text is repeated (2510.04071). Every
token is still predicted; likelihoods and samples use the whole prefix.

Shapes: B batch, L length, V vocabulary; `*n` any shape. Losses in nats per token.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Int

from dlmjax.diffusion.declarations import Attention, Capabilities
from dlmjax.diffusion.process import Process, among, check_ids, cross_entropy, draw_tokens, exclude, uniform_rows
from dlmjax.diffusion.shapes import Ids, Logits, Mask, PerClass, PerToken, RowKeys, Tokens, Values, Views
from dlmjax.diffusion.time_domain import TimeDomain
from dlmjax.diffusion.times import Times
from dlmjax.diffusion.weightings.base import OF_RATES, Bound, CrossEntropy
from dlmjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class _NoTimes(TimeDomain):
    """The loss does not depend on t, so any times whose weights have the mean 1 give the integral."""

    def covered_by(self, times: Times) -> bool:
        return times.covers


@dataclasses.dataclass(frozen=True)
class Autoregressive(Process):
    """Left to right. mask_id has no probability, so that likelihoods compare with masked diffusion on the same vocabulary; None = no mask.

    input_mask: probability with which training replaces a token that is read by the mask; the beginning of text is not masked.
    """

    vocab: int
    bos_id: int
    mask_id: int | None = None
    excluded: tuple[int, ...] = ()
    input_mask: float = dataclasses.field(default=0.0, kw_only=True)

    name = "autoregressive"
    attention = Attention(causal=True)
    time_domain = _NoTimes()

    def __post_init__(self):
        if not 0 <= self.input_mask < 1:
            raise InputError(f"process {self.name}: input_mask is {self.input_mask}; it is a probability, in [0, 1)")
        if self.input_mask and self.mask_id is None:
            raise InputError(f"process {self.name}: input_mask requires a mask token, and this vocabulary has none; set it to 0")
        check_ids(self.name, self.vocab, bos_id=self.bos_id, **{f"excluded[{i}]": id_ for i, id_ in enumerate(self.suppressed_ids)})

    def time_embedding_input(self, t_BL: PerToken) -> PerToken:
        """0 for every t, since the text that is read has no noise: training, scores and samples would otherwise differ in it."""
        return jnp.zeros_like(t_BL)

    def corrupt(self, keys_B: RowKeys, x_BL: Tokens, t_BL: PerToken, valid_BL: Mask | None = None) -> Tokens:
        """What the network reads: the row shifted right by one, for every t and key."""
        del keys_B, t_BL
        read_BL = jnp.concatenate([jnp.full_like(x_BL[:, :1], self.bos_id), x_BL[:, :-1]], axis=1)
        return read_BL if valid_BL is None else jnp.where(valid_BL, read_BL, x_BL)

    def noisy_views(self, keys_B: RowKeys, x_BL: Tokens, t_BL: PerToken, valid_BL: Mask | None = None) -> Views:
        read_BL = self.corrupt(keys_B, x_BL, t_BL, valid_BL)
        if not self.input_mask:
            return ((read_BL, t_BL),)
        masked_BL = (uniform_rows(keys_B, x_BL.shape[1]) < self.input_mask) & (read_BL != self.bos_id)
        return ((jnp.where(among(masked_BL, valid_BL), self.mask_id, read_BL), t_BL),)

    def corrupted(self, x_BL: Tokens, z_BL: Tokens) -> Mask:
        return z_BL == self.mask_id if self.input_mask else jnp.zeros(x_BL.shape, bool)

    def loss(self, logits: PerClass, x: Ids, z: Ids, t: Values) -> Values:
        del z, t
        return cross_entropy(logits, x, self.suppressed_ids)

    def cross_entropy_weight(self, t: Values) -> Values:
        return jnp.ones_like(t)

    def prior(self, keys_B: RowKeys, length: int) -> Int[Array, "B {length}"]:
        """A row of BOS; the network reads only tokens that are already written."""
        return jnp.full((keys_B.shape[0], length), self.bos_id, jnp.int32)

    def reverse_step(self, keys_B: RowKeys, logits_BLV: Logits, z_BL: Tokens, t_BL: PerToken, s_BL: PerToken) -> Tokens:
        """Writes the tokens between (1 - t) L and (1 - s) L of the row.

        z is the row so far, and the network has read `corrupt` of it. One token per step, that is L steps, is exact; tokens written in the
        same step are independent given the others.
        """
        length = z_BL.shape[1]
        index_L = jnp.arange(length)
        new_BL = (index_L >= jnp.round((1 - t_BL) * length)) & (index_L < jnp.round((1 - s_BL) * length))
        return jnp.where(new_BL, draw_tokens(keys_B, exclude(logits_BLV, self.suppressed_ids)), z_BL)

    @property
    def capabilities(self) -> Capabilities:
        weighting = CrossEntropy() if self.input_mask else Bound()
        return Capabilities(weightings=("bound", *OF_RATES), weighting=weighting, is_bound=not self.input_mask)

    @property
    def bound(self) -> "Autoregressive":
        return dataclasses.replace(self, input_mask=0.0)

    @property
    def suppressed_ids(self) -> tuple[int, ...]:
        return self.excluded if self.mask_id is None else (self.mask_id, *self.excluded)
