"""Every batch with every learning rate at fixed training tokens: what the laws B*(D) and lr*(B) are fitted on.

dlmjax sweep plan configs/sweeps/batch_lr.py --output runs/batch_lr --set data=runs/novels27/data --flops-per-second 4e10
dlmjax sweep run runs/batch_lr --executor local

40 runs, 2.6e13 FLOPs: 11 minutes at 4e10 FLOP/s, two runs at a time.  For one of the larger configs name it, and its
corpus: --set config=../masked.py --set sizes=768 --set tokens=1e10 --set batches=128,256,512 --set lrs=1e-4,3e-4,1e-3.
"""

from dlmjax.sweep.definition import BatchRate, Sweep
from dlmjax.sweep.manifest import Validation


def get_sweep(
    data="runs/novels27/data",
    config="../masked.py:tiny",
    sizes=(32,),
    tokens=(1e6, 4e6),
    batches=(4, 8, 16, 32, 64),
    lrs=(2.5e-3, 5e-3, 1e-2, 2e-2),
    seeds=(0,),
):
    return Sweep(
        name="batch_lr",
        data=data,
        objectives={"model": config},
        grid=BatchRate(sizes=sizes, tokens=tokens, batches=batches, lrs=lrs, seeds=seeds),
        overrides=("data.batch=32",),  # the largest microbatch
        validation=Validation(windows=256),
    )
