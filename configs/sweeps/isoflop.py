"""An isoFLOP sweep for accelerators: five objectives on the same shapes, budgets 1e18 to 1e20, seven sizes around Quokka's optimum each.

dlmjax sweep plan configs/sweeps/isoflop.py --output runs/isoflop --set data=data/corpus --device h100:8
dlmjax sweep run runs/isoflop --executor slurm

175 runs, 5e21 FLOPs: 18 days on eight H100 at 40 % of their peak, which the plan says before anything is run.  Not run yet.
Without a corpus, --set data= --set vocab=50304 plans all the same.
The batch is 0.5M tokens at 10B and follows D^0.82; the rate, tuned at width 768, is transferred by CompleteP.
"""

from dlmjax.sweep.definition import IsoFlop, NearOptimum, Sweep
from dlmjax.sweep.manifest import Validation
from dlmjax.sweep.rules import BatchLaw, CompleteP, RateLaw

SERIES = ("autoregressive", "masked", "uniform", "hybrid", "blocks")


def get_sweep(data="data/corpus", budgets=(1e18, 3e18, 1e19, 3e19, 1e20), count=7, seeds=(0,), series=SERIES, vocab=0):
    return Sweep(
        name="isoflop",
        data=data,
        objectives={name: f"../{name}.py" for name in series},
        grid=IsoFlop(budgets=budgets, sizes=NearOptimum(count=count), seeds=seeds),
        overrides=(f"model.vocab={vocab}",),
        batch=BatchLaw(tokens=2**19, at=1e10),
        rate=RateLaw(lr=1e-3, batch=2**19),
        transfer=CompleteP(width=768, depth=12),
        validation=Validation(windows=1024),
        checkpoints=10,
    )
