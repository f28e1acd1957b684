"""Plaid (2305.18619): Gaussian noise on learned embeddings, trained on its likelihood bound with a learned schedule.

dlmjax train --config configs/plaid.py --config.data.paths=data/corpus --workdir runs/plaid
dlmjax train --config configs/plaid.py:tiny --config.data.paths=data/char27 --workdir runs/plaid_tiny

docs/benchmarks.md lists bits/char and step time of the tiny size with those of all processes.
"""

from dlmjax import config as config_lib


def get_config(size="gpt2_small"):
    config = config_lib.sized(size)
    config.model.time_input = "adaln"
    config.process.update(name="plaid", self_condition=0.25)
    return config
