"""Drafts: the texts of the sampler without them, bit for bit; the calls that they save; what they cannot serve."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion.processes.autoregressive import Autoregressive
from dlmjax.diffusion.processes.hybrid import Hybrid
from dlmjax.diffusion.processes.masked import Llada
from dlmjax.errors import InputError
from dlmjax.sampling.canvas import blank_canvas
from dlmjax.sampling.drafting import DraftingSampler
from dlmjax.sampling.drafts import DRAFTS, make_draft
from dlmjax.sampling.sampler import Sampler
from dlmjax.sampling.search import Searcher
from dlmjax.sampling.settings import SampleSettings
from tests.diffusion.gaussian.battery import CASES
from tests.sampling.test_old_traces import LAW, canvas_of
from tests.sampling.toy import Bound, Law, chi_square_tail

SMALL = Law(symbols=3, length=4, seed=1)
ROWS_READ: list[int] = []  # rows of every call that a network of `counted` really takes


def counted(params, segments_BL, positions_BL, attention):
    """`LAW`, whose answers also depend on the time at masked positions, and which counts its calls."""

    def denoise(z_BL, t_BL):
        assert segments_BL.shape == positions_BL.shape == z_BL.shape
        jax.debug.callback(lambda _: ROWS_READ.append(len(z_BL)), z_BL[0, 0])
        return LAW.denoise(z_BL) * params * (1 + t_BL[..., None])

    return Bound(denoise)


def read_by(sampler, *arguments, **options):
    """(the samples, the rows of each network call)."""
    ROWS_READ.clear()
    samples = sampler.sample(*arguments, **options)
    jax.effects_barrier()
    return samples, list(ROWS_READ)


def assert_same(drafted, plain):
    """Token by token, step by step; what a row says of its probabilities may differ by rounding."""
    for field in ("tokens_BL", "fixed_BL"):
        np.testing.assert_array_equal(getattr(drafted, field), getattr(plain, field))
    np.testing.assert_allclose(drafted.confidence_BL, plain.confidence_BL, rtol=1e-5)
    np.testing.assert_allclose(drafted.exit_nats_B, plain.exit_nats_B, rtol=1e-4, atol=1e-5)
    assert drafted.steps == plain.steps and drafted.evaluations <= plain.evaluations
    assert (drafted.calls_B <= plain.calls_B).all()


SLOW = [
    *({"rule": rule} for rule in ("random", "klass", "saber", "credit", "spread", "left_to_right", "min_gap(rule=margin, d=2)")),
    {"rule": "confidence(on=drawn, remask=True)"},
    {"rule": "confidence(plan=dream, noise=0.3)", "temperature": 0.7},
    {"rule": "margin(plan=doubling)", "temperature": 0.0},
    {"rule": "factor(f=3)", "top_p": 0.8, "guidance": 1.0},
    *({"rule": "entropy_bound(gamma=0.01)", "stop": stop} for stop in ("sched(high=2, low=0.1)", "prophet(early=2, middle=1, late=1)")),
    *({"method": method} for method in ("first_hitting", "predetermined", "remask(rule=cap, eta=0.3)", "psi(kappa=0.5)")),
    *({"method": method} for method in ("tau_leap", "rdm")),
    {"temperature": 0.5, "guidance": 1.0, "grid": "power(exponent=2)"},
]
FAST = [
    {"method": "ancestral"},
    {"rule": "threshold(value=0.6)", "temperature": 0.0},
    {
        "rule": "confidence(on=drawn)",
        "temperature": 0.7,
        "guidance": 1.0,
        "stop": "stable(entropy=0.9)",
        "eos": "rising(low=0.2)",
        "end_ids": (0,),
    },
]


@pytest.mark.parametrize("how", [*FAST, *(pytest.param(how, marks=pytest.mark.slow) for how in SLOW)], ids=str)
def test_the_texts_are_those_without_drafts(how):
    """Of rows with prompts of different lengths, each with its own step; the counted calls are those that were made."""
    how = {"steps": 5, "suppressed_ids": (3,)} | how
    process = LAW.process() if how.get("method") in ("first_hitting", "predetermined") else Llada(LAW.vocab, LAW.mask_id)
    canvas, cost = canvas_of(), 2 if "guidance" in how else 1
    plain, read = read_by(Sampler(process, counted, SampleSettings(**how)), jnp.float32(0.8), canvas, seed=5)
    assert read == [4 * cost] * (plain.evaluations // cost)
    sampler = DraftingSampler(process, counted, SampleSettings(**how, draft="own(depth=2)"))
    drafted, read = read_by(sampler, jnp.float32(0.8), canvas, seed=5)
    assert_same(drafted, plain)
    np.testing.assert_array_equal(drafted.calls_B + cost * drafted.accepted_B, plain.calls_B)
    closing = "rule" not in how and process.boundary.reconstruction  # one call more at t = 0, which has no drafts
    assert read == [12 * cost] * (drafted.evaluations // cost - closing) + [4 * cost] * closing
    np.testing.assert_array_equal(drafted.counts.rows_B, 3 * drafted.calls_B - 2 * cost * closing)
    np.testing.assert_array_equal(drafted.counts.reads_B, LAW.length * drafted.counts.rows_B)
    assert drafted.to_json()["drafts_accepted"] == drafted.accepted_B.tolist()
    assert plain.accepted_B is None and "drafts_accepted" not in plain.to_json()


@functools.cache
def law_samplers():
    """One token a step, in an order that depends on the text: the chain rule, so the distribution of the text."""
    settings = SampleSettings(rule="confidence(count=1)", suppressed_ids=(3,))
    drafting = SampleSettings(rule="confidence(count=1)", suppressed_ids=(3,), draft="own(depth=2)")
    return Sampler(SMALL.process(), SMALL.bind, settings), DraftingSampler(SMALL.process(), SMALL.bind, drafting)


def test_the_distribution_is_that_of_the_text():
    """3 symbols, 4 positions, by enumeration of all texts."""
    plain, drafted = (each.sample(jnp.float32(1), blank_canvas(4, 4000), seed=3) for each in law_samplers())
    assert_same(drafted, plain)
    assert (drafted.calls_B + drafted.accepted_B == 4).all() and drafted.calls_B.mean() < 3.5
    assert chi_square_tail(np.bincount(SMALL.index(drafted.tokens_BL), minlength=81), SMALL.p_N) < 4


def test_drafts_are_right_where_the_output_never_changes():
    """A network that knows nothing answers what a sampler supposes before its first call: all drafts are the steps, by their keys."""
    sampler = law_samplers()[1]
    samples = sampler.sample(jnp.float32(0), blank_canvas(4, 4000), seed=4)
    assert (samples.calls_B == 2).all() and (samples.accepted_B == 2).all()
    states = list(sampler.states(jnp.float32(0), blank_canvas(4, 4000), seed=4))
    assert [state.step for state in states] == [0, 3, 4] and states[-1].calls == 2


class WrongStep(DraftingSampler):
    """A sampler whose keys are those of the next step."""

    def _keys(self, canvas, step):
        return super()._keys(canvas, step + 1)


@pytest.mark.slow
def test_other_keys_are_other_texts():
    """What the tests above compare depends on the keys."""
    plain, drafting = law_samplers()
    wrong = WrongStep(SMALL.process(), SMALL.bind, drafting.settings)
    canvas = blank_canvas(4, 4000)
    tokens_BL, wrong_BL = (each.sample(jnp.float32(1), canvas, seed=3).tokens_BL for each in (plain, wrong))
    assert (tokens_BL != wrong_BL).any(axis=1).mean() > 0.5


@pytest.mark.slow
def test_no_drafts_are_the_sampler():
    """depth=0: one row a call, and as many calls."""
    plain, _ = law_samplers()
    none = DraftingSampler(
        SMALL.process(), SMALL.bind, SampleSettings(rule="confidence(count=1)", suppressed_ids=(3,), draft="own(depth=0)")
    )
    expected, found = (each.sample(jnp.float32(1), blank_canvas(4, 4000), seed=3) for each in (plain, none))
    assert_same(found, expected)
    assert found.evaluations == expected.evaluations and not found.accepted_B.any()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ancestral", "analytic", "self_correct(rounds=2, level=0.1)"])
def test_noise_that_replaces_tokens(method):
    """Steps in time of hybrid noise, and the corrector steps behind them."""
    process, how = Hybrid(LAW.vocab, LAW.mask_id, p_uniform=0.2), {"method": method, "steps": 8, "suppressed_ids": (3,)}
    plain = Sampler(process, LAW.bind, SampleSettings(**how)).sample(jnp.float32(0.8), canvas_of(), seed=5)
    drafted = DraftingSampler(process, LAW.bind, SampleSettings(**how, draft="own")).sample(jnp.float32(0.8), canvas_of(), seed=5)
    assert_same(drafted, plain)
    assert drafted.evaluations < plain.evaluations


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draft": "owm"}, "did you mean 'own'"),
        ({"draft": "own(depth=-1)"}, "depth is -1"),
        ({"draft": "own(depth=300)"}, "depth is 300"),
        ({"draft": "own(width=3)"}, "width"),
        ({"draft": "own", "cache": True}, "conflicts with cache"),
        ({"draft": "own", "sweep": 2}, "conflicts with sweep"),
        ({"draft": "own", "rule": "wino"}, "second stream"),
        ({"draft": "own", "method": "gibbs(rounds=2, between=1)"}, "takes several"),
    ],
    ids=str,
)
def test_what_drafts_cannot_serve_ends_in_one_line(settings, message):
    with pytest.raises(InputError, match=message) as raised:
        DraftingSampler(LAW.process(), LAW.bind, SampleSettings(**settings))
    assert "\n" not in str(raised.value)


def test_other_samplers_refuse_drafts():
    settings = SampleSettings(draft="own")
    for process in (Autoregressive(LAW.vocab, bos_id=3), CASES["plaid"](dim=2)):
        with pytest.raises(InputError, match="draft own requires tokens and a network that reads the whole canvas"):
            DraftingSampler(process, LAW.bind, settings)
    with pytest.raises(InputError, match="use sampler_for, or DraftingSampler"):
        Sampler(LAW.process(), LAW.bind, settings)
    with pytest.raises(InputError, match="self-conditioning"):
        DraftingSampler(LAW.process(), LAW.bind, settings, self_condition=True)
    drafting = DraftingSampler(LAW.process(), LAW.bind, SampleSettings(rule="random", draft="own"))
    with pytest.raises(InputError, match="cache and draft"):
        Searcher("smc(reward=confidence)", drafting)


@pytest.mark.parametrize("text", [{"run": "run(path=x)"}.get(name, name) for name in DRAFTS])
def test_every_draft_has_a_source_and_a_record(text):
    assert make_draft(text).source
    settings = SampleSettings(draft=text)
    assert settings.to_json()["draft"] == text and SampleSettings.from_json(settings.to_json()) == settings
    assert "draft" not in SampleSettings().to_json()
