"""The files of a fit, written and read: `fit.json` (everything, full precision), `resamples.npz`, `points.csv`."""

import csv
import dataclasses
import io
import json
import math
import os
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Iterable
from textwrap import shorten
from types import NoneType
from typing import Any

import numpy as np

from dlmjax import checks
from dlmjax.errors import InputError
from dlmjax.files import finite, parse_json, read_bounded, require_shape, write_atomically
from dlmjax.fit import bootstrap
from dlmjax.fit.analysis import BEST, Analysis, ScalingLaw
from dlmjax.fit.compare import Crossings, Ratio
from dlmjax.fit.forms import ADDITIVE, Compute
from dlmjax.fit.points import Points
from dlmjax.fit.special import Special, Tuning, best_epochs
from dlmjax.sweep.records import Record

FIT, RESAMPLES, POINTS, PAGE = "fit.json", "resamples.npz", "points.csv", "report.html"
COMPARED, REPEATED = "objectives.png", "repeated.png"
PICTURES = ("isoflop", "envelope", "best", "residuals")  # of each objective
LONGEST_NAME = 60  # letters of an objective in names of pictures: a letter may take four bytes, a name of a file has 255
LARGEST_ARRAY = 1 << 26  # bytes of one array of resamples
VERSION = 2  # 1 had neither the sizes tried nor where the laws of batch and learning rate have their middle


@dataclasses.dataclass(frozen=True)
class ObjectiveFit:
    """All fits of one objective. points: every run that was read, also those that the base laws omit. analyses: by definition of N.
    special: by name of the form. mixing: by domain. left_out: runs by reason. refused: why there is no analysis at all."""

    objective: str
    points: Points | None
    analyses: dict[str, Analysis]
    special: dict[str, Special]
    tuning: Tuning | None
    mixing: dict[str, Special]
    left_out: dict[str, int]
    reference: Record | None
    refused: str = ""


@dataclasses.dataclass(frozen=True)
class Result:
    """A whole fit: what `fit.json` holds. apart: which objectives are not compared, and why. base: what the others are compared with."""

    sources: tuple[str, ...]
    resamples: int
    seed: int
    objectives: tuple[ObjectiveFit, ...]
    ratios: tuple[Ratio, ...]
    crossings: tuple[Crossings, ...]
    apart: tuple[str, ...] = ()
    base: str = ""

    def record(self) -> dict[str, Any]:
        """Plain JSON in full precision; what is not a number is null."""
        head = {"format": "dlmjax fit", "version": VERSION, "sources": list(self.sources), "resamples": self.resamples, "seed": self.seed}
        head["series"] = {found.objective: _objective(found) for found in self.objectives}
        head["compute_ratios"] = [ratio.record() for ratio in self.ratios]
        head["crossings"] = [found.record() for found in self.crossings]
        head["not_compared"] = list(self.apart)
        return finite(head)

    def write(self, directory: str | os.PathLike) -> None:
        """`fit.json` comes last: a directory that has one is whole. What an older fit left there goes first. Raises InputError."""
        root = pathlib.Path(directory)
        _clear(root)
        write_atomically(root / POINTS, self._points().encode())
        content = io.BytesIO()
        np.savez_compressed(content, **self._samples())
        write_atomically(root / RESAMPLES, content.getvalue())
        write_atomically(root / FIT, (json.dumps(self.record(), indent=1, allow_nan=False) + "\n").encode())

    def _samples(self) -> dict[str, np.ndarray]:
        """Resampled laws under `series|definition|blocks|method|number`."""
        return {
            "|".join((found.objective, definition, blocks, method, name)): np.asarray(values)
            for found in self.objectives
            for definition, analysis in found.analyses.items()
            for blocks, laws in analysis.resampled.items()
            for method, law in laws.items()
            for name, values in law.values.items()
        }

    def _points(self) -> str:
        """One line a run, with the loss by the parametric law."""
        text = io.StringIO()
        columns = ["id", "series", "total", "non_embedding", "active", "flops_per_token", "tokens", "unique_tokens", "flops", "budget"]
        columns += ["loss", "stderr", "used", "fitted_loss", "on_envelope"]
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        for found in self.objectives:
            writer.writerows(_rows(found))
        return text.getvalue()


