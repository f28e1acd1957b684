"""`dlmjax train`: trains the run of a config in a workdir; each process of a run of several calls it."""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence

from dlmjax import flags
from dlmjax.cli.config_help import HelpConfig
from dlmjax.files import require_path

HELP = "train the run of a config, or continue it"


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    add = command.add_argument
    add("--config", required=True, metavar="FILE", help="file with get_config(), such as configs/quickstart.py")
    folder = flags.named_folder  # launchers read these flags for other machines
    add("--workdir", type=folder, required=True, metavar="DIR", help="directory of the run; a run that is there continues")
    add("--fork", type=folder, metavar="DIR", help="run whose newest checkpoint is the start; counters are kept")
    add("--init", type=folder, metavar="DIR", help="run whose weights are the start; counters are zero")
    add(
        "--fresh",
        action="store_true",
        help="start anew: checkpoints, metrics and config in --workdir are first moved into DIR/aside-001; none is deleted",
    )
    add("--json", action="store_true", help="one line of JSON as the last line of standard output")
    add("--help-config", action=HelpConfig, help="fields of a config, with defaults and bounds")
    launch = command.add_argument_group("several processes", "detected automatically under Slurm, Open MPI, GKE and on TPU pods")
    add = launch.add_argument
    add("--coordinator", metavar="HOST:PORT", help="address of process 0")
    add("--num-processes", type=flags.whole(1, 2**20), metavar="N", help="number of processes of the run")
    add("--process-id", type=flags.whole(0, 2**20), metavar="I", help="rank of this process, from 0")
    for old, new in (("--processes", "num_processes"), ("--process", "process_id")):  # the names of these flags until 2026-11
        add(old, dest=new, type=flags.whole(0, 2**20), default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    seconds = flags.whole(1, 10**6)
    add("--start-timeout", type=seconds, default=300, metavar="SECONDS", help="longest wait for all processes to start, s (300)")
    add("--heartbeat-timeout", type=seconds, default=100, metavar="SECONDS", help="silence after which a process counts as lost, s (100)")
    add("--max-restarts", type=flags.whole(0), default=0, metavar="N", help="restarts after failures without progress between them (0)")
    command.add_argument("--config.SECTION.LEAF", dest="ignored", metavar="VALUE", help="value of a leaf, as in --config.optimizer.lr=1e-3")


def run(arguments: argparse.Namespace, overrides: Sequence[str]) -> int | None:
    """Trains in this process, or supervises one that trains: in a run of several processes, or with --max-restarts."""
    from dlmjax.cluster import supervise
    from dlmjax.cluster.process_info import find

    info = find(os.environ, **{name: getattr(arguments, name) for name in ("coordinator", "num_processes", "process_id")})
    watched = supervise.STATUS in os.environ
    if not watched and (arguments.max_restarts or not info.alone):
        return supervise.supervise([sys.executable, "-m", "dlmjax", *arguments.argv], info, arguments.max_restarts)
    if watched:
        supervise.die_with_parent()
    return _train_here(arguments, overrides, info, supervise.Status(os.environ.get(supervise.STATUS)))


def _train_here(arguments, overrides, info, status):
    from dlmjax import config as config_lib
    from dlmjax.cluster import host, supervise
    from dlmjax.cluster.start import joined

    require_path("--workdir", arguments.workdir, "output folder")
    config = config_lib.load(arguments.config, overrides)
    from dlmjax.train import train  # here, because it takes a second to import: a bad config is refused before

    command = shlex.join(
        ["dlmjax", "train", "--config", arguments.config, "--workdir", arguments.workdir, *(f"--config.{o}" for o in overrides)]
    )
    timeouts = {name: getattr(arguments, name) for name in ("start_timeout", "heartbeat_timeout")}
    origin = {"fork": arguments.fork or "", "init": arguments.init or ""}
    origin["fresh"] = arguments.fresh and not supervise.started_again(os.environ)

    def on_step(done: int) -> None:
        status.step = done

    with joined(info, lambda: status.step, **timeouts):
        result = train(config, arguments.workdir, **origin, command=command, on_step=on_step)
        if arguments.json:
            host.log(json.dumps(result))
