"""The collectives of a compiled program, read from its HLO text: kind, mesh axes, how often a step runs them, bytes.

Facts about XLA's text for TPU (jaxlib 0.10) that the count depends on:
  - a collective inside a loop runs once for each trip; TPU programs carry no trip count, but the loop's condition compares a counter
    with a constant and its body adds a constant to it (loops whose bound is data are counted once and named);
  - an overlapped all-gather is cut into a chain of fusions which all repeat the instruction: one channel, one collective;
  - a gradient sum that each device keeps a shard of is a fusion named all-reduce-scatter (v5e), or a loop of collective-permutes beside the
    matmul (v5p, "windowed"), and only sometimes an instruction reduce-scatter;
  - a program for several slices is the program of one; what crosses the network is a recv of the multi-slice runtime, with its kind and
    the slices in its attributes, which each chip does for its own piece;
  - groups are written as lists, as an iota `[4,2]<=[8]T(1,0)`, or as axes of a mesh
    `mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}`.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from typing import Any

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "bf16": 16, "f16": 16, "s16": 16, "u16": 16, "f32": 32, "s32": 32, "u32": 32}
_BITS |= {"f64": 64, "s64": 64, "u64": 64, "f8e4m3fn": 8, "f8e5m2": 8}

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?(\S+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?(\S+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|(?:true|false)_computation|branch_computations|called_computations|async_execution)="
    r"\{?((?:%?[\w.\-]+(?:, )?)+)"
)
SHAPE = re.compile(r"\b([a-z]+\d*(?:e\dm\d(?:fn)?)?)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a step.

    Args:
      kind: one of KINDS.
      axes: mesh axes over which it runs.
      group: positions in the mesh's device order of one of its groups.
      count: executions a step and device.
      bytes: bytes of one execution: the whole array, as gathered or before it is scattered; of a permute, the bytes that one device sends.
      bounded: False where the number of trips of a loop around it depends on data; such a loop counts as one trip.
    """

    kind: str
    axes: tuple[str, ...]
    group: tuple[int, ...]
    count: float
    bytes: float
    bounded: bool = True

    @property
    def received(self) -> float:
        """Bytes that each device receives in a step: (n-1)/n of a gathered or scattered array, twice that for a sum that all keep."""
        n = len(self.group)
        share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0}.get(self.kind, (n - 1) / n)
        return self.count * self.bytes * share


@dataclasses.dataclass
class _Computation:
    """One computation of the text: its instructions by name, and the last one."""

    name: str
    instructions: dict[str, Instruction]
    root: str = ""


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    shape: str
    op: str
    rest: str


def read_collectives(text: str, mesh_shape: dict[str, int]) -> list[Collective]:
    """The collectives of an optimised HLO module over more than one device, largest traffic first.

    Args:
      text: `compiled.as_text()`.
      mesh_shape: axis sizes of the mesh it was compiled for, in order; partition ids are positions in that mesh.
    """
    computations, entry = parse(text)
    # Per loop body, channel and shape: chains of fusions repeat one collective, but all those of `shard_map` share a channel.
    seen: dict[tuple[str, str], Collective] = {}
    for body, instruction, scattered, trips, bounded in walk(computations, entry):
        found = _collective(instruction, scattered, mesh_shape, trips, bounded)
        if found is None:
            continue
        channel = re.search(r"channel_id=(\d+)", instruction.rest)
        seen.setdefault((body, f"{found.kind} {found.bytes} {channel[1]}" if channel else instruction.name), found)
    return merge(list(seen.values()))


def merge(found: list[Collective]) -> list[Collective]:
    """Adds up equal collectives; largest traffic first."""
    counts: dict[Collective, float] = collections.defaultdict(float)
    for collective in found:
        counts[dataclasses.replace(collective, count=0.0)] += collective.count
    merged = [dataclasses.replace(collective, count=count) for collective, count in counts.items()]
    return sorted(merged, key=lambda collective: -collective.received)


