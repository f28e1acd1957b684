"""Steps exported for GPUs and TPUs that are not here: kernels of attention, no logits of all positions, nothing from the host."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from dlmjax import config as config_lib
from dlmjax.errors import InputError
from dlmjax.plan.audit import StepShapes
from dlmjax.plan.hardware import Vocabulary, alone
from dlmjax.plan.lowering import _faults, lower_step
from tests.plan.test_audit import small

MESH = {"data": 1, "fsdp": 2, "sequence": 1, "tensor": 2}
POD = {"data": 1, "fsdp": 8, "sequence": 1, "tensor": 2}
CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
KERNELS = {"cuda": "cudnn", "tpu": "splash"}


@pytest.mark.parametrize("platform", KERNELS)
@pytest.mark.parametrize("name", ["masked", "blocks", "uniform", "hybrid"])
def test_a_step_of_a_billion_parameters_is_exported_with_the_kernels_of_its_hardware(name, platform):
    """Of the config as it ships, on 16 devices: shapes alone, so the size costs nothing."""
    placed = [f"execution.attention={KERNELS[platform]}", *(f"mesh.{axis}={size}" for axis, size in POD.items())]
    config = config_lib.load(str(CONFIGS / f"{name}.py:1b"), placed)
    lowered = lower_step(alone(config, Vocabulary(config.model.vocab)), POD, platform)
    # Forward, forward again under remat "dots", and backward: one kernel for all gradients in cuDNN, two in splash attention.
    assert sum(lowered.kernels.values()) >= (3 if platform == "cuda" else 4), lowered.kernels
    assert lowered.faults == ()
    if platform == "cuda":
        assert all("cudnn" in kernel for kernel in lowered.kernels)


def test_the_kernel_of_other_hardware_is_refused():
    config = small("masked")
    with pytest.raises(InputError, match="attention=splash requires a TPU, not gpu"):
        lower_step(alone(config, Vocabulary(config.model.vocab)), MESH, "cuda")


def test_logits_and_the_host_would_be_seen():
    shapes = StepShapes(classes=(640,), positions=32, stored=((48, 640),), used=((48, 640),), bfloat16=True)

    def step(x, weight):
        logits = x @ weight
        jax.debug.callback(lambda total: None, logits.sum())
        return logits.max(axis=-1)

    text = jax.jit(step).lower(jnp.ones((32, 48)), jnp.ones((48, 640))).as_text()
    assert {fault.kind for fault in _faults(text, shapes)} == {"logits", "host transfer"}
