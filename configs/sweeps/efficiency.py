"""What the tiny masked config learns from equal FLOPs, with one change at a time: from its defaults of two dates, and the shipped ones.

dlmjax sweep plan configs/sweeps/efficiency.py --output runs/efficiency --set data=runs/novels27/data
dlmjax sweep run runs/efficiency --jobs 1
python -m benchmarks.efficiency runs/efficiency

Budgets of 1e12 and 8e12 FLOPs are 41 and 330 steps of 32 windows; --set budgets=3e13 has 1239.  Finalists with further seeds:
--set seeds=1,2 --set variants=before,cross_entropy,after.  A rate that was tuned at one width, at two others: --set sizes=64,256
--set variants=after,after_completep.  docs/efficiency.md has the table.
"""

from dlmjax.errors import InputError
from dlmjax.sweep.definition import IsoFlop, Objective, Sweep
from dlmjax.sweep.manifest import Validation

# Named here, so that a variant means the same when the config that ships changes.
COMMON = {
    "data.batch": "32",
    "model.depth": "4",
    "model.width": "128",
    "model.head_dim": "32",
    "model.ffn": "384",
    "optimizer.lr": "0.01",
    "optimizer.warmup": "20",
    "train.steps": "400",
}
# The defaults of `masked.py:tiny` from before 2026-12.
BEFORE = COMMON | {
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
# Losses, times, rates and wavelengths of 2026-12 at the earlier shape: 350 steps of 32 windows are 8.5e12 FLOPs.
AFTER = COMMON | CE | TIMES | RATE | ROPE
# What differs from BEFORE.
FROM_BEFORE = {
    "before": {},
    "no_clip": {"optimizer.clip": "0.0"},
    "power": {"process.times": "power(exponent=0.5)"},
    "bell": {"process.times": BELL.format("")},
    # Second moments that `dlmjax interval` measured on the run "before" of 8e12 FLOPs.
    "importance": {"process.times": "importance(heights=(0.458,0.569,0.574,0.65,0.695,0.747,0.816,0.873,0.948,1.0))"},
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
    "cross_entropy_adamw_half": CE | {"optimizer.name": "adamw", "optimizer.lr": "0.003"},
    "cross_entropy_adamw_quarter": CE | {"optimizer.name": "adamw", "optimizer.lr": "0.0015"},
    "cross_entropy_rope": CE | ROPE,
    "cross_entropy_wsd": CE | RATE,
    "cross_entropy_ar_first": CE | {"process.before": "autoregressive@0.2", "model.family": "qwen3(shift=True)"},
    "cross_entropy_blocks_first": CE | {"process.before": "blocks(size=4)@0.1,blocks(size=16)@0.2"},
}
# What differs from AFTER: what each of its parts adds to the others, rates, and parts of other papers.
FROM_AFTER = {
    "after": {},
    "after_bound": {"process.weighting": "", "process.times": "stratified"},
    "after_rates": {name: BEFORE[name] for name in ("optimizer.schedule", "optimizer.decay", "train.ema")},
    "after_rope": {"model.rope_base": BEFORE["model.rope_base"]},
    "after_lr_half": {"optimizer.lr": "0.005"},
    "after_lr_double": {"optimizer.lr": "0.02"},
    # The first of the middle layers, and both, run twice: fewer steps at equal FLOPs (LoopMDM 2605.26106).
    "after_loop_early": {"model.family": "qwen3(loops=2, looped=(1, 2))"},
    "after_loop_middle": {"model.family": "qwen3(loops=2, looped=(1, 3))"},
    # One more forward pass, of all rows (PUMA 2602.10314) and of half of them (loopholing 2510.19304).
    "after_progressive": {"process.masks": "progressive(phases=8)"},
    "after_loopholing": {"process.self_condition": "0.5", "process.hint": "hidden"},
    "after_complementary": {"process.name": "masked(complementary=True)"},
    "after_count": {"process.name": "masked_count"},
    # The rate of another width follows from that of 128 channels and 4 layers (CompleteP 2505.01618); there it is "after" itself.
    "after_completep": {"model.completep_width": "128", "model.completep_depth": "4"},
}


def get_sweep(data="runs/novels27/data", budgets=(1e12, 8e12), seeds=(0,), variants=(), windows=160, sizes=(128,)):
    changes = {
        **{name: BEFORE | change for name, change in FROM_BEFORE.items()},
        **{name: AFTER | change for name, change in FROM_AFTER.items()},
        "shipped": {},  # at the shapes of the ladder, as all variants
    }
    if unknown := set(variants) - set(changes):
        raise InputError(f"variants has {sorted(unknown)[0]!r}; choose from {', '.join(changes)}")
    if sizes == (128,) and not variants:
        del changes["after_completep"]  # the width at which the rate was tuned: the same run as "after"
    return Sweep(
        name="efficiency",
        data=data,
        objectives={
            name: Objective("../masked.py:tiny", overrides=[f"{field}={value}" for field, value in change.items()])
            for name, change in changes.items()
            if not variants or name in variants
        },
        grid=IsoFlop(budgets=budgets, sizes=sizes, seeds=seeds),
        validation=Validation(windows=windows),
        checkpoints=1,
    )
