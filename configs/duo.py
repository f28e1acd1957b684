"""Duo (2506.10892): first a curriculum on soft tokens, from Gaussian noise whose argmax is the uniform noise; then uniform noise alone.

dlmjax train --config configs/duo.py --config.data.paths=data/corpus --workdir runs/duo
dlmjax train --config configs/duo.py:tiny --config.data.paths=data/char27 --workdir runs/duo_tiny

The first half of the steps is the curriculum: with --config.train.steps=N pass --config.process.name="duo(until=M)", where M = N/2.
docs/benchmarks.md lists bits/char and step time of the tiny size with those of all processes.
"""

from dlmjax import config as config_lib


def get_config(size="gpt2_small"):
    config = config_lib.sized(size)
    config.model.time_input = "adaln"
    config.process.name = f"duo(until={config.train.steps // 2})"
    return config
