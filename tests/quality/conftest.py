"""Runs of the smallest networks, with random weights that were never trained; two of them as workdirs, for the commands."""

import pathlib

import jax
import pytest

from dlmjax import config as config_lib
from dlmjax.data import load_tokenizer
from dlmjax.experiment import assemble, claim_workdir
from dlmjax.run import Run
from dlmjax.training import Checkpoints
from tests.models.tiny import lively


def random_run(length: int = 32, tokenizer: str = "bytes", scale: float = 1.0, **changes) -> Run:
    """A run as it would be opened on a machine with one device: eight would all do the same."""
    config = config_lib.default()
    config.data.length = length
    config.model.update(depth=2, width=16, heads=2, kv_heads=2, head_dim=8, ffn=16)
    config_lib.override(config, [f"{name.replace('__', '.')}={value}" for name, value in changes.items()])
    experiment = assemble(config, load_tokenizer(tokenizer), devices=jax.devices()[:1])
    return Run(experiment, jax.tree.map(lambda leaf: leaf * scale, lively(experiment.init(jax.random.key(0)))), 0, "raw", pathlib.Path())


@pytest.fixture(scope="session")
def masked_run():
    return random_run()


@pytest.fixture(scope="session")
def causal_run():
    return random_run(process__name="autoregressive")


def _workdir(corpus, workdir: pathlib.Path, **changes) -> pathlib.Path:
    """What training leaves behind, without the training."""
    run = random_run(data__paths=corpus, train__ema=0.0, model__depth=1, **changes)
    claim_workdir(workdir, run.experiment.config, run.experiment.tokenizer)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(2, {"params": run.params}, {"step": 2})
    return workdir


@pytest.fixture(scope="session")
def masked_workdir(small_corpus, tmp_path_factory):
    return _workdir(small_corpus, tmp_path_factory.mktemp("quality") / "masked")


@pytest.fixture(scope="session")
def causal_workdir(small_corpus, tmp_path_factory):
    return _workdir(small_corpus, tmp_path_factory.mktemp("quality") / "causal", process__name="autoregressive")
