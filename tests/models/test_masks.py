"""Masks: each predicate against its definition written out in plain Python, and against counts that are known."""

import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.errors import InputError
from dlmjax.models.masks import BlockCausal, BlockDiffusion, Causal, Full, Mask, Windowed, allowed_in_batch, as_mask, within

LENGTH = 12


def causal(q, k):
    return k <= q


def block_causal(q, k):
    return any(k in range(start, start + 3) and q >= start for start in range(0, LENGTH, 3))


def block_diffusion(q, k):
    """BD3-LM: block-diagonal among noisy, offset block-causal from noisy to clean, block-causal among clean; L = 6, blocks of 2."""
    noisy_q, noisy_k = q < 6, k < 6
    block_q, block_k = q % 6 // 2, k % 6 // 2
    if noisy_q and noisy_k:
        return block_q == block_k
    if noisy_q and not noisy_k:
        return block_k < block_q
    if not noisy_q and not noisy_k:
        return block_k <= block_q
    return False


def windowed(mask, away):
    return lambda q, k: mask(q, k) and away(q, k) < 4


CASES = [
    (Full(), lambda q, k: True),
    (Causal(), causal),
    (BlockCausal(3), block_causal),
    (BlockDiffusion(2, 6), block_diffusion),
    (within(Full(), 4), windowed(lambda q, k: True, lambda q, k: abs(q - k))),
    (within(Causal(), 4), windowed(causal, lambda q, k: q - k)),
    (within(BlockCausal(3), 4), windowed(block_causal, lambda q, k: abs(q - k))),
    (within(BlockDiffusion(2, 6), 4), windowed(block_diffusion, lambda q, k: abs(q % 6 - k % 6))),
]


@pytest.mark.parametrize(("mask", "reference"), CASES, ids=lambda c: type(c).__name__)
def test_predicate_is_the_definition(mask, reference):
    index = np.arange(LENGTH)
    table = np.array([[reference(q, k) for k in range(LENGTH)] for q in range(LENGTH)])
    np.testing.assert_array_equal(mask.allowed(index[:, None], index[None]), table)
    np.testing.assert_array_equal(mask.allowed(jnp.asarray(index)[:, None], jnp.asarray(index)[None]), table)
    assert isinstance(mask, Mask)
    assert hash(mask) == hash(type(mask)(**vars(mask)))


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_block_diffusion_corners(size):
    """Allowed entries are L^2 + L S; one block is full attention within each half; blocks of one are the autoregressive corner."""
    L = 8
    index = np.arange(2 * L)
    table = BlockDiffusion(size, L).allowed(index[:, None], index[None])
    assert table.sum() == L * L + L * size
    if size == L:
        assert table[:L, :L].all() and not table[:L, L:].any() and table[L:, L:].all()
    if size == 1:
        np.testing.assert_array_equal(table[L:, L:], np.tril(np.ones((L, L), bool)))
        np.testing.assert_array_equal(table[:L, L:], np.tril(np.ones((L, L), bool), -1))


def test_blocks_of_one_and_of_everything_are_causal_and_full():
    index = np.arange(LENGTH)
    at = (index[:, None], index[None])
    np.testing.assert_array_equal(BlockCausal(1).allowed(*at), Causal().allowed(*at))
    np.testing.assert_array_equal(BlockCausal(LENGTH).allowed(*at), Full().allowed(*at))


@pytest.mark.parametrize(("mask", "reference"), CASES, ids=lambda c: type(c).__name__)
def test_segments_are_intersected(mask, reference):
    segments = np.array([[1] * 5 + [2] * 5 + [0] * 2, [0] * 12, [3] * 12], np.int32)
    got = np.asarray(allowed_in_batch(mask, jnp.asarray(segments)))
    for b in range(3):
        for q in range(LENGTH):
            for k in range(LENGTH):
                assert got[b, q, k] == (reference(q, k) and segments[b, q] == segments[b, k])


def test_words_and_bad_input():
    assert as_mask("full", 8) == Full() and as_mask("causal", 8) == Causal() and as_mask(BlockCausal(2), 8) == BlockCausal(2)
    with pytest.raises(InputError, match="attention 'diagonal' is unknown"):
        as_mask("diagonal", 8)
    with pytest.raises(InputError, match="block size 0"):
        BlockCausal(0)
    assert within(Causal(), 0) == Causal() and within(BlockDiffusion(2, 6), 3) == Windowed(BlockDiffusion(2, 6), 3, 6)
    with pytest.raises(InputError, match="block size -1"):
        BlockDiffusion(-1, 8)
