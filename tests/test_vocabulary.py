"""A vocabulary that grows at `--init`: old tokens keep their rows and their logits, new ones begin at the mean, and the log lists them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax import config as config_lib
from dlmjax.data import load_tokenizer
from dlmjax.errors import InputError
from dlmjax.experiment import assemble, claim_workdir
from dlmjax.origin import _by_path, first_state
from dlmjax.run import open_run
from dlmjax.training import Checkpoints
from tests.models.tiny import lively
from tests.test_train import said

OWN = ["<|endoftext|>", "<|mask|>", "<|pad|>"]
ADDED = ("<|im_start|>", "<|im_end|>")


def tokenizer_of(root, name: str, first: list[str], then: tuple[str, ...] = (), words: str = "How many? Two three\n"):
    """A small byte-level BPE with special tokens before its vocabulary and after it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=first, show_progress=False
    )
    backend.train_from_iterator([words * 9], trainer)
    backend.add_special_tokens(list(then))
    (root / name).mkdir()
    backend.save(str(root / name / "tokenizer.json"))
    return load_tokenizer(f"hf:{root / name}")


def experiment_of(tokenizer, **changes):
    config = config_lib.default()
    config.data.update(length=16, batch=8)
    config.model.update(depth=1, width=16, heads=2, kv_heads=2, head_dim=8, ffn=16)
    config_lib.override(config, [f"{name.replace('__', '.')}={value}" for name, value in changes.items()])
    return assemble(config, tokenizer, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """name -> (workdir, tokenizer): one whose tokenizer has mask and pad of its own, and one to which they were added behind it."""
    root, found = tmp_path_factory.mktemp("vocabulary"), {}
    for name, first, changes in (
        ("own", OWN, {}),
        ("behind", OWN[:1], {"process__name": "uniform", "model__time_input": "add", "model__tied": True}),
    ):
        tokenizer = tokenizer_of(root, name, first)
        experiment = experiment_of(tokenizer, train__ema=0.0, **changes)
        claim_workdir(root / f"{name}_run", experiment.config, tokenizer)
        with Checkpoints(root / f"{name}_run" / "checkpoints") as checkpoints:
            checkpoints.save(2, {"params": lively(experiment.init(jax.random.key(0)))}, {"step": 2})
        found[name] = (root / f"{name}_run", tokenizer, changes)
    return found


def logits_of(experiment, params, tokens_BL):
    shown = jnp.ones_like(tokens_BL), jnp.tile(jnp.arange(tokens_BL.shape[1]), (len(tokens_BL), 1))
    denoiser = experiment.unpartitioned.bind(jax.tree.map(jnp.asarray, jax.device_get(params)), *shown)
    with jax.disable_jit():
        return np.asarray(denoiser.logits(denoiser.hidden(tokens_BL, jnp.full(tokens_BL.shape, 0.3))))


GROWN = {
    "own ids": ("own", OWN, ADDED, {}),
    "ids that move": ("behind", OWN[:1], ADDED, {}),
    "same tokenizer": ("own", None, (), {"model__vocab": 290}),
}


@pytest.mark.parametrize("case", GROWN)
def test_old_tokens_keep_their_logits_and_new_ones_begin_at_the_mean(sources, tmp_path, case):
    name, first, then, changes = GROWN[case]
    workdir, old, own = sources[name]
    new = old if first is None else tokenizer_of(tmp_path, "grown", first, then)
    experiment, source = experiment_of(new, **own, **changes), open_run(workdir)
    with said() as out:
        state, _, origin = first_state(experiment, None, "", str(workdir))
    # The ids of the old tokens there and here: by what they say, and those of the run's own by what they are for.
    ids = {i: i for i in range(old.vocab_size) if i not in (old.mask_id, old.pad_id, old.eos_id)}
    ids |= {getattr(old, each): getattr(new, each) for each in ("mask_id", "pad_id", "eos_id")}
    there, here = np.array(list(ids)), np.array(list(ids.values()))
    rows_BL = np.random.default_rng(0).integers(0, len(there), (2, 16))
    before = logits_of(source.experiment, source.params, jnp.asarray(there[rows_BL]))[..., there]
    after = logits_of(experiment, state["params"], jnp.asarray(here[rows_BL]))
    np.testing.assert_array_equal(after[..., here], before)
    added = np.setdiff1d(np.arange(experiment.process.vocab), here)
    assert len(added) == experiment.process.vocab - source.process.vocab > 0 and origin == "init"
    made, grown = dict(_by_path(state["params"])), set()
    for path, weight in _by_path(jax.device_get(source.params)):
        if source.process.vocab in weight.shape:
            axis = weight.shape.index(source.process.vocab)
            mean = np.take(weight, np.flatnonzero(old.byte_lengths_V), axis).mean(axis=axis)
            rows = np.moveaxis(np.take(np.asarray(made[path]), added, axis), axis, 0)
            np.testing.assert_allclose(rows, np.tile(mean, (len(added), 1)), rtol=1e-5, atol=1e-7)
            grown.add(".".join(path))
    if experiment.config.train.ema:
        jax.tree.map(np.testing.assert_array_equal, state["ema"], state["params"])
    listed = dict(re.findall(r"([\w.]+), rows of new ids \(([\d.]+)%\)", out.getvalue().partition("fresh: ")[2]))
    assert set(listed) == grown and len(grown) == (1 if own.get("model__tied") else 2)
    size = len(added) * 16 / experiment.parameter_count
    assert all(float(share) == pytest.approx(100 * size, abs=0.006) for share in listed.values())


def test_what_is_no_growth_is_refused(sources, tmp_path):
    """Other ids, other merges, fewer classes, no class for the new ids, and a fork, which keeps the optimizer's state."""
    workdir, old, _ = sources["own"]
    grown = tokenizer_of(tmp_path, "grown", OWN, ADDED)
    moved = tokenizer_of(tmp_path, "moved", [*ADDED, *OWN])
    merges = tokenizer_of(tmp_path, "merges", OWN, ADDED, words="other words altogether\n")
    for tokenizer in (moved, merges, load_tokenizer("bytes")):
        with pytest.raises(InputError, match="trained with another tokenizer.*new ones after them"), said():
            first_state(experiment_of(tokenizer, model__vocab=300), None, "", str(workdir))
    with pytest.raises(InputError, match="trained with another tokenizer"), said():
        first_state(experiment_of(grown), None, str(workdir), "")
    with pytest.raises(InputError, match="model.vocab"), said():
        first_state(experiment_of(old, model__vocab=290), None, str(workdir), "")
    experiment = experiment_of(old, model__vocab=300)
    claim_workdir(tmp_path / "padded", experiment.config, old)
    with Checkpoints(tmp_path / "padded" / "checkpoints") as checkpoints:
        checkpoints.save(2, {"params": experiment.init(jax.random.key(0)), "ema": experiment.init(jax.random.key(0))}, {"step": 2})
    with pytest.raises(InputError, match="give --config.model.vocab above 300"), said():
        first_state(experiment_of(grown, model__vocab=300), None, "", str(tmp_path / "padded"))
    with pytest.raises(InputError, match=f"model.vocab: vocab is 300 there and {old.vocab_size} here"), said():
        first_state(experiment_of(old), None, "", str(tmp_path / "padded"))
