"""`dlmjax quality`: quality of generated text against the number of steps, with `--latency` the speed of sampling."""

from __future__ import annotations

import argparse
import pathlib
from typing import TYPE_CHECKING, Any

from dlmjax import flags
from dlmjax.cli import frontier, repair
from dlmjax.cli.run_flags import add_data, add_placement, add_run, add_sampling, open_arguments, sample_settings
from dlmjax.errors import InputError
from dlmjax.files import as_json, write_atomically, write_json

if TYPE_CHECKING:
    from dlmjax.quality import generated
    from dlmjax.run import Run

HELP = "quality of generated text against steps: generative perplexity, entropy, diversity; speed of sampling; both of a list of rules"


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    add_run(command)
    add_placement(command)
    add = command.add_argument
    add("--scorer", type=flags.input_folder, metavar="HF_DIR", help="directory of a Hugging Face causal language model as scorer (none)")
    add("--scorer-workdir", type=flags.input_folder, metavar="AR_RUN", help="workdir of an autoregressive run as scorer (none)")
    several = flags.wholes(1, 2**20)
    add("--steps", type=several, default="4,8,16,32,64,128,256", metavar="N,N,...", help="numbers of steps, one row each (4,8,...,256)")
    add("--samples", type=flags.whole(1, 2**20), default=64, help="number of texts of each row (64)")
    add("--length", type=flags.tokens, help="length of a text, tokens (the training length)")
    add("--batch", type=flags.whole(1, 2**20), default=16, help="texts sampled together; a different number draws different texts (16)")
    add_sampling(command)
    add_data(command)
    add(
        "--output",
        type=flags.output_folder,
        metavar="DIR",
        help="directory for quality.json, quality.png and samples.jsonl; with --latency for latency.json, with --frontier for "
        "frontier.json and frontier.png, with --repair for repair.json (not written)",
    )
    add(
        "--latency",
        action="store_true",
        help="speed of sampling instead: whole canvas, blocks with a cache, autoregression with a cache, and "
        "the policy of --cache with its drift (off)",
    )
    add("--batches", type=several, default="1,8", metavar="N,N,...", help="batch sizes of --latency, texts (1,8)")
    add("--blocks", type=flags.wholes(1, flags.MOST_TOKENS), default="16", metavar="N,N,...", help="block sizes of --latency, tokens (16)")
    add(
        "--repeats",
        type=flags.whole(1, 1000),
        default=3,
        help="timed runs of --latency after one that compiles; the median is reported (3)",
    )
    frontier.add_flags(command)
    repair.add_flags(command)


def run(arguments: argparse.Namespace, _) -> None:
    """Prints quality against steps, with `--latency` the speed of sampling, with `--frontier` both of rules, with `--repair` repair."""
    opened = open_arguments(arguments)
    experiment = opened.experiment
    origin = {"workdir": str(arguments.workdir), "step": opened.step, "weights": opened.weights, "process": experiment.process.name}
    origin |= opened.placement
    origin["length"] = arguments.length or experiment.config.data.length
    if arguments.search is not None and (arguments.latency or arguments.frontier is not None or arguments.repair is not None):
        raise InputError("--search conflicts with --latency, --frontier and --repair, which measure one sampler; leave it out")
    if arguments.repair is not None:
        repair.run_repair(arguments, opened, origin)
    elif arguments.frontier is not None:
        frontier.run_frontier(arguments, opened, origin)
    else:
        (_latency if arguments.latency else _curve)(arguments, opened, origin)


