"""Rules: which positions a step reveals, and which it masks again, for text that starts as masks.

A step is: ask the network, look (`View`, computed once), choose (`Rule.choose`), apply, stop, remember (`Choice.memory`). A rule is a
frozen dataclass; `rule_names.RULES` names them, and `make_rule` reads them from call strings such as "entropy_bound(gamma=0.1)".

What a rule states of the text, `guarantee`:
    exact        the distribution of the text, with an exact denoiser at temperature 1: the positions are a function of z (or of independent
                 chance), and a step reveals one
    bounded      the same with several positions in a step: KL(text || sampled) = E sum over steps of the total correlation of the revealed
                 tokens given z, at most their sum of entropies less the largest. 0 with one position a step
    sharpened    the rule looks at the drawn tokens, or masks by them: no such bound

All is per row: a text does not depend on the other rows. Randomness: `View.keys_of`, a function of (seed, row, step, purpose).

Shapes: B rows, L positions, V vocabulary.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dlmjax.diffusion.process import split_rows, uniform_rows
from dlmjax.errors import InputError
from dlmjax.sampling.reveal import left_first, next_reveals, planned_reveals
from dlmjax.sampling.steppers import rank

MOST_STEPS = 2**20
PROPOSAL = 4  # purpose of a draw of positions

Count = int | Int[Array, "B"]


def at_least_one(masked: Count) -> Count:
    """Where it is 0, 1."""
    return masked + (masked == 0)


@dataclasses.dataclass(frozen=True)
class View:
    """What a step knows of the canvas, the same for every rule; what is not used is not computed.

    masked_BL, start_masked_BL: masked now, and at the start.  step: number of the step, 1, 2, ...  steps: number that the settings plan.
    scores_of(name): score of each position by p(x_i | z) before temperature and nucleus: "confidence", the largest probability; "margin",
      largest less second-largest; "entropy", minus the entropy in nats. Defined at masked positions.
    log_p(): log p(x_i | z) itself.
    keys_B: one key per row, of this step.  p_drawn_BL: probability of the drawn tokens. Both None where no token is drawn (likelihoods).
    tokens_BL, drawn_BL: the tokens of the canvas, and the drawn ones.  editable_BL: positions that do not condition.
    p_alone_BL: p(token | all others) of revealed tokens, where the rule `shadows`.
    """

    masked_BL: Bool[Array, "B L"]
    start_masked_BL: Bool[Array, "B L"]
    step: Int[Array, ""]
    steps: int
    scores_of: Callable[[str], Float[Array, "B L"]]
    log_p: Callable[[], Float[Array, "B L V"]]
    keys_B: Key[Array, "B"] | None = None
    p_drawn_BL: Float[Array, "B L"] | None = None
    tokens_BL: Int[Array, "B L"] | None = None
    drawn_BL: Int[Array, "B L"] | None = None
    editable_BL: Bool[Array, "B L"] | None = None
    p_alone_BL: Float[Array, "B L"] | None = None

    @property
    def confidence_BL(self) -> Float[Array, "B L"]:
        """The largest probability of each position."""
        return self.scores_of("confidence")

    @property
    def order_keys_B(self) -> Key[Array, "B"]:
        """Keys of a random order: the second half of the step's keys, whose first half draws the tokens."""
        return split_rows(self.keys_B)[1]

    def keys_of(self, purpose: int) -> Key[Array, "B"]:
        """Keys of another purpose of the same step."""
        return jax.vmap(jax.random.fold_in, (0, None))(self.keys_B, purpose)


class Choice(NamedTuple):
    """What a step does: masked positions that it reveals, revealed ones that it masks again (None = none); the rule's memory after it;
    revealed positions whose tokens the drawn ones replace (None = none)."""

    reveal_BL: Bool[Array, "B L"]
    remask_BL: Bool[Array, "B L"] | None = None
    memory: Any = ()
    swap_BL: Bool[Array, "B L"] | None = None


