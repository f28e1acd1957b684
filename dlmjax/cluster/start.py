"""Start and end of a run of several processes: they connect to the coordinator, and each logs the reason when it ends."""

import contextlib
import dataclasses
import itertools
import os
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax._src import distributed  # the key-value store of the coordinator has no public name

from dlmjax.cluster.agree import all_devices
from dlmjax.cluster.process_info import ProcessInfo
from dlmjax.errors import START_AGAIN, InputError, LostPeer
from dlmjax.flags import message_of

START_TIMEOUT = 300  # seconds within which all processes must have started
HEARTBEAT_TIMEOUT = 100  # seconds without a heartbeat after which a process counts as lost
SHUTDOWN_TIMEOUT = 60  # seconds that the first process to finish waits for the others
COLLECTIVES = 4  # collective operations that one CPU device may have in progress: XLA's limit of threads per program
COMING, GONE, GO = "dlmjax/coming/", "dlmjax/gone/", "dlmjax/go/"  # keys in the coordinator's key-value store
POLL_SECONDS = 0.1
# Prefixes of runtime errors that a lost peer does not cause.
OWN_FAULTS = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")


@dataclasses.dataclass
class _Start:
    """State of this process's start. timeout: seconds; meeting: its peers wait for it in `connect`, or will; meetings: number so far."""

    timeout: int = START_TIMEOUT
    meeting: bool = False
    meetings: int = 0


_START = _Start()


