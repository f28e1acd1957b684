"""Speed of evaluation relative to training of the same config, and network calls that a standard error costs.

    python -m benchmarks.evaluation_speed --config configs/masked.py:tiny --data data/char27 [--rounds 5] [--json FILE]
    python -m benchmarks.evaluation_speed --workdir RUN --data data/char27 --split valid --windows 2000 [--json FILE]

First form: tokens per second through the whole training step (forward, backward, optimizer, averages) and through the evaluator (8 noise
levels of every window, sums on the host, divided by 8), taking turns in one process after each has compiled and run. A training step and
a network call both count each token once, so the ratio is the gain from leaving out the backward pass; a bound takes `nodes x draws` calls.

Second form: the bound of a trained run on the same windows with several grids, its error and the parts of that error.
"""

import argparse
import json
import os
import statistics
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

from dlmjax import config as config_lib
from dlmjax.cluster.memory import keep_freed_memory
from dlmjax.data import Corpus, TrainWindows
from dlmjax.evaluation.text import Cut, corpus_text
from dlmjax.experiment import assemble, split_of
from dlmjax.files import write_atomically
from dlmjax.run import open_run
from dlmjax.train import train_step_of
from dlmjax.training import init_state

NODES = 8
GRIDS = [("gauss", 2, 1), ("gauss", 8, 1), ("gauss", 4, 2), ("stratified", 4, 2), ("count", 4, 2)]


def speed(config_file: str, data: str, rounds: int) -> dict:
    """Tokens per second of training and of evaluation, and their ratio."""
    config = config_lib.load(config_file, [f"data.paths={data}"])
    corpus = Corpus.open(data, split="train")
    experiment = assemble(config, corpus.tokenizer, counts_V=corpus.counts_V)
    batch, length = config.data.batch, config.data.length
    rows = TrainWindows([corpus], None, length, batch, config.seed).rows(0, range(batch))
    placed = experiment.partition.put_batch(rows)
    state = init_state(experiment.init, experiment.optimizer, jax.random.key(0), experiment.param_shardings, ema=config.train.ema > 0)
    step, key = train_step_of(experiment), jax.random.key(config.seed)
    evaluator, holder = experiment.evaluator(nodes=NODES), {"state": state}
    weights = jax.tree.map(lambda leaf: leaf.copy(), state["params"])

    def train() -> None:
        holder["state"], metrics = step(holder["state"], placed, key)
        jax.block_until_ready(metrics["loss"])

    def evaluate() -> None:
        evaluator.measure(weights, [rows])

    times: dict[str, list[float]] = {"train": [], "evaluate": []}
    train()
    evaluate()
    for _ in range(rounds):
        for name, work in (("train", train), ("evaluate", evaluate)):
            for _ in range(3):
                begin = time.perf_counter()
                work()
                times[name].append(time.perf_counter() - begin)
    passes = {"train": 1, "evaluate": evaluator.calls}
    rates = {name: passes[name] * batch * length / statistics.median(values) for name, values in times.items()}
    return {"config": config_file, "tokens_per_second": rates, "ratio": rates["evaluate"] / rates["train"]}


def errors(workdir: str, data: str | None, split: str, windows: int) -> list[dict]:
    """The bound, its error and its parts for each grid of `GRIDS`, on the same windows."""
    run = open_run(workdir)
    text = corpus_text(split_of(run, data, split), Cut(run.experiment.config.data.length, limit=windows))
    table = []
    for rule, nodes, draws in GRIDS:
        evaluator = run.experiment.evaluator(nodes=nodes, draws=draws, rule=rule)
        lengths_V = run.experiment.tokenizer.byte_lengths_V
        measured = evaluator.measure(run.params, text.windows.batches(64), byte_lengths_V=lengths_V, total=len(text.windows), progress=True)
        found = evaluator.result(measured)
        share = found.stderr_nats_per_token / found.nats_per_token
        row = {"rule": rule, "nodes": nodes, "draws": draws, "calls": evaluator.calls, "bits_per_byte": found.bits_per_byte}
        row["nats_per_token"] = found.nats_per_token
        table.append({**row, "stderr_bits_per_byte": found.stderr_bits_per_byte, "relative": share, "errors": found.errors})
    return table


def shown(table: list[dict]) -> str:
    """The table of errors as Markdown; the parts of the error, like the whole, as shares of the bound."""
    lines = ["| levels | draws | calls per token | bits/byte | s.e. | relative | sequences | masks | levels |", "|---" * 9 + "|"]
    for row in table:
        shares = [row["errors"][name] for name in ("sequences", "masks", "levels")]
        shares = ["" if part is None else f"{part / row['nats_per_token']:.2%}" for part in shares]
        lines.append(
            f"| {row['rule']} {row['nodes']} | {row['draws']} | {row['calls']} | {row['bits_per_byte']:.4f} | "
            f"{row['stderr_bits_per_byte']:.4f} | {row['relative']:.2%} | {' | '.join(shares)} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", help="measure speed: a config file, such as configs/masked.py:tiny")
    parser.add_argument("--workdir", help="measure errors: a trained run")
    parser.add_argument("--data", required=True, help="a prepared corpus")
    parser.add_argument("--split", default="valid", help="split of the corpus for the errors")
    parser.add_argument("--windows", type=int, default=2000, help="windows of the split for the errors")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of three runs of each side, for the speed")
    parser.add_argument("--json", help="JSON file for the figures")
    args = parser.parse_args()
    if bool(args.config) == bool(args.workdir):
        parser.error("give --config for the speed or --workdir for the errors")
    keep_freed_memory()
    if args.config:
        report = speed(args.config, args.data, args.rounds)
        rates = report["tokens_per_second"]
        print(f"{args.config}: training {rates['train']:,.0f} tokens/s, evaluation {rates['evaluate']:,.0f} tokens/s per network call")
        print(f"evaluation is {report['ratio']:.2f}x as fast (target 2.5x)")
    else:
        report = errors(args.workdir, args.data, args.split, args.windows)
        print(shown(report))
    if args.json:
        write_atomically(args.json, json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