class Rule(abc.ABC):
    """Abstract: a rule of the positions that a step reveals; a frozen dataclass, whose fields are its values.

    name: as in RULES.  source: of its form and its default.
    looks_at_draw: whether `choose` reads the drawn tokens or their probabilities.
    has_path: whether the positions are a function of z, so that a text has one path from masks to text, and a likelihood.
    ranked: whether likely tokens come first, which a small model repeats.
    reweighs: whether the rule changes the distribution that tokens are drawn from.
    revises: whether it replaces revealed tokens, which requires a network that has learned to doubt the tokens that it reads; then `level`
      is the time that the network is conditioned on at revealed tokens that do not condition.
    shadows: whether each call also reads a second stream of masks, which gives p(token | all others) of revealed tokens.
    planned: whether a row takes the number of steps of `steps_of`; others run until no position is masked, and reveal at least one a step.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    looks_at_draw: bool = False
    ranked: bool = True
    planned: bool = False
    reweighs: bool = False
    revises: bool = False
    shadows: bool = False

    @property
    def has_path(self) -> bool:
        """See the class."""
        return not self.looks_at_draw

    @property
    def guarantee(self) -> Literal["exact", "bounded", "sharpened"]:
        """See the module's docstring."""
        return "sharpened" if self.looks_at_draw else "bounded"

    @property
    def one_by_one(self) -> str:
        """The rule with one position a step whose likelihood is the reference of this one's price."""
        return "confidence(count=1)"

    def steps_of(self, masked: Count, steps: int) -> Count:
        """Number of steps of rows with `masked` masked positions at the start, the largest where not `planned`; host or device."""
        del steps
        return at_least_one(masked)

    def begin(self, shape: tuple[int, int], vocab: int) -> Any:
        """The memory before the first step; `shape` is [B, L]."""
        del shape, vocab
        return ()

    def reweigh(self, memory: Any, log_p_BLV: Float[Array, "B L V"]) -> tuple[Float[Array, "B L V"], Any]:
        """(logits in place of log p(x_i | z), memory), before tokens are drawn and `choose` sees them; called where `reweighs`."""
        return log_p_BLV, memory

    def open_rows(self, memory: Any) -> Bool[Array, "B"]:
        """Rows without masks that go on, where `revises`."""
        raise InputError(f"rule {self.name} ends with the last mask")

    @abc.abstractmethod
    def score(self, view: View) -> Float[Array, "B L"]:
        """Score of each position; of several that may be revealed the highest come first."""

    @abc.abstractmethod
    def choose(self, view: View, memory: Any) -> Choice:
        """The positions of this step."""


class OnBestOrDrawn(Rule):
    """Abstract: a rule with the value `on`: "best" compares the most likely tokens of positions, "drawn" the drawn ones."""

    on: str

    @property
    def looks_at_draw(self):
        return self.on == "drawn"


