"""Schedules that depend on the token: the bound and its gradient by enumeration, with weights that are not alike."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import Masked, Objective, PerRow, row_keys
from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.oracle import toy
from dlmjax.diffusion.process import init_params
from dlmjax.diffusion.processes.state_dependent import GenMd4, StateDependent
from dlmjax.errors import InputError
from tests.diffusion.battery import BOS, MASK, TOKENS, VOCAB, batch_of, chi_square_sigmas, sample_joint

LAW = oracle.JointDistribution.random(TOKENS, 2, seed=1)
LOG_W = np.log([0.5, 1.0, 2.2, 1.0, 1.0])
PROCESS = GenMd4(VOCAB, MASK, (BOS,)).with_params({"log_w": jnp.asarray(LOG_W, jnp.float32)})
EVEN = GenMd4(VOCAB, MASK, (BOS,))


# --- tools, for every process of this kind -----------------------------------------------------------------------------------------


def pairs(process: StateDependent, law: oracle.JointDistribution, t: float):
    """(x_NL, z_NL, probability_N) of all that can occur at level t, from the process's noise."""
    with jax.enable_x64(True):
        noise_K = np.asarray(process.noise_of(jnp.arange(law.tokens), jnp.full(law.tokens, t)))
    x, z, p = [], [], []
    for x_L, mass in zip(law.sequences_Xn, law.probability_X, strict=True):
        for hidden in itertools.product((False, True), repeat=law.length):
            chance = np.prod([noise_K[v] if h else 1 - noise_K[v] for v, h in zip(x_L, hidden, strict=True)])
            x, z, p = [*x, x_L], [*z, np.where(hidden, MASK, x_L)], [*p, mass * chance]
    return np.asarray(x), np.asarray(z), np.asarray(p)


def denoiser(process: StateDependent, law: oracle.JointDistribution) -> toy.ToyDenoiser:
    return toy.ToyDenoiser(law, VOCAB, lambda z, t: process.log_likelihood(z, t)[..., : law.tokens])


def bound(process: StateDependent, law: oracle.JointDistribution, guess=None, nodes: int = 64) -> float:
    """The diffusion part in nats per sequence, in float64."""
    guess = guess or denoiser(process, law)
    levels, weights = oracle.quadrature(nodes)
    parts = [pairs(process, law, t) for t in levels]
    x_NL, z_NL = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    mass_N = np.concatenate([w * part[2] for w, part in zip(weights, parts, strict=True)])
    t_NL = np.repeat(levels, len(parts[0][0]))[:, None] * np.ones((1, law.length))
    with jax.enable_x64(True):
        x_NL, z_NL, t_NL = jnp.asarray(x_NL), jnp.asarray(z_NL), jnp.asarray(t_NL)
        nats_NL = process.loss(guess.logits(guess.hidden(z_NL, t_NL)), x_NL, z_NL, t_NL)
        return float(jnp.sum(mass_N * nats_NL.sum(axis=1)))


def check_reverse(process: StateDependent, law: oracle.JointDistribution, steps: int, rows: int = 4096) -> None:
    """Samples of the exact denoiser have the law of the data when steps are many."""
    guess, step_key = denoiser(process, law), jax.random.key(3)
    z_BL = process.prior(row_keys(jax.random.key(4), jnp.arange(rows)), law.length)
    times = np.linspace(1, 0, steps + 1, dtype=np.float32)
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        t_BL, s_BL = jnp.full(z_BL.shape, t), jnp.full(z_BL.shape, s)
        keys_B = row_keys(jax.random.fold_in(step_key, i), jnp.arange(rows))
        z_BL = process.reverse_step(keys_B, guess.logits(guess.hidden(z_BL, t_BL)), z_BL, t_BL, s_BL)
    z_BL = np.asarray(z_BL)
    assert z_BL.max() < law.tokens, "a mask is left"
    counts_X = np.bincount(np.ravel_multi_index(z_BL.T, (law.tokens,) * law.length), minlength=law.tokens**law.length)
    assert chi_square_sigmas(counts_X, law.probability_X) < 4


