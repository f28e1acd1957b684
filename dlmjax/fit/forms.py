"""Laws of the loss: their equations, parameters and bounds. Pure functions of numpy arrays; imports no jax.

A form gives log L of R runs for any number of parameter vectors at once, theta [..., P] -> [..., R], so that all starts of a fit and all
resamples of a bootstrap are solved together. Positive coefficients are held as logarithms: log L is a log-sum-exp of the terms
(2203.15556 appendix D.3), which neither overflows nor becomes negative.

    additive     L = E + A / N^a + B / D^b                       N parameters, or FLOPs per token (then it is von Rütte's form)
    repetition   the same with effective sizes and tokens        repeated tokens are worth less with every epoch
    overfitting  additive + G e^h N^c / U^d                      loss is U-shaped in the epochs e over U unique tokens
                 (these two also for runs of one size, whose terms in N are part of E and G)
    joint        one law for dense and sparse networks           total and active parameters
    mixing       L_i = (B / D^b + C) / r^a                       r the share of domain i in the mixture

Shapes: S parameter vectors, R runs, P parameters. Losses in nats per token.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

_FAR = 300.0  # exp(-300) is nothing, exp(300) no overflow
Columns = Mapping[str, np.ndarray]
Predict = Callable[[np.ndarray, Columns], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Form:
    """A law.

    names: of the parameters, as they are fitted; `log_` in front of one: the law has its exponential.
    lower, upper: bounds of the parameters; a fit that ends at one is reported. starts: values of each parameter from which
    fits start (all combinations). columns: the quantities that each run must have. log_loss: theta [..., P] -> log L [..., R].
    """

    name: str
    equation: str
    source: str
    names: tuple[str, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    starts: tuple[tuple[float, ...], ...]
    columns: tuple[str, ...]
    log_loss: Predict

    def values(self, theta: np.ndarray) -> dict[str, Any]:
        """The parameters of the equation by name, logarithms undone: numbers for one vector [P], arrays [S] for resamples [S, P]."""
        theta = np.asarray(theta, float)
        columns = theta.tolist() if theta.ndim == 1 else theta.T
        exp = math.exp if theta.ndim == 1 else np.exp
        pairs = zip(self.names, columns, strict=True)
        return {name.removeprefix("log_"): exp(value) if name.startswith("log_") else value for name, value in pairs}

    def theta(self, values: Mapping[str, float]) -> np.ndarray:
        """The way back from `values`."""
        return np.array([math.log(values[n.removeprefix("log_")]) if n.startswith("log_") else values[n] for n in self.names])

    def loss(self, values: Mapping[str, float], **columns) -> np.ndarray:
        """L under given parameters, nats per token; the columns may be numbers."""
        arrays = {name: np.atleast_1d(np.asarray(value, float)) for name, value in columns.items()}
        return np.exp(self.log_loss(self.theta(values), arrays))

    def value_and_jacobian(self, theta_SP: np.ndarray, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
        """log L [S, R] and its derivatives [S, R, P], exact to rounding: complex steps of 1e-30 have no cancellation."""
        if self.log_loss is _additive:
            return _additive_jacobian(theta_SP, columns)
        size = theta_SP.shape[-1]
        moved_SPP = theta_SP[:, None, :] + 1e-30j * np.eye(size)
        complex_SPR = self.log_loss(moved_SPP, columns)
        return complex_SPR[:, 0].real, complex_SPR.imag.swapaxes(1, 2) / 1e-30


def _logsumexp(*terms: np.ndarray) -> np.ndarray:
    """log sum exp over the terms, for complex numbers too (shifted by the largest real part)."""
    stacked = np.stack(np.broadcast_arrays(*terms))
    top = stacked.real.max(axis=0)
    return top + np.log(np.exp(stacked - top).sum(axis=0))


def _split(theta: np.ndarray) -> list[np.ndarray]:
    """Each parameter as [..., 1], to meet [R]."""
    return [theta[..., i, None] for i in range(theta.shape[-1])]


def _additive(theta: np.ndarray, columns: Columns) -> np.ndarray:
    log_E, log_A, log_B, a, b = _split(theta)
    return _logsumexp(log_E + 0 * columns["log_N"], log_A - a * columns["log_N"], log_B - b * columns["log_D"])


def _additive_jacobian(theta_SP: np.ndarray, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    """By hand, ten times faster than complex steps: it is what a bootstrap spends its time on."""
    log_E, log_A, log_B, a, b = _split(theta_SP)
    size_SR, data_SR = log_A - a * columns["log_N"], log_B - b * columns["log_D"]
    top_SR = np.maximum(np.maximum(size_SR, data_SR), log_E)
    e_SR, n_SR, d_SR = np.exp(log_E - top_SR), np.exp(size_SR - top_SR), np.exp(data_SR - top_SR)
    total_SR = e_SR + n_SR + d_SR
    e_SR, n_SR, d_SR = e_SR / total_SR, n_SR / total_SR, d_SR / total_SR
    jacobian = np.stack([e_SR, n_SR, d_SR, -n_SR * columns["log_N"], -d_SR * columns["log_D"]], axis=-1)
    return top_SR + np.log(total_SR), jacobian


ADDITIVE = Form(
    name="additive",
    equation="L = E + A / N^a + B / D^b",
    source="2203.15556 eq. 2; with FLOPs per token M for N: von Rütte et al. 2512.10858",
    names=("log_E", "log_A", "log_B", "a", "b"),
    lower=(-7.0, -10.0, -10.0, 0.02, 0.02),
    upper=(5.0, 60.0, 60.0, 3.0, 3.0),
    starts=((-1.0, 0.0, 0.7), (0.0, 3.0, 6.0, 10.0), (0.0, 3.0, 6.0, 10.0), (0.2, 0.4, 0.8), (0.2, 0.4, 0.8)),
    columns=("log_N", "log_D"),
    log_loss=_additive,
)


def _saturated(log_base: np.ndarray, repeats: np.ndarray, log_rate: np.ndarray) -> np.ndarray:
    """log(U + U R* (1 - exp(-R / R*))): R repeats of U, worth ever less. expm1 keeps R = 0 and large R* exact."""
    rate = np.exp(log_rate)
    shares = repeats / rate
    return log_base + np.log1p(-rate * np.expm1(-np.where(shares.real < _FAR, shares, _FAR)))


def _repetition(theta: np.ndarray, columns: Columns) -> np.ndarray:
    log_E, log_A, log_B, a, b, log_rate_D, log_rate_N = _split(theta)
    log_N, log_D, log_U = columns["log_N"], columns["log_D"], columns["log_U"]
    log_data = _saturated(log_U, np.exp(log_D - log_U) - 1, log_rate_D)
    # Sizes that the unique tokens can feed at the optimum of the additive law, a A / N^a = b B / U^b; what is beyond is "excess".
    log_fed = (np.log(a / b) + log_A - log_B + b * log_U) / a
    log_fed = np.where(log_fed.real < log_N, log_fed, log_N)
    excess = log_N - log_fed
    log_size = _saturated(log_fed, np.exp(np.where(excess.real < _FAR, excess, _FAR)) - 1, log_rate_N)
    return _logsumexp(log_E + 0 * log_N, log_A - a * log_size, log_B - b * log_data)


REPETITION = Form(
    name="repetition",
    equation="L = E + A / N'^a + B / D'^b, D' = U + U R_D* (1 - exp(-(D/U - 1) / R_D*)), N' likewise from the size that U can feed",
    source="Muennighoff et al. 2305.16264 eq. 5-7; for masked diffusion 2507.15857",
    names=(*ADDITIVE.names, "log_R_D", "log_R_N"),
    lower=(*ADDITIVE.lower, -2.0, -2.0),
    upper=(*ADDITIVE.upper, 12.0, 12.0),
    starts=((-1.0, 0.5), (3.0, 7.0), (3.0, 7.0), (0.3, 0.6), (0.3, 0.6), (1.0, 3.0, 6.0), (1.0, 5.0)),
    columns=("log_N", "log_D", "log_U"),
    log_loss=_repetition,
)


def _overfitting(theta: np.ndarray, columns: Columns) -> np.ndarray:
    log_E, log_A, log_B, a, b, log_G, h, c, d = _split(theta)
    log_N, log_D, log_U = columns["log_N"], columns["log_D"], columns["log_U"]
    penalty = log_G + h * (log_D - log_U) + c * log_N - d * log_U
    return _logsumexp(log_E + 0 * log_N, log_A - a * log_N, log_B - b * log_D, penalty)


OVERFITTING = Form(
    name="overfitting",
    equation="L = E + A / N^a + B / (e U)^b + G e^h N^c / U^d; best epochs e = (b B / h G)^(1/(h+b)) U^((d-b)/(h+b)) / N^(c/(h+b))",
    source="after Quokka 2510.03280, which reports loss U-shaped in the epochs and best epochs ~ U^0.39 / N^0.55; this is the additive "
    "penalty (as in 2605.01640) that has exactly such an optimum, not an equation copied from that paper",
    names=(*ADDITIVE.names, "log_G", "h", "c", "d"),
    lower=(*ADDITIVE.lower, -60.0, 0.05, 0.0, 0.0),
    upper=(*ADDITIVE.upper, 20.0, 5.0, 3.0, 5.0),
    starts=((-1.0, 0.5), (3.0, 7.0), (3.0, 7.0), (0.3, 0.6), (0.3, 0.6), (-6.0, 0.0), (0.5, 1.5), (0.5,), (0.7,)),
    columns=("log_N", "log_D", "log_U"),
    log_loss=_overfitting,
)


def _repetition_of_one_size(theta: np.ndarray, columns: Columns) -> np.ndarray:
    log_E, log_B, b, log_rate = _split(theta)
    log_data = _saturated(columns["log_U"], np.exp(columns["log_D"] - columns["log_U"]) - 1, log_rate)
    return _logsumexp(log_E + 0 * log_data, log_B - b * log_data)


REPETITION_OF_ONE_SIZE = Form(
    name="repetition",
    equation="L = E + B / D'^b, D' = U + U R_D* (1 - exp(-(D/U - 1) / R_D*)); the size's cost is part of E",
    source=REPETITION.source,
    names=("log_E", "log_B", "b", "log_R_D"),
    lower=(-7.0, -10.0, 0.02, -2.0),
    upper=(5.0, 60.0, 3.0, 12.0),
    starts=((-1.0, 0.0, 0.7), (0.0, 3.0, 7.0), (0.2, 0.4, 0.8), (0.0, 1.0, 3.0, 6.0)),
    columns=("log_D", "log_U"),
    log_loss=_repetition_of_one_size,
)


def _overfitting_of_one_size(theta: np.ndarray, columns: Columns) -> np.ndarray:
    log_E, log_B, b, log_G, h, d = _split(theta)
    log_D, log_U = columns["log_D"], columns["log_U"]
    return _logsumexp(log_E + 0 * log_D, log_B - b * log_D, log_G + h * (log_D - log_U) - d * log_U)


OVERFITTING_OF_ONE_SIZE = Form(
    name="overfitting",
    equation="L = E + B / (e U)^b + G e^h / U^d; best epochs e = (b B / h G)^(1/(h+b)) U^((d-b)/(h+b)); the size's cost is part of E",
    source=OVERFITTING.source,
    names=("log_E", "log_B", "b", "log_G", "h", "d"),
    lower=(-7.0, -10.0, 0.02, -60.0, 0.05, 0.0),
    upper=(5.0, 60.0, 3.0, 60.0, 5.0, 5.0),
    starts=((-1.0, 0.5), (0.0, 3.0, 7.0), (0.2, 0.5), (-6.0, 0.0, 6.0), (0.5, 1.5), (0.5, 1.5)),
    columns=("log_D", "log_U"),
    log_loss=_overfitting_of_one_size,
)


def _joint(theta: np.ndarray, columns: Columns) -> np.ndarray:
    log_E, log_A, log_B, a, b, log_C, g = _split(theta)
    log_active, log_D = columns["log_active"], columns["log_D"]
    log_dense = log_active - columns["log_total"]  # log(1 - S)
    sparsity = -np.expm1(np.minimum(log_dense, 0.0))
    log_sparsity = np.log(np.maximum(sparsity, 1e-300))
    sparse = log_C + log_sparsity - a * log_active
    return _logsumexp(log_E + g * log_dense, log_A + a * log_dense - a * log_active, sparse, log_B - b * log_D)


JOINT = Form(
    name="joint",
    equation="L = E (1-S)^g + (A (1-S)^a + C S) / N_active^a + B / D^b, S = 1 - N_active / N_total; dense networks: the additive law",
    source="Hossain et al. 2508.06617 eq. 7",
    names=(*ADDITIVE.names, "log_C", "g"),
    lower=(*ADDITIVE.lower, -10.0, -3.0),
    upper=(*ADDITIVE.upper, 60.0, 3.0),
    starts=((-1.0, 0.5), (2.0, 6.0), (3.0, 7.0), (0.3, 0.6), (0.3, 0.6), (2.0, 6.0), (0.0, 0.5)),
    columns=("log_active", "log_total", "log_D"),
    log_loss=_joint,
)


def _mixing(theta: np.ndarray, columns: Columns) -> np.ndarray:
    a, log_B, b, log_C = _split(theta)
    return _logsumexp(log_B - b * columns["log_D"], log_C + 0 * columns["log_D"]) - a * columns["log_r"]


MIXING = Form(
    name="mixing",
    equation="L_i = (B / D^b + C) / r^a, r the share of domain i, D all tokens (BiMix's A is part of B and C)",
    source="BiMix, Ge et al. 2405.14908",
    names=("a", "log_B", "b", "log_C"),
    lower=(0.0, -10.0, 0.02, -7.0),
    upper=(3.0, 60.0, 3.0, 5.0),
    starts=((0.03, 0.2), (0.0, 3.0, 6.0, 10.0), (0.2, 0.4, 0.8), (-1.0, 0.5)),
    columns=("log_r", "log_D"),
    log_loss=_mixing,
)


@dataclasses.dataclass(frozen=True)
class Compute:
    """FLOPs of a run: C = k N^rho D. k = 6, rho = 1 is the usual 6 N D; attention, head and embedding bend it at small sizes.

    worst: the largest deviation of a run from it, as a share.
    """

    k: float = 6.0
    rho: float = 1.0
    worst: float = 0.0

    def tokens(self, flops, size):
        """D that a budget pays for at a size."""
        return flops / (self.k * size**self.rho)


def optimum(values: Mapping[str, Any], flops: Any, compute: Compute = Compute()) -> tuple[Any, Any, Any]:
    """Best N, D and L of the additive law at given FLOPs under C = k N^rho D: there a A / N^a = rho b B / D^b (2203.15556 eq. 4).

    Exponents: N* ~ C^(b / (a + rho b)), D* ~ C^(a / (a + rho b)). `values` may hold arrays (of resamples).
    """
    E, A, B, a, b = (np.asarray(values[name], float) for name in ("E", "A", "B", "a", "b"))
    flops = np.asarray(flops, float)
    size = np.exp((np.log(a * A) - np.log(compute.rho * b * B) + b * np.log(flops / compute.k)) / (a + compute.rho * b))
    tokens = compute.tokens(flops, size)
    return size, tokens, E + A / size**a + B / tokens**b


# Published fits, to start from and to test against.
QUOKKA_MASKED = {"E": 2.413, "A": 798.6, "a": 0.379, "B": 4604.9, "b": 0.378}  # 2510.03280
VON_RUETTE_MASKED = {"E": 2.17, "A": 222.0, "a": 0.292, "B": 1920.0, "b": 0.367}  # 2512.10858; N is FLOPs per token
VON_RUETTE_UNIFORM = {"E": 2.19, "A": 294.0, "a": 0.305, "B": 1340.0, "b": 0.346}
CHINCHILLA_REFIT = {  # 2404.10102, of 240 of the 245 runs read off a figure of 2203.15556
    "E": math.exp(0.59728),
    "A": math.exp(6.16901),
    "a": 0.3473,
    "B": math.exp(7.66985),
    "b": 0.3672,
}
