"""Counts from shapes are those of the arrays that training holds, and of the program that XLA compiles."""

import dataclasses
import pathlib

import jax
import pytest

from dlmjax import config as config_lib
from dlmjax.diffusion.process import init_params
from dlmjax.plan.hardware import Vocabulary, alone
from dlmjax.sweep import ladder
from dlmjax.sweep.counts import count, with_shape

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
# Objectives that ask for something of their own: a causal mask, two streams, modulation by the level, vectors and what is learned.
FAMILIES = ("autoregressive", "masked", "blocks", "uniform", "plaid")
VOCAB = 256


def experiment_of(family: str, *overrides: str):
    config = config_lib.load(f"{CONFIGS / family}.py:tiny", overrides)
    return alone(config, Vocabulary(VOCAB))


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_those_that_are_trained(family):
    experiment = with_shape(experiment_of(family), ladder.shape(48))
    found = count(experiment)
    made = jax.eval_shape(lambda: experiment.init(jax.random.key(0)))
    assert jax.tree.leaves_with_path(experiment.abstract_params()) == jax.tree.leaves_with_path(made)
    assert found.parameters == experiment.parameter_count == sum(leaf.size for leaf in jax.tree.leaves(made))
    if family != "plaid":
        table = head = VOCAB * 48
        assert (found.non_embedding, found.active) == (found.parameters - table - head, found.parameters - table)
    else:  # its network reads vectors; the table is the process's
        learned = jax.eval_shape(lambda: init_params(experiment.process, jax.random.key(0)))
        assert found.parameters - found.active == max(leaf.size for leaf in jax.tree.leaves(learned))


def test_the_dial_counts_what_the_default_family_has():
    for width in (16, 40, 128, 256):
        shape = ladder.shape(width)
        found = count(with_shape(experiment_of("masked"), shape))
        assert found.non_embedding == shape.parameters()
        assert found.parameters == shape.parameters(VOCAB)


def test_tied_and_transformed_heads_and_tables_of_positions():
    experiment = experiment_of("masked", "model.tied=true")
    tied, width = count(experiment), experiment.config.model.width
    assert tied.active == tied.parameters and tied.non_embedding == tied.parameters - VOCAB * width
    bert = count(experiment_of("masked", "model.family=bert"))
    tables, head = (VOCAB + 512 + 2) * width, VOCAB * width + VOCAB
    assert bert.non_embedding == bert.parameters - tables - head and bert.active == bert.parameters - tables


def test_a_shape_that_is_put_in_counts_as_one_that_was_assembled():
    shape = ladder.shape(64)
    overrides = [f"model.{name}={value}" for name, value in dataclasses.asdict(shape).items()]
    assert count(with_shape(experiment_of("hybrid"), shape)) == count(experiment_of("hybrid", *overrides))


def test_rematerialisation_is_hardware_work_alone():
    plain, full = count(experiment_of("masked")), count(experiment_of("masked", "execution.remat=full"))
    assert plain.hardware_flops_per_token == pytest.approx(plain.flops_per_token)
    assert full.flops_per_token == plain.flops_per_token
    assert 1.15 < full.hardware_flops_per_token / full.flops_per_token < 4 / 3


def gradient_of_one_layer(family: str, *overrides: str):
    """(experiment, the lowered gradient of one window) at a width where matrix products are nearly all there is.

    XLA counts a loop's body once, and the head is a loop over chunks of the rows that carry loss, as many as the draw asks for. So the
    chunk is made the rows of a mean draw: once is then right.
    """
    shape = dataclasses.replace(ladder.shape(256), depth=1)
    sizes = [f"model.{name}={value}" for name, value in dataclasses.asdict(shape).items()]
    rows = int({"masked": 0.5, "blocks": 0.5}.get(family, 1.0) * 128)
    chunk = f"execution.head_chunk={rows}"
    experiment = experiment_of(family, *sizes, "execution.scan=false", "data.batch=1", "data.length=128", chunk, *overrides)
    gradient = jax.jit(jax.grad(lambda params, batch, key: experiment.loss_fn(params, batch, key)[0]))
    state, batch, key = experiment.abstract_arguments()
    return experiment, gradient.lower(state["params"], batch, key)


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("autoregressive", ()),
        ("masked", ()),
        ("blocks", ("execution.scan=true", "data.length=64", "execution.head_chunk=32")),
        ("uniform", ()),
        ("masked", ("model.family=qwen3(loops=2)",)),
    ],
)
def test_flops_are_within_three_percent_of_what_xla_compiles(family, overrides):
    """Blocks as a scan computes short rows: else the last layer leaves out the clean stream, and attention the tiles that the mask forbids,
    which the count of a model's FLOPs does not follow: it is the same on every device. That of the hardware does, below."""
    experiment, lowered = gradient_of_one_layer(family, *overrides)
    compiled = lowered.compile({"xla_backend_optimization_level": 0})  # what is computed is the same, and soon there
    assert experiment.config.data.length * experiment.flops_per_token == pytest.approx(compiled.cost_analysis()["flops"], rel=0.03)


UNROLLED = ("model.depth=2",)
TIMED_BLOCKS = ("process.name=blocks(size=4,noise='uniform')", "process.weighting=bound", "model.time_input=adaln")
HARDWARE = [
    ("uniform", ("execution.remat=full",)),
    ("masked", ("execution.remat=full",)),
    ("masked", ("execution.remat=full", "model.family=bert")),
    ("blocks", (*TIMED_BLOCKS, "execution.head_chunk=128", *UNROLLED)),
    ("masked", ("execution.remat=dots",)),
    ("blocks", UNROLLED),
    ("blocks", (*UNROLLED, "data.length=32", "execution.head_chunk=16")),
    ("autoregressive", (*UNROLLED, "data.length=512", "execution.head_chunk=512")),
]


@pytest.mark.parametrize(("family", "overrides"), HARDWARE)
def test_what_is_computed_is_counted_as_xla_does(family, overrides):
    """Modulation, rematerialisation, the last layer of two streams; with long rows, of which attention leaves out tiles, and short ones."""
    experiment, lowered = gradient_of_one_layer(family, *overrides)
    found, length = count(experiment), experiment.config.data.length
    assert length * found.hardware_flops_per_token == pytest.approx(lowered.cost_analysis()["flops"], rel=0.03)
    assert "remat" in str(overrides) or found.hardware_flops_per_token <= found.flops_per_token * (1 + 1e-9)
