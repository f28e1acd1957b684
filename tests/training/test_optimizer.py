"""Schedules against golden values, AdamW and Muon against their formulas in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dlmjax import config as config_lib
from dlmjax.data import load_tokenizer
from dlmjax.errors import InputError
from dlmjax.experiment import assemble
from dlmjax.training import OptimizerSpec, build_optimizer, hyperparameters_of, learning_rate
from dlmjax.training.optimizer import MUON_RMS, _sides
from tests.training import toy


def rate(spec, steps, step):
    return learning_rate(spec.schedule, hyperparameters_of(spec, steps), step)


def rates(steps=10, **fields):
    return np.asarray(rate(OptimizerSpec(lr=1.0, final=0.1, **fields), steps, np.arange(steps)))


def test_constant_schedule():
    np.testing.assert_allclose(rates(schedule="constant", warmup=4), [0.25, 0.5, 0.75] + [1.0] * 7, rtol=1e-6)


def test_wsd_schedule():
    golden = [0.5, 1, 1, 1, 1, 1, 0.775, 0.55, 0.325, 0.1]
    np.testing.assert_allclose(rates(schedule="wsd", warmup=2, decay=0.4), golden, rtol=1e-6)


def test_cosine_schedule():
    half = 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * np.arange(10) / 9))
    np.testing.assert_allclose(rates(schedule="cosine", warmup=0), half, rtol=1e-6)
    warm = rates(schedule="cosine", warmup=3)
    np.testing.assert_allclose(warm[:4], [1 / 3, 2 / 3, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(warm[-1], 0.1, rtol=1e-6)


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_schedule_stays_at_its_end_beyond_the_run(schedule):
    spec = OptimizerSpec(lr=2.0, final=0.1, schedule=schedule, warmup=3)
    assert float(rate(spec, 10, 9)) == pytest.approx(0.2) and float(rate(spec, 10, 1000)) == pytest.approx(0.2)


def test_traced_and_python_steps_agree():
    of_step = functools.partial(rate, OptimizerSpec(), 500)
    np.testing.assert_allclose(jax.jit(of_step)(jnp.arange(500)), [of_step(step) for step in range(500)], rtol=1e-6)


def with_constants(spec, steps, step):
    """The rate with the run's hyperparameters written into the program: what a step that serves one run alone would compute."""
    decay_steps = max(round(spec.decay * steps), 1)
    step = jnp.asarray(step, jnp.float32)
    warm = jnp.minimum((step + 1) / spec.warmup, 1.0) if spec.warmup else jnp.float32(1)
    if spec.schedule == "constant":
        share = jnp.float32(1)
    elif spec.schedule == "wsd":
        share = 1 - (1 - spec.final) * jnp.clip((step - (steps - decay_steps) + 1) / decay_steps, 0.0, 1.0)
    else:
        progress = jnp.clip((step - spec.warmup) / max(steps - 1 - spec.warmup, 1), 0.0, 1.0)
        share = spec.final + (1 - spec.final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
    return spec.lr * warm * share


@pytest.mark.parametrize("schedule", ["wsd", "cosine", "constant"])
def test_one_program_gives_every_run_the_rates_of_its_own(schedule):
    """To the bit, over all steps of runs that differ in every number; traced once for each of the two lengths."""
    traces, rng = [], np.random.default_rng(0)

    @jax.jit
    def shared(hyperparameters, steps):
        traces.append(steps.shape)
        return jax.lax.map(functools.partial(learning_rate, schedule, hyperparameters), steps)  # step by step, as in training

    for number in range(6):
        steps = np.arange((700, 4001)[number % 2])
        fields = dict(lr=10 ** rng.uniform(-5, -1), decay=rng.uniform(0, 1), final=rng.uniform(0, 1))
        spec = OptimizerSpec(schedule=schedule, warmup=int(rng.integers(1, 300)) if number > 1 else 0, **fields)
        own = jax.jit(functools.partial(jax.lax.map, functools.partial(with_constants, spec, len(steps))))
        np.testing.assert_array_equal(shared(hyperparameters_of(spec, len(steps)), steps), own(steps))
    assert traces == [(700,), (4001,)]


def random_like(tree, seed):
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(structure, [jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves])


@pytest.fixture(scope="module")
def params():
    return toy.init_params(jax.random.key(3))


def run(tx, spec, params, gradients):
    """Updates of the last of several steps of a run of ten."""
    state, update, hyperparameters = tx.init(params), jax.jit(tx.update), hyperparameters_of(spec, 10)
    for step, gradient in enumerate(gradients):
        updates, state = update(gradient, state, params, step=step, hyperparameters=hyperparameters)
    return updates


def adamw_by_hand(gradients, p, spec, rate, decay, lr_multiplier=1.0, eps_multiplier=1.0):
    """1711.05101, Algorithm 2, in float64."""
    m = v = 0.0
    for count, g in enumerate(gradients, start=1):
        g = np.asarray(g, np.float64)
        m, v = spec.beta1 * m + (1 - spec.beta1) * g, spec.beta2 * v + (1 - spec.beta2) * g * g
        m_hat, v_hat = m / (1 - spec.beta1**count), v / (1 - spec.beta2**count)
    return -rate * lr_multiplier * (m_hat / (np.sqrt(v_hat) + spec.eps * eps_multiplier) + decay * np.asarray(p, np.float64))


def test_adamw_with_multipliers_follows_the_formula(params):
    spec = OptimizerSpec(lr=0.01, eps=1e-2, weight_decay=0.1, clip=0.0, warmup=0)
    lr = {"embedding": {"table": 1.0}, "layers": {"kernel": 0.25, "scale": 1.0}, "head": {"kernel": 0.5}}
    wd = {"embedding": {"table": 1.0}, "layers": {"kernel": 4.0, "scale": 1.0}, "head": {"kernel": 1.0}}
    eps = {"embedding": {"table": 1.0}, "layers": {"kernel": 0.125, "scale": 0.125}, "head": {"kernel": 2.0}}
    gradients = [random_like(params, seed) for seed in range(3)]
    updates = run(build_optimizer(spec, toy.KINDS, lr, wd, eps), spec, params, gradients)
    third = float(rate(spec, 10, 2))
    for a, b in [("embedding", "table"), ("layers", "kernel"), ("layers", "scale"), ("head", "kernel")]:
        decay = 0.0 if b == "scale" else 0.1 * wd[a][b]  # vectors never decay, whatever their multiplier
        expected = adamw_by_hand([g[a][b] for g in gradients], params[a][b], spec, third, decay, lr[a][b], eps[a][b])
        np.testing.assert_allclose(updates[a][b], expected, rtol=2e-5, atol=1e-8, err_msg=f"{a}.{b}")


def test_multipliers_of_one_change_nothing(params):
    spec, ones = OptimizerSpec(clip=0.5), jax.tree.map(lambda _: 1.0, toy.KINDS)
    gradients = [random_like(params, 1)]
    plain, with_ones = (run(build_optimizer(spec, toy.KINDS, *trees), spec, params, gradients) for trees in ((), (ones, ones, ones)))
    assert toy.same(plain, with_ones)


@pytest.mark.parametrize(("name", "schedule"), [("genmd4", ["log_w"]), ("plaid", ["ends", "schedule"])])
def test_a_learned_schedule_has_a_learning_rate_of_its_own(name, schedule):
    """Through the whole assembly of a run: the factor scales the updates of the schedule's leaves, and changes no other bit."""
    moved = []
    for said in ("", "schedule_lr=0.125"):
        config = config_lib.default()
        config.model.update(depth=1, width=8, heads=1, kv_heads=1, head_dim=8, ffn=8, time_input="adaln")
        config.process.update(name=f"{name}({said})")
        experiment = assemble(config, load_tokenizer("char27"), devices=jax.devices()[:1])
        params = random_like(jax.eval_shape(experiment.init, jax.random.key(0)), 3)
        moved.append(run(experiment.optimizer, OptimizerSpec(), params, [random_like(params, 1), random_like(params, 2)]))
    plain, slow = moved
    for leaf in schedule:
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a * 0.125, b), plain["process"].pop(leaf), slow["process"].pop(leaf))
    assert toy.same(plain, slow) and jax.tree.leaves(plain)


