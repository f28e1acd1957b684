"""The files of a workdir: read, written, and checked to be those that the run wrote.

workdir/
    config.json        every leaf of the config, flat
    texts.json         inputs of the run: a fingerprint of each corpus, the hash of the tokenizer, the sha256 of the tables below
    counts.npy         occurrences of each token in the training text, for processes that require them
    embedding.npy      the embedding table whose file process.name names, for processes that take one
    module.py          the Python file of a network of one's own, where model.family names one; run only for a caller that trusts it
    tokenizer/         the tokenizer of the corpus, so that a run can be sampled without its corpus
    checkpoints/       see `training.checkpoint`
    metrics.jsonl      one line per event;  tensorboard/  the same as curves
    aside-001/         the same files from before `--fresh`

Both JSON files have a checksum, and each checkpoint has a copy of both. A missing file is made again from the copy; a changed one is
reported, and no run continues from it. Files of older versions have no checksum, and their checkpoints no copy of texts.json.
"""

import hashlib
import io
import itertools
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from dlmjax import choices, module_file
from dlmjax import config as config_lib
from dlmjax.data import Tokenizer, counts, load_tokenizer
from dlmjax.data.tokenizers import save_tokenizer
from dlmjax.errors import InputError
from dlmjax.files import read_json, remove_leftovers, require_shape, sealed, unsealed, why, write_atomically
from dlmjax.training import Checkpoints
from dlmjax.training.goodput import FILE as GOODPUT
from dlmjax.training.marker import INPUTS
from dlmjax.training.metrics import FILE as METRICS
from dlmjax.training.metrics import read as read_metrics

CONFIG, TEXTS, EMBEDDING, TOKENIZER, CHECKPOINTS = "config.json", "texts.json", "embedding.npy", "tokenizer", "checkpoints"
# The files that `--fresh` moves, in this order: a workdir whose move was interrupted does not look like a run that can resume.
STATE = (CHECKPOINTS, METRICS, "tensorboard", GOODPUT, TEXTS, counts.FILE, EMBEDDING, module_file.FILE, TOKENIZER, CONFIG)
_WRITE_AGAIN = "put it back; where its corpus is at hand, `dlmjax train` with the run's config writes it again once it is removed"
_MEND = "restore it; or remove it, and it is made again from the newest checkpoint (nothing was changed)"


def trained(workdir: pathlib.Path) -> bool:
    """Whether a workdir holds something that another config would harm: checkpoints, whole or not, or lines of metrics.

    Raises InputError: the path of the checkpoints is not a folder.
    """
    metrics = workdir / METRICS
    with Checkpoints(workdir / CHECKPOINTS) as checkpoints:
        return bool(checkpoints.named()) or metrics.is_dir() or (metrics.exists() and metrics.stat().st_size > 0)


# ---- what is stored ------------------------------------------------------------------------------------------------------------------


def newest_meta(workdir: pathlib.Path) -> dict:
    """The meta of the newest whole checkpoint, {} where there are none. Raises InputError: there are, and none of them is whole."""
    with Checkpoints(workdir / CHECKPOINTS) as checkpoints:
        steps = checkpoints.steps()
        if not steps and checkpoints.named():
            checkpoints.meta()
        return checkpoints.meta(steps[-1]) if steps else {}


def stored_leaves(workdir: pathlib.Path, meta: dict) -> dict[str, Any] | None:
    """The flat config of a run: of config.json, or of its newest checkpoint where that is gone; None where there is neither.

    Raises InputError: config.json was changed, or is not that of the run of the checkpoints.
    """
    file, copy = workdir / CONFIG, meta.get("config")
    if not os.path.lexists(file):
        return copy
    try:
        leaves = unsealed(read_json(file, dict, _MEND))
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{file} is not the config of a run any more: {error}; {_MEND}") from None
    if copy:
        old, new = config_lib.renamed(copy), config_lib.renamed(leaves)
        common = old.keys() & new.keys()
        differing = config_lib.differences({name: old[name] for name in common}, {name: new[name] for name in common})
        if differing:
            raise InputError(
                f"{file} is not the config that the newest checkpoint was made with: {'; '.join(differing)}; {_either(file, meta)}"
            )
    return leaves


