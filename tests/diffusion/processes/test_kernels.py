"""Transition kernels against dense matrices in float64: what they are, how they compose, and the cost of one step back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import row_keys
from dlmjax.diffusion.processes import kernels
from dlmjax.errors import InputError
from tests.diffusion.battery import chi_square_sigmas

K = 6
POINTS = np.random.default_rng(0).normal(size=(K, 3))


def path_generator(tokens: int) -> np.ndarray:
    """Jumps up and down with the same rate, none over the ends."""
    jumps_KK = np.eye(tokens, k=1) + np.eye(tokens, k=-1)
    return jumps_KK - np.diag(jumps_KK.sum(axis=1))


def neighbour_generator(point_KE: np.ndarray, neighbours: int) -> np.ndarray:
    tokens = len(point_KE)
    graph_KK = np.zeros((tokens, tokens))
    for x in range(tokens):
        apart = [np.inf if y == x else np.linalg.norm(point_KE[x] - point_KE[y]) for y in range(tokens)]
        graph_KK[x, np.argsort(apart)[:neighbours]] = 1
    rate_KK = (graph_KK + graph_KK.T) / (2 * neighbours)
    return rate_KK - np.diag(rate_KK.sum(axis=1))


def dense(kind: str, keep: float, tokens: int = K) -> np.ndarray:
    """Q(keep) from the definition."""
    if kind == "uniform":
        return keep * np.eye(tokens) + (1 - keep) / tokens
    generator_KK = path_generator(tokens) if kind == "gaussian" else neighbour_generator(POINTS[:tokens], min(2, tokens - 2))
    slowest = np.sort(np.linalg.eigvalsh(-generator_KK))[1]
    with jax.enable_x64(True):
        return np.asarray(jax.scipy.linalg.expm(-np.log(max(keep, 1e-12)) / slowest * generator_KK, max_squarings=40))


KERNELS = {"uniform": kernels.Uniform(K), "gaussian": kernels.Path(K), "neighbours": kernels.Neighbours(POINTS, 2)}
every_kernel = pytest.mark.parametrize("kind", KERNELS)
LEVELS = [1.0, 1 - 1e-3, 0.9, 0.4, 1e-2, 0.0]


def _matrix(kernel, keep: float, dtype=jnp.float64) -> np.ndarray:
    with jax.enable_x64(dtype == jnp.float64):
        keep_K, gone_K = jnp.full(kernel.tokens, keep, dtype), jnp.full(kernel.tokens, 1 - keep, dtype)
        return np.asarray(kernel.row(jnp.arange(kernel.tokens), keep_K, gone_K))


@every_kernel
def test_rows_are_the_dense_matrix(kind):
    """Row x is q(z | x): not negative, summing to 1, symmetric; nothing moves at keep = 1, all is even at 0."""
    kernel = KERNELS[kind]
    assert kernel.tokens == K
    for keep in LEVELS:
        matrix_KK = _matrix(kernel, keep)
        np.testing.assert_allclose(matrix_KK, dense(kind, keep), atol=1e-11)
        np.testing.assert_allclose(matrix_KK.sum(axis=1), 1, atol=1e-11)
        np.testing.assert_allclose(matrix_KK, matrix_KK.T, atol=1e-11)
        assert (matrix_KK >= 0).all()
    np.testing.assert_array_equal(_matrix(kernel, 1.0), np.eye(K))
    np.testing.assert_allclose(_matrix(kernel, 0.0), 1 / K, atol=1e-11)


@every_kernel
def test_steps_compose_and_spread_is_the_product(kind):
    kernel, p_K = KERNELS[kind], np.random.default_rng(1).dirichlet(np.ones(K))
    np.testing.assert_allclose(_matrix(kernel, 0.8) @ _matrix(kernel, 0.3), _matrix(kernel, 0.24), atol=1e-11)
    with jax.enable_x64(True):
        for keep in LEVELS:
            spread_K = kernel.spread(jnp.asarray(p_K), jnp.asarray(keep), jnp.asarray(1 - keep))
            np.testing.assert_allclose(spread_K, p_K @ dense(kind, keep), atol=1e-11)


@every_kernel
@pytest.mark.parametrize("gone", [1e-6, 1e-3, 0.1])
def test_single_precision_keeps_the_digits_of_a_short_step(kind, gone):
    """What leaves a token in one step is small and counts T times: it must be right relative to itself."""
    kernel = KERNELS[kind]
    x = jnp.arange(K)
    found_KK = np.asarray(kernel.row(x, jnp.full(K, 1 - gone), jnp.full(K, gone)), np.float64)
    truth_KK = dense(kind, 1 - gone)
    direct = (truth_KK > 0.01 * gone) & ~np.eye(K, dtype=bool)
    np.testing.assert_allclose(found_KK[direct], truth_KK[direct], rtol=2e-5 if kind == "uniform" else 2e-4)
    np.testing.assert_allclose(found_KK, truth_KK, atol=3e-7)


def test_the_gaussian_kernel_is_a_gaussian():
    """In the interior: D3PM's discretised Gaussian of the same variance, within a percent of total variation."""
    tokens, variance = 101, 9.0
    tau = variance / 2
    keep = np.exp(-tau * 4 * np.sin(np.pi / (2 * tokens)) ** 2)
    row_K = _matrix(kernels.Path(tokens), keep)[50]
    distance_K = np.arange(tokens) - 50
    gauss_K = np.exp(-(distance_K**2) / (2 * variance))
    assert np.abs(row_K - gauss_K / gauss_K.sum()).sum() / 2 < 0.01
    assert row_K @ distance_K**2 == pytest.approx(variance, rel=1e-6)
    # At an end what would step over it is reflected: nothing is lost, and the end is not a trap.
    assert _matrix(kernels.Path(tokens), keep)[0].argmax() == 0 and _matrix(kernels.Path(tokens), keep)[0].sum() == pytest.approx(1)


