"""Projection onto a constraint: against the exact nearest distribution by enumeration, and what it makes of finished texts.

Shapes: K tokens, S states of a position, B rows, L positions, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion.processes.masked import Masked
from dlmjax.errors import InputError
from dlmjax.sampling.canvas import Canvas, blank_canvas
from dlmjax.sampling.guidance import violation_of
from dlmjax.sampling.projection import project
from dlmjax.sampling.sampler import Sampler
from dlmjax.sampling.settings import SampleSettings
from tests.diffusion.battery import BOS, MASK, TOKENS
from tests.sampling.test_control_tasks import LAW as FOUR
from tests.sampling.test_control_tasks import content, holds
from tests.sampling.test_gaussian import MADE, unlearned
from tests.sampling.test_guidance import GUIDED, W_LK, beliefs, normalised, posterior
from tests.sampling.test_laws import ALL, LAW, Trained

BAD_KK = np.array([[0, 1, 1], [1, 0, 1], [0, 0, 1]], bool)  # pairs of tokens that violate


def tilted(p_SK, w_SK, tau):
    """The nearest distribution to each row with a mean of w of at most tau: p exp(-c w), c >= 0 by bisection; the nearest to tau where
    none has it."""

    def mean_S(p_SK):
        return np.sum(p_SK * w_SK, axis=-1)

    low_S, high_S = np.zeros(len(w_SK)), np.full(len(w_SK), 200.0)
    for _ in range(80):
        middle_S = (low_S + high_S) / 2
        over_S = mean_S(normalised(p_SK * np.exp(-middle_S[:, None] * w_SK))) > tau
        low_S, high_S = np.where(over_S, middle_S, low_S), np.where(over_S, high_S, middle_S)
    c_S = np.where(mean_S(p_SK) <= tau, 0.0, high_S)
    return normalised(p_SK * np.exp(-c_S[:, None] * w_SK))


def mean_of_second(p_BLV, t_BL):
    return p_BLV[:, 1, :TOKENS] @ W_LK[1]


SELDOM = ("flow_matching/uniform", "score/mask, linear")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.nightly] if name in SELDOM else []) for name in GUIDED])
def test_a_linear_constraint_gives_the_nearest_distribution_at_each_noisy_token(name):
    """The outputs of the sampler itself, for every meaning of an output; where p satisfies the constraint it stays."""
    case, given_K = ALL[name], LAW.table[1] / LAW.table[1].sum()
    plain_SK = posterior(case, given_K, 0.8)
    tau = float(np.median(plain_SK @ W_LK[1])) - 0.2
    wanted_SK = tilted(plain_SK, np.tile(W_LK[1], (len(plain_SK), 1)), tau)
    guided_SK = beliefs(case, SampleSettings(guide=f"project(of={__name__}.mean_of_second, tau={tau})"), 0.8)
    np.testing.assert_allclose(guided_SK, wanted_SK, atol=5e-5)
    assert np.abs(wanted_SK - plain_SK).max() > 0.1, "the test can tell a constraint from none"


def bad_share(p_BLV, t_BL):
    """The probability that a text of the product is a bad pair."""
    return jnp.einsum("bi,bj,ij->b", p_BLV[:, 0, :TOKENS], p_BLV[:, 1, :TOKENS], BAD_KK.astype(np.float32))


def test_a_constraint_of_pairs_gives_the_nearest_product_by_enumeration():
    """All first positions on a grid; for each the second is a tilt. The minimum over the grid is not below what the projection finds."""
    log_p_BLK = jax.nn.log_softmax(1.5 * jax.random.normal(jax.random.key(1), (4, 2, TOKENS)))
    log_y_BLK = project(log_p_BLK, functools.partial(bad_share, t_BL=None), 0.1, 20, 5)
    nats_B = np.asarray(jnp.sum(jnp.exp(log_y_BLK) * (log_y_BLK - log_p_BLK), axis=(1, 2)))
    assert np.all(np.asarray(bad_share(jnp.exp(log_p_BLK), None)) > 0.12)
    np.testing.assert_allclose(bad_share(jnp.exp(log_y_BLK), None), 0.1, atol=1e-4)
    grid_G = np.stack(np.meshgrid(*[np.linspace(1e-4, 1, 120)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    first_GK = np.concatenate([grid_G, 1 - grid_G.sum(axis=1, keepdims=True)], axis=1)[grid_G.sum(axis=1) < 1 - 1e-4]
    for (p_K, other_K), nats in zip(np.exp(log_p_BLK), nats_B, strict=True):
        w_GK = first_GK @ BAD_KK
        fits_G = w_GK.min(axis=1) < 0.1
        second_GK = tilted(other_K, w_GK[fits_G], 0.1)
        kl_G = np.sum(first_GK[fits_G] * np.log(first_GK[fits_G] / p_K), axis=1) + np.sum(
            second_GK * np.log(np.maximum(second_GK, 1e-30) / other_K), axis=1
        )
        assert abs(nats - kl_G.min()) < 3e-3


# --- texts ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["masked/linear", "uniform/linear", "hybrid/0.2"])
def test_texts_violate_a_constraint_with_at_most_its_probability(name):
    """Steps in time of masks, uniform and hybrid noise: bad pairs are as rare as tau asks for, and frequent without a guide."""
    rows, tau, share = 600, 0.05, {}
    for guide in ("", f"project(of={__name__}.bad_share, tau={tau})"):
        sampler = Sampler(ALL[name].process, Trained(ALL[name]), SampleSettings(steps=6, suppressed_ids=(BOS, MASK), guide=guide))
        tokens_BL = sampler.sample((), blank_canvas(2, rows), seed=2).tokens_BL
        share[guide] = BAD_KK[tokens_BL[:, 0], tokens_BL[:, 1]].mean()
    plain, projected = share.values()
    assert plain > 0.3 and projected < tau + 4 * np.sqrt(tau * (1 - tau) / rows)


def lacks(p_BLV, t_BL):
    """The probability that a text of the product has no two tokens 2 side by side."""
    return 1 - jnp.exp(content(p_BLV, t_BL))


def drawn(guide, canvas=None):
    settings = SampleSettings(rule="random", steps=2, suppressed_ids=(FOUR.mask_id,), guide=guide)
    return Sampler(FOUR.process(), FOUR.bind, settings).sample(1.0, canvas or blank_canvas(4, 400), seed=5).tokens_BL


def test_a_rule_reveals_tokens_that_leave_the_constraint_within_reach():
    """Two positions a step; a constraint that p satisfies changes no token."""
    plain_BL, tight_BL, loose_BL = (drawn(guide and f"project(of={__name__}.lacks{guide})") for guide in ("", ", tau=0.01", ", tau=1.0"))
    assert holds("content")[FOUR.index(plain_BL)].mean() < 0.4 and holds("content")[FOUR.index(tight_BL)].mean() > 0.97
    np.testing.assert_array_equal(plain_BL, loose_BL)


def test_a_text_that_cannot_satisfy_a_constraint_is_made_all_the_same_and_its_violation_is_given():
    tokens_BL = np.array([[0, 1, 0, FOUR.mask_id], [0, 2, 0, 2]], np.int32)[[0, 1, 0]]
    tokens_BL[1, 1] = FOUR.mask_id
    tokens_BL[2, 1] = tokens_BL[2, 2] = FOUR.mask_id
    mask_BL = tokens_BL != FOUR.mask_id
    canvas = Canvas(tokens_BL, mask_BL, 1 - mask_BL.astype(np.float32))
    settings = SampleSettings(guide=f"project(of={__name__}.lacks)")
    made_BL = drawn(settings.guide, canvas)
    violation_B = violation_of(settings.make_guide(), made_BL, FOUR.vocab)
    np.testing.assert_allclose(violation_B, [1, 1, 0], atol=1e-6)
    assert (made_BL[mask_BL] == tokens_BL[mask_BL]).all() and made_BL.max() < FOUR.mask_id


# --- refused -------------------------------------------------------------------------------------------------------------------------


def of_texts(p_BLV, t_BL):
    return p_BLV.sum(axis=(1, 2)).sum()


def of_three(p_BLV, t_BL):
    return p_BLV[:, 3] @ jnp.ones(7)


@pytest.mark.parametrize(
    ("guide", "match"),
    [
        ("project", "guide project requires of"),
        ("project(of=a.b, tau=1e9)", "tau is 1e\\+09|tau is 1000000000"),
        ("project(of=a.b, rounds=0)", "rounds is 0"),
        ("project(of=a.b, weight=1)", "has no value 'weight'"),
        ("project(of=nowhere.to_be_found)", "is not a function of an imported module"),
        (f"project(of={__name__}.of_texts)", "it must give one number of each row"),
        (f"project(of={__name__}.of_three)", "fails for p_BLV of 1 x 4 x 4"),
    ],
)
def test_constraints_that_mean_nothing_are_refused_in_one_line(guide, match):
    with pytest.raises(InputError, match=match) as caught:
        Sampler(Masked(4, 3), lambda *_, **__: None, SampleSettings(guide=guide)).sample((), blank_canvas(4, 1))
    assert "\n" not in str(caught.value)


def test_vectors_have_no_projection():
    with pytest.raises(InputError, match="give guide gradient"):
        Sampler(unlearned(MADE["v"]), lambda *_, **__: None, SampleSettings(guide=f"project(of={__name__}.lacks)"))
