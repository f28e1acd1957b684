"""From the nats of windows to the numbers of a likelihood, each with its standard error, and where that error comes from.

Windows are the sampling unit. nats/token and bits/byte are ratios of sums over windows, so their errors are those of a ratio estimator
(linearisation); perplexity follows by the delta method. They cover the choice of the text and the noise of the masks. `errors` takes the
error of nats per token apart:

  sequences   the choice of the text: the whole error without the noise. None without repeated draws
  masks       the noise of the corruptions, from the variance between draws of a window at a node. None without repeated draws
  levels      the finite number of nodes in t. "gauss": a bias, estimated from the decay of the integrand's coefficients
              (`levels.quadrature_error`; more often too large than too small), with fewer than ENOUGH_NODES nodes from the difference to
              REFERENCE_NODES on `levels_windows` windows, where these were read; `levels_stderr` is the error of this estimate.
              "stratified", "count": a standard error, of times drawn in their parts of [0, 1], from the slope of the integrand. None
              where there are too few nodes to estimate it

sequences^2 + masks^2 (+ levels^2 where times are drawn) is the square of `stderr_nats_per_token`. What is printed behind ± is that error
plus `LikelihoodResult.quadrature`, so that a bound does not read below its exact integral by more than it. Exact likelihoods (causal
processes) have only the error of the sequences.

Shapes: W windows, J nodes, D draws. Units: nats, unless the name says bits.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dlmjax.evaluation.levels import LevelGrid, quadrature_error
from dlmjax.files import finite, write_json
from dlmjax.quadrature import ENOUGH_NODES, NODES, REFERENCE_NODES

MOST_BIAS = 5e-3  # share of the bound; a larger error of the quadrature is reported
NOISE = 4  # standard errors below which an estimate is noise
LEAST_BIAS = 5e-4  # share of the bound, by which an estimate of the error of "gauss" may be too small (tests/evaluation/test_levels.py)


@dataclasses.dataclass(frozen=True)
class Measured:
    """Sums of nats, tokens and bytes of each window, in the order of window numbers, from which a result is computed.

    nats_WJD: the integrand, summed over a window's tokens, at each node and draw of the grid.  calls: network calls per window, a mean.
    reference_W: the integral by REFERENCE_NODES nodes, nan where it was not computed; None: nowhere.
    ends_W: nats of where documents end, for a network that knows it (`document_ends`); None: not counted.
    """

    window_W: Int[np.ndarray, "W"]
    nats_WJD: Float[np.ndarray, "W J D"]
    grid: LevelGrid
    prior_W: Float[np.ndarray, "W"]
    reconstruction_WD: Float[np.ndarray, "W D"]
    tokens_W: Int[np.ndarray, "W"]
    bytes_W: Int[np.ndarray, "W"] | None
    length: int
    calls: float = math.nan
    reference_W: Float[np.ndarray, "W"] | None = None
    ends_W: Float[np.ndarray, "W"] | None = None

    @property
    def nats_WD(self) -> Float[np.ndarray, "W D"]:
        """The bound of each window under each draw."""
        ends_W = 0.0 if self.ends_W is None else self.ends_W
        return np.sum(self.nats_WJD * self.grid.weight_J[:, None], axis=1) + self.reconstruction_WD + (self.prior_W + ends_W)[:, None]

    @property
    def nats_W(self) -> Float[np.ndarray, "W"]:
        """The bound of each window."""
        return self.nats_WD.mean(axis=1)


@dataclasses.dataclass(frozen=True)
class LikelihoodResult:
    """The result of an evaluation.  All per-token numbers divide by every evaluated token (EOS included, padding not).

    nats_per_token = diffusion + prior + reconstruction, and the nats of document ends where these are counted; bits_per_byte divides by
    the UTF-8 bytes of exactly these tokens (None without byte lengths); perplexity = exp(nats_per_token).  is_bound: False where the
    process's loss is not a likelihood bound.
    likelihood: name of the number, "nelbo" or one of `evaluation.forms`; calls_per_token: network calls that each token took.
    levels: one entry per node: `t`, `weight`, and `nats_per_token`, the integrand L(t) there (mean t for "stratified").
    errors: the standard error taken apart, see the top of this file.
    """

    nats_per_token: float
    stderr_nats_per_token: float
    stderr_noise_nats_per_token: float | None
    bits_per_byte: float | None
    stderr_bits_per_byte: float | None
    perplexity: float
    stderr_perplexity: float
    diffusion_nats_per_token: float
    prior_nats_per_token: float
    reconstruction_nats_per_token: float
    tokens: int
    bytes: int | None
    windows: int
    length: int
    process: str
    is_bound: bool
    rule: str
    nodes: int
    draws: int
    seed: int
    step: int
    weights: str
    split: str
    likelihood: str
    calls_per_token: float
    levels: tuple[dict[str, float], ...]
    errors: dict[str, float | None]

    @property
    def sign(self) -> str:
        """Between -log p and the number: "=" exact, "<=" a bound of it from above, ">=" from below."""
        return {"exact": "=", "tube": ">="}.get(self.rule, "<=" if self.is_bound else "=")

    @property
    def quadrature(self) -> float | None:
        """How far a rule without drawn times may be from its integral, nats per token; 0 for other rules and where all levels were read,
        None where it is not known.

        The estimate of `errors`, from ENOUGH_NODES nodes on without the part that is noise of the estimate (which the standard error
        holds), plus LEAST_BIAS of the number.
        """
        levels, stderr = self.errors.get("levels"), self.errors.get("levels_stderr")
        if self.rule != "gauss" or levels == 0:
            return 0.0
        known = self.nodes >= ENOUGH_NODES or self.errors.get("levels_windows")
        if levels is None or not known:
            return None
        noise = stderr if self.nodes >= ENOUGH_NODES and stderr is not None and math.isfinite(stderr) else 0.0
        return max(levels - NOISE * noise, 0.0) + LEAST_BIAS * abs(self.nats_per_token)

    def _error(self, number: float, stderr: float) -> float:
        """The standard error of a number that is proportional to nats per token, and in it the part of the quadrature."""
        return stderr + abs(number) * (self.quadrature or 0.0) / (abs(self.nats_per_token) or 1.0)

    @property
    def error_nats_per_token(self) -> float:
        """What is printed behind ±: the standard error and `quadrature`."""
        return self._error(self.nats_per_token, self.stderr_nats_per_token)

    @property
    def error_bits_per_byte(self) -> float | None:
        """The same for `bits_per_byte`."""
        return None if self.bits_per_byte is None else self._error(self.bits_per_byte, self.stderr_bits_per_byte)

    def to_json(self) -> dict[str, Any]:
        """Dict of every field as JSON values; a number that is not finite becomes None (JSON has no infinity)."""
        return finite(dataclasses.asdict(self))

    def write_json(self, path: str | os.PathLike) -> None:
        """Writes `to_json` to `path` atomically."""
        write_json(path, self.to_json())

    def caution(self) -> str:
        """One line where there are too few nodes: the error of the quadrature, beyond the noise of its estimate, exceeds `MOST_BIAS` of
        the bound, or cannot be estimated. Else empty."""
        levels, stderr = self.errors["levels"], self.errors["levels_stderr"]
        if self.errors.get("levels_windows") and not math.isfinite(stderr):
            stderr = 0.0
        if self.rule != "gauss" or (levels is None and self.nodes > 2):
            return ""
        if levels is None:
            more = f"give --nodes {NODES} (nodes={NODES} in Python) or more"
            return f"{self.nodes} node{'s' * (self.nodes > 1)} cannot estimate the error of the bound; {more}"
        if not levels - NOISE * stderr > MOST_BIAS * abs(self.nats_per_token):
            return ""
        share = levels / abs(self.nats_per_token) if self.nats_per_token else math.inf
        return (
            f"{self.nodes} nodes are too few for this text: their error may be {share:.1%} of the bound; "
            f"give --nodes {max(2 * self.nodes, NODES)}, or --rule stratified, which has no bias (nodes=, rule= in Python)"
        )

    def accuracy(self) -> str:
        """One line on the quadrature: how far it may be off, how that is known and what it cost. Empty where nothing is integrated."""
        if self.rule != "gauss":
            return "quadrature: times are drawn, so it has no bias" if self.rule in ("stratified", "count") else ""
        nodes, quadrature, windows = f"{self.nodes} node{'s' * (self.nodes > 1)}", self.quadrature, self.errors.get("levels_windows")
        if not quadrature:
            return f"quadrature: {nodes}, " + (
                "whose error is not known" if quadrature is None else "all levels of the process: it is exact"
            )
        how = "an estimate from the integrand at these nodes, without further passes"
        if windows:
            how = (
                f"the difference from {REFERENCE_NODES} nodes is {self.errors['levels']:.4f} ± {self.errors['levels_stderr']:.4f} on "
                f"{windows} windows, for {REFERENCE_NODES} network passes each"
            )
        return f"quadrature: {nodes}, within {quadrature:.4f} nats/token of the integral, which ± contains ({how})"

    def summary(self) -> str:
        """One line for people; ± holds the standard error and `quadrature`."""
        parts = [f"{self.nats_per_token:.4f} ± {self.error_nats_per_token:.4f} nats/token"]
        if self.bits_per_byte is not None:
            parts.append(f"{self.bits_per_byte:.4f} ± {self.error_bits_per_byte:.4f} bits/byte")
        parts.append(f"perplexity {self.perplexity:.2f} ± {self.perplexity * self.error_nats_per_token:.2f}")
        name = "NELBO" if self.is_bound else "loss (not a bound)"
        if self.likelihood != "nelbo":
            name = f"-log p, {self.likelihood}"
        return f"{name} {self.sign} " + ", ".join(parts) + f"  ({self.tokens:,} tokens, {self.windows:,} windows of {self.length})"


def ratio_with_error(numerator_W: np.ndarray, denominator_W: np.ndarray) -> tuple[float, float]:
    """sum(numerator) / sum(denominator) over windows and its standard error (linearised ratio estimator; nan for one window)."""
    windows, total = len(numerator_W), float(denominator_W.sum())
    ratio = float(numerator_W.sum()) / total
    if windows < 2:
        return ratio, math.nan
    residual_W = numerator_W - ratio * denominator_W
    return ratio, math.sqrt(windows / (windows - 1) * float(np.sum(residual_W**2))) / total


def of_mixture(results: Sequence[LikelihoodResult], measured: Sequence[Measured], shares: Sequence[float | int]) -> LikelihoodResult:
    """The likelihood of text drawn from several corpora, each token from corpus c with probability `shares[c]`.

    Nats per token and their terms are weighted means of those of the corpora. Bits per byte are the mixture's nats over its bytes. The
    corpora are strata: errors cover the windows within each. The entries of `errors` are None.
    """
    share_C = np.asarray(shares, np.float64) / sum(shares)
    tokens = [each.tokens_W for each in measured]
    nats, error = _ratio_of_mixture([each.nats_W for each in measured], tokens, tokens, share_C)
    noise = per_byte = byte_error = None
    if all(result.stderr_noise_nats_per_token is not None for result in results):
        noise = math.hypot(*(share * result.stderr_noise_nats_per_token for share, result in zip(share_C, results, strict=True)))
    if all(result.bits_per_byte is not None for result in results):
        sizes = [each.bytes_W for each in measured]
        per_byte, byte_error = (
            value / math.log(2) for value in _ratio_of_mixture([each.nats_W for each in measured], sizes, tokens, share_C)
        )
    perplexity = math.exp(nats) if nats < 700 else math.inf

    def mean(name: str) -> float:
        return float(sum(share * getattr(result, name) for share, result in zip(share_C, results, strict=True)))

    levels = [
        {**nodes[0], "nats_per_token": float(sum(share * node["nats_per_token"] for share, node in zip(share_C, nodes, strict=True)))}
        for nodes in zip(*(result.levels for result in results), strict=True)
    ]
    return dataclasses.replace(
        results[0],
        nats_per_token=nats,
        stderr_nats_per_token=error,
        stderr_noise_nats_per_token=noise,
        bits_per_byte=per_byte,
        stderr_bits_per_byte=byte_error,
        perplexity=perplexity,
        stderr_perplexity=perplexity * error,
        **{name: mean(name) for name in (f"{part}_nats_per_token" for part in ("diffusion", "prior", "reconstruction"))},
        tokens=sum(result.tokens for result in results),
        bytes=None if per_byte is None else sum(result.bytes for result in results),
        windows=sum(result.windows for result in results),
        levels=tuple(levels),
        errors=dict.fromkeys(results[0].errors),
    )


def _ratio_of_mixture(numerators: Sequence, denominators: Sequence, tokens: Sequence, share_C: np.ndarray) -> tuple[float, float]:
    """(ratio, standard error) of two sums per token of a mixture, from those of the windows of each corpus. Of one corpus that is
    `ratio_with_error`."""
    per_token_C = [share / float(tokens_W.sum()) for share, tokens_W in zip(share_C, tokens, strict=True)]
    top, bottom = (sum(c * float(sum_W.sum()) for c, sum_W in zip(per_token_C, sums, strict=True)) for sums in (numerators, denominators))
    ratio, variance = top / bottom, 0.0
    for c, numerator_W, denominator_W, tokens_W in zip(per_token_C, numerators, denominators, tokens, strict=True):
        residual_W = numerator_W - ratio * denominator_W
        _, error = ratio_with_error(residual_W, tokens_W)
        variance += (c * error * float(tokens_W.sum())) ** 2
    return ratio, math.sqrt(variance) / bottom


def error_parts(measured: Measured, rule: str, draws: int) -> dict[str, float | None]:
    """The causes of the error of nats per token, in nats per token; see the top of this file."""
    tokens, whole = float(measured.tokens_W.sum()), ratio_with_error(measured.nats_W, measured.tokens_W)[1]
    if rule == "exact":
        return {"sequences": whole, "masks": 0.0, "levels": 0.0, "levels_stderr": None, "levels_windows": None}
    noise = None if draws < 2 else float(np.sqrt(np.sum(measured.nats_WD.var(axis=1, ddof=1) / draws))) / tokens
    nodes, levels, stderr = measured.grid.nodes, None, None
    read_W = np.zeros(0, bool) if measured.reference_W is None else np.isfinite(measured.reference_W)
    if rule == "gauss" and read_W.any():
        found_W = np.sum(measured.nats_WJD.mean(axis=2) * measured.grid.weight_J, axis=1)
        difference, stderr = ratio_with_error((found_W - measured.reference_W)[read_W], measured.tokens_W[read_W])
        levels = abs(difference)
    elif rule == "gauss" and measured.grid.spread_KJ is not None:
        nats_WJ = measured.nats_WJD.mean(axis=2)
        levels, stderr = _with_error(quadrature_error, nats_WJ @ measured.grid.spread_KJ.T, measured.tokens_W)
    elif rule != "gauss" and nodes > 1:
        # A level is uniform within its part, of width 1/J: slope^2 / (12 J^2) is the variance it brings to each part of a window.
        slope_WJ = np.gradient(measured.nats_WJD.mean(axis=2).sum(axis=0) / tokens, 1 / nodes)
        levels = float(np.sqrt(np.sum(slope_WJ**2) / (12 * nodes**4) / (len(measured.tokens_W) * draws)))
    masks = noise
    if noise is not None and rule != "gauss":
        masks = _rest(noise, levels or 0.0)
    sequences = None if noise is None else _rest(whole, noise)
    windows = int(read_W.sum()) if rule == "gauss" and read_W.any() else None
    return {"sequences": sequences, "masks": masks, "levels": levels, "levels_stderr": stderr, "levels_windows": windows}


def _with_error(function: Callable[[np.ndarray], float], sums_WK: np.ndarray, tokens_W: np.ndarray) -> tuple[float, float]:
    """(a function of sums per token, its standard error over windows by the delta method; nan for one window)."""
    mean_K = sums_WK.sum(axis=0) / float(tokens_W.sum())
    size = 1e-6 * float(np.abs(mean_K).max())
    if not size:
        return function(mean_K), 0.0
    slope_K = [(function(mean_K + move_K) - function(mean_K - move_K)) / (2 * size) for move_K in size * np.eye(len(mean_K))]
    return function(mean_K), ratio_with_error(sums_WK @ np.asarray(slope_K), tokens_W)[1]


def _rest(whole: float, part: float) -> float:
    """The rest of an error without an independent part; both are estimates, so at least 0."""
    return math.sqrt(max(whole**2 - part**2, 0.0))
