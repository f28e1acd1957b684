"""The ids of an imported checkpoint: those that its files name keep their meaning, and missing special tokens get the next free ids.

A source names ids in its tokenizer's own file, in `added_tokens.json` and `tokenizer_config.json` beside it, in `config.json` (often a
padding or a mask that the tokenizer does not have), and, where those lack it, in `generation_config.json`. Its embedding may have more
rows than that: they pad the vocabulary and were never trained, so a new id may be one of them, but its row is replaced.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from dlmjax.data import load_tokenizer
from dlmjax.data.subword import EOS_NAMES, MASK_NAMES, PAD_NAMES
from dlmjax.data.tokenizers import TableTokenizer
from dlmjax.errors import InputError
from dlmjax.files import read_json
from dlmjax.interop.layouts import Layout
from dlmjax.interop.tokenizer_files import pieces_of

NAMES = {"eos": EOS_NAMES, "mask": MASK_NAMES, "pad": PAD_NAMES}


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """`named`: the ids below the source's rows that its files name, in order; the rows of all others were never trained. `fresh`: ids of
    ours that get the mean of those rows."""

    tokenizer: TableTokenizer
    named: tuple[int, ...]
    fresh: tuple[int, ...]


def vocabulary(root: pathlib.Path, layout: Layout, spec: str | None, hf: dict[str, Any], rows: int) -> Vocabulary:
    """The tokenizer of a source with `rows` rows of embedding, its special ids those that the source uses.

    spec: a tokenizer other than the source's own, as of `dlmjax prepare`; None takes the files beside the weights.
    Raises InputError: no tokenizer, one that has ids without a row, one that contradicts the config's mask.
    """
    tokenizer = load_tokenizer(spec or _tokenizer_of(root, layout))
    own = _own_ids(tokenizer)
    if own is None or (spec or "").startswith("saved:"):
        used = set(range(tokenizer.vocab_size))  # its ids are decided
    else:
        tokenizer, used = _with_ids_of_source(tokenizer, own, root, hf, rows)
    specials = {tokenizer.mask_id, tokenizer.pad_id, tokenizer.eos_id}
    if not set(range(rows, tokenizer.vocab_size)) <= specials:
        raise InputError(
            f"{root} has rows for {rows:,} ids, tokenizer {tokenizer.name} has {tokenizer.vocab_size:,}; give its own --tokenizer"
        )
    declared = hf.get("mask_token_id")
    if declared is not None and declared != tokenizer.mask_id:
        raise InputError(
            f"config.json has mask_token_id={declared!r:.60}, but the tokenizer's mask is {tokenizer.mask_id}; give its own --tokenizer"
        )
    fresh = {*range(rows, tokenizer.vocab_size), *(specials - used)}
    return Vocabulary(tokenizer, tuple(sorted(i for i in used if i < rows)), tuple(sorted(fresh)))


def runs(ids: Iterable[int]) -> Iterator[slice]:
    """Ids in rising order as slices, one for each run of neighbours."""
    start = stop = None
    for i in ids:
        if i != stop:
            if start is not None:
                yield slice(start, stop)
            start = i
        stop = i + 1
    if start is not None:
        yield slice(start, stop)


def _tokenizer_of(root: pathlib.Path, layout: Layout) -> str:
    """The spec of the tokenizer beside the weights. vocab.json with merges.txt does not define where words end: it is GPT-2's rule
    for the models that are known to use it."""
    if (root / "tokenizer.json").is_file():
        return f"{'wordpiece' if layout.name == 'bert' else 'hf'}:{root / 'tokenizer.json'}"
    if (root / "tokenizer.model").is_file():
        return f"sentencepiece:{root / 'tokenizer.model'}"
    if layout.name in ("gpt2", "roberta") and (root / "vocab.json").is_file() and (root / "merges.txt").is_file():
        return f"gpt2:{root}"
    raise InputError(f"{root} holds no tokenizer.json (transformers' save_pretrained writes one); name one with --tokenizer")


def _own_ids(tokenizer: TableTokenizer) -> int | None:
    """Number of ids that the tokenizer's own file names, without those that we added; None where no file lists them."""
    return 1 + max(pieces_of(tokenizer).values()) if pieces_of(tokenizer) else None


