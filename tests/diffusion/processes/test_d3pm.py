"""D3PM against matrices in float64: every term of the discrete bound, the bound as a whole, its limit, and what it costs in memory.

Matrices are made by tests/diffusion/processes/test_kernels.py from the definitions; S states are the tokens and, for absorbing noise,
the mask.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dlmjax.diffusion import Cosine, Geometric, Linear, Masked, Objective, PerRow, Process, row_keys
from dlmjax.diffusion.oracle import enumeration as oracle
from dlmjax.diffusion.oracle import toy
from dlmjax.diffusion.processes.d3pm import D3pm, DiscreteTime, StepMasked, make_d3pm
from dlmjax.errors import InputError
from tests.diffusion.battery import BOS, COSINE, LINEAR, MASK, TOKENS, VOCAB, batch_of, chi_square_sigmas, sample_joint, to_ids, to_states
from tests.diffusion.processes.test_kernels import POINTS, dense

LAW = oracle.JointDistribution.random(TOKENS, 2, seed=1)
LINEAR_SCHEDULE = Linear()
KINDS = ("uniform", "absorbing", "gaussian", "neighbours")
every_kind = pytest.mark.parametrize("kind", KINDS)


def make(kind: str, steps: int, schedule=LINEAR_SCHEDULE, parameterisation: str = "leave_one_out") -> Process:
    embedding = np.concatenate([POINTS[:TOKENS], np.zeros((2, 3))]) if kind == "neighbours" else None
    return make_d3pm(VOCAB, MASK, kind, steps, schedule, (BOS,), parameterisation, embedding, neighbours=1)


def states(kind: str) -> int:
    return TOKENS + (kind == "absorbing")


def matrix(kind: str, keep: float) -> np.ndarray:
    """[S, S]"""
    if kind != "absorbing":
        return dense(kind, keep, TOKENS)
    matrix_SS = keep * np.eye(TOKENS + 1)
    matrix_SS[:, -1] += 1 - keep
    return matrix_SS


def chain(kind: str, steps: int, alpha=lambda t: 1 - t) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Matrices of the steps 1 .. T, and from clean text to the levels 0 .. T."""
    alpha_T = [1.0, *(alpha(i / steps) for i in range(1, steps + 1))]
    single = [matrix(kind, after / before) for before, after in itertools.pairwise(alpha_T)]
    whole = [np.eye(states(kind))]
    for step_SS in single:
        whole.append(whole[-1] @ step_SS)
    return single, whole


# --- by enumeration over two positions ---------------------------------------------------------------------------------------------


def joint(law: oracle.JointDistribution, whole_SS: np.ndarray) -> np.ndarray:
    """p(x, z) [X, Z] at a level."""
    x_Xn, z_Zn = law.sequences_Xn, oracle.enumerate_sequences(len(whole_SS), law.length)
    return law.probability_X[:, None] * np.prod([whole_SS[x_Xn[:, i]][:, z_Zn[:, i]] for i in range(law.length)], axis=0)


def exact_logits(kind: str, law: oracle.JointDistribution, whole_SS: np.ndarray, parameterisation: str) -> np.ndarray:
    """[Z, n, VOCAB] of the exact denoiser."""
    x_Xn, z_Zn = law.sequences_Xn, oracle.enumerate_sequences(len(whole_SS), law.length)
    logits = np.full((len(z_Zn), law.length, VOCAB), -1e9)
    for i in range(law.length):
        seen = [j for j in range(law.length) if j != i or parameterisation == "posterior"]
        weight_XZ = law.probability_X[:, None] * np.prod([whole_SS[x_Xn[:, j]][:, z_Zn[:, j]] for j in seen], axis=0)
        p_ZK = weight_XZ.T @ np.eye(TOKENS)[x_Xn[:, i]]
        logits[:, i, :TOKENS] = np.log(np.maximum(p_ZK, 1e-300))
    return logits


def random_logits(law: oracle.JointDistribution, count: int, seed: int = 3) -> np.ndarray:
    return 2 * np.random.default_rng(seed).normal(size=(count, law.length, VOCAB))


