"""Psi: marginals for every noise and any kappa, what it equals, and its chain in few and many steps against the one written out."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion.capabilities import make_named
from dlmjax.diffusion.process import row_keys, split_rows
from dlmjax.diffusion.processes.masked import Masked
from dlmjax.diffusion.processes.parameterisation import LeaveOneOut
from dlmjax.diffusion.registry import PROCESSES
from dlmjax.diffusion.schedules import Cosine, Linear
from dlmjax.errors import InputError
from dlmjax.sampling.canvas import blank_canvas
from dlmjax.sampling.methods import make_method
from dlmjax.sampling.psi import Psi
from dlmjax.sampling.remask import Remask, sigma_of
from tests.diffusion.battery import chi_square_sigmas
from tests.sampling.revised import LAW, LENGTH, NOISES, distance
from tests.sampling.test_every_process import VARIANTS

ROWS, SPREAD = 6000, 40_000
FAST = ("masked", "uniform", "hybrid", "d3pm", "genmd4")


def with_psi() -> list:
    """Every kind of noise that declares the method; the rest of them are slow."""
    names = (name for name in sorted({*PROCESSES, *VARIANTS}) if not make_named(name).attention.sequential)
    kept = [name for name in names if "psi" in make_named(name).bound.capabilities.methods]
    return [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in kept]


def output_of(process, prior_V, z_BL, t_BL):
    """The output of an exact network for tokens drawn one by one from `prior_V`, in the meaning that the process gives it."""
    prior_BLV = jnp.broadcast_to(prior_V, (*z_BL.shape, process.vocab))
    if process.output.predicts == "scores":
        return LeaveOneOut(process).log_score(prior_BLV, z_BL, t_BL)
    known = hasattr(process, "log_likelihood") and getattr(process, "parameterisation", "posterior") == "posterior"
    return prior_BLV + process.log_likelihood(z_BL, t_BL) if known else prior_BLV


@pytest.mark.parametrize("name", with_psi())
def test_marginals_are_kept_for_every_noise_and_any_kappa(name):
    """Text of a known law with the noise of 0.75: after the step it is text with the noise of 0.5, as `corrupt` draws it."""
    process, share = make_named(name).bound, np.array([0.6, 0.3, 0.1])
    process = process.with_params(jax.tree.map(lambda parameter: parameter.start(jax.random.key(0)), process.parameters))
    ids_K = np.setdiff1d(np.arange(process.vocab), process.suppressed_ids)[:3]
    x_BL = jnp.asarray(np.random.default_rng(0).choice(ids_K, (1, SPREAD), p=share), jnp.int32)
    prior_V = jnp.full(process.vocab, -1e9).at[ids_K].set(jnp.log(jnp.asarray(share, jnp.float32)))
    t_BL, s_BL = jnp.full((1, SPREAD), 0.75), jnp.full((1, SPREAD), 0.5)

    @jax.jit
    def counts():
        noise_B, again_B, *step_NB = split_rows(row_keys(jax.random.key(1), jnp.arange(1)), 4)
        z_BL = process.corrupt(noise_B, x_BL, t_BL)
        drawn = [
            Psi(kappa=kappa).step(process, keys_B, lambda z_BL, t_BL: output_of(process, prior_V, z_BL, t_BL), z_BL, t_BL, s_BL)
            for kappa, keys_B in zip((0.0, 0.4), step_NB, strict=True)
        ]
        return [jnp.bincount(row_BL[0], length=process.vocab) for row_BL in (z_BL, process.corrupt(again_B, x_BL, s_BL), *drawn)]

    def differ(a_V, b_V):
        seen = np.asarray(a_V + b_V) > 20
        return (np.asarray((a_V - b_V) ** 2 / jnp.maximum(a_V + b_V, 1))[seen].sum() - seen.sum()) / np.sqrt(2 * seen.sum())

    before_V, expected_V, *after_NV = counts()
    assert all(differ(after_V, expected_V) < 4.5 for after_V in after_NV)
    assert differ(before_V, expected_V) > 20, "the test can tell the two levels"


@pytest.mark.parametrize("schedule", [Linear(), Cosine()], ids=["linear", "cosine"])
@pytest.mark.parametrize("psi", [Psi(kappa=0.3), Psi(rule="cap", eta=0.2), Psi(rule="rescale", eta=0.7)], ids=str)
def test_under_masks_it_is_remasking_with_the_same_rates(psi, schedule):
    """sigma = (1 - kappa)(1 - alpha_s); the rate of revealing too, from ReMDM's equation 6."""
    process, levels = Masked(4, 3, schedule), np.linspace(0.02, 0.98, 13)
    t, s = (jnp.asarray(a.ravel()[None], jnp.float32) for a in np.meshgrid(levels, levels))
    t, s = (a[:, (s < t)[0]] for a in (t, s))
    kappa, alpha_s, alpha_t = psi.kept(process, t, s), schedule.alpha(s), schedule.alpha(t)
    hide = (1 - kappa) * (1 - alpha_s)
    show = kappa * (alpha_s - alpha_t) / (1 - alpha_t) + (1 - kappa) * alpha_s
    if psi.rule != "constant":
        sigma, reveal = Remask(psi.rule, psi.eta).rates(process, t, s)
        can = np.asarray(sigma <= 1 - alpha_s)  # kappa = 0 hides with probability 1 - alpha_s, which ReMDM's bound exceeds
        np.testing.assert_allclose(hide, jnp.minimum(sigma, 1 - alpha_s), atol=2e-6)
        np.testing.assert_allclose(show[can], reveal[can], atol=2e-6)
        assert can.sum() > 10
    np.testing.assert_allclose(show, (alpha_s - alpha_t + hide * alpha_t) / (1 - alpha_t), atol=2e-6)
    assert (hide > 0).any() and ((kappa >= 0) & (kappa <= 1)).all()


