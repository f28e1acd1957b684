"""Reused keys and values: refreshed at every call they change nothing, a block-causal mask makes them exact, their reads are counted."""

import functools

import jax
import numpy as np
import pytest

from dlmjax.diffusion.processes.autoregressive import Autoregressive
from dlmjax.diffusion.processes.blocks import OneStream
from dlmjax.diffusion.processes.masked import Masked
from dlmjax.diffusion.processes.uniform import Uniform
from dlmjax.errors import InputError
from dlmjax.harness.generate import RaggedCanvas
from dlmjax.models import Execution, build_network
from dlmjax.sampling.blocks import sampler_for
from dlmjax.sampling.cached import CachedSampler
from dlmjax.sampling.canvas import Canvas, blank_canvas
from dlmjax.sampling.reuse import REUSES, Row, index_of, make_reuse, width_of
from dlmjax.sampling.sampler import Sampler
from dlmjax.sampling.settings import SampleSettings
from dlmjax.sampling.trace import Trace, record, replay
from tests.models.tiny import VOCAB, lively, spec

NETWORK = build_network(spec(), Execution())
PARAMS = lively(NETWORK.init(jax.random.key(3)))
MASK, LENGTH = VOCAB - 1, 14
FULL = Masked(VOCAB, MASK)
# The policies with blocks of 4 where they have blocks: 14 positions are three blocks and a rest of two.
POLICIES = {
    "prompt": "prompt(every=0)",
    "prefix": "prefix(every=0, block=4)",
    "dual": "dual(every=0, block=4)",
    "window": "window(every=0, block=4, left=2, right=1)",
    "delayed": "delayed(every=3)",
    "delayed_greedy": "delayed_greedy(every=3, window=1)",
}
KNOWN = ("delayed_greedy",)  # their rule knows its order before a call


def rule_of(name: str) -> dict[str, str]:
    return {"rule": "random"} if name in KNOWN else {}


@functools.cache
def sampler(cache: str, process=FULL, cached=True, measured=False, **settings) -> CachedSampler:
    how = SampleSettings(**{"steps": 3, "suppressed_ids": (VOCAB - 2,), "cache": cache, "rule": "confidence", **settings})
    return CachedSampler(process, NETWORK, how, cached=cached, measured=measured)


def every_call(cache: str) -> str:
    """The policy with a refresh at every call."""
    return cache.replace("every=0", "every=1").replace("every=3", "every=1")


def ragged(*prompts, suffix=0) -> Canvas:
    """Rows with prompts of these lengths, and the same suffix."""
    tokens_BL = np.random.default_rng(1).integers(0, VOCAB - 2, (len(prompts), LENGTH)).astype(np.int32)
    index_L = np.arange(LENGTH)
    condition_mask_BL = (index_L < np.array(prompts)[:, None]) | (index_L >= LENGTH - suffix)
    return Canvas(tokens_BL, condition_mask_BL, (~condition_mask_BL).astype(np.float32))


# Masks alone would be all alike under a block-causal mask, with tied scores: the shortest prompt has a token.
CANVAS = ragged(3, 6, 1, suffix=1)


def assert_equal(one, other):
    assert (one.tokens_BL == other.tokens_BL).all() and (one.fixed_BL == other.fixed_BL).all()
    np.testing.assert_allclose(one.confidence_BL, other.confidence_BL, atol=1e-5)


def test_every_policy_has_a_case():
    assert POLICIES.keys() == REUSES.keys()


@functools.cache
def unbuffered(process=FULL, **settings):
    """Samples of the canvas CANVAS by a network without buffers, in blocks of 4."""
    return sampler("dual(every=1, block=4)", process, cached=False, **settings).sample(PARAMS, CANVAS, seed=5)


@functools.cache
def whole_canvas(rule="confidence"):
    """Samples of the canvas CANVAS by `Sampler`, with the same seed."""
    settings = SampleSettings(steps=3, suppressed_ids=(VOCAB - 2,), rule=rule)
    return Sampler(FULL, NETWORK.bind, settings).sample(PARAMS, CANVAS, seed=5)


