"""Samplers on laws that can be written out whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion.declarations import Attention
from dlmjax.diffusion.processes.autoregressive import Autoregressive
from dlmjax.diffusion.processes.masked import Llada, Masked, MaskedCount
from dlmjax.diffusion.schedules import Cosine
from dlmjax.errors import InputError
from dlmjax.sampling.canvas import Canvas, blank_canvas
from dlmjax.sampling.reveal import planned_reveals
from dlmjax.sampling.rule_names import RULES
from dlmjax.sampling.sampler import Sampler, sample, sample_steps
from dlmjax.sampling.samples import unigram_entropy
from dlmjax.sampling.settings import SampleSettings
from tests.sampling.toy import Bound, Law, chi_square_tail

COMPILED = []
jax.monitoring.register_event_duration_secs_listener(lambda name, _, **kw: COMPILED.append(name) if "backend_compile" in name else None)
LAW = Law()
ROWS = 8_000


@functools.cache  # a sampler compiles once for each shape of canvas: tests that can, share one
def make(law=LAW, schedule=None, **settings) -> Sampler:
    return Sampler(law.process(schedule), law.bind, SampleSettings(**settings))


def rows_of(tokens, frozen, start=None) -> Canvas:
    tokens, frozen = np.asarray(tokens, np.int32), np.asarray(frozen, bool)
    start = np.where(frozen, 0, 1) if start is None else start
    return Canvas(tokens, frozen, np.asarray(start, np.float32))


def counts(law, tokens_BL):
    assert tokens_BL.max() < law.symbols, "a mask was left or sampled"
    return np.bincount(law.index(tokens_BL), minlength=len(law.texts_NL))


# --- the law that comes out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["random", "left_to_right", "confidence", "confidence(on=drawn)"])
def test_one_token_per_step_reproduces_the_joint_law(order):
    """Any rule that does not look at the drawn token is the chain rule; one that looks has another law."""
    samples = make(rule=order, steps=LAW.length).sample(1.0, blank_canvas(LAW.length, ROWS), seed=1)
    z = chi_square_tail(counts(LAW, samples.tokens_BL), LAW.p_N)
    assert z > 20 if "drawn" in order else z < 4


@pytest.mark.parametrize("schedule", [None, Cosine()], ids=["linear", "cosine"])
def test_ancestral_sampling_with_many_steps_reproduces_the_joint_law(schedule):
    samples = make(schedule=schedule, steps=100).sample(1.0, blank_canvas(LAW.length, ROWS), seed=2)
    assert chi_square_tail(counts(LAW, samples.tokens_BL), LAW.p_N) < 4


def test_few_ancestral_steps_do_not_reproduce_it():
    """The test above can fail: in one step all tokens are drawn independently of each other."""
    samples = make(steps=1).sample(1.0, blank_canvas(LAW.length, ROWS), seed=2)
    marginals = [np.bincount(LAW.texts_NL[:, i], LAW.p_N) for i in range(LAW.length)]
    independent_N = np.prod([marginals[i][LAW.texts_NL[:, i]] for i in range(LAW.length)], axis=0)
    tally = counts(LAW, samples.tokens_BL)
    assert chi_square_tail(tally, independent_N) < 4
    assert chi_square_tail(tally, LAW.p_N) > 20


def test_a_clipped_schedule_ends_with_one_call_more_and_the_joint_law():
    """alpha(0) < 1 leaves masks at t = 0; p(x | z_0) fills them."""
    process = Llada(LAW.vocab, LAW.mask_id, eps=0.3)
    samples = Sampler(process, LAW.bind, SampleSettings(steps=50)).sample(1.0, blank_canvas(LAW.length, ROWS), seed=3)
    assert (samples.steps, samples.evaluations) == (50, 51)
    tally = counts(LAW, samples.tokens_BL)  # 0.3 of the tokens come from the last call: the law is near, the mask must be gone
    assert np.abs(tally / ROWS - LAW.p_N).sum() < 0.25


def test_the_last_call_leaves_frozen_positions_alone():
    """Even a frozen mask, which p(x | z_0) would fill."""
    sampler = Sampler(Llada(LAW.vocab, LAW.mask_id, eps=0.3), LAW.bind, SampleSettings(steps=2))
    tokens_BL = sampler.sample(1.0, rows_of([[3, 3, 1]] * 50, [[1, 0, 1]] * 50), seed=3).tokens_BL
    assert (tokens_BL[:, [0, 2]] == [3, 1]).all() and (tokens_BL[:, 1] != 3).all()


def test_conditional_law_given_frozen_tokens():
    frozen = np.tile([False, True, False], (ROWS, 1))
    tokens = np.tile([LAW.mask_id, 2, LAW.mask_id], (ROWS, 1))
    samples = make(rule="random", steps=2).sample(1.0, rows_of(tokens, frozen), seed=4)
    assert (samples.tokens_BL[:, 1] == 2).all()
    p_N = np.where(LAW.texts_NL[:, 1] == 2, LAW.p_N, 0)
    assert chi_square_tail(counts(LAW, samples.tokens_BL), p_N / p_N.sum()) < 4


def test_autoregressive_sampling_reproduces_the_joint_law_and_continues_a_prompt():
    def bind(params, segments_BL, positions_BL, attention):
        assert attention.causal

        def denoise(z_BL, t_BL):
            # The network reads BOS and the row shifted right; position i may only use what stands at or before i.
            logits = []
            for i in range(LAW.length):
                known_BL = jnp.full_like(z_BL, LAW.mask_id).at[:, :i].set(z_BL[:, 1 : i + 1])
                logits.append(LAW.denoise(known_BL)[:, i])
            return jnp.stack(logits, axis=1)

        return Bound(denoise)

    process = Autoregressive(LAW.vocab, bos_id=LAW.mask_id)
    sampler = Sampler(process, bind, SampleSettings(steps=1, suppressed_ids=(LAW.mask_id,)))
    samples = sampler.sample((), blank_canvas(LAW.length, ROWS), seed=5)
    assert samples.settings.rule == "left_to_right" and samples.steps == LAW.length
    assert chi_square_tail(counts(LAW, samples.tokens_BL), LAW.p_N) < 4

    prompt = rows_of([[1, 0, 0]] * ROWS, [[True, False, False]] * ROWS)
    continued = sampler.sample((), prompt, seed=6)
    p_N = np.where(LAW.texts_NL[:, 0] == 1, LAW.p_N, 0)
    assert continued.evaluations == 2
    assert chi_square_tail(counts(LAW, continued.tokens_BL), p_N / p_N.sum()) < 4

    with pytest.raises(InputError, match="left to right"):
        sampler.sample((), rows_of([[0, 0, 1]], [[False, False, True]]))
    with pytest.raises(InputError, match="does not edit text"):
        sampler.sample((), rows_of([[0, 0, 1]], [[True, False, False]], [[0, 0.5, 0.5]]))
    with pytest.raises(InputError, match="causal"):
        Sampler(process, bind, SampleSettings(rule="confidence"))


# --- orders -------------------------------------------------------------------------------------------------------------------

BELIEFS = np.log([[0.5, 0.3, 0.2, 1e-6], [0.6, 0.39, 0.01, 1e-6], [0.48, 0.47, 0.05, 1e-6], [0.34, 0.33, 0.33, 1e-6]])  # V = 4, mask 3
PROCESS4 = Masked(4, 3)


def believe(z_BL, t_BL):
    """A denoiser with the same beliefs whatever is shown."""
    return jnp.broadcast_to(jnp.asarray(BELIEFS, jnp.float32), (*z_BL.shape, 4))


@pytest.mark.parametrize(
    ("order", "expected"),
    # best guess 0.6 > 0.5 > 0.48 > 0.34; entropy 0.72 < 0.86 < 1.03 < 1.10; margin 0.21 > 0.2 > 0.01 = 0.01 (0.0100 vs 0.0100)
    [("confidence", [1, 0, 2, 3]), ("entropy", [1, 2, 0, 3]), ("margin", [1, 0, None, None]), ("left_to_right", [0, 1, 2, 3])],
)
def test_order_of_revealing_on_known_beliefs(order, expected):
    samples = sample(PROCESS4, believe, blank_canvas(4), rule=order, steps=4, temperature=0.0)
    assert samples.tokens_BL.tolist() == [[0, 0, 0, 0]]
    revealed_at = samples.fixed_BL[0].tolist()
    assert sorted(revealed_at) == [1, 2, 3, 4]
    for rank, position in enumerate(expected):
        if position is not None:
            assert revealed_at[position] == rank + 1
    np.testing.assert_allclose(samples.confidence_BL[0], [0.5, 0.6, 0.48, 0.34], atol=1e-5)


def test_random_order_is_uniform_over_positions():
    samples = sample(PROCESS4, believe, blank_canvas(4, 8000), rule="random", steps=4, temperature=0.0)
    first = np.argmin(samples.fixed_BL, axis=1)
    assert chi_square_tail(np.bincount(first, minlength=4), np.full(4, 0.25)) < 4


@pytest.mark.parametrize(("order", "steps"), [("confidence", 1), ("confidence", 3), ("random", 7), ("random", 64)])
def test_the_plan_reveals_evenly_and_leaves_nothing(order, steps):
    holes = 7
    states = list(sample_steps(Masked(4, 3), lambda z, t: jnp.zeros((*z.shape, 4)), blank_canvas(holes, 2), rule=order, steps=steps))
    taken = min(steps, holes)
    assert len(states) == taken + 1 and states[0].masked_BL.all() and not states[-1].masked_BL.any()
    assert [int(s.masked_BL[0].sum()) for s in states] == [holes - holes * k // taken for k in range(taken + 1)]
    assert states[-1].time == 0 and [s.step for s in states] == list(range(taken + 1))


def test_threshold_reveals_the_sure_at_once_and_stops_early():
    sure = np.log([[0.98, 0.01, 0.01, 1e-9], [0.97, 0.02, 0.01, 1e-9], [0.5, 0.3, 0.2, 1e-9], [0.99, 0.005, 0.005, 1e-9]])

    def denoise(z, t):
        return jnp.broadcast_to(jnp.asarray(sure, jnp.float32), (*z.shape, 4))

    states = list(sample_steps(PROCESS4, denoise, blank_canvas(4), rule="threshold(value=0.9, on=drawn)", steps=4, temperature=0.0))
    assert [s.masked_BL[0].astype(int).tolist() for s in states] == [[1, 1, 1, 1], [0, 0, 1, 0], [0, 0, 0, 0]]
    samples = sample(PROCESS4, denoise, blank_canvas(4), rule="threshold(value=0.9, on=drawn)", steps=4, temperature=0.0)
    assert samples.evaluations == 2


@pytest.mark.parametrize("order", ["confidence", "margin"])
def test_a_threshold_alone_decides_and_commits_to_nothing_below_it(order):
    """No token of these beliefs is sure: one a step, however few steps were asked for; two sure ones come at once."""
    unsure = sample(PROCESS4, believe, blank_canvas(4), rule=f"threshold(value=0.7, by={order})", steps=1, temperature=0.0)
    assert sorted(unsure.fixed_BL[0].tolist()) == [1, 2, 3, 4] and unsure.evaluations == 4
    half = sample(PROCESS4, believe, blank_canvas(4), rule=f"threshold(value=0.49, by={order})", steps=2, temperature=0.0)
    assert sorted(half.fixed_BL[0].tolist()) == [1, 1, 2, 3] and half.evaluations == 3


def get_num_transfer_tokens(holes, steps):
    """As LLaDA's generate.py has it: base everywhere, one more in the first `remainder` steps."""
    counts = np.full(steps, holes // steps)
    counts[: holes % steps] += 1
    return counts


def test_the_plan_of_llada():
    for holes, steps in [(h, n) for h in range(1, 25) for n in range(1, h + 1)]:
        for remainder in ("first", "spread"):
            shown = [
                int(planned_reveals(remainder, jnp.asarray([holes]), jnp.asarray([steps]), jnp.int32(k))[0])
                for k in (1, steps // 2 or 1, steps)
            ]
            ahead = np.cumsum(get_num_transfer_tokens(holes, steps))[[0, (steps // 2 or 1) - 1, steps - 1]]
            even = [holes * k // steps for k in (1, steps // 2 or 1, steps)]
            assert shown == (ahead.tolist() if remainder == "first" else even)


@pytest.mark.parametrize(("remainder", "counts"), [("first", [3, 3, 3, 3, 3, 3, 2]), ("spread", [2, 3, 3, 3, 3, 3, 3])])
def test_twenty_holes_in_seven_steps(remainder, counts):
    canvas = rows_of([[1] * 5 + [3] * 20, [1] * 24 + [3]], [[1] * 5 + [0] * 20, [1] * 24 + [0]])
    samples = sample(PROCESS4, lambda z, t: jnp.zeros((*z.shape, 4)), canvas, rule=f"random(plan={remainder})", steps=7)
    assert np.bincount(samples.fixed_BL[0, 5:])[1:].tolist() == counts and samples.fixed_BL[1, -1] == 1
    assert samples.to_json()["settings"]["rule"] == f"random(plan={remainder})"


def test_remasking_takes_back_what_later_looks_worse():
    """Position 0 looks best at first (0.5); once it is shown, the others turn sure, and with two shown of three it is masked again."""

    def denoise(z_BL, t_BL):
        shown_B = (z_BL[:, 0] != 3)[:, None, None]
        early = jnp.log(jnp.asarray([[0.5, 0.3, 0.2, 1e-9], [0.4, 0.3, 0.3, 1e-9], [0.4, 0.3, 0.3, 1e-9]]))
        late = jnp.log(jnp.asarray([[0.9, 0.05, 0.05, 1e-9], [0.8, 0.1, 0.1, 1e-9], [0.7, 0.2, 0.1, 1e-9]]))
        return jnp.where(shown_B, late, early) * jnp.ones((z_BL.shape[0], 1, 1))

    def hidden(remask):
        run = sample_steps(PROCESS4, denoise, blank_canvas(3), rule=f"confidence(remask={remask})", steps=3, temperature=0.0)
        return [s.masked_BL[0].astype(int).tolist() for s in run]

    assert hidden(False) == [[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]]
    assert hidden(True) == [[1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 0, 0]]


# --- temperature, nucleus, suppressed ids -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "settings", "law"),
    [
        ("ancestral", {}, [0.5, 0.3, 0.2]),
        ("random", {}, [0.5, 0.3, 0.2]),
        ("random", {"temperature": 0.5}, np.array([0.25, 0.09, 0.04]) / 0.38),
        ("ancestral", {"top_p": 0.75}, [0.625, 0.375, 0]),
        ("ancestral", {"temperature": 0.5, "top_p": 0.6}, [1, 0, 0]),  # 0.658 alone reaches 0.6 after the temperature
        ("ancestral", {"temperature": 0.0}, [1, 0, 0]),
        ("random", {"top_p": 1e-60}, [1, 0, 0]),  # 0 in float32: still the most likely token, and no mask
        ("ancestral", {"suppressed_ids": (0,)}, [0, 0.6, 0.4]),
        ("random", {"suppressed_ids": (0,)}, [0, 0.6, 0.4]),
    ],
)
def test_temperature_and_nucleus_give_the_known_law(order, settings, law):
    beliefs = jnp.log(jnp.asarray([0.25, 0.15, 0.1, 0.5]))  # half of it on the mask, which must not matter
    samples = sample(
        PROCESS4, lambda z, t: jnp.broadcast_to(beliefs, (*z.shape, 4)), blank_canvas(50, 200), rule=order, steps=5, **settings
    )
    tally = np.bincount(samples.tokens_BL.ravel(), minlength=4)
    assert tally[3] == 0
    law = np.asarray(law, float)
    assert (tally[:3][law == 0] == 0).all()
    if (law > 0).sum() > 1:
        assert chi_square_tail(tally[:3], law) < 4


@pytest.mark.parametrize("order", ["confidence", "entropy", "margin"])
@pytest.mark.parametrize(
    "settings",
    [{"steps": 2, "temperature": 0.0}, {"rule": "threshold(value=0.9, on=drawn, by={})", "top_p": 0.5}],
    ids=["score", "threshold"],
)
def test_scores_and_threshold_use_probabilities_without_filters(order, settings):
    """After the filters both positions have one token of probability 1: the first would be revealed first, or both at once."""
    p_BLV = jnp.asarray([[[0.7, 0.2, 0.1, 1e-9], [0.95, 0.03, 0.02, 1e-9]]])
    rule = settings.get("rule", "{}").format(order)
    states = list(sample_steps(PROCESS4, lambda z, t: jnp.log(p_BLV), blank_canvas(2), **{**settings, "rule": rule}))
    assert [state.masked_BL[0].tolist() for state in states] == [[True, True], [True, False], [False, False]]
    np.testing.assert_allclose(states[-1].confidence_BL, [[0.7, 0.95]], rtol=1e-5)


def test_rare_tokens_are_not_truncated():
    """2,000 tokens at 2e-8 each: plain float32 Gumbel noise never reaches them; sampled text would have too little entropy.

    0.4 are expected in 10,000 draws; the seed is one whose text holds some.
    """
    vocab, rare = 2001, 2e-8
    p_V = np.full(vocab + 1, rare)
    p_V[0], p_V[-1] = 1 - rare * (vocab - 1), 1e-30
    logits_V = jnp.asarray(np.log(p_V), jnp.float32)
    plain_BL = jnp.argmax(logits_V + jax.random.gumbel(jax.random.key(8), (100, 100, vocab + 1), mode="low"), axis=-1)
    assert (plain_BL == 0).all()
    samples = sample(
        Masked(vocab + 1, vocab), lambda z, t: jnp.broadcast_to(logits_V, (*z.shape, vocab + 1)), blank_canvas(100, 100), seed=8, steps=1
    )
    assert 0 < (samples.tokens_BL != 0).sum() < 6
    assert samples.entropy > 0


# --- independence, compilation, time ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["ancestral", "random", "confidence"])
def test_a_row_does_not_depend_on_its_neighbours(order):
    """The same row alone, beside other rows, and beside rows with more holes."""
    sampler = make(Law(symbols=3, length=5), rule=order, steps=4)  # more than the 3 holes of the row, fewer than its neighbour's 5
    alone = rows_of([[0, 3, 3, 1, 3]], [[1, 0, 0, 1, 0]])
    together = rows_of([[0, 3, 3, 1, 3], [3] * 5, [2, 2, 2, 2, 3]], [[1, 0, 0, 1, 0], [0] * 5, [1, 1, 1, 1, 0]])
    first, both = sampler.sample(1.0, alone, seed=7), sampler.sample(1.0, together, seed=7)
    assert first.tokens_BL[0].tolist() == both.tokens_BL[0].tolist()
    assert first.fixed_BL[0].tolist() == both.fixed_BL[0].tolist()
    assert both.tokens_BL[2, :4].tolist() == [2, 2, 2, 2]
    assert (first.confidence_BL[0] == both.confidence_BL[0]).all()


@pytest.mark.parametrize("order", ["ancestral", "left_to_right", "confidence(on=drawn)", "margin(remask=True)", "threshold(value=0.5)"])
def test_states_are_the_sample_and_frozen_tokens_never_move(order):
    canvas = rows_of([[0, 3, 3], [3, 1, 3]] * 20, [[1, 0, 0], [0, 1, 0]] * 20)
    sampler = make(rule=order, steps=6)
    states = list(sampler.states(1.0, canvas, seed=8))
    samples = sampler.sample(1.0, canvas, seed=8)
    assert (states[-1].tokens_BL == samples.tokens_BL).all() and (states[-1].fixed_BL == samples.fixed_BL).all()
    for state in states:
        assert (state.tokens_BL[canvas.condition_mask_BL] == canvas.tokens_BL[canvas.condition_mask_BL]).all()
        assert (state.confidence_BL[canvas.condition_mask_BL] == 1).all() and (state.fixed_BL[canvas.condition_mask_BL] == 0).all()
        assert ((state.fixed_BL == -1) == state.masked_BL).all() and ((state.tokens_BL == 3) == state.masked_BL).all()
    assert not states[-1].masked_BL.any()
    assert sampler.sample(1.0, canvas, seed=9).tokens_BL.tolist() != samples.tokens_BL.tolist()


@pytest.mark.parametrize("order", ["ancestral", "confidence"])
def test_all_steps_and_all_params_share_one_compilation(order):
    params = [jnp.float32(1 + seed) for seed in range(3)]
    sampler, canvas = Sampler(LAW.process(), LAW.bind, SampleSettings(rule=order, steps=9)), blank_canvas(LAW.length, 2)
    before = len(COMPILED)
    with jax.transfer_guard("disallow"):
        for seed in range(3):
            sampler.sample(params[seed], canvas, seed=seed)
    assert len(COMPILED) - before == 2, "the start and the step"


def test_the_clock_falls_evenly_and_the_last_step_ends_at_zero():
    """Off by one here once gave a published sampler a last step from t_0 to t_0."""
    seen = []

    class Watched(Masked):
        def reverse_step(self, keys_B, logits_BLV, z_BL, t_BL, s_BL):
            jax.debug.callback(lambda t, s: seen.append((t.tolist(), s.tolist())), t_BL, s_BL, ordered=True)
            return super().reverse_step(keys_B, logits_BLV, z_BL, t_BL, s_BL)

    clocks = []

    def denoise(z_BL, t_BL):
        jax.debug.callback(lambda t: clocks.append(t.tolist()), t_BL, ordered=True)
        return LAW.denoise(z_BL)

    canvas = rows_of([[0, 3, 1]], [[1, 0, 0]], [[0, 1, 0.5]])
    sample(Watched(LAW.vocab, LAW.mask_id), denoise, canvas, steps=4)
    jax.effects_barrier()
    assert [t for t, _ in seen] == [[[0, 1, 0.5]], [[0, 0.75, 0.5]], [[0, 0.5, 0.5]], [[0, 0.25, 0.25]]]
    assert [s for _, s in seen] == [[[0, 0.75, 0.5]], [[0, 0.5, 0.5]], [[0, 0.25, 0.25]], [[0, 0, 0]]]
    assert clocks == [t for t, _ in seen], "a network is told the level of each position"


@pytest.mark.parametrize("order", ["ancestral", "confidence"])
def test_editing_starts_from_the_given_level(order):
    rows, level = 4000, 0.3
    canvas = rows_of([[1, 1, 1]] * rows, [[0, 0, 0]] * rows, np.full((rows, 3), level))
    states = list(make(rule=order, steps=50).states(1.0, canvas, seed=10))
    hidden = states[0].masked_BL
    assert abs(hidden.mean() - level) < 0.02
    assert (states[0].tokens_BL[~hidden] == 1).all()
    assert (states[-1].tokens_BL[~hidden] == 1).all() and (states[-1].tokens_BL < 3).all()


def test_the_count_form_is_sampled_as_the_masked_process():
    mine = Sampler(MaskedCount(LAW.vocab, LAW.mask_id), LAW.bind, SampleSettings(steps=5)).sample(1.0, blank_canvas(3, 4), seed=3)
    plain = make(steps=5).sample(1.0, blank_canvas(3, 4), seed=3)
    assert mine.tokens_BL.tolist() == plain.tokens_BL.tolist() and mine.process == "masked_count"


# --- the report and bad input -------------------------------------------------------------------------------------------------


def test_report():
    canvas = rows_of([[0, 3, 3]], [[1, 0, 0]])
    samples = make(rule="random", steps=2, temperature=0.7, suppressed_ids=(0,)).sample(1.0, canvas, seed=12)
    record = samples.to_json()
    assert record["seed"] == 12 and record["steps"] == record["evaluations"] == 2 and record["process"] == "masked"
    assert record["settings"]["temperature"] == 0.7 and record["settings"]["never"] == [0]
    assert record["samples"][0]["token_ids"] == samples.tokens_BL[0].tolist() and "text" not in record["samples"][0]
    assert record["entropy"] == samples.entropy == record["samples"][0]["entropy"]
    assert "high" in record["precision"] and "nats" in record["entropy_unit"]


def test_unigram_entropy():
    tokens = np.array([[0, 0, 1, 1], [5, 5, 5, 9]])
    counted = np.array([[True] * 4, [True] * 3 + [False]])
    np.testing.assert_allclose(unigram_entropy(tokens, counted), [np.log(2), 0])
    assert unigram_entropy(tokens, np.zeros((2, 4), bool)).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "confident"}, "unknown rule 'confident'"),
        ({"steps": 0}, "steps is 0"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"rule": "confidence(count=2, steps=3)"}, "count conflicts with plan and steps"),
        ({"rule": "random(remask=True)"}, "has no value 'remask'"),
        ({"rule": "confidence(on=both)"}, "on is 'both'"),
        ({"rule": "confidence(plan=last)"}, "plan is 'last'"),
        ({"rule": "margin(plan=dream, remask=True)"}, "remask requires a plan"),
        ({"rule": "margin(plan=doubling, steps=3)"}, "leave steps out"),
        ({"rule": "entropy(count=0)"}, "count is 0"),
        ({"rule": "entropy(noise=-1)"}, "noise is -1"),
        ({"rule": "threshold(value=1.5)"}, "value is 1.5"),
        ({"rule": "threshold(by=random)"}, "by is 'random'"),
        ({"rule": "os.path.join"}, "not a class that inherits"),
        ({"rule": "no_such_module.Rule"}, "not in an imported module"),
        ({"temperature": 1e-300}, "temperature is 1e-300"),
        ({"temperature": 1e300}, "temperature is"),
        ({"steps": 10**12}, "steps is 1000000000000"),
        ({"sweep": 10**12}, "sweep is 1000000000000"),
        ({"top_p": float("nan")}, "top_p is nan"),
        ({"guidance": float("nan")}, "guidance is nan"),
        ({"suppressed_ids": (7,)}, r"\[7\] lie outside"),
        ({"suppressed_ids": (0, 1, 2)}, "every token"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        make(**settings)


def test_bad_canvas_ids():
    with pytest.raises(InputError, match="tokenizer of the run"):
        make().sample(1.0, rows_of([[0, 9, 3]], [[1, 1, 0]]))


@pytest.mark.parametrize("seed", [-1, 2**32, 2**32 + 5, 10**30])
def test_seeds_do_not_share_their_draws(seed):
    with pytest.raises(InputError, match="seed is"):
        make().sample(1.0, blank_canvas(3), seed=seed)


def test_a_canvas_that_no_memory_holds():
    with pytest.raises(InputError, match="must have at most 16777216 tokens"):
        blank_canvas(10**9)
    big = Masked(2**31 - 1, 3)
    with pytest.raises(InputError, match="GiB for the network's output alone"):
        Sampler(big, LAW.bind, SampleSettings()).sample(1.0, blank_canvas(1000, 1000))


def test_reveal_orders_need_a_mask():
    class NoMask(Autoregressive):
        name, attention = "uniform", Attention()

    for name in RULES:
        with pytest.raises(InputError, match="has no mask"):
            Sampler(NoMask(4, bos_id=0), LAW.bind, SampleSettings(rule="min_gap(rule=margin)" if name == "min_gap" else name))
