"""Step methods: one step from time t to time s <= t.  A stepper is a frozen dataclass; `methods.METHODS` names them.

A stepper receives `denoise(z, t_BL) -> logits` and may call it several times, outside of control flow: calls are counted when they are
traced.  Every position has its own t and s.  The sampler discards the result at positions that have not started yet (edited text whose
start time is still below t).  At other positions a step with t = s (grid "hold") is applied, and its result must have the distribution of
that time.

Shapes: B rows, L positions, V vocabulary; z is [B, L] tokens or [B, L, ...].
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from dlmjax.diffusion.process import EXCLUDED, Process, draw_tokens, split_rows, uniform_rows
from dlmjax.diffusion.schedules import FLOOR
from dlmjax.errors import InputError

Denoise = Callable[[Array, Array], Array]


class StepSchedule(NamedTuple):
    """Steps that differ between rows.  times_BN: time before call 1, 2, ..., then 0; call_BL: number of the call that reveals a position,
    0 where none does."""

    times_BN: Float[Array, "B N"]
    call_BL: Int[Array, "B L"]


@runtime_checkable
class Stepper(Protocol):
    """A step method.

    name: as in METHODS.  requires: the noise that it requires, for the message that refuses other processes.
    rounds: number of corrector steps after the last step in time.  plans: whether `plan` draws the times of the steps.
    reads_canvas: whether a step reads the canvas once and as it is, so that calls may be left out where it has not changed.
    ends: whether steps of a row may end before the last one, see `corrected` and `stepped`.
    reveals_by: the rule that takes the steps in place of `step`; None = there is none.
    """

    name: str
    requires: str = ""
    rounds: int = 0
    plans: bool = False
    reads_canvas: bool = True
    ends: bool = False
    reveals_by: Any = None

    def check(self, process: Process) -> None:
        """Raises InputError where `process.capabilities.methods` does not contain the method."""
        provided = process.capabilities.methods
        if self.name not in provided:
            raise InputError(
                f"method {self.name} requires {self.requires}; process {process.name} provides the methods {', '.join(provided)}"
            )

    def step(
        self,
        process: Process,
        keys_B: Key[Array, "B"],
        denoise: Denoise,
        z: Shaped[Array, "B L *state"],
        t_BL: Float[Array, "B L"],
        s_BL: Float[Array, "B L"],
    ) -> Shaped[Array, "B L *state"]:
        """Draws z at time s from z at time t."""
        return process.reverse_step(keys_B, denoise(z, t_BL), z, t_BL, s_BL)

    def corrector_step(
        self,
        process: Process,
        keys_B: Key[Array, "B"],
        denoise: Denoise,
        z: Shaped[Array, "B L *state"],
        editable_BL: Bool[Array, "B L"],
    ) -> Shaped[Array, "B L *state"]:
        """Corrects finished text; only positions in `editable_BL` may change."""
        raise InputError(f"method {self.name} has no corrector step")

    def begin(self, rows: int, length: int) -> Any:
        """What steps remember before the first."""
        del rows, length
        return ()

    def stepped(self, process: Process, keys_B: Key[Array, "B"], denoise: Denoise, z, t_BL, s_BL, memory: Any):
        """(z after `step`, memory); where `ends`, rows that are not `open_rows` of the memory stay as they are."""
        return self.step(process, keys_B, denoise, z, t_BL, s_BL), memory

    def corrected(self, process: Process, keys_B: Key[Array, "B"], denoise: Denoise, z, editable_BL: Bool[Array, "B L"], memory: Any):
        """(z after `corrector_step`, memory); where `ends`, rows that are not `open_rows` of the memory stay as they are."""
        return self.corrector_step(process, keys_B, denoise, z, editable_BL), memory

    def open_rows(self, memory: Any) -> Bool[Array, "B"]:
        """Rows whose steps go on, where `ends`."""
        raise InputError(f"method {self.name} takes all its steps")

    def plan(
        self,
        process: Process,
        keys_B: Key[Array, "B"],
        masked_BL: Bool[Array, "B L"],
        start_BL: Float[Array, "B L"],
        times_BN: Float[Array, "B N"],
    ) -> StepSchedule:
        """Draws the steps of each row, where `plans` is true; `times_BN` is the grid."""
        raise InputError(f"method {self.name} takes its steps from the grid")


@dataclasses.dataclass(frozen=True)
class Ancestral(Stepper):
    """The process's reverse step, p(z_s | z_t)."""

    name = "ancestral"


