"""A plan as text and as JSON: the page, the table of a search, the record, and advice for what does not fit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from dlmjax.parallel import RULES
from dlmjax.plan import roofline
from dlmjax.plan.audit import KINDS
from dlmjax.plan.topology import GIB

# Rows of a search that are printed; all are in the JSON record.
SHOWN = 20


def page(plan: Any, title: str) -> str:
    """The whole plan of one layout."""
    topology, load = plan.topology, plan.load
    source = f"compiled in {plan.seconds:.0f} s" if plan.memory.compiled else "analytic model, not compiled"
    lines = [
        f"{title}: {topology.chips} {topology.chip.name}, {_mesh(plan)}; {source}",
        f"{load.parameters / 1e9:.3g}B parameters; {load.batch} x {load.length} tokens a step in {load.accumulation} microbatch(es); "
        f"{load.execution.dtype}, remat {load.execution.remat}, attention {load.execution.attention}",
        "",
        *_memory(plan),
        "",
        *_compute(plan),
        "",
        *_collectives(plan),
        *_faults(plan),
        "",
        *_times(plan),
        "",
        "options",
        f"  {options(plan)}",
        "assumptions",
        *(f"  {line}" for line in roofline.ASSUMPTIONS),
    ]
    return "\n".join(lines)


def table(plans: Sequence[Any]) -> str:
    """One line a layout, best first."""
    lines = [f"{'mesh':40} {'remat':6} {'micro':>5} {'GiB/chip':>9} {'fits':4} {'step, s':>15} {'MFU':>9} {'bound':8} by"]
    for plan in plans[:SHOWN]:
        lines.append(
            f"{_mesh(plan):40} {plan.load.execution.remat:6} {plan.load.accumulation:5} {plan.memory.peak / GIB:9.2f} "
            f"{'yes' if plan.fits else 'no':4} {plan.times.overlapped:7.3g}-{plan.times.serial:<7.3g} "
            f"{100 * plan.mfu(worst=True):3.0f}-{100 * plan.mfu():.0f} % {_part(plan, plan.times.bound):8} "
            f"{'compiler' if plan.memory.compiled or plan.problem else 'model'}"
        )
    if len(plans) > SHOWN:
        lines.append(f"and {len(plans) - SHOWN} more (all are in --json FILE)")
    lines.append("step and MFU: fully overlapped to not overlapped at all; micro: microbatches a step; by: source of the memory figure")
    return "\n".join(lines)


def _mesh(plan: Any) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1) or "one chip"


def _part(plan: Any, part: str) -> str:
    chip = plan.topology.chip
    return {"fast": chip.links, "network": chip.wires, "memory": "HBM"}.get(part, part)


def _memory(plan: Any) -> list[str]:
    memory = plan.memory
    rows = [
        ("parameters", memory.parameters, "float32"),
        ("optimizer", memory.optimizer, "moments"),
        ("average", memory.average, "of the weights, train.ema"),
        ("activations", memory.activations, f"kept by remat {plan.load.execution.remat}, analytic"),
        ("temporaries", memory.temporaries, "gradients, gathered weights, logits, buffers"),
        ("peak", memory.peak, f"of {memory.capacity / GIB:.1f} GiB"),
    ]
    lines = ["memory of a chip, GiB", *(f"  {name:12} {size / GIB:9.3f}  {note}" for name, size, note in rows)]
    if plan.fits:
        return [*lines, "  fits"]
    reason = plan.problem or f"{memory.peak / GIB:.2f} GiB are more than {memory.capacity / GIB:.2f}"
    return [*lines, f"  does not fit: {reason}", *(f"  try {line}" for line in advice(plan))]


def _compute(plan: Any) -> list[str]:
    work = plan.work
    rows = (
        ("model", work.model_flops, "no recomputation, every score"),
        ("executed", work.executed_flops, "recomputed, less skipped blocks"),
    )
    lines = ["FLOPs", *(f"  {name:8} {flops:.3e} a step, {flops / work.tokens:.3e} a token ({note})" for name, flops, note in rows)]
    if plan.layer_flops is not None:
        dense = dataclasses.replace(plan.load, execution=dataclasses.replace(plan.load.execution, attention="dense"))
        ours = roofline.layer_flops(dense)
        lines.append(f"  one layer and row, dense attention: {ours:.3e} here, {plan.layer_flops:.3e} by XLA's cost analysis on one device")
    return lines


def _collectives(plan: Any) -> list[str]:
    source = "in the compiled program" if plan.memory.compiled else "that this layout requires (analytic)"
    lines = [
        f"collectives {source}, per step and chip",
        f"  {'kind':19} {'axes':15} {'over':>5} {'count':>8} {'MiB each':>10} {'GiB received':>13}  wires",
    ]
    for found in plan.collectives[:12]:
        loop = "" if found.bounded else "  (in a loop whose number of trips depends on data: counted once)"
        lines.append(
            f"  {found.kind:19} {'+'.join(found.axes):15} {len(found.group):5} {found.count:8.0f} {found.bytes / 2**20:10.2f} "
            f"{found.received / GIB:13.3f}  {roofline.crosses(found, plan.topology, plan.coords)}{loop}"
        )
    rest = plan.collectives[12:]
    if rest:
        lines.append(f"  {len(rest)} smaller kinds, {sum(found.received for found in rest) / GIB:.3f} GiB together")
    return lines if plan.collectives else ["collectives: none"]


def _faults(plan: Any) -> list[str]:
    """The faults of the compiled program; without one, nothing."""
    if plan.faults is None:
        return []
    lines = [f"  {each.kind}: {each.what}, {each.bytes / 2**20:.1f} MiB, {each.count:.0f} times a step" for each in plan.faults[:SHOWN]]
    absent = ", ".join(kind for kind in KINDS if kind not in {each.kind for each in plan.faults})
    return ["", "faults of the compiled program", *lines, *([f"  none of: {absent}"] if absent else [])]


def _times(plan: Any) -> list[str]:
    times, work = plan.times, plan.work
    parts = ", ".join(f"{_part(plan, name)} {getattr(times, name):.4g}" for name in ("compute", "memory", "fast", "network"))
    return [
        f"roofline of a step, s: {parts}",
        f"  overlapped {times.overlapped:.4g} s, bound by {_part(plan, times.bound)}: MFU {100 * plan.mfu():.1f} %, "
        f"{work.tokens / times.overlapped / plan.topology.chips:,.0f} tokens/s/chip",
        f"  not overlapped {times.serial:.4g} s: MFU {100 * plan.mfu(worst=True):.1f} %, "
        f"{work.tokens / times.serial / plan.topology.chips:,.0f} tokens/s/chip",
    ]


def options(plan: Any) -> str:
    """Cost and savings of each `execution.remat`, from the counts; none of them is compiled here."""
    load = plan.load
    saved = {remat: roofline.activation_bytes(_remat(load, remat), plan.mesh) for remat in ("none", "dots", "full")}
    flops = {remat: roofline.executed_flops(_remat(load, remat)) for remat in saved}
    each = (f"{remat}: {saved[remat] / GIB:.3f} GiB kept, {flops[remat] / plan.work.model_flops:.2f}x model FLOPs" for remat in saved)
    return f"remat {'; '.join(each)} (--config.execution.remat)"


def advice(plan: Any) -> list[str]:
    """Changes of the config that make room, each with what it saves on a chip by the analytic count; the largest saving first."""
    load, memory, mesh = plan.load, plan.memory, plan.mesh
    found: list[tuple[float, str]] = []
    rows = load.batch // load.accumulation // (mesh[RULES["batch"][0]] * mesh[RULES["batch"][1]])
    if rows > 1 and load.batch % (2 * load.accumulation) == 0:
        found.append((memory.activations / 2, f"--config.train.accumulation={2 * load.accumulation} (half the microbatch)"))
    for remat in {"none": ("dots", "full"), "dots": ("full",), "full": ()}[load.execution.remat]:
        less = memory.activations - roofline.activation_bytes(_remat(load, remat), mesh)
        found.append((less, f"--config.execution.remat={remat} (more recomputation)"))
    if not load.fused:
        fused = "splash" if plan.topology.chip.kind == "tpu" else "cudnn"
        other = dataclasses.replace(load, execution=dataclasses.replace(load.execution, attention=fused))
        found.append(
            (
                memory.activations - roofline.activation_bytes(other, mesh),
                f"--config.execution.attention={fused} (scores never reach memory)",
            )
        )
    weights = RULES["embed"][0]
    if mesh[RULES["batch"][0]] > 1:
        found.append((memory.state / 2, f"--config.mesh.{weights}={2 * mesh[weights]} (weights and moments over twice the chips)"))
    found.sort(reverse=True)
    lines = [f"{change}: saves about {saved / GIB:.2f} GiB" for saved, change in found if saved > 0]
    if memory.state >= memory.capacity:
        chips = math.ceil(memory.state * plan.topology.chips / memory.capacity)
        lines.insert(0, f"more than {chips} of these chips: weights and optimizer alone are {memory.state / GIB:.2f} GiB on each")
    return lines or ["a topology with more chips or more memory a chip: weights, moments and one row are already split as far as they go"]


def _remat(load: roofline.Load, remat: str) -> roofline.Load:
    return dataclasses.replace(load, execution=dataclasses.replace(load.execution, remat=remat))


def as_json(plan: Any) -> dict:
    """The record of a plan; bytes, FLOPs and seconds."""
    memory, times = plan.memory, plan.times
    return {
        "topology": plan.topology.name,
        "chip": plan.topology.chip.name,
        "chips": plan.topology.chips,
        "slices": plan.topology.slices,
        "mesh": plan.mesh,
        "remat": plan.load.execution.remat,
        "attention": plan.load.execution.attention,
        "accumulation": plan.load.accumulation,
        "parameters": plan.load.parameters,
        "tokens_per_step": plan.work.tokens,
        "source": "compiler" if memory.compiled else "model",
        "compile_seconds": plan.seconds,
        "fits": plan.fits,
        "problem": plan.problem,
        "advice": [] if plan.fits else advice(plan),
        "options": [options(plan)],
        "memory_bytes": {**{field.name: getattr(memory, field.name) for field in dataclasses.fields(memory)}, "peak": memory.peak},
        "flops_per_step": {"model": plan.work.model_flops, "executed": plan.work.executed_flops},
        "flops_per_token": {"model": plan.work.model_flops / plan.work.tokens, "executed": plan.work.executed_flops / plan.work.tokens},
        "layer_flops_counted": plan.layer_flops,
        "collectives": [
            {
                "kind": found.kind,
                "axes": list(found.axes),
                "devices": len(found.group),
                "count": found.count,
                "bytes": found.bytes,
                "received_bytes": found.received,
                "wires": roofline.crosses(found, plan.topology, plan.coords),
                "bounded": found.bounded,
            }
            for found in plan.collectives
        ],
        "faults": None if plan.faults is None else [dataclasses.asdict(each) for each in plan.faults],
        "seconds": {**dataclasses.asdict(times), "overlapped": times.overlapped, "serial": times.serial},
        "bound": times.bound,
        "mfu": {"overlapped": plan.mfu(), "serial": plan.mfu(worst=True)},
        "assumptions": list(roofline.ASSUMPTIONS),
    }
