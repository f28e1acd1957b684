"""Which family is best at equal FLOPs: five objectives on the same shapes and budgets; for accelerators, or tiny, for two CPU cores.

dlmjax sweep plan configs/sweeps/isoflop.py --output runs/isoflop --set data=data/corpus --device h100:8
dlmjax sweep run runs/isoflop --executor slurm

175 runs, budgets 1e18 to 1e20 and seven sizes around Quokka's optimum each, 5e21 FLOPs: 18 days on eight H100 at 40 % of their peak,
which the plan says before anything is run.  Not run yet.  Without a corpus, --set data= --set vocab=50304 plans all the same.
The batch is 0.5M tokens at 10B and follows D^0.82; the rate, tuned at width 768, is transferred by CompleteP.

dlmjax sweep plan configs/sweeps/isoflop.py:tiny --output runs/families --set data=runs/my_text/data
dlmjax sweep run runs/families

45 runs, three budgets and three sizes each, 2.55e12 FLOPs: 8.4 minutes of processor time (docs/your_text.md).
"""

from dlmjax.errors import InputError
from dlmjax.sweep.definition import IsoFlop, NearOptimum, Objective, Sweep
from dlmjax.sweep.manifest import Validation
from dlmjax.sweep.rules import BatchLaw, CompleteP, FixedBatch, RateLaw

FAMILIES = ("autoregressive", "masked", "uniform", "hybrid", "blocks")
# At widths of 24 to 48 nearly all FLOPs would go into reading t at each token; a prefix reads it once in a row.
TINY_TIME = dict.fromkeys(("uniform", "hybrid"), ("model.time_input=prefix",))


def get_sweep(size="gpt2_small", data="data/corpus", budgets=(), count=7, seeds=(0,), series=FAMILIES, vocab=0, windows=0):
    common = {"data": data, "overrides": (f"model.vocab={vocab}",)}
    if size == "tiny":
        return Sweep(
            name="isoflop_tiny",
            objectives={name: Objective(f"../{name}.py:tiny", overrides=TINY_TIME.get(name, ())) for name in series},
            grid=IsoFlop(budgets=budgets or (2e10, 5e10, 1e11), sizes=(24, 32, 48), seeds=seeds),
            batch=FixedBatch(4),
            rate=RateLaw(lr=1e-2, batch=4096),
            validation=Validation(windows=windows or 64),
            checkpoints=1,
            **common,
        )
    if size != "gpt2_small":
        raise InputError(f"isoflop.py has no size {size!r}; give gpt2_small or tiny")
    return Sweep(
        name="isoflop",
        objectives={name: f"../{name}.py" for name in series},
        grid=IsoFlop(budgets=budgets or (1e18, 3e18, 1e19, 3e19, 1e20), sizes=NearOptimum(count=count), seeds=seeds),
        batch=BatchLaw(tokens=2**19, at=1e10),
        rate=RateLaw(lr=1e-3, batch=2**19),
        transfer=CompleteP(width=768, depth=12),
        validation=Validation(windows=windows or 1024),
        checkpoints=10,
        **common,
    )
