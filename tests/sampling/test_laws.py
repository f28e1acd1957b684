"""One battery over every process that samples tokens: what a step, a reveal order and guidance draw, against enumeration.

Each run has two kinds of rows: half of them are blank, half have their first token given. Under guidance of weight 1 the blank rows must
have the law of plain sampling (given and not given are the same text), and the one hole of the others that of
p(x | first)^2 / p(x). The network answers as a trained one might: right on tokens, anything on entries that training never touches.

Shapes: Z noisy texts, n positions, K tokens, S states of a position.
"""

import dataclasses
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import schedules
from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.processes.d3pm import make_d3pm
from dlmjax.diffusion.processes.frequency import FrequencyMasked
from dlmjax.diffusion.processes.hybrid import Mixed
from dlmjax.diffusion.processes.score import ScoreEntropy
from dlmjax.diffusion.processes.state_dependent import GenMd4
from dlmjax.errors import InputError
from dlmjax.sampling.canvas import Canvas, blank_canvas
from dlmjax.sampling.sampler import Sampler
from dlmjax.sampling.settings import SampleSettings
from tests.diffusion.battery import BOS, LINEAR, MASK, TOKENS, VOCAB, Case, chi_square_sigmas, index_of, prior_distribution
from tests.diffusion.cases import CASES
from tests.diffusion.cases_jump import IDS, jump_case

LAW = oracle.JointDistribution.random(TOKENS, 2, seed=5, sharpness=1.5)
P_KK = LAW.table
FIRST = 1
LEVELS = (1.0, 0.7, 0.3, 0.0)
ROWS = 4000  # of each kind
SUPPRESSED = (BOS, MASK)
UNEQUAL = GenMd4(VOCAB, MASK, (BOS,)).with_params({"log_w": jnp.log(jnp.asarray([0.3, 1.0, 3.0, 1.0, 1.0]))})


def own_case(name, process, kernel, output="posterior") -> Case:
    """A case whose likelihood is the process's own."""
    return Case(name, process, kernel, lambda z, t: process.log_likelihood(z, t)[..., :TOKENS], output=output)


MORE = [
    own_case("genmd4, unequal", UNEQUAL, None),
    own_case("frequency_masked", FrequencyMasked(VOCAB, MASK, (BOS,), counts_V=(50, 3, 1, 0, 0)), None),
    own_case("d3pm/uniform", make_d3pm(VOCAB, MASK, steps=10, excluded=(BOS,)), oracle.uniform_kernel(TOKENS, *LINEAR), "leave_one_out"),
    own_case(
        "d3pm/uniform, posterior",
        make_d3pm(VOCAB, MASK, steps=10, excluded=(BOS,), parameterisation="posterior"),
        oracle.uniform_kernel(TOKENS, *LINEAR),
    ),
    own_case("d3pm/gaussian", make_d3pm(VOCAB, MASK, "gaussian", 10, excluded=(BOS,)), None, "leave_one_out"),
    dataclasses.replace(
        next(case for case in CASES if str(case) == "masked/linear"),
        name="d3pm/absorbing",
        process=make_d3pm(VOCAB, MASK, "absorbing", steps=10, excluded=(BOS,)),
    ),
]
ALL = {str(case): case for case in [*CASES, *MORE] if str(case) not in ("autoregressive", "masked_count")}
# What a test takes by default: one of each kind of noise and of each meaning of the output. The others run every night.
FAST = {
    *("uniform/linear", "uniform/clipped, posterior", "hybrid/0.2", "mixed/sigmoid", "score/mask, geometric", "score"),
    *("score/uniform, linear", "flow_matching/uniform", "genmd4, unequal", "d3pm/uniform"),
}


def named(names):
    return [pytest.param(name, marks=[] if name in FAST else [pytest.mark.nightly], id=name) for name in names]


