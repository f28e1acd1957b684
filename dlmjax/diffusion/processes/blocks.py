"""Block diffusion: blocks of text from left to right, any noise on tokens inside each (BD3-LM, Arriola et al. 2503.09573).

    NELBO = sum over blocks b of E_{t_b, z^b} loss(x^b, z^b, t_b; the denoiser given z^b and x^{<b}) + the inner boundary terms

This is the chain rule over blocks, -log p(x) = sum_b -log p(x^b | x^{<b}), with the inner process's bound of each factor given the clean
blocks before it. Every block has its own time t_b, drawn by `PerBlock`: the loss of a block depends on no other block's noise, so the
bound is exact and as tight as the inner one at every size. With masks the loss is -alpha'/(1 - alpha) times the cross-entropy (their eq.
8); with uniform or hybrid noise it is that of interpolating.py, and the network is conditioned on t.

A state holds a pair per position, [B, L, 2]: the noisy token and the clean one. The network reads them as two streams of one row; a
block of the noisy stream sees itself and the clean blocks before it, so that all blocks are trained in one pass, at about twice the
cost of a step without blocks.

Two special cases: with masks, blocks of one token are the chain rule over tokens, an exact likelihood at any time; one block of the whole
row is the inner process. Times drawn from an interval (`stratified(low=0.3, high=0.8)`) lower the variance of the gradient (section 5.2)
and train no bound; an evaluation integrates over all times.

Shapes: B batch, L length, V vocabulary; `*n` any shape. Losses in nats per token.
"""

import copy
import dataclasses
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dlmjax.diffusion.hyperschedule import PerBlock
from dlmjax.diffusion.process import Blocks, Process
from dlmjax.diffusion.shapes import Ids, Logits, Mask, PerClass, PerToken, RowKeys, Tokens, Values, Views
from dlmjax.diffusion.times import PerRow
from dlmjax.diffusion.weightings.base import OF_RATES
from dlmjax.errors import InputError

# The noisy and the clean token of each position.
Pairs = Int[Array, "B L 2"]
PairsN = Int[Array, "*n 2"]


