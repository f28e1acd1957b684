"""Likelihoods of samplers that reveal masked tokens: exact along the one path of a text, exact over all orders, and bounded from below.

The NELBO of a masked process is the mean over orders of -log p(x | order), an upper bound of -log p(x) of the sampler that reveals one
token a step in random order. What is computed here:

  order      A rule chooses the positions revealed next from the state z alone, so that x has one path from all masks:
             log p(x) = sum over steps, over positions i that the step reveals, of log p(x_i | z), then z shows x there (DUEL 2603.01367).
             Summed over all x this is 1: given x the path is unique, and a step draws its tokens independently. It is the law of the
             sampler with that rule, which is another law than that of random order, and can be better or worse than the NELBO.
             Rows step together in one compiled loop until none has masks: as many passes as the sampler makes.
  subsets    p(M) = mean over i in M of p(x_i | all of M masked) p(M without i), p(nothing) = 1, for every set M of masked tokens, in
             logarithms: p(all) is the mean over all n! orders of p(x | order). 2^n - 1 passes; blocks share each pass.
  tube       log p <= log psi - 1 + p / psi for every psi > 0 (the tangent of the logarithm; TUBE 2605.24292). p is replaced by the mean
             over orders of p(x | order), psi by that of other orders: independent of each other, so the bound holds in expectation. The
             two change places, and the mean of both is taken.

Under blocks all of this is done in every block, given the clean text before it, and summed over blocks; else the set of a window is all of
its scored tokens. Tokens that are not scored condition the others. The network is conditioned on the times that the sampler gives it: the
share of steps that are left.

Shapes: B windows, L length, G sets (blocks of a row, or the row), S positions of a set, N scored tokens of a set, M sets of masks.
"""

import abc
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from dlmjax.diffusion.objective import hint_of
from dlmjax.diffusion.process import bind_process, exclude, row_keys, uniform_rows
from dlmjax.errors import InputError
from dlmjax.evaluation.forms import MOST_SUBSETS, MOST_TUBE, Order, Subsets, Tube, parse_likelihood
from dlmjax.evaluation.levels import LevelGrid, level_grid
from dlmjax.evaluation.likelihood import BatchNats, WindowEvaluator
from dlmjax.parallel.arrays import device_get, device_put, replicated_like
from dlmjax.sampling.reveal import next_reveals, position_scores, require_reveals
from dlmjax.sampling.rules import MOST_STEPS, LeftToRight, View
from dlmjax.seeds import check_seed


class _Path(NamedTuple):
    """Where the windows of a batch are between two steps."""

    step: Int[Array, ""]
    masked_BL: Bool[Array, "B L"]
    nats_BL: Float[Array, "B L"]
    calls_B: Int[Array, "B"]
    memory: Any  # of the rule
    hint_BLI: Float[Array, "B L I"] | None


