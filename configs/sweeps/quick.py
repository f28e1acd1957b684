"""Four runs that show the whole way, from a plan to a fit: two objectives, two sizes, one budget.

dlmjax sweep plan configs/sweeps/quick.py --output runs/quick --set data=runs/demo/data
dlmjax sweep run runs/quick --executor local
"""

from dlmjax.sweep.definition import IsoFlop, Sweep
from dlmjax.sweep.manifest import Validation
from dlmjax.sweep.rules import FixedBatch


def get_sweep(data="runs/demo/data", budget=2e10, sizes=(16, 32)):
    return Sweep(
        name="quick",
        data=data,
        objectives={"masked": "../masked.py:tiny", "ar": "../autoregressive.py:tiny"},
        grid=IsoFlop(budgets=(budget,), sizes=sizes),
        overrides=("data.length=64",),
        batch=FixedBatch(8),
        validation=Validation(windows=32),
        checkpoints=2,
    )
