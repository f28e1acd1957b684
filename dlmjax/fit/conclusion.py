"""What a fit says in words: the best run of each objective at each budget, which objective is ahead, and what its laws are worth.

Imports no jax.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from dlmjax.fit.analysis import Analysis
from dlmjax.fit.bootstrap import interval
from dlmjax.fit.compare import Ratio
from dlmjax.fit.fitness import SAME_BUDGET
from dlmjax.fit.isoflop import MAX_SPREAD
from dlmjax.fit.points import Points, incomparable
from dlmjax.fit.results import ObjectiveFit, Result

MOST_BUDGETS = 12  # of the table, the largest ones
CLEAR = 2.0  # standard errors of a difference from which on two losses count as different
BEST = "*"  # beside the lowest loss of a budget


@dataclasses.dataclass(frozen=True)
class BestRun:
    """The run of the lowest validation loss of one objective at one budget. loss, stderr: nats per token (stderr nan: not known)."""

    id: str
    size: float
    tokens: float
    loss: float
    stderr: float

    def __str__(self) -> str:
        return plus_minus(self.loss, self.stderr)


@dataclasses.dataclass(frozen=True)
class Budget:
    """One number of FLOPs, and the best run of each objective that has runs of it."""

    flops: float
    best: dict[str, BestRun]


def plus_minus(value: float, stderr: float) -> str:
    """A number with its standard error, to two digits of the error."""
    if not math.isfinite(stderr) or stderr <= 0:
        return f"{value:.4f}"
    digits = min(max(1 - math.floor(math.log10(stderr)), 2), 8)
    return f"{value:.{digits}f} ± {stderr:.{digits}f}"


def budgets(objectives: Sequence[ObjectiveFit]) -> list[Budget]:
    """The budgets of all objectives, small to large. Runs whose FLOPs are a chain wider than a factor of 1.5 share no budget."""
    found = [(each.objective, each.points) for each in objectives if each.points is not None]
    flops = [np.where(np.isfinite(points.budget_R), points.budget_R, points.flops_R) for _, points in found]
    runs = [(math.log10(C), f, r) for f, flops_R in enumerate(flops) for r, C in enumerate(flops_R)]
    groups: list[list[tuple[float, int, int]]] = []
    for run in sorted(runs):
        if groups and run[0] - groups[-1][-1][0] <= SAME_BUDGET:
            groups[-1].append(run)
        else:
            groups.append([run])
    result = []
    for group in groups:
        if 10 ** (group[-1][0] - group[0][0]) > MAX_SPREAD:
            continue
        best: dict[str, BestRun] = {}
        for _, f, r in group:
            name, points = found[f]
            if name not in best or points.loss_R[r] < best[name].loss:
                best[name] = _best_run(points, r)
        result.append(Budget(10 ** float(np.mean([log_C for log_C, _, _ in group])), best))
    return result


def _best_run(points: Points, r: int) -> BestRun:
    return BestRun(points.ids[r], *(float(array[r]) for array in (points.sizes["total"], points.tokens_R, points.loss_R, points.stderr_R)))


def comparable(objectives: Sequence[ObjectiveFit], base: str) -> list[str]:
    """Objectives whose losses are comparable with those of the base, which is one of them."""
    points = {each.objective: each.points for each in objectives if each.points is not None}
    return [name for name, each in points.items() if base in points and (name == base or not incomparable(points[base], each))]


def shared(objectives: Sequence[ObjectiveFit], base: str) -> list[Budget]:
    """Budgets at which at least two comparable objectives have runs, with the best runs of those objectives alone."""
    names = comparable(objectives, base)
    found = [Budget(each.flops, {name: run for name, run in each.best.items() if name in names}) for each in budgets(objectives)]
    return [each for each in found if len(each.best) > 1]


def table(result: Result) -> list[tuple[str, ...]]:
    """The best loss of each objective and budget with its standard error and size, and the lowest of each budget marked; a head first."""
    names = [found.objective for found in result.objectives if found.points is not None]
    compared = set(comparable(result.objectives, result.base))
    rows = [("FLOPs of a run", *names)]
    for budget in budgets(result.objectives)[-MOST_BUDGETS:]:
        lowest = min((run.loss for name, run in budget.best.items() if name in compared), default=math.nan)
        cells = []
        for name in names:
            run = budget.best.get(name)
            first = run is not None and len(compared) > 1 and name in compared and run.loss == lowest
            cells.append("-" if run is None else f"{run}{' ' + BEST if first else ''} (N {run.size:.3g})")
        rows.append((f"{budget.flops:.3g}", *cells))
    return rows


def conclusion(result: Result) -> list[str]:
    """Sentences: which objective is ahead at equal FLOPs and by how much, then the law of each, then what is not compared."""
    of_budgets = shared(result.objectives, result.base)
    lines = list(_ahead(result, of_budgets)) if of_budgets else list(_alone(result))
    lines += _ratios(result)
    lines += [_law(found) for found in result.objectives]
    return [*lines, *(f"{line}." for line in result.apart)]


def _ahead(result: Result, of_budgets: Sequence[Budget]) -> Iterator[str]:
    """Who is ahead at the largest shared budget, whether the difference is clear, and whether it is so at the others."""
    top = of_budgets[-1]
    (name, first), (second_name, second), *_ = ranked = sorted(top.best.items(), key=lambda item: item[1].loss)
    rest = ", ".join(f"{other} {run} (+{run.loss - first.loss:.3g})" for other, run in ranked[1:])
    where = f"At {top.flops:.3g} FLOPs, the largest budget with runs of {len(ranked)} objectives"
    yield f"{where}, {name} has the lowest loss: {first} nats/token; {rest}."
    error = math.hypot(first.stderr, second.stderr)
    if math.isfinite(error) and second.loss - first.loss < CLEAR * error:
        yield (
            f"The lead of {name} over {second_name} is less than {CLEAR:g} of its standard errors: more validation windows or seeds are "
            "needed to tell them apart."
        )
    if of_budgets[1:]:
        others = [(min(each.best, key=lambda other: each.best[other].loss), each.flops) for each in of_budgets]
        differing = [f"{other} at {flops:.3g}" for other, flops in others if other != name]
        if differing:
            yield f"{name} has the lowest loss at {len(others) - len(differing)} of {len(others)} budgets; else {', '.join(differing)}."
        else:
            yield f"{name} has the lowest loss at each of the {len(others)} budgets."
    yield (
        "The loss of a diffusion objective is an upper bound, that of an autoregressive one is exact; ± is the standard error over the "
        "validation text, without the scatter between training seeds."
    )


def _alone(result: Result) -> Iterator[str]:
    """The lowest loss of each objective, where no two are comparable at a budget."""
    for found in result.objectives:
        if found.points is not None and len(found.points):
            best = _best_run(found.points, int(np.argmin(found.points.loss_R)))
            yield f"{found.objective}: the lowest loss is {best} nats/token, of {best.id} (N {best.size:.3g}, D {best.tokens:.3g} tokens)."


def _ratios(result: Result) -> Iterator[str]:
    """The compute ratio at the largest budget of each pair, from the first method that is trusted; else why there is none."""
    analyses = {found.objective: found.analyses["total"] for found in result.objectives if "total" in found.analyses}
    drawn = drawn_ratios(result)
    for other in dict.fromkeys(name for name, _ in drawn):
        ratio = next(rows for (name, _), rows in drawn.items() if name == other)[-1]
        spread = ratio.intervals.get("runs")
        ends = f" [{spread.low_95:.3g}, {spread.high_95:.3g}]" if spread and not math.isnan(spread.low_95) else ""
        yield (
            f"For the loss of {ratio.base} at {ratio.flops:.3g} FLOPs, {other} requires {ratio.ratio:.3g}{ends} times these FLOPs "
            f"({ratio.method} law)."
        )
    yield from (f"{line[0].upper()}{line[1:]}." for line in no_ratios(analyses, result))


def _law(found: ObjectiveFit) -> str:
    """How N* and D* of an objective grow, by the first law that is trusted; else why no law is."""
    analysis = found.analyses.get("total")
    if analysis is None:
        return f"{found.objective}: no law{': ' + found.refused if found.refused else ' of size and tokens'}."
    method = next(iter(analysis.trusted), None)
    if method is None:
        reasons = "; ".join(f"{name}: {reason}" for name, each in analysis.doubts.items() for reason in each[:1])
        return f"{found.objective}: no law is trusted ({reasons})."
    numbers, drawn = analysis.laws[method].exponents(), analysis.resampled.get("runs", {}).get(method)
    grown = []
    for name, symbol in (("size", "the best number of parameters N*"), ("tokens", "that of tokens D*")):
        spread = interval(float(numbers[name]), drawn.exponents()[name]) if drawn else None
        ends = f" [{spread.low_95:.2f}, {spread.high_95:.2f}]" if spread and not math.isnan(spread.low_95) else ""
        grown.append(f"{symbol} grows as C^{float(numbers[name]):.2f}{ends}")
    return f"{found.objective}: {' and '.join(grown)}, with the FLOPs C of a run ({method} law)."


def drawn_ratios(result: Result) -> dict[tuple[str, str], list[Ratio]]:
    """The ratios that a picture shows, by objective and method: among the runs of both, and to be trusted."""
    found: dict[tuple[str, str], list[Ratio]] = {}
    for ratio in result.ratios:
        if ratio.within and not ratio.doubts:
            found.setdefault((ratio.other, ratio.method), []).append(ratio)
    return found


def no_ratios(analyses: dict[str, Analysis], result: Result) -> Iterator[str]:
    """Why there is no ratio of two objectives: no law is trusted, or the best runs of one are all worse, all better, or both."""
    with_ratio = {other for other, _ in drawn_ratios(result)}
    found: dict[tuple[str, str], list[str]] = {}
    for base, other in dict.fromkeys((ratio.base, ratio.other) for ratio in result.ratios):
        if other in with_ratio:
            continue
        of_pair = [ratio for ratio in result.ratios if (ratio.base, ratio.other) == (base, other)]
        loss_R = analyses[other].points.loss_R[analyses[other].on_envelope_R]
        losses = [ratio.loss for ratio in of_pair]
        if any(ratio.within for ratio in of_pair):
            reason = "no ratio of {others} to {base} is trusted: see the reasons in the table"
        elif loss_R.min() > max(losses):
            reason = "no run of {others} is as good as the best of {base}"
        elif loss_R.max() < min(losses):
            reason = "every best run of {others} is better than those of {base}"
        else:
            reason = "no best loss of {base} lies among those of {others}"
        found.setdefault((reason, base), []).append(other)
    yield from (reason.format(base=base, others=" or ".join(others)) for (reason, base), others in found.items())