def _clear(root: pathlib.Path) -> None:
    """Removes the files of an earlier fit, `fit.json` first, so that none of them is mistaken for one of the next."""
    try:
        objectives = list(json.loads((root / FIT).read_bytes())["series"])
    except (OSError, ValueError, KeyError, TypeError):
        objectives = []  # no fit, or a damaged one: its pictures are not known by name
    pictures = [f"{kind}_{name}.png" for name in file_names(objectives).values() for kind in PICTURES]
    try:
        for name in (FIT, RESAMPLES, POINTS, PAGE, COMPARED, REPEATED, *pictures):
            (root / name).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot replace the fit in {root}: {error.strerror}; choose another --output") from error


def file_names(objectives: Iterable[str]) -> dict[str, str]:
    """The file name of each objective: signs become "_", and a number distinguishes names that are equal, also without case."""
    found: dict[str, str] = {}
    for name in objectives:
        plain_name = "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in name[:LONGEST_NAME])
        taken, count, found[name] = {each.lower() for each in found.values()}, 2, plain_name
        while found[name].lower() in taken:
            found[name], count = f"{plain_name}-{count}", count + 1
    return found


def _rows(found: ObjectiveFit) -> list[dict[str, Any]]:
    points, analysis = found.points, found.analyses.get("total")
    if points is None:
        return []
    used = {name: index for index, name in enumerate(analysis.points.ids)} if analysis else {}
    fitted_R = np.full(len(used), math.nan)
    if analysis is not None and analysis.parametric is not None:
        fitted_R = np.exp(np.log(analysis.points.loss_R) - analysis.parametric.residuals_R)
    rows = []
    for index, name in enumerate(points.ids):
        row: dict[str, Any] = {"id": name, "series": found.objective}
        row |= {definition: _number(size_R[index]) for definition, size_R in points.sizes.items()}
        for column in ("tokens", "flops", "budget", "loss", "stderr"):
            row[column] = _number(getattr(points, f"{column}_R")[index])
        row["unique_tokens"] = _number(points.unique_R[index])
        row["flops_per_token"] = _number(points.flops_R[index] / points.tokens_R[index])
        row["used"] = int(name in used)
        if name in used:
            row |= {"fitted_loss": _number(fitted_R[used[name]]), "on_envelope": int(analysis.on_envelope_R[used[name]])}
        rows.append(row)
    return rows


def _number(value: float) -> str:
    """Full precision; counts without a point; empty where it is not known."""
    return "" if not math.isfinite(value) else repr(int(value) if float(value).is_integer() else float(value))


def _objective(found: ObjectiveFit) -> dict[str, Any]:
    record: dict[str, Any] = {"runs": len(found.points) if found.points else 0, "left_out": found.left_out, "refused": found.refused}
    if found.points is not None:
        record |= {"validation": found.points.validation, "notes": list(found.points.notes)}
    record["definitions"] = {name: _analysis(analysis) for name, analysis in found.analyses.items()}
    for name, special in found.special.items():
        record[name] = special.record(best_epochs) if name == "overfitting" else special.record()
    record["tuning"] = found.tuning and found.tuning.record()
    record["mixing"] = {domain: special.record() for domain, special in found.mixing.items()}
    record["reference"] = _reference(found.reference)
    return record


def _reference(record: Record | None) -> dict[str, Any] | None:
    """The fields of a run from which a prediction writes the config of a larger one."""
    if record is None:
        return None
    names = ("id", "vocab", "length", "batch", "lr", "steps", "tokens", "parameters", "non_embedding", "flops_per_token", "config")
    return {name: getattr(record, name) for name in names}


def _analysis(analysis: Analysis) -> dict[str, Any]:
    budgets = [minimum.flops for minimum in analysis.isoflop.minima]
    top = float(analysis.points.flops_R.max())
    record: dict[str, Any] = {"runs": len(analysis.points), "compute": dataclasses.asdict(analysis.compute), "refused": analysis.refused}
    size_R = analysis.points.sizes[analysis.definition]
    record["sizes"] = [float(size_R.min()), float(size_R.max())]
    record["laws"] = {method: dict(law.values) for method, law in analysis.laws.items()}
    record["doubts"] = {method: list(reasons) for method, reasons in analysis.doubts.items()}
    record["exponents"] = {method: _both(analysis, method, lambda law: law.exponents()) for method in analysis.laws}
    if analysis.parametric is not None:
        fit = analysis.parametric
        record["parametric"] = {
            "equation": ADDITIVE.equation,
            "source": ADDITIVE.source,
            "objective": fit.objective,
            "huber_delta": 1e-3,
            "boundaries": list(fit.boundaries),
            "starts": fit.starts,
            "starts_that_agree": fit.agree,
            "parameters": _both(analysis, "parametric", lambda law: dict(law.values)),
        }
    record["isoflop"] = [dataclasses.asdict(minimum) for minimum in analysis.isoflop.minima]
    record["envelope"] = [name for name, on in zip(analysis.points.ids, analysis.on_envelope_R, strict=True) if on]
    record["held_out"] = analysis.held_out
    record["best_runs"] = [
        {"flops": flops, "method": method} | _both(analysis, method, lambda law, flops=flops: law.at(flops))
        for flops in [*budgets, 10 * top, 100 * top]
        for method in analysis.laws
    ]
    return record


