"""Does a run find a value in its context: how far away, in blocks, and with reused keys and values? Keys and values among random letters.

    python -m benchmarks.needle [--flops 3e12] [--processes "masked_count;blocks(size=8)"] [--texts 512]

A context of 85 random letters holds six pairs (a space, the key, the value) at random places. Behind it stand the keys of four of them, and
the answer is their four values in that order: 96 tokens with the end. The loss is on answers alone. The keys of a text differ.

    one answer    three of the four values are known and one is masked: share right, by the distance in tokens from the pair to the answer
    all           the four values from left to right, one a call, temperature 0
    dual          the same with `--cache "dual(block=12)"` (masked): keys and values of the context are those of the first call, so the k-th
                  value is read with a context of age k - 1; the difference from the run without a cache is paired

± over texts. Chance is 1 in 26.
"""

import itertools
import json
import pathlib

import numpy as np

from benchmarks.toy_runs import canvas_of, flags, folder_of, mean, share, trained
from dlmjax.data.prepare import prepare
from dlmjax.files import write_json

CONTEXT, PAIRS, QUESTIONS, BLOCK = 85, 6, 4, 12
LENGTH = CONTEXT + 1 + QUESTIONS + 1 + QUESTIONS + 1  # context, space, keys, space, values, end
FIRST = LENGTH - 1 - QUESTIONS
ALPHABET = np.array(list("abcdefghijklmnopqrstuvwxyz"))


