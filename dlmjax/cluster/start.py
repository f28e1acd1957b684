"""Several processes become one run: meet at the coordinator, and end together with a clear last line, never in silence."""

import contextlib
import dataclasses
import itertools
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax._src import distributed  # the key-value store of the coordinator has no public name

from dlmjax.cluster.agree import all_devices
from dlmjax.cluster.process_info import ProcessInfo
from dlmjax.errors import LOST_PEER, InputError, LostPeer
from dlmjax.flags import said_of

START_TIMEOUT = 300  # seconds in which all processes must have come
HEARTBEAT_TIMEOUT = 100  # seconds of silence after which a process counts as lost
SHUTDOWN_TIMEOUT = 60  # seconds that the first to finish waits for the others
COLLECTIVES = 4  # that one device of a CPU may have begun and not ended: the threads that XLA lets work on one program
COMING, GONE, GO = "dlmjax/coming/", "dlmjax/gone/", "dlmjax/go/"  # keys of the coordinator's store, through which processes meet
POLL_SECONDS = 0.1
# Beginnings of runtime errors that have nothing to do with a peer.
OWN_FAULTS = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")


@dataclasses.dataclass
class _Start:
    """How far this process's start is. timeout: seconds; meeting: its peers wait for it in `connect`, or will."""

    timeout: int = START_TIMEOUT
    meeting: bool = False
    meetings: int = 0  # so far


_START = _Start()


@contextlib.contextmanager
def joined(
    info: ProcessInfo, step: Callable[[], int], *, start_timeout: int = START_TIMEOUT, heartbeat_timeout: int = HEARTBEAT_TIMEOUT
) -> Iterator[None]:
    """`with joined(info, step): train(...)`: all processes meet before, part after, and none waits for one that is gone.

    Alone, it does nothing. In a run of several processes an error inside ends this process at once (waiting for peers at the
    interpreter's exit could take minutes): exit code 2 with its line for bad input, 75 where a peer was lost, 1 with the traceback for all
    else. The peers notice by their next collective operation, or by the heartbeat.

    Args:
      step: updates done so far, -1 before the first; for the last line.
      start_timeout, heartbeat_timeout: seconds.
    """
    make_room(alone=info.alone)
    if info.alone:
        yield
        return
    try:
        _meet(info, start_timeout, heartbeat_timeout)
        _START.timeout, _START.meeting = start_timeout, True
        yield
        jax.distributed.shutdown()
    except BaseException as error:
        code, lines = _last_words(error, info, step())
        print(lines, file=sys.stderr, flush=True)
        sys.stdout.flush()
        if _START.meeting:
            with contextlib.suppress(Exception):  # who is not told waits until the timeout
                distributed.global_state.client.key_value_set(f"{GONE}{jax.process_index()}", lines.splitlines()[-1])
        os._exit(code)


def connect(mesh: jax.sharding.Mesh) -> None:
    """Opens the connections between the processes' CPU devices that collective operations over `mesh` need; every process calls it once.

    Gloo opens those of a group of devices at their first operation, and gives up when not all have come to it within 30 seconds, which
    no option changes: on a busy machine two processes read their corpora and compile further apart than that. So all wait here, up to
    the start timeout, with a program ready that has an operation for each group; then no later program opens any. Elsewhere than on
    CPUs, and in a process alone, there is nothing to do.

    Raises:
      LostPeer: a process has ended, or has not come within the start timeout.
    """
    if jax.process_count() == 1 or mesh.devices.flat[0].platform != "cpu":
        return
    programs = [_sums(mesh), _sums(all_devices())]
    _wait_for_all(distributed.global_state.client)
    _START.meeting = False
    for program, ones in programs:
        jax.block_until_ready(program(ones))


def _sums(mesh: jax.sharding.Mesh) -> tuple:
    """A compiled program with one sum over each set of the mesh's axes, and its argument."""
    names = [name for name, size in mesh.shape.items() if size > 1]
    groups = [group for n in range(1, len(names) + 1) for group in itertools.combinations(names, n)]
    every = jax.P(tuple(mesh.axis_names))

    def sums(one):
        return [jax.lax.psum(one, group) for group in groups]

    program = jax.jit(jax.shard_map(sums, mesh=mesh, in_specs=every, out_specs=every))
    ones = jax.jit(lambda: jnp.ones(mesh.size), out_shardings=jax.NamedSharding(mesh, every))()
    return program.lower(ones).compile(), ones


