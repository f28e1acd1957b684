"""What a case is, and the tools of the battery that every process must pass (tests/diffusion/test_battery.py).

The cases themselves stand in cases_*.py, a file for each family, and cases.py lists them. A new process adds one row there.

The law: 3 tokens, 2 or 3 positions. Ids: 0..2 tokens, 3 = BOS, which text never holds, 4 = mask. In the oracle the mask is state 3.

Shapes: N enumerated pairs (x, z), L positions, V vocabulary; X clean and Z noisy sequences.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from dlmjax.diffusion import Process
from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.oracle import toy

TOKENS, BOS, MASK, VOCAB = 3, 3, 4, 5
Curve = Callable[[float], float]


Express = Callable[[oracle.AnyKernel, float, int, np.ndarray], np.ndarray]


def as_posterior(kernel: oracle.AnyKernel, t: float, state: int, loo_K: np.ndarray) -> np.ndarray:
    """log p(x_i | z) up to a constant."""
    return np.log(loo_K) + np.log(np.maximum(kernel.matrix(t)[:, state], 1e-300))


def as_leave_one_out(kernel: oracle.AnyKernel, t: float, state: int, loo_K: np.ndarray) -> np.ndarray:
    """log p(x_i | z_{-i})."""
    return np.log(loo_K)


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A process and what the oracle needs to know of it.

    kernel: its forward process for the oracle; None for a process without noise.
    log_likelihood: what the exact denoiser needs (see toy.ToyDenoiser); None = causal.
    output: what the denoiser's output means: "posterior", or "leave_one_out", or a function that makes the output of
      (log p(x_i | z_{-i}), z, t).
    express: (kernel, t, state, p(x_i | z_{-i})) -> such an output at one position, in numpy; tells the pointwise test the same thing.
    pairs: (case, law, t) -> every (x, z) that can occur at level t, with its probability.
    grid: (levels, weights) whose weighted sum is the integral over t.
    point: the oracle's loss at a point.  gap: (case, law) -> what the exact denoiser leaves between bound and entropy, if not tight.
    reverse: (law, kernel, times, start) -> the law of a row stepped back through `times`.
    times: how levels are drawn where the bound is estimated.  light: a variant of another case: the tests that sample leave it out.
    """

    name: str
    process: Process
    kernel: oracle.AnyKernel | None
    log_likelihood: Callable | None = toy.masked_likelihood(TOKENS, MASK)
    output: str | Callable = "posterior"
    express: Express = as_posterior
    pairs: Callable | None = None
    grid: Callable[[int], tuple[np.ndarray, np.ndarray]] = lambda length: oracle.quadrature(64)
    point: oracle.PointLoss = oracle.kl_is_loss
    gap: Callable | None = None
    reverse: Callable = oracle.reverse_distribution
    times: str = "stratified"
    light: bool = False

    def __str__(self) -> str:
        return self.name

    def denoiser(self, law: oracle.JointDistribution) -> toy.ToyDenoiser:
        if self.output == "posterior":
            return toy.ToyDenoiser(law, VOCAB, self.log_likelihood)
        return ExactDenoiser(law, VOCAB, self.log_likelihood, None if self.output == "leave_one_out" else self.output)

    def enumerate(self, law: oracle.JointDistribution, t: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(x_NL, z_NL as ids, probability_N) at level t."""
        if self.pairs is not None:
            return self.pairs(self, law, t)
        joint_XZ = oracle.evidence(law, self.kernel, t)
        z_Zn = to_ids(oracle.enumerate_sequences(self.states, law.length))
        ix, iz = np.nonzero(joint_XZ)
        return law.sequences_Xn[ix], z_Zn[iz], joint_XZ[ix, iz]

    @property
    def states(self) -> int:
        return self.kernel.matrix(0.5).shape[1]


@dataclasses.dataclass(frozen=True, eq=False)
class ExactDenoiser(toy.ToyDenoiser):
    """Says p(x_i | z_{-i}) in place of p(x_i | z), or what `output` makes of it."""

    output: Callable | None = None

    def hidden(self, z_BL, t_BL, hint_BLI=None):
        onehot_XLK = np.eye(self.joint.tokens)[self.joint.sequences_Xn]
        log_q_BLX = jnp.einsum("blk,xlk->blx", self.log_likelihood(z_BL, t_BL), onehot_XLK, precision="highest")
        others_LL = 1 - np.eye(z_BL.shape[1])
        log_joint_BLX = jnp.log(self.joint.probability_X) + jnp.einsum("ij,bjx->bix", others_LL, log_q_BLX, precision="highest")
        p_BLK = jnp.einsum("blx,xlk->blk", jax.nn.softmax(log_joint_BLX, axis=-1), onehot_XLK, precision="highest")
        special = ((0, 0), (0, 0), (0, self.vocab - self.joint.tokens))
        log_loo_BLV = jnp.pad(jnp.log(p_BLK), special, constant_values=-1e9)
        return log_loo_BLV if self.output is None else self.output(log_loo_BLV, z_BL, t_BL)


def to_ids(states: np.ndarray) -> np.ndarray:
    """The oracle's states as ids: its mask is the state after the tokens."""
    return np.where(states == TOKENS, MASK, states).astype(np.int32)


def to_states(ids: np.ndarray) -> np.ndarray:
    return np.where(ids == MASK, TOKENS, ids)


def clipped(alpha: Curve, alpha_prime: Curve, low: float, high: float) -> tuple[Curve, Curve]:
    return lambda t: low + (high - low) * alpha(t), lambda t: (high - low) * alpha_prime(t)


# alpha and alpha' once more, by hand in float64: the oracle shares nothing with the schedules under test.
LINEAR = (lambda t: 1 - t, lambda t: -1.0)
COSINE = (lambda t: 2 * math.sin(math.pi / 4 * (1 - t)) ** 2, lambda t: -math.pi / 2 * math.sin(math.pi / 2 * (1 - t)))
SQUARE = (lambda t: 1 - t**2, lambda t: -2 * t)
GEOMETRIC = (
    lambda t: math.exp(-(0.01 ** (1 - t)) * 5**t),
    lambda t: -math.log(500) * 0.01 ** (1 - t) * 5**t * math.exp(-(0.01 ** (1 - t)) * 5**t),
)


# --- tools -------------------------------------------------------------------------------------------------------------------------


def expected_nats(case: Case, law: oracle.JointDistribution, denoiser=None) -> float:
    """The diffusion part of the bound by enumeration over (x, z) and quadrature over t, with the process's own loss, in float64."""
    weight_J = np.asarray(case.grid(law.length)[1])
    return float(weight_J @ nats_by_time(case, law, denoiser))


def nats_by_time(case: Case, law: oracle.JointDistribution, denoiser=None) -> np.ndarray:
    """The integrand at each level of the case's grid, likewise. -> [J]"""
    denoiser = denoiser or case.denoiser(law)
    t_J = case.grid(law.length)[0]
    x, z, mass = zip(*(case.enumerate(law, level) for level in t_J), strict=True)
    t = [np.full(x_NL.shape, level) for x_NL, level in zip(x, t_J, strict=True)]
    nats_NL = _padded(
        lambda x_NL, z_NL, t_NL: case.process.loss(
            denoiser.logits(denoiser.hidden(z_NL, t_NL)), x_NL, z_NL, t_NL, *case.process.loss_inputs(x_NL, z_NL, t_NL)
        ),
        np.concatenate(x),
        np.concatenate(z),
        np.concatenate(t),
    )
    starts_J = np.cumsum([0, *(len(p_N) for p_N in mass[:-1])])
    return np.add.reduceat(np.concatenate(mass) * nats_NL.sum(axis=1), starts_J)


def _padded(function, *arrays: np.ndarray) -> np.ndarray:
    """function(*arrays) in float64, with rows repeated up to a power of 4 (many: of 2): all cases share compiled operations."""
    rows = len(arrays[0])
    size = 4 ** math.ceil(math.log(rows, 4)) if rows <= 4**8 else 2 ** math.ceil(math.log2(rows))
    with jax.enable_x64(True):
        return np.asarray(function(*(jnp.asarray(np.resize(array, (size, *array.shape[1:]))) for array in arrays)))[:rows]


def expected_boundary(case: Case, law: oracle.JointDistribution) -> float:
    """Prior and reconstruction terms by enumeration, with the process's own functions."""
    if not case.process.boundary.any:
        return 0.0
    x_NL, z_NL, p_N = case.enumerate(law, 0.0)
    process, denoiser = case.process, case.denoiser(law)

    def nats(x_NL, z_NL):
        logits_NLV = denoiser.logits(denoiser.hidden(z_NL, jnp.zeros(x_NL.shape)))
        return process.reconstruction(logits_NLV, x_NL, z_NL) + process.prior_nats(x_NL)

    return float(np.sum(p_N * _padded(nats, x_NL, z_NL).sum(axis=1)))


def prior_gap(case: Case, law: oracle.JointDistribution) -> float:
    """KL(q(z_1) || p_1): the one thing an exact denoiser cannot make up for. p_1 spreads the alpha_1 that is left uniformly."""
    start_Z = prior_distribution(case, law)
    true_Z = oracle.evidence(law, case.kernel, 1.0).sum(axis=0)
    seen_Z = true_Z > 0
    return float(np.sum(true_Z[seen_Z] * np.log(true_Z[seen_Z] / start_Z[seen_Z])))


def reconstruction_gap(case: Case, law: oracle.JointDistribution) -> float:
    """E KL(p(x | z_0) || prod_i p(x_i | z_0)): tokens that are in doubt at t = 0 are guessed without seeing each other."""
    joint_XZ, guess_ZnK = oracle.evidence(law, case.kernel, 0.0), oracle.posterior(law, case.kernel, 0.0)
    x_Xn, total = law.sequences_Xn, 0.0
    for ix, iz in zip(*np.nonzero(joint_XZ), strict=True):
        apart = np.prod([guess_ZnK[iz, i, x_Xn[ix, i]] for i in range(law.length)])
        total += joint_XZ[ix, iz] * np.log(joint_XZ[ix, iz] / joint_XZ[:, iz].sum() / apart)
    return float(total)


def prior_distribution(case: Case, law: oracle.JointDistribution) -> np.ndarray:
    """p_1 over the oracle's noisy sequences."""
    p_S = case.kernel.matrix(1.0).mean(axis=0)
    return p_S[oracle.enumerate_sequences(p_S.size, law.length)].prod(axis=1)


def sample_joint(law: oracle.JointDistribution, rows: int, seed: int) -> np.ndarray:
    chosen = np.random.default_rng(seed).choice(law.probability_X.size, size=rows, p=law.probability_X)
    return law.sequences_Xn[chosen].astype(np.int32)


def index_of(states_NL: np.ndarray, states: int) -> np.ndarray:
    """Place of each sequence in `oracle.enumerate_sequences(states, L)`."""
    return np.ravel_multi_index(tuple(np.asarray(states_NL).T), (states,) * states_NL.shape[1])


def chi_square_sigmas(counts: np.ndarray, probability: np.ndarray) -> float:
    """How many standard deviations the chi-square statistic lies above its mean (Wilson-Hilferty); cells that expect < 5 are pooled."""
    counts, expected = np.asarray(counts, float), np.asarray(probability, float) * counts.sum()
    assert counts[expected <= 1e-9 * counts.sum()].sum() == 0, "something was drawn that cannot be"
    rare = expected < 5
    if rare.any():
        counts, expected = np.append(counts[~rare], counts[rare].sum()), np.append(expected[~rare], expected[rare].sum())
    keep = expected > 0
    statistic, freedom = np.sum((counts[keep] - expected[keep]) ** 2 / expected[keep]), keep.sum() - 1
    if freedom == 0:
        return 0.0
    spread = 2 / (9 * freedom)
    return float(((statistic / freedom) ** (1 / 3) - (1 - spread)) / np.sqrt(spread))


def batch_of(x_BL: np.ndarray, segments_BL: np.ndarray | None = None, first_row: int = 0) -> dict:
    """A batch as the loader makes it."""
    rows = np.arange(first_row, first_row + len(x_BL), dtype=np.int32)
    segments_BL = np.ones_like(x_BL) if segments_BL is None else segments_BL
    batch = {"tokens": x_BL, "segments": segments_BL, "positions": np.broadcast_to(np.arange(x_BL.shape[1]), x_BL.shape), "row": rows}
    return {name: jnp.asarray(value, jnp.int32) for name, value in batch.items()}


def members(kind: type) -> set[str]:
    """Public methods, properties and declared attributes of a class."""
    found = {name for base in kind.__mro__ for name in (*vars(base), *vars(base).get("__annotations__", {}))}
    return {name for name in found if not name.startswith("_")}
