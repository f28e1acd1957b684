"""The six tasks of Diffusion-LM (2205.14217 section 5) at toy size: content, parts of speech, tree, spans and length by gradients of a
classifier under Gaussian noise, infilling by what conditions the canvas; content and length by a classifier under masks as well.

The text is four tokens of three, its denoiser exact. Each classifier is the probability that a text drawn from q(x_i | z_i) has the
property, so a text has it or has not, and a task's success is the share of texts that have it. Under masks the classifier is exact,
p(c | z) by enumeration, and the distribution of the text is compared with p(x | c).

Shapes: N texts, B rows, L positions, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion.oracle.enumeration import JointDistribution
from dlmjax.diffusion.oracle.gaussian import ExactDenoiser
from dlmjax.sampling.canvas import Canvas, blank_canvas
from dlmjax.sampling.sampler import Sampler
from dlmjax.sampling.settings import SampleSettings
from tests.diffusion.battery import chi_square_sigmas
from tests.sampling.test_gaussian import MADE, unlearned
from tests.sampling.toy import Law

LENGTH, TOKENS, ROWS = 4, 3, 400
TEXT = JointDistribution.random(TOKENS, LENGTH, seed=7)
TEXTS_NL, P_N = TEXT.sequences_Xn, TEXT.probability_X
FLOOR = 1e-9


def log_of(p_B):
    return jnp.log(jnp.maximum(p_B, FLOOR))


def content(p_BLV, t_BL):
    """Token 2 at two neighbouring positions at least."""
    no_B, last_B = jnp.ones(len(p_BLV)), jnp.zeros(len(p_BLV))  # without the pair so far: last token another one, or 2
    for i in range(LENGTH):
        two_B = p_BLV[:, i, 2]
        no_B, last_B = (no_B + last_B) * (1 - two_B), no_B * two_B
    return log_of(1 - no_B - last_B)


NOUNS, VERBS = (0,), (1, 2)
TAGS = (NOUNS, VERBS, VERBS, NOUNS)


def parts_of_speech(p_BLV, t_BL):
    """Noun, verb, verb, noun: each position has a token of its tag."""
    return sum(log_of(sum(p_BLV[:, i, token] for token in tag)) for i, tag in enumerate(TAGS))


def tree(p_BLV, t_BL):
    """The text is a sentence of S -> leaf | ( S ) | S S with 0 = (, 1 = ), 2 = leaf, by the inside algorithm: S S is split after its
    first bracket or leaf, so that each tree counts once."""
    one, inside = {}, {}  # (start, end): a leaf or a bracket, and a sequence of them
    for span in range(1, LENGTH + 1):
        for start in range(LENGTH - span + 1):
            end = start + span
            enclosed = p_BLV[:, start, 0] * p_BLV[:, end - 1, 1] * inside[start + 1, end - 1] if span > 2 else 0.0
            one[start, end] = p_BLV[:, start, 2] if span == 1 else enclosed
            inside[start, end] = one[start, end] + sum(one[start, k] * inside[k, end] for k in range(start + 1, end))
    return log_of(inside[0, LENGTH])


PHRASES = ((0, 1), (2, 2))


def spans(p_BLV, t_BL):
    """Positions 1 and 2 are one of the phrases."""
    return log_of(sum(p_BLV[:, 1, a] * p_BLV[:, 2, b] for a, b in PHRASES))


def length(p_BLV, t_BL):
    """Token 2 ends a text: two tokens stand before the first."""
    return log_of((1 - p_BLV[:, 0, 2]) * (1 - p_BLV[:, 1, 2]) * p_BLV[:, 2, 2])


TASKS = {function.__name__: function for function in (content, parts_of_speech, tree, spans, length)}


HAS = {
    "content": lambda x: (2, 2) in {x[0:2], x[1:3], x[2:4]},
    "parts_of_speech": lambda x: x[0] == x[3] == 0 and 0 not in x[1:3],
    "tree": lambda x: x in {(2, 2, 2, 2), (0, 2, 1, 2), (2, 0, 2, 1), (0, 2, 2, 1)},
    "spans": lambda x: x[1:3] in {(0, 1), (2, 2)},
    "length": lambda x: x[2] == 2 and 2 not in x[:2],
}


def holds(task):
    """Whether each text has the property, [N]."""
    return np.array([HAS[task](tuple(text)) for text in TEXTS_NL.tolist()])


@pytest.mark.parametrize("task", TASKS)
def test_a_classifier_counts_the_texts_that_it_is_meant_to(task):
    np.testing.assert_array_equal(np.asarray(TASKS[task](jax.nn.one_hot(TEXTS_NL, TOKENS), None)) > -1, holds(task))


# --- Gaussian noise ------------------------------------------------------------------------------------------------------------------


@functools.cache
def drawn_of(guide, canvas_of=lambda: blank_canvas(LENGTH, ROWS)):
    """Number of each row's text among TEXTS_NL."""
    process = MADE["v"]
    bind = lambda params, segments, positions, attention: ExactDenoiser.of(TEXT, process.with_params(params["process"]))  # noqa: E731
    sampler = Sampler(unlearned(process), bind, SampleSettings(steps=20, guide=guide))
    return sampler.sample({"process": process.params}, canvas_of(), seed=4).tokens_BL @ TOKENS ** np.arange(LENGTH - 1, -1, -1)


