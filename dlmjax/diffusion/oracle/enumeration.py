"""The truth by enumeration: losses, bounds and reverse chains of any interpolating process on a joint distribution small enough to list.

Float64 numpy without random numbers, written from the definitions and not from a process's formulas; slow on purpose. A process whose
loss, integrated with the exact denoiser, is not the entropy of the distribution is wrong, whatever its loss curves look like.

A kernel is q_t(z|x) = alpha_t 1[z = x] + (beta pi)_t(z) on S states, of which the first K are tokens. Its bound's integrand is
    L(t) = E_z w_t(z, x) [ KL(q_t(.|x) || q_t(.|x_theta)) + IS(q_t(z|x) / q_t(z|x_theta)) ],   IS(r) = r - log r - 1,
    w_t(z, x) = r_t(z) / q_t(z|x),   r_t(z) = (beta pi)'_t(z) - (alpha'_t / alpha_t) (beta pi)_t(z)   (the jump rate into z),
per position (GIDD 2503.04482 theorem 3.1), which equals the path KL of the reversed Markov chain
    sum_{y != z} r_t(z) [ s_theta - s + s log(s / s_theta) ],   s = q_t(y|x) / q_t(z|x)   (SEDD 2310.16834; Campbell et al. 2205.14987).
The minimiser x_theta is the leave-one-out posterior p(x_i | z_{-i}); for masked noise that is also p(x_i | z).

Shapes: n positions, K tokens, S states; X = K^n clean and Z = S^n noisy sequences, listed in lexicographic order.
"""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Float64, Int

Curve = Callable[[float], float]


@dataclasses.dataclass(frozen=True, eq=False)
class JointDistribution:
    """A distribution of n tokens: probabilities of shape [K] * n that sum to 1."""

    table: Float64[np.ndarray, "..."]

    @classmethod
    def random(cls, tokens: int, length: int, seed: int, sharpness: float = 1.0) -> "JointDistribution":
        """A distribution without symmetries; a higher sharpness makes the tokens depend more on each other."""
        weight = np.exp(sharpness * np.random.default_rng(seed).normal(size=(tokens,) * length))
        return cls(weight / weight.sum())

    @property
    def tokens(self) -> int:
        return self.table.shape[0]

    @property
    def length(self) -> int:
        return self.table.ndim

    @property
    def probability_X(self) -> Float64[np.ndarray, "X"]:
        return self.table.reshape(-1)

    @property
    def sequences_Xn(self) -> Int[np.ndarray, "X n"]:
        return enumerate_sequences(self.tokens, self.length)

    @property
    def entropy(self) -> float:
        """In nats per sequence."""
        p_X = self.probability_X[self.probability_X > 0]
        return float(-np.sum(p_X * np.log(p_X)))


def enumerate_sequences(states: int, length: int) -> Int[np.ndarray, "X n"]:
    """All sequences in lexicographic order: row i is i written in base `states`."""
    return np.asarray(list(itertools.product(range(states), repeat=length)))


@dataclasses.dataclass(frozen=True, eq=False)
class Kernel:
    """One position's forward process.

    alpha, alpha_prime: of t; noise, noise_prime: (beta pi)_t [S] and its derivative; tokens: K, the first of the S states.
    """

    tokens: int
    alpha: Curve
    alpha_prime: Curve
    noise: Callable[[float], Float64[np.ndarray, "S"]]
    noise_prime: Callable[[float], Float64[np.ndarray, "S"]]

    def matrix(self, t: float) -> Float64[np.ndarray, "K S"]:
        """q_t(z | x): one row per token, summing to 1."""
        noise_S = self.noise(t)
        return self.alpha(t) * np.eye(self.tokens, noise_S.size) + noise_S

    def step(self, s: float, t: float) -> Float64[np.ndarray, "S S"]:
        """q(z_t | z_s), s <= t: one row per state of z_s. A row of an unreachable state may not be a distribution."""
        keep = self.alpha(t) / self.alpha(s)
        return keep * np.eye(self.noise(s).size) + self.noise(t) - keep * self.noise(s)

    def rate_into(self, t: float) -> Float64[np.ndarray, "S"]:
        """r_t(z): jumps per unit of time into state z, from any other state."""
        return self.noise_prime(t) - self.alpha_prime(t) / self.alpha(t) * self.noise(t)

    def rates(self, t: float) -> Float64[np.ndarray, "S S"]:
        """Jumps per unit of time from the state of a row into that of a column."""
        rate_S = self.rate_into(t)
        return np.tile(rate_S, (rate_S.size, 1))


