"""Hold-backs: how much less likely the end of document is made, in the first steps or at the first positions of a text.

Networks whose rows are filled with ends of document learn an end that also stands for padding. A rule that takes the most likely tokens
first then ends a text before it has begun. A hold-back multiplies the probability of the end by a factor at each position, and what is left
is a distribution again:

    p'(v) ~ factor p(v) for v among the end ids, p(v) elsewhere.

It applies to the output of the network, before scores and draws are computed: what holds an end back from being drawn also holds its
position back from being chosen. (LLaDA's flag acts after the draw, so that the position keeps the confidence of the end.) The text is
no longer that of the network: every hold-back states "sharpened" for the text.

Shapes: B rows, L positions, V vocabulary.
"""

import abc
import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dlmjax.diffusion.process import EXCLUDED
from dlmjax.errors import InputError
from dlmjax.sampling.by_name import build


class HoldBack(abc.ABC):
    """Abstract: a frozen dataclass; `make_hold_back` makes it from a text such as "rising(low=0.4)".

    name: as in HOLD_BACKS.  source: of its form and its default.  in_steps: whether the factor changes from step to step.
    suppresses: whether it is 0 somewhere, so that no end may stand there.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    in_steps: ClassVar[bool] = False
    suppresses: ClassVar[bool] = True

    @abc.abstractmethod
    def factor(self, number_BL: Int[Array, "B L"], progress_BL: Float[Array, "B L"]) -> Float[Array, "B L"]:
        """The factor in [0, 1] of each position.

        number_BL: number of generated positions before it in its row.  progress_BL: share of the row's steps that are done, in [0, 1).
        """


@dataclasses.dataclass(frozen=True)
class First(HoldBack):
    """No end among the first `tokens` generated positions of a row."""

    tokens: int = 32

    name = "first"
    source = "derived; 32 is one block of the default size"

    def __post_init__(self):
        if not 1 <= self.tokens <= 2**20:
            raise InputError(f"eos first: tokens is {self.tokens}; it must be 1 to {2**20}")

    def factor(self, number_BL, progress_BL):
        return jnp.where(number_BL < self.tokens, 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Rising(HoldBack):
    """A factor that rises from `low` to 1 in proportion to the steps that are done."""

    low: float = 0.4

    name = "rising"
    source = "EOSER's code: low=0.4, and 0.01 with plan=doubling"
    in_steps = True

    @property
    def suppresses(self):
        return self.low == 0

    def __post_init__(self):
        if not 0 <= self.low <= 1:
            raise InputError(f"eos rising: low is {self.low}; it is a factor and must lie in [0, 1]")

    def factor(self, number_BL, progress_BL):
        return self.low + (1 - self.low) * progress_BL


@dataclasses.dataclass(frozen=True)
class Suppressed(HoldBack):
    """No end: every text fills its canvas."""

    name = "suppressed"
    source = "LLaDA 2502.09992, confidence_eos_eot_inf of its code, there after the draw"

    def factor(self, number_BL, progress_BL):
        return jnp.zeros(number_BL.shape)


HOLD_BACKS: dict[str, type[HoldBack]] = {cls.name: cls for cls in (First, Rising, Suppressed)}


def make_hold_back(text: str) -> HoldBack:
    """The hold-back of a text: "first(tokens=16)". Raises InputError: no such one, a value that it does not take."""
    return build("eos", text, HOLD_BACKS)


def check_hold_back(text: str, *, end_ids: tuple[int, ...], vocab: int, causal: bool, predicts: str, process: str) -> HoldBack:
    """The hold-back of a text, for a sampler of a process. Raises InputError: what it cannot be applied to."""
    hold_back = make_hold_back(text)
    if not end_ids or not all(0 <= i < vocab for i in end_ids):
        raise InputError(f"eos {text} requires the ids of the end of document, end_ids, of which {list(end_ids)} are given")
    if predicts != "logits":
        raise InputError(f"eos {text} requires a network that predicts logits, but that of process {process} predicts {predicts}")
    if causal and hold_back.in_steps:
        raise InputError(f"eos {text} requires several steps, and process {process} makes a token in one; give first or suppressed")
    return hold_back


def held_back(logits_BLV: Float[Array, "B L V"], end_ids: tuple[int, ...], factor_BL: Float[Array, "B L"]) -> Float[Array, "B L V"]:
    """The logits with the probability of the ends multiplied by a factor; a factor of 0 excludes them."""
    is_end_V = jnp.asarray(np.isin(np.arange(logits_BLV.shape[-1]), end_ids))
    shift_BL = jnp.log(jnp.where(factor_BL > 0, factor_BL, 1.0))
    held_BLV = jnp.where(factor_BL[..., None] > 0, logits_BLV + shift_BL[..., None], EXCLUDED)
    return jnp.where(is_end_V, jnp.maximum(held_BLV, EXCLUDED), logits_BLV)
