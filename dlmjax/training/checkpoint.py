"""Checkpoints: asynchronous Orbax saves, a commit marker that is written last, and a restore that verifies checksums.

    checkpoints/00000500/            one checkpoint, named by its step
        dlmjax.json                  the commit marker (`marker`): meta, size of every file, shape, dtype and checksum of every leaf
        state/ ...                   the state as a nested dict of arrays (Orbax, OCDBT), readable on any mesh
    checkpoints/00001000.unfinished  a save in progress or interrupted by a kill, as are the folders *.orbax-checkpoint-tmp*
    checkpoints/00000250.removed     a removal in progress or interrupted by a kill

A folder is renamed to a step when all of it is written, including the marker, and renamed again before any of it is removed. So a folder
named by a step was whole once: if it is not whole now, it is damaged, never treated as absent. A checkpoint is whole when its marker is
valid and every file has the size in it; a restore also compares the checksum of each leaf, because Orbax does not detect a flipped bit in
a data file. The checksum is an integer sum, computed on the devices, so it is the same on every mesh.
"""

import concurrent.futures
import contextlib
import functools
import gc
import json
import logging
import math
import os
import pathlib
import re
import sys
import textwrap
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from dlmjax.cluster.agree import any_process
from dlmjax.errors import InputError
from dlmjax.files import remove, sync
from dlmjax.training.marker import Damaged, flaw_of_files, read_marker, write_marker

_FRESH = "or start again with dlmjax train --fresh, which moves the old files aside"
UNFINISHED, REMOVED = ".unfinished", ".removed"
_STEP = re.compile(r"[0-9]{8,18}")
_LEFT = re.compile(rf"[0-9]{{8,18}}(\{UNFINISHED}|\{REMOVED}|.*\.orbax-checkpoint-tmp.*)")  # left by a kill
log = logging.getLogger("dlmjax")


