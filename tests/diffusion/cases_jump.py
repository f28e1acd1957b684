"""Cases of the battery: uniform, hybrid and mixed noise, score entropy and discrete flow matching."""

import itertools

import numpy as np

from dlmjax.diffusion import schedules
from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.processes.flow_matching import FlowMatching
from dlmjax.diffusion.processes.hybrid import Hybrid, Mixed
from dlmjax.diffusion.processes.interpolating import Interpolating
from dlmjax.diffusion.processes.parameterisation import LeaveOneOut
from dlmjax.diffusion.processes.score import ScoreEntropy
from dlmjax.diffusion.processes.uniform import Uniform
from tests.diffusion.battery import (
    BOS,
    COSINE,
    GEOMETRIC,
    LINEAR,
    MASK,
    SQUARE,
    TOKENS,
    VOCAB,
    Case,
    as_leave_one_out,
    as_posterior,
    clipped,
)

IDS = {"vocab": VOCAB, "mask_id": MASK, "excluded": (BOS,)}


def jump_case(name: str, process: Interpolating, kernel: oracle.Kernel, **values) -> Case:
    """A case whose likelihood is the process's own (a test of its own holds that to the oracle)."""
    likelihood = lambda z, t: process.log_likelihood(z, t)[..., :TOKENS]  # noqa: E731
    meaning = {"output": "leave_one_out", "express": as_leave_one_out}
    if process.parameterisation == "posterior":
        meaning = {"output": "posterior", "express": as_posterior}
    return Case(name, process, kernel, likelihood, times="power", **{**meaning, **values})


def _mixed_kernel(curves, uniform, slope) -> oracle.Kernel:
    """The noise of a mixing that is a function of the log-SNR, by the chain rule."""
    alpha, alpha_prime = curves
    mask_S, uniform_S = np.eye(TOKENS + 1)[TOKENS], np.append(np.full(TOKENS, 1 / TOKENS), 0.0)

    def log_snr(t):
        return np.log(max(alpha(t), 1e-300)) - np.log(max(1 - alpha(t), 1e-300))

    def noise(t):
        u = uniform(log_snr(t))
        return (1 - alpha(t)) * (u * uniform_S + (1 - u) * mask_S)

    def noise_prime(t):
        u, slope_t = uniform(log_snr(t)), slope(log_snr(t)) * alpha_prime(t) / alpha(t)
        return -alpha_prime(t) * (u * uniform_S + (1 - u) * mask_S) + slope_t * (uniform_S - mask_S)

    return oracle.Kernel(TOKENS, alpha, alpha_prime, noise, noise_prime)


def _sigmoid(inner):
    return 1 / (1 + np.exp(-inner))


# --- scores ------------------------------------------------------------------------------------------------------------------------


def as_scores(kernel: oracle.Kernel, t: float, state: int, loo_K: np.ndarray) -> np.ndarray:
    """log q_t(y | guess) / q_t(z | guess) of every token y; the own entry says anything."""
    model_S = loo_K @ kernel.matrix(t)
    scores_K = np.log(model_S[:TOKENS] / model_S[state])
    if state < TOKENS:
        scores_K[state] = 17.0
    return scores_K


def as_scaled_scores(kernel: oracle.Kernel, t: float, state: int, loo_K: np.ndarray) -> np.ndarray:
    """The same for masked noise, less the scaling log(alpha / (1 - alpha)) - log N."""
    return as_scores(kernel, t, state, loo_K) - np.log(kernel.alpha(t) / (1 - kernel.alpha(t))) + np.log(TOKENS)


def _score_output(process):
    return lambda log_loo, z, t: LeaveOneOut(process).log_score(log_loo, z, t)


# --- flow matching -----------------------------------------------------------------------------------------------------------------


def flow_loss(kernel: oracle.Kernel, t: float, z_N: np.ndarray, guess_NK: np.ndarray) -> np.ndarray:
    """Path KL between the velocity that knows x and the model's, from the definition: sum_{y != z} [u_theta - u + u log(u / u_theta)]."""
    hazard = -kernel.alpha_prime(t) / max(1 - kernel.alpha(t), 1e-16)
    loo_NK = guess_NK * kernel.matrix(t)[:, z_N].T
    posterior_NK = loo_NK / loo_NK.sum(axis=1, keepdims=True)
    nats_NK = np.zeros_like(posterior_NK)
    for n, x, y in itertools.product(range(len(z_N)), range(TOKENS), range(TOKENS)):
        if y != z_N[n]:
            model, true = hazard * posterior_NK[n, y], hazard * (x == y)
            nats_NK[n, x] += model - true + (true * np.log(true / model) if true and model else 0.0)
    return nats_NK


