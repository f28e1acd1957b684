"""From files of runs to a `Result`: every law that the runs allow, and how the objectives compare. Imports no jax."""

from collections.abc import Sequence

import numpy as np

from dlmjax.errors import InputError
from dlmjax.fit import compare, fitness, points, special
from dlmjax.fit.analysis import Analysis, analyse, usable
from dlmjax.fit.conclusion import shared
from dlmjax.fit.points import Points
from dlmjax.fit.results import ObjectiveFit, Result
from dlmjax.sweep.records import Record, read_records

SPECIAL_RESAMPLES = 200  # of laws with seven to nine parameters, at most
MOST_DRAWN = 20_000_000  # resamples x runs: about ten arrays of this size are in memory at a time
BASES = ("ar", "autoregressive")  # objectives that the others are compared with, in this order


def analyse_files(
    records: Sequence[str] = (), csv: Sequence[str] = (), *, resamples: int = 1000, seed: int = 0, base: str | None = None
) -> Result:
    """Fits runs.

    Args:
      records: files of records, or directories of sweeps. csv: tables of outside runs.
      resamples: of the bootstrap; 0 = no error bars. seed: of the resamples.
      base: the objective that the others are compared with; None: that of BASES, or the first.
    Raises InputError: nothing to fit, or too few runs for any law.
    """
    if resamples and resamples < 100:
        raise InputError(f"--resamples {resamples}: 95 % intervals require at least 100; 0 fits without error bars")
    if seed < 0:
        raise InputError(f"--seed {seed}: give 0 or a positive whole number")
    if not records and not csv:
        raise InputError("give a file of records, or the directory of a sweep, or a table with --csv")
    runs = _one_of_each([record for path in records for record in read_records(path)])
    tables = [points.from_csv(path) for path in csv]
    base_points = points.from_records(runs)
    runs_in_all = len(runs) + sum(len(each) for table in tables for each in table.values())
    if runs_in_all * resamples > MOST_DRAWN:
        most = MOST_DRAWN // runs_in_all
        raise InputError(f"--resamples {resamples} of {runs_in_all:,} runs do not fit in memory; give at most {most if most >= 100 else 0}")
    for table in tables:
        for name in table:
            if name in base_points:
                raise InputError(f"objective {name!r} is in two of the files; give the table a column `series` with another name")
        base_points |= table
    names = sorted({*base_points, *(record.series for record in runs)})
    if not names:
        raise InputError(f"{', '.join(map(str, records))} holds no record, so there is nothing to fit; `dlmjax sweep run` writes them")
    found = tuple(_objective(name, base_points.get(name), [r for r in runs if r.series == name], resamples, seed) for name in names)
    base = _base(names, base)
    ratios, crossings, apart = _comparisons(found, base, min(resamples, SPECIAL_RESAMPLES), seed)
    laws = any(each.analyses or each.tuning or each.mixing or any(law.fit for law in each.special.values()) for each in found)
    if not laws and not crossings and not shared(found, base):
        raise InputError("; ".join(each.refused for each in found) or "no run has finished, so there is nothing to fit")
    return Result((*map(str, records), *map(str, csv)), resamples, seed, found, ratios, crossings, apart, base)


def _one_of_each(records: Sequence[Record]) -> list[Record]:
    """Raises InputError: two files have different records of one run."""
    seen: dict[str, Record] = {}
    for record in records:
        if seen.setdefault(record.id, record) != record:
            raise InputError(f"the run {record.id} has different records in two of the files; keep one")
    return list(seen.values())


def _objective(name: str, found: Points | None, records: list[Record], resamples: int, seed: int) -> ObjectiveFit:
    refused, analyses, laws, left = "", {}, {}, dict(found.left_out) if found else _statuses(records)
    reference = None
    few = min(resamples, SPECIAL_RESAMPLES)
    if found is not None:
        base, repeats = usable(found)
        if repeats:
            left[f"with more than {points.FREE_EPOCHS:g} epochs (for the laws of repetition)"] = repeats
        try:
            analyses = {definition: analyse(base, definition, resamples=resamples, seed=seed) for definition in found.sizes}
        except InputError as error:
            refused = str(error)
        laws = special.repeated(found, resamples=few, seed=seed) | {"joint": special.joint(base, resamples=few, seed=seed)}
        if base.records:
            reference = min(base.records, key=lambda run: (-(run.budget or 0), run.loss))
    tuned = special.tuning(records)
    mixed = special.mixing(records, resamples=few, seed=seed)
    return ObjectiveFit(name, found, analyses, laws, tuned, mixed, left, reference, refused)


def _statuses(records: Sequence[Record]) -> dict[str, int]:
    """Numbers of runs that did not finish, by status."""
    states = [record.status for record in records if record.status != "finished"]
    return {state: states.count(state) for state in sorted(set(states))}


def _base(names: Sequence[str], wanted: str | None) -> str:
    """The objective that the others are compared with. Raises InputError: `wanted` is not one of the fit."""
    if wanted is not None and wanted not in names:
        raise InputError(f"--base {wanted!r} is not an objective of the fit: {', '.join(names)}")
    return wanted or next((name for name in BASES if name in names), names[0])


def _comparisons(found: Sequence[ObjectiveFit], base: str, resamples: int, seed: int):
    """Ratios and crossings of every objective with the base, and why others are not compared: they were measured differently, or differ
    in vocabulary or corpora."""
    first = next(each for each in found if each.objective == base)
    ratios: list[compare.Ratio] = []
    crossings, apart = [], []
    for other in found:
        if other is first or first.points is None or other.points is None:
            continue
        if why := points.incomparable(first.points, other.points):
            apart.append(f"{other.objective} is not compared with {first.objective}: {why}")
            continue
        pair: list[Analysis] = [each.analyses["total"] for each in (first, other) if "total" in each.analyses]
        if len(pair) == 2:
            ratios += compare.compute_ratios(*pair)
        if np.nan_to_num(np.concatenate([each.points.epochs_R for each in (first, other)])).max() > fitness.AGAIN:
            of_both = compare.crossings(first.points, other.points, resamples=resamples, seed=seed)
            if of_both.corpora:
                crossings.append(of_both)
    return tuple(ratios), tuple(crossings), tuple(apart)
