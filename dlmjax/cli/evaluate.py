"""`dlmjax evaluate`: prints and writes the likelihood bound of a run; `dlmjax.evaluate` describes the file of `--json`."""

from __future__ import annotations

import argparse
import statistics
from typing import TYPE_CHECKING

from dlmjax import flags
from dlmjax.cli.run_flags import SPLITS, add_loops, add_run, open_arguments
from dlmjax.errors import InputError
from dlmjax.files import make_folder, write_json
from dlmjax.quadrature import MOST_CALLS, NODES, RULES

if TYPE_CHECKING:
    from dlmjax.evaluate import Evaluation, PairEvaluation
    from dlmjax.run import Run

HELP = "likelihood bound of a run on held-out text, with its standard error"


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    add_run(command)
    add_loops(command)
    add = command.add_argument
    add("--data", type=flags.input_folder, metavar="DIR", help="prepared corpus (the one that the run was trained on)")
    add("--split", choices=SPLITS, help="split of the corpus or suite (valid, or the suite's)")
    add(
        "--suite",
        metavar="NAME",
        help="protocol of a text: text8, wikitext2, lm1b, ptb, lambada, agnews, pubmed, arxiv, blimp, ..., or a .json file (no suite)",
    )
    add("--input", nargs="+", default=(), metavar="FILE", help="files that hold the text of the suite")
    add("--documents", type=flags.whole(1), metavar="N", help="number of documents (or pairs) of the suite, spread evenly over it (all)")
    add("--window", type=flags.tokens, metavar="N", help="window of the network, tokens (the training length, or the suite's if shorter)")
    add(
        "--stride",
        type=flags.tokens,
        metavar="N",
        help="scored tokens of each further window; its other tokens are clean context (all of the window)",
    )
    add(
        "--remainder",
        choices=("keep", "drop", "truncate", "tail"),
        help="treatment of text that does not fill a window (keep, or the suite's)",
    )
    add(
        "--tail",
        metavar="TAIL",
        help="what follows the answers of supervised data, as config.data.tail says it; its nats are part of the answers' bound, its "
        "tokens are not counted (as the run was trained)",
    )
    add(
        "--likelihood",
        default="nelbo",
        help="the number: nelbo, the bound; order:RULE, exact under a rule of `sample --rule` that does not look at the "
        "drawn tokens, as in order:entropy_bound(gamma=0.1), order:margin(count=2, temperature=0.8); subsets, exact "
        "over all orders of at most 10 tokens; "
        "tube(orders=16), a bound from below. The bound is measured beside the others (nelbo)",
    )
    add(
        "--document-ends",
        choices=("known", "counted"),
        default="known",
        help="where documents end: known to a network that reads whole rows, or counted by the lengths of the training documents (known)",
    )
    add("--batch", type=flags.whole(1, 2**20), default=32, help="windows at a time; does not change the result (32)")
    add("--nodes", type=flags.whole(1, 4096), default=NODES, help=f"nodes of the quadrature over time t ({NODES})")
    add("--draws", type=flags.whole(1, MOST_CALLS - 1), default=1, help="corruptions per node; from 2 on, the error is split by cause (1)")
    add(
        "--rule",
        choices=RULES,
        default="gauss",
        help="quadrature rule over time t; count: the k-form of masked processes (gauss)",
    )
    add("--windows", type=flags.whole(1), metavar="N", help="number of windows, from the first on (all)")
    add("--seed", type=flags.seed, default=0, help="seed of the corruptions; the same seed gives all runs the same noise (0)")
    add("--against", type=flags.input_folder, metavar="DIR", help="second run; the difference has its own error: same text, same noise")
    add("--against-step", type=flags.whole(0), metavar="N", help="step of the second run's checkpoint (the newest)")
    add("--per-document", type=flags.output_file, metavar="FILE.npz", help="file for nats, tokens and bytes of every document")
    add("--breakdown", action="store_true", help="table of nats/token by time t, position in the window and frequency of the token (off)")
    add("--plot", type=flags.output_file, metavar="FILE.png", help="file for a picture of the breakdown (requires matplotlib)")
    add("--json", type=flags.output_file, metavar="FILE", help="file for the result with its protocol and provenance")


