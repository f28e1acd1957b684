"""Rules that revise revealed tokens: WINO's second stream, its choice by definition, T2T's edits and its end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion.processes.blocks import Blockwise
from dlmjax.diffusion.processes.hybrid import Hybrid
from dlmjax.diffusion.processes.masked import Masked
from dlmjax.diffusion.processes.uniform import Uniform
from dlmjax.errors import InputError
from dlmjax.models import Execution, build_network
from dlmjax.models.masks import Shadowed
from dlmjax.sampling.blocks import sampler_for
from dlmjax.sampling.canvas import Canvas, blank_canvas
from dlmjax.sampling.revising_rules import T2t, Wino
from dlmjax.sampling.rule_names import make_rule
from dlmjax.sampling.rules import View
from dlmjax.sampling.settings import SampleSettings
from tests.models.tiny import VOCAB, lively, spec
from tests.sampling.revised import LAW, LENGTH, NOISES

NETWORK = build_network(spec(), Execution())
PARAMS = lively(NETWORK.init(jax.random.key(3)))
MASK = VOCAB - 1


def test_the_second_stream_predicts_each_token_from_all_others():
    """Its output at a position is that of the network on the row with a mask there; the text's output is that of the text alone."""
    z_BL = jnp.asarray(np.random.default_rng(0).integers(0, VOCAB - 2, (2, 5)), jnp.int32).at[0, 3].set(MASK)
    ones_BL, positions_BL, t_BL = jnp.ones_like(z_BL), jnp.tile(jnp.arange(5), (2, 1)), jnp.zeros((2, 5))

    @jax.jit
    def plain(z_BL):
        denoiser = NETWORK.bind(PARAMS, ones_BL, positions_BL)
        return denoiser.logits(denoiser.hidden(z_BL, t_BL))

    both = NETWORK.bind(PARAMS, ones_BL, positions_BL, attention=Shadowed(5))
    shadow_BLD, text_BLD = both.hidden_of_both(jnp.stack([jnp.full_like(z_BL, MASK), z_BL], axis=-1), t_BL)
    np.testing.assert_allclose(both.logits(text_BLD), plain(z_BL), atol=1e-5)
    # A mask at a place changes what the others make of themselves, so from the second layer on only the first is the same.
    one = build_network(spec(depth=1), Execution())
    params = lively(one.init(jax.random.key(4)))
    both = one.bind(params, ones_BL, positions_BL, attention=Shadowed(5))
    shadow_BLD, _ = both.hidden_of_both(jnp.stack([jnp.full_like(z_BL, MASK), z_BL], axis=-1), t_BL)
    alone = one.bind(params, ones_BL, positions_BL)
    for place in range(5):
        hidden_BLD = alone.hidden(z_BL.at[:, place].set(MASK), t_BL)
        np.testing.assert_allclose(shadow_BLD[:, place], hidden_BLD[:, place], atol=1e-5)


def view(masked_BL, p_drawn_BL, **more):
    masked_BL = jnp.asarray(masked_BL)
    start_BL = jnp.ones_like(masked_BL)
    return View(
        masked_BL, start_BL, jnp.int32(1), 64, lambda name: None, lambda: None, p_drawn_BL=jnp.asarray(p_drawn_BL, jnp.float32), **more
    )


def test_wino_reveals_widely_and_masks_again_what_others_do_not_support():
    draw = np.random.default_rng(1)
    masked_BL, p_BL, alone_BL = draw.random((200, 60)) < 0.6, draw.random((200, 60)), draw.random((200, 60))
    masked_BL[:, 0] = True
    choice = Wino(0.5, 0.9).choose(view(masked_BL, p_BL, p_alone_BL=jnp.asarray(alone_BL, jnp.float32)), ())
    for row in range(200):
        masks = np.flatnonzero(masked_BL[row])
        most = max(5, min(20, int(0.7 * len(masks))))
        best = sorted(masks, key=lambda i: -p_BL[row, i])
        new = [i for i in best if p_BL[row, i] > 0.5][:most] or best[:1]
        weak = [i for i in sorted(np.flatnonzero(~masked_BL[row]), key=lambda i: alone_BL[row, i]) if alone_BL[row, i] < 0.9]
        assert np.flatnonzero(choice.reveal_BL[row]).tolist() == sorted(new)
        assert np.flatnonzero(choice.remask_BL[row]).tolist() == sorted(weak[: len(new) - 1])


