"""Plaid: the bound widens to the entropy, the ends learn the bound, the shape learns to lower the variance and nothing else."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import Objective
from dlmjax.diffusion.gaussian import Plaid
from dlmjax.diffusion.gaussian.plaid import Learned
from dlmjax.diffusion.oracle.gaussian import ExactDenoiser
from dlmjax.diffusion.process import init_params
from tests.diffusion.battery import batch_of, sample_joint
from tests.diffusion.gaussian.battery import FREE, MASK, ONE, TABLE_1, VOCAB, bound, expected, make


def _network(units=4, seed=0):
    weight, slope, centre = np.random.default_rng(seed).normal(size=(3, units + 1))
    return {"weight": jnp.asarray(weight), "slope": jnp.asarray(slope[:units] + 2), "centre": jnp.asarray(centre[:units])}


def test_the_bound_falls_to_the_entropy_as_gamma_widens():
    with jax.enable_x64(True):
        gaps = []
        for ends in ((-2.0, 4.0), (-3.0, 6.0), (-9.0, 12.0)):
            process = make(Plaid, **FREE, gamma_0=ends[0], gamma_1=ends[1], learn_schedule=False)
            gaps.append(sum(bound(process, ONE).values()) - ONE.entropy)
        assert gaps[0] > gaps[1] > gaps[2] > -1e-6
        assert gaps[0] > 1e-4 and gaps[1] < 1e-3 and abs(gaps[2]) < 1e-6


def test_the_shape_is_a_distribution_function_and_knows_its_derivatives():
    with jax.enable_x64(True):
        path = Learned(jnp.asarray([-3.0, 6.0]), _network())
        t = jnp.linspace(0, 1, 101)
        shape, first, second = path.shape(t)
        np.testing.assert_allclose([shape[0], shape[-1]], [0, 1], atol=1e-12)
        assert (first > 0).all()
        np.testing.assert_allclose(first, jax.vmap(jax.grad(lambda t: path.shape(t)[0]))(t), rtol=1e-9)
        np.testing.assert_allclose(second, jax.vmap(jax.grad(lambda t: path.shape(t)[1]))(t), rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(path.gamma(t), -3 + 9 * shape)
        np.testing.assert_allclose(path.gamma_prime(t), 9 * first)
    process = Plaid(VOCAB)
    start = process.with_params(init_params(process, jax.random.key(0))).curve
    t = jnp.linspace(0, 1, 101)
    assert float(jnp.max(jnp.abs(start.shape(t)[0] - t))) < 0.05  # nearly straight before it has learned
    extreme = jax.tree.map(lambda a: 60 * a, init_params(process, jax.random.key(0))["schedule"]) | {"slope": jnp.full(16, 6.0)}
    values = jax.jacrev(lambda n: Learned(jnp.asarray([-3.0, 6.0]), n).log_rate(jnp.linspace(0, 1, 11)))(extreme)
    assert all(jnp.isfinite(v).all() for v in jax.tree.leaves(values))


def _noised(process, t, x, eps):
    now = process.curve.at(t).over()
    return now.a * process.table[x] + now.s * eps


def _clumsy(z, clock):
    """A network that is not exact."""
    return jnp.concatenate([jnp.sin(2 * z), 0.3 * z * clock[..., None], jnp.cos(z) - 1, 0 * z], axis=-1)


def _ready(network, ends=(-3.0, 6.0)):
    process = Plaid(VOCAB, MASK, dim=1, **FREE, units=4)
    return process.with_params({"embedding": jnp.asarray(TABLE_1), "ends": jnp.asarray(ends), "schedule": network})


NODES = 4000
T = (np.arange(NODES) + 0.5) / NODES


def _moments(network):
    """Mean and second moment of the loss over t, eps ~ three values and x, by a fine sum; an independent way to the truth."""
    process = _ready(network)
    t = jnp.asarray(np.tile(T, 9))
    x = jnp.asarray(np.repeat([0, 1, 2], 3 * NODES))
    eps = jnp.asarray(np.tile(np.repeat([-1.2, 0.1, 0.9], NODES), 3))[:, None]
    z = _noised(process, t, x, eps)
    nats = process.loss(_clumsy(z, process.time_embedding_input(t)), x, z, t)
    return jnp.mean(nats), jnp.mean(nats**2), nats


def test_the_gradient_of_the_shape_is_that_of_the_variance():
    """Against finite differences of the second moment; the bound's own gradient in the shape is cut off, its mean does not depend on it."""
    with jax.enable_x64(True):
        network = _network()
        gradient = jax.grad(lambda n: _moments(n)[0])(network)
        moments = jax.jit(lambda n: _moments(n)[:2])
        for leaf in network:
            for i in range(2):
                moved = [network | {leaf: network[leaf].at[i].add(step)} for step in (1e-4, -1e-4)]
                (up, up2), (down, down2) = (moments(n) for n in moved)
                slope = (up2 - down2) / 2e-4 / math.log(VOCAB) ** 2
                assert float(gradient[leaf][i]) == pytest.approx(float(slope), rel=1e-4, abs=1e-6), leaf
                assert abs(float(up - down) / 2e-4) < 1e-5 * max(1, abs(float(slope)))


def test_descending_that_gradient_lowers_the_variance_and_leaves_the_mean():
    with jax.enable_x64(True):
        network = init_params(Plaid(VOCAB, dim=1, units=4), jax.random.key(0))["schedule"]
        network = jax.tree.map(lambda a: a.astype(jnp.float64), network)
        step = jax.jit(jax.grad(lambda n: _moments(n)[0]))
        before = _moments(network)
        for _ in range(60):
            slope = step(network)
            size = math.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(slope)))
            network = jax.tree.map(lambda a, g, size=size: a - 0.05 * g / size, network, slope)
        after = _moments(network)
        assert float(after[0]) == pytest.approx(float(before[0]), rel=1e-4)
        assert float(jnp.var(after[2])) < 0.75 * float(jnp.var(before[2]))


