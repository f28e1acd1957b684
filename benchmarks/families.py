"""Every noise process trained for the same FLOPs on the same text: a table of bounds, step times and sample entropies.

    python -m benchmarks.families --data data/char27 [--families masked,uniform] [--masked-steps 1290] [--output FILE.json]

Each family's `configs/NAME.py:tiny` is trained by `dlmjax train` itself for as many steps as cost what `--masked-steps` masked ones cost
(FLOPs counted from shapes: two streams of block diffusion, second passes of self-conditioning and of boundary terms included). Then:

    NELBO        bits per character of the `test` split, +- standard error over windows (exact for the autoregressive family)
    step time    of the training loop, relative to masked
    entropy      of the characters of 16 samples (64 steps), bits; the text's own is printed above the table
    learned      whether the NELBO is at least half a bit below the unigram entropy

A run that is in `--runs` already is not trained again. About two minutes a family on two CPU cores.
"""

import argparse
import json
import math
import pathlib
import statistics

from dlmjax import config as config_lib
from dlmjax.data import Corpus
from dlmjax.evaluate import TextSettings, evaluate
from dlmjax.evaluation.ngram import entropy_baselines
from dlmjax.experiment import assemble
from dlmjax.run import open_run
from dlmjax.sampling import SampleSettings, build_canvas, sampler_for, suppressed_ids
from dlmjax.train import train

ROOT = pathlib.Path(__file__).resolve().parents[1]
# name -> config file, overrides
FAMILIES = {
    "autoregressive": ("autoregressive", []),
    "masked": ("masked", []),
    "blocks 4": ("blocks", []),
    "blocks 4, uniform": (
        "blocks",
        ["process.name=blocks(size=4, noise=uniform)", "model.time_input=adaln", "process.weighting=", "process.times=stratified"],
    ),
    "uniform": ("uniform", []),
    "duo": ("duo", []),
    "hybrid": ("hybrid", []),
    "score, absorbing": ("score", []),
    "d3pm, uniform": ("d3pm", []),
    "d3pm, absorbing": ("d3pm", ["process.name=d3pm(steps=1000, kernel=absorbing)"]),
    "flow matching, uniform": ("flow_matching", []),
    "flow matching, mask": ("flow_matching", ["process.name=flow_matching(noise='mask')"]),
    "genmd4": ("genmd4", []),
    "lomdm": ("lomdm", []),
    "frequency": ("frequency", []),
    "hyperschedule 32": ("hyperschedule", []),
    "plaid": ("plaid", []),
    "diffusion-lm": ("diffusion_lm", []),
    "sed": ("sed", []),
    "embedding flow": ("embedding_flow", []),
}
SAMPLES, SAMPLE_STEPS = 16, 64


def load(name: str, data: str):
    """The tiny config of a family on a corpus, and its experiment."""
    file, overrides = FAMILIES[name]
    config = config_lib.load(f"{ROOT}/configs/{file}.py:tiny", [*overrides, f"data.paths={data}", "log.sample=0", "log.evaluate=0"])
    corpus = Corpus.open(data, split="train")
    return config, assemble(config, corpus.tokenizer, counts_V=corpus.counts_V)


def step_seconds(workdir: pathlib.Path, tokens: int) -> float:
    """Median over the logged windows of a run; NaN where it is too short to have one that is timed."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    rates = [line["tokens_per_second_per_device"] for line in lines if "tokens_per_second_per_device" in line]
    return tokens / statistics.median(rates) if rates else math.nan


def run(name: str, args, budget: float) -> dict:
    """Trains, evaluates and samples one family."""
    config, experiment = load(name, args.data)
    tokens = config.data.batch * config.data.length
    steps = max(1, round(budget / (experiment.flops_per_token * tokens)))
    with config.unlocked():
        config.train.steps = steps
        config.optimizer.warmup = min(config.optimizer.warmup, steps // 4)
    workdir = pathlib.Path(args.runs) / name.replace(" ", "_").replace(",", "")
    result_file = workdir / "family.json"
    if result_file.exists():
        return json.loads(result_file.read_text())
    train(config, str(workdir))
    trained = open_run(str(workdir))
    found = evaluate(trained, TextSettings(data=args.data, split=args.split, windows=args.windows)).result
    process, tokenizer = trained.experiment.process, trained.experiment.tokenizer
    settings = SampleSettings(steps=SAMPLE_STEPS, suppressed_ids=suppressed_ids(tokenizer, process.vocab))
    sampler = sampler_for(process, trained.experiment.unpartitioned, settings, window=config.data.length)
    samples = sampler.sample(trained.params, build_canvas(tokenizer, length=config.data.length, batch=SAMPLES), seed=0)
    row = {
        "family": name,
        "config": f"configs/{FAMILIES[name][0]}.py:tiny",
        "steps": steps,
        "bits": found.bits_per_byte,
        "stderr": found.stderr_bits_per_byte,
        "exact": found.rule == "exact",
        "windows": found.windows,
        "step_seconds": step_seconds(workdir, tokens),
        "sample_entropy_bits": samples.entropy / math.log(2),
        "sample": tokenizer.decode(samples.tokens_BL[0]),
    }
    result_file.write_text(json.dumps(row, indent=1) + "\n")
    return row


def table(rows: list[dict], unigram: float) -> str:
    """Markdown, in the order of FAMILIES."""
    masked = next((row["step_seconds"] for row in rows if row["family"] == "masked"), math.nan)
    lines = ["| family | steps | test NELBO, bits/char | step time | sample entropy, bits | learned |", "|---|---:|---:|---:|---:|---|"]
    for row in rows:
        sign = "=" if row["exact"] else "≤"
        learned = "yes" if row["bits"] <= unigram - 0.5 else f"no ({row['bits'] - unigram:+.2f} from unigram)"
        lines.append(
            f"| {row['family']} | {row['steps']} | {sign} {row['bits']:.3f} ± {row['stderr']:.3f} | {row['step_seconds'] / masked:.2f}x "
            f"| {row['sample_entropy_bits']:.2f} | {learned} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="a corpus prepared with tokenizer char27")
    parser.add_argument("--families", default=",".join(FAMILIES), help="names, separated by commas (default: all)")
    parser.add_argument("--masked-steps", type=int, default=1290, help="budget in FLOPs, as a number of masked steps")
    parser.add_argument("--runs", default="runs/families")
    parser.add_argument("--split", default="test")
    parser.add_argument("--windows", type=int, default=256, help="windows of the split to evaluate")
    parser.add_argument("--output", help="JSON file for the rows")
    args = parser.parse_args()
    names = [name for name in FAMILIES if name in args.families.split(",") or name.split(",")[0] in args.families.split(",")]

    config, experiment = load("masked", args.data)
    budget = args.masked_steps * config.data.batch * config.data.length * experiment.flops_per_token
    texts = [[text.encode() for text in Corpus.open(args.data, split=split).documents()] for split in ("train", args.split)]
    unigram = entropy_baselines(*texts).unigram
    rows = []
    for name in names:
        print(f"--- {name}", flush=True)
        rows.append(run(name, args, budget))
        if args.output:
            pathlib.Path(args.output).write_text(json.dumps({"unigram_bits": unigram, "flops": budget, "rows": rows}, indent=1) + "\n")
    print(f"\n{budget:.3g} training FLOPs each; unigram entropy of the text {unigram:.3f} bits/char\n\n{table(rows, unigram)}")


if __name__ == "__main__":
    main()
