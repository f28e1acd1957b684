"""What the files of a workdir say of a run: its state, curves, evaluations, samples, time and corpus. No weights are read.

A run that is being trained can be read: its files are replaced in one move, and a line of metrics that is being written is left out.
"""

import dataclasses
import pathlib
from typing import Any

from dlmjax import config as config_lib
from dlmjax.data.manifest import Manifest
from dlmjax.data.paths import is_url
from dlmjax.data.token_budget import parse_path
from dlmjax.errors import InputError
from dlmjax.files import read_json
from dlmjax.report.charts import Curve
from dlmjax.training.goodput import FILE as GOODPUT
from dlmjax.training.goodput import read_attempts, shares_of
from dlmjax.training.metrics import FILE as METRICS
from dlmjax.training.metrics import events
from dlmjax.workdir import newest_meta, stored_config

# Scalars of a training line that have a curve: (key, name of the curve).
TRAINING = (
    ("loss", "training loss"),
    ("nelbo", "training bound"),
    ("learning_rate", "learning rate"),
    ("grad_norm", "gradient norm"),
    ("tokens_per_second_per_device", "tokens/s/device"),
    ("mfu", "MFU"),
)
BINS = "level_"  # prefix of the training loss by time, in the files of all versions
BY_TIME = "nats_per_token_by_t/"
SNAPSHOTS = 4  # training lines whose loss by time is drawn
MOST_TEXT = 20_000  # characters of a sample that are shown
MOST_FILES = 200  # JSON files of a workdir that are looked at for evaluations


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """What is known of a run without its weights.

    name: of the folder.  step, steps: updates done, and of the whole run.  checkpoints: whether there is one.
    config: its fields; changed: those that differ from the defaults.  training: key -> curve over steps.
    held_out: bound in nats/token over steps, with standard errors.  by_time: loss by time t, at a few steps and on held-out text.
    samples: (step, text), the newest last.  evaluations: (file name, report), newest step last.
    noise: scalars of the newest measurement of the training loss's variance, {} without one.  advice: what would lower it, or "".
    goodput: shares and seconds by cause, {} where they are not known.  corpora: facts of each corpus, or why it is not there.
    """

    name: str
    step: int
    steps: int
    checkpoints: bool
    config: dict[str, Any]
    changed: dict[str, Any]
    training: dict[str, Curve]
    held_out: Curve
    by_time: list[Curve]
    samples: list[tuple[int, str]]
    evaluations: list[tuple[str, dict]]
    noise: dict[str, float]
    advice: str
    goodput: dict[str, float]
    corpora: list[dict[str, Any]]

    @property
    def complete(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.steps


def read_facts(workdir: str | pathlib.Path) -> RunFacts:
    """The facts of a run. Raises InputError: not a workdir, or a file of it that is damaged."""
    root = pathlib.Path(workdir)
    meta = newest_meta(root)
    config = stored_config(root, meta)
    leaves, default = config_lib.leaves(config), config_lib.leaves(config_lib.default())
    read = _Metrics()
    if (root / METRICS).exists():
        for event in events(root / METRICS):
            read.add(event)
    return RunFacts(
        name=root.resolve().name,
        step=max(meta.get("step", 0), read.last),
        steps=config.train.steps,
        checkpoints=bool(meta),
        config=leaves,
        changed={name: value for name, value in leaves.items() if value != default.get(name)},
        training=read.curves(),
        held_out=Curve("held-out bound", *zip(*read.bounds, strict=True)) if read.bounds else Curve("held-out bound", [], [], []),
        by_time=read.by_time(),
        samples=read.samples,
        noise=read.noise,
        advice=read.advice,
        evaluations=_evaluations(root),
        goodput=shares_of(read_attempts(root / GOODPUT)) if (root / GOODPUT).is_file() else {},
        corpora=[_corpus(path) for path in config.data.paths],
    )


class _Metrics:
    """Collects what is drawn of a metrics.jsonl, line by line."""

    def __init__(self):
        self.last = 0
        self.bounds: list[tuple[int, float, float]] = []
        self.samples: list[tuple[int, str]] = []
        self.noise: dict[str, float] = {}
        self.advice = ""
        self._points: dict[str, tuple[list[int], list[float]]] = {key: ([], []) for key, _ in TRAINING}
        self._bins: list[tuple[int, dict[str, float]]] = []
        self._stride = 1
        self._lines = 0
        self._held_out: tuple[int, dict[str, float]] = (0, {})

    def add(self, event: dict) -> None:
        """Takes one event."""
        step, kind = event["step"], event["kind"]
        self.last = max(self.last, step)
        if kind == "samples" and isinstance(event.get("text"), str):
            self.samples = [*self.samples[-1:], (step, event["text"][:MOST_TEXT])]
        elif kind == "noise":  # before its advice, which not every measurement has
            self.noise, self.advice = {key: _number(value) for key, value in event.items() if key not in ("kind", "time")}, ""
        elif kind == "noise_advice" and isinstance(event.get("text"), str):
            self.advice = event["text"][:MOST_TEXT]
        elif kind == "held_out":
            self.bounds.append((step, _number(event.get("nats_per_token")), _number(event.get("stderr_nats_per_token"))))
            self._held_out = (step, _with_prefix(event, BY_TIME))
        elif kind == "train":
            for key, (steps, values) in self._points.items():
                if key in event:
                    steps.append(step)
                    values.append(_number(event[key]))
            self._keep_bins(step, event)

    def _keep_bins(self, step: int, event: dict) -> None:
        """Keeps the loss by time of some lines, evenly spread, however many there are."""
        if self._lines % self._stride == 0:
            self._bins.append((step, _with_prefix(event, BINS)))
        self._lines += 1
        if len(self._bins) > 4 * SNAPSHOTS:
            self._bins, self._stride = self._bins[::2], 2 * self._stride

    def curves(self) -> dict[str, Curve]:
        """key of TRAINING -> curve over the steps."""
        names = dict(TRAINING)
        return {key: Curve(names[key], *points) for key, points in self._points.items() if points[0]}

    def by_time(self) -> list[Curve]:
        """The loss by time in training at SNAPSHOTS steps, and on held-out text at the last one."""
        count = len(self._bins)
        chosen = sorted({round(n * (count - 1) / max(SNAPSHOTS - 1, 1)) for n in range(SNAPSHOTS)}) if count else []
        curves = [_over_time(f"training, step {step}", values) for step, values in (self._bins[n] for n in chosen) if values]
        step, values = self._held_out
        return curves + ([_over_time(f"held out, step {step}", values)] if values else [])


def _over_time(name: str, values: dict[str, float]) -> Curve:
    points = sorted((float(key), value) for key, value in values.items())
    return Curve(name, *zip(*points, strict=True))


def _with_prefix(event: dict, prefix: str) -> dict[str, float]:
    """The numbers whose key is the prefix and a time: time as text -> number."""
    found = {}
    for key, value in event.items():
        if key.startswith(prefix):
            try:
                float(key.removeprefix(prefix))
            except ValueError:
                continue
            found[key.removeprefix(prefix)] = _number(value)
    return found


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float("nan")


def _evaluations(root: pathlib.Path) -> list[tuple[str, dict]]:
    """The reports of `dlmjax evaluate --json` that lie in a workdir, by the step that they measured."""
    found = []
    for path in sorted(root.glob("*.json"))[:MOST_FILES]:
        try:
            report = read_json(path, dict)
        except InputError:  # a file of the user's own
            continue
        if isinstance(report.get("protocol"), dict) and isinstance(report.get("bits_per_byte"), int | float):
            found.append((path.name, report))
    return sorted(found, key=lambda entry: _number(entry[1].get("step")))


def _corpus(path: str) -> dict[str, Any]:
    """Facts of a corpus: its path, tokenizer, and the documents, tokens and bytes of each split; "missing": why they are not known."""
    directory, tokens = parse_path(path)
    if is_url(directory):
        return {"path": path, "missing": "not on this machine"}
    try:
        manifest = Manifest.load(pathlib.Path(directory))
    except InputError as error:
        return {"path": path, "missing": str(error)}
    splits = {name: manifest.counts(name) for name in manifest.splits}
    return {"path": path, "tokenizer": manifest.tokenizer, "token_budget": tokens, "splits": splits}
