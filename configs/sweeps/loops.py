"""Do looped layers beat more layers? Masked diffusion, its whole stack run twice, and one early layer run three times, at equal FLOPs.

dlmjax sweep plan configs/sweeps/loops.py --output runs/loops --set data=runs/novels27/data --flops-per-second 4e10
dlmjax sweep run runs/loops --executor local

Two comparisons in one grid. At equal width a looped network has the parameters of the plain one, and fewer steps for the same FLOPs.
At an equal budget the best width of each is compared: the plain ladder spends its FLOPs on width and depth, the looped ones on runs.
Three objectives, two budgets and three sizes (3, 4 and 4 layers) each: 18 runs, 1.8e13 FLOPs. Not run yet.
"""

from dlmjax.sweep.definition import IsoFlop, Objective, Sweep
from dlmjax.sweep.manifest import Validation
from dlmjax.sweep.rules import FixedBatch, RateLaw

FAMILIES = {"plain": "qwen3", "whole": "qwen3(loops=2)", "early": "qwen3(loops=3, looped=(1, 2))"}


def get_sweep(data="runs/novels27/data", budgets=(5e11, 1.5e12), sizes=(64, 96, 128), seeds=(0,), batch=16):
    return Sweep(
        name="loops",
        data=data,
        objectives={name: Objective("../masked.py:tiny", overrides=(f"model.family={family}",)) for name, family in FAMILIES.items()},
        grid=IsoFlop(budgets=budgets, sizes=sizes, seeds=seeds),
        overrides=("data.batch=32",),  # the largest microbatch
        batch=FixedBatch(batch),
        rate=RateLaw(lr=1e-2, batch=4096),
        validation=Validation(windows=256),
    )
