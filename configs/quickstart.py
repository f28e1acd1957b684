"""The first run: a small masked diffusion model of bytes on the Python language reference that CPython ships.

make quickstart
or: dlmjax train --config configs/quickstart.py --config.data.paths=runs/quickstart/data --workdir runs/quickstart

About three minutes on two CPU cores; test NELBO <= 2.20 ± 0.08 bits/byte; bigram baseline 3.24, unigram baseline 4.82 (docs/benchmarks.md).
"""

from dlmjax import config as config_lib


def get_config():
    config = config_lib.default()
    config.data.update(length=128, batch=32)
    config.model.update(depth=4, width=128, heads=4, kv_heads=4, head_dim=32, ffn=384, rope_base=100.0)
    config.execution.scan = False
    config.optimizer.update(name="muon", lr=1e-2, beta2=0.98, weight_decay=0.01, warmup=20, schedule="wsd", decay=0.3)
    config.process.update(weighting="cross_entropy", times=config_lib.TINY_TIMES)
    config.train.update(steps=600, ema=0.95)
    config.checkpoint.every = 200
    config.log.update(every=25, evaluate=300, evaluate_windows=32, sample=600)
    return config
