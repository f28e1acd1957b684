"""Evaluations and scores with float64 switched on (JAX_ENABLE_X64): they run under a real network, and give numbers."""

import jax
import numpy as np
import pytest

from dlmjax.evaluation import Evaluator
from dlmjax.evaluation.conditional import ConditionalScorer, Request
from tests.models.tiny import batch
from tests.sampling.test_every_process import LENGTH, PAD, make


@pytest.mark.parametrize("name", ["masked", "uniform", "plaid"])
def test_an_evaluation_and_a_score_are_made_in_float64(name):
    windows = batch(rows=2, length=LENGTH, vocab=PAD)
    windows["segments"][:] = 1
    request = Request(np.arange(2, dtype=np.int32), np.arange(3, 6, dtype=np.int32))
    with jax.enable_x64(True):
        process, network, params = make(name)
        result = Evaluator(process, network.bind, nodes=1)(params, [windows])
        (score,) = ConditionalScorer(process, network.bind, longest=LENGTH, draws=1, nodes=1)(params, [request])
    assert 0 < result.nats_per_token < np.inf and -np.inf < score.log_likelihood < 0
