"""Agreement of all processes of a run: whether any received a request to stop, and whether any failed to start."""

import collections
import contextlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dlmjax.errors import InputError


def all_devices() -> jax.sharding.Mesh:
    """A mesh of one axis over every device of the run, for operations over processes."""
    return jax.sharding.Mesh(np.asarray(jax.devices()), ("device",))


class Agreement:
    """`agreed(requested)` between two steps: the same call returns the same answer in every process; all call it equally often.

    The reduction is queued on the devices and its result is read `lag` calls later, when the devices have computed it: nothing waits,
    and a signal to one process stops all of them at the same step, `lag` steps later. A single process gets its answer at once.
    """

    def __init__(self, lag: int = 8):
        self._alone, self._lag = jax.process_count() == 1, lag
        self._pending: collections.deque[jax.Array] = collections.deque()
        if not self._alone:
            mesh = all_devices()
            self._one_each = jax.NamedSharding(mesh, jax.P(mesh.axis_names))
            self._any = jax.jit(jnp.max, out_shardings=jax.NamedSharding(mesh, jax.P()))

    def __call__(self, requested: bool) -> bool:
        """Was `requested` true in any process, `lag` calls ago?"""
        if self._alone:
            return requested
        mine = np.full(jax.local_device_count(), requested, np.int32)
        with jax.transfer_guard_host_to_device("allow"):
            local = jax.make_array_from_process_local_data(self._one_each, mine)
        self._pending.append(self._any(local))
        if len(self._pending) <= self._lag:
            return False
        return bool(jax.device_get(self._pending.popleft().addressable_data(0)))


def any_process(requested: bool) -> bool:
    """Is `requested` true in any process of the run? All processes call it, wait for each other, and get the same answer."""
    return Agreement(lag=0)(requested)


@contextlib.contextmanager
def refused_together() -> Iterator[None]:
    """`with refused_together(): ...`: an error in one process raises an error in all, so that none waits for a process that has ended.

    No process leaves the block before all have reached its end; the block must not contain collective operations.
    Raises: the exception of the block; or InputError when another process raised one.
    """
    refusal = None
    try:
        yield
    except Exception as error:
        refusal = error
    if any_process(refusal is not None):
        raise refusal or InputError("another process of this run could not start; correct the fault in its message, and start all again")
