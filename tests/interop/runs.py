"""Workdirs without training: a config, a tokenizer, and a checkpoint of random weights in which every weight matters."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from dlmjax import config as config_lib
from dlmjax.data import load_tokenizer
from dlmjax.experiment import assemble, claim_workdir
from dlmjax.interop.views import Exported
from dlmjax.training import Checkpoints

LENGTH = 24


def config_of(**changes):
    """Two layers of 32; changes are leaves as in `model__width=64`."""
    config = config_lib.default()
    config.data.update(length=LENGTH, batch=8)
    config.model.update(depth=2, width=32, heads=4, kv_heads=2, head_dim=8, ffn=48)
    config_lib.override(config, [f"{name.replace('__', '.')}={value}" for name, value in changes.items()])
    return config


def experiment_of(tokenizer="bytes", **changes):
    """A config made real."""
    tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
    counts = np.ones(tokenizer.vocab_size, np.int64)
    return assemble(config_of(**changes), tokenizer, devices=jax.devices()[:1], counts_V=counts)


def exported(tokenizer="bytes", **changes):
    """What a view is asked about, of such a config."""
    experiment = experiment_of(tokenizer, **changes)
    return Exported(experiment.network.spec, experiment.process, experiment.tokenizer, LENGTH)


def lively(experiment, seed=0):
    """Weights of which none is without effect: normal noise, around 1 where it scales; nothing is compiled for it."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(experiment.init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray((path[-1].key == "scale") + 0.1 * rng.normal(size=leaf.shape), jnp.float32), shapes
    )


def save_run(workdir: pathlib.Path, experiment, params, step=5) -> pathlib.Path:
    """A workdir whose averaged weights are `params`."""
    claim_workdir(workdir, experiment.config, experiment.tokenizer)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(step, {"params": jax.tree.map(jnp.zeros_like, params), "ema": params}, {"step": step, "metric": None})
    return workdir


def random_run(workdir: pathlib.Path, tokenizer="bytes", **changes) -> tuple:
    """(workdir, experiment, weights)."""
    experiment = experiment_of(tokenizer, **changes)
    params = lively(experiment)
    return save_run(workdir, experiment, params), experiment, params


def our_logits(experiment, params, tokens_BL, segments_BL=None, attention="full"):
    """Float32 logits of dlmjax's network."""
    segments_BL = np.ones(tokens_BL.shape, np.int32) if segments_BL is None else segments_BL

    @jax.jit
    def logits(params, tokens_BL, segments_BL):
        positions_BL = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1]), tokens_BL.shape)
        denoiser = experiment.unpartitioned.bind(params, segments_BL, positions_BL, attention)
        return denoiser.logits(denoiser.hidden(tokens_BL, jnp.zeros(tokens_BL.shape)))

    return np.asarray(logits(params, jnp.asarray(tokens_BL), jnp.asarray(segments_BL)))


def shipped(directory: pathlib.Path, name="load_dlm"):
    """A module that lies beside exported weights."""
    spec = importlib.util.spec_from_file_location(f"{name}_of_{directory.name}", directory / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
