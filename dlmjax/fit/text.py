"""A fit as a person reads it on a terminal."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from dlmjax.fit import conclusion
from dlmjax.fit.analysis import Analysis
from dlmjax.fit.bootstrap import Interval, interval
from dlmjax.fit.compare import METHODS as RATIOS
from dlmjax.fit.compare import Crossings, Ratio
from dlmjax.fit.predict import Prediction
from dlmjax.fit.results import ObjectiveFit, Result
from dlmjax.fit.special import Special, Tuning, best_epochs

FAR = 1000.0  # times the largest run's FLOPs; further, a line warns of the distance
MARK = "!"  # beside what is not to be trusted
DETAILS = (
    "details: the laws behind these sentences, for each objective and each way to count parameters (docs/scaling_fit.md)",
    "  C, N, D            FLOPs, parameters and training tokens of a run; N*, D*: those of the best run that C FLOPs pay for",
    "  N* ~ C^            exponent of the growth of N* with C; the last three columns are the best run at ten times the largest C here",
    "  envelope           power laws through the best run of each budget",
    "  isoflop            power laws through the minimum, over the sizes of each budget, of a parabola in log N",
    "  parametric         loss = E + A/N^a + B/D^b, fitted to all runs at once",
    f"  [low, high], {MARK}     95 % interval, from runs drawn again; a number that is not to be trusted, with the reason below its table",
)
COUNTED = {
    "total": "all parameters",
    "non_embedding": "parameters without embeddings",
    "active": "parameters that a token uses",
    "flops_per_token": "FLOPs of a token as N",
}


def summary(result: Result) -> str:
    """The conclusion, the best runs, and the details behind them: all objectives, and how they compare. Intervals are 95 %, of the block
    bootstrap over runs."""
    lines = ["conclusion", *(f"  {line}" for line in conclusion.conclusion(result)), ""]
    best = conclusion.table(result)
    if best[1:]:
        lines += [f"best validation loss, nats/token ± standard error ({conclusion.BEST} lowest)", *table(best, "  "), ""]
    lines += [*DETAILS, ""]
    lines += [line for found in result.objectives for line in [*_objective(found), ""]]
    lines += _ratios(result)
    lines += [line for found in result.crossings for line in crossed(found)]
    return "\n".join(lines).strip("\n")


def crossed(found: Crossings) -> Iterator[str]:
    """Two objectives on the same corpora: the crossing and the lowest loss of each."""
    yield f"repeated data, {found.other} against {found.base}, each at its best up to a compute:"
    for crossing in found.corpora:
        spread = f" [{short(crossing.interval.low_95)}, {short(crossing.interval.high_95)}]" if crossing.interval else ""
        yield f"  {crossing.unique:,.0f} unique tokens: {crossing.said}{spread}"
        best = (
            f"{each.objective} {each.loss:.3f} after {each.epochs:.3g} epochs{', the most tried' if each.last else ''}"
            for each in crossing.lowest
        )
        yield f"    lowest: {'; '.join(best)}"
    if found.law is not None:
        exponent = between(found.exponent, found.law.exponent)
        yield f"  C_crit = {found.law.coefficient:.3g} U^p, p = {exponent} (published for masked against AR: 2.174, 2507.15857)"


def predicted(prediction: Prediction) -> str:
    """The table of a prediction, with what its numbers rest on."""
    rows = [("approach", "N*", "D*, tokens", "loss", "batch, tokens", "lr", "steps")]
    for method, numbers in prediction.numbers.items():
        cells = [short(numbers[key]) if key in numbers else "-" for key in ("size", "tokens", "loss", "batch", "lr", "steps")]
        rows.append((marked(method, prediction.doubts.get(method)), *cells))
        for blocks in next(iter(prediction.intervals[method].values()), {}):
            ends = [prediction.intervals[method].get(key, {}).get(blocks) for key in ("size", "tokens", "loss", "batch", "lr", "steps")]
            rows.append((f"  95 %, {blocks}", *(_ends(each) for each in ends)))
    lines = [f"{prediction.objective} at {prediction.flops:.4g} FLOPs, N = {prediction.definition}", *table(rows, "  ")]
    lines.append(f"  batch and lr: {prediction.source_of_batch}")
    lines += [f"  {line}" for line in doubted(prediction.doubts)]
    lines += [f"  {caution}" for caution in prediction.cautions]
    if prediction.beyond > 1 and "envelope" in prediction.numbers:
        lines.append("  beyond the runs, the envelope's loss is too low: it is a power law without a floor")
    if prediction.beyond > FAR:
        lines.append(
            f"  this is {prediction.beyond:.1e} times the largest run: the intervals include the scatter of runs, not a bend of laws"
        )
    return "\n".join(lines)


def _ends(found: dict | None) -> str:
    if found is None or found["95"][0] is None:
        return "-"
    low, high = found["95"]
    return f"{short(low)} .. {short(high)}"


def short(value: float) -> str:
    """Four digits, powers of ten where the number is long; a dash for none."""
    if not np.isfinite(value):
        return "-" if np.isnan(value) else "inf"
    if value == 0:
        return "0"
    return f"{value:.4g}" if 1e-3 <= abs(value) < 1e4 else f"{value:.3e}"


def between(found: Interval | None, estimate: float) -> str:
    """A number with its 95 % interval."""
    if found is None or np.isnan(found.low_95):
        return short(estimate)
    return f"{short(estimate)} [{short(found.low_95)}, {short(found.high_95)}]"


def _objective(found: ObjectiveFit) -> Iterator[str]:
    left = "; left out: " + ", ".join(f"{count} {reason}" for reason, count in found.left_out.items()) if found.left_out else ""
    yield f"{found.objective}: {len(found.points) if found.points else 0} runs{left}"
    if found.points is not None:
        yield from (f"  {note}" for note in found.points.notes)
    if found.refused:
        yield f"  no law: {found.refused}"
    for definition, analysis in found.analyses.items():
        yield from _analysis(definition, analysis)
    for special in found.special.values():
        yield from _special(special)
    if found.tuning is not None:
        yield from _tuning(found.tuning)
    for domain, special in found.mixing.items():
        yield from _special(special, f"mixing, {domain}")


def _analysis(definition: str, analysis: Analysis) -> Iterator[str]:
    flops = 10 * float(analysis.points.flops_R.max())
    compute = analysis.compute
    model = f"C = {compute.k:.4g} N^{compute.rho:.4g} D" + (f" (within {compute.worst:.1%})" if compute.worst else "")
    yield f"  N = {definition} ({COUNTED[definition]}), {model}, {len(analysis.points)} runs"
    rows = [("approach", "N* ~ C^", "D* ~ C^", f"N* at {flops:.2g}", "D*", "loss")]
    for method, law in analysis.laws.items():
        drawn = analysis.resampled.get("runs", {}).get(method)
        numbers = [*law.exponents().values(), *law.at(flops).values()]
        samples = [*drawn.exponents().values(), *drawn.at(flops).values()] if drawn else [None] * 5
        cells = [between(interval(n, s) if s is not None else None, float(n)) for n, s in zip(numbers, samples, strict=True)]
        rows.append((marked(method, analysis.doubts.get(method)), *cells))
    yield from table(rows, "    ")
    yield from (f"    {method}: {reason}" for method, reason in analysis.refused.items())
    yield from (f"    {line}" for line in doubted(analysis.doubts))
    for minimum in analysis.isoflop.minima:
        if minimum.rejected:
            yield f"    budget {minimum.flops:.3g} rejected, {minimum.rejected}"
    fit = analysis.parametric
    if fit is not None:
        values = ", ".join(f"{name} = {short(value)}" for name, value in fit.values.items())
        yield f"    parametric: {values}; {fit.agree:.0%} of the best starts agree"
    for method, row in analysis.held_out.items():
        parts = [f"N* x{row['size_ratio']:.3f}"] if "size_ratio" in row else []
        parts += [f"best loss {row['loss_error']:+.2%}"] if "loss_error" in row else []
        parts += [f"loss of its runs off by {row['mean_abs_error']:.2%}"] if "mean_abs_error" in row else []
        if parts:
            yield f"    the largest budget as predicted from the others, {method}: {'; '.join(parts)}"


def doubted(doubts: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Why laws are not trusted, a line each."""
    return (f"{method}, {reason}; the law is not trusted" for method, reasons in doubts.items() for reason in reasons)


