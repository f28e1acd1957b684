"""The options of a corpus, and the inputs that they name: checked before anything is written.  Never imports jax."""

import concurrent.futures
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dlmjax.data import formats
from dlmjax.data.chat import ChatTemplate
from dlmjax.data.encode import check_split_seed
from dlmjax.data.folders import is_folder, read_folder
from dlmjax.data.manifest import SPLITS
from dlmjax.data.marking import Marking
from dlmjax.data.paths import is_url
from dlmjax.data.segments import normal_documents
from dlmjax.data.specs import FORMATS, SUPERVISED
from dlmjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class CorpusOptions:
    """What decides the content of a corpus, beside its inputs and its tokenizer.

    Attributes:
        valid_fraction, test_fraction: expected share of the *documents* in those splits, chosen by a hash of each document's first
            64 KiB of text: copies of a document are in the same split, and adding documents moves none. 0 for none.
        split_seed: another seed chooses other documents.
        split_files: instead of fractions: split -> files or folders (or ["valid=FILE", ...]); the inputs are then the train split.
        format: "txt", "jsonl" or "parquet" for all inputs; None: by each file's name. Supervised data, in .jsonl:
            "chat", "prompt-answer" or "spans" (see `marking.py`).
        documents: what a document of a txt file is: "file" (all of it), "blank-line" (paragraphs), "line", or "separator:TEXT" (what is
            between lines that are TEXT). Documents of only white space are dropped, except with "file".
        text_field: JSON field or parquet column with the text.
        prompt_field, answer_field: JSON fields of "prompt-answer"; separator: the text between the two, given as the prompt is.
        chat_template: file of the template for "chat"; None: that in the folder of the tokenizer.
        length: tokens of the rows that supervised data is meant for: a longer record is an error. None: not known.
        shard_bytes: input text per segment (so about per shard); a restart repeats at most one segment. None: `default_shard_bytes`.
    Raises:
        InputError: a value that is not valid, or fractions together with files.
    """

    valid_fraction: float | int = 0.0
    test_fraction: float | int = 0.0
    split_seed: int = 0
    split_files: Mapping[str, Sequence[str | os.PathLike]] | Sequence[str] | None = None
    format: str | None = None
    documents: str = "file"
    text_field: str = "text"
    shard_bytes: int | None = None
    prompt_field: str = "prompt"
    answer_field: str = "answer"
    separator: str = "\n"
    chat_template: str | os.PathLike | None = None
    length: int | None = None

    def __post_init__(self):
        check_split_seed(self.split_seed)
        valid, test = self.valid_fraction, self.test_fraction
        if not (valid >= 0 and test >= 0 and valid + test < 1):
            raise InputError(f"--valid-fraction ({valid}) and --test-fraction ({test}) must be at least 0 and together below 1")
        if self.format not in (None, *FORMATS):
            raise InputError(f"format is {self.format!r}; give one of {', '.join(FORMATS)}")
        self._check_supervised()
        rule, _, separator = self.documents.partition(":")
        if self.documents not in ("file", "blank-line", "line") and not self.documents.startswith("separator:"):
            raise InputError(f"--documents is {self.documents!r}; give file, blank-line, line or separator:TEXT")
        if rule == "separator" and not separator.strip():
            raise InputError("--documents is 'separator:' without a text; give separator:TEXT")
        if self.shard_bytes is not None and self.shard_bytes < 1:
            raise InputError(f"shard_bytes is {self.shard_bytes}; give at least 1")
        if self.split_files and (valid or test):
            raise InputError("--split-files conflicts with --valid-fraction and --test-fraction; give files or fractions, not both")

    def _check_supervised(self) -> None:
        """Raises InputError: an option of supervised data that another format does not take."""
        takes = {"prompt_field": ("prompt-answer",), "answer_field": ("prompt-answer",), "separator": ("prompt-answer",)}
        takes |= {"chat_template": ("chat",), "length": SUPERVISED}
        for name, formats_ in takes.items():
            if getattr(self, name) != getattr(type(self), name) and self.format not in formats_:
                raise InputError(f"--{name.replace('_', '-')} requires --format {' or '.join(formats_)}")
        if self.length is not None and self.length < 1:
            raise InputError(f"--length is {self.length}; give at least 1")

    @property
    def file_format(self) -> str | None:
        """The format of the files: supervised data is .jsonl."""
        return "jsonl" if self.format in SUPERVISED else self.format

    def files(self, inputs: Sequence[str | os.PathLike]) -> Iterator[tuple[str, str | None]]:
        """All input files in the order of the corpus, each with its split; None where the split is chosen by hash.

        The files of a local folder follow in the order of their names.
        """
        files = self.split_files or {}
        files = parse_split_files(files) if isinstance(files, (list, tuple)) else files
        if unknown := [split for split in files if split not in SPLITS]:
            raise InputError(f"split_files names the unknown split {unknown[0]!r}; the splits are {', '.join(SPLITS)}")
        by_hash = not files and (self.valid_fraction or self.test_fraction)
        named = [(name, None if by_hash else "train") for name in inputs]
        named += [(name, split) for split in SPLITS for name in files.get(split, [])]
        for name, split in ((os.fspath(name), split) for name, split in named):
            members = read_folder(name, self.file_format).files if is_folder(name) else (name,)
            yield from ((member, split) for member in members)


