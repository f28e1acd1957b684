"""Sampling: from a canvas to text, step by step.  `sample`, the live view, the trace and its replay run the same jitted step.

There are two kinds of step:
  steps in time  from time t to time s by `settings.method` (see `methods`), at the times of `settings.grid`. "ancestral" is the process's
                 reverse step p(z_s | z_t), which every process has.
  rules          for text that starts as masks: draw a token at every masked position, reveal those that a rule chooses and leave the
                 others masked (see `rules`). Causal processes are sampled under the rule `left_to_right`, one token per step.

t falls from the start time of the canvas to exactly 0. A position with a lower start time (edited text) does not change before t has
fallen to it. The network is conditioned on the time of each position: 0 where the canvas conditions, and under rules the value of
`TimeDomain.revealed`.

Randomness: row r of the canvas draws from fold_in(fold_in(key(seed), r), step), so a sample does not depend on the other rows.
Tokens are drawn with high-precision Gumbel noise: plain float32 noise does not exceed 15.94, which cuts the tail of a large vocabulary
and lowers the entropy of the text (Zheng et al. 2409.02908).

Shapes: B rows, L positions, V vocabulary, N times, I inputs of self-conditioning.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from dlmjax.diffusion.hyperschedule import Hyperschedule
from dlmjax.diffusion.objective import hint_of
from dlmjax.diffusion.process import bind_process, draw_tokens, exclude, row_keys, split_rows
from dlmjax.errors import InputError
from dlmjax.models.layout import SINGLE, Layout
from dlmjax.models.masks import Shadowed, Spans
from dlmjax.parallel.arrays import device_get, device_put, memory_bytes, replicated_like
from dlmjax.progress import Progress
from dlmjax.sampling.canvas import Canvas
from dlmjax.sampling.ends import check_hold_back
from dlmjax.sampling.grids import make_grid
from dlmjax.sampling.guidance import check_numbers, function_of, require_guide
from dlmjax.sampling.language import best_text, draw_text, log_marginals, only_revealed
from dlmjax.sampling.methods import make_method
from dlmjax.sampling.placement import CanvasRows
from dlmjax.sampling.regex import require_text
from dlmjax.sampling.reveal import position_scores, probability_of, require_reveals, require_spans, shows_wrong_tokens
from dlmjax.sampling.revising_rules import editable_masks, require_revision
from dlmjax.sampling.rule_names import IN_TIME
from dlmjax.sampling.rules import LeftToRight, View
from dlmjax.sampling.sampler_state import SamplerState, StepTimes, host_state, with_calls, with_revealed, with_rows
from dlmjax.sampling.samples import Counts, Samples, State, unigram_entropy
from dlmjax.sampling.settings import SampleSettings
from dlmjax.sampling.step_denoiser import FunctionDenoiser, LogitsCache, StepDenoiser, select_positions
from dlmjax.sampling.stops import make_stop, nats_at_most
from dlmjax.sampling.warp import warp
from dlmjax.seeds import check_seed


class Sampler:
    """Samples the whole canvas at once, with one process, network and set of settings.  Compiles at the first call of each canvas shape.

    process: see `dlmjax.diffusion`.  bind(params, segments_BL, positions_BL, attention=...) -> denoiser with `hidden` and `logits`.
    params (of the methods): the tree that `bind` takes; process parameters are its entry "process".
    self_condition: the network takes a hint of its last call as input (`ModelSpec.self_condition`); steps carry it on.
    constraint: the `regex.TokenAutomaton` of `settings.regex`.  layout: that of the network, which splits the rows; see `placement`.
    """

    keeps_rows = False  # whether `settings.cache` may name a policy of `reuse`
    drafts = False  # whether `settings.draft` may name drafts

    def __init__(
        self,
        process,
        bind: Callable[..., Any],
        settings: SampleSettings,
        *,
        self_condition: bool = False,
        constraint=None,
        layout: Layout = SINGLE,
    ):
        self.rows = CanvasRows(layout)
        self.name, self.bind, self.settings, self.self_condition = process.name, bind, settings, self_condition
        self.constraint = constraint
        self.process = process.bound  # without what only training uses
        self.causal = process.attention.causal
        self.mask_id = self.process.capabilities.prior_mask_id
        if process.attention.block_size is not None:
            raise InputError(f"process {process.name} is sampled in blocks; use BlockSampler")
        if self.causal:
            if settings.stop:
                raise InputError(f"stop {settings.stop} requires masked tokens, and process {process.name} is causal; leave stop out")
            if settings.rule not in ("left_to_right", IN_TIME):
                raise InputError(f"process {process.name} is causal and requires rule left_to_right, not {settings.rule}")
            settings = self.settings = dataclasses.replace(settings, rule="left_to_right")  # ancestral sampling of a causal process
        if settings.rule != IN_TIME:
            require_reveals(self.process, f"rule {settings.rule}", f"use rule {IN_TIME}")
        settings = self.settings = settings.on_grid(self.process.capabilities.sampling_grid)
        # A causal process takes one step per token, whatever `steps` is.
        self.rule = LeftToRight(count=1) if self.causal else settings.make_rule()
        if self.rule is not None:
            require_revision(self.process, self.rule, settings, self_condition)
        self.stop = make_stop(settings.stop) if settings.stop else None
        self.hold_back = None
        if settings.eos is not None:
            of_process = {"vocab": process.vocab, "causal": self.causal, "predicts": process.output.predicts, "process": process.name}
            self.hold_back = check_hold_back(settings.eos, end_ids=settings.end_ids, **of_process)
        self.stepper = make_method(settings.method)
        self.stepper.check(self.process)
        self.in_noise = self.rule is None and self.stepper.reveals_by is not None  # a rule that reveals tokens in noise without a mask
        self.rule = self.stepper.reveals_by if self.in_noise else self.rule
        self.guide = settings.make_guide()
        if self.guide is not None:
            require_guide(self.guide, self.process)
        self._times_N = make_grid(settings.grid).times(settings.steps).astype(np.float32)
        self._check_network()
        suppressed = {*settings.suppressed_ids, *process.suppressed_ids}
        outside = sorted(i for i in suppressed if not 0 <= i < process.vocab)
        if outside:
            raise InputError(f"suppressed_ids {outside} lie outside the vocabulary of {process.vocab}")
        if len(suppressed) >= process.vocab:
            raise InputError("suppressed_ids contain every token of the vocabulary; leave at least one out")
        if self.process.states.dim:
            # The process itself rounds vectors to tokens.
            self.process = dataclasses.replace(self.process, excluded=tuple(sorted(suppressed)))
        self._suppressed_ids = tuple(sorted(suppressed))
        self._compiled = {}  # by sharding of the weights and function

    def _check_network(self):
        process, settings = self.process, self.settings
        if isinstance(settings.cache, str) and not self.keeps_rows:
            raise InputError(f"cache {settings.cache} requires a network whose keys and values are kept; use sampler_for, or CachedSampler")
        if settings.cache is True and (process.time_input or self.causal or process.states.dim or self.self_condition):
            raise InputError(
                f"cache requires a network that reads tokens alone; that of process {process.name} has further inputs, which change at "
                "each step; leave cache off"
            )
        if settings.cache and self.rule is None and not self.stepper.reads_canvas:
            raise InputError(f"method {settings.method} reads other canvases than that of the step; leave cache off")
        if settings.regex and (self.constraint is None or self.causal):
            raise InputError("regex requires a sampler of the whole canvas that reveals masked tokens in any order; leave regex out")
        if settings.draft is not None and not self.drafts:
            raise InputError(
                f"draft {settings.draft} requires a sampler of the whole canvas, not of blocks or a stride: use sampler_for, or "
                "DraftingSampler"
            )
        if settings.grow:
            raise InputError(f"grow {settings.grow} requires a sampler of the whole canvas with masks; use sampler_for, or GrowingSampler")
        if settings.guidance and self.causal:
            raise InputError(f"process {process.name} is causal and has no output without its prompt; leave guidance at 0")
        if process.output.predicts != "logits" and (settings.temperature, settings.top_p) != (1.0, 1.0):
            raise InputError(
                f"temperature and top_p require a network that predicts logits, but that of process {process.name} predicts "
                f"{process.output.predicts}; leave them at 1"
            )

    # --- public methods -------------------------------------------------------------------------------------------------------

    def sample(self, params, canvas: Canvas, *, seed: int = 0, progress: bool = False) -> Samples:
        """Runs all steps and returns the finished rows.  Raises InputError where the process does not support the canvas."""
        *_, last = self._run(params, canvas, seed, progress)
        return self.finish(host_state(*last, canvas.batch), canvas, seed)

    def sample_by_step(self, params, canvas: Canvas, seeds_BS: Int[np.ndarray, "B S"]) -> Samples:
        """`sample` with a seed for each row and step: column 0 for the start, the last one for all steps behind it too."""
        *_, last = self._run(params, canvas, seeds_BS, progress=False)
        return self.finish(host_state(*last, canvas.batch), canvas, int(seeds_BS[0, 0]))

    def finish(self, last: State, canvas: Canvas, seed: int) -> Samples:
        """The samples of a run whose last state is `last`."""
        return Samples(
            tokens_BL=last.tokens_BL,
            condition_mask_BL=canvas.condition_mask_BL,
            confidence_BL=last.confidence_BL,
            fixed_BL=last.fixed_BL,
            entropy_B=unigram_entropy(last.tokens_BL, ~canvas.condition_mask_BL),
            steps=min(last.step, last.steps),
            evaluations=last.calls,
            counts=last.counts,
            exit_nats_B=last.exit_nats_B,
            accepted_B=last.accepted_B,
            seed=seed,
            process=self.name,
            settings=self.settings,
        )

    def states(self, params, canvas: Canvas, *, seed: int = 0) -> Iterator[State]:
        """Yields the canvas before the first step and after each one, bit for bit as in `sample` with the same seed."""
        for step, steps, state in self._run(params, canvas, seed, progress=False):
            yield host_state(step, steps, state, canvas.batch)

    def run_with(self, params, canvas: Canvas, seed: int, look: Callable[[State], Any]) -> State:
        """The last state of a run in which other rows may continue: `look(state)`, after each step, names the row that continues in place
        of each one, [B], or None."""
        run, state = self._run(params, canvas, seed, progress=False), None
        while True:
            try:
                step, steps, state = run.send(state)
            except StopIteration:
                return host
            host = host_state(step, steps, state, canvas.batch)
            rows_B = look(host)
            if rows_B is not None:
                state = self.rows.put(with_rows(state, rows_B), state.tokens_BL.shape[0], params)

    # --- the run ------------------------------------------------------------------------------------------------------------

    def _begin(self, params, canvas: Canvas, seed: int | np.ndarray) -> tuple[Any, dict[str, Array], SamplerState]:
        """(sharding, the canvas on the device, the state before the first step); seed: of the run, or of each row and step."""
        self._check(canvas)
        for each in (int(seed.min()), int(seed.max())) if isinstance(seed, np.ndarray) else (seed,):
            check_seed(each, "seed")
        names = ("tokens_BL", "condition_mask_BL", "start_BL", "segments_BL", "positions_BL")
        names += ("number_BL",) if self.hold_back else ()
        names += ("spans_L",) if canvas.spans_L is not None else ()
        sharding, canvas = replicated_like(params), self.rows.padded(canvas)
        numbers = {"rows_B": np.arange(canvas.batch, dtype=np.int32), "seed": _seed_at(seed, 0)}
        arrays = self.rows.put({name: getattr(canvas, name) for name in names} | numbers, canvas.batch, params)
        return sharding, arrays, self._jitted(self._start_state, sharding)(params, arrays)

    @property
    def _closing_functions(self) -> list[Callable]:
        """What follows the steps in time. Where z_0 is not the clean text, one call more, at t = 0, draws from p(x | z_0)."""
        if self.rule is not None:
            return []
        return [self._decode] * int(self.process.boundary.reconstruction) + [self._corrector_step] * self.stepper.rounds

    def _run(self, params, canvas: Canvas, seed: int | np.ndarray, progress: bool) -> Iterator[tuple[int, int, SamplerState]]:
        seed = self.rows.padded_seeds(seed)
        sharding, arrays, state = self._begin(params, canvas, seed)
        steps = self._steps(state)
        state = (yield 0, steps, state) or state
        functions = [self._one_step] * steps + self._closing_functions
        with Progress(len(functions), "denoising", " steps", show=None if progress else False) as bar:
            for step, function in enumerate(functions, 1):
                of_step = self._step_params(params, arrays, state, step)
                if isinstance(seed, np.ndarray):
                    arrays["seed"] = self.rows.put(_seed_at(seed, step), len(seed), params)
                state = self._jitted(function, sharding)(of_step, arrays, state, device_put(np.int32(step), sharding))
                if progress:
                    state.tokens_BL.block_until_ready()
                    bar.reach(step)
                state = (yield step, steps, state) or state
                if self._ends_early and not device_get(self._open(state)).any():
                    return

    def _step_params(self, params, canvas: dict[str, Array], state: SamplerState, step: int):
        """The params of step number `step`."""
        return params

    @property
    def _ends_early(self) -> bool:
        """Whether the rows may be finished before the last step."""
        return self.stepper.ends if self.rule is None else not self.rule.planned or self.stop is not None

    def _open(self, state: SamplerState) -> Bool[Array, "B"]:
        """Rows that go on."""
        if self.rule is None:
            return self.stepper.open_rows(state.memory)
        masked_B = state.masked_BL.any(axis=1)
        return masked_B | self.rule.open_rows(state.memory) if self.rule.revises else masked_B

    def _jitted(self, function: Callable, sharding):
        key = sharding, function.__name__
        if key not in self._compiled:
            self._compiled[key] = self.rows.jit(function, sharding)
        return self._compiled[key]

    def _check(self, canvas: Canvas):
        if canvas.tokens_BL.min() < 0 or canvas.tokens_BL.max() >= self.process.vocab:
            raise InputError(
                f"the canvas holds token ids from {canvas.tokens_BL.min()} to {canvas.tokens_BL.max()}, but the model's vocabulary "
                f"has {self.process.vocab}; encode the text with the tokenizer of the run"
            )
        needed = 4 * canvas.batch * canvas.length * self.process.output.columns * (2 if self.settings.guidance else 1) * self.streams
        if needed > memory_bytes():
            raise InputError(
                f"a canvas of {canvas.batch} x {canvas.length} tokens requires {needed / 2**30:,.0f} GiB for the network's output alone, "
                f"and {memory_bytes() / 2**30:,.0f} GiB are available; use a shorter canvas or fewer rows"
            )
        if canvas.spans_L is not None:
            require_spans(self.process, self.settings, self._shadows or self.drafts)
        if self.guide is not None:
            check_numbers(self.guide, canvas.batch, canvas.length, self.process.vocab)
        if self.constraint is not None:
            require_text(self.constraint, canvas.tokens_BL, ~canvas.condition_mask_BL, self._suppressed_ids)
        edited_BL = (canvas.start_BL > 0) & (canvas.start_BL < 1)
        if (
            self.rule is not None
            and not self.rule.revises
            and edited_BL.any()
            and shows_wrong_tokens(self.process, float(canvas.start_BL[edited_BL].max()))
        ):
            raise InputError(
                f"rule {self.settings.rule} requires clean tokens, but process {self.name} leaves wrong tokens in edited text; use rule "
                f"{IN_TIME}"
            )
        if self.causal:
            condition_after_mask = np.diff(canvas.condition_mask_BL.astype(np.int8), axis=1).max(initial=0) > 0
            if condition_after_mask:
                raise InputError(
                    f"process {self.name} is sampled from left to right: it continues a prompt and does not fill in before a suffix"
                )
            if (canvas.start_BL % 1).any():
                raise InputError(f"process {self.name} is causal: it continues a prompt and does not edit text")

    def _steps(self, state: SamplerState) -> int:
        if state.plan is not None:
            return max(1, int(device_get(state.plan.call_BL).max()))
        if self.rule is None:
            return self.settings.steps
        return int(self.rule.steps_of(int(device_get(state.start_masked_BL).sum(axis=1).max()), self.settings.steps))

    # --- on the device ------------------------------------------------------------------------------------------------------

    def _keys(self, canvas, step) -> Key[Array, "B"]:
        if jnp.ndim(canvas["seed"]):  # one of each row
            keys_B = jax.vmap(lambda seed, row: jax.random.fold_in(jax.random.key(seed), row))(canvas["seed"], canvas["rows_B"])
        else:
            keys_B = row_keys(jax.random.key(canvas["seed"]), canvas["rows_B"])
        return jax.vmap(jax.random.fold_in, (0, None))(keys_B, step)

    def _start_state(self, params, canvas) -> SamplerState:
        """State before the first step: the prior at masked positions, edited text with noise of its start time, conditioning text clean."""
        process = bind_process(self.process, params)
        tokens_BL, condition_mask_BL, start_BL = canvas["tokens_BL"], canvas["condition_mask_BL"], canvas["start_BL"]
        batch, length = tokens_BL.shape
        prior_keys_B, edit_keys_B = split_rows(self._keys(canvas, 0))
        if self.causal:
            z, masked_BL = tokens_BL, ~condition_mask_BL
        else:
            if self.rule is not None and not self.in_noise:
                prior = jnp.full_like(tokens_BL, self.mask_id)
            else:
                prior = process.prior(prior_keys_B, length)
                if process.absorbing_id is not None:
                    # A token that a clipped schedule leaves at t = 1 would be kept.
                    prior = jnp.where(jnp.isin(prior, jnp.asarray(self._suppressed_ids)), process.absorbing_id, prior)
            edited = process.corrupt(edit_keys_B, tokens_BL, start_BL)
            z = select_positions(start_BL >= 1, prior, edited)
            clean = process.states.of_tokens(tokens_BL).astype(z.dtype) if process.states.dim else tokens_BL
            z = select_positions(condition_mask_BL, clean, z)
            masked_BL = self._masked(z, condition_mask_BL)
        plan = logits_cache = hint_BLI = None
        if self.rule is None and self.stepper.plans:
            times_BN = jnp.max(start_BL, axis=1, keepdims=True) * self._times_N
            plan = self.stepper.plan(process, prior_keys_B, masked_BL, start_BL, times_BN)
        if self.settings.cache is True:
            logits_cache = LogitsCache(jnp.zeros((batch, length, process.output.columns), jnp.float32), jnp.bool_(True))
        if self.self_condition:
            hint_BLI = jnp.zeros((batch, length, self._hint_size(params, canvas, z)), jnp.float32)
        # Explicit types: a weakly typed first state would compile the step twice.
        confidence_BL = condition_mask_BL.astype(jnp.float32)
        revealed_BL = jnp.where(condition_mask_BL, tokens_BL, process.states.to_tokens(z)).astype(jnp.int32)
        return SamplerState(
            z=z,
            tokens_BL=revealed_BL,
            masked_BL=masked_BL,
            start_masked_BL=masked_BL,
            confidence_BL=confidence_BL,
            fixed_BL=-masked_BL.astype(jnp.int32),
            guess_BL=revealed_BL,
            time=jnp.max(start_BL),
            calls=jnp.int32(0),
            counts=Counts(*(jnp.zeros(batch, jnp.int32) for _ in Counts())),
            stop_memory=() if self.stop is None else self.stop.begin((batch, length)),
            exit_nats_B=jnp.zeros(batch, jnp.float32),
            memory=self.stepper.begin(batch, length) if self.rule is None else self.rule.begin((batch, length), process.output.columns),
            plan=plan,
            logits_cache=logits_cache,
            hint_BLI=hint_BLI,
        )

    def _masked(self, z, condition_mask_BL) -> Bool[Array, "B L"]:
        if self.in_noise:
            return ~condition_mask_BL
        return jnp.zeros_like(condition_mask_BL) if self.mask_id is None else (z == self.mask_id) & ~condition_mask_BL

    def _hint_size(self, params, canvas, z) -> int:
        def hint(params, z):
            process, denoiser, t_BL = bind_process(self.process, params), self._bind_rows(params, canvas), canvas["start_BL"]
            return hint_of(process, denoiser, denoiser.hidden(z, process.time_embedding_input(t_BL)), z, t_BL)

        return jax.eval_shape(hint, params, z).shape[-1]

    def _bind_rows(self, params, canvas, times: int = 1):
        segments_BL, positions_BL = (jnp.concatenate([canvas[name]] * times) for name in ("segments_BL", "positions_BL"))
        attention = Shadowed(segments_BL.shape[1]) if self._shadows else self.process.attention
        attention = Spans(canvas["spans_L"]) if "spans_L" in canvas else attention
        return self.bind(params, segments_BL, positions_BL, attention=attention)

    @property
    def streams(self) -> int:
        """How often a network call reads each position."""
        return 2 if self._shadows else 1

    @property
    def _shadows(self) -> bool:
        return self.rule is not None and self.rule.shadows

    def _step_denoiser(self, process, params, canvas, state: SamplerState, times: StepTimes | None = None) -> StepDenoiser:
        """The network of a step; `times`: of the step, None behind the last one in time."""
        unconditional, guided = None, bool(self.settings.guidance)
        if guided:
            prior_keys_B, _ = split_rows(self._keys(canvas, 0))
            unconditional = process.prior(prior_keys_B, state.tokens_BL.shape[1])
        denoise = StepDenoiser(
            process,
            self._bind_rows(params, canvas, 2 if guided else 1),
            self.settings,
            self._suppressed_ids,
            condition_mask_BL=canvas["condition_mask_BL"],
            unconditional=unconditional,
            logits_cache=state.logits_cache,
            hint_BLI=state.hint_BLI,
        )
        denoise.shadow_id = self.mask_id if self._shadows else None
        denoise.end_factor_BL = self._end_factor(canvas, state, times)
        return denoise

    def _end_factor(self, canvas, state: SamplerState, times: StepTimes | None) -> Float[Array, "B L"] | None:
        """The factor of the end of document; None where it is not held back."""
        if self.hold_back is None:
            return None
        if times is None:
            done_BL = jnp.ones(state.tokens_BL.shape)
        elif self.rule is not None and not self.rule.planned:  # its steps are not known before: positions in place of steps
            start_B = jnp.maximum(state.start_masked_BL.sum(axis=1), 1)
            done_BL = jnp.broadcast_to((1 - state.masked_BL.sum(axis=1) / start_B)[:, None], state.tokens_BL.shape)
        else:
            done_BL = 1 - times.t_BL / jnp.maximum(canvas["start_BL"], 1e-6)
        return self.hold_back.factor(canvas["number_BL"], done_BL)

    def _step_times(self, canvas, state: SamplerState, step) -> StepTimes:
        start_BL, top_B = canvas["start_BL"], jnp.max(canvas["start_BL"], axis=1)
        if state.plan is not None:
            before_B, after_B = (jnp.take(state.plan.times_BN, i, axis=1, mode="clip") for i in (step - 1, step))
        elif self.rule is None:
            before_B, after_B = (top_B * jnp.take(self._times_N, i) for i in (step - 1, step))
        else:
            steps_B = self.rule.steps_of(state.start_masked_BL.sum(axis=1), self.settings.steps)
            before_B, after_B = (top_B * jnp.maximum(steps_B - i, 0) / steps_B for i in (step - 1, step))
        before_BL, after_BL = before_B[:, None], after_B[:, None]
        if self.settings.sweep is not None:
            times = (jnp.take(self._times_N, i)[None] for i in (step - 1, step))
            sweep, length = Hyperschedule(self.settings.sweep), start_BL.shape[1]
            before_BL, after_BL = (top_B[:, None] * sweep.times_at(time_1, length) for time_1 in times)
        t_BL, s_BL = jnp.minimum(before_BL, start_BL), jnp.minimum(after_BL, start_BL)
        # A step with t = s counts, but not at a position whose start time is still below t.
        moves_BL = s_BL < t_BL if self.settings.sweep is not None else after_BL < start_BL
        if state.plan is not None:
            moves_BL = state.plan.call_BL == step
            s_BL = jnp.where(moves_BL, 0.0, t_BL)
        return StepTimes(t_BL, s_BL, moves_BL, jnp.max(after_B))

    def _one_step(self, params, canvas, state: SamplerState, step) -> SamplerState:
        """Step number `step` (1..N, traced)."""
        process, times = bind_process(self.process, params), self._step_times(canvas, state, step)
        keys_B = self._keys(canvas, step)
        denoise = self._step_denoiser(process, params, canvas, state, times)
        if self.rule is None:
            of_step = split_rows(keys_B)[0], denoise, state.z, times.t_BL, times.s_BL
            z, memory = self.stepper.stepped(process, *of_step, state.memory)
            needed_B = self.stepper.open_rows(state.memory) if self.stepper.ends else True
            if self.guide is not None and self.guide.on_vectors:
                z = self.guide.moved(process, function_of(self.guide), z, times.s_BL)
                denoise.counts = denoise.counts.plus(Counts(extra_B=self.guide.passes(z.shape[1], process.vocab)))
            z = select_positions(times.moves_BL, z, state.z)
            after = self._updated(process, canvas, state, z, process.states.to_tokens(z), denoise, step, needed_B)
            after = after._replace(memory=memory)
        else:
            read_BL = process.corrupt(split_rows(keys_B)[0], state.z, times.t_BL) if self.causal else state.z
            t_BL = process.time_domain.revealed(state.masked_BL, times.t_BL, canvas["start_BL"])
            if self.rule.revises:
                t_BL = jnp.where(editable_masks(state.masked_BL, canvas["condition_mask_BL"]), self.rule.level, t_BL)
            t_BL = state.masked_BL.astype(jnp.float32) if self.in_noise else t_BL
            logits_BLV = process.output.log_posterior(denoise(read_BL, t_BL), read_BL, t_BL)
            after = self._reveal(canvas, state, keys_B, exclude(logits_BLV, self._suppressed_ids), denoise, step)
        return after._replace(time=times.after)

    def _decode(self, params, canvas, state: SamplerState, step) -> SamplerState:
        """Draws x from p(x | z_0), at t = 0."""
        process = bind_process(self.process, params)
        _, keys_B = split_rows(self._keys(canvas, step))
        denoise = self._step_denoiser(process, params, canvas, state)
        logits_BLV = denoise(state.z, jnp.zeros_like(canvas["start_BL"]))
        tokens_BL = jnp.where(canvas["condition_mask_BL"], state.tokens_BL, process.decode(keys_B, logits_BLV, state.z))
        z = state.z if process.states.dim else tokens_BL
        return self._updated(process, canvas, state, z, tokens_BL, denoise, step)

    def _corrector_step(self, params, canvas, state: SamplerState, step) -> SamplerState:
        """One corrector step on finished text."""
        process, editable_BL = bind_process(self.process, params), ~canvas["condition_mask_BL"]
        keys_B, _ = split_rows(self._keys(canvas, step))
        denoise = self._step_denoiser(process, params, canvas, state)
        needed_B = self.stepper.open_rows(state.memory) if self.stepper.ends else True
        z, memory = self.stepper.corrected(process, keys_B, denoise, state.z, editable_BL, state.memory)
        z = select_positions(editable_BL, z, state.z)
        after = self._updated(process, canvas, state, z, process.states.to_tokens(z), denoise, step, needed_B)
        return after._replace(memory=memory)

    def _updated(self, process, canvas, state: SamplerState, z, tokens_BL, denoise: StepDenoiser, step, needed_B=True) -> SamplerState:
        """The state after a step in time to z.  needed_B: rows whose call counts."""
        condition_mask_BL, log_p_BLV = canvas["condition_mask_BL"], denoise.log_p_BLV
        tokens_BL = jnp.where(condition_mask_BL, state.tokens_BL, tokens_BL).astype(jnp.int32)
        needed_B = jnp.max(state.plan.call_BL, axis=1) >= step if state.plan is not None else needed_B
        state = with_calls(state, denoise, jnp.any(z != state.z), needed_B)._replace(z=z)
        if self.mask_id is not None:
            return with_revealed(state, tokens_BL, self._masked(tokens_BL, condition_mask_BL), log_p_BLV, step)
        # A network that predicts vectors gives no probability of a token.
        confidence_BL = jnp.ones_like(state.confidence_BL) if log_p_BLV is None else probability_of(log_p_BLV, tokens_BL)
        return state._replace(
            tokens_BL=tokens_BL,
            confidence_BL=jnp.where(condition_mask_BL, 1.0, confidence_BL).astype(jnp.float32),
            fixed_BL=jnp.where(tokens_BL != state.tokens_BL, step, state.fixed_BL),
        )

    def _drawn(self, keys_B, warped_BLV, log_p_BLV, state: SamplerState) -> tuple[Int[Array, "B L"], Float[Array, "B L V"]]:
        """A token for each position, and log p(x_i | z); with a constraint those of texts in its language."""
        if self.constraint is None:
            return draw_tokens(keys_B, warped_BLV), log_p_BLV
        possible_BLV = only_revealed(log_p_BLV, state.tokens_BL, state.masked_BL)
        if self.settings.temperature == 0:
            x0_BL = best_text(self.constraint, possible_BLV)
        else:
            x0_BL = draw_text(self.constraint, keys_B, only_revealed(warped_BLV, state.tokens_BL, state.masked_BL))
        return x0_BL, log_marginals(self.constraint, possible_BLV)

    def _reveal(self, canvas, state: SamplerState, keys_B, warped_BLV, denoise: StepDenoiser, step) -> SamplerState:
        """Applies the rule's choice: revealed positions take the token drawn there, those that are masked again the mask.

        The drawn tokens are from p(x_i | z) after temperature and nucleus (`warped_BLV`). Rules read p(x_i | z) before them.
        """
        log_p_BLV, memory = denoise.log_posterior_BLV, state.memory
        if self.rule.reweighs:
            weighed_BLV, memory = self.rule.reweigh(memory, log_p_BLV)
            log_p_BLV = jax.nn.log_softmax(weighed_BLV)
            warped_BLV = warp(weighed_BLV, self.settings.temperature, self.settings.top_p)
        x0_BL, log_p_BLV = self._drawn(split_rows(keys_B)[0], warped_BLV, log_p_BLV, state)
        view = View(
            masked_BL=state.masked_BL,
            start_masked_BL=state.start_masked_BL,
            step=step,
            steps=self.settings.steps,
            scores_of=lambda name: position_scores(name, log_p_BLV),
            log_p=lambda: log_p_BLV,
            keys_B=keys_B,
            p_drawn_BL=probability_of(log_p_BLV, x0_BL),
            tokens_BL=state.tokens_BL,
            drawn_BL=x0_BL,
            editable_BL=~canvas["condition_mask_BL"],
            p_alone_BL=probability_of(jax.nn.log_softmax(denoise.shadow_BLV), state.tokens_BL) if self._shadows else None,
        )
        choice = self.rule.choose(view, memory)
        new_BL = choice.reveal_BL & state.masked_BL
        masked_BL = state.masked_BL & ~new_BL
        if choice.remask_BL is not None:
            masked_BL |= choice.remask_BL & state.start_masked_BL & ~state.masked_BL
        if self.stop is not None:
            end_B, stop_memory = self.stop.done(view, state.stop_memory)
            ends_BL = end_B[:, None] & state.masked_BL
            nats_B = jnp.where(jnp.any(ends_BL, axis=1), nats_at_most(view), state.exit_nats_B)
            state = state._replace(stop_memory=stop_memory, exit_nats_B=nats_B.astype(jnp.float32))
            if not self.stop.draws:
                x0_BL = jnp.where(ends_BL, jnp.argmax(warped_BLV, axis=-1), x0_BL).astype(jnp.int32)
            new_BL, masked_BL = new_BL | ends_BL, masked_BL & ~end_B[:, None]
        masked_z_BL = state.z if self.mask_id is None else jnp.where(masked_BL, self.mask_id, state.z)
        if choice.swap_BL is not None:
            new_BL |= choice.swap_BL & editable_masks(state.masked_BL, canvas["condition_mask_BL"])
        z_BL = jnp.where(new_BL, x0_BL, masked_z_BL)
        needed_B = self._open(state)
        state = with_calls(state, denoise, jnp.any(z_BL != state.z), needed_B)._replace(z=z_BL, memory=choice.memory)
        return with_revealed(state, z_BL, masked_BL, log_p_BLV, step)


def _seed_at(seed: int | np.ndarray, step: int) -> np.ndarray | np.uint32:
    """The seed of a step, or that of each row; the last one of a row is that of all later steps."""
    return seed[:, min(step, seed.shape[1] - 1)].astype(np.uint32) if isinstance(seed, np.ndarray) else np.uint32(seed)


def sample(process, denoise: Callable[[Array, Array], Array], canvas: Canvas, *, seed: int = 0, **settings) -> Samples:
    """One-off sampling with `denoise(z_BL, t_BL) -> logits_BLV`; compiles anew on every call (keep a `Sampler` to avoid that)."""
    return Sampler(process, lambda *_, **__: FunctionDenoiser(denoise), SampleSettings(**settings)).sample((), canvas, seed=seed)


def sample_steps(process, denoise: Callable[[Array, Array], Array], canvas: Canvas, *, seed: int = 0, **settings) -> Iterator[State]:
    """The states that `sample` with the same arguments goes through."""
    return Sampler(process, lambda *_, **__: FunctionDenoiser(denoise), SampleSettings(**settings)).states((), canvas, seed=seed)
