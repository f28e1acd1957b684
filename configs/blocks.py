"""Block diffusion (BD3-LM 2503.09573): blocks of 4 tokens from left to right, masked diffusion inside each.

dlmjax train --config configs/blocks.py --config.data.paths=data/corpus --workdir runs/blocks
dlmjax train --config configs/blocks.py:tiny --config.data.paths=data/char27 --workdir runs/blocks_tiny

Other noise in the blocks: --config.process.name="blocks(size=4, noise=uniform)" --config.model.time_input=adaln; at tiny also
--config.process.weighting= --config.process.times=stratified, as its loss is one of masks

A step reads two streams (clean and noisy rows) and costs about twice a masked one.
Published for OpenWebText after 524B tokens (perplexity bound): block 4 20.73, block 16 22.27 (table 4).
docs/benchmarks.md lists bits/char and step time of the tiny size with those of all processes.
"""

from dlmjax import config as config_lib


def get_config(size="gpt2_small"):
    config = config_lib.sized(size)
    config.process.name = "blocks(size=4)"
    if size == "tiny":
        config.process.update(weighting="cross_entropy", times=config_lib.TINY_TIMES)
    return config
