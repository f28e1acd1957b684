"""The levels of an evaluation: the bias of the default grid, for every process and several laws, and what a grid says of its own bias.

The laws: two of two tokens that are written out whole, one without symmetries and one with rare tokens, and rows that repeat one symbol,
up to 128 times, whose exact denoiser needs counts alone.

Shapes: J levels, K symbols, S states of a token (the symbols, and the mask as the last), C counts of the states of the other tokens.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import gammaln
from scipy.stats import binom

from dlmjax.diffusion import make_process
from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.process import Process, init_params
from dlmjax.diffusion.processes.hybrid import Mixed, Mixing
from dlmjax.evaluation.levels import LevelGrid, level_grid, quadrature_error, radau
from dlmjax.evaluation.likelihood import Evaluator
from dlmjax.evaluation.result import MOST_BIAS, Measured
from dlmjax.quadrature import ENOUGH_NODES, NODES, REFERENCE_NODES
from tests.diffusion.battery import LINEAR, TOKENS, expected_boundary, prior_gap, reconstruction_gap, to_ids
from tests.diffusion.battery import nats_by_time as integrand
from tests.diffusion.cases import NOISY
from tests.diffusion.cases_jump import IDS, _mixed_kernel, jump_case
from tests.diffusion.processes import test_d3pm

slow = pytest.mark.slow
MOST = 5e-4  # of the entropy
LAW = oracle.JointDistribution.random(TOKENS, 2, seed=1)
_rare = np.asarray([0.95, 0.04, 0.01])
# Mostly each token by itself, and some pairs that stand together: no probability is 0.
RARE = oracle.JointDistribution(0.7 * np.outer(_rare, _rare) + 0.3 * np.diag(_rare))
CASES = [case for case in NOISY if case.process.bound is case.process]


def default(process: Process) -> tuple[np.ndarray, np.ndarray]:
    """(t, weight) of the default grid, t as the device is given it."""
    levels = level_grid(process, "gauss", NODES)
    return levels.low_J.astype(np.float32).astype(np.float64), levels.weight_J


def entropy(p_K) -> float:
    return -float(np.sum(p_K * np.log(p_K)))


class Kinked(Mixing):
    """A uniform share that rises in a straight line between two log-SNRs: the integrand jumps at both."""

    def shares(self, log_snr):
        uniform = 0.1 + 0.3 * jnp.clip((log_snr + 2) / 4, 0, 1)
        return uniform, 1 - uniform

    def jumps(self, log_snr):
        uniform, _ = self.shares(log_snr)
        jumps = uniform - jnp.where(jnp.abs(log_snr) < 2, 0.3 / 4, 0.0)
        return jumps, 1 - jumps


KINKED = jump_case(
    "mixed/kinked",
    Mixed(mixing=Kinked(), **IDS),
    _mixed_kernel(LINEAR, lambda a: 0.1 + 0.3 * np.clip((a + 2) / 4, 0, 1), lambda a: 0.3 / 4 * (abs(a) < 2)),
)
FEW = (1, 2, 4, 8)


def unbound(*arguments, **options):
    raise AssertionError("no network is called: the integrand is enumerated")


def measured_of(grid: LevelGrid, nats_J: np.ndarray, boundary: float, reference: float) -> Measured:
    """The measurement of one window of one token, whose integrand is that of a whole law."""
    one_W = np.ones(1, np.int64)
    zero_W = np.zeros(1)
    return Measured(one_W, nats_J[None, :, None], grid, zero_W + boundary, zero_W[:, None], one_W, None, 1, 0.0, zero_W + reference)


@pytest.mark.parametrize("case", [KINKED, *(pytest.param(case, marks=slow if case.light else ()) for case in CASES)], ids=str)
def test_the_default_grid_integrates_the_bound_of_small_laws(case):
    """The diffusion part at the default levels, by enumeration over x and z, is what the entropy and the ends leave for it; what the grid
    says of its own error raises no false alarm; and no number of nodes reads below the bound by more than is printed."""
    grids = [level_grid(case.process, "gauss", nodes) for nodes in (*FEW, NODES, REFERENCE_NODES)]
    t_J = np.concatenate([grid.low_J for grid in grids]).astype(np.float32).astype(np.float64)
    # Masks at one rate: a polynomial. Else what raises an alarm, with a margin where all tokens have one alpha.
    most = MOST / 10 if case.process.capabilities.any_order else MOST_BIAS / (1 if isinstance(case.kernel, oracle.Chain) else 2)
    for law in (LAW, RARE):
        gap = prior_gap(case, law) + reconstruction_gap(case, law) if case.process.boundary.any else 0.0
        gap += case.gap(case, law) if case.gap else 0.0
        boundary = expected_boundary(case, law)
        truth = law.entropy + gap - boundary
        nats_J = integrand(dataclasses.replace(case, grid=lambda length: (t_J, np.ones(len(t_J)))), law)
        *nats, reference_J = np.split(nats_J, np.cumsum([grid.nodes for grid in grids])[:-1])
        reference = grids[-1].weight_J @ reference_J
        for nodes, grid, nats_J in zip((*FEW, NODES), grids, nats, strict=False):
            result = Evaluator(case.process, unbound, nodes=nodes).result(
                measured_of(grid, nats_J, boundary, reference if grid.nodes < ENOUGH_NODES else math.nan)
            )
            assert result.nats_per_token > truth + boundary - result.quadrature, (nodes, "the bound reads below the truth")
        if case is not KINKED:
            assert abs(grid.weight_J @ nats_J - truth) < MOST * law.entropy
            assert quadrature_error(grid.spread_KJ @ nats_J) < most * law.entropy


# --- rows that repeat one symbol ---------------------------------------------------------------------------------------------------


@functools.cache
def counts_of(others: int, states: int) -> np.ndarray:
    """All ways to spread so many tokens over the states. -> [C, S]"""
    if states == 1:
        return np.full((1, 1), others)
    return np.concatenate([np.insert(counts_of(others - first, states - 1), 0, first, axis=1) for first in range(others + 1)])


def repeated_nats(process: Process, q_KS: np.ndarray, p_K: np.ndarray, length: int, t: float) -> float:
    """L(t) of rows of one symbol ~ p_K, in nats per row, with the exact denoiser and the process's own loss, in float64.

    q_KS: its noise at t. Ids: the symbols, then the mask. Of noise that differs between tokens the network says the posterior.
    """
    symbols = len(p_K)
    with np.errstate(divide="ignore"):
        log_q_KS = np.maximum(np.log(q_KS), -1e4)
    count_CS = counts_of(length - 1, q_KS.shape[1])
    log_joint_CK = (gammaln(length) - gammaln(count_CS + 1).sum(axis=1))[:, None] + count_CS @ log_q_KS.T + np.log(p_K)
    log_joint_CK = log_joint_CK[log_joint_CK.max(axis=1) > -35]
    c, x, z = (index.reshape(-1) for index in np.indices((len(log_joint_CK), symbols, q_KS.shape[1])))
    mass_N = np.exp(log_joint_CK[c, x]) * q_KS[x, z]
    c, x, z, mass_N = (values[mass_N > 1e-18] for values in (c, x, z, mass_N))
    log_guess_NK = log_joint_CK[c] + (log_q_KS[:, z].T if hasattr(process, "noise_of") else 0.0)
    log_guess_NK = log_guess_NK - np.logaddexp.reduce(log_guess_NK, axis=1)[:, None]
    rows = 2 ** max(len(mass_N) - 1, 1).bit_length()  # few shapes: operations are compiled once
    logits_NV = np.full((rows, process.vocab), -1e9)
    logits_NV[:, :symbols] = np.resize(np.maximum(log_guess_NK, -1e4), (rows, symbols))
    with jax.enable_x64(True):
        x_N, z_N = jnp.asarray(np.resize(x, rows)), jnp.asarray(np.resize(z, rows))
        nats_N = np.asarray(process.loss(jnp.asarray(logits_NV), x_N, z_N, jnp.full(rows, t)))
    return length * float(np.sum(mass_N * nats_N[: len(mass_N)]))


def noise_of(process: Process):
    """[K, S] of noise that differs between two tokens, as a function of t."""

    def matrix(t: float) -> np.ndarray:
        with jax.enable_x64(True):
            noise_K = np.asarray(process.noise_of(jnp.arange(2), jnp.full(2, t)))
        return np.concatenate([np.diag(1 - noise_K), noise_K[:, None]], axis=1)

    return matrix


def made(name: str, **values) -> Process:
    """With two tokens and a mask."""
    return make_process(name, vocab=3, mask_id=2, **values)


def mixed_kernel(even: float):
    noise_S = np.asarray([even / 2, even / 2, 1 - even])
    return lambda t: np.eye(2, 3) * (1 - t) + t * noise_S


def learned(log_w: float) -> Process:
    return made("genmd4").with_params({"log_w": jnp.asarray([log_w, -log_w, 0.0], jnp.float32)})


MASKS, EVEN = (kernel(2, *LINEAR).matrix for kernel in (oracle.masked_kernel, oracle.uniform_kernel))
ROWS = {
    "masked": (made("masked"), MASKS),
    "flow_matching/mask": (made("flow_matching"), MASKS),
    "uniform": (made("uniform"), EVEN),
    **{
        f"hybrid/{p}/{gamma}": (made("hybrid", p_uniform=p, gamma=gamma), oracle.hybrid_kernel(2, p, gamma).matrix)
        for p, gamma in ((0.1, 1.0), (0.2, 1.0), (0.9, 1.0), (0.2, 0.5), (0.2, 2.0))
    },
    "mixed/constant": (made("mixed", mixing="constant", values=(0.3,)), mixed_kernel(0.3)),
    **{f"genmd4/{log_w}": (learned(log_w), noise_of(learned(log_w))) for log_w in (0.6, -0.6)},
    **{
        f"{name}/{counts}": (process, noise_of(process))
        for counts in ((9, 1, 0), (1, 9, 0))
        for name in ("frequency_masked", "spindle")
        for process in (made(name, counts_V=counts),)
    },
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=slow if name.startswith("hybrid") else ()) for name in ROWS])
def test_the_default_grid_integrates_rows_of_one_symbol(name):
    """What 128 tokens say together is told in a small part of the levels: nothing of it may fall between two of them."""
    process, matrix = ROWS[name]
    levels = default(process)
    for length, p in ((2, 0.98), (16, 0.5), (128, 0.5), (128, 0.9)):
        p_K = np.asarray([p, 1 - p])
        found = sum(weight * repeated_nats(process, matrix(t), p_K, length, t) for t, weight in zip(*levels, strict=True))
        assert abs(found - entropy(p_K)) < MOST * entropy(p_K), (length, p)


GAUSSIAN = [
    ("plaid", {}),
    ("plaid", {"gamma_0": -9.0, "gamma_1": 12.0}),
    ("gaussian", {"path": "linear"}),
    ("gaussian", {"path": "cosine"}),
    ("diffusion_lm", {}),
    ("sed", {}),
    ("embedding_flow", {}),
    ("gaussian", {"steps": 12}),
    ("gaussian", {"steps": 17}),
    ("gaussian", {"steps": 100}),
    ("diffusion_lm", {"steps": 200}),
    ("gaussian", {"steps": 40}),  # beyond MOST by what the grid says
    *(
        pytest.param(name, values, marks=slow)
        for name, values in (
            ("gaussian", {"steps": 1000}),
            ("diffusion_lm", {"steps": 2000}),
            ("gaussian", {"steps": 100, "path": "linear"}),
            ("gaussian", {"steps": 100, "path": "sqrt"}),
        )
    ),
]
_normal = np.linspace(-8, 8, 801)


def squared_error(e_K: np.ndarray, p_K: np.ndarray, snr: float) -> float:
    """E |e - E[e | z]|^2 for z = sqrt(snr) e + a standard normal."""
    z_KZ = math.sqrt(snr) * e_K[:, None] + _normal
    log_KKZ = np.log(p_K)[:, None, None] - (z_KZ - math.sqrt(snr) * e_K[:, None, None]) ** 2 / 2
    guess_KKZ = np.exp(log_KKZ - np.logaddexp.reduce(log_KKZ, axis=0))
    mean_KZ = np.sum(guess_KKZ * e_K[:, None, None], axis=0)
    weight_Z = np.exp(-(_normal**2) / 2)
    return float(p_K @ ((e_K[:, None] - mean_KZ) ** 2 @ weight_Z)) / weight_Z.sum()


@pytest.mark.parametrize("name, values", GAUSSIAN, ids=str)
def test_the_default_grid_integrates_gaussian_noise(name, values):
    """n tokens that say the same are one with n times the signal: from one to 128, embeddings near and far from each other."""
    process = made(name, **values)
    process = process.with_params(init_params(process, jax.random.key(0)))
    curve = process.curve
    with jax.enable_x64(True):
        ends = [float(gamma) for gamma in curve.at(jnp.asarray([0.0, 1.0])).gamma]
    x, w = np.polynomial.legendre.leggauss(160)
    gamma_G, weight_G = ends[0] + (min(ends[1], 16.0) - ends[0]) * (x + 1) / 2, w * (min(ends[1], 16.0) - ends[0]) / 2
    t_J, weight_J = default(process)
    spread_KJ, steps = level_grid(process, "gauss", NODES).spread_KJ, process.time_domain.steps

    def rates(t):
        """(SNR there, what multiplies half the squared error): in steps the fall over one step."""
        with jax.enable_x64(True):
            if not steps:
                return np.exp(-np.asarray(curve.at(t).gamma)), np.asarray(curve.snr_rate(t))
            level = np.ceil(t * steps) / steps
            now, before = (np.exp(-np.asarray(curve.at(jnp.maximum(at, 0.0)).gamma)) for at in (level, level - 1 / steps))
            return now, steps * (before - now)

    every = (np.arange(steps) + 0.5) / max(steps, 1)
    for scale, p_K, tokens in ((0.7, [0.5, 0.5], 1), (3.0, [0.95, 0.05], 1), (0.7, [0.9, 0.1], 128), (3.0, [0.5, 0.5], 16)):
        nats = functools.partial(integral, scale * np.asarray([-1.0, 1.0]), np.asarray(p_K), tokens)
        found = nats(weight_J, *rates(t_J))
        truth = nats(np.full(steps, 1 / steps), *rates(every)) if steps else nats(weight_G, np.exp(-gamma_G), np.exp(-gamma_G))
        said = sum(nats(spread_J, *rates(t_J)) ** 2 for spread_J in spread_KJ) ** 0.5 if steps == 40 else 0.0
        assert abs(found - truth) < max(MOST * entropy(np.asarray(p_K)), min(said, 2 * MOST)), (scale, tokens)


def integral(e_K: np.ndarray, p_K: np.ndarray, tokens: int, weight_J, snr_J, rate_J) -> float:
    """Of half the squared error times its rate, in nats per row."""
    parts = zip(weight_J, snr_J, rate_J, strict=True)
    return tokens / 2 * sum(weight * rate * squared_error(e_K, p_K, tokens * snr) for weight, snr, rate in parts)


@pytest.mark.parametrize("steps", [16, 40, *(pytest.param(steps, marks=slow) for steps in (3, 17, 300))])
@pytest.mark.parametrize("kind", ["uniform", "absorbing", pytest.param("gaussian", marks=slow)])
def test_the_default_grid_sums_discrete_levels(kind, steps):
    """D3PM has a sum over T levels, of which no more than `NODES` are asked: all of them, where there are so few."""
    process, (_, whole) = test_d3pm.make(kind, steps), test_d3pm.chain(kind, steps)
    levels = level_grid(process, "gauss", NODES)
    if steps <= NODES:
        assert levels.weight_J.tolist() == [1 / steps] * steps and not levels.spread_KJ.any()
    assert levels.nodes <= min(steps, NODES)
    nats_T = np.asarray([nats_by_time(kind, process, whole[level], level / steps) for level in range(1, steps + 1)])
    asked_J = np.floor(levels.low_J * steps).astype(int)
    assert abs(levels.weight_J @ nats_T[asked_J] - nats_T.mean()) < MOST * LAW.entropy
    grids = {nodes: level_grid(process, "gauss", nodes) for nodes in (*FEW, REFERENCE_NODES)}
    nats = {nodes: nats_T[np.floor(grid.low_J * steps).astype(int)] for nodes, grid in grids.items()}
    reference = grids[REFERENCE_NODES].weight_J @ nats[REFERENCE_NODES]
    for nodes in FEW:
        read = math.nan if grids[nodes].nodes == steps else reference
        result = Evaluator(process, unbound, nodes=nodes).result(measured_of(grids[nodes], nats[nodes], 0.0, read))
        assert result.nats_per_token >= nats_T.mean() - result.quadrature - 1e-12, nodes


def nats_by_time(kind: str, process: Process, whole_SS: np.ndarray, t: float) -> float:
    """The discrete bound's term of one level, with the exact denoiser."""
    x_Xn, z_Zn = LAW.sequences_Xn, oracle.enumerate_sequences(len(whole_SS), LAW.length)
    x, z = (index.reshape(-1) for index in np.indices((len(x_Xn), len(z_Zn))))
    logits_ZnV = test_d3pm.exact_logits(kind, LAW, whole_SS, "leave_one_out")
    with jax.enable_x64(True):
        x_NL, z_NL = jnp.asarray(x_Xn[x]), jnp.asarray(to_ids(z_Zn[z]))
        nats_NL = np.asarray(process.loss(jnp.asarray(logits_ZnV[z]), x_NL, z_NL, jnp.full(x_NL.shape, t)))
    p_N = test_d3pm.joint(LAW, whole_SS)[x, z]
    return float(np.sum(p_N[p_N > 0] * nats_NL.sum(axis=1)[p_N > 0]))


