"""Rules that decide from p(x_i | z) how many positions a step reveals: by entropy, by confidence, by their places, by how steady they are.

None looks at the drawn tokens. With an exact denoiser at temperature 1 the loss of a step is the total correlation of the tokens that it
reveals, at most the sum of their entropies less the largest.

Shapes: B rows, L positions, V vocabulary.
"""

import abc
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dlmjax.errors import InputError
from dlmjax.sampling.reveal import left_first, next_reveals, planned_reveals
from dlmjax.sampling.rules import Choice, OnBestOrDrawn, Rule, View, at_least_one, check_by, check_on, probability_on
from dlmjax.sampling.steppers import rank


@dataclasses.dataclass(frozen=True)
class _Longest(Rule):
    """Abstract: the most positions, best score first, of which each one and all before it pass a test; at least one."""

    @abc.abstractmethod
    def passes(self, view: View, best_first_BL: Array) -> Bool[Array, "B L"]:
        """Whether the first n positions of `best_first_BL` (their indices) may be revealed together, for n = 1, 2, ..."""

    def choose(self, view, memory):
        rank_BL = rank(self.score(view), view.masked_BL)
        best_first_BL = jnp.argsort(rank_BL, axis=1)
        passes_BL = self.passes(view, best_first_BL) & jnp.take_along_axis(view.masked_BL, best_first_BL, axis=1)
        number_B = jnp.cumprod(passes_BL, axis=1).sum(axis=1)
        return Choice(view.masked_BL & (rank_BL < jnp.maximum(number_B, 1)[:, None]), memory=memory)


@dataclasses.dataclass(frozen=True)
class EntropyBound(_Longest):
    """The most positions whose entropies sum to at most `gamma` nats beside their largest: KL(text || sampled) <= gamma E[steps].

    by: the score that decides which positions come first.
    """

    gamma: float = 0.1
    by: str = "entropy"

    name = "entropy_bound"
    source = "2505.24857; gamma=0.1 as in PC-Sampler's and transformers' code"

    def __post_init__(self):
        if not 0 <= self.gamma <= 1e6:
            raise InputError(f"rule entropy_bound: gamma is {self.gamma}; it must be 0 or a number of nats up to 1e6")
        check_by(self)

    @property
    def one_by_one(self):
        return f"{self.by}(count=1)"

    def score(self, view):
        return view.scores_of(self.by)

    def passes(self, view, best_first_BL):
        entropy_BL = jnp.take_along_axis(-view.scores_of("entropy"), best_first_BL, axis=1)
        return jnp.cumsum(entropy_BL, axis=1) - jax.lax.cummax(entropy_BL, axis=1) <= self.gamma


@dataclasses.dataclass(frozen=True)
class _Certified(_Longest):
    """Abstract: a rule of c, the largest probabilities, that certifies at f = 1 that the most likely tokens of the revealed positions are
    together the most likely text of these positions."""

    f: float = 1.0

    def __post_init__(self):
        if not 0 < self.f <= 1e6:
            raise InputError(f"rule {self.name}: f is {self.f}; it must be above 0 and at most 1e6 (1: certified)")

    def score(self, view):
        return view.confidence_BL

    def _doubt(self, view: View, best_first_BL: Array) -> Float[Array, "B L"]:
        return jnp.take_along_axis(1 - view.confidence_BL, best_first_BL, axis=1)


@dataclasses.dataclass(frozen=True)
class Factor(_Certified):
    """The most positions n with (n + 1)(1 - c_n) < f, c falling."""

    name = "factor"
    source = "Fast-dLLM 2505.22618 theorem 1; f=1 as in PC-Sampler's and dInfer's code"

    def passes(self, view, best_first_BL):
        number_L = jnp.arange(1, best_first_BL.shape[1] + 1)
        return (number_L + 1) * self._doubt(view, best_first_BL) < self.f


@dataclasses.dataclass(frozen=True)
class Profile(_Certified):
    """The most positions n with sum of 1 - c_i over the first n, plus 1 - c_n, below f: the certificate for unequal c."""

    name = "profile"
    source = "derived: the joint mode has at least 1 - sum e, any other outcome at most max e"

    def passes(self, view, best_first_BL):
        doubt_BL = self._doubt(view, best_first_BL)
        return jnp.cumsum(doubt_BL, axis=1) + doubt_BL < self.f


