"""CompleteP: the multipliers of its table, and activations that stay level over width and depth after some steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.models import Execution, build_network
from tests.models import tiny

BASE = dict(completep_width=32, completep_depth=2)
SIZES = {"base": (32, 2), "wide": (128, 2), "deep": (32, 8)}
STEPS, RATE = 6, 1e-2


def test_multipliers_are_the_table():
    network = build_network(tiny.spec(width=128, depth=8, heads=16, ffn=192, time_input="adaln", **BASE))
    rate, decay, epsilon = network.lr_multipliers, network.wd_multipliers, network.eps_multipliers
    assert rate["layers"]["query"]["kernel"] == 0.25 and decay["layers"]["query"]["kernel"] == 4.0
    assert epsilon["layers"]["query"]["kernel"] == epsilon["layers"]["mlp_norm"]["scale"] == 1 / 16
    assert rate["embedding"]["table"] == rate["head"]["kernel"] == rate["norm"]["scale"] == decay["head"]["kernel"] == 1.0
    assert epsilon["embedding"]["table"] == epsilon["head"]["kernel"] == 0.25
    # Their fan-in is the time width, which does not grow.
    assert rate["layers"]["modulation"]["kernel"] == rate["time"]["second"]["kernel"] == 1.0


@pytest.mark.parametrize("changes", [{}, BASE], ids=["off", "at the base size"])
def test_no_transfer_changes_nothing(changes):
    network, plain = build_network(tiny.spec(**changes)), build_network(tiny.spec())
    for tree in (network.lr_multipliers, network.wd_multipliers, network.eps_multipliers):
        assert set(jax.tree.leaves(tree)) == {1.0}
    data, key = jax.tree.map(jnp.asarray, tiny.batch()), jax.random.key(0)
    losses = [tiny.loss_of(n)(n.init(key), data, key)[0] for n in (network, plain)]
    assert float(losses[0]) == float(losses[1])


def coordinates(width, depth, transfer):
    """RMS of the residual stream and of the logits' change after a few Adam steps on one batch."""
    spec = tiny.spec(width=width, depth=depth, heads=width // 8, kv_heads=width // 8, ffn=2 * width, **(BASE if transfer else {}))
    network = build_network(spec, Execution())
    data = jax.tree.map(jnp.asarray, tiny.batch())
    loss = tiny.loss_of(network)

    def outputs(params):
        denoiser = network.bind(params, data["segments"], data["positions"])
        hidden = denoiser.hidden(data["tokens"], jnp.full(data["tokens"].shape, 0.5))
        stream = denoiser._layers(params["embedding"]["table"][data["tokens"]].reshape(-1, width), None, denoiser._rows)
        return stream, denoiser.logits(hidden)

    @jax.jit
    def step(params, first, second, n):
        gradients = jax.grad(lambda p: loss(p, data, jax.random.key(0))[0] / data["tokens"].size)(params)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, gradients)
        second = jax.tree.map(lambda v, g: 0.95 * v + 0.05 * g * g, second, gradients)

        def update(p, m, v, rate, epsilon):
            return p - RATE * rate * (m / (1 - 0.9**n)) / (jnp.sqrt(v / (1 - 0.95**n)) + 1e-8 * epsilon)

        return jax.tree.map(update, params, first, second, network.lr_multipliers, network.eps_multipliers), first, second

    params = start = network.init(jax.random.key(0))
    first = second = jax.tree.map(jnp.zeros_like, params)
    for n in range(1, STEPS + 1):
        params, first, second = step(params, first, second, n)
    stream, logits = jax.jit(outputs)(params)
    change = logits - jax.jit(outputs)(start)[1]
    return np.array([float(jnp.sqrt(jnp.mean(x**2))) for x in (stream, change)])


@pytest.mark.parametrize("size", ["wide", pytest.param("deep", marks=pytest.mark.slow)])
def test_coordinate_check(size):
    """Level within 40 % over four times the width and the depth; without CompleteP they drift by three times at least."""
    base = coordinates(*SIZES["base"], transfer=True)
    drift = np.abs(np.log(coordinates(*SIZES[size], transfer=True) / base))
    assert drift.max() < np.log(1.4), np.exp(drift)
    plain = np.abs(np.log(coordinates(*SIZES[size], transfer=False) / base))
    assert plain.max() > np.log(3.0), np.exp(plain)
