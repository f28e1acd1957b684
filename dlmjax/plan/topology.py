"""Hardware that is not attached: chips by name, slices of them, and the bandwidth between any group of chips.

`describe("v5p:8x8x8")` is a TPU slice for which XLA compiles on any machine (extra `tpu`); `describe("h100:512")` GPUs in nodes of
eight, for the analytic model. Bandwidths are bytes per second that one chip receives while it sends as much, with all its
links busy in both directions: an upper bound.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from dlmjax.cluster.chips import PEAK_FLOPS, compile_only
from dlmjax.cluster.mesh_sizes import fill_sizes
from dlmjax.errors import InputError
from dlmjax.parallel.mesh import slice_of


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator as jax counts devices.

    `memory` in bytes; `peak` dense bfloat16 FLOP/s; `memory_rate` bytes/s of its HBM; `link` bytes/s received over all its fast links (ICI,
    NVLink) together; `network` bytes/s of its share of the host's network cards; `wrap` the shortest torus dimension that closes to a
    ring (0: a switch, every group has the full rate); `dimensions` of the torus; `node` chips that the fast links join (0: the slice).
    """

    name: str
    kind: str
    memory: float
    peak: float
    memory_rate: float
    link: float
    network: float
    dimensions: int = 0
    wrap: int = 0
    node: int = 0

    @property
    def links(self) -> str:
        """Name of the fast links."""
        return "ICI" if self.kind == "tpu" else "NVLink"

    @property
    def wires(self) -> str:
        """Name of the connection between slices or nodes."""
        return "DCN" if self.kind == "tpu" else "network"


