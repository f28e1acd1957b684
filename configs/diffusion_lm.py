"""Diffusion-LM (2205.14217): Gaussian noise on learned embeddings, sqrt schedule, its simple end-to-end loss.

dlmjax train --config configs/diffusion_lm.py --config.data.paths=data/corpus --workdir runs/diffusion_lm
dlmjax train --config configs/diffusion_lm.py:tiny --config.data.paths=data/char27 --workdir runs/diffusion_lm_tiny

The loss is no bound; the bound is what is reported.  docs/benchmarks.md has bits/char and time of the tiny one beside all other families.
"""

from dlmjax import config as config_lib


def get_config(size="gpt2_small"):
    config = config_lib.sized(size)
    config.model.time_input = "adaln"
    config.process.name = "diffusion_lm"
    return config
