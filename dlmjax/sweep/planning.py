"""From a sweep to its plan: every sweep point becomes a config, a number of whole steps, a cost, and one line of the manifest.

Set for each run, over the config of its objective:

    model        the shape of the ladder
    data         the token budget of the corpus (repeated data), the weights (mixtures), the batch by its rule
    train        steps = FLOPs or tokens of the sweep point, in whole steps; microbatches no larger than the config's
    optimizer    the learning rate by its rule; warm-up and the average's horizon keep their share of the steps
    log          nothing is evaluated or sampled during a run, which ends with the validation of the sweep
    checkpoint   only the newest is kept, `Sweep.checkpoints` times a run

The schedule decays to the last step of each run, so no point of a fit is a checkpoint in the middle of a schedule. A sweep point whose
whole steps miss its FLOPs or tokens by more than 3 % is refused and listed.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from dlmjax import config as config_lib
from dlmjax.checks import MOST_COUNT
from dlmjax.data import Corpus
from dlmjax.data.token_budget import with_tokens
from dlmjax.errors import InputError
from dlmjax.evaluation.likelihood import count_form
from dlmjax.evaluation.record import provenance
from dlmjax.experiment import Experiment, embedding_of, open_corpora, token_counts
from dlmjax.plan.hardware import Estimator, Vocabulary, alone
from dlmjax.plan.topology import CHIPS, Topology, describe, fill_mesh
from dlmjax.sweep import counts, ladder
from dlmjax.sweep.definition import Sweep, SweepPoint
from dlmjax.sweep.manifest import RECORDS, RUNS, PlannedRun, SweepPlan, Validation, ids_in, run_id
from dlmjax.sweep.records import read_records
from dlmjax.sweep.rules import BatchLaw, of_length

TOLERANCE = 0.03  # of a run's FLOPs or tokens against those of its sweep point
LEAST_STEPS = 10  # fewer are refused


@dataclasses.dataclass(frozen=True)
class Device:
    """Where runs are expected to run. flops_per_second: of the model; None = not known. text: its source. topology: for memory."""

    flops_per_second: float | int | None = None
    text: str = "no device was named, so times are not known (--device h100, or --flops-per-second as measured)"
    topology: Topology | None = None


def device_of(name: str | None, utilisation: float | int, flops_per_second: float | int | None) -> Device:
    """The device of the flags: CHIP (one of them) or CHIP:SHAPE (`dlmjax plan` knows its memory), or a measured speed.

    Raises InputError: an unknown chip or shape, a share or a speed out of its range.
    """
    if not 0 < utilisation <= 1:
        raise InputError(f"--utilisation is {utilisation}; it is a share of the peak, above 0 and at most 1")
    if flops_per_second is not None and not 0 < flops_per_second < float("inf"):
        raise InputError(f"--flops-per-second is {flops_per_second}; give the model FLOP/s that were measured, such as 4e10")
    topology = None
    if name is not None and (":" in name or name not in CHIPS):
        topology = describe(name if ":" in name else f"{name}:1")
    if flops_per_second is not None:
        return Device(flops_per_second, f"{flops_per_second:.3g} model FLOP/s, as given", topology)
    if name is None:
        return Device()
    chips, chip = (topology.chips, topology.chip) if topology else (1, CHIPS[name])
    speed = chips * chip.peak * utilisation
    text = f"{chips} x {chip.name}, {chip.peak / 1e12:.0f} TFLOP/s bfloat16 peak each, {100 * utilisation:.0f} % of it assumed"
    return Device(speed, text, topology)


@dataclasses.dataclass(frozen=True)
class Refusal:
    """A sweep point that is not planned, and why."""

    objective: str
    point: dict[str, Any]
    reason: str


def plan_sweep(sweep: Sweep, source: str, device: Device | None = None) -> tuple[SweepPlan, list[Refusal]]:
    """Plans every sweep point of every objective.

    Args:
      source: the sweep's file; the configs of its objectives are relative to it.

    Raises:
      InputError: a config or corpus that is not right, a budget that no size meets, an objective with no run.
    """
    device, folder = device or Device(), pathlib.Path(config_lib.shipped(config_lib.split_size(source)[0])).parent
    runs, refused = [], []
    for name in sweep.objectives:
        planner, first = _Planner(sweep, name, folder, device), len(runs)
        for point in sweep.grid.points():
            found = planner.plan(point)
            (runs if isinstance(found, PlannedRun) else refused).append(found)
        _check_met(name, runs[first:], [refusal for refusal in refused if refusal.objective == name])
    made = {**provenance(), "expected_on": device.text}
    return SweepPlan(sweep.name, str(source), sweep.validation, sweep.policy, made, tuple(runs)), refused


def write_plan(plan: SweepPlan, directory: str) -> None:
    """Writes sweep.json and manifest.jsonl. A plan may grow: runs that a directory holds must be in the new one, measured the same way.

    Existing lines keep their numbers, since clusters address runs by them, and new ones follow; only a run that was not begun and that
    the new plan lacks is dropped, and later lines move up. A damaged plan is replaced: folders and records show which runs were begun.

    Raises InputError: the directory holds runs that the new plan lacks, or that were measured by a different validation.
    """
    root = pathlib.Path(directory)
    try:
        old = SweepPlan.read(root)
    except InputError:  # none there, or a damaged one
        old = None
    records = read_records(root) if (root / RECORDS).exists() else []
    begun = {record.id for record in records} | _folders(root, old)
    gone = sorted(begun - {run.id for run in plan.runs})
    if gone:
        raise InputError(
            f"{root} holds {len(gone)} runs that this plan lacks, such as {gone[0]}; choose another --output (nothing was changed)"
        )
    measured = {record.validation for record in records} | ({str(old.validation)} if old and begun else set())
    for other in sorted(measured - {str(plan.validation)}):
        raise InputError(f"the runs in {root} are measured by {other}, not {plan.validation}; choose another --output")
    lines = {name: number for number, name in enumerate(ids_in(root))}
    runs = tuple(sorted(plan.runs, key=lambda run: lines.get(run.id, len(lines))))
    if old:
        old.write_head(root)  # one without a hash of its lines would make a kill between the next two writes look like damage
    dataclasses.replace(plan, runs=runs).write(root)


def _folders(root: pathlib.Path, old: SweepPlan | None) -> set[str]:
    """Ids of the runs that have a workdir: of the old plan, or by their form where it cannot be read."""
    names = {path.name for path in (root / RUNS).iterdir()} if (root / RUNS).is_dir() else set()
    found = {match[1] for name in names if (match := re.fullmatch(r"(.+-[0-9a-f]{8})(\.retry-[0-9]+)?", name))}
    return found & {run.id for run in old.runs} if old else found


def _check_met(objective: str, runs: Sequence[PlannedRun], refused: Sequence[Refusal]) -> None:
    """Refuses an objective without runs, and a budget that none of its sizes meets."""
    for refusal in refused:
        budget = refusal.point.get("budget")
        if not any(run.cell.get("budget") == budget for run in runs):
            what = f"the budget {budget:.4g}" if budget else "any sweep point"
            reasons = "; ".join(f"width {r.point['width']}: {r.reason}" for r in refused if r.point.get("budget") == budget)
            raise InputError(f"no size of the objective {objective} meets {what} within {100 * TOLERANCE:.0f} %: {reasons}")


class _Planner:
    """Plans the sweep points of one objective. What does not change from point to point is computed once."""

    def __init__(self, sweep: Sweep, name: str, root: pathlib.Path, device: Device):
        self.name, self.sweep, self.device, self.objective = name, sweep, device, sweep.objective_of(name)
        config = config_lib.load(str(root / self.objective.config), (*sweep.overrides, *self.objective.overrides))
        with config.unlocked():
            config.data.paths = sweep.paths or config.data.paths
            if sweep.transfer:
                config.model.update({leaf.partition(".")[2]: value for leaf, value in sweep.transfer.leaves().items()})
        config_lib.check(config)
        _check_decays(config.optimizer, name)
        self.config, self.corpora = config, _corpora(sweep, config, name)
        tokenizer = self.corpora[0].tokenizer if self.corpora else Vocabulary(config.model.vocab)
        self._experiment = alone(config, tokenizer, token_counts(config, self.corpora), embedding_of(config, root))
        if sweep.validation.rule == "count" and not self._experiment.process.attention.causal:
            count_form(self._experiment.process.bound)
        self._base = config_lib.leaves(config)
        self._sized: dict[int, tuple[Experiment, counts.Counts]] = {}
        self._estimators: dict[int, Estimator] = {}
        self._peaks: dict[tuple[int, int, int], float | InputError] = {}

    def plan(self, point: SweepPoint) -> PlannedRun | Refusal:
        """The run of a sweep point, or why there is none."""
        base, found = self._base, self._counts(point.width)
        length = base["data.length"]
        wanted = point.flops / found.flops_per_token if point.flops else point.tokens
        if point.unique:
            wanted = self._unique(point) * point.values["epochs"]
        batch = point.batch or (self.objective.batch.windows(wanted, length) if self.objective.batch else base["data.batch"])
        steps = round(wanted / (batch * length))
        tokens = steps * batch * length
        reason = _refused(steps, tokens, wanted, batch * length)
        unit = self.objective.batch.multiple if isinstance(self.objective.batch, BatchLaw) and not point.batch else 0
        accumulation = microbatches(batch, base["data.batch"] // base["train.accumulation"], unit or 1)
        reason, peak = reason or self._curriculum(steps), None
        if not reason and self.device.topology:
            peak = self._peak(point.width, batch, accumulation)
            reason = str(peak) if isinstance(peak, InputError) else ""
        if reason:
            return Refusal(self.name, point.values, reason)
        config = self._config(point, batch, accumulation, steps)
        flops, unique = found.flops_per_token * tokens, self._seen(point, config, tokens)
        return PlannedRun(
            id=run_id(self.name, point.values, config, point.id_parts),
            series=self.name,
            cell=point.values,
            config=config,
            flops=flops,
            tokens=tokens,
            unique_tokens=unique,
            epochs=tokens / unique,
            expected_seconds=flops / self.device.flops_per_second if self.device.flops_per_second else None,
            peak_bytes=peak,
            **dataclasses.asdict(found),
        )

    def _config(self, point: SweepPoint, batch: int, accumulation: int, steps: int) -> dict[str, Any]:
        """Every leaf of the run's config, checked; lists where the config has tuples, as JSON reads them back."""
        base, sweep = self._base, self.sweep
        rate = point.lr or (self.objective.rate.rate(batch, base["data.length"]) if self.objective.rate else base["optimizer.lr"])
        every = -(-steps // sweep.checkpoints)
        changes = {f"model.{name}": value for name, value in dataclasses.asdict(ladder.shape(point.width)).items()} | {
            "seed": point.seed,
            "data.batch": batch,
            "data.paths": (with_tokens(base["data.paths"][0], point.unique),) if point.unique else base["data.paths"],
            "data.weights": point.weights or base["data.weights"],
            **of_length(base, steps),
            "train.accumulation": accumulation,
            "optimizer.lr": float(rate),
            "checkpoint.every": every,
            "checkpoint.keep": 1,
            "checkpoint.best": 0,
            "log.every": max(min(every, steps // 20), 1),
            "log.evaluate": 0,
            "log.sample": 0,
        }
        for name, value in changes.items():
            section, _, leaf = name.rpartition(".")
            (self.config[section] if section else self.config)[leaf] = value
        config_lib.check(self.config)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in config_lib.leaves(self.config).items()}

    def _curriculum(self, steps: int) -> str:
        """Why the curriculum of the process does not suit this number of steps; empty where it does."""
        self.config.train.steps = steps
        try:
            config_lib.check_curriculum(self.config)
        except InputError as error:
            return str(error)
        return ""

    def _counts(self, width: int) -> counts.Counts:
        if width not in self._sized:
            experiment = counts.with_shape(self._experiment, ladder.shape(width))
            self._sized[width] = experiment, counts.count(experiment)
        return self._sized[width][1]

    def _unique(self, point: SweepPoint) -> int:
        """Tokens of the whole windows of a token budget. Raises InputError: the corpus has fewer, or there is not one window."""
        length = self._base["data.length"]
        if not self.corpora:
            raise InputError(f"sweep {self.sweep.name} repeats part of a corpus, but names no corpus; give data=DIR")
        if not length <= point.unique <= self.corpora[0].num_tokens:
            raise InputError(
                f"{self.corpora[0].directory} has {self.corpora[0].num_tokens:,} train tokens in windows of {length:,}; "
                f"unique_tokens={point.unique:,} is not from one window to that"
            )
        return point.unique // length * length

    def _seen(self, point: SweepPoint, config: dict[str, Any], tokens: int) -> int:
        """Different tokens that the run uses: all that it trains on, at most those of each corpus."""
        if point.unique:
            return self._unique(point)
        length = config["data.length"]
        sizes = [corpus.num_tokens // length * length for corpus in self.corpora]
        shares = config["data.weights"] or sizes
        return sum(min(round(tokens * share / sum(shares)), size) for share, size in zip(shares, sizes, strict=True)) if sizes else tokens

    def _peak(self, width: int, batch: int, accumulation: int) -> float | InputError:
        """Bytes of a chip at the peak of a step by the analytic model of `dlmjax plan`, or why the step does not fit its mesh."""
        key = width, batch, accumulation
        if key not in self._peaks:
            if width not in self._estimators:
                self._estimators[width] = Estimator(self._sized[width][0], self.device.topology)
            mesh = fill_mesh(dict(self.config.mesh), self.device.topology)
            try:
                plan = self._estimators[width](mesh, self._base["execution.remat"], accumulation, batch)
                self._peaks[key] = plan.memory.peak
            except InputError as error:
                self._peaks[key] = error
        return self._peaks[key]


def _refused(steps: int, tokens: int, wanted: float | int, step: int) -> str:
    """Why whole steps of `step` tokens do not give the planned tokens; empty where they do."""
    if steps < LEAST_STEPS:
        return f"{wanted:,.0f} tokens are {steps} steps of {step:,}, fewer than {LEAST_STEPS}"
    if tokens > MOST_COUNT:
        return f"{wanted:.3g} tokens are more than the {MOST_COUNT:.3g} that are counted"
    if abs(tokens / wanted - 1) > TOLERANCE:
        return f"{steps} whole steps of {step:,} tokens are {100 * (tokens / wanted - 1):+.1f} % off {wanted:,.0f}"
    return ""


def microbatches(batch: int, largest: int, unit: int) -> int:
    """The fewest equal microbatches of at most `largest` windows, or of one `unit` that the batch is a multiple of."""
    largest = min(largest, batch) // unit * unit
    return batch // next((size for size in range(largest, 0, -unit) if batch % size == 0), unit)


def _check_decays(optimizer: Any, name: str) -> None:
    """Refuses schedules that end at the rate they had all along: their last loss is not a point of a law."""
    for leaf, flat in (
        ("schedule=constant", optimizer.schedule == "constant"),
        ("decay=0", optimizer.schedule == "wsd" and optimizer.decay <= 0),
        (f"final={optimizer.final}", optimizer.final >= 1),
    ):
        if flat:
            raise InputError(
                f"objective {name}: optimizer.{leaf} never decays, so its last loss is not a point of a law; choose cosine or wsd with "
                "a decay and a final below 1"
            )


def _corpora(sweep: Sweep, config: Any, name: str) -> list[Corpus]:
    """The train splits; none where no corpus is named.

    Raises InputError: no split to validate on, or one with too few windows; less to train on than a window; no vocabulary.
    """
    if config.data.paths:
        for corpus in open_corpora(config, sweep.validation.split):
            _check_windows(sweep.validation, corpus, config.data.length)
        corpora = open_corpora(config, "train")
        for path, corpus in zip(config.data.paths, corpora, strict=True):
            if corpus.num_tokens < config.data.length:
                raise InputError(
                    f"{path} has {corpus.num_tokens:,} train tokens, fewer than one window of {config.data.length:,}; "
                    "take more of it, or a smaller data.length"
                )
        return corpora
    if config.model.vocab < 5:
        raise InputError(
            f"sweep {sweep.name} names no corpus, so the objective {name} has no vocabulary; give data=DIR, or override model.vocab=N"
        )
    return []


def _check_windows(validation: Validation, corpus: Corpus, length: int) -> None:
    """Refuses a validation of more windows than the split has."""
    windows = -(-corpus.num_tokens // length)
    if validation.windows > windows:
        raise InputError(
            f"{corpus.directory} has {windows:,} windows of {length:,} in its split {validation.split}, fewer than the "
            f"{validation.windows:,} that every run is to be measured on; give Validation(windows={windows}) or fewer "
            f"(--set windows={windows} where the sweep takes it), or prepare more text"
        )
