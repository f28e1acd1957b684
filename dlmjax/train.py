"""Trains one model, in four steps: prepare, resume, the loop (step, log, evaluate, sample, save), the stop.

A run is a function of its config, its corpus and its seed: batches, times and masks depend on (seed, step, row) alone. So a run that
was killed and started again writes the same losses as one that was not (bit for bit on the same mesh).

`train` sets in its process what `open_run` sets (`cluster.host.make_ready`).
"""

import contextlib
import dataclasses
import functools
import logging
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence

import jax

from dlmjax import config as config_lib
from dlmjax import module_file
from dlmjax.cluster import host
from dlmjax.cluster.agree import Agreement, refused_together
from dlmjax.cluster.chips import peak_flops
from dlmjax.cluster.interrupt import Interrupt
from dlmjax.cluster.start import connect
from dlmjax.data import Corpus, EvalWindows, TrainWindows, eval_batches, train_batches
from dlmjax.data.supervised import SupervisedRows, held_out_rows, make_choice, pads_of, supervised_rows
from dlmjax.data.symmetries import board_symmetries
from dlmjax.errors import Diverged, NoSplit, names_arguments
from dlmjax.evaluation import LikelihoodResult
from dlmjax.evaluation.noise import NoiseObserver, NoiseReport
from dlmjax.evaluation.result import of_mixture
from dlmjax.experiment import Experiment, assemble, open_corpora, token_counts
from dlmjax.modules import make_callable
from dlmjax.origin import first_state, start_of
from dlmjax.sampling import SampleSettings, blank_canvas, sampler_for, suppressed_ids
from dlmjax.sampling.text import text_of
from dlmjax.training import (
    Checkpoints,
    Goodput,
    MetricsWriter,
    Summary,
    Throughput,
    TrainingProgress,
    TrainStep,
    Window,
    learning_rate,
    make_train_step,
)
from dlmjax.training import read as read_metrics
from dlmjax.training.metrics import FILE as METRICS
from dlmjax.workdir import CHECKPOINTS, claim_workdir, embedding_of, move_aside

logger = logging.getLogger("dlmjax")
WORSE = 2.0  # a run whose loss is this multiple of its first one has diverged; a new phase of a curriculum raises the loss by less
NOISE_COST = 0.02  # most of a run's forward and backward passes that measuring the noise of its loss may add
OnStep = Callable[[int], object]


def quiet(done: int) -> None:
    """Ignores the number of updates done."""