def bound(kind: str, process: Process, law: oracle.JointDistribution, whole: list[np.ndarray], guess) -> float:
    """The whole discrete bound in nats per sequence, with the process's own loss and prior term."""
    steps, x_Xn = len(whole) - 1, law.sequences_Xn
    z_Zn = oracle.enumerate_sequences(states(kind), law.length)
    ix, iz = (a.reshape(-1) for a in np.meshgrid(np.arange(len(x_Xn)), np.arange(len(z_Zn)), indexing="ij"))
    total = 0.0
    with jax.enable_x64(True):
        x_NL, z_NL = jnp.asarray(x_Xn[ix]), jnp.asarray(to_ids(z_Zn[iz]))
        for level in range(1, steps + 1):
            logits = jnp.asarray(guess(whole[level])[iz])
            nats_NL = np.asarray(process.loss(logits, x_NL, z_NL, jnp.full(x_NL.shape, level / steps)))
            p_N = joint(law, whole[level])[ix, iz]
            total += float(np.sum(p_N[p_N > 0] * nats_NL.sum(axis=1)[p_N > 0])) / steps
    prior_X = np.asarray(process.prior_nats(jnp.asarray(x_Xn)), np.float64).sum(axis=1)
    return total + float(law.probability_X @ prior_X)


def path_gap(kind: str, law: oracle.JointDistribution, single: list[np.ndarray], whole: list[np.ndarray]) -> float:
    """What a step back loses that changes both positions apart from each other: sum_i E KL(q(z_{i-1} | z_i) || product of marginals)."""
    z_Zn = oracle.enumerate_sequences(states(kind), law.length)
    total = 0.0
    for level in range(1, len(whole)):
        before_Z = joint(law, whole[level - 1]).sum(axis=0)
        step_ZZ = np.prod([single[level - 1][z_Zn[:, i]][:, z_Zn[:, i]] for i in range(law.length)], axis=0)
        pair_SZ = before_Z[:, None] * step_ZZ
        now_Z = pair_SZ.sum(axis=0)
        apart_SZ = np.ones_like(pair_SZ)
        for i in range(law.length):
            one_hot = np.eye(states(kind))[z_Zn[:, i]]
            marginal = one_hot.T @ pair_SZ / np.where(now_Z > 0, now_Z, 1)
            apart_SZ *= marginal[z_Zn[:, i]]
        seen = pair_SZ > 0
        total += np.sum(pair_SZ[seen] * np.log((pair_SZ / np.where(now_Z > 0, now_Z, 1))[seen] / apart_SZ[seen]))
    return float(total)


# --- the bound ---------------------------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("parameterisation", ["leave_one_out", "posterior"])
def test_bound_is_the_entropy_and_the_gap_of_discrete_steps(kind, parameterisation):
    """With the exact denoiser: H plus what is lost by stepping back in T pieces, which is enumerated from the joint law alone."""
    steps = 5
    single, whole = chain(kind, steps)
    process = make(kind, steps, parameterisation=parameterisation)
    assert isinstance(process, Process) and hash(process) == hash(make(kind, steps, parameterisation=parameterisation))
    gap = path_gap(kind, LAW, single, whole)
    found = bound(kind, process, LAW, whole, lambda whole_SS: exact_logits(kind, LAW, whole_SS, parameterisation))
    assert found == pytest.approx(LAW.entropy + gap, abs=1e-6)
    assert gap > 5e-3 and not process.boundary.any


@every_kind
def test_terms_are_the_enumerated_divergences(kind):
    """Every (level, x, z) under random logits: T KL(q(z_{i-1} | z_i, x) || p(z_{i-1} | z_i)) by the matrices, at i = 1 -T log p(x|z_1)."""
    steps, rng = 4, np.random.default_rng(0)
    single, whole = chain(kind, steps, COSINE[0])
    rows, truth = [], []
    for level, x, z in itertools.product(range(1, steps + 1), range(TOKENS), range(states(kind))):
        if whole[level][x, z] < 1e-9:
            continue
        logits_V = 2 * rng.normal(size=VOCAB)
        guess_K = np.exp(logits_V[:TOKENS]) / np.exp(logits_V[:TOKENS]).sum()
        if kind == "absorbing" and z < TOKENS:
            guess_K = np.eye(TOKENS)[z]  # a shown token is carried over
        q_S = whole[level - 1][x] * single[level - 1][:, z]
        p_S = (guess_K @ whole[level - 1][:TOKENS]) * single[level - 1][:, z]
        q_S, p_S = q_S / q_S.sum(), p_S / p_S.sum()
        seen = q_S > 1e-300
        rows.append((level / steps, x, z, logits_V))
        truth.append(steps * np.sum(q_S[seen] * np.log(q_S[seen] / p_S[seen])))
        if level == 1:
            assert truth[-1] == pytest.approx(-steps * np.log(p_S[x]))
    t, x, z, logits = (np.asarray(column) for column in zip(*rows, strict=True))
    for dtype, tolerance in ((jnp.float64, 1e-7), (jnp.float32, 2e-5)):
        with jax.enable_x64(dtype == jnp.float64):
            args = jnp.asarray(logits, dtype), jnp.asarray(x), jnp.asarray(to_ids(z)), jnp.asarray(t, dtype)
            nats = make(kind, steps, Cosine()).loss(*args)
        assert nats.dtype == dtype
        np.testing.assert_allclose(nats, truth, rtol=tolerance, atol=tolerance)
    assert max(truth) > 1


