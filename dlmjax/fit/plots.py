"""Pictures of a fit, as PNGs. matplotlib is imported only here, inside functions."""

import importlib.util
import io
import itertools
import textwrap
import warnings

import numpy as np

from dlmjax.fit.analysis import Analysis
from dlmjax.fit.compare import METHODS
from dlmjax.fit.conclusion import drawn_ratios
from dlmjax.fit.fitness import AGAIN
from dlmjax.fit.points import Points
from dlmjax.fit.results import COMPARED, REPEATED, Result, file_names

LONGEST_LABEL = 30  # letters: as many as fit along an axis
MOST_LABELS = 8  # of a logarithmic axis
_NAMES = {"size": "N*, parameters", "tokens": "D*, tokens"}


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(result: Result) -> dict[str, bytes]:
    """All pictures by file name. Those of one objective use total parameters."""
    pictures = {}
    analyses = {found.objective: found.analyses["total"] for found in result.objectives if "total" in found.analyses}
    names = file_names(found.objective for found in result.objectives)
    for objective, analysis in analyses.items():
        name = names[objective]
        if any(minimum.runs > 1 for minimum in analysis.isoflop.minima):
            pictures[f"isoflop_{name}.png"] = isoflop(analysis)
        pictures[f"envelope_{name}.png"] = envelope(analysis)
        pictures[f"best_{name}.png"] = best(analysis)
        if analysis.parametric is not None:
            pictures[f"residuals_{name}.png"] = residuals(analysis)
    if len(analyses) > 1:
        pictures[COMPARED] = objectives(analyses, result)
    again = [found.points for found in result.objectives if found.points is not None and (found.points.epochs_R > AGAIN).any()]
    if again:
        pictures[REPEATED] = repeated(again)
    return pictures


def isoflop(analysis: Analysis) -> bytes:
    """Loss against size for each budget with its parabola; a star where the minimum counts."""
    figure, (axes,) = _figure(1, f"{called(analysis.points.objective)}: isoFLOP curves")
    size_R, loss_R = analysis.points.sizes[analysis.definition], analysis.points.loss_R
    for g, minimum in enumerate(analysis.isoflop.minima):
        colour = f"C{g % 10}"
        in_R = analysis.group_R == g
        axes.scatter(size_R[in_R], loss_R[in_R], s=14, color=colour, label=f"{minimum.flops:.2g} FLOPs")
        if np.isfinite(minimum.size):
            x = np.geomspace(size_R[in_R].min(), size_R[in_R].max(), 60)
            style = "--" if minimum.rejected else "-"
            axes.plot(x, minimum.loss + minimum.curvature * np.log(x / minimum.size) ** 2, style, color=colour, linewidth=1)
        if not minimum.rejected:
            axes.plot(minimum.size, minimum.loss, "*", markersize=12, color=colour, markeredgecolor="black")
    axes.set(xscale="log", xlabel=f"N ({analysis.definition})", ylabel="validation loss, nats/token")
    axes.legend(fontsize=7, loc="best")
    return _png(figure)


def envelope(analysis: Analysis) -> bytes:
    """Loss against FLOPs, the best runs marked, and the best loss by the laws."""
    figure, (axes,) = _figure(1, f"{called(analysis.points.objective)}: envelope")
    points = analysis.points
    axes.scatter(points.flops_R, points.loss_R, s=10, color="0.6", label="runs")
    on_R = analysis.on_envelope_R
    axes.plot(points.flops_R[on_R], points.loss_R[on_R], "o", color="C3", markersize=5, label="best at their compute")
    _bands(axes, analysis, "loss")
    axes.set(xscale="log", yscale="log", xlabel="FLOPs", ylabel="validation loss, nats/token")
    axes.legend(fontsize=7, loc="best")
    return _png(figure)


