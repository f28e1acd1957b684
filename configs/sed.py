"""SED (2211.04236): Gaussian noise on small fixed embeddings, with self-conditioning.

dlmjax train --config configs/sed.py --config.data.paths=data/corpus --workdir runs/sed
dlmjax train --config configs/sed.py:tiny --config.data.paths=data/char27 --workdir runs/sed_tiny

docs/benchmarks.md lists bits/char and step time of the tiny size with those of all processes.
"""

from dlmjax import config as config_lib


def get_config(size="gpt2_small"):
    config = config_lib.sized(size)
    config.model.time_input = "adaln"
    config.process.update(name="sed", self_condition=0.5)
    return config
