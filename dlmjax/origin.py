"""Where a run starts: its own newest checkpoint, another run's (`--fork`, `--init`), or fresh weights from its seed."""

import functools
import logging
import pathlib
import shlex
from collections.abc import Iterator
from typing import Any

import jax

from dlmjax import config as config_lib
from dlmjax import module_file
from dlmjax.cluster import host
from dlmjax.data import load_tokenizer
from dlmjax.errors import InputError
from dlmjax.experiment import Experiment, kept, open_experiment
from dlmjax.models.families import own_module
from dlmjax.training import Checkpoints, clear_stop, init_state
from dlmjax.vocabulary import growth_of
from dlmjax.workdir import CHECKPOINTS, newest_meta, stored_config, stored_inputs

logger = logging.getLogger("dlmjax")
Start = tuple[dict, dict, str]  # a state, its meta, and its origin


def start_of(experiment: Experiment, checkpoints: Checkpoints, first: Start | None, fork: str, init: str) -> Start:
    """The start of the run: this workdir's newest whole checkpoint, else `first` (`first_state`).

    Raises InputError: there are checkpoints, and none of them is whole.
    """
    if checkpoints.resumable():
        state, meta = checkpoints.restore(experiment.abstract_state())
        host.log(f"resuming at step {meta['step']}")
        return clear_stop(state), meta, "resume"
    return first or first_state(experiment, None, fork, init)


def first_state(experiment: Experiment, workdir: pathlib.Path | None, fork: str, init: str) -> Start | None:
    """The start of a run whose workdir has no checkpoint; None where it has one. The order:

    1. `--fork`: another run's newest checkpoint, its counters kept;
    2. `--init`: another run's weights, counters at zero;
    3. scratch: fresh weights from the seed.

    Raises InputError: two origins; weights of another tokenizer or of another network; a fork that has no step left; an origin that
    cannot be read; checkpoints in the workdir of which none is whole.
    """
    if fork and init:
        raise InputError("--fork and --init are two places to start from; give one")
    if workdir:
        with Checkpoints(workdir / CHECKPOINTS) as own:
            if own.resumable():
                return None
    abstract = experiment.abstract_state()
    if fork or init:
        if fork:
            _check_tokenizer(experiment, fork)
        origin = _check_function(experiment, fork or init, "--fork" if fork else "--init")
    if fork:
        with Checkpoints(pathlib.Path(fork) / CHECKPOINTS) as other:
            if (step := other.meta()["step"]) >= experiment.config.train.steps:
                raise InputError(f"{fork} is at step {step}, where this run would end; give --config.train.steps above {step}")
            state, meta = other.restore(abstract)
        host.log(f"forking {fork} at step {meta['step']}")
        return clear_stop(state), {**meta, "metrics": None}, "fork"  # this workdir does not hold the other run's lines
    key = jax.random.key(experiment.config.seed)

    def start(key: jax.Array) -> dict:
        """Initial weights. The fold is part of the one program: alone, it would be compiled at every start."""
        return experiment.init(jax.random.fold_in(key, 0x1717))

    state = init_state(start, experiment.optimizer, key, experiment.param_shardings, ema=experiment.config.train.ema > 0)
    if init:
        state["params"], meta, what = _weights_of(experiment, origin, init, state["params"])
        if experiment.config.train.ema > 0:
            state["ema"] = jax.tree.map(lambda leaf: leaf.copy(), state["params"])
        host.log(f"starting from the weights of {init} at step {meta['step']}: {what}")
        return state, {}, "init"
    return state, {}, "scratch"


def _weights_of(experiment: Experiment, origin: Experiment, init: str, fresh: dict) -> tuple[dict, dict, str]:
    """The weights of another run where this network has them, and `fresh` ones elsewhere; the meta of the checkpoint; what is which.

    Raises InputError: a weight of another shape; one that the other run lacks, in a network of one's own.
    """
    growth = growth_of(origin, experiment)
    abstract, there = (dict(_by_path(one.abstract_params())) for one in (experiment, origin))
    if origin.process.name != experiment.process.name:  # equal names in them would mean something else
        there = {path: leaf for path, leaf in there.items() if path[0] != "process"}
    matched = [path for path in abstract if path in there]
    axes = {path: growth and growth.axis_of(there[path].shape, abstract[path].shape) for path in matched}
    for path in matched:
        if there[path].shape != abstract[path].shape and axes[path] is None:
            raise InputError(
                f"--init {init} has {_dotted(path)} as {list(there[path].shape)}, and this run has {list(abstract[path].shape)}; give both "
                "runs the same sizes, or leave --init out"
            )
    added = [path for path in abstract if path not in there]
    if experiment.module is not None and any(path[0] != "process" for path in added):
        raise InputError(f"--init {init} has no weight {_dotted(added[0])}, which model.family={experiment.config.model.family} requires")
    name = {"ema": "ema", "raw": "params"}[kept(origin, "ema")]
    placed, whole = dict(_by_path(experiment.abstract_state()["params"])), experiment.partition.sharding(())
    read = {path: placed[path] if axes[path] is None else there[path].update(sharding=whole) for path in matched}
    with Checkpoints(pathlib.Path(init) / CHECKPOINTS) as other:
        loaded, meta = other.restore({name: _nested(read)})
    found = dict(_by_path(loaded[name]))
    grown = {path: axis for path, axis in axes.items() if axis is not None}
    for path, axis in grown.items():
        found[path] = jax.jit(functools.partial(growth.grow, axis=axis), out_shardings=placed[path].sharding)(found[path])
    values = {**dict(_by_path(fresh)), **found}
    dropped = {path: leaf for path, leaf in _by_path(origin.abstract_params()) if path not in matched}
    here = sum(leaf.size for leaf in abstract.values())
    added = {_dotted(path): abstract[path].size for path in added}
    added |= {f"{_dotted(path)}, rows of new ids": round(growth.share * abstract[path].size) for path in grown}
    parts = [f"{1 - sum(added.values()) / here:.1%} of {here:,} parameters match"]
    for word, leaves in (("fresh", added), ("dropped", {_dotted(path): leaf.size for path, leaf in dropped.items()})):
        if leaves:
            parts.append(f"{word}: " + ", ".join(f"{name} ({size / here:.2%})" for name, size in leaves.items()))
    return _nested(values), meta, "; ".join(parts)


