"""What the worker computes for the page: a sample with its states, and the alternatives of a token."""

import time
from collections.abc import Iterator
from typing import Any

from dlmjax.errors import InputError
from dlmjax.play.fields import Limits
from dlmjax.play.runs import PlayRun, Samplers
from dlmjax.play.traces import Traces
from dlmjax.play.worker import Job
from dlmjax.sampling import Canvas, State
from dlmjax.sampling.trace import record_of


def check_states(states: int, canvas: Canvas, limits: Limits) -> None:
    """Raises InputError: more states than are kept."""
    positions = states * canvas.batch * canvas.length
    if positions > limits.positions:
        raise InputError(
            f"{states} steps of {canvas.batch} x {canvas.length} tokens are {positions:,} positions; a request has at most "
            f"{limits.positions:,}; give fewer steps, texts or tokens"
        )


def check_sampler(sampler: Any, canvas: Canvas, limits: Limits) -> None:
    """Raises InputError: corrector steps, redraws within a step, which are not cancelled in between, or drafts beyond the limits."""
    stepper = getattr(sampler, "inner", sampler).stepper
    rounds, between = getattr(stepper, "rounds", 0), getattr(stepper, "between", 0)
    if rounds > limits.steps or between > 64:
        raise InputError(f"method {stepper.name}: rounds is {rounds} and between {between}; give at most {limits.steps} and 64")
    drafts = getattr(getattr(sampler, "draft", None), "depth", 0) * canvas.batch * canvas.length
    if drafts > 8 * limits.length:
        raise InputError(f"the drafts of a call are {drafts:,} positions; give at most {8 * limits.length:,}: a smaller depth or length")


def sampling(
    job: Job, play: PlayRun, samplers: Samplers, traces: Traces, *, canvas: Canvas, seed: int, settings: dict[str, Any]
) -> Iterator[None]:
    """Samples one row; emits ("state", State) after each step, and at the end what the sample took. Its trace is kept."""
    sampler = samplers.get(play, settings, canvas.tokens_BL.shape)
    check_sampler(sampler, canvas, play.limits)
    began, states = time.monotonic(), []
    for state in sampler.states(play.run.params, canvas, seed=seed):
        if not states:
            check_states(state.steps, canvas, play.limits)
        states.append(shown(state))
        if state.step:
            job.emit("state", states[-1])
        yield
    samples, trace = record_of(states, sampler, canvas, seed=seed, tokenizer=play.run.tokenizer)
    traces.keep(job.id, trace)
    job.emit(
        "end",
        {
            "calls": int(samples.evaluations),
            "seconds": round(time.monotonic() - began, 3),
            "seed": seed,
            "settings": sampler.settings.to_json(),
            "trace": job.id,
            "text": trace.texts[0],
            "advice": samples.advice,
        },
    )


def shown(state: State) -> State:
    """The state without what no page shows."""
    return state._replace(guess_BL=None)


def alternatives(job: Job, play: PlayRun, *, canvas: Canvas, position: int, temperature: float, most: int) -> Iterator[None]:
    """Emits the most likely tokens of a position."""
    found = play.alternatives(canvas, position, temperature, most)
    yield
    job.emit("end", {"alternatives": found})
