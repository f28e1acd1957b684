"""Paired differences and minimal pairs, against enumeration."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.errors import InputError
from dlmjax.evaluation.compare import pair_accuracy, paired_difference
from dlmjax.evaluation.likelihood import Evaluator
from dlmjax.evaluation.result import ratio_with_error
from tests.evaluation.test_likelihood import batches_of
from tests.sampling.toy import Law

ONE = jnp.float32(1.0)


def flattened(law: Law, power: float) -> Law:
    """A law with other odds of the same texts."""
    other = Law(law.symbols, law.length)
    other.p_N = law.p_N**power / np.sum(law.p_N**power)
    return other


@pytest.fixture(scope="module")
def sides():
    """Two models that know their laws exactly, on the same texts under the same noise; and those texts."""
    first = Law(seed=4)
    second = flattened(first, 0.8)
    texts_WL = np.random.default_rng(0).choice(first.texts_NL, 300, p=first.p_N)
    measured = [
        Evaluator(law.process(), law.bind, nodes=4, draws=4).measure(ONE, batches_of(texts_WL, 128), byte_lengths_V=np.array([1, 1, 2, 0]))
        for law in (first, second)
    ]
    return first, second, texts_WL, measured


def test_the_difference_is_the_enumerated_one_and_its_error_is_smaller_than_either(sides):
    first, second, texts_WL, (a, b) = sides
    exact_W = np.log(second.p_N) - np.log(first.p_N)
    exact = exact_W[first.index(texts_WL)].sum() / texts_WL.size
    found = paired_difference(a, b)
    noise = np.sqrt(np.sum((a.nats_WD - b.nats_WD).var(axis=1, ddof=1) / 4)) / texts_WL.size
    assert abs(found.nats_per_token - exact) < 4 * noise + 1e-5 and noise < 0.02
    errors = [ratio_with_error(side.nats_W, side.tokens_W)[1] for side in (a, b)]
    assert found.stderr_nats_per_token < 0.5 * min(errors) and found.correlation > 0.9
    assert found.stderr_unpaired_nats_per_token == pytest.approx(np.hypot(*errors))
    assert found.bits_per_byte == pytest.approx(found.nats_per_token * texts_WL.size / np.log(2) / a.bytes_W.sum())
    assert found.tokens == texts_WL.size and 0 < found.windows_better < 1
    assert json.loads(json.dumps(found.to_json()))["windows"] == 300 and "unpaired the error would be" in found.summary()


def test_a_model_does_not_differ_from_itself(sides):
    _, _, _, (a, _) = sides
    found = paired_difference(a, a)
    assert found.nats_per_token == found.stderr_nats_per_token == 0 and found.correlation == pytest.approx(1)


def test_other_texts_are_refused(sides):
    _, _, _, (a, b) = sides
    for change in ({"window_W": b.window_W + 1}, {"tokens_W": b.tokens_W + 1}, {"bytes_W": None}):
        with pytest.raises(InputError, match="different windows"):
            paired_difference(a, dataclasses.replace(b, **change))


def test_minimal_pairs_are_counted_by_group(sides):
    """Group x compares likely texts with unlikely ones, group y each text with itself: a tie is half right."""
    law = sides[0]
    order = np.argsort(-law.p_N)
    good, bad = law.texts_NL[order[:8]], law.texts_NL[order[-8:]]
    evaluator = Evaluator(law.process(), law.bind, nodes=3, draws=60, rule="count")
    measured = [evaluator.measure(ONE, batches_of(np.concatenate([side, good]), 16)) for side in (good, bad)]
    found = pair_accuracy(*measured, groups=["x"] * 8 + ["y"] * 8, fields=["f"] * 16)
    assert found.groups == {"x": {"accuracy": 1.0, "pairs": 8}, "y": {"accuracy": 0.5, "pairs": 8}}
    assert found.accuracy == 0.75 and found.fields == {"f": {"accuracy": 0.75, "pairs": 16}} and found.pairs == 16
    exact = np.mean(np.log(law.p_N[order[:8]]) - np.log(law.p_N[order[-8:]])) / 2
    assert abs(found.nats - exact) < 4 * found.stderr_noise_nats
    assert found.stderr_accuracy == pytest.approx(np.sqrt(0.25 / 7) / 2), "the pairs of group y are 0.5 on average"
    assert "chance 50 %" in found.summary() and json.loads(json.dumps(found.to_json()))["groups"]
    with pytest.raises(InputError, match="same pairs"):
        pair_accuracy(measured[0], measured[1], groups=["x"], fields=["f"])


def test_groups_of_one_pair_have_an_error(sides):
    """Nothing is known of the spread in a group of one: all pairs together tell it, and one pair tells nothing."""
    _, _, _, (a, b) = sides
    pairs = len(a.window_W)
    alone = pair_accuracy(a, b, groups=[str(i) for i in range(pairs)], fields=["f"] * pairs)
    together = pair_accuracy(a, b, groups=["x"] * pairs, fields=["f"] * pairs)
    assert 0 < alone.accuracy < 1 and alone.stderr_accuracy == pytest.approx(together.stderr_accuracy) and alone.stderr_accuracy > 0
    one = pair_accuracy(*(first_window(side) for side in (a, b)), groups=["x"], fields=["f"])
    assert np.isnan(one.stderr_accuracy) and one.to_json()["stderr_accuracy"] is None


def first_window(measured):
    arrays = ("window_W", "nats_WJD", "prior_W", "reconstruction_WD", "tokens_W", "bytes_W")
    return dataclasses.replace(measured, **{name: getattr(measured, name)[:1] for name in arrays})
