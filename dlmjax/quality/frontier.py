"""What a list of rules, stops and caches costs and gives: nats of held-out text, network calls, positions read, seconds, generated text.

    nats         of held-out text under the rule (`evaluation.forms`), parallel steps included: no samples and no scorer. Not
                 available where a text has many paths or none: drawn tokens, random order, steps in time, reused keys and values
    price        nats less those of the same score with one token a step, paired by window
    difference   nats less those of the best rule of the list with one token a step (for causal processes the chain rule), paired
    calls_held_out   network calls along the paths of the held-out texts, in blocks those of the slowest block of a window times its
                 blocks; calls: of the samples, mean over texts, until each is finished
    reads        positions that go through the layers / tokens of a text; rows, extra: see `samples.Counts`; until a text is finished
    seconds      wall time of a token of a batch, mean over batches; cpu_seconds: processor time of this process. Batches of all settings
                 take turns, so a busy minute falls on all of them
    perplexity, entropy, ...   of the samples, as in `generated`

Each number has its standard error as `stderr_NAME`: over windows, over samples, or over batches (times).

Shapes: N samples, B rows, L positions.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from dlmjax import choices
from dlmjax.errors import InputError
from dlmjax.evaluate import EvaluationSettings, TextSettings, likelihoods
from dlmjax.evaluation import LikelihoodResult
from dlmjax.evaluation.compare import paired_difference
from dlmjax.evaluation.forms import Order, parse_likelihood, rule_and_values
from dlmjax.evaluation.result import Measured
from dlmjax.quality.diversity import mean_with_error
from dlmjax.quality.generated import held_out_samples, measure
from dlmjax.quality.scorers import Sample, Scorer, make_sample
from dlmjax.run import Run
from dlmjax.sampling import SampleSettings, blank_canvas, sampler_for
from dlmjax.sampling.bounded_rules import Klass
from dlmjax.sampling.rule_names import IN_TIME
from dlmjax.sampling.rules import Planned, Rule
from dlmjax.sampling.samples import Counts
from dlmjax.sampling.stops import make_stop
from dlmjax.seeds import following

DEFAULT = ("margin", "min_gap(rule=margin(count=16), d=8)", "entropy_bound(gamma=0.1)", "threshold(value=0.9)", "factor", "spread")
WITHIN = 0.01  # nats/token that count as equal quality
_KINDS: dict[str, type] = {"steps": int, "stop": str, "cache": str, "draft": str, "method": str, "grid": str}
_KINDS |= {"temperature": float, "top_p": float}


# --- settings -----------------------------------------------------------------------------------------------------------------------


def parse_entry(text: str, base: SampleSettings, flag: str = "--frontier") -> SampleSettings:
    """The settings of an entry, "RULE; NAME=VALUE; ...": "margin; steps=16; stop=exit(bound=0.1)"; the rest as in `base`.

    flag: what the entry was given as, for messages.

    Raises InputError: no such rule or name, a value of another kind, settings that conflict.
    """
    rule, *parts = (part.strip() for part in text.split(";"))
    values: dict[str, Any] = {}
    for part in parts:
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name in values or name not in _KINDS:
            raise InputError(f"{flag} {text!r:.100}: {part!r:.60} is not NAME=VALUE, once each, of {', '.join(_KINDS)}")
        try:
            values[name] = _KINDS[name](value)
        except ValueError:
            raise InputError(f"{flag} {text!r:.100}: {name} is {value!r:.60}; give a number") from None
    return dataclasses.replace(base, rule=rule, **values)


def entries_of(run: Run, texts: Sequence[str], base: SampleSettings, steps: Sequence[int], length: int) -> list[SampleSettings]:
    """The settings of all entries: one for each number of steps where the rule has no number of its own and the entry names none.

    Rules that decide their number get as many steps as a text, or a block, has tokens. Raises InputError: as `parse_entry`; a setting that
    the process does not support.
    """
    attention = run.experiment.process.attention
    most = 1 if attention.causal else attention.block_size or length
    found: list[SampleSettings] = []
    for text in texts:
        own = parse_entry(text, dataclasses.replace(base, steps=most))
        own = dataclasses.replace(own, rule=run.rule_text(own.rule))
        free = "steps=" not in text.replace(" ", "").partition(";")[2] and needs_steps(own) and not attention.causal
        for number in sorted({min(each, most) for each in steps}) if free else [own.steps]:
            found.append(dataclasses.replace(own, steps=number))
    found = list(dict.fromkeys(found))
    for settings in found:
        sampler_for(run.experiment.process, run.experiment.for_canvases, settings)
    return found


def needs_steps(settings: SampleSettings) -> bool:
    """Whether the settings' number of steps decides how many positions a step reveals."""
    rule = settings.make_rule()
    if rule is None:
        return True
    return isinstance(rule, Planned) and (rule.count, rule.steps) == (None, None) and rule.plan != "doubling"


