"""Layers that are run several times: the network of as many layers whose weights repeat, and what is counted of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax import config as config_lib
from dlmjax.errors import InputError
from dlmjax.models import Execution, build_network, model_spec
from dlmjax.models.flops import training_flops_per_token
from dlmjax.plan import roofline
from tests.models import tiny

LOOPED, DEEP = tiny.spec(loops=2), tiny.spec(depth=4)
TIMED = dict(time_input="adaln", dropout=0.1, tied=True)
KEY = jax.random.key(3)


@pytest.mark.parametrize(
    ("changes", "execution"),
    [
        (TIMED, Execution(remat="full")),
        pytest.param(TIMED, Execution(scan=False), marks=pytest.mark.slow),
        pytest.param({}, Execution(), marks=pytest.mark.nightly),
    ],
    ids=["scan, remat, adaln and dropout", "unrolled, adaln and dropout", "scan"],
)
def test_two_loops_are_a_network_of_twice_the_depth(changes, execution):
    """The same loss to the bit; the gradient of a weight is the sum of those of its two places."""
    looped, deep = (build_network(dataclasses.replace(spec, **changes), execution) for spec in (LOOPED, DEEP))
    params = tiny.lively(looped.init(jax.random.key(0)))
    twice = {**params, "layers": jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), params["layers"])}
    (loss, (nats_BL, _)), gradient = jax.jit(jax.value_and_grad(tiny.loss_of(looped), has_aux=True))(params, tiny.batch(), KEY)
    (same, (same_BL, _)), long = jax.jit(jax.value_and_grad(tiny.loss_of(deep), has_aux=True))(twice, tiny.batch(), KEY)
    np.testing.assert_array_equal(nats_BL, same_BL)
    assert loss == same
    summed = {**long, "layers": jax.tree.map(lambda leaf: leaf[:2] + leaf[2:], long["layers"])}
    assert tiny.worst(gradient, summed) < 1e-5


def test_flops_count_every_run_of_a_layer_and_parameters_count_once():
    plain = build_network(tiny.spec())
    assert build_network(LOOPED).parameter_count == plain.parameter_count
    assert training_flops_per_token(LOOPED, 64, 0.5, streams=2) == training_flops_per_token(DEEP, 64, 0.5, streams=2)


@pytest.mark.parametrize("remat", ["none", "full"])
def test_a_plan_sees_the_work_of_twice_the_depth_and_the_weights_of_one(remat):
    mesh = {"data": 2, "fsdp": 2, "sequence": 1, "tensor": 2}
    looped, deep = (
        roofline.Load(spec, Execution(remat=remat), length=32, batch=16, accumulation=2, parameters=build_network(spec).parameter_count)
        for spec in (LOOPED, DEEP)
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
    looped, deep = (build_network(dataclasses.replace(spec, **base)) for spec in (LOOPED, DEEP))
    assert looped.spec.depth_ratio == deep.spec.depth_ratio == 2.0
    # A shared weight's gradient is the sum of two.
    assert looped.eps_multipliers["layers"]["query"]["kernel"] == 2 * deep.eps_multipliers["layers"]["query"]["kernel"] == 1.0
    assert looped.lr_multipliers == deep.lr_multipliers and looped.eps_multipliers["head"] == deep.eps_multipliers["head"]


def test_a_config_says_it_in_the_family():
    config = config_lib.default()
    config_lib.override(config, ["model.family=qwen3(loops=3)"])
    assert model_spec(config.model, vocab=9).effective_depth == 3 * config.model.depth
    with pytest.raises(InputError, match="model.family: loops=0 must be at least 1"):
        config_lib.override(config, ["model.family=gpt2(loops=0)"])