@dataclasses.dataclass(frozen=True, eq=False)
class Chain:
    """One position's forward process as any Markov chain, for noise that depends on the token: in place of a `Kernel` everywhere except in
    `kl_is_loss`.

    transition: t -> q(z_t | z_0) [S, S], a row per state of z_0; rates: as of a `Kernel`; tokens: K, the first of the S states.
    """

    tokens: int
    transition: Callable[[float], Float64[np.ndarray, "S S"]]
    rates: Callable[[float], Float64[np.ndarray, "S S"]]

    def matrix(self, t: float) -> Float64[np.ndarray, "K S"]:
        """q_t(z | x): one row per token, summing to 1."""
        return self.transition(t)[: self.tokens]

    def step(self, s: float, t: float) -> Float64[np.ndarray, "S S"]:
        """q(z_t | z_s), s <= t: one row per state of z_s."""
        return np.linalg.solve(self.transition(s), self.transition(t))


AnyKernel = Kernel | Chain


def masked_kernel(tokens: int, alpha: Curve, alpha_prime: Curve) -> Kernel:
    """Absorbing noise; state K is the mask."""
    mask_S = np.eye(tokens + 1)[tokens]
    return Kernel(tokens, alpha, alpha_prime, lambda t: (1 - alpha(t)) * mask_S, lambda t: -alpha_prime(t) * mask_S)


def uniform_kernel(tokens: int, alpha: Curve, alpha_prime: Curve) -> Kernel:
    """Noise uniform over the K tokens; there is no mask."""
    uniform_S = np.full(tokens, 1 / tokens)
    return Kernel(tokens, alpha, alpha_prime, lambda t: (1 - alpha(t)) * uniform_S, lambda t: -alpha_prime(t) * uniform_S)


def hybrid_kernel(tokens: int, p_uniform: float, gamma: float = 1.0) -> Kernel:
    """GIDD 2503.04482 section 4: mask noise with at most a share `p_uniform` of uniform noise, in the middle; state K is the mask."""
    peak = 2**gamma * p_uniform / (1 - p_uniform)
    mask_S, uniform_S = np.eye(tokens + 1)[tokens], np.append(np.full(tokens, 1 / tokens), 0.0)

    def bump(t: float) -> float:
        return peak * (t * (1 - t)) ** (gamma / 2)

    def bump_prime(t: float) -> float:
        return gamma / 2 * (1 - 2 * t) / (t * (1 - t)) * bump(t) if 0 < t < 1 else 0.0

    def noise(t: float) -> np.ndarray:
        return (t * mask_S + bump(t) * uniform_S) / (1 + bump(t))

    def noise_prime(t: float) -> np.ndarray:
        return (mask_S + bump_prime(t) * uniform_S - bump_prime(t) * noise(t)) / (1 + bump(t))

    def alpha(t: float) -> float:
        return (1 - t) / (1 + bump(t))

    def alpha_prime(t: float) -> float:
        return (-1 - bump_prime(t) * alpha(t)) / (1 + bump(t))

    return Kernel(tokens, alpha, alpha_prime, noise, noise_prime)


# --- the loss at one position ------------------------------------------------------------------------------------------------------


def kl_is_loss(kernel: Kernel, t: float, z_N: Int[np.ndarray, "N"], x0_NK: Float[np.ndarray, "N K"]) -> Float64[np.ndarray, "N K"]:
    """The bound's integrand in its KL + IS form, in nats, for a position in state z whose x0 prediction is x_theta (on the
    simplex) and whose clean token is x: entry [n, x]. 0 where x cannot show as z."""
    q_KS, model_NS, row_N = kernel.matrix(t), np.asarray(x0_NK, np.float64) @ kernel.matrix(t), np.arange(len(z_N))
    rate_NK = np.repeat(kernel.rate_into(t)[z_N][:, None], kernel.tokens, axis=1)
    seen_NK = (rate_NK != 0) & (q_KS[:, z_N].T > 0)
    log_q_KS, log_model_NS = (np.log(np.where(p > 0, p, 1.0)) for p in (q_KS, model_NS))
    divergence_NK = np.sum(q_KS * log_q_KS, axis=1) - log_model_NS @ q_KS.T
    true_NK = np.where(seen_NK, q_KS[:, z_N].T, 1.0)
    ratio_NK = np.where(seen_NK, true_NK / model_NS[row_N, z_N][:, None], 1.0)
    return np.where(seen_NK, rate_NK / true_NK * (divergence_NK + ratio_NK - np.log(ratio_NK) - 1), 0.0)


