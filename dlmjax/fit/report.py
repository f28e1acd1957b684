"""A fit as pictures and as one HTML page that needs no other file."""

import base64
import html
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from dlmjax.files import write_atomically
from dlmjax.fit import conclusion, plots
from dlmjax.fit.bootstrap import interval
from dlmjax.fit.results import COMPARED, PAGE, PICTURES, REPEATED, ObjectiveFit, Result, file_names
from dlmjax.fit.text import MARK, between, crossed, doubted, marked, ratio_cell, short, summary

_STYLE = """body{font:14px/1.45 system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:.6rem 0 1.2rem}td,th{border-bottom:1px solid #ddd;padding:.2rem .8rem .2rem 0;text-align:left}
img{max-width:100%}div.wide{overflow-x:auto}pre{background:#f6f6f6;padding:.8rem;overflow-x:auto;font-size:12px}h2{margin-top:2.2rem}"""


def write(result: Result, directory: pathlib.Path) -> list[str]:
    """Writes the PNGs and `report.html`; returns their names, none where matplotlib is not installed."""
    if not plots.available():
        return []
    pictures = plots.draw(result)
    for name, content in pictures.items():
        write_atomically(directory / name, content)
    write_atomically(directory / PAGE, page(result, pictures).encode())
    return [*pictures, PAGE]


def page(result: Result, pictures: dict[str, bytes]) -> str:
    """The page, pictures inside it."""
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width'>",
        "<title>Scaling laws</title>",
        f"<style>{_STYLE}</style></head><body>",
    ]
    names = file_names(found.objective for found in result.objectives)
    first = [name for name in (COMPARED, *(f"isoflop_{name}.png" for name in names.values())) if name in pictures]
    parts += ["<h1>Scaling laws</h1>", *_conclusion(result), *(_picture(name, pictures) for name in first)]
    parts.append(f"<p>From {_text(', '.join(result.sources))}. {_text(_how(result))}</p>")
    if result.ratios:
        parts += ["<h2>Objectives compared</h2>", *_ratios(result)]
    if REPEATED in pictures:
        parts += ["<h2>Repeated tokens</h2>", _picture(REPEATED, pictures)]
        parts += [f"<pre>{_text(chr(10).join(crossed(found)))}</pre>" for found in result.crossings]
    for found in result.objectives:
        parts += _objective(found, names[found.objective], {name: each for name, each in pictures.items() if name not in first})
    parts += ["<h2>As printed</h2>", f"<pre>{_text(summary(result))}</pre>", "</body></html>"]
    return "\n".join(parts) + "\n"


def _conclusion(result: Result) -> Iterator[str]:
    """The sentences, and the table of the best runs."""
    yield from (f"<p>{_text(line)}</p>" for line in conclusion.conclusion(result))
    rows = conclusion.table(result)
    if rows[1:]:
        yield f"<h2>Best validation loss, nats/token ± standard error ({conclusion.BEST} lowest)</h2>"
        yield _table(rows)


def _how(result: Result) -> str:
    if not result.resamples:
        return "Without error bars (--resamples 0)."
    return (
        f"Intervals: 95 % percentiles of {result.resamples} resamples, seed {result.seed}; runs drawn within their budget, or "
        "budgets drawn and runs within them. Losses are nats per token on the validation set; a training loss is never fitted."
    )


def _objective(found: ObjectiveFit, name: str, pictures: dict[str, bytes]) -> Iterator[str]:
    yield f"<h2>{_text(found.objective)}</h2>"
    left = ", ".join(f"{count} {reason}" for reason, count in found.left_out.items())
    validation = f" Measured on {found.points.validation}." if found.points and found.points.validation else ""
    yield f"<p>{len(found.points) if found.points else 0} runs.{_text(validation)}{' Left out: ' + _text(left) + '.' if left else ''}</p>"
    if found.refused:
        yield f"<p>{_text(found.refused)}</p>"
    for definition, analysis in found.analyses.items():
        yield f"<h3>N = {_text(definition)}</h3>"
        rows: list[Sequence[Any]] = [("approach", "blocks", "exponent of N*", "exponent of D*")]
        for method, law in analysis.laws.items():
            for blocks, laws in (analysis.resampled or {"": {}}).items():
                numbers = law.exponents()
                drawn = laws[method].exponents() if method in laws else {}
                cells = [between(interval(v, drawn[k]) if drawn else None, float(v)) for k, v in numbers.items()]
                rows.append((marked(method, analysis.doubts.get(method)), blocks, *cells))
        yield _table(rows)
        yield from (f"<p>{_text(line)}.</p>" for line in doubted(analysis.doubts))
        rows = [("budget, FLOPs", "runs", "N*", "D*", "loss", "")]
        for minimum in analysis.isoflop.minima:
            numbers = (minimum.size, minimum.tokens, minimum.loss)
            rows.append((short(minimum.flops), minimum.runs, *map(short, numbers), minimum.rejected or "counts"))
        yield _table(rows) if len(rows) > 1 else ""
        if analysis.parametric is not None:
            fit = analysis.parametric
            values = ", ".join(f"{name} = {short(value)}" for name, value in fit.values.items())
            yield f"<p>Parametric: {_text(values)}. Objective {fit.objective:.6g}; {fit.agree:.0%} of the best starts agree.</p>"
    for kind in PICTURES:
        if f"{kind}_{name}.png" in pictures:
            yield _picture(f"{kind}_{name}.png", pictures)
    for special in [*found.special.values(), *found.mixing.values()]:
        if special.fit is not None:
            values = ", ".join(f"{key} = {short(value)}" for key, value in special.fit.values.items())
            values += "".join(f". Boundary: {reason}; the law is not trusted" for reason in special.fit.boundaries)
            yield f"<p>{_text(special.form.name)}: {_text(special.form.equation)} ({_text(special.form.source)}). {_text(values)}.</p>"


def _ratios(result: Result) -> Iterator[str]:
    if result.ratios:
        rows: list[Sequence[Any]] = [
            ("objective", "over", "approach", "FLOPs", "loss", "compute ratio", "best runs, of it", "and over", "")
        ]
        for ratio in result.ratios:
            said = "" if ratio.within else "extrapolated"
            losses = (short(ratio.other_loss), short(ratio.base_loss))
            rows.append((ratio.other, ratio.base, ratio.method, short(ratio.flops), short(ratio.loss), ratio_cell(ratio), *losses, said))
        yield _table(rows)
        for reason in dict.fromkeys(reason for ratio in result.ratios for reason in ratio.doubts):
            yield f"<p>{MARK} {_text(reason)}; its ratios are not trusted.</p>"


def _table(rows: Sequence[Sequence[Any]]) -> str:
    head, *body = rows
    lines = ["<div class='wide'><table><tr>" + "".join(f"<th>{_text(cell)}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in body]
    return "\n".join(lines) + "</table></div>"


def _picture(name: str, pictures: dict[str, bytes]) -> str:
    return f"<p><img alt='{_text(name)}' src='data:image/png;base64,{base64.b64encode(pictures[name]).decode()}'></p>"


def _text(value: Any) -> str:
    return html.escape(str(value))