def best(analysis: Analysis) -> bytes:
    """N*(C) and D*(C) of each approach with 95 % bands, a decade beyond the runs; minima of the parabolas as stars."""
    figure, panels = _figure(2, f"{called(analysis.points.objective)}: best size and tokens, 95 % bands (block bootstrap over runs)")
    for axes, name in zip(panels, ("size", "tokens"), strict=True):
        _bands(axes, analysis, name)
        accepted = analysis.isoflop.accepted
        axes.plot(
            [m.flops for m in accepted], [getattr(m, name) for m in accepted], "*", color="C1", markeredgecolor="black", markersize=10
        )
        axes.set(xscale="log", yscale="log", xlabel="FLOPs", ylabel=_NAMES[name])
        axes.legend(fontsize=7, loc="best")
    return _png(figure)


def residuals(analysis: Analysis) -> bytes:
    """Loss of the runs against the parametric law, by FLOPs and by size, in per cent, with the runs' own standard errors."""
    figure, panels = _figure(2, f"{called(analysis.points.objective)}: residuals of the parametric law")
    points = analysis.points
    residual_R = 100 * np.expm1(analysis.parametric.residuals_R)
    error_R = 100 * np.nan_to_num(points.stderr_R) / points.loss_R
    for axes, x_R, name in zip(panels, (points.flops_R, points.sizes[analysis.definition]), ("FLOPs", "N"), strict=True):
        axes.axhline(0.0, color="0.5", linewidth=1)
        axes.errorbar(x_R, residual_R, yerr=error_R, fmt="o", markersize=4, capsize=2)
        axes.set(xscale="log", xlabel=name, ylabel="loss above the law, %")
    return _png(figure)


def objectives(analyses: dict[str, Analysis], result: Result) -> bytes:
    """Best loss against FLOPs of all objectives, and compute over that of the base at equal loss, where there are runs of that loss."""
    ratios = drawn_ratios(result)
    figure, (left, *panels) = _figure(2 if ratios else 1, "objectives compared")
    for index, (objective, analysis) in enumerate(analyses.items()):
        on_R = analysis.on_envelope_R
        left.plot(analysis.points.flops_R[on_R], analysis.points.loss_R[on_R], "o", color=f"C{index}", label=called(objective))
        if (method := compared_by(analysis)) is not None:
            _band(left, analysis, method, "loss", f"C{index}", f"{called(objective)}, {method} law")
    left.set(xscale="log", yscale="log", xlabel="FLOPs", ylabel="validation loss, nats/token")
    left.legend(fontsize=7, loc="best")
    for right in panels:
        for (other, method), rows in ratios.items():
            found = [ratio.intervals.get("runs") for ratio in rows]
            bars = [[row.ratio - (i.low_95 if i else row.ratio) for row, i in zip(rows, found, strict=True)]]
            bars += [[(i.high_95 if i else row.ratio) - row.ratio for row, i in zip(rows, found, strict=True)]]
            bars = np.where(np.isfinite(bars), np.maximum(bars, 0.0), 0.0)
            flops, height = [r.flops for r in rows], [r.ratio for r in rows]
            right.errorbar(flops, height, yerr=bars, marker="o", capsize=3, label=f"{called(other)}, {method}")
        right.axhline(1.0, color="0.5", linewidth=1)
        base = called(result.ratios[0].base)
        right.set(xscale="log", yscale="log", xlabel=f"FLOPs of {base}", ylabel=f"compute at equal loss over that of\n{base}")
        right.yaxis.label.set_fontsize(8)
        right.legend(fontsize=7, loc="best")
    return _png(figure)


def compared_by(analysis: Analysis) -> str | None:
    """The method whose law is drawn through an objective where objectives are compared: the first with ratios that is to be trusted."""
    return next((method for method in analysis.trusted if method in METHODS), None)