class PathEvaluator(WindowEvaluator):
    """Abstract: evaluates one of the likelihoods of `forms` for one process and network; `path_evaluator` makes it from a text.

    process, bind, put_batch, self_condition: as for `likelihood.Evaluator`.  form: its values; likelihood: its text.
    seed: of the orders of "tube".
    additive: whether the number is a sum over tokens, and not only over sets of tokens.

    Raises InputError: a process whose text is not revealed token by token; a likelihood that it does not have.
    """

    nodes = draws = 1
    rule = "exact"
    additive = False

    def __init__(
        self,
        process,
        bind: Callable[..., Any],
        form: Order | Subsets | Tube,
        *,
        likelihood: str,
        seed: int = 0,
        put_batch: Callable[[dict], dict] | None = None,
        self_condition: bool = False,
    ):
        check_seed(seed, "seed")
        self.form, self.likelihood = form, likelihood
        self.name, self.bind, self.seed, self.process = process.name, bind, seed, process.bound
        self.put_batch, self.self_condition = put_batch or jax.device_put, self_condition
        self._check(f"--likelihood {likelihood}")
        self._grid = level_grid(self.process, "exact", 1)
        self._compiled = jax.jit(self._on_device)

    def _check(self, what: str) -> None:
        process = self.process
        if process.attention.causal:
            raise InputError(f"{what} conflicts with process {self.name}, whose --likelihood nelbo is exact; leave --likelihood out")
        rule = self.form.make_rule() if isinstance(self.form, Order) else None
        seed_first = isinstance(rule, LeftToRight) and rule.count == 1 and self.form.stop is None
        if process.attention.seeded and not seed_first:
            raise InputError(
                f"{what} requires blocks whose tokens are all revealed by its rule, and process {self.name} predicts the seed of a block "
                "before the rest; give --likelihood nelbo, or order:left_to_right"
            )
        require_reveals(process, what, "its reverse steps leave no likelihood that can be written down; give --likelihood nelbo")
        if process.output.predicts != "logits" and self.form.temperature != 1:
            raise InputError(
                f"{what}: a temperature requires a network that predicts logits, but that of process {self.name} predicts "
                f"{process.output.predicts}; leave it at 1"
            )

    @abc.abstractmethod
    def _on_device(self, params, batch, *args):
        """What is compiled: the passes of the network that `_batch_nats` reads."""

    def _grid_of(self, params) -> LevelGrid:
        return self._grid

    # --- a path ---------------------------------------------------------------------------------------------------------------

    def _along(self, params, batch, revealed, steps_N, memory: Any = ()) -> tuple[Float[Array, "B L"], Int[Array, "B"]]:
        """The path on which a step reveals `revealed(read, path) -> (positions, memory)`; steps_N: steps of each set, for its times."""
        process = bind_process(self.process, params)
        start_BL = self._start(batch)
        steps_BL = self._over_sets(steps_N, start_BL)

        def one(path: _Path) -> _Path:
            t_BL = jnp.maximum(steps_BL - path.step, 0) / jnp.maximum(steps_BL, 1)
            read = self._read(process, params, batch, path.masked_BL, t_BL, path.hint_BLI)
            new_BL, memory = revealed(read, path)
            return _Path(
                step=path.step + 1,
                masked_BL=path.masked_BL & ~new_BL,
                nats_BL=path.nats_BL + read.at(new_BL, self._nats).astype(path.nats_BL.dtype),
                calls_B=path.calls_B + jnp.any(path.masked_BL, axis=1),
                memory=memory,
                hint_BLI=read.hint_BLI,
            )

        hint_BLI = None
        if self.self_condition:
            shape = jax.eval_shape(lambda: self._read(process, params, batch, start_BL, start_BL.astype(jnp.float32), None).hint()).shape
            hint_BLI = jnp.zeros(shape, jnp.float32)
        first = _Path(jnp.int32(0), start_BL, jnp.zeros(start_BL.shape), jnp.zeros(len(start_BL), jnp.int32), memory, hint_BLI)
        last = jax.lax.while_loop(lambda path: jnp.any(path.masked_BL), one, first)
        return last.nats_BL, last.calls_B

    def _read(self, process, params, batch, masked_BL, t_BL, hint_BLI) -> "_Read":
        """One pass of the network on the text with these masks; t_BL: the time of each set's step."""
        x_BL, start_BL = batch["tokens"], self._start(batch).astype(jnp.float32)
        z = jnp.where(masked_BL, process.capabilities.prior_mask_id, x_BL)
        if self.process.attention.block_size is not None:
            z = process.states.of_tokens(x_BL).at[..., 0].set(z)
        t_BL = process.time_domain.revealed(masked_BL, jnp.minimum(t_BL.astype(jnp.float32), start_BL), start_BL)
        denoiser = self.bind(params, batch["segments"], batch["positions"], attention=self.process.attention)
        hints = () if hint_BLI is None else (hint_BLI,)
        return _Read(process, denoiser, denoiser.hidden(z, process.time_embedding_input(t_BL), *hints), x_BL, z, t_BL, bool(hints))

    def _log_p(self, process, logits, z, t, temperature: float = 1.0):
        """log p(x_i | z); the temperature divides what the network says, as in the sampler."""
        logits = logits if temperature == 1 else logits / temperature
        return jax.nn.log_softmax(exclude(process.output.log_posterior(logits, z, t), process.suppressed_ids), axis=-1)

    def _nats(self, process, logits, x, z, t):
        log_p = self._log_p(process, logits, z, t, self.form.temperature)
        return -jnp.take_along_axis(log_p, x[..., None], axis=-1)[..., 0]

    # --- sets: the blocks of a row, or the row ---------------------------------------------------------------------------------

    def _start(self, batch) -> Bool[Array, "B L"]:
        return batch["scored"] & (batch["segments"] > 0)

    def _rows_of_sets(self, array_BL):
        return array_BL.reshape(-1, self._size(array_BL.shape[1]))

    def _count(self, masked_BL) -> Int[Array, "N"]:
        """Masked positions of every set of every window, in one list."""
        return jnp.sum(self._rows_of_sets(masked_BL), axis=1)

    def _over_sets(self, value_N, like_BL):
        """A number of every set at each of its positions."""
        return jnp.broadcast_to(value_N[:, None], self._rows_of_sets(like_BL).shape).reshape(like_BL.shape)

    def _size(self, length: int) -> int:
        return self.process.attention.block_size or length


