"""The progress of a sweep: a line for each run, totals, the time left, compiled programs, the cost of the sweep itself. Imports no jax.

Everything is read from the directory, so it is the same wherever the runs are: here, on Slurm's nodes, in pods on a shared file system.
"""

import dataclasses
import os
import pathlib
from collections import Counter
from typing import Any

from dlmjax import checks
from dlmjax.files import parse_json, require_shape
from dlmjax.sweep.manifest import PlannedRun, SweepPlan
from dlmjax.sweep.records import Record
from dlmjax.sweep.run_log import RunLog, compiled_twice, is_held, workdir_of

TAIL = 8192  # bytes of a metrics file in which its last line of training lies
STATES = ("finished", "running", "waiting", "diverged", "failed")


@dataclasses.dataclass(frozen=True)
class Row:
    """One run. step: updates by its metrics. seconds: its duration; left: seconds until its end, None = not known."""

    run: PlannedRun
    state: str
    step: int
    seconds: float
    left: float | None
    record: Record | None
    attempt: int


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A sweep at one moment.

    left: seconds until its end at the number of runs that run now, None = not known. bookkeeping: the sweep's own work as a share of the
    run time of its records; start: seconds a run for processes to start, import and wait for the compile lock.
    programs, again, read: compiled programs, compilations beyond one for each, programs read back.
    """

    name: str
    rows: tuple[Row, ...]
    left: float | None
    bookkeeping: float | None
    start: float | None
    programs: int
    again: int
    read: int

    def counts(self) -> Counter:
        """Runs by state."""
        return Counter(row.state for row in self.rows)

    def line(self) -> str:
        """In one line."""
        counts = self.counts()
        states = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
        done = sum(row.run.flops * _share(row) for row in self.rows)
        whole = sum(row.run.flops for row in self.rows)
        left = "" if not counts["running"] + counts["waiting"] else f"; {clock(self.left)} left"
        return f"{self.name}: {states}; {done:.2e} of {whole:.2e} FLOPs{left}"

    def text(self) -> str:
        """The whole table."""
        width = max((len(row.run.id) for row in self.rows), default=3)
        lines = [f"{'run':{width}}  state     step               time      left      nats/token"]
        lines += [_line(row, width) for row in self.rows]
        lines.append(self.line())
        compiled = f"{self.programs} programs compiled, " + (f"{self.again} compilations too many" if self.again else "none twice")
        lines.append(f"{compiled}; {self.read} read back")
        if self.bookkeeping is not None and self.start is not None:
            lines.append(f"bookkeeping {self.bookkeeping:.2%} of run time; {self.start:.1f} s a run for processes to start and import")
        return "\n".join(lines)


def snapshot(plan: SweepPlan, directory: str | os.PathLike) -> Snapshot:
    """The state of a sweep now. Raises InputError: records that cannot be read."""
    run_log = RunLog(directory)
    ended = [record for run in plan.runs for record in run_log.of(run.id)]
    rate = _rate(ended)
    rows = tuple(_row(plan, directory, run_log, run, rate) for run in plan.runs)
    spent = sum(record.seconds for record in ended)
    programs, again, read = compiled_twice(directory, ended)
    return Snapshot(
        name=plan.name,
        rows=rows,
        left=_left(rows),
        bookkeeping=sum(record.overhead_seconds for record in ended) / spent if spent else None,
        start=sum(record.start_seconds for record in ended) / len(ended) if ended else None,
        programs=programs,
        again=again,
        read=read,
    )


def clock(seconds: float | None) -> str:
    """H:MM:SS, "?" where it is not known."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _row(plan: SweepPlan, directory: str | os.PathLike, run_log: RunLog, run: PlannedRun, rate: float | None) -> Row:
    history = run_log.of(run.id)
    state, record = run_log.state(run.id, plan.policy), history[-1] if history else None
    if state in ("waiting", "failed") and is_held(directory, run.id):
        state = "running"
    if state not in ("running", "waiting"):
        return Row(run, state, record.steps if state == "finished" else 0, record.seconds, None, record, record.attempt)
    whole = run.flops / rate if rate else run.expected_seconds
    step, pace = last_step(workdir_of(directory, run.id, run_log.diverged(run.id)))
    steps = run.config["train.steps"]
    left = pace * (steps - step) if pace else None if whole is None else whole * (1 - step / steps)
    return Row(run, state, step, 0.0, left, None, len(history))


def last_step(workdir: pathlib.Path) -> tuple[int, float | None]:
    """(updates, seconds for each) by the last line of training in a workdir's metrics; (0, None) where there is none."""
    try:
        with open(workdir / "metrics.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0, None
    for line in reversed(lines):
        try:
            event = require_shape(parse_json(line), {"kind": str})
            if event["kind"] == "train":
                require_shape(event, {"step": int})
                return max(event["step"], 0), _pace(event.get("seconds_per_step"))
        except ValueError:  # the first one may be cut
            continue
    return 0, None


def _pace(seconds: Any) -> float | None:
    """Seconds of an update; None where that is not a number."""
    return float(seconds) if isinstance(seconds, int | float) and 0 <= seconds <= checks.MOST else None


def _rate(records: list[Record]) -> float | None:
    """FLOP/s of the runs that finished."""
    done = [record for record in records if record.status == "finished" and record.seconds]
    return sum(record.flops for record in done) / sum(record.seconds for record in done) if done else None


def _left(rows: tuple[Row, ...]) -> float | None:
    """All that is left, spread over as many runs as run now; not less than the longest."""
    lefts = [row.left for row in rows if row.state in ("running", "waiting")]
    if any(left is None for left in lefts):
        return None
    at_once = max(sum(row.state == "running" for row in rows), 1)
    return max(sum(lefts) / at_once, max(lefts, default=0.0))


def _share(row: Row) -> float:
    """The share of a run that is done."""
    return min(row.step / row.run.config["train.steps"], 1.0)


def _line(row: Row, width: int) -> str:
    steps = f"{row.step}/{row.run.config['train.steps']}"
    spent = clock(row.seconds) if row.seconds else ""
    left = clock(row.left) if row.state in ("running", "waiting") else ""
    what = ""
    if row.record is not None:
        error = "" if row.record.loss_stderr is None else f" ± {row.record.loss_stderr:.4f}"
        what = checks.one_line(row.record.problem) if row.state != "finished" else f"{row.record.loss:.4f}{error}"
    again = f"  (attempt {row.attempt + 1})" if row.attempt else ""
    return f"{row.run.id:{width}}  {row.state:8}  {steps:17}  {spent:8}  {left:8}  {what}{again}".rstrip()
