"""Masked diffusion and its relatives against the formulas of the papers, and the traps of public implementations."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import (
    Autoregressive,
    Cosine,
    Geometric,
    Linear,
    Llada,
    Masked,
    MaskedCount,
    Objective,
    PerRow,
    Polynomial,
    Power,
    llada,
    row_keys,
    symmetric,
)
from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.oracle import toy
from dlmjax.diffusion.process import draw_tokens, uniform_rows
from dlmjax.errors import InputError
from tests.diffusion.battery import BOS, MASK, TOKENS, VOCAB, batch_of, expected_nats, index_of, sample_joint
from tests.diffusion.cases_spine import CASES

LAW3 = oracle.JointDistribution.random(TOKENS, 3, seed=2)
BY_NAME = {str(case): case for case in CASES}


@dataclasses.dataclass(frozen=True, eq=False)
class WrongDenoiser:
    """Some fixed, time-free, wrong answer for every noisy sequence of length 3."""

    seed: int = 0

    def hidden(self, z_BL, t_BL):
        rng = np.random.default_rng(self.seed)
        table = rng.normal(size=((TOKENS + 1) ** z_BL.shape[1], z_BL.shape[1], VOCAB))
        return jnp.asarray(table)[index_of(np.where(z_BL == MASK, TOKENS, z_BL), TOKENS + 1)]

    def logits(self, hidden):
        return hidden


LAW = oracle.JointDistribution.random(TOKENS, 3, seed=2)


def test_a_wrong_denoiser_has_one_bound_on_every_schedule():
    """The integral does not know the schedule, nor whether the count of masks is drawn exactly (RADD's t-form and k-form)."""
    names = ("masked/linear", "masked/cosine", "masked/polynomial", "masked_count")
    bounds = [expected_nats(BY_NAME[name], LAW, WrongDenoiser()) for name in names]
    assert bounds[0] > LAW.entropy + 0.5
    np.testing.assert_allclose(bounds, bounds[0], atol=1e-6)


def test_the_bound_is_the_mean_over_all_orders():
    """Any-order autoregression: E over permutations of sum_i -log p(x_i | those before it) is the same number (RADD 2406.03736)."""
    denoiser, total = WrongDenoiser(), 0.0
    orders = list(itertools.permutations(range(3)))
    for order in orders:
        for x_L, mass in zip(LAW.sequences_Xn, LAW.probability_X, strict=True):
            z_L = np.full(3, MASK)
            for i in order:
                logits_K = np.asarray(denoiser.hidden(z_L[None], None))[0, i, :TOKENS].astype(np.float64)
                total += mass / len(orders) * (np.log(np.exp(logits_K).sum()) - logits_K[x_L[i]])
                z_L[i] = x_L[i]
    assert expected_nats(BY_NAME["masked_count"], LAW, denoiser) == pytest.approx(total, abs=1e-5)


def mdlm_loss(logits, x, z, schedule, t, mask_id):
    """MDLM as written: log-probabilities after the substitutions, then -log p(x) sigma' / (e^sigma - 1)."""
    logits = logits.at[..., mask_id].set(-1e6)
    log_p = logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    carried = jnp.where(jax.nn.one_hot(z, logits.shape[-1]) > 0, 0.0, -1e6)
    log_p = jnp.where((z != mask_id)[..., None], carried, log_p)
    sigma = -jnp.log(schedule.alpha(t))
    sigma_prime = -schedule.alpha_prime(t) / schedule.alpha(t)
    return -jnp.take_along_axis(log_p, x[..., None], axis=-1)[..., 0] * sigma_prime / jnp.expm1(sigma)


def md4_loss(logits, x, z, schedule, t, mask_id):
    """MD4 as written: one-hot cross-entropy over the tokens (no mask class), masked, times alpha' / (1 - alpha)."""
    log_p = jax.nn.log_softmax(logits[..., :mask_id])
    negative_cross_entropy = jnp.sum(jax.nn.one_hot(x, mask_id) * log_p, axis=-1)
    return (z == mask_id) * negative_cross_entropy * schedule.alpha_prime(t) / (1 - schedule.alpha(t))


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Polynomial(3.0), Geometric(1e-2, 5.0), llada(0.01)], ids=repr)
def test_mdlm_and_md4_are_one_loss(schedule):
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 3)
        logits = 3 * jax.random.normal(keys[0], (50, 7, VOCAB))
        x = jax.random.randint(keys[1], (50, 7), 0, MASK)
        t = jnp.broadcast_to(jnp.linspace(0.02, 0.98, 50)[:, None], (50, 7))
        z = jnp.where(jax.random.uniform(keys[2], (50, 7)) < t, MASK, x)
        ours = Masked(VOCAB, MASK, schedule).loss(logits, x, z, t)
        np.testing.assert_allclose(ours, mdlm_loss(logits, x, z, schedule, t, MASK), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(ours, md4_loss(logits, x, z, schedule, t, MASK), rtol=1e-9, atol=1e-12)
        assert (ours >= 0).all() and (ours[z != MASK] == 0).all()


def test_the_mask_class_takes_no_part():
    """Neither its logit nor an excluded one enters the loss; their gradients are exactly 0."""
    process = Masked(VOCAB, MASK, excluded=(3,))
    x, z, t = jnp.asarray([0, 1]), jnp.asarray([MASK, MASK]), jnp.asarray([0.3, 0.6])
    logits = jnp.asarray([[0.1, 0.5, -1.0, 90.0, 80.0], [1.0, 2.0, 3.0, -50.0, 1e4]])
    loss, gradient = jax.value_and_grad(lambda logits: process.loss(logits, x, z, t).sum())(logits)
    three = np.asarray(logits, np.float64)[:, :3]
    truth = (np.log(np.exp(three).sum(axis=1)) - three[[0, 1], [0, 1]]) / np.asarray([0.3, 0.6])
    assert float(loss) == pytest.approx(truth.sum(), rel=1e-6)
    assert (np.asarray(gradient)[:, 3:] == 0).all() and (np.asarray(gradient)[:, :3] != 0).all()


@pytest.mark.parametrize("process", [Masked(VOCAB, MASK), Autoregressive(VOCAB, 3)], ids=lambda process: process.name)
def test_bfloat16_logits_are_reduced_in_float32(process):
    """The loss of bfloat16 logits is that of the same numbers in float32, to the last bit."""
    logits = (4 * jax.random.normal(jax.random.key(0), (200, VOCAB))).astype(jnp.bfloat16)
    x, z, t = jnp.arange(200) % TOKENS, jnp.full(200, MASK), jnp.linspace(1e-3, 1, 200)
    np.testing.assert_array_equal(process.loss(logits, x, z, t), process.loss(logits.astype(jnp.float32), x, z, t))
    np.testing.assert_array_equal(process.reconstruction(logits, x, z), process.reconstruction(logits.astype(jnp.float32), x, z))


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Geometric(1e-2, 5.0), llada(0.1), symmetric(Cosine(), 0.1)], ids=repr)
def test_corruption_and_weight_use_the_same_epsilon(schedule):
    """If every masked token costs 1 nat, the bound's integral is what the noise covers: alpha(0) - alpha(1). A weight made from another
    epsilon than the corruption's (a bug of public code) breaks this."""
    process = Masked(VOCAB, MASK, schedule)
    t_J, weight_J = oracle.quadrature(64)
    with jax.enable_x64(True):
        t_J = jnp.asarray(t_J)
        logits_JV = jnp.zeros((64, VOCAB)).at[:, 0].set(math.log(3 / (math.e - 1)))
        nats_J = process.loss(logits_JV, jnp.zeros(64, int), jnp.full(64, MASK), t_J)
        rate_J = process.noise_rate(t_J)
        assert float(jnp.sum(weight_J * rate_J * nats_J)) == pytest.approx(schedule.ends[0] - schedule.ends[1], abs=1e-6)
    rows = 4000
    x_BL = jnp.zeros((rows, 16), jnp.int32)
    for t in (0.02, 0.5):
        z_BL = process.corrupt(row_keys(jax.random.key(1), jnp.arange(rows)), x_BL, jnp.full(x_BL.shape, t))
        rate = float(schedule.noise(t))
        assert abs(float(jnp.mean(z_BL == MASK)) - rate) < 4 * math.sqrt(rate / x_BL.size)