@dataclasses.dataclass(frozen=True)
class TauLeap(Stepper):
    """Tau-leaping (Campbell et al. 2205.14987; the Euler step of SEDD 2310.16834 and of discrete flow matching).

    A position jumps with probability rate x (t - s), at most 1; the new state is drawn in proportion to the rates. The rates are those at
    t, so each step has a discretisation error, which falls with t - s. The last step, to s = 0, is the process's exact reverse step, since
    an Euler step does not remove all noise."""

    name = "tau_leap"
    requires = "noise whose reverse jumps have rates"

    def step(self, process, keys_B, denoise, z, t_BL, s_BL):
        """Draws which positions jump and their new states; the exact step where s = 0."""
        last_B, jump_B, token_B = split_rows(keys_B, 3)
        logits_BLV = denoise(z, t_BL)
        rates_BLV = process.reverse_rates(logits_BLV, z, t_BL)
        total_BL = jnp.sum(rates_BLV, axis=-1)
        jump_BL = uniform_rows(jump_B, z.shape[1]) < total_BL * (t_BL - s_BL)
        to_BL = _draw_by_rate(token_B, rates_BLV)
        leapt_BL = jnp.where(jump_BL, to_BL, z)
        # Only the last step needs the second draw.
        ends = jnp.any(s_BL <= 0)
        exact_BL = jax.lax.cond(ends, process.reverse_step, lambda *a: a[2], last_B, logits_BLV, z, t_BL, s_BL)
        return jnp.where(s_BL <= 0, exact_BL, leapt_BL)


@dataclasses.dataclass(frozen=True)
class Analytic(Stepper):
    """p(z_s | z_t) computed from the scores (Tweedie; SEDD 2310.16834 section 4.2):

        p(y) ~ (s_y - n(y) sum s) (a 1[y = z] + n(z)),      q(z_t | z_s) = a 1[z_t = z_s] + n(z_t),

    the inverse of the forward kernel applied to the vector of scores. Scores that are ratios of one distribution give the ancestral step.
    A network's scores need not be such ratios, and this method does not project them onto one. Where alpha_t < 1e-3 the difference above is
    dominated by rounding, and the step is the ancestral one. So is the last step, to s = 0, where scores that belong to no distribution may
    leave a probability for masks.
    """

    name = "analytic"
    requires = "scores, or an output that determines them"

    def step(self, process, keys_B, denoise, z, t_BL, s_BL):
        """Draws whether a position changes and its new state separately: a change may be rarer than float32 resolves in one draw."""
        own_B, leave_B, token_B = split_rows(keys_B, 3)
        logits_BLV = denoise(z, t_BL)
        before, after = process.shares(s_BL), process.shares(t_BL)
        keep_BL = after.alpha / jnp.maximum(before.alpha, FLOOR)
        uniform_BL, mask_BL = (jnp.maximum(a - keep_BL * b, 0.0) for a, b in zip(after[1:], before[1:], strict=True))
        score_BLV = jnp.exp(process.output.log_score(logits_BLV, z, t_BL))
        class_V = jnp.arange(process.vocab)
        noise_BLV = jnp.where(process.is_token(class_V), uniform_BL[..., None] / process.tokens, mask_BL[..., None])
        # Ids that the noise does not produce have no score; without the maximum they would have negative rates.
        undone_BLV = jnp.maximum(score_BLV - noise_BLV * jnp.sum(score_BLV, axis=-1, keepdims=True), 0.0)
        into_BL = jnp.where(process.is_token(z), uniform_BL / process.tokens, mask_BL)
        stay_BL = (keep_BL + into_BL) * jnp.take_along_axis(undone_BLV, z[..., None], axis=-1)[..., 0]
        go_BLV = jnp.where(class_V == z[..., None], 0.0, undone_BLV * into_BL[..., None])
        go_BL = jnp.sum(go_BLV, axis=-1)
        moves_BL = uniform_rows(leave_B, z.shape[1]) * (stay_BL + go_BL) < go_BL
        to_BL = _draw_by_rate(token_B, go_BLV)
        stepped_BL = jnp.where(moves_BL, to_BL, z)
        return jnp.where((after.alpha < 1e-3) | (s_BL <= 0), process.reverse_step(own_B, logits_BLV, z, t_BL, s_BL), stepped_BL)


