"""Cases of the battery: masked diffusion on every kind of schedule, its relatives, and the autoregressive corner."""

import itertools

import numpy as np

from dlmjax.diffusion import Autoregressive, Llada, Masked, MaskedCount, schedules
from dlmjax.diffusion.oracle import enumeration as oracle
from tests.diffusion.battery import BOS, COSINE, GEOMETRIC, LINEAR, MASK, SQUARE, TOKENS, VOCAB, Case, Curve, clipped


def _masked(name: str, schedule: schedules.Schedule, curves: tuple[Curve, Curve]) -> Case:
    return Case(f"masked/{name}", Masked(VOCAB, MASK, schedule, excluded=(BOS,)), oracle.masked_kernel(TOKENS, *curves))


def _count_pairs(case: Case, law: oracle.JointDistribution, t: float):
    """All ways to mask exactly k of the positions, equally likely."""
    count = round(t * law.length)
    subsets = list(itertools.combinations(range(law.length), count))
    x, z, p = [], [], []
    for (x_L, mass), subset in itertools.product(zip(law.sequences_Xn, law.probability_X, strict=True), subsets):
        x.append(x_L)
        z.append([MASK if i in subset else int(token) for i, token in enumerate(x_L)])
        p.append(mass / len(subsets))
    return np.asarray(x), np.asarray(z, np.int32), np.asarray(p)


def _shifted_pairs(case: Case, law: oracle.JointDistribution, t: float):
    x_XL = law.sequences_Xn
    z_XL = np.concatenate([np.full_like(x_XL[:, :1], BOS), x_XL[:, :-1]], axis=1)
    return x_XL, z_XL.astype(np.int32), law.probability_X


CASES = [
    _masked("linear", schedules.Linear(), LINEAR),
    _masked("cosine", schedules.Cosine(), COSINE),
    _masked("polynomial", schedules.Polynomial(2.0), SQUARE),
    _masked("geometric", schedules.Geometric(0.01, 5.0), GEOMETRIC),
    _masked("log_linear", schedules.log_linear(0.05), clipped(*LINEAR, 0.05, 1.0)),
    _masked("clipped", schedules.symmetric(schedules.Cosine(), 0.05), clipped(*COSINE, 0.05, 0.95)),
    Case("llada", Llada(VOCAB, MASK, excluded=(BOS,), eps=0.05), oracle.masked_kernel(TOKENS, *clipped(*LINEAR, 0.0, 0.95))),
    Case(
        "masked_count",
        MaskedCount(VOCAB, MASK, excluded=(BOS,)),
        oracle.masked_kernel(TOKENS, *LINEAR),
        pairs=_count_pairs,
        grid=lambda length: (np.arange(1, length + 1) / length, np.full(length, 1 / length)),
    ),
    Case(
        "autoregressive",
        Autoregressive(VOCAB, BOS, MASK),
        None,
        log_likelihood=None,
        pairs=_shifted_pairs,
        grid=lambda length: (np.asarray([0.5]), np.asarray([1.0])),
    ),
]
