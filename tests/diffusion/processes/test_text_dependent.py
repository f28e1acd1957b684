"""Rates of masks that depend on the whole text (LoMDM): the bound, its gradient and its reverse chain by enumeration."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import Masked, Objective, PerRow, row_keys
from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.oracle import toy
from dlmjax.diffusion.process import init_params, is_tight
from dlmjax.diffusion.processes.text_dependent import LoMdm, TextDependent
from dlmjax.errors import InputError
from tests.diffusion import test_battery as battery
from tests.diffusion.battery import (
    BOS,
    LINEAR,
    MASK,
    TOKENS,
    VOCAB,
    Case,
    batch_of,
    chi_square_sigmas,
    expected_nats,
    index_of,
    sample_joint,
    to_states,
)

LAW = battery.LAW2
STATES = oracle.enumerate_sequences(TOKENS + 1, LAW.length)


# --- any rates, and the exact network for them ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Table(TextDependent):
    """log w_i(x) from a table over all texts of two tokens, flattened; v is its mean over the texts that fit z, which is the best v.

    p: probabilities of the texts.
    """

    log_w: tuple[float, ...]
    p: tuple[float, ...]
    vocab: int = VOCAB
    mask_id: int = MASK
    excluded: tuple[int, ...] = (BOS,)

    name = "table"

    def log_weights(self, x_BL):
        log_w_XL = jnp.asarray(np.reshape(self.log_w, (-1, x_BL.shape[1])))
        return log_w_XL[jnp.clip(x_BL[:, 0], 0, TOKENS - 1) * TOKENS + jnp.clip(x_BL[:, 1], 0, TOKENS - 1)]

    def posterior(self, z_BL, t_BL):
        """(p(x | z) [B, X], w [X, L])."""
        x_XL = jnp.asarray(oracle.enumerate_sequences(TOKENS, z_BL.shape[1]))
        w_XL = jnp.exp(jnp.asarray(np.reshape(self.log_w, (-1, z_BL.shape[1]))))
        log_noise_BXL = w_XL * jnp.log(jnp.maximum(t_BL, 1e-30))[:, None]
        shown_BXL = jnp.where(z_BL[:, None] == x_XL, jnp.log(jnp.maximum(-jnp.expm1(log_noise_BXL), 1e-30)), -1e9)
        log_BXL = jnp.where((z_BL == MASK)[:, None], log_noise_BXL, shown_BXL)
        return jax.nn.softmax(jnp.log(jnp.asarray(self.p)) + log_BXL.sum(axis=-1), axis=-1), w_XL

    def log_model_weights(self, z_BL, t_BL):
        p_BX, w_XL = self.posterior(z_BL, t_BL)
        return jnp.log(jnp.dot(p_BX, w_XL, precision="highest"))


@dataclasses.dataclass(frozen=True, eq=False)
class Weighted(toy.ToyDenoiser):
    """The best p: the posterior of the token weighted by the rate at which it is revealed."""

    process: Table | None = None

    def hidden(self, z_BL, t_BL, hint_BLI=None):
        p_BX, w_XL = self.process.posterior(z_BL, t_BL)
        onehot_XLK = np.eye(TOKENS)[self.joint.sequences_Xn]
        p_BLK = jnp.einsum("bx,xl,xlk->blk", p_BX, w_XL, onehot_XLK, precision="highest")
        return jnp.pad(jnp.log(jnp.maximum(p_BLK, 1e-300)), ((0, 0), (0, 0), (0, VOCAB - TOKENS)), constant_values=-1e9)


@dataclasses.dataclass(frozen=True, eq=False)
class TableCase(Case):
    def denoiser(self, law):
        return Weighted(law, VOCAB, None, self.process)


def all_masks(case, law, t):
    """(x, z, probability) of every text and mask, token i masked with t^(w_i(x))."""
    w_XL = np.exp(np.asarray(case.process.log_weights(jnp.asarray(law.sequences_Xn))))
    x, z, p = [], [], []
    for x_L, w_L, mass in zip(law.sequences_Xn, w_XL, law.probability_X, strict=True):
        for mask in itertools.product((False, True), repeat=law.length):
            x, z = [*x, x_L], [*z, np.where(mask, MASK, x_L)]
            p.append(mass * np.prod(np.where(mask, t**w_L, -np.expm1(w_L * np.log(t)))))
    return np.asarray(x), np.asarray(z, np.int32), np.asarray(p)


def fine_times(length):
    """Closer to t = 0 than the battery's own times: a token with w = 0.3 is still masked there in 3 of 10^6 texts."""
    del length
    u_J, weight_J = oracle.quadrature(64)
    return u_J**1.6, 1.6 * u_J**0.6 * weight_J


