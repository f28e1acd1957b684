"""Anchored diffusion language model (ADLM 2505.18456): the first third of the layers predicts every token, the rest reads that prediction.

dlmjax train --config configs/adlm.py --config.data.paths=data/corpus --workdir runs/adlm
dlmjax train --config configs/adlm.py:tiny --config.data.paths=data/char27 --workdir runs/adlm_tiny

Trains the bound, and a tenth of the loss of the first part's own prediction of rare tokens (docs/likelihood.md). Not trained to the end
here, so there is no score.
"""

from dlmjax import config as config_lib


def get_config(size="gpt2_small"):
    config = config_lib.sized(size)
    config.model.anchor_depth = config.model.depth // 3
    config.process.weighting = "anchored(gamma=0.1, most=5)"
    return config
