"""`dlmjax embed`: one vector for each line of a text file."""

import argparse
import io

from dlmjax import flags
from dlmjax.cli.run_flags import add_run, open_arguments
from dlmjax.errors import InputError
from dlmjax.files import read_lines, write_atomically

HELP = "one vector for each line of text: the mean of a run's final hidden states"


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    add_run(command)
    add = command.add_argument
    add("--input", type=flags.input_file, required=True, metavar="FILE.txt", help="texts, one per line, UTF-8")
    add(
        "--output",
        type=flags.output_file,
        required=True,
        metavar="FILE.npz",
        help="file for `embeddings` [lines, width] float32 and `tokens` [lines] int64",
    )
    add("--batch", type=flags.whole(1, 2**20), default=16, help="number of windows at a time; no effect on the result (16)")


def run(arguments: argparse.Namespace, _) -> None:
    """Writes the vectors and prints their number."""
    import numpy as np

    from dlmjax.quality.hidden import embed_texts

    if not arguments.output.endswith(".npz"):
        raise InputError(f"--output {arguments.output} must end with .npz")
    texts = read_lines("--input", arguments.input)
    opened = open_arguments(arguments)
    vectors_ND, tokens_N = embed_texts(opened, texts, arguments.batch)
    content = io.BytesIO()
    np.savez(content, embeddings=vectors_ND, tokens=tokens_N)
    write_atomically(arguments.output, content.getvalue())
    size = f"{len(texts):,} vectors of {vectors_ND.shape[1]} ({tokens_N.sum():,} tokens, step {opened.step})"
    print(f"{arguments.output}: {size}", flush=True)
