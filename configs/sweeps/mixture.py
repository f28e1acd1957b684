"""Every mixture of two corpora: what a law of mixtures (BiMix 2405.14908) is fitted on.

dlmjax sweep plan configs/sweeps/mixture.py --output runs/mixture --set data=data/books,data/code --flops-per-second 4e10
dlmjax sweep run runs/mixture --executor local

15 runs of one objective, 2.3e12 FLOPs: a minute at 4e10 FLOP/s, two runs at a time, and some for compiling and validating.
Both corpora are prepared with one tokenizer, and each has held-out text of its own.
"""

from dlmjax.sweep.definition import Mixture, Sweep
from dlmjax.sweep.manifest import Validation
from dlmjax.sweep.rules import FixedBatch, RateLaw

SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)


def get_sweep(
    data=("data/books", "data/code"), config="../masked.py:tiny", sizes=(32,), tokens=(2.5e5, 5e5, 1e6), shares=SHARES, seeds=(0,)
):
    return Sweep(
        name="mixture",
        data=data,
        objectives={"model": config},
        grid=Mixture(sizes=sizes, tokens=tokens, weights=tuple((share, 1 - share) for share in shares), seeds=seeds),
        overrides=("data.batch=32",),  # the largest microbatch
        batch=FixedBatch(16),
        rate=RateLaw(lr=1e-2, batch=4096),
        validation=Validation(windows=256),
    )
