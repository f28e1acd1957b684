"""The forms of the masked bound of a network without time input agree in expectation, by enumeration over everything that is random."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import Cosine, Masked, MaskedCount, MaskedLambda, Polynomial, row_keys
from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.oracle import toy
from dlmjax.diffusion.processes.any_order import any_order_nats
from dlmjax.diffusion.processes.state_dependent import GenMd4
from dlmjax.errors import InputError
from tests.diffusion.battery import BOS, MASK, TOKENS, VOCAB

LENGTH = 3
LAW = oracle.JointDistribution.random(TOKENS, LENGTH, seed=2)
# Logits for every z (state 3 is the mask): a network that has learned nothing, but is a function of z alone.
TABLE = 2 * np.random.default_rng(0).normal(size=((TOKENS + 1,) * LENGTH + (LENGTH, VOCAB)))


class Denoiser(toy.ToyDenoiser):
    def hidden(self, z_BL, t_BL, hint_BLI=None):
        state_BL = jnp.where(z_BL == MASK, TOKENS, z_BL)
        return jnp.asarray(TABLE)[state_BL[:, 0], state_BL[:, 1], state_BL[:, 2]]


def _cross_entropy(x: tuple, hidden: tuple) -> np.ndarray:
    """Of all positions, with the positions `hidden` masked."""
    z = tuple(TOKENS if i in hidden else x[i] for i in range(LENGTH))
    logits_LK = TABLE[z][:, :TOKENS]
    return np.log(np.exp(logits_LK).sum(axis=1)) - logits_LK[np.arange(LENGTH), list(x)]


def _any_order() -> float:
    """Mean over texts and all orders of the sum of conditional costs."""
    total = 0.0
    for x, p in zip(map(tuple, LAW.sequences_Xn), LAW.probability_X, strict=True):
        orders = list(itertools.permutations(range(LENGTH)))
        total += p * np.mean([sum(_cross_entropy(x, order[j:])[order[j]] for j in range(LENGTH)) for order in orders])
    return float(total)


def _by_process(process: Masked, levels, weights, chance) -> float:
    """sum over levels, texts and masked sets of weight x probability x the process's own loss."""
    x, z, t, mass = [], [], [], []
    for level, weight in zip(levels, weights, strict=True):
        for x_L, p in zip(LAW.sequences_Xn, LAW.probability_X, strict=True):
            for hidden in itertools.product((False, True), repeat=LENGTH):
                x, z, t = [*x, x_L], [*z, np.where(hidden, MASK, x_L)], [*t, level]
                mass.append(weight * p * chance(level, sum(hidden)))
    with jax.enable_x64(True):
        x_NL, z_NL = jnp.asarray(np.asarray(x)), jnp.asarray(np.asarray(z))
        t_NL = jnp.asarray(np.asarray(t))[:, None] * jnp.ones((1, LENGTH))
        nats_NL = process.loss(Denoiser(LAW, VOCAB).hidden(z_NL, t_NL), x_NL, z_NL, t_NL)
        return float(jnp.asarray(mass) @ nats_NL.sum(axis=1))


def test_all_forms_agree():
    """t-form on three schedules, lambda-form, k-form and all orders, for a network that is not exact."""
    truth, found = _any_order(), {}
    nodes, weights = oracle.quadrature(48)
    for name, process in {
        "t, linear": Masked(VOCAB, MASK, excluded=(BOS,)),
        "t, cosine": Masked(VOCAB, MASK, Cosine(), (BOS,)),
        "t, square": Masked(VOCAB, MASK, Polynomial(2.0), (BOS,)),
        "lambda": MaskedLambda(VOCAB, MASK, (BOS,)),
    }.items():
        with jax.enable_x64(True):
            rate = {t: float(process.schedule.noise(t)) for t in nodes}
        found[name] = _by_process(process, nodes, weights, lambda t, k, rate=rate: rate[t] ** k * (1 - rate[t]) ** (LENGTH - k))
    levels = np.arange(1, LENGTH + 1) / LENGTH
    ways = {1: 3, 2: 3, 3: 1}
    found["k"] = _by_process(
        MaskedCount(VOCAB, MASK, (BOS,)), levels, np.full(LENGTH, 1 / LENGTH), lambda t, k: (k == round(t * LENGTH)) / ways.get(k, 1)
    )
    for name, nats in found.items():
        assert nats == pytest.approx(truth, abs=1e-7), name
    assert truth > LAW.entropy + 0.5


def test_one_order_is_the_chain_rule():
    """Every row's sum is that of one of the six orders, and all six occur; padding is never hidden and costs nothing."""
    rows, process = 512, Masked(VOCAB, MASK, excluded=(BOS,))
    x = (0, 2, 1)
    x_BL, keys_B = jnp.broadcast_to(jnp.asarray(x), (rows, LENGTH)), row_keys(jax.random.key(0), jnp.arange(rows))
    nats_BL = np.asarray(any_order_nats(process, Denoiser(LAW, VOCAB), x_BL, jnp.ones(x_BL.shape, bool), keys_B))
    sums = {}
    for order in itertools.permutations(range(LENGTH)):
        costs = [0.0] * LENGTH
        for j, i in enumerate(order):
            costs[i] = _cross_entropy(x, order[j:])[i]
        sums[order] = costs
    apart = np.abs(nats_BL[:, None] - np.asarray(list(sums.values()))[None]).max(axis=2)
    assert (apart.min(axis=1) < 1e-5).all()
    assert (np.bincount(apart.argmin(axis=1), minlength=6) > rows / 12).all()

    valid_BL = jnp.broadcast_to(jnp.asarray([True, True, False]), x_BL.shape)
    nats_BL = np.asarray(any_order_nats(process, Denoiser(LAW, VOCAB), x_BL, valid_BL, keys_B))
    both = {
        tuple(np.round([_cross_entropy(x, (0, 1))[0], _cross_entropy(x, (1,))[1], 0], 4)),
        tuple(np.round([_cross_entropy(x, (0,))[0], _cross_entropy(x, (0, 1))[1], 0], 4)),
    }
    assert {tuple(np.round(row.astype(float), 4)) for row in nats_BL} == both


def test_it_is_refused_for_a_time_conditioned_network():
    x_BL = jnp.zeros((1, LENGTH), jnp.int32)
    with pytest.raises(InputError, match="without time input"):
        any_order_nats(GenMd4(VOCAB, MASK), Denoiser(LAW, VOCAB), x_BL, x_BL == 0, row_keys(jax.random.key(0), jnp.arange(1)))


def test_it_runs_where_float64_is_switched_on():
    x_BL = jnp.asarray(LAW.sequences_Xn[:4], jnp.int32)
    with jax.enable_x64(True):
        keys_B = row_keys(jax.random.key(0), jnp.arange(4))
        process = Masked(VOCAB, MASK)
        denoiser = toy.ToyDenoiser(LAW, VOCAB, toy.masked_likelihood(TOKENS, MASK))
        nats_BL = any_order_nats(process, denoiser, x_BL, jnp.ones(x_BL.shape, bool), keys_B)
        assert nats_BL.dtype == jnp.float64
        np.testing.assert_allclose(nats_BL.sum(axis=1), -np.log(LAW.probability_X[:4]), rtol=1e-6)
