"""Does a run write texts of the right length? Documents of a known distribution of lengths, by padding rule and size of the canvas.

    python -m benchmarks.lengths [--flops 2e12] [--canvases 64,96,128] [--texts 128] [--arms fill cyclic] [--json FILE]

An answer is a text of random letters, each unlike the one before; half of them have 4 to 20 letters, half 40 to 72, and nothing but the end
says which. Rows have 96 tokens. Arms (process, `data.tail`, `data.random_length`):

    packed         masked, no tail: texts end to end, one end each, so that a text in training ends where its canvas does
    fill           masked, ends to the end of the row, in the loss
    cyclic         masked, one end and seven ids in turn behind it (2510.03680)
    random_rows    fill, a tenth of the rows cut to a random length
    blocks         blocks of 16, ends to the end of the block
    causal         autoregressive, no tail

On each canvas the run answers `--texts` times by each rule of `--rules`. w1: Wasserstein distance in tokens to the lengths of the
documents, cut to the canvas, ± its standard deviation over 200 resamplings of the texts; `data` is as many lengths drawn from the
distribution itself: what chance alone makes of it.
"""

import json
import pathlib

import numpy as np

from benchmarks.toy_runs import canvas_of, flags, share, trained
from dlmjax.data.prepare import prepare
from dlmjax.files import write_json
from dlmjax.sampling.lengths import made_lengths, wasserstein

LENGTH, LETTERS = 96, "abcdefghij"
ARMS = {
    "packed": ("masked_count", "none", 0.0),
    "fill": ("masked_count", "row", 0.0),
    "cyclic": ("masked_count", "row(pads=7)", 0.0),
    "random_rows": ("masked_count", "row", 0.1),
    "blocks": ("blocks(size=16)", "block", 0.0),
    "causal": ("autoregressive", "none", 0.0),
}
PROMPT = "z"


def lengths_of(count: int, rng: np.random.Generator) -> np.ndarray:
    """Letters of each of `count` documents. -> [count]"""
    short_N = rng.random(count) < 0.5
    return np.where(short_N, rng.integers(4, 21, count), rng.integers(40, 73, count))


def corpus(root: pathlib.Path, count: int, seed: int) -> pathlib.Path:
    """The prepared corpus of `count` documents."""
    rng, path = np.random.default_rng(seed), root / "text.jsonl"
    root.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for length in lengths_of(count, rng):
            steps_L = rng.integers(1, len(LETTERS), length)
            letters = "".join(LETTERS[i] for i in np.cumsum(steps_L) % len(LETTERS))
            file.write(json.dumps({"prompt": PROMPT, "answer": letters}) + "\n")
    prepare([path], "char27", root / "data", format="prompt-answer", separator=" ", valid_fraction=0.0)
    return root / "data"


def measure(run, size: int, rule: str, texts: int, seed: int) -> dict:
    """Lengths of the answers on one canvas."""
    prompt_P = run.tokenizer.encode(PROMPT + " ")
    tokens_BL = np.zeros((texts, size), np.int32)
    tokens_BL[:, : len(prompt_P)] = prompt_P
    generated_BL = np.broadcast_to(np.arange(size) >= len(prompt_P), tokens_BL.shape)
    attention = run.process.bound.attention
    sampler = run.sampler(rule="left_to_right" if attention.causal else rule, steps=attention.block_size or size)
    found = sampler.sample(run.params, canvas_of(tokens_BL, generated_BL, run.tokenizer.mask_id), seed=seed)
    eos_id, room = run.tokenizer.eos_id, size - len(prompt_P)
    lengths_B = made_lengths(found.tokens_BL, generated_BL, eos_id)
    ends_BL = generated_BL & (found.tokens_BL == eos_id)
    rng = np.random.default_rng(seed)
    data_D = np.minimum(lengths_of(20_000, rng), room)
    resampled = [wasserstein(rng.choice(lengths_B, texts), data_D) for _ in range(200)]
    floor = [wasserstein(np.minimum(lengths_of(texts, rng), room), data_D) for _ in range(200)]
    return {
        "canvas": size,
        "rule": rule,
        "calls": float(np.mean(found.calls_B)) if found.calls_B is not None else found.evaluations,
        "lengths": lengths_B.tolist(),
        "w1": wasserstein(lengths_B, data_D),
        "stderr_w1": float(np.std(resampled)),
        "w1_chance": float(np.mean(floor)),
        "without_end": (~ends_BL.any(axis=1)).tolist(),
        "data_mean": float(data_D.mean()),
    }


def table(rows: list[dict]) -> str:
    """Markdown."""
    head = "| arm | canvas | rule | calls | mean (data) | 10, 50, 90 % | w1 (by chance) | without an end |"
    lines = [head, "|---|---:|---|---:|---:|---|---:|---:|"]
    for row in rows:
        quantiles = " / ".join(f"{q:.0f}" for q in np.quantile(row["lengths"], (0.1, 0.5, 0.9)))
        mean = f"{np.mean(row['lengths']):.1f} ({row['data_mean']:.1f})"
        w1 = f"{row['w1']:.1f} ± {row['stderr_w1']:.1f} ({row['w1_chance']:.1f})"
        label = f"| {row['arm']} | {row['canvas']} | {row['rule']} | {row['calls']:.0f} |"
        lines.append(f"{label} {mean} | {quantiles} | {w1} | {share(row['without_end'])} |")
    return "\n".join(lines)


def main() -> None:
    parser = flags(__doc__, "runs/lengths", 2e12, "masked_count")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), help="arms")
    parser.add_argument("--documents", type=int, default=20_000, help="documents to train on")
    parser.add_argument("--canvases", default="64,96,128", help="tokens of a canvas, prompt included, with commas")
    parser.add_argument("--rules", nargs="+", default=["ancestral", "confidence"], help="rules of the tokens that a step reveals")
    parser.add_argument("--texts", type=int, default=128, help="answers of each row of the table")
    args = parser.parse_args()
    root = pathlib.Path(args.runs)
    data, rows = corpus(root, args.documents, 0), []
    for seed in args.seeds.split(","):
        for arm in args.arms:
            process, tail, random_length = ARMS[arm]
            overrides = [f"process.name={process}", f"data.tail={tail}", f"data.random_length={random_length}", f"seed={seed}"]
            overrides += [f"data.length={LENGTH}", "data.batch=64", "model.depth=2", "model.vocab=40"]
            run = trained(root / f"{arm}_seed{seed}", data, args.flops, overrides)
            for size in map(int, args.canvases.split(",")):
                for rule in args.rules[:1] if run.process.bound.attention.causal else args.rules:
                    rows.append({"arm": arm, "seed": int(seed), **measure(run, size, rule, args.texts, int(seed))})
            print(table([row for row in rows if row["arm"] == arm]), flush=True)
    print(f"\n{args.flops:.3g} training FLOPs a run\n\n{table(rows)}")
    if args.json:
        write_json(args.json, {"flops": args.flops, "rows": rows})


if __name__ == "__main__":
    main()
