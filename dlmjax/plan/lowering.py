"""A training step exported for GPUs or TPUs that are not here: StableHLO, with the kernels of attention, before any compiler of theirs.

An export shows that every operation exists on that hardware, which kernels are called, and how large the arrays are that the program
asks for; what a compiler makes of it (fusion, collectives, memory) it does not show. No GPU, CUDA or libtpu is required.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import types
from collections.abc import Iterator
from typing import Any

from jax import export

from dlmjax.experiment import Experiment
from dlmjax.parallel.sharding import on_paper
from dlmjax.plan.audit import Finding, StepShapes, has_logits, step_shapes
from dlmjax.train import train_step_of

# The oldest cuDNN whose attention this version of jax calls for every mask that is used here; without a GPU jax finds none.
CUDNN = 90_100
# Calls that jax exports only when told to, as it does not promise that other versions of it read them; nothing is stored here.
_UNSTABLE = (
    "LayoutConstraint",
    *(f"__cudnn$fmha{form}Softmax{direction}" for form in ("", "ScaleBias") for direction in ("", "Backward")),
)
# Kernels of attention, by the names of their custom calls.
_KERNELS = {"cuda": r"@(__cudnn\$\w+)", "tpu": r"@(tpu_custom_call)"}
_HOST = re.compile(r"stablehlo\.(infeed|outfeed|send|recv)\b|@(\w*(?:callback|host)\w*)\(", re.IGNORECASE)
_TENSOR = re.compile(r"tensor<((?:\d+x)+)([a-z]\w*)>")
_PLATFORMS = {"cuda": "gpu", "tpu": "tpu"}


@dataclasses.dataclass(frozen=True)
class LoweredStep:
    """kernels: calls of attention kernels in the text, by name; a scanned layer counts once.  faults: as `plan.audit`, of the kinds
    "logits" and "host transfer", which show before compilation."""

    kernels: dict[str, int]
    faults: tuple[Finding, ...]


def lower_step(experiment: Experiment, mesh: dict[str, int], platform: str) -> LoweredStep:
    """Exports (`jax.export`) the step of `dlmjax train` for a mesh of "cuda" or "tpu" devices.

    Args:
      experiment: assembled on any devices, as by `plan.hardware.alone`.
      mesh: sizes of the axes, all given.

    Raises InputError: an attention kernel of the other kind of device, a mesh that does not divide the model or the batch.
    """
    partition = on_paper(mesh, _PLATFORMS[platform])
    placed = dataclasses.replace(experiment, partition=partition, network=dataclasses.replace(experiment.network, layout=partition))
    step = train_step_of(placed)
    state, batch, key = placed.abstract_arguments()
    unstable = [export.DisabledSafetyCheck.custom_call(name) for name in _UNSTABLE]
    with _without_gpus():
        exported = export.export(step.function, platforms=(platform,), disabled_checks=unstable)(state, batch, key, step.abstract)
    text = exported.mlir_module()
    kernels: dict[str, int] = {}
    for name in re.findall(_KERNELS[platform], text):
        kernels[name] = kernels.get(name, 0) + 1
    return LoweredStep(kernels, tuple(_faults(text, step_shapes(placed))))


def _faults(text: str, shapes: StepShapes) -> list[Finding]:
    """Arrays of logits for all positions, and exchanges with the host."""
    found = []
    for dims, dtype in sorted(set(_TENSOR.findall(text))):
        sizes = tuple(int(size) for size in dims.rstrip("x").split("x"))
        if has_logits(sizes, shapes):
            bits = int(re.sub(r"\D", "", dtype) or 8)
            found.append(Finding("logits", f"tensor<{dims}{dtype}>", math.prod(sizes) * bits / 8, 1.0))
    return found + [Finding("host transfer", first or second, 0.0, 1.0) for first, second in _HOST.findall(text)]


@contextlib.contextmanager
def _without_gpus() -> Iterator[None]:
    """Lets jax lower cuDNN's kernel where there is no GPU.

    It asks for the version of cuDNN, which decides which masks the kernel takes, and for the devices of the program, of which it makes
    use only where the compiler is to divide the kernel; in `models.attention` each device calls it itself.
    """
    from jax._src import dispatch
    from jax._src.cudnn import fused_attention_stablehlo as kernels

    version: Any = kernels.cuda_versions
    requiring = dispatch.prim_requires_devices_during_lowering
    before = set(requiring)
    if version is None:
        kernels.cuda_versions = types.SimpleNamespace(cudnn_get_version=lambda: CUDNN)
    requiring.clear()
    try:
        yield
    finally:
        kernels.cuda_versions = version
        requiring.update(before)
