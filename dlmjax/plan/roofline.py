"""Lower bound of the time of a step, from counts of FLOPs, bytes of memory and bytes between chips. An analytic model.

Assumptions, which every plan prints: matmuls run at the bfloat16 peak; a weight or activation that is used is read once from memory;
collectives are rings (trees are not slower) that use every link their group spans in both directions; where a group crosses slices,
each chip carries its share of the slice's data over the network; latencies are zero. `Times.overlapped` hides everything behind the
longest part, `Times.serial` nothing: a real step lies between them.

Sizes of arrays are per chip unless their name contains `whole`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from dlmjax.models.attention import SPLASH_BLOCK, Tile
from dlmjax.models.flops import layer_products, modulation_products, other_products, time_products, times_of_row
from dlmjax.models.head import chunk_rows
from dlmjax.models.masks import Mask
from dlmjax.models.spec import Execution, ModelSpec
from dlmjax.parallel.sharding import GATHERED, RULES
from dlmjax.plan.collectives import Collective, group_of, merge
from dlmjax.plan.topology import Chip, Topology

ASSUMPTIONS = (
    "matmuls at the chip's bfloat16 peak; nothing but matmuls counted as compute",
    "memory: a weight is read once a pass, an activation written and read once, the optimizer's state read and written once",
    "collectives: rings over every link that their group spans, both directions, no latency; between slices or nodes each chip "
    "carries its share over the network",
    "best: compute, memory and collectives fully overlap; worst: they follow one another",
)
FUSED = ("splash", "cudnn")


@dataclasses.dataclass(frozen=True)
class Work:
    """A step of all chips: model FLOPs (no recomputation, every score), executed FLOPs (with it, skipped blocks left out), tokens."""

    model_flops: float
    executed_flops: float
    tokens: int


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of a step on one chip, by resource."""

    compute: float
    memory: float
    fast: float
    network: float

    @property
    def overlapped(self) -> float:
        """All parts overlap, and the longest is the roofline."""
        return max(self.compute, self.memory, self.fast, self.network)

    @property
    def serial(self) -> float:
        """No parts overlap."""
        return self.compute + self.memory + self.fast + self.network

    @property
    def bound(self) -> str:
        """The part that bounds the roofline."""
        return max(("compute", "memory", "fast", "network"), key=lambda part: getattr(self, part))


@dataclasses.dataclass(frozen=True)
class Load:
    """A training step in numbers: the network, how it runs, and the rows that it sees. `visible`: share of score blocks not skipped.

    `head_share`, `passes` and `streams` as in `models.flops.training_flops_per_token`.  `tiled`: share of the scores that dense attention
    computes (`models.attention.tiles_of`), of all queries and of those of the first stream.  `noisy_last`: whether the last layer computes
    the states of the first stream alone, for which the clean one gives keys and values.  `tokens_per_time`: as the network computes it.
    """

    spec: ModelSpec
    execution: Execution
    length: int
    batch: int
    accumulation: int
    parameters: int
    head_share: float = 1.0
    passes: float = 1.0
    streams: int = 1
    visible: float = 1.0
    tiled: tuple[float, float] = (1.0, 1.0)
    noisy_last: bool = False
    tokens_per_time: int = 1

    def head_ways(self, mesh: dict[str, int]) -> int:
        """Pieces that the classes of the logits are split into: as `models.head`, 1 where the mesh does not divide the vocabulary."""
        ways = int(np.prod([mesh[name] for name in RULES["class"]]))
        return 1 if self.spec.vocab % ways else ways

    def is_head(self, axes: tuple) -> bool:
        """Whether a weight with these logical axes is the head's matrix."""
        return axes == (("vocab", "table") if self.spec.tied else ("table", "vocab"))

    @property
    def item(self) -> int:
        """Bytes of an activation."""
        return 2 if self.execution.dtype == "bfloat16" else 4

    @property
    def fused(self) -> bool:
        """Whether scores never reach memory."""
        return self.execution.attention in FUSED

    @property
    def times(self) -> int:
        """Times of a row for which the network computes what it makes of t."""
        return times_of_row(self.length, self.streams, self.tokens_per_time)

    def tokens(self, mesh: dict[str, int]) -> float:
        """Tokens (of all streams) of a microbatch on one chip."""
        split = np.prod([mesh[axis] for axis in (*RULES["batch"], *RULES["length"])])
        return self.streams * self.batch * self.length / self.accumulation / float(split)


def executed_flops(load: Load) -> float:
    """FLOPs of a step, recomputation by the remat policy and by fused attention kernels included, left out what is not computed."""
    others = 3.0 * (load.length * other_products(load.spec, load.head_share, load.streams) + load.times * time_products(load.spec))
    layers = (load.spec.effective_depth - 1) * layer_flops(load) + layer_flops(load, noisy=load.noisy_last)
    return load.passes * load.batch * (layers + others)


