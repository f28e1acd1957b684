"""A Hugging Face checkpoint becomes the workdir of a run, which samples, is evaluated, and starts others (`--init`).

Each device reads its own shards of each weight from the memory-mapped files and transposes, casts and stacks them on the way; nothing
else is held in memory. The workdir's config.json is written last: before it, there is no run.

Ids that the tokenizer adds to the source's vocabulary (a mask token, where the source has none) get new rows of embedding and head, the
mean of the source's rows: a token that is like every other (as in Hewitt 2021, "Initializing new word embeddings").
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
import re
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from dlmjax import choices
from dlmjax import config as config_lib
from dlmjax.diffusion.processes.blocks import Blockwise
from dlmjax.errors import InputError
from dlmjax.experiment import Experiment, assemble, claim_workdir
from dlmjax.files import read_json
from dlmjax.interop.hf_config import Fields
from dlmjax.interop.layouts import LAYOUTS, Entry, Layout, Path, layout_of
from dlmjax.interop.reference import Reference
from dlmjax.interop.safetensors import DTYPES, Reader, some
from dlmjax.interop.vocabulary import runs, vocabulary
from dlmjax.models import ModelSpec
from dlmjax.models.families import family_fields
from dlmjax.training import Checkpoints

# Largest number of tokens of a window of the new run.
LONGEST_WINDOW = 1024
FLOATS = tuple(DTYPES[code] for code in ("F64", "F32", "F16", "BF16"))
# A second copy of a tied head, by layout family of names.
TIED_COPIES = ("lm_head.weight", "model.transformer.ff_out.weight", "cls.predictions.decoder.weight", "lm_head.decoder.weight")
# BERT's and RoBERTa's head has two biases: the one that is tied to the other, and the one that is read where nothing is tied.
HEAD_BIASES = {"cls.predictions.decoder.bias": "cls.predictions.bias", "lm_head.decoder.bias": "lm_head.bias"}


def import_checkpoint(
    *,
    source: str,
    workdir: str,
    family: str | None = None,
    tokenizer: str | None = None,
    process: str | None = None,
    dtype: str = "float32",
    length: int | None = None,
) -> dict[str, Any]:
    """Makes a workdir of the checkpoint in a directory with config.json and safetensors.

    Returns a report: source, workdir, layout, family, process, parameters and new ids.

    Args:
      family: one of LAYOUTS; None takes it from config.json.
      tokenizer: a tokenizer spec (`dlmjax prepare --help`); None takes the source's own files.
      process: a noise process as in `process.name`; None takes what the weights were trained under.
      dtype: of activations when the run is opened; weights are float32, whatever the files hold.
      length: tokens of a window; None takes what the source was trained on, up to 1024.

    Raises:
      InputError: not such a directory, a network that cannot be computed here, tensors that are missing, surplus or of another shape, a
        tokenizer that is not the source's, a workdir that holds a run.
    """
    root = pathlib.Path(source)
    target = pathlib.Path(workdir)
    if (target / "config.json").exists():
        raise InputError(f"{workdir} holds a run; import into another --workdir (nothing was changed)")
    hf = _hf_config(root)
    layout = layout_of(family) if family else _layout_by_type(hf)
    reader, own_process = Reader(root), _process_of(layout, hf)
    config = _config(layout, hf, process or own_process, dtype)
    rows = _rows(layout, reader, _names(layout, reader))
    _check_sizes(config, hf, reader, rows)
    ids = vocabulary(root, layout, tokenizer, hf, rows)
    tokens = ids.tokenizer
    with config.unlocked():
        config.model.vocab = max(rows, tokens.vocab_size)
        config.mesh.update(data=-1, fsdp=math.gcd(jax.device_count(), config.model.width))
    _set_length(config, hf, length)
    config_lib.check(config)
    experiment = assemble(config, tokens)
    if experiment.process.parameters:
        raise InputError(
            f"process {experiment.process.name} has learned parameters, which the source lacks; import without --process, train with --init"
        )
    reference = Reference(root, hf, layout, own_process, rows)
    params = read_weights(experiment, layout, reader, ids.fresh, ids.named)
    reference.check(experiment, params)
    with config.unlocked():
        config.mesh.update(data=-1, fsdp=1)
    imported = {"source": source, "layout": layout.name, "family": config.model.family}
    meta = {"step": 0, "metric": None, "pending": [], "config": config_lib.leaves(config), "imported": imported}
    with Checkpoints(target / "checkpoints") as checkpoints:
        checkpoints.save(0, {"params": params}, meta)
    claim_workdir(target, config, tokens)
    return _report(source, workdir, layout, experiment, reader, ids.fresh) | {"compared": reference.summary}


def _report(source: str, workdir: str, layout: Layout, experiment: Experiment, reader: Reader, fresh: tuple[int, ...]) -> dict[str, Any]:
    """The report of `import_checkpoint` on the source."""
    spec, config = experiment.network.spec, experiment.config
    return {
        "source": str(source),
        "workdir": str(workdir),
        "layout": layout.name,
        "family": config.model.family,
        "process": config.process.name,
        "parameters": experiment.parameter_count,
        "vocab": spec.vocab,
        "mask_id": experiment.tokenizer.mask_id,
        "stored": sorted({str(reader.dtype(name)) for name in reader.names}),
        "new_ids": list(fresh),
    }


# ---- what the source is -----------------------------------------------------------------------------------------------------------


def _hf_config(root: pathlib.Path) -> dict[str, Any]:
    hf = read_json(root / "config.json", advice="give a directory that save_pretrained wrote", any_number=True)
    if not isinstance(hf.get("dlm") or {}, dict):
        raise InputError(f"{root / 'config.json'} is not the config of a model: dlm is not an object")
    if hf.get("quantization_config"):
        raise InputError(f"{root} is quantised; import the checkpoint that it was made from")
    return hf


def _layout_by_type(hf: dict[str, Any]) -> Layout:
    kind = hf.get("model_type")
    layout = next((layout for layout in LAYOUTS.values() if layout.model_type == kind), None)
    if layout is None:
        raise InputError(
            f"config.json has model_type={kind!r}, which is unknown; if it equals a known "
            f"family, name that one, and its logits are compared: --family {'|'.join(LAYOUTS)}"
        )
    return layout


def _process_of(layout: Layout, hf: dict[str, Any]) -> str:
    """The process that the weights were trained under: from the `dlm` block of our exports, the block size, `is_causal`, or the layout."""
    dlm = hf.get("dlm") or {}
    size = Fields(dlm, "dlm.").count("block_size", None) or (Fields(hf).count("block_size", None) if layout.name == "sdar" else None)
    if size:
        return f"blocks(size={size})"
    if "attention" in dlm:
        return "autoregressive" if dlm["attention"] == "causal" else "masked"
    return "masked" if not Fields(hf).flag("is_causal", True) and layout.process == "autoregressive" else layout.process


def _config(layout: Layout, hf: dict[str, Any], process: str, dtype: str) -> ConfigDict:
    """The defaults, with the source's network and a process."""
    config = config_lib.default()
    with config.unlocked():
        config.model.update(layout.spec_of(hf))
        config.process.name = process
        config.execution.dtype = dtype
        config.train.ema = 0.0
    return config


