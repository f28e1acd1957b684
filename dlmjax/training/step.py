"""State and step.  The state is a plain nested dict; the step is one jitted function without transfers to the host.

state = {
    "params":  float32 tree,
    "ema":     float32 tree like params, or {} when averaging is off,
    "opt":     {"transform": optax state, "guard": scalars of the non-finite and spike policy},
    "step":    int32 [], number of updates, skipped ones included,
}
Axis legend: B rows of the step's batch, A microbatches.
"""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from dlmjax.errors import InputError
from dlmjax.training.optimizer import Guarded

# A spike is measured against a running mean of the loss: a memory of about 50 steps, used after as many.
SPIKE_MEMORY = 0.98
SPIKE_AFTER = 50
_EFFORT = "xla_backend_optimization_level"


def abstract_state(init_params: Callable, tx: optax.GradientTransformation, shardings: dict | None = None, *, ema: bool = True) -> dict:
    """Shapes, dtypes and (with `shardings`) shardings of the state without computing it: the target of a restore.

    Args:
      init_params: key -> params, as for `init_state`.
      shardings: NamedShardings, a tree like the parameters; moments of the optimizer have the sharding of their parameter.
    """
    shapes = jax.eval_shape(lambda key: _fresh(init_params(key), tx, ema), jax.random.key(0))
    if shardings is None:
        return shapes
    placed = _state_shardings(shapes, shardings)
    return jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, placed)


def init_state(
    init_params: Callable, tx: optax.GradientTransformation, key: Any, shardings: dict | None = None, *, ema: bool = True
) -> dict:
    """A new state, made in place by one jitted function: no device ever holds an unsharded copy.

    (`jax.jit(tx.init)(params)` on its own would replicate the optimizer's moments on every device.)
    """
    out = None if shardings is None else jax.tree.map(lambda leaf: leaf.sharding, abstract_state(init_params, tx, shardings, ema=ema))
    options = None
    on_cpu = (jax.default_backend() if shardings is None else jax.tree.leaves(shardings)[0].mesh.devices.flat[0].platform) == "cpu"
    if on_cpu and _EFFORT not in os.environ.get("XLA_FLAGS", ""):
        # A program that runs once: LLVM's least optimisation halves its compilation. (Without any, the last bits of the values differ.)
        options = {_EFFORT: 1}
    return jax.jit(lambda key: _fresh(init_params(key), tx, ema), out_shardings=out, compiler_options=options)(key)


def _fresh(params: dict, tx: optax.GradientTransformation, ema: bool) -> dict:
    """The state of step 0 with these parameters."""
    guard = {
        "mean_loss": jnp.zeros([], jnp.float32),
        "accepted": jnp.zeros([], jnp.int32),
        "skipped": jnp.zeros([], jnp.int32),
        "stopped": jnp.zeros([], jnp.int32),
    }
    # A copy: two leaves that share a buffer cannot both be donated.
    average = jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params) if ema else {}
    return {"params": params, "ema": average, "opt": {"transform": tx.init(params), "guard": guard}, "step": jnp.zeros([], jnp.int32)}


def _state_shardings(shapes: dict, shardings: dict) -> dict:
    """Sharding of every leaf: a leaf whose path ends like a parameter's, with its shape, is split like it; all others are replicated."""
    flat_params, _ = jax.tree_util.tree_flatten_with_path(shapes["params"])
    by_path = {path: (leaf.shape, sharding) for (path, leaf), sharding in zip(flat_params, jax.tree.leaves(shardings), strict=True)}
    replicated = NamedSharding(jax.tree.leaves(shardings)[0].mesh, PartitionSpec())

    def sharding_of(path, leaf):
        for start in range(len(path)):  # longest ending first
            shape, sharding = by_path.get(path[start:], (None, None))
            if shape == leaf.shape:
                return sharding
        return replicated

    return jax.tree_util.tree_map_with_path(sharding_of, shapes)


