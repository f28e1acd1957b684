"""Masked diffusion at GPT-2 small's size with GPT-2's tokenizer: 12 layers of 768, 1024 tokens, 512 windows a step.

dlmjax prepare --input corpus.jsonl --tokenizer gpt2:DIR --output data/corpus --valid-fraction 0.005
dlmjax train --config configs/gpt2_small_masked.py --config.data.paths=data/corpus --workdir runs/gpt2_small_masked

Published for OpenWebText after a million steps (perplexity bound): MDLM 23.2, GenMD4 21.8; autoregressive 17.5.
"""

from dlmjax import config as config_lib


def get_config():
    config = config_lib.default()
    config.data.update(length=1024, batch=512)
    config.model.update(depth=12, width=768, heads=12, kv_heads=12, head_dim=64, ffn=2048)
    config.execution.update(dtype="bfloat16", scan=True, remat="none", attention="cudnn")
    config.optimizer.update(lr=3e-4, beta2=0.999, weight_decay=0.03, warmup=2500, schedule="wsd")
    config.train.update(steps=100_000, accumulation=8, ema=0.9999)
    config.checkpoint.every = 1000
    config.log.update(every=50, evaluate=1000, sample=5000)
    return config
