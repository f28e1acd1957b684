"""The standard error taken apart: each part against what repetition or an exact integral says."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion.processes.masked import Masked
from dlmjax.evaluation.likelihood import Evaluator
from dlmjax.evaluation.result import LEAST_BIAS, of_mixture
from tests.evaluation.test_likelihood import batches_of
from tests.sampling.toy import Law

LAW, ONE = Law(), jnp.float32(1.0)


class Curve(Masked):
    """An integrand that depends on t alone: no masks, no text."""

    def loss_mask(self, z_BL, t_BL):
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
    assert parts["levels"] > 4 * parts["levels_stderr"], "three nodes are few, and say so"
    parts = Evaluator(LAW.process(), LAW.bind, draws=3)(ONE, [batch]).errors
    assert parts["levels"] < 4 * parts["levels_stderr"], "the default has no bias that could be told from noise"


def test_a_mixture_is_the_bound_of_text_drawn_from_it():
    """Each corpus weighs by its share, whatever it has of windows; the error is what repeated choices of the windows scatter by."""
    rng, shares = np.random.default_rng(1), (3.0, 1.0)
    evaluator = Evaluator(LAW.process(), LAW.bind, nodes=2)
    template = evaluator.measure(ONE, batches_of(LAW.texts_NL, 27), byte_lengths_V=np.ones(9, np.int64))

    def drawn():
        measured = []
        for windows, nats, size in ((40, 2.0, 3.0), (160, 5.0, 1.5)):
            tokens_W = rng.integers(6, 12, windows)
            bytes_W = np.round(tokens_W * size + rng.normal(0, 2, windows)).astype(np.int64)
            nats_W = tokens_W * nats + 2 * bytes_W * rng.normal(1, 0.3, windows)
            nats_WJD, zero_W = np.repeat(nats_W, 2).reshape(-1, 2, 1), np.zeros(windows)
            arrays = dict(window_W=np.arange(windows), nats_WJD=nats_WJD, prior_W=zero_W, reconstruction_WD=zero_W[:, None])
            measured.append(dataclasses.replace(template, tokens_W=tokens_W, bytes_W=bytes_W, **arrays))
        return measured, [evaluator.result(each) for each in measured]

    (measured, results), mixed = drawn(), []
    for _ in range(300):
        again, found = drawn()
        mixed.append(of_mixture(found, again, shares))
    first = of_mixture(results, measured, shares)
    for name, found in (("nats_per_token", first.nats_per_token), ("diffusion_nats_per_token", first.diffusion_nats_per_token)):
        assert found == pytest.approx(0.75 * getattr(results[0], name) + 0.25 * getattr(results[1], name), rel=1e-12)
    sizes = [result.bytes / result.tokens for result in results]
    assert first.bits_per_byte == pytest.approx(first.nats_per_token / np.log(2) / (0.75 * sizes[0] + 0.25 * sizes[1]), rel=1e-12)
    for name in ("nats_per_token", "bits_per_byte"):
        scatter = np.std([getattr(each, name) for each in mixed], ddof=1)
        assert np.mean([getattr(each, f"stderr_{name}") for each in mixed]) == pytest.approx(scatter, rel=0.15)
    alone = of_mixture(results[:1], measured[:1], (0.2,))
    for name in ("nats_per_token", "stderr_nats_per_token", "bits_per_byte", "stderr_bits_per_byte", "tokens", "windows", "bytes"):
        assert getattr(alone, name) == pytest.approx(getattr(results[0], name), rel=1e-9)


def test_one_draw_leaves_masks_and_sequences_together():
    parts = Evaluator(LAW.process(), LAW.bind, nodes=2)(ONE, batches_of(LAW.texts_NL, 27)).errors
    assert parts == {"sequences": None, "masks": None, "levels": None, "levels_stderr": None, "levels_windows": None}


@pytest.mark.parametrize("nodes", [3, 4, 8])
def test_the_bias_of_the_levels_is_seen(nodes):
    """An integrand with a logarithm at 0 (integral 2): the estimate is no less than the true bias and vanishes with more nodes."""
    result = Evaluator(Curve(LAW.vocab, LAW.mask_id), LAW.bind, nodes=nodes)(ONE, batches_of(np.zeros((4, 3)), 4))
    bias = abs(result.nats_per_token - 2)
    assert 1e-3 < bias <= result.errors["levels"] < 30 * bias and result.errors["levels_stderr"] < 1e-6


def test_too_few_nodes_are_reported():
    """One line where the bias, or not knowing it, matters; none where it is noise, where levels are drawn, or at the default."""
    curve = Curve(LAW.vocab, LAW.mask_id), list(batches_of(np.zeros((4, 3)), 4))
    law = LAW.process(), list(batches_of(LAW.texts_NL, 27))

    def caution(process, batches, **grid):
        return Evaluator(process, LAW.bind, **grid)(ONE, batches).caution()

    assert "--nodes 16" in caution(*law, nodes=2) and "1 node cannot" in caution(*law, nodes=1)
    assert "4 nodes are too few" in caution(*curve, nodes=4) and "--nodes 16" in caution(*curve, nodes=4)
    assert caution(*law) == caution(*law, nodes=2, rule="stratified") == caution(*law, nodes=2, rule="count") == ""

    class Turning(Curve):
        def loss(self, logits, x, z, t):
            return jnp.where(t > 0.3, 1.0, 0.0)

    assert "--nodes 32" in caution(Turning(LAW.vocab, LAW.mask_id), curve[1])


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


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_few_nodes_are_compared_with_many_on_some_windows(nodes):
    """The first windows and every so many more; the difference is what two evaluations of these windows have, and ± contains it."""
    evaluator = Evaluator(Curve(4, 3), LAW.bind, nodes=nodes).with_reference()
    (batch,) = batches_of(np.zeros((400, 3), np.int32), 400)
    parts = [{name: array[i : i + 10] for name, array in batch.items()} for i in range(0, 400, 10)]
    measured = evaluator.measure(ONE, parts)
    result, read = evaluator.result(measured), np.isfinite(measured.reference_W)
    assert read.sum() == result.errors["levels_windows"] and read[:32].all()
    assert np.flatnonzero(read)[32:].tolist() == [w for w in range(32, 400) if w % (64 // nodes) == 0]
    np.testing.assert_array_equal(evaluator.measure(ONE, [batch]).reference_W, measured.reference_W, "the batch changes nothing")
    many = Evaluator(Curve(4, 3), LAW.bind, nodes=64)(ONE, [batch])
    assert result.errors["levels"] == pytest.approx(abs(result.nats_per_token - many.nats_per_token), abs=1e-5)
    assert abs(result.nats_per_token - 2) <= result.quadrature + 1e-4 and result.error_nats_per_token >= result.quadrature - 1e-9
    assert f", within {result.quadrature:.4f} nats/token" in result.accuracy() and f"on {read.sum()} windows" in result.accuracy()


def test_rules_without_a_bias_have_none_printed():
    """Drawn times, all levels of a process in steps, and exact likelihoods; sixteen nodes have at least the least bias."""
    batches = list(batches_of(LAW.texts_NL, 27))
    drawn = Evaluator(LAW.process(), LAW.bind, nodes=2, rule="stratified").with_reference()(ONE, batches)
    assert drawn.quadrature == 0 and "no bias" in drawn.accuracy()
    default = Evaluator(LAW.process(), LAW.bind).with_reference()(ONE, batches)
    assert LEAST_BIAS * default.nats_per_token <= default.quadrature < 0.1 and default.errors["levels_windows"] is None
    assert default.error_nats_per_token == pytest.approx(default.stderr_nats_per_token + default.quadrature)
    assert f"± {default.error_nats_per_token:.4f} nats/token" in default.summary()
