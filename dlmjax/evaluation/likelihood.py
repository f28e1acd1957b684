"""The likelihood bound of a held-out set, with error bars; the number is the same on any mesh and with any batch size.

NELBO(x) = integral_0^1 L(t) dt + prior + reconstruction, in nats (MDLM 2406.07524; MD4 2406.04329).  A training loss is a very noisy
estimate of it; here the windows, the times t and the masks are all fixed:
  - windows: every token of the split once, numbered; padding has no loss. Tokens that are not scored ("scored" is False) are clean context,
    at t = 0: the bound is then that of the scored tokens, conditioned on them;
  - t: a rule with `nodes` points.  "gauss" = Gauss-Radau nodes where the process's integrand needs them (levels.py), the same for every
    window: it removes nearly all variance over t; its bias is that of the quadrature, which the result estimates.  "stratified" = one
    uniform draw in each of `nodes` equal parts, from the window's own key: unbiased, a little noisier.  "count" = the k-form (RADD
    2406.03736), for masked processes: exactly k of a window's n scored tokens are masked, n/k times their cross-entropy, with k drawn once
    in each of `nodes` equal parts of 1 .. n: unbiased, without the noise of the number of masks;
  - masks: drawn from fold_in(fold_in(key(seed), window), node * draws + draw): common random numbers, so two checkpoints, two batch
    sizes or two meshes are compared under the same noise.
Causal processes have an exact likelihood: one node, one draw, no noise.

Sums: the host adds per-token nats of a window in float64, in the order of their positions, and windows in the order of their numbers.  So
batch size and mesh change only the rounding of the network's float32 arithmetic. Errors: see `result`.

Shapes: B windows in a batch, L length, V vocabulary, W windows in all, J nodes, D draws.  Units: nats, unless the name says bits.
"""

import abc
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from dlmjax.data.roles import is_filled
from dlmjax.data.supervised import is_scored
from dlmjax.diffusion.objective import nats_at, reconstruction_nats
from dlmjax.diffusion.process import Process, bind_process, row_keys, split_rows
from dlmjax.errors import InputError
from dlmjax.evaluation.levels import LevelGrid, level_grid
from dlmjax.evaluation.result import LikelihoodResult, Measured, error_parts, ratio_with_error
from dlmjax.parallel.arrays import device_get, device_put, replicated_like
from dlmjax.progress import Progress
from dlmjax.quadrature import ENOUGH_NODES, MOST_CALLS, NODES, REFERENCE_NODES, REFERENCE_WINDOWS, check_quadrature
from dlmjax.seeds import check_seed


@dataclasses.dataclass(frozen=True)
class PairedNats:
    """The bound's integrand of every token at the nodes of an evaluation, under two independent draws of noise at the same times.

    t_J, weight_J: of the nodes.  nats_2JBL: 0 without loss.
    """

    t_J: Float[np.ndarray, "J"]
    weight_J: Float[np.ndarray, "J"]
    nats_2JBL: Float[np.ndarray, "2 J B L"]


@dataclasses.dataclass(frozen=True)
class TokenNats:
    """The bound of every token of a batch, on the host: integrated over t, averaged over draws. 0 where `scored_BL` is False.

    counted_BL: scored tokens of the text itself; the others are of a tail, whose nats belong to the bound of the text before it.
    paired: measures the batch once more under a second draw at each node, at the cost of one network call each; None where the times of an
    evaluation are drawn.
    """

    window_B: Int[np.ndarray, "B"]
    tokens_BL: Int[np.ndarray, "B L"]
    scored_BL: Bool[np.ndarray, "B L"]
    counted_BL: Bool[np.ndarray, "B L"]
    nats_BL: Float[np.ndarray, "B L"]
    paired: Callable[[], PairedNats] | None = None


@dataclasses.dataclass(frozen=True)
class BatchNats:
    """Nats of a batch on the host, summed over the tokens of each window; see `Measured`.

    of_tokens: the nats of every token [B, L].  calls_B: network calls that each window took.
    paired: see `TokenNats`.
    """

    nats_BJD: Float[np.ndarray, "B J D"]
    prior_B: Float[np.ndarray, "B"]
    reconstruction_BD: Float[np.ndarray, "B D"]
    of_tokens: Callable[[], Float[np.ndarray, "B L"]]
    calls_B: Int[np.ndarray, "B"]
    paired: Callable[[], PairedNats] | None = None