class Trained:
    """The exact denoiser of a case, with junk in the outputs of what text never holds."""

    def __init__(self, case):
        self.exact = case.denoiser(LAW)

    def __call__(self, params, segments_BL, positions_BL, attention):
        return self

    def hidden(self, z_BL, t_BL):
        return jnp.where(jnp.arange(VOCAB) < TOKENS, self.exact.hidden(z_BL, t_BL), 13.0)

    def logits(self, hidden_BLV):
        return hidden_BLV


def both_kinds(rows=ROWS):
    tokens_BL = np.full((2 * rows, 2), MASK, np.int32)
    tokens_BL[rows:, 0] = FIRST
    condition_mask_BL = tokens_BL != MASK
    return Canvas(tokens_BL, condition_mask_BL, 1 - condition_mask_BL.astype(np.float32))


def draw(case, **settings):
    """(counts of blank rows' texts [K^2], counts of the other rows' second token [K])."""
    sampler = Sampler(case.process, Trained(case), SampleSettings(suppressed_ids=SUPPRESSED, guidance=1.0, **settings))
    tokens_BL = sampler.sample((), both_kinds(), seed=3).tokens_BL
    assert tokens_BL.max() < TOKENS and (tokens_BL[ROWS:, 0] == FIRST).all(), "a special id was drawn, or a given token has moved"
    texts_N = np.bincount(index_of(tokens_BL[:ROWS], TOKENS), minlength=TOKENS**2)
    return texts_N, np.bincount(tokens_BL[ROWS:, 1], minlength=TOKENS)


# --- the truth ---------------------------------------------------------------------------------------------------------------------


def guided_laws(case):
    """[(probability, guided law of the second token)] for every noise that can stand in place of the first."""
    given_K = P_KK[FIRST] / P_KK[FIRST].sum()
    q_KS = None if case.kernel is None else case.kernel.matrix(1.0)
    if q_KS is None or np.ptp(q_KS, axis=0).max() == 0:  # no state tells which token it was
        seen = [(1.0, P_KK.sum(axis=0))]
    else:
        start_S = prior_distribution(case, oracle.JointDistribution(P_KK.sum(axis=1)))
        seen = [(p, q_KS[:, state] @ P_KK) for state, p in enumerate(start_S) if p]
    laws = []
    for p, absent_K in seen:
        weight_K = given_K**2 / (absent_K / absent_K.sum())
        laws.append((p, weight_K / weight_K.sum()))
    return laws


def chain(case, law, levels):
    """The law of clean text after the steps, p(x | z_0) included, with the exact denoiser of `law`."""
    kernel, start_Z = case.kernel, prior_distribution(case, law)
    if case.name == "score/uniform, linear":
        # Scores at t = 1 are all 1: they tell nothing, and the first step leaves even noise as it is.
        assert kernel.alpha(1.0) == 0
        levels = levels[1:]
    now_Z = case.reverse(law, kernel, list(levels), start_Z)
    z_Zn = oracle.enumerate_sequences(case.states, law.length)
    guess_ZnK = oracle.posterior(law, kernel, 0.0)
    decoded_ZX = np.stack([guess_ZnK[:, i][:, law.sequences_Xn[:, i]] for i in range(law.length)]).prod(axis=0)
    if not case.process.boundary.any:
        text_Z = (z_Zn < TOKENS).all(axis=1)
        assert now_Z[~text_Z].sum() < 1e-9
        return now_Z[text_Z] / now_Z[text_Z].sum()
    return now_Z @ decoded_ZX


def after_chain(case, laws):
    return sum(p * chain(case, oracle.JointDistribution(law_K), LEVELS) for p, law_K in laws)


