"""`dlmjax quality --frontier`: nats of held-out text, calls, seconds and generated text of a list of rules, stops and caches."""

from __future__ import annotations

import argparse
import pathlib
from typing import TYPE_CHECKING, Any

from dlmjax import flags
from dlmjax.cli.run_flags import check_rule, check_stop, sample_settings
from dlmjax.errors import InputError
from dlmjax.files import write_atomically, write_json

if TYPE_CHECKING:
    from dlmjax.quality.frontier import Frontier
    from dlmjax.run import Run


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of `--frontier`."""
    add = command.add_argument
    add(
        "--frontier",
        nargs="*",
        metavar="RULE",
        help="nats of held-out text, calls and seconds of a list of rules instead, each with its own values of other flags, as in "
        '"margin; steps=16; stop=exit(bound=0.1)"; without one: a list of six (off)',
    )
    add("--temperatures", type=_temperatures, default=(), metavar="T,T,...", help="temperatures of each rule of --frontier (--temperature)")
    add("--windows", type=flags.whole(1), default=64, metavar="N", help="windows of held-out text of --frontier, from the first (64)")
    add("--within", type=flags.number(0), default=0.01, help="price of equal quality of --frontier, nats/token (0.01)")


def _temperatures(text: str) -> tuple[float, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise argparse.ArgumentTypeError(f"is {text!r:.60}; give numbers with commas between them, such as 0.6,0.8,1")
    return tuple(flags.number(0)(part) for part in parts)


def run_frontier(arguments: argparse.Namespace, opened: Run, origin: dict[str, Any]) -> None:
    """Prints the table and the rule with the fewest calls at equal quality; writes frontier.json and frontier.png."""
    from dlmjax.evaluate import EvaluationSettings, TextSettings
    from dlmjax.experiment import held_out_of
    from dlmjax.quality import frontier, plot
    from dlmjax.quality.frontier_plot import draw
    from dlmjax.quality.hf_scorer import open_scorer
    from dlmjax.sampling import SampleSettings

    if arguments.latency:
        raise InputError("--frontier conflicts with --latency; give one of them")
    causal = opened.experiment.process.attention.causal
    texts = arguments.frontier or (["left_to_right"] if causal else list(frontier.DEFAULT))
    for text in texts:
        rule, *values = (part.strip() for part in text.split(";"))
        check_rule(rule)
        for value in values:
            if value.startswith("stop"):
                check_stop(value.partition("=")[2].strip())
    base = sample_settings(arguments, opened, steps=SampleSettings.steps, rule="left_to_right" if arguments.stop else "ancestral")
    entries = frontier.entries_of(opened, texts, base, arguments.steps, origin["length"])
    scorer = open_scorer(opened.experiment.tokenizer, arguments.scorer, arguments.scorer_workdir, arguments.trust_code)
    corpus, why_not = held_out_of(opened, arguments.data, arguments.split)
    text = None if corpus is None else TextSettings(arguments.data, arguments.split, window=origin["length"], windows=arguments.windows)
    found = frontier.frontier(
        opened,
        entries,
        text,
        EvaluationSettings(seed=arguments.seed),
        temperatures=arguments.temperatures,
        corpus=corpus,
        scorer=scorer,
        count=arguments.samples,
        length=origin["length"],
        batch=arguments.batch,
        seed=arguments.seed,
        log=lambda line: print(line, flush=True),
    )
    absent = ([why_not] if corpus is None else []) + ([] if scorer else ["no perplexity, which requires --scorer or --scorer-workdir"])
    absent += [f"no nats of {row['label']}: {row['no_likelihood']}" for row in found.rows if "no_likelihood" in row and corpus is not None]
    title = f"{origin['process']}, step {opened.step}, {opened.weights} weights; {arguments.samples} texts of {origin['length']} tokens, "
    title += f"batch {min(arguments.batch, arguments.samples)}"
    title += f", nats of {arguments.windows} windows" if corpus is not None else ""
    equal = frontier.equal_quality(found.rows, arguments.within)
    print(f"\n{title}\n\n{frontier.table(found)}\n", flush=True)
    print("\n".join(([_sentence(equal)] if equal else []) + [f"({line})" for line in absent]), flush=True)
    if arguments.output:
        report = {**origin, "seed": arguments.seed, "scorer": scorer.record if scorer else None, "rows": list(found.rows)}
        report |= {"held_out": found.held_out, "equal_quality": equal, "absent": absent}
        if corpus is not None and found.held_out:
            report["at_held_out_entropy"] = list(frontier.at_entropy(found.rows, found.held_out["entropy"]))
        _write(pathlib.Path(arguments.output), report, found, draw(found, title) if plot.available() else None)


def _sentence(equal: dict[str, Any]) -> str:
    return (
        f"fewest calls within {equal['within']:g} nats/token of {equal['difference_against']}: {equal['label']}, "
        f"{equal['difference']:+.4f} ± {equal['stderr_difference']:.4f} nats/token with {equal['calls_held_out']:.1f} calls, "
        f"{equal['times']:.2f} times fewer than {equal['difference_calls']:.1f}"
    )


def _write(output: pathlib.Path, report: dict[str, Any], found: Frontier, picture: bytes | None) -> None:
    """Writes picture and table; the table last, so that where it exists the picture does."""
    if picture is not None:
        write_atomically(output / "frontier.png", picture)
    else:
        print("(no frontier.png, which requires matplotlib: pip install 'dlmjax[quality]')", flush=True)
    write_json(output / "frontier.json", report)
    print(f"written to {output}", flush=True)
