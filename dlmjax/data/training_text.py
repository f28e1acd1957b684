"""The text that a tokenizer may be trained on: what `prepare` would put into the train split, never a held-out document."""

import pathlib
from collections.abc import Iterator

from dlmjax.data.encode import document_share, mistake, text_of
from dlmjax.data.formats import Position, Reader, cut
from dlmjax.data.paths import is_url
from dlmjax.data.prepare import make_sources
from dlmjax.data.subword import train_sentencepiece
from dlmjax.errors import InputError


def training_texts(
    inputs,
    *,
    valid_fraction: float = 0.0,
    test_fraction: float = 0.0,
    split_seed: int = 0,
    split_files=None,
    format: str | None = None,
    documents: str = "file",
    text_field: str = "text",
) -> Iterator[str]:
    """Pieces of the training documents, in input order; arguments and errors as in `prepare`."""
    sources, _ = make_sources(inputs, split_files, valid_fraction, test_fraction, format, documents, text_field)
    held_out = False
    for piece in Reader(sources, Position(0)):
        source = sources[piece.at.file]
        try:
            data = text_of(piece.data, piece.kind == "json", source.text_field)
        except (ValueError, RecursionError):
            raise InputError(mistake(piece, source)) from None
        if not data:
            continue
        parts = cut(data)
        if piece.starts:
            share = document_share(parts[0], split_seed)
            held_out = source.split not in (None, "train") or (source.split is None and share < valid_fraction + test_fraction)
        if not held_out:
            yield from (part.decode("utf-8") for part in parts)


def train_tokenizer(spec: str, inputs, output: str, **options) -> str:
    """Turns `train-sentencepiece:VOCAB` into the spec of a model trained on the training documents; other specs pass unchanged.

    The model is kept as OUTPUT.model; one that is there already is used again, so that a preparation that was killed goes on with it.
    """
    kind, _, size = spec.partition(":")
    if kind != "train-sentencepiece":
        return spec
    if not size.isdigit():
        raise InputError(f"tokenizer {spec!r} names no vocabulary size; write train-sentencepiece:4096")
    if is_url(output):
        raise InputError(
            f"tokenizer {spec}: the model is kept beside a local --output, which {output} is not; prepare a sample of the text locally, "
            "then give its model: --tokenizer sentencepiece:SAMPLE.model"
        )
    path = pathlib.Path(f"{str(output).rstrip('/')}.model")
    if not path.exists():
        train_sentencepiece(training_texts(inputs, **options), int(size), path)
    return f"sentencepiece:{path}"
