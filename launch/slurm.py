"""Writes and submits the Slurm job of one `dlmjax train`, which requeues itself until the run is finished.

    python launch/slurm.py --nodes 4 --gpus-per-node 8 --time 24:00:00 --dry-run --config configs/masked.py --workdir runs/masked

`--dry-run` prints the job script; `sbatch` on what it printed does the same as leaving the flag out.  The workdir and the corpus must be
on a file system that all nodes share.  The job starts one process on each node (`--tasks-per-node` changes it), which find each other
through Slurm's own variables.

How a run outlives its job:
    before the time limit   Slurm sends SIGTERM to the processes (not to the batch shell); they save and end; the job requeues itself
    scancel -s TERM JOB     the same by hand
    a peer is lost          the others end with 75; the job requeues itself
    a node is lost          Slurm requeues the job (--requeue)
    scancel JOB             ends it for good: a batch shell that gets SIGTERM itself requeues nothing
    bad input (2), a defect (1)   ends it with that code
A job that was requeued `--max-requeues` times ends with 75 instead.
"""

import pathlib
import re
import shlex
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # started as a file, it imports from the repository all the same

from dlmjax.errors import InputError
from launch.command import ROOT, Parser, Train, default_name, exit_code, read_train, shell_name
from launch.unfinished import START_AGAIN

# srun gives the highest code of all tasks; above 128: one was ended by a signal, as a process is that runs out of memory.
SCRIPT = """\
#!/bin/bash
{directives}

set -uo pipefail
{setup}# One process fails: the others end by themselves (75) and are not killed while they save.
srun --kill-on-bad-exit=0 {command} &
srun=$!
# scancel sends SIGTERM to the batch shell too; the time limit and scancel --signal=TERM send it to the processes alone.
cancelled=
trap 'cancelled=yes' TERM
wait "$srun"; code=$?
[ -z "$cancelled" ] || {{ wait "$srun"; exit 143; }}

if [ "$code" -eq {again} ] || [ "$code" -gt 128 ]; then
    if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {max_requeues} ]; then
        echo "the run is not finished (code $code): requeueing job $SLURM_JOB_ID"
        scontrol requeue "$SLURM_JOB_ID" && exit 0
    fi
    echo "the run is not finished (code $code), and the job is not requeued again; submit it again to go on"
    exit {again}
fi
exit "$code"
"""


def parser() -> Parser:
    """The flags of this launcher."""
    made = Parser("slurm", __doc__, "[--nodes N] [--gpus-per-node G] [--time LIMIT] [--dry-run] --config CONFIG --workdir DIR")
    add = made.add_argument
    add("--name", help="of the job; default: the last part of --workdir")
    add("--nodes", type=int, default=1, metavar="N")
    add(
        "--tasks-per-node",
        type=int,
        default=1,
        metavar="T",
        help="processes on each node (1, which uses all GPUs of its node); more: one for each GPU",
    )
    add("--gpus-per-node", type=int, default=0, metavar="G", help="(0: none asked for)")
    add("--cpus-per-task", type=int, metavar="C", help="default: the cluster's")
    add("--time", default="24:00:00", metavar="LIMIT", help="of the job, as sbatch writes it (24:00:00)")
    add("--save-seconds", type=int, default=300, metavar="S", help="SIGTERM comes this long before the limit (300); saving must fit in")
    add("--partition", metavar="NAME")
    add("--account", metavar="NAME")
    add("--sbatch", action="append", default=[], metavar="=--FLAG=VALUE", help="any other option of sbatch, as in --sbatch=--qos=high")
    add("--setup", action="append", default=[], metavar="LINE", help="a shell line before the start, as in --setup 'module load cuda'")
    add("--log", metavar="FILE", help="of the job and all its restarts (slurm-NAME-%%j.log); %%j is the job's number")
    add("--max-requeues", type=int, default=100, metavar="N", help="(100)")
    add("--python", default=sys.executable, help="that the nodes start (this one)")
    add("--dry-run", action="store_true", help="print the job script and submit nothing")
    return made