def likelihood_of(run: Run, settings: SampleSettings) -> tuple[str | None, str]:
    """(the likelihood of the sampler with these settings, as of `EvaluationSettings`, or None; why it has none)."""
    values = [(name, getattr(settings, name), plain) for name, plain in _without_likelihood()]
    if changed := [name for name, value, plain in values if value != plain and value is not True]:
        return None, f"settings with {', '.join(changed)} have no likelihood here"
    if run.experiment.process.attention.causal:
        return ("nelbo", "") if settings.temperature == 1 else (None, "only temperature 1 is measured")
    if settings.rule == IN_TIME:
        return None, "steps in time: a text has many paths"
    rule = settings.make_rule()
    attention = run.experiment.process.attention
    if isinstance(rule, Klass) and settings.steps < (attention.block_size or run.experiment.config.data.length):
        return None, "klass is measured with as many steps as tokens"
    name, values = rule_and_values(settings.rule)
    values |= {"steps": settings.steps} if needs_steps(settings) else {}
    values |= {} if settings.temperature == 1 else {"temperature": settings.temperature}
    values |= {} if settings.stop is None else {"stop": settings.stop}
    text = "order:" + choices.text_of(name, values)
    try:
        run.experiment.path_evaluator(text)
    except InputError as error:
        return None, str(error).partition(": ")[2].partition("; ")[0] or str(error)
    return text, ""


def _without_likelihood() -> list[tuple[str, Any]]:
    """(name, default) of the settings that change the distribution of a text and are not part of `Order`: all but these, also new ones.
    `cache=True` leaves out calls and changes no text."""
    known = ("steps", "rule", "temperature", "stop", "suppressed_ids", "end_ids", "method", "grid")
    return [(field.name, field.default) for field in dataclasses.fields(SampleSettings) if field.name not in known]


def label_of(settings: SampleSettings) -> str:
    """The entry that `parse_entry` reads as these settings, without what is at its default."""
    named = [f"steps={settings.steps}"] if needs_steps(settings) else []
    plain = SampleSettings()
    for name in ("stop", "cache", "draft", "method", "grid", "temperature", "top_p"):
        if getattr(settings, name) != getattr(plain, name):
            value = getattr(settings, name)
            named.append(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}")
    return "; ".join([settings.rule, *named])


# --- nats ----------------------------------------------------------------------------------------------------------------------------


def nats_of(run: Run, entries: Sequence[SampleSettings], text: TextSettings, settings: EvaluationSettings) -> list[dict[str, Any]]:
    """Nats, price and difference of each entry on the same windows; {"no_likelihood": why} where it has none."""
    named = [likelihood_of(run, entry) for entry in entries]
    ones = {name: _one_by_one(name) for name, _ in named if name is not None}
    order = list(dict.fromkeys([*(name for name, _ in named if name), *ones.values()]))
    found = likelihoods(run, text, settings, order)
    best = min(set(ones.values()), key=lambda name: found[name][0].nats_per_token, default=None)
    rows = []
    for name, why in named:
        if name is None:
            rows.append({"no_likelihood": why})
            continue
        result, measured = found[name]
        one = ones[name]
        row = {"likelihood": name, "nats_per_token": result.nats_per_token, "stderr_nats_per_token": result.stderr_nats_per_token}
        row |= {
            "windows": result.windows,
            "split": result.split,
            "calls_held_out": _calls(run, result, measured),
        }
        for what, other in (("price", one), ("difference", best)):
            of = paired_difference(measured, found[other][1])
            row |= {what: of.nats_per_token, f"stderr_{what}": of.stderr_nats_per_token, f"{what}_against": other}
        rows.append(row)
    if best is not None:
        calls = _calls(run, *found[best])
        rows = [row if "no_likelihood" in row else row | {"difference_calls": calls} for row in rows]
    return rows


