"""Error of sampling for a number of steps on each time grid: divergence of the sampled distribution, by enumeration, without samples.

    python -m benchmarks.sampling_grids [--steps 4,8,16,32] [--laws 3] [--json FILE]

Random joint distributions of 3 tokens at 3 positions and a Markov chain of 4, with their exact denoisers; ancestral steps (Euler steps for
flow matching). An entry is KL(text || sampled) in nats per text, geometric mean over the distributions. The best of each column is marked:
`Capabilities.sampling_grid` is chosen from this table. Seconds on one core; float64.
"""

import argparse
import itertools
import json
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dlmjax.diffusion import FlowMatching, Hybrid, Masked, Mixed, Process, Uniform
from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.schedules import Cosine
from dlmjax.files import write_atomically
from dlmjax.sampling import make_grid

TOKENS, BOS, MASK, VOCAB = 3, 3, 4, 5
IDS = {"vocab": VOCAB, "mask_id": MASK, "excluded": (BOS,)}
# Scores of uniform noise are stepped as process uniform is, those of masks as masked.
PROCESSES: dict[str, Callable[[], Process]] = {
    "masked": lambda: Masked(**IDS),
    "masked, cosine": lambda: Masked(schedule=Cosine(), **IDS),
    "hybrid, p_uniform=0.1": lambda: Hybrid(p_uniform=0.1, **IDS),
    "hybrid, p_uniform=0.2": lambda: Hybrid(p_uniform=0.2, **IDS),
    "hybrid, p_uniform=0.2, gamma=2": lambda: Hybrid(p_uniform=0.2, gamma=2.0, **IDS),
    "mixed, sigmoid": lambda: Mixed(**IDS),
    "uniform": lambda: Uniform(**IDS),
    "uniform, cosine": lambda: Uniform(schedule=Cosine(), **IDS),
    "flow_matching, uniform": lambda: FlowMatching(noise="uniform", **IDS),
}
GRIDS = (
    *("uniform", "cosine", "shifted(alpha=3)", "shifted(alpha=0.5)", "shifted(alpha=0.25)"),
    *("power(exponent=1.5)", "power(exponent=2)", "power(exponent=3)"),
)


def kernel_of(process: Process) -> oracle.Kernel:
    """The forward process for the oracle, without slopes; call it where float64 is on."""

    def shares(t: float) -> tuple[float, float, float]:
        if process.absorbing_id is not None:
            return float(process.schedule.alpha(jnp.float64(t))), 0.0, float(process.schedule.noise(jnp.float64(t)))
        return tuple(float(share) for share in process.shares(jnp.float64(t)))

    def noise(t: float) -> np.ndarray:
        _, uniform, mask = shares(t)
        return np.append(np.full(TOKENS, uniform / TOKENS), mask)

    # Steps use no slope.
    return oracle.Kernel(TOKENS, lambda t: shares(t)[0], lambda t: math.nan, noise, lambda t: np.full(TOKENS + 1, math.nan))


def euler_matrix(joint: oracle.JointDistribution, kernel: oracle.Kernel, t: float, s: float) -> np.ndarray:
    """A step of discrete flow matching: with one probability for all, a position becomes a draw of its posterior."""
    move = (kernel.alpha(s) - kernel.alpha(t)) / (1 - kernel.alpha(t))
    posterior_ZnK = oracle.posterior(joint, kernel, t)
    z_Zn = oracle.enumerate_sequences(TOKENS + 1, joint.length)
    matrix_ZZ = np.ones((len(z_Zn), len(z_Zn)))
    for i in range(joint.length):
        step_ZS = (1 - move) * np.eye(TOKENS + 1)[z_Zn[:, i]]
        step_ZS[:, :TOKENS] += move * posterior_ZnK[:, i]
        matrix_ZZ *= step_ZS[:, z_Zn[:, i]]
    return matrix_ZZ


def error(process: Process, joint: oracle.JointDistribution, grid: str, steps: int) -> float:
    """KL(text || sampled), nats per text."""
    with jax.enable_x64(True), np.errstate(divide="ignore", invalid="ignore"):
        kernel = kernel_of(process)
        matrix = euler_matrix if process.name == "flow_matching" else oracle.reverse_matrix
        z_Zn = oracle.enumerate_sequences(TOKENS + 1, joint.length)
        now_Z = kernel.noise(1.0)[z_Zn].prod(axis=1)
        for t, s in itertools.pairwise(make_grid(grid).times(steps).tolist()):
            # States of probability zero are 0 / 0 in the oracle.
            now_Z = now_Z @ np.nan_to_num(matrix(joint, kernel, t, s))
    sampled_X = now_Z[(z_Zn < TOKENS).all(axis=1)]
    return float(np.sum(joint.probability_X * np.log(joint.probability_X / sampled_X)))


def markov(length: int, seed: int) -> oracle.JointDistribution:
    """A chain whose neighbours depend on each other, from a uniform start."""
    weight_KK = np.exp(2 * np.random.default_rng(seed).normal(size=(TOKENS, TOKENS)))
    step_KK = weight_KK / weight_KK.sum(axis=1, keepdims=True)
    x_Xn = oracle.enumerate_sequences(TOKENS, length)
    p_X = step_KK[x_Xn[:, :-1], x_Xn[:, 1:]].prod(axis=1) / TOKENS
    return oracle.JointDistribution(p_X.reshape((TOKENS,) * length))


def distributions(count: int) -> list[oracle.JointDistribution]:
    """The toy distributions: `count` - 1 without structure, and a chain."""
    return [oracle.JointDistribution.random(TOKENS, 3, seed=seed, sharpness=1.5) for seed in range(count - 1)] + [markov(4, count)]


def table(name: str, steps: list[int], found: list[oracle.JointDistribution]) -> dict:
    """Errors of one process, {grid: [one a number of steps]}, printed as markdown."""
    process = PROCESSES[name]()
    rows = {grid: [math.exp(np.mean([math.log(error(process, p, grid, number)) for p in found])) for number in steps] for grid in GRIDS}
    default = process.capabilities.sampling_grid
    print(
        f"\n{name} (default: {default})\n\n| grid | {' | '.join(map(str, steps))} |\n|{'---|' * (len(steps) + 1)}",
        flush=True,
    )
    least = [min(column) for column in zip(*rows.values(), strict=True)]
    for grid, row in rows.items():
        cells = [f"**{value:.5f}**" if value == best else f"{value:.5f}" for value, best in zip(row, least, strict=True)]
        print(f"| `{grid}` | {' | '.join(cells)} |", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", default="4,8,16,32")
    parser.add_argument("--laws", type=int, default=3)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    steps, found = [int(part) for part in arguments.steps.split(",")], distributions(arguments.laws)
    report = {name: table(name, steps, found) for name in PROCESSES}
    if arguments.json:
        write_atomically(arguments.json, json.dumps({"steps": steps, "laws": arguments.laws, "nats_per_text": report}, indent=1) + "\n")


if __name__ == "__main__":
    main()
