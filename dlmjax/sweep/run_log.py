"""The state of each run in the directory of a sweep: its workdir, how it ended, whether a process runs it now. Imports no jax.

runs/ID/               the workdir of a run: what `dlmjax train` writes, and
    log.txt            the output of its processes
    account.txt        one line per program compiled or read back, per start, per first step: over all starts of the run
    record.json        its record, until the sweep has put it into records.jsonl
runs/ID.retry-1/       the same of a run that diverged and is tried again with a lower learning rate
compiled/              XLA's programs, which all runs share
locks/                 held while a process runs a run, or compiles a shape
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from dlmjax import checks
from dlmjax.errors import InputError
from dlmjax.fields import ALL, NONE, fields_by_programs, hashed
from dlmjax.files import read_json
from dlmjax.sweep.manifest import RECORDS, RUNS, PlannedRun, Policy, Validation
from dlmjax.sweep.records import Record, records_of

COMPILED, LOCKS = "compiled", "locks"
LOG, COUNTERS, RESULT = "log.txt", "account.txt", "record.json"
STEPPED = "stepped"  # a counter: starts of a run that did a first step, whose programs are compiled

# Leaves that a record repeats.
LEAVES = ("data.paths", "data.weights", "data.batch", "data.length", "model.depth", "model.width", "model.vocab", "train.steps")
LEAVES += ("optimizer.lr", "optimizer.schedule", "process.name", "seed")


class RunLog:
    """The records of a sweep by run, oldest first. `refresh` reads what was added since."""

    def __init__(self, root: str | os.PathLike):
        self._path, self._offset = pathlib.Path(root) / RECORDS, 0
        self._of: dict[str, list[Record]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Raises InputError: a line that is not a record, or a folder in the file's place."""
        if self._path.is_dir():
            raise InputError(f"{self._path} is a folder, where the sweep has a file; move it away")
        if self._path.is_file() and self._path.stat().st_size > self._offset:
            with open(self._path, "rb") as file:
                file.seek(self._offset)
                content = file.read()
            whole = content[: content.rfind(b"\n") + 1]
            for record in records_of(whole, self._path):
                self._of.setdefault(record.id, []).append(record)
            self._offset += len(whole)

    def of(self, run_id: str) -> list[Record]:
        """Every attempt that ended, oldest first."""
        return self._of.get(run_id, [])

    def diverged(self, run_id: str) -> int:
        """How often it diverged."""
        return sum(record.status == "diverged" for record in self.of(run_id))

    def state(self, run_id: str, policy: Policy) -> str:
        """ "finished", "diverged" (and not to be tried again), "failed", or "waiting"."""
        if not self.of(run_id):
            return "waiting"
        status = self.of(run_id)[-1].status
        return "waiting" if status == "diverged" and self.diverged(run_id) <= policy.diverged_retries else status


def workdir_of(root: str | os.PathLike, run_id: str, diverged: int = 0) -> pathlib.Path:
    """The workdir of a run that has diverged `diverged` times."""
    return pathlib.Path(root) / RUNS / (f"{run_id}.retry-{diverged}" if diverged else run_id)


def shape_of(config: Mapping[str, Any]) -> str:
    """Short hash of a flat config's shape: runs with a program in common have the same."""
    shapes = fields_by_programs(ALL)
    return _hash({name: value for name, value in config.items() if name in shapes})


def programs_of(config: Mapping[str, Any]) -> str:
    """Short hash of all that a flat config's compiled programs depend on: runs that have the same share every program."""
    free = fields_by_programs(NONE)
    return _hash({name: value for name, value in config.items() if name not in free})


def _hash(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(hashed(values), sort_keys=True, default=list).encode()).hexdigest()[:12]


# --- locks ---------------------------------------------------------------------------------------------------------------------------


def hold(root: str | os.PathLike, name: str, wait: bool = False) -> int | None:
    """An open file that locks a run or a shape until it is closed, here and in every process that inherited it.

    None where another process holds it and `wait` is False. Where the file system supports no locks, nothing is locked.
    """
    path = pathlib.Path(root) / LOCKS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError:
        pass
    return handle


def is_held(root: str | os.PathLike, name: str) -> bool:
    """Whether a process holds the lock now. Takes it for an instant: a process that fails to lock because of that tries again."""
    path = pathlib.Path(root) / LOCKS / name
    if not path.exists():
        return False
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            pass
    return False


# --- counters -------------------------------------------------------------------------------------------------------------------------