def test_clip_bounds_the_global_norm_before_adam(params):
    """A step of plain Adam does not see the gradient's size, but its epsilon does: two gradients above the bound give one update."""
    spec = OptimizerSpec(eps=1.0, clip=1.0, weight_decay=0.0)
    gradient = random_like(params, 2)
    tx = build_optimizer(spec, toy.KINDS)
    once, twice = (run(tx, spec, params, [jax.tree.map(lambda g, k=k: k * g, gradient)]) for k in (1.0, 2.0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9), once, twice)
    unbound = OptimizerSpec(eps=1.0, clip=0.0, weight_decay=0.0)
    loose = run(build_optimizer(unbound, toy.KINDS), unbound, params, [gradient])
    assert optax.tree.norm(loose) > 1.5 * optax.tree.norm(once)
    # Below the bound nothing changes, and a gradient of zeros, whose norm divides nothing, is no exception.
    small = jax.tree.map(lambda g: 0.5 * g / optax.tree.norm(gradient), gradient)
    assert toy.same(*(run(build_optimizer(each, toy.KINDS), each, params, [small]) for each in (spec, unbound)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run(tx, spec, params, [jax.tree.map(jnp.zeros_like, gradient)])))


@pytest.mark.parametrize(
    ("axes", "shape"), [(None, (2, 16, 8)), (".ioo", (2, 16, 4, 2)), (".iio", (2, 4, 4, 8)), ("io", (16, 8)), ("oi", (16, 8))]
)
def test_muon_orthogonalises_each_stacked_matrix(axes, shape):
    """The [inputs, outputs] matrix of every layer gets singular values near one (Muon leaves 0.5 to 1.5), times AdamW's size."""
    spec = OptimizerSpec(name="muon", lr=1.0, weight_decay=0.0, clip=0.0, schedule="constant", warmup=0)
    params = {"kernel": jnp.zeros(shape), "scale": jnp.ones(8)}
    tree = None if axes is None else {"kernel": axes, "scale": ""}
    tx = build_optimizer(spec, {"kernel": "matrix", "scale": "vector"}, matrix_axes=tree)
    gradient = random_like(params, 5)
    updates = run(tx, spec, params, [gradient])
    matrices = np.asarray(updates["kernel"]).reshape(-1, 16, 8)
    singular = np.linalg.svd(matrices, compute_uv=False) / (MUON_RMS * np.sqrt(16))
    assert singular.min() > 0.4 and singular.max() < 1.6
    # The direction is the gradient's polar factor, layer by layer: no mixing between layers, signs kept.
    for update, g in zip(matrices, np.asarray(gradient["kernel"]).reshape(-1, 16, 8), strict=True):
        u, _, vh = np.linalg.svd(g, full_matrices=False)
        assert np.sum(-update * (u @ vh)) / np.linalg.norm(update) / np.linalg.norm(u @ vh) > 0.95
    np.testing.assert_allclose(updates["scale"], -np.sign(gradient["scale"]), rtol=1e-4)  # the first step of Adam
    sides = optax.contrib.MuonDimensionNumbers(*_sides(axes or "", len(shape)))
    theirs = optax.contrib.scale_by_muon(eps=spec.eps, weight_dimension_numbers=sides)
    expected = -MUON_RMS * np.sqrt(16) * theirs.update(gradient["kernel"], theirs.init(params["kernel"]))[0]
    np.testing.assert_allclose(updates["kernel"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_an_update_that_is_not_accepted_keeps_the_state(name, params):
    """Whatever its gradient; one that is accepted has the state and the updates of one that nobody judges."""
    spec = OptimizerSpec(name=name)
    tx, numbers = build_optimizer(spec, toy.KINDS), hyperparameters_of(spec, 10)
    update = jax.jit(lambda gradient, state, accept: tx.update(gradient, state, params, step=0, hyperparameters=numbers, accept=accept))
    gradient = random_like(params, 6)
    updates, state = jax.jit(tx.update)(gradient, tx.init(params), params, step=0, hyperparameters=numbers)
    accepted, same = update(gradient, tx.init(params), True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9), (accepted, same), (updates, state))
    assert toy.same(update(jax.tree.map(lambda g: g * np.nan, gradient), state, False)[1], state)


OF_ADAM = ["count", "mu", "nu"]


@pytest.mark.parametrize(
    ("name", "eps", "places"),
    [
        ("adamw", 1.0, [f"[1].{part}" for part in OF_ADAM]),
        ("adamw", 0.5, [f"[1][1].{part}" for part in OF_ADAM]),
        (
            "muon",
            1.0,
            [f"[1].inner_states['adam'].inner_state.{part}" for part in OF_ADAM]
            + [f"[1].inner_states['muon'].inner_state[0].{part}" for part in ("count", "mu", "ns_coeffs")],
        ),
    ],
)
def test_the_state_has_the_places_that_checkpoints_of_earlier_runs_name(name, eps, places, params):
    """A leaf of a checkpoint is found by its place: a run that was begun with an earlier version is to resume."""
    ones, of_eps = (jax.tree.map(lambda _, value=value: value, toy.KINDS) for value in (1.0, eps))
    tx = build_optimizer(OptimizerSpec(name=name), toy.KINDS, ones, ones, of_eps)
    found = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(jax.eval_shape(tx.init, params))}
    assert all(any(leaf.startswith(place) for place in places) for leaf in found), found
    assert all(any(leaf.startswith(place) for leaf in found) for place in places), found


