"""log p(continuation | context) of a run, for multiple choice, last-word prediction and rolling likelihoods.

The context is clean in every pass.  The process decides between three forms:
  exact       causal processes: the chain rule, one pass of the network.
  counted     masked processes: the k-form of the bound (RADD 2406.03736 section 4; the estimator of LLaDA 2502.09992 appendix B.5).
                -log p(c | context) <= 1/n sum_{k=1..n} E_{masks of k of the n tokens} n/k sum of the cross-entropies of the masked
              It is the mean over all orders of writing the n tokens, whatever schedule trained the network.  A time-conditioned network
              receives the t at which its schedule masks the share k/n.  Block diffusion has this form in each block, conditioned on the
              clean text before the block; all blocks share a pass, and with blocks of one token the likelihood is exact.
  integrated  every other process: its own bound, integrated over t at the nodes of `levels.level_grid`, with its boundary terms; the
              context has t = 0.

Masks.  LLaDA draws k for every pass.  Here k is stratified, which removes the variance between values of k: with `draws` passes and n
tokens, each k has draws // n passes.  Where a k has no more masks than passes, each of its masks is used once: 127 passes score up to 7
tokens without noise (2^n - 1 <= draws).  Beyond draws / 2 tokens, k has draws // 2 strata with two draws each.  All these estimates are
unbiased.

Common random numbers: requests of one `group` (the choices of one question) draw from the same numbers.  Choices of one length share
every mask; choices of different lengths share the order in which their tokens are masked; `integrated` noise depends on the position in
the row.  A mask depends neither on the batch nor on the other requests.

Standard errors cover the masks (or noise) alone: they come from the variance inside the strata, and are 0 where nothing was drawn.

Batches: requests are sorted by length and padded to a few widths (four in each octave); the number of rows is a power of two times the
ways of the mesh. So one compiled function computes all requests of about one length.

Shapes: B rows, L width, T tokens of a request, C of its context, N of its continuation, D passes, S strata, V vocabulary.  Nats.
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from dlmjax import checks
from dlmjax.diffusion.objective import hint_of, with_condition
from dlmjax.diffusion.process import bind_process, cross_entropy, exclude, row_keys
from dlmjax.errors import InputError
from dlmjax.evaluation.levels import level_grid
from dlmjax.parallel.arrays import device_get
from dlmjax.progress import Progress
from dlmjax.quadrature import MOST_CALLS, NODES
from dlmjax.seeds import check_seed

NARROWEST = 4  # tokens of the narrowest rows, and the least by which widths differ


@dataclasses.dataclass(frozen=True)
class Request:
    """Token ids of a context (may be empty) and of its continuation.  group: requests with the same number share their noise."""

    context: np.ndarray
    continuation: np.ndarray
    group: int = 0

    @property
    def length(self) -> int:
        """Number of tokens of context and continuation."""
        return len(self.context) + len(self.continuation)


@dataclasses.dataclass(frozen=True)
class Score:
    """The log-likelihood of one continuation.

    log_likelihood: nats of all its tokens; a lower bound, exact for causal processes and for blocks of one token.
    stderr: standard error due to the masks alone, nats; 0 where none was drawn, nan where a stratum has one draw.
    passes: rows that the network read.
    """

    log_likelihood: float
    stderr: float
    tokens: int
    passes: int


@dataclasses.dataclass(frozen=True)
class Spent:
    """Cost of scoring.  tokens: tokens of the requests, counted once for each pass; slots: tokens and padding; shapes: (rows, width) of
    each compiled function; seconds: wall time, compilation included."""

    passes: int = 0
    tokens: int = 0
    slots: int = 0
    shapes: frozenset = frozenset()
    seconds: float = 0.0

    @property
    def padding(self) -> float:
        """Share of the slots that hold no token."""
        return 1 - self.tokens / self.slots if self.slots else 0.0

    def plus(self, other: "Spent") -> "Spent":
        """Sum of two costs."""
        sums = (getattr(self, name) + getattr(other, name) for name in ("passes", "tokens", "slots"))
        return Spent(*sums, self.shapes | other.shapes, self.seconds + other.seconds)


def split(context: np.ndarray, continuation: np.ndarray, longest: int, overlap: int = 1) -> list[tuple[np.ndarray, np.ndarray]]:
    """(context, continuation) in pieces of at most `longest` tokens, whose log-likelihoods add up to that of the whole.

    A request that fits is one piece.  A context that is too long is cut from the left.  A continuation of more than `longest` tokens
    loses its context and is read in windows: the first has no context, each later one `overlap` tokens of it, the last as many as fit.
    Every token is predicted once (the rule of lm-eval's rolling windows, where the overlap is one token).

    Raises InputError where the overlap leaves no token to predict.
    """
    if not 0 <= overlap < longest:
        raise InputError(f"an overlap of {overlap} tokens conflicts with windows of {longest} tokens; give a shorter --overlap")
    count = len(continuation)
    if count <= longest:
        return [(context[max(len(context) + count - longest, 0) :], continuation)]
    pieces, done = [(context[:0], continuation[:longest])], longest
    while done < count:
        new = min(count - done, longest - overlap)
        pieces.append((continuation[done + new - longest : done], continuation[done : done + new]))
        done += new
    return pieces


def row_width(length: int, longest: int, multiple: int = 1) -> int:
    """Width of the row that holds `length` tokens: one of four in each octave, a multiple of `multiple`, at most `longest`."""
    step = max(2 ** (max(length - 1, 1).bit_length() - 3), NARROWEST)
    width = -(-length // step) * step
    return min(-(-width // multiple) * multiple, longest)


class ConditionalScorer:
    """Scores continuations with one process and network.  Compiles on first use; keep it and call it with new params.

    process, bind: as for `likelihood.Evaluator`.  longest: width of the widest row, tokens; the training length.
    draws: passes for each request (the module's docstring); causal processes need one.  nodes: nodes of the quadrature over t of
      processes without masks; each has draws // nodes draws.  seed: seed of all masks.
    tokens: approximate number of tokens and padding in a batch.  put_batch: as for `Evaluator`; ways: the number of rows is a multiple
      of it.
    self_condition: denoise twice, the second time conditioned on the first x0 prediction.

    Raises InputError: draws or nodes out of range; a process whose loss is not a likelihood bound.
    """

    def __init__(
        self,
        process,
        bind: Callable[..., Any],
        *,
        longest: int,
        draws: int = 128,
        nodes: int = NODES,
        seed: int = 0,
        tokens: int = 8192,
        put_batch: Callable[[dict], dict] | None = None,
        ways: int = 1,
        self_condition: bool = False,
    ):
        checks.whole("ConditionalScorer", 1, MOST_CALLS - 1, draws=draws, nodes=nodes)
        check_seed(seed, "seed")
        self.process, self.bind, self.longest, self.draws, self.seed = process.bound, bind, longest, draws, seed
        self.self_condition, self._tokens, self._ways, self._put_batch = self_condition, tokens, ways, put_batch or jax.device_put
        self.block = self.process.attention.block_size
        self.form = "exact" if self.process.attention.causal else "counted" if self.process.capabilities.any_order else "integrated"
        if self.form == "integrated" and not self.process.capabilities.is_bound:
            raise InputError(f"the loss of process {process.name} is not a likelihood bound; scoring text requires one")
        self._rule = "gauss" if self.form == "integrated" else "exact"
        self._requested_nodes, self._grid = min(nodes, draws), level_grid(self.process, self._rule, min(nodes, draws))
        self.nodes = self._grid.nodes
        self.spent = Spent()
        self._masked, self._best, self._timed, self._boundary = (
            jax.jit(function) for function in (self._masked_nats, self._signed_best, self._time_nats, self._boundary_nats)
        )

    def __call__(self, params, requests: Sequence[Request], *, progress: bool = False) -> list[Score]:
        """The score of every request, in their order; the cost is added to `spent`.

        Raises InputError for a request that is longer than `longest` (see `split`) or holds an id outside the vocabulary.
        """
        self._check(requests)
        self._grid = level_grid(bind_process(self.process, params), self._rule, self._requested_nodes)
        nats, variance, passes = np.zeros(len(requests)), np.zeros(len(requests)), np.zeros(len(requests), int)
        stages = [(self._plan, self._timed if self.form == "integrated" else self._masked)]
        if self.form == "integrated" and self.process.boundary.any:
            stages.append((self._plan_boundary, self._boundary))
        with Progress(len(requests) * len(stages), "scoring", " requests", show=None if progress else False) as bar:
            done = 0
            for plan, function in stages:
                for index, planned, nats_DN in self._evaluated(params, requests, range(len(requests)), plan, function):
                    mean, spread = planned.total(nats_DN)
                    nats[index] += mean
                    variance[index] += spread
                    passes[index] += len(nats_DN)
                    done += 1
                    bar.reach(done)
        return [
            Score(-float(nats[i]) + 0.0, math.sqrt(variance[i]), len(request.continuation), int(passes[i]))
            for i, request in enumerate(requests)
        ]

    def greedy(self, params, requests: Sequence[Request]) -> list[bool]:
        """Whether deterministic decoding writes each continuation.

        exact: the most likely token at every index.  counted: decoding starts from as many masks as the continuation has tokens, so the
        network sees its length; each pass reveals the token with the highest probability (`Sampler` with order "confidence" and
        temperature 0; block after block where the process has blocks); a request costs passes up to its first mistake.  integrated:
        these processes have no deterministic decoding; always False.
        """
        self._check(requests)
        if self.form == "integrated":
            return [False] * len(requests)
        revealed = [np.zeros(len(request.continuation), bool) for request in requests]
        right = [True] * len(requests)
        unfinished = [i for i, request in enumerate(requests) if len(request.continuation)]

        def plan(request: Request, index: int) -> "_Passes":
            scored_N, noise_N = ~revealed[index], np.zeros(len(revealed[index]))
            for piece in self._pieces(request):
                noise_N[piece] = scored_N[piece].mean() * scored_N[piece]
            once = np.ones((1, scored_N.size))
            return _Passes(scored_N[None], noise_N[None], once, once.astype(int) - 1, np.ones(1), np.ones(1))

        while unfinished:
            for index, _, signed_DN in self._evaluated(params, requests, unfinished, plan, self._best):
                signed_N, pieces = signed_DN[0], self._pieces(requests[index])
                for piece in [[i] for i in range(signed_N.size)] if self.form == "exact" else pieces:
                    left = np.asarray([i for i in piece if not revealed[index][i]], int)
                    if left.size:
                        surest = left[np.argmax(np.abs(signed_N[left]))]
                        revealed[index][surest] = True
                        right[index] &= bool(signed_N[surest] > 0)
            unfinished = [i for i in unfinished if right[i] and not revealed[i].all()]
        return right

    # --- passes of a request --------------------------------------------------------------------------------------------------

    def _pieces(self, request: Request) -> list[np.ndarray]:
        """Indices of the continuation that are masked together: all, or those of each block."""
        index_N = np.arange(len(request.continuation))
        if self.block is None:
            return [index_N]
        return np.split(index_N, np.flatnonzero(np.diff((len(request.context) + index_N) // self.block)) + 1)

    def _plan(self, request: Request, index: int) -> "_Passes":
        count = len(request.continuation)
        if self.form == "exact":
            return _Passes(*(np.ones((1, count), kind) for kind in (bool, float, float)), np.zeros((1, count), int), np.ones(1), np.ones(1))
        if self.form == "counted":
            return self._plan_masks(request)
        grid, each = self._grid, self.draws // self.nodes
        t_D = np.repeat(grid.low_J, each)
        stratum_DN = np.repeat(np.arange(self.nodes), each)[:, None] + np.zeros(count, int)
        shape = stratum_DN.shape
        zeros = np.zeros(self.nodes)
        return _Passes(np.ones(shape, bool), t_D[:, None] + np.zeros(count), np.ones(shape), stratum_DN, grid.weight_J, zeros)

    def _plan_boundary(self, request: Request, index: int) -> "_Passes":
        draws = max(self.draws // self.nodes, 1) if self.process.boundary.reconstruction else 1
        shape, certain = (draws, len(request.continuation)), not self.process.boundary.reconstruction
        ones = np.ones(shape)
        return _Passes(ones > 0, 0 * ones, ones, np.zeros(shape, int), np.ones(1), np.full(1, certain), first=MOST_CALLS)

    def _plan_masks(self, request: Request) -> "_Passes":
        """The k-form in every piece: pass d applies draw d of each piece, and masks nothing of a piece that has fewer draws."""
        pieces = self._pieces(request)
        source = np.random.Philox(key=np.asarray([self.seed, request.group], np.uint64))
        # One row of numbers for each token, and one for each piece: a longer choice begins with the numbers of a shorter one.
        queue_ND = np.random.Generator(source).random((len(request.continuation), self.draws))
        chance_PD = np.random.Generator(source.jumped()).random((len(pieces), self.draws))
        drawn = [draw_masks(len(piece), self.draws, queue_ND[piece], chance_D) for piece, chance_D in zip(pieces, chance_PD, strict=True)]
        shape = max(len(masks.masked_DN) for masks in drawn), len(request.continuation)
        scored_DN, noise_DN, weight_DN, stratum_DN = (np.zeros(shape, kind) for kind in (bool, float, float, int))
        strata = 0
        for piece, masks in zip(pieces, drawn, strict=True):
            rows = np.ix_(range(len(masks.masked_DN)), piece)
            share_D1 = masks.masked_DN.mean(axis=1, keepdims=True)
            scored_DN[rows] = masks.masked_DN
            noise_DN[rows], weight_DN[rows] = masks.masked_DN * share_D1, masks.masked_DN / share_D1
            stratum_DN[rows] = masks.stratum_D[:, None] + strata
            strata += len(masks.share_S)
        share_S, whole_S = (np.concatenate([getattr(masks, name) for masks in drawn]) for name in ("share_S", "whole_S"))
        return _Passes(scored_DN, noise_DN, weight_DN, stratum_DN, share_S, whole_S)

    def _check(self, requests: Sequence[Request]) -> None:
        for request in requests:
            if request.length > self.longest:
                raise InputError(f"a request has {request.length} tokens, a row at most {self.longest}; cut it with `split`")
            tokens_T = np.concatenate([request.context, request.continuation])
            if tokens_T.size and not 0 <= tokens_T.min() <= tokens_T.max() < self.process.vocab:
                raise InputError(
                    f"a request has token ids from {tokens_T.min()} to {tokens_T.max()}, the model's vocabulary {self.process.vocab} "
                    "ids; encode the text with the tokenizer of the run"
                )

    # --- batches --------------------------------------------------------------------------------------------------------------

    def _rows_of(self, width: int) -> int:
        return self._ways * 2 ** max(self._tokens // (width * self._ways), 1).bit_length() // 2

    def _evaluated(self, params, requests, indices: Iterable[int], plan, function) -> Iterator[tuple[int, "_Passes", np.ndarray]]:
        """(index, its passes, values of every token of every pass [D, N]) of each request, longest first."""
        longest_first = sorted((i for i in indices if len(requests[i].continuation)), key=lambda i: -requests[i].length)

        def passes() -> Iterator[_Pass]:
            for index in longest_first:
                planned = plan(requests[index], index)
                values_DN = np.zeros(planned.scored_DN.shape)
                for number in range(len(values_DN)):
                    yield _Pass(index, requests[index], planned, values_DN, number)

        began, pending = time.monotonic(), None
        for chunk, arrays in self._batches(passes()):
            spent = Spent(len(chunk), sum(row.request.length for row in chunk), arrays["tokens"].size)
            shape = frozenset({(id(function), *arrays["tokens"].shape)})
            self.spent = self.spent.plus(dataclasses.replace(spent, shapes=shape))
            result = function(params, self._put_batch(arrays))
            # The host copies the values of one batch while the devices compute the next.
            if pending:
                yield from _finished(*pending)
            pending = chunk, result
        if pending:
            yield from _finished(*pending)
        self.spent = self.spent.plus(Spent(seconds=time.monotonic() - began))

    def _batches(self, passes: Iterator["_Pass"]) -> Iterator[tuple[list["_Pass"], dict[str, np.ndarray]]]:
        for first in passes:
            width = row_width(first.request.length, self.longest, self.block or 1)
            size = self._rows_of(width)
            chunk = [first, *itertools.islice(passes, size - 1)]
            while size % (2 * self._ways) == 0 and size // 2 >= len(chunk):
                size //= 2
            kinds = {"tokens": np.int32, "segments": np.int32, "scored": bool, "noise": np.float32}
            arrays = {name: np.zeros((size, width), kind) for name, kind in kinds.items()}
            arrays["positions"] = np.tile(np.arange(width, dtype=np.int32), (size, 1))
            arrays["group"], arrays["number"] = np.zeros(size, np.int32), np.zeros(size, np.int32)
            for b, (_, request, planned, _, number) in enumerate(chunk):
                start, stop = len(request.context), request.length
                arrays["tokens"][b, :start], arrays["tokens"][b, start:stop] = request.context, request.continuation
                arrays["segments"][b, :stop] = 1
                arrays["scored"][b, start:stop], arrays["noise"][b, start:stop] = planned.scored_DN[number], planned.noise_DN[number]
                arrays["group"][b], arrays["number"][b] = request.group & 0x7FFFFFFF, planned.first + number
            yield chunk, arrays

    # --- on the device ------------------------------------------------------------------------------------------------------

    def _hidden(self, params, batch, process, z_BL, t_BL):
        """(denoiser, its states)."""
        denoiser = self.bind(params, batch["segments"], batch["positions"], attention=process.attention)
        hints = ()
        if self.self_condition:
            hints = (hint_of(process, denoiser, denoiser.hidden(z_BL, process.time_embedding_input(t_BL)), z_BL, t_BL),)
        return denoiser, denoiser.hidden(z_BL, process.time_embedding_input(t_BL), *hints)

    def _at_scored(self, params, batch, function, z_BL, t_BL, *args) -> Float[Array, "B L"]:
        """function(process, logits, *args) at the tokens that are scored, 0 elsewhere."""
        process = bind_process(self.process, params)
        denoiser, hidden_BLD = self._hidden(params, batch, process, z_BL, t_BL)
        weight_BL = jnp.ones(t_BL.shape, jnp.float32)
        return denoiser.row_losses(hidden_BLD, batch["scored"], Partial(function, process), args, weight_BL)[1]

    def _input(self, batch):
        """Input of the network, from which it cannot read the tokens to be scored: they are masked, or the causal shift excludes them."""
        x_BL = batch["tokens"]
        if self.form == "exact":
            keys_B = row_keys(jax.random.key(0), batch["number"])  # nothing is drawn from them
            return self.process.corrupt(keys_B, x_BL, batch["noise"], batch["segments"] > 0)
        z_BL = jnp.where(batch["scored"], self.process.absorbing_id, x_BL)
        return z_BL if self.block is None else jnp.stack([z_BL, x_BL], axis=-1)

    def _times(self, batch):
        """Times that the network is conditioned on: for a share of masks, the t at which the schedule masks that share."""
        return self.process.schedule.inverse(1 - batch["noise"]) if self.form == "counted" else batch["noise"]

    def _masked_nats(self, params, batch):
        def nats(process, logits, x):
            return cross_entropy(logits, x, process.suppressed_ids)

        return self._at_scored(params, batch, nats, self._input(batch), self._times(batch), batch["tokens"])

    def _signed_best(self, params, batch):
        """The highest probability of any token, negative where that is not the token of the text."""

        def signed(process, logits, x):
            p = jax.nn.softmax(exclude(logits, process.suppressed_ids), axis=-1)
            best = jnp.max(p, axis=-1)
            return jnp.where(jnp.argmax(p, axis=-1) == x, best, -best)

        return self._at_scored(params, batch, signed, self._input(batch), self._times(batch), batch["tokens"])

    def _noisy(self, params, batch, t_BL):
        """z at times t, drawn from the request's numbers; the context stays clean."""
        keys_B = jax.vmap(jax.random.fold_in)(row_keys(jax.random.key(self.seed), batch["group"]), batch["number"])
        process = bind_process(self.process, params)
        z = process.corrupt(keys_B, batch["tokens"], t_BL, batch["segments"] > 0)
        return with_condition(process, z, batch["tokens"], ~batch["scored"])

    def _time_nats(self, params, batch):
        """The integrand of the bound over the whole continuation."""
        x_BL, scored_BL = batch["tokens"], batch["scored"]
        t_BL = jnp.where(scored_BL, self.process.time_domain.quantize(batch["noise"], scored_BL), 0.0)
        z = self._noisy(params, batch, t_BL)
        carrying = {**batch, "scored": scored_BL & self.process.loss_mask(z, t_BL)}
        of_rows = bind_process(self.process, params).loss_inputs(x_BL, z, t_BL)
        return self._at_scored(params, carrying, lambda process, *args: process.loss(*args), z, t_BL, x_BL, z, t_BL, *of_rows)

    def _boundary_nats(self, params, batch):
        """Prior and reconstruction of the continuation."""
        x_BL, scored_BL, process = batch["tokens"], batch["scored"], bind_process(self.process, params)
        prior_BL = jnp.where(scored_BL, process.prior_nats(x_BL), 0.0)
        if not process.boundary.reconstruction:
            return prior_BL
        clean_BL = jnp.zeros(x_BL.shape, jnp.float32)
        z = self._noisy(params, batch, clean_BL)
        loss_mask_BL = scored_BL & process.loss_mask(z, clean_BL)
        return prior_BL + self._at_scored(
            params, {**batch, "scored": loss_mask_BL}, lambda process, *args: process.reconstruction(*args), z, clean_BL, x_BL, z
        )


class Masks(NamedTuple):
    """Draws of masks over n tokens.  masked_DN: at least one token in each; stratum_D: draws of one stratum are averaged; share_S: weight
    of each stratum in the bound; whole_S: whether the draws of a stratum are all of its masks, so that it has no variance."""

    masked_DN: np.ndarray
    stratum_D: np.ndarray
    share_S: np.ndarray
    whole_S: np.ndarray


def draw_masks(count: int, draws: int, queue_ND: np.ndarray, chance_D: np.ndarray) -> Masks:
    """At most `draws` masks of `count` tokens, stratified over the number of masked tokens (the module's docstring).

    queue_ND: uniform numbers; a draw of k masked tokens masks those with the k lowest.  chance_D: uniform numbers that choose k in a
    stratum with several.
    """
    rank_DN = np.argsort(np.argsort(queue_ND, axis=0), axis=0).T
    if 2 * count > draws and 2**count - 1 > draws:
        strata = max(draws // 2, 1)
        stratum_D = np.arange(min(2, draws) * strata) % strata
        count_D = np.minimum(np.floor((stratum_D + chance_D[: stratum_D.size]) / strata * count).astype(int) + 1, count)
        masked_DN = rank_DN[: stratum_D.size] < count_D[:, None]
        return Masks(masked_DN, stratum_D, np.full(strata, 1 / strata), np.zeros(strata, bool))
    masked, whole, left = [], [], draws
    for behind, k in enumerate(sorted(range(1, count + 1), key=lambda k: math.comb(count, k))):
        each = left // (count - behind)
        whole.append(math.comb(count, k) <= each)
        if whole[-1]:
            chosen = np.asarray(list(itertools.combinations(range(count), k)))
            mask_DN = np.zeros((len(chosen), count), bool)
            np.put_along_axis(mask_DN, chosen, True, axis=1)
        else:
            mask_DN = rank_DN[draws - left : draws - left + each] < k
        masked.append(mask_DN)
        left -= len(mask_DN)
    stratum_D = np.repeat(np.arange(count), [len(mask_DN) for mask_DN in masked])
    return Masks(np.concatenate(masked), stratum_D, np.full(count, 1 / count), np.asarray(whole))


@dataclasses.dataclass(frozen=True)
class _Passes:
    """The passes of one request, and the weights with which their nats are summed.

    scored_DN: tokens whose nats a pass computes; noise_DN: share of masks of their piece, or their t (`integrated`); weight_DN: weight of
    their nats; stratum_DN: stratum in which they are averaged; share_S: weight of each stratum in the sum; whole_S: whether a stratum has
    no variance.  first: number of the first pass in the request's key.
    """

    scored_DN: np.ndarray
    noise_DN: np.ndarray
    weight_DN: np.ndarray
    stratum_DN: np.ndarray
    share_S: np.ndarray
    whole_S: np.ndarray
    first: int = 0

    def total(self, nats_DN: np.ndarray) -> tuple[float, float]:
        """(the sum of the strata's means, its variance)."""
        values_DS, present_DS = np.zeros((len(nats_DN), len(self.share_S))), np.zeros((len(nats_DN), len(self.share_S)), bool)
        d, n = np.nonzero(self.scored_DN)
        np.add.at(values_DS, (d, self.stratum_DN[d, n]), self.weight_DN[d, n] * nats_DN[d, n])
        present_DS[d, self.stratum_DN[d, n]] = True
        count_S = present_DS.sum(axis=0)
        mean_S = values_DS.sum(axis=0) / count_S
        squares_S = np.sum((values_DS - mean_S) ** 2, axis=0, where=present_DS)
        with np.errstate(divide="ignore", invalid="ignore"):
            variance_S = np.where(self.whole_S > 0, 0.0, squares_S / (count_S - 1) / count_S)
        return float(np.sum(self.share_S * mean_S)), float(np.sum(self.share_S**2 * variance_S))


class _Pass(NamedTuple):
    """One pass of one request."""

    index: int
    request: Request
    planned: _Passes
    values_DN: np.ndarray
    number: int


def _finished(chunk: list[_Pass], result_BL) -> Iterator[tuple[int, _Passes, np.ndarray]]:
    """Stores the values of a batch with their requests; yields each request with its last pass."""
    result_BL = device_get(result_BL).astype(np.float64)
    for b, (index, request, planned, values_DN, number) in enumerate(chunk):
        values_DN[number] = result_BL[b, len(request.context) : request.length]
        if number == len(values_DN) - 1:
            yield index, planned, values_DN