def _either(file: pathlib.Path, meta: dict) -> str:
    """What to do where a file and the newest checkpoint are of two runs: which of them belongs here, nothing tells."""
    checkpoint = file.parent / CHECKPOINTS / f"{meta['step']:08d}"
    return f"where the checkpoint, {checkpoint}, is another run's, move that away, else restore {file.name} (nothing was changed)"


def stored_config(workdir: pathlib.Path, meta: dict) -> ConfigDict:
    """The config of a run, see `stored_leaves`. Raises InputError: not a workdir, a config that is damaged."""
    leaves = stored_leaves(workdir, meta)
    if leaves is None:
        raise InputError(f"{workdir} is not the workdir of a run (it has no {CONFIG}); give the --workdir of `dlmjax train`")
    try:
        return config_lib.from_json(json.dumps(leaves))
    except InputError as error:
        raise InputError(f"{workdir / CONFIG} is not a config of this version of dlmjax: {error}; {_MEND}") from error
    except (ValueError, TypeError, AttributeError) as error:  # a value of another type
        raise InputError(f"{workdir / CONFIG} is not the config of a run any more: {why(error)}; {_MEND}") from error


def stored_inputs(workdir: pathlib.Path, meta: dict) -> dict[str, Any]:
    """The inputs of a run, {"texts", "tokenizer", "files"}, of texts.json or of its newest checkpoint; {} where neither has them.

    Raises InputError: texts.json was changed, or is not that of the run of the checkpoints.
    """
    file, copy = workdir / TEXTS, meta.get("given", {})
    if not os.path.lexists(file):
        return copy
    try:
        values = read_json(file, (dict, list), _MEND)
        inputs = {"texts": values} if isinstance(values, list) else unsealed(values, set(INPUTS))
        require_shape(inputs, {name: INPUTS[name] for name in inputs} if "texts" in inputs else INPUTS)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{file} is not what the run was given any more: {error}; {_MEND}") from None
    if any(copy.get(name, value) != value for name, value in inputs.items()):
        raise InputError(f"{file} is not what the newest checkpoint was made from; {_either(file, meta)}")
    return {**copy, **inputs}


def stored_tokenizer(workdir: pathlib.Path, inputs: dict) -> Tokenizer:
    """The tokenizer of a run. Raises InputError: it is missing or damaged, or is not that of the run."""
    tokenizer = load_tokenizer(f"saved:{workdir / TOKENIZER}")
    if inputs.get("tokenizer", tokenizer.hash) != tokenizer.hash:
        raise InputError(f"{workdir / TOKENIZER} is not the tokenizer that the run was trained with; put back that of its corpus")
    return tokenizer


def stored_table(workdir: pathlib.Path, name: str, inputs: dict) -> np.ndarray | None:
    """The array of counts.npy or embedding.npy; None where the run has none.

    Raises InputError: it is missing though the run has one, was changed, or is not an array.
    """
    if not os.path.lexists(workdir / name) and name not in inputs.get("files", {}):
        return None
    content = stored_bytes(workdir, name, inputs)
    try:
        return np.load(io.BytesIO(content), allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise InputError(f"{workdir / name} is not the table of the run any more: {why(error)}; {_WRITE_AGAIN}") from None


def stored_bytes(workdir: pathlib.Path, name: str, inputs: dict) -> bytes:
    """The content of a file whose sha256 the run recorded. Raises InputError: it is missing, or was changed."""
    file, expected = workdir / name, inputs.get("files", {}).get(name)
    if not os.path.lexists(file):
        raise InputError(f"{file} is missing; {_WRITE_AGAIN}")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file} cannot be read ({error.strerror}); {_WRITE_AGAIN}") from None
    if expected and hashlib.sha256(content).hexdigest() != expected:
        raise InputError(f"{file} is not that of the run any more: it was changed since it was written: its sha256 differs; {_WRITE_AGAIN}")
    return content


# ---- the table of embeddings ---------------------------------------------------------------------------------------------------------