def path_kl(h: float, g: float, p_K: np.ndarray, x: int) -> float:
    """Divergence of the jump rates out of a mask, h 1[v = x] of the text and g p_v of the model, from its definition."""
    true_K, model_K = h * np.eye(TOKENS)[x], g * p_K
    return float(sum(m - r + (r * np.log(r / m) if r else 0.0) for r, m in zip(true_K, model_K, strict=True)))


def gap(case, law):
    """What the best v and p pay beyond the entropy, in numpy: the rates' path divergence at every time, mask and text."""
    x_XL, w_XL, total = law.sequences_Xn, np.exp(np.reshape(case.process.log_w, (-1, law.length))), 0.0
    for t, weight in zip(*fine_times(law.length), strict=True):
        for mask in map(np.asarray, itertools.product((False, True), repeat=law.length)):
            chance_X = law.probability_X * np.prod(np.where(mask, t**w_XL, -np.expm1(w_XL * np.log(t))), axis=1)
            for revealed in {tuple(x_L[~mask]) for x_L in x_XL}:
                fits_X = chance_X * (x_XL[:, ~mask] == revealed).all(axis=1)
                for i in np.flatnonzero(mask) if fits_X.sum() > 0 else ():
                    rate_K = np.bincount(x_XL[:, i], fits_X * w_XL[:, i], TOKENS) / fits_X.sum()
                    nats_X = [
                        path_kl(w / t, rate_K.sum() / t, rate_K / rate_K.sum(), x) for w, x in zip(w_XL[:, i], x_XL[:, i], strict=True)
                    ]
                    total += weight * float(fits_X @ np.asarray(nats_X))
    return total - law.entropy


def table_case(kind: str, spread: float, law=LAW) -> TableCase:
    """log w uniform on [-spread, spread] for each: position, own token, pair of these, or position of each text."""
    rng, x_XL, at_L = np.random.default_rng(7), law.sequences_Xn, np.arange(law.length)
    log_w_XL = {
        "position": np.broadcast_to(rng.uniform(-1, 1, law.length), x_XL.shape),
        "own token": rng.uniform(-1, 1, TOKENS)[x_XL],
        "position and own token": rng.uniform(-1, 1, (law.length, TOKENS))[at_L, x_XL],
        "text": rng.uniform(-1, 1, x_XL.shape),
    }[kind]
    process = Table(tuple((spread * log_w_XL).ravel().tolist()), tuple(law.probability_X.tolist()))
    return TableCase(f"{kind}/{spread}", process, None, pairs=all_masks, gap=gap, grid=fine_times)


# --- the bound -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", [LAW, battery.INDEPENDENT, battery.FULLY_DEPENDENT], ids=["dependent", "independent", "copies"])
def test_the_bound_has_the_enumerated_gap(law):
    """Rates of the whole text: a bound on every kind of text, above the entropy by what the definition of the rates gives."""
    case = table_case("text", 1.2, law)
    assert not is_tight(case.process) and not case.process.boundary.any
    nats, loose = expected_nats(case, law), gap(case, law)
    assert nats == pytest.approx(law.entropy + loose, abs=1e-6)
    assert loose > (0.01 if law is LAW else 1e-5 if law is battery.FULLY_DEPENDENT else -1e-6)


SPREADS, GAPS = (0.3, 0.7, 1.2), (0.00188, 0.01010, 0.02724)  # as in docs/processes.md


