"""Training step on CPU against other people's code: md4, MDLM and BD3-LMs, whose checkouts are given by path. See peers.md.

    python -m benchmarks.peers --sides "masked;md4=DIR;mdlm=DIR" [--vocab 27] [--width 128] [--batch 32] [--length 128] [--rounds 15]
    python -m benchmarks.peers --sides "blocks;bd3lms=DIR" --block 16

Each side is a process of its own that runs its own network, loss, optimizer and averaging on random tokens: float32, 4 layers, heads of
32 channels, AdamW, no dropout. Steps take turns; the times are CPU times of the process, so that other work on the machine counts less.
Reported: median step, median over rounds of the ratio to the first side with its standard error (bootstrap), largest resident memory.
"""

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import time
import types
from unittest.mock import MagicMock

from dlmjax.cluster.memory import keep_freed_memory

DEPTH, HEAD = 4, 32
# What the checkouts import and their step does not use: data, plots, samplers, fused kernels of a GPU.
UNUSED = {
    "md4": "tensorflow_probability tensorflow_probability.substrates tensorflow_probability.substrates.jax distrax seaborn "
    "matplotlib.pyplot clu.metric_writers clu.periodic_actions clu.parameter_overview clu.platform md4.input_pipeline "
    "md4.input_pipeline_v2 md4.sampling "
    "md4.networks.unet md4.networks.uvit md4.models.diffusion.genmd4",
    "mdlm": "flash_attn flash_attn.layers flash_attn.layers.rotary timm timm.scheduler dataloader models.dimamba models.autoregressive",
    "bd3lms": "flash_attn flash_attn.layers flash_attn.layers.rotary timm timm.scheduler dataloader metrics",
}


