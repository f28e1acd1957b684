"""The likelihood bound of a held-out set, with error bars, as the same number on any mesh and with any batch size.

NELBO(x) = integral_0^1 L(t) dt + prior + reconstruction, in nats (MDLM 2406.07524; MD4 2406.04329).  A training loss is a very noisy
estimate of it; here the windows, the noise levels t and the masks are all fixed:
  - windows: every token of the split once, numbered; padding carries nothing;
  - t: a rule with `nodes` points.  "gauss" = Gauss-Legendre, the same nodes for every window: it removes nearly all variance over t;
    its bias is that of the quadrature (none for a polynomial of degree < 2 nodes); a process whose integrand has a logarithm at t = 0
    (`grid_power` > 1) has the nodes of a root of t, which takes the edge off it.  "stratified" = one uniform draw in each of
    `nodes` equal parts, from the window's own key: unbiased, a little noisier;
  - masks: drawn from fold_in(fold_in(key(seed), window), node * draws + draw): common random numbers, so two checkpoints, two batch
    sizes or two meshes are compared under the same noise.
Causal processes have an exact likelihood: one node, one draw, no noise.

Sums: per-token nats come to the host and are added per window in float64, in the order of the window's positions; windows are added
in the order of their numbers.  So batch size and mesh do not enter but through the network's own float32 arithmetic.

Standard errors: windows are the sampling unit.  nats/token and bits/byte are ratios of sums over windows, so their errors are those of
a ratio estimator (linearisation); perplexity follows by the delta method.  They cover both the choice of the held-out text and the
noise of the masks; `stderr_noise_nats_per_token` (draws > 1) is the part due to the masks alone.

Shapes: B windows in a batch, L length, V vocabulary, W windows in all, J nodes, D draws.  Units: nats, unless the name says bits.
"""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dlmjax.data.progress import Progress
from dlmjax.diffusion.objective import nats_at, reconstruction_nats
from dlmjax.diffusion.process import learned_of, row_keys, split_rows
from dlmjax.errors import InputError
from dlmjax.sampling.host import beside, fetch, send, write_atomically

RULES = ("gauss", "stratified")
_BOUNDARY = 1 << 20  # tag of the draws of z_0 in the window's key: beyond any node * draws + draw


