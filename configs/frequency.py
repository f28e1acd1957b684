"""Frequency-informed masking: rare tokens are masked earlier, from the corpus's own counts; the bound stays exact.

dlmjax train --config configs/frequency.py --config.data.paths=data/corpus --workdir runs/frequency
dlmjax train --config configs/frequency.py:tiny --config.data.paths=data/char27 --workdir runs/frequency_tiny

docs/benchmarks.md lists bits/char and step time of the tiny size with those of all processes.
"""

from dlmjax import config as config_lib


def get_config(size="gpt2_small"):
    config = config_lib.sized(size)
    config.model.time_input = "adaln"
    config.process.name = "frequency_masked"
    return config
