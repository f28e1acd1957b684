"""Host memory: after the call, a large buffer that is freed and taken again costs no page faults."""

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
