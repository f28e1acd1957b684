"""Planned spans: a template's spans read the plan and themselves. In a network of two layers no output depends on another span, bit for
bit, so that all spans together are the product of each given the plan.

Shapes: B rows, L positions.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion.processes.autoregressive import Autoregressive
from dlmjax.diffusion.processes.blocks import OneStream
from dlmjax.diffusion.processes.masked import Masked
from dlmjax.errors import InputError
from dlmjax.models import Execution, build_network
from dlmjax.models.masks import Spans, allowed_in_batch, is_data
from dlmjax.sampling.blocks import sampler_for
from dlmjax.sampling.canvas import Canvas, build_canvas, parse_template
from dlmjax.sampling.sampler import Sampler
from dlmjax.sampling.settings import SampleSettings
from dlmjax.sampling.trace import Trace, record, replay
from tests.models.tiny import VOCAB, lively, spec
from tests.sampling.toy import Letters

NETWORK = build_network(spec(), Execution())
PARAMS = lively(NETWORK.init(jax.random.key(3)))
MASK = VOCAB - 1
FULL = Masked(VOCAB, MASK)
SPANS_L = np.array([0, 0, 1, 1, 1, 0, 2, 2, 2, 0], np.int32)


def canvas_of(first=None, second=None, spans_L=SPANS_L, rows=6):
    """A plan of tokens with two spans, each masked or given as text."""
    tokens_BL = np.random.default_rng(1).integers(0, VOCAB - 2, (rows, len(SPANS_L))).astype(np.int32)
    for number, text in ((1, first), (2, second)):
        tokens_BL[:, number == SPANS_L] = MASK if text is None else text
    mask_BL = tokens_BL != MASK
    return Canvas(tokens_BL, mask_BL, 1 - mask_BL.astype(np.float32), spans_L=spans_L)


def test_a_template_numbers_its_spans():
    text = r"a [SPAN*2] b [SPAN]\[SPAN*3]"
    assert parse_template(text) == [("a ", "condition"), (2, "span"), (" b ", "condition"), (1, "span"), ("[SPAN*3]", "condition")]
    canvas = build_canvas(Letters(), template="a [SPAN*2] b [SPAN]", batch=2)
    assert canvas.spans_L.tolist() == [0, 0, 1, 1, 0, 0, 0, 2] and (canvas.condition_mask_BL[1] == (canvas.spans_L == 0)).all()
    assert build_canvas(Letters(), template="a [MASK*2]").spans_L is None


@pytest.mark.parametrize(
    ("template", "match"),
    [
        ("a [SPAN*2] [MASK]", "requires text alone"),
        ("a [SPAN*2] [EDIT:b]", "requires text alone"),
        ("a [SPAN*0]", "masks no token"),
        ("a [SPAN*]", "is not a marker"),
        ("[SPAN*9999999][SPAN*9999999]", "at most 16777216"),
    ],
)
def test_templates_that_mean_nothing_are_refused(template, match):
    with pytest.raises(InputError, match=match):
        build_canvas(Letters(), template=template)
    with pytest.raises(InputError, match="requires text alone"):
        build_canvas(Letters(), template="a [SPAN*2]", length=9)


def test_no_output_depends_on_another_span_and_the_plan_on_none():
    """Both layers; without the mask every output does."""

    def outputs(tokens_BL, mask):
        rows, length = tokens_BL.shape
        segments_BL, positions_BL = jnp.ones((rows, length), jnp.int32), jnp.tile(jnp.arange(length), (rows, 1))
        denoiser = NETWORK.bind(PARAMS, segments_BL, positions_BL, attention=mask)
        return np.asarray(denoiser.logits(denoiser.hidden(jnp.asarray(tokens_BL), jnp.zeros((rows, length)))))

    mask = Spans(jnp.asarray(SPANS_L))
    one_BL, other_BL = (canvas_of(second=text).tokens_BL for text in (3, 5))
    apart_BL = np.tile(SPANS_L == 2, (len(one_BL), 1))
    equal_BL = (outputs(one_BL, mask) == outputs(other_BL, mask)).all(axis=-1)
    assert equal_BL[~apart_BL].all() and not equal_BL[apart_BL].any()
    assert not (outputs(one_BL, "full") == outputs(other_BL, "full")).all(axis=-1).any()
    allowed_LL = np.asarray(allowed_in_batch(mask, jnp.ones((1, len(SPANS_L)), jnp.int32)))[0]
    assert (allowed_LL == [[k == 0 or q == k for k in SPANS_L] for q in SPANS_L]).all() and is_data(mask)


@pytest.mark.parametrize("settings", [{"steps": 3}, {"rule": "random(count=1)"}])
def test_a_span_is_sampled_as_beside_text_of_any_kind(settings):
    """Steps in time, where each position has its own noise: the tokens of span 1 are the same whether span 2 is masked or given; with full
    attention they are not. A rule fills the spans too and keeps the plan."""
    sampler = Sampler(FULL, NETWORK.bind, SampleSettings(suppressed_ids=(VOCAB - 2,), **settings))
    both, beside = (sampler.sample(PARAMS, canvas_of(second=text), seed=4).tokens_BL for text in (None, 3))
    assert both.max() < MASK and (both[:, SPANS_L == 0] == canvas_of().tokens_BL[:, SPANS_L == 0]).all()
    if "rule" not in settings:
        np.testing.assert_array_equal(both[:, SPANS_L == 1], beside[:, SPANS_L == 1])
        full, full_beside = (sampler.sample(PARAMS, canvas_of(second=text, spans_L=None), seed=4).tokens_BL for text in (None, 3))
        assert (full[:, SPANS_L == 1] != full_beside[:, SPANS_L == 1]).any()


def test_a_trace_has_the_spans_and_replays():
    sampler = Sampler(FULL, NETWORK.bind, SampleSettings(suppressed_ids=(VOCAB - 2,), steps=3))
    _, trace = record(sampler, PARAMS, canvas_of(), seed=2)
    again = Trace.from_json(trace.to_json())
    np.testing.assert_array_equal(again.canvas.spans_L, SPANS_L)
    replay(again, sampler, PARAMS)
    plain = record(sampler, PARAMS, canvas_of(spans_L=None), seed=2)[1].to_json()
    assert "spans" not in plain["canvas"] and plain["changes"] != trace.to_json()["changes"]


@pytest.mark.parametrize(
    ("process", "options", "how", "match"),
    [
        (Autoregressive(VOCAB, MASK), {}, {}, "sampler of the whole canvas|from left to right"),
        (OneStream(Masked(VOCAB, MASK), size=5), {}, {}, "which process blocks does not declare"),
        (FULL, {"cache": "dual(block=5)", "rule": "random"}, {}, "spans require a sampler of the whole canvas"),
        (FULL, {}, {"stride": 4, "window": 8}, "spans require a sampler of the whole canvas"),
        (FULL, {"rule": "wino"}, {}, "spans conflict with rule wino, draft"),
        (FULL, {"draft": "own(depth=2)", "rule": "random"}, {}, "spans conflict with rule wino, draft"),
    ],
)
def test_samplers_that_would_mix_spans_refuse_them(process, options, how, match):
    sampler = sampler_for(process, NETWORK, SampleSettings(suppressed_ids=(VOCAB - 2,), steps=3, **options), **how)
    with pytest.raises(InputError, match=match):
        sampler.sample(PARAMS, canvas_of())


def test_a_canvas_checks_its_spans():
    with pytest.raises(InputError, match="requires 10 numbers of spans"):
        canvas_of(spans_L=SPANS_L[:9])
