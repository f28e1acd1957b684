"""AdamW and Muon with one learning rate, schedules as pure functions of the step, and per-leaf multipliers (CompleteP).

One update of a leaf p with direction d (Adam's or Muon's) is
    p <- p - lr(step) * lr_multiplier * (d + weight_decay * wd_multiplier * p),
decay being decoupled (AdamW, 1711.05101) and applied to matrices, embeddings and the head, never to vectors (norms, biases).

The learning rate is a function of the state's own step counter, passed to `tx.update(..., step=)`: an update that was skipped
does not shift the schedule. Rates, budget and decay are arguments of the compiled program (`Hyperparameters`): runs that differ
only in these share one program.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from dlmjax.errors import InputError
from dlmjax.fields import check_section, default_of

KINDS = ("matrix", "embedding", "head", "vector")

# Muon's momentum; beta1 and beta2 of the spec belong to the leaves that AdamW keeps (modded-nanogpt's values).
MUON_MOMENTUM = 0.95
MUON_STEPS = 5
# Root-mean-square of an update under Muon, matched to AdamW's so that one learning rate and decay serve both (2502.16982, eq. 4).
MUON_RMS = 0.2


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """The fields of the config's section `optimizer`; `fields.py` has their meaning, units and bounds.

    Raises InputError on a value out of its bounds.
    """

    name: str = default_of("optimizer.name")
    lr: float = default_of("optimizer.lr")
    beta1: float = default_of("optimizer.beta1")
    beta2: float = default_of("optimizer.beta2")
    eps: float = default_of("optimizer.eps")
    weight_decay: float = default_of("optimizer.weight_decay")
    clip: float = default_of("optimizer.clip")
    schedule: str = default_of("optimizer.schedule")
    warmup: int = default_of("optimizer.warmup")
    decay: float = default_of("optimizer.decay")
    final: float = default_of("optimizer.final")
    rewarm: float = default_of("optimizer.rewarm")

    def __post_init__(self):
        check_section("optimizer", vars(self))


class Hyperparameters(NamedTuple):
    """Float32 arguments of the compiled step that describe its optimizer; they are not part of the state or of a checkpoint."""

    lr: Any  # peak learning rate
    warmup_share: Any  # 1 / warm-up steps; 1 without warm-up
    decay_from: Any  # last step before the decay
    decay_share: Any  # 1 / decay steps
    final: Any  # learning rate of the last step, as a share of `lr`
    fall: Any  # 1 - final, rounded once
    weight_decay: Any
    again_from: Any = np.float32(0)  # step from which the learning rate rises again
    again_share: Any = np.float32(1)  # 1 / steps of that rise; 1 without it

    def again(self, start: int, share: float, steps: int) -> "Hyperparameters":
        """Those of a phase that begins at step `start`: the rate rises again over the share `share` of the run's `steps` steps."""
        return self._replace(again_from=np.float32(start), again_share=np.float32(1) / np.float32(max(round(share * steps), 1)))


def hyperparameters_of(spec: OptimizerSpec, steps: int) -> Hyperparameters:
    """Hyperparameters of a run of `steps` updates, as numpy scalars."""
    if spec.schedule == "wsd":
        decay_steps = max(round(spec.decay * steps), 1)
        decay_from = steps - 1 - decay_steps
    else:
        decay_steps, decay_from = max(steps - 1 - spec.warmup, 1), spec.warmup
    # Reciprocals in float32, as a compiler makes of a division by a constant: the rates are those of a program for one run alone.
    warmup_share, decay_share = (np.float32(1) / np.float32(count) for count in (max(spec.warmup, 1), decay_steps))
    values = (spec.lr, warmup_share, decay_from, decay_share, spec.final, 1 - spec.final, spec.weight_decay)
    return Hyperparameters(*(np.float32(value) for value in values))


