"""Speed of sampling with one network: the whole canvas at once, blocks with a cache, one token at a time with a cache.

The time of a call depends on shapes and not on the values of the weights, so all ways are timed with the network and weights of a run. Only
the run's own process gives meaningful text; the text of the other ways is discarded.

    seconds      time of one batch until its text is on the host, median over repeats after one run that compiles
    tokens_per_second   generated tokens of all rows / seconds
    calls        network calls per text (NFE); with a cache a call reads one block (or token) and not the row

Shapes: B rows, L positions.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from dlmjax.diffusion.processes.autoregressive import Autoregressive
from dlmjax.diffusion.processes.masked import Masked
from dlmjax.errors import InputError
from dlmjax.run import Run
from dlmjax.sampling import BlockSampler, SampleSettings, blank_canvas, sampler_for, suppressed_ids


@dataclasses.dataclass(frozen=True)
class Way:
    """One way of sampling: name, steps of a canvas or of a block, sampler."""

    name: str
    steps: int
    sampler: Any


def ways_of(run: Run, steps: Sequence[int], length: int, blocks: Sequence[int]) -> Iterator[Way]:
    """The ways of sampling that the run's network supports.

    First the run's own process at each number of steps, where it samples the whole canvas at once or its network supports no other process.
    Then, for networks that are not conditioned on t, masked diffusion of the whole canvas, blocks with a cache (their steps add up to those
    of a canvas) and autoregression with a cache.

    Raises InputError: blocks that are not shorter than the length.
    """
    experiment, network = run.experiment, run.experiment.unpartitioned
    process, spec, mask_id = experiment.process, network.spec, experiment.tokenizer.mask_id
    settings = SampleSettings(suppressed_ids=suppressed_ids(experiment.tokenizer, experiment.process.vocab))

    def at(number: int) -> SampleSettings:
        return dataclasses.replace(settings, steps=number)

    own = not process.attention.sequential
    alone = spec.time_input != "none" or spec.input_dim or spec.self_condition or spec.vocab != process.vocab
    if own:
        yield from (Way(f"{process.name}, whole canvas", n, sampler_for(process, network, at(n))) for n in steps)
    elif alone:
        # Causal processes take one step per token; blocks take `steps` each.
        numbers = [length] if process.attention.causal else steps
        yield from (Way(f"{process.name}, cache", n, sampler_for(process, network, at(n))) for n in numbers)
    if alone:
        return
    masked = Masked(process.vocab, mask_id)
    if not (own and process.capabilities.any_order):
        yield from (Way("masked, whole canvas", n, sampler_for(masked, network, at(n))) for n in steps)
    for size in blocks:
        if size >= length:
            raise InputError(f"--blocks {size} requires a --length above {size} tokens, not {length}; change one of them")
        for each in sorted({min(size, max(1, round(n * size / length))) for n in steps}):
            yield Way(f"blocks of {size}, cache", each, BlockSampler(masked, network, at(each), size=size))
    causal = Autoregressive(process.vocab, bos_id=experiment.tokenizer.bos_id, mask_id=mask_id)
    yield Way("autoregressive, cache", length, BlockSampler(causal, network, settings))


def latency_grid(
    run: Run,
    steps: Sequence[int],
    batches: Sequence[int],
    *,
    length: int,
    blocks: Sequence[int] = (16,),
    repeats: int = 3,
    clock: Callable[[], float] = time.perf_counter,
    log: Callable[[str], object] = lambda line: None,
) -> list[dict[str, Any]]:
    """Times every way at every batch size; returns one row each, as plain JSON.

    length: tokens of a text.  repeats: timed runs of each row.  clock: current time, seconds.
    log: called with the name of each row before it is timed.
    Raises InputError: a size below 1, blocks that are not shorter than the length.
    """
    if min(*steps, *batches, *blocks, length, repeats) < 1:
        raise InputError("steps, batches, blocks, length and repeats of a latency grid must be at least 1")
    device, rows = jax.devices()[0].device_kind, []
    for way in list(ways_of(run, steps, length, blocks)):  # checks all ways before the first is timed
        for batch in batches:
            log(f"{way.name}, {way.steps} steps, batch {batch}")
            canvas = blank_canvas(length, batch)
            samples, seconds = way.sampler.sample(run.params, canvas, seed=0), []
            for repeat in range(repeats):
                begin = clock()
                samples = way.sampler.sample(run.params, canvas, seed=repeat)
                seconds.append(clock() - begin)
            median = statistics.median(seconds)
            rows.append(
                {
                    "way": way.name,
                    "steps": way.steps,
                    "batch": batch,
                    "length": length,
                    "calls": samples.evaluations,
                    "seconds": median,
                    "seconds_least": min(seconds),
                    "tokens_per_second": batch * length / median,
                    "milliseconds_per_call": 1000 * median / samples.evaluations,
                    "repeats": repeats,
                    "temperature": samples.settings.temperature,
                    "precision": run.experiment.config.execution.dtype,
                    "device": device,
                    "parameters": run.experiment.parameter_count,
                }
            )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| way | steps | batch | calls | tokens/s | ms/call |", "|---|---:|---:|---:|---:|---:|"]
    for row in rows:
        numbers = f"{row['calls']} | {row['tokens_per_second']:,.0f} | {row['milliseconds_per_call']:.2f} |"
        lines.append(f"| {row['way']} | {row['steps']} | {row['batch']} | {numbers}")
    return "\n".join(lines)