def test_muon_leaves_other_leaves_to_adamw(params):
    gradients = [random_like(params, seed) for seed in range(2)]
    specs = [OptimizerSpec(name=name, clip=0.0) for name in ("muon", "adamw")]
    muon, adamw = (run(build_optimizer(spec, toy.KINDS), spec, params, gradients) for spec in specs)
    for a, b in [("embedding", "table"), ("layers", "scale"), ("head", "kernel")]:
        assert toy.same(muon[a][b], adamw[a][b])
    assert not np.allclose(muon["layers"]["kernel"], adamw["layers"]["kernel"])


def test_muon_decays_matrices_and_takes_multipliers(params):
    """With a zero gradient only the decay moves a weight: -lr * multiplier * weight_decay * multiplier * p."""
    spec = OptimizerSpec(name="muon", lr=0.1, weight_decay=0.2, schedule="constant", warmup=0)
    half = jax.tree.map(lambda _: 0.5, toy.KINDS)
    updates = run(build_optimizer(spec, toy.KINDS, half, half), spec, params, [jax.tree.map(jnp.zeros_like, params)])
    np.testing.assert_allclose(updates["layers"]["kernel"], -0.1 * 0.5 * 0.1 * params["layers"]["kernel"], rtol=1e-5)
    assert not np.any(updates["layers"]["scale"])


