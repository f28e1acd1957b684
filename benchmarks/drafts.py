"""Tokens a second of an autoregressive run with drafts of a masked run, and of a joint run with its own, beside the same run without.

python -m benchmarks.drafts --verifier runs/ar --drafter runs/quickstart --joint runs/joint

Texts are sampled one by one (batch 1), all ways in turns, after one text of each that compiles. Seconds are those of the processor, so that
other programs do not count. Prints one Markdown table: calls of both networks and accepted drafts by text, tokens a second, its ratio to
the run without drafts, and how many texts are the same.
"""

import argparse
import time

import numpy as np

from dlmjax.run import Run, open_run

OF_RUN = ("depth=4", "depth=8", "depth=16", "depth=8, steps=2", "depth=8, accept=delta", "depth=8, accept=ratio")
OF_RUN += ("depth=8, accept=mixture(weight=0.3)",)


def rows_of(name: str, runs: tuple[Run, Run], drafts: list[str], temperature: float, texts: int) -> list[str]:
    """The rows of the table of one run at one temperature. runs: opened for texts without drafts, and with them."""
    run, canvas, found = runs[0], runs[0].canvas("The "), {}
    samplers = [("none", run.sampler(temperature=temperature))]
    samplers += [(draft, runs[1].sampler(temperature=temperature, draft=draft)) for draft in drafts]
    for seed in range(-1, texts):
        for way, sampler in samplers:
            before = time.process_time()
            samples = sampler.sample(run.params, canvas, seed=max(seed, 0))
            if seed >= 0:
                found.setdefault(way, []).append((samples, time.process_time() - before))
    length, rows = int(canvas.masked_B[0]), []
    speed = {way: texts * length / sum(seconds for _, seconds in generated) for way, generated in found.items()}
    for way, generated in found.items():
        drafted = way != "none"
        guessed = [int(each.drafter_calls_B[0]) if drafted else 0 for each, _ in generated]
        calls = [each.evaluations for each, _ in generated]
        accepted = sum(int(each.accepted_B[0]) for each, _ in generated) / (sum(calls) - sum(guessed)) if drafted else 0.0
        same = sum(np.array_equal(a.tokens_BL, b.tokens_BL) for (a, _), (b, _) in zip(generated, found["none"], strict=True))
        rows.append(
            f"| {name} | {temperature:g} | {way} | {np.mean(calls) - np.mean(guessed):.1f} + {np.mean(guessed):.1f} | {accepted:.2f} | "
            f"{speed[way]:.0f} | {speed[way] / speed['none']:.2f} | {same} of {texts} |"
        )
    return rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verifier", required=True, help="workdir of an autoregressive run")
    parser.add_argument("--drafter", required=True, help="workdir of a masked run of the same tokenizer")
    parser.add_argument("--joint", help="workdir of a joint run (configs/joint.py; none)")
    parser.add_argument("--texts", type=int, default=8, help="number of texts of each way (8)")
    arguments = parser.parse_args()
    print("| run | temperature | drafts | calls | accepted | tokens/s | ratio | same text |", flush=True)
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for temperature in (1.0, 0.0):
        values = OF_RUN if temperature else OF_RUN[1:2]
        drafts = [f"run(path={arguments.drafter!r}, {value})" for value in values]
        verifier = open_run(arguments.verifier)
        for row in rows_of("autoregressive", (verifier, verifier), drafts, temperature, arguments.texts):
            print(row.replace(f"path={arguments.drafter!r}, ", ""), flush=True)
        if arguments.joint:
            runs = open_run(arguments.joint, process="autoregressive"), open_run(arguments.joint)
            drafts = ["joint(depth=8)", "joint(depth=16)"] if temperature else ["joint(depth=8)"]
            for row in rows_of("joint", runs, drafts, temperature, arguments.texts):
                print(row, flush=True)


if __name__ == "__main__":
    main()
