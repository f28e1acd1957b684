"""Speed of sampling with one network: the whole canvas at once, blocks with a cache, one token at a time with a cache.

The time of a call depends on shapes and not on the values of the weights, so all ways are timed with the network and weights of a run. Only
the run's own process gives meaningful text; the text of the other ways is discarded.

    seconds      time of one batch until its text is on the host, median over repeats after one run that compiles; cpu_seconds: processor
                 time of this process
    tokens_per_second   generated tokens of all rows / seconds
    calls        network calls of the text with the most (NFE), mean_calls those of a text until it is finished; with a cache a call
                 reads one block (or token) and not the row
    positions_read_per_token    positions that go through the layers / tokens of the text
    rows, extra  rows that these calls read, and forward passes beside the network, mean over texts; see `samples.Counts`
    drift        with a cache policy of full attention: by the age of the oldest reused entry, calls, how far the reuse moves the output at
                 masked positions of the block: nats, KL(output || output by reused entries), and share of changed most likely tokens
    drafts_accepted_per_call    with drafts: steps without a call / calls
    changed_texts    with drafts: share of the texts of all repeats that differ from those of the same way without drafts

Shapes: B rows, L positions.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from dlmjax.diffusion.process import Process
from dlmjax.diffusion.processes.autoregressive import Autoregressive
from dlmjax.diffusion.processes.masked import Masked
from dlmjax.errors import InputError
from dlmjax.run import Run
from dlmjax.sampling import (
    BlockSampler,
    CachedSampler,
    Canvas,
    Samples,
    SampleSettings,
    blank_canvas,
    make_method,
    make_reuse,
    reuse_text,
    sampler_for,
    suppressed_ids,
)
from dlmjax.sampling.rule_names import IN_TIME

ANCESTRAL = SampleSettings()


@dataclasses.dataclass(frozen=True)
class Way:
    """One way of sampling: name, steps of a canvas or of a block, sampler; the way whose texts it should make, None = no such way."""

    name: str
    steps: int
    sampler: Any
    texts_of: "Way | None" = None


def ways_of(
    run: Run,
    steps: Sequence[int],
    length: int,
    blocks: Sequence[int],
    settings: SampleSettings = ANCESTRAL,
) -> Iterator[Way]:
    """The ways of sampling that the run's network supports.

    First the run's own process at each number of steps, where it samples the whole canvas at once or its network supports no other process.
    Then, for networks that are not conditioned on t, masked diffusion of the whole canvas, blocks with a cache (their steps add up to those
    of a canvas) and autoregression with a cache.

    settings: of all ways, but for the steps; autoregressive ones take the temperature and top-p alone, and a process that does not
      support the method takes ancestral steps. A cache policy is timed first, after the same sampler with a refresh at every call; drafts
      after the same sampler without them.
    Raises InputError: blocks that are not shorter than the length; settings that the run's own process does not support.
    """
    if min(*steps, *blocks, length) < 1:
        raise InputError("steps, blocks and length of a latency grid must be at least 1")
    experiment, network = run.experiment, run.experiment.for_canvases
    process, spec, mask_id = experiment.process, network.spec, experiment.tokenizer.mask_id
    cache, draft = settings.cache, settings.draft
    settings = dataclasses.replace(settings, cache=False, draft=None, suppressed_ids=suppressed_ids(experiment.tokenizer, process.vocab))
    plain = dataclasses.replace(settings, rule=IN_TIME, stop=None, method="ancestral", grid="auto", sweep=None)
    masked = Masked(process.vocab, mask_id)

    def at(number: int, of: Process = process) -> SampleSettings:
        settings_of = plain if process.attention.causal and of is process else _supported(settings, of, of is process)
        return dataclasses.replace(settings_of, steps=number)

    if isinstance(cache, str):
        policy = make_reuse(cache)
        size = min(policy.block or length, length)
        for each in sorted({min(size, max(1, round(n * size / length))) for n in steps}):
            for text in (reuse_text(dataclasses.replace(policy, every=1)), cache):
                yield Way(f"{process.name}, {text}", each, sampler_for(process, network, dataclasses.replace(at(each), cache=text)))
    own = not process.attention.sequential
    alone = spec.time_input != "none" or spec.input_dim or spec.self_condition or spec.vocab != process.vocab
    if own:
        for n in steps:
            way = Way(f"{process.name}, whole canvas", n, sampler_for(process, network, at(n)))
            yield way
            if draft is not None:
                drafting = sampler_for(process, network, dataclasses.replace(at(n), draft=draft))
                yield Way(f"{process.name}, {draft}", n, drafting, texts_of=way)
    elif draft is not None:
        sampler_for(process, network, dataclasses.replace(at(steps[0]), draft=draft))  # refused, with what it requires
    elif alone:
        # Causal processes take one step per token; blocks take `steps` each.
        numbers = [length] if process.attention.causal else steps
        yield from (Way(f"{process.name}, cache", n, sampler_for(process, network, at(n))) for n in numbers)
    if alone:
        return
    if not (own and process.capabilities.any_order):
        yield from (Way("masked, whole canvas", n, sampler_for(masked, network, at(n, masked))) for n in steps)
    for size in blocks:
        if size >= length:
            raise InputError(f"--blocks {size} requires a --length above {size} tokens, not {length}; change one of them")
        for each in sorted({min(size, max(1, round(n * size / length))) for n in steps}):
            yield Way(f"blocks of {size}, cache", each, BlockSampler(masked, network, at(each, masked), size=size))
    causal = Autoregressive(process.vocab, bos_id=experiment.tokenizer.bos_id, mask_id=mask_id)
    yield Way("autoregressive, cache", length, BlockSampler(causal, network, plain))


@dataclasses.dataclass
class _Times:
    """The repeats of one way at one batch size."""

    seconds: list[float] = dataclasses.field(default_factory=list)
    cpu_seconds: list[float] = dataclasses.field(default_factory=list)
    samples: Samples | None = None
    made: list[Samples] = dataclasses.field(default_factory=list)


def _supported(settings: SampleSettings, process: Process, own: bool) -> SampleSettings:
    """The settings with ancestral steps where another process than the run's does not support their method."""
    try:
        make_method(settings.method).check(process.bound)
    except InputError:
        if own:
            raise
        return dataclasses.replace(settings, method="ancestral", grid="auto")
    return settings


