"""Cost of a restart and waits of a run of several processes: two attempts of one run, the first ended by SIGTERM.

    python -m benchmarks.goodput --data DIR [--processes 2] [--devices 1] [--steps 400] [--config configs/quickstart.py]

Prints, from the counters that a run writes (goodput.json): seconds from the call to the end of the first step, without and with
compiled programs in the workdir, and the waits for checkpoints and for data as shares of the time spent in steps.
"""

import argparse
import pathlib
import shutil
import signal
import subprocess
import sys
import time

from dlmjax.training import read
from dlmjax.training.goodput import FILE, read_attempts

ROOT = pathlib.Path(__file__).resolve().parents[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a prepared corpus")
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices", type=int, default=1, help="virtual CPU devices of each process")
    parser.add_argument("--steps", type=int, default=400, help="training steps of the whole run, which is stopped once half way")
    parser.add_argument("--workdir", default="runs/goodput")
    args = parser.parse_args()
    workdir = pathlib.Path(args.workdir)
    shutil.rmtree(workdir, ignore_errors=True)
    local = [sys.executable, str(ROOT / "launch/local.py"), str(args.processes), "--devices", str(args.devices), "--"]
    train = [sys.executable, "-m", "dlmjax", "train", "--config", args.config, "--workdir", args.workdir]
    values = [
        f"data.paths={args.data}",
        f"train.steps={args.steps}",
        "checkpoint.every=100",
        "log.every=20",
        "log.evaluate=0",
        "log.sample=0",
    ]
    command = [*local, *train, *(f"--config.{value}" for value in values)]

    first = subprocess.Popen(command)
    while first.poll() is None and not ((workdir / "metrics.jsonl").exists() and _reached(workdir, args.steps // 2)):
        time.sleep(0.1)
    first.send_signal(signal.SIGTERM)
    if first.wait() or subprocess.run(command).returncode:
        raise SystemExit("the run failed; see above")
    cold, warm = read_attempts(workdir / FILE)
    print(f"first step after {cold.seconds['start']:.1f} s, with compiled programs {warm.seconds['start']:.1f} s")
    for name, attempt in (("first", cold), ("second", warm)):
        waits = ", ".join(f"{cause} {attempt.seconds[cause] / attempt.stepping:.2%}" for cause in ("checkpoint", "data"))
        print(f"{name} attempt: {attempt.last - attempt.first} steps in {attempt.stepping:.1f} s; waits as shares of that: {waits}")


def _reached(workdir: pathlib.Path, step: int) -> bool:
    return any(event["step"] >= step for event in read(workdir / "metrics.jsonl", "train"))


if __name__ == "__main__":
    main()
