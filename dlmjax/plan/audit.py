"""Faults of a compiled training step that cost memory or time, found in its optimised HLO text.

logits              an array of logits for all positions of a chip: the head is meant to hold those of one chunk
float32 gather      weights gathered in float32 where the network computes in bfloat16: twice the traffic and memory
gathered activation an array that is no weight, gathered over devices that hold different rows: the compiler moves activations
                    (what it warns of as "involuntary full rematerialization")
parameter copy      a whole parameter copied in a step: the state is donated, and is meant to be updated in place
host transfer       data to or from the host within the step
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

import jax

from dlmjax.experiment import Experiment
from dlmjax.parallel import RULES
from dlmjax.parallel.sharding import GATHERED
from dlmjax.plan.collectives import SHAPE, Instruction, axes_of, group_of_instruction, parse, size_of, walk

KINDS = ("logits", "float32 gather", "gathered activation", "parameter copy", "host transfer")
# Arrays below this are scalars, norms and counters; they cost nothing that a plan could show.
SMALLEST = 2**20
_HOST_OPS = ("infeed", "outfeed")
_HOST_CALLS = re.compile(r'custom_call_target="([^"]*(?:callback|MoveToHost|MoveToDevice|HostCompute)[^"]*)"')
# Memory spaces of a layout: the host's, and the small ones on the chip, into which weights are fetched ahead of their use.
_HOST_SPACE, _ON_CHIP = "S(5)", re.compile(r"S\([1-46-9]\)")


@dataclasses.dataclass(frozen=True)
class StepShapes:
    """What a training step is made of, on one chip.

    Args:
      classes: classes of the logits on a chip, in each way that they may be split: all of them, and a device's own.
      positions: positions of a microbatch whose logits a chip computes.
      stored, used: shape of every weight as it is stored on a chip, and as the whole that a matmul uses, without the axis of layers.
      bfloat16: whether the network computes in bfloat16.
    """

    classes: tuple[int, ...]
    positions: int
    stored: tuple[tuple[int, ...], ...]
    used: tuple[tuple[int, ...], ...]
    bfloat16: bool


@dataclasses.dataclass(frozen=True)
class Finding:
    """One fault. kind: one of KINDS.  what: type, shape and operation.  bytes: of one execution.  count: executions in a step."""

    kind: str
    what: str
    bytes: float
    count: float


def step_shapes(experiment: Experiment) -> StepShapes:
    """The shapes of an experiment's step on its mesh."""
    network, partition, data = experiment.network, experiment.partition, experiment.config.data
    axes = jax.tree.leaves(network.axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
    stored, used = [], []
    for leaf, names in zip(jax.tree.leaves(network.abstract()), axes, strict=True):
        stored.append(partition.sharding(names).shard_shape(leaf.shape))
        whole = partition.sharding(tuple(None if name in GATHERED else name for name in names)).shard_shape(leaf.shape)
        used.append(whole[1:] if names and names[0] == "layer" else whole)
        if "vocab" in names:
            used.append(
                tuple(size // partition.ways("class") if name == "vocab" else size for size, name in zip(whole, names, strict=True))
            )
    rows = data.batch // experiment.config.train.accumulation
    vocab = experiment.process.vocab
    return StepShapes(
        classes=(vocab, vocab // partition.ways("class")),
        positions=rows * data.length // partition.ways("batch") // partition.ways("head_length"),
        stored=tuple(stored),
        used=tuple(used),
        bfloat16=network.execution.dtype == "bfloat16",
    )


def audit(text: str, shapes: StepShapes, mesh_shape: dict[str, int], smallest: int = SMALLEST) -> list[Finding]:
    """The faults of an optimised HLO module, the largest first; equal ones are added up.

    Args:
      text: `compiled.as_text()`.
      mesh_shape: sizes of the axes of the mesh that it was compiled for, in order.
      smallest: size in bytes from which an array counts; exchanges with the host always do.
    """
    computations, entry = parse(text)
    # What a fusion computes on the way is not an array in memory; the collectives of an overlapped chain are inside fusions, too.
    calls = [re.search(r"calls=%?([\w.\-]+)", each.rest) for every in computations.values() for each in every.instructions.values()]
    within = {id(each) for call in calls if call for each in computations[call[1]].instructions.values()}
    found: dict[tuple[str, str, float], float] = {}
    for body, instruction, _, trips, _ in walk(computations, entry):
        for dtype, dims in SHAPE.findall(instruction.shape):
            if size_of(dtype, dims) < smallest:
                kind = "host transfer" if _reaches_host(instruction) else None
            else:
                kind = _kind(instruction, dtype, dims, body == entry, shapes, mesh_shape)
            if kind and not (id(instruction) in within and kind in ("logits", "parameter copy")):
                key = (kind, f"{dtype}[{dims}] {instruction.op}", size_of(dtype, dims))
                found[key] = found.get(key, 0.0) + trips
    findings = [Finding(*key, count) for key, count in found.items()]
    return sorted(findings, key=lambda finding: -finding.bytes * finding.count)


def _kind(instruction: Instruction, dtype: str, dims: str, in_entry: bool, shapes: StepShapes, mesh_shape: dict[str, int]) -> str | None:
    """The fault that one array of an instruction's result shows; None for most."""
    op, rest = instruction.op, instruction.rest
    if _reaches_host(instruction):
        return "host transfer"
    sizes = tuple(int(size) for size in dims.split(","))
    if has_logits(sizes, shapes):
        return "logits"
    if op in ("all-gather", "all-gather-start"):
        if shapes.bfloat16 and dtype == "f32" and _is_one_of(sizes, shapes.used, parts=True):
            return "float32 gather"
        over = axes_of(group_of_instruction(rest, mesh_shape), mesh_shape)
        if set(over) & set(RULES["batch"]) and not _is_one_of(sizes, (*shapes.used, *shapes.stored), parts=True):
            return "gathered activation"
    copied = op in ("copy", "copy-start") and in_entry and not _ON_CHIP.search(instruction.shape)
    if copied and dtype == "f32" and sizes in shapes.stored:
        return "parameter copy"
    return None


def _reaches_host(instruction: Instruction) -> bool:
    asks = instruction.op in _HOST_OPS or "is_host_transfer=true" in instruction.rest or bool(_HOST_CALLS.search(instruction.rest))
    return asks or _HOST_SPACE in instruction.shape


def has_logits(sizes: tuple[int, ...], shapes: StepShapes) -> bool:
    """Whether an array has a class for every position of the chip."""
    if _is_one_of(sizes, (*shapes.used, *shapes.stored)):
        return False
    return any(size in shapes.classes and math.prod(sizes) // size >= shapes.positions for size in sizes)


def _is_one_of(sizes: tuple[int, ...], known: Sequence[tuple[int, ...]], parts: bool = False) -> bool:
    """Whether an array has the shape of a weight: in any order of its axes, axes of one left out; `parts`: or of a part of one axis."""
    plain = sorted(size for size in sizes if size != 1)
    for shape in known:
        other = sorted(size for size in shape if size != 1)
        if plain == other:
            return True
        rest = [list(plain), list(other)]
        for size in other:
            if size in rest[0]:
                rest[0].remove(size)
                rest[1].remove(size)
        if parts and len(plain) == len(other) and len(rest[0]) == len(rest[1]) == 1 and rest[1][0] % rest[0][0] == 0:
            return True
    return False