def test_bad_names_are_refused(params):
    with pytest.raises(InputError, match="optimizer.name is 'adam'; did you mean 'adamw'"):
        OptimizerSpec(name="adam")
    with pytest.raises(InputError, match="choose one of cosine, wsd, constant"):
        OptimizerSpec(schedule="linear")
    with pytest.raises(InputError, match="kind 'bias' is unknown"):
        build_optimizer(OptimizerSpec(), {"b": "bias"})
    spec, four_axes = OptimizerSpec(name="muon"), {"w": jnp.ones((1, 2, 3, 4))}
    with pytest.raises(ValueError, match="matrix_axes"):
        run(build_optimizer(spec, {"w": "matrix"}), spec, four_axes, [four_axes])


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_with_its_number_of_steps_it_is_a_transformation_like_any_of_optax(name, params):
    """In someone else's loop and chain it makes the updates that a run makes."""
    spec, gradients = OptimizerSpec(name=name, warmup=2), [random_like(params, seed) for seed in range(4)]
    own = optax.chain(optax.scale(2.0), build_optimizer(spec, toy.KINDS, steps=10))
    state, update = own.init(params), jax.jit(own.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
    doubled = [jax.tree.map(lambda g: 2 * g, gradient) for gradient in gradients]
    same = run(build_optimizer(spec, toy.KINDS), spec, params, doubled)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-12), updates, same)
    optax.apply_updates(params, updates)