def embedding_of(config: ConfigDict, workdir: pathlib.Path | None) -> np.ndarray | None:
    """The embedding table of a process, of the .npy file that process.name names (`d3pm(kernel=neighbours, embedding='table.npy')`); None
    where it names none. A claimed workdir has a copy, which is read from then on. workdir: None for no workdir.

    Raises:
      InputError: no such file, or not a table of finite numbers.
    """
    named = choices.parse(config.process.name)[1].get("embedding")
    if not isinstance(named, str):
        return None
    copied = workdir and (workdir / EMBEDDING).is_file() and (trained(workdir) or not pathlib.Path(named).is_file())
    file = workdir / EMBEDDING if copied else pathlib.Path(named)
    try:
        table_VE = np.load(file, allow_pickle=False)
    except OSError as error:
        raise InputError(f"the embedding table {file} cannot be read ({error.strerror}); correct process.name, or put it back") from error
    except (ValueError, EOFError, SyntaxError) as error:
        raise InputError(f"{file} is not an array that numpy.save wrote; process.name takes one as its embedding table") from error
    return _table(table_VE, file)


def stored_embedding(config: ConfigDict, workdir: pathlib.Path, inputs: dict) -> np.ndarray | None:
    """As `embedding_of`, for a run that is opened: always the workdir's copy."""
    if not isinstance(choices.parse(config.process.name)[1].get("embedding"), str):
        return None
    table_VE = stored_table(workdir, EMBEDDING, inputs)
    if table_VE is None:
        raise InputError(f"{workdir / EMBEDDING} is missing; put back the table that the run was trained with")
    return _table(table_VE, workdir / EMBEDDING)


def _table(table_VE: Any, file: pathlib.Path) -> np.ndarray:
    if not isinstance(table_VE, np.ndarray) or table_VE.ndim != 2 or table_VE.dtype.kind not in "iuf" or not np.isfinite(table_VE).all():
        raise InputError(f"{file} is not a table of embeddings: save an array of finite numbers, one row for each token id")
    return table_VE


# ---- who may write -------------------------------------------------------------------------------------------------------------------


def claim_workdir(
    workdir: pathlib.Path,
    config: ConfigDict,
    tokenizer: Tokenizer,
    counts_V: Any = None,
    embedding_VE: Any = None,
    texts: Sequence[str] = (),
    module: bytes | None = None,
) -> dict[str, Any]:
    """Writes config, tokenizer, fingerprints of the corpora, counts and embedding table into a new workdir; refuses one of another run.

    A workdir in which nothing was trained, because a first start ended with bad input, takes the new config. texts: a fingerprint of each
    corpus. module: the Python file of a network of one's own. Returns the inputs of the run, for its checkpoints.

    Raises:
      InputError: the workdir's config differs in fields that belong to a run's identity (they are named), or its text differs, or a file
        that is compared, or every checkpoint, is damaged. Nothing is changed.
    """
    tables = {}
    if counts_V is not None:
        tables[counts.FILE] = counts.content(counts_V)
    if embedding_VE is not None:
        content = io.BytesIO()
        np.save(content, embedding_VE, allow_pickle=False)
        tables[EMBEDDING] = content.getvalue()
    if module is not None:
        tables[module_file.FILE] = module
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in tables.items()}
    inputs = {"texts": list(texts), "tokenizer": tokenizer.hash, "files": hashes}
    if trained(workdir):
        _require_same_run(workdir, config, inputs)
    if jax.process_index() == 0:
        (workdir / CHECKPOINTS).mkdir(parents=True, exist_ok=True)  # before there are metrics, see `_require_kept`
        for folder in (workdir, workdir / TOKENIZER):
            remove_leftovers(folder)
        save_tokenizer(tokenizer, workdir / TOKENIZER)
        for name, content in tables.items():
            write_atomically(workdir / name, content)
        write_atomically(workdir / TEXTS, json.dumps(sealed(inputs), indent=1) + "\n")
        write_atomically(workdir / CONFIG, json.dumps(sealed(config_lib.leaves(config)), indent=1) + "\n")
    return inputs


