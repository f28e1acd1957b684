"""DAEDAL: lengths on toys whose ends are known, one compilation a bucket, rows by themselves, replay, refusals."""

import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion.processes.masked import Masked
from dlmjax.diffusion.schedules import Linear
from dlmjax.errors import InputError
from dlmjax.sampling.canvas import Canvas
from dlmjax.sampling.growth import GrowingSampler
from dlmjax.sampling.sampler import Sampler
from dlmjax.sampling.settings import SampleSettings
from dlmjax.sampling.trace import record, replay
from tests.sampling.toy import Bound

LETTERS, END, MASK = 20, 20, 21
PROCESS = Masked(22, MASK, Linear())
GROW = "daedal(initial=8, window=4, add=2, longest=64)"


def bind_of(p_end: float, unsure: int | None = None):
    """Texts of 5 a tokens after a prompt of the letter a, then ends of probability p_end; letter i % 7 stands at position i.

    unsure: a position at which all letters are alike, until the canvas is full.
    """

    def bind(params, segments_BL, positions_BL, attention=None):
        def denoise(z_BL, t_BL):
            is_end_BL1 = (positions_BL > 5 * z_BL[:, :1])[..., None]
            ids_V = jnp.arange(22)
            letter_BLV = jnp.where(ids_V == (positions_BL % 7)[..., None], 0.95, 0.05 / (LETTERS - 1)) * (ids_V < LETTERS)
            if unsure is not None:
                letter_BLV = jnp.where((positions_BL == unsure)[..., None], (ids_V < LETTERS) / LETTERS, letter_BLV)
            end_BLV = jnp.where(ids_V == END, p_end, (1 - p_end) / LETTERS) * (ids_V <= END)
            p_BLV = jnp.where(is_end_BL1, end_BLV, letter_BLV)
            # Padding must not be read.
            p_BLV = jnp.where((segments_BL == 0)[..., None], (ids_V == 3), p_BLV)
            return jnp.log(jnp.maximum(p_BLV, 1e-9))

        return Bound(denoise)

    return bind


def canvas_of(*letters: int, length: int = 65) -> Canvas:
    tokens_BL = np.full((len(letters), length), MASK, np.int32)
    tokens_BL[:, 0] = letters
    condition_BL = np.arange(length)[None] < np.ones((len(letters), 1))
    return Canvas(tokens_BL, condition_BL, 1 - condition_BL.astype(np.float32))


def sampler_of(p_end: float, grow: str = GROW, **how) -> GrowingSampler:
    settings = SampleSettings(grow=grow, end_ids=(END,), suppressed_ids=(MASK,), **{"temperature": 0.0} | how)
    return GrowingSampler(PROCESS, bind_of(p_end, how.pop("unsure", None)), settings)


