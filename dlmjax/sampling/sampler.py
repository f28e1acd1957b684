"""Drawing text: from a canvas, step by step, to tokens.  One jitted step serves every step, the live view, the trace and its replay.

Two kinds of step:
  ancestral      the reverse process itself, p(z_s | z_t) from the denoiser's x-posterior (`process.reverse_step`); any diffusion process.
  reveal orders  for absorbing processes: draw a token for every hole, show the few that score best, leave the rest masked
                 (MaskGIT 2202.04200; LLaDA 2502.09992 section 2.4; margin and entropy as in Dream 2508.15487; random = any-order AR).
                 `left_to_right` is also how causal processes are sampled: one token per step.

Time runs on a clock that falls from the canvas's start level to 0 in equal parts, t_k = start (N - k) / N, so the last step ends at 0
exactly.  A position that starts lower (edited text) waits until the clock has come down to its level.  The network is told the clock.

Randomness: row r of the canvas draws from fold_in(fold_in(key(seed), r), step), so a sample does not depend on the rows beside it.
Tokens are drawn with high-precision Gumbel noise: in float32 the plain kind never exceeds 15.94, which silently cuts the tail of a
large vocabulary and lowers the entropy of the text (Zheng et al. 2409.02908).

Shapes: B rows, L positions, V vocabulary.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from dlmjax.data.progress import Progress
from dlmjax.diffusion.process import draw_tokens, exclude, row_keys, split_rows, uniform_rows
from dlmjax.errors import InputError
from dlmjax.sampling.canvas import Canvas
from dlmjax.sampling.host import beside, fetch
from dlmjax.sampling.warp import warp

REVEAL_ORDERS = ("random", "confidence", "entropy", "margin", "left_to_right")
ORDERS = ("ancestral", *REVEAL_ORDERS)
PRECISION = "float32 logits, high-precision Gumbel noise"
_RANKED = ("confidence", "entropy", "margin")


@dataclasses.dataclass(frozen=True)
class SampleSettings:
    """How to sample; every field changes the text and is recorded with it.

    steps: denoising steps.  Reveal orders never take more steps than there are holes; causal processes take exactly one per hole.
    order: one of ORDERS.
    temperature: divides the logits; 0 takes the most likely token.  top_p: nucleus, 1 = off; applied after the temperature.
    remask: a revealed token that scores below the step's plan is masked again (confidence, entropy and margin orders only).
    threshold: reveal at once whatever the denoiser gives at least this probability, and stop early when nothing is left; None = off.
    never: ids that must not be produced (mask, pad, BOS); see `canvas.never_sampled`.
    """

    steps: int = 64
    order: str = "ancestral"
    temperature: float = 1.0
    top_p: float = 1.0
    remask: bool = False
    threshold: float | None = None
    never: tuple[int, ...] = ()

    def __post_init__(self):
        if self.order not in ORDERS:
            raise InputError(f"unknown order {self.order!r}; the orders are {', '.join(ORDERS)}")
        if self.steps < 1:
            raise InputError(f"steps is {self.steps}; it must be at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature is {self.temperature}; it must be 0 (most likely token) or above")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}; it must lie in (0, 1], 1 meaning off")
        if self.remask and self.order not in _RANKED:
            raise InputError(f"remask needs an order that ranks tokens ({', '.join(_RANKED)}), not {self.order}")
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise InputError(f"threshold is {self.threshold}; it is a probability and must lie in (0, 1)")
        if self.threshold is not None and (self.order not in _RANKED or self.remask):
            raise InputError(f"threshold needs one of the orders {', '.join(_RANKED)} and no remask")


class State(NamedTuple):
    """The canvas after a step (numpy).

    step: steps done, 0 = the start; steps: how many there will be; time: the clock after this step.
    tokens_BL; hidden_BL: True where nothing is shown yet.
    confidence_BL: the probability the denoiser gave the shown token when it was shown; in a hole, its best guess; 1 where frozen.
    fixed_BL: the step at which the shown token appeared; 0 where it was there from the start, -1 where nothing is shown.
    """

    step: int
    steps: int
    time: float
    tokens_BL: np.ndarray
    hidden_BL: np.ndarray
    confidence_BL: np.ndarray
    fixed_BL: np.ndarray


class Carry(NamedTuple):
    """What one step hands to the next (on the device)."""

    tokens_BL: Int[Array, "B L"]
    hidden_BL: Bool[Array, "B L"]
    holes_BL: Bool[Array, "B L"]  # hidden at the start
    confidence_BL: Float[Array, "B L"]
    score_BL: Float[Array, "B L"]  # by the order, when it was revealed
    fixed_BL: Int[Array, "B L"]


@dataclasses.dataclass(frozen=True)
class Samples:
    """Finished samples and what made them.  `evaluations` = denoiser calls per row (NFE); entropy_B in nats per token."""

    tokens_BL: np.ndarray
    frozen_BL: np.ndarray
    confidence_BL: np.ndarray
    fixed_BL: np.ndarray
    entropy_B: np.ndarray
    steps: int
    evaluations: int
    seed: int
    process: str
    settings: SampleSettings

    @property
    def entropy(self) -> float:
        """Unigram entropy of the made tokens of a row, in nats per token, mean over rows."""
        return float(self.entropy_B.mean())

    def to_json(self, tokenizer=None) -> dict[str, Any]:
        """JSON-ready record: one entry per row with `token_ids`, `entropy` (nats per token) and, with a tokenizer, `text`."""
        rows = []
        for tokens_L, entropy in zip(self.tokens_BL, self.entropy_B, strict=True):
            row = {"token_ids": tokens_L.tolist(), "entropy": float(entropy)}
            if tokenizer is not None:
                row["text"] = tokenizer.decode(tokens_L)
            rows.append(row)
        settings = dataclasses.asdict(self.settings)
        settings["never"] = list(settings["never"])
        return {
            "samples": rows,
            "seed": self.seed,
            "steps": self.steps,
            "evaluations": self.evaluations,
            "entropy": self.entropy,
            "entropy_unit": "nats/token, unigram, per sample, made tokens only",
            "process": self.process,
            "precision": PRECISION,
            "settings": settings,
        }


class BoundLogits:
    """A denoiser made of a function (z_BL, t_BL) -> logits_BLV: for exact denoisers and for callers who hold no network."""

    def __init__(self, denoise: Callable[[Array, Array], Array]):
        self._denoise = denoise

    def hidden(self, z_BL, t_BL):
        return self._denoise(z_BL, t_BL)

    def logits(self, hidden_BLV):
        return hidden_BLV


def unigram_entropy(tokens_BL: np.ndarray, counted_BL: np.ndarray) -> np.ndarray:
    """Entropy of each row's token frequencies, in nats per token, over the counted positions; 0 where none is counted.  -> [B]"""
    entropies = []
    for tokens_L, counted_L in zip(tokens_BL, counted_BL, strict=True):
        counts = np.unique(tokens_L[counted_L], return_counts=True)[1]
        share = counts / max(counts.sum(), 1)
        entropies.append(-float(np.sum(share * np.log(share))))
    return np.asarray(entropies) + 0.0