def path_loss(kernel: AnyKernel, t: float, z_N: Int[np.ndarray, "N"], x0_NK: Float[np.ndarray, "N K"]) -> Float64[np.ndarray, "N K"]:
    """The same numbers as the path KL of the reversed chain: how wrong the rate of every jump z -> y of the reversal is."""
    q_KS, model_NS, row_N = kernel.matrix(t), np.asarray(x0_NK, np.float64) @ kernel.matrix(t), np.arange(len(z_N))
    seen_NK = q_KS[:, z_N].T > 0
    true_NK = np.where(seen_NK, q_KS[:, z_N].T, 1.0)
    s_NKS = q_KS[None] / true_NK[:, :, None]
    model_s_NKS = np.broadcast_to((model_NS / model_NS[row_N, z_N][:, None])[:, None, :], s_NKS.shape)
    both = (s_NKS > 0) & (model_s_NKS > 0)
    log_NKS = np.log(np.where(both, s_NKS, 1.0) / np.where(both, model_s_NKS, 1.0))
    # y = z adds nothing: there s = s_theta = 1.
    terms_NKS = kernel.rates(t)[:, z_N].T[:, None, :] * (model_s_NKS - s_NKS + s_NKS * log_NKS)
    return np.where(seen_NK, np.sum(terms_NKS, axis=-1), 0.0)


# --- exact denoisers ---------------------------------------------------------------------------------------------------------------


def evidence(joint: JointDistribution, kernel: AnyKernel, t: float) -> Float64[np.ndarray, "X Z"]:
    """p(x) q_t(z | x) for every pair of sequences."""
    q_KS = kernel.matrix(t)
    z_Zn = enumerate_sequences(q_KS.shape[1], joint.length)
    likelihood_XZn = q_KS[joint.sequences_Xn[:, None, :], z_Zn[None, :, :]]
    return joint.probability_X[:, None] * likelihood_XZn.prod(axis=-1)


def posterior(joint: JointDistribution, kernel: AnyKernel, t: float) -> Float64[np.ndarray, "Z n K"]:
    """p(x_i = k | z). Noisy sequences that cannot occur get a uniform x0 prediction."""
    joint_XZ = evidence(joint, kernel, t)
    return _normalise(np.einsum("xz,xik->zik", joint_XZ, np.eye(joint.tokens)[joint.sequences_Xn]))


def leave_one_out(joint: JointDistribution, kernel: AnyKernel, t: float) -> Float64[np.ndarray, "Z n K"]:
    """p(x_i = k | z_{-i}): what minimises the bound of noise that is not absorbing."""
    q_KS = kernel.matrix(t)
    z_Zn = enumerate_sequences(q_KS.shape[1], joint.length)
    likelihood_XZn = q_KS[joint.sequences_Xn[:, None, :], z_Zn[None, :, :]]
    x0 = []
    for i in range(joint.length):
        others_XZ = joint.probability_X[:, None] * np.delete(likelihood_XZn, i, axis=-1).prod(axis=-1)
        x0.append(np.einsum("xz,xk->zk", others_XZ, np.eye(joint.tokens)[joint.sequences_Xn[:, i]]))
    return _normalise(np.stack(x0, axis=1))


def bridge(posterior_ZnK: Float64[np.ndarray, "Z n K"], kernel: AnyKernel, t: float) -> Float64[np.ndarray, "Z n K"]:
    """The leave-one-out posterior from the full one: p(x_i | z_{-i}) is proportional to p(x_i | z) / q_t(z_i | x_i)."""
    q_KS = kernel.matrix(t)
    z_Zn = enumerate_sequences(q_KS.shape[1], posterior_ZnK.shape[1])
    return _normalise(posterior_ZnK / q_KS.T[z_Zn])


def _normalise(weight: np.ndarray) -> np.ndarray:
    total = weight.sum(axis=-1, keepdims=True)
    uniform = np.full_like(weight, 1 / weight.shape[-1])
    return np.divide(weight, total, out=uniform, where=total > 0)


# --- the bound and its integral ----------------------------------------------------------------------------------------------------

X0Prediction = Callable[[JointDistribution, AnyKernel, float], np.ndarray]
PointLoss = Callable[[AnyKernel, float, np.ndarray, np.ndarray], np.ndarray]


