"""A small network with many calls, or a large one with few? Nats of held-out text by width and rule, against the FLOPs of a decoded token.

    python -m benchmarks.size_steps --data DIR [--widths 32,64,128] [--tokens 1.5e6] [--windows 32] [--rules ...] [--json FILE]

Masked runs of configs/masked.py:tiny (3 layers, rows of 128) of several widths read the same tokens of a prepared corpus in training.
Nats are those of `dlmjax evaluate --likelihood order:RULE`. A decoded token costs 2 n FLOPs for each call, n parameters of its matrices
without embedding and head, since a call reads the whole canvas. `best`: no other row has fewer nats for at most the FLOPs. ± over windows.
"""

import argparse
import pathlib

from benchmarks.toy_runs import trained
from dlmjax import config as config_lib
from dlmjax.data import load_tokenizer
from dlmjax.experiment import assemble
from dlmjax.files import write_json

RULES = (
    "margin(count=1)",
    "margin(count=4)",
    "margin(count=16)",
    "min_gap(rule=margin(count=16), d=8)",
    "min_gap(rule=margin(count=32), d=6)",
    "min_gap(rule=margin(count=32), d=4)",
)


def overrides_of(width: int, seed: int) -> list[str]:
    """The config of a width: heads of 16 channels, an MLP of 2.75 widths."""
    sizes = {"depth": 3, "width": width, "heads": width // 16, "kv_heads": width // 16, "ffn": width * 11 // 4}
    return [*(f"model.{name}={value}" for name, value in sizes.items()), "log.evaluate=0", "log.sample=0", f"seed={seed}"]


def measure(run, rule: str, split: str, windows: int) -> dict:
    """Nats of held-out text under a rule, and what a token costs."""
    result = run.evaluate(likelihood=f"order:{rule}", split=split, windows=windows).result
    model = run.experiment.config.model
    inner = model.depth * model.width * (4 * model.heads * model.head_dim + 3 * model.ffn)
    numbers = {"nats": result.nats_per_token, "stderr": result.stderr_nats_per_token, "calls": result.calls_per_token}
    return {"rule": rule, **numbers, "parameters": inner}


def table(rows: list[dict]) -> str:
    """Markdown, sorted by FLOPs."""
    for row in rows:
        row["flops"] = 2 * row["parameters"] * row["calls"]
    lines = ["| width | rule | calls | FLOPs/token | nats/token | best |", "|---:|---|---:|---:|---:|---|"]
    for row in sorted(rows, key=lambda row: row["flops"]):
        best = not any(other["flops"] <= row["flops"] and other["nats"] < row["nats"] for other in rows)
        lines.append(
            f"| {row['width']} | `{row['rule']}` | {row['calls']:.1f} | {row['flops']:.2g} | {row['nats']:.4f} ± {row['stderr']:.4f} | "
            f"{'best' if best else ''} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="DIR", help="prepared corpus")
    parser.add_argument("--runs", default="runs/size_steps", metavar="DIR", help="folder of runs; runs in it are not trained again")
    parser.add_argument("--widths", default="32,64,128", help="channels, multiples of 16, with commas")
    parser.add_argument("--tokens", type=float, default=1.5e6, help="training tokens of each run")
    parser.add_argument("--rules", nargs="+", default=list(RULES), help="rules with a path")
    parser.add_argument("--split", default="valid", help="split of the corpus")
    parser.add_argument("--windows", type=int, default=32, help="held-out texts")
    parser.add_argument("--seed", type=int, default=0, help="seed of training")
    parser.add_argument("--json", help="file for the rows")
    args = parser.parse_args()
    data, rows = pathlib.Path(args.data), []
    for width in map(int, args.widths.split(",")):
        overrides = overrides_of(width, args.seed)
        config = config_lib.load("configs/masked.py:tiny", [f"data.paths={data}", *overrides])
        flops = args.tokens * assemble(config, load_tokenizer(f"saved:{data}")).flops_per_token
        run = trained(pathlib.Path(args.runs) / f"width{width}_seed{args.seed}", data, flops, overrides, base="masked.py:tiny")
        rows += [{"width": width, **measure(run, rule, args.split, args.windows)} for rule in args.rules]
        print(table([row for row in rows if row["width"] == width]), flush=True)
    print(f"\n{args.tokens:.3g} training tokens a run, {args.windows} windows of {args.split}\n\n{table(rows)}")
    if args.json:
        write_json(args.json, {"tokens": args.tokens, "rows": rows})


if __name__ == "__main__":
    main()
