"""A checkpoint as files that other programs load. `views` lists what a view can hold, `layouts` the names of the tensors.

Weights go from the checkpoint to the files one at a time: a stacked leaf is restored, compared with its checksum, written layer by layer
and freed. The directory appears under its name when it is complete.

What is changed on the way:
  CompleteP     the factors on residual branches (1 / depth ratio) and logits (1 / width ratio) go into the weights behind them.
  tied heads    are written out: the rows below must differ from those of the embedding.
  filled rows   mask, pad and rows that pad the vocabulary were in no softmax, so their logits are untrained, and engines take the argmax
                over all rows. These rows of the head become the mean of the `anchors`: rows of ids that no text can hold (pieces with a
                byte that valid UTF-8 does not contain), or of all real ids. A mean of logits does not exceed the largest of them, so no
                argmax selects such a row, whatever the input; and by Jensen's inequality it has at most 1/n of the probability of its n
                anchors together.

Shapes: V ids of the model, R rows in the files, D width.
"""

import dataclasses
import json
import pathlib
import re
import shutil
from collections.abc import Callable

import ml_dtypes
import numpy as np

from dlmjax import experiment as experiment_lib
from dlmjax.data.tokenizers import save_tokenizer
from dlmjax.errors import InputError, names_arguments
from dlmjax.files import write_atomically
from dlmjax.interop import card
from dlmjax.interop.layouts import LAYOUTS, Entry, Layout, Path
from dlmjax.interop.parity import mask_of, parity, prompt_ids
from dlmjax.interop.safetensors import Tensor, write_sharded
from dlmjax.interop.tokenizer_files import write_tokenizer
from dlmjax.interop.views import Exported, View, VocabularyRows, view_of
from dlmjax.models import ModelSpec
from dlmjax.models.families import own_module
from dlmjax.parallel.arrays import device_get
from dlmjax.training import Checkpoints
from dlmjax.workdir import newest_meta, stored_config

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
OUR_TOKENIZER = "tokenizer"
EMBEDDING: Path = ("embedding", "table")
HEAD: Path = ("head", "kernel")


@names_arguments()
def export(
    *,
    workdir: str,
    view: str = "hf",
    output: str,
    dtype: str = "bfloat16",
    shard_size: str = "2GB",
    weights: str = "ema",
    step: int | None = None,
    evaluation: str | None = None,
    overwrite: bool = False,
    process: str | None = None,
) -> dict:
    """Writes a view of a run's checkpoint into a new directory.

    Args:
      dtype: of the weights in the files, "float32" or "bfloat16".
      shard_size: bytes of a file, such as "2GB"; also the bound of the memory used, plus the largest stacked weight.
      evaluation: a file that `dlmjax evaluate --json` wrote, for the run card; default: evaluation.json of the workdir, if there.
      overwrite: replace an earlier export in `output`.
      process: another process for the same weights, see `open_experiment`; it decides the attention that the files declare.

    Returns `config`, `files` (names), `parity`, `step`, `weights` ("ema" or "raw") and `no_tokenizer` (why tokenizer.json was not written,
    empty where it was).

    Raises:
      InputError: no such run or checkpoint, a model that the view cannot hold, an output that exists, a disk that is full.
    """
    target, shard_bytes = pathlib.Path(output), parse_bytes(shard_size)
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
    _check_target(target, overwrite)
    _require_family(workdir)
    experiment = experiment_lib.open_experiment(workdir, process=process)
    model = Exported(experiment.network.spec, experiment.process, experiment.tokenizer, experiment.config.data.length)
    chosen = view_of(view, model)
    rows = chosen.rows(model)
    layout, spec = LAYOUTS[chosen.layout(model)], exported_spec(model.spec, rows)
    weights = experiment_lib.kept(experiment, weights)
    config, known = chosen.config(model, rows, dtype), card.evaluation_of(workdir, evaluation)
    stage = target.with_name(f".{target.name}.partial")
    shutil.rmtree(stage, ignore_errors=True)
    try:
        with Checkpoints(pathlib.Path(workdir) / "checkpoints") as checkpoints:
            meta = checkpoints.meta(step)
            read = LeafReader(checkpoints, meta["step"], experiment.abstract_state(), {"ema": "ema", "raw": "params"}[weights])
            write_sharded(stage, tensors(layout, spec, model.spec, rows, DTYPES[dtype], read), shard_bytes)
        config["dlm"] |= {"step": meta["step"], "weights": weights}
        ids = prompt_ids(model.tokenizer, rows.mask_id, model.length)
        found = parity(stage, layout, spec, ids, mask_of(model.attention, model.block_size))
        no_tokenizer = _write_texts(stage, chosen, model, rows, config, found)
        facts = card.Facts(experiment, chosen, model, rows, dtype, meta["step"], weights, known, no_tokenizer, meta.get("imported"))
        write_atomically(stage / "README.md", card.write(facts, sorted(path.name for path in stage.iterdir())))
        _appear(stage, target)
    except OSError as error:
        raise InputError(f"{output} could not be written ({error.strerror}); free some space or choose another --output") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    files = sorted(path.name for path in target.iterdir() if path.is_file())
    origin = {"step": meta["step"], "weights": weights, "no_tokenizer": no_tokenizer}
    return {"config": config, "files": files, "parity": found, **origin}


