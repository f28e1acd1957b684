"""`dlmjax evaluate`: a run is opened, its bound measured on a prepared corpus or a suite, the result printed and written.

What is written (`--json`) holds the numbers of a `LikelihoodResult` at its top level, and beside them

    protocol     how the text was read, cut and scored, with a hash of its tokens: two results can be compared where these are equal
    made         with what: workdir, precision, commit, versions, device, batch, seconds, network calls per token
    cautions     what a reader must know before comparing, a line each, as printed
    words        a perplexity per word, for suites that count words
    difference   of two runs on the same text under the same noise (`--against`)
    breakdown    nats/token by noise level, position in the window and frequency of the token (`--breakdown`)
    pairs        of suites of minimal pairs: accuracies
"""

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from dlmjax import config as config_lib
from dlmjax.data import Corpus
from dlmjax.data.portion import parse_path, with_tokens
from dlmjax.errors import InputError
from dlmjax.evaluation import Evaluator, LikelihoodResult, breakdown
from dlmjax.evaluation.breakdown import require_figures
from dlmjax.evaluation.compare import PairAccuracy, pair_accuracy, paired_difference
from dlmjax.evaluation.levels import NODES
from dlmjax.evaluation.limits import check_numbers
from dlmjax.evaluation.ngram import entropy_marks
from dlmjax.evaluation.record import made_with
from dlmjax.evaluation.result import Measured
from dlmjax.evaluation.suites import Suite, find_suite
from dlmjax.evaluation.text import Cut, Text, corpus_text, pair_texts, suite_text
from dlmjax.files import make_folder, write_json
from dlmjax.run import Run, open_corpora, open_run, split_of

MARK_LIMIT = 100_000_000  # training bytes beyond which the n-gram marks are not counted on the way


@dataclasses.dataclass(frozen=True)
class Grid:
    """The flags that say how a run is measured; see `Evaluator`."""

    nodes: int = NODES
    draws: int = 1
    rule: str = "gauss"
    seed: int = 0
    batch: int = 32


def evaluate(
    *,
    workdir: str,
    data: str | None = None,
    split: str | None = None,
    suite: str | None = None,
    input: Sequence[str] = (),
    documents: int | None = None,
    window: int | None = None,
    stride: int | None = None,
    remainder: str | None = None,
    weights: str = "ema",
    step: int | None = None,
    batch: int = 32,
    nodes: int = NODES,
    draws: int = 1,
    rule: str = "gauss",
    windows: int | None = None,
    seed: int = 0,
    against: str | None = None,
    against_step: int | None = None,
    per_document: str | None = None,
    breakdown: bool = False,
    plot: str | None = None,
    json: str | None = None,
) -> LikelihoodResult | PairAccuracy:
    """Prints the likelihood bound of a run on one text, and writes what else was asked for; see the top of this file.

    Raises:
      InputError: no such run, corpus, split, suite or file; a corpus with another tokenizer; flags that do not go together.
    """
    chosen = find_suite(suite) if suite else None
    pairs = chosen is not None and chosen.task == "pairs"
    if bool(suite) != bool(input) or (suite and data):
        raise InputError("a suite is read from files: give --suite and --input together, and no --data; or neither, for a prepared corpus")
    if pairs and (against or per_document or breakdown or plot or stride or windows):
        raise InputError(f"suite {suite} has pairs: it takes none of --against, --per-document, --breakdown, --plot, --stride, --windows")
    if windows is not None and windows < 1:
        raise InputError(f"--windows is {windows}; give at least 1")
    check_numbers(seed=seed, batch=batch)
    if plot:
        require_figures()
    for file in filter(None, (json, per_document, plot)):
        make_folder(file)
    run, grid = open_run(workdir, weights=weights, step=step), Grid(nodes, draws, rule, seed, batch)
    cut = _cut(run, window, stride, remainder, windows)
    if pairs:
        return _pairs(run, chosen, list(input), cut, grid, documents, json)
    if chosen:
        text, corpus, portion = suite_text(chosen, list(input), run.experiment.tokenizer, cut, split, documents), None, None
    else:
        corpus = split_of(run, data, split or "valid")
        text, (_, portion) = corpus_text(corpus, cut), parse_path(data or run.experiment.config.data.paths[0])
    other = _other(against, against_step, weights, run) if against else None
    return _Evaluation(run, chosen, text, corpus, portion, grid).go(other, per_document, breakdown, plot, json)


