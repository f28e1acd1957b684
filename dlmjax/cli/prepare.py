"""`dlmjax prepare`: makes a tokenized corpus from text files."""

import argparse
import sys

from dlmjax import flags
from dlmjax.data.specs import FORMATS, SPECS, SUPERVISED

HELP = "text files -> a tokenized corpus of ArrayRecord shards with one manifest"


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    add = command.add_argument
    add(
        "--input",
        nargs="+",
        required=True,
        metavar="FILE",
        help="text files, local or URLs (gs://, s3://): .txt, .md or .jsonl, also as .gz/.bz2/.xz/.zst, or .parquet; folders, whose files "
        "of these kinds are read, in order of their names; or builtin:python-docs",
    )
    add("--tokenizer", default="bytes", metavar="SPEC", help=f"tokenizer: {SPECS} (bytes)")
    add("--output", type=flags.output_folder, required=True, metavar="DIR", help="directory for the shards and the manifest")
    share = flags.number(0, 1, open_high=True)
    add("--valid-fraction", type=share, default=0.0, metavar="SHARE", help="share of the documents held out as `valid` (0)")
    add("--test-fraction", type=share, default=0.0, metavar="SHARE", help="share of the documents held out as `test` (0)")
    add("--split-seed", type=flags.split_seed, default=0, metavar="N", help="seed of the choice of held-out documents (0)")
    add(
        "--split-files",
        nargs="+",
        metavar="SPLIT=FILE",
        help="files of the splits, such as valid=a.txt test=b.txt; --input is then `train`",
    )
    add(
        "--documents",
        default="file",
        metavar="RULE",
        help="rule that divides .txt and .md files into documents: file, blank-line, line or separator:TEXT (file)",
    )
    add("--text-field", default="text", metavar="NAME", help="field of .jsonl or column of .parquet with the text (text)")
    add(
        "--format",
        choices=FORMATS,
        help="format of all inputs; supervised data in .jsonl: chat (`messages`), prompt-answer (two fields), spans (`text` with "
        "`spans` in characters) (from the name of each file)",
    )
    add("--chat-template", metavar="FILE", help="template of chat, in Jinja (that of the tokenizer's folder)")
    add("--prompt-field", default="prompt", metavar="NAME", help="field of prompt-answer with the given text (prompt)")
    add("--answer-field", default="answer", metavar="NAME", help="field of prompt-answer with the text to score (answer)")
    add("--separator", default="\\n", metavar="TEXT", help="text between prompt and answer, given, with \\n for a line end (\\n)")
    add(
        "--length",
        type=flags.whole(1, 1 << 30),
        metavar="N",
        help="tokens of the rows that supervised data is for; a longer record is an error (any)",
    )
    add(
        "--workers",
        type=flags.whole(1, 4096),
        metavar="N",
        help="tokenizing processes, without effect on the result (number of cores)",
    )
    add("--show", type=flags.whole(1, 1000), metavar="N", help="documents to print, with their given, scored and tail parts marked (0)")
    add("--overwrite", action="store_true", help="replacement of a corpus of different inputs in --output")
    add(
        "--engine",
        choices=("local", "beam"),
        default="local",
        help="engine: local (processes of this machine) or beam (work items of Apache Beam, whose flags, such as --runner=..., follow, "
        "unchecked after --); the result is the same (local)",
    )


def run(arguments: argparse.Namespace, _) -> None:
    """Prepares the corpus, prints how much text each split holds."""
    from dlmjax.data.folders import folders
    from dlmjax.data.manifest import unescaped
    from dlmjax.data.prepare import prepare

    names = ("valid_fraction", "test_fraction", "split_seed", "split_files", "documents", "text_field", "format", "overwrite")
    names += ("prompt_field", "answer_field", "chat_template", "length")
    values = {name: getattr(arguments, name) for name in names} | {"separator": unescaped(arguments.separator)}
    execute = None
    for folder in folders(arguments.input, "jsonl" if arguments.format in SUPERVISED else arguments.format):
        print(f"input {folder.describe()}", flush=True)
    if arguments.engine == "beam":
        from dlmjax.data.beam import on_beam

        execute = on_beam(arguments.unchecked, arguments.checked)
    manifest = prepare(arguments.input, arguments.tokenizer, arguments.output, execute=execute, workers=arguments.workers, **values)
    counts = {split: manifest.counts(split) for split in manifest.splits}
    sizes = (f"{split} {c['tokens']:,} tokens of {c['text_bytes']:,} bytes in {c['documents']:,} documents" for split, c in counts.items())
    skipped = f"; {manifest.skipped:,} records without text are left out" if manifest.skipped else ""
    print(f"{arguments.output} is prepared: {'; '.join(sizes)}{skipped}", flush=True)
    if arguments.show:
        _show(arguments.output, manifest.splits[0], arguments.show)


def _show(directory: str, split: str, count: int) -> None:
    """Prints the first documents of a split."""
    from dlmjax.cli.marked_text import in_colour, legend, marked_documents
    from dlmjax.data.corpus import Corpus

    colour = in_colour(sys.stdout.isatty())
    print(legend(colour))
    for number, text in enumerate(marked_documents(Corpus.open(directory, split), count, colour), start=1):
        print(f"--- document {number} of {split}\n{text}", flush=True)