def test_wino_on_a_network_ends_without_masks_and_revises():
    sampler = sampler_for(Masked(VOCAB, MASK), NETWORK, SampleSettings(rule="wino(reveal=0.001, remask=0.99)", suppressed_ids=(VOCAB - 2,)))
    states = list(sampler.states(PARAMS, blank_canvas(12, 4), seed=0))
    assert not states[-1].masked_BL.any() and len(states) <= 13 and (states[-1].counts.reads_B == 24 * states[-1].calls_B).all()
    back = [(after.masked_BL & ~before.masked_BL).any() for before, after in zip(states, states[1:], strict=False)]
    assert any(back)
    falls = [before.masked_BL.sum(axis=1) - after.masked_BL.sum(axis=1) for before, after in zip(states, states[1:], strict=False)]
    assert all(((fall > 0) | (before.masked_BL.sum(axis=1) == 0)).all() for fall, before in zip(falls, states, strict=False))


# --- T2T -----------------------------------------------------------------------------------------------------------------------------


def test_edits_mend_planted_tokens_and_leave_the_condition_alone():
    """Text of a peaked law with one wrong token; rows end one by one, each where nothing is edited, and are then left alone."""
    noise, rows = NOISES["hybrid"], 60
    best_n = LAW.sequences_Xn[LAW.probability_X.argmax()]
    tokens_BL = np.tile(best_n, (rows, 1)).astype(np.int32)
    tokens_BL[np.arange(rows), np.arange(rows) % LENGTH] = (tokens_BL[np.arange(rows), np.arange(rows) % LENGTH] + 1) % 3
    frozen_BL = np.zeros(tokens_BL.shape, bool)
    frozen_BL[:, 0] = True
    canvas = Canvas(tokens_BL, frozen_BL, np.where(frozen_BL, 0, 1e-9).astype(np.float32))
    sampler = noise.sampler(rule="t2t(edit=0.4, rounds=6, level=0.9)", temperature=0.0)
    states = list(sampler.states(1.0, canvas, seed=0))
    last = states[-1]
    assert (last.tokens_BL[:, 0] == tokens_BL[:, 0]).all()
    changed_BL = last.tokens_BL != tokens_BL
    assert changed_BL.any() and (last.fixed_BL[changed_BL] > 0).all(), "a trace shows the step of a swap"
    assert 1 < len(states) <= 7 and not last.masked_BL.any()
    samples = sampler.sample(1.0, canvas, seed=0)
    assert len(set(samples.calls_B.tolist())) > 1 and samples.calls_B.max() == samples.evaluations
    for row, calls in enumerate(samples.calls_B):
        assert all((state.tokens_BL[row] == last.tokens_BL[row]).all() for state in states[int(calls) :])


def test_from_masks_it_edits_in_the_same_steps_and_goes_on_after_the_last_mask():
    samples = NOISES["hybrid"].sampler(rule="t2t(edit=0.1, level=0.95, rounds=4)").sample(1.0, blank_canvas(LENGTH, 200), seed=1)
    assert (samples.tokens_BL < 3).all() and 2 < samples.evaluations <= LENGTH + 4
    plain = NOISES["hybrid"].sampler(rule="t2t(edit=0.1, level=0.95, rounds=0)").sample(1.0, blank_canvas(LENGTH, 200), seed=1)
    assert plain.evaluations <= LENGTH and (samples.tokens_BL != plain.tokens_BL).any()


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["wino(reveal=0.001, remask=0.99)", "t2t(edit=0.1, level=0.95, rounds=4)"])
def test_a_row_alone_is_the_row_among_others(rule):
    """Text, steps and calls of each row."""
    if rule.startswith("wino"):
        sampler, params, length = sampler_for(Masked(VOCAB, MASK), NETWORK, SampleSettings(rule=rule)), PARAMS, 8
    else:
        sampler, params, length = NOISES["hybrid"].sampler(rule=rule), 1.0, LENGTH
    # With a token to read no two positions are alike, so that rounding decides nothing.
    tokens_BL = np.random.default_rng(1).integers(0, 3, (6, length)).astype(np.int32)
    condition_BL = np.tile(np.arange(length) == 0, (6, 1))
    rows = [Canvas(tokens_BL[:n], condition_BL[:n], (~condition_BL[:n]).astype(np.float32)) for n in (6, 2)]
    many, few = (sampler.sample(params, canvas, seed=2) for canvas in rows)
    for field in ("tokens_BL", "fixed_BL", "calls_B"):
        np.testing.assert_array_equal(getattr(few, field), getattr(many, field)[:2])


