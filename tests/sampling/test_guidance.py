"""Control by classifier-free guidance and by a classifier: what one position draws, against enumeration, for noise of every kind.

The text is one free token x_2 beside a token x_1; a class c has log p(c | x) that is linear in the one-hots, or not. Everything is
computed by enumeration: the sampler's own step denoiser at every noisy text; no samples are drawn but for Gaussian noise.

Shapes: K tokens, S states of a position, Z noisy texts of two positions, N texts.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion.processes.masked import Masked
from dlmjax.diffusion.processes.uniform import Uniform
from dlmjax.errors import InputError
from dlmjax.sampling.canvas import Canvas, blank_canvas
from dlmjax.sampling.guidance import Cfg, make_guidance, make_guide
from dlmjax.sampling.sampler import Sampler
from dlmjax.sampling.settings import SampleSettings
from dlmjax.sampling.step_denoiser import StepDenoiser
from tests.diffusion.battery import BOS, MASK, TOKENS, VOCAB
from tests.sampling.test_gaussian import MADE, unlearned
from tests.sampling.test_laws import ALL, LAW, Trained

W_LK = np.array([[0.3, -1.0, 0.5], [1.2, 0.0, -0.7]], np.float32)  # log p(c | x) = sum of entries: linear in the one-hots
PAIR_KK = np.array([[0.0, 1.5, -1.0], [-0.5, 0.8, 0.2], [1.0, -2.0, 0.4]], np.float32)  # log p(c | x_1, x_2): not linear
GUIDED = sorted({"masked/linear", "uniform/linear", "flow_matching/uniform", "hybrid/0.2", "score/uniform, linear", "score/mask, linear"})


def linear(p_BLV, t_BL):
    """log p(c | z) that is linear in the text; what stands at a special id counts nothing."""
    return jnp.einsum("blk,lk->b", p_BLV[..., :TOKENS], W_LK)


def of_pair(p_BLV, t_BL):
    """log p(c | x_1, z_2) where x_1 is clean, for a text in which z_2 tells nothing: the mean over x_2 where it is the mask."""
    first_BK, second_BK = p_BLV[:, 0, :TOKENS], p_BLV[:, 1, :TOKENS]
    second_BK = jnp.where(second_BK.sum(axis=1, keepdims=True) > 0.5, second_BK, jnp.asarray(LAW.table[1] / LAW.table[1].sum()))
    return jnp.log(jnp.einsum("bi,bj,ij->b", first_BK, second_BK, jnp.exp(PAIR_KK)))


def beliefs(case, settings, t, first=1):
    """p(x_2 | x_1, z_2) of the sampler's network for every state z_2 of the second position, [S, K]."""
    process = case.process
    states = [state for state in range(VOCAB) if state < TOKENS or (state == MASK and case.states > TOKENS)]
    z_ZL = jnp.asarray([[first, state] for state in states], jnp.int32)
    t_ZL = jnp.asarray([[0.0, t]] * len(states), jnp.float32)
    given_ZL = jnp.asarray([[True, False]] * len(states))
    noise_ZL = jnp.full_like(z_ZL, MASK) if case.states > TOKENS else z_ZL
    network = Trained(case)
    denoise = StepDenoiser(process, network, settings, (BOS, MASK), condition_mask_BL=given_ZL, unconditional=noise_ZL)
    log_p_ZLV = process.output.log_posterior(denoise(z_ZL, t_ZL), z_ZL, t_ZL)
    return jax.nn.softmax(log_p_ZLV, axis=-1)[:, 1, :TOKENS]


def normalised(weight_K):
    return weight_K / weight_K.sum(axis=-1, keepdims=True)


def posterior(case, given_K, t):
    """p(x | z) of one place with the law `given_K` of its token, [S, K]."""
    return np.asarray(normalised((case.kernel.matrix(t)[:, : case.states] * given_K[:, None]).T))


@pytest.mark.parametrize("order", ["first", "exact"])
@pytest.mark.parametrize("name", GUIDED)
def test_a_classifier_gives_the_posterior_given_the_class_at_each_place(name, order):
    """log p(c) linear in the one-hots: both orders are p(x_2 | x_1, z_2, c), at every noisy token and time."""
    case, given_K = ALL[name], LAW.table[1] / LAW.table[1].sum()
    settings = SampleSettings(guide=f"classifier(of={__name__}.linear, weight=1.5, order={order})")
    for t in (0.9, 0.3):
        wanted_SK = posterior(case, normalised(given_K * np.exp(1.5 * W_LK[1])), t)
        np.testing.assert_allclose(beliefs(case, settings, t), wanted_SK, atol=2e-5)
        assert np.abs(wanted_SK - posterior(case, given_K, t)).max() > 0.1, "the test can tell a guide from none"