# --- the bound ---------------------------------------------------------------------------------------------------------------------


def test_bound_is_tight():
    """H with the exact denoiser, for weights alike and not; the denoiser that thinks them alike is worse by a visible amount."""
    assert bound(EVEN, LAW) == pytest.approx(LAW.entropy, abs=1e-6)
    assert bound(PROCESS, LAW) == pytest.approx(LAW.entropy, abs=1e-6)
    assert bound(PROCESS, LAW, toy.ToyDenoiser(LAW, VOCAB, toy.masked_likelihood(TOKENS, MASK))) > LAW.entropy + 0.01


def test_what_is_left_at_the_end_is_paid_for():
    """eps > 0: with the prior term the bound is H + KL(q(z_1) || p_1), without it it is none."""
    process = GenMd4(VOCAB, MASK, (BOS,), eps=0.05).with_params({"log_w": jnp.asarray(LOG_W, jnp.float32)})
    x_NL, z_NL, p_N = pairs(process, LAW, 1.0)
    assert process.boundary.any and process.left == 0.05
    true, start = {}, {}
    for z_L, p in zip(map(tuple, z_NL), p_N, strict=True):
        true[z_L] = true.get(z_L, 0) + p
        start[z_L] = np.prod([0.95 if z == MASK else 0.05 / TOKENS for z in z_L])
    gap = sum(p * np.log(p / start[z_L]) for z_L, p in true.items())
    prior = float(process.prior_nats(jnp.zeros(2, jnp.int32)).sum())
    assert bound(process, LAW) + prior == pytest.approx(LAW.entropy + gap, abs=1e-6)
    assert bound(process, LAW) < LAW.entropy - 1e-3
    z_BL = np.asarray(process.prior(row_keys(jax.random.key(0), jnp.arange(500)), 40))
    np.testing.assert_allclose(np.bincount(z_BL.ravel(), minlength=VOCAB) / z_BL.size, [0.05 / 3] * 3 + [0, 0.95], atol=0.01)


