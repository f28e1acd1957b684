"""A window of noise that slides over the row from right to left: between left-to-right and any order (2504.06416).

dlmjax train --config configs/hyperschedule.py --config.data.paths=data/corpus --workdir runs/hyperschedule
dlmjax train --config configs/hyperschedule.py:tiny --config.data.paths=data/char27 --workdir runs/hyperschedule_tiny

docs/benchmarks.md lists bits/char and step time of the tiny size with those of all processes.
"""

from dlmjax import config as config_lib


def get_config(size="gpt2_small"):
    config = config_lib.sized(size)
    config.process.times = "hyper(window=32)"
    return config