def _special(special: Special, name: str = "") -> Iterator[str]:
    name = name or special.form.name
    if special.fit is None:
        return  # fit.json has the reason; most sweeps have no such runs
    values = ", ".join(f"{key} = {short(value)}" for key, value in special.fit.values.items())
    yield f"  {name}: {special.form.equation}"
    yield f"    {values}"
    yield from (f"    boundary: {reason}" for reason in special.fit.boundaries)
    drawn = special.resampled.get("runs")
    for key in ("log_R_D", "log_R_N"):
        at_bound = any(reason.startswith(f"{key} ") for reason in special.fit.boundaries)
        if drawn is not None and key in special.form.names and not at_bound:
            index = special.form.names.index(key)
            value = float(np.exp(special.fit.theta_P[index]))
            yield f"    {key.removeprefix('log_')}* = {between(interval(value, np.exp(drawn[:, index])), value)}"
    if special.form.name == "overfitting" and not special.fit.boundaries:  # at a bound they depend on the bound
        yield from _best_epochs(special)


def _best_epochs(special: Special) -> Iterator[str]:
    drawn = special.resampled.get("runs")
    found = best_epochs(special.fit.values)
    samples = best_epochs(special.form.values(drawn)) if drawn is not None else {}
    by_name = {name: between(interval(value, samples[name]) if samples else None, value) for name, value in found.items()}
    size = f" N^-q, q = {by_name['epochs_size_exponent']}" if "epochs_size_exponent" in found else ""
    yield f"    best epochs = {short(found['epochs_scale'])} U^p{size}, p = {by_name['epochs_unique_exponent']}"


