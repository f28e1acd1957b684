"""Masked diffusion (MDLM 2406.07524) at GPT-2 small's size, 512 windows of 1024 a step; or tiny, for two CPU cores.

dlmjax train --config configs/masked.py --config.data.paths=data/corpus --workdir runs/masked
dlmjax train --config configs/masked.py:tiny --config.data.paths=data/char27 --workdir runs/masked_tiny

Published for OpenWebText after a million steps (perplexity bound): MDLM 23.2, GenMD4 21.8; autoregressive 17.5.
docs/benchmarks.md has bits/char and time of the tiny one beside all other families.
"""

from dlmjax import config as config_lib


def get_config(size="gpt2_small"):
    config = config_lib.sized(size)
    return config
