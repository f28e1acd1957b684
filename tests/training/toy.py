"""A two-matrix model with the seam of a real loss: sums over the batch, noise keyed by row. V symbols, D channels, two stacked layers."""

import jax
import jax.numpy as jnp
import numpy as np

V, D, B, L = 11, 16, 32, 8
KINDS = {"embedding": {"table": "embedding"}, "layers": {"kernel": "matrix", "scale": "vector"}, "head": {"kernel": "head"}}


def init_params(key):
    numbers = jax.random.uniform(key, (2 * V * D + 2 * D * D,), minval=-0.5, maxval=0.5)  # one draw: quick to compile
    table, kernel, head = jnp.split(numbers, [V * D, V * D + 2 * D * D])
    return {
        "embedding": {"table": table.reshape(V, D)},
        "layers": {"kernel": kernel.reshape(2, D, D), "scale": jnp.ones((2, D))},
        "head": {"kernel": head.reshape(D, V)},
    }


def loss_fn(params, batch, key):
    """Weighted cross-entropy of the token under a per-row noise level t. Traced calls are counted."""
    loss_fn.traces += 1
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["row"])
    t_B = jax.vmap(jax.random.uniform)(keys_B)
    hidden_BLD = jax.nn.one_hot(batch["tokens"], V) @ params["embedding"]["table"]
    for layer in range(2):
        hidden_BLD += jnp.tanh(hidden_BLD * params["layers"]["scale"][layer]) @ params["layers"]["kernel"][layer]
    log_BLV = jax.nn.log_softmax(hidden_BLD @ params["head"]["kernel"])
    seen_BL = batch["segments"] > 0
    nats_BL = jnp.where(seen_BL, -jnp.take_along_axis(log_BLV, batch["tokens"][..., None], -1)[..., 0] * t_B[:, None], 0.0)
    level_BN = jax.nn.one_hot(jnp.clip((t_B * 10).astype(int), 0, 9), 10)
    total = nats_BL.sum()
    parts = {
        "tokens": seen_BL.sum().astype(jnp.int32),
        "nats": total,
        "nats_by_level": nats_BL.sum(1) @ level_BN,
        "tokens_by_level": seen_BL.sum(1).astype(jnp.float32) @ level_BN,
    }
    return total, parts


loss_fn.traces = 0


def batch(step, poison=None):
    """Rows of one step, a quarter of them partly padding. `poison` = a row that `fragile_loss_fn` turns into NaN."""
    rng = np.random.default_rng(step)
    segments = np.ones((B, L), np.int32)
    segments[::4, L // 2 :] = 0
    tokens = rng.integers(0, V, (B, L)).astype(np.int32)
    if poison is not None:
        tokens[poison] = -1
    return {
        "tokens": tokens,
        "segments": segments,
        "positions": np.tile(np.arange(L, dtype=np.int32), (B, 1)),
        "row": np.arange(B, dtype=np.int32),
    }


def fragile_loss_fn(params, batch, key):
    """The same, but a negative token makes the loss of its row NaN, and token ids from 100 on make it 1000 times as large."""
    tokens = batch["tokens"]
    clean = {**batch, "tokens": jnp.clip(tokens, 0, 99) % V}
    total, parts = loss_fn(params, clean, key)
    total = total * jnp.where((tokens >= 100).any(), 1000.0, 1.0) + jnp.where((tokens < 0).any(), jnp.nan, 0.0)
    return total, parts


def same(a, b):
    """Bitwise equality of two trees, structure included."""
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(np.asarray(x), np.asarray(y), equal_nan=True) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
