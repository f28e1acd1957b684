"""Discrete flow matching (2407.15595): a path of mixtures from uniform noise to text, trained with cross-entropy.

dlmjax train --config configs/flow_matching.py --config.data.paths=data/corpus --workdir runs/flow_matching
dlmjax train --config configs/flow_matching.py:tiny --config.data.paths=data/char27 --workdir runs/flow_matching_tiny

With a masked source this is masked diffusion; with a uniform one the bound is not tight, even for the exact denoiser.
docs/benchmarks.md lists bits/char and step time of the tiny size with those of all processes.
"""

from dlmjax import config as config_lib


def get_config(size="gpt2_small"):
    config = config_lib.sized(size)
    config.model.time_input = "adaln"
    config.process.update(name="flow_matching(noise='uniform')", weighting="denoising(everywhere=True)")
    return config
