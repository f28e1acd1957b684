"""Metrics of a run: `metrics.jsonl` (one line per event) and TensorBoard event files, both written without TensorFlow.

Lines are appended and flushed at once. After a kill, the writer that resumes at step S removes a torn last line and every line of a
later step, so that the file of a resumed run equals that of an uninterrupted one except for the fields in TIMING. This requires that
the lines of a step are written before its checkpoint.
"""

import contextlib
import dataclasses
import json
import logging
import math
import os
import pathlib
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from dlmjax.errors import InputError
from dlmjax.files import write_atomically

logger = logging.getLogger("dlmjax")
# Fields that differ between a resumed and an uninterrupted run.
TIMING = ("time", "seconds_per_step", "tokens_per_second_per_device", "mfu")
FILE = "metrics.jsonl"
# What is trained, where that is not the bound, has a name of its own in the log (`Objective.report`).
TRAINED, NOT_A_BOUND = "loss_", "_not_a_bound"


class MetricsWriter:
    """Appends events to `workdir/metrics.jsonl` and `workdir/tensorboard/`; of several processes, only the first one writes.

    Args:
      workdir: folder of the run, made if missing.
      resume_step: step that the run resumes from; later lines of an earlier start are dropped (in TensorBoard too).
      known: value of `written` when that step was saved; a file with other lines is logged as a gap in the curves.
    """

    def __init__(self, workdir: str | os.PathLike, resume_step: int = 0, known: dict[str, int] | None = None):
        self._path = pathlib.Path(workdir) / FILE
        self._lines = self._events = None
        self._written = (0, 0)
        if jax.process_index():
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        curves = self._path.parent / "tensorboard"
        if os.path.lexists(curves) and not curves.is_dir():
            raise InputError(f"{curves} is not a folder; the curves of the run are written there: move it away")
        kept = repair(self._path, resume_step)
        self._written = (kept.count(b"\n"), zlib.crc32(kept))
        if known and known != self.written:
            lines, before = self._written[0], known["lines"]
            found = f"{lines} of the {before} lines" if lines != before else f"other lines than the {before}"
            logger.warning(
                "%s has %s that the run had written by step %d: its curves have a gap; the run resumes from its checkpoint",
                *(self._path, found, resume_step),
            )
        with self._writing():
            self._lines = self._path.open("a", encoding="utf-8")
            self._events = EventFileWriter(str(_folder_of_events(curves, self._path.parent.resolve().name)))
            # A second START event makes TensorBoard drop the earlier events from its step on.
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._events.add_event(event_pb2.Event(wall_time=time.time(), step=resume_step + 1, session_log=start))

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    @property
    def written(self) -> dict[str, int]:
        """Number of lines in the file, and their checksum; stored in the meta of a checkpoint."""
        lines, crc = self._written
        return {"lines": lines, "crc": crc}

    def scalars(self, step: int, kind: str, values: dict[str, float]) -> None:
        """Writes a line {"step", "kind", "time", **values} and a TensorBoard scalar `kind/name` per value. NaN becomes null in the file."""
        values = {name: float(value) for name, value in values.items()}
        self._line(step, kind, {name: value if math.isfinite(value) else None for name, value in values.items()})
        self.curves(step, kind, values)

    def curves(self, step: int, kind: str, values: dict[str, float]) -> None:
        """Writes TensorBoard scalars only: for timings, which a resumed run cannot repeat."""
        first = _first_curves(kind, values)
        for name, value in values.items():
            tags = [f"{kind}/{name}", *([first[name]] if name in first else [])]
            self._event(step, summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=tag, simple_value=float(value)) for tag in tags]))

    def text(self, step: int, kind: str, texts: dict[str, str]) -> None:
        """Writes a line, and a TensorBoard text `kind/name` per value, shown verbatim (not as Markdown)."""
        texts = {name: text.encode("utf-8", "replace").decode("utf-8") for name, text in texts.items()}
        self._line(step, kind, texts)
        for name, text in texts.items():
            indented = "\n".join("    " + line for line in text.splitlines())
            self._event(step, text_pb(f"{kind}/{name}", indented))

    def flush(self) -> None:
        """Flushes the files: called before a checkpoint, so that no curve has a gap after a kill (otherwise every two minutes)."""
        if self._lines:
            with self._writing():
                self._lines.flush()
                self._events.flush()

    def close(self) -> None:
        """Flushes and closes the files."""
        if self._lines:
            with self._writing():
                self._lines.close()
                self._events.close()

    @contextlib.contextmanager
    def _writing(self):
        """Turns an error of the file system, such as a full disk, into an InputError."""
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self._path} could not be written ({error.strerror}); free some space and run the same command to resume"
            ) from error

    def _line(self, step: int, kind: str, values: dict[str, Any]) -> None:
        if self._lines:
            with self._writing():
                line = {"step": step, "kind": kind, **values, "time": round(time.time(), 3)}
                text = json.dumps(line, ensure_ascii=False) + "\n"
                self._lines.write(text)
                self._lines.flush()
                self._written = (self._written[0] + 1, zlib.crc32(text.encode("utf-8"), self._written[1]))

    def _event(self, step: int, summary: summary_pb2.Summary) -> None:
        if self._events:
            with self._writing():
                self._events.add_event(event_pb2.Event(wall_time=time.time(), step=step, summary=summary))


