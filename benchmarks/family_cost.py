"""Cost of a training step of each noise family relative to a masked one: time and temporary memory, at GPT-2 small's size or tiny.

    python -m benchmarks.family_cost [--families "uniform;hybrid;score;blocks 4"] [--batch 4] [--length 512] [--rounds 3] [--json FILE]
    python -m benchmarks.family_cost --tiny --batch 32 --length 128 --rounds 7

The names are those of `benchmarks.families`. The network, optimizer and step are those of `configs/NAME.py` (12 layers of 768, 50,257
classes); on a CPU in float32 with dense attention and a small batch, on a GPU in bfloat16 with cuDNN. `--tiny`: `configs/NAME.py:tiny`
with 27 symbols. Steps of a family and of masked diffusion take turns in one process, after each has compiled and run once; the ratio is
of medians. Memory is that of the compiled step beside its arguments (XLA's analysis). Tokens are random: the time does not
depend on them.
"""

import argparse
import json
import os
import pathlib
import statistics
import time

import jax
import numpy as np

from benchmarks.families import FAMILIES
from dlmjax import config as config_lib
from dlmjax.cluster.host import keep_freed_memory
from dlmjax.data import load_tokenizer
from dlmjax.run import assemble
from dlmjax.train import train_step_of
from dlmjax.training import init_state

ROOT = pathlib.Path(__file__).resolve().parents[1]


class Side:
    """One family: its state and its compiled step."""

    def __init__(self, name: str, args):
        file, overrides = FAMILIES[name]
        size = "tiny" if args.tiny else "gpt2_small"
        config = config_lib.load(f"{ROOT}/configs/{file}.py:{size}", [*overrides, f"data.length={args.length}", "train.accumulation=1"])
        tokenizer = load_tokenizer("char27" if args.tiny else "bytes")
        vocab, gpu = tokenizer.vocab_size if args.tiny else 50_257, jax.default_backend() == "gpu"
        with config.unlocked():
            config.data.batch, config.model.vocab = args.batch, vocab
            if not args.tiny:
                config.execution.update(dtype="bfloat16" if gpu else "float32", attention="cudnn" if gpu else "dense", scan=True)
        experiment = assemble(config, tokenizer, counts_V=np.ones(vocab, np.int64))
        shape = (args.batch, args.length)
        tokens_BL = np.random.default_rng(0).integers(0, 26 if args.tiny else 256, shape).astype(np.int32)
        batch = {
            "tokens": tokens_BL,
            "segments": np.ones(shape, np.int32),
            "positions": np.tile(np.arange(args.length, dtype=np.int32), (args.batch, 1)),
            "row": np.arange(args.batch, dtype=np.int32),
        }
        self.state = init_state(experiment.init, experiment.optimizer, jax.random.key(0), experiment.param_shardings)
        self.batch, self.key = experiment.partition.put_batch(batch), jax.random.key(1)
        step = train_step_of(experiment)
        self.step, self.numbers = step.trace(self.state, self.batch, self.key).lower().compile(), step.placed
        self.temporary = self.step.memory_analysis().temp_size_in_bytes
        self()

    def __call__(self) -> tuple[float, float]:
        """(wall seconds, CPU seconds) of one step."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.state, metrics = self.step(self.state, self.batch, self.key, self.numbers)
        jax.block_until_ready((self.state, metrics))
        return time.perf_counter() - wall, time.process_time() - cpu


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", default=";".join(FAMILIES), help="names, separated by semicolons")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    args = parser.parse_args()
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    device = jax.devices()[0].device_kind
    classes = "27" if args.tiny else "50,257"
    print(f"{args.batch} x {args.length} tokens, {classes} classes, {device}, {os.cpu_count()} cores; load {os.getloadavg()[0]:.1f}\n")
    print("| family | step, s | time | CPU time | temporary memory |\n|---|---:|---:|---:|---:|", flush=True)
    masked, rows = Side("masked", args), {}
    for name in args.families.split(";"):
        side = Side(name, args)
        pairs = [(masked(), side()) for _ in range(args.rounds)]
        (base, base_cpu), (took, took_cpu) = ([statistics.median(pair[i][j] for pair in pairs) for j in range(2)] for i in range(2))
        rows[name] = {
            "seconds": took,
            "masked_seconds": base,
            "time": took / base,
            "cpu_time": took_cpu / base_cpu,
            "memory": side.temporary / masked.temporary,
            "temporary_bytes": side.temporary,
        }
        row = rows[name]
        print(f"| {name} | {took:.3f} | {row['time']:.2f}x | {row['cpu_time']:.2f}x | {row['memory']:.2f}x |", flush=True)
        del side
    print(
        f"\nmasked: {statistics.median(row['masked_seconds'] for row in rows.values()):.2f} s, {masked.temporary / 2**30:.2f} GiB temporary"
    )
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps({"device": device, "families": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