def latency_grid(
    run: Run,
    ways: Sequence[Way],
    batches: Sequence[int],
    *,
    length: int,
    repeats: int = 3,
    clock: Callable[[], float] = time.perf_counter,
    log: Callable[[str], object] = lambda line: None,
) -> list[dict[str, Any]]:
    """Times every one of `ways_of` at every batch size, in turns, so that a busy minute falls on all; returns one row each, as plain JSON.

    length: tokens of a text.  repeats: timed runs of each row.  clock: current time, seconds.
    log: called with the name of each row before it is timed.
    Raises InputError: a size below 1.
    """
    if min(*batches, length, repeats) < 1:
        raise InputError("batches, length and repeats of a latency grid must be at least 1")
    device, rows = jax.devices()[0].device_kind, []
    cases = [(way, batch, blank_canvas(length, batch)) for way in ways for batch in batches]
    for way, batch, canvas in cases:
        log(f"{way.name}, {way.steps} steps, batch {batch}")
        way.sampler.sample(run.params, canvas, seed=0)
    timed = [_Times() for _ in cases]
    for repeat in range(repeats):
        for (way, _, canvas), times in zip(cases, timed, strict=True):
            begin, cpu = clock(), time.process_time()
            times.samples = way.sampler.sample(run.params, canvas, seed=repeat)
            times.seconds.append(clock() - begin)
            times.cpu_seconds.append(time.process_time() - cpu)
            times.made.append(times.samples)
    for (way, batch, canvas), times in zip(cases, timed, strict=True):
        samples, seconds, median = times.samples, times.seconds, statistics.median(times.seconds)
        counts, drift = samples.counts.means(), _drift(run, way.sampler, canvas)
        drafted = {}
        if way.texts_of is not None:
            (plain,) = (other for (one, size, _), other in zip(cases, timed, strict=True) if (one, size) == (way.texts_of, batch))
            drafted = _drafted(times, plain)
        rows.append(
            {
                "way": way.name,
                "steps": way.steps,
                "batch": batch,
                "length": length,
                **{name: getattr(samples.settings, name) for name in ("rule", "stop", "method", "grid", "top_p")},
                "calls": samples.evaluations,
                "mean_calls": counts["calls"],
                "rows": counts["rows"],
                "extra": counts["extra"],
                "seconds": median,
                "seconds_least": min(seconds),
                "cpu_seconds": statistics.median(times.cpu_seconds),
                "tokens_per_second": batch * length / median,
                "milliseconds_per_call": 1000 * median / samples.evaluations,
                "positions_read_per_token": counts["reads"] / length,
                **({} if drift is None else {"drift": drift}),
                **drafted,
                "repeats": repeats,
                "temperature": samples.settings.temperature,
                "precision": run.experiment.config.execution.dtype,
                "device": device,
                "parameters": run.experiment.parameter_count,
            }
        )
    return rows


