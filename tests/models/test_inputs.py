"""What a denoiser can be handed beside token ids: vectors, two streams, a hint, a noise level in every form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import Denoiser
from dlmjax.diffusion.declarations import Attention
from dlmjax.diffusion.oracle import toy
from dlmjax.diffusion.oracle.enumeration import JointDistribution
from dlmjax.errors import InputError
from dlmjax.models import BlockDiffusion, Execution, build_network, from_function
from dlmjax.models.layers import time_features
from tests.models import tiny

BATCH = tiny.batch()
SEGMENTS, POSITIONS, TOKENS = (jnp.asarray(BATCH[name]) for name in ("segments", "positions", "tokens"))
LEVELS = jnp.full(TOKENS.shape, 0.4)
REAL = np.asarray(SEGMENTS) > 0


@functools.cache
def made(**changes):
    network = build_network(tiny.spec(**changes), Execution(scan=False))
    return network, tiny.lively(network.init(jax.random.key(0)))


@functools.cache
def compiled(attention, **changes):
    """One program for all inputs of a shape: operation by operation a network takes many more."""
    network, params = made(**changes)
    return jax.jit(lambda z, t, read, segments: network.bind(params, segments, POSITIONS, attention).hidden(z, t, read))


def hidden(z, t=LEVELS, read=None, attention="full", segments=SEGMENTS, **changes):
    return np.asarray(compiled(attention, **changes)(z, t, read, segments))


def test_two_streams_are_a_row_of_twice_the_length_under_the_block_mask():
    noisy = jnp.where(jax.random.uniform(jax.random.key(1), TOKENS.shape) < 0.5, tiny.VOCAB - 1, TOKENS)
    got = hidden(jnp.stack([noisy, TOKENS], axis=-1), attention=Attention(block_size=4), time_input="adaln")
    network, params = made(time_input="adaln")
    by_hand = network.bind(params, jnp.tile(SEGMENTS, (1, 2)), jnp.tile(POSITIONS, (1, 2)), BlockDiffusion(4, tiny.LENGTH))
    whole = by_hand.hidden(jnp.concatenate([noisy, TOKENS], axis=1), jnp.concatenate([LEVELS, 0 * LEVELS], axis=1))
    np.testing.assert_allclose(got, whole[:, : tiny.LENGTH], atol=1e-5)


def test_a_block_sees_itself_and_the_clean_blocks_before():
    """Changing the clean tokens of block 1 moves blocks 2 and 3 only; changing its noisy ones moves block 1 only."""
    segments = jnp.ones_like(SEGMENTS)
    pair = jnp.stack([TOKENS, TOKENS], axis=-1)
    base = hidden(pair, attention=Attention(block_size=4), segments=segments)
    for stream, moved_blocks in ((0, [1]), (1, [2, 3])):
        other = pair.at[:, 4:8, stream].set((pair[:, 4:8, stream] + 1) % (tiny.VOCAB - 1))
        moved = (
            np.abs(hidden(other, attention=Attention(block_size=4), segments=segments) - base).reshape(tiny.BATCH, 4, -1).max(axis=(0, 2))
        )
        assert [block for block in range(4) if moved[block] > 1e-4] == moved_blocks


def test_blocks_that_do_not_divide_are_refused():
    with pytest.raises(InputError, match="data.length=16 is not a multiple of the block size 5"):
        hidden(jnp.stack([TOKENS, TOKENS], axis=-1), attention=Attention(block_size=5))


def test_vectors_stand_for_tokens():
    """A network of vectors, fed the rows of an embedding through its input matrix, is the network of tokens."""
    network, params = made()
    vectors, other = made(input_dim=6)
    assert "embedding" not in other
    table = np.random.default_rng(0).normal(size=(tiny.VOCAB, 6)).astype(np.float32)
    same = {**params, "embedding": {"table": jnp.asarray(table) @ other["input"]["kernel"]}}
    moved = {**params, "input": other["input"]}
    want = network.bind(same, SEGMENTS, POSITIONS).hidden(TOKENS, LEVELS)
    got = vectors.bind(moved, SEGMENTS, POSITIONS).hidden(jnp.asarray(table)[TOKENS], LEVELS)
    np.testing.assert_allclose(got, want, atol=1e-4)
    with pytest.raises(InputError, match="tied"):
        tiny.spec(input_dim=6, tied=True)


def test_soft_tokens_are_mixtures_of_embeddings():
    """All weight on one id is that id; a share of another moves the input along the line between the two."""
    ids = jnp.stack([TOKENS, jnp.full_like(TOKENS, 3)], axis=-1).astype(jnp.float32)
    hard = jnp.stack([ids, jnp.broadcast_to(jnp.asarray([1.0, 0.0]), ids.shape)], axis=-1)
    np.testing.assert_allclose(hidden(hard), hidden(TOKENS), atol=1e-5)
    network, params = made()
    half = hard.at[..., 1].set(0.5)
    table = np.asarray(params["embedding"]["table"])
    # A table in which id 3 is everywhere the mean of what was mixed gives the same states.
    one = jnp.full(TOKENS.shape, 5)
    pair = jnp.stack([jnp.stack([one, one * 0 + 3], axis=-1).astype(jnp.float32), half[..., 1]], axis=-1)
    mean = {**params, "embedding": {"table": jnp.asarray(table).at[7].set((table[5] + table[3]) / 2)}}
    want = network.bind(mean, SEGMENTS, POSITIONS).hidden(jnp.full(TOKENS.shape, 7), LEVELS)
    np.testing.assert_allclose(network.bind(params, SEGMENTS, POSITIONS).hidden(pair, LEVELS), want, atol=1e-4)


@pytest.mark.parametrize("kind", ["x0", "hidden"])
def test_a_hint_changes_nothing_at_the_start_and_something_later(kind):
    made = {"self_condition": True, "hint": kind}
    network = build_network(tiny.spec(**made))
    fresh = network.init(jax.random.key(0))
    hint = jax.random.normal(jax.random.key(2), (*TOKENS.shape, 32))
    bound = network.bind(fresh, SEGMENTS, POSITIONS)
    np.testing.assert_array_equal(bound.hidden(TOKENS, LEVELS, hint), bound.hidden(TOKENS, LEVELS))
    assert bound.reads_hidden == (kind == "hidden")
    without = hidden(TOKENS, **made)
    assert np.abs(hidden(TOKENS, read=hint, **made) - without).max() > 1e-2
    np.testing.assert_array_equal(hidden(TOKENS, read=0 * hint, **made), without)


def linear(params, tokens, t, segments, positions):
    return jax.nn.one_hot(tokens, tiny.VOCAB) @ params["kernel"]


NETWORKS = {
    "family": lambda: build_network(tiny.spec(depth=1)),
    "hints": lambda: build_network(tiny.spec(depth=1, self_condition=True, hint="hidden")),
    "two networks": lambda: build_network(tiny.spec(anchor_depth=1)),
    "own": lambda: from_function(linear, lambda key: {"kernel": jnp.ones((tiny.VOCAB, tiny.VOCAB))}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_denoiser_of_any_kind_declares_its_hint_and_can_be_without_gradient(name):
    network = NETWORKS[name]()

    def total(params, constant):
        denoiser = network.bind(params, SEGMENTS, POSITIONS)
        assert isinstance(denoiser, Denoiser) and denoiser.reads_hidden == (name == "hints")
        denoiser = denoiser.without_gradient() if constant else denoiser
        return jnp.sum(jnp.sin(denoiser.logits(denoiser.hidden(TOKENS, LEVELS))))

    params = tiny.lively(network.init(jax.random.key(0)))
    found, found_gradient = jax.value_and_grad(total)(params, False)
    same, none = jax.value_and_grad(total)(params, True)
    assert found == same and any(leaf.any() for leaf in jax.tree.leaves(found_gradient))
    assert not any(leaf.any() for leaf in jax.tree.leaves(none))


def test_an_exact_denoiser_has_the_interface_of_a_network():
    exact = toy.ToyDenoiser(JointDistribution.random(3, 2, seed=0), 4, toy.masked_likelihood(3, 3))
    assert isinstance(exact, Denoiser) and exact.without_gradient() is exact and not exact.reads_hidden


@pytest.mark.parametrize("chunk", [0, 24])
def test_expect_is_the_mean_embedding(chunk):
    network = build_network(tiny.spec(), Execution(head_chunk=chunk))
    _, params = made()
    bound = network.bind(params, SEGMENTS, POSITIONS)
    states = bound.hidden(TOKENS, LEVELS)
    p = jax.nn.softmax(bound.logits(states))
    np.testing.assert_allclose(bound.expect(states), p @ params["embedding"]["table"], atol=1e-5)
    table = jnp.asarray(np.random.default_rng(1).normal(size=(tiny.VOCAB, 5)), jnp.float32)
    np.testing.assert_allclose(bound.expect(states, table), p @ table, atol=1e-5)


# Kind and features do not know of each other: a few pairs in which each comes up.
PAIRS = [("adaln", "fourier"), ("add", "sinusoidal"), ("prefix", "fourier")]
OTHER_PAIRS = [("adaln", "sinusoidal"), ("add", "fourier"), ("prefix", "sinusoidal")]


@pytest.mark.parametrize(("kind", "features"), PAIRS + [pytest.param(*pair, marks=pytest.mark.slow) for pair in OTHER_PAIRS])
def test_every_time_input_is_heard_and_leaks_nothing(kind, features):
    changes = dict(time_input=kind, time_features=features)
    base = hidden(TOKENS, **changes)
    assert base.shape == (*TOKENS.shape, 32)
    assert np.abs(hidden(TOKENS, LEVELS + 0.3, **changes) - base)[REAL].max() > 1e-3
    # The second document and padding cannot be seen from the first, with or without a position that all see.
    other = jnp.where(SEGMENTS == 1, TOKENS, (TOKENS + 1) % (tiny.VOCAB - 1))
    first = np.asarray(SEGMENTS) == 1
    np.testing.assert_allclose(hidden(other, **changes)[first], base[first], atol=1e-5)


def test_fourier_features_tell_close_levels_apart():
    t = jnp.asarray([[0.5, 0.501]])
    waves = time_features(t, 256, "fourier")
    assert waves.shape == (1, 2, 256) and float(jnp.abs(waves[0, 0] - waves[0, 1]).max()) > 0.1
    np.testing.assert_allclose(jnp.sum(waves**2, axis=-1), 128.0, rtol=1e-5)