def test_pointwise_loss_is_the_path_kl():
    """sum_v [r_v' - r_v + r_v log(r_v / r_v')] with the rates r_v = h_v 1[v = x] and r_v' = h_v p_v of a mask turning into v."""
    rng, t = np.random.default_rng(0), 0.3
    logits_NV = rng.normal(size=(TOKENS, VOCAB)) * 3
    p_NK = np.exp(logits_NV[:, :TOKENS]) / np.exp(logits_NV[:, :TOKENS]).sum(axis=1, keepdims=True)
    h_K = np.exp(LOG_W[:TOKENS].astype(np.float32)) / t
    truth = [(h_K * p_K).sum() - h_K[x] - h_K[x] * np.log(p_K[x]) for x, p_K in enumerate(p_NK)]
    for dtype, tolerance in ((jnp.float64, 1e-6), (jnp.float32, 1e-5)):
        with jax.enable_x64(dtype == jnp.float64):
            full = jnp.full(TOKENS, MASK)
            nats = PROCESS.loss(jnp.asarray(logits_NV, dtype), jnp.arange(TOKENS), full, jnp.full(TOKENS, t, dtype))
            shown = PROCESS.loss(jnp.asarray(logits_NV, dtype), jnp.arange(TOKENS), jnp.arange(TOKENS), jnp.zeros(TOKENS, dtype))
        np.testing.assert_allclose(nats, truth, rtol=tolerance)
        assert nats.dtype == dtype and (np.asarray(shown) == 0).all()
    # Alike weights: masked diffusion on the linear schedule, to the last bits.
    masked = Masked(VOCAB, MASK, excluded=(BOS,))
    args = jnp.asarray(logits_NV, jnp.float32), jnp.arange(TOKENS), jnp.full(TOKENS, MASK), jnp.full(TOKENS, t)
    np.testing.assert_allclose(EVEN.loss(*args), masked.loss(*args), rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_loss_and_gradients_are_finite_at_the_ends(dtype):
    levels = jnp.asarray([0.0, 1e-30, 1e-6, 1 - 1e-6, 1.0])
    t, x, z = (a.reshape(-1) for a in jnp.meshgrid(levels, jnp.arange(TOKENS), jnp.asarray([0, 1, 2, MASK]), indexing="ij"))
    logits = (1e4 * jax.random.normal(jax.random.key(0), (t.size, VOCAB))).astype(dtype)

    def total(logits, log_w):
        process = EVEN.with_params({"log_w": log_w})
        return jnp.sum(process.loss(logits, x, z, t)) + jnp.sum(process.log_q(z, x, t))

    value, gradients = jax.value_and_grad(total, argnums=(0, 1))(logits, jnp.asarray(LOG_W, jnp.float32))
    assert np.isfinite(float(value)) and all(np.isfinite(np.asarray(g, np.float32)).all() for g in gradients)


# --- the gradient in w -------------------------------------------------------------------------------------------------------------


def _logits(z_NL, key: int = 7):
    """A denoiser that knows nothing: random logits for every z."""
    table = jax.random.normal(jax.random.key(key), (VOCAB, VOCAB, 2, VOCAB))
    return 2 * table[z_NL[:, 0], z_NL[:, 1]]


def _enumerated_gradient(t: float) -> np.ndarray:
    """d/d log w of E_z loss at level t by summing over all z, the draw's dependence on w included."""
    x_NL, z_NL, _ = pairs(PROCESS, LAW, t)
    p_N = LAW.probability_X[np.ravel_multi_index(x_NL.T, (TOKENS, TOKENS))]

    def value(log_w):
        process = EVEN.with_params({"log_w": log_w})
        t_NL = jnp.full(x_NL.shape, t)
        chance_N = jnp.exp(process.log_q(jnp.asarray(z_NL), jnp.asarray(x_NL), t_NL).sum(axis=1))
        nats_N = process.loss(_logits(jnp.asarray(z_NL)), jnp.asarray(x_NL), jnp.asarray(z_NL), t_NL).sum(axis=1)
        return jnp.sum(p_N * chance_N * nats_N)

    return np.asarray(jax.grad(value)(jnp.asarray(LOG_W, jnp.float32)))


def test_two_draws_give_the_gradient_in_w():
    """The leave-one-out estimator, over all pairs of draws of every x, is the gradient; without its second part it is not."""
    t = 0.4
    x_NL, z_NL, chance_N = pairs(PROCESS, LAW, t)
    x_NL, z_NL, t_NL = jnp.asarray(x_NL), jnp.asarray(z_NL), jnp.full(x_NL.shape, t)

    def parts(log_w):
        process = EVEN.with_params({"log_w": log_w})
        nats_N = process.loss(_logits(z_NL), x_NL, z_NL, t_NL).sum(axis=1)
        return nats_N, process.log_q(z_NL, x_NL, t_NL).sum(axis=1)

    log_w = jnp.asarray(LOG_W, jnp.float32)
    nats_N = np.asarray(parts(log_w)[0])
    loss_NV, score_NV = map(np.asarray, jax.jacrev(parts)(log_w))
    gradient, plain = np.zeros(VOCAB), chance_N @ loss_NV
    for block in np.split(np.arange(len(nats_N)), TOKENS**2):
        pair_p = np.outer(chance_N[block], chance_N[block]) / chance_N[block].sum()
        difference = (nats_N[block][:, None] - nats_N[block]) * pair_p / 2
        gradient += np.einsum("ij,ijv->v", difference, score_NV[block][:, None] - score_NV[block][None])
    truth = _enumerated_gradient(t)
    np.testing.assert_allclose(gradient + plain, truth, atol=2e-5)
    assert np.abs(plain - truth).max() > 0.05


class _Denoiser(toy.ToyDenoiser):
    def hidden(self, z_BL, t_BL, hint_BLI=None):
        return _logits(z_BL)


class _Fixed(PerRow):
    def draw(self, key, row_B, global_batch, length):
        return jnp.full((row_B.shape[0], length), 0.4), jnp.ones((row_B.shape[0], length))


def test_the_objective_finds_the_gradient_in_w():
    """Through the whole objective, at one level: the mean over steps is the enumerated gradient, within its standard error."""
    objective, rows = Objective(EVEN, _Fixed()), 4096
    x_BL = sample_joint(LAW, rows, seed=5)

    def step(log_w, key):
        return objective.bind({"process": {"log_w": log_w}})(_Denoiser(LAW, VOCAB), batch_of(x_BL), key, rows)[0] / rows

    step = jax.jit(jax.grad(step))
    gradients = np.asarray([step(jnp.asarray(LOG_W, jnp.float32), key) for key in jax.random.split(jax.random.key(6), 12)])
    truth, mean = _enumerated_gradient(0.4), gradients.mean(axis=0)
    # The batch is a sample of the law as well.
    error = np.abs(truth).max() / np.sqrt(rows) * 3 + gradients.std(axis=0, ddof=1) / np.sqrt(12)
    assert (np.abs(mean - truth) < 4 * error).all() and (error < 0.1 * np.abs(truth).max()).all()


# --- sampling ----------------------------------------------------------------------------------------------------------------------


def test_reverse_sampling_reproduces_the_joint_distribution():
    check_reverse(PROCESS, LAW, steps=32)


def test_forward_steps_compose():
    """Two steps mask as often as one."""
    rows, x_BL = 4096, jnp.broadcast_to(jnp.arange(TOKENS), (4096, TOKENS))
    keys = [row_keys(jax.random.key(i), jnp.arange(rows)) for i in range(2)]
    z_BL = PROCESS.corrupt(keys[0], x_BL, jnp.full(x_BL.shape, 0.3))
    z_BL = PROCESS.forward_step(keys[1], z_BL, jnp.full(x_BL.shape, 0.3), jnp.full(x_BL.shape, 0.6))
    rate = np.asarray(z_BL == MASK).mean(axis=0)
    np.testing.assert_allclose(rate, 0.6 ** np.exp(LOG_W[:TOKENS]), atol=4 * 0.5 / np.sqrt(rows))


def test_what_is_learned():
    params = init_params(EVEN, jax.random.key(0))
    assert params["log_w"].shape == (VOCAB,) and EVEN.parameters["log_w"].kind == "vector" and EVEN.capabilities.reinforce
    np.testing.assert_array_equal(EVEN.with_params(params).weights_V, np.ones(VOCAB))
    np.testing.assert_allclose(PROCESS.noise_rate(jnp.asarray([0.5])), np.mean(0.5 ** np.exp(LOG_W[:TOKENS])), rtol=1e-5)
    assert EVEN.with_params({}) is EVEN and hash(EVEN) == hash(GenMd4(VOCAB, MASK, (BOS,)))
    with pytest.raises(InputError, match="eps is 1"):
        GenMd4(VOCAB, MASK, eps=1.0)


def test_the_schedule_is_watched():
    """Exponents of what text may hold; the mask's and BOS's say nothing."""
    assert EVEN.scalars() == {}
    watched, held = PROCESS.scalars(), np.exp(LOG_W[:TOKENS])
    assert {name: round(float(value), 5) for name, value in watched.items()} == {
        "w_mean": round(float(held.mean()), 5),
        "w_min": round(float(held.min()), 5),
        "w_max": round(float(held.max()), 5),
    }


@pytest.mark.parametrize("factor", [0.0, -1.0, float("inf"), float("nan")])
def test_a_learning_rate_factor_is_positive(factor):
    with pytest.raises(InputError, match="schedule_lr"):
        GenMd4(VOCAB, MASK, schedule_lr=factor)