def _drafted(times: _Times, plain: _Times) -> dict[str, float]:
    """What drafts have saved over all repeats, and the share of texts that are not those without them."""
    calls = sum(int(each.calls_B.sum()) for each in times.made)
    pairs = zip(times.made, plain.made, strict=True)
    changed = [(one.tokens_BL != other.tokens_BL).any(axis=1).mean() for one, other in pairs]
    return {
        "mean_calls": calls / sum(len(each.calls_B) for each in times.made),
        "drafts_accepted_per_call": sum(int(each.accepted_B.sum()) for each in times.made) / calls,
        "changed_texts": float(np.mean(changed)),
    }


def _drift(run: Run, sampler: Any, canvas: Canvas) -> list[dict[str, Any]] | None:
    """What the cache policy of a sampler changes, by age; None without one."""
    if not isinstance(sampler, CachedSampler):
        return None
    measured = CachedSampler(sampler.process, sampler.network, sampler.settings, measured=True)
    drift_A3 = measured.sample(run.params, canvas, seed=0).drift_A3
    ages = enumerate(drift_A3.tolist())
    return [{"age": age, "nats": nats / n, "flips": flips / n, "positions": int(n)} for age, (nats, flips, n) in ages if n]


def _mean_drift(drift: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """Nats and share of changed tokens as texts, mean over all calls; empty where none was measured."""
    count = sum(each["positions"] for each in drift)
    if not count:
        return "", ""
    nats, flips = (sum(each[name] * each["positions"] for each in drift) / count for name in ("nats", "flips"))
    return f"{nats:.4f}", f"{100 * flips:.1f} %"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    heads = ["way", "steps", "batch", "calls", "tokens/s", "ms/call", "positions read/token", "drift, nats", "changed tokens"]
    drafted = any("changed_texts" in row for row in rows)
    heads += ["calls of a text", "drafts accepted/call", "changed texts"] if drafted else []
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    for row in rows:
        numbers = f"{row['calls']} | {row['tokens_per_second']:,.0f} | {row['milliseconds_per_call']:.2f} | "
        numbers += f"{row['positions_read_per_token']:.1f} | {' | '.join(_mean_drift(row.get('drift', ())))} |"
        if drafted:
            accepted, changed = row.get("drafts_accepted_per_call"), row.get("changed_texts")
            numbers += f" {row['mean_calls']:.1f} | " + (" | |" if accepted is None else f"{accepted:.2f} | {100 * changed:.1f} % |")
        lines.append(f"| {row['way']} | {row['steps']} | {row['batch']} | {numbers}")
    return "\n".join(lines)
