"""A text of blocks, strides and one token at a time is the text that its row is alone, whatever the prompts beside it."""

import numpy as np
import pytest

from dlmjax.sampling.blocks import sampler_for
from dlmjax.sampling.canvas import Canvas
from tests.models.tiny import VOCAB
from tests.sampling.test_counts import BLOCKS, CAUSAL, FULL, NETWORK, PARAMS, SEEDED, settings

LENGTH, PROMPTS = 14, (3, 9, 0, 6)
WAYS = {
    "blocks": (BLOCKS, {}, {}),
    "stride": (FULL, {}, {"stride": 2, "window": 6}),
    "blocks, guidance": (BLOCKS, {"rule": "ancestral", "guidance": 1.0}, {}),
    "blocks, predetermined times": (BLOCKS, {"rule": "ancestral", "method": "predetermined"}, {}),
    "blocks, psi": (BLOCKS, {"rule": "ancestral", "method": "psi(kappa=0.3)"}, {}),
    "blocks, threshold and stop": (BLOCKS, {"rule": "threshold(value=0.3)", "stop": "exit(bound=1)"}, {}),
    "blocks, end": (BLOCKS, {"steps": 2}, {"eos_id": 5}),
    "stride, first hitting": (FULL, {"rule": "ancestral", "method": "first_hitting"}, {"stride": 2, "window": 6}),
    "stride, random": (FULL, {"rule": "random"}, {"stride": 3, "window": 6}),
    "seeded blocks": (SEEDED, {}, {}),
    "causal": (CAUSAL, {"rule": "ancestral"}, {}),
}
FAST = ("blocks", "stride", "blocks, guidance")


def ragged(*prompts: int) -> Canvas:
    tokens_L = np.random.default_rng(1).integers(0, VOCAB - 2, LENGTH)
    condition_BL = np.arange(LENGTH) < np.array(prompts)[:, None]
    return Canvas(np.where(condition_BL, tokens_L, VOCAB - 1).astype(np.int32), condition_BL, (~condition_BL).astype(np.float32))


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in WAYS])
def test_a_row_is_what_it_is_alone(name):
    """Beside rows without masks, whose pieces are left out: the pieces of the row have the keys, and so the tokens, that they had."""
    process, how, options = WAYS[name]
    sampler = sampler_for(process, NETWORK, settings(**how), **options)
    both = sampler.sample(PARAMS, ragged(*PROMPTS), seed=5)
    for row, prompt in enumerate(PROMPTS):
        alone = sampler.sample(PARAMS, ragged(*(prompt if row == other else LENGTH for other in range(len(PROMPTS)))), seed=5)
        assert (alone.tokens_BL[row] == both.tokens_BL[row]).all()
        np.testing.assert_allclose(alone.confidence_BL[row], both.confidence_BL[row], atol=1e-5)
    assert len({tuple(tokens_L[9:]) for tokens_L in both.tokens_BL}) > 2