class Counters:
    """Sums over all attempts of a run: one line per addition, appended unbuffered, so that a kill loses none."""

    def __init__(self, workdir: pathlib.Path):
        self._path = workdir / COUNTERS

    def note(self, what: str, amount: float = 1) -> None:
        """Adds an amount to the counter of this name."""
        with open(self._path, "ab", buffering=0) as file:
            file.write(f"{what} {amount!r}\n".encode())

    def totals(self) -> Counter:
        """Sums by name: compiled, read (programs); start, evaluate (seconds); stepped (starts that did a first step). A line that is
        damaged is skipped: no result depends on these."""
        found: Counter = Counter()
        with contextlib.suppress(FileNotFoundError):
            for line in self._path.read_bytes().split(b"\n")[:-1]:
                what, _, amount = line.decode(errors="replace").partition(" ")
                with contextlib.suppress(ValueError):
                    found[what] += float(amount) if 0 <= float(amount) <= checks.MOST else 0.0
        return found


# --- what a record repeats from the plan ---------------------------------------------------------------------------------------------


def domain_names(paths: tuple[str, ...] | list[str]) -> list[str]:
    """The names of the corpora of a mixture: the last part of their paths, where these differ."""
    names = [pathlib.PurePath(path).name for path in paths]
    return names if len(set(names)) == len(names) else list(paths)


def facts(run: PlannedRun, config: Mapping[str, Any], validation: Validation) -> dict[str, Any]:
    """The fields of a record that are known before the run; `config`: every leaf, as it is run. Raises InputError: a leaf is missing."""
    if lacking := [name for name in LEAVES if name not in config]:
        raise InputError(f"the plan of {run.id} is of a different version: its config lacks {', '.join(lacking)}; plan the sweep again")
    paths, weights = config["data.paths"], config["data.weights"]
    mixture = None
    if len(paths) > 1 and weights:
        mixture = {name: weight / sum(weights) for name, weight in zip(domain_names(paths), weights, strict=True)}
    planned = ("id", "series", "parameters", "non_embedding", "active", "flops_per_token", "hardware_flops_per_token", "flops", "tokens")
    budget = run.cell.get("budget")
    return {
        **{name: getattr(run, name) for name in (*planned, "unique_tokens", "epochs", "cell")},
        "depth": config["model.depth"],
        "width": config["model.width"],
        "vocab": config["model.vocab"],
        "steps": config["train.steps"],
        "batch": config["data.batch"],
        "length": config["data.length"],
        "lr": config["optimizer.lr"],
        "schedule": config["optimizer.schedule"],
        "seed": config["seed"],
        "validation": str(validation),
        "budget": None if budget is None else float(budget),
        "mixture": mixture,
        "config": dict(config),
    }


def config_values(run: PlannedRun, policy: Policy, diverged: int) -> dict[str, Any]:
    """Every leaf of the run, flat, its learning rate lowered by the policy for each time that it diverged."""
    return {**run.config, "optimizer.lr": run.config["optimizer.lr"] * policy.lr_factor**diverged}


def failed(run: PlannedRun, validation: Validation, diverged: int, attempt: int, policy: Policy, problem: str) -> Record:
    """The record of a run whose process ended without one."""
    config = config_values(run, policy, diverged)
    nothing = dict.fromkeys(("loss", "loss_stderr", "bits_per_byte", "bits_per_byte_stderr"))
    return Record(**facts(run, config, validation), **nothing, status="failed", attempt=attempt, problem=problem)


def read_result(workdir: pathlib.Path) -> Record | None:
    """The record that a run's process left for the sweep; None where there is none. Raises InputError: one that is damaged."""
    file = workdir / RESULT
    return Record.of(read_json(file)) if file.exists() else None


@contextlib.contextmanager
def released(handle: int | None) -> Iterator[None]:
    """`with released(hold(...)): ...`: frees the lock at the end."""
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def compiled_twice(root: str | os.PathLike, records: list[Record]) -> tuple[int, int, int]:
    """(programs that were compiled, compilations beyond one for each, programs read back) over the records of a sweep."""
    programs = len(list((pathlib.Path(root) / COMPILED).glob("*-cache")))
    compiled = sum(record.compiled for record in records)
    return programs, max(compiled - programs, 0), sum(record.from_cache for record in records)


def with_overhead(record: Record, seconds: float) -> Record:
    """The record with seconds of the sweep's own work added."""
    return dataclasses.replace(record, overhead_seconds=record.overhead_seconds + seconds)