@pytest.mark.parametrize("name", ["masked/linear", "uniform/linear", "hybrid/0.2"])
def test_the_exact_order_needs_no_linear_classifier_and_the_first_order_does(name):
    case, given_K = ALL[name], LAW.table[1] / LAW.table[1].sum()
    wanted_SK = posterior(case, normalised(given_K * np.exp(PAIR_KK[1])), 0.6)
    exact_SK, first_SK = (
        beliefs(case, SampleSettings(guide=f"classifier(of={__name__}.of_pair, order={o})"), 0.6) for o in ("exact", "first")
    )
    np.testing.assert_allclose(exact_SK, wanted_SK, atol=2e-5)
    assert np.abs(first_SK - wanted_SK).max() > 0.01


# --- classifier-free guidance --------------------------------------------------------------------------------------------------------


def chain(tilted_SK_of, steps):
    """The law of one token after `steps` steps of uniform noise from t = 1, by p(x | z_t) at every state, [K]."""
    now_S = np.full(TOKENS, 1 / TOKENS)
    for t, s in itertools.pairwise(np.linspace(1, 0, steps + 1)):
        now_S = now_S @ tilted_SK_of(t, s)
    return now_S


def reverse(p_K, t, s):
    """q(z_s | z_t) of one token with the law p_K, [S, S]."""
    joint_SS = between(s, t) * (p_K @ between(0.0, s))[:, None]  # [z_s, z_t]
    return normalised(joint_SS.T)


def between(s, t):
    """q(z_t | z_s) of uniform noise with alpha = 1 - t, [S, S]."""
    keep = (1 - t) / (1 - s) if s < 1 else 1.0
    return keep * np.eye(TOKENS) + (1 - keep) / TOKENS


def test_guided_uniform_noise_is_the_tilt_at_any_number_of_steps_and_that_of_log_steps_never_is():
    """Outputs are combined as p(x | z), then the step is taken: exact. Powers of the steps' own distributions stay away from it."""
    case, conditional_K, plain_K = ALL["uniform/linear"], LAW.table[1] / LAW.table[1].sum(), LAW.table.sum(axis=0)
    tilt_K = normalised(conditional_K**2 / plain_K)

    def combined(t, s):
        p_SK = np.asarray(normalised(posterior(case, conditional_K, t) ** 2 / posterior(case, plain_K, t)))
        given_SK = normalised(p_SK / case.kernel.matrix(t).T)  # the leave-one-out law, which no state changes
        return np.stack([reverse(row_K, t, s)[state] for state, row_K in enumerate(given_SK)])

    def of_log_steps(t, s):
        return np.asarray(normalised(reverse(conditional_K, t, s) ** 2 / reverse(plain_K, t, s)))

    for steps in (4, 64):
        assert np.abs(chain(combined, steps) - tilt_K).sum() / 2 < 1e-6
        assert np.abs(chain(of_log_steps, steps) - tilt_K).sum() / 2 > 0.01


@pytest.mark.parametrize("name", GUIDED)
def test_the_network_is_guided_by_the_tilt_and_only_between_its_times(name):
    """The outputs of the sampler itself are those of the tilted law, for every meaning of an output."""
    case, conditional_K, plain_K = ALL[name], LAW.table[1] / LAW.table[1].sum(), LAW.table.sum(axis=0)
    settings = SampleSettings(guidance="cfg(weight=1.0, low=0.5, high=0.8)")
    inside_SK, outside_SK = (beliefs(case, settings, t) for t in (0.7, 0.3))
    np.testing.assert_allclose(outside_SK, posterior(case, conditional_K, 0.3), atol=2e-5)
    np.testing.assert_allclose(inside_SK, posterior(case, normalised(conditional_K**2 / plain_K), 0.7), atol=2e-5)
    np.testing.assert_array_equal(inside_SK, beliefs(case, SampleSettings(guidance=1.0), 0.7))