def test_rates_of_position_and_own_token_are_tight_and_those_of_the_text_are_not():
    """The gap grows as the rates differ more between texts: the times of masks tell about x, and the reverse chain forgets them."""
    for kind in ("position", "own token", "position and own token"):
        assert expected_nats(table_case(kind, 1.0), LAW) == pytest.approx(LAW.entropy, abs=1e-6)
    gaps = [expected_nats(table_case("text", spread), LAW) - LAW.entropy for spread in SPREADS]
    np.testing.assert_allclose(gaps, GAPS, atol=5e-5)
    plain = dataclasses.replace(table_case("text", 0.7), log_likelihood=toy.masked_likelihood(TOKENS, MASK))
    unweighted = expected_nats(plain, LAW, toy.ToyDenoiser(LAW, VOCAB, plain.log_likelihood))
    assert unweighted > LAW.entropy + gaps[1] + 0.01, "the best p is not the posterior that ignores the rates"


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float64, 1e-9), (jnp.float32, 2e-5)])
def test_pointwise_loss_is_the_path_kl(dtype, tolerance):
    """Any w, v and p: what the rates of all jumps out of a mask diverge. A revealed token costs nothing, whatever its rates."""
    rng, t = np.random.default_rng(0), 0.3
    logits_NV, log_w_N, log_v_N = 3 * rng.normal(size=(TOKENS, VOCAB)), rng.normal(size=TOKENS), rng.normal(size=TOKENS)
    p_NK = np.exp(logits_NV[:, :TOKENS]) / np.exp(logits_NV[:, :TOKENS]).sum(axis=1, keepdims=True)
    truth = [path_kl(np.exp(w) / t, np.exp(v) / t, p_K, x) for x, (w, v, p_K) in enumerate(zip(log_w_N, log_v_N, p_NK, strict=True))]
    process, x_N = LoMdm(VOCAB, MASK, (BOS,)), jnp.arange(TOKENS)
    with jax.enable_x64(dtype == jnp.float64):
        rates = jnp.asarray(log_w_N, dtype), jnp.asarray(log_v_N, dtype)
        nats = process.loss(jnp.asarray(logits_NV, dtype), x_N, jnp.full(TOKENS, MASK), jnp.full(TOKENS, t, dtype), *rates)
        shown = process.loss(jnp.asarray(logits_NV, dtype), x_N, x_N, jnp.zeros(TOKENS, dtype), *rates)
    assert nats.dtype == dtype and (np.asarray(shown) == 0).all() and min(truth) > 0.1
    np.testing.assert_allclose(nats, truth, rtol=tolerance)


def network(seed=0, **values):
    """LoMdm with random weights, whose rates differ."""
    process = LoMdm(VOCAB, MASK, (BOS,), width=4, **values)
    params = init_params(process, jax.random.key(seed))
    out = jax.random.normal(jax.random.key(seed + 1), (2, 4))
    return process, {name: {**leaf, "out": out[i]} for i, (name, leaf) in enumerate(params.items())}


def _logits(z_NL):
    """A denoiser that knows nothing: random logits for every z."""
    return 2 * jax.random.normal(jax.random.key(7), (VOCAB, VOCAB, 2, VOCAB), jnp.float32)[z_NL[:, 0], z_NL[:, 1]]


class _Denoiser(toy.ToyDenoiser):
    def hidden(self, z_BL, t_BL, hint_BLI=None):
        return _logits(z_BL)


def test_the_bound_is_not_below_the_likelihood_of_the_model_that_samples():
    """Arbitrary w, v and p: the exact -log p(x) of the reverse chain in many steps, by products of its transition matrices."""
    process, params = network()
    process = process.with_params(params)
    ids = jnp.asarray(np.where(STATES == TOKENS, MASK, STATES))
    p_ZLK = np.asarray(jax.nn.softmax(_logits(ids)[..., :TOKENS]), np.float64)
    chance_Z = (STATES == TOKENS).all(axis=1).astype(float)
    times = np.linspace(1, 0, 801) ** 2
    middle_TZL = (times[:-1] + times[1:])[:, None, None] / 2 * np.ones((1, *STATES.shape))
    v = np.exp(np.asarray(jax.vmap(process.log_model_weights, (None, 0))(ids, jnp.asarray(middle_TZL, jnp.float32)), np.float64))
    for t, s, v_ZL in zip(times[:-1], times[1:], v, strict=True):
        stay_ZL = (s / t) ** v_ZL
        step_ZZ = np.ones((len(STATES), len(STATES)))
        for i in range(2):
            to_ZS = np.pad((1 - stay_ZL[:, i, None]) * p_ZLK[:, i], ((0, 0), (0, 1)))
            to_ZS[:, TOKENS] = stay_ZL[:, i]
            to_ZS = np.where((STATES[:, i] == TOKENS)[:, None], to_ZS, np.eye(TOKENS + 1)[STATES[:, i]])
            step_ZZ *= to_ZS[:, STATES[:, i]]
        chance_Z = chance_Z @ step_ZZ
    model_X = chance_Z[index_of(LAW.sequences_Xn, TOKENS + 1)]
    assert model_X.sum() == pytest.approx(1, abs=1e-5), "no mask is left"
    exact = -float(LAW.probability_X @ np.log(model_X))
    bound = expected_nats(Case("lomdm", process, None, pairs=all_masks, grid=fine_times), LAW, _Denoiser(LAW, VOCAB))
    assert LAW.entropy < exact < bound


