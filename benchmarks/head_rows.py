"""The head on the rows that carry loss against the dense [B, L, V] head: temporary memory and time of a training step.

    python benchmarks/head_rows.py [--time-batch 2] [--time-length 256] [--rounds 5] [--json FILE]

Memory is that of XLA (`memory_analysis().temp_size_in_bytes`) of the compiled step (forward, backward, AdamW) at V = 50257, B = 8,
L = 1024, 4 layers, d 256; nothing is run at that size. Time is measured at a smaller B x L, the same for both sides, interleaved.
The dense side is the direct form: logits of all positions, cross-entropy, zero weight on positions that are not masked.
Targets: at most half the memory, at least 1.3 times as fast.
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

from dlmjax.cluster.memory import keep_freed_memory
from dlmjax.models import Execution, ModelSpec, build_network

SPEC = ModelSpec(vocab=50_257, depth=4, width=256, heads=4, kv_heads=4, head_dim=64, ffn=704)
MEMORY_TARGET, SPEED_TARGET = 0.5, 1.3


def cross_entropy(logits_NV, target_N):
    return jax.nn.logsumexp(logits_NV, axis=-1) - jnp.take_along_axis(logits_NV, target_N[:, None], axis=-1)[:, 0]


def make_batch(batch, length):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, SPEC.vocab - 1, (batch, length)).astype(np.int32)
    level = (np.arange(batch) + 0.5)[:, None] / batch * np.ones((1, length))
    rows = rng.random((batch, length)) < level
    return {
        "tokens": tokens,
        "noisy": np.where(rows, SPEC.vocab - 1, tokens).astype(np.int32),
        "rows": rows,
        "weight": (1.0 / level / (batch * length)).astype(np.float32),
        "positions": np.tile(np.arange(length, dtype=np.int32), (batch, 1)),
        "segments": np.ones((batch, length), np.int32),
    }


def compile_step(dense, batch):
    """(compiled step, start state) of the row-only or the dense head."""
    network = build_network(SPEC, Execution(scan=False))
    optimizer = optax.adamw(1e-3)

    def loss(params, batch):
        denoiser = network.bind(params, batch["segments"], batch["positions"])
        hidden_BLD = denoiser.hidden(batch["noisy"], batch["weight"])
        if not dense:
            return denoiser.row_losses(hidden_BLD, batch["rows"], cross_entropy, (batch["tokens"],), batch["weight"])[0]
        logits_BLV = denoiser.logits(hidden_BLD)
        nats_BL = cross_entropy(logits_BLV.reshape(-1, SPEC.vocab), batch["tokens"].reshape(-1)).reshape(batch["tokens"].shape)
        return jnp.sum(jnp.where(batch["rows"], nats_BL * batch["weight"], 0.0))

    def step(state, batch):
        value, gradients = jax.value_and_grad(loss)(state["params"], batch)
        updates, opt = optimizer.update(gradients, state["opt"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "opt": opt}, value

    def start():
        params = network.init(jax.random.key(0))
        return {"params": params, "opt": optimizer.init(params)}

    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), batch)
    return jax.jit(step, donate_argnums=0).lower(jax.eval_shape(start), abstract).compile(), start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time-batch", type=int, default=4)
    parser.add_argument("--time-length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    keep_freed_memory()

    memory = {}
    for side, dense in (("rows", False), ("dense", True)):
        compiled, _ = compile_step(dense, make_batch(8, 1024))
        memory[side] = compiled.memory_analysis().temp_size_in_bytes

    batch = make_batch(args.time_batch, args.time_length)
    sides = {side: compile_step(dense, batch) for side, dense in (("rows", False), ("dense", True))}
    states = {side: jax.jit(start)() for side, (_, start) in sides.items()}
    wall, cpu, first = {"rows": [], "dense": []}, {"rows": [], "dense": []}, {}
    for _ in range(args.rounds + 1):
        for side, (compiled, _) in sides.items():
            began, began_cpu = time.perf_counter(), time.process_time()
            states[side], value = compiled(states[side], batch)
            value = float(value)
            wall[side].append(time.perf_counter() - began)
            cpu[side].append(time.process_time() - began_cpu)
            first.setdefault(side, value)
    if abs(first["rows"] - first["dense"]) > 1e-4 * first["dense"]:
        raise SystemExit(f"the two losses differ: {first}")

    result = {
        "vocab": SPEC.vocab,
        "memory_shape": [8, 1024],
        "temporary_bytes": memory,
        "memory_ratio": memory["rows"] / memory["dense"],
        "memory_target": MEMORY_TARGET,
        "time_shape": [args.time_batch, args.time_length],
        "masked_share": float(batch["rows"].mean()),
        "seconds": {side: statistics.median(values[1:]) for side, values in wall.items()},
        "cpu_seconds": {side: statistics.median(values[1:]) for side, values in cpu.items()},
        "speed_target": SPEED_TARGET,
        "cpus": os.cpu_count(),
    }
    result["speed_ratio"] = result["seconds"]["dense"] / result["seconds"]["rows"]
    result["speed_ratio_cpu_time"] = result["cpu_seconds"]["dense"] / result["cpu_seconds"]["rows"]
    print(f"V {SPEC.vocab}, {SPEC.depth} layers, d {SPEC.width}; memory at 8 x 1024, time at {args.time_batch} x {args.time_length}")
    print(f"{'head':6} {'temporary':>12} {'step':>9} {'cpu':>9}")
    for side in ("rows", "dense"):
        print(f"{side:6} {memory[side] / 2**20:8.0f} MiB {result['seconds'][side]:7.2f} s {result['cpu_seconds'][side]:7.2f} s")
    print(f"memory ratio {result['memory_ratio']:.2f} (target at most {MEMORY_TARGET}), ", end="")
    print(f"speed ratio {result['speed_ratio']:.2f} wall, {result['speed_ratio_cpu_time']:.2f} cpu (target at least {SPEED_TARGET})")
    print(json.dumps(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
