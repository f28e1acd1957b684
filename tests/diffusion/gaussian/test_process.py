"""The base process: its bound is tight, in continuous and discrete time; its noise; what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import Process, row_keys
from dlmjax.diffusion.gaussian import DiffusionLm, GaussianEmbedding, Plaid, Sed
from dlmjax.diffusion.oracle.gaussian import ExactDenoiser
from dlmjax.diffusion.process import init_params
from dlmjax.errors import InputError
from tests.diffusion.gaussian.battery import CASES, MASK, ONE, TABLE_1, TABLE_2, TOKENS, TWO, VOCAB, bound, make, posterior

every_case = pytest.mark.parametrize("name", CASES)


@every_case
def test_the_bound_of_the_exact_denoiser_is_the_entropy(name):
    """But for KL(q(z_1) || N(0, I)), which is what the battery's gamma_1 leaves, and for the sqrt path, which is
    noisy at t = 0, what is lost by a rounding that takes all tokens for equally likely."""
    with jax.enable_x64(True):
        process = CASES[name]()
        assert isinstance(process, Process)
        parts = bound(process, ONE)
        assert sum(parts.values()) == pytest.approx(ONE.entropy, abs=1e-6 if "/" in name and "plaid" not in name else 7e-6)
        assert sum(parts.values()) > ONE.entropy - 1e-6


def test_two_positions_and_two_dimensions():
    """Two positions that depend on each other: the bound lies above the entropy by what the reconstruction cannot see, which is little."""
    with jax.enable_x64(True):
        parts = bound(make(GaussianEmbedding, gamma_0=-5.0), TWO, nodes=40)
        assert sum(parts.values()) == pytest.approx(TWO.entropy, abs=3e-5)
        parts = bound(make(GaussianEmbedding, path="straight", gamma_0=-5.0, prediction="x0", dim=2), ONE, nodes=40)
        assert sum(parts.values()) == pytest.approx(ONE.entropy, abs=2e-5)


def test_the_discrete_bound_falls_to_the_continuous_one():
    with jax.enable_x64(True):
        totals = [sum(bound(make(GaussianEmbedding, prediction="eps", steps=steps), ONE).values()) for steps in (4, 16, 64)]
        assert totals[0] > totals[1] > totals[2] > ONE.entropy
        assert (totals[1] - ONE.entropy) / (totals[2] - ONE.entropy) > 3
        # Every prediction says the same, the mean of a step included.
        for prediction in ("mu", "x0", "logits"):
            assert sum(bound(make(GaussianEmbedding, prediction=prediction, steps=16), ONE).values()) == pytest.approx(totals[1], rel=1e-9)


def test_the_variance_of_the_reverse_step_is_part_of_the_discrete_bound():
    """The KL of a step whose variance is not that of the posterior, by quadrature over z_s; fixed_small is its simple form."""
    with jax.enable_x64(True):
        shared = {"steps": 8, "prediction": "x0"}
        t, s = 0.5, 0.375
        x, z, guess = jnp.asarray([1]), jnp.asarray([[0.4]]), 0.1
        lattice = np.linspace(-9, 9, 90001)
        nats = {}
        for variance in ("fixed_small", "fixed_large", "learned_range"):
            process = make(GaussianEmbedding, **shared, variance=variance)
            output = jnp.asarray([[guess, 0.2] if variance == "learned_range" else [guess]])
            assert process.output.columns == output.shape[1]
            nats[variance] = float(process.loss(output, x, z, jnp.asarray([t]))[0])
            now, to = process.curve.at(t), process.curve.at(s)
            beta = 1 - float(now.a / to.a) ** 2
            small = beta * float(to.s / now.s) ** 2
            wide = {"fixed_small": small, "fixed_large": beta, "learned_range": np.exp(0.6 * np.log(beta) + 0.4 * np.log(small))}[variance]

            def log_density(x0, spread, now=now, to=to, beta=beta):
                mean = float(now.a / to.a) * float(to.s / now.s) ** 2 * 0.4 + float(to.a) * beta / float(now.s) ** 2 * x0
                return -((lattice - mean) ** 2) / (2 * spread) - 0.5 * np.log(2 * np.pi * spread)

            q, p = log_density(TABLE_1[1, 0], small), log_density(guess, wide)
            assert nats[variance] == pytest.approx(8 * np.sum(np.exp(q) * (q - p)) * (lattice[1] - lattice[0]), rel=1e-6)
        assert len({round(value, 6) for value in nats.values()}) == 3


def test_levels_are_the_steps_of_the_chain():
    process = make(GaussianEmbedding, steps=4)
    t = jnp.asarray([[0.0, 1e-6, 0.25, 0.26, 0.9999, 1.0]])
    np.testing.assert_allclose(process.time_domain.quantize(t, t > -1), [[0.25, 0.25, 0.25, 0.5, 1, 1]])
    np.testing.assert_array_equal(make(GaussianEmbedding).time_domain.quantize(t, t > -1), t)


@every_case
def test_marginals_and_padding(name):
    """Mean and variance of z_t given x, each row from its own key, padding at 0."""
    process = CASES[name]()
    x_BL = jnp.tile(jnp.asarray([[0, 1, 2, 2]]), (20000, 1))
    valid_BL = jnp.asarray([[True, True, True, False]]) | jnp.zeros(x_BL.shape, bool)
    keys_B = row_keys(jax.random.key(1), jnp.arange(20000))
    t_BL = jnp.full(x_BL.shape, 0.3)
    z_BLE = process.corrupt(keys_B, x_BL, t_BL, valid_BL)
    assert z_BLE.dtype == jnp.float32 and z_BLE.shape == (20000, 4, 1)
    assert (z_BLE[:, 3] == 0).all()
    now = process.curve.at(0.3)
    np.testing.assert_allclose(z_BLE[:, :3, 0].mean(axis=0), float(now.a) * TABLE_1[:3, 0], atol=5 * float(now.s) / 141)
    np.testing.assert_allclose(z_BLE[:, :3, 0].std(axis=0), float(now.s), rtol=0.03)
    few = process.corrupt(keys_B[7:9], x_BL[7:9], t_BL[7:9], valid_BL[7:9])
    np.testing.assert_allclose(few, z_BLE[7:9], atol=1e-6)
    # From 0.3 on to 0.8 in one more step: the marginal at 0.8.
    later = process.forward_step(row_keys(jax.random.key(2), jnp.arange(20000)), z_BLE, t_BL, jnp.full_like(t_BL, 0.8), valid_BL)
    now = process.curve.at(0.8)
    np.testing.assert_allclose(later[:, :3, 0].mean(axis=0), float(now.a) * TABLE_1[:3, 0], atol=5 * float(now.s) / 141)
    np.testing.assert_allclose(later[:, :3, 0].std(axis=0), float(now.s), rtol=0.03)
    assert (later[:, 3] == 0).all()


def _kolmogorov(draws, mean, deviation):
    """Largest distance of the empirical from the normal distribution function, in units of 1 / sqrt(n)."""
    cdf = np.sort(np.asarray(jax.scipy.stats.norm.cdf((np.sort(np.asarray(draws)) - mean) / deviation)))
    place = np.arange(len(cdf))
    return max(np.max(cdf - place / len(cdf)), np.max((place + 1) / len(cdf) - cdf)) * np.sqrt(len(cdf))


@every_case
def test_a_reverse_step_with_the_true_token_leads_to_the_earlier_marginal(name):
    process = CASES[name]()
    rows = 20000
    certain = ExactDenoiser.of(type(ONE)(np.asarray([1e-30, 1.0, 1e-30])), process)
    x_BL, t_BL, s_BL = jnp.ones((rows, 1), jnp.int32), jnp.full((rows, 1), 0.7), jnp.full((rows, 1), 0.4)
    z_BLE = process.corrupt(row_keys(jax.random.key(1), jnp.arange(rows)), x_BL, t_BL)
    output = certain.hidden(z_BLE, process.time_embedding_input(t_BL))
    to = process.curve.at(0.4)
    step = process.reverse_step(row_keys(jax.random.key(2), jnp.arange(rows)), output, z_BLE, t_BL, s_BL)
    assert _kolmogorov(step[:, 0, 0], float(to.a) * TABLE_1[1, 0], float(to.s)) < 2.0
    # At t = 1 too, where some outputs hardly tell the clean vector.
    z_BLE = process.prior(row_keys(jax.random.key(3), jnp.arange(rows)), 1)
    assert _kolmogorov(z_BLE[:, 0, 0], 0.0, 1.0) < 2.0
    output = certain.hidden(z_BLE, process.time_embedding_input(jnp.ones_like(t_BL)))
    step = process.reverse_step(row_keys(jax.random.key(4), jnp.arange(rows)), output, z_BLE, jnp.ones_like(t_BL), s_BL)
    assert jnp.isfinite(step).all()
    assert _kolmogorov(step[:, 0, 0], float(to.a) * TABLE_1[1, 0], float(to.s)) < 2.5


@every_case
def test_special_ids_have_no_probability(name):
    """Whatever the network says of the mask and wherever its embedding lies."""
    process = CASES[name]()
    assert process.excluded == (MASK,) and getattr(process, "mask_id", None) is None
    z_BLE = jnp.full((64, 2, 1), float(TABLE_1[MASK, 0]))
    output = jnp.zeros((64, 2, process.output.columns)).at[..., -1].set(50.0)
    keys_B = row_keys(jax.random.key(0), jnp.arange(64))
    assert (process.states.to_tokens(z_BLE) != MASK).all()
    assert (process.decode(keys_B, output, z_BLE) != MASK).all()
    if process.prediction == "logits":
        far = output.at[..., -1].set(-50.0)
        t_BL = jnp.full((64, 2), 0.5)
        np.testing.assert_array_equal(process.clean(output, z_BLE, t_BL), process.clean(far, z_BLE, t_BL))


@every_case
def test_finite_at_both_ends(name):
    """Loss, boundary and gradients to what is learned and to the output, in float32, at t = 0 and 1; the output may be bfloat16."""
    process = CASES[name]()
    x, t = jnp.asarray([0, 1, 2, 1]), jnp.asarray([0.0, 1e-7, 1 - 1e-7, 1.0])
    eps = jnp.asarray([[0.3], [-1.0], [0.5], [1.2]])
    for dtype in (jnp.float32, jnp.bfloat16):
        output = jnp.ones((4, process.output.columns), dtype)

        def total(process, output):
            now = process.curve.at(t).over()
            z = now.a * process.table[x] + now.s * eps
            nats = process.loss(output, x, z, t)
            assert nats.dtype == jnp.float32 and nats.shape == (4,)
            return jnp.sum(nats + process.prior_nats(x) + process.reconstruction(output, x, z))

        value, gradient = jax.value_and_grad(total, argnums=(0, 1))(process, output)
        assert jnp.isfinite(value) and all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_the_exact_denoiser_is_the_posterior():
    with jax.enable_x64(True):
        process = make(GaussianEmbedding, dim=2, output_prior=True)
        denoiser = ExactDenoiser.of(TWO, process)
        z = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2, 2)))
        t = jnp.full((6, 2), 0.4)
        now = process.curve.at(0.4)
        truth = posterior(TWO, np.asarray(z), float(now.a), float(now.s), TABLE_2)
        belief = jax.nn.softmax(process.belief(denoiser.hidden(z, t), z, t), axis=-1)
        np.testing.assert_allclose(belief[..., :TOKENS], truth, rtol=1e-9)
        assert (belief[..., MASK] == 0).all()
        np.testing.assert_allclose(process.clean(denoiser.hidden(z, t), z, t), truth @ TABLE_2[:TOKENS], rtol=1e-9)
        # Without the output prior the network says the same in full.
        plain = make(GaussianEmbedding, dim=2, output_prior=False)
        np.testing.assert_allclose(plain.clean(ExactDenoiser.of(TWO, plain).hidden(z, t), z, t), truth @ TABLE_2[:TOKENS], rtol=1e-9)


def test_what_is_learned():
    process = GaussianEmbedding(7, 6, dim=5, norm=2.0, rounding="separate")
    params = init_params(process, jax.random.key(0))
    assert jax.tree.structure(params) == jax.tree.structure(process.parameters)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    np.testing.assert_allclose(jnp.linalg.norm(process.with_params(jax.tree.map(lambda a: 3 * a, params)).table, axis=-1), 2, rtol=1e-5)
    assert process.with_params(()) is process and process.with_params(params).params is params
    with pytest.raises(InputError, match="requires embeddings"):
        _ = process.table
    logits, vectors = GaussianEmbedding(7), GaussianEmbedding(7, prediction="v")
    assert (logits.output.columns, vectors.output.columns, logits.states.dim) == (7, 16, 16)
    frozen = Sed(7, 6)
    assert frozen.parameters["embedding"].kind == "vector"
    frozen = frozen.with_params(init_params(frozen, jax.random.key(0)))
    gradient = jax.grad(lambda process: jnp.sum(process.table))(frozen)
    assert (gradient.params["embedding"] == 0).all() and Sed(7, 6, dim=25).norm == 5
    np.testing.assert_allclose(jnp.linalg.norm(frozen.table, axis=-1), 4, rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prediction": "noise"}, "prediction is 'noise'"),
        ({"prediction": "mu"}, "set steps"),
        ({"variance": "learned_range"}, "requires steps"),
        ({"rounding": "up"}, "rounding is 'up'; choose one of"),
        ({"path": "qubic"}, "unknown path"),
        ({"dim": 0}, "must be positive"),
        ({"excluded": (9,)}, "outside the vocabulary"),
    ],
)
def test_bad_values_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        GaussianEmbedding(VOCAB, **values)
    with pytest.raises(InputError, match=message):
        DiffusionLm(VOCAB, **values)


def test_plaid_refuses_what_it_is_not():
    with pytest.raises(InputError, match="learns its path"):
        Plaid(VOCAB, path="cosine")
    with pytest.raises(InputError, match="requires prediction 'logits'"):
        Plaid(VOCAB, prediction="eps")
    with pytest.raises(InputError, match="units"):
        Plaid(VOCAB, units=0)