def _require_same_run(workdir: pathlib.Path, config: ConfigDict, inputs: dict) -> None:
    """Raises InputError: a workdir in which something was trained belongs to another run, or does not identify its run."""
    meta = newest_meta(workdir)
    old = stored_leaves(workdir, meta)
    if old is None:
        raise InputError(
            f"{workdir} holds metrics and neither {CONFIG} nor a checkpoint that says of which run; put {CONFIG} back, choose another "
            "--workdir, or start anew with --fresh, which moves all of it aside (nothing was changed)"
        )
    _require_kept(workdir, old)
    differing = config_lib.differences(config_lib.renamed(old), config_lib.leaves(config))
    if differing:
        raise InputError(
            f"{workdir} holds another run; it differs in {'; '.join(differing)}. Choose another --workdir; with --fork {workdir} it "
            "goes on from that run's newest checkpoint, for more steps say (nothing was changed)"
        )
    before = stored_inputs(workdir, meta)
    known = {"tokenizer": before["tokenizer"]} if "tokenizer" in before else {}
    if os.path.lexists(workdir / TOKENIZER):
        known["tokenizer"] = stored_tokenizer(workdir, before).hash
    elif not known and not before and not {"imported", "merged"} & meta.keys():
        raise InputError(f"{workdir / TOKENIZER} is missing; put back that of the run's corpus (nothing was changed)")
    if known.get("tokenizer", inputs["tokenizer"]) != inputs["tokenizer"]:
        raise InputError(f"{workdir} was trained with another tokenizer than the corpus has; choose another --workdir or corpus")
    if before.get("texts", []) not in ([], inputs["texts"]):
        raise InputError(
            f"{workdir} was trained on other text than {', '.join(config.data.paths)} holds now; give it that text again, or go on "
            "with this one in another --workdir by --fork (nothing was changed)"
        )
    for name, wanted in inputs["files"].items():
        if before.get("files", {}).get(name, wanted) != wanted:
            if name == module_file.FILE:
                raise InputError(
                    f"model.family={config.model.family} is not the code that {workdir} was trained with ({workdir / name}): use that, or "
                    f"go on with the new code in another --workdir by --fork {workdir} (nothing was changed)"
                )
            raise InputError(f"{workdir / name} is not the table that the run was trained with; put that back (nothing was changed)")


def _require_kept(workdir: pathlib.Path, leaves: dict) -> None:
    """Raises InputError: there is no checkpoint, and the metrics show that there was one: a new start would erase them.

    A claimed workdir has a folder of checkpoints before it has metrics: where the folder is missing, lines up to the first save show it.
    Where it is empty, a kill may have interrupted the first save; the second save waits for the first, so lines beyond the second show it.
    """
    folder, every, steps = workdir / CHECKPOINTS, leaves.get("checkpoint.every"), leaves.get("train.steps")
    with Checkpoints(folder) as checkpoints:
        if checkpoints.named() or not (type(every) is type(steps) is int and every > 0):
            return
    lines = [event["step"] for event in read_metrics(workdir / METRICS)] if (workdir / METRICS).is_file() else []
    if not lines:
        return
    first = -(-max(lines[0], 1) // every) * every  # the lines of a fork start after step 1
    lost = lines[-1] > first + every if folder.exists() else lines[-1] >= min(first, steps)
    if lost:
        found = "has no checkpoint" if folder.exists() else "is not there"
        raise InputError(
            f"{folder} {found}, and {workdir / METRICS} goes to step {lines[-1]}, past the first save: put the checkpoints back, "
            "or start anew with --fresh, which moves what is there aside (nothing was changed)"
        )


def move_aside(workdir: pathlib.Path) -> pathlib.Path | None:
    """Moves all files of training into a new folder of the workdir and returns it; None where there are none. Deletes nothing.

    Only the process that holds the workdir's lock may call it. Raises InputError: a file cannot be moved; files moved before it stay moved.
    """
    there = [name for name in STATE if os.path.lexists(workdir / name)]
    if not there:
        return None
    aside = next(path for number in itertools.count(1) if not os.path.lexists(path := workdir / f"aside-{number:03d}"))
    try:
        aside.mkdir()
        for name in there:
            (workdir / name).rename(aside / name)
    except OSError as error:
        raise InputError(
            f"{workdir} cannot be moved to {aside} ({error.strerror}); move it yourself, or choose another --workdir"
        ) from error
    return aside
