"""Evaluation of a run: its likelihood, or a bound, on a corpus or a suite, with error bars, baselines and the difference from another run.

`evaluate` measures one text (`TextSettings`) under fixed noise (`EvaluationSettings`) and returns an `Evaluation`; of a suite of minimal
pairs it returns a `PairEvaluation`. The report of both (`.report`, what `dlmjax evaluate --json` writes) holds the numbers of a
`LikelihoodResult` at its top level, and beside them

    protocol     suite, windows and tokenizer, with a hash of the tokens: two results can be compared where these are equal
    made         provenance: workdir, precision, commit, versions, device, batch, seconds, network calls per token
    cautions     restrictions of a comparison, one line each
    words        a perplexity per word, for suites that count words
    nelbo, price where another likelihood was requested: the bound of the same windows, and the bound less that likelihood, paired
    parallel     for a rule that reveals several tokens in a step: its nats less those of one a step, paired, and the passes of both
    difference   difference of two runs on the same text under the same noise
    breakdown    nats/token by time t, position in the window and frequency of the token
    pairs        accuracies, for suites of minimal pairs
"""

import dataclasses
import math
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from dlmjax import checks, choices
from dlmjax import config as config_lib
from dlmjax.data import Corpus
from dlmjax.data.supervised import make_choice
from dlmjax.data.token_budget import parse_path, with_tokens
from dlmjax.errors import InputError, names_arguments
from dlmjax.evaluation import Evaluator, LikelihoodResult, breakdown
from dlmjax.evaluation.compare import Difference, PairAccuracy, pair_accuracy, paired_difference
from dlmjax.evaluation.document_ends import COUNTED, KNOWN, LengthLaw, ends_of_windows, lengths_of
from dlmjax.evaluation.drift import drift_by_weight
from dlmjax.evaluation.forms import parse_likelihood
from dlmjax.evaluation.likelihood import WindowEvaluator
from dlmjax.evaluation.ngram import entropy_baselines
from dlmjax.evaluation.paths import OrderEvaluator, PathEvaluator
from dlmjax.evaluation.record import provenance
from dlmjax.evaluation.result import Measured
from dlmjax.evaluation.suites import Suite, find_suite
from dlmjax.evaluation.text import Cut, Text, corpus_text, documents_text, pair_texts, suite_text
from dlmjax.experiment import OpenedRun, held_out_of, open_corpora, split_of
from dlmjax.modules import make_callable
from dlmjax.quadrature import NODES, check_quadrature
from dlmjax.sampling.position_rules import attach_table
from dlmjax.seeds import check_seed

