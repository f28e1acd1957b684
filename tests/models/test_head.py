"""The row-only head against the dense one: loss, nats and gradients, whatever the draw; and its memory."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from dlmjax.diffusion import make_process
from dlmjax.diffusion.process import bind_process, init_params, row_keys
from dlmjax.models.head import HeadPlan, row_losses
from dlmjax.models.layout import SINGLE
from dlmjax.parallel import Partition, make_mesh
from tests.models.tiny import cross_entropy

B, L, D, V = 4, 32, 16, 37
RNG = np.random.default_rng(0)
HIDDEN = jnp.asarray(RNG.normal(size=(B, L, D)), jnp.float32)
TOKENS = jnp.asarray(RNG.integers(0, V, (B, L)), jnp.int32)
WEIGHT = jnp.asarray(RNG.uniform(0.5, 4.0, (B, L)), jnp.float32)
HEAD = jnp.asarray(RNG.normal(size=(D, V)), jnp.float32)


def plan(tied=False, chunk=8, multiplier=1.0):
    return HeadPlan(int(tied), chunk, multiplier, ("vocab", "table") if tied else ("table", "vocab"), SINGLE)


def dense(head_plan, head, hidden, rows, weight):
    nats = cross_entropy(head_plan.logits(hidden, head).reshape(B * L, V), TOKENS.reshape(B * L)).reshape(B, L)
    nats = jnp.where(rows, nats, 0.0)
    return jnp.sum(nats * weight), nats


@functools.cache
def compiled(tied, chunk, multiplier=1.0):
    """Value and gradients of both heads; the rows are an argument, so that all draws share one compilation."""
    head_plan = plan(tied, chunk, multiplier)

    def ours(head, hidden, rows, weight):
        return row_losses(head_plan, head, hidden, rows, cross_entropy, (TOKENS,), weight)

    both = (jax.value_and_grad(f, (0, 1), has_aux=True) for f in (ours, functools.partial(dense, head_plan)))
    return *(jax.jit(f) for f in both), jax.jit(ours)


def draw(count):
    """Exactly `count` rows, spread over the batch."""
    rows = np.zeros(B * L, bool)
    rows[np.random.default_rng(count).permutation(B * L)[:count]] = True
    return jnp.asarray(rows.reshape(B, L))


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 63, B * L - 1, B * L])
@pytest.mark.parametrize("tied", [False, True])
def test_equals_the_dense_head(tied, count):
    """None, one, all, and counts around the chunk of 8: no row is dropped, none is counted twice."""
    ours, reference, primal = compiled(tied, 8)
    args = (HEAD.T if tied else HEAD, HIDDEN, draw(count), WEIGHT)
    (value, nats), gradients = ours(*args)
    (want, want_nats), want_gradients = reference(*args)
    np.testing.assert_allclose(value, want, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(nats, want_nats, atol=2e-6)
    assert int((np.asarray(nats) != 0).sum()) == count
    for got, expected in zip(gradients, want_gradients, strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5)
    value_only, nats_only = primal(*args)
    np.testing.assert_allclose(value_only, want, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(nats_only, nats)


@pytest.mark.parametrize("chunk", [0, 5, 128, 1000])
def test_chunk_does_not_matter(chunk):
    ours, reference, _ = compiled(False, chunk, 0.25)
    args = (HEAD, HIDDEN, draw(51), WEIGHT)
    (value, _), gradients = ours(*args)
    (want, _), want_gradients = reference(*args)
    np.testing.assert_allclose(value, want, rtol=1e-6)
    for got, expected in zip(gradients, want_gradients, strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize("count", [0, 31, 32, 97, 160, 255, 256, 257, 300, 511, 512])
def test_all_chunk_sizes_cover_every_row(count):
    """From 256 rows on, the remainder is walked in halves, quarters and eighths of a chunk."""
    assert plan(chunk=256).chunk_sizes(512, V) == (256, 128, 64, 32)
    hidden = jnp.asarray(np.random.default_rng(1).normal(size=(2, 256, D)), jnp.float32)
    rows = (jnp.arange(512) < count).reshape(2, 256)
    ones = jnp.ones((2, 256))
    total, nats = _count_rows(HEAD, hidden, rows, ones)
    assert float(total) == count
    np.testing.assert_array_equal(nats, rows)


@jax.jit
def _count_rows(head, hidden, rows, ones):
    return row_losses(plan(chunk=256), head, hidden, rows, lambda logits, one: one + 0 * logits[:, 0], (ones,), ones)


def test_automatic_chunk_follows_the_vocabulary():
    assert plan(chunk=0).chunk_sizes(10**6, 50_257) == (333, 166, 83, 41)
    assert plan(chunk=0).chunk_sizes(2048, 27) == (2048, 256)
    assert plan(chunk=0).chunk_sizes(100, 27) == (100,)


def test_rows_without_loss_are_never_read():
    """NaN in hidden states, arguments and weights of other rows changes nothing."""
    rows = draw(40)
    poison = jnp.where(rows, 0.0, jnp.nan)

    def loss(head, hidden, extra, weight):
        loss_fn = lambda logits, target, extra: cross_entropy(logits, target) + extra  # noqa: E731
        return row_losses(plan(), head, hidden, rows, loss_fn, (TOKENS, extra), weight)[0]

    run = jax.jit(jax.value_and_grad(loss, (0, 1)))
    value, gradients = run(HEAD, HIDDEN + poison[:, :, None], poison, WEIGHT + poison)
    want, want_gradients = run(HEAD, HIDDEN, jnp.zeros((B, L)), WEIGHT)
    assert float(value) == float(want)
    for got, expected in zip(gradients, want_gradients, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_scale_of_the_loss_and_constants():
    """The backward pass multiplies by the cotangent; weights, arguments and nats carry no gradient."""
    rows = draw(40)

    def loss(hidden, weight, factor):
        total, nats = row_losses(plan(), HEAD, hidden, rows, cross_entropy, (TOKENS,), weight)
        return factor * total + jnp.sum(nats)

    dhidden, dweight = jax.grad(loss, (0, 1))(HIDDEN, WEIGHT, 3.0)
    np.testing.assert_allclose(dhidden, 3.0 * jax.grad(loss)(HIDDEN, WEIGHT, 1.0), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(dweight, 0.0)


def test_bfloat16_states_give_float32_losses():
    """bfloat16 operands, float32 logits, reductions and gradient of the head; hidden states get their own type back."""
    rows = draw(60)
    args = (HEAD, HIDDEN.astype(jnp.bfloat16), rows, WEIGHT)
    (value, nats), (dhead, dhidden) = compiled(False, 8)[0](*args)
    (want, _), (want_head, want_hidden) = compiled(False, 8)[1](HEAD, HIDDEN, rows, WEIGHT)
    assert (value.dtype, nats.dtype, dhead.dtype, dhidden.dtype) == (jnp.float32, jnp.float32, jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(value, want, rtol=1e-2)
    np.testing.assert_allclose(dhead, want_head, atol=0.15)
    np.testing.assert_allclose(np.asarray(dhidden, np.float32), want_hidden, atol=0.15)


def test_memory_is_at_most_half_of_dense():
    """The compiled gradient's temporary memory at [4, 256] x 4096; benchmarks/head_rows.py repeats it at full size."""
    rows, length, vocab = 4, 256, 4096
    shapes = [((D, vocab), jnp.float32), ((rows, length, D), jnp.float32), ((rows, length), bool), ((rows, length), jnp.int32)]
    args = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]

    def ours(head, hidden, mask, tokens):
        return row_losses(plan(chunk=128), head, hidden, mask, cross_entropy, (tokens,), jnp.ones((rows, length)))[0]

    def full(head, hidden, mask, tokens):
        logits = plan().logits(hidden, head).reshape(-1, vocab)
        return jnp.sum(jnp.where(mask.reshape(-1), cross_entropy(logits, tokens.reshape(-1)), 0.0))

    temporary = [jax.jit(jax.grad(f, (0, 1))).lower(*args).compile().memory_analysis().temp_size_in_bytes for f in (ours, full)]
    assert temporary[0] <= 0.5 * temporary[1]
    assert temporary[1] >= rows * length * vocab * 4


