"""A network of one's own, a `flax.nnx` module or a function of parameters, in place of a Transformer of `families`.

It maps (tokens, t, segments, positions), all [B, L], to logits [B, L, V] or to hidden states [B, L, D]. It says of itself, as attributes
of the module or as the `Declared` of a function, what it gives and what a position depends on; a process that requires something
else is refused by name. Parameters are a plain nested dict, {"module": ..., "head": {"kernel"}}, the head only for hidden states.

Shapes: B batch, L length, D width of the hidden states, V vocabulary.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from dlmjax.diffusion.declarations import Attention
from dlmjax.diffusion.process import Process
from dlmjax.errors import InputError
from dlmjax.models import head
from dlmjax.models.layout import SINGLE, Layout
from dlmjax.models.masks import BlockCausal, Causal, Full, Mask, allowed_in_batch, as_mask
from dlmjax.models.spec import Execution
from dlmjax.models.weights import normal

OUTPUTS = ("logits", "hidden")
ATTENTIONS = ("full", "causal", "mask")
KINDS = ("matrix", "embedding", "head", "vector")
HEAD_STD = 0.02  # initial values of the head of a network that gives hidden states


@dataclasses.dataclass(frozen=True)
class Declared:
    """What a network says of itself.

    output: "logits", or "hidden": states of any width, to which a linear head is added; logits then exist only where there is loss.
    attention: the positions of its segment that an output depends on. "full": all of them. "causal": those up to its own. "mask": those
      that a fifth argument `mask_BLL` allows (bool, [B, query, key], segments included); every process can be trained then.
    reads_time: whether the output depends on t.
    dropout: whether it draws random numbers in training; found by itself in a module.
    Raises InputError: another value.
    """

    output: str = "logits"
    attention: str = "full"
    reads_time: bool = True
    dropout: bool = False

    def __post_init__(self) -> None:
        booleans = (True, False)
        for name, valid in {"output": OUTPUTS, "attention": ATTENTIONS, "reads_time": booleans, "dropout": booleans}.items():
            if (value := getattr(self, name)) not in valid:
                raise InputError(f"the network declares {name} = {value!r:.80}; choose one of {', '.join(map(str, valid))}")


@dataclasses.dataclass(frozen=True, eq=False)
class Module:
    """The network without a vocabulary: how its parameters start, and what it computes.

    name: as messages call it.
    init: key -> parameters, a nested dict of float32 arrays.
    apply: (parameters, arguments, dropout key or None) -> output; arguments are tokens, t, segments, positions and, with attention
      "mask", mask_BLL.
    axes, kinds: trees like the parameters: the axes of each array (`parallel.sharding`), and how the optimizer treats it.
    """

    name: str
    declared: Declared
    init: Callable[[jax.Array], dict]
    apply: Callable[[dict, tuple, jax.Array | None], jax.Array]
    axes: dict
    kinds: dict


@dataclasses.dataclass(frozen=True, eq=False)
class OwnNetwork:
    """A `Module` as a network of the trainer: it has the members of `models.protocol.TrainableNetwork`. Equal only to itself.

    vocab: columns of the logits.  width: of the hidden states, or the vocabulary where the module gives logits.
    """

    module: Module
    vocab: int
    width: int
    execution: Execution = Execution()
    layout: Layout = SINGLE

    self_condition = False
    caches = False

    @property
    def unshifted(self) -> OwnNetwork:
        return self

    @property
    def dropout(self) -> bool:
        """Whether a training step passes keys for dropout."""
        return self.module.declared.dropout

    @property
    def spec(self) -> Any:
        """Raises InputError: what reads the fields of a Transformer cannot use this network."""
        raise InputError(
            f"{self.module.name} is a network of your own, and what was requested requires one of a family (export, plans, sweeps, "
            "activations, latency); its parameters are in dlmjax.open_run(DIR, trust_code=True).params"
        )

    def init(self, key: jax.Array) -> dict:
        """Initial values as a nested dict; may be traced."""
        params = {"module": self.module.init(key)}
        if self._has_head:
            params["head"] = {"kernel": normal(HEAD_STD)(jax.random.fold_in(key, 0x4EAD), (self.width, self.vocab), jnp.float32)}
        return params

    def abstract(self) -> dict:
        """The tree of `jax.ShapeDtypeStruct`; allocates nothing."""
        return self._abstract

    @functools.cached_property
    def _abstract(self) -> dict:
        return jax.eval_shape(self.init, jax.random.key(0))

    @property
    def axes(self) -> dict:
        """Axis names of every parameter, one tuple per leaf."""
        return self._with_head(self.module.axes, ("table", "vocab"))

    @property
    def kinds(self) -> dict:
        """ "matrix" | "embedding" | "head" | "vector" per leaf."""
        return self._with_head(self.module.kinds, "head")

    @property
    def lr_multipliers(self) -> dict:
        """1.0 per leaf, as `wd_multipliers` and `eps_multipliers`: CompleteP is for the families."""
        return jax.tree.map(lambda _: 1.0, self.kinds)

    wd_multipliers = eps_multipliers = lr_multipliers

    def _with_head(self, tree: dict, leaf: Any) -> dict:
        return {"module": tree} | ({"head": {"kernel": leaf}} if self._has_head else {})

    @property
    def _has_head(self) -> bool:
        return self.module.declared.output == "hidden"

    @property
    def parameter_count(self) -> int:
        """Number of parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract()))

    def training_flops_per_token(
        self, length: int, head_share: float = 1.0, *, streams: int = 1, passes: float = 1.0, tokens_per_time: int = 1
    ) -> float:
        """FLOPs per token of a training step: 3 x those that XLA counts in a forward pass of one row before it compiles it. The body of a
        loop (`scan`) counts once. Arguments as of `models.flops.training_flops_per_token`; a module reads the time of each token.
        """
        del tokens_per_time
        params, alone = self.abstract()["module"], _row_shapes(1, length * streams, self.module.declared)
        cost = jax.jit(lambda params, *row: self.module.apply(params, row, None)).lower(params, *alone).cost_analysis() or {}
        forward = cost.get("flops", 0.0) / length
        return 3.0 * passes * (forward + (2 * head_share * self.width * self.vocab if self._has_head else 0.0))

    def bind(
        self,
        params: dict,
        segments_BL: Int[Array, "B L"],
        positions_BL: Int[Array, "B L"],
        attention: str | Attention | Mask = "full",
        dropout_key: jax.Array | None = None,
    ) -> OwnDenoiser:
        """The denoiser of one batch; `dropout_key` as for a network of a family: keys per row, or one key.

        Raises InputError: `attention` is not what the module declares.
        """
        mask = as_mask(attention, segments_BL.shape[1])
        declared = self.module.declared.attention
        one_by_one = isinstance(mask, Causal) or mask == BlockCausal(1)
        if not (declared == "mask" or isinstance(mask, Full) or (declared == "causal" and one_by_one)):
            raise InputError(f"{self.module.name} declares attention = {declared!r} and is bound to {mask}; choose another process.name")
        keys_B = None
        if dropout_key is not None and self.dropout:
            rows = jnp.arange(segments_BL.shape[0])
            keys_B = dropout_key if dropout_key.ndim else jax.vmap(jax.random.fold_in, (None, 0))(dropout_key, rows)
        return OwnDenoiser(self, params, segments_BL, positions_BL, mask, keys_B)

    def require_process(self, process: Process, self_condition: float = 0.0) -> None:
        """Raises InputError: the module cannot be trained with this process, or with one of the phases of its curriculum."""
        declared, name = self.module.declared, f"process.name={process.name}"
        for phase in process.phases.processes:
            state = jax.eval_shape(phase.states.of_tokens, jax.ShapeDtypeStruct((1, 1), jnp.int32)) if not phase.states.dim else None
            attention, required = phase.attention, ""
            if state is None or state.ndim > 3:
                required = f"a network that reads {'vectors' if state is None else 'soft tokens'}, and it reads token ids"
            elif attention.seeded:
                required = "blocks that are not seeded"
            elif (attention.block_size or attention.context_size) is not None and declared.attention != "mask":
                required = f'attention = "mask", and it declares "{declared.attention}"'
            elif attention.causal and declared.attention == "full":
                required = 'attention = "causal" or "mask", and it declares "full"'
            elif phase.time_input and not declared.reads_time:
                required = "a network that reads t, and it declares reads_time = False"
            if required:
                raise InputError(f"{name} requires of {self.module.name} {required}; choose another process.name, or change the module")
        if self_condition:
            raise InputError(f"process.self_condition={self_condition} conflicts with {self.module.name}, which takes no hint; set it to 0")

    def require_mesh(self, partition: Any) -> None:
        """Raises InputError: a parameter names an axis that does not exist, or an axis whose size does not divide its own."""
        axes = jax.tree.leaves(self.axes, is_leaf=lambda leaf: isinstance(leaf, tuple))
        for (path, leaf), names in zip(jax.tree_util.tree_flatten_with_path(self.abstract())[0], axes, strict=True):
            try:
                partition.require_divisible(leaf.shape, names)
            except InputError as error:
                raise InputError(f"{self.module.name}, parameter {_path_text(path[1:])}: {error}") from None


