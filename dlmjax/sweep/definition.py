"""A sweep: objectives x a grid of sweep points, as a Python file like any config.

    from dlmjax.sweep.definition import IsoFlop, Sweep

    def get_sweep(data="runs/demo/data"):
        return Sweep(
            name="demo",
            data=data,
            objectives={"masked": "../masked.py:tiny", "ar": "../autoregressive.py:tiny"},
            grid=IsoFlop(budgets=(1e12, 1e13), sizes=(32, 48, 64)),
        )

`objectives` names the config of each, relative to the sweep's file. Sizes are widths of the ladder (`ladder.py`); all other leaves are
those of the config. Every objective gets the same sweep points: the same shapes, seeds and data order.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dlmjax import checks
from dlmjax.choices import nearest
from dlmjax.config import errors_as_lines, function_of, literal, shipped, split_size
from dlmjax.errors import InputError
from dlmjax.seeds import SEEDS
from dlmjax.sweep import ladder
from dlmjax.sweep.manifest import Policy, Validation
from dlmjax.sweep.rules import Batch, CompleteP, Rate

MOST_RUNS = 10_000  # of a sweep; a larger grid is a typing error


@dataclasses.dataclass(frozen=True)
class SweepPoint:
    """One run of an objective: what varies (`values`, as the manifest keeps it; `id_parts` of its id), and what follows for the config.

    Either `flops` (of the run) or `tokens` gives its length. unique: tokens of the corpus that it may use. batch (windows), lr,
    weights (of the corpora): where the grid sets them.
    """

    width: int
    seed: int
    values: dict[str, Any]
    id_parts: tuple[str, ...]
    flops: float | None = None
    tokens: float | None = None
    unique: int | None = None
    batch: int | None = None
    lr: float | None = None
    weights: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class NearOptimum:
    """Sizes around a law N = a C^b of non-embedding parameters: for each budget the `count` sizes of the ladder nearest to it in ratio.

    The default law is that of Quokka (2510.03280) for masked diffusion, whose networks are of the same family.
    """

    a: float | int = 0.0216
    b: float | int = 0.514
    count: int = 7

    def __post_init__(self) -> None:
        checks.positive("NearOptimum", a=self.a)
        checks.finite("NearOptimum", b=self.b)
        checks.whole("NearOptimum", 1, count=self.count)

    def widths(self, flops: float | int) -> tuple[int, ...]:
        """The widths for one budget, narrow to wide."""
        wanted = math.log(self.a) + self.b * math.log(flops)
        nearest_first = sorted(ladder.WIDTHS, key=lambda width: abs(math.log(ladder.shape(width).parameters()) - wanted))
        return tuple(sorted(nearest_first[: self.count]))


@dataclasses.dataclass(frozen=True)
class IsoFlop:
    """Every size trained at every budget (Chinchilla 2203.15556, approach 2).

    budgets: FLOPs of a run (model FLOPs: forward and backward, attention and head included). sizes: widths, or `NearOptimum`.
    """

    budgets: Sequence[float | int]
    sizes: Sequence[int] | NearOptimum
    seeds: Sequence[int] = (0,)

    def __post_init__(self) -> None:
        _numbers("IsoFlop", budgets=self.budgets)
        _whole("IsoFlop", seeds=self.seeds, most=SEEDS - 1)
        if not isinstance(self.sizes, NearOptimum):
            _widths("IsoFlop", self.sizes)

    def points(self) -> Iterator[SweepPoint]:
        """By budget, then width, then seed."""
        for budget in self.budgets:
            widths = self.sizes.widths(budget) if isinstance(self.sizes, NearOptimum) else self.sizes
            for width, seed in itertools.product(widths, self.seeds):
                values = {"budget": float(budget), "width": width, "seed": seed}
                yield SweepPoint(width, seed, values, (short(budget), f"w{width}", f"s{seed}"), flops=float(budget))


@dataclasses.dataclass(frozen=True)
class Repeated:
    """Every size trained on the first tokens of a corpus again and again (Muennighoff et al. 2305.16264; Quokka 2510.03280).

    unique_tokens: of the train split; whole windows of them are used. epochs: each a run of its own, whose learning rate decays.
    """

    sizes: Sequence[int]
    unique_tokens: Sequence[int]
    epochs: Sequence[int]
    seeds: Sequence[int] = (0,)

    def __post_init__(self) -> None:
        _widths("Repeated", self.sizes)
        _whole("Repeated", least=1, unique_tokens=self.unique_tokens, epochs=self.epochs)
        _whole("Repeated", seeds=self.seeds, most=SEEDS - 1)

    def points(self) -> Iterator[SweepPoint]:
        """By unique tokens, then epochs, then width, then seed."""
        for unique, epochs, width, seed in itertools.product(self.unique_tokens, self.epochs, self.sizes, self.seeds):
            values = {"unique_tokens": unique, "epochs": epochs, "width": width, "seed": seed}
            parts = (f"u{unique}", f"e{epochs}", f"w{width}", f"s{seed}")
            yield SweepPoint(width, seed, values, parts, tokens=float(unique * epochs), unique=unique)


@dataclasses.dataclass(frozen=True)
class BatchRate:
    """Every batch with every learning rate at fixed training tokens: what the laws of `rules.py` are fitted on.

    batches: windows in a step. lrs: peak learning rates.
    """

    sizes: Sequence[int]
    tokens: Sequence[float | int]
    batches: Sequence[int]
    lrs: Sequence[float | int]
    seeds: Sequence[int] = (0,)

    def __post_init__(self) -> None:
        _widths("BatchRate", self.sizes)
        _numbers("BatchRate", tokens=self.tokens, lrs=self.lrs)
        _whole("BatchRate", least=1, batches=self.batches)
        _whole("BatchRate", seeds=self.seeds, most=SEEDS - 1)

    def points(self) -> Iterator[SweepPoint]:
        """By width, then tokens, then batch, then learning rate, then seed."""
        for width, tokens, batch, lr, seed in itertools.product(self.sizes, self.tokens, self.batches, self.lrs, self.seeds):
            values = {"width": width, "tokens": float(tokens), "batch": batch, "lr": float(lr), "seed": seed}
            parts = (f"w{width}", f"d{short(tokens)}", f"b{batch}", f"lr{short(lr)}", f"s{seed}")
            yield SweepPoint(width, seed, values, parts, tokens=float(tokens), batch=batch, lr=float(lr))


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Every size trained on every mixture of the sweep's corpora (BiMix 2405.14908). weights: a share for each path of `data`."""

    sizes: Sequence[int]
    tokens: Sequence[float | int]
    weights: Sequence[Sequence[float | int]]
    seeds: Sequence[int] = (0,)

    def __post_init__(self) -> None:
        _widths("Mixture", self.sizes)
        _numbers("Mixture", tokens=self.tokens)
        _whole("Mixture", seeds=self.seeds, most=SEEDS - 1)
        _few("Mixture", "weights", self.weights)
        if not self.weights or len(set(map(tuple, self.weights))) != len(self.weights):
            raise InputError("Mixture.weights is empty or has the same mixture twice; give each once")
        for shares in self.weights:
            _numbers("Mixture", unique=False, weights=shares)

    def points(self) -> Iterator[SweepPoint]:
        """By width, then tokens, then weights, then seed."""
        for width, tokens, weights, seed in itertools.product(self.sizes, self.tokens, self.weights, self.seeds):
            shares = [float(weight) for weight in weights]
            values = {"width": width, "tokens": float(tokens), "weights": shares, "seed": seed}
            parts = (f"w{width}", f"d{short(tokens)}", "m" + "_".join(map(short, shares)), f"s{seed}")
            yield SweepPoint(width, seed, values, parts, tokens=float(tokens), weights=tuple(shares))