# --- the vectors of Gaussian noise ---------------------------------------------------------------------------------------------------


def second_is_two(p_BLV, t_BL):
    return 5.0 * p_BLV[:, 1, 1]


@pytest.mark.parametrize("name", ["plaid", "v"])
def test_gradients_move_vectors_towards_the_class(name):
    from tests.diffusion.gaussian.battery import TWO
    from tests.sampling.test_gaussian import ExactDenoiser

    process = MADE[name]
    bind = lambda params, segments, positions, attention: ExactDenoiser.of(TWO, process.with_params(params["process"]))  # noqa: E731
    share = {}
    for guide in ("", f"gradient(of={__name__}.second_is_two)"):
        sampler = Sampler(unlearned(process), bind, SampleSettings(steps=20, guide=guide))
        tokens_BL = sampler.sample({"process": process.params}, blank_canvas(2, 300), seed=1).tokens_BL
        share[guide] = (tokens_BL[:, 1] == 1).mean()
    plain, guided = share.values()
    assert guided > plain + 0.2


# --- what is refused, and what is recorded -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"guide": "classifier"}, "guide classifier requires of"),
        ({"guide": "classifier(of=a.b, order=second)"}, "choose first or exact"),
        ({"guide": "classifier(of=a.b, weight=-1)"}, "weight is -1"),
        ({"guide": "gradient(of=a.b, steps=0)"}, "steps is 0"),
        ({"guide": "langevin(of=a.b)"}, "unknown guide 'langevin'"),
        ({"guidance": "cfg(weight=1, low=0.6, high=0.4)"}, "low is 0.6 and high 0.4"),
        ({"guidance": "cfg(weight=0)"}, "has the weight 0"),
        ({"guidance": "cfg(weight=-1)"}, "guidance is -1"),
        ({"guidance": "cfg(scale=1)"}, "has no value 'scale'"),
        ({"guidance": "cfg(weight=1, high=0.4)", "rule": "random"}, "requires? steps in time"),
        ({"guidance": "cfg(weight=1, high=0.4)", "cache": True}, "depend on t"),
        ({"guide": "classifier(of=a.b)", "cache": True}, "depend on t"),
    ],
)
def test_bad_values_are_refused_in_one_line(settings, match):
    with pytest.raises(InputError, match=match) as caught:
        SampleSettings(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("process", "guide", "match"),
    [
        (Masked(4, 3), "classifier(of=nowhere.to_be_found)", "is not a function of an imported module"),
        (Masked(4, 3), f"gradient(of={__name__}.linear)", "give guide classifier"),
        (unlearned(MADE["v"]), f"classifier(of={__name__}.linear)", "give guide gradient"),
    ],
)
def test_guides_of_other_processes_are_refused(process, guide, match):
    with pytest.raises(InputError, match=match):
        Sampler(process, lambda *_, **__: None, SampleSettings(guide=guide))


def test_settings_with_a_guide_return_from_their_record_and_others_have_none():
    with_guide = SampleSettings(guide=f"classifier(of={__name__}.linear)", guidance="cfg(weight=2.0, low=0.1)")
    assert SampleSettings.from_json(with_guide.to_json()) == with_guide and "guide" not in SampleSettings().to_json()
    assert make_guidance(0.5) == Cfg(0.5) == make_guidance("cfg(weight=0.5)")
    assert dataclasses.asdict(make_guide(with_guide.guide))["weight"] == 1.0


def test_a_row_is_guided_by_itself():
    """Blank and given rows together draw what each draws alone; uniform noise, where every token may move."""
    process, case = Uniform(VOCAB, MASK, excluded=(BOS,)), ALL["uniform/linear"]
    settings = SampleSettings(steps=4, suppressed_ids=(BOS, MASK), guide=f"classifier(of={__name__}.linear, weight=3.0)")
    sampler = Sampler(process, Trained(case), settings)
    both = np.array([[0, 0], [1, 0]], np.int32)
    mask_BL = np.array([[False, False], [True, False]])
    canvas = Canvas(both, mask_BL, 1 - mask_BL.astype(np.float32))
    alone = Canvas(both[:1], mask_BL[:1], 1 - mask_BL[:1].astype(np.float32))
    np.testing.assert_array_equal(sampler.sample((), canvas).tokens_BL[:1], sampler.sample((), alone).tokens_BL)
