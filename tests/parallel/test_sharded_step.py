"""One loss and its gradients on eight virtual devices, laid out in every way, against one device."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.models import Execution, build_network
from dlmjax.parallel import Partition, make_mesh
from tests.models import tiny

KEY = jax.random.key(7)
BATCH = tiny.batch()
PLAIN = tiny.spec(heads=8, kv_heads=8, ffn=64)
SPECS = {"plain": PLAIN, "timed": tiny.spec(heads=8, kv_heads=4, ffn=64, tied=True, time_input="adaln", dropout=0.1)}
SPECS["looped"] = tiny.spec(heads=8, kv_heads=8, ffn=64, depth=2, loops=2, looped=(1, 2))
#                data, fsdp, sequence, tensor
ONE_AXIS = [(8, 1, 1, 1), (1, 8, 1, 1), (1, 1, 8, 1), (1, 1, 1, 8)]
MIXED = [(4, 2, 1, 1), (2, 4, 1, 1), (1, 4, 1, 2), (1, 2, 1, 4), (2, 1, 4, 1)]
CASES = [pytest.param("plain", Execution(head_chunk=3), sizes, marks=pytest.mark.slow) for sizes in ONE_AXIS]
CASES += [pytest.param("plain", Execution(head_chunk=3), sizes, marks=pytest.mark.nightly) for sizes in MIXED]
CASES += [pytest.param("looped", Execution(), (2, 2, 1, 2), marks=pytest.mark.slow)]
CASES += [("timed", Execution(scan=False, remat="dots", head_chunk=5), (1, 2, 2, 2))]
REMATERIALIZED = "Involuntary full rematerialization"


@functools.cache
def single(name):
    spec = SPECS[name]
    network = build_network(spec, Execution())
    params = tiny.lively(network.init(jax.random.key(0)))
    step = jax.jit(jax.value_and_grad(tiny.loss_of(network), has_aux=True), compiler_options=tiny.AS_USED)
    return params, jax.device_get(step(params, BATCH, KEY))


def compile_step(name, execution, sizes):
    """The compiled gradient with its placed arguments."""
    partition = Partition(make_mesh(*sizes))
    network = build_network(SPECS[name], execution, partition)
    shardings = partition.tree(network.axes)
    arguments = jax.device_put(single(name)[0], shardings), partition.put_batch(BATCH), KEY
    step = jax.jit(jax.value_and_grad(tiny.loss_of(network), has_aux=True), out_shardings=(None, shardings))
    return step.lower(*arguments).compile(tiny.AS_USED), arguments


def collectives(compiled):
    """Kinds of collectives over more than one device in the compiled program."""
    found = set()
    for line in compiled.as_text().splitlines():
        kind = re.search(r" (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\(", line)
        if kind:
            found.add(kind.group(1))
    return found


@pytest.mark.parametrize(("name", "execution", "sizes"), CASES, ids=lambda value: str(value) if isinstance(value, tuple) else "")
def test_equals_one_device(name, execution, sizes, capfd):
    compiled, arguments = compile_step(name, execution, sizes)
    assert REMATERIALIZED not in capfd.readouterr().err
    (value, (nats, rows)), gradients = compiled(*arguments)
    (want, (want_nats, want_rows)), want_gradients = single(name)[1]
    np.testing.assert_array_equal(rows, want_rows)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_allclose(nats, want_nats, atol=1e-5)
    assert tiny.worst(gradients, want_gradients) < 1e-5
    for gradient, weight in zip(jax.tree.leaves(gradients), jax.tree.leaves(arguments[0]), strict=True):
        assert gradient.sharding == weight.sharding

    data, fsdp, sequence, tensor = sizes
    found = collectives(compiled)
    assert "all-reduce" in found
    # Weights, or the keys of a split length, are gathered; nothing is when only the batch is split.
    assert ("all-gather" in found) == (fsdp * sequence * tensor > 1)
    # Embedding and head gradients are summed straight into the shards that store them.
    assert ("reduce-scatter" in found) == (fsdp * tensor > 1)


def test_rematerialization_would_be_seen(capfd):
    """The warning reaches the stream that the test above reads: a move between unrelated placements provokes it."""
    mesh = make_mesh(4, 2)
    before, after = (jax.NamedSharding(mesh, spec) for spec in (jax.P(("data", "fsdp"), None), jax.P(None, "fsdp")))

    def move(x):
        x = jax.lax.with_sharding_constraint(jnp.sin(x), before)
        return jax.lax.with_sharding_constraint(jnp.cos(x), after)

    jax.jit(move).lower(jnp.ones((8, 8))).compile()
    assert REMATERIALIZED in capfd.readouterr().err


def test_noise_bits_do_not_depend_on_the_mesh():
    """Also for rows in another order: noise belongs to the global row, not to its place."""
    draw = jax.jit(lambda data: tiny.corrupt(data, KEY))
    want = jax.device_get(draw(BATCH))
    for sizes in ONE_AXIS:
        got = jax.device_get(draw(Partition(make_mesh(*sizes)).put_batch(BATCH)))
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b)
    order = np.random.default_rng(0).permutation(tiny.BATCH)
    permuted = jax.device_get(draw({name: value[order] for name, value in BATCH.items()}))
    for a, b in zip(permuted, want, strict=True):
        np.testing.assert_array_equal(a, b[order])


def test_init_does_not_depend_on_the_mesh():
    """Weights drawn directly into their shards are the weights of one device, bit for bit."""
    network = build_network(PLAIN)
    partition = Partition(make_mesh(1, 2, 1, 4))
    placed = jax.jit(network.init, out_shardings=partition.tree(network.axes))(jax.random.key(0))
    assert placed["layers"]["up"]["kernel"].addressable_shards[0].data.shape == (2, 16, 16)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(placed), jax.device_get(jax.jit(network.init)(jax.random.key(0))))


def test_bfloat16_on_a_mesh_sums_in_float32():
    """Gradients of the sharded bfloat16 step stay as close to float32 as those of one device."""
    compiled, arguments = compile_step("plain", Execution(dtype="bfloat16"), (1, 4, 1, 2))
    (value, _), gradients = compiled(*arguments)
    (want, _), want_gradients = single("plain")[1]
    np.testing.assert_allclose(value, want, rtol=2e-2)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradients))
    assert tiny.worst(gradients, want_gradients) < 0.25


def test_logits_on_a_mesh():
    partition = Partition(make_mesh(2, 2, 1, 2))
    params, batch = single("plain")[0], partition.put_batch(BATCH)

    def run(network):
        def logits(params, batch):
            denoiser = network.bind(params, batch["segments"], batch["positions"])
            return denoiser.logits(denoiser.hidden(batch["tokens"], jnp.full(batch["tokens"].shape, 0.5)))

        return jax.jit(logits)

    network = build_network(PLAIN, Execution(), partition)
    got = run(network)(jax.device_put(params, partition.tree(network.axes)), batch)
    np.testing.assert_allclose(got, run(build_network(PLAIN))(params, BATCH), atol=1e-4)
    assert got.sharding.is_equivalent_to(partition.sharding(("batch", "length", None)), 3)


def test_sizes_that_do_not_fit_the_mesh_are_named():
    from dlmjax.errors import InputError

    partition = Partition(make_mesh(1, 1, 1, 8))
    network = build_network(SPECS["timed"], Execution(), partition)
    with pytest.raises(InputError, match="kv_heads"):
        jax.eval_shape(tiny.loss_of(network), network.abstract(), jax.tree.map(jnp.asarray, BATCH), KEY)