def _dotted(path: tuple) -> str:
    return ".".join(map(str, path))


def _by_path(tree: dict, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(names of the keys, leaf) of a nested dict."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _by_path(value, (*path, name))
        else:
            yield (*path, name), value


def _nested(leaves: dict[tuple[str, ...], Any]) -> dict:
    """The inverse of `_by_path`."""
    tree: dict = {}
    for (*outer, name), leaf in leaves.items():
        functools.reduce(lambda inner, key: inner.setdefault(key, {}), outer, tree)[name] = leaf
    return tree


def _check_tokenizer(experiment: Experiment, other: str) -> None:
    """Raises InputError: another run has a different tokenizer."""
    if load_tokenizer(f"saved:{pathlib.Path(other) / 'tokenizer'}").hash != experiment.tokenizer.hash:
        raise InputError(
            f"{other} was trained with another tokenizer than the corpus was prepared with, so its weights know other ids; "
            f"prepare the corpus with --tokenizer saved:{other}/tokenizer, or by one with its ids and new ones after them (--init)"
        )


# Config leaves that determine fields of a network with another name; a field without a leaf is determined by the family.
_DECIDED_BY = {"time_features": "model.time_input", "time_gates": "model.time_input", "input_dim": "process.name"}
_DECIDED_BY |= {"self_condition": "process.self_condition", "hint": "process.hint"}


def _check_function(experiment: Experiment, other: str, flag: str) -> Experiment:
    """The experiment of another run. Raises InputError: its network computes another function of the same weights, or has other weights."""
    root = pathlib.Path(other)
    meta = newest_meta(root)
    family, families = experiment.config.model.family, stored_config(root, meta).model.family
    if own_module(family) or own_module(families):
        _check_tokenizer(experiment, other)
        if not (own_module(family) and own_module(families)):
            raise InputError(f"the weights of {flag} {other} are of model.family={families}, and this run has model.family={family}")
        if stored_inputs(root, meta).get("files", {}).get(module_file.FILE) != experiment.module.sha256:
            logger.warning("%s was trained with other code than model.family=%s has now; its weights are read as they are", other, family)
        return open_experiment(other, module=experiment.module)
    origin = open_experiment(other)
    here, there = experiment.network.spec, origin.network.spec
    if flag == "--init" and growth_of(origin, experiment) is None:
        _check_tokenizer(experiment, other)
    if flag == "--init" and origin.tokenizer.hash != experiment.tokenizer.hash and here.vocab <= there.vocab:
        raise InputError(
            f"--init {other} has {there.vocab:,} classes and fewer ids in its tokenizer than this run; give --config.model.vocab above "
            f"{there.vocab}, so that new ids have rows of their own"
        )
    names = here.differing(there) if flag == "--fork" else here.misfits(there)
    if flag == "--init" and here.vocab > there.vocab:
        names = [name for name in names if name != "vocab"]  # `growth_of` has its rows
    if here.shift and origin.process.attention.shifted:
        names = [name for name in names if name != "shift"]  # causal rows are shifted by one position already
    if not names:
        return origin
    theirs, leaves = config_lib.leaves(origin.config), {}
    for name in names:
        leaves[name] = _DECIDED_BY.get(name, f"model.{name}" if f"model.{name}" in theirs else "model.family")
    found = ", ".join(f"{leaves[name]}: {name} is {getattr(there, name)!r} there and {getattr(here, name)!r} here" for name in names)
    flags = " ".join(f"--config.{leaf}={shlex.quote(str(theirs[leaf]))}" for leaf in dict.fromkeys(leaves.values()))
    raise InputError(f"the weights of {flag} {other} compute another function here ({found}); pass {flags}, or leave {flag} out")