def bounds(run: Run, paths: Sequence[str], split: str, grid: Grid, windows: int | None = None) -> list[LikelihoodResult]:
    """The bound of a run on a split of each of some prepared corpora, as `evaluate` with these flags finds it; prints nothing.

    Windows are numbered in each corpus, and levels and masks drawn from the numbers: runs of one training length are scored on the same.
    Raises InputError: no such corpus or split, or one with another tokenizer.
    """
    evaluator, cut = _evaluator(run, grid), _cut(run, windows=windows)
    measured = [_measure(run, evaluator, corpus_text(split_of(run, path, split), cut), grid) for path in paths]
    return [evaluator.result(each, step=run.step, weights=run.weights, split=split) for each in measured]


def _cut(run: Run, window: int | None = None, stride: int | None = None, remainder: str | None = None, windows: int | None = None) -> Cut:
    """How text is cut for a run; None: as it was trained."""
    multiple = run.experiment.process.bound.block_size or 1
    return Cut(run.experiment.config.data.length, window, stride, remainder, multiple, windows)


@dataclasses.dataclass(frozen=True)
class _Evaluation:
    """One run on one text.  portion: tokens of the corpus's train split that were named with it; None: all."""

    run: Run
    suite: Suite | None
    text: Text
    corpus: Corpus | None
    portion: int | None
    grid: Grid

    def go(self, other: Run | None, per_document: str | None, tables: bool, plot: str | None, json: str | None) -> LikelihoodResult:
        """Measures, prints, writes."""
        run, text = self.run, self.text
        lengths_V = run.experiment.tokenizer.byte_lengths_V
        by_document = breakdown.ByDocument(text.windows, lengths_V)
        by_position = breakdown.ByPosition(text.protocol["window"])
        counts_V, counted_on = self._counts() if tables or plot else (np.ones(1, np.int64), "")
        by_frequency = breakdown.ByFrequency(counts_V)
        observers = [by_document] * bool(per_document) + [by_position, by_frequency] * bool(tables or plot)

        evaluator = _evaluator(run, self.grid)
        begin = time.monotonic()
        measured = _measure(run, evaluator, text, self.grid, observers)
        seconds = time.monotonic() - begin
        result = evaluator.result(measured, step=run.step, weights=run.weights, split=text.split)
        report = result.to_json() | self._words(result)
        report |= {"protocol": text.protocol, "made": _made(run, self.grid, evaluator, result.tokens, seconds)}
        report["cautions"] = _cautions(text.protocol, result)
        print(self._shown(result, report), flush=True)
        if other:
            second = _measure(other, _evaluator(other, self.grid), text, self.grid)
            difference = paired_difference(measured, second)
            which = {"against": str(other.workdir), "against_step": other.step, "against_weights": other.weights}
            report["difference"] = {**which, **difference.to_json()}
            print(f"  against {other.workdir}, step {other.step}, {other.weights} weights: {difference.summary()}", flush=True)
        if tables or plot:
            found = {"level": list(result.levels), "position": by_position.table(), "frequency": by_frequency.table()}
            report["breakdown"] = {**found, "frequency_counted_on": counted_on}
        if tables:
            print(breakdown.as_text(found), flush=True)
        if json:
            write_json(json, report)
        if per_document:
            by_document.write(per_document, text.ids)
        if plot:
            breakdown.plot(found, plot, f"{text.protocol['suite'] or text.protocol['corpus']}, {text.split}, step {run.step}")
        return result

    def _counts(self) -> tuple[np.ndarray, str]:
        """Counts of the training text where it is still there, else of the evaluated text; and which."""
        vocab = self.run.experiment.tokenizer.vocab_size
        try:
            return sum(corpus.counts_V for corpus in open_corpora(self.run.experiment.config, "train")), "the training text"
        except InputError:
            return np.bincount(self.text.windows.tokens_T, minlength=vocab), "the evaluated text"

    def _words(self, result: LikelihoodResult) -> dict[str, Any]:
        """Perplexity per word; its error is that of nats/token, the words being those of this very text."""
        words = self.text.words
        if not words:
            return {}
        nats, error = (value * result.tokens / words for value in (result.nats_per_token, result.stderr_nats_per_token))
        perplexity = math.exp(nats) if nats < 700 else None
        stderr = None if perplexity is None or not math.isfinite(error) else perplexity * error
        return {"words": {"words": words, "nats_per_word": nats, "perplexity": perplexity, "stderr_perplexity": stderr}}

    def _shown(self, result: LikelihoodResult, report: dict[str, Any]) -> str:
        """The result for a person, beside what counting alone achieves where that is known."""
        sign = "<=" if result.is_bound and result.rule != "exact" else "="
        rows = [
            (f"{result.process}, step {result.step}, {result.weights} weights {sign}", result.bits_per_byte, result.stderr_bits_per_byte)
        ]
        rows += self._marks(result)
        width = max(len(name) for name, _, _ in rows)
        name = f"{self.suite.name}, {result.split} split" if self.suite else f"{result.split} split"
        lines = [f"{name}: {result.tokens:,} tokens, {result.bytes or 0:,} bytes, {result.windows:,} windows of {result.length}"]
        lines += [f"  {'':{width}}  bits/byte"]
        for name, bits, error in rows:
            shown = f"{bits:9.4f}" if bits is not None else f"{'-':>9}"
            lines.append(f"  {name:{width}}  {shown}" + (f" ± {error:.4f}" if error is not None else ""))
        lines.append(f"  {result.summary()}")
        if "words" in report and report["words"]["perplexity"] is not None:
            words = report["words"]
            lines.append(f"  perplexity per word {sign} {words['perplexity']:,.1f} ({words['words']:,} words)")
        lines += [f"  {line}" for line in report["cautions"]]
        return "\n".join(lines)

    def _marks(self, result: LikelihoodResult) -> list[tuple[str, float, None]]:
        """Tables counted on the corpus's train split, for a split that was evaluated whole; none where the train split is not here."""
        if self.corpus is None or result.bits_per_byte is None or not self.text.protocol["complete"]:
            return []
        directory, part = str(self.corpus.directory), ""
        if self.portion is not None:
            directory, part = with_tokens(directory, self.portion), f"the first {self.portion:,} tokens of "
        try:
            train = Corpus.open(directory, split="train")
            if not 0 < train.num_bytes <= MARK_LIMIT:
                return []
            marks = entropy_marks(_bytes(train), _bytes(self.corpus))
        except InputError:  # a corpus at a URL is copied here split by split; the measurement must not be lost for want of a comparison
            return []
        return [
            (f"bigram table counted on {part}the train split", marks.bigram, None),
            (f"unigram table counted on {part}the train split", marks.unigram, None),
        ]


