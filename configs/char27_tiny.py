"""Masked diffusion on 27 symbols, sized for two CPU cores.

dlmjax prepare --input train.txt --split-files valid=valid.txt --tokenizer char27 --documents file --output data/char27
dlmjax train --config configs/char27_tiny.py --config.data.paths=data/char27 --workdir runs/char27_tiny
"""

from dlmjax import config as config_lib


def get_config():
    config = config_lib.default()
    config.data.update(length=256, batch=32)
    config.model.update(depth=6, width=256, heads=4, kv_heads=4, head_dim=64, ffn=704)
    config.execution.scan = False
    config.optimizer.update(name="muon", lr=1e-2, beta2=0.98, weight_decay=0.01, warmup=100, schedule="wsd", decay=0.3)
    config.train.update(steps=2000, ema=0.995)
    config.checkpoint.every = 250
    config.log.update(every=25, evaluate=500, sample=1000)
    return config