# --- the rule ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [1, 2, 3, 16, 100])
def test_radau_nodes_are_exact_for_polynomials(nodes):
    x_J, weight_J = radau(nodes)
    assert (np.diff(x_J) > 0).all() and (weight_J > 0).all() and (nodes == 1 or x_J[-1] == pytest.approx(1))
    for power in range(2 * nodes - 1 + (nodes == 1)):
        assert weight_J @ x_J**power == pytest.approx((1 - power % 2) * 2 / (power + 1), abs=1e-12)


def test_a_masked_bound_has_the_same_levels_of_noise_on_every_schedule():
    """So that a grid's bias does not depend on the schedule either."""
    processes = [made("masked", schedule=name) for name in ("linear", "cosine", {"name": "polynomial", "power": 3.0})]
    shares = [process.noise_share(jnp.asarray(default(process)[0], jnp.float32)) for process in processes]
    for share_J in shares[1:]:
        np.testing.assert_allclose(share_J, shares[0], rtol=2e-5)


def test_a_learned_schedule_has_levels_of_its_own():
    process = made("plaid")
    start = init_params(process, jax.random.key(0))
    same, moved = (process.with_params(start | {"ends": jnp.asarray(ends)}) for ends in ([-3.0, 6.0], [-9.0, 6.0]))
    first, again, later = (level_grid(process, "gauss", 8).low_J for process in (process, same, moved))
    np.testing.assert_allclose(again, first, atol=0.03)
    assert later[0] > 2 * first[0]