def _calls(run: Run, result: LikelihoodResult, measured: Measured) -> float:
    """Network calls of a sampler for each text. One pass evaluates a causal process, whose sampler takes one call a token; an evaluation
    goes along all blocks of a window at once, a sampler along one after another."""
    attention = run.experiment.process.attention
    if attention.causal:
        return float(result.length)
    return float(measured.calls) * (1 if attention.block_size is None else -(-result.length // attention.block_size))


def _one_by_one(name: str) -> str:
    form = parse_likelihood(name)
    return (form.one_by_one or name) if isinstance(form, Order) else name


# --- samples -------------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Made:
    """The samples of one entry, gathered batch by batch."""

    ids: list[np.ndarray] = dataclasses.field(default_factory=list)
    counts: list[Counts] = dataclasses.field(default_factory=list)
    seconds: list[float] = dataclasses.field(default_factory=list)
    cpu_seconds: list[float] = dataclasses.field(default_factory=list)


def samples_of(
    run: Run,
    entries: Sequence[SampleSettings],
    *,
    count: int,
    length: int,
    batch: int,
    seed: int = 0,
    scorer: Scorer | None = None,
    log: Callable[[str], object] = lambda line: None,
) -> list[dict[str, Any]]:
    """Samples `count` texts of each entry, with the same seeds, and measures them; batches of the entries take turns."""
    samplers = [sampler_for(run.experiment.process, run.experiment.for_canvases, entry) for entry in entries]
    canvas, made = blank_canvas(length, min(batch, count)), [_Made() for _ in entries]
    for entry, sampler in zip(entries, samplers, strict=True):
        log(f"compiling {label_of(entry)}")
        sampler.sample(run.params, canvas, seed=seed)
    for number in range(-(-count // canvas.batch)):
        log(f"batch {number + 1}, {canvas.batch} texts of each setting")
        for sampler, one in zip(samplers, made, strict=True):
            begin, cpu = time.perf_counter(), time.process_time()
            texts = sampler.sample(run.params, canvas, seed=following(seed, number))
            one.seconds.append((time.perf_counter() - begin) / (canvas.batch * length))
            one.cpu_seconds.append((time.process_time() - cpu) / (canvas.batch * length))
            one.ids.append(texts.tokens_BL)
            one.counts.append(texts.counts)
    return [_measured(run, one, count, scorer) for one in made]


def _measured(run: Run, made: _Made, count: int, scorer: Scorer | None) -> dict[str, Any]:
    ids_NL = np.concatenate(made.ids)[:count]
    counts = Counts(*(np.concatenate(parts)[:count] for parts in zip(*made.counts, strict=True)))
    means = counts.means()
    row = {"reads_per_token": means["reads"] / ids_NL.shape[1], "rows": means["rows"], "extra": means["extra"]}
    for name, values in (
        ("calls", counts.calls_B),
        ("seconds_per_token", made.seconds),
        ("cpu_seconds_per_token", made.cpu_seconds),
    ):
        row |= {name: float(np.mean(values)), f"stderr_{name}": _finite(mean_with_error([float(v) for v in values])[1])}
    return row | _of_samples([make_sample(run.experiment.tokenizer, ids_L) for ids_L in ids_NL], scorer)


def _of_samples(samples: Sequence[Sample], scorer: Scorer | None) -> dict[str, Any]:
    """The numbers of `generated.measure`; the scorer's nats are "scorer_nats_per_token", since "nats_per_token" is the run's own."""
    found = measure(samples, scorer)[0]
    return {name.replace("nats_per_token", "scorer_nats_per_token"): value for name, value in found.items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


# --- the table -----------------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Frontier:
    """rows: one an entry, plain JSON; held_out: the numbers of as much held-out text, None without a corpus."""

    rows: tuple[dict[str, Any], ...]
    held_out: dict[str, Any] | None


def frontier(
    run: Run,
    entries: Sequence[SampleSettings],
    text: TextSettings | None,
    settings: EvaluationSettings,
    *,
    temperatures: Sequence[float] = (),
    corpus: Any = None,
    **how: Any,
) -> Frontier:
    """Measures every entry, at each of `temperatures` too.

    text: held-out text of the nats, in batches of `settings.batch` windows; None = no nats.  corpus: the same for perplexity and entropy.
    how: count, length, batch, seed, scorer, log of `samples_of`.
    Raises InputError: settings or text that the run does not support.
    """
    entries = [dataclasses.replace(entry, temperature=t) for entry in entries for t in (temperatures or [entry.temperature])]
    nats = [{"no_likelihood": "no held-out text"} for _ in entries] if text is None else nats_of(run, entries, text, settings)
    made = samples_of(run, entries, **how)
    rows = []
    for entry, first, second in zip(entries, nats, made, strict=True):
        rule = entry.make_rule()
        row = {"label": label_of(entry), "rule": entry.rule, "steps": entry.steps, "temperature": entry.temperature}
        row |= {"stop": entry.stop, "cache": entry.cache or None, "guarantee": guarantee_of(rule, entry)}
        rows.append(row | {"batch": min(how["batch"], how["count"]), "settings": entry.to_json()} | first | second)
    held_out = None if corpus is None else _of_samples(held_out_samples(corpus, how["count"], how["length"]), how.get("scorer"))
    return Frontier(tuple(rows), held_out)


def guarantee_of(rule: Rule | None, settings: SampleSettings) -> str | None:
    """What the settings state of the distribution of the text, as of `rules`; None for steps in time."""
    if rule is None:
        return None
    if isinstance(settings.cache, str):
        return "approximate"
    guarantee = rule.guarantee
    if settings.stop is not None:
        guarantee = "sharpened" if not make_stop(settings.stop).draws else {"exact": "bounded"}.get(guarantee, guarantee)
    return guarantee


def equal_quality(rows: Sequence[dict[str, Any]], within: float = WITHIN) -> dict[str, Any] | None:
    """The row with the fewest calls along held-out text of those within `within` nats/token of one token a step, and how many times fewer
    these are ("times"); None where no row has nats, or none is that good."""
    good = [row for row in rows if row.get("difference") is not None and row["difference"] <= within and row["temperature"] == 1]
    if not good:
        return None
    row = min(good, key=lambda row: row["calls_held_out"])
    return row | {"times": row["difference_calls"] / row["calls_held_out"], "within": within}


def at_entropy(rows: Sequence[dict[str, Any]], entropy: float) -> Iterator[dict[str, Any]]:
    """For each entry that was sampled at several temperatures: its numbers at that unigram entropy, by straight lines in log perplexity
    between the two nearest temperatures; entries that do not reach it are left out. The error is that of perplexity at the nearer one."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row.get("perplexity") is not None:
            groups.setdefault("; ".join(p for p in row["label"].split("; ") if not p.startswith("temperature=")), []).append(row)
    for label, group in groups.items():
        group = sorted(group, key=lambda row: row["entropy"])
        for low, high in zip(group, group[1:], strict=False):
            if low["entropy"] <= entropy <= high["entropy"] and low["entropy"] < high["entropy"]:
                share = (entropy - low["entropy"]) / (high["entropy"] - low["entropy"])
                mixed = {n: (1 - share) * low[n] + share * high[n] for n in ("calls", "seconds_per_token", "temperature")}
                logs = (1 - share) * math.log(low["perplexity"]) + share * math.log(high["perplexity"])
                near = low if share < 0.5 else high
                error = (near["stderr_perplexity"] or 0.0) / near["perplexity"] * math.exp(logs)
                yield {"label": label, "perplexity": math.exp(logs), "stderr_perplexity": error, "entropy": entropy, **mixed}
                break


_COLUMNS = (
    ("nats_per_token", "nats/token", 1, 4),
    ("price", "price", 1, 4),
    ("calls_held_out", "calls, held-out", 1, 1),
    ("calls", "calls", 1, 1),
    ("reads_per_token", "read/token", 1, 1),
    ("seconds_per_token", "ms/token", 1000, 3),
    ("entropy", "entropy", 1, 3),
    ("perplexity", "perplexity", 1, 2),
)


def table(found: Frontier) -> str:
    """The rows as a Markdown table; ± is one standard error."""
    columns = [column for column in _COLUMNS if any(row.get(column[0]) is not None for row in found.rows)]
    lines = [f"| setting | {' | '.join(head for _, head, *_ in columns)} |", "|---|" + "---:|" * len(columns)]
    baseline = [] if found.held_out is None else [{"label": "held-out text", **found.held_out}]
    for row in [*found.rows, *baseline]:
        lines.append(f"| {row['label']} | " + " | ".join(_cell(row, *column) for column in columns) + " |")
    return "\n".join(lines)


def _cell(row: dict[str, Any], name: str, _head: str, factor: int, digits: int) -> str:
    value, error = row.get(name), row.get(f"stderr_{name}")
    if value is None:
        return ""
    sign = "+" if name == "price" else ""
    return f"{value * factor:{sign}.{digits}f}" + ("" if error is None else f" ± {error * factor:.{digits}f}")
