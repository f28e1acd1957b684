"""The smallest corpus and run that have every kind of file, and what their results are compared by."""

import contextlib
import io
import json
import pathlib
import signal
import time

import jax
import numpy as np

from dlmjax import config as config_lib
from dlmjax.data.prepare import prepare
from dlmjax.training import TIMING, Checkpoints, read

STEPS = 4


def corpus_in(root: pathlib.Path) -> pathlib.Path:
    """A corpus of bytes in a few shards of two splits."""
    (root / "text.txt").write_text("".join(f"line {n} of a small text, {n * n} long\n" for n in range(80)))
    prepare([root / "text.txt"], "bytes", root / "corpus", documents="line", valid_fraction=0.3, shard_bytes=1200, progress=False)
    return root / "corpus"


def config_file(path: pathlib.Path, corpus: pathlib.Path, **changes) -> pathlib.Path:
    """A config of one layer of 8 as a file that the command line reads; its process counts the tokens of the corpus."""
    config = config_lib.default()
    config.data.update(paths=(str(corpus),), length=8, batch=8)
    config.model.update(depth=1, width=8, heads=1, kv_heads=1, head_dim=8, ffn=8)
    config.optimizer.warmup = 0
    config.train.update(steps=STEPS, ema=0.9)
    config.checkpoint.update(every=2, keep=2)
    config.log.update(every=1, evaluate=0, sample=0)
    config_lib.override(config, [f"{name.replace('__', '.')}={value}" for name, value in changes.items()])
    flat = json.dumps(json.dumps(config_lib.leaves(config)))
    path.write_text(f"from dlmjax import config as c\n\ndef get_config():\n    return c.from_json({flat})\n")
    return path


def lines(workdir: pathlib.Path) -> list[dict]:
    """The metrics without what a clock says."""
    return [{name: value for name, value in event.items() if name not in TIMING} for event in read(workdir / "metrics.jsonl")]


def states(workdir: pathlib.Path) -> dict[int, list]:
    """Shapes, dtypes and checksums of every leaf of the whole checkpoints, which a restore compares with the numbers."""
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return {step: sorted(checkpoints._marker(step)["leaves"].items()) for step in checkpoints.steps()}


def tree(folder: pathlib.Path, leave=()) -> dict[str, object]:
    """What a folder holds: contents of files, ends of links, and folders; without those of some names."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not set(name.split("/")) & set(leave):
            found[name] = str(path.readlink()) if path.is_symlink() else path.is_dir() or path.read_bytes()
    return found


def same(one, other) -> bool:
    return jax.tree.all(jax.tree.map(lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), one, other))


class Hang(BaseException):
    """A case took longer than it may; no `except Exception` on the way takes it for an error of the case."""


@contextlib.contextmanager
def at_most(seconds: float):
    """Ends a case that hangs with `Hang`; the alarm that pytest has set meanwhile rings at its own time."""

    def ring(*_):
        raise Hang(f"after {seconds:g} seconds")

    handler, began = signal.signal(signal.SIGALRM, ring), time.monotonic()
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 0.01))


@contextlib.contextmanager
def heard():
    """Standard output and error of a call in this process."""
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        yield out, error