def error_of(share):
    """Standard error of a share of ROWS texts."""
    return np.sqrt(max(share * (1 - share), 1 / ROWS) / ROWS)


@pytest.mark.parametrize("task", TASKS)
def test_gradients_raise_the_success_of_each_task(task):
    """Published steps and rate, weight 5: more than six standard errors above no guide, and at least twice as often."""
    plain, guided = (holds(task)[drawn_of(guide)].mean() for guide in ("", f"gradient(of={__name__}.{task}, weight=5.0)"))
    assert abs(plain - P_N[holds(task)].sum()) < 4 * error_of(plain), "without a guide a property is as frequent as in the text"
    assert guided > 2 * plain and guided - plain > 6 * np.hypot(error_of(plain), error_of(guided))


def ends_given():
    tokens_BL = np.full((ROWS, LENGTH), TOKENS, np.int32)
    tokens_BL[:, 0], tokens_BL[:, 3] = 2, 1
    mask_BL = tokens_BL != TOKENS
    return Canvas(tokens_BL, mask_BL, 1 - mask_BL.astype(np.float32))


def test_an_infilling_is_drawn_given_both_ends():
    """The sixth task takes no classifier: the text between the ends has its distribution given them, which free texts rarely fit."""
    fits_N = (TEXTS_NL[:, 0] == 2) & (TEXTS_NL[:, 3] == 1)
    free, filled = drawn_of(""), drawn_of("", ends_given)
    assert fits_N[filled].all() and fits_N[free].mean() < 0.5
    assert chi_square_sigmas(np.bincount(filled, minlength=len(P_N))[fits_N], P_N[fits_N] / P_N[fits_N].sum()) < 4


# --- masks ---------------------------------------------------------------------------------------------------------------------------

LAW = Law(symbols=TOKENS, length=LENGTH, seed=3, sharpness=1.0)
ONE_A_STEP = {"rule": "random", "steps": LENGTH, "suppressed_ids": (LAW.mask_id,)}


def log_p_of(holds_N, p_BLV):
    """log p(c | z) of partly masked texts: the share of the texts that fit which have the property."""
    fits_BN = jnp.ones((len(p_BLV), len(LAW.p_N)))
    for i in range(LENGTH):
        fits_BN *= p_BLV[:, i, LAW.texts_NL[:, i]] + p_BLV[:, i, LAW.mask_id, None]
    return log_of(fits_BN @ jnp.asarray(LAW.p_N * holds_N, jnp.float32)) - log_of(fits_BN @ jnp.asarray(LAW.p_N, jnp.float32))


def masked_content(p_BLV, t_BL):
    return log_p_of(holds("content"), p_BLV)


def masked_length(p_BLV, t_BL):
    return log_p_of(holds("length"), p_BLV)


def counts_of(guide):
    sampler = Sampler(LAW.process(), LAW.bind, SampleSettings(guide=guide, **ONE_A_STEP))
    tokens_BL = sampler.sample(1.0, blank_canvas(LENGTH, 4 * ROWS), seed=6).tokens_BL
    return np.bincount(LAW.index(tokens_BL), minlength=len(LAW.p_N))


@pytest.mark.parametrize("task", ["content", "length"])
def test_a_classifier_under_masks_gives_the_text_given_the_class(task):
    """One token a step and order=exact: p(x | c), every text has the property. order=first: more have it than without, and not all."""
    had_N, name = holds(task), f"{__name__}.masked_{task}"
    given_N = LAW.p_N * had_N / (LAW.p_N * had_N).sum()
    exact_N = counts_of(f"classifier(of={name}, order=exact)")
    assert exact_N[~had_N].sum() == 0 and chi_square_sigmas(exact_N[had_N], given_N[had_N]) < 4
    first_N = counts_of(f"classifier(of={name}, order=first)")
    share, plain = first_N[had_N].sum() / first_N.sum(), LAW.p_N[had_N].sum()
    assert plain + 6 * error_of(share) < share < 0.99