def test_parameters_of_the_loss_get_their_gradient():
    """A tree that all positions share, and float arguments of each row; what is trained need not be what is reported."""
    table, vector = jnp.asarray(RNG.normal(size=(V, 3)), jnp.float32), jnp.asarray(RNG.normal(size=(B, L, 3)), jnp.float32)

    def loss_fn(shared, logits, tokens, vector):
        nats = cross_entropy(logits + vector @ shared["table"].T, tokens)
        return nats**2, nats

    def ours(head, hidden, vector, table):
        return row_losses(plan(), head, hidden, draw(51), Partial(loss_fn, {"table": table}), (TOKENS, vector), WEIGHT)

    def reference(head, hidden, vector, table):
        logits = plan().logits(hidden, head).reshape(B * L, V)
        trained, nats = loss_fn({"table": table}, logits, TOKENS.reshape(-1), vector.reshape(B * L, 3))
        trained, nats = (jnp.where(draw(51), n.reshape(B, L), 0.0) for n in (trained, nats))
        return jnp.sum(trained * WEIGHT), nats

    both = [jax.jit(jax.value_and_grad(f, (0, 1, 2, 3), has_aux=True))(HEAD, HIDDEN, vector, table) for f in (ours, reference)]
    (got, gradients), (want, want_gradients) = both
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    np.testing.assert_allclose(got[1], want[1], atol=1e-5)
    for g, w in zip(gradients, want_gradients, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-3)