class OrderEvaluator(PathEvaluator):
    """The likelihood along the one path of a rule."""

    form: Order
    additive = True

    def _batch_nats(self, params, grid: LevelGrid, batch: dict) -> BatchNats:
        nats_BL, calls_B = (device_get(array) for array in self._compiled(params, batch))
        return _as_batch(nats_BL.astype(np.float64).sum(axis=1), calls_B, lambda: nats_BL.astype(np.float64))

    def _on_device(self, params, batch) -> tuple[Float[Array, "B L"], Int[Array, "B"]]:
        """(-log p of every token along the path, passes until each window has no masks)."""
        rule, stop, start_BL = self.form.make_rule(), self.form.make_stop(), self._start(batch)
        start_NS = self._rows_of_sets(start_BL)
        steps_N = rule.steps_of(self._count(start_BL), MOST_STEPS)

        def _revealed(read: _Read, path: _Path):
            def of_sets(function):
                return self._rows_of_sets(read.at(path.masked_BL, function))

            view = View(
                masked_BL=self._rows_of_sets(path.masked_BL),
                start_masked_BL=start_NS,
                step=path.step + 1,
                steps=MOST_STEPS,  # a plan reveals one in a step where the rule says nothing else
                scores_of=lambda name: of_sets(Partial(self._score, name)),
                log_p=lambda: self._all_log_p(read, start_NS.shape),
            )
            of_rule, of_stop = path.memory
            choice = rule.choose(view, of_rule)
            new_NS = choice.reveal_BL & view.masked_BL
            if stop is not None:
                end_N, of_stop = stop.done(view, of_stop)
                new_NS |= end_N[:, None] & view.masked_BL
            return new_NS.reshape(path.masked_BL.shape), (choice.memory, of_stop)

        of_stop = () if stop is None else stop.begin(start_NS.shape)
        memory = rule.begin(start_NS.shape, self.process.output.columns), of_stop
        return self._along(params, batch, _revealed, steps_N, memory)

    def _score(self, name: str, process, logits, x, z, t):
        return position_scores(name, self._log_p(process, logits, z, t))

    def _all_log_p(self, read: "_Read", shape: tuple[int, int]) -> Float[Array, "N S V"]:
        log_p_BLV = self._log_p(read.process, read.denoiser.logits(read.hidden_BLD), read.z, read.t_BL)
        return log_p_BLV.reshape(*shape, log_p_BLV.shape[-1])


