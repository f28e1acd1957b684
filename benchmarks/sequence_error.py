"""Wrong texts against wrong tokens: the share of samples that break the chain's one rule, and nats per token, against network calls.

    python -m benchmarks.sequence_error [--symbols 8] [--lengths 32,128] [--steps 8,32,128] [--rows 300]

The chain of `benchmarks.chain` and its exact denoiser; a text is wrong where two neighbours are equal. Ancestral sampling in N steps has
about (L - 1) / (N K) equal neighbours in a text, so 1 - exp(-(L - 1) / (N K)) of the texts are wrong: the loss of a token is the same for
every length at one N, that of a text needs N in proportion to L (2502.09622). Rules are on the same axes with the calls that they take.
Nats per token: KL(text || sampled) / L, by the paths of other texts; ancestral: to first order (TC + DTC) / (2 N L). ±: binomial, or over
texts.
"""

import argparse
import math

import numpy as np

from benchmarks.chain import Chain, path_nats
from dlmjax.files import write_json
from dlmjax.sampling import Sampler, SampleSettings, blank_canvas
from dlmjax.sampling.rule_names import IN_TIME

RULES = (
    "spread",
    "margin(count=4)",
    "entropy_bound(gamma=0.1)",
    "entropy_bound(gamma=4)",
    "min_gap(rule=entropy_bound(gamma=4), d=4)",
    "min_gap(rule=margin(count=16), d=8)",
)


def measure(chain: Chain, rule: str, steps: int, rows: int, seed: int = 0) -> dict:
    """One row of the table."""
    settings = SampleSettings(steps=steps, rule=rule, suppressed_ids=(chain.symbols,))
    found = Sampler(chain.process, chain.bind, settings).sample((), blank_canvas(chain.length, rows), seed=seed)
    wrong_B = chain.violations(found.tokens_BL)
    share = float(np.mean(wrong_B > 0))
    row = {"length": chain.length, "rule": rule, "steps": steps, "calls": float(found.calls_B.mean())}
    row |= {"equal_neighbours": float(wrong_B.mean()), "wrong_texts": share, "stderr_wrong_texts": math.sqrt(share * (1 - share) / rows)}
    if rule == IN_TIME:
        kl, error = chain.correlation / (2 * steps), 0.0
        row["predicted"] = 1 - math.exp(-(chain.length - 1) / (steps * chain.symbols))
    else:
        excess_B = path_nats(chain.process, chain.bind, (), rule, chain.texts(rows, seed + 1))[0] - chain.entropy
        kl, error = float(excess_B.mean()), float(excess_B.std(ddof=1) / math.sqrt(rows))
    return row | {"nats_per_token": kl / chain.length, "stderr_nats_per_token": error / chain.length}


def table(rows: list[dict]) -> str:
    """Markdown."""
    lines = ["| length | rule | calls | wrong texts | predicted | nats/token beyond the text's |", "|---:|---|---:|---:|---:|---:|"]
    for row in rows:
        rule = f"ancestral, {row['steps']} steps" if row["rule"] == IN_TIME else f"`{row['rule']}`"
        predicted = f"{row['predicted']:.3f}" if "predicted" in row else ""
        lines.append(
            f"| {row['length']} | {rule} | {row['calls']:.1f} | {row['wrong_texts']:.3f} ± {row['stderr_wrong_texts']:.3f} | {predicted} | "
            f"{row['nats_per_token']:.5f} ± {row['stderr_nats_per_token']:.5f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--symbols", type=int, default=8, help="symbols of the chain")
    parser.add_argument("--lengths", default="32,128", help="tokens of a text")
    parser.add_argument("--steps", default="8,32,128", help="steps of ancestral sampling")
    parser.add_argument("--rows", type=int, default=300, help="texts of each row")
    parser.add_argument("--json", help="file for the rows")
    args = parser.parse_args()
    rows = []
    for length in map(int, args.lengths.split(",")):
        chain = Chain(args.symbols, length)
        rows += [measure(chain, IN_TIME, int(steps), args.rows) for steps in args.steps.split(",")]
        rows += [measure(chain, rule, length, args.rows) for rule in RULES]
    print(table(rows))
    if args.json:
        write_json(args.json, {"symbols": args.symbols, "rows": rows})


if __name__ == "__main__":
    main()