def texts(count: int, seed: int) -> tuple[list[str], list[str], np.ndarray]:
    """Prompts, answers, and the index of the value of each answer in its context. -> ([count], [count], [count, QUESTIONS])"""
    rng, prompts, answers, index = np.random.default_rng(seed), [], [], []
    for _ in range(count):
        letters_L = rng.choice(ALPHABET, CONTEXT)
        begin_P = 1 + 3 * rng.choice(CONTEXT // 3, PAIRS, replace=False)
        keys_P, values_P = rng.choice(ALPHABET, PAIRS, replace=False), rng.choice(ALPHABET, PAIRS)
        letters_L[begin_P], letters_L[begin_P + 1], letters_L[begin_P + 2] = " ", keys_P, values_P
        prompts.append("".join(letters_L) + " " + "".join(keys_P[:QUESTIONS]))
        answers.append("".join(values_P[:QUESTIONS]))
        index.append(begin_P[:QUESTIONS] + 2)
    return prompts, answers, np.array(index)


def corpus(root: pathlib.Path, count: int) -> pathlib.Path:
    """The prepared corpus of `count` texts of seed 0; tests have another seed."""
    root.mkdir(parents=True, exist_ok=True)
    prompts, answers, _ = texts(count, 0)
    records = (json.dumps({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in zip(prompts, answers, strict=True))
    (root / "text.jsonl").write_text("".join(records))
    prepare([root / "text.jsonl"], "char27", root / "data", format="prompt-answer", separator=" ", valid_fraction=0.0)
    return root / "data"


def one_answer(run, texts_BL: np.ndarray) -> np.ndarray:
    """Whether each value is the most likely token where it alone is masked. -> [B, QUESTIONS]"""
    right_BQ = np.zeros((len(texts_BL), QUESTIONS), bool)
    for q in range(QUESTIONS):
        z_BL = texts_BL.copy()
        if not run.process.bound.attention.causal:
            z_BL[:, FIRST + q] = run.tokenizer.mask_id
        right_BQ[:, q] = run.logits(z_BL)[:, FIRST + q].argmax(axis=-1) == texts_BL[:, FIRST + q]
    return right_BQ


def all_answers(run, texts_BL: np.ndarray, **settings) -> np.ndarray:
    """Whether each value is right where four are generated from left to right. -> [B, QUESTIONS]"""
    generated_BL = np.broadcast_to(np.isin(np.arange(LENGTH), FIRST + np.arange(QUESTIONS + 1)), texts_BL.shape)
    rule = "left_to_right" if run.process.bound.attention.causal else "left_to_right(count=1)"
    sampler = run.sampler(rule=rule, temperature=0.0, **settings)
    found = sampler.sample(run.params, canvas_of(texts_BL, generated_BL, run.tokenizer.mask_id), seed=0)
    return (found.tokens_BL == texts_BL)[:, FIRST : FIRST + QUESTIONS]


def measure(run, count: int) -> dict:
    """The numbers of one run."""
    prompts, answers, index_BQ = texts(count, 1)
    whole = [f"{prompt} {answer}" for prompt, answer in zip(prompts, answers, strict=True)]
    texts_BL = np.stack([np.append(run.tokenizer.encode(text), run.tokenizer.eos_id) for text in whole]).astype(np.int32)
    found = {"one_answer": one_answer(run, texts_BL), "all": all_answers(run, texts_BL)}
    attention = run.process.bound.attention
    if not attention.causal and attention.block_size is None:
        found["dual"] = all_answers(run, texts_BL, cache=f"dual(block={BLOCK})", steps=BLOCK)
    distance_BQ = FIRST + np.arange(QUESTIONS) - index_BQ
    return {name: right_BQ.tolist() for name, right_BQ in found.items()} | {"distance": distance_BQ.tolist()}


def tables(rows: list[dict]) -> str:
    """Markdown: one answer by distance; all, by their order."""
    edges = list(itertools.pairwise((0, 20, 40, 60, LENGTH)))
    near = [f"| process | seed | {' | '.join(f'{a} to {b - 1}' for a, b in edges)} |", "|---|---:" + "|---:" * 4 + "|"]
    values = " | ".join(f"value {q + 1}" for q in range(QUESTIONS))
    every = [f"| process | seed | way | {values} | all four |", "|---|---:|---" + "|---:" * (QUESTIONS + 1) + "|"]
    for row in rows:
        one_BQ, distance_BQ, label = np.array(row["one_answer"]), np.array(row["distance"]), f"| `{row['process']}` | {row['seed']} |"
        shares = [share(one_BQ[(distance_BQ >= a) & (distance_BQ < b)]) for a, b in edges]
        near.append(f"{label} {' | '.join(shares)} |")
        for way in ("all", "dual"):
            if way in row:
                right_BQ = np.array(row[way])
                shares = [share(right_BQ[:, q]) for q in range(QUESTIONS)] + [share(right_BQ.all(axis=1))]
                every.append(f"{label} {way} | {' | '.join(shares)} |")
        if "dual" in row:
            less_BQ = 100 * (np.array(row["dual"], float) - np.array(row["all"], float))
            every.append(f"{label} dual less all | {' | '.join(mean(less_BQ[:, q]) for q in range(QUESTIONS))} | |")
    return "\n".join(near) + "\n\n" + "\n".join(every)


def main() -> None:
    parser = flags(__doc__, "runs/needle", 3e12, "masked_count;blocks(size=8);blocks(size=32);autoregressive")
    parser.add_argument("--texts", type=int, default=512, help="texts of the test")
    parser.add_argument("--documents", type=int, default=50_000, help="texts to train on")
    args = parser.parse_args()
    root, rows = pathlib.Path(args.runs), []
    data = corpus(root, args.documents)
    for seed in args.seeds.split(","):
        for process in args.processes.split(";"):
            overrides = [f"process.name={process}", f"seed={seed}", f"data.length={LENGTH}", "data.batch=64"]
            run = trained(root / folder_of(process, seed), data, args.flops, overrides)
            rows.append({"process": process, "seed": int(seed), **measure(run, args.texts)})
            print(tables(rows[-1:]), flush=True)
    print(f"\n{args.flops:.3g} training FLOPs a run, {args.texts} texts\n\n{tables(rows)}")
    if args.json:
        write_json(args.json, {"flops": args.flops, "rows": rows})


if __name__ == "__main__":
    main()
