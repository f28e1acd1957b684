"""Host memory: after the call, a large buffer that is freed and taken again costs no page faults. Compiled programs of a workdir."""

import os
import shutil
import subprocess
import sys

import pytest

SCRIPT = """
import resource
from dlmjax.cluster.host import keep_freed_memory
done = keep_freed_memory() if {call} else False
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    before = faults(); block = bytearray(64 << 20); del block; last = faults() - before
print(done, last)
"""


def run(call):
    out = subprocess.run([sys.executable, "-c", SCRIPT.format(call=call)], capture_output=True, text=True, check=True)
    done, faults = out.stdout.split()
    return done == "True", int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's mallopt is a matter of Linux")
def test_freed_memory_is_kept():
    done, faults = run(True)
    if not done:
        pytest.skip("this libc has no mallopt (musl)")
    assert faults < 100 < run(False)[1]


COMPILES = """
import sys, jax
from jax import monitoring
from dlmjax.cluster.host import keep_compiled
events = []
monitoring.register_event_listener(lambda event, **_: events.append(event.rsplit("/", 1)[-1]))
keep_compiled(sys.argv[1])
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