def _curve(arguments: argparse.Namespace, opened: Run, origin: dict[str, Any]) -> None:
    from dlmjax.experiment import held_out_of
    from dlmjax.quality import generated, mauve_score
    from dlmjax.quality.hf_scorer import open_scorer
    from dlmjax.sampling import SampleSettings

    settings = sample_settings(arguments, opened, steps=SampleSettings.steps)
    scorer = open_scorer(opened.experiment.tokenizer, arguments.scorer, arguments.scorer_workdir, arguments.trust_code)
    corpus, why_not = held_out_of(opened, arguments.data, arguments.split)
    with_mauve = scorer is not None and corpus is not None and mauve_score.available()
    how = {"length": origin["length"], "batch": arguments.batch, "seed": arguments.seed, "scorer": scorer, "corpus": corpus}
    how["search"] = arguments.search
    curve = generated.steps_curve(opened, settings, arguments.steps, count=arguments.samples, mauve=with_mauve, **how)
    absent = [why_not] if corpus is None else []
    absent += [] if scorer else ["no generative perplexity and no MAUVE, which require --scorer or --scorer-workdir"]
    absent += [] if with_mauve or scorer is None or corpus is None else ["no MAUVE, which requires pip install 'dlmjax[quality]'"]
    report = {
        **origin,
        "seed": arguments.seed,
        "batch": arguments.batch,
        "settings": settings.to_json() | {"steps": None},
        **({} if arguments.search is None else {"search": arguments.search}),
        "scorer": scorer.record if scorer else None,
        "mauve_seeds": mauve_score.SEEDS if with_mauve else None,
        "rows": list(curve.rows),
        "held_out": None if corpus is None else {"split": arguments.split, **curve.held_out},
        "absent": absent,
    }
    head = f"{origin['process']}, step {opened.step}, {opened.weights} weights; {arguments.samples} texts of {origin['length']} tokens, "
    head += f"temperature {arguments.temperature:g}"
    scored = f"; scored by {scorer.record['scorer']} ({scorer.record['kind']})" if scorer else ""
    print(f"{head}, {report['rows'][0]['precision']}{scored}\n\n{generated.table(curve)}", flush=True)
    for line in absent:
        print(f"({line})", flush=True)
    if arguments.output:
        _write_quality(pathlib.Path(arguments.output), report, curve, head + scored)


def _write_quality(output: pathlib.Path, report: dict, curve: generated.Curve, title: str) -> None:
    """Writes texts, plot and table; the table last, so that where it exists the others do."""
    from dlmjax.quality import plot

    lines = [
        {"steps": row["steps"], "sample": number, "text": sample.text, "token_ids": sample.ids_L.tolist()}
        for row, texts in zip(curve.rows, curve.texts, strict=True)
        for number, sample in enumerate(texts.samples)
    ]
    write_atomically(output / "samples.jsonl", "".join(as_json(line) + "\n" for line in lines))
    if plot.available():
        write_atomically(output / "quality.png", plot.draw(curve, title))
    else:
        print("(no quality.png, which requires matplotlib: pip install 'dlmjax[quality]')", flush=True)
    write_json(output / "quality.json", report)
    print(f"written to {output}", flush=True)


def _latency(arguments: argparse.Namespace, opened: Run, origin: dict[str, Any]) -> None:
    from dlmjax.quality.latency import latency_grid, table, ways_of
    from dlmjax.sampling import SampleSettings

    if arguments.cache is True:
        raise InputError("--latency times a cache policy; give --cache one, such as dual(block=32), or leave it out")
    settings = sample_settings(arguments, opened, steps=SampleSettings.steps)
    # All ways are checked before the first is timed.
    ways = list(ways_of(opened, arguments.steps, origin["length"], arguments.blocks, settings))
    how = {"length": origin["length"], "repeats": arguments.repeats, "log": lambda line: print(f"timing {line}", flush=True)}
    rows = latency_grid(opened, ways, arguments.batches, **how)
    print(
        f"\n{opened.experiment.parameter_count / 1e6:.2f}M parameters, texts of {origin['length']} tokens, {rows[0]['precision']}, "
        f"{rows[0]['device']}; median of {arguments.repeats}\n\n{table(rows)}",
        flush=True,
    )
    if arguments.output:
        write_json(pathlib.Path(arguments.output) / "latency.json", {**origin, "rows": rows})