@pytest.mark.parametrize("name", POLICIES)
def test_a_refresh_at_every_call_changes_nothing(name):
    """Tokens, steps and confidences are those of the network without buffers; drawn tokens, ragged prompts and a suffix."""
    cache = every_call(POLICIES[name])
    assert make_reuse(cache).every == 1 and make_reuse(cache).exact(None)
    reused = sampler(cache, **rule_of(name)).sample(PARAMS, CANVAS, seed=5)
    plain = unbuffered() if make_reuse(cache).block else whole_canvas(**rule_of(name))
    assert_equal(reused, plain)
    assert reused.evaluations == plain.evaluations and (reused.tokens_BL < VOCAB - 2).all()
    assert (reused.tokens_BL[CANVAS.condition_mask_BL] == CANVAS.tokens_BL[CANVAS.condition_mask_BL]).all()


def test_guidance_has_buffers_of_its_own():
    """Steps in time, two streams, a refresh at every call: the same text in as many calls as without buffers, all of which read a row."""
    settings = {"guidance": 1.0, "rule": "ancestral"}
    reused, plain = sampler("dual(block=4, every=1)", **settings).sample(PARAMS, CANVAS, seed=5), unbuffered(**settings)
    assert_equal(reused, plain)
    assert reused.evaluations == plain.evaluations and reused.evaluations % 2 == 0
    assert reused.counts.reads_B.tolist() == plain.counts.reads_B.tolist() and (reused.counts.reads_B % (2 * LENGTH) == 0).all()


@pytest.mark.parametrize("name", ["prefix", "dual", "window"])
def test_a_block_causal_mask_makes_a_cache_exact(name):
    """Without a refresh inside a block, under a mask in which a block attends to the blocks before it alone; under full attention not."""
    cache, process = POLICIES[name], OneStream(FULL, 4)
    assert [make_reuse(cache).exact(size) for size in (4, 2, 3, None)] == [True, True, False, False]
    assert_equal(sampler(cache, process).sample(PARAMS, CANVAS, seed=5), unbuffered(process))
    assert np.abs(sampler(cache).sample(PARAMS, CANVAS, seed=5).confidence_BL - unbuffered().confidence_BL).max() > 1e-3


@pytest.mark.parametrize("name", POLICIES)
def test_a_row_does_not_depend_on_its_neighbours(name):
    """Each row of ragged prompts is the text that it is alone (beside rows without masks, whose blocks are left out): tokens and counts."""
    each = sampler(POLICIES[name], **rule_of(name))
    both = each.sample(PARAMS, CANVAS, seed=5)
    for row, prompts in enumerate(((3, LENGTH, LENGTH), (LENGTH, 6, LENGTH), (LENGTH, LENGTH, 1))):
        alone = each.sample(PARAMS, ragged(*prompts, suffix=1), seed=5)
        assert (alone.tokens_BL[row] == both.tokens_BL[row]).all()
        np.testing.assert_allclose(alone.confidence_BL[row], both.confidence_BL[row], atol=1e-5)
        assert [count_B[row] for count_B in alone.counts] == [count_B[row] for count_B in both.counts]
    assert both.counts.reads_B[2] > both.counts.reads_B[0]


def test_nothing_attends_to_padding():
    """Rows that end at 14, 12 and 10, as for the texts of lm-eval: the network without buffers, whatever the padding holds."""
    made = []
    for cached, pad in ((False, 0), (True, 0), (True, 7)):
        condition_mask_BL = CANVAS.condition_mask_BL | (np.arange(LENGTH) >= np.array([[14], [12], [10]]))
        tokens_BL = np.where(np.arange(LENGTH) >= np.array([[14], [12], [10]]), pad, CANVAS.tokens_BL).astype(np.int32)
        canvas = RaggedCanvas(tokens_BL, condition_mask_BL, (~condition_mask_BL).astype(np.float32), np.array([14, 12, 10], np.int32))
        each = sampler("dual(every=1, block=4)") if cached else sampler("dual(every=1, block=4)", FULL, cached=False)
        made.append(each.sample(PARAMS, canvas, seed=5))
    assert_equal(*made[:2])
    assert (made[1].tokens_BL == made[2].tokens_BL)[:, :10].all()


