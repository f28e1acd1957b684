"""Steps on embeddings, with the exact denoiser of a law of two tokens: the law that comes out, frozen text, calls, refusals."""

import functools
import itertools

import numpy as np
import pytest

from dlmjax.diffusion.oracle.enumeration import JointDistribution
from dlmjax.diffusion.oracle.gaussian import ExactDenoiser
from dlmjax.diffusion.processes.masked import Masked
from dlmjax.errors import InputError
from dlmjax.sampling.canvas import Canvas, blank_canvas
from dlmjax.sampling.sampler import Sampler
from dlmjax.sampling.settings import SampleSettings
from tests.diffusion.battery import chi_square_sigmas, index_of
from tests.diffusion.gaussian.battery import CASES, TOKENS, TWO
from tests.sampling import toy

ROWS = 3000
MADE = {
    "plaid": CASES["plaid"](dim=2),
    "v": CASES["cosine/v"](dim=2, gamma_0=-6.0),
    "flow": CASES["embedding_flow"](dim=2, gamma_0=-6.0),
}


@functools.cache
def draw(name, method, steps, seed=1, rows=ROWS):
    process = MADE[name]
    bind = lambda params, segments, positions, attention: ExactDenoiser.of(TWO, process.with_params(params["process"]))  # noqa: E731
    sampler = Sampler(unlearned(process), bind, SampleSettings(steps=steps, method=method))
    return sampler.sample({"process": process.params}, blank_canvas(2, rows), seed=seed)


def unlearned(process):
    """What a sampler is given: a process that knows no embeddings yet, since they come with the weights."""
    fields = {name: getattr(process, name) for name in process.__dataclass_fields__ if name not in ("mask_id", "params")}
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


# --- few steps, against the chain by quadrature --------------------------------------------------------------------------------------


def level_of(process, t):
    """(a, s) of z = a x + s noise."""
    a, s, _ = (float(value) for value in process.curve.at(np.float32(t)))
    return a, s


def posterior(law, z_ZL1, a, s, table_VE):
    """p(x_i = k | z), [Z, L, K], by logarithms: z may lie far from all embeddings."""
    log_q_ZLK = -((z_ZL1 - a * table_VE[:TOKENS, 0]) ** 2) / (2 * s**2)
    log_joint_ZX = np.log(law.probability_X) + sum(log_q_ZLK[:, i, law.sequences_Xn[:, i]] for i in range(law.length))
    p_ZX = np.exp(log_joint_ZX - log_joint_ZX.max(axis=1, keepdims=True))
    weight_ZLK = np.einsum("zx,xlk->zlk", p_ZX, np.eye(TOKENS)[law.sequences_Xn])
    return weight_ZLK / weight_ZLK.sum(axis=-1, keepdims=True)


def mended(process, law, z_ZL1, t, clamp_below, absent=None):
    """The exact estimate of the clean vectors, guided by weight 1 away from that of `absent`, moved to the nearest embedding of a token
    where it is clamped."""
    table_VE = np.asarray(process.table, np.float64)
    x0_ZL1 = posterior(law, z_ZL1, *level_of(process, t), table_VE) @ table_VE[:TOKENS]
    if absent is not None:
        x0_ZL1 = 2 * x0_ZL1 - mended(process, absent, z_ZL1, t, 0.0)
    if t >= clamp_below:
        return x0_ZL1
    return table_VE[:TOKENS][np.abs(x0_ZL1 - table_VE[:TOKENS, 0]).argmin(axis=-1)]


