"""Masked diffusion from autoregressive weights by a shift and annealed attention, as DiffuGPT and DiffuLLaMA are made (2410.17891).

dlmjax import --source gpt2-medium --workdir runs/gpt2
dlmjax prepare --input TRAIN... --tokenizer saved:runs/gpt2/tokenizer --output data/corpus --valid-fraction 0.01
dlmjax train --config configs/adapt_full.py --config.data.paths=data/corpus --init runs/gpt2 --workdir runs/adapted

dlmjax train --config configs/autoregressive.py:tiny --config.data.paths=data/char27 --workdir runs/base
dlmjax train --config configs/adapt_full.py:tiny --config.data.paths=data/char27 --init runs/base --workdir runs/adapted_tiny

Each token is predicted from the position before it, so the weights keep their function, and attention opens from causal to full while
the run goes on, pair by pair. Rate, warm-up, steps and the 10,000 annealed steps are those of the paper's code for GPT-2 medium; its
7B model is not annealed, nor is configs/adapt_qwen3.py, the way of Dream (2508.15487). Batch and length are ours.
Published: models from 127M to 7B, each with less than 200B tokens (abstract). Supervised alone on Qwen3-0.6B, GSM8K 29.3 with full
attention and 46.3 in blocks of 32 (configs/adapt_blocks.py) where the autoregressive base has 59.6 (dllm, examples/a2d).
Tiny on novels27: docs/recipes.md has time and bound. Not trained at the larger size.
"""

from dlmjax import config as config_lib
from dlmjax.errors import InputError


def get_config(size="gpt2_medium"):
    if size not in ("gpt2_medium", "tiny"):
        raise InputError(f"config size {size!r} is unknown; choose one of gpt2_medium, tiny")
    config = config_lib.sized("tiny" if size == "tiny" else "gpt2_small")
    if size == "tiny":
        config.model.family = "qwen3(shift=True)"
        config.process.update(weighting="cross_entropy", times=config_lib.TINY_TIMES, anneal=0.1)
        return config
    config.model.update(family="gpt2(shift=True)", tied=True)
    config.model.update(vocab=50_259, depth=24, width=1024, heads=16, kv_heads=16, head_dim=64, ffn=4096)
    config.optimizer.update(lr=3e-4, warmup=2000, schedule="cosine")
    config.train.steps = 160_000
    config.process.anneal = 10_000 / config.train.steps
    return config
