"""Every file in configs/ loads, is checked, and describes a network whose shapes can be evaluated without a byte of memory."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import families
from dlmjax import config as config_lib
from dlmjax.data import load_tokenizer
from dlmjax.errors import InputError
from dlmjax.experiment import assemble
from dlmjax.models import Execution, build_network, model_spec
from dlmjax.models.flops import training_flops_per_token

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))


def load(name):
    return config_lib.load(str(next(path for path in CONFIGS if path.stem == name)))


def sizes(path):
    """The config at each size it comes at."""
    return [f"{path}:{size}" for size in config_lib.SIZES] if "get_config(size=" in path.read_text() else [str(path)]


# At GPT-2 small's size one family of each kind: they differ from the tiny ones by numbers alone.
KINDS = ("masked", "blocks", "hybrid", "plaid")
SIZED = [size for path in CONFIGS for size in sizes(path) if size.endswith((".py", ":tiny"))]
SIZED += [f"{CONFIGS[0].parent}/{kind}.py:gpt2_small" for kind in KINDS]
SIZED += [f"{CONFIGS[0].parent}/babylm.py:10M"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_promises_its_command(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config_lib.check(module.get_config())
    assert f"dlmjax train --config configs/{path.name}" in module.__doc__


@pytest.mark.parametrize("path", SIZED, ids=lambda path: pathlib.Path(path).name)
def test_a_training_loss_has_the_shapes_it_says(path):
    config = config_lib.load(path, ["mesh.fsdp=1", "execution.attention=dense"])
    with config.unlocked():
        config.data.batch, config.train.accumulation = 8, 1
    tokenizer = load_tokenizer("bytes")
    experiment = assemble(config, tokenizer, counts_V=np.arange(1, tokenizer.vocab_size + 1))
    batch = {name: jax.ShapeDtypeStruct((8, config.data.length), jnp.int32) for name in ("tokens", "segments", "positions")}
    batch["row"] = jax.ShapeDtypeStruct((8,), jnp.int32)
    params = jax.eval_shape(experiment.init, jax.random.key(0))
    (total, sums), gradient = jax.eval_shape(jax.value_and_grad(experiment.loss_fn, has_aux=True), params, batch, jax.random.key(0))
    assert total.shape == () and total.dtype == jnp.float32
    assert jax.tree.map(lambda g: g.shape, gradient) == jax.tree.map(lambda p: p.shape, params)
    assert {"tokens", "nats", "loss", "corrupted", "nats_by_level"} <= set(sums)


@pytest.mark.parametrize("name", families.FAMILIES)
def test_every_row_of_the_comparison_can_be_trained(name):
    file, overrides = families.FAMILIES[name]
    tokenizer = load_tokenizer("char27")
    config = config_lib.load(f"{CONFIGS[0].parent}/{file}.py:tiny", overrides)
    assert assemble(config, tokenizer, devices=jax.devices()[:1], counts_V=np.arange(1, tokenizer.vocab_size + 1)).flops_per_token > 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("configs/masked.py:huge", "choose one of 1b, gpt2_small, tiny"),
        ("configs/babylm.py:1B", "choose one of 100M, 10M, tiny"),
        ("configs/llada_8b.py:tiny", "one size"),
    ],
)
def test_a_size_that_is_not_there_is_refused(text, said):
    with pytest.raises(InputError, match=said):
        config_lib.load(str(CONFIGS[0].parents[1] / text))


@pytest.mark.parametrize(("size", "words"), [("100M", 1e8), ("10M", 1e7)])
def test_little_text_is_read_ten_times_under_a_law_that_keeps_the_bound(size, words):
    config = config_lib.load(f"{CONFIGS[0].parent}/babylm.py:{size}", ["mesh.fsdp=1", "execution.attention=dense"])
    tokens = config.train.steps * config.data.batch * config.data.length
    assert tokens == pytest.approx(10 * 1.35 * words, rel=0.02)
    tokenizer = load_tokenizer("bytes")
    experiment = assemble(config, tokenizer, devices=jax.devices()[:1], counts_V=np.arange(1, tokenizer.vocab_size + 1))
    assert experiment.objective.trains_bound and experiment.process.name == "frequency_masked"
    draws_B = np.asarray(experiment.objective.times.distribution.draw(jnp.linspace(0.0005, 0.9995, 1000)))
    low, high = np.mean(draws_B < 0.4), np.mean(draws_B > 0.6)
    assert low > 0.5 and high > 0.3, "two modes"


def test_llada_has_the_published_size():
    config = load("llada_8b")
    network = build_network(model_spec(config.model), Execution())
    # 2502.09992, table 5: 8.02B parameters, 126,464 classes, untied head.
    assert network.parameter_count == pytest.approx(8.02e9, rel=0.005)


@pytest.mark.parametrize(
    ("base", "changes", "name", "fresh"),
    [
        ("autoregressive", [], "adapt_full", set()),
        ("autoregressive", [], "adapt_blocks", set()),
        ("autoregressive", [], "joint", set()),
        ("masked", ["model.family=bert"], "diffusionbert", {"time"}),
    ],
)
def test_the_tiny_form_of_a_conversion_fits_the_run_that_its_commands_start_from(base, changes, name, fresh):
    tokenizer, folder = load_tokenizer("char27"), CONFIGS[0].parent
    source = assemble(config_lib.load(f"{folder}/{base}.py:tiny", changes), tokenizer)
    config = config_lib.load(f"{folder}/{name}.py:tiny")
    experiment = assemble(config, tokenizer, counts_V=np.arange(1, tokenizer.vocab_size + 1))
    assert set(experiment.network.spec.misfits(source.network.spec)) <= {"shift"}
    shapes, theirs = (
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(one.abstract_params())}
        for one in (experiment, source)
    )
    assert theirs.items() <= shapes.items() and {path.split("'")[1] for path in shapes.keys() - theirs.keys()} == fresh
    assert f"configs/{base}.py:tiny" in (folder / f"{name}.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("size", ["0.6B", "tiny"])
def test_blocks_grow_to_the_whole_row_and_shrink_while_the_rate_decays(size):
    config = config_lib.load(f"{CONFIGS[0].parent}/adapt_blocks.py:{size}", ["mesh.fsdp=1", "execution.attention=dense"])
    experiment = assemble(config, load_tokenizer("bytes"))
    sizes = [phase.objective.process.attention.block_size for phase in experiment.earlier] + [experiment.process.attention.block_size]
    whole = sizes.index(config.data.length)
    assert sizes[: whole + 1] == sorted(sizes[: whole + 1]) and sizes[whole:] == sorted(sizes[whole:])[::-1] and 0 < whole < len(sizes) - 1
    assert experiment.earlier[-1].share == pytest.approx(1 - config.optimizer.decay) and config.optimizer.schedule == "wsd"


@pytest.mark.parametrize("size", config_lib.SIZES)
def test_the_configs_of_the_processes_differ_in_the_noise_and_its_objective_alone(size):
    base = config_lib.leaves(config_lib.sized(size))
    for name in ("autoregressive", "masked", "blocks", "uniform", "hybrid"):
        found = config_lib.leaves(config_lib.load(f"{CONFIGS[0].parent}/{name}.py:{size}"))
        differing = {field for field in base if base[field] != found[field]}
        assert differing <= {"process.name", "process.weighting", "process.times", "model.time_input"}, name


@pytest.mark.parametrize("name", ["masked:tiny", "blocks:tiny", "uniform:tiny", "hybrid:tiny", "quickstart", "masked"])
def test_a_config_that_trains_no_bound_names_what_it_trains_and_logs_the_bound(name):
    stem, colon, size = name.partition(":")
    overrides = ["mesh.fsdp=1", "execution.attention=dense"]
    experiment = assemble(config_lib.load(f"{CONFIGS[0].parent}/{stem}.py{colon}{size}", overrides), load_tokenizer("bytes"))
    objective = experiment.objective
    assert objective.is_bound and not objective.trains_bound
    terms = {"tokens": 8, "nats": 16.0, "loss": 8.0, "corrupted": 4, "nats_by_level": [], "tokens_by_level": []}
    report = objective.report(terms)
    (trained,) = (key for key in report if key.startswith("loss"))
    assert report["nelbo"] == 2.0 and trained.endswith("_not_a_bound") and report[trained] == 1.0
    assert set(objective.summary(report)) == {"bound", "trained"}


def test_flops_count_streams_and_passes():
    spec = model_spec(load("char27_tiny").model, vocab=30)
    one, two = (training_flops_per_token(spec, 256, 0.5, streams=streams) for streams in (1, 2))
    head, scores = 3 * 0.5 * 2 * spec.width * 30, 3 * spec.depth * 4 * 256 * spec.heads * spec.head_dim
    assert two - head == pytest.approx(2 * (one - head - scores) + 4 * scores)
    assert training_flops_per_token(spec, 256, 0.5, passes=4 / 3) == pytest.approx(one * 4 / 3)


def test_flops_agree_with_the_six_n_rule():
    config = load("llada_8b")
    spec = model_spec(config.model)
    parameters = build_network(spec, Execution()).parameter_count - spec.vocab * spec.width  # the embedding is a look-up
    attention = 12 * config.data.length * spec.depth * spec.heads * spec.head_dim
    assert training_flops_per_token(spec, config.data.length) == pytest.approx(6 * parameters + attention, rel=1e-3)


def test_the_features_of_the_time_input_reach_the_network():
    tokenizer = load_tokenizer("bytes")
    path = str(next(path for path in CONFIGS if path.stem == "uniform")) + ":tiny"
    specs = [
        assemble(config_lib.load(path, overrides), tokenizer).network.spec
        for overrides in ([], ['model.time_input=adaln(features="fourier")'])
    ]
    assert [(spec.time_input, spec.time_features) for spec in specs] == [("adaln", "sinusoidal"), ("adaln", "fourier")]
    with pytest.raises(InputError, match="did you mean .features."):
        assemble(config_lib.load(path, ["model.time_input=adaln(feature=1)"]), tokenizer)
