"""Is a wrong first token revised? Sums "a+b=c" whose first digit is planted wrong, by process and method of revision, at equal FLOPs.

    python -m benchmarks.early_edit [--flops 1.5e12] [--processes "masked_count;uniform;hybrid(p_uniform=0.2);autoregressive"] [--texts 300]

a and b have two digits, c has three; 7,000 of the 8,100 sums are trained on, with the loss on c, and others are tested. The first digit of
c, 0 or 1, is on the canvas, as the other one (`wrong`) or as it should be (`right`), and is not frozen; the rest of c is masked. Methods
that take steps in time add noise of time `start` to the digit, without which it would stay as it is; others revise the finished text.

    alone        share of right sums without a planted digit
    revised      wrong planted: the first digit is another one at the end
    correct      wrong planted: the whole sum is right at the end
    kept         right planted: the first digit is still there; correct of these beside it

± binomial over sums, one row a method.
"""

import json
import pathlib

import numpy as np

from benchmarks.toy_runs import flags, folder_of, share, trained
from dlmjax.data.prepare import prepare
from dlmjax.files import write_json
from dlmjax.sampling import Canvas

AS_IS = 1e-9  # start time of a token that is revised as it stands
CLUE = 6  # "a+b="
LENGTH = CLUE + 3 + 1
STEPS = 8
# (settings, start time of the planted digit; 0: it conditions the sample and stays)
MASKED = (
    ({"rule": "confidence(count=1)"}, 0.0),
    ({"method": "ancestral"}, 0.5),
    ({"method": "remask(eta=0.5)"}, 0.5),
    ({"method": "psi(kappa=0.5)"}, 0.5),
    ({"method": "gibbs(rounds=16)"}, AS_IS),
)
WAYS = {
    "autoregressive": (({"rule": "left_to_right"}, 0.0),),
    "masked_count": MASKED,
    "uniform": (
        ({"method": "ancestral"}, 0.5),
        ({"method": "psi(kappa=0.5)"}, 0.5),
        ({"method": "self_correct(rounds=16)"}, AS_IS),
    ),
    "hybrid": (
        ({"method": "psi(kappa=0.5)"}, 0.5),
        ({"method": "self_correct(rounds=16)"}, AS_IS),
        ({"method": "self_correct(by=probability, rounds=16)"}, AS_IS),
        ({"rule": "t2t"}, AS_IS),
    ),
}
OVERRIDES = {"uniform": ("model.time_input=adaln", "process.weighting=denoising(everywhere=True)")}
OVERRIDES["hybrid"] = OVERRIDES["uniform"]


def sums(train: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pairs to train on and the others. -> ([train, 2], [8100 - train, 2])"""
    pairs = np.stack(np.meshgrid(np.arange(10, 100), np.arange(10, 100)), axis=-1).reshape(-1, 2)
    pairs = pairs[np.random.default_rng(seed).permutation(len(pairs))]
    return pairs[:train], pairs[train:]


def corpus(root: pathlib.Path, pairs: np.ndarray) -> pathlib.Path:
    """The prepared corpus of these sums."""
    root.mkdir(parents=True, exist_ok=True)
    records = (json.dumps({"prompt": f"{a}+{b}", "answer": f"{a + b:03d}"}) + "\n" for a, b in pairs)
    (root / "text.jsonl").write_text("".join(records))
    prepare([root / "text.jsonl"], "bytes", root / "data", format="prompt-answer", separator="=", valid_fraction=0.0)
    return root / "data"


def canvas_of(run, texts_BL: np.ndarray, first_B: np.ndarray | None, start: float) -> Canvas:
    """The clue conditions, the sum is masked but for a planted first digit."""
    masked_BL = np.broadcast_to(np.arange(LENGTH) >= CLUE, texts_BL.shape).copy()
    tokens_BL = np.where(masked_BL, run.tokenizer.mask_id, texts_BL).astype(np.int32)
    start_BL = masked_BL.astype(np.float32)
    if first_B is not None:
        tokens_BL[:, CLUE], start_BL[:, CLUE], masked_BL[:, CLUE] = first_B, start, start > 0
    return Canvas(tokens_BL, ~masked_BL, start_BL)


def measure(run, ways, pairs: np.ndarray, seed: int) -> list[dict]:
    """One row a way."""
    ids = [np.append(run.tokenizer.encode(f"{a}+{b}={a + b:03d}"), run.tokenizer.eos_id) for a, b in pairs]
    texts_BL, zero = np.stack(ids).astype(np.int32), ord("0")
    right_B = texts_BL[:, CLUE]
    rows = []
    for settings, start in ways:
        sampler = run.sampler(steps=STEPS, **settings)
        found = {}
        for name, first_B in (("alone", None), ("wrong", 2 * zero + 1 - right_B), ("right", right_B)):
            samples = sampler.sample(run.params, canvas_of(run, texts_BL, first_B, start), seed=seed)
            final_BL = samples.tokens_BL[:, CLUE : CLUE + 3]
            found[name] = {
                "correct": (final_BL == texts_BL[:, CLUE : CLUE + 3]).all(axis=1).tolist(),
                "same": (final_BL[:, 0] == (right_B if first_B is None else first_B)).tolist(),
                "calls": float(samples.evaluations if samples.calls_B is None else np.mean(samples.calls_B)),
            }
        rows.append({"way": next(iter(settings.values())), "start": start, **found})
    return rows


def table(rows: list[dict]) -> str:
    """Markdown."""
    head = "| process | seed | by | start | calls | alone | revised | correct | kept | correct of these |"
    lines = [head, "|---|---:|---|---|---:|---:|---:|---:|---:|---:|"]
    for row in rows:
        start = {0.0: "frozen", AS_IS: "as it is"}.get(row["start"], f"{row['start']:g}")
        alone, wrong, right = row["alone"], row["wrong"], row["right"]
        shares = [alone["correct"], np.logical_not(wrong["same"]), wrong["correct"], right["same"], right["correct"]]
        label = f"| {row['process']} | {row['seed']} | `{row['way']}` | {start} | {wrong['calls']:.0f} |"
        lines.append(f"{label} {' | '.join(map(share, shares))} |")
    return "\n".join(lines)


def main() -> None:
    parser = flags(__doc__, "runs/early_edit", 1.5e12, "masked_count;uniform;hybrid(p_uniform=0.2);autoregressive")
    parser.add_argument("--texts", type=int, default=300, help="sums of the test, at most 1,100")
    args = parser.parse_args()
    root, rows, (train_N2, test_N2) = pathlib.Path(args.runs), [], sums(7000)
    data = corpus(root, train_N2)
    for seed in args.seeds.split(","):
        for process in args.processes.split(";"):
            kind = process.partition("(")[0]
            overrides = [f"process.name={process}", f"seed={seed}", f"data.length={LENGTH}", *OVERRIDES.get(kind, ())]
            run = trained(root / folder_of(process, seed), data, args.flops, overrides)
            rows += [{"process": process, "seed": int(seed), **row} for row in measure(run, WAYS[kind], test_N2[: args.texts], int(seed))]
            print(table([row for row in rows if row["process"] == process]), flush=True)
    print(f"\n{args.flops:.3g} training FLOPs a run, {args.texts} sums\n\n{table(rows)}")
    if args.json:
        write_json(args.json, {"flops": args.flops, "rows": rows})


if __name__ == "__main__":
    main()