def learning_rate(schedule: str, hyperparameters: Hyperparameters, step: Any) -> Float[Array, "..."]:
    """The learning rate of step s = 0 .. steps-1, a float32.

    Warm-up rises as (s+1)/warmup, so the first step already moves.  "cosine" falls to `final` over the rest, "wsd" stays flat and
    falls linearly over the last `decay` share (2404.06395), "constant" stays.  The last step has exactly `final * lr` (not "constant").
    From `again_from` on, where a phase of a run begins, it rises once more, since the scale of the gradient is another one.
    """
    step = jnp.asarray(step, jnp.float32)
    warm = jnp.minimum((step + 1) * hyperparameters.warmup_share, 1.0)
    progress = jnp.clip((step - hyperparameters.decay_from) * hyperparameters.decay_share, 0.0, 1.0)
    if schedule == "constant":
        share = jnp.float32(1)
    elif schedule == "wsd":
        share = 1 - hyperparameters.fall * progress
    else:
        share = hyperparameters.final + hyperparameters.fall * 0.5 * (1 + jnp.cos(jnp.pi * progress))
    again = jnp.minimum((step - hyperparameters.again_from + 1) * hyperparameters.again_share, 1.0)
    return hyperparameters.lr * warm * share * again


class Guarded(optax.GradientTransformationExtraArgs):
    """A transformation whose `update(..., accept=bool [])` returns the old state where `accept` is false; None = accepted.

    Selected afterwards, the old moments would be needed beside the new ones: XLA on CPU then copies both for every leaf and step.
    """


