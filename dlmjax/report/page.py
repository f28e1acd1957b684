"""The page: one HTML file, readable without a network, on a telephone and on dark ground. Whatever a file or a model wrote is escaped."""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dlmjax.report import charts
from dlmjax.report.charts import chart, short
from dlmjax.report.facts import RunFacts
from dlmjax.report.phases import HEAD, TrainedPhase

STYLE = """
:root { color-scheme: light dark; --line: #8884; --dim: #777; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; } .dim { color: var(--dim); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.2rem 2rem; }
figure { margin: 0; } figcaption { font-weight: 600; font-size: .95rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
td, th { border-bottom: 1px solid var(--line); padding: .2rem .9rem .2rem 0; text-align: left; vertical-align: top; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid var(--line); border-radius: .5rem; padding: .8rem; }
.facts { display: flex; flex-wrap: wrap; gap: .6rem 2rem; margin: .8rem 0; } .facts b { display: block; font-size: 1.25rem; }
"""
BASELINES = "baselines_bits_per_byte"  # of the report of an evaluation
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def render(
    facts: RunFacts, made: Mapping[str, Any], parameters: int | None = None, trace: str = "", phases: Sequence[TrainedPhase] = ()
) -> str:
    """The page as text.

    Args:
      made: version, commit and machine, name -> value.
      parameters: number of trained parameters.
      trace: the HTML of a denoising trace (`sampling.html.section`); "" = none.
      phases: of the training, shown where there are several.
    """
    title = f"Run {facts.name}"
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><title>{_text(title)}</title>',
        f"<style>{STYLE}{charts.STYLE}</style></head><body><h1>{_text(title)}</h1>",
        *_head(facts, parameters),
        *_held_out(facts),
        *_curves(facts),
        *_noise(facts),
        *_samples(facts, trace),
        *_phases(phases),
        *_time(facts),
        *_corpora(facts),
        *_config(facts),
        "<h2>Made with</h2>",
        _table(("", ""), made.items()),
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _head(facts: RunFacts, parameters: int | None) -> Iterable[str]:
    state = "complete" if facts.complete else "not complete"
    yield f'<p class="dim">{_text(facts.config["process.name"])}, {_text(facts.config["model.family"])}: {state}</p>'
    tokens = facts.config["data.batch"] * facts.config["data.length"]
    cells = [("steps", f"{facts.step:,} of {facts.steps:,}"), ("tokens trained on", short(facts.step * tokens))]
    if parameters:
        cells.insert(0, ("parameters", short(parameters)))
    if len(facts.held_out.y):
        cells.append(("held-out bound, nats/token", f"{facts.held_out.y[-1]:.4f} ± {facts.held_out.error[-1]:.4f}"))
    if facts.evaluations:
        report = facts.evaluations[-1][1]
        cells.append((f"bits/byte, split {report.get('split')}", _with_error(report, "bits_per_byte")))
    yield '<div class="facts">' + "".join(f"<div>{_text(name)}<b>{_text(value)}</b></div>" for name, value in cells) + "</div>"


def _held_out(facts: RunFacts) -> Iterable[str]:
    yield "<h2>Likelihood</h2>"
    if not facts.evaluations:
        yield (
            "<p>No evaluation lies in the workdir yet: <code>dlmjax evaluate --workdir RUN --json RUN/evaluation.json</code>, with the "
            "workdir for RUN, makes one for the next report.</p>"
        )
        return
    rows = []
    for name, report in facts.evaluations:
        baselines = report.get(BASELINES) if isinstance(report.get(BASELINES), dict) else {}
        beside = ", ".join(f"{key} {short(value)}" for key, value in baselines.items() if isinstance(value, int | float))
        protocol = report["protocol"]
        text = protocol.get("suite") or protocol.get("corpus")
        bounds = _with_error(report, "bits_per_byte"), _with_error(report, "perplexity")
        rows.append((name, report.get("step"), report.get("weights"), text, report.get("split"), *bounds, beside))
    head = ("file", "step", "weights", "text", "split", "bits/byte", "perplexity", "baselines, bits/byte")
    columns = len(head) if any(row[-1] for row in rows) else len(head) - 1
    yield _table(head[:columns], [row[:columns] for row in rows])
    bound = "an upper bound of" if facts.evaluations[-1][1].get("is_bound") else "not a bound of"
    yield f'<p class="dim">± one standard error. The figure is {bound} the negative log-likelihood; see docs/evaluation.md.</p>'