class _Echo(logging.Filter):
    """Drops log records that repeat an error: Orbax logs each failure of its threads with three tracebacks before it raises the error,
    and awaits only one of several failed reads, so that asyncio logs the others. The error itself becomes one line."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return "_SignalingThread.run() raised an exception" not in message and not ("never retrieved" in message and "orbax" in message)


def _without_late_reads(shown: Callable) -> Callable:
    """A hook for uncaught exceptions that drops those of reads which end after Orbax has closed their event loop."""

    def hook(unraisable: Any) -> None:
        if not (unraisable.exc_type is RuntimeError and str(unraisable.exc_value) == "Event loop is closed"):
            shown(unraisable)

    return hook


for _name in ("absl", "asyncio"):
    logging.getLogger(_name).addFilter(_Echo())
sys.unraisablehook = _without_late_reads(sys.unraisablehook)


class Checkpoints:
    """The checkpoints of one run.  Every process of a run makes the same calls in the same order; one thread.

    Args:
      directory: created at the first save.
      keep: number of newest checkpoints that are kept.
      best: number of checkpoints with the lowest finite `meta["metric"]` that are kept as well.
      common: entries in the meta of every checkpoint that is saved.
    """

    def __init__(self, directory: str | os.PathLike, keep: int = 2, best: int = 1, common: dict | None = None):
        self.directory, self._common = pathlib.Path(directory).absolute(), common or {}
        self._keep, self._best = max(keep, 1), best
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[int, concurrent.futures.Future] | None = None
        self._warned: set[int] = set()
        self._damaged: dict[int, str] = {}  # flaws that a restore found and sizes do not show
        self._first = jax.process_index() == 0  # only one process writes and removes files other than Orbax's

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    # --- listing ----------------------------------------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """Steps of the whole checkpoints, ascending. Reads no array."""
        return [step for step in self.named() if not self._flaw(step)]

    def damaged(self) -> dict[int, str]:
        """Flaw of each damaged checkpoint by step, as the predicate of a sentence."""
        flaws = {step: self._flaw(step) for step in self.named()}
        return {step: flaw for step, flaw in flaws.items() if flaw}

    def resumable(self) -> bool:
        """Is there a state to resume from? The answer is the same in all processes of a run.

        Raises InputError: there are checkpoints and none of them is whole. A run with damaged checkpoints must not start from scratch.
        """
        named, lost = any_process(bool(self.named())), any_process(self.latest() is None)
        if named and lost:
            raise InputError(self._nothing(None))
        return named

    def latest(self) -> int | None:
        """The newest whole checkpoint's step; warns of each newer one that is not whole."""
        for step in reversed(self.named()):
            flaw = self._flaw(step)
            if not flaw:
                return step
            self._warn(step, flaw)
        return None

    def ranked(self) -> list[int]:
        """The steps with a finite `meta["metric"]`, the lowest first."""
        return self._ranked(self.steps())

    def best(self) -> int | None:
        """The step with the lowest `meta["metric"]`; the newest of equals."""
        return next(iter(self.ranked()), None)

    def meta(self, step: int | None = None) -> dict:
        """The meta that was passed to `save`, by default of the newest whole checkpoint."""
        step = self.latest() if step is None else step
        if step is None or self._flaw(step):
            raise InputError(self._nothing(step))
        return self._marker(step)["meta"]

    def _path(self, step: int) -> pathlib.Path:
        return self.directory / f"{step:08d}"

    def named(self) -> list[int]:
        """Steps of all folders that are named like a checkpoint, whole or not. Raises InputError: the path is not a folder."""
        try:
            names = os.listdir(self.directory)
        except FileNotFoundError as error:
            # Only a link is checked: another process may make the folder between the two calls.
            if self.directory.is_symlink() and not self.directory.exists():
                raise InputError(f"{self.directory} is a link that leads nowhere; restore its target, {_FRESH}") from error
            return []
        except NotADirectoryError as error:
            if not os.path.lexists(self.directory):
                return []
            raise InputError(f"{self.directory} is not a folder of checkpoints; restore it, {_FRESH}") from error
        except OSError as error:
            raise InputError(f"{self.directory} cannot be read as a folder of checkpoints ({error.strerror})") from error
        return sorted(int(name) for name in names if _STEP.fullmatch(name) and name == f"{int(name):08d}")

    def _marker(self, step: int) -> dict:
        return read_marker(self._path(step), step)

    def _flaw(self, step: int) -> str:
        """Why a checkpoint is not whole, by its sizes and by earlier restores; "" when it is whole."""
        if step in self._damaged:
            return self._damaged[step]
        try:
            return flaw_of_files(self._path(step), self._marker(step)["files"])
        except Damaged as error:
            return str(error)

    def _warn(self, step: int, flaw: str) -> None:
        """Logs the flaw of a checkpoint once."""
        if step not in self._warned:
            log.warning("checkpoint %s %s; skipped, the one before it is used", self._path(step), flaw)
        self._warned.add(step)

    def _ranked(self, steps: list[int]) -> list[int]:
        """Steps with a finite metric, best first."""
        metrics = {step: self._marker(step)["meta"].get("metric") for step in steps}
        ranked = (step for step in steps if metrics[step] is not None and math.isfinite(metrics[step]))
        return sorted(ranked, key=lambda step: (metrics[step], -step))

    def _nothing(self, step: int | None) -> str:
        """Message for a missing or damaged checkpoint: of this step, or of all."""
        if step is not None:
            return f"{self.directory} has no whole checkpoint of step {step} (it {self._flaw(step)}); {self._whole()}"
        damaged = self.damaged()
        listed = "".join(f"; {self._path(step).name} {flaw}" for step, flaw in list(damaged.items())[-3:])
        todo = f"; restore one, {_FRESH}" if damaged else ""
        return f"{self.directory} has no whole checkpoint{listed}{todo}"

    def _whole(self) -> str:
        return f"whole ones: {', '.join(map(str, self.steps())) or 'none'}"

    # --- saving ------------------------------------------------------------------------------------------------------------------

    def save(self, step: int, state: dict, meta: dict) -> None:
        """Copies the state to the host, starts writing, and returns; the state may be donated at once.

        Waits for an earlier save first. A whole checkpoint of this step with the same values only gets the new meta; one with other
        values, or that a restore found damaged, is replaced: a repeated run computes the same values as before the damage.

        Raises:
          InputError: this or the earlier save could not be written (disk full); earlier checkpoints are unchanged.
        """
        self.wait()
        named = _by_path(state)
        sums = {name: int(value) for name, value in jax.device_get(_checksums(named)).items()}
        leaves = {name: [list(leaf.shape), str(leaf.dtype), sums[name]] for name, leaf in named.items()}
        path = self._path(step)
        try:
            marker = json.loads(json.dumps({"step": step, "meta": {**self._common, **meta}, "leaves": leaves}))
            if not path.is_symlink() and not self._flaw(step) and self._marker(step)["leaves"] == leaves:
                if self._first:
                    write_marker(path, marker)
                return
            self._clear(path)
            self._damaged.pop(step, None)
            self.directory.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_name(path.name + UNFINISHED)
            if self._first:
                remove(unfinished)
            response = ocp.save_checkpointables_async(unfinished, {"state": _nested(named)}, overwrite=True)
        except (OSError, ValueError) as error:
            raise self._failed(step, error) from error
        self._pending = (step, self._pool.submit(self._commit, response, unfinished, path, marker))

    def wait(self) -> None:
        """Returns when no save is in progress; old checkpoints are removed only after a newer one is whole."""
        if self._pending is None:
            return
        step, future = self._pending
        self._pending = None
        try:
            future.result()
        except (OSError, ValueError) as error:
            self._drop_unfinished()
            raise self._failed(step, error) from error
        self._prune()

    def close(self) -> None:
        """Waits for the save in progress and ends the background thread."""
        try:
            self.wait()
        finally:
            self._pool.shutdown()

    def _commit(self, response: Any, unfinished: pathlib.Path, path: pathlib.Path, marker: dict) -> None:
        """In the background thread: when Orbax is done, writes the marker and then renames the folder to its step."""
        response.result()
        if self._first:
            write_marker(unfinished, marker)
            _sync_directory(unfinished)
            unfinished.rename(path)
            _sync_directory(path.parent)

    def _clear(self, path: pathlib.Path) -> None:
        """Renames and removes a checkpoint; of a link, only the link."""
        if self._first and os.path.lexists(path):
            removed = path.with_name(path.name + REMOVED)
            remove(removed)
            path.rename(removed)
            remove(removed)

    def _prune(self) -> None:
        """Removes all checkpoints before the newest whole one, except the newest and the best, and remains of killed saves."""
        whole = self.steps()
        if not self._first or not whole:
            return
        retained = {*whole[-self._keep :], *self._ranked(whole)[: self._best]}
        for step in self.named():
            if step not in retained and step < whole[-1]:
                try:
                    self._clear(self._path(step))
                except OSError as error:
                    log.warning("checkpoint %s is no longer needed and could not be removed (%s)", self._path(step), error.strerror)
        self._drop_unfinished()

    def _drop_unfinished(self) -> None:
        """Removes the remains of interrupted saves and removals. Called only by a run that saves, never by one that only reads."""
        if self._first and self.directory.is_dir():
            for path in self.directory.iterdir():
                if _LEFT.fullmatch(path.name):
                    with contextlib.suppress(OSError):
                        remove(path)

    def _failed(self, step: int, error: Exception) -> InputError:
        reason = str(error)
        full = "RESOURCE_EXHAUSTED" in reason or "No space left" in reason or "File too large" in reason or "quota" in reason.lower()
        cause = "the disk is full" if full else reason.splitlines()[0][:200]
        have = ", ".join(map(str, self.steps())) or "none"
        todo = f"{'free some space' if full else 'correct that'} and run the same command to resume"
        return InputError(f"checkpoint {step} could not be written to {self.directory}: {cause}; whole checkpoints: {have}; {todo}")

    # --- restoring ---------------------------------------------------------------------------------------------------------------

    def restore(self, abstract_state: dict, step: int | None = None, *, converts: bool = False) -> tuple[dict, dict]:
        """Reads a state into these shapes and shardings (any mesh) and verifies its checksums.

        Args:
          abstract_state: tree of jax.ShapeDtypeStruct, from `abstract_state`; a part of it, such as {"params": ...}, reads that part.
          step: step of the checkpoint; None = the newest whole one, with a warning for each newer one that is damaged.
          converts: a leaf may have another type than in the files. Such leaves are read one after another, verified and rounded, so that
            no more than one is there in both types.

        Returns:
          The state (same tree as `abstract_state`) and the meta.

        Raises:
          InputError: no checkpoint is whole, or its leaves or shapes differ from `abstract_state`.
        """
        candidates = reversed(self.named()) if step is None else [step]
        for candidate in candidates:
            flaw = self._flaw(candidate)
            if not any_process(bool(flaw)):
                marker = self._marker(candidate)
                self._compare(candidate, marker["leaves"], _by_path(abstract_state), converts)
                state, flaw = self._read(candidate, marker["leaves"], abstract_state)
                if not any_process(bool(flaw)):
                    return state, marker["meta"]
                self._damaged[candidate] = flaw or "is damaged for another process of the run"
            if step is None:
                self._warn(candidate, flaw or "is damaged for another process of the run")
            else:
                raise InputError(f"checkpoint {self._path(step)} {flaw}; {self._whole()}")
        raise InputError(self._nothing(None))

    def _compare(self, step: int, saved: dict, requested: dict, converts: bool) -> None:
        """Raises InputError with the first difference: a checkpoint of another model is not a damaged one."""
        for name, leaf in requested.items():
            if name not in saved:
                raise InputError(f"checkpoint {self._path(step)} has no {name}; it belongs to another model or optimizer")
            shape, dtype, _ = saved[name]
            if tuple(shape) != leaf.shape or (dtype != str(leaf.dtype) and not converts):
                there, here = f"{dtype}{shape}", f"{leaf.dtype}{list(leaf.shape)}"
                raise InputError(
                    f"checkpoint {self._path(step)} has {name} as {there}, but this config requires {here}; use the run's own config"
                )

    def _read(self, step: int, saved: dict, abstract_state: dict) -> tuple[dict | None, str]:
        """The state and "", or None and the flaw of the files."""
        requested, found = _by_path(abstract_state), {}
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        converted = [name for name, leaf in requested.items() if str(leaf.dtype) != saved[name][1]]
        for names in ([name for name in requested if name not in converted], *([name] for name in converted)):
            leaves = {name: requested[name] for name in names}
            placed = {n: jax.ShapeDtypeStruct(leaf.shape, saved[n][1], sharding=leaf.sharding or here) for n, leaf in leaves.items()}
            part, flaw = self._loaded(step, placed) if names else ({}, "")
            sums = {} if flaw else jax.device_get(_checksums(part))
            if wrong := [name for name, found_sum in sums.items() if int(found_sum) != saved[name][2]]:
                flaw = f"is damaged: {wrong[0]} does not have the checksum in the marker"
            if flaw:
                return None, flaw
            found |= {name: leaf.astype(requested[name].dtype) for name, leaf in part.items()}
        paths, structure = jax.tree_util.tree_flatten_with_path(abstract_state)
        return jax.tree.unflatten(structure, [found[_name(path)] for path, _ in paths]), ""

    def _loaded(self, step: int, placed: dict[str, jax.ShapeDtypeStruct]) -> tuple[dict, str]:
        """These leaves as the files have them and "", or nothing and the flaw of the files."""
        context = ocp.Context()
        context.pytree.loading.partial_load = True
        flaw = ""
        with context, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)  # after a failed read in Orbax
            try:
                return _by_path(ocp.load_checkpointables(self._path(step), {"state": _nested(placed)})["state"]), ""
            except Exception as error:  # Orbax raises many types for damaged files; the flaw holds the message
                flaw = f"cannot be read ({_reason(error)})"
            gc.collect()  # here, while these warnings are off
        return {}, flaw