# --- steps in time -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", named(ALL))
def test_ancestral_steps_and_guidance(name):
    """Three uneven steps: errors of parallel draws and all."""
    case = ALL[name]
    texts_N, second_K = draw(case, steps=3, grid=f"listed(points={LEVELS})")
    if case.kernel is None:
        # What is not one kernel for all tokens: the chain of a single token is exact at any number of steps.
        assert chi_square_sigmas(second_K, guided_laws(case)[0][1]) < 4
        return
    assert chi_square_sigmas(texts_N, chain(case, LAW, LEVELS)) < 4
    assert chi_square_sigmas(second_K, after_chain(case, guided_laws(case))) < 4
    plain_K = P_KK[FIRST] / P_KK[FIRST].sum()
    assert chi_square_sigmas(second_K, plain_K) > 4, "the test can tell guidance from none"


@pytest.mark.parametrize("method", ["predetermined", "first_hitting"])
def test_times_drawn_before_are_levels_of_discrete_time(method):
    """Ten levels, of which the steps take three: a token's time is one of the ten, and none is lost between two of them, or at t = 0."""
    case = ALL["d3pm/absorbing"]
    texts_N, _ = draw(case, steps=3, grid=f"listed(points={LEVELS})", method=method)
    assert chi_square_sigmas(texts_N, chain(case, LAW, LEVELS) if method == "predetermined" else LAW.probability_X) < 4


# --- reveal orders -----------------------------------------------------------------------------------------------------------------

REFUSED = {"mixed/constant": "leaves wrong tokens there"}
MASKS = [name for name, case in ALL.items() if case.process.name not in ("uniform", "d3pm") and "/uniform" not in name] + ["d3pm/absorbing"]


@pytest.mark.parametrize("name", named(name for name in MASKS if name not in REFUSED))
def test_one_token_a_step_in_random_order_is_the_joint_law(name):
    case = ALL[name]
    texts_N, second_K = draw(case, rule="random", steps=2)
    assert chi_square_sigmas(texts_N, LAW.probability_X) < 4
    given_K = P_KK[FIRST] / P_KK[FIRST].sum()
    guided_K = sum(p * law_K for p, law_K in guided_laws(case))
    assert chi_square_sigmas(second_K, guided_K) < 4
    assert chi_square_sigmas(second_K, given_K) > 4


def confidence_law(law=LAW):
    """The surer of two independent draws is shown first (ties to the left), then the other is drawn given it."""
    p_KK, first_K, second_K = law.table, law.table.sum(axis=1), law.table.sum(axis=0)
    shown_KK = np.zeros_like(p_KK)
    for a, b in itertools.product(range(TOKENS), range(TOKENS)):
        mass = first_K[a] * second_K[b]
        if first_K[a] >= second_K[b]:
            shown_KK[a] += mass * p_KK[a] / first_K[a]
        else:
            shown_KK[:, b] += mass * p_KK[:, b] / second_K[b]
    return shown_KK.ravel()


@pytest.mark.parametrize(
    "order", [*(pytest.param(order, marks=pytest.mark.nightly) for order in ("left_to_right", "margin", "entropy")), "confidence(on=drawn)"]
)
@pytest.mark.parametrize("name", named(["hybrid/0.2", "score/mask, linear"]))
def test_every_order_under_noise_that_tells_no_plain_law(name, order):
    texts_N, _ = draw(ALL[name], rule=order, steps=2)
    assert chi_square_sigmas(texts_N, confidence_law() if "drawn" in order else LAW.probability_X) < 4


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_an_order_whose_law_would_be_wrong_is_refused_by_name(name):
    with pytest.raises(InputError, match=f"rule random .* process {ALL[name].process.name} {REFUSED[name]}"):
        draw(ALL[name], rule="random", steps=2)


