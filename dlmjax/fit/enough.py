"""Warnings about planned grids with too few runs for their laws, by the same bounds at which `fit` refuses. Imports no jax."""

import math
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from dlmjax.fit import fitness, forms


@runtime_checkable
class PlannedRun(Protocol):
    """What a plan provides of a run: its objective, what varies in the sweep (`sweep.manifest.PlannedRun`), and what it will cost."""

    series: str
    cell: dict[str, Any]
    parameters: int
    tokens: int
    unique_tokens: int
    epochs: float


def warnings(runs: Sequence[PlannedRun]) -> list[str]:
    """Lines on objectives with too few runs for a law; objectives with the same shortcomings share one."""
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(run.series for run in runs):
        if reasons := shortcomings([run for run in runs if run.series == name]):
            found.setdefault("; ".join(reasons), []).append(name)
    return [f"warning: too small for a law, {', '.join(names)}: {reasons}" for reasons, names in found.items()]


def shortcomings(runs: Sequence[PlannedRun]) -> list[str]:
    """The laws for which the runs of one objective are too few, a line each."""
    varied = runs[0].cell if runs else {}
    if "lr" in varied:
        return _tuning(runs)
    if "weights" in varied:
        return _mixing(runs)
    return _repetition(runs) if "unique_tokens" in varied else _base(runs)


def _base(runs: Sequence[PlannedRun]) -> list[str]:
    """The shortcomings of a grid of budgets and sizes."""
    sizes: dict[float, set[int]] = {}
    for run in runs:
        sizes.setdefault(run.cell["budget"], set()).add(run.parameters)
    reasons, different = [], {run.parameters for run in runs}
    wide = [
        each for each in sizes.values() if len(each) >= fitness.ISOFLOP_SIZES and math.log10(max(each) / min(each)) >= fitness.ISOFLOP_SPAN
    ]
    if len(wide) < fitness.ISOFLOP_BUDGETS:
        reasons.append(
            f"isoflop: {len(wide)} of {len(sizes)} budgets have {fitness.ISOFLOP_SIZES} sizes over a factor of "
            f"{10**fitness.ISOFLOP_SPAN:.2g}, {fitness.ISOFLOP_BUDGETS} are needed"
        )
    least = len(forms.ADDITIVE.names) + 1
    if len(runs) < least or len(different) < fitness.PARAMETRIC_SIZES:
        reasons.append(
            f"parametric: {len(runs)} runs of {len(different)} sizes, {least} runs of {fitness.PARAMETRIC_SIZES} sizes are needed"
        )
    if len(sizes) < fitness.ENVELOPE_BUDGETS:
        reasons.append(
            f"{len(sizes)} budget{'s' * (len(sizes) != 1)}: no envelope, and no law can be tried on a budget that it was not fitted to; "
            f"{fitness.ENVELOPE_BUDGETS} are needed"
        )
    return reasons


def _repetition(runs: Sequence[PlannedRun]) -> list[str]:
    corpora, again = {run.unique_tokens for run in runs}, [run for run in runs if run.epochs > fitness.AGAIN]
    form = forms.REPETITION_OF_ONE_SIZE if len({run.parameters for run in runs}) < 2 else forms.REPETITION
    reasons = []
    if len(corpora) < 2:
        reasons.append("repetition: corpora of one size, 2 are needed")
    if len(again) < fitness.REPEATED_RUNS or len(runs) <= len(form.names):
        reasons.append(
            f"repetition: {len(runs)} runs, {len(again)} of which see their tokens more than once; {len(form.names) + 1} and "
            f"{fitness.REPEATED_RUNS} are needed"
        )
    return reasons


def _tuning(runs: Sequence[PlannedRun]) -> list[str]:
    rates: dict[tuple, set[float]] = {}
    for run in runs:
        rates.setdefault((run.parameters, run.cell["tokens"], run.cell["batch"]), set()).add(run.cell["lr"])
    wide = [key for key, each in rates.items() if len(each) >= fitness.PARABOLA_VALUES]
    batches: dict[tuple, set[int]] = {}
    for parameters, tokens, batch in wide:
        batches.setdefault((parameters, tokens), set()).add(batch)
    lengths = {tokens for (_, tokens), each in batches.items() if len(each) >= fitness.PARABOLA_VALUES}
    reasons = []
    if len({batch for _, _, batch in wide}) < 2:
        reasons.append(f"learning rate: fewer than 2 batches with {fitness.PARABOLA_VALUES} learning rates each")
    if len(lengths) < 2:
        reasons.append(f"batch: fewer than 2 numbers of tokens with {fitness.PARABOLA_VALUES} such batches each")
    return reasons


def _mixing(runs: Sequence[PlannedRun]) -> list[str]:
    mixtures, tokens = {tuple(run.cell["weights"]) for run in runs}, {run.tokens for run in runs}
    if len(mixtures) < 2 or len(tokens) < 2 or len(runs) <= len(forms.MIXING.names):
        least = len(forms.MIXING.names) + 1
        return [f"mixing: {len(runs)} runs of {len(mixtures)} mixtures and {len(tokens)} numbers of tokens; {least}, 2 and 2 are needed"]
    return []