SHORT_DOCUMENTS = 1000  # tokens of a document, a mean, from which on its length is worth less than a hundredth of a nat per token
BASELINE_LIMIT = 100_000_000  # training bytes beyond which the n-gram baselines are not counted


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """Quadrature and seed of an evaluation, and the number of windows in a batch; see `Evaluator`.

    likelihood: "nelbo", or one of `evaluation.forms`, "order:confidence", "subsets", ...; the bound is then measured beside it.
    document_ends: "known" to a network that reads whole rows, as its attention follows documents, or "counted", by a law of lengths of the
      training documents, which makes its number one of the same law as that of a network that reads from left to right.

    Raises InputError: an unknown rule, likelihood or treatment of document ends, a number out of range.
    """

    nodes: int = NODES
    draws: int = 1
    rule: str = "gauss"
    seed: int = 0
    batch: int = 32
    likelihood: str = "nelbo"
    document_ends: str = KNOWN

    @names_arguments()
    def __post_init__(self):
        parse_likelihood(self.likelihood)
        if self.document_ends not in (KNOWN, COUNTED):
            raise InputError(f"--document-ends is {self.document_ends!r:.60}; give {KNOWN} or {COUNTED}")
        check_quadrature("EvaluationSettings", self.rule, self.nodes, self.draws)
        checks.whole("EvaluationSettings", 1, batch=self.batch)
        check_seed(self.seed)


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """The text that is scored, and how it is cut into windows of tokens.

    data: a prepared corpus; None = the one that the run was trained on.  suite, files: name or .json file of a suite, and the files of its
    text, in place of a corpus.  split: None = `valid` of a corpus, or the suite's.  documents: number of documents (or pairs) of the suite,
    spread evenly over it.  window, stride, remainder: as in `Cut`.  windows: number of windows, from the first on.  None = all, or as
    trained.  texts: documents, in place of a corpus and a suite.  tail: what follows the answers of supervised data, as in `data.tail`;
    None = as the run was trained, "none" = nothing.

    Raises InputError: a suite without files, files without a suite, texts beside another source, no windows.
    """

    data: str | None = None
    split: str | None = None
    suite: str | None = None
    files: Sequence[str] = ()
    documents: int | None = None
    window: int | None = None
    stride: int | None = None
    remainder: str | None = None
    windows: int | None = None
    texts: Sequence[str] = ()
    tail: str | None = None

    @names_arguments(input="files")
    def __post_init__(self):
        if self.texts and (self.suite or self.files or self.data or self.split):
            raise InputError("texts conflict with data, split, suite and files; give one of them")
        if bool(self.suite) != bool(self.files) or (self.suite and self.data):
            raise InputError(
                "--suite requires --input, and conflicts with --data: give --suite and --input together, or neither for a corpus"
            )
        if self.tail is not None and (self.suite or self.texts):
            raise InputError(f"--tail {self.tail} requires a corpus with answers, and a suite and texts have none; leave it out")
        if self.windows is not None and self.windows < 1:
            raise InputError(f"--windows is {self.windows}; give at least 1")

    @property
    def protocol(self) -> Suite | None:
        """The suite, if one is set. Raises InputError as `find_suite`."""
        return find_suite(self.suite) if self.suite else None

    def cut(self, run: OpenedRun) -> Cut:
        """How the text is cut for a run."""
        experiment = run.experiment
        multiple, data = experiment.process.bound.attention.block_size or 1, experiment.config.data
        tail, ids = make_choice("tail", data.tail if self.tail is None else self.tail), experiment.tokenizer.vocab_size
        if tail is not None and experiment.process.vocab < ids + tail.pads:
            raise InputError(
                f"--tail {self.tail} requires {tail.pads} ids after the {ids} of the tokenizer, and the network has "
                f"{experiment.process.vocab} in all; give a tail without pads, or none"
            )
        return Cut(data.length, self.window, self.stride, self.remainder, multiple, self.windows, tail)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The likelihood of one run on one text, or its bound.

    nelbo, price: where `result` is another likelihood than the bound: the bound, and the bound less that likelihood with its paired error.
    baselines: name -> bits/byte of tables counted on the training split.  difference: from another run.  tables: the breakdown.
    by_document: nats, tokens and bytes of each document of `text`.  None or empty where not requested or not available.
    """

    result: LikelihoodResult
    text: Text
    suite: Suite | None
    report: dict[str, Any]
    baselines: dict[str, float]
    difference: Difference | None = None
    tables: dict[str, Any] | None = None
    by_document: breakdown.ByDocument | None = None
    nelbo: LikelihoodResult | None = None
    price: Difference | None = None


@dataclasses.dataclass(frozen=True)
class PairEvaluation:
    """The accuracy of one run on the minimal pairs of a suite."""

    result: PairAccuracy
    suite: Suite
    report: dict[str, Any]


@names_arguments(input="files")
def evaluate(
    run: OpenedRun,
    text: TextSettings = TextSettings(),
    settings: EvaluationSettings = EvaluationSettings(),
    *,
    against: OpenedRun | None = None,
    documents: bool = False,
    tables: bool = False,
) -> Evaluation:
    """Measures the likelihood bound of a run on one text, or another likelihood (`settings.likelihood`) and the bound beside it.

    Args:
      against: another run, measured on the same text under the same noise.
      documents: also return the nats of every document.
      tables: also return nats/token by time t, position in the window and frequency of the token.

    Raises:
      InputError: no such corpus, split, suite or file; a corpus or another run with a different tokenizer; a suite of pairs; a likelihood
        that the process does not have, or that is no sum over tokens, with documents or tables.
    """
    evaluator = _evaluator(run, settings, reference=True)
    additive = settings.likelihood == "nelbo" or evaluator.additive
    if (documents or tables) and not additive:
        raise InputError(
            f"--likelihood {settings.likelihood} is a sum over sets of tokens, not over tokens; leave --per-document, --breakdown and "
            "--plot out, or give --likelihood order:confidence"
        )
    suite, cut = text.protocol, text.cut(run)
    if suite and suite.task == "pairs":
        raise InputError(f"suite {suite.name} has pairs; measure it with evaluate_pairs")
    if against:
        _check_same_tokenizer(run, against)
    corpus = token_budget = None
    if suite:
        chosen = suite_text(suite, list(text.files), run.experiment.tokenizer, cut, text.split, text.documents)
    elif text.texts:
        chosen = documents_text(text.texts, run.experiment.tokenizer, cut)
    else:
        corpus = split_of(run, text.data, text.split or "valid")
        if text.tail is not None and not corpus.has_roles:
            raise InputError(f"--tail {text.tail} requires a corpus with answers, and {corpus.directory} has none; leave it out")
        chosen = corpus_text(corpus, cut, copies=not _pays_for_ends(run))
        _, token_budget = parse_path(text.data or run.experiment.config.data.paths[0])
    by_document = breakdown.ByDocument(chosen.windows, run.experiment.tokenizer.byte_lengths_V)
    by_position = breakdown.ByPosition(chosen.protocol["window"])
    counts_V, counted_on = _token_counts(run, chosen) if tables else (np.ones(1, np.int64), "")
    by_frequency = breakdown.ByFrequency(counts_V)
    begin = time.monotonic()
    by_role = [breakdown.ByRole(chosen.windows, chosen.roles_T)] if chosen.roles_T is not None and additive else []
    measured = _measure(run, evaluator, chosen, settings, [by_document] * documents + [by_position, by_frequency] * tables + by_role)
    seconds = time.monotonic() - begin
    result = evaluator.result(measured, step=run.step, weights=run.weights, split=chosen.split)
    report = result.to_json() | _per_word(chosen, result)
    report |= {"protocol": chosen.protocol | _document_ends(run, chosen, settings), "made": _provenance(run, settings, result, seconds)}
    report |= _of_ends(measured) | ({"roles": by_role[0].table()} if by_role else {})
    nelbo = price = None
    if settings.likelihood != "nelbo":
        nelbo, price, report["nelbo"] = _bound_beside(run, chosen, settings, measured)
        report["price"] = price.to_json()
        report |= _price_of_parallel(run, evaluator, chosen, settings, measured)
    report["cautions"] = _other_loops(run) + _cautions(chosen.protocol, result) + _known_ends(run, chosen, measured)
    report["cautions"] += _cautions({"complete": True}, nelbo) if nelbo else []
    difference = None
    if against:
        # Each run reads the answers with the tail that it was trained with: what a tail costs is in its number.
        their_cut = dataclasses.replace(cut, tail=text.cut(against).tail)
        theirs = chosen if corpus is None else corpus_text(corpus, their_cut, copies=not _pays_for_ends(run))
        difference = paired_difference(measured, _measure(against, _evaluator(against, settings), theirs, settings))
        which = {"against": str(against.workdir), "against_step": against.step, "against_weights": against.weights}
        drift = drift_by_weight(run.params, against.params)
        report["difference"] = {**which, **difference.to_json(), "weight_drift": drift}
    found = None
    if tables:
        found = {"level": list(result.levels)} if settings.likelihood == "nelbo" else {}
        found |= {"position": by_position.table(), "frequency": by_frequency.table()}
        report["breakdown"] = {**found, "frequency_counted_on": counted_on}
    baselines = _baselines(corpus if chosen.roles_T is None else None, token_budget, chosen, result)
    report["baselines_bits_per_byte"] = baselines
    return Evaluation(result, chosen, suite, report, baselines, difference, found, by_document if documents else None, nelbo, price)


def _bound_beside(
    run: OpenedRun, text: Text, settings: EvaluationSettings, measured: Measured
) -> tuple[LikelihoodResult, Difference, dict[str, Any]]:
    """(the bound of the windows of another likelihood, the bound less that, the bound as JSON with its seconds)."""
    settings = dataclasses.replace(settings, likelihood="nelbo")
    evaluator, begin = _evaluator(run, settings, reference=True), time.monotonic()
    bound = _measure(run, evaluator, text, settings)
    seconds = time.monotonic() - begin
    result = evaluator.result(bound, step=run.step, weights=run.weights, split=text.split)
    return result, paired_difference(bound, measured), result.to_json() | {"seconds": seconds}


def _price_of_parallel(
    run: OpenedRun, evaluator: WindowEvaluator, text: Text, settings: EvaluationSettings, measured: Measured
) -> dict[str, Any]:
    """{"parallel": ...}: what the parallel steps of a rule cost; {} where it reveals one token a step."""
    one = evaluator.form.one_by_one if isinstance(evaluator, OrderEvaluator) else None
    if one is None:
        return {}
    reference = _evaluator(run, dataclasses.replace(settings, likelihood=one))
    other = _measure(run, reference, text, settings)
    calls = reference.result(other, step=run.step, weights=run.weights, split=text.split).calls_per_token
    return {"parallel": {"against": one, "calls_per_token": calls, **paired_difference(measured, other).to_json()}}


@names_arguments(input="files")
def evaluate_pairs(run: OpenedRun, text: TextSettings, settings: EvaluationSettings = EvaluationSettings()) -> PairEvaluation:
    """Accuracy over the minimal pairs of a suite, both sentences of a pair under common random numbers.

    Raises InputError: no such file; a file that holds no pairs; a suite without pairs.
    """
    suite = text.protocol
    if suite is None or suite.task != "pairs":
        raise InputError(f"suite {text.suite} has no pairs; measure it with evaluate")
    if settings.likelihood.startswith("tube"):
        raise InputError(f"--likelihood {settings.likelihood} conflicts with suite {suite.name}: bounds from below do not rank sentences")
    good, bad, pairs = pair_texts(suite, list(text.files), run.experiment.tokenizer, text.cut(run), text.documents)
    evaluator, begin = _evaluator(run, settings), time.monotonic()
    sides = [_measure(run, evaluator, side, settings) for side in (good, bad)]
    seconds = time.monotonic() - begin
    found = pair_accuracy(*sides, groups=[pair.group for pair in pairs], fields=[pair.field for pair in pairs])
    tokens = sum(int(side.tokens_W.sum()) for side in sides)
    result = evaluator.result(sides[0], step=run.step, weights=run.weights, split=suite.split)
    how = {
        name: getattr(result, name) for name in ("process", "likelihood", "rule", "nodes", "draws", "seed", "step", "weights", "is_bound")
    }
    report = {**how, "pairs": found.to_json(), "protocol": good.protocol, "made": _provenance(run, settings, result, seconds, tokens)}
    return PairEvaluation(found, suite, report | {"cautions": _other_loops(run) + _cautions(good.protocol, result)})


def likelihoods(
    run: OpenedRun, text: TextSettings, settings: EvaluationSettings, names: Sequence[str]
) -> dict[str, tuple[LikelihoodResult, Measured]]:
    """Several likelihoods of the same windows of a prepared corpus, by name; `settings.likelihood` is not read.

    Raises InputError: as `evaluate`.
    """
    chosen = corpus_text(split_of(run, text.data, text.split or "valid"), text.cut(run), copies=not _pays_for_ends(run))
    found = {}
    for name in names:
        evaluator = _evaluator(run, dataclasses.replace(settings, likelihood=name))
        measured = _measure(run, evaluator, chosen, settings)
        found[name] = evaluator.result(measured, step=run.step, weights=run.weights, split=chosen.split), measured
    return found


def bounds(
    run: OpenedRun, paths: Sequence[str], split: str, settings: EvaluationSettings, windows: int | None = None
) -> list[LikelihoodResult]:
    """The bound of a run on a split of each of some prepared corpora: the numbers of `evaluate`, without its report.

    Windows are numbered in each corpus, and levels and masks drawn from the numbers: runs of one training length are scored on the same.
    Raises InputError: no such corpus or split, or one with another tokenizer.
    """
    evaluator, cut = _evaluator(run, settings), TextSettings(windows=windows).cut(run)
    copies = not _pays_for_ends(run)
    measured = [_measure(run, evaluator, corpus_text(split_of(run, path, split), cut, copies), settings) for path in paths]
    return [evaluator.result(each, step=run.step, weights=run.weights, split=split) for each in measured]


def _token_counts(run: OpenedRun, text: Text) -> tuple[np.ndarray, str]:
    """(counts of the training text where it is available, else of the evaluated text; name of the counted text)."""
    try:
        return sum(corpus.counts_V for corpus in open_corpora(run.experiment.config, "train")), "the training text"
    except InputError:
        return np.bincount(text.windows.tokens_T, minlength=run.experiment.tokenizer.vocab_size), "the evaluated text"


def _per_word(text: Text, result: LikelihoodResult) -> dict[str, Any]:
    """Perplexity per word; its error is that of nats/token, because the number of words is known."""
    words = text.words
    if not words:
        return {}
    nats, error = (value * result.tokens / words for value in (result.nats_per_token, result.stderr_nats_per_token))
    perplexity = math.exp(nats) if nats < 700 else None
    stderr = None if perplexity is None or not math.isfinite(error) else perplexity * error
    return {"words": {"words": words, "nats_per_word": nats, "perplexity": perplexity, "stderr_perplexity": stderr}}


def _baselines(corpus: Corpus | None, token_budget: int | None, text: Text, result: LikelihoodResult) -> dict[str, float]:
    """Bits/byte of tables counted on the corpus's train split, for a split that was evaluated whole; none without the train split.

    token_budget: tokens of the train split that were named with the corpus; None: all.
    """
    if corpus is None or result.bits_per_byte is None or not text.protocol["complete"]:
        return {}
    directory, part = str(corpus.directory), ""
    if token_budget is not None:
        directory, part = with_tokens(directory, token_budget), f"the first {token_budget:,} tokens of "
    try:
        train = Corpus.open(directory, split="train")
        if not 0 < train.num_bytes <= BASELINE_LIMIT:
            return {}
        found = entropy_baselines(_documents(train), _documents(corpus))
    except InputError:  # a corpus at a URL may have only some splits here; the measurement does not require the baselines
        return {}
    return {f"{name} table counted on {part}the train split": getattr(found, name) for name in ("bigram", "unigram")}


def _other_loops(run: OpenedRun) -> list[str]:
    """That this network is not the one that was trained, where its looped layers are run another number of times."""
    loops = run.experiment.loops
    return [f"the looped layers were run {loops['run']} times, {loops['trained']} in training (--loops)"] if loops else []


def _cautions(protocol: dict[str, Any], result: LikelihoodResult) -> list[str]:
    """Restrictions of a comparison with other results."""
    lines = list(filter(None, [result.caution()]))
    if not result.is_bound:
        lines.append("the loss of this process is not a likelihood bound")
    if protocol.get("changed"):
        changes = (f"{name} {protocol[name]}, not {value}" for name, value in protocol["changed"].items())
        lines.append(f"not the suite's own protocol: {'; '.join(changes)}")
    if not protocol["complete"]:
        lines.append("not all of the text was scored")
    if protocol.get("documents_spread"):
        lines.append(f"a part of the suite: {protocol['documents']} documents")
    if protocol.get("pairs_spread"):
        lines.append(f"a part of the suite: {protocol['pairs_spread']} pairs at most")
    if not protocol.get("lossless", True):
        lines.append(f"tokenizer {protocol['tokenizer']} changes this text: bytes are counted after the change")
    return lines


def _check_same_tokenizer(run: OpenedRun, against: OpenedRun) -> None:
    """Raises InputError where two runs read text by different tokenizers."""
    ours, theirs = run.experiment.tokenizer, against.experiment.tokenizer
    if ours.hash != theirs.hash:
        raise InputError(
            f"--against {against.workdir} was trained with tokenizer {theirs.name}, the first run with {ours.name}; a difference requires "
            "the same tokens: compare the bits per byte of two evaluations"
        )


def with_table(run: OpenedRun, rule: str) -> str:
    """The text of a rule; of pc, and of min_gap of pc, with the table of the run's corpus, which is attached.

    Raises InputError: the corpus is not attached."""
    if "pc" not in re.split(r"\W+", rule):
        return rule
    name, values = choices.parse(rule, "rule")
    if isinstance(values.get("rule"), str):
        return choices.text_of(name, {**values, "rule": with_table(run, values["rule"])})
    if name != "pc":
        return rule
    corpus, why_not = held_out_of(run, None, "train")
    if corpus is None:
        raise InputError(f"rule {rule:.100} requires the tokens of the run's corpus: {why_not}")
    return choices.text_of(name, {**values, "table": values.get("table") or attach_table(corpus.counts_V)})


def _evaluator(run: OpenedRun, settings: EvaluationSettings, reference: bool = False) -> Evaluator | PathEvaluator:
    if settings.likelihood != "nelbo":
        family, colon, rule = settings.likelihood.partition(":")
        return run.experiment.path_evaluator(f"{family}:{with_table(run, rule)}" if colon else family, settings.seed)
    grid = {name: getattr(settings, name) for name in ("nodes", "draws", "rule", "seed")}
    evaluator = run.experiment.evaluator(**grid)
    # Of several processes each reads some rows of a batch, and they would not make the same number of further calls.
    return evaluator.with_reference() if reference and jax.process_count() == 1 else evaluator


def _measure(
    run: OpenedRun, evaluator: WindowEvaluator, text: Text, settings: EvaluationSettings, observers: Sequence[Any] = ()
) -> Measured:
    ways = run.experiment.partition.ways("batch")
    size = -(-settings.batch // ways) * ways
    law = _length_law(run, text) if settings.document_ends == COUNTED and not _pays_for_ends(run) else None
    measured = evaluator.measure(
        run.params,
        text.windows.batches(size, run.experiment.partition.rows_of_host(size)),
        byte_lengths_V=run.experiment.tokenizer.byte_lengths_V,
        total=len(text.windows),
        split=text.split,
        progress=True,
        observers=observers,
    )
    if law is None:
        return measured
    ends_W = ends_of_windows(text.windows, run.experiment.tokenizer.eos_id, law.nats(lengths_of([text.windows.ends_D])))
    return dataclasses.replace(measured, ends_W=ends_W[measured.window_W])


def _pays_for_ends(run: OpenedRun) -> bool:
    """Whether the network predicts where a document ends, as it does any token; others are shown it by their attention."""
    return run.experiment.process.bound.attention.causal


def _length_law(run: OpenedRun, text: Text) -> LengthLaw:
    """The law of the lengths of the run's training documents.

    Raises InputError: the training text is not here, or documents of `text` have no end that is scored, or only parts of them are.
    """
    if text.roles_T is not None or not text.protocol["eos"]:
        raise InputError("--document-ends counted requires text whose documents end with a scored end of text; give --document-ends known")
    return LengthLaw.fit(np.concatenate([lengths_of(corpus.document_ends()) for corpus in open_corpora(run.experiment.config, "train")]))


def _document_ends(run: OpenedRun, text: Text, settings: EvaluationSettings) -> dict[str, str]:
    """For the protocol: whether where documents end is part of the number, "paid", or known to the network."""
    paid = _pays_for_ends(run) or text.ends_hidden or settings.document_ends == COUNTED
    return {"document_ends": "paid" if paid else KNOWN}


def _of_ends(measured: Measured) -> dict[str, float]:
    """For the report: the nats of document ends per token, where they are counted."""
    ends_W = measured.ends_W
    return {} if ends_W is None else {"document_ends_nats_per_token": float(ends_W.sum()) / int(measured.tokens_W.sum())}


def _known_ends(run: OpenedRun, text: Text, measured: Measured) -> list[str]:
    """That the number is one given the lengths of the documents, where these are so short that it matters: a length is worth some nats."""
    if _pays_for_ends(run) or text.ends_hidden or measured.ends_W is not None:
        return []
    tokens_D = lengths_of([text.windows.ends_D])
    if np.mean(tokens_D) >= SHORT_DOCUMENTS:
        return []
    countable = text.roles_T is None and text.protocol["eos"]
    cure = "; --document-ends counted adds the nats of their lengths" if countable else ""
    return [f"where documents end was known to the network ({np.mean(tokens_D):.1f} tokens each){cure}"]


def _provenance(
    run: OpenedRun, settings: EvaluationSettings, result: LikelihoodResult, seconds: float, tokens: int | None = None
) -> dict[str, Any]:
    """How a result was made; tokens: those that were scored, where they are not those of the result."""
    experiment = run.experiment
    return {
        "workdir": str(run.workdir),
        "config": config_lib.fingerprint(experiment.config),
        "parameters": experiment.parameter_count,
        "trained_length": experiment.config.data.length,
        "precision": experiment.config.execution.dtype,
        **provenance(),
        "x64": bool(jax.config.jax_enable_x64),
        "batch": settings.batch,
        "calls_per_token": result.calls_per_token,
        **({"loops": loops} if (loops := experiment.loops) else {}),
        **({"chosen_process": chosen} if (chosen := experiment.chosen_process) else {}),
        "seconds": seconds,
        "scored_tokens_per_second": (tokens or result.tokens) / seconds,
    }


def _documents(corpus: Corpus) -> Iterator[bytes]:
    """The documents of a split as UTF-8, without their ends."""
    return (text.encode("utf-8") for text in corpus.documents())


make_callable(__name__, evaluate)