@pytest.mark.parametrize("name", named(["masked/linear", "hybrid/0.2", "genmd4, unequal", "score/mask, linear"]))
def test_editing_in_a_reveal_order(name):
    """Text of the law is sent to level 0.6 and revealed: the law again. Where noise shows wrong tokens nobody knows which to keep."""
    case, level = ALL[name], np.float32(0.6)
    tokens_BL = LAW.sequences_Xn[np.random.default_rng(2).choice(TOKENS**2, size=ROWS, p=LAW.probability_X)].astype(np.int32)
    canvas = Canvas(tokens_BL, np.zeros(tokens_BL.shape, bool), np.full(tokens_BL.shape, level))
    sampler = Sampler(case.process, Trained(case), SampleSettings(suppressed_ids=SUPPRESSED, rule="random", steps=2))
    if name == "hybrid/0.2":
        with pytest.raises(InputError, match="rule random .* process hybrid leaves wrong tokens in edited text"):
            sampler.sample((), canvas)
        return
    made_BL = sampler.sample((), canvas, seed=4).tokens_BL
    assert chi_square_sigmas(np.bincount(index_of(made_BL, TOKENS), minlength=TOKENS**2), LAW.probability_X) < 4
    assert 0.1 < (made_BL != tokens_BL).mean() < 0.5


# --- ids that are suppressed -------------------------------------------------------------------------------------------------------

SHOWN_BY_NOISE = {
    "score": ScoreEntropy(VOCAB, MASK, excluded=(BOS,), noise="uniform"),
    "mixed": Mixed(**IDS, schedule=schedules.symmetric(schedules.Linear(), 0.2)),
    **{name: ALL[name].process for name in ("uniform/linear", "hybrid/0.2", "masked/clipped", "flow_matching/uniform", "d3pm/uniform")},
}


SUPPRESSING = list(itertools.product(SHOWN_BY_NOISE, ("ancestral", "analytic", "rdm")))
SUPPRESSED_FAST = {("score", "ancestral"), ("masked/clipped", "ancestral"), ("masked/clipped", "rdm")}


@pytest.mark.parametrize(
    ("name", "method"), [pytest.param(*pair, marks=[] if pair in SUPPRESSED_FAST else [pytest.mark.nightly]) for pair in SUPPRESSING]
)
def test_what_must_not_be_made_is_not_made(name, method):
    """Token 0 is one that noise shows, and the prior of a clipped schedule: it is in no finished text, and the rest has the law without."""
    process = SHOWN_BY_NOISE[name]
    if name == "score":
        case = next(case for case in CASES if str(case) == "score/uniform, linear")
    else:
        case = ALL.get(name) or jump_case("mixed", process, None)
    settings = SampleSettings(suppressed_ids=(0, *SUPPRESSED), steps=8, method=method)
    try:
        sampler = Sampler(process, Trained(case), settings)
    except InputError:
        assert method != "ancestral"
        return
    tokens_BL = sampler.sample((), blank_canvas(2, 2000), seed=5).tokens_BL
    assert tokens_BL.min() > 0 and tokens_BL.max() < TOKENS


# --- routing and self-correction ---------------------------------------------------------------------------------------------------


def chosen(scores, count, absorbing_shown):
    """[(probability, positions that become text)]: the best `count` by `scores`, or any of them where these are None; text that is shown
    and stays comes first."""
    others = [i for i in range(2) if not absorbing_shown[i]]
    kept, free = [i for i in range(2) if absorbing_shown[i]], max(count - sum(absorbing_shown), 0)
    if scores is not None:
        return [(1.0, kept + sorted(others, key=lambda i: -scores[i])[:free])]
    subsets = list(itertools.combinations(others, free))
    return [(1 / len(subsets), kept + list(subset)) for subset in subsets]