@names_arguments()
def train(
    config, workdir: str, *, fork: str = "", init: str = "", fresh: bool = False, command: str = "the same command", on_step: OnStep = quiet
) -> dict:
    """Trains, or continues, the run of a config in a workdir; returns what `--json` prints. Every process of a run makes the same call.

    Args:
      fork: workdir of another run with the same shapes, whose newest checkpoint is the start; counters are kept.
      init: workdir of another run with the same network, whose averaged weights (or raw ones, where it has no average) are the start.
      fresh: start anew; the files of the workdir are first moved into a new folder there, and none is deleted.
      command: the command that resumes the run, for the last line of an interrupted run.
      on_step: called with the number of updates done, before the first and after each.

    Raises:
      InputError: bad config, corpus or workdir; a full disk; Diverged: a loss that is not finite under train.on_nonfinite="stop".
    """
    # --- 1. Prepare: config, corpus, process, mesh ---------------------------------------------------------------------------
    began, workdir = time.perf_counter(), pathlib.Path(workdir)
    host.make_ready(workdir)
    config_lib.check(config)
    module = module_file.read(config)
    corpora = open_corpora(config, "train")
    counts_V, table_VE = token_counts(config, corpora), embedding_of(config, None if fresh else workdir)
    experiment = _with_rows(assemble(config, corpora[0].tokenizer, counts_V=counts_V, embedding_VE=table_VE, module=module), corpora)
    connect(experiment.partition.mesh)
    # Everything that can be refused is refused here, before a file of the workdir is moved or written.
    rows = experiment.partition.rows_of_host(config.data.batch)
    windows, held_out, samples = _windows(config, corpora, experiment.rows), _HeldOut(experiment, corpora), _TextSamples(experiment)
    first = first_state(experiment, None if fresh else workdir, fork, init)
    train_step, phases, phase = _traced_step(experiment), experiment.phases, 0
    with _claimed(experiment, workdir, corpora, counts_V, table_VE, fresh) as checkpoints:
        _describe(experiment, corpora, workdir)

        # --- 2. The start -------------------------------------------------------------------------------------------------------
        state, meta, origin = start_of(experiment, checkpoints, first, fork, init)
        start, steps = meta.get("step", 0), config.train.steps
        on_step(start)
        if origin == "resume" and start >= steps:
            host.log(f"{workdir} is finished: step {start} of {steps}; nothing to train")
            return _result(config, workdir, start, meta)

        # --- 3. The loop: no host sync but at the logging step -----------------------------------------------------------------
        batches, agreed = train_batches(windows, rows=rows, start_step=start), Agreement()
        key = jax.jit(lambda key: key, out_shardings=experiment.partition.sharding(()))(jax.random.key(config.seed))
        with (
            Interrupt() as stop,
            checkpoints,
            MetricsWriter(workdir, resume_step=start, known=meta.get("metrics")) as writer,
            TrainingProgress(steps, initial=start) as progress,
            jax.transfer_guard("disallow"),
        ):
            goodput = Goodput(workdir, start, time.time() - (time.perf_counter() - began))
            log = _Log(experiment, writer, progress, meta.get("pending", []), goodput)
            for step in range(start, steps):
                if phases.index(step) != phase:  # the next phase of a curriculum
                    phase, train_step = phases.index(step), _next_phase(experiment, step)
                with log.goodput.spent("data"):
                    batch = next(batches)
                state, metrics = train_step(state, experiment.partition.put_batch(batch), key)
                done, last, metric = step + 1, step + 1 == steps, None
                last_here = agreed(stop.requested) or last
                saving = done % config.checkpoint.every == 0 or last_here
                if log.add(step, metrics, last, saving).stopped:
                    _stop_diverged(checkpoints, state, log.summary, workdir, config)
                on_step(done)

                with log.aside("evaluation"):
                    if held_out.due(done, last):
                        metric = log.held_out(done, *held_out(state, done))
                    if samples.due(done, last):
                        writer.text(done, "samples", {"text": samples(state, done)})

                # --- 4. Stop: preempted or finished; log which, and how to resume --------------------------------------------
                if saving:
                    meta = _save(checkpoints, state, log, _meta(config, done, metric, log.window.pending()), wait=last_here)
                if last_here:
                    break
            host.log(log.write_goodput(done))
        result = _result(config, workdir, done, meta, finished=last)
        host.log(_last_words(result) if last else f"{stop} after step {done}; checkpoint saved; resume with: {command}")
        return result


@contextlib.contextmanager
def _claimed(experiment: Experiment, workdir: pathlib.Path, corpora: list, counts_V, table_VE, fresh: bool) -> Iterator[Checkpoints]:
    """`with _claimed(...) as checkpoints:`: no other run writes in the workdir. Either all processes enter the block, or none does.

    fresh: the workdir's files are moved aside first. After that nothing is refused but by the file system.
    """
    config, module = experiment.config, experiment.module and experiment.module.content
    with contextlib.ExitStack() as held:
        with refused_together():
            held.enter_context(host.sole_writer(workdir))
            if fresh and jax.process_index() == 0 and (aside := move_aside(workdir)):
                host.log(f"--fresh: the files of {workdir} are now in {aside}; delete it when it is no longer needed")
        with refused_together():  # no process reads the workdir before the first one has moved its files
            texts = [corpus.fingerprint for corpus in corpora]
            inputs = claim_workdir(workdir, config, corpora[0].tokenizer, counts_V, table_VE, texts, module)
        kept = {"keep": config.checkpoint.keep, "best": config.checkpoint.best}
        yield Checkpoints(workdir / CHECKPOINTS, **kept, common={"given": inputs})


def _diverged(workdir: pathlib.Path) -> str:
    """Why a run that ended has diverged, by its metrics: no step of the last line was taken, or the loss there is WORSE times that of the
    first line. Empty where it has not.
    """
    lines = read_metrics(workdir / METRICS, "train") if (workdir / METRICS).is_file() else []
    losses = [loss for line in lines if isinstance(loss := line.get("loss"), int | float | None)]
    if losses and losses[-1] is None:
        skipped = lines[-1].get("skipped_total")
        return "no step of the last line of metrics was taken" + (f", {skipped:.0f} in all were skipped" if type(skipped) is float else "")
    first = next((loss for loss in losses if loss is not None), None)
    if first is not None and losses[-1] > WORSE * first > 0:
        return f"the loss is {losses[-1]:.4g} and was {first:.4g} in the first line of metrics"
    return ""


