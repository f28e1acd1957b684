"""Cost of a training step of each noise process relative to a masked one: time and temporary memory, at GPT-2 small's size or tiny.

    python -m benchmarks.family_cost [--families "uniform;hybrid;score;blocks 4"] [--batch 4] [--length 512] [--rounds 3] [--json FILE]
    python -m benchmarks.family_cost --tiny --batch 32 --length 128 --rounds 7
    python -m benchmarks.family_cost --tiny --batch 32 --length 128 --rounds 40 --against OLD

The names are those of `benchmarks.families`. The network, optimizer and step are those of `configs/NAME.py` (12 layers of 768, 50,257
classes); on a CPU in float32 with dense attention and a small batch, on a GPU in bfloat16 with cuDNN. `--tiny`: `configs/NAME.py:tiny`
with 27 symbols. Steps of a family and of masked diffusion take turns in one process, after each has compiled and run once; the ratio is
of medians. Memory is that of the compiled step beside its arguments (XLA's analysis). Tokens are random: the time does not
depend on them.

`--against OLD`: each family against itself in another checkout, two processes whose steps alternate. Reported: the median over rounds of
this checkout's time over OLD's, with the standard error of the median by bootstrap, and the seconds from config to first step of each.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import jax
import numpy as np

from benchmarks import families
from benchmarks.families import FAMILIES
from benchmarks.random_batch import random_batch
from dlmjax import config as config_lib
from dlmjax.cluster.memory import keep_freed_memory
from dlmjax.data import load_tokenizer
from dlmjax.experiment import assemble
from dlmjax.train import train_step_of
from dlmjax.training import init_state

ROOT = pathlib.Path(families.__file__).resolve().parents[1]  # the checkout whose code this is, not that of this file: see Other


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
        batch = random_batch(26 if args.tiny else 256, args.batch, args.length)
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


class Other:
    """A family in a process of its own, which runs this file on the code of another checkout."""

    def __init__(self, name: str, root: pathlib.Path):
        command = [sys.executable, __file__, *sys.argv[1:], "--serve", name]
        environment = {**os.environ, "PYTHONPATH": str(root)}
        self.process = subprocess.Popen(command, cwd=root, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.start, self.temporary = self._read()

    def __call__(self) -> tuple[float, float]:
        """(wall seconds, CPU seconds) of one step."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self):
        return tuple(json.loads(self.process.stdout.readline()))

    def close(self):
        self.process.communicate()


def serve(name: str, args):
    """Answers each line of the input with the times of one step."""
    start = time.perf_counter()
    side = Side(name, args)
    print(json.dumps((time.perf_counter() - start, side.temporary)), flush=True)
    for _ in sys.stdin:
        print(json.dumps(side()), flush=True)


def compare(args):
    """Prints the step of each family in this checkout over that of `args.against`."""
    print("| family | step, s | time | CPU time | temporary memory | first step after, s: this, other |\n|---|" + "---:|" * 5, flush=True)
    rng = np.random.default_rng(0)
    for name in args.families.split(";"):
        this, other = sides = [Other(name, ROOT), Other(name, args.against.resolve())]
        pairs_R22 = np.array([[side() for side in sides[:: (-1) ** i]][:: (-1) ** i] for i in range(args.rounds)])
        ratio_R2 = pairs_R22[:, 0] / pairs_R22[:, 1]
        error_2 = np.std(np.median(ratio_R2[rng.integers(0, args.rounds, (1000, args.rounds))], axis=1), axis=0)
        wall, cpu = (f"{np.median(ratio_R2[:, i]):.3f} ± {error_2[i]:.3f}" for i in range(2))
        memory, starts = this.temporary / other.temporary, f"{this.start:.1f}, {other.start:.1f}"
        print(f"| {name} | {np.median(pairs_R22[:, 0, 0]):.3f} | {wall} | {cpu} | {memory:.2f}x | {starts} |", flush=True)
        for side in sides:
            side.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", default=";".join(FAMILIES), help="names, separated by semicolons")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    parser.add_argument("--against", type=pathlib.Path, help="another checkout, to compare each family with itself")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    keep_freed_memory()
    if args.serve:
        return serve(args.serve, args)
    device = jax.devices()[0].device_kind
    classes = "27" if args.tiny else "50,257"
    print(f"{args.batch} x {args.length} tokens, {classes} classes, {device}, {os.cpu_count()} cores; load {os.getloadavg()[0]:.1f}\n")
    if args.against:
        return compare(args)
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