def clear_stop(state: dict) -> dict:
    """Releases a state that the "stop" policy froze, for a run that is continued on purpose."""
    guard = state["opt"]["guard"]
    stopped = guard["stopped"]
    cleared = jax.jit(lambda: jnp.zeros([], jnp.int32), out_shardings=stopped.sharding)()
    return {**state, "opt": {**state["opt"], "guard": {**guard, "stopped": cleared}}}


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """`step(state, batch, key) -> (state, metrics)`, see `make_train_step`: a jitted function and its hyperparameters.

    Hyperparameters are arguments, not constants, of the compiled program: runs that differ only in these share it, also through jax's
    persistent cache.
    """

    function: Any  # jitted (state, batch, key, hyperparameters) -> (state, metrics); the state is donated
    hyperparameters: Any  # tree of float32 scalars on the host
    sharding: NamedSharding | None = None  # of the hyperparameters; None = the default device

    def __call__(self, state: dict, batch: dict, key: Any) -> tuple[dict, dict]:
        return self.function(state, batch, key, self.placed)

    @functools.cached_property
    def placed(self) -> Any:
        """The hyperparameters on the devices, copied at the first use."""
        with jax.transfer_guard_host_to_device("allow"):
            return jax.jit(lambda hyperparameters: hyperparameters, out_shardings=self.sharding)(self.hyperparameters)

    def trace(self, state: dict, batch: dict, key: Any) -> jax.stages.Traced:
        """The function traced for arguments that may be abstract, on devices that need not be present: `.lower().compile()`
        returns a program of (state, batch, key, `placed`)."""
        return self.function.trace(state, batch, key, self.abstract)

    @property
    def abstract(self) -> Any:
        """The hyperparameters as shapes with their sharding."""
        return jax.tree.map(lambda number: jax.ShapeDtypeStruct((), number.dtype, sharding=self.sharding), self.hyperparameters)


def make_train_step(
    loss_fn: Callable,
    tx: optax.GradientTransformation,
    *,
    accumulation: int = 1,
    ema_decay: float = 0.9999,
    hyperparameters: Any = (),
    learning_rate: Callable | None = None,
    on_nonfinite: str = "skip",
    spike: float = 0.0,
    steps: int | None = None,
    divisor: str = "tokens",
    average_from: int = 0,
    log_every: int = 1,
    shardings: dict | None = None,
) -> TrainStep:
    """Builds `step(state, batch, key) -> (state, metrics)`: jitted, state donated, everything left on the device.

    The gradient is that of the summed loss divided by the summed tokens (`divisor`), so it does not depend on `accumulation` or on the mesh
    beyond the order of additions.  `key` is the run's root key: the step folds its own number in.

    Args:
      loss_fn: (params, batch, key) -> (total [] in nats, loss_terms).  All are sums over the batch; loss_terms hold at least "tokens".
      accumulation: microbatches; microbatch a takes the rows a, a + A, a + 2A, ... so that a device's rows stay on it.
      ema_decay: d of ema <- ema + (1 - min(d, (1+s)/(10+s))) (params - ema), float32; 0 = off (state["ema"] is {}).
      hyperparameters: tree of float32 scalars that `tx.update` and `learning_rate` receive; like `ema_decay`, arguments of the program.
      learning_rate: (hyperparameters, step) -> rate, for the metrics only.
      on_nonfinite: "skip" leaves the state but counts the step; "stop" also freezes it (its step included) until `clear_stop`.
      steps: updates of the run. Where it is given, `loss_fn` also receives `progress`, the share of them that is done, float32 []: an
        argument of the program, too.
      divisor: the loss term whose sum over the batch divides the loss, `Objective.divisor`.
      average_from: step at which the average starts anew, since another phase begins there: s above is counted from it.
      log_every: steps between those that measure the norms of update and parameters, which are NaN in the others; with `steps`, the last
        step measures them, too. 1 = every step; any larger number is an argument of the program.
      spike: a loss above this multiple of its running mean is treated like a non-finite one, after SPIKE_AFTER good steps; 0 = off.
      shardings: of the parameters, as for `init_state`; fixes the state's shardings, so that no step can change them and recompile.

    Returns:
      The step.  Its metrics are device arrays: "loss" (nats per token), "grad_norm" (before clipping), "update_norm", "param_norm",
      "learning_rate", "skipped" (this step, 0 or 1), "skipped_total", "stopped", "bad_microbatches" bool [A], "parts" (sums).

    Raises:
      InputError: an unknown `on_nonfinite`; when traced, a batch that `accumulation` does not divide.
    """
    if on_nonfinite not in ("skip", "stop"):
        raise InputError(f"on_nonfinite is {on_nonfinite!r}; choose one of skip, stop")
    tx = optax.with_extra_args_support(tx)
    guarded = tx.update if isinstance(tx, Guarded) else _guarded(tx.update)

    def step(state, batch, key, dynamic_args):
        """One update; see `make_train_step`."""
        hyperparameters, params, opt, number = dynamic_args["optimizer"], state["params"], state["opt"], state["step"]
        key = jax.random.fold_in(key, number)
        loss_now = loss_fn if steps is None else functools.partial(loss_fn, progress=number.astype(jnp.float32) / dynamic_args["steps"])
        gradient, share, grad_norm, loss, loss_terms, bad_A = _accumulate(loss_now, params, batch, key, (accumulation, divisor), shardings)
        guard, accept = _judge(opt["guard"], loss, jnp.isfinite(grad_norm), on_nonfinite, spike)
        update = functools.partial(guarded, step=number, hyperparameters=hyperparameters, grad_norm=grad_norm)
        due = None if log_every == 1 else _is_due(number, dynamic_args)
        params, transform, update_norm = _updated(update, opt["transform"], params, gradient, share, accept, due)
        average = _average(state["ema"], params, number - dynamic_args["average_from"], dynamic_args["ema_decay"], accept)
        # A frozen state keeps its number: it is the state before the bad step, and can be saved as such.
        number = jnp.where(guard["stopped"] > 0, number, number + 1)
        metrics = {
            "loss": loss,
            "grad_norm": grad_norm,
            "update_norm": update_norm,
            "param_norm": _when(due, optax.tree.norm, params),
            "learning_rate": jnp.float32(0) if learning_rate is None else learning_rate(hyperparameters, state["step"]),
            "skipped": 1 - accept.astype(jnp.int32),
            "skipped_total": guard["skipped"],
            "stopped": guard["stopped"],
            "bad_microbatches": bad_A,
            "parts": loss_terms,
        }
        return {"params": params, "ema": average, "opt": {"transform": transform, "guard": guard}, "step": number}, metrics

    of_run = {"average_from": np.int32(average_from), **({} if steps is None else {"steps": np.float32(steps)})}
    if log_every > 1:
        of_run |= {"log_every": np.int32(log_every), "last": np.int32(steps or 0)}
    return _jit(step, {"optimizer": hyperparameters, "ema_decay": np.float32(ema_decay), **of_run}, shardings)


