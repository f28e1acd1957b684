"""The standard error taken apart: each part against what repetition or an exact integral says."""

import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion.masked import Masked
from dlmjax.evaluation.likelihood import Evaluator, _spread
from tests.evaluation.test_likelihood import batches_of
from tests.sampling.toy import Law

LAW, ONE = Law(), jnp.float32(1.0)


class Curve(Masked):
    """An integrand that depends on t alone: no masks, no text."""

    def rows(self, z_BL, t_BL):
        return jnp.ones(z_BL.shape, bool)

    def loss(self, logits, x, z, t):
        return -jnp.log(t) + 3 * t**2


def test_masks_and_sequences_are_what_repetition_says():
    """Other noise for the same texts scatters as `masks`; exact log-likelihoods of the texts scatter as `sequences`."""
    texts_WL = np.random.default_rng(0).choice(LAW.texts_NL, 400, p=LAW.p_N)
    evaluator = Evaluator(LAW.process(), LAW.bind, nodes=3, draws=3)
    (batch,) = batches_of(texts_WL, 400)
    results = [evaluator(ONE, [{**batch, "row": batch["row"] + 1000 * run}]) for run in range(24)]
    parts = results[0].errors
    scatter = np.std([result.nats_per_token for result in results], ddof=1)
    assert parts["masks"] == pytest.approx(scatter, rel=0.45) and parts["masks"] == results[0].stderr_noise_nats_per_token
    exact_W = -np.log(LAW.p_N[LAW.index(texts_WL)]) / 3
    assert parts["sequences"] == pytest.approx(exact_W.std(ddof=1) / np.sqrt(400), rel=0.15)
    assert np.hypot(parts["masks"], parts["sequences"]) == pytest.approx(results[0].stderr_nats_per_token, rel=1e-6)
    assert parts["levels"] < 4 * parts["levels_stderr"], "three nodes are exact for what the law of three tokens needs, up to noise"


def test_one_draw_leaves_masks_and_sequences_together():
    parts = Evaluator(LAW.process(), LAW.bind, nodes=2)(ONE, batches_of(LAW.texts_NL, 27)).errors
    assert parts == {"sequences": None, "masks": None, "levels": None, "levels_stderr": None}


@pytest.mark.parametrize("nodes", [3, 4, 8])
def test_the_bias_of_the_levels_is_seen(nodes):
    """An integrand with a logarithm at 0 (integral 2): the estimate is no less than the true bias and vanishes with more nodes."""
    result = Evaluator(Curve(LAW.vocab, LAW.mask_id), LAW.bind, nodes=nodes)(ONE, batches_of(np.zeros((4, 3)), 4))
    bias = abs(result.nats_per_token - 2)
    assert 1e-3 < bias <= result.errors["levels"] < 30 * bias and result.errors["levels_stderr"] < 1e-6


def test_the_estimate_of_a_bias_is_zero_where_a_smaller_rule_is_exact():
    for nodes in (3, 4, 7, 8):
        points = 0.5 * (np.polynomial.legendre.leggauss(nodes)[0] + 1)
        exact_to = nodes - 2 + nodes % 2  # without one or two nodes: as many powers as are left, one more by symmetry
        for power in range(exact_to):
            assert abs(points**power @ _spread(nodes, 1.0)) < 1e-9
        assert abs(points ** (exact_to + 1) @ _spread(nodes, 1.0)) > 1e-6
    assert _spread(2, 1.0) is None
    # Nodes of a root of t: the same rule for f(u^2) 2u, which is of odd powers.
    assert abs(np.ones(8) @ _spread(8, 2.0)) < 1e-9


@pytest.mark.parametrize("nodes", [4, 8])
def test_drawn_levels_bring_an_error_of_their_own(nodes):
    """Nothing but t is random here: the error from the slope is the error over windows."""

    class Steep(Curve):
        def loss(self, logits, x, z, t):
            return 3 * t**2

    evaluator = Evaluator(Steep(LAW.vocab, LAW.mask_id), LAW.bind, nodes=nodes, draws=2, rule="stratified")
    result = evaluator(ONE, batches_of(np.zeros((2000, 3)), 2000))
    assert result.errors["levels"] == pytest.approx(result.stderr_nats_per_token, rel=0.1)
    assert result.errors["masks"] < 0.4 * result.errors["levels"]
