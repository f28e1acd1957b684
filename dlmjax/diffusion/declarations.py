"""The small frozen values that a process declares of itself, for packages that never look at its class."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Float, Key

from dlmjax.diffusion.weightings.base import Bound, Weighting


@dataclasses.dataclass(frozen=True)
class Attention:
    """What each position of a row reads: the whole row, unless it is read from left to right.

    causal: the positions before it only, so that text is made token by token and its likelihood is exact.
    block_size: tokens of a block; the network reads a noisy and a clean stream, and sees its own block and the clean ones before. None
      where there are no blocks.
    seeded: whether the first token of a block is predicted from the clean text before it, and each other one from the position before
      it; the clean stream is then causal, and holds the text shifted by one position.
    context_size: tokens of a block that a row of one stream reads with the blocks before it, as noisy as they are; None = the whole row.
    """

    causal: bool = False
    block_size: int | None = None
    seeded: bool = False
    context_size: int | None = None

    @property
    def full(self) -> bool:
        """Whether each position reads the whole row."""
        return self == Attention()

    @property
    def sequential(self) -> bool:
        """Whether text is read and made from left to right, by tokens or blocks."""
        return self.causal or self.block_size is not None

    @property
    def shifted(self) -> bool:
        """Whether a token is predicted from the position before it, by what the process shows the network and not by the network."""
        return self.causal or self.seeded

    @property
    def streams(self) -> int:
        """Copies of a row that the network reads side by side in training: 2 where a noisy and a clean one, else 1."""
        return 1 if self.block_size is None else 2


@dataclasses.dataclass(frozen=True)
class Ends:
    """How a bound's integrand behaves at its two ends, as a function of the noise share; an evaluation chooses its times by it.

    power: the integrand is smooth in the noise share's root of this order: 1 where it is a polynomial, above 2 for a logarithm, or a power
      that is not a whole number, where text is clean.
    clean, noise: how deep towards clean text and towards noise it has structure, e-folds of what is left: e^-4 is where rows of some
      hundred correlated tokens are still distinguishable.
    """

    power: float = 1.0
    clean: float = 1.5
    noise: float = 4.0


@dataclasses.dataclass(frozen=True)
class Boundary:
    """Which boundary terms of the bound are not zero.

    any: the prior or the reconstruction term.  reconstruction: noise is left at t = 0; only then does training pay a second pass of the
      network for it.
    """

    any: bool = False
    reconstruction: bool = False


@dataclasses.dataclass(frozen=True)
class Parameter:
    """An array that is trained with the network.

    start: its start value, float32, from a key.  kind: "embedding", "matrix" or "vector", which is how the optimizer treats it.
    lr_multiplier: what the learning rate is multiplied by.
    """

    start: Callable[[Key[Array, ""]], Float[Array, "..."]]
    kind: str
    lr_multiplier: float = 1.0


@dataclasses.dataclass(frozen=True)
class Capabilities:
    """What goes with a process: read by samplers, scorers, export and plans.

    methods, weightings: names of the sampling methods (`sampling.METHODS`) and training weightings (`registry.WEIGHTINGS`); others are
      refused by name.
    any_order: whether noise masks all tokens at one rate. The denoiser's output is then p(x_i | revealed tokens) for every set of masked
      positions at any time: any order of unmasking is a factorisation of the model, and counts of masks may take the place of times.
    sampling_grid: the grid of times (`sampling.grids`) that a sampler takes by default.
    prior_mask_id: the mask, where sampling starts from masks, so that reveal orders are possible; None elsewhere.
    count_form: the process that masks an exact number of a row's tokens, for the same network (the k-form of RADD 2406.03736), or None.
    in_blocks: the process that makes one block given the finished ones, for a network under a block-causal mask, or None.
    seeds: the causal process of the first token of each block, where blocks are seeded, or None.
    weighting: how the loss is weighted in training by default.
    is_bound: whether the NELBO bounds -log p(x).  is_tight: whether the exact denoiser brings it to the entropy in continuous time, where
      there are no boundary terms (`is_tight`).
    denoisings: how many times a training step denoises a row.
    own_flops: FLOPs per token of a training step in networks that are part of the process.
    reinforce: whether the distribution of a discrete z depends on the process's parameters, so that its gradient needs two draws (`log_q`).
    """

    methods: tuple[str, ...] = ("ancestral",)
    weightings: tuple[str, ...] = ("bound",)
    any_order: bool = False
    sampling_grid: str = "uniform"
    prior_mask_id: int | None = None
    count_form: Any = None
    in_blocks: Any = None
    seeds: Any = None
    weighting: Weighting = Bound()
    is_bound: bool = True
    is_tight: bool = True
    denoisings: int = 1
    own_flops: float = 0.0
    reinforce: bool = False


@dataclasses.dataclass(frozen=True)
class Phases:
    """The processes that training uses one after another, a curriculum: each is compiled; evaluations use the process itself.

    process: the process of phase i.  ends: the steps before which the phases but the last end, rising; empty = there is one phase.
    shortened: the values of the process whose last phase begins at a given step: what a message proposes.
    """

    process: Callable[[int], Any]
    ends: tuple[int, ...] = ()
    shortened: Callable[[int], dict[str, Any]] | None = None

    @property
    def end(self) -> int:
        """The step at which the last phase begins; 0 = there is one phase."""
        return self.ends[-1] if self.ends else 0

    def index(self, step: int) -> int:
        """The number of the phase of a training step, from 0."""
        return sum(step >= end for end in self.ends)

    def at_step(self, step: int) -> Any:
        """The process of a training step."""
        return self.process(self.index(step))

    @property
    def processes(self) -> tuple[Any, ...]:
        """Those of all phases."""
        return tuple(self.process(i) for i in range(len(self.ends) + 1))
