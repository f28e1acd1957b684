"""Levels that differ within a row: corners of hyperschedules, bounds in between, and levels per block."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import Cosine, Linear, Masked, MaskedCount, Objective, PerRow, Power, Times, UniformTimes
from dlmjax.diffusion.hyperschedule import ByPosition, Hyperschedule, PerBlock, choose_interval
from dlmjax.diffusion.oracle import toy
from dlmjax.errors import InputError
from tests.diffusion.battery import BOS, MASK, TOKENS, VOCAB, batch_of, sample_joint
from tests.diffusion.processes.test_any_order import LAW, LENGTH, Denoiser, _cross_entropy

EXACT = toy.ToyDenoiser(LAW, VOCAB, toy.masked_likelihood(TOKENS, MASK))


def bound(times: Hyperschedule, denoiser, schedule=None) -> float:
    """The masked bound under a hyperschedule: over all (x, z), and Gauss-Legendre in tau between the corners."""
    process = Masked(VOCAB, MASK, schedule or Linear(), (BOS,))
    nodes, weights = np.polynomial.legendre.leggauss(6)
    tau, mass = [], []
    for low, high in itertools.pairwise(times.corners(LENGTH)):
        tau, mass = [*tau, *(low + (nodes + 1) / 2 * (high - low))], [*mass, *(weights / 2 * (high - low))]
    with jax.enable_x64(True):
        level_JL = np.asarray(times.times_at(jnp.asarray(tau), LENGTH))
        open_JL = (level_JL > 0) & (level_JL < 1)
        slope = 1.0 if times.window is None else (LENGTH + times.window - 1) / times.window
        hidden_HL = np.asarray(list(itertools.product((False, True), repeat=LENGTH)))
        noise_JL = np.asarray(process.schedule.noise(level_JL))
        total = 0.0
        for x_L, p in zip(LAW.sequences_Xn, LAW.probability_X, strict=True):
            z_HL = np.where(hidden_HL, MASK, x_L)
            chance_JH = np.where(hidden_HL[None], noise_JL[:, None], 1 - noise_JL[:, None]).prod(axis=2)
            shape = (len(tau), len(z_HL), LENGTH)
            z_NL, t_NL = (np.broadcast_to(a, shape).reshape(-1, LENGTH) for a in (z_HL[None], level_JL[:, None]))
            logits = denoiser.hidden(jnp.asarray(z_NL), jnp.asarray(t_NL))
            nats_JHL = np.asarray(process.loss(logits, jnp.broadcast_to(x_L, z_NL.shape), jnp.asarray(z_NL), jnp.asarray(t_NL))).reshape(
                shape
            )
            total += p * np.einsum("j,jh,jhl,jl->", np.asarray(mass), chance_JH, nats_JHL, slope * open_JL)
    return float(total)


# --- hyperschedules ----------------------------------------------------------------------------------------------------------------


def test_the_narrowest_window_is_left_to_right():
    """w = 1: for any denoiser, exact or not, the chain rule: each token given those before it, all after it masked."""
    truth = 0.0
    for x, p in zip(map(tuple, LAW.sequences_Xn), LAW.probability_X, strict=True):
        truth += p * sum(_cross_entropy(x, tuple(range(i, LENGTH)))[i] for i in range(LENGTH))
    assert bound(Hyperschedule(1), Denoiser(LAW, VOCAB)) == pytest.approx(truth, abs=1e-9)
    assert bound(Hyperschedule(), Denoiser(LAW, VOCAB)) != pytest.approx(truth, abs=1e-3)


@pytest.mark.parametrize("window", [1, 2, 5, None])
def test_the_bound_is_tight_for_every_window(window):
    assert bound(Hyperschedule(window), EXACT) == pytest.approx(LAW.entropy, abs=1e-6)
    assert bound(Hyperschedule(window), EXACT, Cosine()) == pytest.approx(LAW.entropy, abs=1e-4)


def test_times_sweep_from_the_end_of_the_row():
    tau = jnp.linspace(0, 1, 81)
    for window in (1, 3, None):
        times = Hyperschedule(window)
        level_TL = np.asarray(times.times_at(tau, 6))
        assert (level_TL[0] == 0).all() and (level_TL[-1] == 1).all()
        assert (np.diff(level_TL, axis=0) >= -1e-6).all() and (np.diff(level_TL, axis=1) >= 0).all()
        between = ((level_TL > 1e-6) & (level_TL < 1 - 1e-6)).sum(axis=1)
        assert between.max() == (window or 6)
    np.testing.assert_allclose(Hyperschedule().times_at(tau, 6), np.broadcast_to(tau[:, None], (81, 6)))


@pytest.mark.parametrize("window", [1, 2, None])
def test_draws_are_unbiased(window):
    """Levels and weights as drawn: every position's weighted mean of f(t) is its integral; without a window they are PerRow's own."""
    times = Hyperschedule(window, Power(0.5))
    t_BL, weight_BL = times.draw(jax.random.key(0), jnp.arange(4096), 4096, 3)
    assert isinstance(times, Times) and times.covers and t_BL.shape == (4096, 3)
    np.testing.assert_allclose(jnp.mean(weight_BL, axis=0), 1, atol=5e-3)
    np.testing.assert_allclose(jnp.mean(weight_BL * t_BL**2, axis=0), 1 / 3, atol=5e-3)
    if window is None:
        for mine, theirs in zip((t_BL, weight_BL), PerRow(Power(0.5)).draw(jax.random.key(0), jnp.arange(4096), 4096, 3), strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_through_the_objective():
    """A window of two with drawn levels and noise: the mean of `nats` is the entropy, within its standard error."""
    objective, means = Objective(Masked(VOCAB, MASK, excluded=(BOS,)), Hyperschedule(2)), []
    assert objective.is_bound
    for seed in range(8):
        batch = batch_of(sample_joint(LAW, 4096, seed))
        means.append(float(objective(EXACT, batch, jax.random.key(seed), 4096)[1]["nats"]) / 4096)
    assert abs(np.mean(means) - LAW.entropy) < 4 * np.std(means, ddof=1) / np.sqrt(8)


# --- blocks ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("stratified", [False, True])
def test_one_time_for_each_block(stratified, antithetic):
    """Constant within a block, different between blocks, uniform over [0, 1]; a function of key, row and global batch alone."""
    times, key = PerBlock(4, UniformTimes(), stratified, antithetic), jax.random.key(1)
    t_BL, weight_BL = times.draw(key, jnp.arange(64), 64, 18)
    assert isinstance(times, Times) and t_BL.shape == (64, 18) and (weight_BL == 1).all() and times.covers
    t_BN = np.asarray(t_BL)[:, [0, 4, 8, 12, 16]]
    np.testing.assert_array_equal(np.repeat(t_BN, 4, axis=1)[:, :18], t_BL)
    assert len(np.unique(t_BN)) == t_BN.size
    assert ((t_BN >= 0) & (t_BN <= 1)).all() and (np.histogram(t_BN, 4, (0, 1))[0] > 50).all()
    some = times.draw(key, jnp.asarray([9, 2]), 64, 18)[0]
    np.testing.assert_array_equal(some, t_BL[jnp.asarray([9, 2])])
    if antithetic:
        np.testing.assert_allclose(t_BN[:, 0] + t_BN[:, 1], 1, atol=1e-6)
    elif stratified:
        np.testing.assert_array_equal(np.sort((t_BN.reshape(-1) * t_BN.size).astype(int)), np.arange(t_BN.size))


def test_blocks_of_the_whole_row_and_of_one_token():
    t_BL, _ = PerBlock(18).draw(jax.random.key(0), jnp.arange(8), 8, 18)
    np.testing.assert_array_equal(t_BL, PerRow().draw(jax.random.key(0), jnp.arange(8), 8, 18)[0])
    assert len(np.unique(PerBlock(1).draw(jax.random.key(0), jnp.arange(8), 8, 18)[0])) == 8 * 18
    clipped = PerBlock(4, UniformTimes(0.3, 0.8))
    t_BL, weight_BL = clipped.draw(jax.random.key(0), jnp.arange(64), 64, 8)
    assert not clipped.covers and float(t_BL.min()) >= 0.3 and float(t_BL.max()) <= 0.8
    np.testing.assert_allclose(weight_BL, 0.5, rtol=1e-6)


def test_the_interval_of_least_variance():
    """A loss whose spread is small between 0.3 and 0.8 only: that interval is found, and any wider one where all levels are alike."""
    rng = np.random.default_rng(0)
    t_N = rng.uniform(size=20_000)
    spread_N = np.where((t_N > 0.3) & (t_N < 0.8), 0.5, 3.0)
    assert choose_interval(t_N, 2 + spread_N * rng.normal(size=t_N.size)) == pytest.approx((0.3, 0.8))
    assert choose_interval(t_N, np.ones(t_N.size)) == (0.0, 1.0)
    low, high = choose_interval(t_N, 1 / np.maximum(t_N, 1e-3) * (rng.uniform(size=t_N.size) < t_N), least=0.4)
    assert (low, high) == (0.6, 1.0)  # few masks with large weights: the masked loss of short blocks wants heavy noise
    with pytest.raises(InputError, match="measure more"):
        choose_interval(t_N[:1], t_N[:1])
    with pytest.raises(InputError, match="least"):
        choose_interval(t_N, t_N, least=0.0)


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: Hyperschedule(0), "at least 1 position"),
        (lambda: PerBlock(0), "at least 1 token"),
        # The largest time of a row, nearly always 1, would be that of all its tokens; a complement would show what lies ahead.
        (lambda: Objective(MaskedCount(VOCAB, MASK), Hyperschedule(2)), "requires one time per row"),
        (lambda: Objective(MaskedCount(VOCAB, MASK), PerBlock(2)), "requires one time per row"),
        (lambda: Objective(Masked(VOCAB, MASK, complementary=True), Hyperschedule(2)), "complementary masks conflict with"),
    ],
)
def test_impossible_draws_are_refused(make, says):
    with pytest.raises(InputError, match=says):
        make()


@pytest.mark.parametrize("process", [MaskedCount(VOCAB, MASK), Masked(VOCAB, MASK, complementary=True)], ids=["count", "complementary"])
def test_a_window_without_an_end_is_one_time(process):
    assert Objective(process, Hyperschedule(None)).is_bound


@pytest.mark.parametrize("size, halving", [(0, 0.25), (2, 0.5), (0, 8.0)])
def test_rates_by_position_are_the_mean_over_plackett_luce_orders_for_any_network(size, halving):
    """Over all masks and orders of a row, of costs that no joint distribution has: what the times and weights of training give is
    E_order sum_k cost(the token that is revealed, the masks before that)."""
    length, rng = 4, np.random.default_rng(0)
    times = ByPosition(size, halving)
    masks_M = [frozenset(i for i in range(length) if number >> i & 1) for number in range(2**length)]
    cost = {mask: rng.uniform(0.2, 3, length) for mask in masks_M}  # of each masked token, in nats
    rate_L = np.asarray(times.rates(length), np.float64)
    assert rate_L[-1] == 1 and (np.diff(rate_L[: size or length]) < 0).all()
    orders = 0.0
    for order in itertools.permutations(range(length)):
        left, probability, nats = set(range(length)), 1.0, 0.0
        for i in order:
            probability, nats = probability * rate_L[i] / sum(rate_L[j] for j in left), nats + cost[frozenset(left)][i]
            left.remove(i)
        orders += probability * nats
    with jax.enable_x64(True):
        t_BL, weight_BL = (np.asarray(a) for a in times.draw(jax.random.key(1), jnp.arange(8192), 8192, length))
    trained_B = np.zeros(len(t_BL))
    for mask in masks_M:
        inside_L = np.isin(np.arange(length), list(mask))
        p_B = np.prod(np.where(inside_L, t_BL, 1 - t_BL), axis=1)
        trained_B += p_B * np.sum(np.where(inside_L, weight_BL / t_BL * cost[mask], 0), axis=1)  # the hazard of the linear schedule is 1/t
    assert trained_B.mean() == pytest.approx(orders, rel=2e-3)


def test_rates_by_position_that_cannot_be_are_refused():
    for values, says in ((dict(size=-1), "size is -1"), (dict(halving=0.0), "halving is 0.0")):
        with pytest.raises(InputError, match=says):
            ByPosition(**values)
    with pytest.raises(InputError, match="complementary masks conflict with"):
        Objective(Masked(6, 5, complementary=True), ByPosition())
