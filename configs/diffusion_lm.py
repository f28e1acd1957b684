"""Diffusion-LM (2205.14217): Gaussian noise on learned embeddings, sqrt schedule, its simple end-to-end loss.

dlmjax train --config configs/diffusion_lm.py --config.data.paths=data/corpus --workdir runs/diffusion_lm
dlmjax train --config configs/diffusion_lm.py:tiny --config.data.paths=data/char27 --workdir runs/diffusion_lm_tiny

The training loss is not a bound; reported likelihoods are the bound.
docs/benchmarks.md lists bits/char and step time of the tiny size with those of all processes.
"""

from dlmjax import config as config_lib


def get_config(size="gpt2_small"):
    config = config_lib.sized(size)
    config.model.time_input = "adaln"
    config.process.name = "diffusion_lm"
    return config
