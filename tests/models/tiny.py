"""A small model, a batch with two documents and padding, and the masked cross-entropy: shared by the tests of models and parallel."""

import os

import jax
import jax.numpy as jnp
import numpy as np

from dlmjax.models import ModelSpec

VOCAB, BATCH, LENGTH = 29, 8, 16
# Where two programs are compared to rounding: compiled as users do, with the fusion emitters that conftest.py leaves out (they round less).
AS_USED = {"xla_cpu_use_fusion_emitters": True} if "xla_cpu_use_fusion_emitters" in os.environ.get("XLA_FLAGS", "") else {}


def spec(**changes):
    values = dict(vocab=VOCAB, depth=2, width=32, heads=4, kv_heads=2, head_dim=8, ffn=48)
    return ModelSpec(**(values | changes))


def cross_entropy(logits_NV, target_N):
    return jax.nn.logsumexp(logits_NV, axis=-1) - jnp.take_along_axis(logits_NV, target_N[:, None], axis=-1)[:, 0]


def batch(rows=BATCH, length=LENGTH, vocab=VOCAB, seed=0):
    """numpy; the second half of each row is another document, the last two positions are padding, the last row is all padding."""
    rng = np.random.default_rng(seed)
    segments = np.where(np.arange(length) < length // 2, 1, 2) * np.ones((rows, 1), np.int64)
    segments[:, -2:] = 0
    segments[-1] = 0
    positions = np.where(np.arange(length) < length // 2, np.arange(length), np.arange(length) - length // 2)
    return {
        "tokens": rng.integers(0, vocab - 1, (rows, length)).astype(np.int32),
        "segments": segments.astype(np.int32),
        "positions": np.tile(positions, (rows, 1)).astype(np.int32),
        "row": np.arange(rows, dtype=np.int32),
    }


def corrupt(data, key, length=LENGTH, mask_id=VOCAB - 1):
    """(noisy tokens, masked positions, noise level), drawn from per-row keys as a diffusion process does."""
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, data["row"])
    level_BL = jax.vmap(lambda k: jnp.full((length,), jax.random.uniform(k, minval=0.2)))(keys_B)
    rows_BL = jax.vmap(lambda k: jax.random.uniform(k, (length,)))(keys_B) < level_BL
    rows_BL = rows_BL & (data["segments"] > 0)
    return jnp.where(rows_BL, mask_id, data["tokens"]), rows_BL, level_BL


def loss_of(network, attention="full"):
    """loss(params, batch, key) -> (sum of nats / level over masked positions, (nats, masked positions))."""

    def loss(params, data, key):
        noisy_BL, rows_BL, level_BL = corrupt(data, key, data["tokens"].shape[1], network.spec.vocab - 1)
        denoiser = network.bind(params, data["segments"], data["positions"], attention, dropout_key=key)
        denoiser = denoiser.with_tokens_per_time(level_BL.shape[1])
        hidden_BLD = denoiser.hidden(noisy_BL, level_BL)
        total, nats_BL = denoiser.row_losses(hidden_BLD, rows_BL, cross_entropy, (data["tokens"],), 1.0 / level_BL)
        return total, (nats_BL, rows_BL)

    return loss


def lively(params, seed=9):
    """Start values made large enough that every weight matters (zeros and ones included)."""
    keys = jax.random.split(jax.random.key(seed), len(jax.tree.leaves(params)))
    keys = jax.tree.unflatten(jax.tree.structure(params), list(keys))
    return jax.tree.map(lambda p, key: p + 0.1 * jax.random.normal(key, p.shape), params, keys)


def worst(tree, reference):
    """Largest difference of any leaf, relative to that leaf's largest entry; NaN where any is (Python's max loses it)."""

    def leaf(a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        return np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-30)

    return float(np.max(jax.tree.leaves(jax.tree.map(leaf, tree, reference))))
