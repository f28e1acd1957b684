"""The step: what it computes, what it keeps, what it refuses, how often it compiles, and that a mesh changes none of it."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from dlmjax.errors import InputError
from dlmjax.training import OptimizerSpec, abstract_state, build_optimizer, clear_stop, init_state, make_train_step
from dlmjax.training.step import SPIKE_AFTER
from tests.training import toy
from tests.training.conftest import HYPERPARAMETERS, RATE, STEPS

KEY = jax.random.key(7)

COMPILED = []
jax.monitoring.register_event_duration_secs_listener(lambda name, _, **kw: COMPILED.append(name) if "backend_compile" in name else None)


def close(a, b, tolerance):
    """Trees equal to a share of the largest entry of each leaf."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * max(float(np.abs(y).max()), 1e-3))


def run(step, state, steps, key=KEY):
    metrics = None
    for number in range(steps):
        state, metrics = step(state, toy.batch(number), key)
    return state, metrics


# --- what it computes ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_hand(tx):
    """Loss sum, parts, gradient per token and updates of one step, from the definition: its key is fold_in(root, step)."""
    differentiate, update = jax.jit(jax.value_and_grad(toy.loss_fn, has_aux=True)), jax.jit(tx.update)

    def compute(state, number):
        (total, parts), gradient = differentiate(state["params"], toy.batch(number), jax.random.fold_in(KEY, number))
        gradient = jax.tree.map(lambda g: g / float(parts["tokens"]), gradient)
        updates, _ = update(gradient, state["opt"]["transform"], state["params"], step=number, hyperparameters=HYPERPARAMETERS)
        return total, parts, gradient, updates

    return compute


def test_one_step_is_gradient_per_token_then_optimizer_then_ema(step, by_hand, new_state):
    old = new_state()
    state, metrics = step(new_state(), toy.batch(0), KEY)
    total, parts, gradient, updates = by_hand(old, 0)
    tokens = float(parts["tokens"])
    assert tokens == toy.B * toy.L - toy.B // 4 * toy.L // 2
    close(state["params"], optax.apply_updates(old["params"], updates), 1e-6)
    np.testing.assert_allclose(metrics["loss"], total / tokens, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(gradient), rtol=1e-5)
    np.testing.assert_allclose(metrics["update_norm"], optax.tree.norm(updates), rtol=1e-5)
    np.testing.assert_allclose(metrics["param_norm"], optax.tree.norm(state["params"]), rtol=1e-6)
    np.testing.assert_allclose(metrics["learning_rate"], RATE(HYPERPARAMETERS, 0), rtol=1e-6)
    for name, part in parts.items():
        np.testing.assert_allclose(metrics["parts"][name], part, rtol=1e-5)
    assert int(state["step"]) == 1 and int(metrics["skipped"]) == 0


def test_norms_are_measured_in_the_steps_of_a_line_alone(step, tx, new_state):
    """In the others they are NaN, and the state is the same in all."""
    seldom = make_train_step(toy.loss_fn, tx, ema_decay=0.9, hyperparameters=HYPERPARAMETERS, learning_rate=RATE, log_every=3)
    often, state, norms = new_state(), new_state(), ("update_norm", "param_norm")
    compiled = None
    for number in range(7):
        often, expected = step(often, toy.batch(number), KEY)
        state, metrics = seldom(state, toy.batch(number), KEY)
        for name in norms:
            np.testing.assert_allclose(metrics[name], expected[name] if number in (2, 5) else np.nan, rtol=1e-5)
        np.testing.assert_allclose(metrics["grad_norm"], expected["grad_norm"], rtol=1e-5)
        compiled = compiled or len(COMPILED)
    close(state, often, 1e-5)
    assert len(COMPILED) == compiled


def test_loss_falls(step, new_state):
    state, first = step(new_state(), toy.batch(0), KEY)
    for number in range(1, STEPS):
        state, last = step(state, toy.batch(number), KEY)
    assert float(last["loss"]) < 0.3 * float(first["loss"])


def test_ema_follows_its_formula(step, new_state):
    state = new_state()
    expected = jax.tree.map(lambda p: np.asarray(p, np.float64), state["params"])
    for number in range(12):
        state, _ = step(state, toy.batch(number), KEY)
        d = min(0.9, (1 + number) / (10 + number))
        expected = jax.tree.map(lambda e, p, d=d: d * e + (1 - d) * np.asarray(p, np.float64), expected, state["params"])
    close(state["ema"], expected, 1e-6)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state["ema"]))
    assert not toy.same(state["ema"], state["params"])


