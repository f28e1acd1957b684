"""Batch and learning rate of a run from its training tokens: laws with references, or values that are kept.

Power laws are straight lines through a reference that was tuned by hand (`configs/sweeps/batch_lr.py` finds one):

    B* = B_ref (D / D_ref)^0.82       batch in tokens, D training tokens
    lr* = lr_ref (B / B_ref)^0.34     of the batch that was taken

Both exponents are those of masked, uniform and hybrid diffusion under CompleteP (von Rütte et al. 2512.10858); neither the width nor the
depth enters there, which is what CompleteP is for (2505.01618). Autoregressive models are known for smaller exponents of the batch: give
their own where it matters.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from dlmjax.errors import InputError

BATCH_EXPONENT, LR_EXPONENT = 0.82, 0.34


@dataclasses.dataclass(frozen=True)
class BatchLaw:
    """B* = `tokens` * (D / `at`)^`exponent`, in windows: the nearest power of two, or the nearest multiple of `multiple` (devices).

    tokens: best batch, in tokens, of a run of `at` training tokens.
    """

    tokens: float | int
    at: float | int
    exponent: float | int = BATCH_EXPONENT
    multiple: int = 0

    def __post_init__(self) -> None:
        _positive("BatchLaw", tokens=self.tokens, at=self.at)
        if self.multiple < 0:
            raise InputError(f"BatchLaw(multiple={self.multiple}): give the number of devices, or 0 for powers of two")

    def windows(self, tokens: float | int, length: int) -> int:
        """Windows of `length` in a step of a run of `tokens`; at least one, or one on each device."""
        best = self.tokens * (tokens / self.at) ** self.exponent / length
        if self.multiple:
            return max(round(best / self.multiple), 1) * self.multiple
        return 2 ** max(round(math.log2(best)), 0)


@dataclasses.dataclass(frozen=True)
class FixedBatch:
    """The same number of windows in every run."""

    count: int

    def __post_init__(self) -> None:
        _positive("FixedBatch", count=self.count)

    def windows(self, tokens: float | int, length: int) -> int:
        """`count`, whatever the run."""
        del tokens, length
        return self.count


@dataclasses.dataclass(frozen=True)
class RateLaw:
    """lr* = `lr` * (B / `batch`)^`exponent`. batch: tokens in a step for which `lr` is the best."""

    lr: float | int
    batch: float | int
    exponent: float | int = LR_EXPONENT

    def __post_init__(self) -> None:
        _positive("RateLaw", lr=self.lr, batch=self.batch)

    def rate(self, batch: int, length: int) -> float:
        """The peak learning rate of a run with `batch` windows of `length` in a step."""
        return self.lr * (batch * length / self.batch) ** self.exponent


@dataclasses.dataclass(frozen=True)
class FixedRate:
    """The same peak learning rate in every run."""

    lr: float | int

    def __post_init__(self) -> None:
        _positive("FixedRate", lr=self.lr)

    def rate(self, batch: int, length: int) -> float:
        """`lr`, whatever the run."""
        del batch, length
        return self.lr


@dataclasses.dataclass(frozen=True)
class CompleteP:
    """Transfer over widths and depths: hyper-parameters are those of a network of this width and depth (2505.01618, `models.completep`)."""

    width: int
    depth: int

    def __post_init__(self) -> None:
        _positive("CompleteP", width=self.width, depth=self.depth)

    def leaves(self) -> dict[str, int]:
        """The leaves of a config that switch it on."""
        return {"model.completep_width": self.width, "model.completep_depth": self.depth}


def of_length(leaves: dict[str, Any], steps: int) -> dict[str, Any]:
    """Leaves of a config that keep their share of the run when it takes `steps`: warm-up, horizon of the averaged weights."""
    share = steps / leaves["train.steps"]
    warmup, ema = leaves["optimizer.warmup"], leaves["train.ema"]
    return {
        "train.steps": steps,
        "optimizer.warmup": min(max(round(warmup * share), 1), steps) if warmup else 0,
        "train.ema": max(1 - (1 - ema) / share, 0.0) if ema else 0.0,
    }


Batch = BatchLaw | FixedBatch
Rate = RateLaw | FixedRate


def _positive(name: str, **values: float | int) -> None:
    for field, value in values.items():
        if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
            raise InputError(f"{name}({field}={value!r}): give a positive number")
