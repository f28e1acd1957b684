"""Flow matching on embeddings: straight paths from noise to text, the network predicts the velocity.

dlmjax train --config configs/embedding_flow.py --config.data.paths=data/corpus --workdir runs/embedding_flow
dlmjax train --config configs/embedding_flow.py:tiny --config.data.paths=data/char27 --workdir runs/embedding_flow_tiny

The training loss is not a bound; reported likelihoods are the bound of the same Gaussian path.
docs/benchmarks.md lists bits/char and step time of the tiny size with those of all processes.
"""

from dlmjax import config as config_lib


def get_config(size="gpt2_small"):
    config = config_lib.sized(size)
    config.model.time_input = "adaln"
    config.process.name = "embedding_flow"
    return config