def _jit(step: Callable, dynamic_args: dict, shardings: dict | None) -> TrainStep:
    """Donates the state and, when the layout is known, pins it on the way out (a drifting layout would compile a second time)."""
    if shardings is None:
        return TrainStep(jax.jit(step, donate_argnums=0), dynamic_args)
    replicated = NamedSharding(jax.tree.leaves(shardings)[0].mesh, PartitionSpec())

    def pinned(state, batch, key, dynamic_args):
        state, metrics = step(state, batch, key, dynamic_args)
        state = jax.lax.with_sharding_constraint(state, _state_shardings(jax.eval_shape(lambda: state), shardings))
        return state, jax.lax.with_sharding_constraint(metrics, replicated)

    return TrainStep(jax.jit(pinned, donate_argnums=0), dynamic_args, replicated)


def _select(accept: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda new, old: jnp.where(accept, new, old), new, old)


def _is_due(number: jax.Array, dynamic_args: dict) -> jax.Array:
    """Whether the step measures norms: a line of metrics follows it."""
    return ((number + 1) % dynamic_args["log_every"] == 0) | (number + 1 == dynamic_args["last"])


def _when(due: jax.Array | None, measure: Callable, of: Any) -> jax.Array:
    """measure(of), a float32 []; NaN where it is not due. None = always."""
    return measure(of) if due is None else jax.lax.cond(due, measure, lambda _: jnp.float32(jnp.nan), of)


def _guarded(update: Callable) -> Callable:
    """The update of any optax transformation as that of a `Guarded` one."""

    def guarded(updates, state, params, *, accept, **of_step):
        updates, new = update(updates, state, params, **of_step)
        return updates, new if accept is None else _select(accept, new, state)

    return guarded


