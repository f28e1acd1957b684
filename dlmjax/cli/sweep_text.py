"""The table of a planned sweep: a line per run, totals, refused sweep points, and the assumptions of the figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlmjax.fit import enough
from dlmjax.plan.topology import GIB
from dlmjax.sweep.definition import short
from dlmjax.sweep.ladder import Shape
from dlmjax.sweep.manifest import PlannedRun, SweepPlan
from dlmjax.sweep.planning import TOLERANCE, Device, Refusal

_HEAD = (
    f"{'depth x width':>13} {'heads':>7} {'ffn':>6} {'params':>7} {'non-emb':>7} {'tokens':>8} {'steps':>8} "
    f"{'batch':>6} {'lr':>8} {'FLOPs':>9} {'off':>6} {'unique':>8} {'epochs':>7} {'time':>8}"
)
# Prefixes of the values of a sweep point; the width has a column of its own.
_PREFIXES = {"budget": "", "unique_tokens": "u", "epochs": "e", "tokens": "d", "batch": "b", "lr": "lr", "weights": "m", "seed": "s"}


def table(plan: SweepPlan, refused: Sequence[Refusal], device: Device) -> str:
    """The whole plan as text."""
    capacity = device.topology.chip.memory if device.topology else None
    lines = [f"sweep {plan.name}: {len(plan.runs)} runs of {len({run.series for run in plan.runs})} objectives", ""]
    points = [(run.series, point_text(run.cell)) for run in plan.runs]
    points += [(refusal.objective, point_text(refusal.point)) for refusal in refused]
    wide, long = (max(len(text) for text in texts) for texts in zip(("objective", "point"), *points, strict=True))
    lines.append(f"{'objective':{wide}} {'point':{long}} {_HEAD}" + (f" {'GiB/chip':>9}" if capacity else ""))
    lines += [f"{run.series:{wide}} {point_text(run.cell):{long}} {_line(run, capacity)}" for run in plan.runs]
    lines += ["", *_totals(plan.runs)]
    if refused:
        lines += [
            "",
            f"refused: {len(refused)} sweep points whose whole steps are not within {100 * TOLERANCE:.0f} % of their FLOPs or tokens",
        ]
        lines += [
            f"  {refusal.objective:{wide}} {point_text(refusal.point):{long}} w{refusal.point['width']}: {refusal.reason}"
            for refusal in refused
        ]
    return "\n".join([*lines, "", *_notes(plan, capacity, device)])


def point_text(point: dict[str, Any]) -> str:
    """The values of a sweep point without the width: `1e12 s0`."""
    values = {name: "_".join(map(short, value)) if isinstance(value, list) else short(value) for name, value in point.items()}
    return " ".join(prefix + values[name] for name, prefix in _PREFIXES.items() if name in values)


def duration(seconds: float | int | None) -> str:
    """42 s, 3.1 min, 2.5 h, 12.0 d; "-" where it is not known."""
    if seconds is None:
        return "-"
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / size:.{0 if unit == 's' and seconds >= 10 else 1}f} {unit}"
    return f"{seconds / 86_400:.1f} d"


def _line(run: PlannedRun, capacity: float | None) -> str:
    config, epochs = run.config, f"{run.epochs:.2f}{'*' if _again(run) else ' '}"
    shape = Shape(**{name: config[f"model.{name}"] for name in Shape.__dataclass_fields__})
    heads = f"{shape.heads}" if shape.heads == shape.kv_heads else f"{shape.heads}/{shape.kv_heads}"
    budget = run.cell.get("budget")
    off = f"{100 * (run.flops / budget - 1):+.1f} %" if budget else ""
    line = (
        f"{f'{shape.depth} x {shape.width}':>13} {heads:>7} {shape.ffn:6} "
        f"{_count(run.parameters):>7} {_count(run.non_embedding):>7} {_count(run.tokens):>8} {config['train.steps']:8,} "
        f"{config['data.batch']:6,} "
        f"{config['optimizer.lr']:8.3g} {run.flops:9.3g} {off:>6} {_count(run.unique_tokens):>8} {epochs:>7} "
        f"{duration(run.expected_seconds):>8}"
    )
    if capacity and run.peak_bytes is not None:
        line += f" {run.peak_bytes / GIB:9.2f}{'' if run.peak_bytes <= capacity else ' does not fit'}"
    return line


def _totals(runs: Sequence[PlannedRun]) -> list[str]:
    """One line an objective, and one of all."""
    groups = {name: [run for run in runs if run.series == name] for name in dict.fromkeys(run.series for run in runs)}
    if len(groups) > 1:
        groups["all"] = list(runs)
    lines = []
    for name, members in groups.items():
        known = [run.expected_seconds for run in members if run.expected_seconds is not None]
        tokens = _count(sum(run.tokens for run in members))
        lines.append(
            f"{name:14} {len(members)} runs, {sum(run.flops for run in members):.3g} FLOPs, {tokens} tokens, "
            f"{duration(sum(known) if known else None)}{f' ({sum(known) / 3600:.3g} h)' if known else ''}"
        )
    return lines


def _notes(plan: SweepPlan, capacity: float | None, device: Device) -> list[str]:
    validation = f"every run ends with {plan.validation}"
    notes = [
        "FLOPs: model FLOPs, forward and backward, attention and head included; off: of the run's whole steps against its budget",
        f"time: {device.text}; one run after another, compilation and validation not counted",
        validation,
        *enough.warnings(plan.runs),
    ]
    repeated = [run for run in plan.runs if _again(run)]
    if repeated:
        most = max(repeated, key=lambda run: run.epochs)
        notes.append(f"* {len(repeated)} runs see their corpus more than once, at most {most.epochs:.2f} times ({most.id})")
    if not all(run.config["data.paths"] for run in plan.runs):
        notes.append("no corpus is named: unique tokens and epochs are as if there were always more text; the runs require data=DIR")
    if capacity:
        over = sum(run.peak_bytes is not None and run.peak_bytes > capacity for run in plan.runs)
        fit = f"{over} runs do not fit" if over else "every run fits"
        notes.append(f"GiB/chip: the analytic model of `dlmjax plan` on {device.topology.name}, {capacity / GIB:.1f} GiB a chip; {fit}")
    return notes


def _again(run: PlannedRun) -> bool:
    """Whether a run sees its corpus more than once, by more than the rounding to whole steps."""
    return run.epochs > 1 + TOLERANCE


def _count(number: float | int) -> str:
    """853k, 1.34M, 5.67B."""
    for size, unit in ((1, ""), (1e3, "k"), (1e6, "M"), (1e9, "B")):
        if float(f"{number / size:.3g}") < 1000:
            return f"{number / size:.3g}{unit}"
    return f"{number / 1e12:.3g}T"
