"""Cases of the battery: the rate form of masked noise, and schedules per token, which no kernel with one alpha describes.

Discrete time has no integral, and learned schedules are not constants: test_d3pm.py and test_state_dependent.py enumerate them.
"""

import math
from collections.abc import Callable

import numpy as np

from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.processes.absorbing import Absorbing
from dlmjax.diffusion.processes.frequency import FrequencyMasked, Spindle
from dlmjax.diffusion.processes.masked import MaskedLambda
from dlmjax.diffusion.processes.state_dependent import GenMd4
from tests.diffusion.battery import BOS, LINEAR, MASK, TOKENS, VOCAB, Case

COUNTS = (900, 90, 10, 0, 0)
FACTS = {"vocab": VOCAB, "mask_id": MASK, "excluded": (BOS,), "counts_V": COUNTS}
# Once more by hand: the commonness of the counts (900, 90, 10) is (0.55, 0.055, 0.005), and 2 the strength.
POWER_K = 2.0 ** (2 * np.asarray([0.55, 0.055, 0.005]) - 1)
_LOG_K = np.log((np.asarray(COUNTS[:TOKENS]) + 1) / 1005)
LIFT_K = 0.3 * np.maximum(1 - (np.asarray(COUNTS[:TOKENS]) @ _LOG_K / 1000) / _LOG_K, -1)


def by_token(name: str, process: Absorbing, noise: Callable, noise_prime: Callable, **values) -> Case:
    """Masks at a rate per token: noise and its derivative give [K] at t. The exact denoiser reads the likelihood of the process itself."""

    def transition(t):
        masked_S = np.append(noise(t), 1.0)
        return np.diag(1 - masked_S) + np.outer(masked_S, np.eye(TOKENS + 1)[TOKENS])

    def rates(t):
        return np.outer(np.append(noise_prime(t) / (1 - noise(t)), 0.0), np.eye(TOKENS + 1)[TOKENS])

    likelihood = lambda z, t: process.log_likelihood(z, t)[..., :TOKENS]  # noqa: E731
    return Case(name, process, oracle.Chain(TOKENS, transition, rates), likelihood, point=oracle.path_loss, times="power", **values)


def _frequency(name: str, eps: float, **values) -> Case:
    process = FrequencyMasked(eps=eps, **FACTS)
    return by_token(name, process, lambda t: (1 - eps) * t**POWER_K, lambda t: (1 - eps) * POWER_K * t ** (POWER_K - 1), **values)


CASES = [
    Case("masked_lambda", MaskedLambda(VOCAB, MASK, (BOS,)), oracle.masked_kernel(TOKENS, *LINEAR), light=True),
    Case("genmd4", GenMd4(VOCAB, MASK, (BOS,)), oracle.masked_kernel(TOKENS, *LINEAR)),
    by_token(
        "spindle",
        Spindle(**FACTS),
        lambda t: t + LIFT_K * math.sin(math.pi * t) if t < 1 else np.ones(TOKENS),
        lambda t: 1 + LIFT_K * math.pi * math.cos(math.pi * t),
    ),
    _frequency("frequency", 0.0),
    _frequency("frequency/clipped", 0.05, light=True),
]
