"""Quality of generated text against the number of steps: generative perplexity, unigram entropy, diversity and MAUVE.

    perplexity   exp(nats per token) of the samples under a scorer (`scorers`); s.e. over samples (ratio estimator, delta method)
    bits_per_byte   the same nats in bits per scored UTF-8 byte; comparable between scorers with different tokenizers
    lengths      quantiles of texts up to their end of document, beside those of the held-out documents, and the share of ends and pads
    entropy      unigram entropy of a sample's tokens, nats per token, mean over samples; low perplexity with low entropy is repetition
    distinct-n, self-BLEU   of words separated by white space, see `diversity`
    mauve        of the scorer's last hidden states, against as many held-out texts (`mauve_score`)

Each row also has steps, network calls, temperature, precision, number of samples and standard errors. Held-out text of the same length,
measured in the same way, is the baseline: a perfect model would reach its numbers.

Shapes: N samples, B rows sampled together, L positions, D channels of the features.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dlmjax.data import Corpus, EvalWindows
from dlmjax.errors import InputError
from dlmjax.evaluation.document_ends import document_lengths
from dlmjax.evaluation.likelihood import ratio_with_error
from dlmjax.progress import Progress
from dlmjax.quality.diversity import distinct_n, mean_with_error, self_bleu
from dlmjax.quality.mauve_score import mauve_with_error
from dlmjax.quality.scorers import Sample, Scorer, make_sample
from dlmjax.quality.verifiers import searcher
from dlmjax.run import Run
from dlmjax.sampling import Samples, SampleSettings, blank_canvas, sampler_for
from dlmjax.sampling.lengths import length_report, text_of_lengths
from dlmjax.sampling.samples import PRECISION, Counts, unigram_entropy
from dlmjax.seeds import following

GRAMS = (1, 2, 3)


@dataclasses.dataclass(frozen=True)
class GeneratedTexts:
    """Samples of one setting. ids_NL: token ids; steps, calls (network calls per text): largest numbers of a batch; counts: mean over
    texts, see `samples.Counts`."""

    ids_NL: np.ndarray
    samples: tuple[Sample, ...]
    steps: int
    calls: int
    settings: SampleSettings
    counts: dict[str, float] = dataclasses.field(default_factory=dict)


def make_texts(
    run: Run, settings: SampleSettings, *, count: int, length: int, batch: int = 16, seed: int = 0, search: str | None = None
) -> GeneratedTexts:
    """Samples `count` texts of `length` tokens without a prompt, `batch` at a time with seeds `seed`, `seed` + 1, ... .

    search: each text is the chosen one of several, see `sampling.search`; None = no search.
    Raises InputError: settings that the process does not support.
    """
    options = {"tokenizer": run.tokenizer, "drafter": run.drafter(settings)}
    sampler = sampler_for(run.process, run.experiment.for_canvases, settings, **options)
    sample = sampler.sample if search is None else searcher(search, run, sampler).texts
    canvas, batches = blank_canvas(length, min(batch, count)), -(-count // batch)
    found: list[Samples] = []
    with Progress(batches, f"sampling, {settings.steps} steps", " batches") as bar:
        for number in range(batches):
            found.append(sample(run.params, canvas, seed=following(seed, number)))
            bar.reach(number + 1)
    ids_NL = np.concatenate([texts.tokens_BL for texts in found])[:count]
    samples = tuple(make_sample(run.experiment.tokenizer, ids_L) for ids_L in ids_NL)
    counts = Counts(*(np.concatenate(parts)[:count] for parts in zip(*(texts.counts for texts in found), strict=True)))
    most = max(m.steps for m in found), max(m.evaluations for m in found)
    return GeneratedTexts(ids_NL, samples, *most, sampler.settings, counts.means())


def held_out_samples(corpus: Corpus, count: int, length: int) -> tuple[Sample, ...]:
    """The first `count` windows of `length` tokens of a split.  Raises InputError where it has fewer than two whole windows."""
    held_out = EvalWindows(corpus, length)
    count = min(count, corpus.num_tokens // length)
    if count < 2:
        raise InputError(f"{corpus.directory} ({corpus.split}) has fewer than two windows of {length} tokens, which a comparison requires")
    return tuple(make_sample(corpus.tokenizer, ids_L) for ids_L in held_out.rows(range(count))["tokens"])


def measure(samples: Sequence[Sample], scorer: Scorer | None, features: bool = False) -> tuple[dict[str, Any], np.ndarray | None]:
    """(all numbers of a set of samples except MAUVE, the scorer's features where `features` is true)."""
    words = [sample.text.split() for sample in samples]
    entropy = mean_with_error([unigram_entropy(sample.ids_L[None], np.ones((1, len(sample.ids_L)), bool))[0] for sample in samples])
    row: dict[str, Any] = {"samples": len(samples)} | _pair("entropy", entropy)
    for n in GRAMS:
        row |= _pair(f"distinct_{n}", distinct_n(words, n))
    row |= _pair("self_bleu", self_bleu(words))
    if scorer is None:
        return row, None
    scores = scorer.score(samples, features)
    if not scores.tokens_N.sum():
        raise InputError("the samples have no text that the scorer can encode; there is nothing to score")
    nats = ratio_with_error(scores.nats_N, scores.tokens_N.astype(np.float64))
    perplexity = math.exp(nats[0]) if nats[0] < 700 else math.inf
    row |= _pair("perplexity", (perplexity, perplexity * nats[1])) | _pair("nats_per_token", nats)
    bytes_N = scores.bytes_N.astype(np.float64)
    if bytes_N.sum():
        row |= _pair("bits_per_byte", tuple(value / math.log(2) for value in ratio_with_error(scores.nats_N, bytes_N)))
    return row | {"scored_tokens": int(scores.tokens_N.sum())}, scores.features_ND


@dataclasses.dataclass(frozen=True)
class Curve:
    """What `steps_curve` found. rows: one a number of steps; held_out: the same numbers of held-out text, None without a corpus;
    texts: the texts of each row."""

    rows: tuple[dict[str, Any], ...]
    held_out: dict[str, Any] | None
    texts: tuple[GeneratedTexts, ...]


def steps_curve(
    run: Run,
    settings: SampleSettings,
    steps: Sequence[int],
    *,
    count: int,
    length: int,
    batch: int = 16,
    seed: int = 0,
    scorer: Scorer | None = None,
    corpus: Corpus | None = None,
    mauve: bool = False,
    search: str | None = None,
) -> Curve:
    """Samples `count` texts at each number of steps, with the same seeds, and measures each set.

    settings: settings of the sampler except `steps`. Autoregressive processes take one call per token and give one row.
    scorer, corpus: scorer and held-out text; without them their columns are left out.  mauve: requires scorer and corpus.
    search: as of `make_texts`.
    Raises InputError: a count or batch below 1; settings that the process does not support; too little held-out text.
    """
    if count < 1 or batch < 1:
        raise InputError(f"count is {count} and batch {batch}; both must be at least 1")
    with_mauve = mauve and scorer is not None and corpus is not None
    held_out = reference_ND = data_D = None
    if corpus is not None:
        held_out, reference_ND = measure(held_out_samples(corpus, count, length), scorer, with_mauve)
        data_D = document_lengths(corpus)
    if run.experiment.process.attention.causal:
        steps = [length]
    rows, kept = [], []
    for number in sorted(set(steps)):
        how = {"count": count, "length": length, "batch": batch, "seed": seed, "search": search}
        texts = make_texts(run, dataclasses.replace(settings, steps=number), **how)
        if kept and texts.calls == kept[-1].calls and texts.steps == kept[-1].steps:
            break  # reveal orders take at most one step per token: more steps repeat the same texts
        found, features_ND = measure(texts.samples, scorer, with_mauve)
        row = {
            "steps": number,
            "steps_taken": texts.steps,
            "calls": texts.calls,
            "counts": texts.counts,
            "temperature": texts.settings.temperature,
            "precision": f"{run.experiment.config.execution.dtype} network, {PRECISION}",
        }
        if with_mauve:
            found |= _pair("mauve", mauve_with_error(reference_ND, features_ND))
        none_NL = np.zeros(texts.ids_NL.shape, bool)
        row["lengths"] = length_report(texts.ids_NL, none_NL, run.experiment.tokenizer, data_D=data_D)
        rows.append(row | found)
        kept.append(texts)
    return Curve(tuple(rows), held_out, tuple(kept))


def _pair(name: str, value: tuple[float, float]) -> dict[str, float | None]:
    """A number and its s.e. as two entries; None where not finite, which JSON does not support."""
    number, error = (float(v) if math.isfinite(v) else None for v in value)
    return {name: number, f"stderr_{name}": error}


COLUMNS = ("perplexity", "bits_per_byte", "entropy", "distinct_1", "distinct_2", "distinct_3", "self_bleu", "mauve")


def table(curve: Curve) -> str:
    """The curve as a Markdown table; `±` is one standard error."""
    columns = [name for name in COLUMNS if any(name in row for row in curve.rows)]
    columns = {name: name for name in columns}
    if any(row.get("lengths") for row in curve.rows):
        columns |= {"lengths": "length, 10/50/90 %", "ends": "ends and pads"}
    lines = ["| steps | calls | samples | " + " | ".join(columns.values()) + " |", "|---:|---:|---:|" + "---:|" * len(columns)]
    baseline = [] if curve.held_out is None else [{"steps": "held-out", "calls": "", **curve.held_out, "documents": _documents(curve)}]
    for row in [*curve.rows, *baseline]:
        cells = [_cell(row, name) for name in columns]
        lines.append(f"| {row['steps']} | {row['calls']} | {row['samples']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _documents(curve: Curve) -> dict[str, Any] | None:
    """The lengths of the documents of held-out text."""
    reports = [entry["data"] for row in curve.rows for entry in row.get("lengths", ()) if "data" in entry]
    return reports[0] if reports else None


def _cell(row: dict[str, Any], name: str) -> str:
    if name in ("lengths", "ends"):
        entry = row["lengths"][0] if row.get("lengths") else row.get("documents")
        if entry is None or (name == "ends" and "end_share" not in entry):
            return ""
        if name == "ends":
            return f"{entry['end_share'] + entry['pad_share']:.3f}"
        return text_of_lengths(entry) + (f", {entry['without_end']} without an end" if entry.get("without_end") else "")
    value = row.get(name)
    if value is None:
        return ""
    error, digits = row[f"stderr_{name}"], 2 if name == "perplexity" else 3
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