def _with_ids_of_source(
    tokenizer: TableTokenizer, own: int, root: pathlib.Path, hf: dict[str, Any], rows: int
) -> tuple[TableTokenizer, set[int]]:
    """The tokenizer with the special ids that the source uses, and all ids that its files name.

    A special id is looked for in this order: by a usual name in the tokenizer's file, then among the tokens added beside it; by the name
    that tokenizer_config.json or config.json gives it; by the id in config.json (a mask: first of all, since weights were trained with it)
    or generation_config.json; else it is new.
    """
    added, declared = _added_tokens(root), _declared_names(root, hf)
    names = {**added, **pieces_of(tokenizer)}
    ids_of = {**_object(root / "generation_config.json"), **{key: value for key, value in hf.items() if value is not None}}
    config_ids = {key: _ids_in(ids_of.get(f"{key}_token_id"), rows) for key in (*NAMES, "bos", "unk", "sep", "cls")}
    used = {*range(own), *(i for i in added.values() if own <= i), *(i for ids in config_ids.values() for i in ids)}
    chosen: dict[str, int] = {}
    for key, usual in NAMES.items():
        loaded = getattr(tokenizer, f"{key}_id")
        by_name = [loaded] if loaded < own else [added[name] for name in usual if name in added]
        by_config = [*([names[declared[key]]] if declared.get(key) in names else []), *config_ids[key]]
        candidates = [*config_ids[key], *by_name, *by_config] if key == "mask" else [*by_name, *by_config]
        # An id of a piece of text cannot be special: a text would produce it.
        available = (i for i in candidates if i not in chosen.values() and (i >= own or i == loaded or not tokenizer.token_bytes[i]))
        chosen[key] = next(available, -1)
    new = (i for i in range(own, own + len(used) + len(NAMES) + 1) if i not in used)
    ids = {f"{key}_id": next(new) if i < 0 else i for key, i in chosen.items()}
    return tokenizer.with_ids(**ids, vocab_size=1 + max(used.union(ids.values()))), used


def _ids_in(value: Any, rows: int) -> list[int]:
    """The ids of a field of config.json: one, several, or none; a number without a row is not an id of this source."""
    values = value if isinstance(value, list) else [value]
    return [i for i in values if isinstance(i, int) and not isinstance(i, bool) and 0 <= i < rows]


def _added_tokens(root: pathlib.Path) -> dict[str, int]:
    """Tokens in the files beside the tokenizer's own: name -> id."""
    found: dict[str, Any] = dict(_object(root / "added_tokens.json"))
    for index, token in _section(root / "tokenizer_config.json", "added_tokens_decoder").items():
        if isinstance(token, dict) and isinstance(token.get("content"), str) and index.isdecimal():
            found[token["content"]] = int(index[:12])
    for name, index in found.items():
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < 1 << 24:
            raise InputError(f"{root}: added token {name!r:.60} has the id {index!r:.60}, which is not an id; correct added_tokens.json")
    return found


def _declared_names(root: pathlib.Path, hf: dict[str, Any]) -> dict[str, str]:
    """The names of special tokens in config.json and, before it, in the tokenizer's config: {"mask": ...}."""
    found = {}
    for values in (hf, *(_object(root / file) for file in ("special_tokens_map.json", "tokenizer_config.json"))):
        for key in NAMES:
            value = values.get(f"{key}_token")
            name = value.get("content") if isinstance(value, dict) else value
            found |= {key: name} if isinstance(name, str) else {}
    return found


def _section(path: pathlib.Path, key: str) -> dict[str, Any]:
    value = _object(path).get(key) or {}
    if not isinstance(value, dict):
        raise InputError(f"{path}: {key} is not an object; restore the file, or delete it")
    return value


def _object(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no such file."""
    return read_json(path, advice="restore the file, or delete it", any_number=True) if path.exists() else {}
