"""Malformed input for every flag of every command, generated from the parsers themselves, and for every reader of files.

A case is a command line that ends at once: what it is given to work on is not there, or takes milliseconds. `judge` runs it in this process
and says what was wrong with the way it ended.
"""

import argparse
import dataclasses
import io
import math
import pathlib
from collections.abc import Iterator

from dlmjax import flags
from dlmjax.cli.main import _parser, main
from dlmjax.errors import InputError
from launch import cost, kubernetes, slurm, tpu_vm
from tests.hardening.tiny import Hang, at_most

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "quickstart.py")
SLOW = 60.0  # seconds; what takes longer is ended, and counts as a hang
LAUNCHERS = {"launch/slurm.py": slurm, "launch/kubernetes.py": kubernetes, "launch/tpu_vm.py": tpu_vm, "launch/cost.py": cost}

DEEP = "[" * 100_000
CONTENTS = {
    "empty": b"",
    "blank": b" \n\n",
    "binary": bytes(range(256)) * 20,
    "not UTF-8": b'{"text": "\xff\xfe"}\n',
    "deep list": DEEP.encode(),
    "deep object": b'{"a":' * 50_000,
    "a closed deep list": (DEEP + "]" * len(DEEP)).encode(),
    "a list": b"[]\n",
    "a number": b"3\n",
    "null": b"null\n",
    "a text": b'"x"\n',
    "an empty object": b"{}\n",
    "lists in fields": b'{"text": [1], "version": [], "runs": 3, "model": [], "added_tokens": 4, "weight_map": 3, "model_type": []}\n',
    "nan": b'{"text": NaN, "loss": NaN, "version": NaN, "vocab_size": NaN}\n',
    "a long integer": b'{"text": 1' + b"0" * 500 + b', "vocab_size": 1' + b"0" * 30 + b"}\n",
    "half a surrogate pair": b'{"text": "\\ud800", "model_type": "\\udfff"}\n',
    "torn": b'{"text": "x", "model_type": "qw',
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A command line. refused: what must stand in the one line that it ends with; None where it may also be legal."""

    name: str
    argv: tuple[str, ...]
    refused: str | None = None


def world(root: pathlib.Path) -> dict[str, str]:
    """Things that a flag may be pointed at, by what they are."""
    (root / "folder").mkdir()
    (root / "file").write_text("mine\n")
    found = {"a file": "file", "a folder": "folder", "nothing": "missing/there", "below a file": "file/x", "not for files": "/proc/none/x"}
    for number, (kind, content) in enumerate(CONTENTS.items()):
        (root / f"content{number}").write_bytes(content)
        found[f"a file with {kind}"] = f"content{number}"
    texts = {
        "empty": "",
        "blank": "  ",
        "minus one": "-1",
        "zero": "0",
        "huge": "1e25",
        "nan": "nan",
        "inf": "inf",
        "another alphabet's digit": "\u0661",
        "bytes that are no UTF-8": "a\udcff",
        "10^400": "1" + "0" * 400,
        "long": "x" * 5000,
        "a NUL": "a\0b",
        "a line feed": "a\nb",
        "deep": DEEP,
        "a format": "%s {} %(x)d",
        "a switch": "--help",
    }
    return texts | found


# What each command needs beside the flag that is tried. Workdirs and sources are missing, so that legal values end there.
BASES = {
    "prepare": ("--input", "file", "--format", "txt", "--output", "out/corpus"),
    "train": ("--config", CONFIG, "--workdir", "out/run"),
    "plan": ("--config", CONFIG, "--topology", "h100:1", "--analytic"),
    "import": ("--source", "missing", "--workdir", "out/imported"),
    "export": ("--workdir", "missing", "--output", "out/exported"),
    "puzzles": ("--kind", "countdown", "--count", "2", "--output", "out/puzzles.txt"),
    "play": ("missing",),
    "solve": ("--workdir", "missing", "--input", "file"),
    "embed": ("--workdir", "missing", "--input", "file", "--output", "out/e.npz"),
    "lm-eval": ("--workdir", "missing", "--tasks", "blimp"),
    "sweep plan": ("missing.py",),
    "sweep run": ("missing",),
    "sweep status": ("missing",),
    "fit": ("missing", "--output", "out/fit"),
    "launch/slurm.py": ("--dry-run", "--config", CONFIG, "--workdir", "out/run"),
    "launch/kubernetes.py": (
        *("--dry-run", "--tpu", "v5p:2x2x2", "--image", "i", "--config", str(ROOT / "configs/masked.py:tiny"), "--workdir", "gs://bkt/run"),
        *("--config.data.paths=gs://bkt/data", "--config.data.batch=64"),
    ),
    "launch/tpu_vm.py": ("create", "--name", "n", "--zone", "us-east5-a", "--tpu", "v5p:2x2x2", "--dry-run"),
    "launch/cost.py": ("--chips", "4", "--price", "1", "--speed", "100", "--config", CONFIG),
}


def parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """(name, parser) of every command, every action of a command, and every launcher that has one."""
    waiting: list[tuple[str, argparse.ArgumentParser]] = [("", _parser())]
    waiting += [(name, module.parser()) for name, module in LAUNCHERS.items() if hasattr(module, "parser")]
    while waiting:
        name, parser = waiting.pop()
        below = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if not below and name:
            yield name, parser
        for commands in below:
            waiting += [(f"{name} {command}".strip(), made) for command, made in commands.items()]


def _must_be_refused(action: argparse.Action, value: str) -> bool:
    """Whether no flag of this type may take a value, by rules that are written here once more."""
    if action.choices is not None:
        return value not in action.choices
    whole = [cell.cell_contents for cell in getattr(action.type, "__closure__", None) or ()]
    if any(isinstance(cell, int | float) and not isinstance(cell, bool) for cell in whole):  # a number with bounds
        try:
            finite = value.isascii() and value == value.strip() and math.isfinite(float(value))
        except ValueError:
            finite = False
        return not finite or len(value) > 400
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        return True
    return action.type is not flags.text and not value.strip()


def cases_of_flags(values: dict[str, str]) -> Iterator[Case]:
    """Every flag with a value x every value."""
    for name, parser in parsers():
        base = BASES.get(name, ("--workdir", "missing"))
        for action in parser._actions:
            if action.nargs == 0 or action.dest == "ignored":
                continue
            for kind, value in values.items():
                given = (f"{action.option_strings[0]}={value}",) if action.option_strings else (value,)
                rest = base if action.option_strings else base[1:]
                flag = action.option_strings[0] if action.option_strings else str(action.metavar or action.dest)
                wanted = flag if _must_be_refused(action, value) and action.option_strings else None
                yield Case(f"{name} {flag}: {kind}", (*name.split(), *rest, *given), wanted)


# What is read, as (file that holds the content, command that reads it).
READERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "text": ("x.txt", ("prepare", "--input", "x.txt", "--output", "out")),
    "JSON lines": ("x.jsonl", ("prepare", "--input", "x.jsonl", "--output", "out")),
    "parquet": ("x.parquet", ("prepare", "--input", "x.parquet", "--output", "out")),
    "gzip": ("x.txt.gz", ("prepare", "--input", "x.txt.gz", "--output", "out")),
    "bzip2": ("x.txt.bz2", ("prepare", "--input", "x.txt.bz2", "--output", "out")),
    "xz": ("x.txt.xz", ("prepare", "--input", "x.txt.xz", "--output", "out")),
    "zstandard": ("x.txt.zst", ("prepare", "--input", "x.txt.zst", "--output", "out")),
    "tokenizer.json": ("t/tokenizer.json", ("prepare", "--input", "file", "--format", "txt", "--output", "out", "--tokenizer", "hf:t")),
    "WordPiece": ("t.json", ("prepare", "--input", "file", "--format", "txt", "--output", "out", "--tokenizer", "wordpiece:t.json")),
    "vocab.json": ("t/vocab.json", ("prepare", "--input", "file", "--format", "txt", "--output", "out", "--tokenizer", "gpt2:t")),
    "SentencePiece": (
        "t.model",
        ("prepare", "--input", "file", "--format", "txt", "--output", "out", "--tokenizer", "sentencepiece:t.model"),
    ),
    "saved tokenizer": (
        "t/dlmjax_tokenizer.json",
        ("prepare", "--input", "file", "--format", "txt", "--output", "out", "--tokenizer", "saved:t"),
    ),
    "manifest": ("c/manifest.json", ("train", "--config", CONFIG, "--workdir", "out", "--config.data.paths=c")),
    "config": ("c.py", ("train", "--config", "c.py", "--workdir", "out")),
    "config of a plan": ("c.py", ("plan", "--config", "c.py", "--topology", "h100:1")),
    "corpus of a plan": ("c/manifest.json", ("plan", "--config", CONFIG, "--topology", "h100:1", "--analytic", "--data", "c")),
    "run": ("r/config.json", ("evaluate", "--workdir", "r")),
    "suite": ("s.json", ("evaluate", "--workdir", "r", "--suite", "s.json", "--input", "file")),
    "run to sample": ("r/config.json", ("sample", "--workdir", "r")),
    "run to play": ("r/config.json", ("play", "r")),
    "run to export": ("r/config.json", ("export", "--workdir", "r", "--output", "out")),
    "source": ("s/config.json", ("import", "--source", "s", "--workdir", "out")),
    "sweep": ("s.py", ("sweep", "plan", "s.py")),
    "planned sweep": ("s/sweep.json", ("sweep", "run", "s")),
    "status": ("s/sweep.json", ("sweep", "status", "s")),
    "records": ("x.jsonl", ("fit", "x.jsonl", "--output", "out")),
    "table": ("x.csv", ("fit", "--csv", "x.csv", "--output", "out")),
    "fit": ("f/fit.json", ("fit", "predict", "--flops", "1e20", "--fit", "f")),
    "puzzles": ("x.csv", ("puzzles", "--kind", "sudoku", "--input", "x.csv", "--output", "out.txt")),
}
# Contents that are legal for a reader: text is text, a Python file may be empty but for what is looked for in it.
LEGAL = {("text", kind) for kind in CONTENTS if kind not in ("empty", "binary", "not UTF-8")} | {
    ("JSON lines", "null"),
}


def cases_of_readers() -> Iterator[tuple[str, bytes, Case]]:
    """(file, its content, the case) of every reader x every content."""
    for reader, (file, argv) in READERS.items():
        for kind, content in CONTENTS.items():
            refused = None if (reader, kind) in LEGAL else ""
            yield file, content, Case(f"{reader}: {kind}", argv, refused)


def judge(case: Case, stdout: io.StringIO, stderr: io.StringIO) -> str:
    """How a case ended that should not have: "traceback: ...", "hang: ...", "wrong: ..."; "" where all is well."""
    module = LAUNCHERS.get(case.argv[0])
    try:
        with at_most(SLOW):
            if module:
                try:
                    code = module.main(list(case.argv[1:]))
                except InputError as error:  # as `exit_code` prints it
                    code = 2
                    stderr.write(f"dlmjax: {flags.one_line(str(error))}\n")
            else:
                code = main(list(case.argv))
    except Hang as hang:
        return f"hang: {hang}"
    except SystemExit as stop:
        code = 0 if stop.code in (None, 0) else stop.code
    except Exception as error:
        return f"traceback: {type(error).__name__}: {str(error)[:200]!r}"
    said = stderr.getvalue()
    last = said.strip().split("\n")[-1] if said.strip() else ""
    if code not in (0, 2):
        return f"wrong: exit code {code}"
    if code == 2 and (not last.startswith("dlmjax: ") or said.count("\n") > 1 or len(last) > 2000):
        return f"wrong: not one line: {said[:300]!r}"
    if case.refused is not None and code != 2:
        return "wrong: accepted"
    if case.refused and case.refused not in last:
        return f"wrong: refused without its flag: {last[:300]!r}"
    return ""


def tally(found: dict[str, str], tried: int) -> str:
    """The line that is printed, with what was found behind it."""
    count = {kind: sum(value.startswith(kind) for value in found.values()) for kind in ("wrong", "traceback", "hang")}
    head = f"malformed {tried} tried; " + ", ".join(f"{kind} {number}" for kind, number in count.items())
    return "\n".join([head, *(f"  {name}: {value}" for name, value in found.items())])
