"""Line charts as inline SVG: no script, no library; the browser shows the values of a point where the pointer rests on it.

Colours are CSS variables of the page (`STYLE`), so that a chart is readable on light and on dark ground.
"""

import dataclasses
import html
import math
from collections.abc import Sequence

import numpy as np

MOST_POINTS = 300  # of one curve: longer ones are averaged
SAME, LEAST, MOST = 1e-9, 1e-290, 1e300  # relative distance of equal numbers; the least scale of an axis; the largest number drawn
FEW = 12  # points of a curve that are shown as dots
WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 62, 12, 12, 40  # margins for the labels of the axes
COLOURS = 5
STYLE = """
:root { --c0: #1f6fb2; --c1: #c2571a; --c2: #2a8a57; --c3: #8b4fb0; --c4: #777; --grid: #8883; }
@media (prefers-color-scheme: dark) { :root { --c0: #6db3f2; --c1: #f2a066; --c2: #74cf9f; --c3: #cf9df0; --c4: #aaa; } }
svg.chart { width: 100%; max-width: 640px; height: auto; font: 12px system-ui, sans-serif; fill: currentColor; }
svg.chart .grid { stroke: var(--grid); } svg.chart .dot { fill: transparent; } svg.chart .dot:hover { fill: currentColor; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .85rem; margin: 0 0 .3rem; }
.legend i { display: inline-block; width: 1.1rem; height: .2rem; vertical-align: middle; margin-right: .35rem; }
"""


Number = float | int
Values = Sequence[Number] | np.ndarray


@dataclasses.dataclass(frozen=True)
class Curve:
    """Points (x, y) with a name. error: standard error of each y, drawn as a bar of one."""

    name: str
    x: Values
    y: Values
    error: Values | None = None

    def finite(self) -> "Curve":
        """Without the points that have no number, and averaged over neighbours where there are more than MOST_POINTS."""
        x, y = np.asarray(self.x, np.float64), np.asarray(self.y, np.float64)
        error = None if self.error is None else np.asarray(self.error, np.float64)
        keep = (np.abs(x) <= MOST) & (np.abs(y) <= MOST)  # not NaN, not infinite
        x, y, error = x[keep], y[keep], None if error is None else np.minimum(np.nan_to_num(error[keep]), MOST)
        if len(x) > MOST_POINTS:
            groups = np.array_split(np.arange(len(x)), MOST_POINTS)
            x, y = (np.array([values[group].mean() for group in groups]) for values in (x, y))
            error = None if error is None else np.array([error[group].max() for group in groups])
        return Curve(self.name, x, y, error)


def chart(curves: Sequence[Curve], x_label: str, y_label: str) -> str:
    """A legend and an SVG of curves over one pair of axes; "" where no curve has a point."""
    curves = [curve for curve in map(Curve.finite, curves) if len(curve.x)]
    if not curves:
        return ""
    lows = [np.min(curve.y - (0 if curve.error is None else curve.error)) for curve in curves]
    highs = [np.max(curve.y + (0 if curve.error is None else curve.error)) for curve in curves]
    x_axis = _Axis(min(curve.x.min() for curve in curves), max(curve.x.max() for curve in curves), LEFT, WIDTH - RIGHT)
    y_axis = _Axis(min(lows), max(highs), HEIGHT - BOTTOM, TOP)
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(y_label)} by {html.escape(x_label)}">']
    parts += _frame(x_axis, y_axis, x_label, y_label)
    for number, curve in enumerate(curves):
        parts += _drawn(curve, f"var(--c{number % COLOURS})", x_axis, y_axis, x_label)
    names = [f'<span><i style="background:var(--c{n % COLOURS})"></i>{html.escape(curve.name)}</span>' for n, curve in enumerate(curves)]
    legend = f'<div class="legend">{"".join(names)}</div>' if len(names) > 1 else ""
    return legend + "".join(parts) + "</svg>"


class _Axis:
    """Maps numbers from `low` to `high` onto pixels from `start` to `end`; its range ends at round numbers. Numbers that differ by less
    than SAME of their size, as the averages of a constant do, are one number: ticks between them would round to it."""

    def __init__(self, low: Number, high: Number, start: Number, end: Number):
        size, apart = max(abs(low), abs(high)), high - low
        step = _round_step(max(apart if apart > SAME * size else size, LEAST) if size else 1.0)
        self._low, self._high = math.floor(low / step) * step, math.ceil(high / step) * step
        if self._low == self._high:
            self._high = self._low + step
        self._start, self._end = start, end
        self.ticks = [self._low + step * n for n in range(round((self._high - self._low) / step) + 1)]

    def __call__(self, value: Number) -> float:
        return self._start + (value - self._low) / (self._high - self._low) * (self._end - self._start)


def _round_step(span: Number) -> float:
    """1, 2 or 5 times a power of ten, about a fifth of a span."""
    power = 10.0 ** math.floor(math.log10(span / 5))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= span / 5 * 0.999)


def _frame(x_axis: _Axis, y_axis: _Axis, x_label: str, y_label: str) -> list[str]:
    parts = []
    for tick in x_axis.ticks:
        at = x_axis(tick)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{short(tick)}</text>')
    for tick in y_axis.ticks:
        at = y_axis(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{short(tick)}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{html.escape(x_label)}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">{html.escape(y_label)}</text>')
    return parts


def _drawn(curve: Curve, colour: str, x_axis: _Axis, y_axis: _Axis, x_label: str) -> list[str]:
    at = [(x_axis(x), y_axis(y)) for x, y in zip(curve.x, curve.y, strict=True)]
    parts = [f'<g color="{colour}">']
    if len(at) > 1:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        parts.append(f'<polyline points="{points}" fill="none" stroke="currentColor" stroke-width="1.6"/>')
    for n, (x, y) in enumerate(at):
        error = 0.0 if curve.error is None else float(curve.error[n])
        if error:
            ends = y_axis(curve.y[n] - error), y_axis(curve.y[n] + error)
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{ends[0]:.1f}" y2="{ends[1]:.1f}" stroke="currentColor" stroke-width="1.6"/>'
            )
        said = f"{curve.name}: {short(curve.y[n])}{f' ± {short(error)}' if error else ''} at {x_label} {short(curve.x[n])}"
        shape = 'r="3.5" fill="currentColor"' if len(at) <= FEW else 'class="dot" r="5"'
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" {shape}><title>{html.escape(said)}</title></circle>')
    return [*parts, "</g>"]


def short(value: Number) -> str:
    """A number in at most four digits."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e4:
        return f"{value:.4g}"
    if abs(value) >= 1e4 and abs(value) < 1e15:
        for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= factor:
                return f"{value / factor:.4g}{unit}"
    return f"{value:.3g}"