def integrand(
    joint: JointDistribution, kernel: AnyKernel, t: float, denoiser: X0Prediction = leave_one_out, loss: PointLoss = kl_is_loss
) -> float:
    """L(t): the expected loss of all positions at time t, in nats per sequence."""
    joint_XZ, x0_ZnK = evidence(joint, kernel, t), denoiser(joint, kernel, t)
    z_Zn = enumerate_sequences(kernel.matrix(t).shape[1], joint.length)
    mass_ZnK = np.einsum("xz,xik->zik", joint_XZ, np.eye(joint.tokens)[joint.sequences_Xn])
    can_N = mass_ZnK.reshape(-1, joint.tokens).sum(axis=1) > 0
    nats_NK = loss(kernel, t, z_Zn.reshape(-1)[can_N], x0_ZnK.reshape(-1, joint.tokens)[can_N])
    return float(np.sum(mass_ZnK.reshape(-1, joint.tokens)[can_N] * nats_NK))


def quadrature(nodes: int) -> tuple[Float64[np.ndarray, "J"], Float64[np.ndarray, "J"]]:
    """Times and weights of an integral over [0, 1]: the tanh-sinh rule (Takahasi and Mori 1974).

    The integrands of uniform and hybrid noise have logarithms and inverse roots at the ends, for which this rule still converges: 48 nodes
    give 1e-8 or better. Times run from 4e-19 to 1 - 2e-14, beyond which float64 has no 1 - t.
    """
    x_J, step = np.linspace(-3.3, 3.0, nodes, retstep=True)
    odds_J = np.exp(-np.pi * np.sinh(x_J))
    return 1 / (1 + odds_J), step * np.pi * np.cosh(x_J) * odds_J / (1 + odds_J) ** 2


def diffusion_nats(
    joint: JointDistribution, kernel: AnyKernel, denoiser: X0Prediction = leave_one_out, loss: PointLoss = kl_is_loss, nodes: int = 48
) -> float:
    """The integral of L(t) over [0, 1], in nats per sequence. For the exact denoiser and ends 1 and 0 it is the entropy."""
    return float(sum(w * integrand(joint, kernel, t, denoiser, loss) for t, w in zip(*quadrature(nodes), strict=True)))


# --- the reverse process -----------------------------------------------------------------------------------------------------------


def reverse_distribution(
    joint: JointDistribution, kernel: AnyKernel, times: list[float], start_Z: Float64[np.ndarray, "Z"] | None = None
) -> Float64[np.ndarray, "Z"]:
    """The distribution of z at times[-1] when z at times[0] ~ `start_Z` (None: q at times[0]) is stepped back with the exact posterior.

    Positions step independently given z_t, p(z_s | z_t) = prod_i sum_k p(x_i = k | z_t) q(z_s,i | z_t,i, x_i = k); so with few steps it
    is not the distribution of the data, to which it converges as the steps grow. Samples are compared with it, not with the data.
    """
    now_Z = evidence(joint, kernel, times[0]).sum(axis=0) if start_Z is None else start_Z
    for t, s in itertools.pairwise(times):
        now_Z = now_Z @ reverse_matrix(joint, kernel, t, s)
    return now_Z


def reverse_matrix(joint: JointDistribution, kernel: AnyKernel, t: float, s: float) -> Float64[np.ndarray, "Z Z"]:
    """p(z_s | z_t) of the exact denoiser between all pairs of noisy sequences."""
    q_s, q_t, step_SS = kernel.matrix(s), kernel.matrix(t), kernel.step(s, t)
    # q(z_s | z_t, x) = q(z_t | z_s) q(z_s | x) / q(z_t | x), indexed [x, z_t, z_s].
    pairs_KSS = q_s[:, None, :] * step_SS.T[None, :, :]
    pairs_KSS = np.divide(pairs_KSS, q_t[:, :, None], out=np.zeros_like(pairs_KSS), where=q_t[:, :, None] > 0)
    posterior_ZnK = posterior(joint, kernel, t)
    z_Zn = enumerate_sequences(q_t.shape[1], joint.length)
    matrix_ZZ = np.ones((len(z_Zn), len(z_Zn)))
    for i in range(joint.length):
        to_ZS = np.einsum("zk,kzs->zs", posterior_ZnK[:, i], pairs_KSS[:, z_Zn[:, i], :])
        matrix_ZZ *= to_ZS[:, z_Zn[:, i]]
    return matrix_ZZ