def run(arguments: argparse.Namespace, _) -> None:
    """Measures, prints, writes."""
    from dlmjax.evaluate import EvaluationSettings, TextSettings, evaluate, evaluate_pairs
    from dlmjax.evaluation import breakdown
    from dlmjax.run import open_run

    names = ("data", "split", "suite", "documents", "window", "stride", "remainder", "windows", "tail")
    text = TextSettings(files=tuple(arguments.input), **{name: getattr(arguments, name) for name in names})
    settings = EvaluationSettings(
        **{name: getattr(arguments, name) for name in ("nodes", "draws", "rule", "seed", "batch", "likelihood", "document_ends")}
    )
    pairs = text.protocol is not None and text.protocol.task == "pairs"
    absent = ("against", "per_document", "breakdown", "plot", "stride", "windows")
    if pairs and any(getattr(arguments, name) for name in absent):
        requested = [f"--{name}".replace("_", "-") for name in absent if getattr(arguments, name)]
        raise InputError(f"{', '.join(requested)} conflicts with --suite {text.suite}, which has pairs; leave it out")
    if arguments.plot:
        breakdown.require_figures()
    for file in filter(None, (arguments.json, arguments.per_document, arguments.plot)):
        make_folder(file)
    opened = open_arguments(arguments)
    if pairs:
        _run_pairs(opened, evaluate_pairs(opened, text, settings), arguments.json)
        return
    against = None
    if arguments.against:
        named = {name: getattr(arguments, name) for name in ("weights", "trust_code")}
        against = open_run(arguments.against, step=arguments.against_step, **named)
    tables = bool(arguments.breakdown or arguments.plot)
    found = evaluate(opened, text, settings, against=against, documents=bool(arguments.per_document), tables=tables)
    print(_table(found), flush=True)
    if against:
        print(f"  against {against.workdir}, step {against.step}, {against.weights} weights: {found.difference.summary()}", flush=True)
        if drift := found.report["difference"]["weight_drift"]:
            most = max(drift, key=drift.get)
            usual = statistics.median(drift.values())
            print(f"  weights moved from its by {usual:.1%} of their norm (median), most {most}, by {drift[most]:.1%}", flush=True)
    if arguments.breakdown:
        print(breakdown.as_text(found.tables), flush=True)
    if arguments.json:
        write_json(arguments.json, found.report)
    if arguments.per_document:
        found.by_document.write(arguments.per_document, found.text.ids)
    if arguments.plot:
        of = found.text.protocol["suite"] or found.text.protocol["corpus"]
        breakdown.plot(found.tables, arguments.plot, f"{of}, {found.text.split}, step {opened.step}")


def _run_pairs(opened: Run, found: PairEvaluation, json: str | None) -> None:
    """Prints and writes the accuracy on minimal pairs."""
    lines = [f"{found.suite.name}: {opened.experiment.process.name}, step {opened.step}, {opened.weights} weights", found.result.summary()]
    print("\n  ".join([*lines, *found.report["cautions"]]), flush=True)
    if json:
        write_json(json, found.report)


def _table(found: Evaluation) -> str:
    """The result and its baselines, in bits/byte."""
    result, report = found.result, found.report
    rows = []
    for one in filter(None, (result, found.nelbo)):
        number = "" if found.nelbo is None else f", {one.likelihood}"
        name = f"{one.process}, step {one.step}, {one.weights} weights{number} {one.sign}"
        rows.append((name, one.bits_per_byte, one.error_bits_per_byte))
    rows += [(name, bits, None) for name, bits in found.baselines.items()]
    width = max(len(name) for name, _, _ in rows)
    name = f"{found.suite.name}, {result.split} split" if found.suite else f"{result.split} split"
    lines = [f"{name}: {result.tokens:,} tokens, {result.bytes or 0:,} bytes, {result.windows:,} windows of {result.length}"]
    lines += [f"  {'':{width}}  bits/byte"]
    for name, bits, error in rows:
        number = f"{bits:9.4f}" if bits is not None else f"{'-':>9}"
        lines.append(f"  {name:{width}}  {number}" + (f" ± {error:.4f}" if error is not None else ""))
    lines.append(f"  {result.summary()}")
    if found.nelbo is not None:
        lines += _price(found)
    if accuracy := (found.nelbo or result).accuracy():
        lines.append(f"  {accuracy}")
    if "document_ends_nats_per_token" in report:
        lines.append(f"  of these nats/token {report['document_ends_nats_per_token']:.4f} are for where documents end")
    if roles := report.get("roles"):
        lines += [
            "  nats/token by role",
            *(f"    {row['role']:>16}  {row['nats_per_token']:8.4f}  {row['tokens']:,} tokens" for row in roles),
        ]
    if "words" in report and report["words"]["perplexity"] is not None:
        words = report["words"]
        lines.append(f"  perplexity per word {result.sign} {words['perplexity']:,.1f} ({words['words']:,} words)")
    lines += [f"  {line}" for line in report["cautions"]]
    return "\n".join(lines)


def _price(found: Evaluation) -> list[str]:
    """The bound beside another likelihood, the difference and what it means, and what both cost."""
    result, bound = found.result, found.nelbo
    meaning = {
        "subsets": "the price of the bound",
        "tube": "at least the price of the bound, within the errors",
    }.get(result.likelihood.partition("(")[0], "another law than the bound's, which may be better or worse")
    parallel = []
    if "parallel" in found.report:
        of = found.report["parallel"]
        error = of["stderr_nats_per_token"]
        price = f"{of['nats_per_token']:+.4f} ± {'unknown' if error is None else f'{error:.4f}'} nats/token"
        parallel = [f"  price of parallel steps, less {of['against']} ({of['calls_per_token']:.1f} network passes per token): {price}"]
    seconds = f"{found.report['made']['seconds']:.1f} s, the NELBO {bound.calls_per_token:.1f} in {found.report['nelbo']['seconds']:.1f} s"
    return [
        f"  {bound.summary()}",
        f"  NELBO less {result.likelihood} ({meaning}): {found.price.summary()}",
        *parallel,
        f"  cost: {result.calls_per_token:.1f} network passes per token in {seconds}",
    ]
