"""`dlmjax sweep plan`, `run` and `status`: flags, the call, what is printed. Imports nothing heavy: `dlmjax --help` reads this file.

`sweep run` and `sweep status` import no jax; the processes of the runs do.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import sys
import time

from dlmjax import flags
from dlmjax.cli.streams import nobody_reads
from dlmjax.errors import InputError
from dlmjax.files import make_folder

HELP = "runs of a scaling law: plan them, run them on any executor, show their progress"
EXECUTORS = ("local", "slurm", "kubernetes", "print")


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of `sweep plan`, `sweep run` and `sweep status`."""
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, help_text, add in (
        ("plan", "a sweep's file -> a table of its runs and their cost, and the manifest that executors read", add_plan),
        ("run", "the runs of a planned sweep that are not finished yet", add_run),
        ("status", "the progress of a sweep", add_status),
    ):
        action = actions.add_parser(name, help=help_text, description=help_text, allow_abbrev=False)
        action.add_argument("--debug", action="store_true", help="show the traceback of an error")
        add(action)


def add_plan(command: argparse.ArgumentParser) -> None:
    """The flags of `sweep plan`."""
    add = command.add_argument
    add("sweep", metavar="SWEEP.py[:SIZE]", help="file with get_sweep(), such as configs/sweeps/isoflop.py:tiny")
    add(
        "--output",
        type=flags.output_folder,
        metavar="DIR",
        help="directory for sweep.json and manifest.jsonl; without it the table is printed and nothing is written",
    )
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="argument of get_sweep(), such as data=runs/demo/data")
    add("--device", metavar="CHIP[:SHAPE]", help="chip of the expected times: h100, v5p, ...; with a shape, as h100:8, memory too")
    share = flags.number(0, 1, open_low=True)
    add("--utilisation", type=share, default=0.4, metavar="SHARE", help="share of the chip's peak that model FLOPs reach (0.4)")
    speed = flags.number(0, open_low=True)
    add("--flops-per-second", type=speed, metavar="N", help="measured model FLOP/s, in place of a share of the peak")


def add_run(command: argparse.ArgumentParser) -> None:
    """The flags of `sweep run`."""
    add = command.add_argument
    add("directory", type=flags.input_folder, metavar="DIR", help="output directory of `dlmjax sweep plan`")
    add("--executor", default="local", choices=EXECUTORS, help="where the runs run; print: one command a run, for any scheduler (local)")
    add("--only", nargs="+", metavar="ID", help="ids of the runs to run (all)")
    add("--line", type=flags.whole(0), metavar="I", help="line of the manifest to run, from 0: for arrays of jobs (all)")
    add("--jobs", type=flags.whole(1, 4096), metavar="N", help="runs at a time (one for each GPU, or each core; clusters: no limit)")
    add("--dry-run", action="store_true", help="print what would be submitted; local: a command for each run that is left")
    batch = command.add_argument_group("slurm, kubernetes")
    add = batch.add_argument
    add("--cpus", type=flags.whole(1, 4096), metavar="C", help="cores of a run (the cluster's default)")
    add("--gpus", type=flags.whole(0, 1), default=0, metavar="G", help="GPUs of a run, 0 or 1 (0)")
    add("--save-seconds", type=flags.whole(1, 10**6), default=120, metavar="S", help="seconds from SIGTERM to the end, for saving (120)")
    add("--max-requeues", type=flags.whole(0), default=100, metavar="N", help="starts after the first of an unfinished run (100)")
    slurm = command.add_argument_group("slurm")
    add = slurm.add_argument
    add("--time", default="24:00:00", metavar="LIMIT", help="time limit of a run's job (24:00:00)")
    example = "any other option of sbatch, as in --sbatch=--partition=gpu"
    add("--sbatch", action="append", default=[], metavar="=--FLAG=VALUE", help=example)
    example = "shell line before the start, as in --setup 'module load cuda'"
    add("--setup", action="append", default=[], metavar="LINE", help=example)
    pods = command.add_argument_group("kubernetes")
    add = pods.add_argument
    add("--image", metavar="IMAGE", help="container image, built from launch/Dockerfile")
    add("--namespace", default="default", metavar="NAME", help="namespace of the JobSet (default)")
    example = "volume claim that many pods can write, and where it is mounted; DIR is on it"
    add("--claim", action="append", default=[], metavar="NAME=/DIR", help=example)
    example = "label of the nodes, as in cloud.google.com/gke-accelerator=nvidia-l4"
    add("--node", action="append", default=[], metavar="LABEL=VALUE", help=example)