def _check_sizes(config: ConfigDict, hf: dict[str, Any], reader: Reader, rows: int) -> None:
    """Raises InputError where the config's sizes are not those of the files, before anything of that size is allocated."""
    if config.model.depth > len(reader.names):
        raise InputError(f"config.json has {config.model.depth:,} layers, the files {len(reader.names):,} tensors; get the rest of them")
    declared = hf.get("embedding_size", hf.get("vocab_size"))
    if declared is not None and declared != rows:
        raise InputError(f"config.json gives the vocabulary {declared!r:.60} rows, but the embedding in the files has {rows:,}; correct it")


def _set_length(config: ConfigDict, hf: dict[str, Any], length: int | None) -> None:
    """Sets the window: `length`, or the longest row that the source can read; a multiple of the block."""
    declared = [Fields(hf).count(key, None) for key in ("max_position_embeddings", "max_sequence_length", "n_positions")]
    context = next(filter(None, declared), LONGEST_WINDOW)
    offset = family_fields(config.model.family).get("position_offset", 0)
    trained = Fields(hf.get("dlm") or {}, "dlm.").count("length", None) or min(context - offset, LONGEST_WINDOW)
    process, values = choices.parse(config.process.name)
    size = values.get("size", Blockwise.size) if process == Blockwise.name else 1
    with config.unlocked():
        config.data.length = length or max(trained // size, 1) * size


# ---- names ------------------------------------------------------------------------------------------------------------------------


def _names(layout: Layout, reader: Reader) -> dict[str, str]:
    """{name in the layout: name in the file}. Old files call a LayerNorm's leaves gamma and beta, some leave out the prefix."""
    found = {}
    stems = {row.name.split("{i}")[0] for row in layout.rows}
    for name in reader.names:
        usual = re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", name))
        if not usual.startswith(tuple(stems)) and f"{layout.prefix}{usual}".startswith(tuple(stems)):
            usual = f"{layout.prefix}{usual}"
        found[usual] = name
    return found


def _rows(layout: Layout, reader: Reader, found: dict[str, str]) -> int:
    """Rows of the source's embedding."""
    name = next(row.name for row in layout.rows if row.weights == ("embedding.table",))
    if name not in found:
        raise InputError(
            f"{reader.source} has no tensor {name}, so its tensors do not have the names of layout {layout.name}; choose another --family"
        )
    return reader.shape(found[name])[0]


def _matched(layout: Layout, spec: ModelSpec, reader: Reader, found: dict[str, str], rows: int) -> dict[str, tuple[Entry, str]]:
    """{layout's name: (entry, name in the file)} of all tensors of the network.

    Raises InputError that names those that are missing, surplus, of another shape, or not floats.
    """
    entries = {entry.name: entry for entry in layout.entries(spec)}
    if not spec.tied:
        own = {HEAD_BIASES[name]: name for name in HEAD_BIASES if name in found}
        found = {usual: found[own.get(usual, usual)] for usual in (*found, *own)}
    surplus = [name for usual, name in found.items() if usual not in entries and not _unread(layout, spec, reader, found, usual)]
    shapes = {entry.name: _shape(entry, rows) for entry in entries.values()}
    other = [
        f"{found[name]} is {list(reader.shape(found[name]))} and not {list(shape)}"
        for name, shape in shapes.items()
        if name in found and reader.shape(found[name]) != shape
    ]
    coded = [
        f"{found[name]} is {reader.dtype(found[name])}" for name in entries if name in found and reader.dtype(found[name]) not in FLOATS
    ]
    faults = {"missing": [name for name in entries if name not in found], "surplus": surplus, "of another shape": other, "not float": coded}
    if any(faults.values()):
        listed = "; ".join(f"{len(names)} {fault}: {some(names)}" for fault, names in faults.items() if names)
        raise InputError(f"{reader.source} does not hold the network of its config.json under the names of layout {layout.name}: {listed}")
    return {name: (entry, found[name]) for name, entry in entries.items()}


def _unread(layout: Layout, spec: ModelSpec, reader: Reader, found: dict[str, str], usual: str) -> bool:
    """Whether a tensor that the network does not have may be there: a buffer, or a copy of the embedding where the head is tied."""
    if any(re.fullmatch(pattern, usual) for pattern in layout.unread):
        return True
    if usual in HEAD_BIASES and not spec.tied:
        return True  # the head's own: `_matched` reads it in place of the other
    if not spec.tied or usual not in (*TIED_COPIES, *HEAD_BIASES):
        return False
    other = HEAD_BIASES.get(usual) or next(row.name for row in layout.rows if row.weights == ("embedding.table",))
    copy, original = (reader.read(found[name]) if name in found else None for name in (usual, other))
    if original is None or copy.shape != original.shape or not np.array_equal(copy, original):
        what = other if usual in HEAD_BIASES else "the embedding"
        raise InputError(f"{reader.source}: {found[usual]} differs from {what}; set tie_word_embeddings to false in its config.json")
    return True


def _shape(entry: Entry, rows: int) -> tuple[int, ...]:
    """The shape that the source's tensor must have, its vocabulary being that of its embedding."""
    return tuple(rows if axis == entry.vocab_axis else size for axis, size in enumerate(entry.shape))


# ---- weights ----------------------------------------------------------------------------------------------------------------------


def read_weights(
    experiment: Experiment, layout: Layout, reader: Reader, fresh: tuple[int, ...] = (), trained: tuple[int, ...] | None = None
) -> dict:
    """The weights of a network from a checkpoint, float32, each where `experiment` places it: a device reads its own shards alone.

    Args:
      fresh: ids that get the mean of the rows of the `trained` ids; all that the source has no row for are among them.
      trained: ids of the source that were trained, in rising order; None takes all its rows.

    Raises:
      InputError: tensors that are missing, surplus, of another shape, or not floats.
    """
    found = _names(layout, reader)
    rows = _rows(layout, reader, found)
    matched, averaged = _matched(layout, experiment.network.spec, reader, found, rows), range(rows) if trained is None else trained
    files = _Files(reader, matched, rows, fresh, tuple(runs(averaged)))

    def leaf(path: tuple, wanted: Any, sharding: Any) -> jax.Array:
        keys = tuple(key.key for key in path)
        read = functools.partial(files.read, keys, wanted.shape)
        return jax.make_array_from_callback(wanted.shape, sharding, read, dtype=wanted.dtype)

    return jax.tree_util.tree_map_with_path(leaf, experiment.network.abstract(), experiment.partition.tree(experiment.network.axes))


@dataclasses.dataclass(frozen=True)
class _Files:
    """The source's tensors as our weights. `rows`: ids of its embedding; `fresh`: ids that get the mean of the rows in `trained`."""

    reader: Reader
    entries: dict[str, tuple[Entry, str]]
    rows: int
    fresh: tuple[int, ...]
    trained: tuple[slice, ...]

    @functools.cached_property
    def _sources(self) -> dict[tuple[Path, int | None], tuple[Entry, str, int]]:
        """(our path, layer) -> (entry, name in the file, which of its weights)."""
        return {(path, entry.layer): (entry, name, part) for entry, name in self.entries.values() for part, path in enumerate(entry.paths)}

    def weight(self, path: Path, layer: int | None) -> np.ndarray:
        """A read-only view of one weight in its file, transposed to our orientation."""
        entry, name, part = self._sources[path, layer]
        return entry.unpack(self.reader.read(name))[part]

    def read(self, path: Path, shape: tuple[int, ...], index: tuple[slice, ...]) -> Float[np.ndarray, ...]:
        """A shard of one of our weights, float32."""
        index = tuple(slice(*part.indices(size)) for part, size in zip(index, shape, strict=True))
        out = np.empty([part.stop - part.start for part in index], np.float32)
        if path[0] == "layers":
            for number, layer in enumerate(range(index[0].start, index[0].stop)):
                out[number] = self.weight(path, layer)[index[1:]]
            return out
        entry = self._sources[path, None][0]
        if entry.vocab_axis is None:
            out[...] = self.weight(path, None)[index]
            return out
        self._fill(path, entry, index, out)
        return out

    def _fill(self, path: Path, entry: Entry, index: tuple[slice, ...], out: np.ndarray) -> None:
        """Embedding, head and bias of the head, with their new ids."""
        axis = 1 - entry.vocab_axis if entry.transpose else entry.vocab_axis
        ids, others = index[axis], [part for at, part in enumerate(index) if at != axis]
        by_id, source = np.moveaxis(out, axis, 0), np.moveaxis(self.weight(path, None), axis, 0)
        old = slice(ids.start, min(ids.stop, self.rows))
        by_id[: max(old.stop - old.start, 0)] = source[(old, *others)]
        for new in self.fresh:
            if ids.start <= new < ids.stop:
                by_id[new - ids.start] = self._mean(path, axis)[tuple(others)]

    def _mean(self, path: Path, axis: int) -> np.ndarray:
        source = np.moveaxis(self.weight(path, None), axis, 0)
        total = sum(source[run].sum(axis=0, dtype=np.float64) for run in self.trained)
        return total / sum(run.stop - run.start for run in self.trained)
