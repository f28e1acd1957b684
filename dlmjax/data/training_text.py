"""Trains a tokenizer on the train split of a corpus that is being prepared, without its held-out documents."""

import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from dlmjax.data.encode import document_share, json_line, mistake, text_of
from dlmjax.data.formats import Position, Reader, Source, cut, location
from dlmjax.data.manifest import sha256_of
from dlmjax.data.marking import Marking
from dlmjax.data.options import CorpusOptions, text_request
from dlmjax.data.paths import is_url
from dlmjax.data.spans import Unmarked
from dlmjax.data.specs import TRAINED
from dlmjax.data.subword import train_sentencepiece
from dlmjax.errors import InputError
from dlmjax.files import read_json, write_json


def training_texts(inputs, **options: Any) -> Iterator[str]:
    """Pieces of the training documents, in input order. options: the fields of `CorpusOptions`; errors as in `text_request`."""
    yield from _texts(*text_request(inputs, CorpusOptions(**options)))


def _texts(sources: Sequence[Source], request: dict[str, Any]) -> Iterator[str]:
    held_out_fraction = request["valid_fraction"] + request["test_fraction"]
    held_out = False
    marking = Marking.from_request(request)
    for piece in Reader(sources, Position(0)):
        source = sources[piece.at.file]
        try:
            if marking:
                data = marking.read(json_line(piece.data)).text.encode("utf-8")
            else:
                data = text_of(piece.data, piece.kind == "json", source.text_field)
        except Unmarked as error:
            raise InputError(f"{location(source, piece.at)}: {error}") from None
        except (ValueError, RecursionError):
            raise InputError(mistake(piece, source)) from None
        if not data:
            continue
        parts = cut(data)
        if piece.starts:
            share = document_share(parts[0], request["split_seed"])
            held_out = source.split not in (None, "train") or (source.split is None and share < held_out_fraction)
        if not held_out:
            yield from (part.decode("utf-8") for part in parts)


def train_tokenizer(spec: str, inputs, output: str, *, overwrite: bool = False, **options: Any) -> str:
    """Trains the tokenizer of a spec `train-sentencepiece:VOCAB` and returns the spec of its model; other specs are returned unchanged.

    The model is written to OUTPUT.model and the inputs and options of its training to OUTPUT.model.json. A model of the same request is
    used again, so that a killed preparation continues with it. One of a different request may have been trained on text that is now held
    out; it is replaced only with `overwrite`.

    Raises:
      InputError: no size; an output at a URL; an existing model of another request; errors of `text_request`.
    """
    kind, _, size = spec.partition(":")
    if kind != TRAINED:
        return spec
    if not re.fullmatch("[0-9]{1,7}", size):
        raise InputError(f"tokenizer {spec!r:.100} has no vocabulary size; write train-sentencepiece:4096")
    if is_url(output):
        raise InputError(
            f"tokenizer {spec}: the model is kept beside a local --output, which {output} is not; prepare a sample of the text locally, "
            "then give its model: --tokenizer sentencepiece:SAMPLE.model"
        )
    sources, text = text_request(inputs, CorpusOptions(**options), spec)
    request = {"vocab": int(size), **text}
    path = pathlib.Path(f"{str(output).rstrip('/')}.model")
    note = path.with_name(path.name + ".json")
    differing = _differing(path, note, request) if path.exists() else ""
    if differing and not overwrite:
        raise InputError(
            f"{path} exists and was trained with another request ({differing}), maybe on text that is now held out; delete it, choose "
            "another --output, or replace it and the corpus with --overwrite"
        )
    if differing or not path.exists():
        train_sentencepiece(_texts(sources, request), int(size), path)
        write_json(note, {**request, "model_sha256": sha256_of(path)})
    return f"sentencepiece:{path}"


def _differing(path: pathlib.Path, note: pathlib.Path, request: dict[str, Any]) -> str:
    """The fields in which the request of an existing model differs, as text for a message; "" if none does."""
    try:
        found = read_json(note)
    except InputError:
        return f"{note.name} is missing or not readable"
    wanted = {**request, "model_sha256": sha256_of(path)}
    return ", ".join(name for name in wanted if name not in found or found[name] != wanted[name])