def parse_bytes(text: str) -> int:
    """ "2GB", "500MB", "1GiB" or a number. Raises InputError for anything else, or less than a kilobyte."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if not match or match[2].upper() not in UNITS or float(match[1]) * UNITS[match[2].upper()] < 1000:
        raise InputError(f"--shard-size {text!r} is not a file size; write it like 2GB or 500MB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def exported_spec(spec: ModelSpec, rows: VocabularyRows) -> ModelSpec:
    """The network that the files hold: rows added, an untied head, CompleteP's factors folded into the weights."""
    return dataclasses.replace(spec, vocab=rows.count, tied=False, completep_width=0, completep_depth=0, dropout=0.0)


# ---- weights ----------------------------------------------------------------------------------------------------------------------


class LeafReader:
    """Leaves of a checkpoint by key path, as float32 arrays of the host; the last leaf that was read stays in memory.

    A leaf is restored in the placement that training would give it on the devices at hand, and compared with its checksum.
    """

    def __init__(self, checkpoints: Checkpoints, step: int, abstract_state: dict, name: str):
        self._checkpoints, self._step, self._abstract, self._name = checkpoints, step, abstract_state[name], name
        self._path: Path | None = None
        self._leaf: np.ndarray | None = None

    def __call__(self, path: Path) -> np.ndarray:
        if path != self._path:
            self._path = self._leaf = None  # before the next one is read, not after
            abstract = self._abstract
            for key in path:
                abstract = abstract[key]
            for key in (*reversed(path), self._name):
                abstract = {key: abstract}
            state = self._checkpoints.restore(abstract, self._step)[0]
            for key in (self._name, *path):
                state = state[key]
            self._path, self._leaf = path, device_get(state)
        return self._leaf


def tensors(
    layout: Layout, spec: ModelSpec, trained: ModelSpec, rows: VocabularyRows, dtype: np.dtype, read: Callable[[Path], np.ndarray]
) -> list[Tensor]:
    """All tensors of the files, in the order in which each leaf is read once.

    spec: of the files (`exported_spec`); trained: of the checkpoint. read: key path -> leaf of the checkpoint, stacked.
    """
    entries = layout.entries(spec)
    order = {path: number for number, path in enumerate(dict.fromkeys(entry.paths[0] for entry in entries))}
    order[HEAD] = order[EMBEDDING] + 0.5  # one leaf where they are tied
    ordered = sorted(entries, key=lambda entry: (order[entry.paths[0]], -1 if entry.layer is None else entry.layer))
    return [Tensor(entry.name, entry.shape, dtype, _loader(entry, trained, rows, dtype, read)) for entry in ordered]


