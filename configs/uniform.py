"""Uniform noise (UDLM 2412.10193; Duo 2506.10892): tokens are resampled, so every position may change until the last step.

dlmjax train --config configs/uniform.py --config.data.paths=data/corpus --workdir runs/uniform
dlmjax train --config configs/uniform.py:tiny --config.data.paths=data/char27 --workdir runs/uniform_tiny

Published for OpenWebText after a million steps (perplexity bound): UDLM 27.4, Duo 25.2 (2506.10892, table 1).
docs/benchmarks.md lists bits/char and step time of the tiny size with those of all processes.
"""

from dlmjax import config as config_lib


def get_config(size="gpt2_small"):
    config = config_lib.sized(size)
    config.model.time_input = "adaln"
    config.process.name = "uniform"
    if size == "tiny":
        config.process.update(weighting="denoising(everywhere=True)", times=config_lib.TINY_TIMES)
    return config