def _tuning(tuning: Tuning) -> Iterator[str]:
    for name, law, error, of in (
        ("batch (tokens)", tuning.batch, tuning.batch_stderr, "training tokens"),
        ("learning rate", tuning.lr, tuning.lr_stderr, "batch"),
    ):
        counted = sum(not row["rejected"] for row in tuning.minima if row["of"] == ("lr" if name == "learning rate" else "batch"))
        if law is None:
            yield f"  {name}: no law, {counted} minima count and at least 2 are needed"
        else:
            spread = f" +- {error:.3f}" if np.isfinite(error) else ""
            yield f"  {name}* = {short(law.coefficient)} ({of})^{law.exponent:.3f}{spread}, {counted} minima"


def _ratios(result: Result) -> Iterator[str]:
    pairs = dict.fromkeys((ratio.base, ratio.other) for ratio in result.ratios)
    for base, other in pairs:
        yield f"compute at equal loss, {other} : {base} (FLOPs of {other}, over those of {base}, for the same loss)"
        rows = [(f"{base} FLOPs", "loss", *RATIOS, f"best runs, {base}", other, "")]
        found: dict[float, dict[str, Ratio]] = {}
        for ratio in result.ratios:
            if (ratio.base, ratio.other) == (base, other):
                found.setdefault(ratio.flops, {})[ratio.method] = ratio
        rows += [_ratio_row(flops, by_method) for flops, by_method in found.items()]
        yield from table(rows, "  ")
        reasons = dict.fromkeys(reason for by_method in found.values() for ratio in by_method.values() for reason in ratio.doubts)
        yield from (f"  {MARK} {reason}; its ratios are not trusted" for reason in reasons)


def _ratio_row(flops: float, by_method: Mapping[str, Ratio]) -> tuple[str, ...]:
    first = next(iter(by_method.values()))
    ratios = [by_method.get(method) for method in RATIOS]
    cells = [ratio_cell(ratio) if ratio else "" for ratio in ratios]
    losses = ["-" if np.isnan(loss) else f"{loss:.4f}" for loss in (first.base_loss, first.other_loss)]
    return f"{flops:.3g}", f"{first.loss:.4f}", *cells, *losses, "" if first.within else "extrapolated"


def ratio_cell(ratio: Ratio) -> str:
    """A ratio with its interval, marked where it is not to be trusted."""
    return marked(between(ratio.intervals.get("runs"), ratio.ratio), ratio.doubts)


def marked(text: str, doubts: Sequence[str] | None) -> str:
    """With the mark of what is not to be trusted."""
    return f"{text} {MARK}" if doubts else text


def table(rows: list[tuple[str, ...]], indent: str = "") -> Iterator[str]:
    """Columns as wide as their longest entry."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    for row in rows:
        yield (indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()