def _first_curves(kind: str, values: dict[str, float]) -> dict[str, str]:
    """Curves that TensorBoard shows once more, in the group on which it opens (it sorts capitals first): the bound in training beside the
    held-out one, and by its own name what is trained, where that is not the bound."""
    if kind == "held_out":
        return {"nats_per_token": "Loss/held_out"}
    if kind != "train":
        return {}
    trained = {name: f"Loss/{name}" for name in values if name.startswith(TRAINED) and name.endswith(NOT_A_BOUND)}
    return {"nelbo" if "nelbo" in values else "loss": "Loss/train"} | trained


def _folder_of_events(curves: pathlib.Path, run: str) -> pathlib.Path:
    """The folder of the event files below `curves`: TensorBoard names a run by it. A run that is there already keeps its folder."""
    if any(curves.glob("events.out.tfevents.*")):
        return curves
    return next((path.parent for path in sorted(curves.glob("*/events.out.tfevents.*"))), curves / run)


def repair(path: pathlib.Path, resume_step: int) -> bytes:
    """Drops a torn last line and all lines of steps after `resume_step`; replaces the file in one move, and only if it changes.

    Returns the remaining content. Raises InputError: a line is not a metrics event, or the path is not a file.
    """
    if not path.exists():
        return b""
    content = _content(path)
    lines = content.split(b"\n")
    kept = []
    for number, line in enumerate(lines[:-1], start=1):  # text after the last newline is torn, or empty
        try:
            late = _event(line)["step"] > resume_step
        except ValueError as error:
            raise InputError(f"{path} line {number} is not a metrics event; move the file away to resume without its history") from error
        if not late:
            kept.append(line + b"\n")
    if b"".join(kept) != content:
        write_atomically(path, b"".join(kept))
    return b"".join(kept)


def read(path: str | os.PathLike, kind: str | None = None) -> list[dict]:
    """The events of a metrics.jsonl (of one kind), without a torn last line. Raises InputError (not an event), FileNotFoundError."""
    return [event for event in events(path) if kind in (None, event["kind"])]


def events(path: str | os.PathLike) -> Iterator[dict]:
    """`read`, one event at a time: a long run's file does not fit into memory."""
    path = pathlib.Path(path)
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):  # torn, or being written
                    return
                try:
                    yield _event(line)
                except ValueError as error:
                    raise InputError(f"{path} line {number} is not a metrics event; restore the file, or remove that line") from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); move it away to resume without the run's history") from error


def _content(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); move it away to resume without the run's history") from error


def _event(line: bytes) -> dict:
    """A line of the file as an event. Raises ValueError if it is not one."""
    try:
        event = json.loads(line)
    except RecursionError:
        raise ValueError("too deep") from None
    if not isinstance(event, dict) or not isinstance(event.get("kind"), str) or type(event.get("step")) is not int:
        raise ValueError("no event")
    return event


# --- between two lines ---------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class BadStep:
    """A step whose update was skipped, and the rows of the global batch that caused it ("" when all were finite: a spike)."""

    step: int
    rows: str


@dataclasses.dataclass(frozen=True)
class Summary:
    """Means over the steps between two lines, and the bad steps among them."""

    values: dict[str, float]
    bad: list[BadStep]
    stopped: bool