def add_status(command: argparse.ArgumentParser) -> None:
    """The flags of `sweep status`."""
    command.add_argument("directory", type=flags.input_folder, metavar="DIR", help="directory of a sweep")
    command.add_argument("--watch", action="store_true", help="repeat the table until every run has ended")


def run(arguments: argparse.Namespace, _) -> int | None:
    """Calls the function of the subcommand."""
    return {"plan": plan, "run": run_runs, "status": status}[arguments.action](arguments)


def plan(arguments: argparse.Namespace) -> None:
    """Plans a sweep, prints its table, writes --output."""
    # A plan touches no device: jax must not look for one.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from dlmjax.cli.sweep_text import table
    from dlmjax.sweep import definition, planning
    from dlmjax.sweep.manifest import SWEEP

    if arguments.output is not None:
        if not arguments.output:
            raise InputError("--output is empty; name a directory, or leave it out to print the table alone")
        make_folder(pathlib.Path(arguments.output) / SWEEP)
    device = planning.device_of(arguments.device, arguments.utilisation, arguments.flops_per_second)
    sweep = definition.load(arguments.sweep, arguments.set)
    planned, refused = planning.plan_sweep(sweep, arguments.sweep, device)
    print(table(planned, refused, device), flush=True)
    if arguments.output:
        planning.write_plan(planned, arguments.output)
        print(f"planned in {arguments.output}; run it with: dlmjax sweep run {arguments.output} --executor local", flush=True)


def run_runs(arguments: argparse.Namespace) -> int:
    """Runs what is not finished; returns the exit code: 0, 1 (some runs failed), 75 (stopped, the same command goes on)."""
    from dlmjax.cluster import requeue
    from dlmjax.sweep import batch, local
    from dlmjax.sweep.execute import find
    from dlmjax.sweep.manifest import SweepPlan
    from dlmjax.sweep.status import snapshot

    planned, directory = SweepPlan.read(arguments.directory), arguments.directory
    runs = [find(planned, name) for name in dict.fromkeys(arguments.only or ())] or list(planned.runs)
    if arguments.line is not None:
        if arguments.only:
            raise InputError("--line conflicts with --only, which names runs by id; give one of them")
        if not 0 <= arguments.line < len(planned.runs):
            raise InputError(f"--line is {arguments.line}; the manifest has lines 0 to {len(planned.runs) - 1}")
        runs = [planned.runs[arguments.line]]
    if arguments.executor == "print" or (arguments.executor == "local" and arguments.dry_run):
        for line in batch.commands(planned, directory, runs):
            print(line)
        return 0
    if arguments.executor == "local":
        code = local.run(planned, directory, runs, arguments.jobs, _log, lambda: snapshot(planned, directory).line())
        _log(snapshot(planned, directory).text())
        return code
    options = batch.JobOptions(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(batch.JobOptions)})
    if arguments.executor == "kubernetes":
        print(json.dumps(batch.jobset(planned, directory, runs, options), indent=2))  # JSON is YAML too: `... | kubectl apply -f -`
        return 0
    script = batch.slurm_script(planned, directory, runs, options)
    if arguments.dry_run:
        print(script, end="")
    else:
        (pathlib.Path(directory) / "slurm").mkdir(exist_ok=True)
        print(f"submitted job {requeue.submit(script)}; see: dlmjax sweep status {directory} --watch")
    return 0


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def status(arguments: argparse.Namespace, every: float = 2.0) -> int:
    """Prints the table of a sweep; with --watch again every `every` seconds until every run has ended, in place on a terminal."""
    from dlmjax.sweep.manifest import SweepPlan
    from dlmjax.sweep.status import snapshot

    planned = SweepPlan.read(arguments.directory)
    while True:
        seen = snapshot(planned, arguments.directory)
        clear = "\x1b[H\x1b[J" if arguments.watch and sys.stdout.isatty() else ""
        print(clear + seen.text(), flush=True)
        if not arguments.watch or nobody_reads() or not seen.counts()["running"] + seen.counts()["waiting"]:
            return 0
        time.sleep(every)
