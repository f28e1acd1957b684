"""Two processes of four virtual CPU devices each: rows each one owns, the global batch, and a loss that equals one process's."""

import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from dlmjax.models import Execution, build_network
from tests.models import tiny

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORKER = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
port, process = sys.argv[1], int(sys.argv[2])
from dlmjax.parallel.start import make_room
make_room()
jax.distributed.initialize(f"127.0.0.1:{port}", 2, process, heartbeat_timeout_seconds=10)
from dlmjax.models import Execution, build_network
from dlmjax.parallel import Partition, make_mesh
from tests.models import tiny
turns = [device for pair in zip(jax.devices()[:4], jax.devices()[4:]) for device in pair]  # as hosts lie on a torus
for sizes in [(4, 2, 1, 1), (1, 2, 2, 2), (1, 1, 1, 8), (8, 1, 1, 1)]:
    partition = Partition(make_mesh(*sizes, devices=turns if sizes[0] == 8 else None))
    rows = list(partition.rows_of_host(tiny.BATCH))
    batch = partition.put_batch({name: value[rows] for name, value in tiny.batch().items()})
    network = build_network(tiny.spec(heads=8, kv_heads=8, ffn=64), Execution(head_chunk=3), partition)
    params = jax.jit(network.init, out_shardings=partition.tree(network.axes))(jax.random.key(0))
    loss = jax.jit(lambda p, b, k: tiny.loss_of(network)(p, b, k)[0])(params, batch, jax.random.key(7))
    print("RESULT", *sizes, rows[0], rows[-1] + 1, batch["tokens"].shape[0], float(loss), flush=True)
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.timeout(300)
def test_two_processes_equal_one():
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    port = str(free_port())
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, port, str(n)], env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for n in range(2)
    ]
    try:
        outputs = [worker.communicate(timeout=280)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    results = [[line.split()[1:] for line in output.splitlines() if line.startswith("RESULT")] for output in outputs]
    assert [len(r) for r in results] == [4, 4]
    network = build_network(tiny.spec(heads=8, kv_heads=8, ffn=64), Execution())
    want = float(jax.jit(tiny.loss_of(network))(jax.jit(network.init)(jax.random.key(0)), tiny.batch(), jax.random.key(7))[0])
    for lines in zip(*results, strict=True):
        sizes = tuple(int(x) for x in lines[0][:4])
        rows = [tuple(int(x) for x in line[4:6]) for line in lines]
        # Where only tensor or sequence crosses the processes, both own all rows; where hosts take turns, every other one.
        assert rows == {(1, 1, 1, 8): [(0, 8), (0, 8)], (8, 1, 1, 1): [(0, 7), (1, 8)]}.get(sizes, [(0, 4), (4, 8)])
        for line in lines:
            assert int(line[6]) == tiny.BATCH
            np.testing.assert_allclose(float(line[7]), want, rtol=1e-5)