def parse(text: str) -> tuple[dict[str, _Computation], str]:
    """All computations by name, and the entry's name."""
    computations: dict[str, _Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if not line.startswith(" "):
            header = _COMPUTATION.match(line)
            if header:
                current = computations[header[1]] = _Computation(header[1], {})
                entry = header[1] if line.startswith("ENTRY") else entry
            continue
        found = _INSTRUCTION.match(line) if current else None
        if found:
            current.instructions[found[1]] = Instruction(*found.groups())
            if line.lstrip().startswith("ROOT"):
                current.root = found[1]
    return computations, entry


def walk(computations: dict[str, _Computation], entry: str):
    """(loop body, instruction, inside an all-reduce-scatter fusion, executions, bounded) of every instruction reached from the entry."""
    todo: list[tuple[str, str, float, bool]] = [(entry, entry, 1.0, True)]
    done = set()
    while todo:
        name, body, trips, bounded = todo.pop()
        if name not in computations or (name, body) in done:
            continue
        done.add((name, body))
        scattered = "all-reduce-scatter" in name
        for instruction in computations[name].instructions.values():
            yield body, instruction, scattered, trips, bounded
            if instruction.op == "while":
                condition, inner = (re.search(rf"{what}=%?([\w.\-]+)", instruction.rest)[1] for what in ("condition", "body"))
                times = _trips(computations, condition, inner, instruction.rest)
                todo.append((inner, inner, trips * (times or 1), bounded and times is not None))
            else:
                for group in _CALLED.findall(instruction.rest):
                    todo += [(called.strip().lstrip("%"), body, trips, bounded) for called in group.split(",")]


def _trips(computations: dict[str, _Computation], condition: str, body: str, rest: str) -> int | None:
    """Trips of a loop from zero up to a constant; None where the bound is not a constant."""
    known = re.search(r"known_trip_count[^\d]*(\d+)", rest)
    if known:
        return int(known[1])
    inside = computations[condition].instructions
    root = inside.get(computations[condition].root)
    if root is None or root.op != "compare" or "direction=LT" not in root.rest:
        return None
    counter, bound = (inside.get(name) for name in _operands(root)[:2])
    limit = _constant(bound)
    index = re.search(r"index=(\d+)", counter.rest) if counter else None
    if limit is None or index is None:
        return None
    return math.ceil(limit / _step(computations[body], int(index[1])))


def _step(body: _Computation, index: int) -> int:
    """What one trip adds to entry `index` of the loop's tuple; 1 where the text does not show it."""
    root = body.instructions.get(body.root)
    operands = _operands(root) if root else []
    added = body.instructions.get(operands[index]) if index < len(operands) else None
    while added is not None and added.op in ("copy", "bitcast"):
        added = body.instructions.get(_operands(added)[0])
    if added is None or added.op != "add":
        return 1
    steps = [_constant(body.instructions.get(name)) for name in _operands(added)]
    return max([step for step in steps if step] or [1])


def _operands(instruction: Instruction) -> list[str]:
    return re.findall(r"%([\w.\-]+)", instruction.rest.split(")", 1)[0])


def _constant(instruction: Instruction | None) -> int | None:
    if instruction is None or instruction.op != "constant":
        return None
    value = re.match(r"(-?\d+)\)", instruction.rest)
    return int(value[1]) if value else None


def _collective(instruction: Instruction, scattered: bool, mesh_shape: dict[str, int], trips: float, bounded: bool) -> Collective | None:
    """The instruction as a collective, None where it is something else or runs within one device."""
    if instruction.op == "recv":
        return _between_slices(instruction, mesh_shape, trips, bounded)
    kind = instruction.op.removesuffix("-start")
    if kind not in KINDS:
        return None
    group = group_of_instruction(instruction.rest, mesh_shape)
    if len(group) < 2:
        return None
    shapes = [size_of(*shape) for shape in SHAPE.findall(instruction.shape)]
    if instruction.op == "collective-permute-start" or (instruction.op.endswith("-start") and kind == "all-gather"):
        shapes = [max(shapes)]  # a pair of what goes in and what comes out, and two words of synchronisation
    whole = float(sum(shapes)) * (len(group) if kind == "reduce-scatter" else 1)
    kind = "reduce-scatter" if scattered and kind == "all-reduce" else kind
    return Collective(kind, axes_of(group, mesh_shape), group, trips, whole, bounded)


def _between_slices(instruction: Instruction, mesh_shape: dict[str, int], trips: float, bounded: bool) -> Collective | None:
    """A transfer of the multi-slice runtime: every chip with the chips of the same position in the other slices."""
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.rest)
    slices = re.search(r'_xla_megascale_target="\{([^}]*)\}', instruction.rest)
    if not kind or not slices:
        return None
    # "1,2" or "1:4": slices are numbered from 1.
    count = sum(int(part.split(":")[-1]) - int(part.split(":")[0]) + 1 for part in slices[1].split(","))
    chips = math.prod(mesh_shape.values())
    group = tuple(range(0, chips, chips // count))
    name = {"ONE_TO_ONE": "collective-permute"}.get(kind[1], kind[1].lower().replace("_", "-"))
    return Collective(name, axes_of(group, mesh_shape), group, trips, size_of(*SHAPE.findall(instruction.shape)[0]), bounded)


def size_of(dtype: str, dims: str) -> float:
    return math.prod(int(size) for size in dims.split(",") if size) * _BITS.get(dtype, 0) / 8


def group_of_instruction(rest: str, mesh_shape: dict[str, int]) -> tuple[int, ...]:
    """The first group of an instruction, as positions in the mesh."""
    pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)+)\}", rest)
    if pairs:
        return _ring(re.findall(r"\{(\d+),(\d+)\}", pairs[1]))
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", rest)
    if listed:
        return tuple(int(number) for number in listed[1].split(","))
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)
    if iota:
        shape, base, order = (_numbers(text) if text else None for text in iota.groups())
        numbers = np.arange(math.prod(base)).reshape(base)
        return tuple(int(n) for n in (numbers.transpose(order) if order else numbers).reshape(shape)[0])
    named = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, ?device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? ?\{([^}]*)\}", rest)
    if named:
        mesh = {axis: int(size) for axis, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        ids = np.arange(math.prod(mesh.values()))
        if named[2]:
            ids = ids.reshape(_numbers(named[2])).transpose(_numbers(named[3]) if named[3] else None).ravel()
        over = re.findall(r"'([^']+)'", named[4])
        pieces = ids.reshape(list(mesh.values()))[tuple(slice(None) if axis in over else 0 for axis in mesh)]
        return tuple(int(n) for n in pieces.ravel())
    if "replica_groups={}" in rest:
        return tuple(range(math.prod(mesh_shape.values())))
    # Leaving a collective out would make a step look faster than it is.
    raise ValueError(f"groups of devices are written in a form that is not known here: {rest[:200]}")


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _ring(pairs: list[tuple[str, str]]) -> tuple[int, ...]:
    """The devices that a chain of moves joins with device 0's."""
    neighbours: dict[int, set[int]] = collections.defaultdict(set)
    for source, target in pairs:
        neighbours[int(source)].add(int(target))
        neighbours[int(target)].add(int(source))
    reached, todo = set(), [min(neighbours)]
    while todo:
        device = todo.pop()
        if device not in reached:
            reached.add(device)
            todo.extend(neighbours[device])
    return tuple(sorted(reached))


def axes_of(group: tuple[int, ...], mesh_shape: dict[str, int]) -> tuple[str, ...]:
    """The mesh axes along which the members of a group differ."""
    coordinates = np.asarray(np.unravel_index(np.asarray(group), list(mesh_shape.values())))
    return tuple(axis for axis, row in zip(mesh_shape, coordinates, strict=True) if len(np.unique(row)) > 1)


def group_of(axes: tuple[str, ...], mesh_shape: dict[str, int]) -> tuple[int, ...]:
    """The group of device 0 along mesh axes, as positions in the mesh."""
    numbers: Any = np.arange(math.prod(mesh_shape.values())).reshape(list(mesh_shape.values()))
    return tuple(int(n) for n in numbers[tuple(slice(None) if axis in axes else 0 for axis in mesh_shape)].ravel())