# --- the gradient in the rates -------------------------------------------------------------------------------------------------------


class _Fixed(PerRow):
    def draw(self, key, row_B, global_batch, length):
        return jnp.full((row_B.shape[0], length), 0.4), jnp.ones((row_B.shape[0], length))


def test_two_draws_give_the_gradient_in_the_rates():
    """Through the whole objective: the mean over steps is the gradient of the enumerated loss, the dependence of z on w included."""
    process, params = network()
    x_NL, z_NL, _ = map(jnp.asarray, all_masks(Case("", process.with_params(params), None), LAW, 0.4))
    p_N, t_NL = LAW.probability_X[index_of(x_NL, TOKENS)], jnp.full(x_NL.shape, 0.4)

    def enumerated(params, reinforced=True):
        now = process.with_params(params)
        chance_N = jnp.exp(now.log_q(z_NL, x_NL, t_NL).sum(axis=1))
        nats_N = now.loss(_logits(z_NL), x_NL, z_NL, t_NL, *now.loss_inputs(x_NL, z_NL, t_NL)).sum(axis=1)
        return jnp.sum(p_N * (chance_N if reinforced else jax.lax.stop_gradient(chance_N)) * nats_N)

    def flat(tree):
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])

    truth, plain = flat(jax.grad(enumerated)(params)), flat(jax.grad(lambda params: enumerated(params, False))(params))
    rows, steps = 4096, 24
    batch, objective = batch_of(sample_joint(LAW, rows, seed=5)), Objective(process, _Fixed())

    def step(params, key):
        return objective.bind({"process": params})(_Denoiser(LAW, VOCAB), batch, key, rows)[0] / rows

    step = jax.jit(jax.grad(step))
    slopes = np.asarray([flat(step(params, key)) for key in jax.random.split(jax.random.key(6), steps)])
    error = np.abs(truth).max() / np.sqrt(rows) * 3 + slopes.std(axis=0, ddof=1) / np.sqrt(steps)
    assert (np.abs(slopes.mean(axis=0) - truth) < 4 * error).all() and error.max() < 0.1 * np.abs(truth).max()
    assert np.abs(plain - truth).max() > 0.05 * np.abs(truth).max()


def test_loss_and_gradients_are_finite_at_the_ends():
    process, params = network(strength=1e3)
    levels = jnp.asarray([0.0, 1e-30, 1e-6, 1 - 1e-6, 1.0])
    t, x, z = (a.reshape(-1, 1) for a in jnp.meshgrid(levels, jnp.arange(TOKENS), jnp.asarray([0, 1, 2, MASK]), indexing="ij"))
    logits = (1e4 * jax.random.normal(jax.random.key(0), (*t.shape, VOCAB))).astype(jnp.bfloat16)

    def total(logits, params):
        now = process.with_params(jax.tree.map(lambda leaf: 30 * leaf, params))
        return jnp.sum(now.loss(logits, x, z, t, *now.loss_inputs(x, z, t))) + jnp.sum(now.log_q(z, x, t))

    value, gradients = jax.value_and_grad(total, argnums=(0, 1))(logits, params)
    assert np.isfinite(float(value)) and all(np.isfinite(np.asarray(g, np.float32)).all() for g in jax.tree.leaves(gradients))


# --- the process ---------------------------------------------------------------------------------------------------------------------