def layer_flops(load: Load, noisy: bool = False) -> float:
    """FLOPs of one layer for one row, forward and backward; noisy: of one that computes the states of the first stream alone.

    Matmuls with weights: 3 x forward, and under "full" once more all but the last, whose result no gradient requires, unless a gate or a
    norm is behind it. Scores: 2 products forward, and again under "full" and "dots", which keep none; backward 4 in dense attention, 5 in
    cuDNN, 7 in splash attention, whose kernels for queries and for keys each compute the scores again.
    """
    spec, execution = load.spec, load.execution
    tokens = load.length * load.streams
    states = load.length if noisy else tokens
    keys = 4 * spec.width * spec.kv_heads * spec.head_dim  # and values, which are those of all tokens
    attention, last = spec.heads * spec.head_dim, 2 * spec.width * spec.ffn * states
    weights = states * layer_products(spec) + (tokens - states) * keys + load.times * modulation_products(spec)
    share = {"dense": load.tiled[noisy], "cudnn": 1.0, "splash": load.visible}[execution.attention]
    product = 2.0 * states * tokens * attention * share
    products = 2 * (1 + (execution.remat != "none")) + {"dense": 4, "cudnn": 5, "splash": 7}[execution.attention]
    read_again = spec.time_input == "adaln" or spec.norm_placement != "pre"
    again = weights - last * (not read_again) if execution.remat == "full" else 0
    return 3 * weights + again + products * product


def tiled_share(tiles: tuple[Tile, ...] | None, queries: int, keys: int) -> float:
    """Share of the scores of a row's first `queries` positions with all of its `keys` that lie in `tiles`; None = all of them."""
    if tiles is None:
        return 1.0
    pairs = sum((min(stop, queries) - start) * sum(end - first for first, end in seen) for (start, stop), seen in tiles if start < queries)
    return pairs / (queries * keys)


