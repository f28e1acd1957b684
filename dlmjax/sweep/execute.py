"""One run of a sweep from end to end: its config, its training, its final metric, its record.

`dlmjax sweep run` starts a process for each (`cli/sweep_process.py`). It holds no lock and appends no record: `local.py` does.

The final metric is the bound on the sweep's fixed windows under its fixed levels and masks (`manifest.Validation`), of the averaged
weights where the run kept an average: the number that `dlmjax evaluate --windows N` prints for the workdir.

Compilation. All runs keep XLA's programs in DIR/compiled. Runs with the same shape differ in numbers alone, so one of them compiles
each program and all others read it back. Two such runs that start together would both compile: so the first run of a shape holds a
lock until its first step is done (and again in its first evaluation), and the other runs of that shape wait for it. A file
DIR/locks/*.done notes that a shape is compiled; a wrong note costs a second compilation, which the record counts.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dlmjax.errors import Diverged, InputError
from dlmjax.files import finite
from dlmjax.sweep.manifest import PlannedRun, SweepPlan, Validation
from dlmjax.sweep.records import Record
from dlmjax.sweep.run_log import (
    COMPILED,
    LOCKS,
    STEPPED,
    Counters,
    config_values,
    domain_names,
    facts,
    hold,
    programs_of,
    released,
    shape_of,
    workdir_of,
)

SKIPPED_SHARE = 0.01  # of its updates; above it, the loss does not belong to the tokens that are recorded


def execute(directory: str, run_id: str, *, diverged: int = 0, attempt: int = 0, started: float | None = None) -> Record | None:
    """Trains, or continues, one run of a planned sweep and measures it.

    Args:
      directory: of the sweep.
      diverged: how often the run diverged before: its learning rate is `lr_factor` to this power times the planned one.
      attempt: how often it was tried before, for the record.
      started: time.time() when its process was started; default: now.

    Returns:
      The record, finished or diverged, with everything but the sweep's own seconds; None: a signal stopped it, a checkpoint is saved.

    Raises:
      InputError: no such sweep or run, an unknown leaf, a corpus without the split to be measured on.
    """
    began, started = time.perf_counter(), time.time() if started is None else started
    plan = SweepPlan.read(directory)
    run = find(plan, run_id)
    values = config_values(run, plan.policy, diverged)
    workdir = workdir_of(directory, run_id, diverged)
    workdir.mkdir(parents=True, exist_ok=True)
    counters = Counters(workdir)
    overhead = time.perf_counter() - began
    with _counted(counters):
        return _Run(plan, run, values, workdir, counters, CompileLock(directory, values)).go(attempt, started, overhead)


def find(plan: SweepPlan, run_id: str) -> PlannedRun:
    """Raises InputError: the manifest has no such run."""
    found = {run.id: run for run in plan.runs}
    if run_id not in found:
        raise InputError(f"the sweep {plan.name} has no run {run_id!r}; `dlmjax sweep status` lists its {len(found)} runs")
    return found[run_id]


@dataclasses.dataclass(frozen=True)
class _Run:
    """One attempt."""

    plan: SweepPlan
    run: PlannedRun
    values: Mapping[str, Any]
    workdir: pathlib.Path
    counters: Counters
    compile_lock: "CompileLock"

    def go(self, attempt: int, started: float, overhead: float) -> Record | None:
        """Steps: refuse what cannot be measured, train, measure, record."""
        from dlmjax import config as config_lib
        from dlmjax.experiment import open_corpora
        from dlmjax.models.families import own_module

        try:
            config = config_lib.from_json(json.dumps(self.values))
        except InputError as error:
            raise InputError(f"the plan of {self.run.id} is of a different version ({error}); plan the sweep again") from None
        if own_module(config.model.family):
            raise InputError(f"the plan of {self.run.id} names Python code, model.family={config.model.family}; a sweep requires a family")
        for corpus in open_corpora(config, self.plan.validation.split):
            if not corpus.num_tokens:
                raise InputError(f"{corpus.directory} has no {corpus.split} split to measure the run on; prepare it with --valid-fraction")
        try:
            finished = self._train(config, started + overhead)
        except Diverged as error:
            return self._record("diverged", attempt, overhead, problem=str(error))
        if not finished:
            return None
        ended = time.time()
        with self.compile_lock.held("evaluate") as compiled:
            begin = time.time()
            self.counters.note("start", max(begin - ended, 0.0))
            found = final_metric(str(self.workdir), self.plan.validation, list(config.data.paths))
            compiled()
            self.counters.note("evaluate", max(time.time() - begin, 0.0))
        return self._judged(found, attempt, overhead)

    def _train(self, config, started: float) -> bool:
        """Whether the run finished. started: when its process began to start, in seconds since the epoch."""
        from dlmjax.train import train

        first = None
        with self.compile_lock.held("train") as compiled:
            self.counters.note("start", max(time.time() - started, 0.0))

            def on_step(done: int) -> None:
                nonlocal first
                if first is None:
                    first = done
                elif done == first + 1:
                    compiled()
                    self.counters.note(STEPPED)

            return train(config, str(self.workdir), command="the same sweep", on_step=on_step)["finished"]

    def _judged(self, found: "Final", attempt: int, overhead: float) -> Record:
        limit, loss = self.plan.policy.diverged_above, found.loss
        measured = {name: finite(getattr(found, name)) for name in ("loss", "loss_stderr", "bits_per_byte", "bits_per_byte_stderr")}
        fields = {**measured, "domains": finite(found.domains), "vocab": found.vocab, "problem": found.problem}
        if found.mixture:
            fields["mixture"] = found.mixture
        if not math.isfinite(loss) or (limit is not None and loss > limit):
            fields["problem"] = f"the loss is {loss:.4g} nats per token" + (f", above {limit:g}" if math.isfinite(loss) else "")
            return self._record("diverged", attempt, overhead, **fields)
        record = self._record("finished", attempt, overhead, **fields)
        if record.skipped > 1 + SKIPPED_SHARE * record.steps:
            problem = f"{record.skipped} of {record.steps} updates were skipped, not finite or above the spike limit"
            return dataclasses.replace(record, status="diverged", problem=problem)
        return record

    def _record(self, status: str, attempt: int, overhead: float, **fields: Any) -> Record:
        from dlmjax.evaluation.record import provenance
        from dlmjax.training.goodput import read_attempts

        totals = self.counters.totals()
        nothing = dict.fromkeys(("loss", "loss_stderr", "bits_per_byte", "bits_per_byte_stderr"))
        counted = {"compiled": int(totals["compiled"]), "from_cache": int(totals["read"])}
        # The wall clock may have been set back meanwhile.
        trained = sum(max(started.ended - started.began, 0.0) for started in read_attempts(self.workdir / "goodput.json"))
        spent = {"seconds": trained + totals["evaluate"], "start_seconds": totals["start"], "overhead_seconds": overhead}
        known = facts(self.run, self.values, self.plan.validation)
        last = _last_line(self.workdir)
        known |= {"train_loss": last.get("loss"), "skipped": int(last.get("skipped_total") or 0)}
        known |= {**nothing, **fields, **counted, **spent, "made": provenance()}
        return Record(**known, status=status, attempt=attempt)


@dataclasses.dataclass(frozen=True)
class Final:
    """The final metric of a run: the bound in nats per token over the windows of all corpora together, each corpus with the same number
    of windows, and bits per UTF-8 byte; standard errors over windows. domains: nats per token by corpus, None for one alone."""

    loss: float
    loss_stderr: float
    bits_per_byte: float
    bits_per_byte_stderr: float
    domains: dict[str, float] | None
    mixture: dict[str, float] | None
    vocab: int
    problem: str


def final_metric(workdir: str, validation: Validation, paths: Sequence[str]) -> Final:
    """Measures the newest checkpoint of a run, its averaged weights where it kept an average."""
    from dlmjax.evaluate import EvaluationSettings, bounds
    from dlmjax.experiment import open_corpora
    from dlmjax.run import open_run

    run = open_run(workdir)
    settings = EvaluationSettings(nodes=validation.nodes, draws=validation.draws, rule=validation.rule, seed=validation.seed)
    results = bounds(run, paths, validation.split, settings, validation.windows)
    tokens, lengths = sum(result.tokens for result in results), sum(result.bytes or 0 for result in results)
    nats = sum(result.nats_per_token * result.tokens for result in results)
    error = math.sqrt(sum((result.stderr_nats_per_token * result.tokens) ** 2 for result in results))
    bits, bits_error = math.nan, math.nan
    if lengths:
        bits = nats / math.log(2) / lengths
        bits_error = math.sqrt(sum((result.stderr_bits_per_byte * result.bytes) ** 2 for result in results)) / lengths
    domains = mixture = None
    if len(paths) > 1:
        domains = {name: result.nats_per_token for name, result in zip(domain_names(list(paths)), results, strict=True)}
    if domains and not run.experiment.config.data.weights:
        sizes = [corpus.num_tokens for corpus in open_corpora(run.experiment.config, "train")]
        mixture = {name: size / sum(sizes) for name, size in zip(domains, sizes, strict=True)}
    problem = "" if results[0].is_bound else "the loss of this process is not a likelihood bound"
    vocab = run.experiment.config.model.vocab or run.experiment.tokenizer.vocab_size
    return Final(nats / tokens, error / tokens, bits, bits_error, domains, mixture, vocab, problem)


def _last_line(workdir: pathlib.Path) -> dict[str, Any]:
    """The last line of training, empty where there is none: its loss, which is never fitted, and the number of skipped updates."""
    from dlmjax.training import read

    lines = read(workdir / "metrics.jsonl", "train") if (workdir / "metrics.jsonl").is_file() else []
    return lines[-1] if lines else {}


# --- compiled programs ---------------------------------------------------------------------------------------------------------------


class CompileLock:
    """A lock under which one process at a time compiles, until the programs of a config are known to be compiled.

    All runs share some small programs, all runs of one noise process share others, and so do the runs of one network under any process
    (its initial values): the first run of a sweep, of a noise process and of a network compiles alone.
    """

    def __init__(self, root: str, values: Mapping[str, Any]):
        self._root = pathlib.Path(root)
        process = shape_of({"process.name": values["process.name"]})
        network = shape_of({name: value for name, value in values.items() if not name.startswith("process.")})
        # (what is locked, what is noted as compiled), always in this order
        self._levels = (("all", "all"), (process, process), (network, network), (shape_of(values), programs_of(values)))

    @contextlib.contextmanager
    def held(self, act: str) -> Iterator[Callable[[], None]]:
        """`with compile_lock.held("train") as compiled: ...; compiled(); ...`: waits for the lock where needed; `compiled` frees it."""
        notes = [self._root / LOCKS / f"{act}-{noted}.done" for _, noted in self._levels]
        with contextlib.ExitStack() as held:  # should it end before it has compiled everything, the next one does
            for (locked, _), note in zip(self._levels, notes, strict=True):
                if not note.exists():
                    held.enter_context(released(hold(self._root, f"{act}-{locked}", wait=True)))

            def compiled() -> None:
                for note in notes:
                    note.touch()
                held.close()

            yield compiled


@contextlib.contextmanager
def _counted(counters: Counters) -> Iterator[None]:
    """Notes each program that XLA compiles into the cache, or reads from it."""
    from jax import monitoring

    names = {"/jax/compilation_cache/cache_misses": "compiled", "/jax/compilation_cache/cache_hits": "read"}

    def listen(event: str, **_: Any) -> None:
        if event in names:
            counters.note(names[event])

    monitoring.register_event_listener(listen)
    try:
        yield
    finally:
        monitoring.unregister_event_listener(listen)


def share_compiled(root: str) -> None:
    """Keeps every program in DIR/compiled, however quickly it was compiled: only then does the number of files count them."""
    import jax

    from dlmjax.cluster.host import keep_programs

    keep_programs(pathlib.Path(root) / COMPILED, 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


# --- the process ---------------------------------------------------------------------------------------------------------------------


def command(directory: str, run_id: str, *, diverged: int, attempt: int, cores: Sequence[int]) -> list[str]:
    """The command that starts the process of a run, which ends with the caller and runs on these cores (none: on all)."""
    words = [sys.executable, "-m", "dlmjax.cli.sweep_process", directory, run_id, "--diverged", str(diverged), "--attempt", str(attempt)]
    words += ["--parent", str(os.getpid()), "--started", repr(time.time())]
    return words + (["--cores", ",".join(map(str, cores))] if cores else [])
