"""The nodes (levels of t) of an evaluation, and the weights with which a sum over them is the integral of a bound over t in [0, 1].

"gauss" is a Gauss-Radau rule in a variable u of [0, 1] in which the integrand is smooth. A bound's integrand has most of its structure at
the ends: rows of n copies of one token differ only in the last 1/n of the noise, n s^(n-1) at the noise share s; noise that replaces tokens
has a logarithm of t where text is clean, schedules of single tokens a power below 1. So u is defined by
    share      s = `Process.noise_share`(t), in which a bound does not depend on the schedule, moved and scaled to run from 0 to 1
    power      s = a^power
    depth      log((a + A) / (1 - a + B)) is linear in u, A = e^-clean, B = e^-noise: even in the log-odds of a but for the last A and B
with `Process.ends` = Ends(power, clean, noise). Both depths are those of 16 nodes and grow with the root of the number of nodes: the errors
beyond the depth and between two nodes are then about equal. The last node is t = 1 to within LAST of the noise share. It has no noise of
masks, and texts that differ only in the last of the noise contribute there: the estimate of such a bound is too high, not too low.

A process in T steps has only the levels 1 .. T: where they are no more than the nodes, the rule is the mean over all of them, else the
same rule for the sum over levels. Gaussian noise in steps has its own nodes (`_gaussian_steps`).

Shapes: J nodes, K functionals, T steps, R laws.
"""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64

from dlmjax.diffusion.process import Process
from dlmjax.parallel.arrays import device_get

LAST = 1e-6


@dataclasses.dataclass(frozen=True)
class LevelGrid:
    """t = low + width * U[0, 1] at each node, and its weight in the integral.

    spread_KJ: functionals of the integrand, from which `quadrature_error` estimates the error of the rule. None where there are too few
    nodes for an estimate, or the times are drawn.
    """

    low_J: Float64[np.ndarray, "J"]
    width_J: Float64[np.ndarray, "J"]
    weight_J: Float64[np.ndarray, "J"]
    spread_KJ: Float64[np.ndarray, "K J"] | None = None

    @property
    def nodes(self) -> int:
        return len(self.weight_J)


def level_grid(process: Process, rule: str, nodes: int) -> LevelGrid:
    """The levels of one of RULES, or of "exact", for an exact likelihood; "gauss" has those of the schedule in use, learned or not."""
    if rule == "exact":
        return LevelGrid(np.full(1, 0.5), np.zeros(1), np.ones(1))
    if rule != "gauss":
        return LevelGrid(np.arange(nodes) / nodes, np.full(nodes, 1 / nodes), np.full(nodes, 1 / nodes))
    with jax.transfer_guard("allow"):
        process = jax.tree.map(lambda leaf: jnp.asarray(device_get(leaf)), process)
    if process.time_domain.steps and process.time_domain.steps <= nodes:
        count = process.time_domain.steps
        return LevelGrid((np.arange(count) + 0.5) / count, np.zeros(count), np.full(count, 1 / count), np.zeros((1, count)))
    if not process.time_domain.steps:
        return _continuous(process, nodes)
    return _gaussian_steps(process, nodes) if process.states.dim and nodes > 2 else _discrete(process, nodes)


def _continuous(process: Process, nodes: int) -> LevelGrid:
    curve, (x_J, weight_J) = _Curve(process, nodes), radau(nodes)
    share_J, slope_J = curve.share((x_J + 1) / 2)
    weight_J = weight_J * slope_J
    # An integrand that is constant in the noise share has its exact integral with any number of nodes.
    weight_J /= weight_J.sum()
    t_J, rate_J = curve.times(share_J)
    weight_J = weight_J / rate_J
    return LevelGrid(t_J, np.zeros(nodes), weight_J, _spread(x_J, weight_J))


def _discrete(process: Process, nodes: int) -> LevelGrid:
    """Level i covers a stretch of u; the integral over u of a step function is the sum over levels of their lengths."""
    steps, curve = process.time_domain.steps, _Curve(process, nodes)
    edge_T = curve.inverse(curve.shares(np.arange(steps + 1) / steps))
    length_T, x_T = np.diff(edge_T), edge_T[1:] + edge_T[:-1] - 1
    at = np.unique(np.clip(np.searchsorted(edge_T, (radau(nodes)[0] + 1) / 2) - 1, 0, steps - 1))
    x_J = x_T[at]
    # Start from the levels nearest to each node; then fit the sums of as many polynomials as leave all weights positive.
    nearest_T = np.searchsorted((x_J[1:] + x_J[:-1]) / 2, x_T)
    start_J = np.bincount(nearest_T, length_T, len(at))
    values_JK = np.polynomial.legendre.legvander(x_J, len(at) - 1)
    sums_K = np.polynomial.legendre.legvander(x_T, len(at) - 1).T @ length_T
    for known in range(len(at), 0, -1):
        values_KJ, root_J = values_JK[:, :known].T, np.sqrt(start_J)
        weight_J = start_J + root_J * np.linalg.lstsq(values_KJ * root_J, sums_K[:known] - values_KJ @ start_J)[0]
        if weight_J.min() > 0:
            break
    weight_J = weight_J / (steps * length_T[at])
    return LevelGrid((at + 0.5) / steps, np.zeros(len(at)), weight_J, _spread(x_J, weight_J))


