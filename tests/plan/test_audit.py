"""Faults of a step's program: each kind is seen in a program that has it, and the steps that ship have none, compiled for TPUs."""

import dataclasses
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import pytest

from dlmjax import config as config_lib
from dlmjax.experiment import assemble
from dlmjax.parallel import Partition, make_mesh
from dlmjax.plan.audit import KINDS, StepShapes, audit, step_shapes
from dlmjax.plan.hardware import Vocabulary, compile_step, make_plan
from dlmjax.plan.topology import describe

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason='libtpu is not installed: pip install -e ".[tpu]"')
CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
MESH = {"data": 2, "fsdp": 4, "sequence": 1, "tensor": 1}
ROWS, D, V = 80, 48, 96  # rows of all chips; a chip has 10
SHAPES = StepShapes(classes=(V,), positions=ROWS // 8, stored=((D // 4, V), (D // 4, D)), used=((D, V), (D, D)), bfloat16=True)
MESH_FLAGS = ("mesh.data=1", "mesh.fsdp=2", "mesh.tensor=2")  # of four chips
PARTITION = Partition(make_mesh(*MESH.values()))


def placed(*axes):
    return PARTITION.sharding(axes)


def with_logits(x, weight):
    """A gathered head and the logits of all rows, kept by a softmax over them."""
    whole = jax.lax.with_sharding_constraint(weight.astype(jnp.bfloat16), placed(None, None))
    logits = jax.lax.with_sharding_constraint(x.astype(jnp.bfloat16) @ whole, placed("batch", None))
    return jnp.sort(logits, axis=-1)[:, 0], weight


def with_float32_gather(x, weight):
    whole = jax.lax.with_sharding_constraint(weight, placed(None, None))
    return jnp.sort(whole, axis=0)[0], weight


def with_moved_rows(x, weight):
    return jax.lax.with_sharding_constraint(jnp.sin(x), placed(None, None)), weight


def with_copies(x, weight):
    """The old weight is wanted after the new one is written."""
    return weight, weight + 1


def with_the_host(x, weight):
    like = jax.ShapeDtypeStruct((), jnp.float32)
    return jax.pure_callback(lambda total: total, like, jnp.sum(x)), weight


@pytest.mark.parametrize(
    ("step", "kind"),
    list(zip((with_logits, with_float32_gather, with_moved_rows, with_copies, with_the_host), KINDS, strict=True)),
)
def test_a_program_with_a_fault_shows_it(step, kind):
    x = jax.ShapeDtypeStruct((ROWS, D), jnp.float32, sharding=placed("batch", None))
    weight = jax.ShapeDtypeStruct((D, V), jnp.float32, sharding=placed("embed", None))
    compiled = jax.jit(step, donate_argnums=1, out_shardings=(None, placed("embed", None))).lower(x, weight).compile()
    shapes = dataclasses.replace(SHAPES, bfloat16=kind == "float32 gather")  # a CPU gathers bfloat16 as float32
    found = audit(compiled.as_text(), shapes, MESH, smallest=1024)
    assert kind in {each.kind for each in found}
    assert {each.kind for each in found} <= {kind, "parameter copy"}
    assert all(each.bytes > 0 and each.count >= 1 for each in found)


def small(name, attention="splash"):
    """The 1B config of a process with two narrow layers and a large vocabulary, on four chips: weights, then heads and classes, split."""
    config = config_lib.load(f"{CONFIGS / name}.py:1b", [f"execution.attention={attention}", *MESH_FLAGS])
    with config.unlocked():
        config.model.update(depth=2, width=512, heads=4, kv_heads=2, head_dim=128, ffn=1024, vocab=16_640)  # a size that no other axis has
        config.data.update(length=512, batch=32)
    return config


@needs_libtpu
@pytest.mark.parametrize("name", ["masked", *(pytest.param(name, marks=pytest.mark.slow) for name in ("blocks", "uniform", "hybrid"))])
def test_a_step_compiled_for_a_tpu_has_no_fault(name, capfd):
    """Splash attention forward and backward, the head in chunks, weights gathered in bfloat16, the state updated in place."""
    config = small(name)
    experiment = assemble(config, Vocabulary(config.model.vocab), devices=list(describe("v5e:2x2").devices))
    compiled = compile_step(experiment, quick=True)
    assert "Involuntary full rematerialization" not in capfd.readouterr().err
    text = compiled.as_text()
    assert text.count('custom_call_target="tpu_custom_call"') >= 3
    assert audit(text, step_shapes(experiment), dict(experiment.partition.mesh.shape), smallest=2**18) == []


@needs_libtpu
@pytest.mark.nightly
@pytest.mark.parametrize("topology", ["v5e:4x4", "v5p:2x2x4"])
@pytest.mark.parametrize("name", ["masked", "blocks", "uniform"])
def test_a_billion_parameters_have_no_fault(name, topology, capfd):
    overrides = ["execution.attention=splash", "mesh.fsdp=16", *(["execution.remat=full"] if topology.startswith("v5e") else [])]
    config = config_lib.load(f"{CONFIGS / name}.py:1b", overrides)
    plan = make_plan(config, describe(topology), Vocabulary(config.model.vocab), quick=True)
    assert "Involuntary full rematerialization" not in capfd.readouterr().err
    assert plan.fits and plan.faults == () and plan.load.parameters > 1e9
