"""Countdown puzzles, `clue=answer`, one a window: masked diffusion in its k-form with the loss on answers alone, sized for one CPU core.

dlmjax puzzles --kind countdown --count 50000 --output runs/countdown/train.jsonl
dlmjax puzzles --kind countdown --count 500 --split test --output runs/countdown/test.txt
dlmjax prepare --input runs/countdown/train.jsonl --format prompt-answer --separator = --output runs/countdown/data
dlmjax train --config configs/puzzles.py --config.data.paths=runs/countdown/data --workdir runs/countdown/run
dlmjax solve --workdir runs/countdown/run --input runs/countdown/test.txt

The length is that of Countdown with three numbers; `dlmjax puzzles` prints the length of other puzzles. docs/recipes.md has the results,
with those of the autoregressive baseline (--config.process.name=autoregressive).
"""

from dlmjax import config as config_lib


def get_config():
    config = config_lib.default()
    config.data.update(length=40, batch=128, packing="documents")
    # A small network takes more steps for the same FLOPs, and learns the task in them.
    config.model.update(depth=3, width=64, heads=4, kv_heads=4, head_dim=16, ffn=176)
    config.execution.scan = False
    config.process.name = "masked_count"
    config.optimizer.update(name="muon", lr=1e-2, beta2=0.98, weight_decay=0.01, warmup=40)
    config.train.update(steps=2000, ema=0.98)
    config.checkpoint.every = 500
    config.log.update(every=50, evaluate=0, sample=0)
    return config
