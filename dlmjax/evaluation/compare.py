"""The difference of two models on the same text under the same noise, with its own standard error.

The errors of two numbers are a poor estimate of the error of their difference: most of each is the choice of the text, which both share.
Here both models are measured on the same windows, at the same times and, where their processes corrupt alike, under the same masks. The
difference is taken window by window; its error is that of the mean over windows.

Shapes: W windows, G groups. Units: nats, unless the name says bits.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dlmjax.errors import InputError
from dlmjax.evaluation.result import Measured, ratio_with_error
from dlmjax.files import finite


@dataclasses.dataclass(frozen=True)
class Difference:
    """First less second: below 0 the first is better.

    stderr_nats_per_token: error of the difference.  stderr_unpaired: its error if the models were measured on independent texts.
    correlation: of the residuals of the two; the higher, the smaller the paired error.  windows_better: share of windows in which the
    first is better.
    """

    nats_per_token: float
    stderr_nats_per_token: float
    bits_per_byte: float | None
    stderr_bits_per_byte: float | None
    stderr_unpaired_nats_per_token: float
    correlation: float
    windows_better: float
    windows: int
    tokens: int

    def to_json(self) -> dict[str, Any]:
        """JSON-ready dict of every field."""
        return finite(dataclasses.asdict(self))

    def summary(self) -> str:
        """One line for people."""
        sizes = abs(self.nats_per_token) / self.stderr_nats_per_token if self.stderr_nats_per_token else math.inf
        bits = "" if self.bits_per_byte is None else f", {self.bits_per_byte:+.4f} ± {self.stderr_bits_per_byte:.4f} bits/byte"
        return (
            f"difference {self.nats_per_token:+.4f} ± {self.stderr_nats_per_token:.4f} nats/token{bits}: {sizes:.1f} standard errors "
            f"(unpaired the error would be {self.stderr_unpaired_nats_per_token:.4f})"
        )


def paired_difference(first: Measured, second: Measured) -> Difference:
    """The difference of two measurements of the same windows. Raises InputError where the windows are not the same."""
    for name in ("window_W", "tokens_W", "bytes_W"):
        if not np.array_equal(getattr(first, name), getattr(second, name)):
            raise InputError("the two models were measured on different windows; a difference requires the same text, tokenizer and window")
    ones_W, nats_W = first.tokens_W, first.nats_W - second.nats_W
    per_token, error = ratio_with_error(nats_W, ones_W)
    per_byte = byte_error = None
    if first.bytes_W is not None and first.bytes_W.sum() > 0:
        per_byte, byte_error = (value / math.log(2) for value in ratio_with_error(nats_W, first.bytes_W))
    (mean_a, error_a), (mean_b, error_b) = (ratio_with_error(side.nats_W, ones_W) for side in (first, second))
    residuals = first.nats_W - mean_a * ones_W, second.nats_W - mean_b * ones_W
    spread = math.sqrt(float(np.sum(residuals[0] ** 2) * np.sum(residuals[1] ** 2)))
    return Difference(
        nats_per_token=per_token,
        stderr_nats_per_token=error,
        bits_per_byte=per_byte,
        stderr_bits_per_byte=byte_error,
        stderr_unpaired_nats_per_token=math.hypot(error_a, error_b),
        correlation=float(np.sum(residuals[0] * residuals[1])) / spread if spread else math.nan,
        windows_better=float(np.mean(nats_W < 0)),
        windows=len(nats_W),
        tokens=int(ones_W.sum()),
    )


@dataclasses.dataclass(frozen=True)
class PairAccuracy:
    """Share of pairs in which the better of two sentences has the lower bound; a tie counts half.

    accuracy: mean of the accuracies of groups (BLiMP's paradigms); its error is that of drawing the pairs of each group (where a group has
    only one pair, all groups use the variance over all pairs; nan where there is only one pair).
    pairs_accuracy: mean over all pairs.  nats: nats of the worse sentence minus those of the better one, mean over pairs.
    stderr_noise_nats: part of its error due to the masks (None with one draw).  undecided: share of pairs whose difference is within twice
    its own noise.  groups, fields: {name: {"accuracy", "pairs"}}.
    """

    accuracy: float
    stderr_accuracy: float
    pairs_accuracy: float
    nats: float
    stderr_nats: float
    stderr_noise_nats: float | None
    undecided: float | None
    pairs: int
    groups: dict[str, dict[str, float]]
    fields: dict[str, dict[str, float]]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready dict of every field."""
        return finite(dataclasses.asdict(self))

    def summary(self) -> str:
        """A line for people, and one for each field."""
        lines = [
            f"accuracy {self.accuracy:.2%} ± {self.stderr_accuracy:.2%} (mean over {len(self.groups)} groups, {self.pairs:,} pairs; "
            f"chance 50 %), the worse sentence costs {self.nats:+.3f} ± {self.stderr_nats:.3f} nats more"
        ]
        return "\n".join([*lines, *(f"  {name:24} {row['accuracy']:7.2%}  {row['pairs']:,} pairs" for name, row in self.fields.items())])