@runtime_checkable
class Observer(Protocol):
    """Receives the nats of single tokens, of which a result holds only sums over windows."""

    def see(self, batch: TokenNats) -> None:
        """Receives one batch; batches come in any order, rows of padding have no scored token."""
        ...


class WindowEvaluator(abc.ABC):
    """Abstract: the nats of every window of a text, batch after batch, and their sums with errors. Compiles on first use; keep it and call
    it with new params.

    A subclass sets what is below and defines `_grid_of` and `_batch_nats`.

    process, bind: as for `Evaluator`; name: of the process.  likelihood: the name of the number ("nelbo", "order:confidence", ...).
    rule, nodes, draws, seed: see `Evaluator`; rule "exact": a likelihood without noise; "tube": a bound on its other side.
    put_batch: puts a host batch (dict of numpy) on the devices.
    """

    likelihood = "nelbo"
    process: Process
    bind: Callable[..., Any]
    name: str
    rule: str
    nodes: int
    draws: int
    seed: int
    put_batch: Callable[[dict], dict]

    @abc.abstractmethod
    def _grid_of(self, params) -> LevelGrid:
        """The levels of an evaluation under these params."""

    @abc.abstractmethod
    def _batch_nats(self, params, grid: LevelGrid, batch: dict) -> "BatchNats":
        """The nats of one batch, which is on the devices."""

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
        observers: Sequence[Observer] = (),
    ) -> LikelihoodResult:
        """Evaluates every window of `batches`: `measure`, then `result`; their arguments."""
        measured = self.measure(
            params, batches, byte_lengths_V=byte_lengths_V, total=total, split=split, progress=progress, observers=observers
        )
        return self.result(measured, step=step, weights=weights, split=split)

    def measure(
        self,
        params,
        batches: Iterable[dict[str, np.ndarray]],
        *,
        byte_lengths_V: np.ndarray | None = None,
        total: int | None = None,
        split: str = "",
        progress: bool = False,
        observers: Sequence[Observer] = (),
    ) -> Measured:
        """Sums of nats of every window of `batches`.

        batches: dicts with "tokens", "segments", "positions" [B, L] and "row" [B], the window numbers; rows whose segments are all 0
          are padding; a batch smaller than the first is padded. "scored" [B, L] (optional) is False for tokens of the context; without
          it "roles" [B, L] (optional, `data/roles.py`) says which are scored. "counted" [B, L] (optional) is False for scored tokens of a
          tail: their nats count, they do not. -log p(text) <= -log p(text, tail), so the sum stays a bound.
        byte_lengths_V: UTF-8 bytes per token id, for bits per byte.  progress: shows a bar if `total`, the number of windows, is set.
        split: name of the text in messages.  observers: receive the nats of every token.

        Raises InputError: no window, the same window twice, a token outside the vocabulary.
        """
        rows, size, grid = [], None, self._grid_of(params)
        with Progress(total or 0, f"evaluating {split}".strip(), " windows", show=None if progress and total else False) as bar:
            for batch in batches:
                size = size or len(batch["row"])
                rows.extend(self._batch_rows(params, grid, _padded(batch, size), byte_lengths_V, observers))
                bar.reach(len(rows))
        if not rows:
            raise InputError(f"the split {split or 'to evaluate'} holds no tokens; an evaluation requires at least one")
        rows.sort(key=lambda row: row.window)
        for before, after in zip(rows, rows[1:], strict=False):
            if before.window == after.window:
                raise InputError(f"window {after.window} comes twice in the batches to evaluate; each requires its own row number")
        return Measured(
            window_W=np.array([row.window for row in rows]),
            nats_WJD=np.stack([row.nats_JD for row in rows]),
            grid=grid,
            prior_W=np.array([row.prior for row in rows]),
            reconstruction_WD=np.stack([row.reconstruction_D for row in rows]),
            tokens_W=np.array([row.tokens for row in rows]),
            bytes_W=None if byte_lengths_V is None else np.array([row.bytes for row in rows]),
            length=max(row.length for row in rows),
            calls=float(np.mean([row.calls for row in rows])),
        )

    def _batch_rows(self, params, grid: LevelGrid, host_batch, byte_lengths_V, observers) -> list["_WindowNats"]:
        """Sums over one batch, per window, in float64."""
        if int(host_batch["tokens"].max()) >= self.process.vocab:
            raise InputError(
                f"the data holds token {int(host_batch['tokens'].max())}, the model's vocabulary {self.process.vocab} ids; "
                "prepare it with the tokenizer of the run"
            )
        batch = self.put_batch(host_batch)
        found = self._batch_nats(params, grid, batch)
        window_B, tokens_BL, scored_BL, counted_BL = (device_get(batch[name]) for name in ("row", "tokens", "scored", "counted"))
        if observers:
            seen = TokenNats(window_B, tokens_BL, scored_BL, counted_BL, found.of_tokens(), found.paired)
            for observer in observers:
                observer.see(seen)
        bytes_B = np.where(counted_BL, bytes_of(tokens_BL, self.process.vocab, byte_lengths_V), 0).sum(axis=1)
        return [
            _WindowNats(
                window=int(window_B[b]),
                nats_JD=found.nats_BJD[b],
                prior=float(found.prior_B[b]),
                reconstruction_D=found.reconstruction_BD[b],
                tokens=int(counted_BL[b].sum()),
                bytes=int(bytes_B[b]),
                length=tokens_BL.shape[1],
                calls=int(found.calls_B[b]),
            )
            for b in range(len(window_B))
            if counted_BL[b].any()
        ]

    def result(self, measured: Measured, *, step: int = 0, weights: str = "raw", split: str = "") -> LikelihoodResult:
        """The numbers of an evaluation. step, weights ("ema" or "raw"), split: recorded in the result."""
        nats_WD, nats_W, tokens = measured.nats_WD, measured.nats_W, int(measured.tokens_W.sum())
        per_token, error = ratio_with_error(nats_W, measured.tokens_W)
        noise = None
        if self.draws > 1:
            noise = float(np.sqrt(np.sum(nats_WD.var(axis=1, ddof=1) / self.draws)) / tokens)
        per_byte = byte_error = None
        if measured.bytes_W is not None and measured.bytes_W.sum() > 0:
            per_byte, byte_error = (value / math.log(2) for value in ratio_with_error(nats_W, measured.bytes_W))
        perplexity = math.exp(per_token) if per_token < 700 else math.inf
        grid, level_J = measured.grid, measured.nats_WJD.mean(axis=2).sum(axis=0) / tokens
        prior, reconstruction = measured.prior_W.sum() / tokens, measured.reconstruction_WD.mean(axis=1).sum() / tokens
        return LikelihoodResult(
            nats_per_token=per_token,
            stderr_nats_per_token=error,
            stderr_noise_nats_per_token=noise,
            bits_per_byte=per_byte,
            stderr_bits_per_byte=byte_error,
            perplexity=perplexity,
            stderr_perplexity=perplexity * error,
            diffusion_nats_per_token=float(level_J @ grid.weight_J),
            prior_nats_per_token=float(prior),
            reconstruction_nats_per_token=float(reconstruction),
            tokens=tokens,
            bytes=None if measured.bytes_W is None else int(measured.bytes_W.sum()),
            windows=len(nats_W),
            length=measured.length,
            process=self.name,
            is_bound=bool(self.process.capabilities.is_bound) or self.likelihood != "nelbo",
            rule=self.rule,
            nodes=self.nodes,
            draws=self.draws,
            seed=self.seed,
            step=int(step),
            weights=weights,
            split=split,
            likelihood=self.likelihood,
            calls_per_token=measured.calls,
            levels=tuple(
                {"t": float(low + width / 2), "weight": float(weight), "nats_per_token": float(nats)}
                for low, width, weight, nats in zip(grid.low_J, grid.width_J, grid.weight_J, level_J, strict=True)
            ),
            errors=error_parts(measured, self.rule, self.draws),
        )