def _updated(
    update: Callable, transform: Any, params: dict, gradient: dict, share: jax.Array, accept: jax.Array, due: jax.Array | None
) -> tuple[dict, Any, jax.Array]:
    """New parameters and optimizer state, and the norm of the update, from `share` of a summed gradient; see `_when` for `due`."""

    def of_share(share: jax.Array, accept: jax.Array | None = None) -> tuple:
        return update(optax.tree.scale(share, gradient), transform, params, accept=accept)

    if due is not None:
        norm = _when(due, lambda share: optax.tree.norm(of_share(share)[0]), share)
        # All that overwrites the donated state depends on this factor, so it happens after the measurement, for which the compiler then
        # copies nothing. A norm is never below 0. (XLA on CPU removes a barrier before it places copies.)
        share = jnp.where(norm < -1.0, jnp.nan, share)
    updates, transform = of_share(share, accept)
    if due is None:
        norm = optax.tree.norm(updates)
    return _select(accept, optax.apply_updates(params, updates), params), transform, jnp.where(accept, norm, 0.0)


def _accumulate(loss_fn: Callable, params: dict, batch: dict, key: Any, divided: tuple[int, str], shardings: dict | None) -> tuple:
    """Summed gradient, the factor that makes it one per token, its norm and the loss per token, the summed loss terms, and which
    microbatches were not finite.

    divided: (number of microbatches, the loss term that divides the loss).
    """
    accumulation, divisor = divided
    rows = jax.tree.leaves(batch)[0].shape[0]
    if rows % accumulation:
        raise InputError(f"data.batch={rows} is not a multiple of train.accumulation={accumulation}")
    # [B] -> [B/A, A] -> [A, B/A]: splitting the minor part keeps each device's contiguous rows on that device.
    micro = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(rows // accumulation, accumulation, *x.shape[1:]), 0, 1), batch)
    constrain = (lambda tree: tree) if shardings is None else (lambda tree: jax.lax.with_sharding_constraint(tree, shardings))

    def body(total_gradient, rows_of_micro):
        (total, loss_terms), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params, rows_of_micro, key)
        bad = ~(jnp.isfinite(total) & jnp.isfinite(optax.tree.norm(gradient)))
        return constrain(optax.tree.add(total_gradient, gradient)), (total, loss_terms, bad)

    gradient, (total_A, loss_terms_A, bad_A) = jax.lax.scan(body, constrain(optax.tree.zeros_like(params)), micro)
    loss_terms = jax.tree.map(lambda part: part.sum(axis=0, dtype=part.dtype), loss_terms_A)
    tokens = jnp.maximum(loss_terms[divisor], 1).astype(jnp.float32)
    # The norm is taken before the division: with one microbatch the compiler then finds it in the loop body already.
    norm = optax.tree.norm(gradient) / tokens
    return gradient, 1 / tokens, norm, total_A.sum() / tokens, loss_terms, bad_A


def _judge(guard: dict, loss: jax.Array, finite: jax.Array, on_nonfinite: str, spike: float) -> tuple[dict, jax.Array]:
    """Decides whether the update is accepted.  Returns the guard's new scalars and the decision (bool [])."""
    good = finite & jnp.isfinite(loss)
    ceiling = jnp.float32(jnp.inf)
    if spike:
        ceiling = jnp.where(guard["accepted"] >= SPIKE_AFTER, spike * guard["mean_loss"], jnp.inf)
    frozen = guard["stopped"] > 0
    accept = good & (loss <= ceiling) & ~frozen
    # A spike pulls the mean up by its capped value: a lasting rise is accepted after a while instead of ending the run's progress.
    seen = guard["accepted"].astype(jnp.float32)
    memory = jnp.minimum(SPIKE_MEMORY, seen / (seen + 1))
    mean = memory * guard["mean_loss"] + (1 - memory) * jnp.minimum(loss, ceiling)
    bad = ~accept & ~frozen
    return {
        "mean_loss": jnp.where(good & ~frozen, mean, guard["mean_loss"]),
        "accepted": guard["accepted"] + accept,
        "skipped": guard["skipped"] + bad,
        "stopped": jnp.where(bad & (on_nonfinite == "stop"), 1, guard["stopped"]),
    }, accept


def _average(ema: dict, params: dict, number: jax.Array, decay: jax.Array, accept: jax.Array) -> dict:
    """ema + (1 - d)(params - ema) with d = min(decay, (1+s)/(10+s)), s = `number`: without the warm-up, early averages are mostly the
    initial weights."""
    if not ema:
        return {}
    s = number.astype(jnp.float32)
    d = jnp.minimum(decay, (1 + s) / (10 + s))
    return jax.tree.map(lambda e, p: jnp.where(accept, e + (1 - d) * (p.astype(jnp.float32) - e), e), ema, params)