def pair_accuracy(good: Measured, bad: Measured, groups: Sequence[str], fields: Sequence[str]) -> PairAccuracy:
    """Accuracy over minimal pairs; window w of both is a sentence of pair w, which is of groups[w] and fields[w].

    Raises:
      InputError: the measurements are not of the same pairs.
    """
    if not np.array_equal(good.window_W, bad.window_W) or len(good.window_W) != len(groups):
        raise InputError("the two sides of the pairs were not measured on the same pairs")
    nats_WD = bad.nats_WD - good.nats_WD
    nats_W, draws = nats_WD.mean(axis=1), nats_WD.shape[1]
    right_W = (nats_W > 0) + 0.5 * (nats_W == 0)
    noise_W = nats_WD.std(axis=1, ddof=1) / math.sqrt(draws) if draws > 1 else None
    by_group, by_field = _shares(right_W, groups), _shares(right_W, fields)
    return PairAccuracy(
        accuracy=float(np.mean([row["accuracy"] for row in by_group.values()])),
        stderr_accuracy=_accuracy_error(right_W, by_group),
        pairs_accuracy=float(right_W.mean()),
        nats=float(nats_W.mean()),
        stderr_nats=float(nats_W.std(ddof=1) / math.sqrt(len(nats_W))) if len(nats_W) > 1 else math.nan,
        stderr_noise_nats=None if noise_W is None else float(np.sqrt(np.sum(noise_W**2)) / len(nats_W)),
        undecided=None if noise_W is None else float(np.mean(np.abs(nats_W) < 2 * noise_W)),
        pairs=len(nats_W),
        groups=by_group,
        fields=by_field,
    )


def _accuracy_error(right_W: np.ndarray, by_group: dict[str, dict[str, float]]) -> float:
    """Error of the mean over groups, from the variance in each group, or over all pairs where a group has only one pair."""
    groups, whole = by_group.values(), float(right_W.mean())
    if len(right_W) < 2:
        return math.nan
    if min(row["pairs"] for row in groups) > 1:
        variances = [row["accuracy"] * (1 - row["accuracy"]) / (row["pairs"] - 1) for row in groups]
    else:
        # Pairs of one group are alike, so this is rather too much than too little.
        pooled = whole * (1 - whole) * len(right_W) / (len(right_W) - 1)
        variances = [pooled / row["pairs"] for row in groups]
    return math.sqrt(sum(variances)) / len(by_group)


def _shares(right_W: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, float]]:
    names_W = np.array(names)
    kinds = dict.fromkeys(names)  # in the order in which they come
    return {name: {"accuracy": float(right_W[names_W == name].mean()), "pairs": int((names_W == name).sum())} for name in kinds}