def _wait_for_all(client) -> None:
    """Returns when every process has called it. The first looks for the others, and tells them what it found."""
    count, limit = jax.process_count(), f"within {_START.timeout} s; give more time with --start-timeout"
    deadline, _START.meetings = time.monotonic() + _START.timeout, _START.meetings + 1
    coming, go = f"{COMING}{_START.meetings}/", f"{GO}{_START.meetings}"
    client.key_value_set(f"{coming}{jax.process_index()}", "")
    if jax.process_index() > 0:
        try:
            answer = client.blocking_key_value_get(go, _START.timeout * 1000)
        except jax.errors.JaxRuntimeError as error:
            raise LostPeer(f"not all of {count} processes came to their first operation {limit} ({_first_line(error)})") from error
    else:
        while True:
            come = len(client.key_value_dir_get(coming))
            gone = [said for _, said in client.key_value_dir_get(GONE)]
            late = f"{come} of {count} processes came to their first operation {limit}" if time.monotonic() > deadline else ""
            answer = gone[0] if gone else late
            if answer or come == count:
                break
            time.sleep(POLL_SECONDS)
        client.key_value_set(go, answer)
    if answer:
        time.sleep(1)  # the answer goes out before the coordinator ends with this process
        raise LostPeer(f"not all processes started: {answer.removeprefix('dlmjax: ')}")


def make_room(alone: bool = False) -> None:
    """Threads enough for all collective operations of this process's CPU devices at once; call it before any device is used.

    Each of them holds a thread of XLA's pool until its peers have come, and by default the pool has as many threads as there are devices
    or cores. Two operations of one device (a gather inside the scan over layers and one outside) could take the thread that a third
    device needs to join them: the run then stood still, for ever between processes, within hundreds of steps on two cores. XLA reads
    the size of its pools from NPROC; what the user has set there stays.

    Args:
      alone: there are no other processes; a single device then has nobody to wait for, and nothing is changed.
    """
    devices = jax.config.jax_num_cpu_devices
    if alone and devices <= 1:
        return
    devices = devices if devices > 0 else 8  # -1 where it is not set here; a thread that waits for work costs nothing
    os.environ.setdefault("NPROC", str((os.cpu_count() or 1) + COLLECTIVES * devices))


def _meet(info: ProcessInfo, start_timeout: int, heartbeat_timeout: int) -> None:
    named = info.num_processes > 0  # else the TPU runtime tells
    for name in [name for name in os.environ if name.startswith(("TPU_", "MEGASCALE_")) and not os.environ[name].strip()]:
        del os.environ[name]  # set to nothing it is not set, which jax and the runtime do not know
    try:
        jax.distributed.initialize(
            info.coordinator,
            info.num_processes if named else None,
            info.process_index if named else None,
            local_device_ids=info.local_device,
            cluster_detection_method="deactivate" if named else None,
            initialization_timeout=start_timeout,
            heartbeat_timeout_seconds=heartbeat_timeout,
            shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
        )
    except (ValueError, TypeError) as error:
        raise InputError(f"the variables of {info.source} do not start a run of several processes: {_first_line(error)}") from error
    except RuntimeError as error:
        raise LostPeer(
            f"not all of {info.num_processes or 'the'} processes met at {info.coordinator or 'the coordinator'} within {start_timeout} s "
            f"({_first_line(error)}); look at the processes that said nothing, or give more time with --start-timeout"
        ) from error
    if jax.process_index() == 0:
        print(
            f"processes: {jax.process_count()} ({info.source}), coordinator {info.coordinator or 'found by jax'}, this is process 0 on "
            f"{socket.gethostname()} with {jax.local_device_count()} of {jax.device_count()} devices",
            flush=True,
        )


def _last_words(error: BaseException, info: ProcessInfo, step: int) -> tuple[int, str]:
    """Exit code and what to print."""
    where = f"{info} on {socket.gethostname()}, " + (f"after step {step}" if step >= 0 else "before the first step")
    if isinstance(error, InputError | OSError) and (said := said_of(error)):
        return 2, f"dlmjax: exit 2: {where}: {said}"
    if isinstance(error, KeyboardInterrupt):
        return 130, f"dlmjax: exit 130: {where}: interrupted; the same command continues"
    lost = isinstance(error, LostPeer) or (isinstance(error, jax.errors.JaxRuntimeError) and not str(error).lstrip().startswith(OWN_FAULTS))
    if lost:
        reason = str(error) if isinstance(error, LostPeer) else f"a peer was lost ({_first_line(error)})"
        return LOST_PEER, f"dlmjax: exit {LOST_PEER}: {where}: {reason}; the same command resumes from the last checkpoint"
    return 1, "".join(traceback.format_exception(error)) + f"dlmjax: exit 1: {where}: a defect, see above"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
