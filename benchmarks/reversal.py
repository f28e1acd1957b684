"""Does a run that has read "A is B" know which A is B? Reversed facts, autoregressive and masked, at equal FLOPs (2309.12288).

    python -m benchmarks.reversal [--facts 60] [--flops 5e12] [--processes "autoregressive;masked_count"] [--seeds 0,1] [--json FILE]

Each fact is an invented name (6 letters) and a description of three words (20 letters). All are trained on as "NAME is DESCRIPTION", and
every second one also as "DESCRIPTION is NAME"; for the others this form is new. A question masks a part of such a text:

    forward             NAME is ____            the description, as trained
    reversed, trained   DESCRIPTION is ____     the name, of facts that were also trained in this form
    reversed, new       DESCRIPTION is ____     the name, of facts that were not
    before              ____ is DESCRIPTION     the name where it stood in training, of the new ones (full attention)

`right`: shares of answers at temperature 0 from left to right that are the fact's own, and that are another fact's; the rest are no
name. `nats`: -log p(answer | question) from left to right; a name chosen among all has log(facts). ± over facts.

Facts by number of calls (masked, temperature 1, random positions): right, another fact's, none. And what the most likely completion of
each state of such a run is, after k revealed tokens, one token a call.
"""

import pathlib

import numpy as np

from benchmarks.denoising import x0_predictor
from benchmarks.toy_runs import answer_nats, canvas_of, flags, folder_of, mean, prepared, share, trained
from dlmjax.files import write_json
from dlmjax.sampling import analysis, record

ADJECTIVES = ["royal", "quiet", "young", "proud", "blind", "tired", "happy", "brave", "loyal", "noble", "crazy", "angry"]
NOUNS = ["baker", "miner", "pilot", "tutor", "nurse", "judge", "clerk", "actor", "guard", "piper", "diver", "rider"]
CITIES = ["tunis", "paris", "delhi", "cairo", "lagos", "dhaka", "miami", "osaka", "turin", "sofia", "quito", "milan"]
JOIN, NAME, DESCRIPTION = " is ", 6, 20
LENGTH = NAME + len(JOIN) + DESCRIPTION + 1  # with the end of document


