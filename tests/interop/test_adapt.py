"""Autoregressive weights that come in from a file are a better start for masked diffusion than none."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax import config as config_lib
from dlmjax.cli.main import main
from dlmjax.data import TrainWindows, train_batches
from dlmjax.experiment import assemble, open_corpora
from dlmjax.interop.layouts import LAYOUTS
from dlmjax.interop.safetensors import Tensor, write_sharded
from dlmjax.models import build_network, model_spec
from dlmjax.origin import first_state
from dlmjax.run import open_run
from dlmjax.train import train
from dlmjax.training import init_state, make_train_step
from tests.test_train import losses, tiny_config

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "adapt_qwen3.py"
SIZES = ("depth", "width", "heads", "kv_heads", "head_dim", "ffn")


def as_qwen3(spec, params, directory):
    """Weights of ours as Qwen3's files hold them."""
    host = jax.tree.map(np.asarray, params)

    def weight(path, layer):
        leaf = host
        for key in path:
            leaf = leaf[key]
        return leaf if layer is None else leaf[layer]

    def tensor(entry):
        ours = [weight(path, entry.layer) for path in entry.paths]
        return Tensor(entry.name, entry.shape, np.dtype(np.float32), lambda: entry.pack(ours))

    write_sharded(directory, [tensor(entry) for entry in LAYOUTS["qwen3"].entries(spec)])
    names = dict(num_hidden_layers=spec.depth, hidden_size=spec.width, num_attention_heads=spec.heads, num_key_value_heads=spec.kv_heads)
    names |= dict(head_dim=spec.head_dim, intermediate_size=spec.ffn, vocab_size=spec.vocab, rms_norm_eps=spec.norm_eps)
    (directory / "config.json").write_text(json.dumps({"model_type": "qwen3", **names, "rope_theta": spec.rope_base}))


@pytest.fixture(scope="module")
def imported(small_corpus, tmp_path_factory):
    """(workdir, experiment and weights of its source): a causal model, briefly trained on one device, written as Qwen3 and imported."""
    root = tmp_path_factory.mktemp("adapt")
    config = tiny_config(small_corpus, process__name="autoregressive", train__ema=0.0, optimizer__name="adamw")
    corpora = open_corpora(config, "train")
    experiment = assemble(config, corpora[0].tokenizer, devices=jax.devices()[:1])
    state = init_state(experiment.init, experiment.optimizer, jax.random.key(0), ema=False)
    step, batches = (
        make_train_step(experiment.loss_fn, experiment.optimizer, ema_decay=0.0, hyperparameters=experiment.hyperparameters),
        batches_of(config, corpora),
    )
    for _ in range(80):
        state, _ = step(state, next(batches), jax.random.key(0))
    as_qwen3(experiment.network.spec, state["params"], root / "hf")
    flags = ["--source", str(root / "hf"), "--workdir", str(root / "imported"), "--tokenizer", "bytes", "--length", "32"]
    assert main(["import", *flags]) == 0
    return root / "imported", experiment, state["params"]


def batches_of(config, corpora):
    """The batches of a run, on one device."""
    windows = TrainWindows(corpora, None, config.data.length, config.data.batch, config.seed, config.data.packing)
    for batch in train_batches(windows, rows=range(config.data.batch), start_step=0):
        yield jax.tree.map(jnp.asarray, batch)


def test_what_was_imported_is_what_was_written(imported):
    workdir, experiment, params = imported
    run = open_run(str(workdir))
    jax.tree.map(np.testing.assert_array_equal, run.params, params)
    assert run.experiment.process == experiment.process and run.experiment.network.spec == experiment.network.spec


@pytest.mark.slow
def test_adaptation_starts_below_random_weights(imported, tmp_path):
    """The first batch and noise of the run under both sets of weights; then the run itself, by the config that ships."""
    workdir, causal, _ = imported
    sizes = [f"model.{name}={causal.config.model[name]}" for name in (*SIZES, "rope_base")]
    short = ["train.steps=2", "train.ema=0.9", "data.length=32", "data.batch=8", "optimizer.warmup=1", "optimizer.name=adamw"]
    quiet = ["log.every=1", "log.evaluate=0", "log.sample=0", "execution.scan=True"]
    config = config_lib.load(f"{CONFIG}:tiny", [*sizes, *short, *quiet, f"data.paths={causal.config.data.paths[0]}"])

    corpora = open_corpora(config, "train")
    experiment = assemble(config, corpora[0].tokenizer, devices=jax.devices()[:1])
    batch = next(batches_of(config, corpora))
    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    loss = jax.jit(lambda params: experiment.loss_fn(params, batch, key)[0] / batch["tokens"].size)
    imported_params, fresh = jax.device_get(open_run(str(workdir)).params), experiment.init(jax.random.key(1))
    adapted, scratch = float(loss(imported_params)), float(loss(fresh))
    assert adapted < 0.9 * scratch

    train(config, str(tmp_path / "adapted"), init=str(workdir))
    assert losses(tmp_path / "adapted")[1] == pytest.approx(adapted, rel=1e-4)


def test_the_configs_of_conversions_start_from_autoregressive_weights(imported):
    """All weights match. At step 0 the joint loss holds the loss of the autoregressive model, to rounding."""
    workdir, causal, _ = imported
    sizes = [f"model.{name}={causal.config.model[name]}" for name in (*SIZES, "rope_base")]
    small = ["data.length=32", "data.batch=8", "process.times=stratified", f"data.paths={causal.config.data.paths[0]}"]
    corpora = open_corpora(causal.config, "train")
    batch, key, found = next(batches_of(causal.config, corpora)), jax.random.key(0), {}
    for name in ("adapt_full", "adapt_blocks", "joint"):
        before = ["process.before=blocks(size=4, seeded=True)@0.1,blocks(size=32, seeded=True)@0.5"] if name == "adapt_blocks" else []
        config = config_lib.load(str(CONFIG.with_name(f"{name}.py")) + ":tiny", [*sizes, *small, *before])
        experiment = assemble(config, corpora[0].tokenizer, devices=jax.devices()[:1])
        params = first_state(experiment, None, "", str(workdir))[0]["params"]
        jax.tree.map(np.testing.assert_array_equal, params, open_run(str(workdir)).params)
        found[name] = experiment
    _, terms = jax.jit(found["joint"].loss_fn)(params, batch, key)
    nats, _ = jax.jit(causal.loss_fn)(params, batch, key)
    assert float(terms["text_nats"]) == pytest.approx(float(nats), rel=1e-5)


def test_the_config_has_the_published_sizes():
    """Weights of Qwen3-0.6B with a tied head and of Qwen3-8B, of GPT-2 medium with two more ids, of BERT, as their files hold them."""
    published = {"adapt_qwen3:0.6B": 596_049_920, "adapt_qwen3:8B": 8_190_735_360, "adapt_blocks:8B": 8_190_735_360}
    published |= {"adapt_full:gpt2_medium": 354_823_168 + 2 * 1024, "diffusionbert:base": 109_514_298}
    for name, count in published.items():
        model = config_lib.load_config(name).model
        assert build_network(dataclasses.replace(model_spec(model), time_input="none")).parameter_count == count, name
