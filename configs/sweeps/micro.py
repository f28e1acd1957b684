"""An isoFLOP sweep for two CPU cores: masked diffusion against its autoregressive twin, four budgets x five sizes each.

dlmjax sweep plan configs/sweeps/micro.py --output runs/micro --set data=runs/novels27/data --flops-per-second 4e10
dlmjax sweep run runs/micro --executor local

1.7e14 FLOPs in all: about 70 minutes at 4e10 FLOP/s, two runs at a time, and some for compiling and validating.  At these sizes one
core makes 1e10 to 2.5e10, the narrowest the least (docs/scaling_plan.md).
The sizes, 14k to 443k parameters without embedding, are a factor of 30 apart, so that the best one is to be expected inside at every
budget for both objectives.
"""

from dlmjax.sweep.definition import IsoFlop, Sweep
from dlmjax.sweep.manifest import Validation
from dlmjax.sweep.rules import FixedBatch, RateLaw


def get_sweep(data="runs/novels27/data", budgets=(1e12, 2e12, 4e12, 1e13), sizes=(24, 32, 48, 64, 96), seeds=(0,), batch=16):
    return Sweep(
        name="micro",
        data=data,
        objectives={"masked": "../masked.py:tiny", "ar": "../autoregressive.py:tiny"},
        grid=IsoFlop(budgets=budgets, sizes=sizes, seeds=seeds),
        overrides=("data.batch=32",),  # the largest microbatch
        batch=FixedBatch(batch),
        rate=RateLaw(lr=1e-2, batch=4096),
        validation=Validation(windows=256),
    )