def _gaussian_steps(process: Process, nodes: int) -> LevelGrid:
    """Some levels and positive weights that sum the bounds of known distributions over all levels.

    The term of a level in a Gaussian bound in steps is the decrease of the SNR over the step times an error that decreases with the SNR at
    its end. The errors of the distributions are exp(-r SNR), with r from near embeddings to far ones and to hundreds of equal tokens. Most
    of the SNR decreases in the first steps, so the sum is smooth in no variable. Two choices of levels are improved; the better is used.
    """
    from scipy.optimize import nnls  # half a second to import, which only these grids require

    steps, curve = process.time_domain.steps, _Curve(process, nodes)
    at_T = np.arange(steps + 1) / steps
    snr_T = 1 / np.maximum(curve.noise(at_T), 1e-12) - 1
    rate_R = np.geomspace(max(0.3 / snr_T[0], 0.05), 600, 80)
    part_TR = -np.diff(snr_T)[:, None] * rate_R * np.exp(-rate_R * snr_T[1:, None])
    fit, spread = _Fit(part_TR), np.searchsorted(curve.inverse(curve.shares(at_T)), (radau(nodes)[0] + 1) / 2) - 1
    spread = np.unique(np.clip(spread, 0, steps - 1))
    others = np.setdiff1d(np.arange(steps), spread)[: nodes - len(spread)]
    starts = [np.sort(np.concatenate([spread, others])), fit.fewer(np.nonzero(nnls(part_TR.T, fit.sum_R)[0])[0], nodes)]
    at = min((fit.exchanged(start) for start in starts), key=fit.error)
    weight_J, count = fit.weights(at), len(at)
    rest = [np.delete(np.arange(count), leave) for leave in (count // 3, 2 * count // 3)]
    spread_KJ = np.tile(weight_J, (2, 1))
    for row_J, keep in zip(spread_KJ, rest, strict=True):
        row_J[keep] -= fit.weights(at[keep])
    return LevelGrid((at + 0.5) / steps, np.zeros(count), weight_J / steps, spread_KJ / steps)


class _Fit:
    """Weights of a few levels with which their terms for R distributions sum to those of all levels."""

    def __init__(self, part_TR: Float64[np.ndarray, "T R"]):
        self.sum_R = part_TR.sum(axis=0)
        self._steps, self._part_TR = len(part_TR), part_TR
        self._ridge = 5e-12 * self._steps

    def weights(self, at: np.ndarray) -> Float64[np.ndarray, "J"]:
        part_JR = self._part_TR[at]
        return np.linalg.solve(part_JR @ part_JR.T + self._ridge * np.eye(len(at)), part_JR @ self.sum_R)

    def error(self, at: np.ndarray) -> float:
        """Sum of squares over the distributions and of the weights; more where a weight is negative."""
        weight_J = self.weights(at)
        missed_R = self.sum_R - weight_J @ self._part_TR[at]
        return float(missed_R @ missed_R + self._ridge * weight_J @ weight_J - min(weight_J.min(), 0.0))

    def fewer(self, at: np.ndarray, nodes: int) -> np.ndarray:
        """`at` without the levels whose removal adds the least error, one after the other."""
        while len(at) > nodes:
            part_JR = self._part_TR[at]
            inverse_JJ = np.linalg.inv(part_JR @ part_JR.T + self._ridge * np.eye(len(at)))
            at = np.delete(at, np.argmin((inverse_JJ @ part_JR @ self.sum_R) ** 2 / np.diag(inverse_JJ)))
        return at

    def exchanged(self, at: np.ndarray) -> np.ndarray:
        """`at` with each level moved as long as the error decreases."""
        best, moved = self.error(at), True
        while moved:
            moved = False
            for j, move in itertools.product(range(len(at)), (-16, -8, -4, -2, -1, 1, 2, 4, 8, 16)):
                other = at.copy()
                other[j] += move
                if not 0 <= other[j] < self._steps or other[j] in at:
                    continue
                error = self.error(other)
                if error < best * (1 - 1e-6):
                    best, at, moved = error, other, True
        return np.sort(at)


class _Curve:
    """Maps between u, the noise share and t, for one process and number of nodes; see the top of the file."""

    def __init__(self, process: Process, nodes: int):
        deeper = np.sqrt(nodes / 16)
        self._process, self._power = process, process.ends.power
        self._clean, self._noise = np.exp(-deeper * process.ends.clean), np.exp(-deeper * process.ends.noise)
        self._low, high = np.log(self._clean / (1 + self._noise)), np.log((1 + self._clean) / self._noise)
        self._width = high - self._low
        self._first, last = self._raw(np.array([0.0, 1.0]))
        self._range = last - self._first

    def share(self, u: Float64[np.ndarray, "J"]) -> tuple[Float64[np.ndarray, "J"], Float64[np.ndarray, "J"]]:
        """(noise share of [0, 1] at u, its derivative)."""
        odds = np.exp(self._low + self._width * u)
        a = np.clip((odds * (1 + self._noise) - self._clean) / (1 + odds), 0, 1)
        slope = self._width * odds * (1 + self._noise + self._clean) / (1 + odds) ** 2
        return np.minimum(a**self._power, 1 - LAST), self._power * a ** (self._power - 1) * slope

    def inverse(self, share: Float64[np.ndarray, "T"]) -> Float64[np.ndarray, "T"]:
        """u at a noise share of [0, 1]."""
        a = share ** (1 / self._power)
        return np.clip((np.log((a + self._clean) / (1 - a + self._noise)) - self._low) / self._width, 0, 1)

    def shares(self, t: Float64[np.ndarray, "*t"]) -> Float64[np.ndarray, "*t"]:
        """Noise share of [0, 1] at t."""
        return np.clip((self._raw(t) - self._first) / self._range, 0, 1)

    def times(self, share_J: Float64[np.ndarray, "J"]) -> tuple[Float64[np.ndarray, "J"], Float64[np.ndarray, "J"]]:
        """(t of each noise share, d share / dt there), by sections: processes do not provide the inverse."""
        low_J, width = np.zeros(len(share_J)), 1.0
        while width > 1e-18:
            # Sections of the rest, near 0 to a relative precision: nodes near clean text may be as small as 1e-12.
            part_S = np.arange(33) / 32
            found_JS = self.shares(np.minimum(low_J[:, None] + width * part_S, 1.0))
            low_J = low_J + width / 32 * np.clip(np.sum(found_JS <= share_J[:, None], axis=1) - 1, 0, 31)
            width /= 32
        t_J = np.clip(low_J, 1e-30, 1 - 1e-15)
        near_J = 1e-4 * np.minimum(t_J, 1 - t_J)
        rise_J = self.shares(t_J + near_J) - self.shares(t_J - near_J)
        return t_J, rise_J / (2 * near_J)

    def noise(self, t: Float64[np.ndarray, "*t"]) -> Float64[np.ndarray, "*t"]:
        """Noise share at t, as the process declares it."""
        return self._raw(t)

    def _raw(self, t: Float64[np.ndarray, "*t"]) -> Float64[np.ndarray, "*t"]:
        # Of few shapes: each operation is compiled once, whatever the number of nodes.
        padded = np.resize(t, max(2 ** (t.size - 1).bit_length(), 1024))
        with jax.enable_x64(True), jax.transfer_guard("allow"):
            return np.asarray(self._process.noise_share(jnp.asarray(padded)), np.float64)[: t.size].reshape(t.shape)


def radau(nodes: int) -> tuple[Float64[np.ndarray, "J"], Float64[np.ndarray, "J"]]:
    """Nodes, rising, and weights of Gauss-Radau quadrature on [-1, 1] with a node at 1, exact to degree 2 nodes - 2; the middle for one.

    Eigenvalues of the Jacobi matrix with its last entry changed (Golub 1973, "Some modified matrix eigenvalue problems").
    """
    k = np.arange(1, nodes)
    beside = k / np.sqrt(4.0 * k**2 - 1)
    diagonal = np.zeros(nodes)
    diagonal[-1] = nodes / (2 * nodes - 1) if nodes > 1 else 0.0
    x_J, vectors_JJ = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
    return np.clip(x_J, -1, 1), 2 * vectors_JJ[0] ** 2


def _spread(x_J: Float64[np.ndarray, "J"], weight_J: Float64[np.ndarray, "J"]) -> Float64[np.ndarray, "K J"] | None:
    """The coefficients of the integrand (in u) of the orthonormal Legendre polynomials of degree J - 2, J - 3, .. 1, as sums over nodes."""
    nodes = len(x_J)
    if nodes < 3:
        return None
    degree_K = np.arange(nodes - 2, 0, -1)
    values_JK = np.polynomial.legendre.legvander(x_J, nodes - 2)[:, degree_K] * np.sqrt(2 * degree_K + 1)
    return values_JK.T * weight_J


def quadrature_error(coefficient_K: Float64[np.ndarray, "K"]) -> float:
    """Estimated error of a rule for an integrand with these coefficients, `LevelGrid.spread_KJ` @ integrand.

    Without two of its nodes a rule changes by about 0.7 times the root of the sum of squares of the last two coefficients; with fewer than
    12 nodes that is the estimate. J nodes are exact to degree 2 J - 2: where coefficients decrease by more than a half over two degrees, it
    is assumed that those beyond J continue to. The rate of decrease is estimated from half of them, since one pair may be small by chance.
    """
    pair_P = np.hypot(coefficient_K[:-1:2], coefficient_K[1::2]) if len(coefficient_K) > 1 else np.abs(coefficient_K)
    if len(coefficient_K) < 10:
        return float(pair_P[0])
    last, before = min(5, len(pair_P) - 1), pair_P[:2].max()
    earlier = math.sqrt((pair_P[last - 1] ** 2 + pair_P[last] ** 2) / 2)
    fall = (before / earlier) ** (1 / (last - 0.5)) if earlier else 1.0
    return float(before * min(1.0, 2 * fall) ** (len(coefficient_K) + 3))
