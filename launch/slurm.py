"""Writes and submits the Slurm job of one `dlmjax train`, which requeues itself until the run is finished.

    python launch/slurm.py --nodes 4 --gpus-per-node 8 --time 24:00:00 --dry-run --config configs/masked.py --workdir runs/masked

`--dry-run` prints the job script; `sbatch` on that script does the same as the command without the flag. The workdir and the corpus must
be on a file system that all nodes share. The job starts one process on each node (`--tasks-per-node` changes it), which find each other
through Slurm's own variables.

How a run continues after its job ends:
    before the time limit   Slurm sends SIGTERM to the processes (not to the batch shell); they save and end; the job requeues itself
    scancel -s TERM JOB     the same by hand
    a peer is lost          the others end with 75; the job requeues itself
    a node is lost          Slurm requeues the job (--requeue)
    scancel JOB             ends it for good: a batch shell that gets SIGTERM itself requeues nothing
    bad input (2), a defect (1)   ends it with that code
A job that was requeued `--max-requeues` times ends with 75 instead.
"""

import pathlib
import shlex
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # run as a file, it must import from the repository

from dlmjax import flags
from dlmjax.cluster import requeue
from dlmjax.errors import InputError
from launch.command import ROOT, Parser, Train, default_name, exit_code, read_train, shell_name


def parser() -> Parser:
    """The flags of this launcher."""
    launcher = Parser("slurm", __doc__, "[--nodes N] [--gpus-per-node G] [--time LIMIT] [--dry-run] --config CONFIG --workdir DIR")
    add = launcher.add_argument
    add("--name", help="name of the job; default: the last part of --workdir")
    add("--nodes", type=flags.whole(1, 4096), default=1, metavar="N")
    add(
        "--tasks-per-node",
        type=flags.whole(1, 1024),
        default=1,
        metavar="T",
        help="processes of each node: 1 (default), with all GPUs of the node, or one for each GPU",
    )
    add("--gpus-per-node", type=flags.whole(0, 1024), default=0, metavar="G", help="GPUs of each node (0: none requested)")
    add("--cpus-per-task", type=flags.whole(1, 4096), metavar="C", help="CPU cores of each process; default: the cluster's")
    add("--time", default="24:00:00", metavar="LIMIT", help="time limit of the job, in the form of sbatch (24:00:00)")
    add(
        "--save-seconds",
        type=flags.whole(1, 10**6),
        default=300,
        metavar="S",
        help="seconds between SIGTERM and the time limit, in which the run saves (300)",
    )
    add("--partition", metavar="NAME")
    add("--account", metavar="NAME")
    add(
        "--sbatch",
        action="append",
        default=[],
        metavar="=--FLAG=VALUE",
        help="any other option of sbatch, as in --sbatch=--qos=high",
    )
    add(
        "--setup",
        action="append",
        default=[],
        metavar="LINE",
        help="shell line before the start, as in --setup 'module load cuda'",
    )
    add("--log", metavar="FILE", help="log file of the job and all its restarts (slurm-NAME-%%j.log); %%j is the number of the job")
    add("--max-requeues", type=flags.whole(0), default=100, metavar="N", help="largest number of restarts (100)")
    add("--python", default=sys.executable, help="path of Python on the nodes (this one)")
    add("--dry-run", action="store_true", help="job script printed, nothing submitted")
    return launcher


def job_script(arguments, train: Train) -> str:
    """The job script for sbatch.

    Raises:
      InputError: no nodes, no time before the signal, GPUs that the processes cannot share, or a config that does not run on them.
    """
    tasks, gpus = arguments.tasks_per_node, arguments.gpus_per_node
    for flag, value, low in (
        ("nodes", arguments.nodes, 1),
        ("tasks-per-node", tasks, 1),
        ("gpus-per-node", gpus, 0),
        ("cpus-per-task", arguments.cpus_per_task or 1, 1),
    ):
        if value < low:
            raise InputError(f"--{flag} is {value}; it must be at least {low}")
    if gpus and tasks not in (1, gpus):
        raise InputError(
            f"--tasks-per-node {tasks} with --gpus-per-node {gpus}: a process has all GPUs of its node or one; write 1 or {gpus}"
        )
    if gpus:
        train.check_devices(arguments.nodes * gpus, "gpu")
    name = shell_name(arguments.name or default_name(train), "--name")
    options = {
        "job-name": name,
        "nodes": arguments.nodes,
        "ntasks-per-node": tasks,
        "gpus-per-node": gpus or None,
        "cpus-per-task": arguments.cpus_per_task,
        "output": arguments.log or f"slurm-{name}-%j.log",
        "chdir": pathlib.Path.cwd(),
        "partition": arguments.partition,
        "account": arguments.account,
    }
    command = [arguments.python, str(ROOT / "launch/unfinished.py"), arguments.python, "-m", "dlmjax", *train.arguments]
    limits = {name: getattr(arguments, name) for name in ("time", "save_seconds", "max_requeues")}
    return requeue.job_script(options, arguments.sbatch, arguments.setup, shlex.join(command), **limits)


def main(argv: list[str]) -> int:
    """Submits the job and prints its number, or prints its script."""
    arguments, rest = parser().parse_known_args(argv)
    script = job_script(arguments, read_train(rest))
    if arguments.dry_run:
        print(script, end="")
        return 0
    print(f"submitted job {requeue.submit(script)}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("slurm", main))