@every_kind
def test_no_denoiser_beats_the_truth(kind):
    """The published bug, an alpha_s of the wrong level, gave -349 where 1.02 is right: no term may be negative, no bound below H."""
    for steps, seed in itertools.product((1, 2, 7), (0, 1)):
        _, whole = chain(kind, steps)
        process = make(kind, steps)
        logits = random_logits(LAW, states(kind) ** 2, seed)
        assert bound(kind, process, LAW, whole, lambda whole_SS, logits=logits: logits) > LAW.entropy
    t, x, z = (a.reshape(-1) for a in np.meshgrid(np.arange(1, 1001) / 1000, np.arange(TOKENS), np.arange(states(kind)), indexing="ij"))
    logits = 3 * jax.random.normal(jax.random.key(0), (t.size, VOCAB))
    nats = make(kind, 1000).loss(logits, jnp.asarray(x), jnp.asarray(to_ids(z)), jnp.asarray(t, jnp.float32))
    possible = np.asarray([whole_SS[x, z] for whole_SS in (matrix(kind, 0.5),)])[0] > 0
    assert float(np.min(np.asarray(nats)[possible])) > -1e-3 and np.isfinite(np.asarray(nats)).all()


@pytest.mark.parametrize("kind", ["uniform", "absorbing"])
def test_many_steps_are_continuous_time(kind):
    """For any denoiser the discrete bound tends to the continuous one, and what is between them halves as T doubles."""
    make_kernel = oracle.uniform_kernel if kind == "uniform" else oracle.masked_kernel
    logits = random_logits(LAW, states(kind) ** 2)
    guess_ZnK = np.exp(logits[..., :TOKENS]) / np.exp(logits[..., :TOKENS]).sum(axis=-1, keepdims=True)
    truth = oracle.diffusion_nats(LAW, make_kernel(TOKENS, *LINEAR), lambda *_: guess_ZnK)
    gap = {}
    for steps in (16, 32, 64):
        whole = [matrix(kind, 1 - i / steps) for i in range(steps + 1)]
        gap[steps] = bound(kind, make(kind, steps), LAW, whole, lambda whole_SS: logits) - truth
    assert 1.8 < gap[16] / gap[32] < 2.4 and 1.8 < gap[32] / gap[64] < 2.4 and 1e-4 < abs(gap[64]) < 0.03 * truth


def test_absorbing_noise_tends_to_the_masked_process():
    """Level by level, on a curved schedule: the weight tends to the hazard at the rate 1/T. On the linear one it is 1/t from the start."""
    process = [StepMasked(VOCAB, MASK, Cosine(), (), steps) for steps in (50, 100, 200)]
    error = [abs(float(p.cross_entropy_weight(jnp.asarray([0.5]))[0] - Cosine().hazard(0.5))) for p in process]
    assert 1.8 < error[0] / error[1] < 2.2 and 1.8 < error[1] / error[2] < 2.2
    t = jnp.arange(1, 51) / 50
    args = jnp.zeros((50, VOCAB)), jnp.ones(50, jnp.int32), jnp.full(50, MASK), t
    np.testing.assert_allclose(StepMasked(VOCAB, MASK, steps=50).loss(*args), Masked(VOCAB, MASK).loss(*args), rtol=1e-6)


def test_what_the_last_step_leaves_is_paid_for():
    """alpha_T > 0: the prior term is KL(q(z_T | x) || uniform), and without it the sum is not a bound."""
    for kind in ("uniform", "gaussian", "absorbing"):
        schedule = Geometric(0.01, 2.0)
        process = make(kind, 6, schedule)
        single, whole = chain(kind, 6, lambda t: float(np.exp(-(0.01 ** (1 - t)) * 2.0**t)))
        assert process.boundary.any
        if kind == "absorbing":
            truth = np.full(TOKENS, np.exp(-2.0) * np.log(TOKENS))
        else:
            truth = np.sum(whole[-1] * np.log(whole[-1] * TOKENS), axis=1)
        np.testing.assert_allclose(process.prior_nats(jnp.arange(TOKENS)), truth, rtol=1e-4, atol=1e-6)
        exact = bound(kind, process, LAW, whole, lambda whole_SS, kind=kind: exact_logits(kind, LAW, whole_SS, "leave_one_out"))
        assert exact > LAW.entropy > exact - 2 * float(LAW.probability_X @ truth[LAW.sequences_Xn].mean(axis=1))


