"""`dlmjax interval` and `sample`: a run is opened, one function of a room below does the work, a person reads the result."""

import jax
import numpy as np

from dlmjax.data import EvalWindows, eval_batches
from dlmjax.diffusion import PerRow, nats_at, row_keys
from dlmjax.diffusion.hyperschedule import choose_interval
from dlmjax.diffusion.process import bind_process
from dlmjax.errors import InputError
from dlmjax.evaluation.limits import check_numbers
from dlmjax.files import write_json
from dlmjax.run import open_run, split_of
from dlmjax.sampling import SampleSettings, build_canvas, never_sampled, sampler_for
from dlmjax.sampling.html import write_html
from dlmjax.sampling.terminal import TerminalView
from dlmjax.sampling.trace import record
from dlmjax.seeds import check_seed


def interval(
    *,
    workdir: str,
    data: str | None = None,
    split: str = "valid",
    weights: str = "ema",
    step: int | None = None,
    batch: int = 32,
    windows: int = 256,
    draws: int = 4,
    least: float = 0.5,
    seed: int = 0,
    json: str | None = None,
) -> dict:
    """Measures at which noise levels the loss of a run varies least, and prints the override that trains on these alone.

    A clipped interval lowers the variance of the gradient (BD3-LM 2503.09573 section 5.2) and trains no bound; evaluations are not touched.
    Cost: windows x draws forward passes.

    Raises:
      InputError: no such run, corpus or split; a run without noise levels; too few windows; numbers out of range.
    """
    check_numbers(seed=seed, batch=batch)
    for name, given in (("windows", windows), ("draws", draws)):
        if given < 1:
            raise InputError(f"--{name} is {given}; give at least 1")
    run = open_run(workdir, weights=weights, step=step)
    experiment, process = run.experiment, run.experiment.process
    if process.causal:
        raise InputError(f"process {process.name} has no noise levels to choose from")
    corpus, times = split_of(run, data, split), process.adapt_times(PerRow(stratified=False))
    length, size = experiment.config.data.length, process.block_size or experiment.config.data.length

    def losses(params, batch, key):
        """(level, mean nats per token) of every block or row that holds no padding."""
        t_BL, _ = times.draw(key, batch["row"], windows, length)
        denoiser = experiment.network.bind(params, batch["segments"], batch["positions"], process.attention)
        keys_B = row_keys(jax.random.fold_in(key, 1), batch["row"])
        hints = experiment.network.spec.self_condition
        bound = bind_process(process, params)
        nats_BL = nats_at(bound, denoiser, batch["tokens"], batch["segments"], keys_B, t_BL, hints)
        whole_BN = (batch["segments"].reshape(-1, length // size, size) > 0).all(axis=2)
        return t_BL[:, ::size], nats_BL.reshape(-1, length // size, size).mean(axis=2), whole_BN

    found, compiled = [], jax.jit(losses)
    size_B = -(-batch // experiment.partition.ways("batch")) * experiment.partition.ways("batch")
    for held_out in eval_batches(EvalWindows(corpus, length, limit=windows), batch_size=size_B):
        for draw in range(draws):
            key = jax.random.fold_in(jax.random.key(seed), draw)
            t_BN, nats_BN, whole_BN = (np.asarray(a) for a in compiled(run.params, experiment.partition.put_batch(held_out), key))
            found.append((t_BN[whole_BN], nats_BN[whole_BN]))
    t_N, nats_N = (np.concatenate(column) for column in zip(*found, strict=True))
    low, high = choose_interval(t_N, nats_N, least)
    inside_N = (t_N >= low) & (t_N <= high)
    inside, everywhere = float(nats_N[inside_N].var()), float(nats_N.var())
    report = {"low": low, "high": high, "variance": inside, "variance_of_all": everywhere, "samples": t_N.size}
    print(
        f"the loss varies least for t in [{low:.2f}, {high:.2f}]: variance {inside:.3f} against {everywhere:.3f} over "
        f'all levels ({t_N.size} samples)\ntrain with: --config.process.times="stratified(low={low:.2f}, high={high:.2f})"',
        flush=True,
    )
    if json:
        write_json(json, report)
    return report


def sample(
    *,
    workdir: str,
    weights: str = "ema",
    step: int | None = None,
    prompt: str = "",
    suffix: str = "",
    template: str | None = None,
    edit: str | None = None,
    start_t: float | None = None,
    length: int | None = None,
    count: int = 1,
    steps: int = 64,
    order: str = "ancestral",
    method: str = "ancestral",
    grid: str = "auto",
    sweep: int | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    guidance: float = 0.0,
    threshold: float | None = None,
    remainder: str = "spread",
    remask: bool = False,
    cache: bool = False,
    stride: int | None = None,
    stop: bool = False,
    seed: int = 0,
    watch: bool = False,
    trace: str | None = None,
    json: str | None = None,
) -> dict:
    """Makes text; shows it live (`watch`), writes it as a page one can scrub through (`trace`) and as JSON.

    Raises:
      InputError: no such run; a prompt or template that does not fit; settings that contradict each other.
    """
    check_seed(seed)
    run = open_run(workdir, weights=weights, step=step)
    experiment, tokenizer = run.experiment, run.experiment.tokenizer
    if length is None and template is None and edit is None:
        length = experiment.config.data.length
    canvas = build_canvas(
        tokenizer, length=length, batch=count, prompt=prompt, suffix=suffix, template=template, edit=edit, start_t=start_t
    )
    settings = SampleSettings(
        steps=steps,
        order=order,
        method=method,
        grid=grid,
        sweep=sweep,
        temperature=temperature,
        top_p=top_p,
        guidance=guidance,
        threshold=threshold,
        remainder=remainder,
        remask=remask,
        cache=cache,
        never=never_sampled(tokenizer, experiment.process.vocab),
    )
    eos_id = tokenizer.eos_id if stop else None
    sampler = sampler_for(
        experiment.process, experiment.unpartitioned, settings, stride=stride, window=experiment.config.data.length, eos_id=eos_id
    )
    if watch or trace:
        view = TerminalView(tokenizer, canvas) if watch else None
        made, recorded = record(sampler, run.params, canvas, seed=seed, tokenizer=tokenizer, on_state=view.show if view else None)
        if trace:
            write_html(recorded, trace)
            print(f"denoising trace: {trace}", flush=True)
    else:
        made = sampler.sample(run.params, canvas, seed=seed, progress=True)
    for text in (tokenizer.decode(tokens_L) for tokens_L in made.tokens_BL):
        print(text if count == 1 else f"---\n{text}", flush=True)
    print(f"({made.steps} steps, {made.evaluations} network calls, unigram entropy {made.entropy:.2f} nats/token, seed {seed})", flush=True)
    report = {**made.to_json(tokenizer), "stride": stride, "stop": stop, "step": run.step, "weights": run.weights, "workdir": str(workdir)}
    if json:
        write_json(json, report)
    return report
