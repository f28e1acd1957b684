"""Picture of a frontier: nats of held-out text and generative perplexity against network calls and seconds, perplexity against entropy."""

import io
from collections.abc import Sequence
from typing import Any

from dlmjax.quality.frontier import Frontier, at_entropy

SYMBOLS = "osD^vP*Xph<>"


def draw(found: Frontier, title: str) -> bytes:
    """The picture as a PNG; a row of panels for nats where there are any, one for perplexity where there is a scorer.

    Where settings were sampled at several temperatures, perplexity is that at the entropy of held-out text (`frontier.at_entropy`).
    """
    from matplotlib.figure import Figure

    scored = any(row.get("perplexity") is not None for row in found.rows)
    measured = any(row.get("nats_per_token") is not None for row in found.rows)
    kinds = ["nats"] * measured + ["perplexity"] * scored or ["entropy"]
    figure = Figure(figsize=(13.5, 3.7 * len(kinds)), layout="constrained")
    for axes_3, kind in zip(figure.subplots(len(kinds), 3, squeeze=False), kinds, strict=True):
        _PANELS[kind](axes_3, found)
    figure.suptitle(title, fontsize=9)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()


def _nats(axes_3, found: Frontier) -> None:
    rows = [row for row in found.rows if row.get("nats_per_token") is not None]
    _against(axes_3[0], rows, "calls_held_out", "network calls per text (held-out)", "nats_per_token", "nats/token of held-out text")
    _against(axes_3[1], rows, "seconds_per_token", "seconds per token", "nats_per_token", "nats/token of held-out text")
    _against(axes_3[2], rows, "calls_held_out", "network calls per text (held-out)", "price", "price of parallel steps, nats/token")
    axes_3[2].axhline(0, color="0.6", linewidth=0.8)
    axes_3[2].legend(loc="upper right", fontsize=6)


def _perplexity(axes_3, found: Frontier) -> None:
    rows = [row for row in found.rows if row.get("perplexity") is not None]
    held_out = found.held_out or {}
    equal = list(at_entropy(rows, held_out["entropy"])) if held_out.get("entropy") else []
    head = "perplexity at the entropy of held-out text" if equal else "generative perplexity"
    for axes, name, label in ((axes_3[0], "calls", "network calls per text"), (axes_3[1], "seconds_per_token", "seconds per token")):
        _against(axes, equal or rows, name, label, "perplexity", head)
    _against(axes_3[2], rows, "entropy", "unigram entropy, nats/token", "perplexity", "generative perplexity", joined=True)
    axes_3[2].set_xscale("linear")
    for axes in axes_3:
        axes.set_yscale("log")
        if held_out.get("perplexity"):
            axes.axhline(held_out["perplexity"], color="0.4", linestyle="--")
    if held_out.get("entropy"):
        axes_3[2].axvline(held_out["entropy"], color="0.4", linestyle="--", label="held-out text")
    axes_3[2].legend(loc="upper left", fontsize=6)


def _entropy(axes_3, found: Frontier) -> None:
    for axes, name, label in zip(
        axes_3,
        ("calls", "seconds_per_token", "reads_per_token"),
        ("network calls per text", "seconds per token", "positions read per token"),
        strict=True,
    ):
        _against(axes, [row for row in found.rows if row.get(name) is not None], name, label, "entropy", "unigram entropy, nats/token")
    axes_3[0].legend(loc="lower right", fontsize=6)


_PANELS = {"nats": _nats, "perplexity": _perplexity, "entropy": _entropy}


def _against(axes, rows: Sequence[dict[str, Any]], x: str, x_label: str, y: str, y_label: str, joined: bool = False) -> None:
    """Points with error bars; rows of one rule have one colour, and a line where their steps or temperatures differ."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        kept = (part for part in row["label"].split("; ") if not part.startswith("temperature=" if joined else "steps="))
        groups.setdefault("; ".join(kept), []).append(row)
    for number, (label, group) in enumerate(groups.items()):
        group = sorted(group, key=lambda row: row[x])
        errors = [row.get(f"stderr_{y}") or 0.0 for row in group]
        style = {"marker": SYMBOLS[number % len(SYMBOLS)], "color": f"C{number % 10}", "linestyle": "-" if len(group) > 1 else "none"}
        axes.errorbar([row[x] for row in group], [row[y] for row in group], yerr=errors, capsize=2, markersize=4, label=label, **style)
    axes.set_xscale("log")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
