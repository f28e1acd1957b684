"""Puzzles as text, `clue=answer`, one a window: masked diffusion, sized for two CPU cores.

dlmjax puzzles --kind countdown --count 50000 --output runs/countdown/train.txt
dlmjax prepare --input runs/countdown/train.txt --documents line --output runs/countdown/data
dlmjax train --config configs/puzzles.py --config.data.paths=runs/countdown/data --workdir runs/countdown/run
dlmjax solve --workdir runs/countdown/run --input runs/countdown/test.txt

The length is that of Countdown with three numbers; `dlmjax puzzles` prints the length of other puzzles. docs/benchmarks.md has the results,
with those of the autoregressive baseline (--config.process.name=autoregressive).
"""

from dlmjax import config as config_lib


def get_config():
    config = config_lib.default()
    config.data.update(length=40, batch=128, packing="documents")
    config.model.update(depth=4, width=128, heads=4, kv_heads=4, head_dim=32, ffn=384)
    config.execution.scan = False
    config.optimizer.update(name="muon", lr=1e-2, beta2=0.98, weight_decay=0.01, warmup=20)
    config.train.update(steps=600, ema=0.98)
    config.checkpoint.every = 200
    config.log.update(every=50, evaluate=0, sample=0)
    return config
