"""`dlmjax plan`: what a training step of a config would require of hardware that is not here. docs/plan.md explains the result."""

import argparse
import os
from collections.abc import Sequence

from dlmjax import flags
from dlmjax.files import as_json, write_atomically

HELP = "requirements of a config on TPUs or GPUs that are not here: memory, FLOPs, collectives, step time"


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    add = command.add_argument
    add("--config", required=True, metavar="FILE", help="file with get_config(), such as configs/llada_8b.py")
    add(
        "--topology",
        required=True,
        metavar="CHIP:SHAPE",
        help="hardware: v4, v5e, v5p or v6e with the shape of a slice (v5e:4x4, v5p:8x8x8), compiled with libtpu; a100, h100 or h200 with "
        "a number of GPUs (h100:64), by an analytic model",
    )
    add("--slices", type=flags.whole(1, 2**16), default=1, metavar="N", help="number of slices, joined by the data-centre network (1)")
    add(
        "--data",
        type=flags.input_folder,
        metavar="DIR",
        help="prepared corpus, for a config that takes its vocabulary, and a process that takes its token counts, from the corpus",
    )
    add("--search", action="store_true", help="try mesh shapes, remat policies and microbatches; print the table, best first")
    add("--compiles", type=flags.whole(1, 1000), default=3, metavar="N", help="layouts of a search that are compiled, best first (3)")
    add("--analytic", action="store_true", help="compile nothing: the analytic model alone, in seconds")
    add("--quick", action="store_true", help="compile with the compiler's least effort: about 5 times faster, memory a few per cent off")
    add("--strict", action="store_true", help="exit with code 1 if nothing fits")
    add("--json", type=flags.output_file, metavar="FILE", help="file for the plan, or for all plans of the search")
    add("--config.SECTION.LEAF", dest="ignored", metavar="VALUE", help="value of a leaf, as in --config.execution.remat=dots")


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Prints the plan or the table of plans, writes them; returns the exit code."""
    # libtpu is here to compile: jax must not look for a TPU on this machine.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from dlmjax import config as config_lib
    from dlmjax.plan import text
    from dlmjax.plan.hardware import make_plan, search_plans, vocabulary_of
    from dlmjax.plan.topology import describe

    config, slices = config_lib.load(arguments.config, overrides), arguments.slices
    vocabulary, counts = vocabulary_of(config, arguments.data)
    topology = describe(arguments.topology, slices)
    if arguments.search:
        compiles = 0 if arguments.analytic else arguments.compiles
        plans = search_plans(config, topology, vocabulary, counts, compiles=compiles, quick=arguments.quick)
        print(text.table(plans), flush=True)
    else:
        plans = [make_plan(config, topology, vocabulary, counts, analytic=arguments.analytic, quick=arguments.quick)]
        title = f"{arguments.config} on {arguments.topology}" + (f" x {slices} slices" if slices > 1 else "")
        print(text.page(plans[0], title), flush=True)
    if arguments.json:
        record = {"config": arguments.config, "overrides": list(overrides), "plans": [text.as_json(each) for each in plans]}
        write_atomically(arguments.json, as_json(record, indent=1) + "\n")
    return int(arguments.strict and not plans[0].fits)