Grid = IsoFlop | Repeated | BatchRate | Mixture


@dataclasses.dataclass(frozen=True)
class Objective:
    """One objective: its config (`FILE.py` or `FILE.py:SIZE`, relative to the sweep's file), overrides and rules of its own."""

    config: str
    overrides: Sequence[str] = ()
    batch: Batch | None = None
    rate: Rate | None = None

    def __post_init__(self) -> None:
        _kinds("Objective", config=(self.config, str), batch=(self.batch, Batch | None), rate=(self.rate, Rate | None))
        _texts("Objective", overrides=self.overrides)


Near, Series = NearOptimum, Objective  # names that sweep files from before 2026-12 import


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A whole sweep.

    data: directories of prepared corpora (one, or several); none plans for a corpus that is not there (`model.vocab` is then needed).
    overrides: `section.leaf=value` for every objective. batch, rate: rules of `rules.py`; None keeps the values of the configs. transfer:
    CompleteP. validation: what every run ends with. checkpoints: of each run, at equal distances, the end included. series: `objectives` in
    sweep files from before 2026-12.
    """

    name: str
    objectives: Mapping[str, str | Objective] = dataclasses.field(default_factory=dict)
    grid: Grid | None = None
    data: str | Sequence[str] = ()
    overrides: Sequence[str] = ()
    batch: Batch | None = None
    rate: Rate | None = None
    transfer: CompleteP | None = None
    validation: Validation = Validation()
    policy: Policy = Policy()
    checkpoints: int = 4
    series: dataclasses.InitVar[Mapping[str, str | Objective] | None] = None

    def __post_init__(self, series: Any) -> None:
        if series is not None:
            if self.objectives:
                raise InputError(f"sweep {self.name}: series conflicts with objectives, of which it is the old name; give objectives alone")
            object.__setattr__(self, "objectives", series)
        _kinds(
            "Sweep",
            objectives=(self.objectives, Mapping),
            grid=(self.grid, Grid),
            batch=(self.batch, Batch | None),
            rate=(self.rate, Rate | None),
            transfer=(self.transfer, CompleteP | None),
            validation=(self.validation, Validation),
            policy=(self.policy, Policy),
            **{f"objectives[{name!r}]": (objective, str | Objective) for name, objective in _items(self.objectives)},
        )
        _texts("Sweep", data=(self.data,) if isinstance(self.data, str) else self.data, overrides=self.overrides)
        checks.whole(f"sweep {self.name}", 1, checkpoints=self.checkpoints)
        for name in (self.name, *self.objectives):
            if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9][a-z0-9_]*", name):
                raise InputError(
                    f"{name!r} names a sweep or an objective; use lower-case letters, digits and underscores: it becomes a file name"
                )
        if not self.objectives:
            raise InputError(f"sweep {self.name} has no objective; give at least one, such as objectives={{'masked': '../masked.py:tiny'}}")
        if isinstance(self.grid, Repeated) and len(self.paths) > 1:
            raise InputError(f"sweep {self.name}: repeated data is the first tokens of one corpus; data has {len(self.paths)}")
        if isinstance(self.grid, Mixture) and any(len(weights) != len(self.paths) for weights in self.grid.weights):
            raise InputError(f"sweep {self.name}: every mixture requires a weight for each of the {len(self.paths)} corpora in data")
        if len(list(itertools.islice(self.grid.points(), MOST_RUNS + 1))) * len(self.objectives) > MOST_RUNS:
            raise InputError(f"sweep {self.name} has more than {MOST_RUNS:,} runs; shorten its grid")

    @property
    def paths(self) -> tuple[str, ...]:
        """The corpora."""
        return tuple(path for path in ((self.data,) if isinstance(self.data, str) else self.data) if path)

    def objective_of(self, name: str) -> Objective:
        """An objective, with the sweep's rules where it has none of its own."""
        found = self.objectives[name]
        found = Objective(found) if isinstance(found, str) else found
        return dataclasses.replace(found, batch=found.batch or self.batch, rate=found.rate or self.rate)


