"""Hybrid noise: its corners are masked and uniform diffusion, its weights are the paper's, any mixing keeps the bound."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import ClippedJumps, Dynamic, Hybrid, Masked, Mixed, Objective, Uniform, make_process, row_keys
from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.processes.hybrid import Constant, Mixing, Sigmoid
from dlmjax.errors import InputError
from tests.diffusion.battery import BOS, LINEAR, MASK, TOKENS, VOCAB, batch_of, chi_square_sigmas, sample_joint
from tests.diffusion.cases_jump import CASES, IDS

BY_NAME = {str(case): case for case in CASES}
LAW = oracle.JointDistribution.random(TOKENS, 2, seed=1)


def _points(states, seed=0, rows=200):
    rng = np.random.default_rng(seed)
    x, z, t = rng.integers(0, TOKENS, rows), rng.choice(states, rows), rng.uniform(0.01, 0.99, rows)
    return jnp.asarray(rng.normal(size=(rows, VOCAB)) * 3), jnp.asarray(x), jnp.asarray(z), jnp.asarray(t)


@pytest.mark.parametrize("process", [Hybrid(p_uniform=0.0, **IDS), Mixed(mixing="constant", values=(0.0,), **IDS)], ids=lambda p: p.name)
def test_without_even_draws_it_is_masked_diffusion(process):
    """The same loss, gradient, rows and noise rate, to the last digits; and nothing but masks is drawn."""
    masked = Masked(VOCAB, MASK, excluded=(BOS,))
    with jax.enable_x64(True):
        logits, x, z, t = _points([0, 1, 2, MASK])
        z = jnp.where(z == MASK, MASK, x)
        ours, theirs = (jax.value_and_grad(lambda logits, p=p: p.loss(logits, x, z, t).sum())(logits) for p in (process, masked))
        np.testing.assert_allclose(process.loss(logits, x, z, t), masked.loss(logits, x, z, t), rtol=1e-12)
        np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-12)
    x_BL, t_BL = jnp.ones((300, 9), jnp.int32), jnp.full((300, 9), 0.4)
    z_BL = process.corrupt(row_keys(jax.random.key(0), jnp.arange(300)), x_BL, t_BL)
    assert set(np.unique(z_BL)) == {1, MASK} and abs(float(jnp.mean(z_BL == MASK)) - 0.4) < 4 * np.sqrt(0.24 / 2700)
    np.testing.assert_array_equal(process.loss_mask(z_BL, t_BL), masked.loss_mask(z_BL, t_BL))


def test_a_little_uniform_noise_is_nearly_masked_and_much_is_nearly_uniform():
    """p_uniform -> 0: the loss of masked tokens goes to the masked one. p_uniform -> 1: masks become rare, and the loss of tokens is that
    of uniform noise with the same alpha."""
    with jax.enable_x64(True):
        logits, x, z, t = _points([MASK])
        gaps = []
        for p_uniform in (1e-4, 1e-7, 1e-10):
            nats = Hybrid(p_uniform=p_uniform, **IDS).loss(logits, x, z, t)
            gaps.append(float(jnp.abs(nats / Masked(VOCAB, MASK).loss(logits.at[:, BOS].set(-1e9), x, z, t) - 1).max()))
        assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 1e-4

        logits, x, z, t = _points([0, 1, 2], seed=1)
        gaps = []
        for p_uniform in (0.99, 0.9999, 0.999999):
            hybrid = Hybrid(p_uniform=p_uniform, **IDS)
            shares = hybrid.shares(t)

            # Uniform noise at the time when its alpha is the hybrid's, per unit of the hybrid's jumps.
            uniform = Uniform(**IDS)
            at = 1 - shares.alpha
            theirs = uniform.loss(logits, x, z, at) / uniform.jumps(at)[0] * hybrid.jumps(t)[0]
            gaps.append(float(jnp.abs(hybrid.loss(logits, x, z, t) - theirs).max() / jnp.abs(theirs).max()))
            assert float((shares.mask / shares.uniform).max()) < 20 * (1 - p_uniform)
        assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 1e-4


def test_the_weights_are_the_papers():
    """w(m) = 1/(t (1 - t)), w(u) = (c + (1 - t) c')/((1 - t) c), w(x) = (c + (1 - t) c')/N / ((1 - t)(1 - t + c/N))."""
    with jax.enable_x64(True):
        t = jnp.linspace(0.01, 0.99, 41)
        for p_uniform, gamma in ((0.2, 1.0), (0.7, 0.5), (0.1, 2.0)):
            process = Hybrid(p_uniform=p_uniform, gamma=gamma, **IDS)
            c = 2**gamma * p_uniform / (1 - p_uniform) * (t * (1 - t)) ** (gamma / 2)
            slope = gamma / 2 * (1 - 2 * t) / (t * (1 - t)) * c
            for z, truth in (
                (MASK, 1 / (t * (1 - t))),
                (1, (c + (1 - t) * slope) / ((1 - t) * c)),
                (0, (c + (1 - t) * slope) / 3 / ((1 - t) * (1 - t + c / 3))),
            ):
                weight = process.jump_weight(jnp.zeros(41, int), jnp.full(41, z), t)
                np.testing.assert_allclose(weight, truth, rtol=1e-9)
            # The uniform share is p_uniform in the middle.
            assert float(process.shares(jnp.asarray(0.5)).uniform) == pytest.approx(p_uniform)


def test_training_weights_are_no_bound_and_leave_the_bound_alone():
    case = BY_NAME["hybrid/0.2"]
    process, batch = case.process, batch_of(sample_joint(LAW, 64, seed=0))
    x, z, t = jnp.asarray([0, 0, 0]), jnp.asarray([MASK, 1, 0]), jnp.full(3, 0.3)
    weight = process.jump_weight(x, z, t)
    np.testing.assert_allclose(weight * ClippedJumps(2.0).factor(process, x, z, t), np.minimum(weight, 2.0), rtol=1e-6)
    alpha, uniform, _ = process.shares(t[0])
    dynamic = weight * Dynamic(0.5).factor(process, x, z, t)
    np.testing.assert_allclose(dynamic, [1.0, 0.5, 0.5 * uniform / 3 / (alpha + uniform / 3)], rtol=1e-5)
    reports = []
    for weighting in (None, ClippedJumps(1.0), Dynamic()):
        objective = Objective(process, weighting=weighting)
        total, parts = objective(case.denoiser(LAW), batch, jax.random.key(0), 64)
        reports.append((float(total), objective.report(parts)))
    assert reports[0][1]["nelbo"] == reports[1][1]["nelbo"] == reports[2][1]["nelbo"]
    assert "loss_clipped_jumps_not_a_bound" in reports[1][1] and "loss_dynamic_not_a_bound" in reports[2][1]
    assert len({total for total, _ in reports}) == 3
    # At the ends too.
    ends = jnp.asarray([0.0, 1e-30, 1.0])
    for weighting in (ClippedJumps(), Dynamic()):
        assert np.isfinite(np.asarray(weighting.factor(process, jnp.zeros(3, int), jnp.asarray([0, 1, MASK]), ends))).all()
    with pytest.raises(InputError, match="dynamic conflicts with process masked"):
        Objective(Masked(VOCAB, MASK), weighting=Dynamic())
    with pytest.raises(InputError, match="cap is 0.0"):
        ClippedJumps(0.0)


@dataclasses.dataclass(frozen=True)
class _Line(Mixing):
    """u = (1 + alpha)/4: a mixing of one's own. u' = alpha (1 - alpha)/4."""

    def shares(self, log_snr):
        u = (1 + jax.nn.sigmoid(log_snr)) / 4
        return u, 1 - u

    def jumps(self, log_snr):
        jump = (1 + jax.nn.sigmoid(log_snr) ** 2) / 4
        return jump, 1 - jump


class _Negative(_Line):
    def jumps(self, log_snr):
        return jnp.full_like(log_snr, -0.1), jnp.full_like(log_snr, 1.1)


@pytest.mark.parametrize("mixing", [Sigmoid(1.0, -1.0), Sigmoid(-0.7, 0.3), Constant(0.4), Constant(1.0)], ids=repr)
def test_jumps_are_what_the_shares_need(mixing):
    """d(noise x u)/dt = rates in - decay: u - u' of the jumps, by numeric differentiation in the log-SNR."""
    with jax.enable_x64(True):
        log_snr, h = jnp.linspace(-12, 12, 49), 1e-5
        slope = (mixing.shares(log_snr + h)[0] - mixing.shares(log_snr - h)[0]) / (2 * h)
        uniform, mask = mixing.jumps(log_snr)
        np.testing.assert_allclose(uniform, mixing.shares(log_snr)[0] - slope, atol=1e-9)
        np.testing.assert_allclose(mask, mixing.shares(log_snr)[1] + slope, atol=1e-9)


