"""Attention: every backend that runs here against float64 numpy written from the predicate, forward and backward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.errors import InputError
from dlmjax.models.attention import FORBIDDEN, dense_attention, fused, make_attention, runs_on, tiles_of
from dlmjax.models.layout import SINGLE
from dlmjax.models.masks import BlockCausal, BlockDiffusion, Causal, Full, Windowed, allowed_in_batch
from dlmjax.parallel import Partition, make_mesh

B, L, H, G, K = 3, 12, 4, 2, 8
MASKS = [Full(), Causal(), BlockCausal(3), BlockDiffusion(2, 6), Windowed(Causal(), 3)]
SEGMENTS = np.array([[1] * 5 + [2] * 5 + [0] * 2, [0] * L, [3] * L], np.int32)


@functools.cache
def inputs(groups=G, length=L, dim=K):
    rng = np.random.default_rng(0)
    shapes = [(B, length, H, dim), (B, length, groups, dim), (B, length, groups, dim), (B, length, H, dim)]
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in shapes)


def reference(q, k, v, mask, segments):
    """One query at a time, float64, from the predicate alone; a query without any key would divide by zero here."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out = np.zeros_like(q)
    for b, i, h in np.ndindex(q.shape[:3]):
        g = h // (q.shape[2] // k.shape[2])
        keys = [j for j in range(k.shape[1]) if mask.allowed(np.int64(i), np.int64(j)) and segments[b, i] == segments[b, j]]
        if keys:
            score = np.array([q[b, i, h] @ k[b, j, g] for j in keys]) / np.sqrt(q.shape[3])
            weight = np.exp(score - score.max())
            out[b, i, h] = (weight / weight.sum()) @ v[b, keys, g]
    return out


def bias_of(mask):
    return jnp.where(allowed_in_batch(mask, jnp.asarray(SEGMENTS)), 0.0, FORBIDDEN)


@pytest.mark.parametrize("mask", MASKS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_dense_equals_the_predicate(mask, groups):
    q, k, v, _ = inputs(groups)
    attend = make_attention(mask, jnp.asarray(SEGMENTS), "dense", "float32", SINGLE)
    want = reference(q, k, v, mask, SEGMENTS)
    np.testing.assert_allclose(attend(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v)), want, atol=2e-6)
    got16 = attend(*(jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)))
    assert got16.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got16, np.float32), want, atol=4e-2)


@pytest.mark.parametrize("mask", MASKS, ids=lambda m: type(m).__name__)
def test_dense_equals_jax_nn_forward_and_backward(mask):
    """The hand-written backward pass against autodiff of jax.nn.dot_product_attention, which the cuDNN backend calls."""
    q, k, v, dout = (jnp.asarray(x) for x in inputs())
    allowed = allowed_in_batch(mask, jnp.asarray(SEGMENTS))

    def both(q, k, v, dout):
        ours = jax.vjp(lambda q, k, v: dense_attention(q, k, v, bias_of(mask)), q, k, v)
        theirs = jax.vjp(lambda q, k, v: fused(q, k, v, allowed, SINGLE, "xla"), q, k, v)
        return (ours[0], *ours[1](dout)), (theirs[0], *theirs[1](dout))

    ours, theirs = jax.jit(both)(q, k, v, dout)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)


def test_a_kernel_on_a_mesh_sees_its_own_rows_queries_and_heads():
    """Four devices that split queries and heads, against one; documents, and a mask that differs from query to query."""
    q, k, v, dout = (jnp.asarray(x) for x in inputs())
    allowed = allowed_in_batch(MASKS[1], jnp.asarray(SEGMENTS))
    partition = Partition(make_mesh(1, 1, 2, 2, devices=jax.devices()[:4]))

    def both(q, k, v, dout):
        runs = [jax.vjp(lambda *heads, layout=layout: fused(*heads, allowed, layout, "xla"), q, k, v) for layout in (SINGLE, partition)]
        return [(out, *pull(dout)) for out, pull in runs]

    want, got = jax.jit(both)(q, k, v, dout)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


STREAMS = BlockDiffusion(16, 128)
TILED = [Causal(), BlockCausal(16), STREAMS, BlockDiffusion(24, 144), Windowed(Full(), 20), Windowed(STREAMS, 40, 128)]