def load(path: str, values: Sequence[str] = ()) -> Sweep:
    """Runs `get_sweep()` of the file with `name=value` arguments, which take the type of the argument's default.

    `FILE.py:SIZE` is FILE.py with the argument `size=SIZE`, as in `dlmjax train --config FILE.py:SIZE`.

    Raises:
      InputError: no such file, no `get_sweep`, an error in it, an argument that it does not have or that is missing, a sweep that
        contradicts itself.
    """
    path, sizes = split_size(path)
    path = shipped(path)
    get_sweep = function_of(path, "sweep", "configs/sweeps/micro.py")
    with errors_as_lines(path):
        parameters = inspect.signature(get_sweep).parameters
    if sizes and "size" not in parameters:
        raise InputError(f"{path} comes at one size; leave out :{sizes[0]}")
    arguments: dict[str, Any] = {}
    for text in [*(f"size={size}" for size in sizes), *values]:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text} has no value; write --set {text}=VALUE")
        if name not in parameters:
            raise InputError(f"{path}: get_sweep() takes no {name!r}{nearest(name, parameters)}")
        arguments[name] = _typed(name, value, parameters[name].default)
    missing = [name for name, field in parameters.items() if field.default is field.empty and name not in arguments]
    if missing:
        raise InputError(f"{path} requires {', '.join(missing)}; pass --set {missing[0]}=VALUE")
    with errors_as_lines(path):
        found = get_sweep(**arguments)
    if not isinstance(found, Sweep):
        raise InputError(f"{path}: get_sweep() returns {type(found).__name__}, not a Sweep")
    return found


