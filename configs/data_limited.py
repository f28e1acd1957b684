"""Little text, many epochs: an autoregressive run with the noise that masked diffusion has by itself, and its masked twin.

dlmjax train --config configs/data_limited.py --config.data.paths=data/corpus --workdir runs/limited
dlmjax train --config configs/data_limited.py --config.data.paths=data/corpus --config.process.name=masked --workdir runs/limited_masked
dlmjax train --config configs/data_limited.py:tiny --config.data.paths=data/char27 --workdir runs/limited_tiny

Three switches (Gao et al. 2510.04071), for both alike but the first, which masked diffusion has in its process: a share of the tokens
that are read is hidden (process.name), outputs of attention and MLP are dropped (model.dropout; the paper drops inside the MLP), weights
decay more than in the other configs (optimizer.weight_decay).
`--config.process.name=autoregressive --config.model.dropout=0` is the run without noise. How often the text is read follows from
train.steps: `dlmjax train` prints the epochs.

Not tuned, and not run at GPT-2 small's size: the expected bound and the best of the three values are unknown.
"""

from dlmjax import config as config_lib


def get_config(size="gpt2_small"):
    config = config_lib.sized(size)
    config.process.name = "autoregressive(input_mask=0.1)"
    config.model.dropout = 0.1
    config.optimizer.weight_decay = 0.1
    return config