def routed(case, route, levels=(1.0, 0.5, 0.0)):
    """Route and denoise by enumeration: guesses drawn for all positions, n alpha(s) of them text, the rest noise."""
    z_Zn, absorbing = oracle.enumerate_sequences(case.states, 2), case.process.absorbing_id is not None
    noise_S = np.eye(case.states)[TOKENS] if absorbing else np.full(case.states, 1 / case.states)
    now_Z = prior_distribution(case, LAW)
    for t, s in itertools.pairwise(levels):
        posterior_ZnK, matrix_ZZ = oracle.posterior(LAW, case.kernel, t), np.zeros((len(z_Zn), len(z_Zn)))
        text = 2 - int(2 * (1 - case.kernel.alpha(s)) + 1e-4)
        for z, (z_n, p_nK) in enumerate(zip(z_Zn, posterior_ZnK, strict=True)):
            shown = [absorbing and state < TOKENS for state in z_n]
            p_nK = np.stack([np.eye(TOKENS)[state] if kept else p_K for state, kept, p_K in zip(z_n, shown, p_nK, strict=True)])
            for guess in itertools.product(range(TOKENS), repeat=2):
                p_n = p_nK[range(2), list(guess)]
                for share, text_at in chosen(p_n if route == "topk" else None, text, shown):
                    to_nS = [np.eye(case.states)[guess[i]] if i in text_at else noise_S for i in range(2)]
                    matrix_ZZ[z] += p_n.prod() * share * np.outer(*to_nS).ravel()
        now_Z = now_Z @ matrix_ZZ
    text_Z = (z_Zn < TOKENS).all(axis=1)
    assert now_Z[text_Z].sum() == pytest.approx(1)
    return now_Z[text_Z]


ROUTED = [
    *(("masked/linear", "topk", True), ("score/mask, linear", "random", True), ("d3pm/uniform", "topk", True)),
    *(("d3pm/uniform", "random", False), ("uniform/linear", "topk", False), ("uniform/linear", "random", False)),
    *(("masked/linear", "random", False), ("flow_matching/uniform", "topk", False), ("score/mask, linear", "topk", False)),
]


@pytest.mark.parametrize(("name", "route"), [pytest.param(*pair, marks=[] if fast else [pytest.mark.nightly]) for *pair, fast in ROUTED])
def test_routing_has_the_law_of_its_chain(name, route):
    texts_N, _ = draw(ALL[name], method=f"rdm(route={route})", steps=2, grid="uniform")
    assert chi_square_sigmas(texts_N, routed(ALL[name], route)) < 4


def corrected(case, now_X, level, temperature, rounds):
    """Self-correction by enumeration: a draw for every position from p(x_i | z_{-i}) at a temperature; the one that gains most is taken."""
    x_Xn = LAW.sequences_Xn
    loo_ZnK = oracle.leave_one_out(LAW, case.kernel, level)
    loo_XnK = loo_ZnK[(oracle.enumerate_sequences(case.states, 2) < TOKENS).all(axis=1)]
    matrix_XX = np.zeros((len(x_Xn), len(x_Xn)))
    for x, (x_n, p_nK) in enumerate(zip(x_Xn, loo_XnK, strict=True)):
        drawn_nK = p_nK ** (1 / temperature)
        drawn_nK /= drawn_nK.sum(axis=1, keepdims=True)
        for guess in itertools.product(range(TOKENS), repeat=2):
            gain_n, after_n = [np.log(p_nK[i, guess[i]] / p_nK[i, x_n[i]]) for i in range(2)], list(x_n)
            best = int(np.argmax(gain_n))
            if gain_n[best] > 0:
                after_n[best] = guess[best]
            matrix_XX[x, after_n[0] * TOKENS + after_n[1]] += drawn_nK[0, guess[0]] * drawn_nK[1, guess[1]]
    return now_X @ np.linalg.matrix_power(matrix_XX, rounds)


@pytest.mark.parametrize("name", ["hybrid/0.2", "d3pm/uniform"])
def test_self_correction_has_the_law_of_its_chain(name):
    case, method = ALL[name], "self_correct(rounds=2, level=0.3, temperature=0.7)"
    texts_N, _ = draw(case, method=method, steps=3, grid=f"listed(points={LEVELS})")
    before_X = chain(case, LAW, LEVELS)
    assert chi_square_sigmas(texts_N, corrected(case, before_X, 0.3, 0.7, 2)) < 4
    assert chi_square_sigmas(texts_N, before_X) > 4