@dataclasses.dataclass(frozen=True)
class OwnDenoiser:
    """A network of one's own with parameters and one batch's segments, positions and mask bound: a `diffusion.objective.Denoiser`."""

    network: OwnNetwork
    params: Any
    segments_BL: Any
    positions_BL: Any
    mask: Any
    dropout_keys_B: Any = None

    reads_hidden = False  # it takes no hint

    def without_gradient(self) -> OwnDenoiser:
        """The same with its parameters as constants."""
        return dataclasses.replace(self, params=jax.lax.stop_gradient(self.params))

    def with_tokens_per_time(self, tokens: int) -> OwnDenoiser:
        """The same: a module reads the time of each position."""
        del tokens
        return self

    def hidden(self, z_BL: Array, t_BL: Float[Array, "B L"], hint_BLI: Array | None = None) -> Float[Array, "B L D"]:
        """The module's output, hidden states or logits. z_BL: token ids, or (noisy, clean) pairs of ids, which are read as one row of
        2 L positions, the clean half at time 0.
        """
        module, layout = self.network.module, self.network.layout
        if hint_BLI is not None:
            raise InputError(f"{module.name} takes no hint; set process.self_condition=0")
        length, segments_BL, positions_BL = t_BL.shape[1], self.segments_BL, self.positions_BL
        if z_BL.ndim == 3:
            z_BL, t_BL = jnp.concatenate([z_BL[..., 0], z_BL[..., 1]], axis=1), jnp.pad(t_BL, ((0, 0), (0, length)))
            segments_BL, positions_BL = (jnp.tile(array, (1, 2)) for array in (segments_BL, positions_BL))
        if isinstance(self.mask, Causal):  # an autoregressive process has no noise, and the times that are drawn for it mean nothing
            t_BL = jnp.zeros_like(t_BL)
        arguments = (z_BL, t_BL, segments_BL, positions_BL)
        if module.declared.attention == "mask":
            arguments += (allowed_in_batch(self.mask, segments_BL),)
        if self.dropout_keys_B is None:
            out_BLD = module.apply(self.params["module"], arguments, None)
        else:
            # Each row by itself, with its own key: microbatches and meshes cannot change the draw.
            def row(key, *arrays):
                return module.apply(self.params["module"], tuple(array[None] for array in arrays), key)[0]

            out_BLD = jax.vmap(row)(self.dropout_keys_B, *arguments)
        return layout.constrain(out_BLD[:, :length], ("batch", "length", None))

    def logits(self, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
        """Float32 logits of outputs of `hidden`."""
        if not self.network._has_head:
            return hidden.astype(jnp.float32)
        plan, layout = self._plan, self.network.layout
        logits = plan.logits(hidden, layout.gather(self._kernel.astype(hidden.dtype), plan.axes))
        return layout.constrain(logits, ("batch", "length", None)) if hidden.ndim == 3 else logits

    def expect(self, hidden_BLD: Float[Array, "B L D"], table_VI: Float[Array, "V I"] | None = None) -> Float[Array, "B L I"]:
        """softmax(logits) @ table in float32. Raises InputError: no table, because the module's embedding is not known here."""
        if table_VI is None:
            raise InputError(f"{self.network.module.name} shows no table of embeddings; set process.self_condition=0")
        if self.network._has_head:
            return head.expect(self._plan, self._kernel, hidden_BLD, table_VI)
        return jax.nn.softmax(self.logits(hidden_BLD)) @ table_VI.astype(jnp.float32)

    def row_losses(
        self,
        hidden_BLD: Float[Array, "B L D"],
        loss_mask_BL: Bool[Array, "B L"],
        loss_fn: Callable[..., Array],
        args: tuple[Any, ...],
        weight_BL: Float[Array, "B L"],
    ) -> tuple[Float[Array, ""], Float[Array, "B L"]]:
        """As `models.Denoiser.row_losses`. Of a module that gives logits, the loss is computed at every position and kept at those."""
        if self.network._has_head:
            return head.row_losses(self._plan, self._kernel, hidden_BLD, loss_mask_BL, loss_fn, args, weight_BL)
        return _losses_of_logits(self.logits(hidden_BLD), loss_mask_BL, loss_fn, args, weight_BL)

    @property
    def _plan(self) -> head.HeadPlan:
        return head.HeadPlan(0, self.network.execution.head_chunk, 1.0, ("table", "vocab"), self.network.layout)

    @property
    def _kernel(self) -> Array:
        return self.params["head"]["kernel"]


def _losses_of_logits(logits_BLV, loss_mask_BL, loss_fn, args, weight_BL):
    """`head.row_losses` where the logits of all positions exist already."""
    loss_mask_BL, weight_BL = jax.lax.stop_gradient((loss_mask_BL, weight_BL.astype(jnp.float32)))

    def losses(arrays):
        # A position without loss may have none that is finite, and 0 times its gradient is not 0: it is given the arrays of one with loss.
        first = jnp.argmax(loss_mask_BL.reshape(-1))

        def filled(array):
            one = array.reshape(-1, *array.shape[2:])[first]
            return jnp.where(loss_mask_BL.reshape(*loss_mask_BL.shape, *(1,) * one.ndim), array, one)

        found = jax.vmap(loss_fn, in_axes=1, out_axes=1)(*jax.tree.map(filled, arrays))
        trained_BL, nats_BL = found if isinstance(found, tuple) else (found, found)
        total = jnp.sum(jnp.where(loss_mask_BL, trained_BL * weight_BL, 0.0)).astype(jnp.float32)
        return total, jnp.where(loss_mask_BL, nats_BL, 0.0).astype(jnp.float32)

    def none(arrays):
        del arrays
        return jnp.zeros((), jnp.float32), jnp.zeros(loss_mask_BL.shape, jnp.float32)

    total, nats_BL = jax.lax.cond(jnp.any(loss_mask_BL), losses, none, (logits_BLV, *args))
    return total, jax.lax.stop_gradient(nats_BL)


# ---- from a module, from a function ---------------------------------------------------------------------------------------------------


def from_nnx(
    module: nnx.Module | Callable[[nnx.Rngs], nnx.Module],
    *,
    vocab: int | None = None,
    length: int = 64,
    layout: Layout | None = None,
    name: str = "",
) -> OwnNetwork:
    """The network of a `flax.nnx` module, called as module(tokens, t, segments, positions), all [B, L], with `mask_BLL` as a fifth argument
    where it declares attention = "mask".

    Args:
      module: the module, whose values are where training starts; or a function of `nnx.Rngs` that makes it, called without allocating.
        Its attributes `output`, `attention` and `reads_time` declare what it computes, see `Declared`. Axes in the metadata of a parameter
        (`nnx.with_partitioning`) split it over the mesh; `kind` there, one of matrix, embedding, head, vector, tells the optimizer what it
        is (else: an array of two axes is a matrix, one named "embedding" an embedding).
      vocab: columns of the logits; required where the module gives hidden states.
      length: of the rows with which the shapes of its output are checked, tokens.
      layout: a `dlmjax.parallel.Partition`; None = one device.
      name: what messages call it; by default its class.

    Raises:
      InputError: state that is trained by running (batch statistics, caches), a parameter that is not float32, an output of another shape
        or type, a declared value that is not one of the choices.
    """
    fixed = isinstance(module, nnx.Module)
    # Called again in every trace: a module may hold arrays beside its parameters, and those of another trace cannot be used.
    build = (lambda rngs: module) if fixed else module
    facts: dict[str, Any] = {}

    def trace() -> None:
        with nnx.use_eager_sharding(False):
            facts.update(_facts(_require_module(build(nnx.Rngs(0))), name))

    with _as_one_line(name or getattr(module, "__name__", "the network"), ()):
        jax.eval_shape(trace)
    network = from_function(
        functools.partial(_apply_module, build),
        functools.partial(_init_module, build),
        vocab=vocab,
        length=length,
        **facts,
    )
    return dataclasses.replace(network, layout=layout or SINGLE)


def from_function(
    function: Callable[..., Array],
    init: dict | Callable[[jax.Array], dict],
    declared: Declared = Declared(),
    *,
    vocab: int | None = None,
    axes: dict | None = None,
    kinds: dict | None = None,
    length: int = 64,
    name: str = "",
) -> OwnNetwork:
    """The network of a function (params, tokens, t, segments, positions[, mask_BLL][, key=]) -> logits or hidden states.

    Args:
      init: the parameters, a nested dict of float32 arrays, or a function of a key that makes them.
      declared: what it computes; with `dropout` it takes `key`, in training the key of a row, elsewhere None.
      axes: a tree like the parameters of tuples, one mesh axis or None for each axis of an array; None = all are replicated.
      kinds: a tree like the parameters: matrix, embedding, head or vector; None = by the number of axes and the name.
      vocab, length, name: as for `from_nnx`.

    Raises:
      InputError: as `from_nnx`.
    """
    name = name or getattr(function, "__name__", "the network")
    make = init if callable(init) else lambda key: jax.tree.map(jnp.asarray, init)
    shapes = jax.eval_shape(make, jax.random.key(0))
    for path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]:
        if leaf.dtype != jnp.float32:
            raise InputError(f"{name}, parameter {_path_text(path)} is {leaf.dtype}; parameters are float32 (param_dtype)")
    if axes is None:
        axes = jax.tree.map(lambda leaf: (None,) * leaf.ndim, shapes)
    if kinds is None:
        kinds = jax.tree_util.tree_map_with_path(lambda path, leaf: _kind_of([key.key for key in path], leaf.ndim), shapes)
    if unknown := sorted(map(str, {*jax.tree.leaves(kinds)} - {*KINDS})):
        raise InputError(f"{name} has a parameter of kind {unknown[0]:.80}; choose one of {', '.join(KINDS)}")

    def apply(params, arguments, key):
        with _as_one_line(name, arguments[0].shape):
            return _checked(function(params, *arguments, **({"key": key} if declared.dropout else {})), arguments[0].shape, name)

    module = Module(name, declared, make, apply, axes, kinds)
    out = jax.eval_shape(lambda params, row: apply(params, row, None), shapes, _row_shapes(2, length, declared))
    if declared.output == "logits" and vocab not in (None, out.shape[-1]):
        raise InputError(
            f"{name} gives {out.shape[-1]} columns, and the vocabulary has {vocab}; give logits of {vocab}, or declare output = 'hidden'"
        )
    if vocab is None and declared.output == "hidden":
        raise InputError(f"{name} gives hidden states, so the number of classes is not known; pass vocab")
    return OwnNetwork(module, vocab or out.shape[-1], out.shape[-1])


