"""Flags of `sweep plan`, `sweep run` and `sweep status`. Imports nothing heavy: `dlmjax --help` reads this file."""

import argparse
import os
import pathlib
from collections.abc import Callable, Iterator

from dlmjax import flags
from dlmjax.errors import InputError
from dlmjax.files import make_folder
from dlmjax.sweep.manifest import SWEEP

Add = Callable[[argparse.ArgumentParser], None]


def commands() -> Iterator[tuple[str, str, Add]]:
    """(name, what it does, what adds its flags)."""
    yield "sweep", "many runs for a scaling law: plan them, run them on any executor, see how far they are", _sweep


def run(arguments: argparse.Namespace, _) -> int | None:
    """Calls the function of the subcommand."""
    if arguments.action == "plan":
        return _plan(arguments)
    from dlmjax.cli import sweep_run as run_flags

    return {"run": run_flags.run, "status": run_flags.status}[arguments.action](arguments)


def _sweep(command: argparse.ArgumentParser) -> None:
    # Imported here and not above: what runs a sweep is a room of its own beside what plans it.
    from dlmjax.cli import sweep_run as run_flags

    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, help_text, add in (
        ("plan", "a sweep's file -> a table of its runs and their cost, and the manifest that executors read", _add_plan),
        ("run", "the runs of a planned sweep that are not finished yet", run_flags.add_run),
        ("status", "how far a sweep is", run_flags.add_status),
    ):
        action = actions.add_parser(name, help=help_text, description=help_text, allow_abbrev=False)
        action.add_argument("--debug", action="store_true", help="show the traceback of an error")
        add(action)


def _add_plan(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("sweep", metavar="SWEEP.py", help="a file with get_sweep(), such as configs/sweeps/micro.py")
    add(
        "--output",
        type=flags.output_folder,
        metavar="DIR",
        help="where sweep.json and manifest.jsonl go; without it the table is printed and nothing is written",
    )
    add(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of get_sweep(), such as data=runs/demo/data",
    )
    add("--device", metavar="CHIP[:SHAPE]", help="for expected times: h100, v5p, ...; with a shape, as h100:8, memory too")
    add(
        "--utilisation",
        type=flags.number(0, 1, open_low=True),
        default=0.4,
        metavar="SHARE",
        help="of the device's peak that model FLOPs are assumed to reach (0.4)",
    )
    add(
        "--flops-per-second",
        type=flags.number(0, open_low=True),
        metavar="N",
        help="model FLOP/s that were measured, instead of a share of a peak",
    )


def _plan(arguments: argparse.Namespace) -> None:
    # A plan touches no device: jax must not look for one.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from dlmjax.cli import sweep_table as plan_table
    from dlmjax.sweep import definition as sweep
    from dlmjax.sweep import planning

    if arguments.output is not None:
        if not arguments.output:
            raise InputError("--output is empty; name a directory, or leave it out to see the table alone")
        make_folder(pathlib.Path(arguments.output) / SWEEP)
    device = planning.device_of(arguments.device, arguments.utilisation, arguments.flops_per_second)
    found = sweep.load(arguments.sweep, arguments.set)
    plan, refused = planning.plan_sweep(found, arguments.sweep, device)
    print(plan_table.table(plan, refused, device), flush=True)
    if arguments.output:
        planning.write_plan(plan, arguments.output)
        print(f"planned in {arguments.output}; run it with: dlmjax sweep run {arguments.output} --executor local", flush=True)
