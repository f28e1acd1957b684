"""The script of a Slurm job that requeues itself until its command is finished. Imports no jax.

How a command continues after its job ends:
    before the time limit   Slurm sends SIGTERM to the processes (not the batch shell); they save and end with 75; the job requeues itself
    scancel -s TERM JOB     the same by hand
    a node is lost          Slurm requeues the job (--requeue)
    scancel JOB             ends it for good: a batch shell that gets SIGTERM itself requeues nothing
    any other code          ends it with that code
A job that was requeued `max_requeues` times ends with 75 instead.
"""

import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence

from dlmjax.errors import START_AGAIN, InputError

# srun returns the highest code of all tasks; a code above 128 means that a signal ended one, as when memory runs out. Of an array, only
# one element is requeued: the id of its last element is also the id of the whole array.
SCRIPT = """\
#!/bin/bash
{directives}

set -uo pipefail
{setup}# When one process fails, the others end by themselves ({again}) and are not killed while they save.
srun --kill-on-bad-exit=0 {command} &
srun=$!
# scancel sends SIGTERM to the batch shell too; the time limit and scancel --signal=TERM send it to the processes alone.
cancelled=
trap 'cancelled=yes' TERM
wait "$srun"; code=$?
[ -z "$cancelled" ] || {{ wait "$srun"; exit 143; }}

if [ "$code" -eq {again} ] || [ "$code" -gt 128 ]; then
    if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {max_requeues} ]; then
        job=${{SLURM_ARRAY_JOB_ID:+${{SLURM_ARRAY_JOB_ID}}_}}${{SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}}
        echo "the run is not finished (code $code): requeueing job $job"
        scontrol requeue "$job" && exit 0
    fi
    echo "the run is not finished (code $code), and the job is not requeued again; submit it again to go on"
    exit {again}
fi
exit "$code"
"""


def job_script(
    options: Mapping[str, object],
    more: Sequence[str],
    setup: Sequence[str],
    command: str,
    *,
    time: str,
    save_seconds: int,
    max_requeues: int,
) -> str:
    """The script for sbatch.

    Args:
      options: sbatch options by name without dashes; None leaves one out.
      more: further options in sbatch's form; setup: shell lines before the start.
      command: a shell line, started by srun.
      time: limit of the job; save_seconds: time between SIGTERM and that limit.

    Raises:
      InputError: `time` is not a time or not above `save_seconds`, a number is out of range, or a value has several lines.
    """
    for flag, value, low in (("save-seconds", save_seconds, 1), ("max-requeues", max_requeues, 0)):
        if value < low:
            raise InputError(f"--{flag} is {value}; it must be at least {low}")
    if limit_seconds(time) <= save_seconds:
        raise InputError(f"--save-seconds {save_seconds} is not below --time {time}; raise --time or lower --save-seconds")
    # SIGTERM without B:, with which only the batch shell would receive it; one log for all restarts.
    options = {**options, "time": time, "signal": f"TERM@{save_seconds}", "open-mode": "append"}
    lines = [f"--{option}={value}" for option, value in options.items() if value is not None] + ["--requeue", *more]
    if any("\n" in line for line in (*lines, *setup)):
        raise InputError("a value of --sbatch, --setup, --log or another option has several lines; give one line each")
    return SCRIPT.format(
        directives="\n".join(f"#SBATCH {shlex.quote(line)}" for line in lines),
        setup="".join(f"{line}\n" for line in setup),
        command=command,
        again=START_AGAIN,
        max_requeues=max_requeues,
    )


def limit_seconds(text: str) -> int:
    """Seconds of sbatch's forms of time: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]].

    Raises InputError: another form.
    """
    days, dash, clock = text.rpartition("-")
    numbers = clock.split(":")
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        raise InputError(f"--time is {text!r}; write MINUTES, HOURS:MINUTES:SECONDS or DAYS-HOURS:MINUTES:SECONDS")
    if dash:
        units = (3600, 60, 1)
    else:
        units = {1: (60,), 2: (60, 1), 3: (3600, 60, 1)}[len(numbers)]
    return int(days or 0) * 86_400 + sum(int(number) * unit for number, unit in zip(numbers, units, strict=False))


def submit(script: str) -> str:
    """Submits the script with sbatch; returns the job id. Raises InputError: sbatch is missing or fails."""
    try:
        done = subprocess.run(["sbatch", "--parsable"], input=script, text=True, stdout=subprocess.PIPE)
    except FileNotFoundError as error:
        raise InputError("sbatch is not installed here; run this on a login node of the cluster, or use --dry-run") from error
    if done.returncode:
        raise InputError(f"sbatch ended with code {done.returncode}; see its message above; nothing was submitted")
    return done.stdout.strip().partition(";")[0]
