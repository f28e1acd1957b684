"""A prompt is the same text to training and to evaluation, in every pass, under every process: clean, read, and without loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import Objective, PerRow, make_process, nats_at, row_keys
from dlmjax.diffusion.oracle.toy import ToyDenoiser
from dlmjax.diffusion.process import bind_process, init_params
from dlmjax.diffusion.registry import PROCESSES
from dlmjax.evaluation import Evaluator

VOCAB, ROWS, LENGTH = 8, 16, 6
FACTS = dict(vocab=VOCAB, mask_id=5, pad_id=6, bos_id=7, eos_id=7, excluded=(6,), counts_V=tuple(range(8)))
KEY = jax.random.key(3)
X_BL = np.random.default_rng(0).integers(0, 5, (ROWS, LENGTH)).astype(np.int32)
BATCH = {
    "tokens": jnp.asarray(X_BL),
    "segments": jnp.asarray(np.arange(LENGTH) < LENGTH - 1, jnp.int32) * jnp.ones((ROWS, 1), jnp.int32),
    "positions": jnp.tile(jnp.arange(LENGTH), (ROWS, 1)),
    "row": jnp.arange(ROWS),
}
VALID_BL = np.asarray(BATCH["segments"]) > 0


@dataclasses.dataclass(frozen=True, eq=False)
class Reader(ToyDenoiser):
    """Reads states of any kind; every output depends on every position. Writes down what it is handed."""

    calls: list = dataclasses.field(default_factory=list)

    def hidden(self, z_BL, t_BL, hint_BLI=None):
        self.calls.append((z_BL, t_BL))
        z_BLF = z_BL.astype(jnp.float32).reshape(*t_BL.shape, -1) / 3
        weight_FV = jnp.asarray(np.random.default_rng(1).normal(size=(z_BLF.shape[-1], VOCAB)), jnp.float32)
        own_BLV = jnp.sin(z_BLF @ weight_FV)
        order_L = jnp.arange(1.0, LENGTH + 1)
        return own_BLV + jnp.einsum("blv,l->bv", own_BLV, order_L)[:, None] / LENGTH + t_BL[..., None]


class SameNoise(Evaluator):
    """An evaluation under the noise of a training step."""

    def _keys(self, row_B, tag):
        return row_keys(jax.random.split(KEY, 3)[2], row_B)


# With noise left at t = 0 and text left at t = 1, where a process can have them.
_CLIPPED, _NOISY = {"eps": 0.3}, {"dim": 4, "gamma_0": 0.0}
VALUES = {
    **dict.fromkeys(("masked", "llada", "d3pm", "uniform", "duo", "score", "flow_matching"), _CLIPPED),
    "blocks": {"size": 2, **_CLIPPED},
    **dict.fromkeys(("gaussian", "plaid", "diffusion_lm", "sed", "embedding_flow"), _NOISY),
}


def times_of(name):
    """The times that a network under this process is given in training, with the prompts of `KEY`."""
    process, denoiser = make_process(name, **FACTS), Reader(None, VOCAB)
    Objective(process, process.time_domain.adapt(PerRow()), prompt=1.0)(denoiser, BATCH, KEY, ROWS)
    return denoiser.calls[0][1]


@pytest.mark.parametrize("name", PROCESSES)
def test_training_and_evaluation_agree_given_a_prompt(name):
    process = make_process(name, **FACTS, **VALUES.get(name, {}))
    params = {"process": init_params(process, jax.random.key(0))}
    held = bind_process(process, params)
    denoiser, objective = Reader(None, VOCAB), Objective(process, process.time_domain.adapt(PerRow()), prompt=1.0, boundary=True)
    _, parts = objective.bind(params)(denoiser, BATCH, KEY, ROWS)
    # A prompt is read off the times that the network is given; autoregression gives 0 everywhere, and draws the prompts of the others.
    times_BL = times_of("masked") if name == "autoregressive" else denoiser.calls[0][1]
    condition_BL = VALID_BL & (np.asarray(times_BL) == 0)
    assert condition_BL.any(axis=1).all() and 0 < condition_BL.sum() < VALID_BL.sum()
    for z_BL, t_BL in denoiser.calls:
        z_BL = np.asarray(z_BL)
        if not process.attention.causal:
            np.testing.assert_array_equal(z_BL[condition_BL], np.asarray(held.states.of_tokens(BATCH["tokens"]))[condition_BL])
        assert (np.asarray(held.time_embedding_input(jnp.zeros_like(t_BL)))[condition_BL] == np.asarray(t_BL)[condition_BL]).all()
    scored_BL = jnp.asarray(VALID_BL & ~condition_BL)
    assert int(parts["tokens"]) == scored_BL.sum()

    # The same noise and levels by way of the functions that an evaluation integrates.
    if not process.capabilities.reinforce:
        z_BL, _ = denoiser.calls[0]
        t_BL = objective.times.draw(jax.random.split(KEY, 3)[0], BATCH["row"], ROWS, LENGTH)[0]
        keys_B, again = row_keys(jax.random.split(KEY, 3)[1], BATCH["row"]), Reader(None, VOCAB)
        nats_at(held, again, BATCH["tokens"], BATCH["segments"], keys_B, t_BL, scored_BL=scored_BL)
        np.testing.assert_array_equal(again.calls[0][0], z_BL)
    if process.bound is process and process.boundary.any:
        evaluator = SameNoise(process, lambda params, *_, **__: Reader(None, VOCAB))
        prior_BL, reconstruction_BL = evaluator._boundary_nats(params, {**BATCH, "scored": scored_BL}, 0)
        assert float(parts["prior"]) == pytest.approx(float(prior_BL.sum()), rel=1e-5, abs=1e-6)
        assert float(parts["reconstruction"]) == pytest.approx(float(reconstruction_BL.sum()), rel=1e-5, abs=1e-6)
        assert (float(parts["reconstruction"]) != 0) == process.boundary.reconstruction


@dataclasses.dataclass(frozen=True, eq=False)
class Replay(Reader):
    """Returns the hidden states of the calls of another reader, one after another, whatever it is handed."""

    states: list = dataclasses.field(default_factory=list)

    def hidden(self, z_BL, t_BL, hint_BLI=None):
        self.calls.append((z_BL, t_BL))
        z_BL, t_BL = self.states[len(self.calls) - 1]
        return Reader(None, VOCAB).hidden(z_BL, t_BL)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_loss_of_supervised_rows_has_the_targets_of_scored_tokens_alone(name):
    """With the same hidden states, other given tokens change nothing, and other scored ones do; what is read has them clean."""
    process = make_process(name, **FACTS, **VALUES.get(name, {}))
    params = {"process": init_params(process, jax.random.key(0))}
    objective = Objective(process, process.time_domain.adapt(PerRow()), boundary=True).bind(params)
    scored_BL = jnp.asarray(np.random.default_rng(5).random(X_BL.shape) < 0.5)
    batch, first = {**BATCH, "scored": scored_BL}, Reader(None, VOCAB)
    total, terms = objective(first, batch, KEY, ROWS)
    assert (
        int(terms["tokens"]) == (np.asarray(scored_BL) & VALID_BL).sum()
        and int(terms["texts"]) == np.asarray(scored_BL)[:, :-1].any(axis=1).sum()
    )
    condition_BL = VALID_BL & ~np.asarray(scored_BL)
    if not process.attention.causal:
        for z_BL, _ in first.calls:
            expected = np.asarray(objective.process.states.of_tokens(BATCH["tokens"]))
            np.testing.assert_array_equal(np.asarray(z_BL)[condition_BL], expected[condition_BL])
    replay, other_BL = Replay(None, VOCAB, states=first.calls), jnp.asarray((X_BL + 1) % 5)
    changed = {**batch, "tokens": jnp.where(condition_BL, other_BL, BATCH["tokens"])}
    again, _ = objective(replay, changed, KEY, ROWS)
    assert float(again) == float(total)
    wrong = {**batch, "tokens": jnp.where(condition_BL, BATCH["tokens"], other_BL)}
    assert float(objective(Replay(None, VOCAB, states=first.calls), wrong, KEY, ROWS)[0]) != float(total)
