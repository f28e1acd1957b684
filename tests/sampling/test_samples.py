"""What is said of finished samples: a row that repeats one token has collapsed."""

import numpy as np

from dlmjax.sampling.samples import Samples
from dlmjax.sampling.settings import SampleSettings


def samples(tokens_BL, rule="confidence", condition_mask_BL=None):
    tokens_BL = np.asarray(tokens_BL, np.int32)
    mask_BL = np.zeros(tokens_BL.shape, bool) if condition_mask_BL is None else condition_mask_BL
    ones = np.ones(tokens_BL.shape, np.float32)
    settings = SampleSettings(steps=4, rule=rule)
    return Samples(tokens_BL, mask_BL, ones, ones.astype(int), np.zeros(len(tokens_BL)), 4, 4, 0, "masked", settings)


def test_only_ranked_orders_are_advised_against():
    repeated, varied = [[7] * 20 + [1, 2, 3, 4]], [[1, 2, 3, 4] * 6]
    assert "1 of 2 samples repeat one token: rule confidence" in samples(repeated + varied).advice
    assert 'rule "ancestral"' in samples(repeated).advice
    assert not samples(varied).advice and not samples(repeated, rule="ancestral").advice
    assert samples(repeated).to_json()["collapsed"] == 1


def test_only_generated_positions_count():
    tokens_BL, mask_BL = [[7] * 40 + list(range(20))], np.zeros((1, 60), bool)
    assert samples(tokens_BL).collapsed == 1
    mask_BL[:, :40] = True
    assert samples(tokens_BL, condition_mask_BL=mask_BL).collapsed == 0
    assert samples([[7] * 15]).collapsed == 0, "of a few tokens nothing can be said"
