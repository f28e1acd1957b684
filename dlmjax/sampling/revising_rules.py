"""Rules that revise: they mask revealed tokens again that the others do not support, or replace them.

Shapes: B rows, L positions.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool

from dlmjax.diffusion.process import Process
from dlmjax.errors import InputError
from dlmjax.sampling.reveal import next_reveals
from dlmjax.sampling.rules import MOST_STEPS, Choice, Rule
from dlmjax.sampling.steppers import rank


@dataclasses.dataclass(frozen=True)
class Wino(Rule):
    """Wide in: the drawn tokens with a probability above `reveal`, at most max(5, min(20, 0.7 of the masks)), and at least the surest.
    Narrow out: masks revealed tokens again whose probability given all others is below `remask`, the least likely first.

    The second probability is of a stream of masks at the same positions, which reads all but its own place in the same call: a call reads
    two positions for each. It is p(token | all others) in a network of one layer; in a deeper one the states of the others know the token.
    Of n new tokens at most n - 1 earlier ones are masked again, so that each step ends with fewer masks.
    """

    reveal: float = 0.6
    remask: float = 0.9

    name = "wino"
    source = "WINO's form in Saber, decoding.py: reveal=0.6, remask=0.9; at most n - 1: ours"
    looks_at_draw = True
    shadows = True

    def __post_init__(self):
        for name in ("reveal", "remask"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"rule wino: {name} is {getattr(self, name)}; it is a probability and must lie in (0, 1)")

    def score(self, view):
        return view.p_drawn_BL

    def choose(self, view, memory):
        masked_B = view.masked_BL.sum(axis=1)
        most_B = jnp.maximum(5, jnp.minimum(20, (0.7 * masked_B).astype(jnp.int32)))
        sure_BL = view.masked_BL & (view.p_drawn_BL > self.reveal)
        sure_BL &= rank(view.p_drawn_BL, sure_BL) < most_B[:, None]
        new_BL = next_reveals(view.masked_BL, view.p_drawn_BL, 1, sure_BL)
        weak_BL = view.start_masked_BL & ~view.masked_BL & (view.p_alone_BL < self.remask)
        return Choice(new_BL, weak_BL & (rank(-view.p_alone_BL, weak_BL) < new_BL.sum(axis=1, keepdims=True) - 1), memory)


@dataclasses.dataclass(frozen=True)
class T2t(Rule):
    """A threshold on drawn tokens for masks, as `threshold(value, on=drawn)`; a revealed token becomes the drawn one where that differs
    and has a probability above `edit`, all at once. After the last mask a row goes on for up to `rounds` rounds, until none is edited.

    level: time that the network is conditioned on at revealed tokens that do not condition; at 0 it takes them for text.
    """

    value: float = 0.7
    edit: float = 0.5
    rounds: int = 16
    level: float = 0.1

    name = "t2t"
    source = "LLaDA2.1's code: value=0.7, edit=0.5 (quality), 16 rounds; level: ours"
    looks_at_draw = True
    revises = True

    def __post_init__(self):
        for name in ("value", "edit"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"rule t2t: {name} is {getattr(self, name)}; it is a probability and must lie in (0, 1)")
        if not 0 < self.level < 1:
            raise InputError(f"rule t2t: level is {self.level}; it is a time and must lie in (0, 1)")
        if not 0 <= self.rounds <= MOST_STEPS:
            raise InputError(f"rule t2t: rounds is {self.rounds}; it must be 0 to {MOST_STEPS}")

    def steps_of(self, masked, steps):
        return super().steps_of(masked, steps) + self.rounds

    def begin(self, shape, vocab):
        return jnp.zeros(shape[0], jnp.int32), jnp.ones(shape[0], bool)

    def open_rows(self, memory):
        return memory[1]

    def score(self, view):
        return view.p_drawn_BL

    def choose(self, view, memory):
        rounds_B, open_B = memory
        new_BL = next_reveals(view.masked_BL, view.p_drawn_BL, 1, view.p_drawn_BL >= self.value)
        swap_BL = view.editable_BL & ~view.masked_BL & (view.drawn_BL != view.tokens_BL) & (view.p_drawn_BL > self.edit) & open_B[:, None]
        had_masks_B = jnp.any(view.masked_BL, axis=1)
        rounds_B += ~had_masks_B
        goes_on_B = open_B & (rounds_B < self.rounds) & (had_masks_B | jnp.any(swap_BL, axis=1))
        return Choice(new_BL, memory=(rounds_B, goes_on_B), swap_BL=swap_BL)


def require_revision(process: Process, rule: Any, settings: Any, self_condition: bool) -> None:
    """Raises InputError: a rule that replaces revealed tokens, or reads a second stream, with what cannot serve it."""
    if rule.revises and "self_correct" not in process.capabilities.methods:
        raise InputError(
            f"rule {rule.name} requires noise that replaces tokens (hybrid, mixed), but the network of process {process.name} has not "
            "learned to doubt the tokens that it reads; use rule wino or method gibbs"
        )
    if rule.shadows and (process.time_input or process.attention.sequential or process.attention.context_size is not None):
        raise InputError(
            f"rule {rule.name} requires a network under full attention that is not conditioned on t, which that of process {process.name} "
            "is not; use another rule"
        )
    if rule.shadows and (settings.cache or settings.guidance or settings.regex or self_condition):
        raise InputError(
            f"rule {rule.name} conflicts with cache, guidance, regex and self-conditioning; leave them out, or use another rule"
        )


def editable_masks(masked_BL: Bool[Array, "B L"], condition_mask_BL: Bool[Array, "B L"]) -> Bool[Array, "B L"]:
    """Revealed positions that do not condition."""
    return ~masked_BL & ~condition_mask_BL
