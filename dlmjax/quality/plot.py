"""Plot of perplexity and entropy of generated text against network calls, with held-out text as a horizontal line."""

import importlib.util
import io

from dlmjax.quality.generated import Curve


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw(curve: Curve, title: str) -> bytes:
    """The curve as a PNG; without the perplexity where there is no scorer."""
    from matplotlib.figure import Figure

    names = [name for name in ("perplexity", "entropy") if any(name in row for row in curve.rows)]
    figure = Figure(figsize=(4.6 * len(names), 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        rows = [row for row in curve.rows if row[name] is not None]
        errors = [row[f"stderr_{name}"] or 0.0 for row in rows]
        axes.errorbar([row["calls"] for row in rows], [row[name] for row in rows], yerr=errors, marker="o", capsize=3, label="samples")
        if curve.held_out is not None and curve.held_out[name] is not None:
            axes.axhline(curve.held_out[name], color="0.4", linestyle="--", label="held-out text")
        axes.set_xscale("log", base=2)
        if name == "perplexity":
            axes.set_yscale("log")
        axes.set_xlabel("network calls per text")
        axes.set_ylabel("generative perplexity" if name == "perplexity" else "unigram entropy, nats/token")
        axes.legend(loc="best")
    figure.suptitle(title, fontsize=9)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()
