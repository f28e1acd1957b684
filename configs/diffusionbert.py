"""BERT as a masked diffusion model (DiffusionBERT 2211.15029): its weights, the spindle schedule, and conditioning on the time.

dlmjax import --source bert-base-uncased --workdir runs/bert
dlmjax prepare --input lm1b/*.txt --documents line --tokenizer saved:runs/bert/tokenizer --output data/lm1b --valid-fraction 0.001
dlmjax train --config configs/diffusionbert.py --config.data.paths=data/lm1b --init runs/bert --workdir runs/diffusionbert

dlmjax train --config configs/masked.py:tiny --config.model.family=bert --config.data.paths=data/char27 --workdir runs/bert_tiny
dlmjax train --config configs/diffusionbert.py:tiny --config.data.paths=data/char27 --init runs/bert_tiny --workdir runs/diffusionbert_tiny

The noise of a token of much information rises early and is removed late, by the counts of the corpus: t + 0.3 sin(pi t) (1 - mean
information / information). The paper takes that mean over the text, and its code gives the reverse step the rates of the true tokens,
hidden ones too, so its loss does not bound the likelihood; here the mean is over the corpus and the bound is exact and tight (`pytest
tests/diffusion/test_battery.py -k spindle`).
Such rates require conditioning on the time, which the paper leaves out; what is added to the embeddings starts at 0, so that step 0
is BERT.
Strength, peak rate, warm-up are those of the paper's code, whose rate falls as 1/sqrt(step); batch and steps are ours.
Published for LM1B, perplexity bound: DiffusionBERT 63.78, D3PM with masks 77.50 (2406.07524, table 1).
Tiny on novels27: docs/recipes.md has time and bound. Not trained at the larger size.
"""

from dlmjax import config as config_lib
from dlmjax.errors import InputError


def get_config(size="base"):
    if size not in ("base", "tiny"):
        raise InputError(f"config size {size!r} is unknown; choose one of base, tiny")
    config = config_lib.sized("tiny" if size == "tiny" else "gpt2_small")
    config.model.update(family="bert", time_input="add")
    config.process.name = "spindle"
    if size == "base":
        config.data.update(length=128, batch=512, packing="documents")
        config.model.update(vocab=30_522, ffn=3072, tied=True)
        config.optimizer.update(lr=5e-4, warmup=10_000, schedule="cosine")
        config.train.accumulation = 1
    return config