def build_optimizer(
    spec: OptimizerSpec,
    kinds: dict,
    lr_multipliers: dict | None = None,
    wd_multipliers: dict | None = None,
    eps_multipliers: dict | None = None,
    matrix_axes: dict | None = None,
    steps: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """The gradient transformation of a run.

    Names, betas, epsilon and the clipping bound are fixed by the spec; the other fields come from `hyperparameters_of(spec, steps)`.
    Without `steps`, `update` requires the keywords `step` and `hyperparameters`, which `make_train_step` passes: one compiled program
    serves many runs. With it, this is a transformation like any of optax's, which counts its own updates.

    Args:
      steps: number of updates of the run, for which the learning rate is scheduled.
      kinds: tree like the parameters, each leaf one of KINDS.
      lr_multipliers, wd_multipliers, eps_multipliers: trees of floats like the parameters (epsilons: or of arrays that broadcast to
        them); None = 1 everywhere.
      matrix_axes: tree of strings like the parameters, one character per axis of a matrix leaf: "." stacked, "i" input, "o" output; a
        query projection [layer, embed, heads, head_dim] is ".ioo".  Muon orthogonalises the [inputs, outputs] matrix of each stacked
        entry.  None = "io" for two axes, ".io" for three.  Read for "matrix" leaves only.

    Raises:
      InputError: unknown kind.  ValueError: a matrix leaf of another rank without `matrix_axes`.
    """
    unknown = sorted(set(jax.tree.leaves(kinds)) - set(KINDS))
    if unknown:
        raise InputError(f"parameter kind {unknown[0]!r} is unknown; choose one of {', '.join(KINDS)}")
    ones = jax.tree.map(lambda _: 1.0, kinds)
    lr_multipliers, wd_multipliers = (ones if tree is None else tree for tree in (lr_multipliers, wd_multipliers))
    wd_multipliers = jax.tree.map(lambda kind, multiplier: 0.0 if kind == "vector" else multiplier, kinds, wd_multipliers)
    adam = _adam(spec, ones if eps_multipliers is None else eps_multipliers)
    if spec.name == "adamw":
        direction = adam
    else:
        labels = jax.tree.map(lambda kind: "muon" if kind == "matrix" else "adam", kinds)
        direction = optax.partition({"muon": _muon(spec, kinds, matrix_axes), "adam": adam}, labels)
    clip = [_clip(spec.clip)] if spec.clip else []
    tx = Guarded(*optax.chain(*clip, direction, _descend(spec.schedule, lr_multipliers, wd_multipliers)))
    return tx if steps is None else _counting(tx, hyperparameters_of(spec, steps))


def _clip(bound: float) -> optax.GradientTransformationExtraArgs:
    """Scales the gradient so that its norm over all leaves is at most `bound`; `grad_norm` is that norm where the caller has it.

    By a factor: XLA merges it into both moments of Adam, where division by the norm is a pass over memory of its own.
    """

    def update(updates, state, params=None, *, grad_norm=None, **extra):
        factor = jnp.minimum(1.0, bound / (optax.tree.norm(updates) if grad_norm is None else grad_norm))
        return jax.tree.map(lambda g: (g * factor).astype(g.dtype), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def _counting(tx: optax.GradientTransformationExtraArgs, hyperparameters: Hyperparameters) -> optax.GradientTransformationExtraArgs:
    """`tx` with the number of its updates in its state, and with constant hyperparameters."""

    def init(params):
        return jnp.zeros([], jnp.int32), tx.init(params)

    def update(updates, state, params=None, **_):
        count, inner = state
        updates, inner = tx.update(updates, inner, params, step=count, hyperparameters=hyperparameters)
        return updates, (count + 1, inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _adam(spec: OptimizerSpec, eps_multipliers: dict) -> optax.GradientTransformation:
    """Adam's direction with a leaf's own epsilon, and with the state of `optax.scale_by_adam`.

    m / (sqrt(v) + k eps) is what Adam makes of the gradient divided by k, so one scalar epsilon serves all leaves.
    """
    tree, divided = optax.tree, not all(np.all(multiplier == 1.0) for multiplier in jax.tree.leaves(eps_multipliers))

    def update(updates, state, params=None, *, accept=None, **extra):
        if divided:
            updates = jax.tree.map(lambda g, k: g / k, updates, _like(eps_multipliers, updates))
        count = optax.safe_increment(state.count)
        mu = tree.update_moment(updates, state.mu, spec.beta1, 1)
        nu = tree.update_moment_per_elem_norm(updates, state.nu, spec.beta2, 2)
        new = _kept(accept, optax.ScaleByAdamState(count, mu, nu), state)
        mu_hat, nu_hat = tree.bias_correction(new.mu, spec.beta1, count), tree.bias_correction(new.nu, spec.beta2, count)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + spec.eps), mu_hat, nu_hat), new

    adam = optax.GradientTransformationExtraArgs(optax.scale_by_adam(spec.beta1, spec.beta2, spec.eps).init, update)
    # The state keeps the place that it had behind a division of its own: checkpoints name leaves by their place.
    return optax.chain(optax.identity(), adam) if divided else adam


def _kept(accept: Any, new: Any, old: Any) -> Any:
    """The new state, the old one where `accept` is false; see `Guarded`.

    On CPU it is in memory before the direction is computed from it. Otherwise XLA merges the moments' update into that of the weights, too,
    which then reads old moments, and copies them so that they are still there. GPUs and TPUs update all in one pass.
    """
    if accept is None:
        return new
    new = jax.tree.map(lambda new, old: jnp.where(accept, new, old), new, old)
    return jax.lax.platform_dependent(new, cpu=jax.lax.optimization_barrier, default=lambda state: state)


def _like(tree: dict, masked: dict) -> dict:
    """`tree` with optax's `MaskedNode` wherever `masked` has one (inside `optax.partition` other groups' leaves are masked)."""
    return jax.tree.map(lambda node, value: node if _is_masked(node) else value, masked, tree, is_leaf=_is_masked)


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _muon(spec: OptimizerSpec, kinds: dict, matrix_axes: dict | None) -> optax.GradientTransformation:
    """Orthogonalised momentum (Muon, kellerjordan.github.io/posts/muon) for the matrix leaves, root-mean-square as AdamW's.

    The numbers and the state of `optax.contrib.scale_by_muon`, which has no `accept`.
    """
    tree, axes_tree = optax.tree, jax.tree.map(lambda _: "", kinds) if matrix_axes is None else matrix_axes

    def orthogonal(coefficients, leaf, axes):
        inputs, outputs = _sides(axes, leaf.ndim)
        order = tuple(i for i in range(leaf.ndim) if i not in inputs + outputs) + inputs + outputs
        rows, columns = (math.prod(leaf.shape[i] for i in side) for side in (inputs, outputs))
        ordered = jnp.transpose(leaf, order)
        matrices = _orthogonalised(ordered.reshape(-1, rows, columns), coefficients, spec.eps) * (MUON_RMS * math.sqrt(max(rows, columns)))
        return jnp.transpose(matrices.reshape(ordered.shape), tuple(np.argsort(order)))

    def update(updates, state, params=None, *, accept=None, **extra):
        count, beta = optax.safe_increment(state.count), MUON_MOMENTUM
        new = optax.contrib.MuonState(count, tree.update_moment(updates, state.mu, beta, 1), state.ns_coeffs)
        new = _kept(accept, new, state)
        now, later = tree.bias_correction(updates, beta, count), tree.bias_correction(new.mu, beta, count + 1)
        ahead = jax.tree.map(lambda m, g: beta * m + (1 - beta) * g, later, now)
        of_leaf = functools.partial(orthogonal, state.ns_coeffs)
        return jax.tree.map(of_leaf, ahead, _like(axes_tree, updates)), new

    init = optax.contrib.scale_by_muon(beta=MUON_MOMENTUM, eps=spec.eps).init
    # In a chain, where the state has the place that checkpoints of earlier runs name.
    return optax.chain(optax.GradientTransformationExtraArgs(init, update), optax.identity())


def _orthogonalised(x_NIO: Float[Array, "N I O"], coefficients: Any, eps: float) -> Float[Array, "N I O"]:
    """Each matrix with singular values near 1, by Newton-Schulz steps x <- a x + b (x x') x + c (x x')^2 x on its smaller side."""
    if x_NIO.shape[1] > x_NIO.shape[2]:
        return jnp.swapaxes(_orthogonalised(jnp.swapaxes(x_NIO, 1, 2), coefficients, eps), 1, 2)
    a, b, c = coefficients
    x_NIO = x_NIO / (jnp.linalg.norm(x_NIO, axis=(1, 2), keepdims=True) + eps)
    for _ in range(MUON_STEPS):
        square_NII = x_NIO @ jnp.swapaxes(x_NIO, 1, 2)
        x_NIO = a * x_NIO + (b * square_NII + (c * square_NII) @ square_NII) @ x_NIO
    return x_NIO


def _sides(axes: str, ndim: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Input and output axes of a matrix leaf, from its description or, without one, from its rank."""
    axes = axes or {2: "io", 3: ".io"}.get(ndim, "")
    if len(axes) != ndim or not {"i", "o"} <= set(axes) <= {".", "i", "o"}:
        raise ValueError(f"Muon requires matrix_axes such as '.ioo' for a leaf of {ndim} axes; {axes!r} does not fit")
    return tuple(i for i, side in enumerate(axes) if side == "i"), tuple(i for i, side in enumerate(axes) if side == "o")


def _descend(schedule: str, lr_multipliers: dict, wd_multipliers: dict) -> optax.GradientTransformationExtraArgs:
    """-lr(step) * multiplier * (direction + weight_decay * multiplier * parameter)."""

    def update(updates, state, params=None, *, step, hyperparameters, **extra):
        now = learning_rate(schedule, hyperparameters, step)

        def of_leaf(d, p, k, w):
            return -(now * k) * (d + hyperparameters.weight_decay * w * p if w else d)

        return jax.tree.map(of_leaf, updates, params, lr_multipliers, wd_multipliers), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
