"""Layers that are run several times: the network of as many layers whose weights repeat, and what is counted of it."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax import config as config_lib
from dlmjax.errors import InputError
from dlmjax.models import Execution, ModelSpec, build_network, families, model_spec
from dlmjax.models.flops import training_flops_per_token
from dlmjax.plan import roofline
from dlmjax.training import OptimizerSpec, build_optimizer
from tests.models import tiny

LOOPED, DEEP = tiny.spec(loops=2), tiny.spec(depth=4)
# Layers 1 and 2 of 4, three times, with a layer before and one after.
RANGE, OF_RANGE = tiny.spec(depth=4, loops=3, looped=(1, 3)), tiny.spec(depth=8)
ORDER = {LOOPED: [0, 1, 0, 1], RANGE: [0, 1, 2, 1, 2, 1, 2, 3]}
PAIRS = {"whole": (LOOPED, DEEP), "range": (RANGE, OF_RANGE)}
TIMED = dict(time_input="adaln", dropout=0.1, tied=True)
KEY = jax.random.key(3)


def value_and_grad(network):
    return jax.jit(jax.value_and_grad(tiny.loss_of(network), has_aux=True), compiler_options=tiny.AS_USED)


@pytest.mark.parametrize(
    ("pair", "changes", "execution"),
    [
        ("range", dict(dropout=0.1), Execution()),
        pytest.param("range", TIMED, Execution(remat="full"), marks=pytest.mark.slow),
        pytest.param("whole", TIMED, Execution(remat="full"), marks=pytest.mark.slow),
        pytest.param("range", TIMED, Execution(scan=False), marks=pytest.mark.slow),
        pytest.param("whole", TIMED, Execution(scan=False), marks=pytest.mark.nightly),
        pytest.param("whole", {}, Execution(), marks=pytest.mark.nightly),
    ],
    ids=str,
)
def test_loops_are_a_network_of_as_many_layers(pair, changes, execution):
    """The same loss to rounding; the gradient of a weight is the sum of those of its places."""
    looped, deep = (build_network(dataclasses.replace(spec, **changes), execution) for spec in PAIRS[pair])
    order = np.array(ORDER[PAIRS[pair][0]])
    params = tiny.lively(looped.init(jax.random.key(0)))
    repeated = {**params, "layers": jax.tree.map(lambda leaf: leaf[order], params["layers"])}
    (loss, (nats_BL, _)), gradient = value_and_grad(looped)(params, tiny.batch(), KEY)
    (same, (same_BL, _)), long = value_and_grad(deep)(repeated, tiny.batch(), KEY)
    np.testing.assert_allclose(nats_BL, same_BL, rtol=1e-5)
    np.testing.assert_allclose(loss, same, rtol=1e-5)
    summed = jax.tree.map(lambda leaf, like: jnp.zeros_like(like).at[order].add(leaf), long["layers"], params["layers"])
    assert tiny.worst(gradient, {**long, "layers": summed}) < 1e-5


def test_flops_count_every_run_of_a_layer_and_parameters_count_once():
    for (looped, deep), once in zip(PAIRS.values(), (tiny.spec(), tiny.spec(depth=4)), strict=True):
        assert build_network(looped).parameter_count == build_network(once).parameter_count
        assert training_flops_per_token(looped, 64, 0.5, streams=2) == training_flops_per_token(deep, 64, 0.5, streams=2)


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("pair", PAIRS)
def test_a_plan_sees_the_work_of_every_run_and_the_weights_of_one(pair, remat):
    mesh = {"data": 2, "fsdp": 2, "sequence": 1, "tensor": 2}
    looped, deep = (
        roofline.Load(spec, Execution(remat=remat), length=32, batch=16, accumulation=2, parameters=build_network(spec).parameter_count)
        for spec in PAIRS[pair]
    )
    assert roofline.executed_flops(looped) == roofline.executed_flops(deep)
    assert roofline.activation_bytes(looped, mesh) == roofline.activation_bytes(deep, mesh)
    # Norms are read once more than counted.
    assert roofline.memory_traffic(looped, mesh, 0.0) == pytest.approx(roofline.memory_traffic(deep, mesh, 0.0), rel=1e-2)
    found = [
        {
            (each.kind, each.axes): each.count
            for each in roofline.expected_collectives(load, mesh, [((load.spec.depth, 32, 48), ("layer", "embed", "ffn"))])
        }
        for load in (looped, deep)
    ]
    assert found[0] == found[1]


def test_completep_takes_the_layers_that_a_token_passes():
    base = dict(completep_width=32, completep_depth=2)
    for pair, runs in {"whole": 2, "range": np.array([1, 3, 3, 1])}.items():
        looped, deep = (build_network(dataclasses.replace(spec, **base)) for spec in PAIRS[pair])
        assert looped.spec.depth_ratio == deep.spec.depth_ratio == deep.spec.depth / 2
        # A shared weight's gradient is the sum of as many as it has runs.
        epsilons, once = (network.eps_multipliers["layers"]["query"]["kernel"] for network in (looped, deep))
        np.testing.assert_allclose(np.ravel(epsilons), runs * once)
        assert looped.lr_multipliers == deep.lr_multipliers and looped.eps_multipliers["head"] == deep.eps_multipliers["head"]


def test_adam_divides_by_the_epsilon_of_each_layer():
    """A gradient far below epsilon: the update is the gradient over epsilon, so it shows the factor of each layer."""
    network = build_network(dataclasses.replace(RANGE, completep_width=32, completep_depth=4))
    spec = OptimizerSpec(eps=1.0, clip=0.0, weight_decay=0.0, warmup=0, schedule="constant", lr=1.0)
    tx = build_optimizer(spec, network.kinds, eps_multipliers=network.eps_multipliers, steps=1)
    weights = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), network.abstract())
    updates, _ = tx.update(jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e-6), weights), tx.init(weights), weights)
    found = updates["layers"]["query"]["kernel"][:, 0, 0]
    np.testing.assert_allclose(found[1:] / found[0], [1 / 3, 1 / 3, 1], rtol=1e-4)


def test_a_config_says_it_in_the_family():
    config = config_lib.default()
    config_lib.override(config, ["model.family=qwen3(loops=3)"])
    assert model_spec(config.model, vocab=9).effective_depth == 3 * config.model.depth
    config_lib.override(config, ["model.family=llama(loops=3, looped=(1, 4))"])
    spec = model_spec(config.model, vocab=9)
    assert spec.spans == ((0, 1, 1), (1, 4, 3), (4, 6, 1)) and spec.effective_depth == 12
    assert families.run_once(config.model.family) == "llama"
    # All layers as a range, or a range run once, are the networks without one.
    assert not spec_of("qwen3(loops=2, looped=(0, 6))").differing(spec_of("qwen3(loops=2)"))
    assert not spec_of("qwen3(looped=(1, 2))").differing(spec_of("qwen3"))


def spec_of(family):
    return ModelSpec(vocab=9, depth=6, width=8, heads=1, kv_heads=1, head_dim=8, ffn=8, **families.family_fields(family))


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("gpt2(loops=0)", "model.family: loops=0 must be from 1 to 256"),
        ("qwen3(loops=2, looped=(2, 2))", "looped=(2, 2) is not a range of the layers 0 to 5"),
        ("qwen3(loops=2, looped=(3, 7))", "looped=(3, 7) is not a range"),
        ("qwen3(loops=2, looped=(-1, 3))", "looped=(-1, 3) is not a range"),
        ("qwen3(loops=2, looped=(1, 2, 3))", "looped=(1, 2, 3) is not a range"),
        ("qwen3(loops=2, looped=3)", "looped requires a list of whole numbers, not 3"),
        ("qwen3(loops=2, looped=(0.5, 2))", "looped requires a list of whole numbers"),
    ],
)
def test_what_is_no_range_of_layers_is_refused(family, message):
    with pytest.raises(InputError, match=re.escape(message)):
        config_lib.override(config_lib.default(), [f"model.family={family}"])