def test_reverse_sampling_has_the_law_of_its_steps():
    """With a few steps from all masks, the exact v and p: the enumerated chain, which differs from the data's law."""
    case, rows = table_case("text", 1.0), 4096
    process, guess = case.process, case.denoiser(LAW)
    z_BL, times = process.prior(row_keys(jax.random.key(4), jnp.arange(rows)), 2), [1.0, 0.6, 0.0]
    ids, chance_Z = jnp.asarray(np.where(STATES == TOKENS, MASK, STATES)), (STATES == TOKENS).all(axis=1).astype(float)
    for n, (t, s) in enumerate(itertools.pairwise(times)):
        keys_B, t_BL = row_keys(jax.random.key(n), jnp.arange(rows)), jnp.full(z_BL.shape, t)
        z_BL = process.reverse_step(keys_B, guess.hidden(z_BL, t_BL), z_BL, t_BL, jnp.full(z_BL.shape, s))
        at_ZL = jnp.full(STATES.shape, t)
        p_ZLK = np.asarray(jax.nn.softmax(guess.hidden(ids, at_ZL)))[..., :TOKENS]
        stay_ZL = (s / t) ** np.exp(np.asarray(process.log_model_weights(ids, at_ZL)))
        step_ZZ = np.ones((len(STATES), len(STATES)))
        for i in range(2):
            to_ZS = np.concatenate([(1 - stay_ZL[:, i, None]) * p_ZLK[:, i], stay_ZL[:, i, None]], axis=1)
            to_ZS = np.where((STATES[:, i] == TOKENS)[:, None], to_ZS, np.eye(TOKENS + 1)[STATES[:, i]])
            step_ZZ *= to_ZS[:, STATES[:, i]]
        chance_Z = chance_Z @ step_ZZ
    counts_Z = np.bincount(index_of(to_states(np.asarray(z_BL)), TOKENS + 1), minlength=len(STATES))
    assert chi_square_sigmas(counts_Z, chance_Z) < 4
    assert chi_square_sigmas(counts_Z[index_of(LAW.sequences_Xn, TOKENS + 1)], LAW.probability_X) > 4, "the test can tell them apart"


START = Case("lomdm", LoMdm(VOCAB, MASK, (BOS,)), oracle.masked_kernel(TOKENS, *LINEAR))


@pytest.mark.parametrize(
    "test",
    [
        battery.test_case_is_a_process,
        battery.test_corruption_at_the_ends,
        battery.test_padding_is_untouched_and_carries_no_loss,
        battery.test_a_batch_is_its_rows,
        pytest.param(lambda case: battery.test_monte_carlo_is_unbiased(case, "stratified"), marks=pytest.mark.slow, id="monte carlo"),
    ],
    ids=lambda test: test.__name__,
)
def test_the_battery_on_the_process_as_training_starts(test):
    """All rates are 1: masked diffusion on the linear schedule, to the last bits of its loss."""
    test(START)


def test_training_starts_at_masked_diffusion():
    process = LoMdm(VOCAB, MASK, (BOS,))
    for params in (None, init_params(process, jax.random.key(0))):
        now = process.with_params(params)
        x_BL, z_BL, t_BL = jnp.asarray([[0, 1, 2]]), jnp.asarray([[MASK, 1, MASK]]), jnp.full((1, 3), 0.3)
        logits_BLV = jax.random.normal(jax.random.key(1), (1, 3, VOCAB))
        nats_BL = now.loss(logits_BLV, x_BL, z_BL, t_BL, *now.loss_inputs(x_BL, z_BL, t_BL))
        np.testing.assert_allclose(nats_BL, Masked(VOCAB, MASK, excluded=(BOS,)).loss(logits_BLV, x_BL, z_BL, t_BL), rtol=1e-6)
    assert hash(process) == hash(LoMdm(VOCAB, MASK, (BOS,))) and process.capabilities.own_flops > 0


def test_padding_is_read_as_the_end_of_a_row():
    process, params = network(pad_id=BOS)
    process, x_BL = process.with_params(params), jnp.asarray([[0, 2, 1, 1]])
    padded_BL, t_BL = jnp.pad(x_BL, ((0, 0), (0, 3)), constant_values=BOS), jnp.full((1, 7), 0.5)
    np.testing.assert_allclose(process.log_weights(padded_BL)[:, :4], process.log_weights(x_BL), rtol=1e-6)
    np.testing.assert_allclose(process.log_model_weights(padded_BL, t_BL)[:, :4], process.log_model_weights(x_BL, t_BL[:, :4]), rtol=1e-6)
    assert np.ptp(process.log_weights(x_BL)) > 0.1


@pytest.mark.parametrize(
    "values", [{"strength": 0.5}, {"strength": float("nan")}, {"reach": -1}, {"width": 0}, {"schedule_lr": 0.0}], ids=str
)
def test_values_out_of_range_are_refused_by_name(values):
    with pytest.raises(InputError, match=f"process lomdm: .*{next(iter(values))}"):
        LoMdm(VOCAB, MASK, **values)
