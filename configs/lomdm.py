"""LoMDM (2602.02112): the order in which tokens are revealed depends on the text and is learned with the network.

dlmjax train --config configs/lomdm.py --config.data.paths=data/corpus --workdir runs/lomdm
dlmjax train --config configs/lomdm.py:tiny --config.data.paths=data/char27 --workdir runs/lomdm_tiny

The bound is valid and not tight (docs/processes.md). A step denoises every row twice; not trained to the end here, so there is no score.
"""

from dlmjax import config as config_lib


def get_config(size="gpt2_small"):
    config = config_lib.sized(size)
    config.model.time_input = "adaln"
    config.process.name = "lomdm"
    return config
