"""Does a run find a value in its context: how far away, in blocks, and with reused keys and values? Keys and values among random letters.

    python -m benchmarks.needle [--flops 3e12] [--processes "masked_count;blocks(size=8)"] [--texts 512]

A text has 31 slots of three letters, 96 tokens with the end. A slot is a pair (a space, one of six keys of the text, the key's value) or
random letters; the share of pairs is drawn for each text. Runs are trained on whole texts. In a text of the test each key stands once in
the first 27 slots, and the last four are pairs again, of four keys: their values are the answers.

    one answer    one value is masked: share right, by the distance in tokens from where its pair stood before
    all           the four values from left to right, one a call, temperature 0
    dual          the same with `--cache "dual(block=12)"` (masked): keys and values of the context are those of the first call, so the k-th
                  value is read with a context of age k - 1; the difference from the run without a cache is paired

± over texts. Chance is 1 in 26.
"""

import itertools
import pathlib

import numpy as np

from benchmarks.toy_runs import canvas_of, flags, folder_of, mean, prepared, share, trained
from dlmjax.files import write_json

PAIRS, QUESTIONS, BLOCK, SLOTS, BEFORE = 6, 4, 12, 31, 2
LENGTH = BEFORE + 3 * SLOTS + 1
ALPHABET = np.array(list("abcdefghijklmnopqrstuvwxyz"))
ANSWERS = BEFORE + 3 * np.arange(SLOTS - QUESTIONS, SLOTS) + 2  # index of each value in a text of the test


def training_texts(count: int, seed: int) -> list[str]:
    """Texts with pairs in random slots."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        keys_P, values_P = rng.choice(ALPHABET, PAIRS, replace=False), rng.choice(ALPHABET, PAIRS)
        letters_L, of_S = rng.choice(ALPHABET, LENGTH - 1), rng.integers(0, PAIRS, SLOTS)
        for slot in np.flatnonzero(rng.random(SLOTS) < rng.uniform(0.2, 1.0)):
            begin = BEFORE + 3 * slot
            letters_L[begin : begin + 3] = " ", keys_P[of_S[slot]], values_P[of_S[slot]]
        found.append("".join(letters_L))
    return found


def question_texts(count: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Texts of the test, and the distance of each answer from its value in the context. -> ([count], [count, QUESTIONS])"""
    rng, found, distances = np.random.default_rng(seed), [], []
    for _ in range(count):
        keys_P, values_P = rng.choice(ALPHABET, PAIRS, replace=False), rng.choice(ALPHABET, PAIRS)
        letters_L, slots_P = rng.choice(ALPHABET, LENGTH - 1), rng.choice(SLOTS - QUESTIONS, PAIRS, replace=False)
        of_question_Q = rng.permutation(PAIRS)[:QUESTIONS]
        questions = zip(range(SLOTS - QUESTIONS, SLOTS), of_question_Q, strict=True)
        for slot, pair in [*zip(slots_P, range(PAIRS), strict=True), *questions]:
            begin = BEFORE + 3 * slot
            letters_L[begin : begin + 3] = " ", keys_P[pair], values_P[pair]
        found.append("".join(letters_L))
        distances.append(ANSWERS - (BEFORE + 3 * slots_P[of_question_Q] + 2))
    return found, np.array(distances)


def one_answer(run, texts_BL: np.ndarray) -> np.ndarray:
    """Whether each value is the most likely token where it alone is masked. -> [B, QUESTIONS]"""
    right_BQ = np.zeros((len(texts_BL), QUESTIONS), bool)
    for q in range(QUESTIONS):
        z_BL = texts_BL.copy()
        if not run.process.bound.attention.causal:
            z_BL[:, ANSWERS[q]] = run.tokenizer.mask_id
        right_BQ[:, q] = run.logits(z_BL)[:, ANSWERS[q]].argmax(axis=-1) == texts_BL[:, ANSWERS[q]]
    return right_BQ


def all_answers(run, texts_BL: np.ndarray, **settings) -> np.ndarray:
    """Whether each value is right where four are generated from left to right. -> [B, QUESTIONS]"""
    generated_BL = np.broadcast_to(np.isin(np.arange(LENGTH), ANSWERS), texts_BL.shape)
    sampler = run.sampler(rule="left_to_right(count=1)", temperature=0.0, **settings)
    found = sampler.sample(run.params, canvas_of(texts_BL, generated_BL, run.tokenizer.mask_id), seed=0)
    return (found.tokens_BL == texts_BL)[:, ANSWERS]


def measure(run, count: int) -> dict:
    """The numbers of one run. An autoregressive run is not asked for all: it cannot keep what stands between the values."""
    texts, distance_BQ = question_texts(count, 1)
    texts_BL = np.stack([np.append(run.tokenizer.encode(text), run.tokenizer.eos_id) for text in texts]).astype(np.int32)
    found, attention = {"one_answer": one_answer(run, texts_BL)}, run.process.bound.attention
    if not attention.causal:
        found["all"] = all_answers(run, texts_BL)
        if attention.block_size is None:
            found["dual"] = all_answers(run, texts_BL, cache=f"dual(block={BLOCK})", steps=BLOCK)
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
    parser.add_argument("--documents", type=int, default=30_000, help="texts to train on")
    args = parser.parse_args()
    root, rows = pathlib.Path(args.runs), []
    data = prepared(root, training_texts(args.documents, 0), "char27")
    for seed in args.seeds.split(","):
        for process in args.processes.split(";"):
            overrides = [f"process.name={process}", f"seed={seed}", f"data.length={LENGTH}", "data.batch=32"]
            run = trained(root / folder_of(process, seed), data, args.flops, overrides)
            rows.append({"process": process, "seed": int(seed), **measure(run, args.texts)})
            print(tables(rows[-1:]), flush=True)
    print(f"\n{args.flops:.3g} training FLOPs a run, {args.texts} texts\n\n{tables(rows)}")
    if args.json:
        write_json(args.json, {"flops": args.flops, "rows": rows})


if __name__ == "__main__":
    main()