class Sampler:
    """Samples from one process and network with one set of settings.  Compiles on first use; keep it and call it with new params.

    process: see `dlmjax.diffusion`.  bind(params, segments_BL, positions_BL, attention=...) -> denoiser with `hidden` and `logits`.
    """

    def __init__(self, process, bind: Callable[..., Any], settings: SampleSettings):
        self.name, self.bind, self.settings = process.name, bind, settings
        self.process = process.bound  # training may draw its noise in another way
        self.causal = process.attention == "causal"
        self.mask_id = None if self.causal else getattr(self.process, "mask_id", None)  # only absorbing processes have one
        if self.causal:
            if settings.order not in ("left_to_right", "ancestral"):
                raise InputError(f"process {process.name} is causal: it is sampled left_to_right, not in {settings.order} order")
            settings = self.settings = dataclasses.replace(settings, order="left_to_right")  # what ancestral means there
        if not self.causal and self.mask_id is None and settings.order != "ancestral":
            raise InputError(f"order {settings.order} reveals masked tokens, but process {process.name} has no mask; use ancestral")
        barred = set(settings.never) | set(getattr(process, "excluded", ())) | ({self.mask_id} - {None})
        outside = sorted(i for i in barred if not 0 <= i < process.vocab)
        if outside:
            raise InputError(f"never-sampled ids {outside} lie outside the vocabulary of {process.vocab}")
        if len(barred) >= process.vocab:
            raise InputError("every token of the vocabulary is barred from sampling")
        self._barred = tuple(sorted(barred))
        self._compiled = {}  # by placement of the weights

    # --- what callers use ---------------------------------------------------------------------------------------------------

    def sample(self, params, canvas: Canvas, *, seed: int = 0, progress: bool = False) -> Samples:
        """Runs all steps and returns the finished rows.  Raises InputError when the canvas does not suit the process."""
        *_, last = self._run(params, canvas, seed, progress)
        return self.finish(_state(canvas, *last), canvas, seed)

    def finish(self, last: State, canvas: Canvas, seed: int) -> Samples:
        """The samples of a run whose last state is `last`."""
        return Samples(
            tokens_BL=last.tokens_BL,
            frozen_BL=canvas.frozen_BL,
            confidence_BL=last.confidence_BL,
            fixed_BL=last.fixed_BL,
            entropy_B=unigram_entropy(last.tokens_BL, ~canvas.frozen_BL),
            steps=min(last.step, last.steps),
            evaluations=last.step,
            seed=seed,
            process=self.name,
            settings=self.settings,
        )

    def states(self, params, canvas: Canvas, *, seed: int = 0) -> Iterator[State]:
        """Yields the canvas before the first step and after each one: bit for bit what `sample` goes through with the same seed."""
        for step, steps, carry in self._run(params, canvas, seed, progress=False):
            yield _state(canvas, step, steps, carry)

    # --- the run ------------------------------------------------------------------------------------------------------------

    def _run(self, params, canvas: Canvas, seed: int, progress: bool) -> Iterator[tuple[int, int, Carry]]:
        self._check(canvas)
        names = ("tokens_BL", "frozen_BL", "start_BL", "segments_BL", "positions_BL")
        place = beside(params)
        arrays = jax.device_put({name: getattr(canvas, name) for name in names} | {"seed": np.uint32(seed & 0xFFFFFFFF)}, place)
        if place not in self._compiled:
            self._compiled[place] = [jax.jit(function, out_shardings=place) for function in (self._start_state, self._one_step)]
        start, one_step = self._compiled[place]
        carry = start(arrays)
        steps = self._steps(carry)
        yield 0, steps, carry
        # Where p(x | z_0) is not trivial, one call more, at t = 0, draws the clean text from z_0.
        calls = steps + int(self.settings.order == "ancestral" and self.process.has_boundary)
        with Progress(calls, "denoising", " steps", show=None if progress else False) as bar:
            for step in range(1, calls + 1):
                carry = one_step(params, arrays, carry, jax.device_put(np.int32(step), place))
                if progress:
                    carry.tokens_BL.block_until_ready()
                    bar.reach(step)
                yield step, steps, carry
                if self.settings.threshold is not None and not fetch(carry.hidden_BL).any():
                    return

    def _check(self, canvas: Canvas):
        if canvas.tokens_BL.min() < 0 or canvas.tokens_BL.max() >= self.process.vocab:
            raise InputError(
                f"the canvas holds token ids from {canvas.tokens_BL.min()} to {canvas.tokens_BL.max()}, but the model's vocabulary "
                f"has {self.process.vocab}; the text was encoded with another tokenizer"
            )
        if self.causal:
            frozen_after_hole = np.diff(canvas.frozen_BL.astype(np.int8), axis=1).max(initial=0) > 0
            if frozen_after_hole:
                raise InputError(f"process {self.name} reads left to right: it can continue a prompt, not fill in before given text")
            if (canvas.start_BL % 1).any():
                raise InputError(f"process {self.name} has no noise levels: it cannot edit text, only continue a prompt")

    def _steps(self, carry: Carry) -> int:
        if self.settings.order == "ancestral":
            return self.settings.steps
        most = int(fetch(carry.holes_BL).sum(axis=1).max())
        return max(1, most if self.causal else min(self.settings.steps, most))

    # --- on the device ------------------------------------------------------------------------------------------------------

    def _keys(self, seed, rows: int, step) -> Key[Array, "B"]:
        keys_B = row_keys(jax.random.key(seed), jnp.arange(rows))
        return jax.vmap(jax.random.fold_in, (0, None))(keys_B, step)

    def _start_state(self, canvas) -> Carry:
        """Step 0: holes at the prior, edited text corrupted to its level, frozen text as given."""
        tokens_BL, frozen_BL, start_BL = canvas["tokens_BL"], canvas["frozen_BL"], canvas["start_BL"]
        batch, length = tokens_BL.shape
        if self.causal:
            z_BL, hidden_BL = tokens_BL, ~frozen_BL
        else:
            prior_keys_B, edit_keys_B = split_rows(self._keys(canvas["seed"], batch, 0))
            if self.settings.order == "ancestral":
                empty_BL = self.process.prior(prior_keys_B, length)
            else:
                empty_BL = jnp.full_like(tokens_BL, self.mask_id)
            edited_BL = self.process.corrupt(edit_keys_B, tokens_BL, start_BL)
            z_BL = jnp.where(frozen_BL, tokens_BL, jnp.where(start_BL >= 1, empty_BL, edited_BL))
            hidden_BL = self._hidden(z_BL, frozen_BL)
        # Explicit types: a weakly typed first carry would have the step compiled twice.
        confidence_BL = frozen_BL.astype(jnp.float32)
        return Carry(z_BL, hidden_BL, hidden_BL, confidence_BL, jnp.zeros_like(confidence_BL), -hidden_BL.astype(jnp.int32))

    def _hidden(self, z_BL, frozen_BL) -> Bool[Array, "B L"]:
        return jnp.zeros_like(frozen_BL) if self.mask_id is None else (z_BL == self.mask_id) & ~frozen_BL

    def _one_step(self, params, canvas, carry: Carry, step) -> Carry:
        """Step `step` (1..N, traced): the one function behind sample, states, trace and replay."""
        start_BL = canvas["start_BL"]
        keys = split_rows(self._keys(canvas["seed"], start_BL.shape[0], step))
        steps_B = self._steps_of_rows(carry)
        top_B = jnp.max(start_BL, axis=1)
        before_B1 = (top_B * jnp.maximum(steps_B - step + 1, 0) / steps_B)[:, None]
        after_B1 = (top_B * jnp.maximum(steps_B - step, 0) / steps_B)[:, None]

        clock_BL = jnp.broadcast_to(before_B1, start_BL.shape)
        read_BL = self.process.corrupt(keys[0], carry.tokens_BL, clock_BL) if self.causal else carry.tokens_BL
        denoiser = self.bind(params, canvas["segments_BL"], canvas["positions_BL"], attention=self.process.attention)
        logits_BLV = exclude(denoiser.logits(denoiser.hidden(read_BL, clock_BL)), self._barred)
        log_p_BLV = jax.nn.log_softmax(logits_BLV)
        warped_BLV = warp(logits_BLV, self.settings.temperature, self.settings.top_p)
        if self.settings.order == "ancestral":
            times = jnp.minimum(before_B1, start_BL), jnp.minimum(after_B1, start_BL)
            return self._ancestral(carry, canvas["frozen_BL"], keys, warped_BLV, log_p_BLV, times, step)
        return self._reveal(carry, keys, warped_BLV, log_p_BLV, steps_B, step)

    def _steps_of_rows(self, carry: Carry) -> Int[Array, "B"]:
        holes_B = jnp.maximum(carry.holes_BL.sum(axis=1), 1)
        if self.settings.order == "ancestral":
            return jnp.full(holes_B.shape, self.settings.steps)
        return holes_B if self.causal else jnp.minimum(self.settings.steps, holes_B)

    def _ancestral(self, carry, frozen_BL, keys, warped_BLV, log_p_BLV, times, step) -> Carry:
        t_BL, s_BL = times
        z_BL = self.process.reverse_step(keys[0], warped_BLV, carry.tokens_BL, t_BL, s_BL)
        z_BL = jnp.where(s_BL < t_BL, z_BL, carry.tokens_BL)  # a position whose level the clock has not reached yet waits
        if self.process.has_boundary:
            z_BL = jax.lax.cond(step > self.settings.steps, self.process.decode, lambda *a: a[2], keys[1], warped_BLV, z_BL)
        z_BL = jnp.where(frozen_BL, carry.tokens_BL, z_BL)
        if self.mask_id is not None:
            return _shown(carry, z_BL, self._hidden(z_BL, frozen_BL), log_p_BLV, carry.score_BL, step)
        return carry._replace(
            tokens_BL=z_BL,
            confidence_BL=jnp.where(frozen_BL, 1.0, _probability_of(log_p_BLV, z_BL)),
            fixed_BL=jnp.where(z_BL != carry.tokens_BL, step, carry.fixed_BL),
        )

    def _reveal(self, carry, keys, warped_BLV, log_p_BLV, steps_B, step) -> Carry:
        """Shows the best-scoring holes: after step k of N, floor(H k / N) of the H holes."""
        settings = self.settings
        guess_BL = draw_tokens(keys[0], warped_BLV)
        p_guess_BL = _probability_of(log_p_BLV, guess_BL)
        score_BL = order_scores(settings.order, keys[1], log_p_BLV, p_guess_BL)
        holes_B = carry.holes_BL.sum(axis=1)
        plan_B = jnp.where(step >= steps_B, holes_B, holes_B // steps_B * step + holes_B % steps_B * step // steps_B)
        if settings.remask:
            score_BL = jnp.where(carry.hidden_BL, score_BL, carry.score_BL)
            shown_BL = carry.holes_BL & (_rank(score_BL, carry.holes_BL) < plan_B[:, None])
            new_BL = shown_BL & carry.hidden_BL
        else:
            more_B = plan_B - (holes_B - carry.hidden_BL.sum(axis=1))
            if settings.threshold is not None:
                more_B = jnp.maximum(more_B, 1)
            new_BL = carry.hidden_BL & (_rank(score_BL, carry.hidden_BL) < more_B[:, None])
            if settings.threshold is not None:
                new_BL |= carry.hidden_BL & (p_guess_BL >= settings.threshold)
            shown_BL = (carry.holes_BL & ~carry.hidden_BL) | new_BL
        hidden_BL = carry.holes_BL & ~shown_BL
        empty_BL = carry.tokens_BL if self.mask_id is None else jnp.where(hidden_BL, self.mask_id, carry.tokens_BL)
        z_BL = jnp.where(new_BL, guess_BL, empty_BL)
        return _shown(carry, z_BL, hidden_BL, log_p_BLV, jnp.where(new_BL, score_BL, carry.score_BL), step)


def sample(process, denoise: Callable[[Array, Array], Array], canvas: Canvas, *, seed: int = 0, **settings) -> Samples:
    """One-off sampling with `denoise(z_BL, t_BL) -> logits_BLV`; compiles anew on every call (keep a `Sampler` to avoid that)."""
    return Sampler(process, lambda *_, **__: BoundLogits(denoise), SampleSettings(**settings)).sample((), canvas, seed=seed)


def sample_steps(process, denoise: Callable[[Array, Array], Array], canvas: Canvas, *, seed: int = 0, **settings) -> Iterator[State]:
    """The states that `sample` with the same arguments goes through."""
    return Sampler(process, lambda *_, **__: BoundLogits(denoise), SampleSettings(**settings)).states((), canvas, seed=seed)


def order_scores(
    order: str, keys_B: Key[Array, "B"], log_p_BLV: Float[Array, "B L V"], p_guess_BL: Float[Array, "B L"]
) -> Float[Array, "B L"]:
    """How willingly each position is revealed (higher first).

    confidence: probability of the drawn token; entropy: minus the entropy of the position (nats); margin: best minus second-best
    probability; random: uniform noise of the row's key; left_to_right: minus the position.
    """
    length = p_guess_BL.shape[1]
    if order == "confidence":
        return p_guess_BL
    if order == "entropy":
        return jnp.sum(jnp.exp(log_p_BLV) * log_p_BLV, axis=-1)
    if order == "margin":
        top_BL2 = jnp.exp(jax.lax.top_k(log_p_BLV, 2)[0])
        return top_BL2[..., 0] - top_BL2[..., 1]
    if order == "random":
        return uniform_rows(keys_B, length)
    return jnp.broadcast_to(-jnp.arange(length, dtype=jnp.float32), p_guess_BL.shape)


def _rank(score_BL, among_BL):
    """0 for the best score among the candidates, 1 for the next ...; ties go to the left; the others come last."""
    worst_first = jnp.where(among_BL, -score_BL, jnp.inf)
    return jnp.argsort(jnp.argsort(worst_first, axis=1, stable=True), axis=1)


def _probability_of(log_p_BLV, tokens_BL):
    return jnp.exp(jnp.take_along_axis(log_p_BLV, tokens_BL[..., None], axis=-1)[..., 0])


def _state(canvas: Canvas, step: int, steps: int, carry: Carry) -> State:
    time = float(canvas.start_BL.max()) * max(steps - step, 0) / steps
    return State(step, steps, time, *(fetch(a) for a in (carry.tokens_BL, carry.hidden_BL, carry.confidence_BL, carry.fixed_BL)))


def _shown(carry: Carry, z_BL, hidden_BL, log_p_BLV, score_BL, step) -> Carry:
    """The next carry of an absorbing or causal process, with the confidence and the step of what was newly shown."""
    new_BL = carry.hidden_BL & ~hidden_BL
    best_BL = jnp.exp(jnp.max(log_p_BLV, axis=-1))
    confidence_BL = jnp.where(new_BL, _probability_of(log_p_BLV, z_BL), carry.confidence_BL)
    fixed_BL = jnp.where(new_BL, step, carry.fixed_BL)
    return Carry(
        tokens_BL=z_BL,
        hidden_BL=hidden_BL,
        holes_BL=carry.holes_BL,
        confidence_BL=jnp.where(hidden_BL, best_BL, confidence_BL),
        score_BL=score_BL,
        fixed_BL=jnp.where(hidden_BL, -1, fixed_BL),
    )