def moved(process, law, z_ZL1, t, s, method, clamp_below, absent):
    """(mean, standard deviation) of z at s."""
    (a, b), (to_a, to_b) = level_of(process, t), level_of(process, s)
    x0_ZL1 = mended(process, law, z_ZL1, t, clamp_below, absent)
    if method == "heun":

        def slope(x0_ZL1, z_ZL1, a, b):
            return (z_ZL1 - a * x0_ZL1) / b - x0_ZL1

        far = to_b / (to_a + to_b) - b / (a + b)
        straight_ZL1, first_ZL1 = z_ZL1 / (a + b), slope(x0_ZL1, z_ZL1, a, b)
        next_ZL1 = (straight_ZL1 + far * first_ZL1) * (to_a + to_b)
        second_ZL1 = slope(mended(process, law, next_ZL1, s, clamp_below, absent), next_ZL1, to_a, to_b)
        return (straight_ZL1 + far * (first_ZL1 + second_ZL1) / 2) * (to_a + to_b), 0.0
    small = to_b**2 * (1 - (a * to_b) ** 2 / (to_a * b) ** 2)
    eta = {"ddpm": 1.0, "ddim": 0.0, "ddim(eta=0.5)": 0.5}[method]
    eps_ZL1 = (z_ZL1 - a * x0_ZL1) / b
    return to_a * x0_ZL1 + np.sqrt(to_b**2 - eta**2 * small) * eps_ZL1, eta * np.sqrt(small)


def chain_law(process, law, method, levels, clamp_below=0.0, absent=None):
    """The law of the text: lattices of z, normal steps between them, Hermite nodes for the last, then p(x | z_0) by the embeddings alone,
    as processes round whose network predicts a vector."""
    length, axis_N = law.length, np.linspace(-6, 6, 161)
    z_ZL1 = np.stack(np.meshgrid(*[axis_N] * length, indexing="ij"), axis=-1).reshape(-1, length, 1)
    mass_Z = np.exp(-(z_ZL1**2).sum(axis=(1, 2)) / 2)
    for t, s in itertools.pairwise(levels):
        mean_ZL1, spread = moved(process, law, z_ZL1, t, s, method, clamp_below, absent)
        if spread == 0:
            z_ZL1 = mean_ZL1
        elif s > 0:
            step_LZN = np.exp(-(((axis_N - mean_ZL1) / spread) ** 2) / 2).transpose(1, 0, 2)
            step_LZN /= step_LZN.sum(axis=-1, keepdims=True)
            mass_Z = np.einsum("z,za,zb->ab", mass_Z, *step_LZN, optimize=True).ravel() if length == 2 else mass_Z @ step_LZN[0]
        else:
            node_N, weight_N = np.polynomial.hermite_e.hermegauss(5)
            shifts = np.stack(np.meshgrid(*[node_N] * length, indexing="ij"), axis=-1).reshape(-1, 1, length, 1)
            weight_M = np.prod(np.meshgrid(*[weight_N] * length, indexing="ij"), axis=0).ravel()
            z_ZL1 = (mean_ZL1 + spread * shifts).reshape(-1, length, 1)
            mass_Z = (weight_M[:, None] * mass_Z).ravel()
    flat = JointDistribution(np.full((TOKENS,) * length, TOKENS**-length))
    p_ZLK = posterior(flat, z_ZL1, *level_of(process, 0.0), np.asarray(process.table, np.float64))
    joint = "z,za,zb->ab" if length == 2 else "z,za->a"
    law_X = np.einsum(joint, mass_Z, *p_ZLK.transpose(1, 0, 2), optimize=True).ravel()
    return law_X / law_X.sum()


FEW = (1.0, 0.65, 0.3, 0.0)
THIN = CASES["cosine/v"](dim=1, gamma_0=-6.0)
CHAINS = [("ddpm", 0.0), ("ddim", 0.0), ("ddim(eta=0.5)", 0.0), ("heun", 0.0), ("ddpm", 0.8), ("heun", 0.8)]


@functools.cache
def truth(method, clamp_below):
    return chain_law(THIN, TWO, method, FEW, clamp_below)


@pytest.mark.parametrize(("method", "clamp_below"), CHAINS)
def test_three_steps_have_the_law_of_their_chain(method, clamp_below):
    """Coarse steps, in which every method and every clamp is wrong in its own way: the draws are wrong in just that way."""
    values = [] if method == "ddpm" or "(" not in method else [method[method.index("(") + 1 : -1]]
    values += [f"clamp_below={clamp_below}"] if clamp_below else []
    text = method.split("(")[0] + (f"({', '.join(values)})" if values else "")
    settings = SampleSettings(steps=3, method=text, grid=f"listed(points={FEW})")
    sampler = Sampler(THIN, lambda *_, **__: ExactDenoiser.of(TWO, THIN), settings)
    tally = counts(sampler.sample((), blank_canvas(2, 3 * ROWS), seed=3))
    assert chi_square_sigmas(tally, truth(method, clamp_below)) < 4
    assert chi_square_sigmas(tally, TWO.probability_X) > 4
    if clamp_below:
        assert chi_square_sigmas(tally, truth(method, 0.0)) > 4, "the clamp makes a difference that is seen"