def test_a_mixing_of_ones_own_keeps_the_bound():
    """Against the oracle on the kernel that the process itself draws from: only its rates could be wrong."""
    process = Mixed(mixing=_Line(), **IDS)

    def noise(t):
        return t * np.append(np.full(TOKENS, (2 - t) / 4 / TOKENS), (2 + t) / 4)

    def noise_prime(t):
        return np.append(np.full(TOKENS, (1 - t) / 2 / TOKENS), (1 + t) / 2)

    kernel = oracle.Kernel(TOKENS, *LINEAR, noise, noise_prime)
    assert oracle.diffusion_nats(LAW, kernel) == pytest.approx(LAW.entropy, abs=1e-6)
    with jax.enable_x64(True):
        logits, x, z, t = _points([0, 1, 2, MASK], seed=4, rows=60)
        ours = process.loss(logits, x, z, t)
        p = np.exp(np.asarray(logits)[:, :TOKENS])
        p /= p.sum(axis=1, keepdims=True)
        states = np.where(z == MASK, TOKENS, z)
        theirs = [oracle.kl_is_loss(kernel, float(t[i]), states[i : i + 1], p[i : i + 1])[0, int(x[i])] for i in range(60)]
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)
    with pytest.raises(InputError, match="outside"):
        Mixed(mixing=_Negative(), **IDS)


def test_noise_of_both_kinds_is_drawn_in_its_share():
    process = Hybrid(p_uniform=0.4, **IDS)
    z_BL = process.corrupt(row_keys(jax.random.key(1), jnp.arange(2000)), jnp.full((2000, 5), 1), jnp.full((2000, 5), 0.3))
    alpha, uniform, mask = (float(share) for share in process.shares(jnp.asarray(0.3)))
    counts = np.bincount(np.asarray(z_BL).ravel(), minlength=VOCAB)
    assert chi_square_sigmas(counts, np.asarray([uniform / 3, alpha + uniform / 3, uniform / 3, 0, mask])) < 4


@pytest.mark.parametrize(
    "name, values, says",
    [
        ("hybrid", {"p_uniform": 1.0}, "for 1 use process 'uniform'"),
        ("hybrid", {"gamma": 3.0}, "gamma is 3.0"),
        ("mixed", {"mixing": "sigmoidal"}, "mixing is 'sigmoidal'"),
        ("mixed", {"mixing": "sigmoid", "values": (2.0,)}, "outside"),
    ],
)
def test_impossible_noise_is_refused(name, values, says):
    with pytest.raises(InputError, match=says):
        make_process(name, vocab=VOCAB, mask_id=MASK, **values)