def test_the_average_starts_anew_with_a_phase_and_the_rate_rises_again(step, new_state):
    """The step of a later phase is the same program with other arguments: at its start d is (1+0)/(10+0), whatever the step's number."""
    again = dataclasses.replace(
        step, hyperparameters={**step.hyperparameters, "optimizer": HYPERPARAMETERS.again(6, 0.1, STEPS), "average_from": np.int32(6)}
    )
    state, rates = new_state(), []
    for number in range(12):
        old = jax.device_get(state["ema"])
        state, metrics = (step if number < 6 else again)(state, toy.batch(number), KEY)
        rates.append(float(metrics["learning_rate"]))
        since = number - 6 if number >= 6 else number
        d = min(0.9, (1 + since) / (10 + since))
        close(state["ema"], jax.tree.map(lambda e, p: e + (1 - d) * (p - e), old, jax.device_get(state["params"])), 1e-5)  # noqa: B023
    plain = [float(RATE(HYPERPARAMETERS, number)) for number in range(12)]
    np.testing.assert_allclose(np.divide(rates, plain), [1] * 6 + [0.25, 0.5, 0.75] + [1] * 3, rtol=1e-6)


def test_without_ema_nothing_is_kept_and_any_optax_transform_will_do():
    tx = optax.sgd(0.1)
    state = init_state(toy.init_params, tx, jax.random.key(0), ema=False)
    assert state["ema"] == {}
    state, _ = make_train_step(toy.loss_fn, tx, ema_decay=0.0)(state, toy.batch(0), KEY)
    assert state["ema"] == {} and int(state["step"]) == 1


def test_accumulation_changes_only_the_order_of_sums(step, step4, new_state):
    one, metrics_one = run(step, new_state(), 3)
    four, metrics_four = run(step4, new_state(), 3)
    close(four["params"], one["params"], 2e-6)
    np.testing.assert_allclose(metrics_four["loss"], metrics_one["loss"], rtol=1e-6)
    np.testing.assert_allclose(metrics_four["grad_norm"], metrics_one["grad_norm"], rtol=1e-5)
    np.testing.assert_array_equal(metrics_four["parts"]["tokens_by_level"], metrics_one["parts"]["tokens_by_level"])  # the noise's own bits
    assert metrics_four["bad_microbatches"].shape == (4,)


def test_microbatches_must_divide_the_batch(tx, new_state):
    with pytest.raises(InputError, match="data.batch=32 is not a multiple of train.accumulation=5"):
        make_train_step(toy.loss_fn, tx, accumulation=5, hyperparameters=HYPERPARAMETERS)(new_state(), toy.batch(0), KEY)


def test_a_batch_of_padding_does_no_harm(step, new_state):
    """No token, no gradient: the loss is 0, not NaN."""
    empty = {**toy.batch(0), "segments": np.zeros((toy.B, toy.L), np.int32)}
    _, metrics = step(new_state(), empty, KEY)
    assert float(metrics["loss"]) == 0.0 and int(metrics["skipped"]) == 0


# --- one compilation, donation, no host sync -------------------------------------------------------------------------------------------


def test_compiles_once_and_never_speaks_to_the_host(step, new_state):
    state = new_state()
    batches = [jax.device_put(toy.batch(number)) for number in range(5)]
    state, _ = step(state, batches[0], KEY)
    traces, compiled = toy.loss_fn.traces, len(COMPILED)
    with jax.transfer_guard("disallow"):
        for batch in batches[1:]:
            state, metrics = step(state, batch, KEY)
    assert toy.loss_fn.traces == traces and len(COMPILED) == compiled
    assert int(metrics["skipped_total"]) == 0 and int(state["step"]) == 5


def test_the_compile_counter_counts():
    before = len(COMPILED)
    jax.jit(lambda x: x * 3 + 1)(jnp.ones(3)).block_until_ready()
    assert len(COMPILED) > before


def test_state_is_donated(step, new_state):
    state = new_state()
    old = jax.tree.leaves(state)
    step(state, toy.batch(0), KEY)
    assert all(leaf.is_deleted() for leaf in old)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_no_parameter_or_moment_is_copied(name):
    """Each leaf of the state is overwritten where it is. A copy of the state costs a quarter of an update's time and memory."""
    tx = build_optimizer(OptimizerSpec(name=name), toy.KINDS)
    step = make_train_step(toy.loss_fn, tx, hyperparameters=HYPERPARAMETERS, learning_rate=RATE, log_every=20)
    state = abstract_state(toy.init_params, tx)
    text = step.trace(state, toy.batch(0), KEY).lower().compile().as_text()
    entry = text[text.index("ENTRY") :]
    assert "state__params__" in entry  # the search finds what there is
    assert re.findall(r"= f32\[\d[\d,]*\]\S* copy\([^)]*state__[^)]*\)", entry) == []