class Evaluator(WindowEvaluator):
    """Evaluates one process and network under one fixed grid.  Compiles on first use; keep it and call it with new params.

    process: see `dlmjax.diffusion`.  bind(params, segments_BL, positions_BL, attention=...) -> denoiser with `hidden`, `row_losses`.
    nodes, draws, rule, seed: see the module docstring; cost = nodes * draws forward passes per window (`calls`), one for causal
    processes, fewer where a discrete-time process has fewer levels than nodes, and `draws` more where the process has boundary terms.
    put_batch: puts a host batch (dict of numpy) on the devices, e.g. `partition.put_batch`; default: the default device.
    self_condition: denoise twice, the second time conditioned on the first x0 prediction, for networks that were trained so: twice the
    cost.

    Raises InputError: an unknown rule; nodes, draws or seed out of range; rule "count" for a process without a k-form.
    """

    def __init__(
        self,
        process,
        bind: Callable[..., Any],
        *,
        nodes: int = NODES,
        draws: int = 1,
        rule: str = "gauss",
        seed: int = 0,
        put_batch: Callable[[dict], dict] | None = None,
        self_condition: bool = False,
    ):
        check_quadrature("Evaluator", rule, nodes, draws)
        check_seed(seed, "seed")
        self.name, self.bind, self.seed = process.name, bind, seed
        self.process = process.bound  # training may draw its noise in another way
        self.exact = process.attention.causal
        if rule == "count" and not self.exact:
            self.process = count_form(self.process)
        self.rule, self.draws = ("exact", 1) if self.exact else (rule, draws)
        self.self_condition = self_condition
        self._requested_nodes, self._grid = nodes, level_grid(self.process, self.rule, nodes)
        self.nodes = self._grid.nodes
        self._every = 0  # one of so many windows is also integrated with more nodes
        self.put_batch = put_batch or jax.device_put
        self._node = jax.jit(self._node_nats)
        self._ends = jax.jit(self._boundary_nats)

    def with_reference(self) -> "Evaluator":
        """This evaluator; where "gauss" has fewer than ENOUGH_NODES nodes, it now also integrates some windows with REFERENCE_NODES, by
        which a result says how far its quadrature is off: those below REFERENCE_WINDOWS, and as many more as cost no more than all with
        its own nodes."""
        # A sum over all the levels of a process in steps has no error.
        if self.rule == "gauss" and self.nodes < ENOUGH_NODES and self.nodes != self.process.time_domain.steps:
            self._every = -(-REFERENCE_NODES // (self.nodes * self.draws))
        return self

    @property
    def calls(self) -> int:
        """Network calls per window."""
        return self.draws * (self.nodes + self.process.boundary.reconstruction) * (1 + self.self_condition)

    def _grid_of(self, params) -> LevelGrid:
        bound = bind_process(self.process, params)
        return self._grid if bound.params is None else level_grid(bound, self.rule, self._requested_nodes)

    # --- on the device ------------------------------------------------------------------------------------------------------

    def _keys(self, row_B, tag):
        keys_B = row_keys(jax.random.key(self.seed), row_B)
        return jax.vmap(jax.random.fold_in, (0, None))(keys_B, tag)

    def _node_nats(self, params, batch, low, width, tag) -> Float[jax.Array, "B L"]:
        """The loss of every token at t = low + width * u, 0 without loss.  `tag` is the number of the draw."""
        time_keys_B, mask_keys_B = split_rows(self._keys(batch["row"], tag))
        t_B = low + width * jax.vmap(jax.random.uniform)(time_keys_B)
        t_BL = jnp.broadcast_to(t_B[:, None], batch["tokens"].shape)
        process, denoiser = bind_process(self.process, params), self._denoiser(params, batch)
        tokens_BL, segments_BL, scored_BL = batch["tokens"], batch["segments"], batch["scored"]
        return nats_at(process, denoiser, tokens_BL, segments_BL, mask_keys_B, t_BL, self.self_condition, scored_BL)

    def _boundary_nats(self, params, batch, tag) -> tuple[Float[jax.Array, "B L"], Float[jax.Array, "B L"]]:
        """(prior, reconstruction) of every token; z_0 = corrupt(x, t=0)."""
        tokens_BL, scored_BL, process = batch["tokens"], batch["scored"], bind_process(self.process, params)
        prior_BL = jnp.where(scored_BL, process.prior_nats(tokens_BL), 0.0)
        if not process.boundary.reconstruction:
            return prior_BL, jnp.zeros_like(prior_BL)
        keys_B = self._keys(batch["row"], tag)
        denoiser, valid_BL = self._denoiser(params, batch), batch["segments"] > 0
        return prior_BL, reconstruction_nats(process, denoiser, tokens_BL, valid_BL, keys_B, scored_BL)[1]

    def _denoiser(self, params, batch):
        denoiser = self.bind(params, batch["segments"], batch["positions"], attention=self.process.attention)
        return denoiser.with_tokens_per_time(batch["tokens"].shape[1])  # a row has one time, and 0 at tokens that condition the others

    # --- on the host --------------------------------------------------------------------------------------------------------

    def _batch_nats(self, params, grid: LevelGrid, batch: dict) -> "BatchNats":
        """Sums over all nodes and draws."""
        sharding, rows, nodes = replicated_like(params), len(batch["row"]), []
        for j, (low, width) in enumerate(zip(grid.low_J, grid.width_J, strict=True)):
            for d in range(self.draws):
                traced = device_put((np.float32(low), np.float32(width), np.uint32(j * self.draws + d)), sharding)
                nodes.append(self._node(params, batch, *traced))
        ends = []
        if self.process.boundary.any:
            # Their tags follow those of all nodes and draws.
            ends = [self._ends(params, batch, device_put(np.uint32(MOST_CALLS + d), sharding)) for d in range(self.draws)]
        nats_NB = np.stack([window_sums(n) for n in nodes])
        return BatchNats(
            nats_BJD=nats_NB.T.reshape(rows, self.nodes, self.draws),
            prior_B=window_sums(ends[0][0]) if ends else np.zeros(rows),
            reconstruction_BD=np.stack([window_sums(r) for _, r in ends], axis=1) if ends else np.zeros((rows, self.draws)),
            of_tokens=lambda: self._token_nats(grid, nodes, ends),
            calls_B=np.full(rows, self.calls),
            paired=functools.partial(self._paired, params, grid, batch, nodes[:: self.draws]) if not grid.width_J.any() else None,
        )

    def _paired(self, params, grid: LevelGrid, batch: dict, first: list) -> PairedNats:
        """The first draw of every node, and one more; an exact likelihood has no noise to draw again."""
        second, sharding = first, replicated_like(params)
        if not self.exact:
            second = []
            for j, low in enumerate(grid.low_J):
                # Their tags follow those of the boundary terms.
                traced = device_put((np.float32(low), np.float32(0), np.uint32(2 * MOST_CALLS + j)), sharding)
                second.append(self._node(params, batch, *traced))
        nats_2JBL = np.stack([np.stack([device_get(nats_BL).astype(np.float64) for nats_BL in nodes]) for nodes in (first, second)])
        return PairedNats(grid.low_J, grid.weight_J, nats_2JBL)

    def measure(self, params, batches: Iterable[dict[str, np.ndarray]], **options: Any) -> Measured:
        """As of every evaluator; then integrates some of the windows with more nodes (`with_reference`), chosen by their numbers."""
        if not self._every:
            return super().measure(params, batches, **options)
        read: dict[int, list[dict[str, np.ndarray]]] = {}
        sizes: list[int] = []
        measured = super().measure(params, self._noting(batches, read, sizes), **options)
        grid, nats = level_grid(bind_process(self.process, params), self.rule, REFERENCE_NODES), {}
        for parts in read.values():
            rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            for start in range(0, len(rows["row"]), sizes[0]):
                part = _padded({name: array[start : start + sizes[0]] for name, array in rows.items()}, sizes[0])
                found_B, scored_B = self._reference_nats(params, grid, self.put_batch(part)), part["scored"].any(axis=1)
                nats |= dict(zip(part["row"][scored_B].tolist(), found_B[scored_B], strict=True))
        return dataclasses.replace(measured, reference_W=np.array([nats.get(window, math.nan) for window in measured.window_W.tolist()]))

    def _noting(self, batches: Iterable[dict[str, np.ndarray]], read: dict[int, list[dict]], sizes: list[int]) -> Iterator[dict]:
        """The batches, whose windows to be integrated with more nodes are added to `read`, by their length, and their sizes to `sizes`."""
        for batch in batches:
            sizes.append(len(batch["row"]))
            chosen_B = (batch["row"] < REFERENCE_WINDOWS) | (batch["row"] % self._every == 0)
            whole = _with_masks(batch)
            read.setdefault(batch["tokens"].shape[1], []).append({name: array[chosen_B] for name, array in whole.items()})
            yield batch

    def _reference_nats(self, params, grid: LevelGrid, batch: dict) -> Float[np.ndarray, "B"]:
        """The integral of each window by the nodes of `grid`, one draw each, under noise of their own."""
        total_B, sharding = np.zeros(len(batch["row"])), replicated_like(params)
        # Their tags follow those of `_paired`.
        for j, (low, width, weight) in enumerate(zip(grid.low_J, grid.width_J, grid.weight_J, strict=True)):
            traced = device_put((np.float32(low), np.float32(width), np.uint32(3 * MOST_CALLS + j)), sharding)
            total_B += weight * window_sums(self._node(params, batch, *traced))
        return total_B

    def _token_nats(self, grid: LevelGrid, nodes: list, ends: list) -> Float[np.ndarray, "B L"]:
        """The bound of every token: integrated over t, averaged over draws, boundary terms included."""
        weights = np.repeat(grid.weight_J / self.draws, self.draws)
        total_BL = sum(weight * device_get(nats_BL).astype(np.float64) for weight, nats_BL in zip(weights, nodes, strict=True))
        for prior_BL, reconstruction_BL in ends:
            total_BL = total_BL + (device_get(prior_BL).astype(np.float64) + device_get(reconstruction_BL)) / self.draws
        return total_BL


def count_form(process: Process) -> Process:
    """The k-form of a process: the same network, scored under exact numbers of masks. Raises InputError for a process without one."""
    found = process.capabilities.count_form
    if found is None:
        raise InputError(f"rule=count requires a masked process, and process.name={process.name} has no k-form; give rule=gauss")
    return found


def evaluate_nelbo(
    process,
    bind: Callable[..., Any],
    params,
    batches: Iterable[dict[str, np.ndarray]],
    *,
    nodes: int = NODES,
    draws: int = 1,
    rule: str = "gauss",
    seed: int = 0,
    put_batch: Callable[[dict], dict] | None = None,
    **call,
) -> LikelihoodResult:
    """One evaluation; see `Evaluator` for the grid and `Evaluator.__call__` for the rest.  Compiles on every call."""
    return Evaluator(process, bind, nodes=nodes, draws=draws, rule=rule, seed=seed, put_batch=put_batch)(params, batches, **call)


@dataclasses.dataclass(frozen=True)
class _WindowNats:
    """Nats of one window, summed over its tokens. calls: network calls that it took."""

    window: int
    nats_JD: np.ndarray
    prior: float
    reconstruction_D: np.ndarray
    tokens: int
    bytes: int
    length: int
    calls: int


def _with_masks(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The batch's arrays with "scored", by default all tokens but padding, of supervised data those that are not given, and "counted", by
    default the scored ones that are not filled in."""
    scored_BL = batch.get("scored", is_scored(batch) if "roles" in batch else batch["segments"] > 0)
    counted_BL = batch.get("counted", scored_BL & ~is_filled(batch["roles"]) if "roles" in batch else scored_BL)
    return {name: batch[name] for name in ("tokens", "segments", "positions", "row")} | {"scored": scored_BL, "counted": counted_BL}


def _padded(batch: dict[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
    """The arrays of `_with_masks`, with rows of padding (segment 0) up to `size`."""
    missing = max(size - len(batch["row"]), 0)
    return {name: np.concatenate([array, np.zeros((missing, *array.shape[1:]), array.dtype)]) for name, array in _with_masks(batch).items()}


def bytes_of(tokens: Int[np.ndarray, "*n"], vocab: int, byte_lengths_V: np.ndarray | None) -> Int[np.ndarray, "*n"]:
    """UTF-8 bytes of each token; 0 without `byte_lengths_V`."""
    lengths = np.zeros(vocab, np.int64) if byte_lengths_V is None else np.asarray(byte_lengths_V, np.int64)
    return lengths[np.minimum(tokens, len(lengths) - 1)]


def window_sums(nats_BL) -> np.ndarray:
    """Sum of the nats of each window, on the host in float64.  -> [B]"""
    return device_get(nats_BL).astype(np.float64).sum(axis=1)