@pytest.mark.parametrize(
    ("name", "reads"),
    [
        ("dual", 4 * LENGTH + 2 * (4 + 4 + 4) + 4),
        ("prefix", 4 * LENGTH + 2 * (14 + 10 + 6) + 4),
        ("window", 4 * LENGTH + 2 * (5 + 7 + 7) + 6),
        ("delayed", LENGTH + 14 + 10),
        ("prompt", 3 * LENGTH),
        ("delayed_greedy", LENGTH + (5 + 4 + 1) + (5 + 5)),
    ],
)
def test_reads_are_counted(name, reads):
    """An empty canvas of 14: three blocks of three calls and a rest of two calls, or one block of three calls (4, 5 and 5 tokens).

    `delayed_greedy` reads what it reveals, what the last call revealed, and one masked position beside, of which the last call has none."""
    made = sampler(POLICIES[name], **rule_of(name)).sample(PARAMS, blank_canvas(LENGTH, 3), seed=1)
    assert made.counts.reads_B.tolist() == [reads] * 3
    assert made.evaluations == (11 if "block" in POLICIES[name] else 3)
    assert made.to_json()["positions_read"] == [reads] * 3 and made.to_json()["settings"]["cache"] == POLICIES[name]


def test_a_greedy_cache_reads_what_is_nearest():
    """Of masked positions the nearest to those that are revealed, the left one first; and outputs of unread positions are kept."""
    masked_BL = np.array([[1, 1, 1, 1, 0, 1, 1, 1, 1, 1], [0, 1, 0, 0, 0, 0, 0, 0, 0, 1], [1, 1, 0, 0, 0, 0, 0, 0, 0, 0]], bool)
    next_BL = np.zeros_like(masked_BL)
    next_BL[0, 3], next_BL[1, 9] = True, True
    row = Row(0, 10, np.zeros(3, np.int64), 10, masked_BL, np.zeros_like(masked_BL), next_BL)
    reads = [np.flatnonzero(reads_L).tolist() for reads_L in make_reuse("delayed_greedy(window=3)").reads(row)]
    assert reads == [[1, 2, 3, 5], [1, 9], []]
    states = list(sampler("delayed_greedy(every=0, window=0)", rule="left_to_right").states(PARAMS, ragged(0, 0, 0), seed=5))
    assert (states[1].confidence_BL[:, 13] > 0).all()
    np.testing.assert_array_equal(states[1].confidence_BL[:, 13], states[2].confidence_BL[:, 13])


@pytest.mark.parametrize("name", ["window", "delayed"])
def test_a_trace_replays_and_names_its_policy(name):
    samples, trace = record(sampler(POLICIES[name]), PARAMS, CANVAS, seed=5)
    assert_equal(samples, sampler(POLICIES[name]).sample(PARAMS, CANVAS, seed=5))
    read = Trace.from_json(trace.to_json())
    assert read.settings.cache == POLICIES[name] and replay(read, sampler(POLICIES[name]), PARAMS) == trace.states == samples.steps + 1


@pytest.mark.parametrize("name", ["dual", "delayed", pytest.param("delayed_greedy", marks=pytest.mark.slow)])
def test_drift_is_nothing_at_a_refresh_and_something_after_it(name):
    """KL and changed tokens by the age of the oldest entry; what is measured does not change the text."""
    measured = sampler(POLICIES[name], measured=True, **rule_of(name)).sample(PARAMS, CANVAS, seed=5)
    plain = sampler(POLICIES[name], **rule_of(name)).sample(PARAMS, CANVAS, seed=5)
    assert_equal(measured, plain)
    assert [count_B.tolist() for count_B in measured.counts] == [count_B.tolist() for count_B in plain.counts], "measuring does not count"
    nats_A, flips_A, count_A = measured.drift_A3.T
    assert abs(nats_A[0]) < 1e-6 * count_A[0] and flips_A[0] == 0 and count_A[0] > 0
    assert (nats_A[1:3] > 1e-4 * count_A[1:3]).all() and (count_A[1:3] > 0).all() and (count_A[3:] == 0).all()


