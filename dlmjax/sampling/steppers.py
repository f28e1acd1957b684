"""How one step goes from level t to level s <= t.  A stepper is a frozen dataclass; `methods.METHODS` names them.

Each gets `denoise(z, t_BL) -> logits` and may call it as often as it needs, outside of control flow: calls are counted as they are
traced.  Every position has its own t and s.  The sampler keeps what stands where no step was made yet; where the clock is held after
that (t = s, grid "hold"), the stepper is asked, and what it returns must belong to that level.

Shapes: B rows, L positions, V vocabulary; z is [B, L] tokens or [B, L, ...].
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from dlmjax.diffusion.process import EXCLUDED, Process, draw_tokens, split_rows, uniform_rows
from dlmjax.diffusion.schedules import FLOOR
from dlmjax.errors import InputError

Denoise = Callable[[Array, Array], Array]


class StepSchedule(NamedTuple):
    """Steps that rows choose for themselves.  clock_BN: levels before call 1, 2, ..., then 0; call_BL: the call at which a position is
    made, 0 = never."""

    clock_BN: Float[Array, "B N"]
    call_BL: Int[Array, "B L"]


@runtime_checkable
class Stepper(Protocol):
    """One kind of step.

    name: as in METHODS.  requires: what it requires of a process, for the message that refuses others.
    rounds: calls after the last step, each of which runs `corrector_step`.
    """

    name: str
    requires: str = ""
    rounds: int = 0
    plans: bool = False  # whether `plan` draws the steps

    def check(self, process: Process) -> None:
        """Raises InputError where the process does not list the method among those that go with it."""
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
        """z at s from z at t."""
        return process.reverse_step(keys_B, denoise(z, t_BL), z, t_BL, s_BL)

    def corrector_step(
        self,
        process: Process,
        keys_B: Key[Array, "B"],
        denoise: Denoise,
        z: Shaped[Array, "B L *state"],
        free_BL: Bool[Array, "B L"],
    ) -> Shaped[Array, "B L *state"]:
        """A change to finished text; only positions in `free_BL` may change."""
        raise InputError(f"method {self.name} does not change finished text")

    def plan(
        self,
        process: Process,
        keys_B: Key[Array, "B"],
        masked_BL: Bool[Array, "B L"],
        start_BL: Float[Array, "B L"],
        levels_BN: Float[Array, "B N"],
    ) -> StepSchedule:
        """The steps of each row, for methods that draw them; `levels_BN` is the grid."""
        raise InputError(f"method {self.name} takes its steps from the grid")


@dataclasses.dataclass(frozen=True)
class Ancestral(Stepper):
    """p(z_s | z_t), the process's own reverse step."""

    name = "ancestral"


@dataclasses.dataclass(frozen=True)
class TauLeap(Stepper):
    """A jump with probability rate x (t - s), at most 1, to where the rates say (tau-leaping, Campbell et al. 2205.14987; the Euler
    step of SEDD 2310.16834 and of discrete flow matching).  The rates are frozen at t, so it has an error of its own, which falls with
    the step; the last step, to s = 0, is the exact one, since no Euler step removes all noise."""

    name = "tau_leap"
    requires = "noise whose reverse jumps have rates"

    def step(self, process, keys_B, denoise, z, t_BL, s_BL):
        """Whether it jumps, where to, and at s = 0 the exact step."""
        last_B, jump_B, token_B = split_rows(keys_B, 3)
        logits_BLV = denoise(z, t_BL)
        rates_BLV = process.reverse_rates(logits_BLV, z, t_BL)
        total_BL = jnp.sum(rates_BLV, axis=-1)
        jump_BL = uniform_rows(jump_B, z.shape[1]) < total_BL * (t_BL - s_BL)
        to_BL = _draw_by_rate(token_B, rates_BLV)
        leapt_BL = jnp.where(jump_BL, to_BL, z)
        # Only at the end is the second draw needed.
        ends = jnp.any(s_BL <= 0)
        exact_BL = jax.lax.cond(ends, process.reverse_step, lambda *a: a[2], last_B, logits_BLV, z, t_BL, s_BL)
        return jnp.where(s_BL <= 0, exact_BL, leapt_BL)