@dataclasses.dataclass(frozen=True)
class Blockwise(Process):
    """A process inside blocks of `size` tokens; the length of a row must be a multiple of it.

    inner: a process whose states are tokens, for a network that reads the whole block; its schedule holds in every block.
    curriculum: ((step, size), ...) in rising order: until that training step blocks have that size, after the last one `size`. The
      paper's small blocks continue a model that was trained with blocks of the whole row (section 6).
    """

    inner: Process
    size: int = 4
    curriculum: tuple[tuple[int, int], ...] = ()

    name = "blocks"

    def __post_init__(self):
        if self.size < 1:
            raise InputError(f"process blocks: size is {self.size}; a block holds at least 1 token")
        if not _is_curriculum(self.curriculum):
            raise InputError(
                f"process blocks: curriculum is {self.curriculum}; give (step, size) pairs, as in ((1000, 64), (2000, 16)), steps rising, "
                "both at least 1"
            )
        self.inner.adapt_times(PerBlock(self.size))  # refuses noise that has one time per row
        state = jax.eval_shape(self.inner.clean_state, jax.ShapeDtypeStruct((1, 1), jnp.int32))
        if self.inner.attention != "full" or self.inner.input_dim or state.ndim != 2:
            raise InputError(f"process blocks: noise {self.inner.name!r} is not a process on tokens that reads its block as a whole")

    def with_params(self, params: Any) -> "Blockwise":
        process = copy.copy(self)
        object.__setattr__(process, "inner", self.inner.with_params(params))
        return process

    @property
    def weightings(self) -> tuple[str, ...]:
        """Those that are functions of t and the cross-entropy: the others read z, which is a pair here."""
        return tuple(name for name in self.inner.weightings if name in ("bound", *OF_RATES))

    def in_blocks(self) -> Process:
        return self.inner.bound

    @property
    def bound(self) -> "Blockwise":
        return self if self.inner.bound is self.inner else dataclasses.replace(self, inner=self.inner.bound)

    # --- blocks ----------------------------------------------------------------------------------------------------------------

    @property
    def attention(self) -> Blocks:
        return Blocks(self.size)

    def at_step(self, step: int) -> "Blockwise":
        size = next((size for until, size in self.curriculum if step < until), self.size)
        return dataclasses.replace(self, size=size, curriculum=())

    @property
    def curriculum_end(self) -> int:
        return self.curriculum[-1][0] if self.curriculum else 0

    def curriculum_ending(self, step: int) -> dict[str, Any]:
        """The same phases, each as much shorter as the whole; those that no step is left for go."""
        ends = {until * step // self.curriculum_end: size for until, size in self.curriculum}
        return {"curriculum": tuple((until, size) for until, size in ends.items() if until)}

    @property
    def block_sizes(self) -> tuple[int, ...]:
        return (self.size, *(size for _, size in self.curriculum))

    def adapt_times(self, times: Any) -> Any:
        """One time per block, from a distribution that has one per row, or per block of another size."""
        times = self.inner.adapt_times(times)
        if isinstance(times, PerBlock):
            return times if times.size == self.size else dataclasses.replace(times, size=self.size)
        return PerBlock(self.size, times.distribution, times.stratified) if isinstance(times, PerRow) else times

    def covered_by(self, times: Any) -> bool:
        """A block sees the others clean: each may have a time of its own, which all of it shares."""
        return times.covers and (not isinstance(times, PerBlock) or times.size % self.size == 0)

    # --- states: the noisy and the clean text ----------------------------------------------------------------------------------

    def corrupt(self, keys_B: RowKeys, x_BL: Tokens, t_BL: PerToken, valid_BL: Mask | None = None) -> Pairs:
        return _pairs(self.inner.corrupt(keys_B, x_BL, t_BL, valid_BL), x_BL)

    def noisy_views(self, keys_B: RowKeys, x_BL: Tokens, t_BL: PerToken, valid_BL: Mask | None = None) -> Views:
        return tuple((_pairs(z_BL, x_BL), level_BL) for z_BL, level_BL in self.inner.noisy_views(keys_B, x_BL, t_BL, valid_BL))

    def forward_step(self, keys_B: RowKeys, z_BL: Pairs, s_BL: PerToken, t_BL: PerToken, valid_BL: Mask | None = None) -> Pairs:
        return _pairs(self.inner.forward_step(keys_B, z_BL[..., 0], s_BL, t_BL, valid_BL), z_BL[..., 1])

    def clean_state(self, x_BL: Tokens) -> Pairs:
        return _pairs(x_BL, x_BL)

    def to_tokens(self, z_BL: Pairs) -> Tokens:
        return z_BL[..., 0]

    def loss_mask(self, z_BL: Pairs, t_BL: PerToken) -> Mask:
        return self.inner.loss_mask(z_BL[..., 0], t_BL)

    def corrupted(self, x_BL: Tokens, z_BL: Pairs) -> Mask:
        return self.inner.corrupted(x_BL, z_BL[..., 0])

    def log_q(self, z_BL: Pairs, x_BL: Tokens, t_BL: PerToken) -> PerToken:
        return self.inner.log_q(z_BL[..., 0], x_BL, t_BL)

    # --- what an output costs and means ----------------------------------------------------------------------------------------

    def loss(self, logits: PerClass, x: Ids, z: PairsN, t: Values) -> Values:
        return self.inner.loss(logits, x, z[..., 0], t)

    def reconstruction(self, logits: PerClass, x: Ids, z0: PairsN) -> Values:
        return self.inner.reconstruction(logits, x, z0[..., 0])

    def log_posterior(self, logits: PerClass, z: PairsN, t: Values) -> PerClass:
        return self.inner.log_posterior(logits, z[..., 0], t)

    def log_loo(self, logits: PerClass, z: PairsN, t: Values) -> PerClass:
        return self.inner.log_loo(logits, z[..., 0], t)

    def suppressed(self, logits: PerClass, ids: tuple[int, ...], z: PairsN, t: Values) -> PerClass:
        return self.inner.suppressed(logits, ids, z[..., 0], t)

    def guided(self, conditional: PerClass, unconditional: PerClass, weight: float, z: PairsN, t: Values) -> PerClass:
        return self.inner.guided(conditional, unconditional, weight, z[..., 0], t)

    def self_conditioning_x0(self, denoiser: Any, hidden_BLD: Float[Array, "B L D"], z_BL: Pairs, t_BL: PerToken) -> Float[Array, "B L I"]:
        return self.inner.self_conditioning_x0(denoiser, hidden_BLD, z_BL[..., 0], t_BL)

    def reverse_rates(self, logits_BLV: Logits, z_BL: Pairs, t_BL: PerToken) -> Logits:
        return self.inner.reverse_rates(logits_BLV, z_BL[..., 0], t_BL)

    # --- reverse ---------------------------------------------------------------------------------------------------------------

    def prior(self, keys_B: RowKeys, length: int) -> Int[Array, "B {length} 2"]:
        return self.clean_state(self.inner.prior(keys_B, length))

    def reverse_step(self, keys_B: RowKeys, logits_BLV: Logits, z_BL: Pairs, t_BL: PerToken, s_BL: PerToken) -> Pairs:
        """A step of the noisy stream; later blocks read a finished block, so times must reach 0 block by block."""
        return self.clean_state(self.inner.reverse_step(keys_B, logits_BLV, z_BL[..., 0], t_BL, s_BL))

    def decode(self, keys_B: RowKeys, logits_BLV: Logits, z_BL: Pairs) -> Pairs:
        return self.clean_state(self.inner.decode(keys_B, logits_BLV, z_BL[..., 0]))


# What blocks do not change: these are the inner process's own.
for _name in (
    *("vocab", "mask_id", "excluded", "schedule", "suppressed_ids", "absorbing_id", "input_dim", "outputs"),
    *("time_input", "is_bound", "is_tight", "ends", "steps", "reinforce", "denoisings", "weighting"),
    *("any_order", "one_time_per_row", "predicts", "methods", "prior_mask_id", "loss_share"),
    *("params", "init", "param_kinds", "lr_multipliers", "scalars"),
    *(
        "quantize_time",
        "time_embedding_input",
        "noise_share",
        "noise_rate",
        "cross_entropy_weight",
        "replaced",
        "stationary",
        "sampling_grid",
        "reveal_times",
    ),
    *("has_boundary", "has_reconstruction", "prior_nats"),
):
    setattr(Blockwise, _name, property(operator.attrgetter(f"inner.{_name}")))


def _pairs(noisy_BL: Tokens, clean_BL: Tokens) -> Pairs:
    return jnp.stack([noisy_BL, clean_BL], axis=-1)


def _is_curriculum(value: Any) -> bool:
    """Pairs of whole numbers (step, size), all at least 1, the steps rising?"""
    pairs = isinstance(value, tuple | list) and all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in value)
    if not pairs or not all(type(number) is int and number >= 1 for pair in value for number in pair):
        return False
    steps = [step for step, _ in value]
    return steps == sorted(set(steps))
