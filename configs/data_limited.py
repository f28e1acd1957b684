"""Little text, many epochs: an autoregressive run with input noise like that of masked diffusion, and the masked run to compare with.

dlmjax train --config configs/data_limited.py --config.data.paths=data/corpus --workdir runs/limited
dlmjax train --config configs/data_limited.py --config.data.paths=data/corpus --config.process.name=masked --workdir runs/limited_masked
dlmjax train --config configs/data_limited.py:tiny --config.data.paths=data/char27 --workdir runs/limited_tiny

Three regularisers (Gao et al. 2510.04071), the same in both runs but for the first, which masked diffusion includes: a share of the input
tokens is masked (process.name), outputs of attention and MLP are dropped (model.dropout; the paper drops inside the MLP), weight decay is
stronger than in the other configs (optimizer.weight_decay).
`--config.process.name=autoregressive --config.model.dropout=0` is the run without noise. The number of epochs follows from train.steps:
`dlmjax train` prints it.

Not tuned, and not run at GPT-2 small's size: the expected bound and the best of the three values are unknown.
"""

from dlmjax import config as config_lib


def get_config(size="gpt2_small"):
    config = config_lib.sized(size)
    config.process.name = "autoregressive(input_mask=0.1)"
    config.model.dropout = 0.1
    config.optimizer.weight_decay = 0.1
    return config