def ours(name, args):
    """One step of `configs/NAME.py:tiny`, with AdamW and a shape as the others have them."""
    import jax

    from benchmarks.random_batch import batch_of
    from dlmjax import config as config_lib
    from dlmjax.data import load_tokenizer
    from dlmjax.experiment import assemble
    from dlmjax.train import train_step_of
    from dlmjax.training import init_state

    process = [f"process.name=blocks(size={args.block})"] if name == "blocks" else []
    config = config_lib.load_config(f"{name}:tiny", *process, "train.accumulation=1", f"optimizer.name={args.optimizer}")
    tokenizer = load_tokenizer("char27" if args.vocab <= 32 else "bytes")
    with config.unlocked():
        config.data.update(batch=args.batch, length=args.length)
        config.model.update(vocab=max(args.vocab, tokenizer.vocab_size), width=args.width, ffn=3 * args.width)
        config.model.update(depth=DEPTH, heads=args.width // HEAD, kv_heads=args.width // HEAD, head_dim=HEAD)
    experiment = assemble(config, tokenizer)
    state = init_state(experiment.init, experiment.optimizer, jax.random.key(0), experiment.param_shardings)
    # Of the tokenizer's own ids: those above are special, and no text has them.
    batch = batch_of(tokens(args) % (256 if args.vocab > 32 else args.vocab))
    batch, key, step = experiment.partition.put_batch(batch), jax.random.key(1), train_step_of(experiment)

    def run():
        nonlocal state
        state, metrics = step(state, batch, key)
        return float(metrics["loss"])

    return run


def tokens(args):
    """Random ids [batch, length]: the time does not depend on them."""
    import numpy as np

    return np.random.default_rng(0).integers(0, args.vocab - 1, (args.batch, args.length))


def md4(args):
    """`train_step` of md4, under `jax.pmap` as in its trainer. Without time input unless --time."""
    import functools

    import jax
    import numpy as np
    from flax import jax_utils
    from md4 import train
    from md4.configs.md4 import text8

    config = text8.get_config()
    config.update(vocab_size=args.vocab, data_shape=(args.length,), feature_dim=HEAD, num_heads=args.width // HEAD, n_layers=DEPTH)
    config.update(batch_size=args.batch, time_features="t" if args.time else "none", cond_type="adaln_zero" if args.time else "adaln")
    rate = functools.partial(train.get_learning_rate, base_learning_rate=1e-3, num_steps=1000, warmup_steps=10)
    model, optimizer, state, metrics = train.create_train_state(config, jax.random.key(0), (args.batch, args.length), rate)
    function = functools.partial(
        train.train_step, model=model, optimizer=optimizer, train_metrics_class=metrics, learning_rate_fn=rate, ema_rate=config.ema_rate
    )
    step = jax.pmap(function, axis_name="batch", donate_argnums=(0,))
    batch, state = {"text": tokens(args).astype(np.int32)[None]}, jax_utils.replicate(state)

    def run():
        nonlocal state
        state, found = step(train_state=state, batch=batch)
        return float(found.loss.total[0])

    return run


def attention(qkv_N3HK, lengths, longest, *_, **__):
    """What flash_attn's packed kernel computes on rows of equal length, by torch's own fused attention."""
    import torch

    B = len(lengths) - 1
    q, k, v = qkv_N3HK.view(B, longest, *qkv_N3HK.shape[1:]).permute(2, 0, 3, 1, 4)
    out_BHLK = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    return out_BHLK.transpose(1, 2).reshape(B * longest, *qkv_N3HK.shape[2:])


def rotary(qkv_BL3HK, cos_LC, sin_LC):
    """flash_attn's rotation of queries and keys."""
    import torch

    qk, v = qkv_BL3HK[:, :, :2], qkv_BL3HK[:, :, 2:]
    cos, sin = (table[None, :, None, None, :] for table in (cos_LC, sin_LC))
    first, second = qk.chunk(2, dim=-1)
    return torch.cat([torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1), v], dim=2)


def lightning(root, args):
    """Loss of the Lightning module of MDLM or BD3-LMs, its gradient, clipping, AdamW and average, as its trainer calls them."""
    import omegaconf
    import torch
    import transformers

    sys.modules["timm.scheduler"].CosineLRScheduler = type("CosineLRScheduler", (), {})  # a base class
    transformers.AutoTokenizer = MagicMock()  # of the model that scores samples
    sys.modules["flash_attn"].flash_attn_interface.flash_attn_varlen_qkvpacked_func = attention
    sys.modules["flash_attn"].layers.rotary.apply_rotary_emb_qkv_ = rotary
    import diffusion

    config = omegaconf.OmegaConf.load(f"{root}/configs/config.yaml")
    for group in ("model", "noise", "algo"):
        name = {"model": "small", "noise": "loglinear", "algo": "bd3lm"}[group]
        if os.path.exists(f"{root}/configs/{group}/{name}.yaml"):
            config[group] = omegaconf.OmegaConf.load(f"{root}/configs/{group}/{name}.yaml")
    config.model.update(hidden_size=args.width, n_blocks=DEPTH, n_heads=args.width // HEAD, length=args.length, dropout=0.0)
    config.model.attn_backend, config.block_size, config.loader.eval_batch_size = "sdpa", args.block, args.batch
    module = diffusion.Diffusion(config, types.SimpleNamespace(vocab_size=args.vocab - 1, bos_token_id=0, eos_token_id=0)).train()
    weights = [*module.backbone.parameters(), *module.noise.parameters()]
    o = config.optim
    optimizer = torch.optim.AdamW(weights, lr=o.lr, betas=(o.beta1, o.beta2), eps=o.eps, weight_decay=o.weight_decay)
    x, mask = torch.tensor(tokens(args)), torch.ones(args.batch, args.length)

    def run():
        optimizer.zero_grad()
        loss = module._loss(x, mask).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, config.trainer.gradient_clip_val)
        optimizer.step()
        module.ema.update(weights)
        return loss.item()

    return run


def serve(side, args):
    """Answers each line of the input with (wall seconds, CPU seconds) of one step."""
    name, _, root = side.partition("=")
    out, sys.stdout = sys.stdout, sys.stderr
    if root:
        sys.path.insert(0, root)
        for module in UNUSED[name].split():
            found = sys.modules[module] = MagicMock(__name__=module)
            found.__spec__ = importlib.util.spec_from_loader(module, None)
    else:
        keep_freed_memory()  # as `dlmjax train` does; the others run as their authors wrote them
    run = ours(name, args) if not root else md4(args) if name == "md4" else lightning(root, args)
    losses = [run() for _ in range(3)]
    print(json.dumps(losses), file=out, flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        times = time.perf_counter() - wall, time.process_time() - cpu
        print(json.dumps([*times, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]), file=out, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", default="masked", help="NAME of configs/NAME.py, or md4, mdlm, bd3lms=DIR; separated by semicolons")
    for name, value in {"vocab": 27, "width": 128, "batch": 32, "length": 128, "block": 16, "rounds": 15}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--optimizer", default="adamw", help="ours: adamw or muon")
    parser.add_argument("--time", action="store_true", help="md4 with its time input")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve, args)
    import numpy as np

    names, sides = args.sides.split(";"), []
    for side in names:
        command = [sys.executable, "-m", "benchmarks.peers", *sys.argv[1:], "--serve", side]
        sides.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        print(f"{side}: losses of the first steps {sides[-1].stdout.readline().strip()}", flush=True)

    def step(side):
        side.stdin.write("\n")
        side.stdin.flush()
        return json.loads(side.stdout.readline())

    found_RS3 = np.array([[step(side) for side in sides[:: (-1) ** i]][:: (-1) ** i] for i in range(args.rounds)])
    print("\n| side | CPU time of a step, median, s | ratio to the first | wall time, median, s | peak memory, MiB |\n|---|" + "---:|" * 4)
    rng = np.random.default_rng(0)
    for i, side in enumerate(names):
        ratio_R = found_RS3[:, i, 1] / found_RS3[:, 0, 1]
        error = np.std(np.median(ratio_R[rng.integers(0, args.rounds, (1000, args.rounds))], axis=1))
        wall, cpu, peak = np.median(found_RS3[:, i, 0]), np.median(found_RS3[:, i, 1]), found_RS3[:, i, 2].max()
        print(f"| {side.partition('=')[0]} | {cpu:.3f} | {np.median(ratio_R):.3f} ± {error:.3f} | {wall:.3f} | {peak:.0f} |", flush=True)
    for side in sides:
        side.communicate()


if __name__ == "__main__":
    main()
