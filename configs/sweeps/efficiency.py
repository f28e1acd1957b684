"""What the tiny masked config learns from equal FLOPs, with one change at a time: its defaults from before 2026-12, and today's.

dlmjax sweep plan configs/sweeps/efficiency.py --output runs/efficiency --set data=runs/novels27/data
dlmjax sweep run runs/efficiency --jobs 1
python -m benchmarks.efficiency runs/efficiency

Budgets of 1e12 and 8e12 FLOPs are 41 and 330 steps; --set budgets=3e13 has 1239.  Finalists with further seeds: --set seeds=1,2 --set
variants=before,cross_entropy,after.  docs/efficiency.md has the table.
"""

from dlmjax.errors import InputError
from dlmjax.sweep.definition import IsoFlop, Objective, Sweep
from dlmjax.sweep.manifest import Validation

# The defaults of `masked.py:tiny` from before 2026-12.
BEFORE = {
    "process.weighting": "",
    "process.times": "stratified",
    "model.rope_base": "10000.0",
    "optimizer.schedule": "cosine",
    "optimizer.decay": "0.2",
    "train.ema": "0.98",
}
CE = {"process.weighting": "cross_entropy"}
BELL = "beta(a=3.0,b=5.0,flat=0.1{})"
RATE = {"optimizer.schedule": "wsd", "optimizer.decay": "0.3", "train.ema": "0.95"}
ROPE = {"model.rope_base": "100.0"}
TIMES = {"process.times": BELL.format(",corrected=False")}
# What differs from BEFORE.
FROM_BEFORE = {
    "before": {},
    "no_clip": {"optimizer.clip": "0.0"},
    "power": {"process.times": "power(exponent=0.5)"},
    "bell": {"process.times": BELL.format("")},
    "complementary": {"process.name": "masked(complementary=True)"},
    "count": {"process.name": "masked_count"},
    "capped": {"process.weighting": "capped(cap=5.0)"},
    "annealed": {"process.weighting": "annealed(start=cross_entropy,begin=0.0,end=1.0)"},
    "cross_entropy": CE,
    "cross_entropy_no_clip": CE | {"optimizer.clip": "0.0"},
    "cross_entropy_count": CE | {"process.name": "masked_count"},
    "cross_entropy_bell": CE | {"process.times": BELL.format("")},
    "cross_entropy_bell_uncorrected": CE | TIMES,
    "cross_entropy_adamw": CE | {"optimizer.name": "adamw", "optimizer.lr": "0.006"},
    "cross_entropy_rope": CE | ROPE,
    "cross_entropy_wsd": CE | RATE,
    "cross_entropy_ar_first": CE | {"process.before": "autoregressive@0.2", "model.family": "qwen3(shift=True)"},
    "cross_entropy_blocks_first": CE | {"process.before": "blocks(size=4)@0.1,blocks(size=16)@0.2"},
}
# What differs from today's defaults: what each of their parts adds to the others, and rates.
FROM_AFTER = {
    "after": {},
    "after_bound": {"process.weighting": "", "process.times": "stratified"},
    "after_rates": {name: BEFORE[name] for name in ("optimizer.schedule", "optimizer.decay", "train.ema")},
    "after_rope": {"model.rope_base": BEFORE["model.rope_base"]},
    "after_lr_half": {"optimizer.lr": "0.005"},
    "after_lr_double": {"optimizer.lr": "0.02"},
}


def get_sweep(data="runs/novels27/data", budgets=(1e12, 8e12), seeds=(0,), variants=(), windows=160):
    changes = {name: BEFORE | change for name, change in FROM_BEFORE.items()} | FROM_AFTER
    if unknown := set(variants) - set(changes):
        raise InputError(f"variants has {sorted(unknown)[0]!r}; choose from {', '.join(changes)}")
    return Sweep(
        name="efficiency",
        data=data,
        objectives={
            name: Objective("../masked.py:tiny", overrides=[f"{field}={value}" for field, value in change.items()])
            for name, change in changes.items()
            if not variants or name in variants
        },
        grid=IsoFlop(budgets=budgets, sizes=(128,), seeds=seeds),
        validation=Validation(windows=windows),
        checkpoints=1,
    )