def test_llada_is_cross_entropy_over_the_mask_rate():
    """sum CE / p over masked tokens, over B L (LLaDA 2502.09992 eq. 3), with p = (1 - eps) t + eps."""
    process, eps = Llada(VOCAB, MASK, eps=0.1), 0.1
    objective = Objective(process)
    x_BL = np.random.default_rng(0).integers(0, TOKENS, (64, 3)).astype(np.int32)
    batch, key = batch_of(x_BL), jax.random.key(2)
    denoiser = dataclasses.replace(BY_NAME["llada"].denoiser(LAW))
    total, parts = objective(denoiser, batch, key, 64)

    time_key, noise_key, _ = jax.random.split(key, 3)
    t_BL, _ = objective.times.draw(time_key, batch["row"], 64, 3)
    p_BL = (1 - eps) * t_BL + eps
    z_BL = process.corrupt(row_keys(noise_key, batch["row"]), batch["tokens"], t_BL)
    log_p = jax.nn.log_softmax(denoiser.hidden(z_BL, t_BL).at[..., MASK].set(-jnp.inf))
    cross_entropy_BL = -jnp.take_along_axis(log_p, batch["tokens"][..., None], axis=-1)[..., 0]
    assert float(total) == pytest.approx(float(jnp.sum(jnp.where(z_BL == MASK, cross_entropy_BL / p_BL, 0))), rel=1e-5)
    assert float(total) == pytest.approx(float(parts["nats"]) / (1 - eps), rel=1e-5)
    assert not objective.trains_bound and not objective.is_bound
    assert {"partial_nelbo", "loss_inverse_rate_not_a_bound"} <= set(objective.report(parts))
    assert process.bound is process and process.boundary.any


