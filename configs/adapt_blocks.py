"""Block diffusion from autoregressive weights: blocks that grow to the whole row and shrink again (LLaDA2.0 2512.15745), seeded throughout.

dlmjax import --source Qwen3-1.7B-Base --workdir runs/qwen3
dlmjax prepare --input TRAIN... --tokenizer saved:runs/qwen3/tokenizer --output data/corpus --valid-fraction 0.01
dlmjax train --config configs/adapt_blocks.py:1.7B --config.data.paths=data/corpus --init runs/qwen3 --workdir runs/adapted

dlmjax train --config configs/autoregressive.py:tiny --config.data.paths=data/char27 --workdir runs/base
dlmjax train --config configs/adapt_blocks.py:tiny --config.data.paths=data/char27 --init runs/base --workdir runs/adapted_tiny

Sizes are those of configs/adapt_qwen3.py. The first token of a block, its seed, is predicted from the clean text before it, the others
from the position before each, so blocks of one token are the autoregressive model (docs/processes.md#seeded-blocks); LLaDA2.0 and
SDAR (2510.06303) predict in place. The rate is constant until the last phase and decays in it. Where blocks of 4 suffice, as in
SDAR, leave out the growth: --config.process.before="" --config.process.name="blocks(size=4, seeded=True)".
Published for SDAR, blocks of 4, after 50B tokens from Qwen3 and answers: 1.7B 80.1 on GSM8K where its autoregressive twin has 81.1
(project page). Tiny on novels27: docs/recipes.md has time and bound. Not trained at the larger size.
"""

from dlmjax import config as config_lib

# (size, share of the steps at which its phase ends); the size of the last phase.
GROWING = (((4, 0.05), (32, 0.1), (1024, 0.6), (256, 0.8)), 32)
GROWING_TINY = (((4, 0.1), (16, 0.2), (128, 0.5), (32, 0.7)), 16)


def get_config(size="0.6B"):
    config = config_lib.load_config(f"adapt_qwen3:{size}")
    phases, last = GROWING_TINY if size == "tiny" else GROWING
    config.model.family = "qwen3"
    config.process.name = f"blocks(size={last}, seeded=True)"
    config.process.before = tuple(f"blocks(size={blocks}, seeded=True)@{until}" for blocks, until in phases)
    config.optimizer.update(schedule="wsd", decay=1 - phases[-1][1])
    if size == "tiny":
        config.process.update(weighting="cross_entropy", times=config_lib.TINY_TIMES)
    return config
