"""The first run: a small masked diffusion model of bytes on the Python language reference that CPython ships.

make quickstart
or: dlmjax train --config configs/quickstart.py --config.data.paths=runs/quickstart/data --workdir runs/quickstart

About three minutes on two CPU cores; test NELBO <= 2.15 ± 0.07 bits/byte; bigram baseline 3.24, unigram baseline 4.82 (docs/benchmarks.md).
"""

from dlmjax import config as config_lib


def get_config():
    config = config_lib.default()
    config.data.update(length=128, batch=32)
    config.model.update(depth=4, width=64, heads=4, kv_heads=4, head_dim=16, ffn=176, rope_base=100.0)
    config.execution.scan = False
    config.optimizer.update(name="muon", lr=1e-2, beta2=0.98, weight_decay=0.01, warmup=50, schedule="wsd", decay=0.3)
    config.process.update(weighting="cross_entropy", times=config_lib.TINY_TIMES)
    config.train.update(steps=1200, ema=0.98)
    config.checkpoint.every = 400
    config.log.update(every=50, evaluate=600, evaluate_windows=32, sample=1200)
    return config
