"""Time from the call of `dlmjax train` to the end of its first step: without compiled programs in the workdir, and with them.

    python -m benchmarks.start --data DIR [--config configs/masked.py:tiny] [--repeats 5]

Cold and warm starts alternate, each in a process and a workdir of its own; a warm one finds the programs of an earlier start in
`compiled/`. Prints seconds of wall time and of processor time (all threads), median and least. Processor time hardly depends on what
else the machine does; wall time does.
"""

import argparse
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from dlmjax.training.metrics import FILE


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a prepared corpus")
    parser.add_argument("--config", default="configs/masked.py:tiny")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    found = {"cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        first_step(args, root / "first")  # reads the files of Python and of the corpus into memory, and is not counted
        for number in range(args.repeats):
            for kind, times in found.items():
                workdir = root / f"{kind}-{number}"
                if kind == "warm":
                    shutil.copytree(root / "first" / "compiled", workdir / "compiled")
                times.append(first_step(args, workdir))
    for kind, times in found.items():
        wall, cpu = zip(*times, strict=True)
        print(
            f"{kind}: wall {statistics.median(wall):.1f} s (least {min(wall):.1f}), "
            f"processor {statistics.median(cpu):.1f} s (least {min(cpu):.1f}), {len(times)} starts"
        )


def first_step(args: argparse.Namespace, workdir: pathlib.Path) -> tuple[float, float]:
    """Seconds of wall time and of processor time of one start, which is stopped after its first step."""
    command = [sys.executable, "-m", "dlmjax", "train", "--config", args.config, "--workdir", str(workdir)]
    command += [f"--config.data.paths={args.data}", "--config.log.every=1"]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = workdir / FILE
    while not (metrics.exists() and metrics.stat().st_size):
        if process.poll() is not None:
            raise SystemExit(f"the run ended with exit code {process.returncode} before its first step")
        time.sleep(0.01)
    wall = time.perf_counter() - start
    process.send_signal(signal.SIGKILL)
    usage = os.wait4(process.pid, 0)[2]
    return wall, usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
