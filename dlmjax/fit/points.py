"""The data of a fit: the runs of one objective as arrays, from records or from a table of outside runs. Imports no jax.

Sizes are kept under every definition of N, because below 500M parameters the choice moves the exponents: `total`, `non_embedding`,
`active` (where a token does not use all), and `flops_per_token`, which counts attention and head as they cost. The training loss is
never used: that of a diffusion model is too noisy to fit.
"""

import csv
import dataclasses
import itertools
import math
import os
import pathlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import Any, TextIO

import numpy as np

from dlmjax import checks
from dlmjax.data.token_budget import parse_path
from dlmjax.errors import InputError
from dlmjax.fit.fitness import SAME_BUDGET
from dlmjax.sweep.records import Record

FREE_EPOCHS = 4.0  # up to here a repeated token is worth a new one (2305.16264); beyond, runs are for the laws of repetition

# Names of columns that a table may have, after lower-casing and turning other signs into "_"; the first that it has is read. Losses of
# held-out text come first: a plain `loss` beside one is that of training.
COLUMNS = {
    "parameters": ("parameters", "params", "n", "n_params", "num_params", "model_size", "size", "total", "total_parameters"),
    "non_embedding": ("non_embedding", "non_embedding_parameters", "n_non_embedding"),
    "active": ("active", "active_parameters", "n_active"),
    "tokens": ("tokens", "training_tokens", "train_tokens", "d", "n_tokens", "num_tokens", "data"),
    "flops": ("flops", "training_flop", "training_flops", "train_flops", "flop", "c", "compute"),
    "loss": ("val_loss", "valid_loss", "validation_loss", "eval_loss", "nelbo", "test_loss", "loss", "final_loss"),
    "stderr": ("stderr", "loss_stderr", "sem", "s_e_m", "std_error"),
    "budget": ("budget", "flop_budget", "isoflop"),
    "series": ("series", "objective", "group"),
    "unique_tokens": ("unique_tokens", "unique", "u"),
}
NEEDED = ("parameters", "loss", "tokens", "flops")  # where a table has the column, each run has a value
MOST_ROWS = 100_000  # of a table


@dataclasses.dataclass(frozen=True)
class Points:
    """The R finished runs of one objective, in order of FLOPs.

    sizes: [R] under each definition of N that differs from the others. flops_R: of the whole run. loss_R, stderr_R: nats per token on
    the validation set (nan: not known). budget_R: FLOPs that the run was planned for, or nan. unique_R: tokens of its corpus, or nan.
    records: what the arrays were made from; empty for a table. left_out: how many runs were, by reason. notes: how a table was read.
    """

    objective: str
    sizes: dict[str, np.ndarray]
    tokens_R: np.ndarray
    flops_R: np.ndarray
    loss_R: np.ndarray
    stderr_R: np.ndarray
    budget_R: np.ndarray
    unique_R: np.ndarray
    ids: tuple[str, ...]
    validation: str = ""
    records: tuple[Record, ...] = ()
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def epochs_R(self) -> np.ndarray:
        """Times that each token was seen; nan where the corpus's size is not known."""
        return self.tokens_R / self.unique_R

    def columns(self, definition: str = "total") -> dict[str, np.ndarray]:
        """Logarithms under the names that forms use, with N under one definition."""
        seen_R = np.minimum(self.unique_R, self.tokens_R)  # of a corpus that a run saw only a part of, that part (2305.16264)
        arrays = {"log_N": self.sizes[definition], "log_D": self.tokens_R, "log_U": seen_R, "log_total": self.sizes["total"]}
        arrays["log_active"] = self.sizes.get("active", self.sizes["total"])
        return {name: np.log(array) for name, array in arrays.items()}

    @property
    def point_R(self) -> np.ndarray:
        """Rank of each run by size, then seed: the order of a grid's sweep points, whatever the rounding of their FLOPs."""
        seed_R = np.array([record.seed for record in self.records] or np.zeros(len(self)))
        rank_R = np.empty(len(self), int)
        rank_R[np.lexsort((seed_R, self.sizes["total"]))] = np.arange(len(self))
        return rank_R

    def take(self, keep_R: np.ndarray) -> "Points":
        """The runs where `keep_R` is true."""
        index = np.flatnonzero(keep_R)
        arrays = {f.name: getattr(self, f.name)[index] for f in dataclasses.fields(self) if f.name.endswith("_R")}
        sizes = {name: array[index] for name, array in self.sizes.items()}
        picked = tuple(self.ids[i] for i in index)
        return dataclasses.replace(self, sizes=sizes, ids=picked, records=tuple(self.records[i] for i in index if self.records), **arrays)

    def groups(self) -> np.ndarray:
        """The isoFLOP budget that each run belongs to, numbered by FLOPs [R]; -1 for a run that shares its FLOPs with no other.

        Named budgets count where every run has one; otherwise runs within 0.05 decades of the next belong together.
        """
        label_R = np.full(len(self), -1)
        if np.isfinite(self.budget_R).all():
            _, label_R = np.unique(self.budget_R, return_inverse=True)
            return label_R
        if len(self):
            jump_R = np.diff(np.log10(self.flops_R), prepend=np.log10(self.flops_R[0])) > SAME_BUDGET
            label_R = np.cumsum(jump_R)
            counts = np.bincount(label_R)
            kept = np.flatnonzero(counts > 1)
            label_R = np.where(np.isin(label_R, kept), np.searchsorted(kept, label_R), -1)
        return label_R