class SetEvaluator(PathEvaluator):
    """Abstract: a likelihood of sets of tokens, of a row or of each of its blocks.

    name_of_form: as it is typed; most: scored tokens that a set may have.
    """

    name_of_form: ClassVar[str]
    most: ClassVar[int]

    @abc.abstractmethod
    def _of_sets(self, params, batch: dict, count_BG: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(the number of each set [B, G], network calls of each window [B]); count_BG: scored tokens of each set."""

    def _batch_nats(self, params, grid: LevelGrid, batch: dict) -> BatchNats:
        count_BG = self._sets(device_get(batch["scored"]) & (device_get(batch["segments"]) > 0)).sum(axis=2)
        if (longest := int(count_BG.max(initial=0))) > self.most:
            of = "window" if self.process.attention.block_size is None else "block"
            instead = "tube, or order:confidence" if longest <= MOST_TUBE else "order:confidence"
            raise InputError(
                f"--likelihood {self.name_of_form} requires at most {self.most} scored tokens in a {of}, and one has {longest}; give "
                + ("a shorter --window, or " if of == "window" else "")
                + f"--likelihood {instead}"
            )
        nats_BG, calls_B = self._of_sets(params, batch, count_BG)
        return _as_batch(nats_BG.sum(axis=1), calls_B, None)

    def _sets(self, array_BL: np.ndarray) -> np.ndarray:
        """[B, G, S]"""
        return array_BL.reshape(len(array_BL), -1, self._size(array_BL.shape[1]))


class SubsetEvaluator(SetEvaluator):
    """The exact likelihood over all orders, by the recursion over sets of masked tokens, in float64 on the host."""

    form: Subsets
    name_of_form, most = "subsets", MOST_SUBSETS

    def _check(self, what: str) -> None:
        super()._check(what)
        if self.self_condition:
            raise InputError(f"{what} requires a network that reads tokens alone, not its own last x0 prediction; give order:confidence")

    def _of_sets(self, params, batch: dict, count_BG: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(-log p of each set [B, G], network calls of each window [B])."""
        tokens, sharding = int(count_BG.max(initial=0)), replicated_like(params)
        log_p_MBG = np.zeros((2**tokens, *count_BG.shape))
        for masks in range(1, 2**tokens):
            nats_BGN = device_get(self._compiled(params, batch, device_put(np.uint32(masks), sharding)))[..., :tokens].astype(np.float64)
            bits = [i for i in range(tokens) if masks >> i & 1]
            paths = np.stack([log_p_MBG[masks ^ 1 << i] - nats_BGN[..., i] for i in bits])
            log_p_MBG[masks] = np.logaddexp.reduce(paths, axis=0) - math.log(len(bits))
        nats_BG = -np.take_along_axis(log_p_MBG, (2**count_BG - 1)[None], axis=0)[0]
        return nats_BG, 2 ** count_BG.max(axis=1, initial=0) - 1

    def _on_device(self, params, batch, masks) -> Float[Array, "B G N"]:
        """-log p of the scored tokens of every set whose bits are in `masks`, all of these masked; N = MOST_SUBSETS, 0 elsewhere."""
        process = bind_process(self.process, params)
        start_BL = self._start(batch)
        start_BGS = start_BL.reshape(len(start_BL), -1, self._size(start_BL.shape[1]))
        index_BGS = jnp.cumsum(start_BGS, axis=2) - 1
        bit_BGS = (masks >> jnp.clip(index_BGS, 0, 31).astype(jnp.uint32)) & 1
        masked_BGS = start_BGS & (bit_BGS > 0)
        masked_BL = masked_BGS.reshape(start_BL.shape)
        share_BL = self._over_sets(self._count(masked_BL) / jnp.maximum(self._count(start_BL), 1), start_BL)
        nats_BL = self._read(process, params, batch, masked_BL, share_BL, None).at(masked_BL, self._nats)
        chosen_BGSN = start_BGS[..., None] & (index_BGS[..., None] == jnp.arange(MOST_SUBSETS))
        return jnp.sum(jnp.where(chosen_BGSN, nats_BL.reshape(start_BGS.shape)[..., None], 0.0), axis=2)


class TubeEvaluator(SetEvaluator):
    """The bound of the same likelihood from the other side, over random orders."""

    form: Tube
    rule = name_of_form = "tube"
    most = MOST_TUBE

    def _of_sets(self, params, batch: dict, count_BG: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(the bound of each set from below [B, G], network calls of each window [B])."""
        sharding, log_p = replicated_like(params), []
        for order in range(2 * self.form.orders):
            nats_BL, _ = self._compiled(params, batch, device_put(np.uint32(order), sharding))
            log_p.append(-self._sets(device_get(nats_BL).astype(np.float64)).sum(axis=2))
        first_BG, second_BG = (np.logaddexp.reduce(half, axis=0) - math.log(self.form.orders) for half in np.split(np.stack(log_p), 2))
        with np.errstate(over="ignore"):
            sides = [other_BG - 1 + np.exp(one_BG - other_BG) for one_BG, other_BG in ((first_BG, second_BG), (second_BG, first_BG))]
        return -np.mean(sides, axis=0), 2 * self.form.orders * count_BG.max(axis=1, initial=0)

    def _on_device(self, params, batch, order) -> tuple[Float[Array, "B L"], Int[Array, "B"]]:
        """The same along one random order, one token a step."""
        keys_B = jax.vmap(jax.random.fold_in, (0, None))(row_keys(jax.random.key(self.seed), batch["row"]), order)
        score_NS = self._rows_of_sets(uniform_rows(keys_B, batch["tokens"].shape[1]))

        def revealed(_, path: _Path):
            return next_reveals(self._rows_of_sets(path.masked_BL), score_NS, 1).reshape(path.masked_BL.shape), ()

        return self._along(params, batch, revealed, self._count(self._start(batch)))


_EVALUATORS = {Order: OrderEvaluator, Subsets: SubsetEvaluator, Tube: TubeEvaluator}


def path_evaluator(process, bind: Callable[..., Any], *, likelihood: str, **how: Any) -> PathEvaluator:
    """The evaluator of a text of `forms.parse_likelihood`, not "nelbo"; `how`: seed, put_batch, self_condition of `PathEvaluator`.

    Raises InputError: as `parse_likelihood` and `PathEvaluator`.
    """
    form = parse_likelihood(likelihood)
    if form is None:
        raise InputError("likelihood nelbo is that of `Evaluator`")
    return _EVALUATORS[type(form)](process, bind, form, likelihood=likelihood, **how)


class _Read(NamedTuple):
    """A pass of the network: what is computed from its hidden states, at some positions."""

    process: Any
    denoiser: Any
    hidden_BLD: Any
    x_BL: Any
    z: Any
    t_BL: Any
    hinted: bool

    def at(self, mask_BL, function) -> Float[Array, "B L"]:
        """function(process, logits, x, z, t) at the positions of the mask, 0 elsewhere."""
        args, weight_BL = (self.x_BL, self.z, self.t_BL), jnp.ones(self.t_BL.shape, jnp.float32)
        return self.denoiser.row_losses(self.hidden_BLD, mask_BL, Partial(function, self.process), args, weight_BL)[1]

    def hint(self):
        return hint_of(self.process, self.denoiser, self.hidden_BLD, self.z, self.t_BL).astype(jnp.float32)

    @property
    def hint_BLI(self):
        """The hint for the next step of a network that takes one."""
        return self.hint() if self.hinted else None


def _as_batch(nats_B: np.ndarray, calls_B: np.ndarray, of_tokens: Callable[[], np.ndarray] | None) -> BatchNats:
    zeros_B = np.zeros(len(nats_B))
    return BatchNats(nats_B[:, None, None], zeros_B, zeros_B[:, None], of_tokens or _no_tokens, calls_B)


def _no_tokens() -> np.ndarray:
    raise InputError("--likelihood subsets and tube are sums over sets of tokens, and give no number of single tokens")
