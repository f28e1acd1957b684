"""Batch and learning rate of a run from its training tokens: power laws through a reference, or fixed values.

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

from dlmjax import checks
from dlmjax.errors import InputError
from dlmjax.published import BATCH_EXPONENT, LR_EXPONENT

MOST_WINDOWS = 2**40  # a larger batch is a typing error


@dataclasses.dataclass(frozen=True)
class BatchLaw:
    """B* = `tokens` * (D / `at`)^`exponent`, in windows: the nearest power of two, or the nearest multiple of `multiple` (devices).

    tokens: best batch, in tokens, of a run of `at` training tokens. multiple: 0 for powers of two.
    """

    tokens: float | int
    at: float | int
    exponent: float | int = BATCH_EXPONENT
    multiple: int = 0

    def __post_init__(self) -> None:
        checks.positive("BatchLaw", tokens=self.tokens, at=self.at)
        checks.finite("BatchLaw", exponent=self.exponent)
        checks.whole("BatchLaw", 0, multiple=self.multiple)

    def windows(self, tokens: float | int, length: int) -> int:
        """Windows of `length` in a step of a run of `tokens`; at least one, or one on each device. Raises InputError: over MOST_WINDOWS."""
        best = _power(self.tokens, tokens / self.at, self.exponent) / length
        if not best < MOST_WINDOWS:
            raise InputError(f"{self} gives a run of {tokens:.3g} tokens a batch of {best:.3g} windows; check its numbers")
        if self.multiple:
            return max(round(best / self.multiple), 1) * self.multiple
        return 2 ** max(round(math.log2(max(best, 1))), 0)


@dataclasses.dataclass(frozen=True)
class FixedBatch:
    """The same number of windows in every run."""

    count: int

    def __post_init__(self) -> None:
        checks.whole("FixedBatch", 1, count=self.count)
        if self.count > MOST_WINDOWS:
            raise InputError(f"FixedBatch(count={self.count:.3g}): give at most {MOST_WINDOWS:.3g} windows")

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
        checks.positive("RateLaw", lr=self.lr, batch=self.batch)
        checks.finite("RateLaw", exponent=self.exponent)

    def rate(self, batch: int, length: int) -> float:
        """The peak learning rate of a run with `batch` windows of `length` in a step. Raises InputError: it is not positive and finite."""
        rate = _power(self.lr, batch * length / self.batch, self.exponent)
        if not 0 < rate < math.inf:
            raise InputError(f"{self} gives a batch of {batch:,} windows of {length:,} the learning rate {rate:.3g}; check its numbers")
        return rate


@dataclasses.dataclass(frozen=True)
class FixedRate:
    """The same peak learning rate in every run."""

    lr: float | int

    def __post_init__(self) -> None:
        checks.positive("FixedRate", lr=self.lr)

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
        checks.whole("CompleteP", 1, width=self.width, depth=self.depth)

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


def _power(factor: float | int, base: float | int, exponent: float | int) -> float:
    """factor * base^exponent; infinite where that has no float."""
    try:
        return factor * base**exponent
    except (OverflowError, ZeroDivisionError):
        return math.inf
