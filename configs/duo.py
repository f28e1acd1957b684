"""Duo (2506.10892): uniform noise whose network first reads soft tokens, the argmax's Gaussian behind it; then plain uniform noise.

dlmjax train --config configs/duo.py --config.data.paths=data/corpus --workdir runs/duo
dlmjax train --config configs/duo.py:tiny --config.data.paths=data/char27 --workdir runs/duo_tiny

The first half of the steps is the curriculum: --config.train.steps=N wants --config.process.name="duo(until=N/2)", with the number, beside
it.  docs/benchmarks.md has bits/char and time of the tiny one beside all other families.
"""

from dlmjax import config as config_lib


def get_config(size="gpt2_small"):
    config = config_lib.sized(size)
    config.model.time_input = "adaln"
    config.process.name = f"duo(until={config.train.steps // 2})"
    return config
