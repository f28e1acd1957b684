"""The plan of a sweep on disk: `sweep.json` and `manifest.jsonl`, which every executor reads. Imports no jax."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from dlmjax.errors import InputError
from dlmjax.files import write_atomically

SWEEP, MANIFEST, RUNS, RECORDS = "sweep.json", "manifest.jsonl", "runs", "records.jsonl"
VERSION = 1


@dataclasses.dataclass(frozen=True)
class Validation:
    """What every run of a sweep is measured by: the same windows under the same noise levels and masks; see `evaluation.Evaluator`."""

    split: str = "valid"
    windows: int = 512
    nodes: int = 8
    draws: int = 1
    rule: str = "gauss"
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.windows} windows of {self.split}, {self.nodes} {self.rule} levels x {self.draws}, seed {self.seed}"


@dataclasses.dataclass(frozen=True)
class Policy:
    """What is done with a run that fails (the process ends with an error) or diverges (its loss is not finite, or above `diverged_above`
    nats per token when it ends): tried again so many times. A run is a function of its config, so a diverged one is tried again with
    `lr_factor` times its learning rate."""

    retries: int = 2
    diverged_retries: int = 0
    lr_factor: float = 0.5
    diverged_above: float | None = None


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One line of the manifest.

    id: a function of the series, the cell and the config: `masked-1e12-w64-s0-3f9a2c1b`.
    series: the objective that it belongs to; a fit is made per series.
    cell: what varies in the sweep: "budget", "width", "seed"; or "unique_tokens", "epochs"; "batch", "lr"; "weights".
    config: every leaf, flat (`config.leaves`); paths as they were given.
    parameters, non_embedding, active: counts. flops_per_token: model FLOPs of a training token (attention and head included);
    hardware_flops_per_token: with what rematerialisation computes again. flops, tokens: of the whole run. unique_tokens: of the
    corpus that it sees; epochs = tokens / unique_tokens. expected_seconds, peak_bytes: on the device of the plan; None = not known.
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
class Plan:
    """A sweep as it lies on disk. made: versions and commit (`evaluation.record`), device of the expectations."""

    name: str
    source: str
    validation: Validation
    policy: Policy
    made: dict[str, Any]
    runs: tuple[PlannedRun, ...]

    def write(self, directory: str | os.PathLike) -> None:
        """The manifest first: a directory with a `sweep.json` is whole."""
        root = pathlib.Path(directory)
        root.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(dataclasses.asdict(run)) + "\n" for run in self.runs)
        write_atomically(root / MANIFEST, lines.encode())
        head = {"format": "dlmjax sweep", "version": VERSION, "name": self.name, "source": self.source, "made": self.made}
        head |= {"validation": dataclasses.asdict(self.validation), "policy": dataclasses.asdict(self.policy), "runs": len(self.runs)}
        write_atomically(root / SWEEP, (json.dumps(head, indent=1) + "\n").encode())

    @classmethod
    def read(cls, directory: str | os.PathLike) -> "Plan":
        """Raises InputError: no plan there, or one that is damaged or of another version."""
        root = pathlib.Path(directory)
        if not (root / SWEEP).is_file():
            raise InputError(f"{root} holds no planned sweep (no {SWEEP}); make one with: dlmjax sweep plan SWEEP.py --output {root}")
        try:
            head = json.loads((root / SWEEP).read_text(encoding="utf-8"))
            if head["format"] != "dlmjax sweep" or head["version"] != VERSION:
                raise ValueError(f"format {head['format']!r} version {head['version']}, not 'dlmjax sweep' version {VERSION}")
            runs = tuple(PlannedRun(**json.loads(line)) for line in (root / MANIFEST).read_text(encoding="utf-8").splitlines())
            if len(runs) != head["runs"]:
                raise ValueError(f"{len(runs)} lines in {MANIFEST} where {SWEEP} has {head['runs']} runs")
            policy, validation = Policy(**head["policy"]), Validation(**head["validation"])
            return cls(head["name"], head["source"], validation, policy, head["made"], runs)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"the plan in {root} cannot be read ({error}); plan the sweep again") from None


def run_id(series: str, cell: Mapping[str, Any], config: Mapping[str, Any], parts: Sequence[str]) -> str:
    """`series-part-part-hash`: the hash is of the series, the cell and every leaf of the config, so equal runs have equal ids."""
    text = json.dumps([series, dict(cell), dict(config)], sort_keys=True, default=list)
    return "-".join([series, *parts, hashlib.sha256(text.encode()).hexdigest()[:8]])