def _both(analysis: Analysis, method: str, numbers: Callable[[ScalingLaw], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Numbers of a law with their intervals, by name and kind of block; without resamples the estimates alone."""
    estimates = {name: float(value) for name, value in numbers(analysis.laws[method]).items()}
    found: dict[str, dict[str, Any]] = {name: {"estimate": value} for name, value in estimates.items()}
    for blocks, laws in analysis.resampled.items():
        for name, interval in bootstrap.intervals(estimates, numbers(laws[method])).items():
            found[name][blocks] = {key: value for key, value in interval.items() if key != "estimate"}
    return found


@dataclasses.dataclass(frozen=True)
class Saved:
    """A fit read from disk: `fit.json` as it is, and the resamples by their names."""

    directory: pathlib.Path
    record: dict[str, Any]
    samples: dict[str, np.ndarray]

    def laws(self, objective: str, definition: str) -> tuple[dict[str, ScalingLaw], dict[str, dict[str, ScalingLaw]]]:
        """Laws of one objective and definition by method, and those of the resamples by blocks and method."""
        found = self.record["series"][objective]["definitions"][definition]
        compute = Compute(**found["compute"])
        laws = {method: ScalingLaw(method, values, compute) for method, values in found["laws"].items()}
        grouped: dict[str, dict[str, dict[str, np.ndarray]]] = {}
        for key, values in self.samples.items():
            of, under, blocks, method, name = key.rsplit("|", 4)
            if (of, under) == (objective, definition):
                grouped.setdefault(blocks, {}).setdefault(method, {})[name] = values
        resampled = {
            blocks: {method: ScalingLaw(method, values, compute) for method, values in by_method.items()}
            for blocks, by_method in grouped.items()
        }
        return laws, resampled

    def doubts(self, objective: str, definition: str) -> dict[str, tuple[str, ...]]:
        """By method, why a law is not to be trusted; of an older fit without doubts, the parameters at a bound."""
        found = self.record["series"][objective]["definitions"][definition]
        doubts = {method: tuple(reasons) for method, reasons in found.get("doubts", {}).items() if reasons}
        at_bounds = [f"boundary: {reason}" for reason in (found.get("parametric") or {}).get("boundaries", ())]
        if at_bounds:
            doubts["parametric"] = tuple(dict.fromkeys((*at_bounds, *doubts.get("parametric", ()))))
        return doubts


_REFERENCE = {"id": str, "vocab": int, "length": int, "batch": int, "lr": float, "steps": int, "tokens": int, "config": dict}
_DEFINITION = {
    "compute": {"k": float, "rho": float, "worst": float},
    "laws": {str: {str: (float, NoneType)}},
    "refused": {str: str},
    "sizes": [float],
    "best_runs": [{"flops": float}],
}
_OBJECTIVE = {"definitions": {str: _DEFINITION}, "reference": (dict, NoneType), "tuning": (dict, NoneType)}
_FIT = {"format": str, "version": int, "seed": int, "series": {str: _OBJECTIVE}}
_TUNED = {"coefficient": float, "exponent": float, "exponent_stderr": (float, NoneType), "pivot": float}
_LAW = {  # numbers of a law, by method
    "parametric": {"E", "A", "B", "a", "b"},
    **dict.fromkeys(("isoflop", "envelope"), {*(f"{name}_{of}" for name in BEST for of in ("coefficient", "exponent")), "loss_floor"}),
}


def read(directory: str | os.PathLike) -> Saved:
    """Raises InputError: no fit there, or one that is damaged or of a different version."""
    root = pathlib.Path(directory)
    if not (root / FIT).is_file():
        raise InputError(f"{root} holds no fit (no {FIT}); make one with: dlmjax fit RECORDS --output {root}")
    try:
        record = parse_json(read_bounded(root / FIT))
        if not isinstance(record, dict) or (record.get("format"), record.get("version")) != ("dlmjax fit", VERSION):
            raise ValueError(f"it is not of format 'dlmjax fit', version {VERSION}")
        require_shape(record, _FIT)
        if record["seed"] < 0:
            raise ValueError(f"its seed is {record['seed']}")
        for name, found in record["series"].items():
            _check_objective(name, found)
        samples = _read_samples(read_bounded(root / RESAMPLES), record)
    except (InputError, OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        said = shorten(checks.one_line(str(error)), 300, placeholder=" ...")
        raise InputError(f"the fit in {root} cannot be read ({said}); fit the records again") from None
    return Saved(root, record, samples)


def _check_objective(objective: str, found: dict[str, Any]) -> None:
    """Raises ValueError: the part of an objective that a prediction reads is not as `Result.record` writes it."""
    checks.label("an objective", objective)
    for definition, each in found["definitions"].items():
        what = f"{objective}, {definition}"
        if each["compute"].keys() != _DEFINITION["compute"].keys():
            raise ValueError(f"compute of {what} has other numbers than k, rho and worst")
        require_shape(each.get("doubts", {}), {str: [str]}, f"doubts of {what}")
        require_shape((each.get("parametric") or {}).get("boundaries", []), [str], f"boundaries of {what}")
        if len(each["sizes"]) != 2:
            raise ValueError(f"{what} has {len(each['sizes'])} sizes, not the least and the largest")
        for method, values in each["laws"].items():
            if _LAW.get(method) != values.keys():
                raise ValueError(f"the law {method!r:.60} of {what} has other numbers than such a law")
            each["laws"][method] = {name: math.nan if value is None else value for name, value in values.items()}
        rho = each["compute"]["rho"] if "parametric" in each["laws"] else 1.0  # the others do not use it
        positive = [each["compute"]["k"], rho, *each["sizes"], *(row["flops"] for row in each["best_runs"])]
        if not all(0 < number <= checks.MOST for number in positive):
            raise ValueError(f"a size, a number of FLOPs or C = k N^rho D of {what} is not above 0")
    if (reference := found["reference"]) is not None:
        require_shape(reference, _REFERENCE, f"reference of {objective}")
        checks.name(f"the reference of {objective}", reference["id"])
        checks.numbers(
            f"the reference of {objective}", {name: reference[name] for name in ("length", "batch", "lr", "tokens")}, 1 / checks.MOST
        )
        checks.flat(f"the config of {reference['id']}", reference["config"])
    for name, law in (found["tuning"] or {}).items():
        if name in ("batch", "lr") and law is not None:
            require_shape(law, _TUNED, f"tuning of {objective}")


def _read_samples(content: bytes, record: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of `resamples.npz`, one number for each resample, of the laws that the fit has.

    What an array's header says is compared with the bytes that the archive holds before memory is allocated.
    Raises ValueError and others: damaged, or not those of the fit.
    """
    samples, names = {}, {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for entry in archive.infolist():
            key = entry.filename.removesuffix(".npy")
            objective, definition, blocks, method, name = key.rsplit("|", 4)
            definitions = record["series"].get(objective, {}).get("definitions", {})
            if method not in definitions.get(definition, {}).get("laws", {}) or blocks not in bootstrap.BLOCKS:
                continue
            samples[key] = _read_array(archive, entry)
            names.setdefault((objective, definition, blocks, method), {})[name] = samples[key].size
    wanted = {(*of, method) for of in {key[:3] for key in names} for method in record["series"][of[0]]["definitions"][of[1]]["laws"]}
    for key in wanted | names.keys():
        if names.get(key, {}).keys() != _LAW[key[3]] or len({*names[key].values()} - {1}) > 1:  # a floor that all share is one number
            raise ValueError(f"{RESAMPLES} has not all numbers of {'|'.join(key)!r:.100}")
    return samples


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """A list of numbers. Raises ValueError: another kind of array, or one that is longer than it can be."""
    with archive.open(entry) as file:
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[np.lib.format.read_magic(file)]
        shape, _, dtype = read(file)
        size = 8 * math.prod(shape)
        if len(shape) > 1 or dtype != np.float64 or not size < entry.file_size <= LARGEST_ARRAY:
            raise ValueError(f"{entry.filename!r:.100} in {RESAMPLES} is not a list of numbers")
        content = file.read(size)
    if len(content) != size:
        raise ValueError(f"{entry.filename!r:.100} in {RESAMPLES} is cut short")
    return np.frombuffer(content, np.float64).reshape(shape)