def _last_words(result: dict) -> str:
    """The last line of a run that completed all its steps."""
    if result["diverged"]:
        return f"diverged: {result['diverged']}; its {result['steps']} steps are in {result['workdir']}"
    return f"trained {result['steps']} steps into {result['workdir']}"


def _save(checkpoints: Checkpoints, state: dict, log: "_Log", meta: dict, wait: bool) -> dict:
    """Saves what a restart requires; returns the meta. wait: until it is on disk, where no further step follows."""
    with log.aside("checkpoint"):
        log.write_goodput(meta["step"])
        meta["metrics"] = log.written
        checkpoints.save(meta["step"], state, meta)
        if wait:
            checkpoints.wait()
    return meta


def _meta(config, done: int, metric: float | None = None, pending: Sequence[dict] = ()) -> dict:
    """The metadata of a checkpoint. pending: metrics of the steps since the last line of metrics."""
    return {"step": done, "metric": metric, "pending": list(pending), "config": config_lib.leaves(config)}


def _with_rows(experiment: Experiment, corpora: list) -> Experiment:
    """The experiment with what it makes of the rows of these corpora, for the attention of all its phases."""
    config, attentions = experiment.config, [process.attention for process in experiment.phases.processes]
    return dataclasses.replace(experiment, rows=supervised_rows(corpora, config.data, config.seed, attentions, experiment.process.vocab))


def _windows(config, corpora: list, rows: SupervisedRows | None = None) -> TrainWindows:
    """The windows of the run, as a function of (step, row). rows: what is made of supervised rows; None: nothing."""
    data = config.data
    views = [board_symmetries(corpora, data.length, config.seed)] if data.symmetries == "sudoku" else []
    views += [rows] if rows else []
    return TrainWindows(corpora, data.weights or None, data.length, data.batch, config.seed, data.packing, views)


def train_step_of(experiment: Experiment) -> TrainStep:
    """The compiled step of the run."""
    config = experiment.config.train
    return make_train_step(
        experiment.loss_fn,
        experiment.optimizer,
        accumulation=config.accumulation,
        ema_decay=config.ema,
        hyperparameters=experiment.hyperparameters,
        learning_rate=functools.partial(learning_rate, experiment.config.optimizer.schedule),
        on_nonfinite=config.on_nonfinite,
        spike=config.spike,
        steps=config.steps,
        divisor=experiment.objective.divisor,
        average_from=experiment.phase_start,
        log_every=experiment.config.log.every,
        shardings=experiment.param_shardings,
    )


def _traced_step(experiment: Experiment) -> TrainStep:
    """The step of the first phase. jax keeps the trace, so that the first call does not trace again.

    Raises InputError: a mesh that does not divide an array that it splits, a row length that the network does not take.
    """
    step = train_step_of(experiment.at_step(0))
    step.trace(*experiment.abstract_arguments())
    return step


def _next_phase(experiment: Experiment, step: int) -> TrainStep:
    """The step of the phase that begins, which its first call compiles."""
    phases = experiment.phases
    host.log(f"step {step}: phase {phases.index(step) + 1} of {len(phases.ends) + 1}, {phases.at_step(step).name}")
    return train_step_of(experiment.at_step(step))