def visible_share(mask: Mask, length: int, block: int = SPLASH_BLOCK) -> float:
    """Share of the score blocks with at least one allowed entry; blocks of `block` positions, or the whole where it is shorter."""
    block = min(block, length)
    index = np.arange(length)
    seen, total = 0, 0
    for start in range(0, length, block):
        rows = np.asarray(mask.allowed(index[start : start + block, None], index[None, :])).any(axis=0)
        seen += int(np.add.reduceat(rows, np.arange(0, length, block)).astype(bool).sum())
        total += -(-length // block)
    return seen / total


def activation_bytes(load: Load, mesh: dict[str, int]) -> float:
    """Bytes on one chip that a microbatch keeps for the backward pass, all layers (see `models.denoiser` for what a policy saves).

    "full": the input of each layer; "dots": also the products with weights; "none": also normalised inputs, rotated heads, the gate and,
    in dense attention, the unnormalised weights of every score.
    """
    spec, tokens = load.spec, load.tokens(mesh)
    tensor = mesh[RULES["heads"][0]]
    heads = (spec.heads + 2 * spec.kv_heads) * spec.head_dim / tensor
    out, ffn = spec.heads * spec.head_dim / tensor, spec.ffn / tensor
    saved = spec.width
    if load.execution.remat != "full":
        saved += heads + 2 * spec.width + (spec.mlp_matrices - 1) * ffn
    if load.execution.remat == "none":
        saved += heads + out + 3 * spec.width + ffn
        if not load.fused:
            saved += spec.heads / tensor * load.length * load.streams
    return spec.effective_depth * tokens * saved * load.item


def memory_traffic(load: Load, mesh: dict[str, int], state_bytes: float) -> float:
    """Bytes that one chip moves to and from its memory in a step. `state_bytes`: its share of weights, averages and optimizer state."""
    spec, tokens = load.spec, load.tokens(mesh)
    tensor = mesh[RULES["heads"][0]]
    reads = 3 + (load.execution.remat == "full")
    used = load.parameters + (spec.effective_depth - spec.depth) * (layer_products(spec) + modulation_products(spec)) // 2
    gathered = used / tensor * load.item
    width = 6 * spec.width + (2 * spec.heads + 2 * spec.kv_heads) * spec.head_dim / tensor + spec.mlp_matrices * spec.ffn / tensor
    if not load.fused:
        width += 2 * spec.heads / tensor * load.length * load.streams
    activations = 2 * spec.effective_depth * tokens * width * load.item * reads
    return load.passes * load.accumulation * (gathered * (reads + 1) + activations) + 2 * state_bytes


def expected_collectives(load: Load, mesh: dict[str, int], shapes: Sequence[tuple[tuple, tuple]]) -> list[Collective]:
    """The collectives that this layout requires, before compilation.

    Stored weights are gathered in the compute type for the forward and, those of layers, again for the backward pass of each microbatch
    (the head's gradient is taken on the spot, the embedding's needs no table). Their float32 gradients are scattered back each time and,
    over the axes that do not split them, summed. Tensor-parallel layers sum the residual stream twice forward and twice backward (twice
    more under "full"); a split length gathers keys and values.

    Args:
      shapes: (shape, logical axes) of every weight.
    """
    found: list[Collective] = []

    def add(kind: str, axes: tuple[str, ...], count: float, size: float) -> None:
        axes = tuple(axis for axis in mesh if axis in axes and mesh[axis] > 1)
        if axes and count and size:
            found.append(Collective(kind, axes, group_of(axes, mesh), count, size))

    spec, layers = load.spec, load.passes * load.accumulation
    everywhere = (*RULES["batch"], *RULES["length"])
    for shape, axes in shapes:
        stacked, size = _used(shape, axes, mesh)
        stored = tuple(name for axis in axes if axis in GATHERED for name in RULES[axis])
        of_layers = bool(axes) and axes[0] == "layer"
        again, stacked = 1 + of_layers, spec.effective_depth if of_layers else stacked
        if load.head_ways(mesh) > 1 and load.is_head(axes):
            # Its shards are exchanged within a group that splits the classes, and a device's own classes gathered over the rest.
            stored = tuple(name for name in stored if name not in RULES["class"])
            size /= load.head_ways(mesh)
            for item in (load.item, 4):
                add("all-to-all", RULES["class"], layers, size / np.prod([mesh[name] for name in stored], initial=1) * item)
            add("all-reduce", RULES["class"], layers, load.head_share * load.tokens(mesh) / load.streams * spec.width * load.item)
        add("all-gather", stored, again * stacked * layers, size * load.item)
        add("reduce-scatter", stored, stacked * layers, size * 4)
        shard = size / np.prod([mesh[name] for name in stored], initial=1)
        rest = tuple(name for name in everywhere if name not in stored)
        add("all-reduce", rest, stacked * layers, float(shard) * 4)
    tokens = load.tokens(mesh)
    sums = spec.effective_depth * layers * (6 if load.execution.remat == "full" else 4)
    add("all-reduce", RULES["heads"], sums, tokens * spec.width * load.item)
    split = float(np.prod([mesh[name] for name in RULES["length"]]))
    keys = 2 * tokens * split * spec.kv_heads * spec.head_dim / mesh[RULES["kv_heads"][0]] * load.item
    add("all-gather", RULES["length"], spec.effective_depth * layers * (2 if load.execution.remat == "full" else 1), keys)
    add("reduce-scatter", RULES["length"], spec.effective_depth * layers, keys)
    return merge(found)


def _used(shape: tuple, axes: tuple, mesh: dict[str, int]) -> tuple[int, float]:
    """(layers in a stack, numbers of one of them on one chip when it is used: storage axes gathered, tensor-parallel ones split)."""
    stacked = shape[0] if axes and axes[0] == "layer" else 1
    split = [mesh[name] for axis in axes if axis and axis not in GATHERED for name in RULES[axis]]
    return stacked, float(np.prod(shape)) / float(np.prod(split, initial=1)) / stacked


def seconds_of(collective: Collective, topology: Topology, coords: np.ndarray) -> tuple[float, float]:
    """(seconds on the fast links, seconds on the network) of a collective in a step.

    Within a slice or node all bytes of the group pass; between s slices of m members each, a chip receives (s-1)/s of a 1/m share.
    """
    members = coords[list(collective.group)]
    fast, network, slices = topology.rates(members)
    n = len(collective.group)
    local = n / slices
    times = 2.0 if collective.kind == "all-reduce" else 1.0
    data = collective.count * collective.bytes * times
    if collective.kind == "collective-permute":
        return (data / fast, 0.0) if slices == 1 else (0.0, data / network)
    return data * (local - 1) / local / fast, data * (slices - 1) / slices / local / network


def crosses(collective: Collective, topology: Topology, coords: np.ndarray) -> str:
    """The name of the slowest wires that a collective uses: ICI or NVLink, DCN or network."""
    slices = topology.rates(coords[list(collective.group)])[2]
    return topology.chip.links if slices == 1 else topology.chip.wires


def step_times(flops_per_chip: float, bytes_per_chip: float, found: Sequence[Collective], topology: Topology, coords: np.ndarray) -> Times:
    """The parts of a step on one chip."""
    parts = [seconds_of(collective, topology, coords) for collective in found]
    chip: Chip = topology.chip
    fast, network = (float(sum(part[i] for part in parts)) for i in (0, 1))
    return Times(flops_per_chip / chip.peak, bytes_per_chip / chip.memory_rate, fast, network)


def mfu(work: Work, seconds: float, topology: Topology) -> float:
    """Model FLOPs (every score, no recomputation) as a share of the chips' peak in that time."""
    return work.model_flops / (seconds * topology.chips * topology.chip.peak)


def gathered_bytes(load: Load, mesh: dict[str, int], shapes: Sequence[tuple[tuple, tuple]]) -> float:
    """Working space beside activations and gradients, estimated: the largest layer's weights gathered twice (one in use, one being
    gathered), the head gathered with its float32 gradient, a chunk of logits three times (scores, probabilities, their gradient)."""
    layer = head = 0.0
    for shape, axes in shapes:
        stacked, size = _used(shape, axes, mesh)
        layer += size if axes and axes[0] == "layer" else 0.0
        head = max(head, size / (load.head_ways(mesh) if load.is_head(axes) else 1) if "vocab" in axes else 0.0)
    ways = load.head_ways(mesh)
    logits = chunk_rows(load.execution.head_chunk, load.spec.vocab, ways) * load.spec.vocab // ways
    return 2 * layer * load.item + head * (load.item + 4) + 3 * logits * 4