# --- non-finite gradients and spikes ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fragile(tx):
    return {
        policy: make_train_step(
            toy.fragile_loss_fn, tx, accumulation=4, ema_decay=0.9, hyperparameters=HYPERPARAMETERS, on_nonfinite=policy, spike=4.0
        )
        for policy in ("skip", "stop")
    }


def test_skip_keeps_the_state_counts_and_names_the_microbatch(fragile, new_state):
    state, _ = fragile["skip"](new_state(), toy.batch(0), KEY)
    before = jax.device_get(state)
    state, metrics = fragile["skip"](state, toy.batch(1, poison=6), KEY)
    after = jax.device_get(state)
    assert toy.same(after["params"], before["params"]) and toy.same(after["ema"], before["ema"])
    assert toy.same(after["opt"]["transform"], before["opt"]["transform"])
    assert after["step"] == before["step"] + 1
    assert int(metrics["skipped"]) == 1 and int(metrics["skipped_total"]) == 1 and int(metrics["stopped"]) == 0
    assert float(metrics["update_norm"]) == 0.0
    np.testing.assert_array_equal(metrics["bad_microbatches"], [False, False, True, False])  # row 6 = 2 + 4
    state, metrics = fragile["skip"](state, toy.batch(2), KEY)
    assert int(metrics["skipped"]) == 0 and int(metrics["skipped_total"]) == 1
    assert not toy.same(jax.device_get(state["params"]), after["params"])


def test_a_skipped_step_does_not_shift_the_schedule(fragile, by_hand, new_state):
    """The step after a skipped one has the learning rate of its own number, Adam's bias correction that of its own count."""
    state, _ = fragile["skip"](new_state(), toy.batch(0, poison=0), KEY)
    state, metrics = fragile["skip"](state, toy.batch(1), KEY)
    _, _, _, updates = by_hand(new_state(), 1)  # the moments are still those of the start
    close(state["params"], optax.apply_updates(new_state()["params"], updates), 1e-6)
    np.testing.assert_allclose(metrics["update_norm"], optax.tree.norm(updates), rtol=1e-5)


def test_stop_freezes_the_last_good_state_until_cleared(fragile, new_state):
    state, _ = fragile["stop"](new_state(), toy.batch(0), KEY)
    before = jax.device_get(state)
    for number in (1, 2, 3):  # the host goes on for a while before it looks
        state, metrics = fragile["stop"](state, toy.batch(number, poison=0 if number == 1 else None), KEY)
        assert int(metrics["stopped"]) == 1 and int(metrics["skipped"]) == 1
    frozen = jax.device_get(state)
    assert all(toy.same(frozen[part], before[part]) for part in ("params", "ema", "step"))
    assert frozen["opt"]["guard"]["skipped"] == 1
    state, metrics = fragile["stop"](clear_stop(state), toy.batch(1), KEY)
    assert int(metrics["stopped"]) == 0 and int(state["step"]) == before["step"] + 1


def test_a_spike_is_skipped_once_the_mean_is_known(fragile, new_state):
    spike = toy.batch(0)
    spike["tokens"] = spike["tokens"] + 100  # a loss 1000 times as large
    _, metrics = fragile["skip"](new_state(), spike, KEY)
    assert int(metrics["skipped"]) == 0  # too early to tell
    state = new_state()
    for number in range(SPIKE_AFTER):
        state, metrics = fragile["skip"](state, toy.batch(number), KEY)
    assert int(metrics["skipped_total"]) == 0
    before = jax.device_get(state)
    state, metrics = fragile["skip"](state, spike, KEY)
    assert int(metrics["skipped"]) == 1 and toy.same(jax.device_get(state["params"]), before["params"])
    assert not metrics["bad_microbatches"].any()  # finite, all of them
    # A rise that lasts is accepted in the end: the mean follows, by its capped value.
    for _ in range(300):
        state, metrics = fragile["skip"](state, spike, KEY)
        if not int(metrics["skipped"]):
            break
    assert 20 < int(metrics["skipped_total"]) < 299


def test_a_loss_receives_the_share_of_the_run_that_is_done():
    """From the state's own step, so that a resumed run continues with it; the number of steps is an argument of the program."""

    def loss_fn(params, batch, key, progress):
        return jnp.sum(params["w"]) * progress, {"tokens": jnp.int32(1), "progress": progress}

    state = init_state(lambda key: {"w": jnp.ones(2)}, optax.sgd(0.5), KEY, ema=False)
    step = make_train_step(loss_fn, optax.sgd(0.5), ema_decay=0.0, steps=4, log_every=3)
    for number in range(4):
        before = np.asarray(state["params"]["w"])
        state, metrics = step(state, {"row": jnp.zeros(1)}, KEY)
        assert float(metrics["parts"]["progress"]) == number / 4
        assert np.isnan(metrics["update_norm"]) == (number < 2)  # the third step has a line, and the last of the run
        np.testing.assert_allclose(before - state["params"]["w"], 0.5 * number / 4, rtol=1e-6)
    assert float(step.placed["steps"]) == 4


