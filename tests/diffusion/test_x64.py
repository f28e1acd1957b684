"""Everything that a process, a schedule, a law of times and a weighting compute is traced with float64 switched on (JAX_ENABLE_X64), as
notebooks and exact checks do. A loop whose carry changes its type, or an array of a type that does not fit, is then an error.

Nothing is compiled: shapes alone go through, under a real network, so all processes cost some seconds.
"""

import functools

import jax
import jax.numpy as jnp
import pytest

from dlmjax.diffusion import Objective, any_order_nats, make_schedule, make_times, make_weighting, nats_at, row_keys
from dlmjax.diffusion.capabilities import make_named
from dlmjax.diffusion.process import bind_process, init_params
from dlmjax.diffusion.registry import PROCESSES, SCHEDULES, TIMES, WEIGHTINGS, WITHIN_ROWS
from dlmjax.models import Execution, build_network
from tests.models.tiny import spec
from tests.sampling.test_every_process import LENGTH, VOCAB

ROWS = 3
KINDS = {
    "gaussian": ("simple", "end_to_end", "anchor"),
    "uniform": ("clipped_jumps", "dynamic", "denoising", "contrastive"),
    "blocks(seeded=True)": ("joint",),
    "masked": tuple(WEIGHTINGS),
}
VALUES = {"importance": {"heights": (1.0, 2.0)}, "mixture": {"parts": [{"law": "beta"}, {"law": "flat"}], "probabilities": (0.5, 0.5)}}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@functools.cache
def parts_of(name, hints=False, anchor_depth=0):
    """(process, network, shapes of its parameters and of a batch)."""
    process = make_named(name)
    classes, time_input = process.output.columns if process.states.dim else VOCAB, "adaln" if process.time_input else "none"
    shape = {"depth": 1 + anchor_depth, "anchor_depth": anchor_depth, "vocab": classes, "input_dim": process.states.dim}
    network = build_network(spec(time_input=time_input, self_condition=hints, **shape), Execution())
    weights, params = (jax.eval_shape(init, jax.random.key(0)) for init in (network.init, functools.partial(init_params, process)))
    ids_BL = jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)
    batch = dict.fromkeys(("tokens", "segments", "positions"), ids_BL) | {"row": jax.ShapeDtypeStruct((ROWS,), jnp.int32)}
    return process, network, {**weights, **({"process": params} if jax.tree.leaves(params) else {})}, batch


def bound(network, process, params, batch):
    return network.bind(params, batch["segments"], batch["positions"], attention=process.attention)


def trained(name, weighting="bound", times="stratified", hints=False):
    """Traces an objective and its gradient: the types of (total, parts) and of the gradient."""
    process, network, params, batch = parts_of(name, hints, anchor_depth=int(weighting == "anchored"))
    of_times = VALUES.get(times, {})
    objective = Objective(
        process, process.time_domain.adapt(make_times(times, **of_times)), make_weighting(weighting), True, 0.5 * hints, 0.5
    )

    def loss(params, batch):
        half = jnp.asarray(0.5, jnp.float32)
        return objective.bind(params)(bound(network, process, params, batch), batch, jax.random.key(1), ROWS, progress=half)

    return jax.eval_shape(jax.value_and_grad(loss, has_aux=True), params, batch), params


@pytest.mark.parametrize("name", PROCESSES)
def test_every_process_trains_in_float64(name):
    (_, gradient), params = trained(name, hints=name in ("masked", "plaid"))
    assert jax.tree.map(lambda leaf: leaf.dtype, gradient) == jax.tree.map(lambda leaf: leaf.dtype, params)


@pytest.mark.parametrize("name", PROCESSES)
def test_every_process_is_read_and_stepped_back_in_float64(name):
    process, network, params, batch = parts_of(name)

    def all_of_it(params, batch, t_BL):
        given, denoiser = bind_process(process, params), bound(network, process, params, batch)
        keys_B, x_BL = row_keys(jax.random.key(2), batch["row"]), batch["tokens"]
        nats_BL = nats_at(given, denoiser, x_BL, batch["segments"], keys_B, t_BL)
        if process.attention.sequential:  # sampled token by token, or block by block
            return nats_BL
        z_BL = given.prior(keys_B, LENGTH)
        logits_BLV = denoiser.logits(denoiser.hidden(z_BL, given.time_embedding_input(t_BL)))
        back_BL = given.reverse_step(keys_B, logits_BLV, z_BL, t_BL, t_BL / 2)
        assert (back_BL.shape, back_BL.dtype) == (z_BL.shape, z_BL.dtype), "a state keeps its type from step to step"
        return nats_BL, back_BL, given.decode(keys_B, logits_BLV, back_BL), given.prior_nats(x_BL)

    jax.eval_shape(all_of_it, params, batch, jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.float64))


@pytest.mark.parametrize("weighting", sorted({*WEIGHTINGS} - {"bound"}))
def test_every_weighting_is_traced_in_float64(weighting):
    trained(next(name for name, known in KINDS.items() if weighting in known), weighting)


@pytest.mark.parametrize("name", [*TIMES, *WITHIN_ROWS])
def test_every_time_distribution_draws_in_float64(name):
    times = make_times(name, **VALUES.get(name, {"size": 2} if name == "per_block" else {}))
    t_BL, inverse_pdf_BL = times.draw(jax.random.key(3), jnp.arange(ROWS, dtype=jnp.int32), ROWS, LENGTH)
    assert ((t_BL >= 0) & (t_BL <= 1) & (inverse_pdf_BL > 0)).all()


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_is_one_in_float64(name):
    schedule, t_T = make_schedule(name), jnp.linspace(0.01, 0.99, 5)
    functions = schedule.alpha, schedule.noise, schedule.hazard
    assert all(function(t_T).dtype == jnp.float64 for function in functions)
    assert jnp.allclose(schedule.alpha(t_T) + schedule.noise(t_T), 1, atol=1e-12)


def test_any_order_is_traced_under_a_network():
    process, network, params, batch = parts_of("masked")

    def nats(params, batch):
        keys_B, valid_BL = row_keys(jax.random.key(4), batch["row"]), batch["segments"] > 0
        return any_order_nats(process, bound(network, process, params, batch), batch["tokens"], valid_BL, keys_B)

    assert jax.eval_shape(nats, params, batch).shape == (ROWS, LENGTH)
