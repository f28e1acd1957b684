"""Training step (forward, backward, AdamW) on CPU against an eager PyTorch twin of the same network and loss, interleaved in one run.

    python benchmarks/step_speed.py [--config char|words|all] [--rounds 9] [--dtype float32] [--json FILE]

Both sides compute the masked loss on the masked rows only, from the same weights and the same batch, with as many threads as there are
cores. The twin uses every optimisation that stays eager: its attention takes no mask (there is one document per row; ours evaluates its
segment mask), its AdamW is the fused one. A round is three steps of one side, then three of the other; the ratio is of medians. Ours is
compiled before. On an idle machine compare wall times; where other processes run, compare the CPU times.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from dlmjax.cluster.memory import keep_freed_memory
from dlmjax.models import Execution, ModelSpec, build_network
from tests.models.torch_twin import Twin

# (spec, batch, length, target ratio of tokens per second)
CONFIGS = {
    "char": (ModelSpec(vocab=27, depth=6, width=384, heads=6, kv_heads=6, head_dim=64, ffn=1024), 8, 256, 0.75),
    "words": (ModelSpec(vocab=32_000, depth=6, width=384, heads=6, kv_heads=6, head_dim=64, ffn=1024), 8, 256, 1.0),
}
OPTIMIZER = dict(lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)


def make_batch(spec, batch, length):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, spec.vocab - 1, (batch, length)).astype(np.int32)
    level = (np.arange(batch) + 0.5)[:, None] / batch * np.ones((1, length))
    rows = rng.random((batch, length)) < level
    return {
        "tokens": tokens,
        "noisy": np.where(rows, spec.vocab - 1, tokens).astype(np.int32),
        "rows": rows,
        "weight": (1.0 / level / (batch * length)).astype(np.float32),
        "positions": np.tile(np.arange(length, dtype=np.int32), (batch, 1)),
        "segments": np.ones((batch, length), np.int32),
    }


def cross_entropy(logits_NV, target_N):
    return jax.nn.logsumexp(logits_NV, axis=-1) - jnp.take_along_axis(logits_NV, target_N[:, None], axis=-1)[:, 0]


def ours(spec, execution, batch):
    """(step function, parameters): one call runs one optimizer step and waits for it."""
    network = build_network(spec, execution)
    optimizer = optax.adamw(OPTIMIZER["lr"], *OPTIMIZER["betas"], OPTIMIZER["eps"], weight_decay=OPTIMIZER["weight_decay"])
    params = network.init(jax.random.key(0))
    state = {"params": params, "opt": optimizer.init(params)}
    arrays = jax.device_put(batch)

    def step(state, batch):
        def loss(params):
            denoiser = network.bind(params, batch["segments"], batch["positions"])
            hidden = denoiser.hidden(batch["noisy"], batch["weight"])
            return denoiser.row_losses(hidden, batch["rows"], cross_entropy, (batch["tokens"],), batch["weight"])[0]

        value, gradients = jax.value_and_grad(loss)(state["params"])
        updates, opt = optimizer.update(gradients, state["opt"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "opt": opt}, value

    start = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0).lower(state, arrays).compile()
    print(f"compiled in {time.perf_counter() - start:.1f} s", file=sys.stderr)
    first = jax.tree.map(np.asarray, params)
    holder = {"state": state}

    def run():
        holder["state"], value = compiled(holder["state"], arrays)
        return float(value)

    return run, first


def twin(spec, batch, params):
    model = Twin(spec)
    model.load(params)
    optimizer = torch.optim.AdamW(model.parameters(), **OPTIMIZER, fused=True)
    arrays = {name: torch.tensor(value).long() if value.dtype == np.int32 else torch.tensor(value) for name, value in batch.items()}

    def run():
        optimizer.zero_grad(set_to_none=True)
        loss = model.loss(arrays["tokens"], arrays["noisy"], arrays["rows"], arrays["weight"], arrays["positions"])
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


def timed(run):
    wall, cpu = time.perf_counter(), time.process_time()
    value = run()
    return time.perf_counter() - wall, time.process_time() - cpu, value


def measure(name, rounds, dtype, scan, head_chunk):
    spec, batch, length, target = CONFIGS[name]
    arrays = make_batch(spec, batch, length)
    run_ours, params = ours(spec, Execution(dtype=dtype, scan=scan, head_chunk=head_chunk), arrays)
    run_twin = twin(spec, arrays, params)
    first = [timed(run)[2] for run in (run_ours, run_twin)]
    if abs(first[0] - first[1]) > (1e-3 if dtype == "float32" else 3e-2) * first[1]:
        raise SystemExit(f"the two losses differ at the first step: {first}")
    times = {"ours": [], "twin": []}
    for _ in range(rounds):
        for side, run in (("ours", run_ours), ("twin", run_twin)):
            times[side] += [timed(run) for _ in range(3)]
    wall = {side: statistics.median(t[0] for t in values) for side, values in times.items()}
    cpu = {side: statistics.median(t[1] for t in values) for side, values in times.items()}
    tokens = batch * length
    return {
        "config": name,
        "parameters": sum(p.size for p in jax.tree.leaves(params)),
        "vocab": spec.vocab,
        "tokens_per_step": tokens,
        "dtype": dtype,
        "scan": scan,
        "loss_first_step": {"ours": first[0], "twin": first[1]},
        "tokens_per_second": {side: tokens / t for side, t in wall.items()},
        "ratio_wall": wall["twin"] / wall["ours"],
        "ratio_cpu_time": cpu["twin"] / cpu["ours"],
        "target": target,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="all", choices=[*CONFIGS, "all"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--scan", action="store_true", help="scanned layers instead of unrolled ones")
    parser.add_argument("--head-chunk", type=int, default=0, help="rows whose logits exist at once; 0 = automatic")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    keep_freed_memory()  # both sides profit
    results = [
        measure(name, args.rounds, args.dtype, args.scan, args.head_chunk) for name in (CONFIGS if args.config == "all" else [args.config])
    ]
    print(f"{'config':8} {'params':>8} {'vocab':>6} {'ours tok/s':>11} {'torch tok/s':>11} {'ratio':>6} {'cpu ratio':>9} {'target':>6}")
    for r in results:
        speed = r["tokens_per_second"]
        print(
            f"{r['config']:8} {r['parameters'] / 1e6:7.1f}M {r['vocab']:6d} {speed['ours']:11.0f} {speed['twin']:11.0f}"
            f" {r['ratio_wall']:6.2f} {r['ratio_cpu_time']:9.2f} {r['target']:6.2f}"
        )
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