def test_guidance_extrapolates_estimates():
    """One hole, estimates 2 x0(given) - x0(not given): the law of that chain."""
    tokens, frozen = np.tile([1, 0], (2 * ROWS, 1)).astype(np.int32), np.tile([True, False], (2 * ROWS, 1))
    settings = SampleSettings(steps=3, method="ddim", grid=f"listed(points={FEW})", guidance=1.0)
    sampler = Sampler(THIN, lambda *_, **__: ExactDenoiser.of(TWO, THIN), settings)
    made_BL = sampler.sample((), Canvas(tokens, frozen, (~frozen).astype(np.float32)), seed=7).tokens_BL
    given, absent = JointDistribution(TWO.table[1] / TWO.table[1].sum()), JointDistribution(TWO.table.sum(axis=0))
    tally_K = np.bincount(made_BL[:, 1], minlength=TOKENS)
    assert chi_square_sigmas(tally_K, chain_law(THIN, given, "ddim", FEW, absent=absent)) < 4
    assert chi_square_sigmas(tally_K, chain_law(THIN, given, "ddim", FEW)) > 4


@pytest.mark.parametrize("method", ["ddpm", "heun", "ddim(clamp_below=0.5)"])
def test_frozen_text_is_untouched_and_conditioned_on(method):
    """It stands there as its embedding at level 0, and the network is told so."""
    steps = 60
    tokens, frozen = np.tile([1, 0], (ROWS, 1)).astype(np.int32), np.tile([True, False], (ROWS, 1))
    sampler = Sampler(THIN, lambda *_, **__: ExactDenoiser.of(TWO, THIN), SampleSettings(steps=steps, method=method))
    states = list(sampler.states((), Canvas(tokens, frozen, (~frozen).astype(np.float32)), seed=5))
    assert all((s.tokens_BL[:, 0] == 1).all() and s.tokens_BL.max() < TOKENS for s in states)
    given = JointDistribution(TWO.table[1] / TWO.table[1].sum())
    # Clamping decides early and so has a law of its own; the others draw the text's.
    levels = np.linspace(1, 0, steps + 1).tolist()
    p_K = chain_law(THIN, given, "ddim", levels, 0.5) if "clamp" in method else given.probability_X
    tally_K = np.bincount(states[-1].tokens_BL[:, 1], minlength=TOKENS)
    assert chi_square_sigmas(tally_K, p_K) < 4
    assert ("clamp" in method) == (chi_square_sigmas(tally_K, given.probability_X) > 4)
    assert states[-1].time == 0 and states[-1].step == steps + 1


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
        (Masked(4, 3), {"method": "ddpm"}, "ddpm requires Gaussian noise"),
        (MADE["v"], {"method": "remask"}, "requires absorbing noise"),
        (MADE["v"], {"method": "tau_leap"}, "reverse jumps have rates"),
        (MADE["v"], {"method": "rdm"}, "rdm requires noise on tokens"),
        (MADE["v"], {"method": "ddim(eta=2)"}, "eta is 2"),
        (MADE["v"], {"method": "heun(clamp_below=-1)"}, "clamp_below is -1"),
        (MADE["v"], {"temperature": 0.5}, "require a network that predicts logits"),
        (MADE["v"], {"cache": True}, "leave cache off"),
        (MADE["v"], {"rule": "confidence"}, "has no mask"),
    ],
)
def test_what_does_not_go_together_is_refused(process, settings, message):
    with pytest.raises(InputError, match=message):
        Sampler(process, toy.Law().bind, SampleSettings(**settings))