def _cautions(protocol: dict[str, Any], result: LikelihoodResult) -> list[str]:
    """What a reader must know before comparing."""
    lines = list(filter(None, [result.caution()]))
    if not result.is_bound:
        lines.append("the loss of this process is not a likelihood bound")
    if protocol.get("changed"):
        parts = (f"{name} {protocol[name]}, not {value}" for name, value in protocol["changed"].items())
        lines.append(f"not the suite's own protocol: {'; '.join(parts)}")
    if not protocol["complete"]:
        lines.append("not all of the text was scored")
    if protocol.get("documents_spread"):
        lines.append(f"a part of the suite: {protocol['documents']} documents")
    if protocol.get("pairs_spread"):
        lines.append(f"a part of the suite: {protocol['pairs_spread']} pairs at most")
    if not protocol.get("lossless", True):
        lines.append(f"tokenizer {protocol['tokenizer']} changes this text: the bytes are those of what it makes of it")
    return lines


def _pairs(run: Run, suite: Suite, files: list[str], cut: Cut, grid: Grid, limit: int | None, json: str | None) -> PairAccuracy:
    """Accuracy over minimal pairs, under common random numbers."""
    good, bad, pairs = pair_texts(suite, files, run.experiment.tokenizer, cut, limit)
    evaluator, begin = _evaluator(run, grid), time.monotonic()
    sides = [_measure(run, evaluator, side, grid) for side in (good, bad)]
    seconds = time.monotonic() - begin
    found = pair_accuracy(*sides, groups=[pair.group for pair in pairs], fields=[pair.field for pair in pairs])
    tokens = sum(int(side.tokens_W.sum()) for side in sides)
    result = evaluator.result(sides[0], step=run.step, weights=run.weights, split=suite.split)
    shown = [f"{suite.name}: {run.experiment.process.name}, step {run.step}, {run.weights} weights", found.summary()]
    cautions = _cautions(good.protocol, result)
    print("\n  ".join(shown + cautions), flush=True)
    if json:
        how = {name: getattr(result, name) for name in ("process", "rule", "nodes", "draws", "seed", "step", "weights", "is_bound")}
        report = {**how, "pairs": found.to_json(), "protocol": good.protocol, "made": _made(run, grid, evaluator, tokens, seconds)}
        write_json(json, report | {"cautions": cautions})
    return found


