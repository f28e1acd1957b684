"""One answer for all processes: has any of them been asked to stop, does any of them refuse to start?"""

import collections
import contextlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from dlmjax.errors import InputError


def all_devices() -> jax.sharding.Mesh:
    """Every device of the run in one row: for what concerns processes, not tensors."""
    return jax.sharding.Mesh(np.asarray(jax.devices()), ("device",))


class Agreement:
    """`agreed(asked)` between two steps; every process calls it equally often and hears the same answer at the same call.

    A question travels with the device queue and its answer is read `lag` calls later, when the device has passed it anyway: nothing
    waits, and a signal to one process stops all of them at one step, `lag` steps later. A lone process is answered at once.
    """

    def __init__(self, lag: int = 8):
        self._alone, self._lag = jax.process_count() == 1, lag
        self._asked: collections.deque[jax.Array] = collections.deque()
        if not self._alone:
            mesh = all_devices()
            self._one_each = jax.NamedSharding(mesh, jax.P(mesh.axis_names))
            self._any = jax.jit(jnp.max, out_shardings=jax.NamedSharding(mesh, jax.P()))

    def __call__(self, asked: bool) -> bool:
        """Had any process been asked, `lag` calls ago?"""
        if self._alone:
            return asked
        mine = np.full(jax.local_device_count(), asked, np.int32)
        with jax.transfer_guard_host_to_device("allow"):
            question = jax.make_array_from_process_local_data(self._one_each, mine)
        self._asked.append(self._any(question))
        if len(self._asked) <= self._lag:
            return False
        return bool(jax.device_get(self._asked.popleft().addressable_data(0)))


def any_process(asked: bool) -> bool:
    """Is `asked` true in any process of the run? All call it together, wait for each other, and hear the same."""
    return Agreement(lag=0)(asked)


@contextlib.contextmanager
def refused_together() -> Iterator[None]:
    """`with refused_together(): ...`: an error that one process meets ends all of them with a line, and none waits for one that is gone.

    No process is past the block before all are; inside, there is no other collective operation.
    Raises: what was raised inside, whatever it is; or InputError, that another process raised something.
    """
    refusal = None
    try:
        yield
    except Exception as error:
        refusal = error
    if any_process(refusal is not None):
        raise refusal or InputError("another process of this run could not start and says why; correct that and start all of them again")
