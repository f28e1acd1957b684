"""Runs of one shape compile once: what a sweep relies on when its runs share jax's persistent cache."""

import json
import subprocess
import sys

import pytest

from tests.test_train import config_file, environment, losses, tiny_config

# A run in a process of its own that says how many programs it compiled and how many it found in the cache.
CHILD = """
import collections, json, sys
import jax
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: counts.update([event.rpartition("/")[2]]))
from dlmjax import config as config_lib
from dlmjax.train import train
train(config_lib.load(sys.argv[1], sys.argv[3:]), sys.argv[2])
print(json.dumps({name: counts[name] for name in ("cache_misses", "cache_hits")}))
"""


def run(root, name, file, *overrides):
    """(programs compiled, programs found) by a run on one device."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(root / "compiled"), "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    command = [sys.executable, "-c", CHILD, str(file), str(root / name), *overrides]
    done = subprocess.run(command, env={**environment(), **cache}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    return counts["cache_misses"], counts["cache_hits"]


@pytest.mark.slow
@pytest.mark.parametrize("sample", [0, pytest.param(6, marks=pytest.mark.nightly)])
def test_a_run_with_other_numbers_compiles_nothing(small_corpus, tmp_path, sample):
    """Budget, rate, warm-up, decay, averaging and seed are other numbers to the same program."""
    config = tiny_config(small_corpus, optimizer__schedule="wsd", log__sample=sample, train__steps=8)
    file = config_file(tmp_path / "tiny.py", config)
    missed, _ = run(tmp_path, "first", file)
    assert missed > 5
    numbers = ["train.steps=6", "optimizer.lr=0.003", "optimizer.warmup=0", "optimizer.decay=0.5", "optimizer.final=0.0", "seed=7"]
    numbers += ["optimizer.weight_decay=0.0", "train.ema=0.5"]
    assert run(tmp_path, "second", file, *numbers) == (0, missed)
    first, second = losses(tmp_path / "first"), losses(tmp_path / "second")
    assert list(first) == [2, 4, 6, 8] and list(second) == [2, 4, 6] and first[2] != second[2]
