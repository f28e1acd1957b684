"""What parallel steps cost on a text whose distribution is known: KL(text || sampled) against the number of steps, predicted and measured.

    python -m benchmarks.kl_steps [--symbols 8] [--length 32] [--texts 4000]
    python -m benchmarks.kl_steps --write runs/chain/text.txt      # a text to train a run on, with the commands
    python -m benchmarks.kl_steps --workdir runs/chain/run         # the same with that run's network

The chain of `benchmarks.chain`. Random order, the same number of tokens in each of N steps: KL = (TC + DTC) / (2 L) (L / N - 1) nats to
first order, TC total and DTC dual total correlation; no constant is fitted. Rules choose, then draw, so their KL is -log q(x) along the
path of each text less the entropy of the text. With a network, one token a step in the same order is subtracted instead: the price of
parallel steps. ±: standard error over texts (and over orders where they are random).
"""

import argparse
import math
import pathlib
import string

import numpy as np

from benchmarks.chain import Chain, path_nats, random_order_nats
from dlmjax import open_run
from dlmjax.diffusion.process import bind_process
from dlmjax.files import write_json

RULES = ("left_to_right", "entropy", "margin")


def network_of(workdir: str, chain: Chain):
    """(process, bind, params, log_p, mask id, ids of the symbols) of a run that was trained on the chain."""
    run = open_run(workdir)
    process, network = run.experiment.process.bound, run.experiment.unpartitioned
    ids_K = run.tokenizer.encode(string.ascii_lowercase[: chain.symbols])

    def log_p(z_BL):
        ones_BL = np.ones(z_BL.shape, np.int32)
        index_BL = np.broadcast_to(np.arange(z_BL.shape[1], dtype=np.int32), z_BL.shape)
        bound = network.bind(run.params, ones_BL, index_BL, process.attention)
        t_BL = bind_process(process, run.params).time_embedding_input(np.ones(z_BL.shape, np.float32))
        return bound.logits(bound.hidden(z_BL, t_BL))

    return process, network.bind, run.params, log_p, process.mask_id, np.asarray(ids_K, np.int32)


def measure(chain: Chain, workdir: str | None, count: int, seed: int) -> list[dict]:
    """Rows: order, steps, KL or price, its error, the prediction."""
    texts_BL = chain.texts(count, seed)
    process, bind, params, log_p, mask_id = chain.process, chain.bind, (), chain.log_p, chain.symbols
    if workdir:
        process, bind, params, log_p, mask_id, ids_K = network_of(workdir, chain)
        texts_BL = ids_K[texts_BL]
    steps = [2**k for k in range(int(math.log2(chain.length)) + 1)]
    rows, entropy = [], chain.entropy
    ones: dict[str, np.ndarray | float] = {}
    for number in reversed(steps):
        measured = {"random": (random_order_nats(log_p, mask_id, texts_BL, number, seed), number)}
        for rule in RULES:
            measured[rule] = path_nats(process, bind, params, f"{rule}(steps={number})", texts_BL)
        for order, (nats_B, calls) in measured.items():
            if number == chain.length:
                ones[order] = nats_B if workdir else entropy
            predicted = chain.correlation / (2 * chain.length) * (chain.length / number - 1)
            rows.append(_row(order, calls, nats_B - ones[order], predicted if order == "random" else None))
    nats_B, calls = path_nats(process, bind, params, "spread", texts_BL)
    return [*rows, _row("spread", calls, nats_B - ones["left_to_right"], None)]


def _row(order: str, calls: float, excess_B: np.ndarray, predicted: float | None) -> dict:
    error = excess_B.std(ddof=1) / len(excess_B) ** 0.5
    return {"order": order, "steps": float(calls), "kl": float(excess_B.mean()), "stderr": float(error), "predicted": predicted}


def slope(rows: list[dict]) -> float:
    """Of log KL against log N, random order, steps from 2 on where the KL is not 0."""
    points = [(math.log(row["steps"]), math.log(row["kl"])) for row in rows if row["order"] == "random" and row["kl"] > 0.05]
    return float(np.polyfit(*zip(*points, strict=True), 1)[0])


def table(rows: list[dict]) -> str:
    """Markdown."""
    lines = ["| order | steps | KL, nats/text | predicted |", "|---|---:|---:|---:|"]
    for row in sorted(rows, key=lambda row: (row["order"], row["steps"])):
        predicted = "" if row["predicted"] is None else f"{row['predicted']:.3f}"
        lines.append(f"| {row['order']} | {row['steps']:g} | {row['kl']:.4f} ± {row['stderr']:.4f} | {predicted} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--symbols", type=int, default=8, help="symbols of the chain")
    parser.add_argument("--length", type=int, default=32, help="tokens of a text, a power of 2")
    parser.add_argument("--texts", type=int, default=4000, help="texts of the measurement")
    parser.add_argument("--seed", type=int, default=1, help="of texts and orders")
    parser.add_argument("--workdir", help="run that was trained on a text of --write")
    parser.add_argument("--write", metavar="FILE", help="write a text of 2,000,000 symbols instead")
    parser.add_argument("--json", help="file for the rows")
    args = parser.parse_args()
    chain = Chain(args.symbols, args.length)
    if args.write:
        path, letters = pathlib.Path(args.write), np.array(list(string.ascii_lowercase[: args.symbols]))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(letters[Chain(args.symbols, 2_000_000).texts(1, args.seed)[0]]) + "\n")
        print(f"dlmjax prepare --input {path} --format txt --tokenizer char27 --valid-fraction 0 --output {path.parent}/data")
        print(f"dlmjax train --config configs/masked.py:tiny --config.data.paths={path.parent}/data --config.data.length={args.length} ...")
        return
    rows = measure(chain, args.workdir, args.texts, args.seed)
    print(f"TC + DTC = {chain.correlation:.3f} nats, entropy {chain.entropy:.3f} nats; {args.texts} texts\n\n{table(rows)}")
    print(f"\nslope of log KL against log N, random order: {slope(rows):.2f}")
    if args.json:
        write_json(args.json, {"symbols": args.symbols, "length": args.length, "texts": args.texts, "rows": rows})


if __name__ == "__main__":
    main()