def test_tokens_are_drawn_with_high_precision_noise():
    """Row by row from its own key, with Gumbel noise whose tail is not cut at 15.94, and in float32 for bfloat16 logits."""
    logits_BLV = jax.random.normal(jax.random.key(0), (4, 64, 32), jnp.bfloat16)
    keys_B = row_keys(jax.random.key(1), jnp.arange(4))
    token_BL = draw_tokens(keys_B, logits_BLV)
    for key, logits_LV, token_L in zip(keys_B, logits_BLV.astype(jnp.float32), token_BL, strict=True):
        noise_LV = jax.random.gumbel(key, (64, 32), jnp.float32, mode="high")
        np.testing.assert_array_equal(token_L, jnp.argmax(logits_LV + noise_LV, axis=-1))
    assert token_BL.dtype == jnp.int32


def test_noise_is_fine_enough_for_small_times():
    """Corruption near t = 0 needs uniform numbers in steps finer than 2^-23: a token masked too often there weighs 1/t each time."""
    u = np.asarray(uniform_rows(row_keys(jax.random.key(0), jnp.arange(8)), 2**22))
    small = u[u < 2**-23]
    assert 0 < small.size < 20 and (small > 0).any()  # 4 expected; jax.random.uniform would give zeros only
    assert u.max() < 1 and u.mean() == pytest.approx(0.5, abs=1e-3) and u.var() == pytest.approx(1 / 12, rel=1e-2)


# --- the k-form --------------------------------------------------------------------------------------------------------------------