@contextlib.contextmanager
def joined(
    info: ProcessInfo, step: Callable[[], int], *, start_timeout: int = START_TIMEOUT, heartbeat_timeout: int = HEARTBEAT_TIMEOUT
) -> Iterator[None]:
    """`with joined(info, step): train(...)`: all processes connect before the block, disconnect after it, and none waits for a lost one.

    A single process does nothing here. In a run of several processes an error in the block ends this process at once (waiting for peers
    at the interpreter's exit could take minutes): exit code 2 with its line for bad input, 75 when a peer was lost, 1 with the traceback
    for other errors. The peers fail at their next collective operation, or by the heartbeat.

    Args:
      step: number of updates done, -1 before the first; for the last message.
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
        code, lines = _exit_message(error, info, step())
        print(lines, file=sys.stderr, flush=True)
        sys.stdout.flush()
        if _START.meeting:
            with contextlib.suppress(Exception):  # a peer without this message waits until the timeout
                distributed.global_state.client.key_value_set(f"{GONE}{jax.process_index()}", lines.splitlines()[-1])
        os._exit(code)


def connect(mesh: jax.sharding.Mesh) -> None:
    """Opens the connections between the processes' CPU devices that collective operations over `mesh` need; every process calls it once.

    Gloo connects a group of devices at its first operation, and fails when not all reach it within 30 seconds, which no option changes:
    on a busy machine two processes differ by more than that in reading their corpora and compiling. So all wait here, up to the start
    timeout, with a compiled program that has an operation for each group; no later program opens a connection. Devices other than CPUs
    and a single process need nothing.

    Raises:
      LostPeer: a process has ended, or has not arrived within the start timeout.
    """
    if jax.process_count() == 1 or mesh.devices.flat[0].platform != "cpu":
        return
    programs = [_sums(mesh), _sums(all_devices())]
    _wait_for_all(distributed.global_state.client)
    _START.meeting = False
    with _without_lines_of_gloo():
        for program, ones in programs:
            jax.block_until_ready(program(ones))


@contextlib.contextmanager
def _without_lines_of_gloo() -> Iterator[None]:
    """Leaves out what Gloo prints on standard output for each connection, which no option turns off; all else is printed afterwards."""
    sys.stdout.flush()
    with tempfile.TemporaryFile() as caught, contextlib.ExitStack() as restored:
        descriptor = os.dup(1)
        restored.callback(os.close, descriptor)
        os.dup2(caught.fileno(), 1)
        try:
            yield
        finally:
            sys.stdout.flush()
            os.dup2(descriptor, 1)
            caught.seek(0)
            os.write(1, b"".join(line for line in caught if not line.startswith(b"[Gloo] ")))


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
    """Returns when every process has called it. The first process polls for the others and publishes the result."""
    count, limit = jax.process_count(), f"within {_START.timeout} s; raise --start-timeout"
    deadline, _START.meetings = time.monotonic() + _START.timeout, _START.meetings + 1
    coming, go = f"{COMING}{_START.meetings}/", f"{GO}{_START.meetings}"
    client.key_value_set(f"{coming}{jax.process_index()}", "")
    if jax.process_index() > 0:
        try:
            answer = client.blocking_key_value_get(go, _START.timeout * 1000)
        except jax.errors.JaxRuntimeError as error:
            raise LostPeer(f"not all of {count} processes reached their first operation {limit} ({_first_line(error)})") from error
    else:
        while True:
            arrived = len(client.key_value_dir_get(coming))
            gone = [message for _, message in client.key_value_dir_get(GONE)]
            late = f"{arrived} of {count} processes reached their first operation {limit}" if time.monotonic() > deadline else ""
            answer = gone[0] if gone else late
            if answer or arrived == count:
                break
            time.sleep(POLL_SECONDS)
        client.key_value_set(go, answer)
    if answer:
        time.sleep(1)  # lets the peers read the answer before the coordinator ends with this process
        raise LostPeer(f"not all processes started: {answer.removeprefix('dlmjax: ')}")


def make_room(alone: bool = False) -> None:
    """Reserves threads for all concurrent collective operations of this process's CPU devices; to be called before any device is used.

    Each operation holds a thread of XLA's pool until its peers arrive, and by default the pool has as many threads as there are devices
    or cores. Two operations of one device (a gather inside the scan over layers and one outside) could take the thread that a third
    device needs to join them: a run then deadlocked within hundreds of steps on two cores. XLA reads the size of its pools from NPROC;
    a value that the user has set is kept.

    Args:
      alone: there are no other processes; a single device then waits for no peer, and nothing is changed.
    """
    devices = jax.config.jax_num_cpu_devices
    if alone and devices <= 1:
        return
    devices = devices if devices > 0 else 8  # -1 when it is not set here; an idle thread costs nothing
    os.environ.setdefault("NPROC", str((os.cpu_count() or 1) + COLLECTIVES * devices))


def _meet(info: ProcessInfo, start_timeout: int, heartbeat_timeout: int) -> None:
    named = info.num_processes > 0  # otherwise the TPU runtime provides them
    for name in [name for name in os.environ if name.startswith(("TPU_", "MEGASCALE_")) and not os.environ[name].strip()]:
        del os.environ[name]  # jax and the runtime do not treat an empty variable as not set
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
            f"({_first_line(error)}); check the processes that logged nothing, or raise --start-timeout"
        ) from error
    if jax.process_index() == 0:
        print(
            f"processes: {jax.process_count()} ({info.source}), coordinator {info.coordinator or 'detected by jax'}, this is process 0 on "
            f"{socket.gethostname()} with {jax.local_device_count()} of {jax.device_count()} devices",
            flush=True,
        )


def _exit_message(error: BaseException, info: ProcessInfo, step: int) -> tuple[int, str]:
    """Exit code and message."""
    where = f"{info} on {socket.gethostname()}, " + (f"after step {step}" if step >= 0 else "before the first step")
    if isinstance(error, InputError | OSError) and (message := message_of(error)):
        return 2, f"dlmjax: exit 2: {where}: {message}"
    if isinstance(error, KeyboardInterrupt):
        return 130, f"dlmjax: exit 130: {where}: interrupted; the same command resumes"
    lost = isinstance(error, LostPeer) or (isinstance(error, jax.errors.JaxRuntimeError) and not str(error).lstrip().startswith(OWN_FAULTS))
    if lost:
        reason = str(error) if isinstance(error, LostPeer) else f"a peer was lost ({_first_line(error)})"
        return START_AGAIN, f"dlmjax: exit {START_AGAIN}: {where}: {reason}; the same command resumes from the last checkpoint"
    return 1, "".join(traceback.format_exception(error)) + f"dlmjax: exit 1: {where}: a defect, see above"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
