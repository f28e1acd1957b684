"""Masked diffusion on 27 symbols (text8's alphabet), 12 layers of 768 as in the published text8 runs.

dlmjax prepare --input train.txt --split-files valid=valid.txt --tokenizer char27 --documents file --output data/char27
dlmjax train --config configs/char27_small.py --config.data.paths=data/char27 --workdir runs/char27

Published text8 bounds for 12 layers (bits/char): MD4 1.37, GenMD4 1.34 (2406.04329, table 2; text8 itself).
Needs an accelerator; for a CPU-sized run of the same corpus see configs/char27_tiny.py.
"""

from dlmjax import config as config_lib


def get_config():
    config = config_lib.default()
    config.data.update(length=256, batch=512)
    config.model.update(depth=12, width=768, heads=12, kv_heads=12, head_dim=64, ffn=2048)
    config.execution.update(dtype="bfloat16", scan=True)
    config.optimizer.update(lr=3e-4, beta2=0.999, weight_decay=0.03, warmup=2000, schedule="wsd")
    config.train.update(steps=100_000, ema=0.9999)
    config.checkpoint.every = 1000
    config.log.update(every=50, evaluate=1000, sample=5000)
    return config