class _Log:
    """Curves, terminal lines and throughput of the loop. The summary of every `log.every` steps is its only host sync."""

    def __init__(self, experiment: Experiment, writer: MetricsWriter, progress: TrainingProgress, pending: list, goodput: Goodput):
        data, self._every = experiment.config.data, experiment.config.log.every
        self._tokens = data.batch * data.length
        peak = peak_flops(jax.devices()[0].device_kind)
        self.throughput = Throughput(self._tokens, jax.device_count(), peak=peak)
        self._experiment, self._phases, self._objective, self._phase = experiment, experiment.phases, None, -1
        if pending:
            self._begin_line(pending[0]["step"])
        self.window = Window(report=lambda sums: self._objective.report(sums))
        self.window.restore(pending)
        self.summary = Summary({}, [], False)
        self.goodput = goodput
        self._writer, self._progress, self._timed = writer, progress, None

    @contextlib.contextmanager
    def aside(self, cause: str) -> Iterator[None]:
        """Work between steps, which is left out of the throughput and may copy from and to the device. cause: its name in the goodput."""
        with self.throughput.pause(), self.goodput.spent(cause), jax.transfer_guard("allow"):
            yield

    def write_goodput(self, done: int) -> str:
        """Writes the goodput to its file and into the curves; returns it as a line. Curves are flushed before a checkpoint is saved."""
        self.goodput.write()
        self._writer.curves(done, "goodput", self.goodput.shares())
        self._writer.flush()
        return self.goodput.summary()

    @property
    def written(self) -> dict[str, int]:
        """Size of the file of metrics, as the checkpoint's meta stores it."""
        return self._writer.written

    def _begin_line(self, step: int) -> None:
        """A line has the names and the phase of its first step: where a phase ends within it, a mean over both is not a bound."""
        phase, index = self._experiment.at_step(step), self._phases.index(step)
        if index != self._phase:
            self.throughput.flops_per_step = phase.flops_per_token * self._tokens
        self._objective, self._phase = phase.objective, index

    def add(self, step: int, metrics: dict, last: bool, saving: bool) -> Summary:
        """Takes the metrics of one step; at a logging step writes the line and returns its summary.

        It also does so before a save (`saving`) where the run has stopped since the last line: the saved state is the one at the stop.
        """
        if self._objective is None:
            self._begin_line(step)
        self.window.add(step, metrics)
        running = self.window.running
        if self._timed is None:  # the first step compiles
            jax.block_until_ready(metrics["loss"])
            self.throughput.reset()
            running = 0
        self.goodput.stepped(step + 1)
        self._timed = 0 if self._timed is None else self._timed + 1
        if (step + 1) % self._every and not last and not (saving and self.window.stopped()):
            self._progress.update(running=running)
            return Summary({}, [], False)
        self.summary = self.window.reduce()
        rates = self.throughput.rates(self._timed) if self._timed else {}
        self._timed = 0
        several = len(self._phases.ends) > 0
        self._writer.scalars(step + 1, "train", {**self.summary.values, **(self._of_phase() if several else {}), **rates})
        shown = {"phase": f"{self._phase + 1} of {len(self._phases.ends) + 1}"} if several else {}
        speed = {"tokens/s/device": rates["tokens_per_second_per_device"]} if rates else {}
        self._progress.update(1, {**shown, **self._objective.summary(self.summary.values), **speed})
        self._objective = None
        for bad in self.summary.bad:
            self._progress.write(f"step {bad.step}: update skipped, " + (f"{bad.rows} not finite" if bad.rows else "loss spike"))
        return self.summary

    def _of_phase(self) -> dict[str, float | int]:
        """The number of the phase, and its bound once more under a name of its own: those of several processes are several curves."""
        process, values = self._objective.process.bound, self.summary.values
        attention = process.attention
        kind = "seeded_" if attention.seeded else "one_stream_" if attention.context_size else ""
        name = f"{kind}{process.name}{attention.block_size or attention.context_size or ''}"
        bounds = {f"{key}/{name}": values[key] for key in ("nelbo", "partial_nelbo") if key in values}
        return {"phase": self._phase + 1, **bounds}

    def held_out(
        self, done: int, result: LikelihoodResult, of_each: Sequence[tuple[str, LikelihoodResult]], noise: NoiseReport | None
    ) -> float:
        """Writes a held-out bound, that of each corpus of a mixture, and the noise of the training loss where it was measured; returns the
        nats per token by which checkpoints are ranked."""
        own = {f"nats_per_token_of/{path}": each.nats_per_token for path, each in of_each}
        self._writer.scalars(done, "held_out", {**_held_out_scalars(result), **own})
        listed = ", ".join(f"{path} {each.nats_per_token:.4f}" for path, each in of_each)
        self._progress.write(f"step {done}: held-out {result.summary()}" + (f"; nats/token of {listed}" if listed else ""))
        if noise is not None:
            self._noise(done, noise)
        return result.nats_per_token

    def _noise(self, done: int, report: NoiseReport) -> None:
        """Writes how much the training loss varies, by cause, and what would lower it."""
        self._writer.scalars(done, "noise", report.scalars())
        if report.advice:
            self._writer.text(done, "noise_advice", {"text": report.advice})
        self._progress.write(f"step {done}: {report.summary()}" + (f"; {report.advice}" if report.advice else ""))