# --- a planned number of positions, best score first -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Planned(Rule):
    """Abstract: the masked positions with the highest scores, as many as the plan of the row says; equal scores from left to right.

    count: positions of a step; None = `steps` of the settings.  plan: "spread" and "first", see `planned_reveals`; "dream", the share
    1 - s/t of the masked positions, t falling from 1 to 0.001 in equal steps, rounded down, and all in the last step; "doubling", 1, 2, 4,
    ... positions.  steps: number of steps, in place of that of the settings.
    """

    count: int | None = None
    plan: str = "spread"
    steps: int | None = None

    source = "LLaDA 2502.09992, generate.py (plan=first); Dream 2508.15487, generation_utils.py (plan=dream); EOSER (plan=doubling)"
    planned = True

    PLANS: ClassVar[tuple[str, ...]] = ("spread", "first", "dream", "doubling")

    def __post_init__(self):
        if self.plan not in self.PLANS:
            raise InputError(f"rule {self.name}: plan is {self.plan!r}; it must be one of {', '.join(self.PLANS)}")
        for name in ("count", "steps"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= MOST_STEPS:
                raise InputError(f"rule {self.name}: {name} is {value}; it must be 1 to {MOST_STEPS}")
        if self.count is not None and (self.plan != "spread" or self.steps is not None):
            raise InputError(f"rule {self.name}: count conflicts with plan and steps, which decide how many positions a step reveals")
        if self.plan == "doubling" and self.steps is not None:
            raise InputError(f"rule {self.name}: plan=doubling takes log2 of the positions as its steps; leave steps out")

    @property
    def guarantee(self):
        if self.looks_at_draw:
            return "sharpened"
        return "exact" if self.count == 1 else "bounded"

    @property
    def one_by_one(self):
        return f"{self.name}(count=1)" if self.has_path else super().one_by_one

    def steps_of(self, masked, steps):
        masked = at_least_one(masked)
        if self.count is not None:
            return -(-masked // self.count)
        if self.plan == "doubling":
            return sum(1 * (masked >= 2**bit) for bit in range(31))  # its length in bits
        steps = self.steps or steps
        return masked - (masked > steps) * (masked - steps)

    def choose(self, view, memory):
        score_BL = self.score(view)
        return Choice(next_reveals(view.masked_BL, score_BL, self._more(view)), memory=memory)

    def revealed_after(self, view: View) -> Int[Array, "B"]:
        """Number of positions that are revealed after this step."""
        masked_B = view.start_masked_BL.sum(axis=1)
        if self.count is not None:
            return jnp.minimum(masked_B, self.count * view.step)
        steps_B = self.steps_of(masked_B, view.steps)
        if self.plan == "doubling":
            return jnp.where(view.step >= steps_B, masked_B, 2 ** jnp.minimum(view.step, 30) - 1)
        return planned_reveals(self.plan, masked_B, steps_B, view.step)

    def _more(self, view: View) -> Int[Array, "B"]:
        start_B, now_B = view.start_masked_BL.sum(axis=1), view.masked_BL.sum(axis=1)
        if self.plan == "dream":
            steps_B = self.steps_of(start_B, view.steps)
            t_B, s_B = (1 - (1 - 1e-3) * (view.step - back) / steps_B.astype(jnp.float32) for back in (1, 0))
            share_B = jnp.floor(now_B * (1 - s_B / t_B)).astype(jnp.int32)
            return jnp.where(view.step >= steps_B, now_B, share_B)
        return self.revealed_after(view) - (start_B - now_B)


@dataclasses.dataclass(frozen=True)
class Random(Planned):
    """Positions in a uniformly random order."""

    name = "random"
    source = "MDLM 2406.07524; any-order autoregression"
    has_path = False
    ranked = False

    def score(self, view):
        return uniform_rows(view.order_keys_B, view.masked_BL.shape[1])


@dataclasses.dataclass(frozen=True)
class LeftToRight(Planned):
    """The first masked positions; causal processes use it, one token per step."""

    name = "left_to_right"
    source = "autoregression"
    ranked = False

    def score(self, view):
        return left_first(view.masked_BL.shape)


@dataclasses.dataclass(frozen=True)
class Ranked(Planned):
    """Abstract: a planned rule whose scores are of the network.

    remask: mask a revealed token again where its score, at the step that revealed it, is below the step's plan (the network is not trained
      to score tokens that it is conditioned on).
    noise: temperature of a draw of the positions, in proportion to exp(score / noise) without replacement; 0 = the highest (Dream's
      alg_temp).
    """

    remask: bool = False
    noise: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if self.remask and self.plan not in ("spread", "first"):
            raise InputError(f"rule {self.name}: remask requires a plan of the number of revealed tokens (spread, first), not {self.plan}")
        if not 0 <= self.noise <= 1e6:
            raise InputError(f"rule {self.name}: noise is {self.noise}; it must be 0 (off) or a temperature up to 1e6")

    @property
    def has_path(self):
        return super().has_path and not (self.remask or self.noise)

    @property
    def guarantee(self):
        return "sharpened" if self.remask else super().guarantee

    @property
    def one_by_one(self):
        return f"{self.name}(count=1)"

    @abc.abstractmethod
    def plain_score(self, view: View) -> Float[Array, "B L"]:
        """The score without chance."""

    def score(self, view):
        score_BL = self.plain_score(view)
        if not self.noise:
            return score_BL
        uniform_BL = jnp.maximum(uniform_rows(view.keys_of(PROPOSAL), score_BL.shape[1]), 2**-33)
        return score_BL / self.noise - jnp.log(-jnp.log(uniform_BL))

    def begin(self, shape, vocab):
        return jnp.zeros(shape, jnp.float32) if self.remask else ()

    def choose(self, view, memory):
        if not self.remask:
            return super().choose(view, memory)
        score_BL = jnp.where(view.masked_BL, self.score(view), memory)
        kept_BL = view.start_masked_BL & (rank(score_BL, view.start_masked_BL) < self.revealed_after(view)[:, None])
        reveal_BL = kept_BL & view.masked_BL
        return Choice(reveal_BL, view.start_masked_BL & ~view.masked_BL & ~kept_BL, jnp.where(reveal_BL, score_BL, memory))


@dataclasses.dataclass(frozen=True)
class Confidence(OnBestOrDrawn, Ranked):
    """The positions of the most likely tokens.

    on: "best", the largest probability of a position, which does not look at the drawn token; "drawn", the probability of the drawn token,
    as LLaDA and MaskGIT rank, which sharpens the text. At temperature 0 both are the same.
    """

    on: str = "best"

    name = "confidence"
    source = "MaskGIT 2202.04200; LLaDA 2502.09992 (on=drawn)"

    def __post_init__(self):
        super().__post_init__()
        check_on(self)

    def plain_score(self, view):
        return probability_on(self.on, view)


@dataclasses.dataclass(frozen=True)
class Entropy(Ranked):
    """The positions of the lowest entropy."""

    name = "entropy"
    source = "Dream 2508.15487"

    def plain_score(self, view):
        return view.scores_of("entropy")


@dataclasses.dataclass(frozen=True)
class Margin(Ranked):
    """The positions with the largest gap between best and second-best probability."""

    name = "margin"
    source = "Kim et al. 2502.06768; Dream 2508.15487"

    def plain_score(self, view):
        return view.scores_of("margin")


# --- thresholds ------------------------------------------------------------------------------------------------------------------------

BY = ("confidence", "margin", "entropy")


@dataclasses.dataclass(frozen=True)
class Threshold(OnBestOrDrawn):
    """All positions with a probability of at least `value`, and always the one with the best score.

    on: as of `Confidence`.  by: the score that decides where no position reaches `value`.
    """

    value: float = 0.9
    on: str = "best"
    by: str = "confidence"

    name = "threshold"
    source = "Fast-dLLM 2505.22618: value=0.9, on the drawn token"

    def __post_init__(self):
        if not 0 < self.value < 1:
            raise InputError(f"rule threshold: value is {self.value}; it is a probability and must lie in (0, 1)")
        check_on(self)
        check_by(self)

    @property
    def one_by_one(self):
        return f"{self.by}(count=1)"

    def score(self, view):
        return probability_on(self.on, view) if self.by == "confidence" else view.scores_of(self.by)

    def choose(self, view, memory):
        return Choice(next_reveals(view.masked_BL, self.score(view), 1, probability_on(self.on, view) >= self.value), memory=memory)


def probability_on(on: str, view: View) -> Float[Array, "B L"]:
    """The probability that `on` names."""
    return view.p_drawn_BL if on == "drawn" else view.confidence_BL


def check_on(rule) -> None:
    """Raises InputError: `on` is not "best" or "drawn"."""
    if rule.on not in ("best", "drawn"):
        raise InputError(f"rule {rule.name}: on is {rule.on!r}; choose best (the most likely token) or drawn (the drawn one)")


def check_by(rule) -> None:
    """Raises InputError: `by` is not a score."""
    if rule.by not in BY:
        raise InputError(f"rule {rule.name}: by is {rule.by!r}; choose one of {', '.join(BY)}")