class Window:
    """Collects the device metrics of the steps between two lines and copies them to the host at once: the only host sync of the loop.

    Args:
      report: summed loss terms -> named values, such as `Objective.report`, which names only a bound `nelbo`; None = `per_token`.

    `pending()` is stored in a checkpoint's meta and passed to `restore`, so that a resumed run writes the same line as an
    uninterrupted one.
    """

    RUN_AHEAD = 8  # steps that may be queued on the device; bounds memory and the delay of a signal

    def __init__(self, report: Callable[[dict], dict[str, float]] | None = None):
        self._report = report or per_token
        self._queued: list[tuple[int, dict]] = []
        self._records: list[dict] = []

    def add(self, step: int, metrics: dict) -> None:
        """Adds the metrics of a step without a transfer. Waits when the device is RUN_AHEAD steps behind."""
        self._queued.append((step, metrics))
        if len(self._queued) > self.RUN_AHEAD:
            jax.block_until_ready(self._queued[-1 - self.RUN_AHEAD][1]["loss"])

    @property
    def running(self) -> int:
        """Number of newest steps that the device may not have finished."""
        return min(len(self._queued), self.RUN_AHEAD)

    def pending(self) -> list[dict]:
        """The metrics of the steps since the last line as JSON values."""
        copied = jax.device_get([metrics for _, metrics in self._queued])
        steps = [step for step, _ in self._queued]
        self._records += [{"step": step, **jax.tree.map(_plain, metrics)} for step, metrics in zip(steps, copied, strict=True)]
        self._queued = []
        return list(self._records)

    def stopped(self) -> bool:
        """Did a step since the last line stop the run? Copies the metrics to the host."""
        return any(record["stopped"] for record in self.pending())

    def restore(self, pending: list[dict]) -> None:
        """Replaces the collected steps by a result of `pending`."""
        self._queued, self._records = [], list(pending)

    def reduce(self) -> Summary:
        """Means over the steps since the last call, which are then dropped.

        "loss" is weighted by tokens, "grad_norm" is a plain mean, "learning_rate" is the newest, "update_norm" and "param_norm" are of the
        newest step that measured them, the loss terms are summed and named by `report`. Steps that were skipped count in "skipped" only.
        """
        records = self.pending()
        self._records = []
        if not records:
            return Summary({}, [], False)
        good = [record for record in records if not record["skipped"]]
        values = {"grad_norm": float(np.mean([record["grad_norm"] for record in good]))} if good else {}
        for name, of in (("update_norm", good), ("param_norm", records)):
            measured = [record[name] for record in of if not math.isnan(record[name])]
            values |= {name: measured[-1]} if measured else {}
        values["learning_rate"] = records[-1]["learning_rate"]
        values |= {"skipped": float(sum(record["skipped"] for record in records)), "skipped_total": float(records[-1]["skipped_total"])}
        if good:
            tokens = np.array([record["parts"]["tokens"] for record in good], np.float64)
            losses = np.array([record["loss"] for record in good], np.float64)
            values["loss"] = float((losses * tokens).sum() / max(tokens.sum(), 1))
            terms = [record["parts"] for record in good]
            sums = {name: np.sum([np.asarray(part[name], np.float64) for part in terms], axis=0) for name in terms[0]}
            values |= {"tokens": float(sums["tokens"]), **self._report(sums)}
        stopped = any(record["stopped"] for record in records)
        bad = [BadStep(record["step"], _rows(record["bad_microbatches"])) for record in records if record["skipped"]]
        # After the step that stopped the run, all others are skipped because the state is frozen: only the first one is reported.
        return Summary(values, bad[:1] if stopped else bad, stopped)


def _plain(value: np.ndarray) -> Any:
    return np.asarray(value).tolist()


def per_token(sums: dict) -> dict[str, float]:
    """Each summed loss term per token, under its name; `nats_by_level` as `loss_by_level/0.0-0.1`, ..., per token with t in that range."""
    tokens, by_level = sums["tokens"], sums.get("tokens_by_level")
    ratios = {}
    for name, total in sums.items():
        if np.ndim(total) == 0 and name != "tokens":
            ratios[name] = float(total / max(tokens, 1))
        elif by_level is not None and name.endswith("_by_level") and name != "tokens_by_level":
            quantity = "loss" if name == "nats_by_level" else name.removesuffix("_by_level")
            for level, (amount, count) in enumerate(zip(total, by_level, strict=True)):
                if count:
                    ratios[f"{quantity}_by_level/{level / len(by_level):.1f}-{(level + 1) / len(by_level):.1f}"] = float(amount / count)
    return ratios


def _rows(bad_microbatches: list[bool]) -> str:
    """The rows of the microbatches that were not finite; microbatch a holds rows a, a + A, a + 2A, ..."""
    accumulation = len(bad_microbatches)
    bad = [a for a, is_bad in enumerate(bad_microbatches) if is_bad]
    if not bad:
        return ""
    if len(bad) == accumulation:
        return "all rows"
    return "rows " + " and ".join(f"{a}, {a + accumulation}, {a + 2 * accumulation}, ..." for a in bad)
