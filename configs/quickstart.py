"""The first run: a small masked diffusion model of bytes on the Python language reference that CPython ships.

make quickstart
or: dlmjax train --config configs/quickstart.py --config.data.paths=runs/quickstart/data --workdir runs/quickstart
"""

from dlmjax import config as config_lib


def get_config():
    config = config_lib.default()
    config.data.update(length=128, batch=32)
    config.model.update(depth=4, width=128, heads=4, kv_heads=4, head_dim=32, ffn=384)
    config.execution.scan = False
    config.optimizer.update(name="muon", lr=1e-2, beta2=0.98, weight_decay=0.01, warmup=50)
    config.train.update(steps=1500, ema=0.99)
    config.checkpoint.every = 250
    config.log.update(every=25, evaluate=500, evaluate_windows=64, sample=500)
    return config
