"""Several processes become one run: meet at the coordinator, and end together with a clear last line, never in silence."""

import contextlib
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterator

import jax

from dlmjax.errors import LOST_PEER, InputError, LostPeer
from dlmjax.place import Place

START_TIMEOUT = 300  # seconds in which all processes must have come
HEARTBEAT_TIMEOUT = 100  # seconds of silence after which a process counts as lost
SHUTDOWN_TIMEOUT = 60  # seconds that the first to finish waits for the others
COLLECTIVES = 4  # that one device of a CPU may have begun and not ended: the threads that XLA lets work on one program
# Beginnings of runtime errors that have nothing to do with a peer.
OWN_FAULTS = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED")


@contextlib.contextmanager
def joined(
    place: Place, step: Callable[[], int], *, start_timeout: int = START_TIMEOUT, heartbeat_timeout: int = HEARTBEAT_TIMEOUT
) -> Iterator[None]:
    """`with joined(place, step): train(...)`: all processes meet before, part after, and none waits for one that is gone.

    Alone, it does nothing. In a run of several processes an error inside ends this process at once (waiting for peers at the
    interpreter's exit could take minutes): exit code 2 with its line for bad input, 75 where a peer was lost, 1 with the traceback for all
    else. The peers notice by their next collective operation, or by the heartbeat.

    Args:
      step: updates done so far, -1 before the first; for the last line.
      start_timeout, heartbeat_timeout: seconds.
    """
    make_room(alone=place.alone)
    if place.alone:
        yield
        return
    try:
        _meet(place, start_timeout, heartbeat_timeout)
        yield
        jax.distributed.shutdown()
    except BaseException as error:
        code, lines = _last_words(error, place, step())
        print(lines, file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(code)


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


def _meet(place: Place, start_timeout: int, heartbeat_timeout: int) -> None:
    named = place.processes > 0  # else the TPU runtime tells
    try:
        jax.distributed.initialize(
            place.coordinator,
            place.processes if named else None,
            place.process if named else None,
            local_device_ids=place.local_device,
            cluster_detection_method="deactivate" if named else None,
            initialization_timeout=start_timeout,
            heartbeat_timeout_seconds=heartbeat_timeout,
            shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
        )
    except RuntimeError as error:
        raise LostPeer(
            f"not all of {place.processes or 'the'} processes met at {place.coordinator or 'the coordinator'} within {start_timeout} s "
            f"({_first_line(error)}); look at the processes that said nothing, or give more time with --start-timeout"
        ) from error
    if jax.process_index() == 0:
        print(
            f"processes: {jax.process_count()} ({place.found}), coordinator {place.coordinator or 'found by jax'}, this is process 0 on "
            f"{socket.gethostname()} with {jax.local_device_count()} of {jax.device_count()} devices",
            flush=True,
        )


def _last_words(error: BaseException, place: Place, step: int) -> tuple[int, str]:
    """Exit code and what to print."""
    where = f"{place} on {socket.gethostname()}, " + (f"after step {step}" if step >= 0 else "before the first step")
    if isinstance(error, InputError):
        return 2, f"dlmjax: exit 2: {where}: {error}"
    if isinstance(error, KeyboardInterrupt):
        return 130, f"dlmjax: exit 130: {where}: interrupted; the same command continues"
    lost = isinstance(error, LostPeer) or (isinstance(error, jax.errors.JaxRuntimeError) and not str(error).lstrip().startswith(OWN_FAULTS))
    if lost:
        reason = str(error) if isinstance(error, LostPeer) else f"a peer was lost ({_first_line(error)})"
        return LOST_PEER, f"dlmjax: exit {LOST_PEER}: {where}: {reason}; the same command resumes from the last checkpoint"
    return 1, "".join(traceback.format_exception(error)) + f"dlmjax: exit 1: {where}: a defect, see above"


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