def from_records(records: Sequence[Record]) -> dict[str, Points]:
    """The runs of scaling sweeps by objective. Runs of grids over batch and learning rate and over mixtures have laws of their own.

    Raises InputError: the runs of one objective were measured on different validation sets, or no run finished.
    """
    by_objective: dict[str, list[Record]] = defaultdict(list)
    left: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for record in records:
        if record.status != "finished":
            left[record.series][record.status] += 1
        elif tuning_of(record):
            left[record.series]["in a grid of batch or learning rate"] += 1
        elif "weights" in record.cell:
            left[record.series]["in a grid of mixtures"] += 1
        else:
            by_objective[record.series].append(record)
    check_validation(records)
    found = {}
    for objective, runs in sorted(by_objective.items()):
        runs = sorted(runs, key=lambda run: (run.flops, run.parameters, run.id))
        found[objective] = _of_records(objective, tuple(runs), dict(left[objective]))
    return found


def tuning_of(record: Record) -> bool:
    """Whether the run belongs to a grid that varies the batch or the learning rate."""
    return "lr" in record.cell or "batch" in record.cell


def check_validation(records: Sequence[Record]) -> None:
    """Raises InputError: two finished runs of an objective were measured differently, or differ in vocabulary or corpora."""
    seen: dict[str, Record] = {}
    for record in records:
        if record.status != "finished":
            continue
        first = seen.setdefault(record.series, record)
        if first.validation != record.validation:
            raise InputError(
                f"objective {record.series!r}: {first.id} was measured on {first.validation!r} and {record.id} on {record.validation!r}; "
                "a fit requires one validation set, so evaluate them alike or keep them in different files"
            )
        if other := differs(first, record):
            raise InputError(
                f"objective {record.series!r}: {first.id} and {record.id} differ in {other}; fit them apart, or as two objectives"
            )
        if record.config and not first.config:
            seen[record.series] = record  # its config names the corpora


def differs(one: Record, two: Record) -> str:
    """Why nats per token of two runs are not comparable: vocabularies, or corpora where both records name them; "" for nothing."""
    if one.vocab != two.vocab:
        return f"vocabulary, {one.vocab} and {two.vocab} ids"
    of_one, of_two = _corpora(one), _corpora(two)
    if of_one and of_two and of_one != of_two:
        return f"corpora, {', '.join(of_one)} and {', '.join(of_two)}"
    return ""


