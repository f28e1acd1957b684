"""Masked diffusion (MDLM 2406.07524) at GPT-2 small's size, 512 windows of 1024 a step; or tiny, for two CPU cores.

dlmjax train --config configs/masked.py --config.data.paths=data/corpus --workdir runs/masked
dlmjax train --config configs/masked.py:tiny --config.data.paths=data/char27 --workdir runs/masked_tiny    # 8.5e12 FLOPs

Published for OpenWebText (perplexity bound): MDLM 23.21 after 262B tokens (table 2) where the autoregressive baseline has 17.54; on its
validation set MD4 22.13, GenMD4 21.80 (2406.04329, table 5).
docs/benchmarks.md lists bits/char and step time of the tiny size with those of all processes, docs/efficiency.md what it is trained with.
"""

from dlmjax import config as config_lib


def get_config(size="gpt2_small"):
    config = config_lib.sized(size)
    # The minimiser is that of the bound, which is logged beside it, and is found with fewer FLOPs (2602.15014; tiny: docs/efficiency.md).
    config.process.weighting = "cross_entropy"
    if size == "tiny":
        config.process.times = config_lib.TINY_TIMES
    return config
