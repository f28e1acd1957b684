"""`dlmjax interval`: prints the times at which the loss of a run varies least, and the overrides by which a run trains on these times
alone, or more often at the times whose loss varies more."""

import argparse
import dataclasses

from dlmjax import flags
from dlmjax.choices import text_of
from dlmjax.cli.run_flags import add_data, add_run, open_arguments
from dlmjax.files import write_json

HELP = "interval of times t in which the loss of a run varies least, for training on these times alone"


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    add_run(command)
    add_data(command)
    add = command.add_argument
    add("--batch", type=flags.whole(1, 2**20), default=32, help="windows at a time (32)")
    add("--windows", type=flags.whole(1), default=256, help="number of windows that are measured (256)")
    add("--draws", type=flags.whole(1, 2**20), default=4, help="times of each window, each with two corruptions (4)")
    add("--least", type=flags.number(0, 1, open_low=True), default=0.5, help="width of the narrowest interval that is considered (0.5)")
    add("--seed", type=flags.seed, default=0, help="seed of the times and corruptions (0)")
    add("--json", type=flags.output_file, metavar="FILE", help="file for the result")


def run(arguments: argparse.Namespace, _) -> None:
    """Measures, prints, writes."""
    from dlmjax.data import EvalWindows, eval_batches
    from dlmjax.evaluation.interval import IntervalSettings, measure_interval
    from dlmjax.experiment import split_of

    opened = open_arguments(arguments)
    experiment = opened.experiment
    ways = experiment.partition.ways("batch")
    held_out = EvalWindows(split_of(opened, arguments.data, arguments.split), experiment.config.data.length, limit=arguments.windows)
    found = measure_interval(
        experiment.objective,
        experiment.network.bind,
        opened.params,
        eval_batches(held_out, batch_size=-(-arguments.batch // ways) * ways),
        IntervalSettings(arguments.windows, arguments.draws, arguments.least, arguments.seed),
        put_batch=experiment.partition.put_batch,
        self_condition=experiment.network.self_condition,
    )
    importance = text_of("importance", {"heights": found.noise.heights})
    print(
        f"the loss varies least for t in [{found.low:.2f}, {found.high:.2f}]: variance {found.variance:.3f}, over all times "
        f"{found.variance_of_all:.3f} ({found.samples} samples)\n"
        f'train with: --config.process.times="stratified(low={found.low:.2f}, high={found.high:.2f})" (not a bound)\n'
        f'or, by the second moments of the loss, still a bound: --config.process.times="{importance}"\n'
        f"{found.noise.summary()}" + (f"\n{found.noise.advice}" if found.noise.advice else "") + "\n"
        f"gradient norm at t in [0, 0.1), [0.1, 0.2), ...: {', '.join(f'{norm:.3g}' for norm in found.gradient_norms)}",
        flush=True,
    )
    if arguments.json:
        write_json(arguments.json, dataclasses.asdict(found))