def test_exactly_k_of_the_valid_tokens_are_masked():
    process, rng = MaskedCount(VOCAB, MASK), np.random.default_rng(3)
    x_BL = jnp.asarray(rng.integers(0, TOKENS, (200, 33)), jnp.int32)
    lengths_B = rng.integers(0, 34, 200)
    valid_BL = jnp.arange(33) < lengths_B[:, None]
    t_BL = jnp.broadcast_to(jnp.linspace(0, 1, 200)[:, None], x_BL.shape)
    level_BL = process.time_domain.quantize(t_BL, valid_BL)
    z_BL = process.corrupt(row_keys(jax.random.key(0), jnp.arange(200)), x_BL, level_BL, valid_BL)
    masked_BL = np.asarray(z_BL == MASK)
    count_B = np.clip(np.floor(np.linspace(0, 1, 200, dtype=np.float32) * lengths_B) + 1, 1, np.maximum(lengths_B, 1))
    np.testing.assert_array_equal(masked_BL.sum(axis=1), np.where(lengths_B > 0, count_B, 0))
    assert not masked_BL[~np.asarray(valid_BL)].any()
    # n/k times the cross-entropy: the level is the realised rate.
    full_B = lengths_B > 0
    np.testing.assert_allclose(np.asarray(level_BL)[full_B, 0], masked_BL.sum(axis=1)[full_B] / lengths_B[full_B], rtol=1e-6)


@pytest.mark.parametrize("length", [7, 4096])
def test_count_is_uniform_over_one_to_n(length):
    t_BL = jnp.broadcast_to(jnp.linspace(0, 1, 7 * 64, endpoint=False)[:, None], (7 * 64, length))
    level_BL = MaskedCount(VOCAB, MASK).time_domain.quantize(t_BL, jnp.ones(t_BL.shape, bool))
    k_B = np.rint(np.asarray(level_BL[:, 0]) * length).astype(int)
    assert k_B.min() == 1 and k_B.max() <= length
    if length == 7:
        np.testing.assert_array_equal(np.bincount(k_B)[1:], 64)
    # Levels that were made already are kept.
    z_BL = MaskedCount(VOCAB, MASK).corrupt(row_keys(jax.random.key(0), jnp.arange(448)), jnp.zeros(t_BL.shape, jnp.int32), level_BL)
    np.testing.assert_array_equal((np.asarray(z_BL) == MASK).sum(axis=1), k_B)


def test_the_count_form_has_less_variance_and_is_evaluated_as_masked_diffusion():
    x_BL = np.random.default_rng(4).integers(0, TOKENS, (512, 3)).astype(np.int32)
    spread = {}
    for process in (Masked(VOCAB, MASK), MaskedCount(VOCAB, MASK)):
        objective = Objective(process)
        denoiser = BY_NAME["masked/linear"].denoiser(LAW)
        totals = [float(objective(denoiser, batch_of(x_BL), jax.random.key(seed), 512)[0]) for seed in range(12)]
        spread[process.name] = np.std(totals)
    assert spread["masked_count"] < spread["masked"]
    assert MaskedCount(VOCAB, MASK, (3,)).bound == Masked(VOCAB, MASK, Linear(), (3,))


# --- sampling ----------------------------------------------------------------------------------------------------------------------


def test_revealed_tokens_are_carried_over():
    process = Masked(VOCAB, MASK, Cosine())
    keys_B = row_keys(jax.random.key(5), jnp.arange(64))
    z_BL = jnp.where(jax.random.uniform(jax.random.key(6), (64, 9)) < 0.5, MASK, 1)
    logits_BLV = jnp.zeros((64, 9, VOCAB)).at[..., 2].set(50.0).at[..., MASK].set(99.0)

    def step(t, s):
        return process.reverse_step(keys_B, logits_BLV, z_BL, jnp.full(z_BL.shape, t), jnp.full(z_BL.shape, s))

    np.testing.assert_array_equal(step(0.6, 0.6), z_BL)
    for t in (1.0, 0.5, 1e-6):
        np.testing.assert_array_equal(step(t, 0.0), jnp.where(z_BL == MASK, 2, 1))  # the last step leaves no mask, whatever t
    some = step(1.0, 0.5)
    assert (some[z_BL != MASK] == 1).all()
    rate = float(jnp.mean(some[z_BL == MASK] == 2))
    assert abs(rate - (1 - float(process.schedule.noise(0.5)))) < 0.1


