"""Splash attention: equal to dense where it can run here (interpreted), and compiled, forward and backward, for a TPU that is not here."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.errors import InputError
from dlmjax.models.attention import FORBIDDEN, _splash_mask, dense_attention, make_attention, splash
from dlmjax.models.layout import SINGLE
from dlmjax.models.masks import BlockCausal, BlockDiffusion, Causal, Full, allowed_in_batch
from dlmjax.parallel import Partition, make_mesh

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason='libtpu is not installed: pip install -e ".[tpu]"')
MASKS = [Full(), Causal(), BlockCausal(48), BlockDiffusion(32, 128)]
L, K = 256, 128


def names(mask):
    return type(mask).__name__


def inputs(heads, groups, dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = [(1, L, heads, K), (1, L, groups, K), (1, L, groups, K), (1, L, heads, K)]
    return [jnp.asarray(rng.normal(size=shape).astype(np.float32), dtype) for shape in shapes]


@pytest.mark.parametrize("mask", MASKS, ids=names)
def test_interpreted_equals_dense_forward_and_backward(mask):
    """Grouped heads, two documents and padding; outputs and the gradients of queries, keys and values."""
    q, k, v, dout = inputs(heads=2, groups=1)
    segments = jnp.asarray(np.repeat([[1, 2, 1, 0]], L // 4, axis=1), jnp.int32)
    bias = jnp.where(allowed_in_batch(mask, segments), 0.0, FORBIDDEN)

    @functools.partial(jax.jit, static_argnums=0)
    def both(attend, q, k, v):
        out, pull = jax.vjp(attend, q, k, v)
        return (out, *pull(dout))

    got = both(lambda q, k, v: splash(q, k, v, mask, segments, SINGLE, interpret=True), q, k, v)
    want = both(lambda q, k, v: dense_attention(q, k, v, bias), q, k, v)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("mask", MASKS, ids=names)
def test_the_mask_is_the_predicate_block_by_block(mask):
    """What the kernel is told of any block is the predicate's own answer there."""
    index = np.arange(L)
    table = np.asarray(mask.allowed(index[:, None], index[None, :]))
    described = _splash_mask(mask, L, 2)
    assert described.shape == (2, L, L)
    for rows in (slice(0, 128), slice(128, 256)):
        for columns in (slice(0, 64), slice(64, 256)):
            np.testing.assert_array_equal(described[0, rows, columns], table[rows, columns])


def test_blocks_without_an_allowed_score_are_skipped():
    """0 = skipped, 1 = masked, 2 = every score allowed: of the 2L mask over 8 x 8 blocks only 24 are visited."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    def blocks(mask, length):
        kernel = splash_attention_kernel.make_splash_mha(mask=_splash_mask(mask, length, 2), head_shards=1, q_seq_shards=1)
        return np.asarray(kernel.fwd_mask_info.block_mask)

    causal = blocks(Causal(), 512)
    assert [(causal == kind).sum() for kind in (0, 1, 2)] == [6, 4, 6]
    assert (blocks(Full(), 512) == 2).all()
    both = blocks(BlockDiffusion(32, 512), 1024)
    # Noisy rows: their own block and the clean ones up to it; clean rows: the causal half. 4 + 10 + 10 of 64.
    assert (both > 0).sum() == 24


def test_lengths_that_the_kernel_cannot_take_are_named():
    q, k, v, _ = inputs(heads=2, groups=2)
    with pytest.raises(InputError, match="divisible by 128"):
        splash(q[:, :200], k[:, :200], v[:, :200], Full(), jnp.ones((1, 200), jnp.int32), SINGLE, interpret=True)


@needs_libtpu
@pytest.mark.parametrize("mask", MASKS, ids=names)
def test_compiles_for_a_tpu(mask):
    """One v5e chip, bfloat16, grouped heads and segments; the scores never reach memory."""
    from dlmjax.plan.topology import describe

    batch, heads, groups = 4, 8, 2
    length = 2 * mask.length if isinstance(mask, BlockDiffusion) else 512
    partition = Partition(make_mesh(1, devices=list(describe("v5e:1x1").devices)))

    def step(q, k, v, segments):
        attend = make_attention(mask, segments, "splash", "bfloat16", partition)
        return jax.grad(lambda *args: attend(*args).astype(jnp.float32).sum(), argnums=(0, 1, 2))(q, k, v)

    everywhere = partition.sharding(())
    like = [jax.ShapeDtypeStruct((batch, length, n, K), jnp.bfloat16, sharding=everywhere) for n in (heads, groups, groups)]
    segments = jax.ShapeDtypeStruct((batch, length), jnp.int32, sharding=everywhere)
    compiled = jax.jit(step).trace(*like, segments).lower(lowering_platforms=("tpu",)).compile()
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') >= 3  # forward, keys' and queries' gradients
    # Dense attention keeps batch x heads x length^2 weights in bfloat16.
    if length == 512:
        assert compiled.memory_analysis().temp_size_in_bytes < batch * heads * length**2 * 2
