"""A process that the checkpoint tests kill, or starve of disk: `python checkpoint_child.py MODE DIRECTORY`."""

import os
import resource
import sys

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from dlmjax.errors import InputError
from dlmjax.training import Checkpoints


def state_of(step, size=300_000):
    """Different, incompressible numbers in every step."""
    rng = np.random.default_rng(step)
    return {"params": {"kernel": rng.normal(size=(size // 100, 100)).astype(np.float32)}, "step": np.int32(step)}


def main(mode, directory):
    checkpoints = Checkpoints(directory, keep=2)
    if mode == "forever":
        for step in range(1, 10_000):
            checkpoints.save(step, jax.device_put(state_of(step)), {"step": step})
            print(step, flush=True)
    elif mode == "full":
        checkpoints.save(1, jax.device_put(state_of(1, 10_000)), {"step": 1})
        checkpoints.wait()
        if os.environ.get("DLMJAX_TEST_FILE_LIMIT"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        try:
            checkpoints.save(2, jax.device_put(state_of(2, 3_000_000)), {"step": 2})
            checkpoints.wait()
        except InputError as error:
            print(f"refused: {error}")
        print("left:", *sorted(os.listdir(directory)))
        checkpoints.save(3, jax.device_put(state_of(3, 10_000)), {"step": 3})
        checkpoints.close()
        print("then:", *checkpoints.steps())


if __name__ == "__main__":
    main(*sys.argv[1:])