class _HeldOut:
    """The held-out bound during training: the first windows of the `valid` split of every corpus under one fixed grid of times.

    For a mixture the corpora have the same shares as in training: `data.weights`, else the tokens of their train splits.
    """

    def __init__(self, experiment: Experiment, corpora: Sequence):
        self._experiment, self._every = experiment, experiment.config.log.evaluate
        shares = experiment.config.data.weights or [corpus.num_tokens for corpus in corpora]
        found, missing = [], []
        for path, share in zip(experiment.config.data.paths, shares, strict=True):
            with contextlib.suppress(NoSplit):
                held_out = Corpus.open(path, split="valid")
                if held_out.num_tokens:
                    found.append((path, held_out, share))
                    continue
            missing.append(path)
        if not found:
            self._every = 0
        if missing and experiment.config.log.evaluate:
            what = f"no held-out bound of {', '.join(missing)} on the way" if found else "no held-out bound on the way"
            logger.warning("%s: no `valid` split there (dlmjax prepare --valid-fraction makes one)", what)
        self._found, self._bytes = self._cut(found), experiment.tokenizer.byte_lengths_V
        self._evaluator = experiment.evaluator(nodes=experiment.config.log.nodes)
        config, of_step = experiment.config, 3 * experiment.config.data.batch  # forward passes of rows: a step costs three
        once = self._size * self._evaluator.nodes * (1 + self._evaluator.self_condition) / (of_step * config.train.steps)
        most = int(NOISE_COST / once)
        self._evaluations = -(-config.train.steps // max(self._every, 1))
        self._noise_every = -(-self._evaluations // most) if most else 0

    def _cut(self, found: Sequence[tuple]) -> list[tuple[str, EvalWindows, float | int]]:
        """Windows of each corpus: its share of `log.evaluate_windows`, at least two, which a standard error requires."""
        data, wanted, whole = (
            self._experiment.config.data,
            self._experiment.config.log.evaluate_windows,
            sum(share for _, _, share in found),
        )
        least = min(wanted, 2)
        return [
            (path, EvalWindows(corpus, data.length, limit=max(round(wanted * share / whole), least)), share)
            for path, corpus, share in found
        ]

    def due(self, done: int, last: bool) -> bool:
        """Is an evaluation wanted after this step?"""
        return bool(self._every) and (last or done % self._every == 0)

    @property
    def _size(self) -> int:
        """Windows of a batch."""
        return self._experiment.config.data.batch // self._experiment.config.train.accumulation

    def _observers(self, done: int) -> list[NoiseObserver]:
        """The observer of the noise, in the last evaluation and as many of those before it as NOISE_COST pays for."""
        experiment, index = self._experiment, -(-done // self._every)
        due = self._noise_every and (self._evaluations - index) % self._noise_every == 0
        in_last_phase = experiment.phases.index(done - 1) == len(experiment.phases.ends)
        return [NoiseObserver(experiment.objective, done / experiment.config.train.steps)] if due and in_last_phase else []

    def __call__(self, state: dict, done: int) -> tuple[LikelihoodResult, list[tuple[str, LikelihoodResult]], NoiseReport | None]:
        """The bound of the averaged weights (the raw ones when no average is kept), and where there are several corpora that of each; and
        where it is due the noise of the training loss, measured on the first batch of the first corpus."""
        config, observers = self._experiment.config, self._observers(done)
        weights = "ema" if config.train.ema > 0 else "raw"
        size = self._size
        params = state["ema"] if weights == "ema" else state["params"]
        measured, results = [], []
        for _, windows, _ in self._found:
            batches = eval_batches(windows, batch_size=size, rows=self._experiment.partition.rows_of_host(size))
            tail, attention = make_choice("tail", config.data.tail), self._experiment.process.bound.attention
            batches = held_out_rows(batches, windows.corpus, config.seed, attention, tail)
            of_first = () if measured else observers
            measured.append(self._evaluator.measure(params, batches, byte_lengths_V=self._bytes, split="valid", observers=of_first))
            results.append(self._evaluator.result(measured[-1], step=done, weights=weights, split="valid"))
        noise = observers[0].report if observers else None
        if len(results) == 1:
            return results[0], [], noise
        paths, _, shares = zip(*self._found, strict=True)
        return of_mixture(results, measured, shares), list(zip(paths, results, strict=True)), noise


class _TextSamples:
    """A few samples as text, for TensorBoard."""

    STEPS, COUNT = 32, 2

    def __init__(self, experiment: Experiment):
        self._experiment, self._every = experiment, experiment.config.log.sample
        pads = pads_of(experiment.config.data.tail)
        settings = SampleSettings(steps=self.STEPS, suppressed_ids=suppressed_ids(experiment.tokenizer, experiment.process.vocab, pads))
        self._sampler = sampler_for(experiment.process, experiment.unpartitioned, settings) if self._every else None
        self._canvas = blank_canvas(min(experiment.config.data.length, 256), self.COUNT)

    def due(self, done: int, last: bool) -> bool:
        """Are samples wanted after this step?"""
        return bool(self._every) and (last or done % self._every == 0)

    def __call__(self, state: dict, done: int) -> str:
        """Samples of the averaged weights, one after another."""
        params = state["ema"] if self._experiment.config.train.ema > 0 else state["params"]
        tokens_BL = self._sampler.sample(params, self._canvas, seed=done).tokens_BL
        return "\n---\n".join(text_of(self._experiment.tokenizer, tokens_L) for tokens_L in tokens_BL)


def _held_out_scalars(result) -> dict[str, float]:
    """The curves' values of one evaluation."""
    scalars = {"nats_per_token": result.nats_per_token, "stderr_nats_per_token": result.stderr_nats_per_token}
    if result.bits_per_byte is not None:
        scalars |= {"bits_per_byte": result.bits_per_byte, "stderr_bits_per_byte": result.stderr_bits_per_byte}
    return scalars | {f"nats_per_token_by_t/{level['t']:.4g}": level["nats_per_token"] for level in result.levels}


def _stop_diverged(checkpoints: Checkpoints, state: dict, summary, workdir: pathlib.Path, config) -> None:
    """The "stop" policy: the state is the one before the bad step; it is saved, and the step and its rows are named."""
    bad = summary.bad[0]
    with jax.transfer_guard("allow"):
        step = int(jax.device_get(state["step"]))
        if step not in checkpoints.steps():  # an existing checkpoint of this step is kept
            checkpoints.save(step, state, _meta(config, step))
            checkpoints.wait()
    cause = f"{bad.rows} gave a loss or gradient that is not finite" if bad.rows else "the loss spiked"
    raise Diverged(
        f"stopped at step {bad.step}: {cause} (train.on_nonfinite=stop); the state before it is kept in {workdir}/checkpoints; "
        "the same command tries again, --config.train.on_nonfinite=skip goes past it"
    )


def _describe(experiment: Experiment, corpora: list, workdir: pathlib.Path) -> None:
    """Logs the model, the text, the devices and the workdir of the run."""
    tokens = sum(corpus.num_tokens for corpus in corpora)
    data = experiment.config.data
    epochs = experiment.config.train.steps * data.batch * data.length / max(tokens, 1)
    mesh = ", ".join(f"{name} {size}" for name, size in experiment.partition.mesh.shape.items())
    host.log(
        f"{experiment.process.name} on {experiment.parameter_count / 1e6:.2f}M parameters, {experiment.config.train.steps} steps x "
        f"{data.batch} x {data.length} tokens = {epochs:.1f} epochs of {tokens:,} tokens\n"
        f"devices: {jax.device_count()} {jax.devices()[0].device_kind} (mesh: {mesh})\n"
        f"workdir: {workdir} (curves: tensorboard --logdir {workdir}/tensorboard)"
    )


def _result(config, workdir: pathlib.Path, step: int, meta: dict, finished: bool = True) -> dict:
    return {
        "workdir": str(workdir),
        "step": step,
        "steps": config.train.steps,
        "finished": finished,
        "diverged": _diverged(workdir) if finished else "",
        "held_out_nats_per_token": meta.get("metric"),
        "fingerprint": config_lib.fingerprint(config),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


make_callable(__name__, train)
