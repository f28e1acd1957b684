"""The cases of the Gaussian processes, and the truth by quadrature: numpy, float64, from the definitions, sharing nothing with the code.

The law: 3 tokens, 1 or 2 positions. Ids: 0..2 tokens, 3 = mask, which text never holds. States are vectors of 1 or 2 numbers.

Shapes: L positions, K tokens, V vocabulary, E dim, X clean sequences, Z grid points.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from dlmjax.diffusion.gaussian import DiffusionLm, EmbeddingFlow, GaussianEmbedding, Plaid, Sed
from dlmjax.diffusion.oracle.enumeration import JointDistribution
from dlmjax.diffusion.oracle.gaussian import ExactDenoiser
from dlmjax.diffusion.process import init_params

TOKENS, MASK, VOCAB = 3, 3, 4
# The mask's embedding lies among the others: whoever does not bar it is seen.
TABLE_1 = np.asarray([[-1.0], [0.3], [1.1], [0.1]])
TABLE_2 = np.asarray([[-1.0, 0.4], [0.3, -1.2], [1.1, 0.6], [0.1, 0.0]])
ONE = JointDistribution(np.asarray([0.5, 0.3, 0.2]))
TWO = JointDistribution.random(TOKENS, 2, seed=5, sharpness=1.2)


def ready(process: GaussianEmbedding, table: np.ndarray | None = None) -> GaussianEmbedding:
    """The process with its start values, and the battery's table for embeddings."""
    params = init_params(process, jax.random.key(0))
    table = {1: TABLE_1, 2: TABLE_2}.get(process.dim) if table is None else table
    return process.with_params(params | {"embedding": jnp.asarray(table)})


def make(cls, **values) -> GaussianEmbedding:
    """A process of the battery. Call it where float64 is on, if float64 is wanted."""
    return ready(cls(VOCAB, MASK, **({"dim": 1} | values)))


FREE = {"norm": 0.0, "frozen": False}
CASES = {
    "plaid": lambda **v: make(Plaid, **FREE, gamma_0=-6.0, gamma_1=9.0, **v),
    "plaid/no_prior": lambda **v: make(Plaid, **FREE, gamma_0=-6.0, gamma_1=9.0, output_prior=False, **v),
    "linear/eps": lambda **v: make(GaussianEmbedding, path="linear", prediction="eps", **v),
    "cosine/v": lambda **v: make(GaussianEmbedding, path="cosine", prediction="v", **v),
    "cosine/score": lambda **v: make(GaussianEmbedding, path="cosine", prediction="score", **v),
    "cosine/logits": lambda **v: make(GaussianEmbedding, path="cosine", **v),
    "diffusion_lm": lambda **v: make(DiffusionLm, gamma_0=-6.0, rounding="bayes", **v),
    "sed": lambda **v: make(Sed, **FREE, rounding="bayes", **({"gamma_0": -9.2} | v)),
    "embedding_flow": lambda **v: make(EmbeddingFlow, **FREE, **({"gamma_0": -9.2} | v)),
}


# --- the truth ---------------------------------------------------------------------------------------------------------------------


