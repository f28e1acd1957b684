"""The plan of a sweep on disk: `sweep.json` and `manifest.jsonl`, which every executor reads. Imports no jax."""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dlmjax import checks
from dlmjax.errors import InputError
from dlmjax.fields import hashed
from dlmjax.files import parse_json, read_bounded, write_atomically
from dlmjax.quadrature import check_quadrature
from dlmjax.seeds import SEEDS

SWEEP, MANIFEST, RUNS, RECORDS = "sweep.json", "manifest.jsonl", "runs", "records.jsonl"
FORMAT, VERSION = "dlmjax sweep", 1

# Leaves that a sweep itself reads of a run, with their types.
_LEAVES = dict.fromkeys(("model.depth", "model.width", "model.vocab", "seed"), (int,))
_LEAVES |= {"data.paths": (list,), "data.weights": (list,), "optimizer.lr": (float, int)}
_LEAVES |= {"optimizer.schedule": (str,), "process.name": (str,)}
_ID = re.compile(r"[a-z0-9][\w.-]{0,199}", re.ASCII)  # it names a folder


@dataclasses.dataclass(frozen=True)
class Validation:
    """The measurement that ends every run of a sweep: the same windows under the same times and masks; see `evaluation.Evaluator`."""

    split: str = "valid"
    windows: int = 512
    nodes: int = 8
    draws: int = 1
    rule: str = "gauss"
    seed: int = 0

    def __post_init__(self) -> None:
        check_quadrature("Validation", self.rule, self.nodes, self.draws)
        checks.whole("Validation", 1, windows=self.windows)
        checks.whole("Validation", 0, SEEDS - 1, seed=self.seed)
        if not isinstance(self.split, str) or not self.split:
            raise InputError(f"Validation(split={self.split!r}): give the name of a held-out split, such as 'valid'")

    def __str__(self) -> str:
        return f"{self.windows} windows of {self.split}, {self.nodes} {self.rule} levels x {self.draws}, seed {self.seed}"


@dataclasses.dataclass(frozen=True)
class Policy:
    """How often a run is tried again that fails (its process ends with an error) or diverges (its final loss is not finite, or above
    `diverged_above` nats per token). A run is a function of its config, so a diverged one is tried again with `lr_factor` times its
    learning rate."""

    retries: int = 2
    diverged_retries: int = 0
    lr_factor: float = 0.5
    diverged_above: float | None = None

    def __post_init__(self) -> None:
        checks.whole("Policy", 0, retries=self.retries, diverged_retries=self.diverged_retries)
        checks.positive("Policy", lr_factor=self.lr_factor)
        if self.lr_factor > 1:
            raise InputError(f"Policy(lr_factor={self.lr_factor}): a retry must not raise the learning rate; give at most 1")
        if self.diverged_above is not None:
            checks.positive("Policy", diverged_above=self.diverged_above)


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One line of the manifest.

    id: a function of the objective, the sweep point and the config: `masked-1e12-w64-s0-3f9a2c1b`.
    series: its objective; each objective has a fit of its own. cell: the sweep point, that is what varies:
    "budget", "width", "seed"; or "unique_tokens", "epochs"; "batch", "lr"; "weights".
    config: every leaf, flat (`config.leaves`); paths as in the sweep's file.
    parameters, non_embedding, active: counts. flops_per_token: model FLOPs of a training token (attention and head included);
    hardware_flops_per_token: with what rematerialisation computes again. flops, tokens: of the whole run. unique_tokens: of the
    corpus that it uses; epochs = tokens / unique_tokens. expected_seconds, peak_bytes: on the device of the plan; None = not known.
    """

    id: str
    series: str
    cell: dict[str, Any]
    config: dict[str, Any]
    parameters: int
    non_embedding: int
    active: int
    flops_per_token: float
    hardware_flops_per_token: float
    flops: float
    tokens: int
    unique_tokens: int
    epochs: float
    expected_seconds: float | None = None
    peak_bytes: float | None = None


@dataclasses.dataclass(frozen=True)
class _Head:
    """What `sweep.json` holds. runs: lines of the manifest; ids: a hash of their ids, "" in directories that were planned without."""

    format: str
    version: int
    name: str
    source: str
    made: dict[str, Any]
    validation: dict[str, Any]
    policy: dict[str, Any]
    runs: int
    ids: str = ""


@dataclasses.dataclass(frozen=True)
class SweepPlan:
    """A sweep as it lies on disk. made: versions and commit (`evaluation.record`), device of the expectations."""

    name: str
    source: str
    validation: Validation
    policy: Policy
    made: dict[str, Any]
    runs: tuple[PlannedRun, ...]

    def write(self, directory: str | os.PathLike) -> None:
        """The manifest first: a directory with a `sweep.json` is whole. Raises InputError as `write_atomically`."""
        lines = "".join(json.dumps(dataclasses.asdict(run)) + "\n" for run in self.runs)
        write_atomically(pathlib.Path(directory) / MANIFEST, lines)
        self.write_head(directory)

    def write_head(self, directory: str | os.PathLike) -> None:
        """`sweep.json` alone: of the first lines of a manifest that is there."""
        head = _Head(
            format=FORMAT,
            version=VERSION,
            name=self.name,
            source=self.source,
            made=self.made,
            validation=dataclasses.asdict(self.validation),
            policy=dataclasses.asdict(self.policy),
            runs=len(self.runs),
            ids=_hash([run.id for run in self.runs]),
        )
        write_atomically(pathlib.Path(directory) / SWEEP, json.dumps(dataclasses.asdict(head), indent=1) + "\n")

    @classmethod
    def read(cls, directory: str | os.PathLike) -> "SweepPlan":
        """The plan of a directory. A manifest whose first lines are those of `sweep.json` is one that was about to grow: they count.

        Raises InputError: no plan there, or one that is damaged, of another version, or was edited, so that an id no longer fits its run.
        """
        root = pathlib.Path(directory)
        if not (root / SWEEP).exists():
            raise InputError(f"{root} holds no planned sweep (no {SWEEP}); make one with: dlmjax sweep plan SWEEP.py --output {root}")
        try:
            head = _head_of(parse_json(read_bounded(root / SWEEP)))
            lines = read_bounded(root / MANIFEST).splitlines()
            runs = tuple(_run_of(line, f"line {number} of {MANIFEST}") for number, line in enumerate(lines, 1))
            if len(runs) < head.runs or (len(runs) > head.runs and not head.ids):
                raise ValueError(f"{len(runs)} lines in {MANIFEST} where {SWEEP} has {head.runs} runs")
            runs = runs[: head.runs]
            if head.ids and head.ids != _hash([run.id for run in runs]):
                raise ValueError(f"the lines of {MANIFEST} are not those, or not in the order, that {SWEEP} was written for")
            if len({run.id for run in runs}) != len(runs):
                raise ValueError(f"{MANIFEST} has a run twice")
            policy = checks.from_json(Policy, head.policy, f"policy in {SWEEP}")
            validation = checks.from_json(Validation, head.validation, f"validation in {SWEEP}")
            return cls(head.name, head.source, validation, policy, head.made, runs)
        except (OSError, ValueError) as error:
            again = f"plan the sweep again (dlmjax sweep plan SWEEP.py --output {root}): runs that began keep their ids"
            raise InputError(f"the plan in {root} cannot be read ({' '.join(str(error).split())}); {again}") from None


def run_id(objective: str, point: Mapping[str, Any], config: Mapping[str, Any], parts: Sequence[str]) -> str:
    """`objective-part-part-hash`: the hash is of the objective, the sweep point and the config (`hashed`): equal runs have equal ids."""
    return "-".join([objective, *parts, _hash([objective, dict(point), hashed(config)])])


def ids_in(directory: str | os.PathLike) -> list[str]:
    """The ids in a directory's manifest in their order, of lines that are damaged too; nothing where there is none."""
    try:
        text = (pathlib.Path(directory) / MANIFEST).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found = (re.match(r'\s*\{\s*"id"\s*:\s*"([^"]*)"', line) for line in text.splitlines())
    return [match[1] for match in found if match]


