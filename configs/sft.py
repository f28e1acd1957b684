"""A base model that learns to answer: training on the answers of supervised data, whose prompts are given (docs/answers.md).

dlmjax prepare --format prompt-answer --tokenizer saved:runs/base/tokenizer --input data.jsonl --output runs/sft/data
dlmjax train --config configs/sft.py --config.data.paths=runs/sft/data --init runs/base --workdir runs/sft/run

The network is that of the base run, at the sizes of `config.sized`. `configs/sft.py:tiny` fits a run of `configs/masked.py:tiny`; for a
base of another process pass its `process.name` (and its `model.time_input`): autoregressive, "blocks(size=4)", uniform. What is trained
is the bound of -log p(answer | prompt) by exact counts of masks (the k-form), an estimate with much less variance on short answers, at a
rate that is a tenth of pre-training's, without weight decay.
"""

from dlmjax import config as config_lib


def get_config(size="gpt2_small"):
    config = config_lib.sized(size)
    config.data.packing = "documents"
    config.process.name = "masked_count"
    config.optimizer.update(lr=config.optimizer.lr / 10, weight_decay=0.0)
    config.train.steps = 200 if size == "tiny" else 5000
    config.optimizer.warmup = 20 if size == "tiny" else 200
    config.log.update(evaluate=config.train.steps // 2, sample=config.train.steps)
    return config
