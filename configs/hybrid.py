"""Mask noise with a share of uniform noise (GIDD 2503.04482): a denoiser that can also correct what stands there.

dlmjax train --config configs/hybrid.py --config.data.paths=data/corpus --workdir runs/hybrid
dlmjax train --config configs/hybrid.py:tiny --config.data.paths=data/char27 --workdir runs/hybrid_tiny

Trained with the paper's dynamic weights, no bound; the bound is reported.  p_uniform=0 is masked diffusion.
docs/benchmarks.md has bits/char and time of the tiny one beside all other families.
"""

from dlmjax import config as config_lib


def get_config(size="gpt2_small"):
    config = config_lib.sized(size)
    config.model.time_input = "adaln"
    config.process.update(name="hybrid(p_uniform=0.2)", weighting="dynamic")
    return config