def _reason(error: BaseException) -> str:
    """Why Orbax could not read: the first error of the chain, in whole words without quotes."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    words = re.sub(r"[\"'`]", "", str(error)) or type(error).__name__
    return textwrap.shorten(words, 120, placeholder=" ...")


def _name(path: tuple) -> str:
    """A leaf's path as "opt/transform/1/mu/layers/query/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _by_path(tree: dict) -> dict[str, Any]:
    """{path: leaf}; without the containers (optax's named tuples, empty dicts), so that no checkpoint depends on them."""
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _nested(named: dict[str, Any]) -> dict:
    """{path: leaf} as a nested dict of dicts."""
    tree = {}
    for name, leaf in named.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


@jax.jit
def _checksums(named: dict) -> dict:
    """uint32 per leaf: sum of bits x (2 index + 1) modulo 2^32. Equal on any mesh; odd factors detect any flipped bit."""
    return {name: _checksum(leaf) for name, leaf in named.items()}


def _checksum(leaf: jax.Array) -> jax.Array:
    width = {1: jnp.uint8, 2: jnp.uint16}.get(leaf.dtype.itemsize, jnp.uint32)
    leaf = leaf.astype(jnp.uint8) if leaf.dtype == jnp.bool_ else leaf
    bits = jax.lax.bitcast_convert_type(leaf, width).astype(jnp.uint32)
    index = jnp.zeros(bits.shape, jnp.uint32)
    strides = [functools.reduce(lambda a, b: a * b, bits.shape[axis + 1 :], 1) for axis in range(bits.ndim)]
    for axis, stride in enumerate(strides):
        index += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * jnp.uint32(stride % 2**32)
    return jnp.sum(bits * (2 * index + 1), dtype=jnp.uint32)


def _sync_directory(path: pathlib.Path) -> None:
    """Makes a rename durable, where the file system supports it."""
    with contextlib.suppress(OSError):
        sync(path)
