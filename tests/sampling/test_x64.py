"""Every method and order, and block sampling, with float64 switched on (JAX_ENABLE_X64): what a step hands on keeps its types."""

import jax
import numpy as np
import pytest

from dlmjax.diffusion.registry import PROCESSES
from dlmjax.errors import InputError
from dlmjax.sampling import METHODS, Sampler, SampleSettings, sampler_for
from tests.diffusion.test_x64 import parts_of
from tests.sampling.test_every_process import BOS, MASK, PAD, VARIANTS, canvas_of, make
from tests.sampling.toy import ORDERS

SUPPRESSED = (PAD, BOS, MASK)
MORE = ({"guidance": 1.0}, {"cache": True}, {"rule": "threshold(value=0.5)"}, {"rule": "confidence(remask=True)"})
WAYS = (*({"method": name} for name in METHODS), *({"rule": name} for name in ORDERS), *MORE)


def types_of(tree):
    return jax.tree.map(lambda leaf: leaf.dtype, tree)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("name", sorted(name for name in {*PROCESSES, *VARIANTS} if not name.startswith("blocks")))
def test_a_step_hands_on_what_it_was_given(name):
    """Traced, not compiled. A carry of another type would compile every step twice, or fail in a loop."""
    process, network, params, _ = parts_of(name)
    canvas = canvas_of(process)
    names = ("tokens_BL", "condition_mask_BL", "start_BL", "segments_BL", "positions_BL")
    arrays = {name: getattr(canvas, name) for name in names} | {"seed": np.uint32(1)}
    arrays["rows_B"] = np.arange(len(canvas.tokens_BL), dtype=np.int32)
    fits = 0
    for way in WAYS if name in ("masked", "uniform", "score(noise=uniform)", "plaid") else ({},):
        try:
            sampler = Sampler(process, network.bind, SampleSettings(steps=2, suppressed_ids=SUPPRESSED, **way))
        except InputError:
            continue
        carry, fits = jax.eval_shape(sampler._start_state, params, arrays), fits + 1
        acts = [sampler._one_step]
        if sampler.rule is None:
            acts += [sampler._decode] * int(sampler.process.boundary.reconstruction) + [sampler._corrector_step] * min(
                sampler.stepper.rounds, 1
            )
        for act in acts:
            assert types_of(jax.eval_shape(act, params, arrays, carry, np.int32(1))) == types_of(carry), (way, act.__name__)
    assert fits


@pytest.mark.parametrize("name", ["blocks", "blocks(seeded=True)", "autoregressive"])
def test_text_is_made_with_the_keys_and_values_kept(name):
    process, network, params = make(name)
    sampler = sampler_for(process, network, SampleSettings(steps=2, suppressed_ids=SUPPRESSED))
    samples = sampler.sample(params, canvas_of(process), seed=1)
    assert samples.tokens_BL.max() < PAD and (process.attention.block_size is not None) == name.startswith("blocks")