def _row_shapes(rows: int, length: int, declared: Declared) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The arguments of a module, as shapes."""
    kinds = [jnp.int32, jnp.float32, jnp.int32, jnp.int32]
    shapes = tuple(jax.ShapeDtypeStruct((rows, length), kind) for kind in kinds)
    return (*shapes, jax.ShapeDtypeStruct((rows, length, length), jnp.bool_)) if declared.attention == "mask" else shapes


def _checked(out: Any, shape: tuple[int, int], name: str) -> Array:
    """The output. Raises InputError: it is not an array [B, L, columns] of floating-point numbers."""
    if not isinstance(out, jax.Array) or out.ndim != 3 or out.shape[:2] != shape or not out.shape[2]:
        found = f"of shape {list(out.shape)}" if isinstance(out, jax.Array) else type(out).__name__
        raise InputError(f"{name} gives an output {found} for tokens {list(shape)}; requires [{shape[0]}, {shape[1]}, columns]")
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise InputError(f"{name} gives {out.dtype}; requires floating-point logits or hidden states")
    return out


@contextlib.contextmanager
def _as_one_line(name: str, shape: tuple[int, ...]) -> Iterator[None]:
    """Turns an exception of the module into one line. Raises InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        message = " ".join(str(error).split())
        where = f"for tokens {list(shape)}" if shape else "when it is built"
        raise InputError(f"{name} fails {where}: {type(error).__name__}: {message:.300} (--debug shows more)") from error