def test_unknown_policy(tx):
    with pytest.raises(InputError, match="skip, stop"):
        make_train_step(toy.loss_fn, tx, on_nonfinite="ignore")


# --- meshes ----------------------------------------------------------------------------------------------------------------------------


def mesh_of(data, fsdp):
    return jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[: data * fsdp])


def shardings_on(mesh):
    specs = {
        "embedding": {"table": P(None, "fsdp")},
        "layers": {"kernel": P(None, "fsdp", None), "scale": P()},
        "head": {"kernel": P("fsdp", None)},
    }
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def on(mesh, batch):
    return jax.device_put(batch, NamedSharding(mesh, P(("data", "fsdp"))))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_optimizer_state_lies_where_its_parameters_lie(name):
    tx = build_optimizer(OptimizerSpec(name=name), toy.KINDS)
    shardings = shardings_on(mesh_of(2, 4))
    abstract = abstract_state(toy.init_params, tx, shardings)
    state = init_state(toy.init_params, tx, jax.random.key(0), shardings)
    jax.tree.map(lambda leaf, shape: leaf.sharding.is_equivalent_to(shape.sharding, leaf.ndim) or pytest.fail(str(shape)), state, abstract)
    moments = [(p, leaf) for p, leaf in jax.tree_util.tree_leaves_with_path(state["opt"]) if "embedding" in str(p) or "kernel" in str(p)]
    assert len(moments) == (6 if name == "adamw" else 5)  # Muon keeps one moment of a matrix
    for path, leaf in moments:
        assert leaf.addressable_shards[0].data.size * 4 == leaf.size, path
    assert state["opt"]["guard"]["mean_loss"].sharding.is_fully_replicated and state["step"].sharding.is_fully_replicated


@pytest.mark.parametrize("accumulation", [1, 4])
def test_eight_devices_compute_what_one_computes(accumulation, step, step4, tx, new_state, capfd):
    mesh = mesh_of(4, 2)
    shardings = shardings_on(mesh)
    state = init_state(toy.init_params, tx, jax.random.key(0), shardings)
    close(state["params"], new_state()["params"], 0)
    sharded = make_train_step(
        toy.loss_fn, tx, ema_decay=0.9, accumulation=accumulation, hyperparameters=HYPERPARAMETERS, shardings=shardings, log_every=3
    )
    key = jax.device_put(KEY, NamedSharding(mesh, P()))
    batches = [on(mesh, toy.batch(number)) for number in range(3)]
    if accumulation == 4:
        check_rows_stay(sharded.trace(state, batches[0], key).lower().compile().as_text())
    layout = jax.tree.map(lambda leaf: leaf.sharding, state)
    state, metrics = sharded(state, batches[0], key)
    compiled = len(COMPILED)
    with jax.transfer_guard("disallow"):
        for batch in batches[1:]:
            state, metrics = sharded(state, batch, key)
    assert len(COMPILED) == compiled  # the layout did not drift
    assert jax.tree.all(jax.tree.map(lambda leaf, place: leaf.sharding.is_equivalent_to(place, leaf.ndim), state, layout))
    one, metrics_one = run(step if accumulation == 1 else step4, new_state(), 3)
    close(state["params"], one["params"], 2e-6)
    close(state["ema"], one["ema"], 1e-6)
    np.testing.assert_allclose(metrics["loss"], metrics_one["loss"], rtol=1e-6)
    for name in ("update_norm", "param_norm"):
        np.testing.assert_allclose(metrics[name], metrics_one[name], rtol=1e-5)
    np.testing.assert_array_equal(metrics["parts"]["tokens_by_level"], metrics_one["parts"]["tokens_by_level"])
    assert "full rematerialization" not in capfd.readouterr().err


def check_rows_stay(text):
    """Splitting a batch into microbatches moves no token: no collective of the compiled step is on an int32 array."""
    moves = [line for line in text.splitlines() if any(f" {op}" in line for op in ("all-gather(", "all-to-all(", "collective-permute("))]
    assert any("f32[" in line for line in moves)  # gathered weights: the search finds what there is
    assert not [line for line in moves if "s32[" in line.split("=")[1].split("(")[0]]
