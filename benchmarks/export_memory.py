"""Peak memory of `dlmjax export` on a checkpoint of random weights, at a size beyond that of the tests.

    python -m benchmarks.export_memory --directory DIR          1.03B parameters, bfloat16, files of 2 GB; 6.2 GB of disk while it runs
    python -m benchmarks.export_memory --directory DIR --depth 2 --width 256 --vocab 1024          seconds

The checkpoint is made in one process and exported in another, whose peak resident size is reported beside its size before it reads
anything (Python, JAX and the compiler).
"""

import argparse
import json
import pathlib
import resource
import shutil
import subprocess
import sys
import time

GIB = 2**30


def make(directory: pathlib.Path, depth: int, width: int, vocab: int) -> None:
    """A workdir with random weights, one byte tokenizer and a vocabulary padded to `vocab`."""
    import jax

    from dlmjax import config as config_lib
    from dlmjax.data import load_tokenizer
    from dlmjax.experiment import assemble, claim_workdir
    from dlmjax.training import Checkpoints

    config = config_lib.default()
    heads = max(width // 128, 1)
    config.data.length = 128
    config.model.update(depth=depth, width=width, heads=heads, kv_heads=heads, head_dim=width // heads, ffn=width * 11 // 4, vocab=vocab)
    config.train.ema = 0.0
    experiment = assemble(config, load_tokenizer("bytes"))
    params = jax.jit(experiment.init, out_shardings=experiment.param_shardings)(jax.random.key(0))
    claim_workdir(directory, config, experiment.tokenizer)
    with Checkpoints(directory / "checkpoints") as checkpoints:
        checkpoints.save(1, {"params": params}, {"step": 1, "metric": None})
    print(json.dumps({"parameters": experiment.parameter_count}))


def measure(directory: pathlib.Path, dtype: str, shard_size: str) -> None:
    """Exports, and prints sizes in GiB."""
    import jax

    from dlmjax.interop.export import export

    jax.jit(lambda: 0)()
    before, start = _peak(), time.perf_counter()
    export(workdir=str(directory), output=str(directory / "hf"), dtype=dtype, shard_size=shard_size)
    files = [path.stat().st_size / GIB for path in (directory / "hf").glob("*.safetensors")]
    result = {"seconds": time.perf_counter() - start, "before_gib": before, "peak_gib": _peak(), "largest_file_gib": max(files)}
    print(json.dumps({name: round(value, 3) for name, value in result.items()} | {"files": len(files)}))


def _peak() -> float:
    """Largest resident size of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", required=True, type=pathlib.Path, help="a new directory; removed at the end")
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--vocab", type=int, default=50_304)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--shard-size", default="2GB")
    parser.add_argument("--act", choices=("make", "measure"), help="role of a child process (internal)")
    options = parser.parse_args()
    if options.act == "make":
        return make(options.directory, options.depth, options.width, options.vocab)
    if options.act == "measure":
        return measure(options.directory, options.dtype, options.shard_size)
    if options.directory.exists():
        parser.error(f"{options.directory} exists")
    try:
        for act in ("make", "measure"):
            subprocess.run([sys.executable, "-m", "benchmarks.export_memory", *sys.argv[1:], "--act", act], check=True)
    finally:
        shutil.rmtree(options.directory, ignore_errors=True)


if __name__ == "__main__":
    main()
