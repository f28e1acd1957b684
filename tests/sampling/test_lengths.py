"""Made lengths: counted up to the first generated end, by canvas size, beside those of the data."""

import types

import numpy as np
import pytest

from dlmjax.sampling.lengths import length_report, made_lengths, text_of_lengths, wasserstein

TOKENIZER = types.SimpleNamespace(eos_id=9, pad_id=8, vocab_size=10)
TOKENS_BL = np.array([[1, 2, 9, 9, 9, 9], [9, 1, 2, 3, 4, 5], [9, 1, 9, 11, 10, 11], [1, 2, 3, 4, 9, 7]], np.int32)
PROMPT_BL = np.array([[0] * 6, [1] + [0] * 5, [1, 1] + [0] * 4, [0] * 6], bool)


def test_a_text_ends_at_its_first_generated_end():
    """An end in the prompt is text that conditions; ids behind the tokenizer's are pads of a tail."""
    assert made_lengths(TOKENS_BL, ~PROMPT_BL, 9).tolist() == [2, 5, 0, 4]
    (entry,) = length_report(TOKENS_BL, PROMPT_BL, TOKENIZER, data_D=np.array([2, 5, 40, 40]))
    assert (entry["canvas"], entry["texts"], entry["without_end"]) == (6, 4, 1)
    assert entry["end_share"] == 6 / 21 and entry["pad_share"] == 3 / 21
    assert entry["length"]["mean"] == 11 / 4 and entry["length"]["quantiles"]["0.5"] == 3
    assert entry["data"]["documents"] == 4 and entry["data"]["length"]["mean"] == 87 / 4
    assert entry["data"]["w1"] == wasserstein(np.array([2, 5, 0, 4]), np.array([2, 5, 6, 6])) == pytest.approx(2.0)
    assert text_of_lengths(entry) == "1 / 3 / 5"


def test_rows_are_reported_by_the_size_of_their_canvas():
    found = length_report(TOKENS_BL, PROMPT_BL, TOKENIZER, canvas_B=np.array([4, 6, 6, 4]))
    assert [(entry["canvas"], entry["texts"], entry["without_end"]) for entry in found] == [(4, 2, 1), (6, 2, 1)]
    assert found[0]["length"]["mean"] == 3 and found[0]["length"]["stderr_mean"] == 1


def test_without_an_end_in_the_tokenizer_there_is_no_length():
    assert length_report(TOKENS_BL, PROMPT_BL, types.SimpleNamespace(eos_id=None, vocab_size=10)) == []


def test_wasserstein_is_the_mean_distance_of_sorted_samples():
    draw = np.random.default_rng(0)
    a_N, b_N = draw.integers(0, 50, 200), draw.integers(10, 90, 200)
    assert wasserstein(a_N, b_N) == pytest.approx(np.abs(np.sort(a_N) - np.sort(b_N)).mean())
