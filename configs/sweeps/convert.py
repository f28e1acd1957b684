"""Is it better to train autoregressively first, and convert the weights, than to train a diffusion model from scratch at equal FLOPs?

dlmjax sweep plan configs/sweeps/convert.py --output runs/convert/masked --set data=runs/novels27/data
dlmjax sweep run runs/convert/masked --jobs 1
python -m benchmarks.efficiency runs/convert/masked --against masked_scratch

Of a budget of 1e13 FLOPs (2,028 steps masked) a share of 0, 1/4, 1/2 or 3/4 is autoregressive, the rest the target: masked diffusion, or
blocks of 4 or of 16 tokens, which cost twice as much a step. --set targets=blocks4_seeded --output runs/convert/blocks4 plans another
target, --set budgets=4e13, seeds=1,2 or shares=0,0.5 other runs; where one output holds several targets or shares, plan them in one
command. docs/recipes.md has what was run of it.
"""

from dlmjax.config import TINY_TIMES
from dlmjax.errors import InputError
from dlmjax.sweep.definition import IsoFlop, Objective, Sweep
from dlmjax.sweep.manifest import Validation

# Named here, so that a variant means the same when the config that ships changes. Warm-up and average scale with a run's steps.
COMMON = {
    "data.length": "128",
    "data.batch": "32",
    "model.rope_base": "100.0",
    "optimizer.name": "muon",
    "optimizer.lr": "0.01",
    "optimizer.schedule": "wsd",
    "optimizer.warmup": "20",
    "process.weighting": "cross_entropy",
    "process.times": TINY_TIMES,
    "train.steps": "400",
    "train.ema": "0.95",
}
# Blocks and masked diffusion predict a token in place, or, as autoregression does, from the position before it: `shift`, and in blocks
# `seeded`, whose first tokens are autoregressive.
TARGETS = {
    "masked": {"process.name": "masked"},
    "masked_shift": {"process.name": "masked", "model.family": "qwen3(shift=True)"},
    "blocks4": {"process.name": "blocks(size=4)"},
    "blocks4_seeded": {"process.name": "blocks(size=4, seeded=True)"},
    "blocks16": {"process.name": "blocks(size=16)"},
    "blocks16_seeded": {"process.name": "blocks(size=16, seeded=True)"},
}
# FLOPs of a step of masked diffusion and of blocks, which read two streams, at width 64; one of autoregression is 1.
COSTS = {"masked": 0.995, "blocks": 2.474}


def get_sweep(data="runs/novels27/data", budgets=(1e13,), seeds=(0,), targets=("masked",), shares=(0, 0.25, 0.5, 0.75), windows=160):
    if unknown := set(targets) - set(TARGETS):
        raise InputError(f"targets has {sorted(unknown)[0]!r}; choose from {', '.join(TARGETS)}")
    return Sweep(
        name="convert",
        data=data,
        objectives={
            f"{target}_{f'ar{100 * share:.0f}' if share else 'scratch'}": Objective(
                "../masked.py:tiny", overrides=[f"{field}={value}" for field, value in _changes(target, share).items()]
            )
            for target in targets
            for share in shares
        },
        grid=IsoFlop(budgets=budgets, sizes=(64,), seeds=seeds),
        validation=Validation(windows=windows),
        checkpoints=1,
    )


def _changes(target, share):
    """The fields of a run that spends `share` of its FLOPs on autoregression first."""
    if not share:
        return COMMON | TARGETS[target] | {"optimizer.decay": "0.3"}
    if not 0 < share < 1:
        raise InputError(f"shares has {share!r}; give shares of the FLOPs, from 0 to below 1")
    # A step of autoregression has fewer FLOPs than one of the target, so its share of the steps is larger.
    steps = share / (share + (1 - share) / COSTS[TARGETS[target]["process.name"].partition("(")[0]])
    # The rate decays once, within the last phase.
    decay = min(0.3, 0.8 * (1 - steps))
    return COMMON | TARGETS[target] | {"process.before": f"autoregressive@{steps:.4f}", "optimizer.decay": f"{decay:.4f}"}
