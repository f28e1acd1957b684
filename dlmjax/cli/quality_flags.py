"""Flags of `quality`, `puzzles`, `solve`, `embed` and `activations`. Imports nothing heavy: `dlmjax --help` reads this file."""

import argparse
from collections.abc import Callable, Iterator

from dlmjax import flags
from dlmjax.errors import InputError

Add = Callable[[argparse.ArgumentParser], None]


def commands(add_run: Add) -> Iterator[tuple[str, str, Add]]:
    """(name, what it does, what adds its flags); `add_run` adds those that open a run."""
    made = "made text against the steps it took: generative perplexity, entropy, diversity, MAUVE; or how fast it is made"
    yield "quality", made, _quality(add_run)
    yield "puzzles", "Sudoku or Countdown puzzles as lines `clue=answer`, to prepare, to train on and to solve", _puzzles
    yield "solve", "puzzles solved by a run: the clue is given, the rules decide", _solve(add_run)
    yield "embed", "one vector a line of text: the mean of a run's final hidden states", _embed(add_run)
    yield "activations", "how far a run's activations stick out, layer by layer (for quantisers)", _activations(add_run)


def run(arguments: argparse.Namespace, _) -> None:
    """Calls the function of `quality.commands` that has the command's name."""
    from dlmjax.cli import quality as functions

    values = {name: value for name, value in vars(arguments).items() if name not in ("command", "debug", "argv")}
    getattr(functions, arguments.command)(**values)


def integers(text: str) -> tuple[int, ...]:
    """ "4,8,16" as numbers.  Raises InputError for anything else, and for numbers below 1."""
    try:
        values = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        values = ()
    if not values or min(values) < 1:
        raise InputError(f"{text!r} is no list of whole numbers from 1 on, such as 4,8,16")
    return values


def _how(add: Callable[..., object], temperature: float = 1.0, order: str = "ancestral") -> None:
    """How text is made; see `dlmjax sample`."""
    add("--order", default=order, help=f"ancestral, random, confidence, entropy, margin or left_to_right ({order})")
    add("--method", default="ancestral", help="how a step in time is made, see docs/sampling.md")
    add("--grid", default="auto", help="where the steps stand, see docs/sampling.md")
    add("--temperature", type=flags.number(0), default=temperature, help=f"0 takes the most likely token ({temperature:g})")
    add("--top-p", type=flags.number(0, 1, open_low=True), default=1.0, help="nucleus; 1 = off")
    add("--seed", type=flags.seed, default=0, help="of the first batch; each further batch has the next")


def _quality(add_run: Add) -> Add:
    def _flags(command: argparse.ArgumentParser) -> None:
        add_run(command)
        add = command.add_argument
        add(
            "--scorer", type=flags.input_folder, metavar="HF_DIR", help="local directory of a causal language model that transformers loads"
        )
        add("--scorer-workdir", type=flags.input_folder, metavar="AR_RUN", help="workdir of an autoregressive run")
        add("--steps", type=flags.wholes(1, 2**20), default="4,8,16,32,64,128,256", metavar="N,N,...", help="denoising steps, one row each")
        add("--samples", type=flags.whole(1, 2**20), default=64, help="texts of each row (64)")
        add("--length", type=flags.tokens, help="tokens of a text; default: the training length")
        add("--batch", type=flags.whole(1, 2**20), default=16, help="texts made together; another number draws other texts")
        _how(add)
        add(
            "--data",
            type=flags.input_folder,
            metavar="DIR",
            help="prepared corpus of held-out text; default: the one it was trained on, where it is there",
        )
        add("--split", default="valid", choices=("train", "valid", "test"), help="of that corpus (valid)")
        add(
            "--output",
            type=flags.output_folder,
            metavar="DIR",
            help="quality.json, quality.png and samples.jsonl go here; latency.json with --latency",
        )
        add("--latency", action="store_true", help="time instead: whole canvas, blocks with a cache, autoregression with a cache")
        add("--batches", type=flags.wholes(1, 2**20), default="1,8", metavar="N,N,...", help="batch sizes that are timed")
        add("--blocks", type=flags.wholes(1, flags.MOST_TOKENS), default="16", metavar="N,N,...", help="block sizes that are timed")
        add("--repeats", type=flags.whole(1, 1000), default=3, help="timed runs, after one that compiles; the median counts")

    return _flags


def _puzzles(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--kind", required=True, choices=("sudoku", "countdown"))
    add(
        "--output",
        type=flags.output_file,
        required=True,
        metavar="FILE.txt",
        help="one puzzle a line; `dlmjax prepare --documents line` reads it",
    )
    add("--input", type=flags.input_file, metavar="FILE.csv", help="sudoku: a table with columns puzzle and solution, plain or .gz/.xz")
    add(
        "--givens",
        type=flags.whole(0, 81),
        default=0,
        help="sudoku: show more cells of the solution until so many are given; 0 = as they are",
    )
    add("--answers-only", action="store_true", help="write answers alone: boards to train on for `solve --in-place`")
    add("--count", type=flags.whole(1, 2**20), help="countdown: puzzles to make (1000); sudoku: only the first N")
    add("--numbers", type=flags.whole(2, 8), default=3, help="countdown: numbers of a puzzle")
    add("--largest", type=flags.whole(2, 10**6), default=20, help="countdown: the largest of them")
    add("--split", default="train", choices=("train", "valid", "test"), help="countdown: splits share no set of numbers")
    add("--seed", type=flags.seed, default=0, help="countdown: of the puzzles; sudoku: of the cells shown by --givens")


def _solve(add_run: Add) -> Add:
    def _flags(command: argparse.ArgumentParser) -> None:
        add_run(command)
        add = command.add_argument
        add("--input", type=flags.input_file, required=True, metavar="FILE.txt", help="puzzles, as `dlmjax puzzles` writes them")
        add("--in-place", action="store_true", help="sudoku: clues stand in the board (for runs trained on --answers-only)")
        add("--count", type=flags.whole(1, 2**20), help="only the first N puzzles")
        add("--steps", type=flags.whole(1, 2**20), default=256, help="denoising steps at most; orders take one a cell at most")
        add("--batch", type=flags.whole(1, 2**20), default=100, help="puzzles solved together")
        _how(add, temperature=0.0, order="confidence")
        add("--json", type=flags.output_file, metavar="FILE", help="write the result here")

    return _flags


def _embed(add_run: Add) -> Add:
    def _flags(command: argparse.ArgumentParser) -> None:
        add_run(command)
        add = command.add_argument
        add("--input", type=flags.input_file, required=True, metavar="FILE.txt", help="one text a line, UTF-8")
        add(
            "--output",
            type=flags.output_file,
            required=True,
            metavar="FILE.npz",
            help="`embeddings` [lines, width] float32 and `tokens` [lines]",
        )
        add("--batch", type=flags.whole(1, 2**20), default=16, help="windows at a time; does not change the result")

    return _flags


def _activations(add_run: Add) -> Add:
    def _flags(command: argparse.ArgumentParser) -> None:
        add_run(command)
        add = command.add_argument
        add("--data", type=flags.input_folder, metavar="DIR", help="prepared corpus; default: the one it was trained on")
        add("--split", default="valid", choices=("train", "valid", "test"))
        add("--windows", type=flags.whole(1), default=16, help="windows of text to read (16)")
        add("--json", type=flags.output_file, metavar="FILE", help="write the rows here")

    return _flags
