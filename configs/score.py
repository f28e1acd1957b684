"""Score entropy on absorbing noise (SEDD 2310.16834): the network predicts ratios of probabilities.

dlmjax train --config configs/score.py --config.data.paths=data/corpus --workdir runs/score
dlmjax train --config configs/score.py:tiny --config.data.paths=data/char27 --workdir runs/score_tiny

process.name="score(noise='uniform')" is the uniform variant.
docs/benchmarks.md lists bits/char and step time of the tiny size with those of all processes.
"""

from dlmjax import config as config_lib


def get_config(size="gpt2_small"):
    config = config_lib.sized(size)
    config.model.time_input = "adaln"
    config.process.update(name="score", schedule="log_linear")
    return config
