"""Masked diffusion on little text (2509.05056; BabyLM): rare tokens are masked earlier, t is drawn from two modes; an exact bound.

dlmjax prepare --input TRAIN... --tokenizer train-sentencepiece:16384 --output data/babylm --valid-fraction 0.02
dlmjax train --config configs/babylm.py --config.data.paths=data/babylm --workdir runs/babylm                   # 100M words
dlmjax train --config configs/babylm.py:10M --config.data.paths=data/babylm10 --workdir runs/babylm10
dlmjax train --config configs/babylm.py:tiny --config.data.paths=data/char27 --workdir runs/babylm_tiny

Not run at either size yet: the expected time and bound are unknown.  The steps are ten epochs if a word is 1.35 tokens; `dlmjax train`
prints the epochs of your corpus.  Vocabulary, modes and their shares follow the authors' published settings; the authors move the high
mode during training and reduce the weight of the loss, while here the mode stays at their final value and the weight is that of the bound.
"""

from dlmjax import config as config_lib
from dlmjax.errors import InputError

# size -> words, windows in a step
WORDS = {"100M": (100_000_000, 256), "10M": (10_000_000, 64)}
TOKENS_PER_WORD, EPOCHS, LENGTH = 1.35, 10, 512


def get_config(size="100M"):
    if size not in (*WORDS, "tiny"):
        raise InputError(f"config size {size!r} is unknown; choose one of {', '.join(WORDS)}, tiny")
    config = config_lib.sized("tiny" if size == "tiny" else "gpt2_small")
    if size in WORDS:
        words, batch = WORDS[size]
        config.data.update(length=LENGTH, batch=batch)
        steps = round(EPOCHS * words * TOKENS_PER_WORD / (LENGTH * batch), -2)
        config.train.update(steps=int(steps), accumulation=1, ema=0.999)
        config.model.dropout = 0.1
        config.optimizer.warmup = int(steps) // 50
    config.model.time_input = "adaln"
    config.process.update(name="frequency_masked", times="two_mode(low=0.12, high=0.85, share=0.6)")
    return config
