"""`dlmjax COMMAND`: parses flags, calls one function, prints one line on bad input and exits with 2.

Heavy imports happen inside the commands, so that `dlmjax --help` answers at once.
"""

import argparse
import os
import sys

from dlmjax import __version__, flags
from dlmjax.cli import (
    activations,
    embed,
    evaluate,
    export,
    fit,
    import_,
    interval,
    lm_eval,
    merge,
    plan,
    play,
    prepare,
    puzzles,
    quality,
    report,
    sample,
    solve,
    streams,
    sweep,
    train,
)
from dlmjax.cluster import chips, memory
from dlmjax.errors import InputError, flags_typed

# Each provides HELP, add_flags(command) and run(arguments, overrides) -> exit code or None.
COMMANDS = {
    "prepare": prepare,
    "train": train,
    "evaluate": evaluate,
    "interval": interval,
    "plan": plan,
    "export": export,
    "sample": sample,
    "play": play,
    "report": report,
    "import": import_,
    "merge": merge,
    "quality": quality,
    "puzzles": puzzles,
    "solve": solve,
    "embed": embed,
    "activations": activations,
    "sweep": sweep,
    "fit": fit,
    "lm-eval": lm_eval,
}
EPILOG = """\
examples:
  dlmjax prepare --input book1.txt book2.txt.gz --tokenizer bytes --output data/books
  dlmjax train --config configs/char27_small.py --config.data.paths=data/books --workdir runs/books
  dlmjax evaluate --workdir runs/books --split test
  dlmjax sample --workdir runs/books --prompt "It was" --length 128 --watch
"""


def _parser() -> argparse.ArgumentParser:
    """All commands and flags."""
    parser = flags.Parser(
        prog="dlmjax",
        description="Pretrain diffusion language models, bound their likelihood, sample from them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"dlmjax {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        command = commands.add_parser(name, help=module.HELP, description=module.HELP, allow_abbrev=False)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        module.add_flags(command)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs one command. Returns the exit code: 0 done, 2 bad input, 1 a defect of ours, 141 done and nobody reads the output."""
    with flags_typed(), streams.lasting() as exit_code:
        try:
            return exit_code(_run(argv))
        except SystemExit as ended:  # --help and --version
            raise SystemExit(exit_code(ended.code or 0)) from None


def _run(argv: list[str] | None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv or os.environ.get("DLMJAX_DEBUG") == "1"
    flags.print_anything()
    chips.quiet_libtpu()
    memory.keep_freed_memory()
    try:
        overrides, rest = _split_overrides(argv)
        arguments = _parse(rest)
        arguments.argv = argv
        if overrides and arguments.command not in ("train", "plan"):
            raise InputError(
                f"--config.{overrides[0]} belongs to `dlmjax train` and `plan`; a finished run keeps its config, a sweep has its own"
            )
        return COMMANDS[arguments.command].run(arguments, overrides) or 0
    except KeyboardInterrupt:
        print("dlmjax: interrupted; the same command continues", file=sys.stderr)
        return 130
    except Exception as error:
        said = flags.message_of(error)
        if debug or not said:
            raise
        print(f"dlmjax: {said}", file=sys.stderr)
        return 2


def _parse(words: list[str]) -> argparse.Namespace:
    """The flags of a command; those that are not ours, and those behind --, are Beam's where it is the engine."""
    at = words.index("--") if words[:1] == ["prepare"] and "--" in words else len(words)
    parser = _parser()
    arguments, unknown = parser.parse_known_args(words[:at])
    if arguments.command == "prepare" and arguments.engine == "beam":
        arguments.checked, arguments.unchecked = unknown, words[at + 1 :]
    elif unknown or words[at + 1 :]:
        parser.error(f"unrecognized arguments: {' '.join([*unknown, *words[at + 1 :]])}")
    return arguments


def train_flags(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The arguments and the config's overrides in the flags of `dlmjax train`, for launchers. Raises InputError: not its flags."""
    overrides, rest = _split_overrides(words)
    return _parser().parse_args(["train", *rest]), overrides


def _split_overrides(argv: list[str]) -> tuple[list[str], list[str]]:
    """Takes `--config.a.b=v` and `--config.a.b v` out of the flags."""
    overrides, rest, words = [], [], iter(argv)
    for flag in words:
        if not flag.startswith("--config."):
            rest.append(flag)
        elif "=" in flag:
            overrides.append(flag.removeprefix("--config."))
        else:
            overrides.append(f"{flag.removeprefix('--config.')}={next(words, '')}")
    return overrides, rest
