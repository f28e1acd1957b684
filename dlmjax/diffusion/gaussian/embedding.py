"""Tables of token embeddings: norms, import, nearest token, rounding, and a test for collapsed tables.

Suppressed ids (`excluded`) are not nearest to any vector and have no probability.

Shapes: tables [V, E]; vectors [*n, E].
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dlmjax.diffusion.process import exclude
from dlmjax.diffusion.shapes import Ids, PerClass, Vectors
from dlmjax.errors import InputError

# By default TPUs and GPUs round float32 matrix products to about three digits; a squared error times an SNR requires more.
EXACT = "highest"


def with_norm(table_VE: Float[Array, "V E"], norm: float) -> Float[Array, "V E"]:
    """Rows scaled to length `norm` (Plaid 2305.18619, SED 2211.04236); norm = 0 does not change them."""
    if not norm:
        return table_VE
    return table_VE * (norm * jax.lax.rsqrt(jnp.sum(table_VE**2, axis=-1, keepdims=True) + 1e-12))


def import_table(values, vocab: int, dim: int) -> Float[Array, "{vocab} {dim}"]:
    """A checked float32 copy of a table from elsewhere (word2vec, another model), for `process.init(key)["embedding"]`."""
    table = np.asarray(values)
    if table.shape != (vocab, dim):
        raise InputError(f"imported embeddings have shape {table.shape}; the process requires ({vocab}, {dim}): one row for each token id")
    if not np.issubdtype(table.dtype, np.floating) or not np.isfinite(table).all():
        raise InputError("imported embeddings must be finite floating-point numbers")
    return jnp.asarray(table, jnp.float32)


def mean_embedding(logits: PerClass, table_VE: Float[Array, "V E"]) -> Vectors:
    """softmax(logits) @ table: the mean of the clean vector under the predicted probabilities."""
    return jnp.matmul(jax.nn.softmax(logits, axis=-1), table_VE, precision=EXACT)


def similarity(z: Vectors, table_VE: Float[Array, "V E"]) -> PerClass:
    """z . e_k for every token k."""
    return jnp.matmul(z, table_VE.T, precision=EXACT)


def nearest(z: Vectors, table_VE: Float[Array, "V E"], excluded: tuple[int, ...] = ()) -> Ids:
    """The token whose embedding is nearest (Euclidean): rounding by distance. Computed one slice of the first axis at a time, since [*n, V]
    of a whole batch is large."""

    def one(z: Float[Array, "*m E"]) -> Int[Array, "*m"]:
        closeness = similarity(z, table_VE) - jnp.sum(table_VE**2, axis=-1) / 2
        return jnp.argmax(exclude(closeness, excluded), axis=-1).astype(jnp.int32)

    return jax.lax.map(one, z) if z.ndim > 1 else one(z)


def clamp(x0: Vectors, table_VE: Float[Array, "V E"], excluded: tuple[int, ...] = ()) -> Vectors:
    """The clamping trick of Diffusion-LM (2205.14217 section 4.2): a predicted clean vector, replaced by the nearest embedding."""
    return table_VE[nearest(x0, table_VE, excluded)]


def rounding_error(x0: Vectors, x: Ids, table_VE: Float[Array, "V E"], excluded: tuple[int, ...] = ()) -> Array:
    """Share of the vectors whose nearest embedding is not that of their token."""
    return jnp.mean(nearest(x0, table_VE, excluded) != x)


def collapse(table_VE: Float[Array, "V E"], excluded: tuple[int, ...] = ()) -> dict[str, Float[Array, ""]]:
    """Measures of collapse of learned embeddings: the minimum of a squared error alone has them all at one point.

    Returns:
      mean_cosine: over all pairs of different tokens, about 0 for random directions, about 1 after a collapse.
      mean_norm, smallest_norm, largest_norm: lengths of the rows.
      spread: root mean squared distance of the rows from their mean.
    """
    ids = jnp.asarray([i for i in range(table_VE.shape[0]) if i not in excluded])
    table_VE = table_VE[ids]
    count = table_VE.shape[0]
    norm_V = jnp.linalg.norm(table_VE, axis=-1)
    direction_VE = table_VE / jnp.maximum(norm_V, 1e-12)[:, None]
    # The square of the sum contains every pair twice and every row with itself.
    pairs = jnp.sum(jnp.sum(direction_VE, axis=0) ** 2) - jnp.sum(direction_VE**2)
    spread = jnp.sqrt(jnp.mean(jnp.sum((table_VE - jnp.mean(table_VE, axis=0)) ** 2, axis=-1)))
    return {
        "mean_cosine": pairs / (count * (count - 1)),
        "mean_norm": jnp.mean(norm_V),
        "smallest_norm": jnp.min(norm_V),
        "largest_norm": jnp.max(norm_V),
        "spread": spread,
    }
