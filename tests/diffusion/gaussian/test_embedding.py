"""Embedding tables: norms, import, nearest, clamping, rounding error, collapse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion.gaussian import embedding
from dlmjax.errors import InputError

TABLE = jnp.asarray(np.random.default_rng(0).normal(size=(11, 4)), jnp.float32)
Z = jnp.asarray(np.random.default_rng(1).normal(size=(3, 5, 4)), jnp.float32)


def test_nearest_is_the_smallest_distance_over_allowed_tokens():
    distance = np.sum((np.asarray(Z)[..., None, :] - np.asarray(TABLE)) ** 2, axis=-1)
    np.testing.assert_array_equal(embedding.nearest(Z, TABLE), distance.argmin(-1))
    barred = (int(distance[0, 0].argmin()), 2)
    distance[..., list(barred)] = np.inf
    np.testing.assert_array_equal(embedding.nearest(Z, TABLE, barred), distance.argmin(-1))
    np.testing.assert_array_equal(embedding.nearest(Z[0, 0], TABLE, barred), distance[0, 0].argmin())
    np.testing.assert_array_equal(embedding.clamp(Z, TABLE, barred), TABLE[distance.argmin(-1)])


def test_rounding_error_counts_tokens_that_moved():
    x = jnp.arange(11)
    assert float(embedding.rounding_error(TABLE, x, TABLE)) == 0
    assert float(embedding.rounding_error(TABLE[::-1], x, TABLE)) == pytest.approx(10 / 11)


def test_collapse_is_seen():
    spread = embedding.collapse(TABLE)
    unit = np.asarray(TABLE) / np.linalg.norm(TABLE, axis=1, keepdims=True)
    cosine = unit @ unit.T
    assert float(spread["mean_cosine"]) == pytest.approx(cosine[~np.eye(11, dtype=bool)].mean(), abs=1e-6)
    assert float(spread["smallest_norm"]) == pytest.approx(np.linalg.norm(TABLE, axis=1).min(), rel=1e-6)
    fallen = embedding.collapse(jnp.ones((11, 4)) + 1e-3 * TABLE)
    assert float(fallen["mean_cosine"]) > 0.999 and float(fallen["spread"]) < 0.01 < float(spread["spread"])
    outlier = TABLE.at[3].set(1e6)
    assert float(embedding.collapse(outlier, (3,))["largest_norm"]) < 10


def test_norms():
    np.testing.assert_allclose(jnp.linalg.norm(embedding.with_norm(TABLE, 3.0), axis=1), 3, rtol=1e-5)
    np.testing.assert_array_equal(embedding.with_norm(TABLE, 0.0), TABLE)
    gradient = jax.grad(lambda t: jnp.sum(embedding.with_norm(t, 1.0)))(0 * TABLE)
    assert jnp.isfinite(gradient).all()


def test_import_checks_what_it_is_given():
    table = embedding.import_table(np.ones((5, 3)), 5, 3)
    assert table.dtype == jnp.float32 and table.shape == (5, 3)
    with pytest.raises(InputError, match=r"shape \(4, 3\); the process requires \(5, 3\)"):
        embedding.import_table(np.ones((4, 3)), 5, 3)
    with pytest.raises(InputError, match="finite"):
        embedding.import_table(np.full((5, 3), np.nan), 5, 3)
    with pytest.raises(InputError, match="floating"):
        embedding.import_table(np.ones((5, 3), int), 5, 3)
