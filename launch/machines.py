"""Slices of TPUs and nodes of GPUs by name, and the names that the cloud has for them.

Sources: Google Cloud's pages "TPU configurations" of each version, "About TPUs in GKE" and "TPU software versions" (runtime versions), and
"About GPUs in GKE" (values of the accelerator label).
"""

import dataclasses
import math
import re

from dlmjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class TPU:
    """A generation: label on GKE, dimensions of a topology, chips of a host in a larger slice, JAX devices of a chip; type and runtime of a
    TPU VM ("" where there are none)."""

    label: str
    dimensions: int
    host_chips: int
    chip_devices: int = 1
    type: str = ""
    runtime: str = ""


TPUS = {
    "v4": TPU("tpu-v4-podslice", 3, 4, type="v4", runtime="tpu-ubuntu2204-base"),
    "v5e": TPU("tpu-v5-lite-podslice", 2, 4, type="v5litepod", runtime="v2-alpha-tpuv5-lite"),
    "v5p": TPU("tpu-v5p-slice", 3, 4, type="v5p", runtime="v2-alpha-tpuv5"),
    "v6e": TPU("tpu-v6e-slice", 2, 4, type="v6e", runtime="v2-alpha-tpuv6e"),
    "tpu7x": TPU("tpu7x", 3, 4, chip_devices=2),
}
ONE_HOST_2D = {"1x1": 1, "2x2": 4, "2x4": 8}  # v5e and v6e topologies that are one machine, and its chips
GPUS = {
    "a100-40gb": "nvidia-tesla-a100",
    "a100-80gb": "nvidia-a100-80gb",
    "h100": "nvidia-h100-80gb",
    "h100-mega": "nvidia-h100-mega-80gb",
    "h200": "nvidia-h200-141gb",
    "b200": "nvidia-b200",
}


@dataclasses.dataclass(frozen=True)
class Machines:
    """Hosts with the same number of chips each; `devices`: as JAX counts them, over all hosts; `topology`: "" for GPUs."""

    kind: str
    hosts: int
    host_chips: int
    devices: int
    topology: str = ""

    @property
    def chips(self) -> int:
        """Number of chips."""
        return self.hosts * self.host_chips


def tpu_slice(text: str) -> Machines:
    """ "v5p:8x8x8" as machines.

    Raises:
      InputError: an unknown generation, a topology of other dimensions or one that is not a whole number of hosts.
    """
    kind, _, topology = text.partition(":")
    if kind not in TPUS:
        raise InputError(f"--tpu {text}: generation {kind!r} is unknown; choose one of {', '.join(TPUS)}, as in v5p:2x2x2")
    tpu = TPUS[kind]
    if not re.fullmatch(r"[1-9]\d{0,2}" + r"x[1-9]\d{0,2}" * (tpu.dimensions - 1), topology):
        raise InputError(f"--tpu {text}: a topology of {kind} has {tpu.dimensions} sizes, as in {kind}:{'x'.join('4' * tpu.dimensions)}")
    chips = math.prod(int(size) for size in topology.split("x"))
    host_chips = ONE_HOST_2D.get(topology, tpu.host_chips) if tpu.dimensions == 2 else tpu.host_chips
    if chips % host_chips:
        raise InputError(f"--tpu {text}: {chips} chips are not a whole number of hosts of {host_chips}")
    return Machines(kind, chips // host_chips, host_chips, chips * tpu.chip_devices, topology)


def gpu_nodes(text: str) -> Machines:
    """ "h100:4x8" (4 nodes of 8) as machines.

    Raises:
      InputError: an unknown kind, or not of the form NODESxGPUS.
    """
    kind, _, size = text.partition(":")
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d?)", size)
    if kind not in GPUS or not found:
        raise InputError(f"--gpu {text}: write KIND:NODESxGPUS, as in h100:4x8; kinds are {', '.join(GPUS)}")
    nodes, gpus = int(found[1]), int(found[2])
    return Machines(kind, nodes, gpus, nodes * gpus)