@dataclasses.dataclass(frozen=True)
class Analytic(Stepper):
    """p(z_s | z_t) straight from the scores (Tweedie; SEDD 2310.16834 section 4.2):

        p(y) ~ (s_y - n(y) sum s) (a 1[y = z] + n(z)),      q(z_t | z_s) = a 1[z_t = z_s] + n(z_t),

    the forward chain undone on the vector of scores. Scores that belong to a law give the ancestral step, which uses them as such; a
    network's need not, and this takes them as they are. Where hardly any text is left (alpha_t < 1e-3) nothing can be told from the
    difference, and the step is the ancestral one; so is the last, to s = 0, since scores of no law may leave masks a share there.
    """

    name = "analytic"
    requires = "scores, or an output that determines them"

    def step(self, process, keys_B, denoise, z, t_BL, s_BL):
        """Whether it moves, which may be rare, and where to: two draws."""
        own_B, leave_B, token_B = split_rows(keys_B, 3)
        logits_BLV = denoise(z, t_BL)
        before, after = process.shares(s_BL), process.shares(t_BL)
        keep_BL = after.alpha / jnp.maximum(before.alpha, FLOOR)
        even_BL, mask_BL = (jnp.maximum(a - keep_BL * b, 0.0) for a, b in zip(after[1:], before[1:], strict=True))
        score_BLV = jnp.exp(process.output.log_score(logits_BLV, z, t_BL))
        class_V = jnp.arange(process.vocab)
        noise_BLV = jnp.where(process.is_token(class_V), even_BL[..., None] / process.tokens, mask_BL[..., None])
        # Classes that nothing shows have no score and stay below 0.
        undone_BLV = jnp.maximum(score_BLV - noise_BLV * jnp.sum(score_BLV, axis=-1, keepdims=True), 0.0)
        into_BL = jnp.where(process.is_token(z), even_BL / process.tokens, mask_BL)
        stay_BL = (keep_BL + into_BL) * jnp.take_along_axis(undone_BLV, z[..., None], axis=-1)[..., 0]
        go_BLV = jnp.where(class_V == z[..., None], 0.0, undone_BLV * into_BL[..., None])
        go_BL = jnp.sum(go_BLV, axis=-1)
        moves_BL = uniform_rows(leave_B, z.shape[1]) * (stay_BL + go_BL) < go_BL
        to_BL = _draw_by_rate(token_B, go_BLV)
        stepped_BL = jnp.where(moves_BL, to_BL, z)
        return jnp.where((after.alpha < 1e-3) | (s_BL <= 0), process.reverse_step(own_B, logits_BLV, z, t_BL, s_BL), stepped_BL)


def _draw_by_rate(keys_B: Key[Array, "B"], rate_BLV: Float[Array, "B L V"]) -> Int[Array, "B L"]:
    """A class in proportion to its rate, never one whose rate is 0."""
    return draw_tokens(keys_B, jnp.where(rate_BLV > 0, jnp.log(jnp.where(rate_BLV > 0, rate_BLV, 1.0)), EXCLUDED))


