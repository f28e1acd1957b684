"""What a network makes of the time, once for each time of a row: the same loss and gradient as by position, whatever the process."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import ByPosition, Hyperschedule, Objective, PerBlock, PerRow, make_weighting
from dlmjax.diffusion.capabilities import _VARIANTS, make_named
from dlmjax.diffusion.process import init_params
from dlmjax.diffusion.progressive import Progressive
from dlmjax.diffusion.registry import PROCESSES
from dlmjax.errors import InputError
from dlmjax.models import Execution, build_network
from dlmjax.models.denoiser import Denoiser
from dlmjax.models.time_signal import largest, spread
from tests.models import tiny

LENGTH, ROWS = tiny.LENGTH, 4
SLOW = pytest.mark.slow


def batch(scored=True):
    """Two documents in a row and padding; the first four tokens, and one between others, condition the rest."""
    found = {name: jnp.asarray(leaf) for name, leaf in tiny.batch(ROWS, vocab=tiny.VOCAB - 2).items()}
    given_BL = jnp.isin(jnp.arange(LENGTH), jnp.asarray([0, 1, 2, 3, 9])) & (jnp.arange(ROWS) > 0)[:, None]
    return {**found, "scored": ~given_BL} if scored else found


@dataclasses.dataclass(frozen=True)
class ByToken(Denoiser):
    """The network as it is where nothing is known of the times."""

    def with_tokens_per_time(self, tokens):
        return self


def both(process, objective=None, scored=True, **changes):
    """(loss, nats, gradient) as computed, and by position; with weights that all matter."""
    classes = process.output.columns if process.states.dim else tiny.VOCAB
    changes = {"depth": 1, "vocab": classes, "input_dim": process.states.dim, "time_input": "adaln"} | changes
    network = build_network(tiny.spec(**changes), Execution(scan=False))
    params = tiny.lively(network.init(jax.random.key(2)))
    params |= {"process": init_params(process, jax.random.key(1))} if process.parameters else {}
    objective, data = objective or Objective(process), batch(scored)

    def loss(params, kind):
        bound = network.bind(params, data["segments"], data["positions"], process.attention)
        denoiser = kind(**{field.name: getattr(bound, field.name) for field in dataclasses.fields(bound)})
        total, terms = objective.bind(params)(denoiser, data, jax.random.key(5), ROWS, jnp.float32(0.5))
        return total, terms["nats"]

    return jax.jit(lambda params: [jax.value_and_grad(loss, has_aux=True)(params, kind) for kind in (Denoiser, ByToken)])(params)


def require_equal(found):
    (((total, nats), gradient), ((want, want_nats), want_gradient)) = jax.device_get(found)
    np.testing.assert_allclose((total, nats), (want, want_nats), rtol=1e-6)
    assert np.isfinite(total) and want != 0
    assert tiny.worst(gradient, want_gradient) < 2e-6  # of the largest entry of a leaf: sums of float32 in another order


# One time in a row, one in each block beside a clean stream and without one, a learned curve of times.
FAST = ("uniform", "blocks(noise='uniform')", "blocks(streams=1)", "plaid")
ALL = sorted({*PROCESSES, *_VARIANTS, *FAST, "masked(complementary=True)"})


@pytest.mark.parametrize("name", [name if name in FAST else pytest.param(name, marks=SLOW) for name in ALL])
def test_the_loss_and_its_gradient_are_those_by_position(name):
    """With given tokens, packed documents and padding."""
    require_equal(both(make_named(name)))


MASKED, UNIFORM, BLOCKS = (make_named(name) for name in ("masked", "uniform", "blocks(noise='uniform')"))
OBJECTIVES = {
    "self-conditioning": (Objective(UNIFORM, self_condition=0.5, prompt=0.5), {"self_condition": True}),
    "progressive": (Objective(MASKED, progressive=Progressive(4)), {}),
    "times of blocks of another size": (Objective(UNIFORM, PerBlock(6)), {}),
    "added to the input": (Objective(BLOCKS, BLOCKS.time_domain.adapt(PerRow())), {"time_input": "add"}),
    "joint": (Objective(make_named("blocks(seeded=True)"), weighting=make_weighting("joint")), {}),
}


@pytest.mark.parametrize("name", ["self-conditioning", *(pytest.param(name, marks=SLOW) for name in [*OBJECTIVES][1:])])
def test_of_every_form_of_objective(name):
    objective, changes = OBJECTIVES[name]
    require_equal(both(objective.process, objective, scored=name != "self-conditioning", **changes))


TIMES = [PerRow(), PerRow(stratified=False), Hyperschedule(), Hyperschedule(window=4), ByPosition(), ByPosition(size=4)]
TIMES += [PerBlock(size, antithetic=antithetic) for size in (1, 2, 3, 5, 16, 40) for antithetic in (False, True)]


@pytest.mark.parametrize("length", [16, 18])
def test_tokens_that_are_said_to_share_a_time_do(length):
    """Of every distribution of times, at lengths that blocks divide and that they do not."""
    for times in TIMES:
        t_BL, tokens = times.draw(jax.random.key(0), jnp.arange(8), 8, length)[0], times.tokens_per_time(length)
        groups_BGN = np.asarray(t_BL).reshape(8, length // tokens, tokens)
        assert (groups_BGN == groups_BGN[..., :1]).all(), times
        assert tokens > 1 or len(np.unique(t_BL[0])) > 1, times
    assert PerRow().tokens_per_time(length) == length and PerBlock(4).tokens_per_time(16) == 4


def test_what_a_process_makes_of_one_time_is_one_time():
    """Of every process, without a network: rounding to its times, and what the network is conditioned on."""
    data = batch()
    valid_BL = data["segments"] > 0
    for name in ALL:
        process = make_named(name)
        process = process.with_params(init_params(process, jax.random.key(1))) if process.parameters else process
        try:
            times = process.time_domain.adapt(PerRow())
        except InputError:
            continue
        t_BL, tokens = times.draw(jax.random.key(3), data["row"], ROWS, LENGTH)[0], times.tokens_per_time(LENGTH)
        loss_mask_BL = valid_BL & data["scored"]
        t_BL = jnp.where(valid_BL & ~loss_mask_BL, 0.0, process.time_domain.quantize(t_BL, loss_mask_BL))
        read_BL = np.asarray(process.time_embedding_input(t_BL))
        low_B11 = np.broadcast_to(read_BL, t_BL.shape).min(axis=1)[:, None, None]
        groups_BGN = np.broadcast_to(read_BL, t_BL.shape).reshape(ROWS, -1, tokens)
        assert ((groups_BGN == groups_BGN.max(axis=2, keepdims=True)) | (groups_BGN == low_B11)).all(), name


def test_rows_with_other_times_are_not_numbers():
    """A wrong statement must not give a plausible loss: such a row is NaN, the others are as they were."""
    network = build_network(tiny.spec(depth=1, time_input="adaln"), Execution())
    params, data = tiny.lively(network.init(jax.random.key(2))), batch()
    bound = network.bind(params, data["segments"], data["positions"])
    t_BL = jnp.full((ROWS, LENGTH), 0.4).at[1, 5].set(0.5).at[1, 3].set(0.3).at[2, :3].set(0.0)
    states = jax.jit(lambda t_BL: [one.hidden(data["tokens"], t_BL) for one in (bound, bound.with_tokens_per_time(LENGTH))])
    want_BLD, found_BLD = map(np.asarray, states(t_BL))
    assert np.isnan(found_BLD[1]).all() and np.isfinite(want_BLD).all()
    np.testing.assert_allclose(found_BLD[[0, 2, 3]], want_BLD[[0, 2, 3]], atol=1e-5)


def test_gradients_of_shared_times_are_summed_in_float32():
    """4096 positions of gradient 1, in bfloat16: a sum in that type stops at 256."""
    low_BM = jnp.arange(4096)[None] < 1024
    gradient = jax.grad(lambda values: jnp.sum(spread(values, low_BM, (2, 2048)).astype(jnp.float32)))(jnp.ones((1, 3, 1), jnp.bfloat16))
    np.testing.assert_array_equal(gradient.astype(jnp.float32)[0, :, 0], [1024, 2048, 1024])


def test_the_gradient_of_a_time_divides_by_no_count():
    """That of `max` does, and a learned schedule had NaN for its ends (nightly: `test_families`, plaid on eight devices)."""
    t_BL = jnp.full((2, 4), 0.5).at[1, 2].set(0.75)
    value_B, back = jax.vjp(largest, t_BL)
    assert value_B.tolist() == [0.5, 0.75]
    assert back(jnp.ones(2))[0].tolist() == [[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]
    assert " div " not in str(jax.make_jaxpr(lambda t: jax.vjp(largest, t)[1](jnp.ones(2)))(t_BL))