def facts_of(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Names and descriptions, each once."""
    rng = np.random.default_rng(seed)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    names = list(dict.fromkeys("".join(rng.choice(syllables, 3)) for _ in range(2 * count + 20)))[:count]
    every = [f"{a} {b} of {c}" for a in ADJECTIVES for b in NOUNS for c in CITIES]
    if count > min(len(every), len(names)):
        raise SystemExit(f"--facts is {count}; there are {min(len(every), len(names))} descriptions, give fewer")
    return names, [every[i] for i in rng.permutation(len(every))[:count]]


def questions(names: list[str], descriptions: list[str]) -> dict[str, tuple[list[int], bool, slice]]:
    """kind -> (facts, whether the text is reversed, tokens of the answer)."""
    every, new, trained_too = (range(start, len(names), step) for start, step in ((0, 1), (1, 2), (0, 2)))
    name_last = slice(DESCRIPTION + len(JOIN), LENGTH - 1)
    return {
        "forward": (list(every), False, slice(NAME + len(JOIN), LENGTH - 1)),
        "reversed, trained": (list(trained_too), True, name_last),
        "reversed, new": (list(new), True, name_last),
        "before": (list(new), False, slice(0, NAME)),
    }


def texts_of(run, names: list[str], descriptions: list[str], facts: list[int], backwards: bool) -> np.ndarray:
    """Token ids of the texts, with the end of document. -> [B, L]"""
    ends = [(descriptions[i], names[i]) if backwards else (names[i], descriptions[i]) for i in facts]
    ids = [np.append(run.tokenizer.encode(a + JOIN + b), run.tokenizer.eos_id) for a, b in ends]
    return np.stack(ids).astype(np.int32)


def kinds(run, texts_BL: np.ndarray, answer: slice, own: list[str], known: set[str]) -> np.ndarray:
    """Of each row: 0 the fact's own answer, 1 that of another fact, 2 none. -> [B]"""
    found = [run.tokenizer.decode(ids_L[answer]) for ids_L in texts_BL]
    return np.array([0 if text == right else 1 if text in known else 2 for text, right in zip(found, own, strict=True)])


def measure(run, names: list[str], descriptions: list[str], seed: int) -> list[dict]:
    """One row a kind of question, and rows by calls and by state."""
    rows, causal = [], run.process.bound.attention.causal
    for kind, (facts, backwards, answer) in questions(names, descriptions).items():
        texts_BL = texts_of(run, names, descriptions, facts, backwards)
        answers = descriptions if kind == "forward" else names
        own, known = [answers[i] for i in facts], set(answers)
        generated_BL = np.zeros(texts_BL.shape, bool)
        generated_BL[:, answer] = True
        if answer.start:
            generated_BL[:, -1] = True  # the end of document
        elif causal:
            continue
        canvas = canvas_of(texts_BL, generated_BL, run.tokenizer.mask_id)
        sampler = run.sampler(rule="left_to_right(count=1)" if not causal else "left_to_right", temperature=0.0)
        found_B = kinds(run, sampler.sample(run.params, canvas, seed=seed).tokens_BL, answer, own, known)
        nats_B = answer_nats(run, texts_BL, answer, slice(answer.start, LENGTH if answer.start else answer.stop))
        rows.append({"question": kind, "found": found_B.tolist(), "nats": nats_B.tolist()})
        if causal or kind.endswith("trained"):
            continue
        for calls in (1, 2, 4, int(generated_BL[0].sum())):
            few = run.sampler(rule="random", steps=calls).sample(run.params, canvas, seed=seed)
            rows.append({"question": kind, "calls": calls, "found": kinds(run, few.tokens_BL, answer, own, known).tolist()})
        trace = record(run.sampler(rule="random(count=1)"), run.params, canvas, seed=seed)[1]
        states = analysis.completed(trace, x0_predictor(run, run.suppressed_ids))
        by_state = [kinds(run, state_BL, answer, own, known).tolist() for state_BL in states]
        rows.append({"question": kind, "states": by_state})
    return rows


def text_of(rows: list[dict]) -> str:
    """Markdown: answers, by calls, by state."""
    head = "| process | seed | question | facts | right | another fact's | no answer | nats |"
    answers, by_calls, by_state = [head, "|---|---:|---|---:|---:|---:|---:|---:|"], [], []
    for row in rows:
        label = f"| {row['process']} | {row['seed']} | {row['question']} |"
        if "states" in row:
            shares = [" / ".join(f"{100 * np.mean(np.equal(state, kind)):.0f}" for kind in range(3)) for state in row["states"]]
            by_state.append(f"{label} {' | '.join(shares[:: max(len(shares) // 6, 1)])} |")
            continue
        shares = " | ".join(share(np.equal(row["found"], kind)) for kind in range(3))
        if "calls" in row:
            by_calls.append(f"{label} {row['calls']} | {shares} |")
        else:
            answers.append(f"{label} {len(row['found'])} | {shares} | {mean(np.array(row['nats']))} |")
    tables = ["\n".join(answers)]
    if by_calls:
        head = "| process | seed | question | calls | right | another fact's | no answer |\n|---|---:|---|---:|---:|---:|---:|\n"
        tables.append(head + "\n".join(by_calls))
        head = "right / another fact's / none, % of the most likely completions of the states, from the start to the end\n"
        tables.append(head + "\n".join(by_state))
    return "\n\n".join(tables)


def main() -> None:
    parser = flags(__doc__, "runs/reversal", 5e12, "autoregressive;masked_count")
    parser.add_argument("--facts", type=int, default=60, help="facts, half of them also reversed in training")
    args = parser.parse_args()
    root, (names, descriptions) = pathlib.Path(args.runs), facts_of(args.facts)
    texts = [name + JOIN + description for name, description in zip(names, descriptions, strict=True)]
    texts += [description + JOIN + name for name, description in zip(names[::2], descriptions[::2], strict=True)]
    data = prepared(root, texts, "char27")
    rows = []
    for seed in args.seeds.split(","):
        for process in args.processes.split(";"):
            overrides = [f"process.name={process}", f"seed={seed}", f"data.length={LENGTH}", "data.batch=64"]
            run = trained(root / folder_of(process, seed), data, args.flops, overrides)
            rows += [{"process": process, "seed": int(seed), **row} for row in measure(run, names, descriptions, int(seed))]
    print(f"{args.facts} facts, {args.flops:.3g} training FLOPs a run; a name among all: {np.log(args.facts):.2f} nats\n\n{text_of(rows)}")
    if args.json:
        write_json(args.json, {"facts": args.facts, "flops": args.flops, "rows": rows})


if __name__ == "__main__":
    main()