@dataclasses.dataclass(frozen=True)
class Spread(Rule):
    """Positions far apart: of M masked ones step r reveals those whose number, from 0, is a multiple of M // base^r; log M steps.

    Neighbours depend on each other most. On a first-order Markov chain only the first step loses anything.
    """

    base: int = 2

    name = "spread"
    source = "DUS 2506.19037; base=2"
    planned = True
    ranked = False

    def __post_init__(self):
        if not 2 <= self.base <= 2**20:
            raise InputError(f"rule spread: base is {self.base}; it must be 2 to {2**20}")

    def steps_of(self, masked, steps):
        masked = at_least_one(masked)
        powers = [self.base**r for r in range(1, 31) if self.base**r < 2**31]
        return 1 + sum(1 * (masked // power > 1) for power in powers)

    def score(self, view):
        return left_first(view.masked_BL.shape)

    def choose(self, view, memory):
        number_BL = jnp.cumsum(view.start_masked_BL, axis=1) - 1
        gap_B = view.start_masked_BL.sum(axis=1) / jnp.float32(self.base) ** view.step
        gap_B = jnp.maximum(jnp.floor(gap_B), 1).astype(jnp.int32)
        return Choice(view.masked_BL & (number_BL % gap_B[:, None] == 0), memory=memory)


@dataclasses.dataclass(frozen=True)
class Klass(OnBestOrDrawn):
    """All positions whose largest probability exceeds `value` and whose law has changed by less than `drift` nats (KL from the step before)
    in each of the last `history` steps; in a row without any, the surest, as many as `steps` plans.

    on: as of `rules.Confidence`. The memory holds log p of all positions: of use for blocks and short canvases.
    """

    value: float = 0.9
    drift: float = 0.01
    history: int = 2
    on: str = "best"

    name = "klass"
    source = "KLASS, llada_klass.py: 0.9, 0.01, 2; GSM8K 0.6, 0.015; Dream on MATH 0.9, 0.005"

    def __post_init__(self):
        if not (0 < self.value < 1 and 0 < self.drift <= 1e6 and 1 <= self.history <= 64):
            raise InputError(
                f"rule klass: value ({self.value}) must lie in (0, 1), drift ({self.drift}) be above 0 nats, history ({self.history}) "
                "be 1 to 64 steps"
            )
        check_on(self)

    def begin(self, shape, vocab):
        return jnp.zeros((*shape, vocab), jnp.float32), jnp.full((*shape, self.history), jnp.inf, jnp.float32)

    def score(self, view):
        return probability_on(self.on, view)

    def choose(self, view, memory):
        """In the first step nothing is known of changes, so that no position is steady."""
        (last_BLV, drift_BLH), log_p_BLV = memory, view.log_p()
        drift_BL = jnp.sum(jnp.exp(log_p_BLV) * (log_p_BLV - last_BLV), axis=-1)
        drift_BL = jnp.where(view.step > 1, drift_BL, jnp.inf)
        drift_BLH = jnp.concatenate([drift_BLH[..., 1:], drift_BL[..., None]], axis=-1).astype(jnp.float32)
        score_BL = self.score(view)
        steady_BL = view.masked_BL & (score_BL > self.value) & jnp.all(drift_BLH < self.drift, axis=-1)
        masked_B = view.start_masked_BL.sum(axis=1)
        steps_B = at_least_one(masked_B) - jnp.maximum(at_least_one(masked_B) - view.steps, 0)
        now_B, before_B = (planned_reveals("spread", masked_B, steps_B, view.step - back) for back in (0, 1))
        planned_BL = next_reveals(view.masked_BL, score_BL, jnp.maximum(now_B - before_B, 1))
        reveal_BL = jnp.where(steady_BL.any(axis=1, keepdims=True), steady_BL, planned_BL)
        return Choice(reveal_BL, memory=(log_p_BLV.astype(jnp.float32), drift_BLH))


@dataclasses.dataclass(frozen=True)
class Pipeline(Rule):
    """Blocks that begin before those to their left are finished: D2F's states of blocks, on the whole canvas.

    The masked positions of a row are blocks of `block`, from left to right. The next block begins when a share `add` of the last one is
    revealed. A block whose left neighbour has a share `complete` of its tokens reveals its surest position in each step; every begun block
    reveals the positions whose largest probability exceeds `value`. The memory is the number of begun blocks.
    """

    block: int = 32
    add: float = 0.1
    complete: float = 0.95
    value: float = 0.9

    name = "pipeline"
    source = "D2F, eval_dream.py: its scripts 0.1, 0.95, 0.9, its defaults 0.5, 0.9, 1; block=32"

    def __post_init__(self):
        if not 1 <= self.block <= 2**20:
            raise InputError(f"rule pipeline: block is {self.block}; it must be 1 to {2**20} positions")
        for name in ("add", "complete", "value"):
            if not 0 < getattr(self, name) <= 1:
                raise InputError(f"rule pipeline: {name} is {getattr(self, name)}; it must lie in (0, 1]")

    def begin(self, shape, vocab):
        return jnp.ones(shape[0], jnp.int32)

    def score(self, view):
        return view.confidence_BL

    def choose(self, view, memory):
        """Reveals at least one position: the first unfinished block, all before which are finished, has begun by then."""
        length = view.masked_BL.shape[1]
        blocks = -(-length // self.block)
        block_BL = jnp.clip(jnp.cumsum(view.start_masked_BL, axis=1) - 1, 0) // self.block
        of_block_BLN = (block_BL[..., None] == jnp.arange(blocks)) & view.start_masked_BL[..., None]
        size_BN = of_block_BLN.sum(axis=1)
        revealed_BN = (of_block_BLN & ~view.masked_BL[..., None]).sum(axis=1)
        share_BN = revealed_BN / jnp.maximum(size_BN, 1)
        last_B = jnp.take_along_axis(share_BN, memory[:, None] - 1, axis=1)[:, 0]
        begun_B = jnp.minimum(memory + (last_B >= self.add), blocks)
        begun_BN = jnp.arange(blocks) < begun_B[:, None]
        forced_BN = begun_BN & jnp.pad(share_BN[:, :-1] >= self.complete, ((0, 0), (1, 0)), constant_values=True)
        open_BLN = of_block_BLN & view.masked_BL[..., None]
        rank_BLN = jnp.where(open_BLN, rank(self.score(view), view.masked_BL)[..., None], length)
        surest_BLN = open_BLN & (rank_BLN == rank_BLN.min(axis=1, keepdims=True)) & forced_BN[:, None]
        sure_BLN = open_BLN & begun_BN[:, None] & (self.score(view) > self.value)[..., None]
        return Choice((surest_BLN | sure_BLN).any(axis=-1), memory=begun_B)