def test_how_many_are_unmasked_does_not_depend_on_the_vocabulary():
    """A single draw over V + 1 classes with capped noise unmasks nothing when V and the steps are many; here the choice comes first."""
    shown = []
    for vocab in (3, 3000):
        process = Masked(vocab, vocab - 1)
        keys_B, z_BL = row_keys(jax.random.key(7), jnp.arange(8)), jnp.full((8, 256), vocab - 1)
        t_BL = jnp.ones(z_BL.shape)
        logits_BLV = jax.random.normal(jax.random.key(8), (8, 256, vocab))
        shown.append(np.asarray(process.reverse_step(keys_B, logits_BLV, z_BL, t_BL, t_BL * 0.98) != vocab - 1))
    np.testing.assert_array_equal(*shown)
    assert 20 < shown[0].sum() < 70  # 41 expected


def test_the_prior_of_a_schedule_that_leaves_text():
    """p_1: mask, but a token drawn evenly (never a special id) with the probability alpha_1 that is left; its cost is alpha_1 log K."""
    process = Masked(VOCAB, MASK, symmetric(Linear(), 0.2), excluded=(3,))
    z_BL = np.asarray(process.prior(row_keys(jax.random.key(9), jnp.arange(500)), 40))
    share = np.bincount(z_BL.ravel(), minlength=VOCAB) / z_BL.size
    np.testing.assert_allclose(share, [0.2 / 3, 0.2 / 3, 0.2 / 3, 0, 0.8], atol=0.01)
    np.testing.assert_allclose(process.prior_nats(jnp.zeros((2, 3), jnp.int32)), 0.2 * math.log(3), rtol=1e-6)
    assert (np.asarray(Masked(VOCAB, MASK).prior(row_keys(jax.random.key(0), jnp.arange(2)), 5)) == MASK).all()
    logits_BLV = jnp.zeros((500, 40, VOCAB)).at[..., 1].set(60.0)
    decoded = process.decode(row_keys(jax.random.key(1), jnp.arange(500)), logits_BLV, jnp.asarray(z_BL))
    np.testing.assert_array_equal(decoded, np.where(z_BL == MASK, 1, z_BL))


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: Masked(5, 5), "mask_id is 5, outside the vocabulary of 5"),
        (lambda: Masked(5, 4, Linear(), (7,)), "excluded"),
        (lambda: Masked(1, 0), "at least two"),
        (lambda: Llada(5, 4, eps=0.0), "eps is 0.0"),
    ],
)
def test_impossible_processes_are_refused(make, says):
    with pytest.raises(InputError, match=says):
        make()


def test_complementary_masks_train_each_token_once():
    """A mask and its complement, at levels t and 1 - t: the bound stays what it is, for any law of levels, and its variance falls."""
    pair, one = Masked(VOCAB, MASK, excluded=(BOS,), complementary=True), Masked(VOCAB, MASK, excluded=(BOS,))
    x_BL = jnp.asarray(sample_joint(LAW3, 512, seed=30))
    keys_B, t_BL = row_keys(jax.random.key(31), jnp.arange(512)), jnp.full(x_BL.shape, 0.3)
    (z_BL, t_BL), (other_BL, other_t_BL) = pair.noisy_views(keys_B, x_BL, t_BL)
    assert ((z_BL == MASK) ^ (other_BL == MASK)).all() and ((z_BL == x_BL) | (other_BL == x_BL)).all()
    np.testing.assert_allclose(t_BL + other_t_BL, 1.0)
    denoiser, steps = toy.ToyDenoiser(LAW3, VOCAB, toy.masked_likelihood(TOKENS, MASK)), 24
    found = {}
    for times in (PerRow(), PerRow(Power(0.6))):
        for process in (one, pair):
            objective, means = Objective(process, times), []
            for step in range(steps):
                batch = batch_of(sample_joint(LAW3, 512, seed=40 + step))
                means.append(float(objective(denoiser, batch, jax.random.key(step), 512)[1]["nats"]) / 512)
            error = np.std(means, ddof=1) / np.sqrt(steps)
            assert abs(np.mean(means) - LAW3.entropy) < 4 * error
            found[times, process] = error
    assert found[PerRow(), pair] < found[PerRow(), one]
    with pytest.raises(InputError, match="linear schedule"):
        Masked(VOCAB, MASK, Cosine(), complementary=True)
