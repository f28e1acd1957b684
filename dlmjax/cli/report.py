"""`dlmjax report`: one HTML page of a run, which needs no network and no other file."""

import argparse
import pathlib

from dlmjax import flags
from dlmjax.cli.run_flags import add_run, open_arguments
from dlmjax.files import write_atomically

HELP = "one HTML page of a run: curves, likelihood, a sample with its denoising, wall time, corpus, config"
PAGE = "report.html"


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    add_run(command)
    add = command.add_argument
    add("--output", type=flags.output_file, metavar="FILE.html", help=f"file for the page ({PAGE} in the workdir)")
    add("--prompt", type=flags.text, default="", help="text at the start of the sample (none)")
    add("--length", type=flags.tokens, help="length of the sample, tokens (the training length)")
    add("--steps", type=flags.whole(0, 2**20), default=64, help="denoising steps of the sample; 0: no sample (64)")
    add("--seed", type=flags.seed, default=0, help="seed of the sample, 0 to 4294967295 (0)")


def run(arguments: argparse.Namespace, _) -> None:
    """Reads the run, samples, writes the page."""
    from dlmjax.evaluation.record import provenance
    from dlmjax.experiment import open_experiment
    from dlmjax.report import read_facts, render, trained_phases

    facts = read_facts(arguments.workdir)
    output = arguments.output or str(pathlib.Path(arguments.workdir) / PAGE)
    if arguments.steps and facts.checkpoints:
        opened = open_arguments(arguments)
        experiment, trace = opened.experiment, _trace(arguments, opened)
    else:
        experiment, trace = open_experiment(arguments.workdir, trust_code=arguments.trust_code, process=arguments.process), ""
    write_atomically(output, render(facts, provenance(), experiment.parameter_count, trace, trained_phases(experiment, facts.step)))
    print(f"report: {output}")


def _trace(arguments: argparse.Namespace, opened) -> str:
    """The denoising of one sample as a part of the page."""
    from dlmjax.sampling import record
    from dlmjax.sampling.html import section

    sampler, canvas = opened.sampler(steps=arguments.steps), opened.canvas(arguments.prompt, length=arguments.length)
    _, trace = record(sampler, opened.params, canvas, seed=arguments.seed, tokenizer=opened.tokenizer)
    return section(trace)