def _hash(value: Any) -> str:
    """Eight hexadecimal digits of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=list).encode()).hexdigest()[:8]


def _head_of(values: Any) -> _Head:
    """Raises InputError: not what a `sweep.json` of this version holds."""
    version = (values.get("format"), values.get("version")) if isinstance(values, dict) else (None, None)
    if version != (FORMAT, VERSION):
        raise InputError(f"{SWEEP} is of format {version[0]!r:.40} version {version[1]!r:.20}, not {FORMAT!r} version {VERSION}")
    head = checks.from_json(_Head, values, SWEEP)
    checks.name(f"name in {SWEEP}", head.name)
    checks.flat(SWEEP, {"source": head.source})
    return head


def _run_of(line: bytes, what: str) -> PlannedRun:
    """A line of the manifest. Raises InputError: not a run, or one whose id, tokens or FLOPs are not those of its config."""
    try:
        values = parse_json(line)
    except ValueError as error:
        raise InputError(f"{what} is not JSON: {' '.join(str(error).split())}") from None
    run = checks.from_json(PlannedRun, values, what)
    if not _ID.fullmatch(run.id):
        raise InputError(f"{what} has the id {run.id[:60]!r}, which is not the id of a run")
    checks.name(f"series of {what}", run.series)
    checks.flat(f"cell of {what}", run.cell)
    checks.flat(f"config of {what}", run.config)
    if not run.id.endswith("-" + _hash([run.series, run.cell, hashed(run.config)])):
        raise InputError(f"{what} was edited: the id {run.id} stands for another series, cell or config")
    leaves = {name: run.config.get(name) for name in ("train.steps", "data.batch", "data.length")}
    for name, value in leaves.items():
        if type(value) is not int or value < 1:
            raise InputError(f"{what} has {name} {value!r} in its config; it must be a positive whole number")
    for name, kinds in _LEAVES.items():
        if name in run.config and type(run.config[name]) not in kinds:
            raise InputError(f"{what} has {name} {str(run.config[name])[:60]!r} in its config; it must be {kinds[0].__name__}")
    if not all(isinstance(path, str) for path in run.config.get("data.paths", [])):
        raise InputError(f"{what} has data.paths in its config that are not all texts")
    tokens = math.prod(leaves.values())
    if run.tokens != tokens:
        raise InputError(f"{what} was edited: it has {run.tokens:,} tokens, steps x batch x length are {tokens:,}")
    if not math.isclose(run.flops, run.flops_per_token * tokens, rel_tol=1e-9):
        raise InputError(f"{what} was edited: it has {run.flops:.6g} FLOPs, those of its tokens are {run.flops_per_token * tokens:.6g}")
    return run