@every_kernel
def test_draws_have_the_distribution_of_the_row(kind):
    rows = 4096
    x_BL = jnp.broadcast_to(jnp.asarray([0, 3]), (rows, 2))
    half_BL, keys_B = jnp.full((rows, 2), 0.5), row_keys(jax.random.key(0), jnp.arange(rows))
    z_BL = np.asarray(KERNELS[kind].draw(keys_B, x_BL, half_BL, half_BL))
    for place, x in enumerate((0, 3)):
        assert chi_square_sigmas(np.bincount(z_BL[:, place], minlength=K), dense(kind, 0.5)[x]) < 4


@every_kernel
@pytest.mark.parametrize("dtype, tolerance", [(jnp.float64, 1e-9), (jnp.float32, 2e-5)])
@pytest.mark.parametrize("keep, step_keep", [(1.0, 0.99), (0.95, 0.999), (0.5, 0.9), (0.1, 0.0)])
def test_divergence_is_the_enumerated_kl(kind, dtype, tolerance, keep, step_keep):
    """For every (x, z) and a random guess, against KL sums over dense matrices; scaled by the size of the step as in a bound."""
    log_p_K = np.log(np.random.default_rng(2).dirichlet(np.ones(K) / 2))
    before_KK, step_KK = dense(kind, keep), dense(kind, step_keep)
    truth_XZ = np.zeros((K, K))
    for x in range(K):
        for z in range(K):
            q_K = before_KK[x] * step_KK[:, z]
            p_K = (np.exp(log_p_K) @ before_KK) * step_KK[:, z]
            q_K, p_K = q_K / q_K.sum(), p_K / p_K.sum()
            seen = q_K > 1e-300
            truth_XZ[x, z] = np.sum(q_K[seen] * np.log(q_K[seen] / p_K[seen]))
    with jax.enable_x64(dtype == jnp.float64):
        x, z = (jnp.asarray(a.reshape(-1)) for a in np.meshgrid(np.arange(K), np.arange(K), indexing="ij"))
        step = kernels.Step(*(jnp.full(x.shape, value, dtype) for value in (keep, 1 - keep, step_keep, 1 - step_keep)))
        found = kernels.divergence(KERNELS[kind], jnp.broadcast_to(jnp.asarray(log_p_K, dtype), (K * K, K)), x, z, step)
        one = jax.tree.map(lambda a: a[:1], step)
        back = jax.nn.softmax(kernels.backward_logits(KERNELS[kind], jnp.asarray(log_p_K, dtype)[None], jnp.asarray([2]), one))
    assert found.dtype == dtype and (np.asarray(found) > -tolerance).all()
    # What one step of 1/T costs is multiplied by T. Pairs that occur less than once in a million draws are left out.
    often = (before_KK @ step_KK > 1e-6).reshape(-1)
    scale = max(1 - step_keep, 1e-3)
    np.testing.assert_allclose(
        np.asarray(found)[often] / scale, truth_XZ.reshape(-1)[often] / scale, rtol=100 * tolerance, atol=100 * tolerance
    )
    p_K = (np.exp(log_p_K) @ before_KK) * step_KK[:, 2]
    np.testing.assert_allclose(back[0], p_K / p_K.sum(), atol=1e-9 if dtype == jnp.float64 else 1e-5)


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: kernels.Neighbours(np.zeros((5000, 1)), 2), "5,000 tokens require a basis of 95 MiB"),
        (lambda: kernels.Neighbours(POINTS, K), "below the 6 tokens"),
        (lambda: kernels.Neighbours(POINTS[0], 2), "one row for each token"),
        (lambda: kernels.Neighbours([[0.0], [0.1], [9.0], [9.1]], 1), "too few to connect"),
    ],
)
def test_impossible_kernels_are_refused(make, says):
    with pytest.raises(InputError, match=says):
        make()