def _curves(facts: RunFacts) -> Iterable[str]:
    """The charts that have points."""
    training = facts.training
    losses = [training[key] for key in ("nelbo", "loss") if key in training][:1]
    drawn = [
        ("Loss, nats/token", chart([*losses, facts.held_out], "step", "nats/token")),
        ("Loss by noise time, nats/token", chart(facts.by_time, "time t (0 = clean, 1 = noise)", "nats/token")),
        *((name, chart([training[key]] if key in training else [], "step", name)) for key, name in _SINGLE),
    ]
    figures = [f"<figure><figcaption>{_text(name)}</figcaption>{svg}</figure>" for name, svg in drawn if svg]
    yield "<h2>Curves</h2>"
    yield f'<div class="charts">{"".join(figures)}</div>' if figures else "<p>The run has logged nothing yet.</p>"


_SINGLE = (
    ("learning_rate", "Learning rate"),
    ("grad_norm", "Gradient norm"),
    ("tokens_per_second_per_device", "Tokens/s/device"),
    ("mfu", "Model FLOPs utilisation"),
)


def _noise(facts: RunFacts) -> Iterable[str]:
    """The variance of the training loss by cause, and what would lower it."""
    found = facts.noise
    if not all(name in found for name in _NOISE_CAUSES):
        return
    total = sum(max(found[name], 0.0) for name in _NOISE_CAUSES)
    rows = [
        (name, f"{found[name]:.4g} ± {found.get(f'stderr_{name}', math.nan):.2g}", f"{max(found[name], 0.0) / max(total, 1e-30):.0%}")
        for name in _NOISE_CAUSES
    ]
    yield "<h2>Noise of the loss</h2>"
    yield _table(("cause", "variance of the loss of a row, nats²/token²", "share"), rows)
    yield f'<p class="dim">At step {found.get("step", 0):,.0f}; see docs/processes.md.</p>'
    if facts.advice:
        yield f"<p>{_text(facts.advice)}</p>"


_NOISE_CAUSES = ("masks", "times", "texts")


def _samples(facts: RunFacts, trace: str) -> Iterable[str]:
    if trace or facts.samples:
        yield "<h2>Samples</h2>"
    yield trace
    if facts.samples:
        step, text = facts.samples[-1]
        yield f'<p class="dim">Logged at step {step:,}:</p><pre>{_text(text)}</pre>'


def _phases(phases: Sequence[TrainedPhase]) -> Iterable[str]:
    if len(phases) > 1:
        yield "<h2>Phases</h2>"
        yield _table(HEAD, [phase.cells() for phase in phases])


def _time(facts: RunFacts) -> Iterable[str]:
    if not facts.goodput:
        return
    shares = facts.goodput
    yield "<h2>Wall time</h2>"
    seconds = [(name, f"{shares[name]:,.1f}", f"{shares[name] / max(shares['wall'], 1e-9):.1%}") for name in _CAUSES]
    yield _table(("", "seconds", "share"), [("kept steps (goodput)", f"{shares['productive']:,.1f}", f"{shares['goodput']:.1%}"), *seconds])
    starts = int(shares["starts"])
    yield f'<p class="dim">{shares["wall"]:,.1f} s in all, {starts} start{"s" if starts > 1 else ""}.</p>'


_CAUSES = ("start", "data", "checkpoint", "evaluation", "lost", "down")


def _corpora(facts: RunFacts) -> Iterable[str]:
    yield "<h2>Corpus</h2>"
    for corpus in facts.corpora:
        if "missing" in corpus:
            yield f"<p>{_text(corpus['path'])}: {_text(corpus['missing'])}</p>"
            continue
        tokenizer = corpus["tokenizer"]
        budget = f", the first {corpus['token_budget']:,} tokens" if corpus["token_budget"] else ""
        yield f"<p>{_text(corpus['path'])}{budget}; tokenizer {_text(tokenizer.get('kind'))}, {_text(tokenizer.get('vocab_size'))} ids</p>"
        rows = [(name, *(f"{counts[key]:,}" for key in ("documents", "tokens", "text_bytes"))) for name, counts in corpus["splits"].items()]
        yield _table(("split", "documents", "tokens", "bytes"), rows)


def _config(facts: RunFacts) -> Iterable[str]:
    yield "<h2>Config</h2>"
    changed, every = ([(name, _value(value)) for name, value in fields.items()] for fields in (facts.changed, facts.config))
    yield _table(("field that differs from its default", "value"), changed)
    yield f"<details><summary>all {len(every)} fields</summary>{_table(('field', 'value'), every)}</details>"


def _value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _with_error(report: Mapping[str, Any], name: str) -> str:
    """A figure of an evaluation and its standard error."""
    value, error = report.get(name), report.get(f"stderr_{name}")
    if not isinstance(value, int | float):
        return "unknown"
    return f"{value:.4f}" + (f" ± {error:.4f}" if isinstance(error, int | float) else "")


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["".join(f"<td>{_text(cell)}</td>" for cell in row) for row in rows]
    top = "<tr>" + "".join(f"<th>{_text(cell)}</th>" for cell in head) + "</tr>" if any(head) else ""
    return f'<div class="scroll"><table>{top}{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def _text(value: Any) -> str:
    return html.escape("" if value is None else str(value))
