"""The same text again and again: masked diffusion against its autoregressive twin, 100k to 1M unique tokens, up to 64 epochs.

dlmjax sweep plan configs/sweeps/repeated.py --output runs/repeated --set data=runs/novels27/data --flops-per-second 4e10
dlmjax sweep run runs/repeated --executor local

1.2e14 FLOPs in all: about 50 minutes at 4e10 FLOP/s, two runs at a time.  Each number of epochs is a run of its own, whose learning rate
decays.  A wider network overfits sooner: docs/scaling.md has --set sizes=64 --set epochs=4,16,64, 2.8e14 FLOPs, two hours.
Published: repetition is worth much less than new text beyond about 15 epochs of autoregression, about 500 of masked diffusion
(Prabhudesai et al. 2507.15857).
"""

from dlmjax.sweep.definition import Repeated, Sweep
from dlmjax.sweep.manifest import Validation
from dlmjax.sweep.rules import FixedBatch, RateLaw


def get_sweep(data="runs/novels27/data", sizes=(48,), unique=(100_000, 300_000, 1_000_000), epochs=(1, 4, 16, 64), seeds=(0,), batch=16):
    return Sweep(
        name="repeated",
        data=data,
        objectives={"masked": "../masked.py:tiny", "ar": "../autoregressive.py:tiny"},
        grid=Repeated(sizes=sizes, unique_tokens=unique, epochs=epochs, seeds=seeds),
        overrides=("data.batch=32",),  # the largest microbatch
        batch=FixedBatch(batch),
        rate=RateLaw(lr=1e-2, batch=4096),
        validation=Validation(windows=256),
    )
