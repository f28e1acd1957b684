"""LLaDA's shape and loss (2502.09992): 32 layers of 4096, 126,464 classes, masked with rate (1-eps) t + eps, no time input.

dlmjax train --config configs/llada_8b.py --config.data.paths=data/corpus --config.mesh.fsdp=64 --workdir runs/llada_8b

8.0B parameters; 2.3T tokens in the paper. Requires a pod: weights and AdamW's moments take 12 bytes per parameter, gradients and
activations more (`dlmjax plan`).
"""

from dlmjax import config as config_lib


def get_config():
    config = config_lib.default()
    config.data.update(length=4096, batch=1280)
    config.model.update(vocab=126_464, depth=32, width=4096, heads=32, kv_heads=32, head_dim=128, ffn=12_288, rope_base=500_000.0)
    config.model.family = "llama(norm_eps=1e-5)"
    config.execution.update(dtype="bfloat16", scan=True, remat="full", attention="splash", head_chunk=512)
    config.process.update(name="llada")
    config.optimizer.update(lr=4e-4, beta2=0.95, weight_decay=0.1, warmup=2000, schedule="wsd", decay=0.1, final=0.025)
    config.train.update(steps=440_000, accumulation=1, ema=0.0)
    config.mesh.update(data=-1, fsdp=64)
    config.checkpoint.every = 1000
    config.log.update(every=20, evaluate=5000, sample=0)
    return config
