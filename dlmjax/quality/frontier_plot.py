"""Picture of a frontier: nats of held-out text and generative perplexity against network calls and time, perplexity against entropy."""

import io
from collections.abc import Sequence
from typing import Any

from dlmjax.quality.frontier import Frontier, at_entropy

SYMBOLS = "osD^vP*Xph<>"
_CALLS = ("calls", "network calls per text")
_CALLS_HELD_OUT = ("calls_held_out", "network calls per held-out text")
_TIME = ("seconds_per_token", "ms per token")


def draw(found: Frontier, title: str) -> bytes:
    """The picture as a PNG; a row of panels for nats where there are any, one for perplexity where there is a scorer, else entropy.

    Where settings were sampled at several temperatures, nats are those at temperature 1, and perplexity against calls and time is that at
    the entropy of held-out text (`frontier.at_entropy`).
    """
    from matplotlib.figure import Figure

    rows = _of("perplexity", found.rows)
    kinds = [_nats] * bool(_of("nats_per_token", found.rows)) + [_perplexity] * bool(rows) or [_entropy]
    keys = list(dict.fromkeys(_key(row) for row in found.rows))
    figure = Figure(figsize=(15.5, 3.7 * len(kinds)), layout="constrained")
    for axes_3, panels in zip(figure.subplots(len(kinds), 3, squeeze=False), kinds, strict=True):
        panels(axes_3, found, keys)
    handles = {label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=7)
    figure.suptitle(title, fontsize=9)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    return content.getvalue()


def _of(name: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row.get(name) is not None]


def _key(row: dict[str, Any], without: tuple[str, ...] = ("steps=", "temperature=")) -> str:
    """The setting without its steps and temperature: rows of one key have one colour."""
    return "; ".join(part for part in row["label"].split("; ") if not part.startswith(without))


def _at_one(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["temperature"] == 1] or list(rows)


def _nats(axes_3, found: Frontier, keys: list[str]) -> None:
    rows, held_out = _at_one(_of("nats_per_token", found.rows)), "nats/token of held-out text"
    _against(axes_3[0], rows, keys, _CALLS_HELD_OUT, "nats_per_token", held_out)
    _against(axes_3[1], rows, keys, _TIME, "nats_per_token", held_out)
    _against(axes_3[2], rows, keys, _CALLS_HELD_OUT, "price", "price of parallel steps, nats/token")
    axes_3[2].axhline(0, color="0.6", linewidth=0.8)


def _perplexity(axes_3, found: Frontier, keys: list[str]) -> None:
    rows, held_out = _of("perplexity", found.rows), found.held_out or {}
    equal = list(at_entropy(rows, held_out["entropy"])) if held_out.get("entropy") else []
    head = "perplexity at the entropy of held-out text" if equal else "generative perplexity"
    for axes, x in ((axes_3[0], _CALLS), (axes_3[1], _TIME)):
        _against(axes, equal or _at_one(rows), keys, x, "perplexity", head)
    # With several temperatures a line joins those of one number of steps.
    _against(axes_3[2], rows, keys, ("entropy", "unigram entropy, nats/token"), "perplexity", "generative perplexity", ("temperature=",))
    for axes in axes_3:
        axes.set_yscale("log")
        _plain_ticks(axes.yaxis)
        if held_out.get("perplexity"):
            axes.axhline(held_out["perplexity"], color="0.4", linestyle="--", label="held-out text")
    if held_out.get("entropy"):
        axes_3[2].axvline(held_out["entropy"], color="0.4", linestyle="--")


def _entropy(axes_3, found: Frontier, keys: list[str]) -> None:
    for axes, x in zip(axes_3, (_CALLS, _TIME, ("reads_per_token", "positions read per token")), strict=True):
        _against(axes, _of(x[0], found.rows), keys, x, "entropy", "unigram entropy, nats/token")


def _against(
    axes,
    rows: Sequence[dict[str, Any]],
    keys: list[str],
    x: tuple[str, str],
    y: str,
    y_label: str,
    joined: tuple[str, ...] = ("steps=", "temperature="),
) -> None:
    """Points with error bars; a line joins rows whose labels differ in `joined` alone."""
    factor = 1000 if x is _TIME else 1
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(_key(row, joined), []).append(row)
    for group in groups.values():
        group = sorted(group, key=lambda row: row[x[0]])
        number = keys.index(_key(group[0]))
        style = {"marker": SYMBOLS[number % len(SYMBOLS)], "color": f"C{number % 10}", "linestyle": "-" if len(group) > 1 else "none"}
        errors = [row.get(f"stderr_{y}") or 0.0 for row in group]
        points = [row[x[0]] * factor for row in group], [row[y] for row in group]
        axes.errorbar(*points, yerr=errors, capsize=2, markersize=5, label=keys[number], **style)
    if x[0] != "entropy":
        axes.set_xscale("log")
        _plain_ticks(axes.xaxis)
    axes.set_xlabel(x[1])
    axes.set_ylabel(y_label)


def _plain_ticks(axis) -> None:
    """1, 2, 5, 10, ... without powers of ten, which overlap on a short axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
