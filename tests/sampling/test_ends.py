"""The hold-back of the end of document: it acts on what is drawn and on what a rule ranks, at the positions and steps that it names."""

import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion.process import EXCLUDED
from dlmjax.errors import InputError
from dlmjax.sampling.canvas import Canvas
from dlmjax.sampling.ends import HOLD_BACKS, make_hold_back
from dlmjax.sampling.pieces import CanvasState
from dlmjax.sampling.sampler import Sampler
from dlmjax.sampling.settings import SampleSettings
from tests.sampling.toy import Bound, Law

END = 2
LAW = Law(symbols=3, length=4, seed=1, sharpness=3.0)
PROMPT_BL = np.zeros((64, 4), bool)
PROMPT_BL[::2, 0] = True  # every other row has a prompt of one token
CANVAS = Canvas(np.zeros((64, 4), np.int32), PROMPT_BL, 1 - PROMPT_BL.astype(np.float32))


def texts(rule: str, factor=None, **settings):
    """Samples; factor(z_BL) -> factor of the end, which a denoiser of the test applies by itself."""

    def denoise(z_BL, t_BL):
        log_p_BLV = LAW.denoise(z_BL)
        if factor is None:
            return log_p_BLV
        factor_BL1 = jnp.broadcast_to(factor(z_BL), z_BL.shape)[..., None]
        held_BLV = jnp.where(factor_BL1 > 0, log_p_BLV + jnp.log(jnp.maximum(factor_BL1, 1e-30)), EXCLUDED)
        return jnp.where(jnp.arange(LAW.vocab) == END, held_BLV, log_p_BLV)

    how = SampleSettings(rule=rule, **{"suppressed_ids": (3,), "steps": 4} | settings)
    return Sampler(LAW.process(), lambda *_, **__: Bound(denoise), how).sample((), CANVAS, seed=3)


def assert_equal(these, those) -> None:
    for field in ("tokens_BL", "fixed_BL", "confidence_BL", "calls_B"):
        np.testing.assert_allclose(getattr(these, field), getattr(those, field), atol=1e-6)


HELD = {"eos": "suppressed", "end_ids": (END,)}
RULES = ("ancestral", "confidence(on=drawn)", "margin", "entropy_bound(gamma=0.3)", "saber", "klass(value=0.5)")


@pytest.mark.parametrize("rule", RULES)
def test_suppressed_is_a_suppressed_end_for_ranks_and_draws(rule):
    """Barring the end after the draw alone, as LLaDA's code does, leaves its position the confidence of the end: other positions first."""
    assert_equal(texts(rule, **HELD), texts(rule, suppressed_ids=(END, 3)))
    assert (texts(rule).tokens_BL == END).any(), "without the hold-back the law makes ends"


def test_a_rising_factor_is_that_of_the_share_of_steps():
    """One position a step: before a step of a row of which m of M positions are masked the factor is low + (1 - low)(1 - m / M)."""
    filled_BL = ~PROMPT_BL

    def factor(z_BL):
        masked_B1 = jnp.sum(z_BL == LAW.mask_id, axis=1, keepdims=True)
        return 0.4 + 0.6 * (1 - masked_B1 / filled_BL.sum(axis=1, keepdims=True))

    for rule in ("confidence(on=drawn, count=1)", "threshold(value=0.999)"):
        held = texts(rule, eos="rising(low=0.4)", end_ids=(END,))
        assert_equal(held, texts(rule, factor))
    assert (held.tokens_BL == END).mean() < (texts(rule).tokens_BL == END).mean()


@pytest.mark.parametrize("rule", ["ancestral", "confidence"])
def test_first_counts_generated_positions_of_each_row(rule):
    number_BL = np.cumsum(~PROMPT_BL, axis=1) - 1
    held = texts(rule, eos="first(tokens=2)", end_ids=(END,))
    assert not (held.tokens_BL == END)[~PROMPT_BL & (number_BL < 2)].any() and (held.tokens_BL == END)[number_BL >= 2].any()
    assert_equal(held, texts(rule, lambda z_BL: jnp.where(number_BL < 2, 0.0, 1.0)))


def test_pieces_of_a_canvas_count_on():
    state, parts = CanvasState(CANVAS, 6, None), [slice(0, 3), slice(3, 6)]
    numbers = [state.piece(part, part).number_BL for part in parts]
    whole_BL = np.cumsum(~np.pad(PROMPT_BL, ((0, 0), (0, 2))), axis=1) - 1
    np.testing.assert_array_equal(np.maximum(np.concatenate(numbers, axis=1), 0), np.maximum(whole_BL, 0))


@pytest.mark.parametrize("name", HOLD_BACKS)
def test_every_hold_back_has_a_source_and_stays_a_factor(name):
    hold_back = make_hold_back(name)
    factor_BL = np.asarray(hold_back.factor(jnp.arange(60).reshape(1, 60), jnp.linspace(0, 1, 60)[None]))
    assert hold_back.source and factor_BL.min() >= 0 and factor_BL.max() <= 1 and (factor_BL.min() == 0) == hold_back.suppresses
    settings = SampleSettings(eos=name, end_ids=(2, 5))
    assert SampleSettings.from_json(settings.to_json()) == settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eos": "supressed"}, "did you mean 'suppressed'"),
        ({"eos": "first(tokens=0)"}, "tokens is 0"),
        ({"eos": "rising(low=2)"}, "low is 2"),
        ({"eos": "suppressed", "rule": "random", "regex": "a"}, "conflicts with regex"),
        ({"eos": "suppressed", "cache": True}, "conflicts with cache"),
        ({"eos": "suppressed"}, "requires the ids"),
        ({"eos": "suppressed", "end_ids": (9,)}, "requires the ids"),
    ],
)
def test_a_bad_hold_back_is_one_line(settings, message):
    with pytest.raises(InputError, match=message) as refusal:
        Sampler(LAW.process(), LAW.bind, SampleSettings(**settings))
    assert "\n" not in str(refusal.value)