# ---- the parameters of a module as a nested dict ---------------------------------------------------------------------------------------


def _require_module(built: Any) -> nnx.Module:
    if not isinstance(built, nnx.Module):
        raise InputError(f"the function that builds the network returns {type(built).__name__}, not a flax.nnx.Module")
    return built


def _facts(module: nnx.Module, name: str) -> dict[str, Any]:
    """What `from_function` must know of a module: its name, what it declares, the axes and kinds of its parameters.

    Raises InputError: state that changes when the module runs.
    """
    name = name or type(module).__name__
    said = {field: getattr(module, field) for field in ("output", "attention", "reads_time") if hasattr(module, field)}
    params, others = nnx.state(module, nnx.Param), nnx.state(module, (nnx.BatchStat, nnx.Cache))
    for path, variable in nnx.to_flat_state(others):
        raise InputError(
            f"{name} holds {type(variable).__name__} at {_key_text(path)}, which changes when it runs; use parameters alone (LayerNorm)"
        )
    specs = dict(nnx.to_flat_state(nnx.get_partition_spec(params)))
    axes, kinds = {}, {}
    for path, variable in nnx.to_flat_state(params):
        ndim = len(variable.shape)
        axes[path] = _axes_of(specs[path].get_value(), ndim)
        kinds[path] = variable.get_metadata().get("kind") or _kind_of(path, ndim)
    return {"name": name, "declared": Declared(**said, dropout=_draws(module)), "axes": _nested(axes), "kinds": _nested(kinds)}


