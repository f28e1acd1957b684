"""The autoregressive baseline of masked.py: same network, data order, optimizer and steps; causal mask and exact likelihood.

dlmjax train --config configs/autoregressive.py --config.data.paths=data/corpus --workdir runs/autoregressive
dlmjax train --config configs/autoregressive.py:tiny --config.data.paths=data/char27 --workdir runs/autoregressive_tiny

Published for OpenWebText after 262B tokens: perplexity 17.54 (the baseline of MDLM 2406.07524, table 2).
docs/benchmarks.md lists bits/char and step time of the tiny size with those of all processes.
"""

from dlmjax import config as config_lib


def get_config(size="gpt2_small"):
    config = config_lib.sized(size)
    config.process.name = "autoregressive"
    return config
