"""Qwen3's autoregressive weights as a masked diffusion model: full attention from the first step, the token at i predicted at i - 1.

dlmjax import --source Qwen3-0.6B-Base --workdir runs/qwen3
dlmjax prepare --input TRAIN... --tokenizer saved:runs/qwen3/tokenizer --output data/corpus --valid-fraction 0.01
dlmjax train --config configs/adapt_qwen3.py --config.data.paths=data/corpus --init runs/qwen3 --workdir runs/adapted
dlmjax train --config configs/adapt_qwen3.py:4B ...                                               # or 1.7B, 8B; tiny: a laptop size

The weights predict the next token, so `shift` preserves what they learned (Dream 2508.15487, DiffuLLaMA 2410.17891). Not run at these
sizes yet: the expected time and bound are unknown. `dlmjax import` of a model of another size prints the `model.family` to set here.
"""

from dlmjax import config as config_lib
from dlmjax.errors import InputError

# As published (Qwen3 2505.09388, table 1, and the config.json of each): size -> depth, width, heads, ffn, tied
SIZES = {
    "0.6B": (28, 1024, 16, 3072, True),
    "1.7B": (28, 2048, 16, 6144, True),
    "4B": (36, 2560, 32, 9728, True),
    "8B": (36, 4096, 32, 12_288, False),
}


def get_config(size="0.6B"):
    if size not in (*SIZES, "tiny"):
        raise InputError(f"config size {size!r} is unknown; choose one of {', '.join(SIZES)}, tiny")
    config = config_lib.sized("tiny" if size == "tiny" else "gpt2_small")
    config.model.family = "qwen3(shift=True)"
    config.process.name = "masked"
    if size in SIZES:
        depth, width, heads, ffn, tied = SIZES[size]
        config.model.update(vocab=151_936, depth=depth, width=width, heads=heads, kv_heads=8, head_dim=128, ffn=ffn, tied=tied)
        config.model.rope_base = 1_000_000.0
        config.execution.remat = "dots"
        config.optimizer.update(lr=2e-5, weight_decay=0.1, warmup=500)
        config.train.update(steps=20_000, accumulation=1, ema=0.999)
        config.mesh.update(data=-1, fsdp=8)
    return config
