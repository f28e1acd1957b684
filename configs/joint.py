"""One network that is an autoregressive and a block diffusion model at once, from the sum of both losses (Nemotron-Labs-Diffusion).

dlmjax train --config configs/joint.py --config.data.paths=data/corpus --workdir runs/joint
dlmjax train --config configs/joint.py --config.data.paths=data/corpus --init runs/autoregressive --workdir runs/joint
dlmjax evaluate --workdir runs/joint --process autoregressive --data data/corpus

dlmjax train --config configs/autoregressive.py:tiny --config.data.paths=data/char27 --workdir runs/base
dlmjax train --config configs/joint.py:tiny --config.data.paths=data/char27 --init runs/base --workdir runs/joint_tiny

1 x the next token's loss of the clean stream + 0.3 x the loss of seeded blocks of 32 (docs/processes.md#seeded-blocks), in one pass over
both streams. The log has `text_nll`, the likelihood of the autoregressive model, beside `nelbo`, the bound of the blocks. That family of
models predicts its blocks in place, here they are shifted as the text is. The second command starts from autoregressive weights, the
first from none.
Published: sizes 3B, 8B and 14B; both losses are best at the same weight, 0.3; 2.5e-6 is their rate for answers (Automodel's examples).
Tiny on novels27: docs/recipes.md has time and bound. Not trained at the larger size.
"""

from dlmjax import config as config_lib


def get_config(size="gpt2_small"):
    config = config_lib.sized(size)
    config.process.update(name="blocks(size=32, seeded=True)", weighting="joint(diffusion=0.3)")
    if size == "tiny":
        name, weighting = "blocks(size=16, seeded=True)", "joint(diffusion=0.3, inner=cross_entropy)"
        config.process.update(name=name, weighting=weighting, times=config_lib.TINY_TIMES)
    return config