def _limit_seconds(text: str) -> int:
    """sbatch's forms of time: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]]."""
    days, dash, clock = text.rpartition("-")
    numbers = clock.split(":")
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        raise InputError(f"--time is {text!r}; write MINUTES, HOURS:MINUTES:SECONDS or DAYS-HOURS:MINUTES:SECONDS")
    if dash:
        units = (3600, 60, 1)
    else:
        units = {1: (60,), 2: (60, 1), 3: (3600, 60, 1)}[len(numbers)]
    return int(days or 0) * 86_400 + sum(int(number) * unit for number, unit in zip(numbers, units, strict=False))


def job_script(arguments, train: Train) -> str:
    """The text that sbatch reads.

    Raises:
      InputError: a value that cannot be: no nodes, no time before the signal, GPUs that the processes cannot share.
    """
    tasks, gpus = arguments.tasks_per_node, arguments.gpus_per_node
    for flag, value, low in (
        ("nodes", arguments.nodes, 1),
        ("tasks-per-node", tasks, 1),
        ("gpus-per-node", gpus, 0),
        ("cpus-per-task", arguments.cpus_per_task or 1, 1),
        ("save-seconds", arguments.save_seconds, 1),
        ("max-requeues", arguments.max_requeues, 0),
    ):
        if value < low:
            raise InputError(f"--{flag} is {value}; it must be at least {low}")
    if _limit_seconds(arguments.time) <= arguments.save_seconds:
        raise InputError(
            f"--save-seconds {arguments.save_seconds} seconds leaves nothing of --time {arguments.time}; raise one or lower the other"
        )
    if gpus and tasks not in (1, gpus):
        raise InputError(
            f"--tasks-per-node {tasks} with --gpus-per-node {gpus}: a process has all GPUs of its node or one; write 1 or {gpus}"
        )
    if gpus:
        train.check_devices(arguments.nodes * gpus)
    name = shell_name(arguments.name or default_name(train), "--name")
    options = {
        "job-name": name,
        "nodes": arguments.nodes,
        "ntasks-per-node": tasks,
        "gpus-per-node": gpus or None,
        "cpus-per-task": arguments.cpus_per_task,
        "time": arguments.time,
        "signal": f"TERM@{arguments.save_seconds}",  # without B:, which would reach the batch shell alone
        "open-mode": "append",  # one log for all restarts
        "output": arguments.log or f"slurm-{name}-%j.log",
        "chdir": pathlib.Path.cwd(),
        "partition": arguments.partition,
        "account": arguments.account,
    }
    lines = [f"--{option}={value}" for option, value in options.items() if value is not None] + ["--requeue", *arguments.sbatch]
    if any("\n" in line for line in (*lines, *arguments.setup)):
        raise InputError("--sbatch, --setup, --log and the rest are one line each")
    command = [arguments.python, str(ROOT / "launch/unfinished.py"), arguments.python, "-m", "dlmjax", *train.arguments]
    return SCRIPT.format(
        directives="\n".join(f"#SBATCH {shlex.quote(line)}" for line in lines),
        setup="".join(f"{line}\n" for line in arguments.setup),
        command=shlex.join(command),
        again=START_AGAIN,
        max_requeues=arguments.max_requeues,
    )


def main(argv: list[str]) -> int:
    """Submits the job and prints its number, or prints its script."""
    arguments, rest = parser().parse_known_args(argv)
    script = job_script(arguments, read_train(rest))
    if arguments.dry_run:
        print(script, end="")
        return 0
    try:
        done = subprocess.run(["sbatch", "--parsable"], input=script, text=True, stdout=subprocess.PIPE)
    except FileNotFoundError as error:
        raise InputError("sbatch is not here; run this on a login node of the cluster, or look with --dry-run") from error
    if done.returncode:
        raise InputError(f"sbatch ended with code {done.returncode}; what it said stands above, nothing was submitted")
    print(f"submitted job {done.stdout.strip().partition(';')[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code("slurm", main))
