"""Traces written by hand, whose answers can be read off; and one of a sampler, which must agree with its own record."""

import numpy as np
import pytest

from dlmjax.sampling import analysis
from dlmjax.sampling.canvas import Canvas, blank_canvas
from dlmjax.sampling.sampler import Sampler
from dlmjax.sampling.settings import SampleSettings
from dlmjax.sampling.trace import MASKED, Trace, record
from tests.sampling.toy import Law

H = MASKED


def written(*states, frozen=()) -> Trace:
    """A trace of rows [S, B, L]; `frozen` are the positions that are given in all rows."""
    tokens_SBL = np.array(states, np.int32)
    condition_mask_BL = np.broadcast_to(np.isin(np.arange(tokens_SBL.shape[2]), frozen), tokens_SBL.shape[1:]).copy()
    canvas = Canvas(np.maximum(tokens_SBL[0], 0), condition_mask_BL, (~condition_mask_BL).astype(np.float32))
    confidence = np.zeros(tokens_SBL.shape)
    times_S = np.linspace(1, 0, len(states))
    return Trace("masked", SampleSettings(), 0, canvas, tokens_SBL, confidence, times_S, len(states) - 1)


# Row 0 comes from left to right; row 1 from right to left, and takes its last token back twice: hidden, then another.
TRACE = written(
    [[7, H, H, H], [7, H, H, H]],
    [[7, 1, H, H], [7, H, H, 5]],
    [[7, 1, 2, H], [7, H, 4, H]],
    [[7, 1, 2, 3], [7, 3, 4, 6]],
    [[7, 1, 2, 3], [7, 3, 4, 5]],
    frozen=(0,),
)
MADE = analysis.generated(TRACE)


def test_when_a_text_is_settled():
    np.testing.assert_array_equal(analysis.settled(TRACE.tokens_SBL), [[0, 1, 2, 3], [0, 3, 2, 4]])
    np.testing.assert_array_equal(analysis.first_stable(TRACE.tokens_SBL, MADE), [3, 4])


def test_what_was_taken_back():
    np.testing.assert_array_equal(analysis.flips(TRACE), [0, 2])
    given = written([[7, H]], [[8, 1]], frozen=(0,))
    assert analysis.flips(given).tolist() == [0], "what is given is not made"


def test_the_first_right_answer_may_vanish():
    reference_BL = np.array([[0, 1, 2, 3], [0, 3, 4, 6]])
    assert analysis.first_correct(TRACE.tokens_SBL, MADE, reference_BL).tolist() == [3, 3]
    assert (TRACE.tokens_SBL[-1, 1, 1:] != reference_BL[1, 1:]).any()
    assert analysis.first_correct(TRACE.tokens_SBL, MADE, reference_BL + 1).tolist() == [-1, -1]


def test_guesses_settle_a_text_before_it_is_shown():
    final_BL = TRACE.tokens_SBL[-1]
    texts_SBL = analysis.completed(TRACE, lambda shown_BL, masked_BL, time: final_BL if time < 0.9 else np.zeros_like(final_BL))
    assert (texts_SBL[TRACE.tokens_SBL != MASKED] == TRACE.tokens_SBL[TRACE.tokens_SBL != MASKED]).all()
    assert analysis.first_stable(texts_SBL, MADE).tolist() == [1, 4]  # row 1 shows a 6 at state 3


def test_the_order_of_reveal():
    assert analysis.order_tau(written([[H, H, H]], [[1, H, H]], [[1, 2, H]], [[1, 2, 3]])).tolist() == [1]
    assert analysis.order_tau(written([[H, H, H]], [[H, H, 3]], [[H, 2, 3]], [[1, 2, 3]])).tolist() == [-1]
    assert np.isnan(analysis.order_tau(written([[H, H]], [[1, 2]]))).all()
    # Position against step 0, 1, 1: two pairs in order, one tied; tau-b = 2 / sqrt(3 * 2).
    tied = analysis.order_tau(written([[H, H, H]], [[1, H, H]], [[1, 2, 3]]))
    np.testing.assert_allclose(tied, 2 / np.sqrt(6))
    # The given token has no part in it.
    np.testing.assert_allclose(analysis.order_tau(TRACE)[0], 1)


@pytest.mark.parametrize("order", ["left_to_right", "confidence"])
def test_a_sampler_and_its_trace_agree(order):
    law = Law(3, 4)
    samples, trace = record(Sampler(law.process(), law.bind, SampleSettings(rule=order, steps=4)), 1.0, blank_canvas(4, 6), seed=1)
    np.testing.assert_array_equal(analysis.settled(trace.tokens_SBL), samples.fixed_BL)
    assert (analysis.flips(trace) == 0).all() and (analysis.first_stable(trace.tokens_SBL, analysis.generated(trace)) == 4).all()
    if order == "left_to_right":
        np.testing.assert_allclose(analysis.order_tau(trace), 1)