def curves() -> dict:
    """name -> (integrand, with r + v = 1, and its integral): rows of which any k of n tokens tell all, n tokens whose sum is known, and
    what has no polynomial."""
    found = {}
    for n in (8, 128, 512, 1024, 4096, 2**17):
        found[f"one of {n}"] = (lambda r, v, n=n: n * np.exp((n - 1) * np.log1p(-v)), 1.0)
        found[f"all but one of {n}"] = (lambda r, v, n=n: n * -np.expm1((n - 1) * np.log(v)), n - 1.0)
        for part in (0.1, 0.25, 0.5, 0.75) if n <= 1024 else ():
            found[f"{part} of {n}"] = (lambda r, v, n=n, k=int(part * n) + 1: binom.sf(n - k - 1, n - 1, r) * n, int(part * n) + 1.0)
    powers = {f"r^-{power}": (lambda r, v, power=power: r**-power, 1 / (1 - power)) for power in (0.2, 0.3)}
    return found | powers | {"log r": (lambda r, v: -np.log(r), 1.0), "log v": (lambda r, v: -np.log(v), 1.0)}


@pytest.mark.parametrize("nodes", [3, 4, 6, 8, 12, 16, 32])
def test_a_grid_says_where_it_is_unfit(nodes):
    """Whatever reads below the truth does so by no more than what the grid says, also where text lies out of the reach of its nodes."""
    levels = level_grid(made("masked"), "gauss", nodes)
    r_J = levels.low_J
    for name, (curve, truth) in curves().items():
        nats_J = curve(r_J, 1 - r_J)
        bias, estimate = levels.weight_J @ nats_J / truth - 1, quadrature_error(levels.spread_KJ @ nats_J) / truth
        assert bias > -max(estimate, 1e-4), name
        assert abs(bias) < max(2 * estimate, 2e-3), name


def test_a_grid_says_nothing_where_it_cannot_know():
    assert level_grid(made("masked"), "gauss", 2).spread_KJ is None and level_grid(made("masked"), "stratified", 8).spread_KJ is None
