"""The evaluator and the sampler on a real network: one device, eight devices, other batch sizes."""

import jax
import numpy as np
import pytest

from dlmjax.diffusion.processes.masked import Masked
from dlmjax.evaluation.likelihood import Evaluator
from dlmjax.models import ModelSpec, build_network
from dlmjax.parallel import Partition, make_mesh
from dlmjax.sampling.canvas import blank_canvas
from dlmjax.sampling.sampler import Sampler, SampleSettings
from tests.evaluation.test_likelihood import batches_of

COMPILED = []
jax.monitoring.register_event_duration_secs_listener(lambda name, _, **kw: COMPILED.append(name) if "backend_compile" in name else None)
SPEC = ModelSpec(vocab=13, depth=2, width=16, heads=2, kv_heads=2, head_dim=8, ffn=32)
PROCESS = Masked(13, 12)
WINDOWS = np.random.default_rng(0).integers(0, 12, (20, 16))


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda leaf: leaf * 3, build_network(SPEC).init(jax.random.key(0)))


@pytest.fixture(scope="module")
def on_mesh(params):
    """A network on a mesh of 4 x 2 devices, and its weights where the table puts them."""
    partition = Partition(make_mesh(4, 2))
    network = build_network(SPEC, partition=partition)
    return partition, network, jax.device_put(params, partition.tree(network.axes))


def test_one_number_on_any_mesh_and_with_any_batch_size(params, on_mesh):
    partition, network, placed = on_mesh
    single = Evaluator(PROCESS, build_network(SPEC).bind, nodes=2)
    sharded = Evaluator(PROCESS, network.bind, nodes=2, put_batch=partition.put_batch)
    with jax.transfer_guard("disallow"):
        results = [single(params, batches_of(WINDOWS, 8)), single(params, batches_of(WINDOWS, 3)), sharded(placed, batches_of(WINDOWS, 8))]
    values = [result.nats_per_token for result in results]
    assert abs(values[0] - np.log(12)) < 1, "weights three times their start say something, but not much"
    np.testing.assert_allclose(values, values[0], rtol=1e-6)
    assert len({(r.tokens, r.windows, r.nodes, r.seed) for r in results}) == 1


def test_sharded_weights_give_the_same_text_from_one_compilation(params, on_mesh):
    _, _, placed = on_mesh
    sampler = Sampler(PROCESS, build_network(SPEC).bind, SampleSettings(steps=5))
    canvas = blank_canvas(16, 3)
    one = sampler.sample(params, canvas, seed=1)
    with jax.transfer_guard("disallow"):
        before = len(COMPILED)
        eight = sampler.sample(placed, canvas, seed=1)
        assert len(COMPILED) - before == 2, "the start and the step, the step once for all five"
    assert one.tokens_BL.tolist() == eight.tokens_BL.tolist()
    np.testing.assert_allclose(one.confidence_BL, eight.confidence_BL, rtol=1e-4)
    before = len(COMPILED)
    assert sampler.sample(placed, canvas, seed=2).tokens_BL.tolist() != eight.tokens_BL.tolist()
    assert len(COMPILED) == before