def repeated(objectives: list[Points]) -> bytes:
    """Loss against epochs, a line for each corpus and size: a colour for each corpus, a line style for each objective."""
    figure, (axes,) = _figure(1, "repeated tokens")
    corpora = sorted({unique for points in objectives for unique in points.unique_R if np.isfinite(unique)})
    for points, style in zip(objectives, itertools.cycle(("o-", "s--", "^:", "D-.")), strict=False):
        size_R = points.sizes["total"]
        for unique, size in sorted(set(zip(points.unique_R, size_R, strict=True))):
            in_R = np.flatnonzero((points.unique_R == unique) & (size_R == size))
            if not np.isfinite(unique) or not len(in_R):
                continue
            in_R = in_R[np.argsort(points.epochs_R[in_R])]
            sizes = f", N = {size:.3g}" if len(np.unique(size_R)) > 1 else ""
            label = f"{called(points.objective)}, {unique:,.0f} unique{sizes}"
            bars = 1.96 * np.nan_to_num(points.stderr_R[in_R])
            colour = f"C{corpora.index(unique) % 10}"
            axes.errorbar(
                points.epochs_R[in_R],
                points.loss_R[in_R],
                yerr=bars,
                fmt=style,
                color=colour,
                markersize=4,
                linewidth=1,
                capsize=2,
                label=label,
            )
    axes.set(xscale="log", yscale="log", xlabel="epochs", ylabel="validation loss, nats/token")
    axes.legend(fontsize=6, loc="best")
    return _png(figure)


def _bands(axes, analysis: Analysis, name: str) -> None:
    for index, method in enumerate(analysis.laws):
        _band(axes, analysis, method, name, f"C{index}", f"{method}, not trusted" if method in analysis.doubts else method)


def _band(axes, analysis: Analysis, method: str, name: str, colour: str, label: str | None) -> None:
    flops_K = np.geomspace(analysis.points.flops_R.min() / 1.5, analysis.points.flops_R.max() * 10, 40)
    law, drawn = analysis.laws[method], analysis.resampled.get("runs", {}).get(method)
    doubted = method in analysis.doubts
    style = ":" if doubted else "-"
    axes.plot(flops_K, [law.at(flops)[name] for flops in flops_K], style, color=colour, linewidth=1.2, label=label)
    if drawn is not None and not doubted:
        low_K, high_K = np.nanpercentile([drawn.at(flops)[name] for flops in flops_K], [2.5, 97.5], axis=1)
        axes.fill_between(flops_K, low_K, high_K, color=colour, alpha=0.2, linewidth=0)


def called(objective: str) -> str:
    """The name of an objective as text of a picture: matplotlib reads mathematics between two $, and omits a leading _ from legends."""
    short = objective if len(objective) <= LONGEST_LABEL else f"{objective[: LONGEST_LABEL - 3]}..."
    return (" " if short.startswith("_") else "") + short.replace("$", r"\$")


def _figure(panels: int, title: str):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * panels, 3.8), layout="constrained")
    figure.suptitle("\n".join(textwrap.wrap(title, 50 * panels)), fontsize=9)
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def _png(figure) -> bytes:
    """The figure as a file; logarithmic axes are labelled at 1, 2 and 5 of each power, short ranges as plain numbers.

    It is as high as its longest legend requires, which otherwise leaves no space for the axes.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    entries = max((len(axes.get_legend().get_texts()) for axes in figure.axes if axes.get_legend()), default=0)
    figure.set_figheight(max(figure.get_figheight(), 1.5 + 0.14 * entries))
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_scale() == "log":
                low, high = axis.get_view_interval()
                axis.set_major_locator(LogLocator(subs=_labelled(low, high)))
                axis.set_minor_formatter(NullFormatter())
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # a letter of a name that the font lacks is drawn as a box
        figure.savefig(content, format="png", dpi=110)
    return content.getvalue()


def _labelled(low: float, high: float) -> np.ndarray:
    """Multiples of each power of ten that a logarithmic axis is labelled at: the closest ones that have space between its ends."""
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    for step in (1, 2, 5, 10):
        subs = np.arange(10, 100, step) / 10
        ticks_T = np.outer(decades, subs).ravel()
        if ((ticks_T >= low) & (ticks_T <= high)).sum() <= MOST_LABELS:
            return subs
    subs = np.array([1.0, 2.0, 5.0])
    ticks_T = np.outer(decades, subs).ravel()
    return subs if ((ticks_T >= low) & (ticks_T <= high)).sum() <= MOST_LABELS else np.array([1.0])
