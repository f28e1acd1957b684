"""Drawing text: from a canvas, step by step, to tokens.  One jitted step serves every step, the live view, the trace and its replay.

Two kinds of step:
  in time        from level t to level s by `settings.method` (see `methods`); "ancestral" is the reverse process itself, p(z_s | z_t),
                 and there for every process. The levels are those of `settings.grid`.
  reveal orders  where text starts as masks: draw a token for every hole, show the few that score best, leave the rest masked
                 (see `reveal`). `left_to_right` is also how causal processes are sampled: one token per step.

Time runs on a clock that falls from the canvas's start level to 0, so the last step ends at 0 exactly. A position that starts lower
(edited text) waits until the clock has come down to its level. The network is told the level of each position: 0 where it is frozen,
and in reveal orders what `TimeDomain.revealed` says of what is shown.

Randomness: row r of the canvas draws from fold_in(fold_in(key(seed), r), step), so a sample does not depend on the rows beside it.
Tokens are drawn with high-precision Gumbel noise: in float32 the plain kind never exceeds 15.94, which silently cuts the tail of a
large vocabulary and lowers the entropy of the text (Zheng et al. 2409.02908).

Shapes: B rows, L positions, V vocabulary, N levels.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from dlmjax.diffusion.hyperschedule import Hyperschedule
from dlmjax.diffusion.process import bind_process, draw_tokens, exclude, row_keys, split_rows
from dlmjax.errors import InputError
from dlmjax.parallel.arrays import device_get, device_put, memory_bytes, replicated_like
from dlmjax.progress import Progress
from dlmjax.sampling.calls import BoundLogits, LogitsCache, StepDenoiser, put
from dlmjax.sampling.canvas import Canvas
from dlmjax.sampling.grids import make_grid
from dlmjax.sampling.methods import make_method
from dlmjax.sampling.reveal import order_scores, planned, probability_of
from dlmjax.sampling.samples import Samples, State, unigram_entropy
from dlmjax.sampling.settings import SampleSettings
from dlmjax.sampling.steppers import StepSchedule, rank
from dlmjax.seeds import check_seed


class SamplerState(NamedTuple):
    """What one step hands to the next (on the device)."""

    z: Shaped[Array, "B L *state"]
    tokens_BL: Int[Array, "B L"]  # what z shows
    masked_BL: Bool[Array, "B L"]
    start_masked_BL: Bool[Array, "B L"]  # hidden at the start
    confidence_BL: Float[Array, "B L"]
    score_BL: Float[Array, "B L"]  # by the order, when it was revealed
    fixed_BL: Int[Array, "B L"]
    time: Float[Array, ""]  # the highest clock of any row
    calls: Int[Array, ""]
    plan: StepSchedule | None
    logits_cache: LogitsCache | None
    hint_BLI: Float[Array, "B L I"] | None


class StepTimes(NamedTuple):
    """The levels of a step: from t to s where a position moves, the clock after it."""

    t_BL: Float[Array, "B L"]
    s_BL: Float[Array, "B L"]
    moves_BL: Bool[Array, "B L"]
    after: Float[Array, ""]


class Sampler:
    """Samples from one process and network with one set of settings.  Compiles on first use; keep it and call it with new params.

    process: see `dlmjax.diffusion`.  bind(params, segments_BL, positions_BL, attention=...) -> denoiser with `hidden` and `logits`.
    params: the tree that `bind` takes; what the process has learned is its entry "process", if it has one.
    self_condition: the network takes its last estimate as a hint (`ModelSpec.self_condition`).
    """

    def __init__(self, process, bind: Callable[..., Any], settings: SampleSettings, *, self_condition: bool = False):
        self.name, self.bind, self.settings, self.self_condition = process.name, bind, settings, self_condition
        self.process = process.bound  # training may draw its noise in another way
        self.causal = process.attention.causal
        self.mask_id = self.process.capabilities.prior_mask_id
        if process.attention.block_size is not None:
            raise InputError(f"process {process.name} is sampled block by block: use BlockSampler")
        if self.causal:
            if settings.order not in ("left_to_right", "ancestral"):
                raise InputError(f"process {process.name} is causal: it is sampled left_to_right, not in {settings.order} order")
            settings = self.settings = dataclasses.replace(settings, order="left_to_right")  # what ancestral means there
        if not self.causal and self.mask_id is None and settings.order != "ancestral":
            raise InputError(f"order {settings.order} reveals masked tokens, but process {process.name} has no mask; use ancestral")
        settings = self.settings = settings.on_grid(self.process.capabilities.sampling_grid)
        self.reveals = settings.order != "ancestral"
        # A step for each hole, whatever `steps` says: a threshold stops before that.
        self._one_by_one = self.causal or settings.threshold is not None
        if self.reveals and self._replaced(0.0):
            raise InputError(
                f"order {settings.order} takes what is shown for the text, but process {process.name} with its clipped schedule still "
                "shows other tokens at t = 0; use order ancestral"
            )
        self.stepper = make_method(settings.method)
        self.stepper.check(self.process)
        self._levels_N = make_grid(settings.grid).levels(settings.steps).astype(np.float32)
        self._check_calls()
        suppressed = {*settings.suppressed_ids, *process.suppressed_ids}
        outside = sorted(i for i in suppressed if not 0 <= i < process.vocab)
        if outside:
            raise InputError(f"suppressed_ids {outside} lie outside the vocabulary of {process.vocab}")
        if len(suppressed) >= process.vocab:
            raise InputError("every token of the vocabulary is suppressed from sampling")
        if self.process.states.dim:
            # Vectors are rounded to tokens by the process itself.
            self.process = dataclasses.replace(self.process, excluded=tuple(sorted(suppressed)))
        self._suppressed_ids = tuple(sorted(suppressed))
        self._compiled = {}  # by placement of the weights

    def _check_calls(self):
        process, settings = self.process, self.settings
        if settings.cache and (process.time_input or self.causal or process.states.dim or self.self_condition):
            raise InputError(
                f"cache leaves out calls where no token has changed, but the network of process {process.name} is conditioned on more "
                "than the tokens; leave cache off"
            )
        if settings.guidance and self.causal:
            raise InputError(f"process {process.name} is causal: its prompt cannot be hidden, so leave guidance at 0")
        if process.output.predicts != "logits" and (settings.temperature, settings.top_p) != (1.0, 1.0):
            raise InputError(f"the network of process {process.name} predicts no law of tokens; leave temperature and top_p at 1")

    # --- what callers use ---------------------------------------------------------------------------------------------------

    def sample(self, params, canvas: Canvas, *, seed: int = 0, progress: bool = False) -> Samples:
        """Runs all steps and returns the finished rows.  Raises InputError when the canvas does not suit the process."""
        *_, last = self._run(params, canvas, seed, progress)
        return self.finish(_state(*last), canvas, seed)

    def finish(self, last: State, canvas: Canvas, seed: int) -> Samples:
        """The samples of a run whose last state is `last`."""
        return Samples(
            tokens_BL=last.tokens_BL,
            frozen_BL=canvas.frozen_BL,
            confidence_BL=last.confidence_BL,
            fixed_BL=last.fixed_BL,
            entropy_B=unigram_entropy(last.tokens_BL, ~canvas.frozen_BL),
            steps=min(last.step, last.steps),
            evaluations=last.calls,
            seed=seed,
            process=self.name,
            settings=self.settings,
        )

    def states(self, params, canvas: Canvas, *, seed: int = 0) -> Iterator[State]:
        """Yields the canvas before the first step and after each one: bit for bit what `sample` goes through with the same seed."""
        for step, steps, carry in self._run(params, canvas, seed, progress=False):
            yield _state(step, steps, carry)

    # --- the run ------------------------------------------------------------------------------------------------------------

    def _run(self, params, canvas: Canvas, seed: int, progress: bool) -> Iterator[tuple[int, int, SamplerState]]:
        self._check(canvas)
        check_seed(seed, "seed")
        names = ("tokens_BL", "frozen_BL", "start_BL", "segments_BL", "positions_BL")
        sharding = replicated_like(params)
        arrays = device_put({name: getattr(canvas, name) for name in names} | {"seed": np.uint32(seed)}, sharding)
        carry = self._jitted(self._start_state, sharding)(params, arrays)
        steps = self._steps(carry)
        yield 0, steps, carry
        acts = [self._one_step] * steps
        if not self.reveals:
            # Where p(x | z_0) is not trivial, one call more, at t = 0, draws the clean text from z_0.
            acts += [self._decode] * int(self.process.boundary.reconstruction) + [self._corrector_step] * self.stepper.rounds
        with Progress(len(acts), "denoising", " steps", show=None if progress else False) as bar:
            for step, act in enumerate(acts, 1):
                carry = self._jitted(act, sharding)(params, arrays, carry, device_put(np.int32(step), sharding))
                if progress:
                    carry.tokens_BL.block_until_ready()
                    bar.reach(step)
                yield step, steps, carry
                if self.settings.threshold is not None and not device_get(carry.masked_BL).any():
                    return

    def _replaced(self, t: float) -> bool:
        """Whether noise at level t shows tokens as others.  Of a causal process there is no noise."""
        return not self.causal and bool(device_get(self.process.replaced(device_put(np.float32(t), None))) > 0)

    def _jitted(self, function: Callable, sharding):
        key = sharding, function.__name__
        if key not in self._compiled:
            self._compiled[key] = jax.jit(function, out_shardings=sharding)
        return self._compiled[key]

    def _check(self, canvas: Canvas):
        if canvas.tokens_BL.min() < 0 or canvas.tokens_BL.max() >= self.process.vocab:
            raise InputError(
                f"the canvas holds token ids from {canvas.tokens_BL.min()} to {canvas.tokens_BL.max()}, but the model's vocabulary "
                f"has {self.process.vocab}; the text was encoded with another tokenizer"
            )
        needed = 4 * canvas.batch * canvas.length * self.process.output.columns * (2 if self.settings.guidance else 1)
        if needed > memory_bytes():
            raise InputError(
                f"a canvas of {canvas.batch} x {canvas.length} tokens takes {needed / 2**30:,.0f} GiB for the network's output alone, of "
                f"{memory_bytes() / 2**30:,.0f} GiB there are; make it shorter, or of fewer rows"
            )
        edited_BL = (canvas.start_BL > 0) & (canvas.start_BL < 1)
        if self.reveals and edited_BL.any() and self._replaced(float(canvas.start_BL[edited_BL].max())):
            raise InputError(
                f"order {self.settings.order} takes what is shown for the text, but process {self.name} shows other tokens where text is "
                "edited; use order ancestral"
            )
        if self.causal:
            frozen_after_hole = np.diff(canvas.frozen_BL.astype(np.int8), axis=1).max(initial=0) > 0
            if frozen_after_hole:
                raise InputError(f"process {self.name} reads left to right: it can continue a prompt, not fill in before given text")
            if (canvas.start_BL % 1).any():
                raise InputError(f"process {self.name} has no noise levels: it cannot edit text, only continue a prompt")

    def _steps(self, carry: SamplerState) -> int:
        if carry.plan is not None:
            return max(1, int(device_get(carry.plan.call_BL).max()))
        if not self.reveals:
            return self.settings.steps
        most = int(device_get(carry.start_masked_BL).sum(axis=1).max())
        return max(1, most if self._one_by_one else min(self.settings.steps, most))

    # --- on the device ------------------------------------------------------------------------------------------------------

    def _keys(self, seed, rows: int, step) -> Key[Array, "B"]:
        keys_B = row_keys(jax.random.key(seed), jnp.arange(rows))
        return jax.vmap(jax.random.fold_in, (0, None))(keys_B, step)

    def _start_state(self, params, canvas) -> SamplerState:
        """Step 0: holes at the prior, edited text corrupted to its level, frozen text as given."""
        process = bind_process(self.process, params)
        tokens_BL, frozen_BL, start_BL = canvas["tokens_BL"], canvas["frozen_BL"], canvas["start_BL"]
        batch, length = tokens_BL.shape
        prior_keys_B, edit_keys_B = split_rows(self._keys(canvas["seed"], batch, 0))
        if self.causal:
            z, masked_BL = tokens_BL, ~frozen_BL
        else:
            if self.reveals:
                empty = jnp.full_like(tokens_BL, self.mask_id)
            else:
                empty = process.prior(prior_keys_B, length)
                if process.absorbing_id is not None:
                    # What a clipped schedule leaves at t = 1 stays.
                    empty = jnp.where(jnp.isin(empty, jnp.asarray(self._suppressed_ids)), process.absorbing_id, empty)
            edited = process.corrupt(edit_keys_B, tokens_BL, start_BL)
            z = put(start_BL >= 1, empty, edited)
            if not process.states.dim:
                z = put(frozen_BL, tokens_BL, z)
            masked_BL = self._masked(z, frozen_BL)
        plan = logits_cache = hint_BLI = None
        if not self.reveals and self.stepper.plans:
            levels_BN = jnp.max(start_BL, axis=1, keepdims=True) * self._levels_N
            plan = self.stepper.plan(process, prior_keys_B, masked_BL, start_BL, levels_BN)
        if self.settings.cache:
            logits_cache = LogitsCache(jnp.zeros((batch, length, process.output.columns), jnp.float32), jnp.bool_(True))
        if self.self_condition:
            hint_BLI = jnp.zeros((batch, length, self._hint_size(params, canvas, z)), jnp.float32)
        # Explicit types: a weakly typed first carry would have the step compiled twice.
        confidence_BL = frozen_BL.astype(jnp.float32)
        shown_BL = jnp.where(frozen_BL, tokens_BL, process.states.to_tokens(z)).astype(jnp.int32)
        return SamplerState(
            z=z,
            tokens_BL=shown_BL,
            masked_BL=masked_BL,
            start_masked_BL=masked_BL,
            confidence_BL=confidence_BL,
            score_BL=jnp.zeros_like(confidence_BL),
            fixed_BL=-masked_BL.astype(jnp.int32),
            time=jnp.max(start_BL),
            calls=jnp.int32(0),
            plan=plan,
            logits_cache=logits_cache,
            hint_BLI=hint_BLI,
        )

    def _masked(self, z, frozen_BL) -> Bool[Array, "B L"]:
        return jnp.zeros_like(frozen_BL) if self.mask_id is None else (z == self.mask_id) & ~frozen_BL

    def _hint_size(self, params, canvas, z) -> int:
        def estimate(params, z):
            process, denoiser, t_BL = bind_process(self.process, params), self._bound(params, canvas), canvas["start_BL"]
            return process.output.x0(denoiser, denoiser.hidden(z, process.time_embedding_input(t_BL)), z, t_BL)

        return jax.eval_shape(estimate, params, z).shape[-1]

    def _bound(self, params, canvas, times: int = 1):
        segments_BL, positions_BL = (jnp.concatenate([canvas[name]] * times) for name in ("segments_BL", "positions_BL"))
        return self.bind(params, segments_BL, positions_BL, attention=self.process.attention)

    def _calls(self, process, params, canvas, carry: SamplerState) -> StepDenoiser:
        blank, guided = None, self.settings.guidance > 0
        if guided:
            prior_keys_B, _ = split_rows(self._keys(canvas["seed"], carry.tokens_BL.shape[0], 0))
            blank = process.prior(prior_keys_B, carry.tokens_BL.shape[1])
        return StepDenoiser(
            process,
            self._bound(params, canvas, 2 if guided else 1),
            self.settings,
            self._suppressed_ids,
            frozen_BL=canvas["frozen_BL"],
            blank=blank,
            logits_cache=carry.logits_cache,
            hint_BLI=carry.hint_BLI,
        )

    def _step_times(self, canvas, carry: SamplerState, step) -> StepTimes:
        start_BL, top_B = canvas["start_BL"], jnp.max(canvas["start_BL"], axis=1)
        if carry.plan is not None:
            before_B, after_B = (jnp.take(carry.plan.clock_BN, i, axis=1, mode="clip") for i in (step - 1, step))
        elif not self.reveals:
            before_B, after_B = (top_B * jnp.take(self._levels_N, i) for i in (step - 1, step))
        else:
            steps_B = self._steps_of_rows(carry)
            before_B, after_B = (top_B * jnp.maximum(steps_B - i, 0) / steps_B for i in (step - 1, step))
        before_BL, after_BL = before_B[:, None], after_B[:, None]
        if self.settings.sweep is not None:
            levels = (jnp.take(self._levels_N, i)[None] for i in (step - 1, step))
            sweep, length = Hyperschedule(self.settings.sweep), start_BL.shape[1]
            before_BL, after_BL = (top_B[:, None] * sweep.times_at(level_1, length) for level_1 in levels)
        t_BL, s_BL = jnp.minimum(before_BL, start_BL), jnp.minimum(after_BL, start_BL)
        # Steps from a level to itself are steps too, but not where a position waits for its time.
        moves_BL = s_BL < t_BL if self.settings.sweep is not None else after_BL < start_BL
        if carry.plan is not None:
            moves_BL = carry.plan.call_BL == step
            s_BL = jnp.where(moves_BL, 0.0, t_BL)
        return StepTimes(t_BL, s_BL, moves_BL, jnp.max(after_B))

    def _steps_of_rows(self, carry: SamplerState) -> Int[Array, "B"]:
        start_masked_B = jnp.maximum(carry.start_masked_BL.sum(axis=1), 1)
        return start_masked_B if self._one_by_one else jnp.minimum(self.settings.steps, start_masked_B)

    def _one_step(self, params, canvas, carry: SamplerState, step) -> SamplerState:
        """Step `step` (1..N, traced): the one function behind sample, states, trace and replay."""
        process, times = bind_process(self.process, params), self._step_times(canvas, carry, step)
        keys = split_rows(self._keys(canvas["seed"], carry.tokens_BL.shape[0], step))
        calls = self._calls(process, params, canvas, carry)
        if not self.reveals:
            z = self.stepper.step(process, keys[0], calls, carry.z, times.t_BL, times.s_BL)
            z = put(times.moves_BL, z, carry.z)
            after = self._after(process, canvas, carry, z, process.states.to_tokens(z), calls, step)
        else:
            read_BL = process.corrupt(keys[0], carry.z, times.t_BL) if self.causal else carry.z
            t_BL = process.time_domain.revealed(carry.masked_BL, times.t_BL, canvas["start_BL"])
            logits_BLV = process.output.log_posterior(calls(read_BL, t_BL), read_BL, t_BL)
            after = self._reveal(carry, keys, exclude(logits_BLV, self._suppressed_ids), calls, step)
        return after._replace(time=times.after)

    def _decode(self, params, canvas, carry: SamplerState, step) -> SamplerState:
        """x ~ p(x | z_0), at t = 0."""
        process = bind_process(self.process, params)
        _, keys_B = split_rows(self._keys(canvas["seed"], carry.tokens_BL.shape[0], step))
        calls = self._calls(process, params, canvas, carry)
        logits_BLV = calls(carry.z, jnp.zeros_like(canvas["start_BL"]))
        tokens_BL = jnp.where(canvas["frozen_BL"], carry.tokens_BL, process.decode(keys_B, logits_BLV, carry.z))
        z = carry.z if process.states.dim else tokens_BL
        return self._after(process, canvas, carry, z, tokens_BL, calls, step)

    def _corrector_step(self, params, canvas, carry: SamplerState, step) -> SamplerState:
        """One round of changes to finished text."""
        process, free_BL = bind_process(self.process, params), ~canvas["frozen_BL"]
        keys_B, _ = split_rows(self._keys(canvas["seed"], carry.tokens_BL.shape[0], step))
        calls = self._calls(process, params, canvas, carry)
        z = put(free_BL, self.stepper.corrector_step(process, keys_B, calls, carry.z, free_BL), carry.z)
        return self._after(process, canvas, carry, z, process.states.to_tokens(z), calls, step)

    def _after(self, process, canvas, carry: SamplerState, z, tokens_BL, calls: StepDenoiser, step) -> SamplerState:
        """The carry of a step in time that led to z."""
        frozen_BL, log_p_BLV = canvas["frozen_BL"], calls.log_p_BLV
        tokens_BL = jnp.where(frozen_BL, carry.tokens_BL, tokens_BL).astype(jnp.int32)
        carry = _remembered(carry, calls, jnp.any(z != carry.z))._replace(z=z)
        if self.mask_id is not None:
            return _shown(carry, tokens_BL, self._masked(tokens_BL, frozen_BL), log_p_BLV, carry.score_BL, step)
        # A network that predicts vectors says nothing of how sure it is of a token.
        sure_BL = jnp.ones_like(carry.confidence_BL) if log_p_BLV is None else probability_of(log_p_BLV, tokens_BL)
        return carry._replace(
            tokens_BL=tokens_BL,
            confidence_BL=jnp.where(frozen_BL, 1.0, sure_BL).astype(jnp.float32),
            fixed_BL=jnp.where(tokens_BL != carry.tokens_BL, step, carry.fixed_BL),
        )

    def _reveal(self, carry: SamplerState, keys, warped_BLV, calls: StepDenoiser, step) -> SamplerState:
        """Shows the best-scoring holes: as many as `reveal.planned` says, or those above the threshold and always the best."""
        settings, log_p_BLV, steps_B = self.settings, calls.log_posterior_BLV, self._steps_of_rows(carry)
        guess_BL = draw_tokens(keys[0], warped_BLV)
        p_guess_BL = probability_of(log_p_BLV, guess_BL)
        score_BL = order_scores(settings.order, keys[1], log_p_BLV, p_guess_BL)
        start_masked_B = carry.start_masked_BL.sum(axis=1)
        plan_B = planned(settings.remainder, start_masked_B, steps_B, step)
        if settings.remask:
            score_BL = jnp.where(carry.masked_BL, score_BL, carry.score_BL)
            shown_BL = carry.start_masked_BL & (rank(score_BL, carry.start_masked_BL) < plan_B[:, None])
            new_BL = shown_BL & carry.masked_BL
        else:
            if settings.threshold is None:
                more_B = plan_B - (start_masked_B - carry.masked_BL.sum(axis=1))
                new_BL = carry.masked_BL & (rank(score_BL, carry.masked_BL) < more_B[:, None])
            else:
                new_BL = carry.masked_BL & ((p_guess_BL >= settings.threshold) | (rank(score_BL, carry.masked_BL) < 1))
            shown_BL = (carry.start_masked_BL & ~carry.masked_BL) | new_BL
        masked_BL = carry.start_masked_BL & ~shown_BL
        empty_BL = carry.z if self.mask_id is None else jnp.where(masked_BL, self.mask_id, carry.z)
        z_BL = jnp.where(new_BL, guess_BL, empty_BL)
        carry = _remembered(carry, calls, jnp.any(z_BL != carry.z))._replace(z=z_BL)
        return _shown(carry, z_BL, masked_BL, log_p_BLV, jnp.where(new_BL, score_BL, carry.score_BL), step)


def sample(process, denoise: Callable[[Array, Array], Array], canvas: Canvas, *, seed: int = 0, **settings) -> Samples:
    """One-off sampling with `denoise(z_BL, t_BL) -> logits_BLV`; compiles anew on every call (keep a `Sampler` to avoid that)."""
    return Sampler(process, lambda *_, **__: BoundLogits(denoise), SampleSettings(**settings)).sample((), canvas, seed=seed)


def sample_steps(process, denoise: Callable[[Array, Array], Array], canvas: Canvas, *, seed: int = 0, **settings) -> Iterator[State]:
    """The states that `sample` with the same arguments goes through."""
    return Sampler(process, lambda *_, **__: BoundLogits(denoise), SampleSettings(**settings)).states((), canvas, seed=seed)


def _state(step: int, steps: int, carry: SamplerState) -> State:
    arrays = (device_get(a) for a in (carry.tokens_BL, carry.masked_BL, carry.confidence_BL, carry.fixed_BL))
    return State(step, steps, float(device_get(carry.time)), *arrays, int(device_get(carry.calls)))


def _remembered(carry: SamplerState, calls: StepDenoiser, changed) -> SamplerState:
    """With what the calls of a step leave behind."""
    logits_cache = None if carry.logits_cache is None else LogitsCache(calls.first_BLV, changed)
    return carry._replace(calls=carry.calls + calls.count, logits_cache=logits_cache, hint_BLI=calls.hint_BLI)


def _shown(carry: SamplerState, tokens_BL, masked_BL, log_p_BLV, score_BL, step) -> SamplerState:
    """With the confidence and the step of what was newly shown, for processes that hide tokens."""
    new_BL = ~masked_BL & (carry.masked_BL | (tokens_BL != carry.tokens_BL))
    best_BL = jnp.exp(jnp.max(log_p_BLV, axis=-1))
    confidence_BL = jnp.where(new_BL, probability_of(log_p_BLV, tokens_BL), carry.confidence_BL)
    fixed_BL = jnp.where(new_BL, step, carry.fixed_BL)
    return carry._replace(
        tokens_BL=tokens_BL,
        masked_BL=masked_BL,
        confidence_BL=jnp.where(masked_BL, best_BL, confidence_BL),
        score_BL=score_BL,
        fixed_BL=jnp.where(masked_BL, -1, fixed_BL),
    )