@dataclasses.dataclass(frozen=True)
class Rdm(Stepper):
    """Route and denoise (RDM 2302.05737): of a row's n free positions, n alpha(s) are text after the step, the rest noise.

    route="topk": the text is where the drawn token has the highest probability (sharpens the law, like the confidence order);
    "random": where chance says.  Under noise that only hides, text that is shown stays shown; under other noise every step chooses among
    all positions, and what is noise then is drawn as at t = 1.
    """

    route: str = "topk"

    name = "rdm"
    requires = "noise on tokens with a schedule, of one kind at all times"

    def __post_init__(self):
        if self.route not in ("topk", "random"):
            raise InputError(f"method rdm: route is {self.route!r}; choose topk or random")

    def step(self, process, keys_B, denoise, z, t_BL, s_BL):
        """A guess everywhere, the best of it as text, fresh noise elsewhere."""
        token_B, route_B, noise_B = split_rows(keys_B, 3)
        logits_BLV = denoise(z, t_BL)
        log_p_BLV = process.output.log_posterior(logits_BLV, z, t_BL)
        guess_BL = draw_tokens(token_B, log_p_BLV)
        log_p_BL = jnp.take_along_axis(jax.nn.log_softmax(log_p_BLV), guess_BL[..., None], axis=-1)[..., 0]
        score_BL = log_p_BL if self.route == "topk" else uniform_rows(route_B, z.shape[1])
        noise_BL = process.prior(noise_B, z.shape[1])
        if process.absorbing_id is not None:
            shown_BL = z != process.absorbing_id
            guess_BL, score_BL = jnp.where(shown_BL, z, guess_BL), jnp.where(shown_BL, jnp.inf, score_BL)
            # The prior of a clipped schedule shows tokens too, which would stay.
            noise_BL = jnp.full_like(z, process.absorbing_id)
        free_BL = s_BL < t_BL
        noisy_BL = jnp.where(free_BL, process.schedule.noise(s_BL), 0.0)
        text_B = free_BL.sum(axis=1) - jnp.floor(jnp.sum(noisy_BL, axis=1) + 1e-4).astype(jnp.int32)
        kept_BL = rank(score_BL, free_BL) < text_B[:, None]
        stepped_BL = jnp.where(kept_BL, guess_BL, noise_BL)
        return jnp.where(free_BL, stepped_BL, z)


@dataclasses.dataclass(frozen=True)
class SelfCorrect(Stepper):
    """Ancestral steps; then `rounds` times the network reads the finished text as if at noise level `level`, and the `count` drawn tokens
    of a row that it prefers most to what stands there, judging by the other tokens, take their places (GIDD 2503.04482 section 5.3).

    For noise that puts wrong tokens in the text, since only there a network has learned to doubt what it is shown.
    """

    rounds: int = 16
    count: int = 1
    level: float = 0.01
    temperature: float = 0.1

    name = "self_correct"
    requires = "noise that replaces tokens (uniform, hybrid)"

    def __post_init__(self):
        if self.rounds < 1 or self.count < 1 or not 0 < self.level <= 1 or not self.temperature > 0:
            raise InputError(
                f"method self_correct: rounds ({self.rounds}) and count ({self.count}) must be at least 1, level ({self.level}) in (0, 1], "
                f"temperature ({self.temperature}) above 0"
            )

    def corrector_step(self, process, keys_B, denoise, z, free_BL):
        level_BL = jnp.where(free_BL, self.level, 0.0)
        logits_BLV = denoise(z, level_BL)
        log_p_BLV = jax.nn.log_softmax(process.output.log_loo(logits_BLV, z, level_BL))
        guess_BL = draw_tokens(keys_B, log_p_BLV / self.temperature)
        guess_log_p_BL, log_p_BL = (jnp.take_along_axis(log_p_BLV, y[..., None], axis=-1)[..., 0] for y in (guess_BL, z))
        gain_BL = guess_log_p_BL - log_p_BL
        change_BL = free_BL & (gain_BL > 0)
        return jnp.where(change_BL & (rank(gain_BL, change_BL) < self.count), guess_BL, z)


def rank(score_BL: Shaped[Array, "B L"], among_BL: Bool[Array, "B L"]) -> Int[Array, "B L"]:
    """0 for the best score among the candidates, 1 for the next ...; ties go to the left; the others come last."""
    worst_first = jnp.where(among_BL, -score_BL, jnp.inf)
    # Candidates before the others also where their score is minus infinity.
    return jnp.argsort(jnp.lexsort((worst_first, ~among_BL), axis=1), axis=1)
