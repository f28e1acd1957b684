"""Discrete time (D3PM 2107.03006): a chain of 1000 steps of uniform noise, trained with the bound plus 0.01 x cross-entropy.

The 0.01 multiplies cross-entropies added to the bound of all steps (the paper's eq. 5); its released code adds it to one step:
weighting hybrid_lambda(lam=10) here.

dlmjax train --config configs/d3pm.py --config.data.paths=data/corpus --workdir runs/d3pm
dlmjax train --config configs/d3pm.py:tiny --config.data.paths=data/char27 --workdir runs/d3pm_tiny

docs/benchmarks.md lists bits/char and step time of the tiny size with those of all processes.
"""

from dlmjax import config as config_lib


def get_config(size="gpt2_small"):
    config = config_lib.sized(size)
    config.model.time_input = "adaln"
    config.process.update(name="d3pm(steps=1000)", weighting="hybrid_lambda(lam=0.01)")
    return config
