"""The published losses: what they are, that they are not bounds, and that the bound is reported beside them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import Objective
from dlmjax.diffusion.gaussian import DiffusionLm, EmbeddingFlow, GaussianEmbedding, Sed
from dlmjax.diffusion.oracle.gaussian import ExactDenoiser
from dlmjax.diffusion.process import bind_process, init_params
from dlmjax.diffusion.weightings.gaussian import Anchor, EndToEnd, Simple
from dlmjax.errors import InputError
from tests.diffusion.battery import batch_of, sample_joint
from tests.diffusion.gaussian.battery import MASK, ONE, TABLE_2, TOKENS, VOCAB, make

X, T = jnp.asarray([0, 1, 2, 1]), np.asarray([0.1, 0.4, 0.7, 0.95])
EPS = np.random.default_rng(0).normal(size=(4, 2))


def _seen(process):
    now = process.curve.at(jnp.asarray(T)).over()
    return np.asarray(now.a), np.asarray(now.s), now.a * TABLE_2[X] + now.s * EPS


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score"])
@pytest.mark.parametrize("name", ["eps", "x0", "v", "velocity"])
def test_simple_is_the_squared_error_of_its_target_at_any_prediction(prediction, name):
    with jax.enable_x64(True):
        process = make(GaussianEmbedding, dim=2, prediction=prediction)
        a, s, z = _seen(process)
        output = jnp.asarray(np.random.default_rng(1).normal(size=(4, 2)))
        x0 = np.asarray(process.clean(output, z, jnp.asarray(T)))
        eps = (np.asarray(z) - a * x0) / s
        parts = {"eps": (0, 1), "x0": (1, 0), "v": (-s, a), "velocity": (-1, 1)}[name]
        error = parts[0] * (TABLE_2[X] - x0) + parts[1] * (EPS - eps)
        np.testing.assert_allclose(
            Simple(name).trained(process, output, X, z, jnp.asarray(T), jnp.asarray(T)), np.mean(error**2, axis=-1), rtol=1e-9
        )


def test_end_to_end_is_the_published_sum():
    """MSE of x0 + what is left at t = 1 + softmax(z_0 . e) cross-entropy over the tokens that may occur."""
    with jax.enable_x64(True):
        process = make(DiffusionLm, dim=2)
        a, s, z = _seen(process)
        x0 = jnp.asarray(np.random.default_rng(1).normal(size=(4, 2)))
        start, end = process.curve.at(0.0), process.curve.at(1.0)
        z0 = float(start.a) * TABLE_2[X] + float(start.s) * EPS
        logits = z0 @ TABLE_2[:TOKENS].T
        rounding = np.log(np.exp(logits).sum(-1)) - logits[np.arange(4), X]
        mse = np.mean((TABLE_2[X] - np.asarray(x0)) ** 2, axis=-1)
        left = np.mean((float(end.a) * TABLE_2[X]) ** 2, axis=-1)
        np.testing.assert_allclose(EndToEnd().trained(process, x0, X, z, jnp.asarray(T), jnp.asarray(T)), mse + left + rounding, rtol=1e-9)
        np.testing.assert_allclose(EndToEnd(0.0, 0.0).trained(process, x0, X, z, jnp.asarray(T), jnp.asarray(T)), mse, rtol=1e-9)
        logits = float(start.a) * np.asarray(x0) @ TABLE_2[:TOKENS].T
        anchor = np.log(np.exp(logits).sum(-1)) - logits[np.arange(4), X]
        np.testing.assert_allclose(Anchor(0.5).trained(process, x0, X, z, jnp.asarray(T), jnp.asarray(T)), mse + 0.5 * anchor, rtol=1e-9)


def test_the_anchor_of_predicted_logits_is_their_cross_entropy():
    with jax.enable_x64(True):
        process = make(GaussianEmbedding, dim=2)
        _, _, z = _seen(process)
        logits = jnp.asarray(np.random.default_rng(1).normal(size=(4, VOCAB)))
        log_p = jax.nn.log_softmax(process.belief(logits, z, jnp.asarray(T))[:, :TOKENS])
        anchor = Anchor().trained(process, logits, X, z, jnp.asarray(T), jnp.asarray(T)) - Simple("x0").trained(
            process, logits, X, z, jnp.asarray(T), jnp.asarray(T)
        )
        np.testing.assert_allclose(anchor, -log_p[jnp.arange(4), X], rtol=1e-9)


@pytest.mark.parametrize("cls", [Sed, *(pytest.param(cls, marks=pytest.mark.nightly) for cls in (DiffusionLm, EmbeddingFlow))])
def test_the_published_loss_is_trained_and_the_bound_is_reported(cls):
    process = cls(VOCAB, MASK, dim=2)
    weights = {"process": init_params(process, jax.random.key(0))}
    batch = batch_of(np.asarray(sample_joint(ONE, 64, 0)))
    own, plain = Objective(process), Objective(process, weighting=Objective(make(GaussianEmbedding)).weighting)
    assert not own.trains_bound and plain.trains_bound
    denoiser = ExactDenoiser.of(ONE, bind_process(process, weights))
    (total, parts), gradient = jax.value_and_grad(lambda w: own.bind(w)(denoiser, batch, jax.random.key(1), 64), has_aux=True)(weights)
    bound, bound_parts = plain.bind(weights)(denoiser, batch, jax.random.key(1), 64)
    np.testing.assert_allclose(parts["nats_by_level"], bound_parts["nats_by_level"], rtol=1e-6)
    assert float(total) != pytest.approx(float(bound), rel=0.01)
    name = own.weighting.name
    assert f"loss_{name}_not_a_bound" in own.report(parts) and "partial_nelbo" in own.report(parts)
    assert {"nelbo", "loss"} <= set(plain.report(bound_parts))
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(gradient))
    assert ((gradient["process"]["embedding"] != 0).any()) == (cls is DiffusionLm)
    if cls is Sed:
        assert (gradient["process"]["rounding"]["weight"] != 0).any()


def test_rounding_keeps_embeddings_apart():
    """With the right guess squared error alone does not mind that all embeddings are nearly 0; the rounding and the anchor do."""
    process = make(DiffusionLm, dim=2)
    near = process.with_params({"embedding": 1e-3 * process.params["embedding"]})
    t = jnp.asarray(T, jnp.float32)

    def loss(weighting, process):
        z = process.curve.at(t).over().a * process.table[X]
        return float(jnp.mean(weighting.trained(process, 0.9 * process.table[X], X, z, t, t)))

    assert loss(EndToEnd(rounding=0.0), near) < loss(EndToEnd(rounding=0.0), process)
    assert loss(EndToEnd(), near) > loss(EndToEnd(), process)
    assert loss(Anchor(), near) > loss(Anchor(), process)


def test_bad_targets_are_refused():
    with pytest.raises(InputError, match="choose one of x0, eps"):
        Simple("mu")