# Sources. TPU: Google Cloud documentation, docs/{v4,v5e,v5p,v6e}, table of key specifications: HBM capacity and bandwidth,
# "bidirectional inter-chip interconnect bandwidth per chip" (half of it is received), torus dimensions and, from the same pages, which
# shapes wrap around (2D: 16, 3D: multiples of 4). v4: 300 GB/s each way, from "TPU v4" (2304.01433, table 4: six links of 50 GB/s).
# Network a chip: v5p 50 Gbit/s from its table; v5e and v6e the pod's 6.4 and 25.6 Tbit/s over 256 chips; v4 as v5e (not published).
# GPU: NVIDIA datasheets A100 80GB SXM, H100 SXM, H200 SXM: memory, bandwidth, NVLink total (half of it each way); network one 400
# (A100: 200) Gbit/s card a GPU, as in DGX systems.
GIB = 2.0**30
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", "tpu", 32 * GIB, PEAK_FLOPS["TPU v4"], 1228e9, 300e9, 25e9 / 8, dimensions=3, wrap=4),
        Chip("v5e", "tpu", 16 * GIB, PEAK_FLOPS["TPU v5e"], 819e9, 200e9, 25e9 / 8, dimensions=2, wrap=16),
        Chip("v5p", "tpu", 95 * GIB, PEAK_FLOPS["TPU v5p"], 2765e9, 600e9, 50e9 / 8, dimensions=3, wrap=4),
        Chip("v6e", "tpu", 32 * GIB, PEAK_FLOPS["TPU v6e"], 1638e9, 400e9, 100e9 / 8, dimensions=2, wrap=16),
        Chip("a100", "gpu", 80e9, PEAK_FLOPS["NVIDIA A100"], 2039e9, 300e9, 200e9 / 8, node=8),
        Chip("h100", "gpu", 80e9, PEAK_FLOPS["NVIDIA H100"], 3350e9, 450e9, 400e9 / 8, node=8),
        Chip("h200", "gpu", 141e9, PEAK_FLOPS["NVIDIA H200"], 4800e9, 450e9, 400e9 / 8, node=8),
    )
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A named set of equal chips. `devices` are jax devices to compile for (TPU), empty where there is no compiler (GPU)."""

    name: str
    chip: Chip
    chips: int
    shape: tuple[int, ...] = ()
    slices: int = 1
    devices: tuple[Any, ...] = ()

    def coords(self, devices: Sequence[Any] = ()) -> np.ndarray:
        """[chips, 1 + dimensions]: slice (or node) of every chip and its coordinates there, in the order of the mesh (GPUs: by number)."""
        if self.chip.kind == "gpu":
            number = np.arange(self.chips)
            return np.stack([number // self.chip.node, number % self.chip.node], axis=1)
        return np.asarray([(slice_of(device), *device.coords[: self.chip.dimensions]) for device in devices])

    def rates(self, coords: np.ndarray) -> tuple[float, float, int]:
        """(fast, network, slices) of a group given by its coordinates [n, 1 + dimensions].

        `fast`: bytes/s that a chip receives within its slice or node: the torus dimensions that the group spans, halved where one does not
        close to a ring. `network`: bytes/s of a chip to other slices or nodes. `slices`: how many of these the group touches.
        """
        touched = len(np.unique(coords[:, 0]))
        if not self.chip.dimensions:
            return self.chip.link, self.chip.network, touched
        per_dimension = self.chip.link / self.chip.dimensions
        fast = 0.0
        for dimension in range(self.chip.dimensions):
            span = len(np.unique(coords[:, 1 + dimension]))
            if span > 1:
                size = self.shape[dimension] if dimension < len(self.shape) else 1
                closed = size % self.chip.wrap == 0 and span == size
                fast += per_dimension * (1.0 if closed else 0.5)
        return fast or per_dimension / 2, self.chip.network, touched


def fill_mesh(sizes: dict[str, int], topology: Topology) -> dict[str, int]:
    """Mesh sizes with -1 replaced by the number of devices divided by the other sizes.

    Raises InputError where the sizes do not multiply to the chips of the topology.
    """
    return fill_sizes(sizes, topology.chips, f"the {topology.chips} chips of {topology.name}")


def describe(name: str, slices: int = 1) -> Topology:
    """The topology of `CHIP:SHAPE` such as v5e:4x4, v5p:8x8x8, h100:512; `slices` of them joined by the network.

    Raises:
      InputError: another form, an unknown chip, a shape that does not exist for the chip, libtpu not installed.
    """
    match = re.fullmatch(r"([a-z0-9]+):(\d+(?:x\d+)*)", name)
    if not match:
        raise InputError(f"topology {name!r} is not CHIP:SHAPE; write v5e:4x4, v5p:8x8x8 or h100:64")
    if match[1] not in CHIPS:
        close = difflib.get_close_matches(match[1], CHIPS, n=1)
        raise InputError(f"chip {match[1]!r} is unknown; {f'did you mean {close[0]}? ' if close else ''}choose one of {', '.join(CHIPS)}")
    chip, shape = CHIPS[match[1]], tuple(int(size) for size in match[2].split("x"))
    if slices < 1 or min(shape) < 1:
        raise InputError(f"topology {name} x {slices} slices has no chips; give sizes and --slices of at least 1")
    if chip.kind == "gpu":
        if slices > 1:
            raise InputError(f"GPUs come in nodes of {chip.node}, not in slices; write --topology {chip.name}:{math.prod(shape) * slices}")
        return Topology(name, chip, math.prod(shape), shape)
    if len(shape) != chip.dimensions:
        example = "x".join(["4"] * chip.dimensions)
        raise InputError(f"{chip.name} slices have {chip.dimensions} dimensions, {name} has {len(shape)}; write {chip.name}:{example}")
    devices = _tpu_devices(name, shape, slices)
    return Topology(name, chip, len(devices), shape, slices, devices)


def _tpu_devices(name: str, shape: tuple[int, ...], slices: int) -> tuple[Any, ...]:
    """Devices that can be compiled for and not run on."""
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            'compiling for a TPU requires libtpu, which is not installed; run pip install -e ".[tpu]" (any CPU machine will do)'
        )
    compile_only()
    from jax.experimental import topologies

    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if math.prod(shape) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        return tuple(topologies.get_topology_desc(name, platform="tpu", **options).devices)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"topology {name} does not exist: {reason}") from error
