"""Two processes of four virtual CPU devices each: rows each one owns, the global batch, and a loss that equals one process's."""

import errno
import os
import pathlib
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from dlmjax.cluster import start
from dlmjax.cluster.process_info import ProcessInfo
from dlmjax.cluster.start import _exit_message
from dlmjax.errors import InputError, LostPeer
from dlmjax.models import Execution, build_network
from tests.models import tiny

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORKER = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
port, process = sys.argv[1], int(sys.argv[2])
from jax._src import distributed
from dlmjax.cluster.start import connect, make_room
make_room()
jax.distributed.initialize(f"127.0.0.1:{port}", 2, process, heartbeat_timeout_seconds=10)
from dlmjax.models import Execution, build_network
from dlmjax.parallel import Partition, make_mesh
from tests.models import tiny
opened = lambda: [key for key, _ in distributed.global_state.client.key_value_dir_get_bytes("cpu:gloo/")]
turns = [device for pair in zip(jax.devices()[:4], jax.devices()[4:]) for device in pair]  # as hosts lie on a torus
for sizes in [(4, 2, 1, 1), (1, 2, 2, 2), (1, 1, 1, 8), (8, 1, 1, 1)]:
    partition = Partition(make_mesh(*sizes, devices=turns if sizes[0] == 8 else None))
    connect(partition.mesh)
    connections = set(opened())
    rows = list(partition.rows_of_host(tiny.BATCH))
    batch = partition.put_batch({name: value[rows] for name, value in tiny.batch().items()})
    network = build_network(tiny.spec(heads=8, kv_heads=8, ffn=64), Execution(head_chunk=3), partition)
    params = jax.jit(network.init, out_shardings=partition.tree(network.axes))(jax.random.key(0))
    loss = jax.jit(lambda p, b, k: tiny.loss_of(network)(p, b, k)[0])(params, batch, jax.random.key(7))
    later = set(opened()) - connections
    print("RESULT", *sizes, rows[0], rows[-1] + 1, batch["tokens"].shape[0], float(loss), len(connections), len(later), flush=True)
from dlmjax.errors import InputError
from dlmjax.cluster.agree import refused_together
for kind in (InputError, PermissionError, ValueError, MemoryError):
    for guilty in (0, 1):
        try:
            with refused_together():
                if process == guilty:
                    raise kind("here")
        except Exception as error:
            print("REFUSED", type(error).__name__, str(error), flush=True)
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def both(program, timeout=280):
    """(exit code, standard output, standard error) of each of two processes.

    program: its arguments are the coordinator's port and the rank.
    """
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    port = str(free_port())
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", program, port, str(rank)],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        spoken = [worker.communicate(timeout=timeout) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    return [(worker.returncode, *texts) for worker, texts in zip(workers, spoken, strict=True)]


@pytest.mark.timeout(300)
def test_two_processes_equal_one():
    ends = both(WORKER)
    assert [code for code, _, _ in ends] == [0, 0], ends
    outputs = [out for _, out, _ in ends]
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
            # `connect` has opened them all: a later one would wait for a slower process for 30 seconds only.
            assert int(line[8]) > 0 and int(line[9]) == 0
            np.testing.assert_allclose(float(line[7]), want, rtol=1e-5)

    assert not any("[Gloo]" in output for output in outputs), "a line for each connection says nothing to a person"
    for rank, output in enumerate(outputs):  # whatever one process meets in the part that all pass together, the other hears of at once
        refusals = [line.removeprefix("REFUSED ") for line in output.splitlines() if line.startswith("REFUSED")]
        heard = "InputError another process of this run could not start; correct the fault in its message, and start all again"
        kinds = ("InputError", "PermissionError", "ValueError", "MemoryError")
        assert refusals == [f"{kind} here" if rank == guilty else heard for kind in kinds for guilty in (0, 1)]


@pytest.mark.parametrize(
    "error, code, said",
    [
        (InputError("the corpus is not here"), 2, "the corpus is not here"),
        (PermissionError(errno.EACCES, "Permission denied", "runs/a"), 2, "runs/a cannot be used: Permission denied"),
        (OSError(errno.EIO, "Input/output error", "runs/a"), 1, "a defect, see above"),
        (KeyError("x"), 1, "a defect, see above"),
        (LostPeer("1 of 2 came"), 75, "1 of 2 came"),
    ],
    ids=lambda value: "",
)
def test_the_exit_message_of_a_process_are_those_of_a_lone_one(error, code, said):
    """A name or place that the operating system refuses is bad input here, too, in one line; the machine's faults keep their traceback."""
    found, lines = _exit_message(error, ProcessInfo("flags", 2, 1, "h:1"), -1)
    assert found == code and said in lines.splitlines()[-1] and (code == 1) == ("\n" in lines)


def test_the_store_that_jax_has_no_public_name_for_is_there():
    """What `parallel.start` takes of jax._src: another jax that names it otherwise fails here, and not in a run of several processes."""
    assert start.distributed.global_state.client is None  # in a process alone
    for name in ("key_value_set", "key_value_dir_get", "blocking_key_value_get"):
        assert callable(getattr(jax._src.lib._jax.DistributedRuntimeClient, name))


START = """
import sys, time
from dlmjax.errors import InputError
from dlmjax.cluster.agree import any_process
from dlmjax.parallel import make_mesh
from dlmjax.cluster.start import connect, joined
from dlmjax.cluster.process_info import ProcessInfo
rank = int(sys.argv[2])
with joined(ProcessInfo("flags", 2, rank, "127.0.0.1:" + sys.argv[1]), lambda: -1, start_timeout={timeout}):
    if rank == {late}:
        time.sleep({seconds})
        {then}
    connect(make_mesh())
    print("RESULT", any_process(rank == 1), flush=True)
"""


@pytest.mark.parametrize("late", [0, 1])
def test_a_process_that_fails_before_the_first_operation_ends_the_other_at_once(late):
    began = time.monotonic()
    ends = both(START.format(timeout=200, late=late, seconds=1, then="raise InputError('the corpus is not here')"))
    assert time.monotonic() - began < 60  # neither the start timeout nor the heartbeat's
    assert ends[late][0] == 2 and "the corpus is not here" in ends[late][2]
    code, out, err = ends[1 - late]
    if late == 1:  # with the first process goes the coordinator: the runtime ends the other
        assert code == 75 and "the corpus is not here" in err.splitlines()[-1] and "process 1 of 2" in err.splitlines()[-1], err
    assert code != 0 and "RESULT" not in out


def test_a_process_that_comes_too_late_is_not_waited_for():
    ends = both(START.format(timeout=5, late=1, seconds=8, then=""))
    code, _, err = ends[0]
    assert code == 75 and "1 of 2 processes reached their first operation within 5 s; raise --start-timeout" in err, err
    assert ends[1][0] != 0


@pytest.mark.slow
@pytest.mark.parametrize("late", [0, 1])
def test_a_process_may_come_later_than_gloo_waits(late):
    """Gloo gives a group's first operation 30 seconds."""
    ends = both(START.format(timeout=200, late=late, seconds=35, then=""))
    assert [(code, "RESULT True" in out) for code, out, _ in ends] == [(0, True)] * 2, ends


def test_only_the_lines_of_gloo_are_left_out_of_what_is_printed_while_it_connects(capfd):
    with start._without_lines_of_gloo():
        os.write(1, b"[Gloo] Rank 0 is connected to 1 peer ranks.\na line of another library\n")
    os.write(1, b"after it\n")
    assert capfd.readouterr().out == "a line of another library\nafter it\n"
