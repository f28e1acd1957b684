"""Memory of the process: a compiled program does not map its temporary buffer anew. Compiled programs of a workdir."""

import fnmatch
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from dlmjax.cluster import chips
from dlmjax.cluster.memory import keep_freed_memory

# A program with a temporary buffer of 100 MB, as a training step has: page faults of its last execution.
SCRIPT = """
import contextlib, resource
with contextlib.suppress(SystemExit):
    {before}
import jax, jax.numpy as jnp
program = jax.jit(lambda x_N: (jax.lax.optimization_barrier(jnp.tile(x_N, 100)) * 2).sum())
x_N = jnp.ones(250_000)
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    before = faults(); program(x_N).block_until_ready(); last = faults() - before
print(last)
"""
STARTS = {
    "call": "import dlmjax.train; from dlmjax.cluster.memory import keep_freed_memory; keep_freed_memory()",
    "command": "from dlmjax.cli.main import main; main(['train'])",
    "run of a sweep": "from dlmjax.cli.sweep_process import main; main(['missing', 'id', '--parent', '1'])",
}


def page_faults(before, platforms="cpu"):
    words = [sys.executable, "-c", SCRIPT.format(before=before)]
    environment = {**os.environ, "JAX_PLATFORMS": platforms}
    return int(subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout.split()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's mallopt is a matter of Linux")
def test_a_program_finds_the_memory_of_its_last_execution():
    if not keep_freed_memory():
        pytest.skip("this libc has no mallopt (musl)")
    assert page_faults("pass") > 20_000
    assert {name: page_faults(before) < 1000 for name, before in STARTS.items()} == dict.fromkeys(STARTS, True)


@pytest.mark.parametrize(
    ("platforms", "files", "cpu"),
    [("cpu", ["nvidia0"], True), ("", [], True), ("", ["nvidia0"], False), ("", ["accel0"], False), ("cuda,cpu", [], False)],
)
def test_memory_is_kept_where_jax_computes_on_the_cpu(monkeypatch, platforms, files, cpu):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setattr(
        chips.pathlib.Path, "glob", lambda _, pattern: [pathlib.Path(name) for name in files if fnmatch.fnmatch(name, pattern)]
    )
    assert chips.runs_on_cpu() == cpu


COMPILES = """
import sys, jax
from jax import monitoring
from dlmjax.cluster.host import make_ready
events = []
monitoring.register_event_listener(lambda event, **_: events.append(event.rsplit("/", 1)[-1]))
make_ready(sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)  # this program is small
jax.jit(lambda x: jax.numpy.sin(x) @ x)(jax.numpy.ones((4, 4))).block_until_ready()
print(events.count("cache_hits"), events.count("cache_misses"))
"""


def compiles(workdir):
    """(programs read, programs compiled) of a start in a workdir."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    words = [sys.executable, "-c", COMPILES, str(workdir)]
    return tuple(map(int, subprocess.run(words, capture_output=True, text=True, check=True, env=environment).stdout.split()))


def test_compiled_programs_are_found_in_a_copy_of_the_workdir(tmp_path):
    hits, misses = compiles(tmp_path / "run")
    assert not hits and misses
    shutil.copytree(tmp_path / "run", tmp_path / "elsewhere" / "copy")
    assert compiles(tmp_path / "elsewhere" / "copy") == (misses, 0)