def test_eta_is_a_share_of_the_bound_and_not_squared():
    """Duo's trainer_base.py takes `min(eta, bound) eta` for its max-rescale: where the bound is above eta, eta squared."""
    alpha_t, noise_s = jnp.full((1, 1), 0.5), jnp.full((1, 1), 0.3)
    assert float(sigma_of("rescale", 0.05, alpha_t, noise_s)[0, 0]) == pytest.approx(0.05 * 0.6, rel=1e-5)
    assert float(sigma_of("cap", 0.05**2, alpha_t, noise_s)[0, 0]) == pytest.approx(min(0.05, 0.6) * 0.05, rel=1e-5), (
        "its value, as ours is written"
    )


@pytest.mark.parametrize("name", sorted(NOISES))
def test_kappa_1_is_the_ancestral_step_bit_for_bit(name):
    texts = []
    for method in ("ancestral", "psi(kappa=1)", "psi(kappa=0, high=0.6, low=0.5)"):
        settings = {"steps": 3, "method": method, "grid": "listed(points=(1, 0.65, 0.3, 0))"}
        texts.append(NOISES[name].sampler(**settings).sample(1.0, blank_canvas(LENGTH, 200), seed=3).tokens_BL)
    assert (texts[1] == texts[0]).all()
    assert (texts[2] == texts[0]).all(), "no step begins within the window, so none is changed"


def chain(noise, kappa, levels):
    now_Z = noise.marginal_Z(1.0)
    for t, s in itertools.pairwise(levels):
        now_Z = now_Z @ noise.product_ZZ(kappa * noise.ancestral_ZnS(t, s) + (1 - kappa) * noise.renoised_ZnS(t, s))
    return now_Z


@pytest.mark.parametrize("name", sorted(NOISES))
def test_few_steps_have_the_law_of_its_chain_and_many_that_of_the_text(name):
    """By enumeration of all states; what few steps get wrong is drawn as the chain says, and the error falls with the steps."""
    noise, levels = NOISES[name], (1.0, 0.6, 0.25, 0.0)
    truth_Z = chain(noise, 0.5, levels)
    assert truth_Z.sum() == pytest.approx(1)
    sampler = noise.sampler(steps=3, method="psi(kappa=0.5)", grid=f"listed(points={levels})")
    counts_Z = noise.tally_Z(sampler.sample(1.0, blank_canvas(LENGTH, ROWS), seed=1).tokens_BL)
    assert chi_square_sigmas(counts_Z, truth_Z) < 4
    assert chi_square_sigmas(counts_Z, np.ones(len(truth_Z)) / len(truth_Z)) > 20
    for kappa in (0.5, 0.95):
        wrong = [distance(chain(noise, kappa, np.linspace(1, 0, n + 1) ** 2)[noise.full_N], LAW.probability_X) for n in (8, 32, 128)]
        assert all(b < (0.8 if kappa < 0.9 else 0.6) * a for a, b in itertools.pairwise(wrong)) and wrong[-1] < 0.03, (
            "slower with less kappa"
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("psi(kappa=1.5)", "kappa is 1.5"),
        ("psi(rule=loop)", "rule is 'loop'"),
        ("psi(eta=nan)", "eta"),
        ("psi(low=0.5, high=0.2)", "low"),
    ],
)
def test_values_out_of_range_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        make_method(text)