# Classes split over `tensor`. What a loss reads beside the sum of exponentials: the true token's logit (masked, autoregressive, blocks),
# also the noised token's (uniform, hybrid, score), or every probability, for a sum over all classes (genmd4, d3pm).
SPLIT_V = 40
NOISES = ("masked", "uniform", "hybrid")
OTHER_NOISES = ("autoregressive", "blocks", "genmd4", "d3pm", "mixed", "score", "flow_matching", "duo")
MESHES = {"masked": [(1, 1, 1, 8), (2, 2, 1, 2), (1, 2, 2, 2)]}  # data, fsdp, sequence, tensor
SPLITS = [(noise, sizes) for noise in NOISES for sizes in MESHES.get(noise, [(1, 2, 1, 4)])]
SPLITS += [pytest.param(noise, (1, 2, 1, 4), marks=pytest.mark.slow) for noise in OTHER_NOISES]


@functools.cache
def noisy(noise):
    """A process, (tokens, noisy state, times) of its loss, its loss mask, and a head with hidden states."""
    process = make_process(noise, vocab=SPLIT_V, mask_id=SPLIT_V - 1, bos_id=SPLIT_V - 2, excluded=(SPLIT_V - 2,))
    rng = np.random.default_rng(3)
    x_BL = jnp.asarray(rng.integers(0, SPLIT_V - 2, (8, 16)), jnp.int32)
    t_BL = process.time_domain.quantize(jnp.asarray(np.tile(rng.uniform(0.2, 0.9, (8, 1)), (1, 16)), jnp.float32), x_BL >= 0)
    z_BL = process.corrupt(row_keys(jax.random.key(1), jnp.arange(8)), x_BL, t_BL)
    weights = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((D, SPLIT_V), (8, 16, D))]
    return process, (x_BL, z_BL, t_BL), process.loss_mask(z_BL, t_BL), weights


def head_gradients(noise, layout, tied, gradients=True):
    """(compiled value and gradients of the head, hidden states and process parameters, or the value alone; their arguments)."""
    process, args, loss_mask_BL, (head, hidden_BLD) = noisy(noise)
    head_plan = HeadPlan(int(tied), 8, 0.5, ("vocab", "table") if tied else ("table", "vocab"), layout)
    learned = init_params(process, jax.random.key(2))
    arguments = (head.T if tied else head, hidden_BLD, learned)

    def loss(head, hidden_BLD, learned):
        loss_fn = Partial(lambda process, *rest: process.loss(*rest), bind_process(process, {"process": learned}))
        return row_losses(head_plan, head, hidden_BLD, loss_mask_BL, loss_fn, args, jnp.ones((8, 16)))

    run = jax.value_and_grad(loss, (0, 1, 2), has_aux=True) if gradients else loss
    if layout.mesh is None:
        return jax.jit(run).lower(*arguments).compile(), arguments
    of_learned = jax.tree.map(lambda _: layout.sharding(()), learned)
    shardings = (layout.sharding(head_plan.axes), layout.sharding(("batch", "length", None)), of_learned)
    assert head_plan.class_axes(SPLIT_V) == ("tensor",)
    compiled = jax.jit(run, in_shardings=shardings, out_shardings=(None, shardings if gradients else None)).lower(*arguments).compile()
    return compiled, jax.device_put(arguments, shardings)


@functools.cache
def whole_head(noise, tied):
    compiled, arguments = head_gradients(noise, SINGLE, tied)
    return jax.device_get(compiled(*arguments))


@pytest.mark.parametrize(("noise", "sizes"), SPLITS)
def test_split_classes_equal_the_whole_head(noise, sizes, capfd):
    """Loss, nats and gradients on eight devices; no device holds a row's logits, a gathered head or its whole gradient."""
    tied = sizes == (2, 2, 1, 2)
    compiled, arguments = head_gradients(noise, Partition(make_mesh(*sizes)), tied)
    assert "Involuntary full rematerialization" not in capfd.readouterr().err
    got, want = compiled(*arguments), whole_head(noise, tied)
    assert float(want[0][0]) > 1
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-5 * np.abs(theirs).max())
    shapes = set(re.findall(r"f32\[(\d+),(\d+)\]", compiled.as_text()))
    assert not {shape for shape in shapes if str(SPLIT_V) in shape and str(D) in shape}, "the head is whole on a device"
    # A chunk has 8 rows or more; of the stored head a device has 2 or 4 parts of the width.
    assert not {shape for shape in shapes if int(shape[0]) >= 8 and shape[1] == str(SPLIT_V)}, "logits of all classes on a device"


def test_split_classes_are_evaluated_without_gradients():
    compiled, arguments = head_gradients("masked", Partition(make_mesh(1, 2, 1, 4)), False, gradients=False)
    for ours, theirs in zip(compiled(*arguments), whole_head("masked", False)[0], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_classes_that_the_devices_do_not_divide_are_not_split():
    layout = Partition(make_mesh(1, 2, 1, 4))
    assert HeadPlan(0, 8, 1.0, ("table", "vocab"), layout).class_axes(27) == ()