@dataclasses.dataclass(frozen=True)
class LikelihoodResult:
    """What an evaluation found.  All per-token numbers divide by every evaluated token (EOS included, padding not).

    nats_per_token = diffusion + prior + reconstruction; bits_per_byte divides by the UTF-8 bytes of exactly these tokens (None without
    byte lengths); perplexity = exp(nats_per_token).  is_bound: False where the process's loss is no likelihood bound.
    levels: one entry per node: `t`, `weight`, and `nats_per_token`, the integrand L(t) there (mean t for "stratified").
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
    levels: tuple[dict[str, float], ...]

    def to_json(self) -> dict[str, Any]:
        """JSON-ready dict of every field; a number that is not finite becomes None (JSON has no infinity)."""
        return _finite(dataclasses.asdict(self))

    def write_json(self, path: str | os.PathLike) -> None:
        """Writes `to_json` to `path` in one move: a reader never sees half a file."""
        write_atomically(path, json.dumps(self.to_json(), indent=2, allow_nan=False) + "\n")

    def summary(self) -> str:
        """One line for people."""
        sign = "=" if self.rule == "exact" or not self.is_bound else "<="
        parts = [f"{self.nats_per_token:.4f} ± {self.stderr_nats_per_token:.4f} nats/token"]
        if self.bits_per_byte is not None:
            parts.append(f"{self.bits_per_byte:.4f} ± {self.stderr_bits_per_byte:.4f} bits/byte")
        parts.append(f"perplexity {self.perplexity:.2f} ± {self.stderr_perplexity:.2f}")
        name = "NELBO" if self.is_bound else "loss (not a bound)"
        return f"{name} {sign} " + ", ".join(parts) + f"  ({self.tokens:,} tokens, {self.windows:,} windows of {self.length})"


class Evaluator:
    """Evaluates one process and network under one fixed grid.  Compiles on first use; keep it and call it with new params.

    process: see `dlmjax.diffusion`.  bind(params, segments_BL, positions_BL, attention=...) -> denoiser with `hidden`, `row_losses`.
    nodes, draws, rule, seed: the grid (module docstring); cost = nodes * draws forward passes per window, one for causal processes,
    and `draws` more where the process has boundary terms.
    put_batch: turns a host batch (dict of numpy) into device arrays, e.g. `partition.put_batch`; default: the default device.
    self_condition: denoise twice, with the first estimate as a hint: twice the cost, for networks that were trained so.
    """

    def __init__(
        self,
        process,
        bind: Callable[..., Any],
        *,
        nodes: int = 8,
        draws: int = 1,
        rule: str = "gauss",
        seed: int = 0,
        put_batch: Callable[[dict], dict] | None = None,
        self_condition: bool = False,
    ):
        if rule not in RULES:
            raise InputError(f"unknown rule {rule!r} for the noise levels of an evaluation; the rules are {', '.join(RULES)}")
        if nodes < 1 or draws < 1:
            raise InputError(f"an evaluation needs at least one node and one draw, not {nodes} and {draws}")
        if nodes * draws >= _BOUNDARY:
            raise InputError(f"nodes x draws is {nodes * draws}; it must stay below {_BOUNDARY}")
        self.name, self.bind, self.seed = process.name, bind, seed
        self.process = process.bound  # training may draw its noise in another way
        self.exact = process.attention == "causal"
        self.rule, self.nodes, self.draws = ("exact", 1, 1) if self.exact else (rule, nodes, draws)
        self.self_condition = self_condition
        self.levels = _levels(self.rule, self.nodes, self.process.grid_power)
        self._put_batch = put_batch or jax.device_put
        self._node = jax.jit(self._node_nats)
        self._ends = jax.jit(self._boundary_nats)

    def __call__(
        self,
        params,
        batches: Iterable[dict[str, np.ndarray]],
        *,
        byte_lengths_V: np.ndarray | None = None,
        total: int | None = None,
        step: int = 0,
        weights: str = "raw",
        split: str = "",
        progress: bool = False,
    ) -> LikelihoodResult:
        """Evaluates every window of `batches`.

        batches: dicts with "tokens", "segments", "positions" [B, L] and "row" [B], the window numbers; rows whose segments are all 0
          are padding; a batch smaller than the first is padded.
        byte_lengths_V: UTF-8 bytes per token id, for bits per byte.  progress: shows a bar if `total`, the number of windows, is given.
        step, weights ("ema" or "raw"), split: recorded in the result.

        Raises InputError when there is nothing to evaluate, a window comes twice, or a token lies outside the vocabulary.
        """
        rows, size = [], None
        with Progress(total or 0, f"evaluating {split}".strip(), " windows", show=None if progress and total else False) as bar:
            for batch in batches:
                size = size or len(batch["row"])
                rows.extend(self._batch_rows(params, _padded(batch, size), byte_lengths_V))
                bar.reach(len(rows))
        if not rows:
            raise InputError(f"the split {split or 'to evaluate'} holds no tokens; nothing to evaluate")
        rows.sort(key=lambda row: row.window)
        for before, after in zip(rows, rows[1:], strict=False):
            if before.window == after.window:
                raise InputError(f"window {after.window} comes twice in the batches to evaluate; each must have its own row number")
        return self._result(rows, step, weights, split, with_bytes=byte_lengths_V is not None)

    # --- on the device ------------------------------------------------------------------------------------------------------

    def _keys(self, row_B, tag):
        keys_B = row_keys(jax.random.key(self.seed), row_B)
        return jax.vmap(jax.random.fold_in, (0, None))(keys_B, tag)

    def _node_nats(self, params, batch, low, width, tag) -> Float[jax.Array, "B L"]:
        """The loss at t = low + width * u for every token, 0 where nothing is carried.  `tag` numbers the draw."""
        time_keys_B, mask_keys_B = split_rows(self._keys(batch["row"], tag))
        t_B = low + width * jax.vmap(jax.random.uniform)(time_keys_B)
        t_BL = jnp.broadcast_to(t_B[:, None], batch["tokens"].shape)
        tokens_BL, segments_BL, learned = batch["tokens"], batch["segments"], learned_of(params)
        denoiser = self._denoiser(params, batch)
        return nats_at(self.process, denoiser, tokens_BL, segments_BL, mask_keys_B, t_BL, learned, self.self_condition)

    def _boundary_nats(self, params, batch, tag) -> tuple[Float[jax.Array, "B L"], Float[jax.Array, "B L"]]:
        """(prior, reconstruction) of every token; z_0 = corrupt(x, t=0)."""
        tokens_BL, real_BL, learned = batch["tokens"], batch["segments"] > 0, learned_of(params)
        prior_BL = jnp.where(real_BL, self.process.given(learned).prior_nats(tokens_BL), 0.0)
        keys_B = self._keys(batch["row"], tag)
        return prior_BL, reconstruction_nats(self.process, self._denoiser(params, batch), tokens_BL, real_BL, keys_B, learned)[1]

    def _denoiser(self, params, batch):
        return self.bind(params, batch["segments"], batch["positions"], attention=self.process.attention)

    # --- on the host --------------------------------------------------------------------------------------------------------

    def _batch_rows(self, params, host_batch, byte_lengths_V) -> list["_WindowNats"]:
        """All nodes and draws of one batch, added up per window in float64."""
        if int(host_batch["tokens"].max()) >= self.process.vocab:
            raise InputError(
                f"the data holds token {int(host_batch['tokens'].max())}, but the model's vocabulary has {self.process.vocab}; "
                "it was prepared with another tokenizer"
            )
        batch, place = self._put_batch(host_batch), beside(params)
        nodes = []
        for j, (low, width, _) in enumerate(self.levels):
            for d in range(self.draws):
                traced = send((np.float32(low), np.float32(width), np.uint32(j * self.draws + d)), place)
                nodes.append(self._node(params, batch, *traced))
        ends = []
        if self.process.has_boundary:
            ends = [self._ends(params, batch, send(np.uint32(_BOUNDARY + d), place)) for d in range(self.draws)]

        windows, tokens_BL, segments_BL = (fetch(batch[name]) for name in ("row", "tokens", "segments"))
        real_BL = segments_BL > 0
        nats_NB = np.stack([window_sums(n) for n in nodes])
        prior_B = window_sums(ends[0][0]) if ends else np.zeros(len(windows))
        reconstruction_DB = np.stack([window_sums(r) for _, r in ends]) if ends else np.zeros((self.draws, len(windows)))
        lengths = np.zeros(self.process.vocab, np.int64) if byte_lengths_V is None else np.asarray(byte_lengths_V, np.int64)
        bytes_B = np.where(real_BL, lengths[np.minimum(tokens_BL, len(lengths) - 1)], 0).sum(axis=1)
        return [
            _WindowNats(
                window=int(windows[b]),
                nats_JD=nats_NB[:, b].reshape(self.nodes, self.draws),
                prior=float(prior_B[b]),
                reconstruction_D=reconstruction_DB[:, b],
                tokens=int(real_BL[b].sum()),
                bytes=int(bytes_B[b]),
                length=tokens_BL.shape[1],
            )
            for b in range(len(windows))
            if real_BL[b].any()
        ]

    def _result(self, rows: list["_WindowNats"], step, weights, split, with_bytes: bool) -> LikelihoodResult:
        weight_J = np.array([weight for _, _, weight in self.levels])
        nats_WJD = np.stack([row.nats_JD for row in rows])
        reconstruction_WD = np.stack([row.reconstruction_D for row in rows])
        prior_W = np.array([row.prior for row in rows])
        tokens_W = np.array([row.tokens for row in rows], np.float64)
        bytes_W = np.array([row.bytes for row in rows], np.float64)
        diffusion_WD = np.sum(nats_WJD * weight_J[:, None], axis=1)
        nats_WD = diffusion_WD + reconstruction_WD + prior_W[:, None]
        nats_W, tokens = nats_WD.mean(axis=1), tokens_W.sum()
        per_token, error = ratio_with_error(nats_W, tokens_W)
        noise = None
        if self.draws > 1:
            noise = float(np.sqrt(np.sum(nats_WD.var(axis=1, ddof=1) / self.draws)) / tokens)
        per_byte = byte_error = None
        if with_bytes and bytes_W.sum() > 0:
            per_byte, byte_error = (value / math.log(2) for value in ratio_with_error(nats_W, bytes_W))
        perplexity = math.exp(per_token) if per_token < 700 else math.inf
        level_J = nats_WJD.mean(axis=2).sum(axis=0) / tokens
        return LikelihoodResult(
            nats_per_token=per_token,
            stderr_nats_per_token=error,
            stderr_noise_nats_per_token=noise,
            bits_per_byte=per_byte,
            stderr_bits_per_byte=byte_error,
            perplexity=perplexity,
            stderr_perplexity=perplexity * error,
            diffusion_nats_per_token=float(diffusion_WD.mean(axis=1).sum() / tokens),
            prior_nats_per_token=float(prior_W.sum() / tokens),
            reconstruction_nats_per_token=float(reconstruction_WD.mean(axis=1).sum() / tokens),
            tokens=int(tokens),
            bytes=int(bytes_W.sum()) if with_bytes else None,
            windows=len(rows),
            length=max(row.length for row in rows),
            process=self.name,
            is_bound=bool(self.process.is_bound),
            rule=self.rule,
            nodes=self.nodes,
            draws=self.draws,
            seed=self.seed,
            step=int(step),
            weights=weights,
            split=split,
            levels=tuple(
                {"t": float(low + width / 2), "weight": float(weight), "nats_per_token": float(nats)}
                for (low, width, weight), nats in zip(self.levels, level_J, strict=True)
            ),
        )


def evaluate_nelbo(
    process,
    bind: Callable[..., Any],
    params,
    batches: Iterable[dict[str, np.ndarray]],
    *,
    nodes: int = 8,
    draws: int = 1,
    rule: str = "gauss",
    seed: int = 0,
    put_batch: Callable[[dict], dict] | None = None,
    **call,
) -> LikelihoodResult:
    """One evaluation; see `Evaluator` for the grid and `Evaluator.__call__` for the rest.  Compiles on every call."""
    return Evaluator(process, bind, nodes=nodes, draws=draws, rule=rule, seed=seed, put_batch=put_batch)(params, batches, **call)


def ratio_with_error(numerator_W: np.ndarray, denominator_W: np.ndarray) -> tuple[float, float]:
    """sum(numerator) / sum(denominator) over windows and its standard error (linearised ratio estimator; nan for one window)."""
    windows, total = len(numerator_W), float(denominator_W.sum())
    ratio = float(numerator_W.sum()) / total
    if windows < 2:
        return ratio, math.nan
    residual_W = numerator_W - ratio * denominator_W
    return ratio, math.sqrt(windows / (windows - 1) * float(np.sum(residual_W**2))) / total


@dataclasses.dataclass(frozen=True)
class _WindowNats:
    """What one window gave: nats, summed over its tokens."""

    window: int
    nats_JD: np.ndarray
    prior: float
    reconstruction_D: np.ndarray
    tokens: int
    bytes: int
    length: int


def _levels(rule: str, nodes: int, power: float) -> list[tuple[float, float, float]]:
    """(low, width, weight) per node: t = low + width * u with u uniform. Gauss-Legendre nodes are those of t^(1/power)."""
    if rule == "exact":
        return [(0.5, 0.0, 1.0)]
    if rule == "stratified":
        return [(j / nodes, 1 / nodes, 1 / nodes) for j in range(nodes)]
    points, weights = np.polynomial.legendre.leggauss(nodes)
    root_J, weight_J = 0.5 * (points + 1), 0.5 * weights
    return [(float(u**power), 0.0, float(w * power * u ** (power - 1))) for u, w in zip(root_J, weight_J, strict=True)]


def _padded(batch: dict[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
    """The batch's four arrays, with rows of padding (segment 0) up to `size`."""
    missing = max(size - len(batch["row"]), 0)
    names = ("tokens", "segments", "positions", "row")
    return {name: np.concatenate([batch[name], np.zeros((missing, *batch[name].shape[1:]), batch[name].dtype)]) for name in names}


def window_sums(nats_BL) -> np.ndarray:
    """Nats of each window, added on the host in float64.  -> [B]"""
    return fetch(nats_BL).astype(np.float64).sum(axis=1)


def _finite(value):
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value