def test_t2t_chooses_by_its_definition():
    draw = np.random.default_rng(2)
    masked_BL, p_BL = draw.random((50, 9)) < 0.4, draw.random((50, 9))
    old_BL, new_BL, editable_BL = draw.integers(0, 3, (50, 9)), draw.integers(0, 3, (50, 9)), draw.random((50, 9)) < 0.8
    rule = T2t(value=0.7, edit=0.5, rounds=3)
    arrays = {"tokens_BL": jnp.asarray(old_BL), "drawn_BL": jnp.asarray(new_BL), "editable_BL": jnp.asarray(editable_BL)}
    choice = rule.choose(view(masked_BL, p_BL, **arrays), rule.begin((50, 9), 3))
    assert (np.asarray(choice.swap_BL) == (editable_BL & ~masked_BL & (old_BL != new_BL) & (p_BL > 0.5))).all()
    sure_BL = masked_BL & (p_BL >= 0.7)
    assert (np.asarray(choice.reveal_BL) >= sure_BL).all()
    assert (np.asarray(choice.reveal_BL).sum(axis=1) == np.maximum(sure_BL.sum(axis=1), masked_BL.any(axis=1))).all()


@pytest.mark.parametrize(
    ("process", "settings", "message"),
    [
        (Masked(VOCAB, MASK), {"rule": "t2t"}, "t2t requires noise that replaces tokens"),
        (Uniform(VOCAB), {"rule": "t2t"}, "requires masked tokens"),
        (Hybrid(VOCAB, MASK), {"rule": "wino"}, "not conditioned on t"),
        (Masked(VOCAB, MASK), {"rule": "wino", "cache": "dual(block=4)"}, "wino"),
        (Masked(VOCAB, MASK), {"rule": "wino", "guidance": 1.0}, "wino"),
        (Blockwise(Masked(VOCAB, MASK), 4), {"rule": "wino"}, "not block by block"),
    ],
)
def test_networks_that_cannot_serve_a_rule_are_refused(process, settings, message):
    with pytest.raises(InputError, match=message):
        sampler_for(process, NETWORK, SampleSettings(**settings))


@pytest.mark.parametrize(
    "text", ["wino(reveal=0)", "wino(remask=1)", "t2t(edit=2)", "t2t(rounds=-1)", "t2t(level=0)", "min_gap(rule=wino)"]
)
def test_values_out_of_range_are_refused(text):
    with pytest.raises(InputError):
        make_rule(text)


def test_a_gap_leaves_a_rule_that_masks_again_its_end():
    """saber masks fewer than it reveals; of what it reveals a gap of 8 leaves one or two, so that it would mask more than are left."""
    sampler = sampler_for(
        Masked(VOCAB, MASK), NETWORK, SampleSettings(rule="min_gap(rule=saber(least=8), d=8)", suppressed_ids=(VOCAB - 2,))
    )
    states = list(sampler.states(PARAMS, blank_canvas(12, 4), seed=0))
    assert not states[-1].masked_BL.any()
    falls = [before.masked_BL.sum(axis=1) - after.masked_BL.sum(axis=1) for before, after in zip(states, states[1:], strict=False)]
    assert all(((fall > 0) | (before.masked_BL.sum(axis=1) == 0)).all() for fall, before in zip(falls, states, strict=False))
