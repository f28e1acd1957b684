"""Reading a row in pieces gives the numbers of reading it whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion.declarations import Attention
from dlmjax.errors import InputError
from dlmjax.models import Execution, build_network
from dlmjax.models.cache import bind_cached, empty_cache
from dlmjax.models.masks import BlockCausal, Causal
from tests.models.tiny import VOCAB, lively, spec

ROWS, LENGTH, SIZE = 3, 12, 4
TOKENS_BL = jnp.asarray(np.random.default_rng(0).integers(0, VOCAB - 1, (ROWS, LENGTH)), jnp.int32)
NOISY_BL = jnp.where(jax.random.bernoulli(jax.random.key(1), 0.5, TOKENS_BL.shape), VOCAB - 1, TOKENS_BL)
ONES_BL = jnp.ones((ROWS, LENGTH), jnp.int32)
PLACES_BL = jnp.broadcast_to(jnp.arange(LENGTH), (ROWS, LENGTH))


def network(**changes):
    net = build_network(spec(**changes), Execution())
    return net, lively(net.init(jax.random.key(2)))


@pytest.mark.parametrize(
    "changes",
    [{"time_input": "adaln"}, {"window": 3}]
    + [
        pytest.param(changes, marks=pytest.mark.slow)
        for changes in ({"depth": 3, "loops": 2, "looped": (1, 2)}, {"loops": 2}, {"time_input": "add", "tied": True})
    ],
    ids=str,
)
def test_blocks_read_one_by_one_are_those_of_the_two_streams(changes):
    """Each noisy block after the clean blocks before it: the network's training pass, and the block-causal mask over the prefix."""
    net, params = network(**changes)
    t_BL = jnp.broadcast_to(jnp.repeat(jnp.asarray([0.2, 0.9, 0.5]), SIZE), (ROWS, LENGTH))
    whole = net.bind(params, ONES_BL, PLACES_BL, Attention(block_size=SIZE))
    both_BLD = whole.hidden(jnp.stack([NOISY_BL, TOKENS_BL], axis=-1), t_BL)

    traces = []

    @jax.jit
    def block(cache, noisy_BS, clean_BS, t_BS, start):
        traces.append(start)
        denoiser = bind_cached(net, params, cache, start, SIZE, BlockCausal(SIZE))
        return denoiser.logits(denoiser.hidden(noisy_BS, t_BS)), denoiser.advance(clean_BS, jnp.zeros_like(t_BS))[1]

    cache = empty_cache(net, ROWS, LENGTH)
    for start in range(0, LENGTH, SIZE):
        part = slice(start, start + SIZE)
        logits_BSV, cache = block(cache, NOISY_BL[:, part], TOKENS_BL[:, part], t_BL[:, part], np.int32(start))
        np.testing.assert_allclose(logits_BSV, whole.logits(both_BLD)[:, part], atol=1e-5, rtol=1e-5)
        row_BL = jnp.concatenate([TOKENS_BL[:, :start], NOISY_BL[:, start:]], axis=1)
        levels_BL = jnp.where(jnp.arange(LENGTH) < start, 0.0, t_BL)
        prefix = net.bind(params, ONES_BL, PLACES_BL, BlockCausal(SIZE))
        np.testing.assert_allclose(logits_BSV, prefix.logits(prefix.hidden(row_BL, levels_BL))[:, part], atol=1e-5, rtol=1e-5)
    assert len(traces) == 1, "one compilation for all blocks"


def test_tokens_read_one_by_one_and_a_prompt_read_at_once():
    """The causal corner; what a longer first piece leaves in the buffers is what single tokens leave there."""
    net, params = network()
    none_BL = jnp.zeros((ROWS, LENGTH))
    causal = net.bind(params, ONES_BL, PLACES_BL, "causal")
    truth_BLD = causal.hidden(TOKENS_BL, none_BL)
    one, cache = [], empty_cache(net, ROWS, LENGTH)
    for start in range(LENGTH):
        hidden_B1D, cache = bind_cached(net, params, cache, start, 1, Causal()).advance(TOKENS_BL[:, start : start + 1], none_BL[:, :1])
        one.append(hidden_B1D)
    np.testing.assert_allclose(jnp.concatenate(one, axis=1), truth_BLD, atol=1e-5, rtol=1e-5)
    hidden_BLD, at_once = bind_cached(net, params, empty_cache(net, ROWS, LENGTH), 0, LENGTH, Causal()).advance(TOKENS_BL, none_BL)
    np.testing.assert_allclose(hidden_BLD, truth_BLD, atol=1e-5, rtol=1e-5)
    for a, b in zip(at_once, cache, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_what_lies_beyond_is_never_read():
    """Buffers full of noise behind the piece change nothing."""
    net, params = network()
    clean = empty_cache(net, ROWS, LENGTH)
    dirty = jax.tree.map(lambda a: a.at[:, :, SIZE:].set(7.0), clean)
    first, second = (
        bind_cached(net, params, cache, 0, SIZE, BlockCausal(SIZE)).hidden(TOKENS_BL[:, :SIZE], jnp.zeros((ROWS, SIZE)))
        for cache in (clean, dirty)
    )
    assert (first == second).all()


def test_bfloat16_buffers():
    net = build_network(spec(), Execution(dtype="bfloat16"))
    cache = empty_cache(net, 2, 8)
    assert cache.keys.dtype == jnp.bfloat16 and cache.keys.shape == (2, 2, 8, 2, 8)
    hidden_BSD, after = bind_cached(net, net.init(jax.random.key(0)), cache, 4, 4, BlockCausal(4)).advance(
        TOKENS_BL[:2, :4], jnp.zeros((2, 4))
    )
    assert hidden_BSD.dtype == after.values.dtype == jnp.bfloat16 and (after.keys[:, :, :4] == 0).all()


def test_a_network_that_cannot_be_read_in_pieces():
    net, params = network(time_input="prefix")
    with pytest.raises(InputError, match="prefix cannot be read block by block"):
        bind_cached(net, params, empty_cache(net, 1, 4), 0, 4, BlockCausal(4))