def levels(process: GaussianEmbedding, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Levels t and weights of an integral over [0, 1]: Gauss-Legendre in gamma, in which the integrand is smooth, with t found by
    bisection and dt/dgamma by differences. Beyond gamma = 20 there is nothing left of the text."""

    def gamma(t):
        return process.curve.at(t).gamma

    x, w = np.polynomial.legendre.leggauss(nodes)
    low, high = float(gamma(0.0)), min(float(gamma(1.0)), 20.0)
    want = low + (high - low) * (x + 1) / 2
    before, after = jnp.zeros(nodes), jnp.ones(nodes)
    for _ in range(60):
        middle = (before + after) / 2
        early = gamma(middle) < want
        before, after = jnp.where(early, middle, before), jnp.where(early, after, middle)
    near = 1e-4 * jnp.minimum(before, 1 - before)
    slope = (gamma(before + near) - gamma(before - near)) / (2 * near)
    return np.asarray(before), np.asarray(w * (high - low) / 2 / slope)


def grid_of(a: float, s: float, table: np.ndarray, length: int) -> tuple[np.ndarray, float]:
    """(z_ZLE on a lattice that holds every q(z | x), volume of a cell): the trapezoid rule, exact to rounding for normal densities.

    Steps of at most s / 4 (s / 2 in two dimensions), in numbers that are powers of 2 or 4: then most levels share what is compiled."""
    width = a * np.ptp(table[:TOKENS], axis=0).max() + 16 * s
    base = 4 if length * table.shape[1] == 1 else 2
    nodes = base ** math.ceil(math.log(base * width / s, base))
    lattice = [np.linspace(a * column.min() - 8 * s, a * column.max() + 8 * s, nodes) for column in table[:TOKENS].T] * length
    z_Z = np.asarray(list(itertools.product(*lattice))).reshape(-1, length, table.shape[1])
    return z_Z, math.prod(axis[1] - axis[0] for axis in lattice)


def likelihood(z_ZLE: np.ndarray, a: float, s: float, table: np.ndarray) -> np.ndarray:
    """N(z_i; a e_k, s^2 I): [Z, L, K]."""
    far = z_ZLE[:, :, None, :] - a * table[:TOKENS]
    return np.exp(-np.sum(far**2, axis=-1) / (2 * s**2)) / (2 * math.pi * s**2) ** (table.shape[1] / 2)


def joint(law: JointDistribution, z_ZLE: np.ndarray, a: float, s: float, table: np.ndarray) -> np.ndarray:
    """p(x) q(z | x): [X, Z]."""
    q_ZLK = likelihood(z_ZLE, a, s, table)
    parts = [q_ZLK[:, i, law.sequences_Xn[:, i]].T for i in range(law.length)]
    return law.probability_X[:, None] * np.prod(parts, axis=0)


def posterior(law: JointDistribution, z_ZLE: np.ndarray, a: float, s: float, table: np.ndarray) -> np.ndarray:
    """p(x_i = k | z): [Z, L, K]."""
    joint_XZ = joint(law, z_ZLE, a, s, table)
    weight = np.einsum("xz,xik->zik", joint_XZ, np.eye(law.tokens)[law.sequences_Xn])
    return weight / weight.sum(axis=-1, keepdims=True)


def expected(function, law: JointDistribution, a: float, s: float, table: np.ndarray) -> float:
    """E over x and z of function(x_NL, z_NLE) -> [N, L], summed over positions; `function` works in float64 jax."""
    z_ZLE, cell = grid_of(a, s, table, law.length)
    mass_XZ = joint(law, z_ZLE, a, s, table) * cell
    x_XL, Z = law.sequences_Xn, len(z_ZLE)
    x_NL = np.repeat(x_XL, Z, axis=0)
    z_NLE = np.tile(z_ZLE, (len(x_XL), 1, 1))
    return float(np.sum(mass_XZ.reshape(-1) * np.asarray(function(jnp.asarray(x_NL), jnp.asarray(z_NLE))).sum(axis=1)))


def bound(process: GaussianEmbedding, law: JointDistribution, nodes: int = 64) -> dict[str, float]:
    """The three parts of the NELBO with the exact denoiser, by quadrature over gamma and z, through the process's own functions."""
    denoiser, table = ExactDenoiser.of(law, process), np.asarray(process.table)

    @jax.jit
    def nats(x, z, t):
        t = jnp.full(x.shape, t)
        return process.loss(denoiser.hidden(z, process.time_embedding_input(t)), x, z, t)

    @jax.jit
    def reconstruction(x, z, t):
        return process.reconstruction(denoiser.hidden(z, process.time_embedding_input(jnp.full(x.shape, t))), x, z)

    def run(function, t: float) -> float:
        a, s, _ = (float(v) for v in process.curve.at(t))
        return expected(lambda x, z: function(x, z, t), law, a, s, table)

    if process.steps:
        diffusion = sum(run(nats, i / process.steps) for i in range(1, process.steps + 1)) / process.steps
    else:
        diffusion = sum(w * run(nats, float(t)) for t, w in zip(*levels(process, nodes), strict=True))
    prior = float(law.probability_X @ np.asarray(process.prior_nats(jnp.asarray(law.sequences_Xn))).sum(axis=1))
    return {"diffusion": diffusion, "prior": prior, "reconstruction": run(reconstruction, 0.0)}