def _draw_by_rate(keys_B: Key[Array, "B"], rate_BLV: Float[Array, "B L V"]) -> Int[Array, "B L"]:
    """Draws an id with probability proportional to its rate; an id with rate 0 is not drawn."""
    return draw_tokens(keys_B, jnp.where(rate_BLV > 0, jnp.log(jnp.where(rate_BLV > 0, rate_BLV, 1.0)), EXCLUDED))


@dataclasses.dataclass(frozen=True)
class Rdm(Stepper):
    """Route and denoise (RDM 2302.05737): of the n sampled positions of a row, n alpha(s) hold text after the step, the others noise.

    route: which positions hold text. "topk": those whose drawn token has the highest probability, which sharpens the distribution of the
    samples, as the confidence order does; "random": a uniform draw. Under absorbing noise a revealed token is kept. Under other noise each
    step chooses among all positions, and the noise is drawn as at t = 1.
    """

    route: str = "topk"

    name = "rdm"
    requires = "noise on tokens with a schedule, of one kind at all times"

    def __post_init__(self):
        if self.route not in ("topk", "random"):
            raise InputError(f"method rdm: route is {self.route!r}; choose topk or random")

    def step(self, process, keys_B, denoise, z, t_BL, s_BL):
        """Draws an x0 prediction at every position, keeps the best-scoring ones and draws noise for the others."""
        token_B, route_B, noise_B = split_rows(keys_B, 3)
        logits_BLV = denoise(z, t_BL)
        log_p_BLV = process.output.log_posterior(logits_BLV, z, t_BL)
        x0_BL = draw_tokens(token_B, log_p_BLV)
        log_p_BL = jnp.take_along_axis(jax.nn.log_softmax(log_p_BLV), x0_BL[..., None], axis=-1)[..., 0]
        score_BL = log_p_BL if self.route == "topk" else uniform_rows(route_B, z.shape[1])
        noise_BL = process.prior(noise_B, z.shape[1])
        if process.absorbing_id is not None:
            revealed_BL = z != process.absorbing_id
            x0_BL, score_BL = jnp.where(revealed_BL, z, x0_BL), jnp.where(revealed_BL, jnp.inf, score_BL)
            # The prior of a clipped schedule also draws tokens, which would then be kept.
            noise_BL = jnp.full_like(z, process.absorbing_id)
        moves_BL = s_BL < t_BL
        noisy_BL = jnp.where(moves_BL, process.schedule.noise(s_BL), 0.0)
        text_B = moves_BL.sum(axis=1) - jnp.floor(jnp.sum(noisy_BL, axis=1) + 1e-4).astype(jnp.int32)
        kept_BL = rank(score_BL, moves_BL) < text_B[:, None]
        stepped_BL = jnp.where(kept_BL, x0_BL, noise_BL)
        return jnp.where(moves_BL, stepped_BL, z)


