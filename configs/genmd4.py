"""GenMD4 (2406.04329): every token has a masking schedule of its own, learned with the network.

dlmjax train --config configs/genmd4.py --config.data.paths=data/corpus --workdir runs/genmd4
dlmjax train --config configs/genmd4.py:tiny --config.data.paths=data/char27 --workdir runs/genmd4_tiny

docs/benchmarks.md lists bits/char and step time of the tiny size with those of all processes.
"""

from dlmjax import config as config_lib


def get_config(size="gpt2_small"):
    config = config_lib.sized(size)
    config.model.time_input = "adaln"
    config.process.name = "genmd4"
    return config