@pytest.mark.parametrize("name", REUSES)
def test_masked_positions_of_the_block_are_read(name):
    """Whatever the prompts: a position that is filled has an output of this call. Few widths are compiled."""
    rng = np.random.default_rng(0)
    for length in (5, 32, 100):
        widths = set()
        for start in range(0, length - 3, 3):
            masked_BL = rng.random((3, length)) < 0.5
            row = Row(start, start + 3, rng.integers(0, start + 1, 3), length, masked_BL, rng.random((3, length)) < 0.1)
            new_BL = (
                masked_BL & (np.arange(length) >= start) & (np.arange(length) < start + 3) & (np.arange(length) >= row.prompt_B[:, None])
            )
            if name in KNOWN:
                new_BL &= rng.random((3, length)) < 0.5
                row = row._replace(next_BL=new_BL)
            reads_BL = make_reuse(name).reads(row)
            assert reads_BL.shape == (3, length) and (reads_BL | ~new_BL).all()
            index_BW = index_of(reads_BL)
            widths.add(index_BW.shape[1])
            assert all(
                sorted(index[index < length]) == list(np.flatnonzero(reads)) for index, reads in zip(index_BW, reads_BL, strict=True)
            )
        assert len(widths) <= 2 * length.bit_length()
    assert [width_of(n, 100) for n in (1, 2, 3, 4, 5, 6, 7, 33, 50, 65, 97, 100)] == [1, 2, 3, 4, 6, 6, 8, 48, 64, 96, 100, 100]


@pytest.mark.parametrize(
    ("process", "network", "settings", "message"),
    [
        (Autoregressive(VOCAB, bos_id=VOCAB - 2, mask_id=MASK), spec(), {}, "keeps what is finished anyway"),
        (Uniform(VOCAB, VOCAB - 1), spec(time_input="adaln"), {}, "requires masked tokens"),
        (FULL, spec(time_input="adaln"), {}, "not conditioned on t"),
        (FULL, spec(self_condition=True), {}, "self-conditioning"),
        (FULL, spec(shift=True), {}, "shift=true"),
        (FULL, spec(), {"sweep": 2}, "conflicts with sweep"),
        (FULL, spec(), {"cache": "duel"}, "unknown cache 'duel'; did you mean 'dual'"),
        (FULL, spec(), {"cache": "dual(blok=3)"}, "did you mean 'block'"),
        (FULL, spec(), {"cache": "dual(block=-3)"}, "block is -3"),
        (FULL, spec(), {"cache": "window(warmup=0)"}, "warmup .0. at least 1"),
        (FULL, spec(), {"cache": "delayed_greedy(window=-1)"}, "window is -1"),
        (FULL, spec(), {"cache": "delayed_greedy", "rule": "confidence"}, "rule random or left_to_right, not confidence"),
        (FULL, spec(), {"cache": "delayed_greedy"}, "rule random or left_to_right, not ancestral"),
        (FULL, spec(), {"cache": "delayed_greedy", "rule": "random", "stop": "exit"}, "looks at all masked positions"),
    ],
)
def test_what_cannot_reuse_is_refused(process, network, settings, message):
    with pytest.raises(InputError, match=message):
        sampler_for(process, build_network(network, Execution()), SampleSettings(**{"cache": "dual", **settings}))


def test_a_cache_is_refused_where_it_has_no_meaning():
    with pytest.raises(InputError, match="conflicts with a stride"):
        sampler_for(FULL, NETWORK, SampleSettings(cache="dual"), stride=2, window=4)
    with pytest.raises(InputError, match="use sampler_for"):
        Sampler(FULL, NETWORK.bind, SampleSettings(cache="dual"))
    edited = Canvas(np.zeros((1, 4), np.int32), np.zeros((1, 4), bool), np.full((1, 4), 0.5, np.float32))
    with pytest.raises(InputError, match="does not edit text"):
        sampler("dual(block=4)").sample(PARAMS, edited)
    with pytest.raises(InputError, match="without guidance"):
        sampler("dual(block=4)", measured=True, guidance=1.0)