def test_the_gradient_of_the_ends_is_that_of_the_bound():
    """Through noise, loss, clock, prior and reconstruction, against differences of the integral."""
    with jax.enable_x64(True):
        network = _network()

        def total(ends):
            process = _ready(network, ends)
            t = jnp.asarray(np.tile(T, 9))
            x = jnp.asarray(np.repeat([0, 1, 2], 3 * NODES))
            eps = jnp.asarray(np.tile(np.repeat([-1.2, 0.1, 0.9], NODES), 3))[:, None]
            z = _noised(process, t, x, eps)
            zero = jnp.zeros(len(x))
            z0 = _noised(process, zero, x, eps)
            nats = process.loss(_clumsy(z, process.time_embedding_input(t)), x, z, t) + process.prior_nats(x)
            return jnp.mean(nats + process.reconstruction(_clumsy(z0, process.time_embedding_input(zero)), x, z0))

        ends = jnp.asarray([-3.0, 6.0])
        gradient = jax.jit(jax.grad(total))(ends)
        value = jax.jit(total)
        for i in range(2):
            slope = (value(ends.at[i].add(1e-5)) - value(ends.at[i].add(-1e-5))) / 2e-5
            assert float(gradient[i]) == pytest.approx(float(slope), rel=1e-6)
        assert abs(float(gradient[0])) > 1e-3


def test_the_value_of_the_loss_is_the_plain_bound():
    """Half of e^-gamma gamma' times the squared error, whatever the schedule carries besides; the reported nats are the same numbers."""
    network = _network()
    process = _ready(jax.tree.map(lambda a: a.astype(jnp.float32), network))
    process = jax.tree.map(lambda a: a.astype(jnp.float32), process)
    t, x = jnp.linspace(0, 1, 6), jnp.asarray([0, 1, 2, 0, 1, 2])
    z = _noised(process, t, x, jnp.linspace(-1, 1, 6)[:, None])
    logits = _clumsy(z, t)
    error = jnp.sum((process.table[x] - process.clean(logits, z, t)) ** 2, axis=-1)
    curve = process.curve
    np.testing.assert_allclose(process.loss(logits, x, z, t), jnp.exp(-curve.gamma(t)) * curve.gamma_prime(t) * error / 2, rtol=1e-6)


def test_under_the_objective_everything_learns():
    """The exact denoiser's batch mean is near the entropy, and every leaf of params["process"] has a gradient through it."""
    rows = 65536
    process = Plaid(VOCAB, MASK, dim=1, **FREE, gamma_0=-6.0, gamma_1=8.0, units=4)
    params = init_params(process, jax.random.key(0)) | {"embedding": jnp.asarray(TABLE_1, jnp.float32)}
    batch = batch_of(np.asarray(sample_joint(ONE, rows, 0)))
    objective = Objective(process)
    denoiser = ExactDenoiser.of(ONE, process.with_params(params))
    grad = jax.value_and_grad(lambda weights: objective.bind(weights)(denoiser, batch, jax.random.key(1), rows), has_aux=True)
    (_, parts), gradient = jax.jit(grad)({"process": params})
    assert objective.trains_bound
    assert objective.report(parts)["nelbo"] == pytest.approx(ONE.entropy, abs=0.08)  # four standard errors
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert jnp.isfinite(leaf).all() and (leaf != 0).any(), path


def test_the_clock_tells_the_noise():
    process = _ready(_network(), ends=(-2.0, 5.0))
    t = jnp.linspace(0, 1, 5)
    np.testing.assert_allclose(process.time_embedding_input(t) * 9 - 3, process.curve.at(t).gamma, rtol=1e-5, atol=1e-5)
    now, _ = process.input_points(process.time_embedding_input(t))
    np.testing.assert_allclose(now.a[:, 0], process.curve.at(t).a, rtol=1e-5)
    flat = make(Plaid, **FREE, learn_schedule=False)
    np.testing.assert_allclose(flat.time_embedding_input(t), t, atol=1e-6)
    assert set(flat.params) == {"embedding"} and set(flat.parameters) == {"embedding"}
    assert flat.parameters["embedding"].lr_multiplier == 1.0 and flat.scalars() == {}


def test_the_schedule_is_watched():
    process = _ready(_network(), ends=(-2.0, 5.0))
    watched = {name: float(value) for name, value in process.scalars().items()}
    assert watched["gamma_0"] == -2 and watched["gamma_1"] == 5
    assert watched["gamma_half"] == pytest.approx(float(process.curve.at(jnp.float32(0.5)).gamma))
    assert Plaid(VOCAB).scalars() == {}


def test_expected_is_the_integral():
    """The battery's own quadrature: moments of z, exactly."""
    with jax.enable_x64(True):
        mean = ONE.probability_X @ TABLE_1[:3, 0]
        square = ONE.probability_X @ TABLE_1[:3, 0] ** 2
        assert expected(lambda x, z: z[..., 0], ONE, 0.8, 0.6, TABLE_1) == pytest.approx(0.8 * mean, rel=1e-12)
        assert expected(lambda x, z: z[..., 0] ** 2, ONE, 0.8, 0.6, TABLE_1) == pytest.approx(0.64 * square + 0.36, rel=1e-12)