def flow_gap(case: Case, law: oracle.JointDistribution) -> float:
    """What the exact posterior pays beyond the entropy."""
    return oracle.diffusion_nats(law, case.kernel, loss=flow_loss, nodes=64) - law.entropy


def flow_reverse(law: oracle.JointDistribution, kernel: oracle.Kernel, times: list[float], start_Z: np.ndarray) -> np.ndarray:
    """Euler steps of the velocity: every position goes over to a draw of its posterior with the same probability."""
    now_Z = start_Z
    z_Zn = oracle.enumerate_sequences(kernel.noise(0.5).size, law.length)
    for t, s in itertools.pairwise(times):
        move = (kernel.alpha(s) - kernel.alpha(t)) / (1 - kernel.alpha(t))
        posterior_ZnS = oracle.posterior(law, kernel, t)
        matrix_ZZ = np.ones((len(z_Zn), len(z_Zn)))
        for i in range(law.length):
            step_ZS = (1 - move) * np.eye(z_Zn.max() + 1)[z_Zn[:, i]]
            step_ZS[:, :TOKENS] += move * posterior_ZnS[:, i]
            matrix_ZZ *= step_ZS[:, z_Zn[:, i]]
        now_Z = now_Z @ matrix_ZZ
    return now_Z


# --- the list ----------------------------------------------------------------------------------------------------------------------


def _uniform(name, schedule, curves, parameterisation="leave_one_out", **values) -> Case:
    process = Uniform(schedule=schedule, parameterisation=parameterisation, **IDS)
    return jump_case(f"uniform/{name}", process, oracle.uniform_kernel(TOKENS, *curves), **values)


def _hybrid(name, p_uniform, gamma=1.0, parameterisation="leave_one_out", **values) -> Case:
    process = Hybrid(p_uniform=p_uniform, gamma=gamma, parameterisation=parameterisation, **IDS)
    return jump_case(f"hybrid/{name}", process, oracle.hybrid_kernel(TOKENS, p_uniform, gamma), **values)


def _score(name, noise, schedule, curves, **values) -> Case:
    process = ScoreEntropy(schedule=schedule, noise=noise, **IDS)
    make, express = (oracle.masked_kernel, as_scaled_scores) if noise == "mask" else (oracle.uniform_kernel, as_scores)
    output = (lambda log_loo, z, t: log_loo + np.log(TOKENS)) if noise == "mask" else _score_output(process)
    return jump_case(f"score/{name}", process, make(TOKENS, *curves), output=output, express=express, **values)


def _flow(name, noise, schedule, curves, **values) -> Case:
    process = FlowMatching(schedule=schedule, noise=noise, **IDS)
    make = oracle.masked_kernel if noise == "mask" else oracle.uniform_kernel
    loose = {"gap": flow_gap, "point": flow_loss, "reverse": flow_reverse} if noise == "uniform" else {"point": flow_loss}
    return jump_case(f"flow_matching/{name}", process, make(TOKENS, *curves), **{**loose, **values})


CASES = [
    _uniform("linear", schedules.Linear(), LINEAR),
    _uniform("cosine, posterior", schedules.Cosine(), COSINE, "posterior", light=True),
    _uniform("polynomial", schedules.Polynomial(2.0), SQUARE, light=True),
    _uniform("geometric", schedules.Geometric(0.01, 5.0), GEOMETRIC, light=True),
    _uniform("clipped, posterior", schedules.symmetric(schedules.Cosine(), 0.05), clipped(*COSINE, 0.05, 0.95), "posterior"),
    _hybrid("0.2", 0.2),
    _hybrid("0.9, posterior", 0.9, 1.7, "posterior", light=True),
    _hybrid("0", 0.0, light=True),
    jump_case("mixed/sigmoid", Mixed(**IDS), _mixed_kernel(LINEAR, lambda a: _sigmoid(a - 1), lambda a: _sigmoid(a - 1) * _sigmoid(1 - a))),
    jump_case(
        "mixed/constant",
        Mixed(schedule=schedules.symmetric(schedules.Cosine(), 0.05), mixing="constant", values=(0.3,), **IDS),
        _mixed_kernel(clipped(*COSINE, 0.05, 0.95), lambda a: 0.3, lambda a: 0.0),
        light=True,
    ),
    _score("mask, linear", "mask", schedules.Linear(), LINEAR, light=True),
    _score("mask, geometric", "mask", schedules.Geometric(0.01, 5.0), GEOMETRIC),
    _score("uniform, linear", "uniform", schedules.Linear(), LINEAR),
    _score("uniform, clipped", "uniform", schedules.symmetric(schedules.Cosine(), 0.05), clipped(*COSINE, 0.05, 0.95), light=True),
    _flow("mask", "mask", schedules.Polynomial(2.0), SQUARE, light=True),
    _flow("uniform", "uniform", schedules.Linear(), LINEAR),
]
