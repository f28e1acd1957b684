"""Rules that look at the drawn tokens, and positions of which no two are near.

Shapes: B rows, L positions, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from dlmjax.errors import InputError
from dlmjax.sampling.reveal import next_reveals
from dlmjax.sampling.rules import Choice, Rule, Threshold
from dlmjax.sampling.steppers import rank


@dataclasses.dataclass(frozen=True)
class Saber(Rule):
    """The drawn tokens with a probability above the mean of those revealed so far, at least `least`; then masks revealed ones again.

    Of m new tokens, min(max(least / 2, m / 8 rounded up), m - 1) earlier ones are masked again: those whose position's largest probability
    fell most since the step before. So each step reveals at least one more than it masks.
    """

    least: int = 2

    name = "saber"
    source = "Saber, decoding.py: least=2"
    looks_at_draw = True

    def __post_init__(self):
        if not 1 <= self.least <= 2**20:
            raise InputError(f"rule saber: least is {self.least}; it must be 1 to {2**20}")

    def begin(self, shape, vocab):
        return jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32)

    def score(self, view):
        return view.p_drawn_BL

    def choose(self, view, memory):
        """Compares with the mean over the tokens revealed so far; where there are none, only the `least` surest are revealed."""
        (p_revealed_BL, last_BL), p_BL = memory, view.p_drawn_BL
        revealed_BL = view.start_masked_BL & ~view.masked_BL
        count_B = revealed_BL.sum(axis=1)
        mean_B = jnp.sum(jnp.where(revealed_BL, p_revealed_BL, 0.0), axis=1) / jnp.maximum(count_B, 1)
        bar_B = jnp.where(count_B > 0, mean_B, jnp.inf)
        new_BL = next_reveals(view.masked_BL, p_BL, self.least, p_BL > bar_B[:, None])
        new_B = new_BL.sum(axis=1)
        again_B = jnp.minimum(jnp.maximum(self.least // 2, -(-new_B // 8)), new_B - 1)
        fall_BL = last_BL - view.confidence_BL
        fell_BL = revealed_BL & (fall_BL > 0)
        again_BL = fell_BL & (rank(fall_BL, fell_BL) < again_B[:, None])
        memory = jnp.where(new_BL, p_BL, p_revealed_BL).astype(jnp.float32), view.confidence_BL.astype(jnp.float32)
        return Choice(new_BL, again_BL, memory)


@dataclasses.dataclass(frozen=True)
class Credit(Threshold):
    """A threshold under logits that steps have voted on: logits + weight log(1 + M), M <- decay M + p^power at the best token."""

    on: str = "drawn"
    weight: float = 0.7
    decay: float = 0.8
    power: float = 0.2

    name = "credit"
    source = "dInfer's code: 0.7, 0.8, 0.2"
    looks_at_draw = True
    reweighs = True

    def __post_init__(self):
        super().__post_init__()
        if not (0 <= self.weight <= 1e6 and 0 <= self.decay <= 1 and 0 <= self.power <= 1e6):
            raise InputError(
                f"rule credit: weight ({self.weight}) and power ({self.power}) must be 0 to 1e6, decay ({self.decay}) must lie in [0, 1]"
            )

    def begin(self, shape, vocab):
        return jnp.zeros((*shape, vocab), jnp.float32)

    def reweigh(self, memory, log_p_BLV):
        best_BL1 = jnp.argmax(log_p_BLV, axis=-1, keepdims=True)
        vote_BLV = jnp.where(jnp.arange(log_p_BLV.shape[-1]) == best_BL1, jnp.exp(self.power * jnp.max(log_p_BLV, -1, keepdims=True)), 0.0)
        votes_BLV = (self.decay * memory + vote_BLV).astype(jnp.float32)
        return log_p_BLV + self.weight * jnp.log1p(votes_BLV), votes_BLV


def apart(among_BL: Bool[Array, "B L"], rank_BL: Int[Array, "B L"], d: int) -> Bool[Array, "B L"]:
    """The positions of `among_BL` that are taken when the best-ranked is taken first, then the best at least `d` from all taken, and so on.

    Every position that is the best of its neighbourhood is taken at once, so few rounds do; the result is that of one at a time.
    """

    def near(value_BL):
        return jax.lax.reduce_window(value_BL, jnp.int32(-1), jax.lax.max, (1, 2 * d - 1), (1, 1), "SAME")

    def one(state):
        open_BL, taken_BL = state
        worth_BL = jnp.where(open_BL, rank_BL.shape[1] - rank_BL, -1).astype(jnp.int32)
        first_BL = open_BL & (worth_BL == near(worth_BL))
        return open_BL & (near(first_BL.astype(jnp.int32)) <= 0), taken_BL | first_BL

    return jax.lax.while_loop(lambda state: jnp.any(state[0]), one, (among_BL, jnp.zeros_like(among_BL)))[1]
