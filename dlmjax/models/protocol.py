"""What a network is for the trainer, the evaluator and the samplers: `denoiser.Network` of a family, `own.OwnNetwork` of one's own.

Its denoiser, `bind(...)`, is that of `diffusion.objective.Denoiser`: hidden states, and a head that is called on the rows with loss.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax

from dlmjax.models.layout import Layout
from dlmjax.models.spec import Execution


@runtime_checkable
class TrainableNetwork(Protocol):
    """A network without its weights: a frozen dataclass, so that `dataclasses.replace(network, layout=..., execution=...)` moves it.

    execution, layout: how it is run, and its sharding.

    What knows the weights of the families (export, plans, sweeps) also reads `spec`, the `ModelSpec`, where others raise InputError.
    """

    execution: Execution
    layout: Layout

    @property
    def width(self) -> int:
        """Width of the hidden states."""

    @property
    def dropout(self) -> bool:
        """Whether a training step passes keys for dropout."""

    @property
    def self_condition(self) -> bool:
        """Whether its denoiser takes a hint of an earlier pass."""

    @property
    def unshifted(self) -> TrainableNetwork:
        """The same network of the same weights, for rows that are shifted already: it predicts each token in its own position."""

    @property
    def caches(self) -> bool:
        """Whether `models.cache` can read a row in pieces."""

    @property
    def axes(self) -> dict:
        """Logical or mesh axes of every weight, one tuple per leaf (`parallel.sharding`)."""

    @property
    def kinds(self) -> dict:
        """ "matrix" | "embedding" | "head" | "vector" per leaf, for the optimizer."""

    @property
    def lr_multipliers(self) -> dict:
        """Factor on the learning rate per leaf."""

    @property
    def wd_multipliers(self) -> dict:
        """Factor on weight decay per leaf."""

    @property
    def eps_multipliers(self) -> dict:
        """Factor on AdamW's epsilon per leaf."""

    def init(self, key: jax.Array) -> dict:
        """Float32 weights as a nested dict with texts as keys; may be traced."""

    def abstract(self) -> dict:
        """The tree of `jax.ShapeDtypeStruct`."""

    def training_flops_per_token(
        self, length: int, head_share: float = 1.0, *, streams: int = 1, passes: float = 1.0, tokens_per_time: int = 1
    ) -> float:
        """FLOPs per token of one training step."""

    def bind(self, params: dict, segments_BL: Any, positions_BL: Any, attention: Any = "full", dropout_key: Any = None) -> Any:
        """The denoiser of one batch."""