@pytest.mark.parametrize("mask", TILED, ids=str)
def test_tiles_leave_out_only_what_is_forbidden(mask):
    length = 2 * getattr(mask, "length", 128)
    tiles, index = tiles_of(mask, length), np.arange(length)
    left_out = np.broadcast_to(np.asarray(mask.allowed(index[:, None], index)), (length, length)).copy()
    computed = np.zeros_like(left_out)
    for (start, stop), keys in tiles:
        for first, last in keys:
            left_out[start:stop, first:last] = False
            computed[start:stop, first:last] = True
    assert not left_out.any() and computed.mean() <= 0.8
    assert [rows for rows, _ in tiles] == [(i * length // 4, (i + 1) * length // 4) for i in range(4)]


@pytest.mark.parametrize(("mask", "length"), [(Full(), 256), (Causal(), 252), (Causal(), 258), (Windowed(Causal(), 3), 12)], ids=str)
def test_rows_without_tiles(mask, length):
    """A mask that allows nearly all pairs, a short row, one that four does not divide."""
    assert tiles_of(mask, length) is None


@pytest.mark.parametrize("queries", [256, 128, 80])
def test_tiles_change_nothing_forward_and_backward(queries):
    """Also for the first queries of a row alone, as the last layer of two streams has them."""
    mask, length = STREAMS, 256
    q, k, v, dout = (jnp.asarray(x) for x in inputs(length=length))
    q, dout = q[:, :queries], dout[:, :queries]
    segments = np.tile(np.repeat([1, 2, 0], [40, 72, 16]), (B, 2)).astype(np.int32)
    bias = jnp.where(allowed_in_batch(mask, jnp.asarray(segments)), 0.0, FORBIDDEN)

    def both(q, k, v, dout):
        tiled = jax.vjp(make_attention(mask, jnp.asarray(segments), "dense", "float32", SINGLE), q, k, v)
        whole = jax.vjp(lambda q, k, v: dense_attention(q, k, v, bias), q, k, v)
        return (tiled[0], *tiled[1](dout)), (whole[0], *whole[1](dout))

    for a, b in zip(*jax.jit(both)(q, k, v, dout), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)


def test_no_allowed_key_gives_numbers():
    """No description in this package leaves a row empty; one that did must still not poison the batch."""
    q, k, v, dout = (jnp.asarray(x) for x in inputs())
    bias = jnp.full((B, L, L), FORBIDDEN)
    out, pull = jax.vjp(lambda q, k, v: dense_attention(q, k, v, bias), q, k, v)
    assert all(bool(jnp.isfinite(x).all()) for x in (out, *pull(dout)))


@pytest.mark.parametrize(("backend", "needs"), [("cudnn", "NVIDIA GPU"), ("splash", "TPU")])
def test_backends_that_cannot_run_say_so(backend, needs):
    with pytest.raises(InputError, match=needs):
        make_attention(Full(), jnp.asarray(SEGMENTS), backend, "float32", SINGLE)


@pytest.mark.parametrize(
    ("backend", "dtype", "where"),
    [
        ("dense", "float32", {"cpu", "gpu", "tpu"}),
        ("dense", "bfloat16", {"cpu", "gpu", "tpu"}),
        ("cudnn", "bfloat16", {"gpu"}),
        ("cudnn", "float32", set()),
        ("splash", "bfloat16", {"tpu"}),
        ("splash", "float32", {"tpu"}),
    ],
)
def test_each_backend_has_its_devices(backend, dtype, where):
    assert {platform for platform in ("cpu", "gpu", "tpu") if runs_on(backend, dtype, platform)} == where


def test_rows_that_splash_cannot_take_are_dense(monkeypatch):
    """A canvas of 96 tokens, a window of 200: lengths that a run was not trained on."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    q, k, v, _ = (jnp.asarray(x) for x in inputs())
    got, want = (make_attention(Full(), jnp.asarray(SEGMENTS), backend, "float32", SINGLE)(q, k, v) for backend in ("splash", "dense"))
    np.testing.assert_array_equal(got, want)
