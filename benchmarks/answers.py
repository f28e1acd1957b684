"""How long a run's answers are beside those of the data, whether they end, and how many of them match.

    python -m benchmarks.answers --workdir RUN --data DIR [--split test] [--count 100] [--steps 128] [--rule ancestral] [--mark "####"]

The prompts are those of a prepared corpus of supervised data (docs/answers.md), the canvas is a row of the run's length. Lengths are in
tokens with the end; an answer without an end is as long as the canvas allows. An answer is exact where what follows its last `--mark` is
what follows that of the data (GSM8K: the number). ± is the standard error over prompts.
"""

import argparse
import json
import pathlib

from dlmjax import open_run
from dlmjax.data import Corpus
from dlmjax.quality.answers import answer, questions_of, report
from dlmjax.sampling.text import text_of


def line(found: dict) -> str:
    """A row of the table."""
    lengths = [
        f"{found[name]['mean']:.0f} ± {found[name]['stderr']:.0f} ({', '.join(f'{q:.0f}' for q in found[name]['quantiles'].values())})"
        for name in ("length_data", "length_made")
    ]
    shares = [f"{100 * found[name]:.1f} ± {100 * found['stderr_' + name]:.1f} %" for name in ("without_end", "marked", "exact")]
    return f"| {' | '.join([found['run'], found['rule'], str(found['calls']), *lengths, *shares])} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, help="run of configs/sft.py")
    parser.add_argument("--data", required=True, metavar="DIR", help="prepared corpus of supervised data")
    parser.add_argument("--split", default="test", help="split of the corpus")
    parser.add_argument("--count", type=int, default=100, help="prompts, from the first that fits")
    parser.add_argument("--steps", type=int, default=128, help="denoising steps")
    parser.add_argument("--rule", default="ancestral", help="rule of the tokens that a step reveals")
    parser.add_argument("--temperature", type=float, default=1.0, help="temperature")
    parser.add_argument("--mark", default="####", help="text before the last part of an answer")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampler")
    parser.add_argument("--output", help="JSON file for the result with three answers")
    args = parser.parse_args()
    run = open_run(args.workdir)
    questions = questions_of(Corpus.open(args.data, args.split), args.count, run.experiment.config.data.length)
    settings = run.sample_settings(steps=args.steps, temperature=args.temperature, rule=args.rule)
    answers = answer(run, questions, settings, seed=args.seed)
    found = {"run": pathlib.Path(args.workdir).name, "rule": args.rule, **report(questions, answers, run.tokenizer, args.mark)}
    found["examples"] = [
        {
            "prompt": run.tokenizer.decode(question.prompt_P),
            "answer": text_of(run.tokenizer, tokens_N),
            "ended": ended,
        }
        for question, tokens_N, ended in list(zip(questions, answers.tokens, answers.ended, strict=True))[:3]
    ]
    print("| run | rule | calls | data: mean length (10, 50, 90 %) | made: mean length | without an end | with the mark | exact |")
    print(line(found))
    if args.output:
        pathlib.Path(args.output).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