@dataclasses.dataclass(frozen=True)
class SelfCorrect(Stepper):
    """Ancestral steps, then `rounds` corrector steps on the finished text (GIDD 2503.04482 section 5.3).

    In each, the network reads the text at time `level` and a token is drawn for each position from p(x_i | other tokens) at `temperature`.
    `count` drawn tokens of a row replace the present ones: by="gain", those whose log-probability exceeds that of the present token most;
    by="probability", those that differ from the present token and are most probable at that temperature, which is the rule of GIDD's code
    (rounds=128, patience=32). This requires noise that replaces tokens: other noise does not train a network to predict another token than
    the one it reads.

    patience: a row ends where the share of its tokens that are the most likely ones has not risen for this many rounds, or where a round
    changes nothing; 0 = it takes all rounds.
    """

    rounds: int = 16
    count: int = 1
    level: float = 0.01
    temperature: float = 0.1
    by: str = "gain"
    patience: int = 0

    name = "self_correct"
    requires = "noise that replaces tokens (uniform, hybrid)"

    def __post_init__(self):
        if self.by not in ("gain", "probability"):
            raise InputError(f"method self_correct: by is {self.by!r}; choose gain or probability")
        if not 0 <= self.patience <= 2**20:
            raise InputError(f"method self_correct: patience is {self.patience}; it must be 0 (off) to {2**20} rounds")
        if self.rounds < 1 or self.count < 1 or not 0 < self.level <= 1 or not self.temperature > 0:
            raise InputError(
                f"method self_correct: rounds ({self.rounds}) and count ({self.count}) must be at least 1, level ({self.level}) in (0, 1], "
                f"temperature ({self.temperature}) above 0"
            )

    @property
    def ends(self) -> bool:
        return self.patience > 0

    def begin(self, rows, length):
        return (jnp.full(rows, -1.0), jnp.zeros(rows, jnp.int32), jnp.ones(rows, bool)) if self.ends else ()

    def open_rows(self, memory):
        return memory[2]

    def corrector_step(self, process, keys_B, denoise, z, editable_BL):
        return self._round(process, keys_B, denoise, z, editable_BL)[0]

    def corrected(self, process, keys_B, denoise, z, editable_BL, memory):
        corrected_BL, log_p_BLV = self._round(process, keys_B, denoise, z, editable_BL)
        if not self.ends:
            return corrected_BL, memory
        most_B, since_B, open_B = memory
        corrected_BL = jnp.where(open_B[:, None], corrected_BL, z)
        agree_B = jnp.mean(jnp.argmax(log_p_BLV, axis=-1) == z, axis=1, where=editable_BL | ~jnp.any(editable_BL, axis=1, keepdims=True))
        since_B = jnp.where(agree_B > most_B, 0, since_B + 1)
        goes_on_B = open_B & (since_B < self.patience) & jnp.any(corrected_BL != z, axis=1)
        return corrected_BL, (jnp.maximum(agree_B, most_B).astype(jnp.float32), since_B, goes_on_B)

    def _round(self, process, keys_B, denoise, z, editable_BL):
        """(z after a round, log p(x_i | others) that it read)"""
        level_BL = jnp.where(editable_BL, self.level, 0.0)
        logits_BLV = denoise(z, level_BL)
        log_p_BLV = jax.nn.log_softmax(process.output.log_loo(logits_BLV, z, level_BL))
        x0_BL = draw_tokens(keys_B, log_p_BLV / self.temperature)
        x0_log_p_BL, log_p_BL = (jnp.take_along_axis(log_p_BLV, y[..., None], axis=-1)[..., 0] for y in (x0_BL, z))
        score_BL = x0_log_p_BL - log_p_BL
        change_BL = editable_BL & (score_BL > 0)
        if self.by == "probability":
            # The logarithm of the probability at this temperature.
            score_BL = x0_log_p_BL / self.temperature - jax.nn.logsumexp(log_p_BLV / self.temperature, axis=-1)
            change_BL = editable_BL & (x0_BL != z)
        return jnp.where(change_BL & (rank(score_BL, change_BL) < self.count), x0_BL, z), log_p_BLV


def rank(score_BL: Shaped[Array, "B L"], among_BL: Bool[Array, "B L"]) -> Int[Array, "B L"]:
    """Rank of each score among the candidates `among_BL`: 0 is the highest. Ties rank from left to right; other positions rank last."""
    worst_first = jnp.where(among_BL, -score_BL, jnp.inf)
    # The second key ranks candidates first, also those whose score is minus infinity.
    return jnp.argsort(jnp.lexsort((worst_first, ~among_BL), axis=1), axis=1)
