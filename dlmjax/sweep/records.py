"""The records of a sweep: one per run and line, checked when it is written and when it is read. Imports no jax.

Records are appended whole: a line goes to the file in one write under a lock, and a last line that a crash cut short is not read.
"""

import dataclasses
import fcntl
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from dlmjax import checks
from dlmjax.errors import InputError
from dlmjax.files import parse_json, read_bounded
from dlmjax.sweep.manifest import RECORDS

SIGNED = ("train_loss",)  # a weighted loss of densities may be below 0
STATUSES = ("finished", "diverged", "failed")
POSITIVE = ("loss", "parameters", "tokens", "flops", "flops_per_token", "batch", "length", "lr")  # laws are fitted to their logarithms
POINT = ("budget", "unique_tokens", "epochs", "tokens", "batch", "lr")  # numbers among what varies in a sweep


@dataclasses.dataclass(frozen=True)
class Record:
    """One run that ended.

    Sizes: `parameters` all that is trained, `non_embedding` without the token embedding and the head, `active` what one token uses.
    FLOPs: `flops_per_token` those of the model (forward and backward, attention and head included, nothing twice), `hardware_...` with
    what rematerialisation computes again; `flops` = flops_per_token * tokens. `unique_tokens`: of the corpus that the run saw.
    `loss`: nats per token on the fixed validation set that `validation` names, the bound (exact for autoregressive runs), +- `loss_stderr`
    over its windows; None where the run has none. `bits_per_byte` is the same. `train_loss` is never fitted.
    `domains`: validation nats per token by corpus, where a run mixes several; `mixture`: the share of each.
    `compiled`, `from_cache`: programs that XLA compiled, and that it read back. `seconds`: the run's own, training and the final
    evaluation; `start_seconds`: processes that start, import and wait for the compile lock; `overhead_seconds`: the sweep's own work.
    All three over all starts of the run. `skipped`: updates that were left out, not finite or above the spike limit.
    `config`: every leaf. `made`: commit, versions, device. `attempt`: from 0.
    """

    id: str
    series: str
    status: str
    parameters: int
    non_embedding: int
    active: int
    depth: int
    width: int
    vocab: int
    flops_per_token: float
    hardware_flops_per_token: float
    flops: float
    tokens: int
    unique_tokens: int
    epochs: float
    steps: int
    batch: int
    length: int
    lr: float
    schedule: str
    seed: int
    loss: float | None
    loss_stderr: float | None
    bits_per_byte: float | None
    bits_per_byte_stderr: float | None
    validation: str
    train_loss: float | None = None
    budget: float | None = None
    mixture: dict | None = None
    domains: dict | None = None
    seconds: float = 0.0
    start_seconds: float = 0.0
    overhead_seconds: float = 0.0
    skipped: int = 0
    compiled: int = 0
    from_cache: int = 0
    attempt: int = 0
    problem: str = ""
    cell: dict = dataclasses.field(default_factory=dict)
    config: dict = dataclasses.field(default_factory=dict)
    made: dict = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, values: Any) -> "Record":
        """Raises InputError: no object; a field missing, unknown, of another type, negative or not finite; a finished run of nothing."""
        if not isinstance(values, dict):
            raise InputError(f"a record is an object of names and values, not {values!r:.60}")
        record = checks.from_json(cls, values, f"the record {values.get('id', '')!r:.80}", SIGNED)
        record._check_texts()
        if record.status not in STATUSES:
            raise InputError(f"status of the record {record.id!r} is {record.status!r}; choose one of {', '.join(STATUSES)}")
        if record.status == "finished" and record.loss is None:
            raise InputError(f"the record {record.id!r} is of a finished run and has no loss")
        for name in POSITIVE:
            if record.status == "finished" and not getattr(record, name) > 0:
                raise InputError(f"{name} of the record {record.id!r} is {getattr(record, name)!r}; that of a finished run is above 0")
        if record.status == "finished" and record.loss > checks.MOST_LOSS:
            raise InputError(f"loss of the record {record.id!r} is {record.loss:.4g} nats per token; that of a finished run is at most 1e6")
        return record

    def _check_texts(self) -> None:
        """Raises InputError: an id that is not a name, a text of more than one line, or an entry that nothing here can read."""
        checks.name("id of the record", self.id)
        what = f"the record {self.id!r}"
        checks.label(f"series of {what}", self.series)
        checks.flat(what, {"status": self.status, "schedule": self.schedule, "validation": self.validation})
        checks.flat(f"cell of {what}", self.cell)
        checks.numbers(f"cell of {what}", {name: self.cell[name] for name in POINT if name in self.cell}, least=0.0)
        checks.numbers(f"mixture of {what}", self.mixture or {})
        checks.flat(f"domains of {what}", self.domains or {})
        checks.numbers(f"domains of {what}", {name: loss for name, loss in (self.domains or {}).items() if loss is not None})  # diverged
        checks.flat(f"config of {what}", self.config)
        paths = self.config.get("data.paths", [])
        if not isinstance(paths, list | tuple) or not all(isinstance(path, str) for path in paths):
            raise InputError(f"data.paths in the config of {what} is {str(paths)[:60]!r}, not a list of texts")

    def to_json(self) -> str:
        """One line; floats in full precision."""
        return json.dumps(dataclasses.asdict(self), allow_nan=False)


def append_record(path: str | os.PathLike, record: Record) -> None:
    """Adds a line, whole or not at all, whoever else writes at the same time."""
    Record.of(dataclasses.asdict(record))
    with open(path, "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":  # a crash cut the last line short: it was not a record
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write((record.to_json() + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def read_records(path: str | os.PathLike) -> list[Record]:
    """The records of a file, or of the sweep in a directory; where a run has several, the last one counts.

    Raises InputError: nothing there, or a line that is not a record (a last line that was cut short is left out).
    """
    file = pathlib.Path(path)
    file = file / RECORDS if file.is_dir() else file
    if not file.exists():
        raise InputError(f"{file} does not exist; `dlmjax sweep run` writes it")
    content = read_bounded(file, advice="give a file of records, or the directory of a sweep")
    found: dict[str, Record] = {}
    for record in records_of(content[: content.rfind(b"\n") + 1], file):
        found.pop(record.id, None)
        found[record.id] = record
    return list(found.values())


def records_of(lines: bytes, file: pathlib.Path) -> Iterator[Record]:
    """The records of whole lines. Raises InputError, which names the file: a line that is not a record."""
    for number, line in enumerate(lines.splitlines(), 1):
        try:
            yield Record.of(parse_json(line))
        except InputError as error:
            raise InputError(f"line {number} of {file}: {error}") from None
        except (ValueError, TypeError) as error:
            raise InputError(f"line {number} of {file} is not a record: {' '.join(str(error).split())}") from None
