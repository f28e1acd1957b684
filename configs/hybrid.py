"""Mask noise with a share of uniform noise (GIDD 2503.04482): the denoiser can also correct revealed tokens.

dlmjax train --config configs/hybrid.py --config.data.paths=data/corpus --workdir runs/hybrid
dlmjax train --config configs/hybrid.py:tiny --config.data.paths=data/char27 --workdir runs/hybrid_tiny

Trained with the paper's dynamic weights, tiny with the cross-entropy of all tokens; neither is a bound, and reported
likelihoods are.  p_uniform=0 is masked diffusion.
docs/benchmarks.md lists bits/char and step time of the tiny size with those of all processes.
"""

from dlmjax import config as config_lib


def get_config(size="gpt2_small"):
    config = config_lib.sized(size)
    config.model.time_input = "adaln"
    config.process.update(name="hybrid(p_uniform=0.2)", weighting="dynamic")
    if size == "tiny":
        config.process.update(weighting="denoising(everywhere=True)", times=config_lib.TINY_TIMES)
    return config
