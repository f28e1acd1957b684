"""log p(continuation | context) of a run: what multiple choice, last-word prediction and rolling likelihoods are made of.

The context is given clean and never hidden.  Three forms, by process:
  exact       causal processes: the chain rule, one pass of the network.
  counted     masked processes: the k-form of the bound (RADD 2406.03736 section 4; the estimator of LLaDA 2502.09992 appendix B.5).
                -log p(c | context) <= 1/n sum_{k=1..n} E_{masks of k of the n tokens} n/k sum of the cross-entropies of the masked
              It is the mean over all orders of writing the n tokens, whatever schedule trained the network; a network that reads the
              noise level is told k/n.  Block diffusion has this form in each block, given the clean text before it; all blocks share a
              pass, and blocks of one token make it exact.
  integrated  every other process: its own bound over t at the levels of `levels.level_grid`, with its boundary terms, the context clean
              at level 0.

Masks.  LLaDA draws k anew for every pass.  Here k is stratified, which takes away the variance between noise rates: with `draws` passes
and n tokens, each k has draws // n of them; where all masks of a k are no more than its share they are each taken once, so that up
to 7 tokens are scored without any noise by 127 passes (2^n - 1 <= draws); beyond draws / 2 tokens, draws // 2 strata of k have two
draws each.  Every one of these estimates is unbiased.

Common random numbers: requests of one `group` (the choices of one question) draw from the same numbers.  Choices of one length share
every mask, others the order in which their tokens would be hidden; `integrated` noise is that of the position in the row.  Neither the
batch nor the requests beside it change a mask.

Standard errors are those of the masks (or noise) alone, from the variance inside the strata; 0 where nothing was drawn.

Batches: rows are sorted by length and cut to a few widths (four in each octave) and powers of two of rows, so that one compiled
function serves every request of about its length.

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

from dlmjax.diffusion.objective import with_condition
from dlmjax.diffusion.process import bind_process, cross_entropy, exclude, row_keys
from dlmjax.errors import InputError
from dlmjax.evaluation.levels import NODES, level_grid
from dlmjax.parallel.arrays import device_get
from dlmjax.progress import Progress
from dlmjax.seeds import check_seed

NARROWEST = 4  # tokens of the narrowest rows, and the least by which widths differ
_ENDS = 1 << 20  # tag of the draws of z_0 in a request's key: beyond any number of passes


@dataclasses.dataclass(frozen=True)
class Request:
    """Token ids of a context (may be empty) and of what is to follow it.  group: requests with the same number share their noise."""

    context: np.ndarray
    continuation: np.ndarray
    group: int = 0

    @property
    def length(self) -> int:
        """Tokens of both."""
        return len(self.context) + len(self.continuation)


@dataclasses.dataclass(frozen=True)
class Score:
    """log_likelihood: nats of the whole continuation, a lower bound unless the process is causal or made of blocks of one token.
    stderr: of the masks alone; 0 where none was drawn, nan where a single draw tells nothing of it.  passes: rows that the network read.
    """

    log_likelihood: float
    stderr: float
    tokens: int
    passes: int


@dataclasses.dataclass(frozen=True)
class Spent:
    """What scoring took.  tokens: of the requests, once for each pass; slots: with padding; shapes: compiled (rows, width) of each
    function; seconds: of the wall clock, compilation included."""

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
        """Both together."""
        sums = (getattr(self, name) + getattr(other, name) for name in ("passes", "tokens", "slots"))
        return Spent(*sums, self.shapes | other.shapes, self.seconds + other.seconds)


def split(context: np.ndarray, continuation: np.ndarray, longest: int, overlap: int = 1) -> list[tuple[np.ndarray, np.ndarray]]:
    """(context, continuation) in pieces of at most `longest` tokens, whose log-likelihoods add up to that of the whole.

    What fits is one piece.  A context is cut from the left.  A continuation beyond `longest` loses its context and is read in windows:
    the first is whole, each later one has `overlap` tokens of context, the last as many as fit, so that every token is predicted once
    (the rule of lm-eval's rolling windows, whose context is one token).

    Raises InputError where the overlap leaves no room.
    """
    if not 0 <= overlap < longest:
        raise InputError(f"an overlap of {overlap} tokens leaves nothing to predict in windows of {longest}; give less")
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
    """The width of rows for so many tokens: four in each octave, a multiple of `multiple`, at most `longest`."""
    step = max(2 ** (max(length - 1, 1).bit_length() - 3), NARROWEST)
    width = -(-length // step) * step
    return min(-(-width // multiple) * multiple, longest)


class ConditionalScorer:
    """Scores continuations with one process and network.  Compiles on first use; keep it and call it with new params.

    process, bind: as for `likelihood.Evaluator`.  longest: the widest row, tokens; that of training.
    draws: passes for each request (the module's docstring); causal processes take one.  nodes: levels of the quadrature of processes
      that are no masks, each with draws // nodes draws.  seed: of all masks.
    tokens: slots of a batch, about.  put_batch: as for `Evaluator`; ways: what its rows must be a multiple of.
    self_condition: denoise twice, the second time with the first estimate as a hint.
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
        if draws < 1 or nodes < 1 or draws >= _ENDS:
            raise InputError(f"a likelihood needs at least one draw and one node and fewer than {_ENDS} draws, not {draws} and {nodes}")
        check_seed(seed, "seed")
        self.process, self.bind, self.longest, self.draws, self.seed = process.bound, bind, longest, draws, seed
        self.self_condition, self._tokens, self._ways, self._put_batch = self_condition, tokens, ways, put_batch or jax.device_put
        self.block = self.process.block_size
        self.form = "exact" if self.process.causal else "counted" if self.process.any_order else "integrated"
        if self.form == "integrated" and not self.process.is_bound:
            raise InputError(f"the loss of process {process.name} is no likelihood bound: there is nothing to score text with")
        self._rule = "gauss" if self.form == "integrated" else "exact"
        self._asked_nodes, self._grid = min(nodes, draws), level_grid(self.process, self._rule, min(nodes, draws))
        self.nodes = self._grid.nodes
        self.spent = Spent()
        self._shown, self._signs, self._at, self._ends = (
            jax.jit(function) for function in (self._shown_nats, self._sign, self._level_nats, self._boundary_nats)
        )

    def __call__(self, params, requests: Sequence[Request], *, progress: bool = False) -> list[Score]:
        """The score of every request, in their order; what it took is added to `spent`.

        Raises InputError for a request that is longer than `longest` (see `split`) or holds an id outside the vocabulary.
        """
        self._check(requests)
        self._grid = level_grid(bind_process(self.process, params), self._rule, self._asked_nodes)
        nats, variance, passes = np.zeros(len(requests)), np.zeros(len(requests)), np.zeros(len(requests), int)
        acts = [(self._plan, self._at if self.form == "integrated" else self._shown)]
        if self.form == "integrated" and self.process.has_boundary:
            acts.append((self._plan_ends, self._ends))
        with Progress(len(requests) * len(acts), "scoring", " requests", show=None if progress else False) as bar:
            done = 0
            for plan, function in acts:
                for index, asked, nats_DN in self._answers(params, requests, range(len(requests)), plan, function):
                    mean, spread = asked.total(nats_DN)
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
        """Whether decoding without chance would write the continuation.

        exact: the most likely token at every place.  counted: from as many masks as the continuation has tokens (its length is thus
        given away) the token that the network is surest of is shown, one a pass, until all are (`Sampler` with order "confidence" and
        temperature 0; block after block where the process has blocks); a request costs passes up to its first mistake.  integrated:
        nothing is decoded without chance there; always False.
        """
        self._check(requests)
        if self.form == "integrated":
            return [False] * len(requests)
        known = [np.zeros(len(request.continuation), bool) for request in requests]
        right = [True] * len(requests)
        open_ = [i for i, request in enumerate(requests) if len(request.continuation)]

        def plan(request: Request, index: int) -> "_Asked":
            asked_N, level_N = ~known[index], np.zeros(len(known[index]))
            for piece in self._pieces(request):
                level_N[piece] = asked_N[piece].mean() * asked_N[piece]
            once = np.ones((1, asked_N.size))
            return _Asked(asked_N[None], level_N[None], once, once.astype(int) - 1, np.ones(1), np.ones(1))

        while open_:
            for index, _, signed_DN in self._answers(params, requests, open_, plan, self._signs):
                signed_N, pieces = signed_DN[0], self._pieces(requests[index])
                for piece in [[i] for i in range(signed_N.size)] if self.form == "exact" else pieces:
                    left = np.asarray([i for i in piece if not known[index][i]], int)
                    if left.size:
                        surest = left[np.argmax(np.abs(signed_N[left]))]
                        known[index][surest] = True
                        right[index] &= bool(signed_N[surest] > 0)
            open_ = [i for i in open_ if right[i] and not known[i].all()]
        return right

    # --- what is asked of the network ---------------------------------------------------------------------------------------

    def _pieces(self, request: Request) -> list[np.ndarray]:
        """Places in the continuation that are hidden together: all, or those of each block."""
        place_N = np.arange(len(request.continuation))
        if self.block is None:
            return [place_N]
        return np.split(place_N, np.flatnonzero(np.diff((len(request.context) + place_N) // self.block)) + 1)

    def _plan(self, request: Request, index: int) -> "_Asked":
        count = len(request.continuation)
        if self.form == "exact":
            return _Asked(*(np.ones((1, count), kind) for kind in (bool, float, float)), np.zeros((1, count), int), np.ones(1), np.ones(1))
        if self.form == "counted":
            return self._plan_masks(request)
        grid, each = self._grid, self.draws // self.nodes
        t_D = np.repeat(grid.low_J, each)
        stratum_DN = np.repeat(np.arange(self.nodes), each)[:, None] + np.zeros(count, int)
        shape = stratum_DN.shape
        zeros = np.zeros(self.nodes)
        return _Asked(np.ones(shape, bool), t_D[:, None] + np.zeros(count), np.ones(shape), stratum_DN, grid.weight_J, zeros)

    def _plan_ends(self, request: Request, index: int) -> "_Asked":
        draws = max(self.draws // self.nodes, 1) if self.process.has_reconstruction else 1
        shape, certain = (draws, len(request.continuation)), not self.process.has_reconstruction
        ones = np.ones(shape)
        return _Asked(ones > 0, 0 * ones, ones, np.zeros(shape, int), np.ones(1), np.full(1, certain), first=_ENDS)

    def _plan_masks(self, request: Request) -> "_Asked":
        """The k-form in every piece; pass d hides what each piece hides in its d-th draw, and nothing of a piece that has no more."""
        pieces = self._pieces(request)
        source = np.random.Philox(key=np.asarray([self.seed, request.group], np.uint64))
        # A row of numbers for each token, one for each piece: a longer choice begins with the numbers of a shorter one.
        queue_ND = np.random.Generator(source).random((len(request.continuation), self.draws))
        chance_PD = np.random.Generator(source.jumped()).random((len(pieces), self.draws))
        drawn = [draw_masks(len(piece), self.draws, queue_ND[piece], chance_D) for piece, chance_D in zip(pieces, chance_PD, strict=True)]
        shape = max(len(masks.hidden_DN) for masks in drawn), len(request.continuation)
        asked_DN, level_DN, weight_DN, stratum_DN = (np.zeros(shape, kind) for kind in (bool, float, float, int))
        strata = 0
        for piece, masks in zip(pieces, drawn, strict=True):
            rows = np.ix_(range(len(masks.hidden_DN)), piece)
            share_D1 = masks.hidden_DN.mean(axis=1, keepdims=True)
            asked_DN[rows] = masks.hidden_DN
            level_DN[rows], weight_DN[rows] = masks.hidden_DN * share_D1, masks.hidden_DN / share_D1
            stratum_DN[rows] = masks.stratum_D[:, None] + strata
            strata += len(masks.share_S)
        share_S, whole_S = (np.concatenate([getattr(masks, name) for masks in drawn]) for name in ("share_S", "whole_S"))
        return _Asked(asked_DN, level_DN, weight_DN, stratum_DN, share_S, whole_S)

    def _check(self, requests: Sequence[Request]) -> None:
        for request in requests:
            if request.length > self.longest:
                raise InputError(f"a request of {request.length} tokens does not fit into rows of {self.longest}; cut it with `split`")
            tokens_T = np.concatenate([request.context, request.continuation])
            if tokens_T.size and not 0 <= tokens_T.min() <= tokens_T.max() < self.process.vocab:
                raise InputError(
                    f"a request holds token ids from {tokens_T.min()} to {tokens_T.max()}, but the model's vocabulary has "
                    f"{self.process.vocab}; the text was encoded with another tokenizer"
                )

    # --- batches --------------------------------------------------------------------------------------------------------------

    def _rows_of(self, width: int) -> int:
        return self._ways * 2 ** max(self._tokens // (width * self._ways), 1).bit_length() // 2

    def _answers(self, params, requests, indices: Iterable[int], plan, function) -> Iterator[tuple[int, "_Asked", np.ndarray]]:
        """(index, what was asked, what the network says of every token of every pass [D, N]) of each request, longest first."""
        longest_first = sorted((i for i in indices if len(requests[i].continuation)), key=lambda i: -requests[i].length)

        def rows() -> Iterator[_Row]:
            for index in longest_first:
                asked = plan(requests[index], index)
                answers_DN = np.zeros(asked.asked_DN.shape)
                for number in range(len(answers_DN)):
                    yield _Row(index, requests[index], asked, answers_DN, number)

        began, pending = time.monotonic(), None
        for chunk, arrays in self._batches(rows()):
            spent = Spent(len(chunk), sum(row.request.length for row in chunk), arrays["tokens"].size)
            shape = frozenset({(id(function), *arrays["tokens"].shape)})
            self.spent = self.spent.plus(dataclasses.replace(spent, shapes=shape))
            result = function(params, self._put_batch(arrays))
            # The host takes up the answers of one batch while the devices work on the next.
            if pending:
                yield from _taken(*pending)
            pending = chunk, result
        if pending:
            yield from _taken(*pending)
        self.spent = self.spent.plus(Spent(seconds=time.monotonic() - began))

    def _batches(self, rows: Iterator["_Row"]) -> Iterator[tuple[list["_Row"], dict[str, np.ndarray]]]:
        for first in rows:
            width = row_width(first.request.length, self.longest, self.block or 1)
            size = self._rows_of(width)
            chunk = [first, *itertools.islice(rows, size - 1)]
            while size % (2 * self._ways) == 0 and size // 2 >= len(chunk):
                size //= 2
            arrays = {name: np.zeros((size, width), kind) for name, kind in (("tokens", np.int32), ("segments", np.int32), ("asked", bool))}
            arrays["level"], arrays["positions"] = np.zeros((size, width), np.float32), np.tile(np.arange(width, dtype=np.int32), (size, 1))
            arrays["group"], arrays["number"] = np.zeros(size, np.int32), np.zeros(size, np.int32)
            for b, (_, request, asked, _, number) in enumerate(chunk):
                start, stop = len(request.context), request.length
                arrays["tokens"][b, :start], arrays["tokens"][b, start:stop] = request.context, request.continuation
                arrays["segments"][b, :stop] = 1
                arrays["asked"][b, start:stop], arrays["level"][b, start:stop] = asked.asked_DN[number], asked.level_DN[number]
                arrays["group"][b], arrays["number"][b] = request.group & 0x7FFFFFFF, asked.first + number
            yield chunk, arrays

    # --- on the device ------------------------------------------------------------------------------------------------------

    def _hidden(self, params, batch, process, z_BL, t_BL):
        """(denoiser, its states)."""
        denoiser = self.bind(params, batch["segments"], batch["positions"], attention=process.attention)
        hints = ()
        if self.self_condition:
            hints = (process.self_conditioning_x0(denoiser, denoiser.hidden(z_BL, process.time_embedding_input(t_BL)), z_BL, t_BL),)
        return denoiser, denoiser.hidden(z_BL, process.time_embedding_input(t_BL), *hints)

    def _said(self, params, batch, function, z_BL, t_BL, *args) -> Float[Array, "B L"]:
        """function(process, logits, *args) at the tokens that are scored, 0 elsewhere."""
        process = bind_process(self.process, params)
        denoiser, hidden_BLD = self._hidden(params, batch, process, z_BL, t_BL)
        weight_BL = jnp.ones(t_BL.shape, jnp.float32)
        return denoiser.row_losses(hidden_BLD, batch["asked"], Partial(function, process), args, weight_BL)[1]

    def _read(self, batch):
        """What the network reads where a token that is asked for is hidden: behind a mask, or by the causal shift."""
        x_BL = batch["tokens"]
        if self.form == "exact":
            keys_B = row_keys(jax.random.key(0), batch["number"])  # nothing is drawn from them
            return self.process.corrupt(keys_B, x_BL, batch["level"], batch["segments"] > 0)
        z_BL = jnp.where(batch["asked"], self.process.absorbing_id, x_BL)
        return z_BL if self.block is None else jnp.stack([z_BL, x_BL], axis=-1)

    def _told(self, batch):
        """The time that the network is told: where masks are counted, the one at which the schedule hides that share."""
        return self.process.schedule.inverse(1 - batch["level"]) if self.form == "counted" else batch["level"]

    def _shown_nats(self, params, batch):
        def nats(process, logits, x):
            return cross_entropy(logits, x, process.suppressed_ids)

        return self._said(params, batch, nats, self._read(batch), self._told(batch), batch["tokens"])

    def _sign(self, params, batch):
        """The highest probability of any token, negative where that is not the token of the text."""

        def signed(process, logits, x):
            p = jax.nn.softmax(exclude(logits, process.suppressed_ids), axis=-1)
            best = jnp.max(p, axis=-1)
            return jnp.where(jnp.argmax(p, axis=-1) == x, best, -best)

        return self._said(params, batch, signed, self._read(batch), self._told(batch), batch["tokens"])

    def _noisy(self, params, batch, t_BL):
        """z at given levels, drawn from the request's numbers; a context of tokens is as it was."""
        keys_B = jax.vmap(jax.random.fold_in)(row_keys(jax.random.key(self.seed), batch["group"]), batch["number"])
        z = bind_process(self.process, params).corrupt(keys_B, batch["tokens"], t_BL, batch["segments"] > 0)
        return with_condition(self.process, z, batch["tokens"], ~batch["asked"])

    def _level_nats(self, params, batch):
        """The integrand of the bound over the whole continuation."""
        x_BL, asked_BL = batch["tokens"], batch["asked"]
        t_BL = jnp.where(asked_BL, self.process.quantize_time(batch["level"], asked_BL), 0.0)
        z = self._noisy(params, batch, t_BL)
        carrying = {**batch, "asked": asked_BL & self.process.loss_mask(z, t_BL)}
        return self._said(params, carrying, lambda process, *args: process.loss(*args), z, t_BL, x_BL, z, t_BL)

    def _boundary_nats(self, params, batch):
        """Prior and reconstruction of the continuation."""
        x_BL, asked_BL, process = batch["tokens"], batch["asked"], bind_process(self.process, params)
        prior_BL = jnp.where(asked_BL, process.prior_nats(x_BL), 0.0)
        if not process.has_reconstruction:
            return prior_BL
        clean_BL = jnp.zeros(x_BL.shape, jnp.float32)
        z = self._noisy(params, batch, clean_BL)
        rows_BL = asked_BL & process.loss_mask(z, clean_BL)
        return prior_BL + self._said(
            params, {**batch, "asked": rows_BL}, lambda process, *args: process.reconstruction(*args), z, clean_BL, x_BL, z
        )


class Masks(NamedTuple):
    """Draws of masks over n tokens.  hidden_DN: at least one token in each; stratum_D: what draws are averaged with; share_S: of each
    stratum in the bound; whole_S: whether a stratum holds every mask that it can, so that nothing in it is left to chance."""

    hidden_DN: np.ndarray
    stratum_D: np.ndarray
    share_S: np.ndarray
    whole_S: np.ndarray


def draw_masks(count: int, draws: int, queue_ND: np.ndarray, chance_D: np.ndarray) -> Masks:
    """At most `draws` masks of `count` tokens, stratified over how many they hide (the module's docstring).

    queue_ND: uniform numbers; a draw that hides k tokens hides those with the k lowest.  chance_D: uniform numbers that choose k
    inside a stratum of several.
    """
    place_DN = np.argsort(np.argsort(queue_ND, axis=0), axis=0).T
    if 2 * count > draws and 2**count - 1 > draws:
        strata = max(draws // 2, 1)
        stratum_D = np.arange(min(2, draws) * strata) % strata
        hidden_D = np.minimum(np.floor((stratum_D + chance_D[: stratum_D.size]) / strata * count).astype(int) + 1, count)
        hidden_DN = place_DN[: stratum_D.size] < hidden_D[:, None]
        return Masks(hidden_DN, stratum_D, np.full(strata, 1 / strata), np.zeros(strata, bool))
    hidden, whole, left = [], [], draws
    for behind, k in enumerate(sorted(range(1, count + 1), key=lambda k: math.comb(count, k))):
        each = left // (count - behind)
        whole.append(math.comb(count, k) <= each)
        if whole[-1]:
            chosen = np.asarray(list(itertools.combinations(range(count), k)))
            mask_DN = np.zeros((len(chosen), count), bool)
            np.put_along_axis(mask_DN, chosen, True, axis=1)
        else:
            mask_DN = place_DN[draws - left : draws - left + each] < k
        hidden.append(mask_DN)
        left -= len(mask_DN)
    stratum_D = np.repeat(np.arange(count), [len(mask_DN) for mask_DN in hidden])
    return Masks(np.concatenate(hidden), stratum_D, np.full(count, 1 / count), np.asarray(whole))


@dataclasses.dataclass(frozen=True)
class _Asked:
    """The passes of one request, and how what they say is added up.

    asked_DN: tokens whose nats are wanted; level_DN: their noise level; weight_DN: of their nats; stratum_DN: which mean they enter;
    share_S: of each mean in the sum; whole_S: whether a mean has no chance in it.  first: number of the first pass in the request's key.
    """

    asked_DN: np.ndarray
    level_DN: np.ndarray
    weight_DN: np.ndarray
    stratum_DN: np.ndarray
    share_S: np.ndarray
    whole_S: np.ndarray
    first: int = 0

    def total(self, nats_DN: np.ndarray) -> tuple[float, float]:
        """(the sum of the strata's means, its variance)."""
        values_DS, drawn_DS = np.zeros((len(nats_DN), len(self.share_S))), np.zeros((len(nats_DN), len(self.share_S)), bool)
        d, n = np.nonzero(self.asked_DN)
        np.add.at(values_DS, (d, self.stratum_DN[d, n]), self.weight_DN[d, n] * nats_DN[d, n])
        drawn_DS[d, self.stratum_DN[d, n]] = True
        count_S = drawn_DS.sum(axis=0)
        mean_S = values_DS.sum(axis=0) / count_S
        squares_S = np.sum((values_DS - mean_S) ** 2, axis=0, where=drawn_DS)
        with np.errstate(divide="ignore", invalid="ignore"):
            variance_S = np.where(self.whole_S > 0, 0.0, squares_S / (count_S - 1) / count_S)
        return float(np.sum(self.share_S * mean_S)), float(np.sum(self.share_S**2 * variance_S))


class _Row(NamedTuple):
    """One pass of one request."""

    index: int
    request: Request
    asked: _Asked
    answers_DN: np.ndarray
    number: int


def _taken(chunk: list[_Row], result_BL) -> Iterator[tuple[int, _Asked, np.ndarray]]:
    """Puts the answers of a batch where they belong; a request is yielded with its last pass."""
    result_BL = device_get(result_BL).astype(np.float64)
    for b, (index, request, asked, answers_DN, number) in enumerate(chunk):
        answers_DN[number] = result_BL[b, len(request.context) : request.length]
        if number == len(answers_DN) - 1:
            yield index, asked, answers_DN