# --- levels, noise and sampling ----------------------------------------------------------------------------------------------------


def test_levels_are_the_grid():
    t_BL = jnp.linspace(0, 1, 4001)[:, None]
    for process in (make("uniform", 8), make("absorbing", 8)):
        level_BL = np.asarray(process.time_domain.quantize(t_BL, jnp.ones(t_BL.shape, bool)))
        assert set(np.unique(level_BL * 8)) == set(range(1, 9))
        np.testing.assert_allclose(np.bincount((level_BL[:, 0] * 8).astype(int))[1:], 500, atol=1)
    grid = DiscreteTime(Cosine(), 1000)
    t = jnp.arange(1001) / 1000
    assert (np.asarray(grid.index(t)) == np.arange(1001)).all() and float(grid.noise(0.0)) == 0 and grid.ends == (1.0, 0.0)
    np.testing.assert_allclose(grid.inverse(grid.alpha(t)), t, atol=1e-3)
    # A level's factors are one table: alpha_t = alpha_s times the step's, to the last digits, also in float32.
    step = grid.step(t[1:])
    np.testing.assert_allclose(step.keep * step.step_keep, grid.alpha(t[1:]), atol=1e-7)
    np.testing.assert_allclose(step.gone + step.keep * step.step_gone, grid.noise(t[1:]), atol=1e-7)
    some = grid.step(jnp.asarray([0.5, 0.5]), jnp.asarray([0.2, 0.5]))
    np.testing.assert_allclose(some.step_keep, [Cosine().alpha(0.5) / Cosine().alpha(0.2), 1], rtol=1e-6)


@every_kind
@pytest.mark.parametrize("pieces", [1, 3])
def test_noise_has_the_distribution_of_the_chain(kind, pieces):
    """One corruption, or three steps of several levels each: q(z_i | x) of the product of the single steps."""
    _, whole = chain(kind, 9)
    process, rows = make(kind, 9), 4096
    z_BL = jnp.broadcast_to(jnp.arange(TOKENS), (rows, TOKENS))
    levels = np.linspace(0, 6 / 9, pieces + 1)
    for i, (s, t) in enumerate(itertools.pairwise(levels)):
        keys_B = row_keys(jax.random.key(i), jnp.arange(rows))
        full = jnp.full(z_BL.shape, 1.0)
        z_BL = process.corrupt(keys_B, z_BL, full * t) if pieces == 1 else process.forward_step(keys_B, z_BL, full * s, full * t)
    for x in range(TOKENS):
        counts = np.bincount(to_states(np.asarray(z_BL[:, x])), minlength=states(kind))
        assert chi_square_sigmas(counts, whole[6][x]) < 4


@every_kind
def test_sampling_has_the_distribution_of_the_reverse_chain(kind):
    """Few steps with the exact denoiser, jumping over levels: the law of the samples is that of the enumerated chain, not of the data."""
    rows, steps, levels = 4096, 8, [8, 5, 0]
    _, whole = chain(kind, steps)
    z_Zn = oracle.enumerate_sequences(states(kind), 2)
    process = make(kind, steps)
    z_BL = process.prior(row_keys(jax.random.key(9), jnp.arange(rows)), 2)
    now_Z = np.full(len(z_Zn), 1 / len(z_Zn)) if kind != "absorbing" else np.eye(len(z_Zn))[-1]
    for number, (t, s) in enumerate(itertools.pairwise(levels)):
        jump_SS = matrix(kind, (1 - t / steps) / (1 - s / steps))
        logits = exact_logits(kind, LAW, whole[t], "leave_one_out")
        guess = np.exp(logits[..., :TOKENS])
        guess /= guess.sum(axis=-1, keepdims=True)
        back_ZZ = np.ones((len(z_Zn), len(z_Zn)))
        for i in range(2):
            shown_ZK = np.eye(states(kind))[z_Zn[:, i]]
            p_ZS = (guess[:, i] @ whole[s][:TOKENS]) * jump_SS[:, z_Zn[:, i]].T
            p_ZS = np.where(shown_ZK[:, -1:] > 0, p_ZS, shown_ZK) if kind == "absorbing" else p_ZS
            back_ZZ *= (p_ZS / p_ZS.sum(axis=1, keepdims=True))[:, z_Zn[:, i]]
        now_Z = now_Z @ back_ZZ
        index_B = np.ravel_multi_index(to_states(np.asarray(z_BL)).T, (states(kind),) * 2)
        keys_B, full = row_keys(jax.random.key(number), jnp.arange(rows)), jnp.ones(z_BL.shape)
        z_BL = process.reverse_step(keys_B, jnp.asarray(logits[index_B], jnp.float32), z_BL, full * t / steps, full * s / steps)
    found_Z = np.bincount(np.ravel_multi_index(to_states(np.asarray(z_BL)).T, (states(kind),) * 2), minlength=len(z_Zn))
    assert chi_square_sigmas(found_Z, now_Z) < 4