def _loader(entry: Entry, trained: ModelSpec, rows: VocabularyRows, dtype: np.dtype, read) -> Callable[[], np.ndarray]:
    """The function that makes an entry's tensor, called when the tensor is written."""
    if entry.paths[0] == EMBEDDING:
        return lambda: embedding_rows(read(EMBEDDING), rows, dtype)
    if entry.paths[0] == HEAD:
        factor = np.float32(1.0 / trained.width_ratio)
        return lambda: head_rows((read(EMBEDDING) if trained.tied else read(HEAD).T), factor, rows, dtype)
    residual = entry.paths[0][:2] in (("layers", "output"), ("layers", "down"))
    factor = np.float32(1.0 / trained.depth_ratio if residual else 1.0)

    def plain() -> np.ndarray:
        leaves = [read(path) if entry.layer is None else read(path)[entry.layer] for path in entry.paths]
        return entry.pack([leaf if factor == 1 else leaf * factor for leaf in leaves]).astype(dtype)

    return plain


def embedding_rows(table_VD: np.ndarray, rows: VocabularyRows, dtype: np.dtype) -> np.ndarray:
    """The embedding with R rows: the mask's row also at its new id, zeros for rows without an id."""
    table_RD = np.zeros((rows.count, table_VD.shape[1]), dtype)
    table_RD[: len(table_VD)] = table_VD
    if rows.moved:
        table_RD[rows.moved[1]] = table_VD[rows.moved[0]]
    return table_RD


def head_rows(head_VD: np.ndarray, factor: np.float32, rows: VocabularyRows, dtype: np.dtype) -> np.ndarray:
    """The head with R rows, the untrained ones filled with the mean of the anchor rows.

    The mean is that of the rows as they are written, so that an export of an import of this file is this file.
    """
    head_RD = np.zeros((rows.count, head_VD.shape[1]), dtype)
    head_RD[: len(head_VD)] = head_VD if factor == 1 else head_VD * factor
    head_RD[list(rows.filled)] = np.mean(head_RD[list(rows.anchors)].astype(np.float32), axis=0)
    return head_RD


# ---- the rest of the directory ----------------------------------------------------------------------------------------------------


def _write_texts(stage: pathlib.Path, view: View, model: Exported, rows: VocabularyRows, config: dict, found: dict) -> str:
    """Config, tokenizer, parity and what the view adds. Returns why there are no tokenizer files, or ""."""
    ids = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    generation = {**ids, "mask_token_id": rows.mask_id, "suppress_tokens": config["dlm"]["suppress_ids"], "do_sample": False}
    texts = {"config.json": config, "generation_config.json": generation, "parity.json": found}
    texts = {name: json.dumps(content, indent=None if name == "parity.json" else 2) + "\n" for name, content in texts.items()}
    for name, text in {**texts, **view.files(model, rows)}.items():
        write_atomically(stage / name, text)
    if rows.moved:
        return write_tokenizer(model.tokenizer, stage, model.length, rows.mask_id)
    save_tokenizer(model.tokenizer, stage / OUR_TOKENIZER)  # with the ids of these files, for `dlmjax import`
    return write_tokenizer(model.tokenizer, stage, model.length)


def _require_family(workdir: str) -> None:
    """Raises InputError: the network of a run is one of its own, which no other code base can load; nothing of it is run."""
    root = pathlib.Path(workdir)
    family = stored_config(root, newest_meta(root)).model.family
    if own_module(family):
        raise InputError(
            f"{root} has a network of its own, model.family={family}, and an export requires one of a family (dlmjax train --help-config); "
            "read its parameters in Python: dlmjax.open_run(DIR, trust_code=True).params"
        )


def _check_target(target: pathlib.Path, overwrite: bool) -> None:
    """Raises InputError where the output exists and may not be replaced."""
    if not target.exists():
        return
    ours = target.is_dir() and (not any(target.iterdir()) or (target / "parity.json").is_file())
    if not ours:
        raise InputError(f"{target} exists and is not an earlier export; choose another --output (nothing was changed)")
    if not overwrite and any(target.iterdir()):
        raise InputError(f"{target} holds an export already; give --overwrite to replace it, or another --output")


def _appear(stage: pathlib.Path, target: pathlib.Path) -> None:
    """Renames the finished directory to its name; an earlier export is removed afterwards."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    stage.rename(target)
    shutil.rmtree(old, ignore_errors=True)