def incomparable(one: Points, two: Points) -> str:
    """Why losses of two objectives are not comparable; "" where they are."""
    if one.validation != two.validation:
        return "they were measured on different validation sets, as far as is known"
    pairs = itertools.product(_one_record(one), _one_record(two))
    return next((f"they differ in {why}" for pair in pairs if (why := differs(*pair))), "")


def _one_record(runs: Points) -> list[Record]:
    """One record of an objective, with a config where one has it: within an objective they agree."""
    return sorted(runs.records, key=lambda record: not record.config)[:1]


def _corpora(record: Record) -> tuple[str, ...]:
    """Names of the corpora that a run was trained on, without how much of each: the last folder of a path that is not just called data, so
    that the machines of an objective may keep them in different places."""
    parts = [pathlib.PurePath(parse_path(path)[0]).parts for path in record.config.get("data.paths", ())]
    return tuple(sorted(next((part for part in reversed(each) if part != "data"), "data") for each in parts))


def _of_records(objective: str, runs: tuple[Record, ...], left_out: dict[str, int]) -> Points:
    def column(name: str) -> np.ndarray:
        values = [getattr(run, name) for run in runs]
        return np.array([math.nan if value is None else value for value in values], float)

    tokens_R, flops_R = column("tokens"), column("flops")
    sizes = {"total": column("parameters"), "non_embedding": column("non_embedding"), "active": column("active")}
    unique_R = np.where(column("unique_tokens") > 0, column("unique_tokens"), math.nan)
    return Points(
        objective=objective,
        sizes=_distinct(sizes, flops_R, tokens_R),
        tokens_R=tokens_R,
        flops_R=flops_R,
        loss_R=column("loss"),
        stderr_R=column("loss_stderr"),
        budget_R=column("budget"),
        unique_R=unique_R,
        ids=tuple(run.id for run in runs),
        validation=runs[0].validation,
        records=runs,
        left_out=left_out,
    )


def _distinct(sizes: dict[str, np.ndarray], flops_R: np.ndarray, tokens_R: np.ndarray) -> dict[str, np.ndarray]:
    """Sizes that are known and are not `total` once more, and FLOPs per token unless they are 6 N."""
    total_R = sizes["total"]
    kept = {"total": total_R}
    for name in ("non_embedding", "active"):
        size_R = sizes.get(name)
        if size_R is not None and (size_R > 0).all() and not np.array_equal(size_R, total_R):
            kept[name] = size_R
    per_token_R = flops_R / tokens_R
    if not np.allclose(per_token_R, 6 * total_R, rtol=1e-3):
        kept["flops_per_token"] = per_token_R
    return kept


def from_csv(path: str | os.PathLike) -> dict[str, Points]:
    """Runs of a table with a header, by objective (the file's name where it names none).

    Needed: parameters, loss, and tokens or FLOPs; C = 6 N D fills in the one that is missing. Names are matched leniently (see COLUMNS),
    and the notes say which column was read as what. Raises InputError: no such file, a column that is needed is missing, a value that is
    not a positive number, text that is not UTF-8.
    """
    file = pathlib.Path(path)
    if not file.exists():
        raise InputError(f"{file} does not exist")
    if not file.is_file():
        raise InputError(f"{file} is not an ordinary file; give a table of comma-separated values")
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:
            header, rows, read_as = _read(file, stream)
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise InputError(f"{file} cannot be read as a table of comma-separated values in UTF-8 ({error}); save it as one") from error
    if not rows:
        raise InputError(f"{file} has a header and no runs")
    notes = [f"{file.name}: column {column!r} is read as {name}" for name, column in read_as.items()]
    unread = [checks.one_line(name) for name in header if name not in read_as.values()]
    notes += [f"{file.name}: not read: {shorten(', '.join(unread), 200, placeholder=' ...')}"] if unread else []
    for name, other in (("tokens", "flops"), ("flops", "tokens")):
        notes += [f"{file.name}: {name} are not given; taken from {other} by C = 6 N D"] if name not in read_as else []
    by_objective: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_objective[row["series"] or file.stem].append(row)
    return {name: _of_rows(name, found, tuple(notes)) for name, found in sorted(by_objective.items())}