def _other(workdir: str, step: int | None, weights: str, run: Run) -> Run:
    """The run to compare with. Raises InputError where it reads text by another tokenizer."""
    other = open_run(workdir, weights=weights, step=step)
    ours, theirs = run.experiment.tokenizer, other.experiment.tokenizer
    if ours.hash != theirs.hash:
        raise InputError(
            f"{workdir} was trained with tokenizer {theirs.name}, the first run with {ours.name}; a difference per token means nothing "
            "then: compare the bits per byte of two evaluations"
        )
    return other


def _evaluator(run: Run, grid: Grid) -> Evaluator:
    return run.experiment.evaluator(nodes=grid.nodes, draws=grid.draws, rule=grid.rule, seed=grid.seed)


def _measure(run: Run, evaluator: Evaluator, text: Text, grid: Grid, observers: Sequence[Any] = ()) -> Measured:
    ways = run.experiment.partition.ways("batch")
    size = -(-grid.batch // ways) * ways
    return evaluator.measure(
        run.params,
        text.windows.batches(size, run.experiment.partition.rows_of_host(size)),
        byte_lengths_V=run.experiment.tokenizer.byte_lengths_V,
        total=len(text.windows),
        split=text.split,
        progress=True,
        observers=observers,
    )


def _made(run: Run, grid: Grid, evaluator: Evaluator, tokens: int, seconds: float) -> dict[str, Any]:
    experiment = run.experiment
    return {
        "workdir": str(run.workdir),
        "config": config_lib.fingerprint(experiment.config),
        "parameters": experiment.parameter_count,
        "trained_length": experiment.config.data.length,
        "precision": experiment.config.execution.dtype,
        **made_with(),
        "x64": bool(jax.config.jax_enable_x64),
        "batch": grid.batch,
        "calls_per_token": evaluator.calls,
        "seconds": seconds,
        "scored_tokens_per_second": tokens / seconds,
    }


def _bytes(corpus: Corpus) -> Iterator[bytes]:
    """The documents of a split as UTF-8, without their ends."""
    return (text.encode("utf-8") for text in corpus.documents())
