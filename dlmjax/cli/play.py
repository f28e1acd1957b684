"""`dlmjax play`: a local page in which text of one or more runs is sampled and looked at step by step; completions over HTTP."""

import argparse
import pathlib

from dlmjax import flags
from dlmjax.errors import InputError

HELP = "a local page of one or more runs: prompt, masks, rules, each step of the denoising, alternatives; and /v1/completions"


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    add = command.add_argument
    add(
        "runs", nargs="+", type=flags.input_folder, metavar="RUN", help="directory of a run that `dlmjax train` made; several: side by side"
    )
    add("--weights", default="ema", choices=("ema", "raw"), help="weights: ema, their average, or raw, those of the last step (ema)")
    add(
        "--process",
        action="append",
        default=[],
        metavar="NAME",
        help="further process under which each run is opened, too, such as autoregressive; repeatable (the one trained last alone)",
    )
    add("--trust-code", action="store_true", help="run the Python file of a workdir whose network is not of a family (off)")
    add("--port", type=flags.whole(0, 65535), default=0, help="port on 127.0.0.1; 0: a free one (0)")
    add("--length", type=flags.whole(1, 2**20), default=2048, help="length of the longest canvas, tokens (2048)")
    add("--steps", type=flags.whole(1, 2**20), default=4096, help="largest number of steps of a sample (4096)")
    add("--queue", type=flags.whole(1, 1024), default=32, help="number of requests that may wait; further ones are refused (32)")


def run(arguments: argparse.Namespace, _) -> None:
    """Opens the runs, prints the address, answers."""
    try:
        from dlmjax.play.server import bind, serve
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("starlette", "uvicorn", "anyio"):
            raise
        raise InputError("dlmjax play requires starlette and uvicorn; install them with: pip install 'dlmjax[play]'") from None
    from dlmjax.play.fields import Limits
    from dlmjax.play.runs import PlayRun
    from dlmjax.run import open_run

    limits = Limits(length=arguments.length, steps=arguments.steps)
    named: dict[str, PlayRun] = {}
    with bind(arguments.port) as bound:
        for workdir in arguments.runs:
            for process in (None, *arguments.process):
                run = open_run(workdir, weights=arguments.weights, trust_code=arguments.trust_code, process=process)
                name = _name(workdir, process, named)
                named[name] = PlayRun(name, run, limits)
        serve(named, limits, bound, waiting=arguments.queue, said=_print_address)


def _name(workdir: str, process: str | None, taken: dict) -> str:
    """The last part of a path, with the process where one was typed, and a number where another run has the name."""
    name = pathlib.Path(workdir).resolve().name + (f":{process}" if process else "")
    return name if name not in taken else next(f"{name}-{n}" for n in range(2, 2**31) if f"{name}-{n}" not in taken)


def _print_address(address: str, token: str) -> None:
    print(f"{address}/?token={token}", flush=True)
    print(f"(completions: {address}/v1/completions, key {token}; this machine alone; Ctrl-C ends)", flush=True)
