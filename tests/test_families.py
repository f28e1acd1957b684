"""Every noise family as a run: trained through the whole trainer's loss, on one device and on eight, from its own config."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlmjax import config as config_lib
from dlmjax.choices import parse
from dlmjax.data import load_tokenizer
from dlmjax.diffusion.registry import PROCESSES
from dlmjax.experiment import assemble
from tests.models.tiny import lively, worst

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
FAMILIES = sorted(path.stem for path in CONFIGS.glob("*.py") if "get_config(size=" in path.read_text())
BATCH, LENGTH = 8, 16
TOKENIZER = load_tokenizer("char27")


def experiment_of(family, devices, process=None, time_input=None, **mesh):
    config = config_lib.load(f"{CONFIGS}/{family}.py:tiny")
    with config.unlocked():
        config.data.update(batch=BATCH, length=LENGTH)
        # Eight heads, so that they can be split; a vocabulary that divides.
        config.model.update(depth=2, width=32, heads=8, kv_heads=8, head_dim=8, ffn=64, vocab=32)
        config.model.anchor_depth = min(config.model.anchor_depth, 1)
        config.mesh.update(**mesh)
        if family == "adapt_blocks":  # blocks that fit a row of 16
            config.process.update(name="blocks(size=8, seeded=True)", before=("blocks(size=4, seeded=True)@0.5",))
        if process:  # with its own weighting and times, not those of the config's process
            config.process.update(name=process, weighting="", times="stratified")
        config.model.time_input = time_input or config.model.time_input
    return assemble(config, TOKENIZER, devices=devices, counts_V=np.arange(32) + 1)


@functools.cache
def weights(*case):
    return lively(experiment_of(case[0], jax.devices()[:1], *case[1:]).init(jax.random.key(0)))


def text():
    segments_BL = np.ones((BATCH, LENGTH), np.int32)
    segments_BL[:, -3:] = 0
    return {
        "tokens": np.random.default_rng(0).integers(0, 27, (BATCH, LENGTH)).astype(np.int32),
        "segments": segments_BL,
        "positions": np.tile(np.arange(LENGTH, dtype=np.int32), (BATCH, 1)),
        "row": np.arange(BATCH, dtype=np.int32),
    }


def loss_and_gradient(experiment, params):
    batch = text()
    params = jax.device_put(params, experiment.param_shardings)
    run = jax.jit(jax.value_and_grad(experiment.loss_fn, has_aux=True))
    (total, sums), gradient = run(params, experiment.partition.put_batch(batch), jax.random.key(1))
    return jax.device_get((total, sums, gradient))


# (config, process, time input). Always run is the one case that has most of what a mesh could break: two streams, sums over classes and
# times per block that the network reads.
IN_BLOCKS = [("blocks", f"blocks(size=4, noise={noise})", "adaln") for noise in ("uniform", "hybrid")]
SLOW = (("blocks",), ("hybrid",))
EVERY = [IN_BLOCKS[0], *(pytest.param(case, marks=pytest.mark.slow) for case in (*SLOW, IN_BLOCKS[1]))]
EVERY += [pytest.param((name,), marks=pytest.mark.nightly) for name in FAMILIES if (name,) not in SLOW]


@pytest.mark.parametrize("case", EVERY, ids=lambda case: case[-2] if len(case) > 1 else case[0])
def test_a_family_computes_the_same_on_eight_devices(case):
    """Levels, noise, hints and gradients, those of what the process learns too, do not depend on the mesh."""
    family, *values = case
    one = loss_and_gradient(experiment_of(family, jax.devices()[:1], *values), weights(*case))
    eight = loss_and_gradient(experiment_of(family, jax.devices(), *values, data=2, fsdp=2, tensor=2), weights(*case))
    assert np.isfinite(one[0]) and one[0] != 0
    np.testing.assert_allclose(eight[0], one[0], rtol=1e-4)
    assert int(eight[1]["tokens"]) == int(one[1]["tokens"]) and int(eight[1]["corrupted"]) == int(one[1]["corrupted"])
    if "bias" in one[2]["layers"]["key"]:  # moves all scores of a query alike: its gradient is rounding
        assert all(np.abs(found[2]["layers"]["key"].pop("bias")).max() < 1e-5 for found in (one, eight))
    assert worst(eight[2], one[2]) < 2e-3
    if getattr(experiment_of(family, jax.devices()[:1], *values).process, "frozen", False):
        return  # an embedding that is given, not learned
    silent = [path for path, leaf in jax.tree_util.tree_leaves_with_path(one[2].get("process", {})) if not np.abs(leaf).max() > 0]
    assert not silent, "every learned value has a gradient"


@pytest.mark.parametrize("case", [IN_BLOCKS[0], ("lomdm",)], ids=lambda case: case[0])
def test_a_family_learns_a_text_of_two_tokens(case):
    """Uniform noise in blocks of four, which changes tokens; rates of the text, learned with the network. What is trained is the bound."""
    experiment = experiment_of(case[0], jax.devices()[:1], *case[1:])
    assert experiment.objective.trains_bound
    adam, batch = optax.adam(1e-2), jax.tree.map(jnp.asarray, text())
    batch["tokens"] = batch["positions"] % 2

    @jax.jit
    def step(params, state, key):
        (_, sums), gradient = jax.value_and_grad(experiment.loss_fn, has_aux=True)(params, batch, key)
        updates, state = adam.update(gradient, state)
        return optax.apply_updates(params, updates), state, sums["nats"] / sums["tokens"]

    params = experiment.init(jax.random.key(0))
    state, keys = adam.init(params), jax.random.split(jax.random.key(1), 40)
    before = np.mean([step(params, state, key)[2] for key in keys])
    trained = params
    for key in keys:
        trained, state, _ = step(trained, state, key)
    after = np.mean([step(trained, state, key)[2] for key in keys])
    assert after < before / 2, "the same noise, before and after"
    moved = jax.tree.map(lambda new, old: float(jnp.abs(new - old).max()), trained.get("process", {}), params.get("process", {}))
    assert all(change > 0 for change in jax.tree.leaves(moved)), "all that the process learns is trained"


def test_the_flops_of_a_process_with_networks_count_its_passes():
    """LoMDM: two denoisings of every row, a network over the text, and one over each of the two noisy rows."""
    masked, lomdm = (experiment_of("lomdm", jax.devices()[:1], process=name) for name in ("masked", "lomdm"))
    own = lomdm.process.capabilities.own_flops
    assert lomdm.flops_per_token == pytest.approx(2 * masked.flops_per_token + own)
    text, noisy = (leaf["kernel"].size + leaf["out"].size for leaf in map(lomdm.abstract_params()["process"].get, ("text", "noisy")))
    assert own == 6 * (text + 2 * noisy)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_evaluated(family):
    """Window by window: neither the batch that a window comes in nor its place there changes its bound."""
    evaluator, batch = experiment_of(family, jax.devices()[:1]).evaluator(nodes=2), text()
    found = []
    for order in ([0, 1, 2], [3, 4]), ([4, 2, 3], [0], [1]):
        batches = [{name: values[rows] for name, values in batch.items()} for rows in order]
        found.append(evaluator.measure(weights(family), batches))
    one, other = found
    assert one.tokens_W.tolist() == [LENGTH - 3] * 5 and np.isfinite(one.nats_W).all()
    np.testing.assert_allclose(other.nats_W, one.nats_W, rtol=1e-5)
    # Weights are random: five texts that differ are not bounded alike, and a bound below a third of the uniform law's is not a bound.
    assert len(set(one.nats_W.round(3))) == 5 and one.nats_W.mean() > (LENGTH - 3) * np.log(27) / 3


def test_every_process_is_in_a_config_or_a_variant_of_one():
    """A family that a user cannot start from a config is not shipped."""
    shipped = {parse(config_lib.load(f"{CONFIGS}/{family}.py:tiny").process.name)[0] for family in FAMILIES}
    variants = {"masked_count", "masked_lambda", "llada", "mixed", "spindle", "gaussian"}
    assert set(PROCESSES) <= shipped | variants