def test_a_canvas_grows_until_its_end_is_likely():
    """Ends of 0.99: the first stage stops with three of them among the last four positions (two are 0.495), and half a window follows.

    A text of n tokens gets 8, 10, ... positions until at least n + 3, then 2 more, and the second stage adds none: e is 0.99 there.
    """
    sampler, letters = sampler_of(0.99), (0, 1, 2, 4, 9)
    made = sampler.sample(jnp.float32(1), canvas_of(*letters), seed=3)
    text_B = 5 * np.asarray(letters)
    grown_B = np.maximum(8, 2 * -(-(text_B + 3) // 2))
    np.testing.assert_array_equal(made.canvas_B, 1 + grown_B + 2)
    for row_L, canvas, n in zip(made.tokens_BL, made.canvas_B, text_B, strict=True):
        np.testing.assert_array_equal(row_L[1 : n + 1], np.arange(1, n + 1) % 7)
        assert (row_L[n + 1 : canvas] == END).all() and (row_L[canvas:] == END).all()
    assert [entry["canvas"] for entry in made.to_json(_Tokenizer())["lengths"]] == sorted({*made.canvas_B.tolist()})
    stage_one_B = (grown_B - 8) // 2 + 1
    assert (made.calls_B > stage_one_B).all() and (made.counts.reads_B >= made.calls_B * 8).all()
    assert len(sampler._compiled) == 1 and next(iter(sampler._compiled.values()))._cache_size() == 3, "16, 32 and 64 positions"


class _Tokenizer:
    eos_id, bos_id, pad_id, mask_id, vocab_size = END, END, MASK, MASK, 22

    def decode(self, ids):
        return ""


def test_a_position_that_is_unsure_is_given_room():
    """Ends of 0.8: enough for the first stage, below `sure` for the second, so an unsure position becomes `add` ones."""
    settings = SampleSettings(grow=GROW, end_ids=(END,), suppressed_ids=(MASK,), temperature=0.0)
    grown = GrowingSampler(PROCESS, bind_of(0.8, unsure=3), settings).sample(jnp.float32(1), canvas_of(1), seed=0)
    sure = GrowingSampler(PROCESS, bind_of(0.8), settings).sample(jnp.float32(1), canvas_of(1), seed=0)
    never = GrowingSampler(PROCESS, bind_of(0.3), settings).sample(jnp.float32(1), canvas_of(1), seed=0)
    assert sure.canvas_B.tolist() == [11] and grown.canvas_B[0] > 11, "the unsure position was given room"
    assert never.canvas_B.tolist() == [65], "an end that is never likely: to the longest canvas"


def test_a_row_alone_is_the_row_among_others():
    sampler = sampler_of(0.93, temperature=1.0)
    both = sampler.sample(jnp.float32(1), canvas_of(1, 6, 2), seed=5)
    two = sampler.sample(jnp.float32(1), canvas_of(1, 6), seed=5)
    for field in ("tokens_BL", "fixed_BL", "calls_B", "canvas_B"):
        np.testing.assert_array_equal(getattr(two, field), getattr(both, field)[:2])
    np.testing.assert_allclose(two.confidence_BL, both.confidence_BL[:2], atol=1e-6)
    made, trace = record(sampler, jnp.float32(1), canvas_of(1, 6), seed=5)
    np.testing.assert_array_equal(made.tokens_BL, two.tokens_BL)
    assert replay(type(trace).from_json(trace.to_json()), sampler, jnp.float32(1)) == trace.states
    other = sampler.sample(jnp.float32(1), canvas_of(1, 6), seed=6)
    assert not np.array_equal(other.tokens_BL, two.tokens_BL)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"grow": "daedel"}, "did you mean 'daedal'"),
        ({"grow": "daedal(window=0)"}, "window is 0"),
        ({"grow": "daedal(sure=2)"}, "sure is 2"),
        ({"grow": "daedal(longest=8)"}, "at least initial, 64"),
        ({"end_ids": ()}, "requires the id"),
        *(
            (values, f"conflicts with {name}")
            for name, values in (
                ("rule", {"rule": "margin"}),
                ("guidance", {"guidance": 2.0}),
                ("cache", {"cache": "dual"}),
                ("regex", {"rule": "random", "regex": "a"}),
                ("stop", {"rule": "random", "stop": "exit"}),
                ("eos", {"eos": "suppressed"}),
                ("sweep", {"sweep": 2}),
            )
        ),
    ],
)
def test_a_growth_that_cannot_be_served_is_one_line(settings, message):
    with pytest.raises(InputError) as refusal:
        GrowingSampler(PROCESS, bind_of(0.9), SampleSettings(**{"grow": "daedal", "end_ids": (END,)} | settings))
    text = str(refusal.value)
    assert "\n" not in text and (message in text or message.split()[-1] in text.split("conflicts with")[-1])


def test_growth_continues_a_prompt_alone_and_other_samplers_refuse_it():
    canvas = canvas_of(1, length=12)
    mask_BL = canvas.condition_mask_BL.copy()
    mask_BL[:, -1] = True
    with pytest.raises(InputError, match="takes no suffix"):
        sampler_of(0.9).sample(jnp.float32(1), Canvas(canvas.tokens_BL * ~mask_BL, mask_BL, 1 - mask_BL.astype(np.float32)))
    with pytest.raises(InputError, match="requires a sampler of the whole canvas"):
        Sampler(PROCESS, bind_of(0.9), SampleSettings(grow=GROW, end_ids=(END,)))