def _read(file: pathlib.Path, stream: TextIO) -> tuple[list[str], list[dict[str, Any]], dict[str, str]]:
    """Header, rows by the names of COLUMNS, and what each column is read as. Raises InputError: a column or a value that is not there."""
    reader = csv.DictReader(stream)
    header = [name for name in reader.fieldnames or () if name]
    read_as = _match(header)
    missing = [name for name in ("parameters", "loss") if name not in read_as]
    if "tokens" not in read_as and "flops" not in read_as:
        missing.append("tokens (or flops)")
    if missing:
        known = "; ".join(f"{name}: {', '.join(COLUMNS[name.split()[0]])}" for name in missing)
        columns = checks.one_line(shorten(", ".join(header), 200, placeholder=" ...")) or "none"
        raise InputError(f"{file} has no column for {' and '.join(missing)}; its columns are {columns}; known names: {known}")
    rows = []
    for number, row in enumerate(reader, 2):
        if len(rows) == MOST_ROWS:
            raise InputError(f"{file} has more than {MOST_ROWS:,} runs; give the ends of runs, not every step of them")
        rows.append(_row(file, number, row, read_as))
    return header, rows, read_as


def _match(header: list[str]) -> dict[str, str]:
    """The column of this table for each known quantity."""
    plain = {re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_"): name for name in reversed(header)}
    found = {}
    for name, accepted in COLUMNS.items():
        column = next((plain[each] for each in accepted if each in plain), None)
        if column is not None:
            found[name] = column
    return found


def _row(file: pathlib.Path, number: int, row: dict[str, str], read_as: dict[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {"id": f"{file.stem}:{number}", "series": ""}
    for name, column in read_as.items():
        text = (row[column] or "").strip()
        if name == "series":
            if text:
                checks.label(f"line {number} of {file}: {column}", text)
            values[name] = text
            continue
        values[name] = _value(f"line {number} of {file}: {column}", name, text)
    if "tokens" not in values:
        values["tokens"] = values["flops"] / (6 * values["parameters"])
    if "flops" not in values:
        values["flops"] = 6 * values["parameters"] * values["tokens"]
    return values


def _value(what: str, name: str, text: str) -> float:
    """A number; nan where an optional column has none. Raises InputError: not a number, or one out of the column's range."""
    try:
        value = float(text) if text else math.nan
    except ValueError:
        raise InputError(f"{what} is {text[:60]!r}, not a number") from None
    if math.isnan(value) and name not in NEEDED:
        return value
    least, most = 1 / checks.MOST, checks.MOST_LOSS if name == "loss" else checks.MOST
    if name == "stderr" and value == 0:
        return value
    if not 0 < value < math.inf:
        raise InputError(f"{what} is {text[:60]!r}; it must be a positive number")
    if not least <= value <= most:
        raise InputError(f"{what} is {text[:60]!r}; it must be between {least:g} and {most:g}")
    return value


def _of_rows(objective: str, rows: list[dict[str, Any]], notes: tuple[str, ...]) -> Points:
    rows = sorted(rows, key=lambda row: (row["flops"], row["parameters"]))

    def column(name: str) -> np.ndarray:
        return np.array([row.get(name, math.nan) for row in rows], float)

    sizes = {"total": column("parameters"), "non_embedding": column("non_embedding"), "active": column("active")}
    return Points(
        objective=objective,
        sizes=_distinct(sizes, column("flops"), column("tokens")),
        tokens_R=column("tokens"),
        flops_R=column("flops"),
        loss_R=column("loss"),
        stderr_R=column("stderr"),
        budget_R=column("budget"),
        unique_R=column("unique_tokens"),
        ids=tuple(row["id"] for row in rows),
        notes=notes,
    )