def test_through_the_objective():
    """Drawn levels and noise: the mean of `nats` is the enumerated discrete bound, within its standard error."""
    rows, process = 4096, make("uniform", 6)
    _, whole = chain("uniform", 6)
    table = jnp.asarray(random_logits(LAW, TOKENS**2), jnp.float32).reshape(TOKENS, TOKENS, 2, VOCAB)
    truth = bound("uniform", process, LAW, whole, lambda whole_SS: np.asarray(table).reshape(-1, 2, VOCAB))

    class Denoiser(toy.ToyDenoiser):
        def hidden(self, z_BL, t_BL, hint_BLI=None):
            return table[z_BL[:, 0], z_BL[:, 1]]

    objective, means = Objective(process, PerRow()), []
    assert objective.is_bound
    for seed in range(8):
        parts = objective(Denoiser(LAW, VOCAB), batch_of(sample_joint(LAW, rows, seed)), jax.random.key(seed), rows)[1]
        means.append(float(parts["nats"]) / rows)
    assert abs(np.mean(means) - truth) < 4 * np.std(means, ddof=1) / np.sqrt(8)


@every_kind
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_loss_and_gradient_are_finite_at_the_ends(kind, dtype):
    levels = jnp.asarray([0.0, 1e-6, 1e-3, 0.5, 1 - 1e-6, 1.0])
    t, x, z = (a.reshape(-1) for a in jnp.meshgrid(levels, jnp.arange(TOKENS), jnp.asarray([0, 1, 2, MASK]), indexing="ij"))
    for scale in (1.0, 1e4):
        logits = (scale * jax.random.normal(jax.random.key(0), (t.size, VOCAB))).astype(dtype)
        nats = make(kind, 1000).loss(logits, x, z, t)
        gradient = jax.grad(lambda logits: jnp.sum(make(kind, 1000).loss(logits, x, z, t)))(logits)
        assert np.isfinite(np.asarray(nats)).all() and np.isfinite(np.asarray(gradient, np.float32)).all()


@pytest.mark.parametrize("kind", ["uniform", "absorbing"])
def test_a_large_vocabulary_needs_no_square_array(kind):
    """K = 50257: what the gradient of the loss holds besides logits is a few arrays [rows, K]; K x K would be 10 GB."""
    vocab, rows = 50257, 16
    process = make_d3pm(vocab + 1, vocab, kind, 1000)
    shapes = [((rows, vocab + 1), jnp.float32), ((rows,), jnp.int32), ((rows,), jnp.int32), ((rows,), jnp.float32)]
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    compiled = jax.jit(jax.grad(lambda logits, x, z, t: jnp.sum(process.loss(logits, x, z, t)))).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 3 * rows * vocab * 4


@pytest.mark.parametrize(
    "build, says",
    [
        (lambda: make_d3pm(VOCAB, MASK, "unifrom"), "kernel is 'unifrom'; choose one of"),
        (lambda: make_d3pm(VOCAB, MASK, steps=0), "steps is 0"),
        (lambda: make_d3pm(VOCAB, MASK, "neighbours"), "conflicts with embedding"),
        (lambda: make_d3pm(VOCAB, MASK, "neighbours", embedding=np.zeros((2, 3))), "embedding has 2 rows"),
        (lambda: make_d3pm(VOCAB, MASK, parameterisation="score"), "'leave_one_out' or 'posterior'"),
        (lambda: D3pm(VOCAB, 9), "outside the vocabulary"),
    ],
)
def test_impossible_processes_are_refused(build, says):
    with pytest.raises(InputError, match=says):
        build()