def short(number: float | int) -> str:
    """A number as a part of a file name: 1e12, 0.003, 2.5e13."""
    return f"{number:.4g}".replace("e+", "e").replace("e0", "e").replace("e-0", "e-")


def _typed(name: str, text: str, default: Any) -> Any:
    """The text of --set in the type of the argument's default."""
    value = literal(text)
    if isinstance(default, str):
        return text
    if isinstance(default, tuple):
        parts = [part for part in value.split(",") if part] if isinstance(value, str) else value
        return tuple(parts) if isinstance(parts, tuple | list) else (parts,)
    if type(default) is int and isinstance(value, float) and value.is_integer():
        value = int(value)  # 1e3 is a way to write a thousand
    numbers = type(default) is float and type(value) is int
    if default is not inspect.Parameter.empty and not numbers and type(value) is not type(default):
        raise InputError(f"--set {name} requires {type(default).__name__}, not {text!r:.60}")
    return value


def _numbers(grid: str, *, unique: bool = True, **values: Sequence[float | int]) -> None:
    """Refuses lists that are empty, hold anything but positive numbers or, `unique`, one of them twice."""
    for name, entries in values.items():
        _few(grid, name, entries)
        entries = tuple(entries) if isinstance(entries, Sequence) and not isinstance(entries, str) else (entries, None)
        if not entries or not all(isinstance(v, int | float) and 0 < v <= checks.MOST for v in entries):
            raise InputError(f"{grid}.{name} is {values[name]!r:.100}; give a list of positive numbers")
        if unique and len(set(entries)) != len(entries):
            raise InputError(f"{grid}.{name} is {values[name]!r:.100}: one occurs twice; give each once")


def _whole(grid: str, least: int = 0, most: int = checks.MOST_COUNT, **values: Sequence[int]) -> None:
    """Refuses lists that are empty, or hold anything but different whole numbers from `least` to `most`."""
    for name, entries in values.items():
        _few(grid, name, entries)
        whole = isinstance(entries, Sequence) and bool(entries) and all(type(value) is int for value in entries)
        if not whole or min(entries) < least or len(set(entries)) != len(entries):
            raise InputError(f"{grid}.{name} is {entries!r:.100}; give a list of different whole numbers, each at least {least}")
        if max(entries) > most:
            raise InputError(f"{grid}.{name} has {max(entries)!r:.60}; give whole numbers of at most {most}")


def _few(grid: str, name: str, entries: Any) -> None:
    """Refuses a list that is longer than a sweep, before anything walks over it."""
    if isinstance(entries, Sequence) and len(entries) > MOST_RUNS:
        raise InputError(f"{grid}.{name} has {len(entries):,} entries, more than {MOST_RUNS:,} runs; shorten it")


def _widths(grid: str, sizes: Sequence[int]) -> None:
    _whole(grid, sizes=sizes)
    for width in sizes:
        ladder.shape(width)


def _kinds(name: str, **fields: tuple[Any, Any]) -> None:
    """Refuses fields, (value, type) each, of another type."""
    for field, (value, kind) in fields.items():
        if not isinstance(value, kind):
            kinds = kind.__args__ if isinstance(kind, types.UnionType) else (kind,)
            names = " or ".join("None" if each is types.NoneType else each.__name__ for each in kinds)
            raise InputError(f"{name}({field}={value!r}): give {names}")


def _texts(name: str, **fields: Sequence[str]) -> None:
    """Refuses fields that are not lists of text."""
    for field, entries in fields.items():
        if not isinstance(entries, Sequence) or isinstance(entries, str) or not all(isinstance(text, str) for text in entries):
            raise InputError(f"{name}({field}={entries!r}): give a list of text")


def _items(objectives: Any) -> list[tuple[Any, Any]]:
    return list(objectives.items()) if isinstance(objectives, Mapping) else []
