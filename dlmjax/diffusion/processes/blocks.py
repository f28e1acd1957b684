"""Block diffusion: blocks of text from left to right, masked diffusion inside each (BD3-LM, Arriola et al. 2503.09573).

    NELBO = sum over blocks b of E_{t_b} -alpha'/(1 - alpha) log p(x^b | x_t^b, x^{<b})          (their eq. 8)

A state holds a pair per position, [B, L, 2]: the noisy token and the clean one. The network reads them as two streams of one row; a
block of the noisy stream sees itself and the clean blocks before it, so that all blocks are trained in one pass, at about twice the
cost of a masked step. Each block has its own level, drawn by `PerBlock`.

The two corners: blocks of one token are the chain rule, an exact likelihood whatever the level; one block of the whole row is masked
diffusion. Levels drawn from an interval (`stratified(low=0.3, high=0.8)`) lower the variance of the gradient (section 5.2) and train no
bound; an evaluation integrates over all levels.

Shapes: B batch, L length, V vocabulary; `*n` any shape. Losses in nats per token.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dlmjax.diffusion.hyperschedule import PerBlock
from dlmjax.diffusion.process import Blocks
from dlmjax.diffusion.processes.masked import SharedSchedule
from dlmjax.diffusion.schedules import Linear, Schedule
from dlmjax.diffusion.times import PerRow
from dlmjax.diffusion.weightings.levels import OF_RATES
from dlmjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class BlockMasked(SharedSchedule):
    """Masked diffusion in blocks of `size` tokens; the length of a row must be a multiple of it.

    curriculum: ((step, size), ...) in rising order: until that training step blocks have that size, after the last one `size`. The
      paper's small blocks continue a model that was trained with blocks of the whole row (section 6).
    """

    vocab: int
    mask_id: int
    schedule: Schedule = Linear()
    excluded: tuple[int, ...] = ()
    size: int = 4
    curriculum: tuple[tuple[int, int], ...] = ()

    name = "blocks"
    weightings = ("bound", *OF_RATES)

    def __post_init__(self):
        if self.size < 1:
            raise InputError(f"process blocks: size is {self.size}; a block holds at least 1 token")
        if not _is_curriculum(self.curriculum):
            raise InputError(
                f"process blocks: curriculum is {self.curriculum}; give (step, size) pairs, as in ((1000, 64), (2000, 16)), steps rising, "
                "both at least 1"
            )
        super().__post_init__()

    def at_step(self, step: int) -> "BlockMasked":
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
    def attention(self) -> Blocks:
        return Blocks(self.size)

    @property
    def block_sizes(self) -> tuple[int, ...]:
        return (self.size, *(size for _, size in self.curriculum))

    def count_form(self) -> None:
        """Each block has a time of its own, and a count is one for the row."""
        return None

    def adapt_times(self, times: Any) -> Any:
        """One level per block, from the law of a draw that has one per row, or per block of another size."""
        if isinstance(times, PerBlock):
            return times if times.size == self.size else dataclasses.replace(times, size=self.size)
        return PerBlock(self.size, times.law, times.stratified) if isinstance(times, PerRow) else times

    def covered_by(self, times: Any) -> bool:
        """A block sees the others clean: each may have a level of its own, which all of it shares."""
        return times.covers and (not isinstance(times, PerBlock) or times.size % self.size == 0)

    def corrupt(
        self, keys_B: Key[Array, "B"], x_BL: Int[Array, "B L"], t_BL: Float[Array, "B L"], valid_BL: Bool[Array, "B L"] | None = None
    ) -> Int[Array, "B L 2"]:
        return jnp.stack([super().corrupt(keys_B, x_BL, t_BL, valid_BL), x_BL], axis=-1)

    def forward_step(
        self,
        keys_B: Key[Array, "B"],
        z_BL: Int[Array, "B L 2"],
        s_BL: Float[Array, "B L"],
        t_BL: Float[Array, "B L"],
        valid_BL: Bool[Array, "B L"] | None = None,
    ) -> Int[Array, "B L 2"]:
        return jnp.stack([super().forward_step(keys_B, z_BL[..., 0], s_BL, t_BL, valid_BL), z_BL[..., 1]], axis=-1)

    def loss_mask(self, z_BL: Int[Array, "B L 2"], t_BL: Float[Array, "B L"]) -> Bool[Array, "B L"]:
        return super().loss_mask(z_BL[..., 0], t_BL)

    def corrupted(self, x_BL: Int[Array, "B L"], z_BL: Int[Array, "B L 2"]) -> Bool[Array, "B L"]:
        return z_BL[..., 0] != x_BL

    def clean_state(self, x_BL: Int[Array, "B L"]) -> Int[Array, "B L 2"]:
        return jnp.stack([x_BL, x_BL], axis=-1)

    def to_tokens(self, z_BL: Int[Array, "B L 2"]) -> Int[Array, "B L"]:
        return z_BL[..., 0]

    def loss(self, logits: Float[Array, "*n V"], x: Int[Array, "*n"], z: Int[Array, "*n 2"], t: Float[Array, "*n"]) -> Float[Array, "*n"]:
        return super().loss(logits, x, z[..., 0], t)

    def reconstruction(self, logits: Float[Array, "*n V"], x: Int[Array, "*n"], z0: Int[Array, "*n 2"]) -> Float[Array, "*n"]:
        return super().reconstruction(logits, x, z0[..., 0])

    def prior(self, keys_B: Key[Array, "B"], length: int) -> Int[Array, "B {length} 2"]:
        noisy_BL = super().prior(keys_B, length)
        return jnp.stack([noisy_BL, noisy_BL], axis=-1)

    def reverse_step(
        self,
        keys_B: Key[Array, "B"],
        logits_BLV: Float[Array, "B L V"],
        z_BL: Int[Array, "B L 2"],
        t_BL: Float[Array, "B L"],
        s_BL: Float[Array, "B L"],
    ) -> Int[Array, "B L 2"]:
        """A step of the noisy stream; a finished block is what later blocks read, so levels must reach 0 block by block."""
        noisy_BL = super().reverse_step(keys_B, logits_BLV, z_BL[..., 0], t_BL, s_BL)
        return jnp.stack([noisy_BL, noisy_BL], axis=-1)

    def decode(self, keys_B: Key[Array, "B"], logits_BLV: Float[Array, "B L V"], z_BL: Int[Array, "B L 2"]) -> Int[Array, "B L 2"]:
        noisy_BL = super().decode(keys_B, logits_BLV, z_BL[..., 0])
        return jnp.stack([noisy_BL, noisy_BL], axis=-1)


def _is_curriculum(value: Any) -> bool:
    """Pairs of whole numbers (step, size), all at least 1, the steps rising?"""
    pairs = isinstance(value, tuple | list) and all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in value)
    if not pairs or not all(type(number) is int and number >= 1 for pair in value for number in pair):
        return False
    steps = [step for step, _ in value]
    return steps == sorted(set(steps))
