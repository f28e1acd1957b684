"""Most constrained cells first, with a check that hides what it finds wrong: success at equal calls, on colourings of a graph.

    python -m benchmarks.verify_first [--vertices 9] [--edges 14] [--calls 2,4,6] [--rows 400]

The text is a proper colouring of a random graph in three colours, all of them equally likely, and the denoiser is exact, so one cell a call
never fails: what fails is parallel steps, and what is compared is what a given number of calls is spent on.

    random, margin, entropy     one run with that many steps; entropy is the order of the most constrained cells
    best of n                   runs of two steps in entropy order, right where one of them is
    check                       two steps in entropy order, then the cells of broken edges are masked again, and so on

±: binomial standard error over texts; arms share the seeds of the sampler.
"""

import argparse
import functools
import itertools
import math

import jax.numpy as jnp
import numpy as np

from benchmarks.chain import ExactDenoiser
from dlmjax.diffusion.processes.masked import Masked
from dlmjax.diffusion.schedules import Linear
from dlmjax.files import write_json
from dlmjax.sampling import Canvas, Sampler, SampleSettings, blank_canvas
from dlmjax.seeds import following

COLOURS, ROUND = 3, 2  # ROUND: steps of a run of "best of n" and "check"


class Colourings:
    """The proper colourings of a graph, each equally likely; the mask is the id COLOURS.  edges: pairs of vertices."""

    def __init__(self, vertices: int, edges: int, seed: int):
        pairs = list(itertools.combinations(range(vertices), 2))
        chosen = np.random.default_rng(seed).choice(len(pairs), size=edges, replace=False)
        self.edges_E2 = np.array(pairs)[chosen]
        texts_NL = np.array(list(itertools.product(range(COLOURS), repeat=vertices)), np.int8)
        self.texts_NL = texts_NL[~self.broken(texts_NL).any(axis=1)]
        if not len(self.texts_NL):
            raise SystemExit(f"benchmarks.verify_first: the graph of seed {seed} has no colouring; give fewer edges or another seed")
        self.one_hot_NLV = jnp.asarray(np.eye(COLOURS + 1, dtype=np.float32)[self.texts_NL])
        self.process = Masked(COLOURS + 1, COLOURS, Linear())

    def broken(self, tokens_BL: np.ndarray) -> np.ndarray:
        """Which edges have two ends of one colour. -> [B, E]"""
        return tokens_BL[:, self.edges_E2[:, 0]] == tokens_BL[:, self.edges_E2[:, 1]]

    def log_p(self, z_BL, t_BL=None):
        """log p(x_i | revealed cells); uniform where no colouring has them. -> [B, L, V]"""
        del t_BL
        seen_BLV = jnp.eye(COLOURS + 1)[z_BL] * (z_BL < COLOURS)[..., None]
        agree_BN = jnp.einsum("blv,nlv->bn", seen_BLV, self.one_hot_NLV)
        fits_BN = (agree_BN >= (z_BL < COLOURS).sum(axis=1)[:, None] - 0.5).astype(jnp.float32)
        count_BLV = jnp.einsum("bn,nlv->blv", fits_BN, self.one_hot_NLV)
        none_B = fits_BN.sum(axis=1) == 0
        count_BLV = jnp.where(none_B[:, None, None], jnp.arange(COLOURS + 1) < COLOURS, count_BLV)
        return jnp.where(count_BLV > 0, jnp.log(jnp.maximum(count_BLV, 1e-9)), -1e9)

    def bind(self, params, segments_BL, positions_BL, attention=None) -> ExactDenoiser:
        """The exact denoiser as a network is bound."""
        del params, segments_BL, positions_BL, attention
        return ExactDenoiser(self.log_p)


def run(text: Colourings, rule: str, steps: int, canvas: Canvas, seed: int) -> np.ndarray:
    """Samples of one rule. -> [B, L]"""
    return _sampler(text, rule, steps).sample((), canvas, seed=seed).tokens_BL


@functools.cache
def _sampler(text: Colourings, rule: str, steps: int) -> Sampler:
    """Compiled once."""
    return Sampler(text.process, text.bind, SampleSettings(steps=steps, rule=rule, suppressed_ids=(COLOURS,)))


def arms(text: Colourings, calls: int, rows: int, seed: int) -> dict[str, np.ndarray]:
    """arm -> whether each text is right after that many calls."""
    blank = blank_canvas(text.texts_NL.shape[1], rows)
    found = {rule: ~text.broken(run(text, rule, calls, blank, seed)).any(axis=1) for rule in ("random", "margin", "entropy")}
    best_B, rounds = np.zeros(rows, bool), calls // ROUND
    for number in range(rounds):
        best_B |= ~text.broken(run(text, "entropy", ROUND, blank, following(seed, number))).any(axis=1)
    tokens_BL = run(text, "entropy", ROUND, blank, seed)
    for number in range(1, rounds):
        broken_BE, keep_BL = text.broken(tokens_BL), np.ones(tokens_BL.shape, bool)
        for edge, (a, b) in enumerate(text.edges_E2):
            keep_BL[:, [a, b]] &= ~broken_BE[:, [edge]]
        canvas = Canvas(np.where(keep_BL, tokens_BL, COLOURS).astype(np.int32), keep_BL, 1.0 - keep_BL.astype(np.float32))
        tokens_BL = run(text, "entropy", ROUND, canvas, following(seed, number))
    return found | {"best of n": best_B, "check": ~text.broken(tokens_BL).any(axis=1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vertices", type=int, default=9, help="cells of a text")
    parser.add_argument("--edges", type=int, default=14, help="edges of the graph")
    parser.add_argument("--calls", default="2,4,6", help="network calls of every arm, even numbers")
    parser.add_argument("--rows", type=int, default=400, help="texts of each row")
    parser.add_argument("--seed", type=int, default=0, help="of the graph and of the sampler")
    parser.add_argument("--json", help="file for the rows")
    args = parser.parse_args()
    text, rows = Colourings(args.vertices, args.edges, args.seed), []
    for calls in map(int, args.calls.split(",")):
        for arm, right_B in arms(text, calls, args.rows, args.seed).items():
            share = float(right_B.mean())
            rows.append({"calls": calls, "arm": arm, "right": share, "stderr": math.sqrt(share * (1 - share) / args.rows)})
    names = list(dict.fromkeys(row["arm"] for row in rows))
    print(f"{len(text.texts_NL)} colourings of {args.vertices} vertices, {args.edges} edges\n\n| calls | {' | '.join(names)} |")
    print("|---:|" + "---:|" * len(names))
    for calls, of_calls in itertools.groupby(rows, lambda row: row["calls"]):
        print(f"| {calls} | " + " | ".join(f"{row['right']:.3f} ± {row['stderr']:.3f}" for row in of_calls) + " |")
    if args.json:
        write_json(args.json, {"colourings": len(text.texts_NL), "rows": rows})


if __name__ == "__main__":
    main()
