"""Steps on embeddings, with the exact denoiser of a law of two tokens: the law that comes out, frozen text, calls, refusals."""

import functools

import numpy as np
import pytest

from dlmjax.diffusion.gaussian.exact import ExactDenoiser
from dlmjax.diffusion.masked import Masked
from dlmjax.errors import InputError
from dlmjax.sampling.canvas import Canvas, blank_canvas
from dlmjax.sampling.sampler import Sampler
from dlmjax.sampling.settings import SampleSettings
from tests.diffusion.battery import chi_square_sigmas, index_of
from tests.diffusion.gaussian.battery import CASES, TOKENS, TWO
from tests.sampling.toy import Law

ROWS = 3000
MADE = {
    "plaid": CASES["plaid"](dim=2),
    "v": CASES["cosine/v"](dim=2, gamma_0=-6.0),
    "flow": CASES["embedding_flow"](dim=2, gamma_0=-6.0),
}


@functools.cache
def draw(name, method, steps, seed=1, rows=ROWS):
    process = MADE[name]
    bind = lambda params, segments, positions, attention: ExactDenoiser.of(TWO, process.given(params["process"]))  # noqa: E731
    sampler = Sampler(unlearned(process), bind, SampleSettings(steps=steps, method=method))
    return sampler.sample({"process": process.learned}, blank_canvas(2, rows), seed=seed)


def unlearned(process):
    """What a sampler is given: a process that knows no embeddings yet, since they come with the weights."""
    fields = {name: getattr(process, name) for name in process.__dataclass_fields__ if name not in ("mask_id", "learned")}
    return type(process)(**fields)


def counts(samples):
    assert samples.tokens_BL.max() < TOKENS, "the mask has an embedding too, and must not be chosen"
    return np.bincount(index_of(samples.tokens_BL, TOKENS), minlength=TOKENS**2)


def distance(samples):
    return np.abs(counts(samples) / ROWS - TWO.probability_X).sum() / 2


@pytest.mark.parametrize(
    ("name", "method"), [("plaid", "ddpm"), ("v", "ancestral"), ("v", "ddim"), ("v", "ddim(eta=0.5)"), ("flow", "heun"), ("plaid", "heun")]
)
def test_many_steps_draw_the_text(name, method):
    samples = draw(name, method, 100)
    assert chi_square_sigmas(counts(samples), TWO.probability_X) < 4
    assert samples.evaluations == 100 * (2 if method == "heun" else 1) + 1


def test_few_steps_do_not_and_more_come_nearer():
    """The test above has the power to see it; a second-order step is worth more than two of first order."""
    assert chi_square_sigmas(counts(draw("v", "ddpm", 2)), TWO.probability_X) > 4
    assert distance(draw("v", "ddpm", 2)) > 2 * distance(draw("v", "ddpm", 100))


def test_ddim_with_all_of_its_noise_is_ddpm_in_law():
    process = MADE["v"]
    bind = lambda *_, **__: ExactDenoiser.of(TWO, process)  # noqa: E731
    sampler = Sampler(process, bind, SampleSettings(steps=20, method="ddim(eta=1)"))
    full = sampler.sample((), blank_canvas(2, ROWS), seed=3)
    few = draw("v", "ddpm", 20, seed=4)
    both = np.stack([counts(full), counts(few)])
    expected = both.sum(axis=0) / 2
    assert np.sum((both - expected) ** 2 / expected) < 8 + 4 * np.sqrt(16)


@pytest.mark.parametrize("method", ["ddpm", "heun", "ddim(clamp_below=0.5)"])
def test_frozen_text_is_untouched_and_conditioned_on(method):
    """It stands there as its embedding at level 0, and the network is told so."""
    process = MADE["v"]
    tokens, frozen = np.tile([1, 0], (ROWS, 1)).astype(np.int32), np.tile([True, False], (ROWS, 1))
    sampler = Sampler(process, lambda *_, **__: ExactDenoiser.of(TWO, process), SampleSettings(steps=60, method=method))
    states = list(sampler.states((), Canvas(tokens, frozen, (~frozen).astype(np.float32)), seed=5))
    assert all((s.tokens_BL[:, 0] == 1).all() and s.tokens_BL.max() < TOKENS for s in states)
    p_K = TWO.table[1] / TWO.table[1].sum()
    tally_K = np.bincount(states[-1].tokens_BL[:, 1], minlength=TOKENS)
    # Clamping decides early and so sharpens the law; the others draw it.
    assert (chi_square_sigmas(tally_K, p_K) < 4) == ("clamp" not in method)
    assert states[-1].time == 0 and states[-1].step == 61


def test_edited_text_starts_from_its_level():
    process = MADE["plaid"]
    tokens = np.tile([2, 0], (500, 1)).astype(np.int32)
    sampler = Sampler(process, lambda *_, **__: ExactDenoiser.of(TWO, process), SampleSettings(steps=10, method="ddpm"))

    def kept(level):
        return (
            sampler.sample((), Canvas(tokens, np.zeros((500, 2), bool), np.full((500, 2), level, np.float32)), seed=6).tokens_BL == tokens
        ).mean()

    assert kept(0.05) > 0.99 > kept(0.5) > kept(1.0)


@pytest.mark.parametrize(
    ("process", "settings", "message"),
    [
        (Masked(4, 3), {"method": "ddpm"}, "ddpm needs Gaussian noise"),
        (MADE["v"], {"method": "remask"}, "needs absorbing noise"),
        (MADE["v"], {"method": "tau_leap"}, "rates of its jumps"),
        (MADE["v"], {"method": "rdm"}, "rdm needs noise on tokens"),
        (MADE["v"], {"method": "ddim(eta=2)"}, "eta is 2"),
        (MADE["v"], {"method": "heun(clamp_below=-1)"}, "clamp_below is -1"),
        (MADE["v"], {"temperature": 0.5}, "predicts no law of tokens"),
        (MADE["v"], {"cache": True}, "leave cache off"),
        (MADE["v"], {"order": "confidence"}, "has no mask"),
    ],
)
def test_what_does_not_go_together_is_told(process, settings, message):
    with pytest.raises(InputError, match=message):
        Sampler(process, Law().bind, SampleSettings(**settings))