def _init_module(build: Callable, key: jax.Array) -> dict:
    """The parameters that a new module starts with, by the names on their path."""
    with nnx.use_eager_sharding(False):
        state = nnx.state(build(nnx.Rngs(key)), nnx.Param)
    return _nested({path: jnp.asarray(variable.get_value()) for path, variable in nnx.to_flat_state(state)})


def _apply_module(build: Callable, params: dict, *arguments: Array, key: jax.Array | None = None) -> Array:
    """The module's output with these parameters; a key switches dropout on."""
    with nnx.use_eager_sharding(False):
        graph, own, keys, others = nnx.split(build(nnx.Rngs(0)), nnx.Param, nnx.RngKey, ...)
        flat = [(path, variable.replace(_leaf(params, path))) for path, variable in nnx.to_flat_state(own)]
        if key is not None:
            drawn = [(path, v.replace(jax.random.fold_in(key, i))) for i, (path, v) in enumerate(nnx.to_flat_state(keys))]
            keys = nnx.from_flat_state(drawn)
        module = nnx.merge(graph, nnx.from_flat_state(flat), keys, others)
        module.eval() if key is None else module.train()
        return module(*arguments)


def _draws(module: nnx.Module) -> bool:
    """Whether the module holds keys for random numbers, other than those of a dropout whose rate is 0."""
    without = [path for path, part in nnx.iter_modules(module) if getattr(part, "rate", getattr(part, "dropout_rate", None)) == 0]
    keys = [path for path, _ in nnx.to_flat_state(nnx.state(module, nnx.RngKey))]
    return any(not any(key[: len(path)] == path for path in without) for key in keys)


def _axes_of(spec: Any, ndim: int) -> tuple:
    """A PartitionSpec as one entry for each axis."""
    return tuple(spec) + (None,) * (ndim - len(spec))


def _kind_of(path: Any, ndim: int) -> str:
    """How the optimizer treats an array. Muon's matrices have two axes; the rest is Adam's, with weight decay from two axes on."""
    if "embedding" in str(path[-1]) or ndim > 2:
        return "embedding"
    return "matrix" if ndim == 2 else "vector"


def _nested(flat: dict[tuple, Any]) -> dict:
    """{path: leaf} as nested dicts; the numbers of a list become texts, as in a checkpoint."""
    tree: dict = {}
    for path, leaf in flat.items():
        here = tree
        for part in path[:-1]:
            here = here.setdefault(str(part), {})
        here[str(path[-1])] = leaf
    return tree


def _leaf(tree: dict, path: tuple) -> Any:
    return functools.reduce(lambda here, part: here[str(part)], path, tree)


def _key_text(path: tuple) -> str:
    return ".".join(map(str, path))


def _path_text(path: tuple) -> str:
    return ".".join(str(getattr(key, "key", key)) for key in path)