def parse_split_files(values: Sequence[str]) -> dict[str, list[str]]:
    """["valid=a.txt", "test=b.txt"] (as on the command line) -> {"valid": ["a.txt"], "test": ["b.txt"]}."""
    result: dict[str, list[str]] = {}
    for value in values:
        split, equals, name = value.partition("=")
        if not equals or split not in SPLITS or not name:
            raise InputError(f"--split-files {value}: give SPLIT=FILE with one of the splits {', '.join(SPLITS)}")
        result.setdefault(split, []).append(name)
    return result


def default_shard_bytes(stored: int) -> int:
    """128 MiB of text; more for inputs above 64 GiB (as stored), so that there are not many thousand shards; at most 2 GiB."""
    return min(2 << 30, max(128 << 20, stored // 512))


def text_request(
    inputs: Sequence[str | os.PathLike], options: CorpusOptions, tokenizer: str = ""
) -> tuple[list[formats.Source], dict[str, Any]]:
    """The inputs, and what decides which text is in which split, as in the manifest. tokenizer: its spec, for the template in its folder.

    Raises InputError: no input; an input that occurs twice, is missing, is empty or has an unknown format.
    """
    sources = make_sources(list(options.files(inputs)), options)
    if other := next((source for source in sources if options.format in SUPERVISED and source.format != "jsonl"), None):
        raise InputError(f"--format {options.format} requires .jsonl, which input {other.name} is not")
    return sources, {
        "inputs": [source.describe() for source in sources],
        "split_by": "files" if options.split_files else "hash",
        "valid_fraction": float(options.valid_fraction),
        "test_fraction": float(options.test_fraction),
        "split_seed": options.split_seed,
        "format": options.format,
        "documents": options.documents,
        "text_field": options.text_field,
        **_supervised_request(options, tokenizer),
    }


def _supervised_request(options: CorpusOptions, tokenizer: str) -> dict[str, Any]:
    """What a request of supervised data has beside that of others."""
    if options.format not in SUPERVISED:
        return {}
    names = ("text_field", "prompt_field", "answer_field", "separator", "length")
    template = ChatTemplate.load(options.chat_template, tokenizer) if options.format == "chat" else None
    own = Marking(options.format, **{name: getattr(options, name) for name in names}, template=template).describe()
    return own | ({"chat_template": os.fspath(options.chat_template)} if options.chat_template else {})


def make_sources(files: list[tuple[str, str | None]], options: CorpusOptions) -> list[formats.Source]:
    """The sources of all input files with their splits."""
    if not files:
        raise InputError(f"no input files; give text files or the built-in {formats.BUILTIN}")
    first: dict[str, str] = {}
    for name, _ in files:
        plain = is_url(name) or name == formats.BUILTIN or "\0" in name
        real = name if plain else os.path.realpath(name)
        if real in first:
            raise InputError(f"input {name} is given twice" + (f": it is the file {first[real]}" if first[real] != name else ""))
        first[real] = name
    documents = normal_documents(options.documents)
    # A storage service takes some hundredths of a second for an answer, a few times per file: many files are opened at a time.
    with concurrent.futures.ThreadPoolExecutor(32 if any(is_url(name) for name, _ in files) else 1) as threads:
        how = (options.file_format, documents, options.text_field)
        opened = [threads.submit(formats.make_source, name, split, *how) for name, split in files]
        try:
            return [future.result() for future in opened]
        finally:
            threads.shutdown(cancel_futures=True)
