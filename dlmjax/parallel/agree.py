"""One answer for all processes: has any of them been asked to stop?"""

import collections

import jax
import jax.numpy as jnp
import numpy as np

from dlmjax.parallel.mesh import all_devices


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
