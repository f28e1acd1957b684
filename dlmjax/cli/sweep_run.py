"""Flags of `dlmjax sweep run` and `dlmjax sweep status`, and what they call. Imports no jax: a sweep's own process never does."""

import argparse
import sys

from dlmjax import flags

EXECUTORS = ("local", "slurm", "kubernetes", "print")


def add_run(command: argparse.ArgumentParser) -> None:
    """The flags of `sweep run`."""
    add = command.add_argument
    add("directory", type=flags.input_folder, metavar="DIR", help="made by `dlmjax sweep plan`")
    add("--executor", default="local", choices=EXECUTORS, help="where the runs run; print: one command for each, for any other (local)")
    add("--only", nargs="+", metavar="ID", help="only these runs")
    add("--line", type=flags.whole(0), metavar="I", help="only the run in this line of the manifest, from 0: for arrays of jobs")
    add(
        "--jobs",
        type=flags.whole(1, 4096),
        metavar="N",
        help="runs at a time; default: one for each GPU, or each core; clusters: as many as there is room for",
    )
    add("--dry-run", action="store_true", help="print what would be handed to the cluster; local: a command for each run that is left")
    batch = command.add_argument_group("slurm, kubernetes")
    add = batch.add_argument
    add("--cpus", type=flags.whole(1, 4096), metavar="C", help="cores of a run; default: the cluster's")
    add("--gpus", type=flags.whole(0, 1), default=0, metavar="G", help="GPUs of a run, 0 or 1 (0)")
    add(
        "--save-seconds", type=flags.whole(1, 10**6), default=120, metavar="S", help="between SIGTERM and the end (120): saving must fit in"
    )
    add("--max-requeues", type=flags.whole(0), default=100, metavar="N", help="how often an unfinished run is started again (100)")
    slurm = command.add_argument_group("slurm")
    add = slurm.add_argument
    add("--time", default="24:00:00", metavar="LIMIT", help="of a run's job (24:00:00)")
    add(
        "--sbatch",
        action="append",
        default=[],
        metavar="=--FLAG=VALUE",
        help="any other option of sbatch, as in --sbatch=--partition=gpu",
    )
    add(
        "--setup",
        action="append",
        default=[],
        metavar="LINE",
        help="a shell line before the start, as in --setup 'module load cuda'",
    )
    pods = command.add_argument_group("kubernetes")
    add = pods.add_argument
    add("--image", help="built from launch/Dockerfile")
    add("--namespace", default="default")
    add(
        "--claim",
        action="append",
        default=[],
        metavar="NAME=/DIR",
        help="mount a volume claim that many pods can write; DIR lies on it",
    )
    add(
        "--node",
        action="append",
        default=[],
        metavar="LABEL=VALUE",
        help="of the nodes, as in cloud.google.com/gke-accelerator=nvidia-l4",
    )


def add_status(command: argparse.ArgumentParser) -> None:
    """The flags of `sweep status`."""
    command.add_argument("directory", type=flags.input_folder, metavar="DIR", help="of a sweep")
    command.add_argument("--watch", action="store_true", help="go on until every run has ended")


def run(arguments: argparse.Namespace) -> int:
    """Runs what has no end yet; returns the exit code: 0, 1 (some runs failed), 75 (stopped, the same command goes on)."""
    from dlmjax.errors import InputError
    from dlmjax.sweep import batch, local
    from dlmjax.sweep.execute import find
    from dlmjax.sweep.manifest import Plan
    from dlmjax.sweep.status import snapshot

    plan, directory = Plan.read(arguments.directory), arguments.directory
    runs = [find(plan, name) for name in dict.fromkeys(arguments.only or ())] or list(plan.runs)
    if arguments.line is not None:
        if arguments.only or not 0 <= arguments.line < len(plan.runs):
            raise InputError(
                f"--line is {arguments.line}; the manifest has lines 0 to {len(plan.runs) - 1}, and --only says the same by id"
            )
        runs = [plan.runs[arguments.line]]
    if arguments.executor == "local" and not arguments.dry_run:
        code = local.run(plan, directory, runs, arguments.jobs, lambda: snapshot(plan, directory).line())
        print(snapshot(plan, directory).text(), file=sys.stderr, flush=True)
        return code
    submits = {"slurm": batch.submit_slurm, "kubernetes": batch.print_jobset}
    submit = submits.get(arguments.executor, batch.print_commands)
    return submit(plan, directory, runs, arguments)


def status(arguments: argparse.Namespace) -> int:
    """Prints the table of a sweep."""
    from dlmjax.sweep.manifest import Plan
    from dlmjax.sweep.status import snapshot, watch

    if arguments.watch:
        watch(arguments.directory)
    else:
        print(snapshot(Plan.read(arguments.directory), arguments.directory).text(), flush=True)
    return 0
