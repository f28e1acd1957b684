"""The state of a sampler between two steps, and what a step changes in it whatever it is: calls, confidence, step of each token.

Shapes: B rows, L positions, V vocabulary, I inputs of self-conditioning.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from dlmjax.parallel.arrays import device_get
from dlmjax.sampling.reveal import probability_of
from dlmjax.sampling.samples import Counts, State
from dlmjax.sampling.step_denoiser import LogitsCache, StepDenoiser
from dlmjax.sampling.steppers import StepSchedule


class SamplerState(NamedTuple):
    """The state between two steps, on the device."""

    z: Shaped[Array, "B L *state"]
    tokens_BL: Int[Array, "B L"]  # the tokens of z
    masked_BL: Bool[Array, "B L"]
    start_masked_BL: Bool[Array, "B L"]  # masked at the start
    confidence_BL: Float[Array, "B L"]
    fixed_BL: Int[Array, "B L"]
    time: Float[Array, ""]  # largest t of the rows
    calls: Int[Array, ""]
    counts: Counts  # of each row until it is finished
    memory: Any  # of the rule, or of corrector steps
    stop_memory: Any  # of the stop
    exit_nats_B: Float[Array, "B"]  # what the stop may have cost
    plan: StepSchedule | None
    logits_cache: LogitsCache | None
    hint_BLI: Float[Array, "B L I"] | None
    guess_BL: Int[Array, "B L"]  # the tokens before the step, completed by the most likely ones
    buffers: Any = None  # of a denoiser that keeps keys and values from call to call
    accepted_B: Int[Array, "B"] | None = None  # drafts that were right


class StepTimes(NamedTuple):
    """Times of one step: from t to s where a position moves; after: largest time of the rows after the step."""

    t_BL: Float[Array, "B L"]
    s_BL: Float[Array, "B L"]
    moves_BL: Bool[Array, "B L"]
    after: Float[Array, ""]


def host_state(step: int, steps: int, state: SamplerState, rows: int) -> State:
    """The state on the host, of the first `rows` rows: those behind them pad a batch."""

    def of_rows(array):
        return None if array is None else device_get(array)[:rows]

    arrays = (of_rows(a) for a in (state.tokens_BL, state.masked_BL, state.confidence_BL, state.fixed_BL))
    counts, nats_B = Counts(*(of_rows(count_B) for count_B in state.counts)), of_rows(state.exit_nats_B)
    drift_A3 = None if state.buffers is None or state.buffers.drift_A3 is None else device_get(state.buffers.drift_A3)
    time, guess_BL, accepted_B = float(device_get(state.time)), of_rows(state.guess_BL), of_rows(state.accepted_B)
    calls, made = int(device_get(state.calls)), {"guess_BL": guess_BL, "drift_A3": drift_A3, "accepted_B": accepted_B}
    return State(step, steps, time, *arrays, calls, counts, nats_B, **made)


def with_rows(state: SamplerState, rows_B) -> SamplerState:
    """The state in which row `rows_B[b]` continues in place of row b, which keeps its counts; rows behind them, which pad a batch, stay."""
    rows_B = jnp.concatenate([jnp.asarray(rows_B), jnp.arange(len(rows_B), state.tokens_BL.shape[0])])
    taken = jax.tree.map(lambda a: a[rows_B] if a.ndim and a.shape[0] == len(rows_B) else a, state)
    return taken._replace(counts=state.counts)


def with_calls(state: SamplerState, denoise: StepDenoiser, changed, needed_B) -> SamplerState:
    """The state with the calls of a step, which count for the rows that needed it, its logits cache, self-conditioning input
    and buffers."""
    state = state._replace(counts=state.counts.plus(denoise.counts, needed_B))
    logits_cache = None if state.logits_cache is None else LogitsCache(denoise.first_BLV, changed)
    calls = state.calls + denoise.counts.calls_B
    return state._replace(calls=calls, logits_cache=logits_cache, hint_BLI=denoise.hint_BLI, buffers=denoise.buffers)


def with_revealed(state: SamplerState, tokens_BL, masked_BL, log_p_BLV, step) -> SamplerState:
    """The state with the confidence and the step number of newly revealed tokens, for processes with a mask."""
    new_BL = ~masked_BL & (state.masked_BL | (tokens_BL != state.tokens_BL))
    best_BL = jnp.exp(jnp.max(log_p_BLV, axis=-1))
    confidence_BL = jnp.where(new_BL, probability_of(log_p_BLV, tokens_BL), state.confidence_BL)
    fixed_BL = jnp.where(new_BL, step, state.fixed_BL)
    return state._replace(
        tokens_BL=tokens_BL,
        masked_BL=masked_BL,
        confidence_BL=jnp.where(masked_BL, best_BL, confidence_BL),
        fixed_BL=jnp.where(masked_BL, -1, fixed_BL),
        guess_BL=jnp.where(state.masked_BL, jnp.argmax(log_p_BLV, axis=-1), state.tokens_BL).astype(jnp.int32),
    )
