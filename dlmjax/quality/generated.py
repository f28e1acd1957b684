"""The quality of made text against the steps it took: generative perplexity, unigram entropy, diversity, MAUVE, one row a number of steps.

    perplexity   exp(nats per token) of the samples under a scorer (`scorers`); s.e. over samples (ratio estimator, delta method)
    bits_per_byte   the same nats per UTF-8 byte that was scored: what scorers with different tokenizers have in common
    entropy      unigram entropy of a sample's tokens in nats per token, mean over samples: low perplexity with low entropy is repetition
    distinct-n, self-BLEU   of white-space separated words, see `diversity`
    mauve        of the scorer's last hidden states against as many held-out texts (`mauve_score`)

No number stands alone: each row holds steps, network calls, temperature, precision, number of samples and standard errors. Held-out text
of the same length, measured in the same way, is the mark that a perfect model would reach.

Shapes: N samples, B rows made together, L positions.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dlmjax.data import Corpus, EvalWindows
from dlmjax.errors import InputError
from dlmjax.evaluation.likelihood import ratio_with_error
from dlmjax.progress import Progress
from dlmjax.quality.diversity import distinct_n, mean_with_error, self_bleu
from dlmjax.quality.mauve_score import mauve_with_error
from dlmjax.quality.scorers import Sample, Scorer, make_sample
from dlmjax.run import Run
from dlmjax.sampling import Samples, SampleSettings, blank_canvas, sampler_for
from dlmjax.sampling.samples import PRECISION, unigram_entropy
from dlmjax.seeds import following

GRAMS = (1, 2, 3)


@dataclasses.dataclass(frozen=True)
class Made:
    """Samples of one setting. `ids_NL` as made; `steps` and `calls` (network calls per text) of the batch that took most."""

    ids_NL: np.ndarray
    samples: tuple[Sample, ...]
    steps: int
    calls: int
    settings: SampleSettings


def make_texts(run: Run, settings: SampleSettings, *, count: int, length: int, batch: int = 16, seed: int = 0) -> Made:
    """`count` texts of `length` tokens from nothing, `batch` at a time with seeds `seed`, `seed` + 1, ... .

    Raises InputError: settings that do not suit the process.
    """
    sampler = sampler_for(run.experiment.process, run.experiment.unpartitioned, settings)
    canvas, batches = blank_canvas(length, min(batch, count)), -(-count // batch)
    found: list[Samples] = []
    with Progress(batches, f"sampling, {settings.steps} steps", " batches") as bar:
        for number in range(batches):
            found.append(sampler.sample(run.params, canvas, seed=following(seed, number)))
            bar.reach(number + 1)
    ids_NL = np.concatenate([made.tokens_BL for made in found])[:count]
    samples = tuple(make_sample(run.experiment.tokenizer, ids_L) for ids_L in ids_NL)
    return Made(ids_NL, samples, max(m.steps for m in found), max(m.evaluations for m in found), sampler.settings)


def held_out_samples(corpus: Corpus, count: int, length: int) -> tuple[Sample, ...]:
    """The first `count` whole windows of `length` tokens of a split.  Raises InputError where it has fewer than two."""
    held_out = EvalWindows(corpus, length)
    count = min(count, corpus.num_tokens // length)
    if count < 2:
        raise InputError(f"{corpus.directory} ({corpus.split}) has fewer than two windows of {length} tokens to compare with")
    return tuple(make_sample(corpus.tokenizer, ids_L) for ids_L in held_out.rows(range(count))["tokens"])


def measure(samples: Sequence[Sample], scorer: Scorer | None, features: bool = False) -> tuple[dict[str, Any], np.ndarray | None]:
    """(every number of a set of samples but MAUVE, the scorer's features where asked for)."""
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
        raise InputError("the samples hold no text that the scorer has a token for; there is nothing to score")
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
    made: the texts of each row."""

    rows: tuple[dict[str, Any], ...]
    held_out: dict[str, Any] | None
    made: tuple[Made, ...]


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
) -> Curve:
    """Samples at each number of steps, under common seeds, and measures each set.

    settings: all but the steps. Processes with a number of calls of their own (autoregressive) give one row.  mauve: needs scorer and
    corpus.
    Raises InputError: nothing asked for; settings that do not suit the process; too little held-out text.
    """
    if count < 1 or batch < 1:
        raise InputError(f"asked for {count} samples, {batch} at a time; give at least 1")
    with_mauve = mauve and scorer is not None and corpus is not None
    held_out = reference_ND = None
    if corpus is not None:
        held_out, reference_ND = measure(held_out_samples(corpus, count, length), scorer, with_mauve)
    if run.experiment.process.attention.causal:
        steps = [length]
    rows, kept = [], []
    for number in sorted(set(steps)):
        made = make_texts(run, dataclasses.replace(settings, steps=number), count=count, length=length, batch=batch, seed=seed)
        if kept and made.calls == kept[-1].calls and made.steps == kept[-1].steps:
            break  # reveal orders take no more steps than there are tokens: from here on the same texts come again
        found, features_ND = measure(made.samples, scorer, with_mauve)
        row = {
            "steps": number,
            "steps_taken": made.steps,
            "calls": made.calls,
            "temperature": made.settings.temperature,
            "precision": f"{run.experiment.config.execution.dtype} network, {PRECISION}",
        }
        if with_mauve:
            found |= _pair("mauve", mauve_with_error(reference_ND, features_ND))
        rows.append(row | found)
        kept.append(made)
    return Curve(tuple(rows), held_out, tuple(kept))


def _pair(name: str, value: tuple[float, float]) -> dict[str, float | None]:
    """A number and its s.e. as two entries; what is not finite is None, since JSON has no word for it."""
    number, error = (float(v) if math.isfinite(v) else None for v in value)
    return {name: number, f"stderr_{name}": error}


COLUMNS = ("perplexity", "bits_per_byte", "entropy", "distinct_1", "distinct_2", "distinct_3", "self_bleu", "mauve")


def table(curve: Curve) -> str:
    """Markdown, for a person; `±` is one standard error."""
    columns = [name for name in COLUMNS if any(name in row for row in curve.rows)]
    lines = ["| steps | calls | samples | " + " | ".join(columns) + " |", "|---:|---:|---:|" + "---:|" * len(columns)]
    baseline = [] if curve.held_out is None else [{"steps": "held-out", "calls": "", **curve.held_out}]
    for row in [*curve.rows, *baseline]:
        cells = [_cell(row, name) for name in columns]
        lines.append(f"| {row['steps']} | {row['calls']} | {row['samples']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None:
        return ""
    error, digits = row[f"stderr_{name}"], 2 if name == "perplexity" else 3
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
