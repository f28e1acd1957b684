"""The denoiser: (tokens, noise level, segments, positions) -> hidden states -> logits, as a pure function of a plain dict of weights.

`build_network(spec, execution, layout)` gives the static object; `network.bind(params, segments, positions)` one batch's `Denoiser`.
Nothing here is a Flax module: what crosses `jax.jit` is the dict, the batch and keys.

Shapes: B batch, L length, D width, H query heads, G key/value heads, K head_dim, F ffn, V vocab, T time width; `x` is the residual
stream, [B*L, D] where the layout allows it and [B, L, D] where a mesh axis splits the length.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dlmjax.models import head
from dlmjax.models.attention import make_attention
from dlmjax.models.completep import multipliers
from dlmjax.models.layers import dense, dropout, embed, rms_norm, rotary_tables, rotate, time_features
from dlmjax.models.layout import SINGLE, Layout
from dlmjax.models.masks import Mask, as_mask
from dlmjax.models.spec import Execution, ModelSpec
from dlmjax.models.weights import TIME_FEATURES, describe_weights, init_weights

REMAT_POLICIES = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


@dataclasses.dataclass(frozen=True)
class Network:
    """A model and how it is run; hashable, holds no arrays."""

    spec: ModelSpec
    execution: Execution = Execution()
    layout: Layout = SINGLE

    def init(self, key: jax.Array) -> dict:
        """Float32 start values as a plain nested dict; may be traced (`jax.jit(network.init, out_shardings=...)`)."""
        return init_weights(self.spec, key)

    def abstract(self) -> dict:
        """The tree of `jax.ShapeDtypeStruct`; allocates nothing, whatever the size."""
        return jax.eval_shape(lambda: self.init(jax.random.key(0)))

    @functools.cached_property
    def axes(self) -> dict:
        """Logical axis names of every weight, one tuple per leaf; stacked layers have "layer" first."""
        return describe_weights(self.spec, "logical_axes")[0]

    @functools.cached_property
    def kinds(self) -> dict:
        """ "matrix" | "embedding" | "head" | "vector" per leaf."""
        return describe_weights(self.spec, "kind")[0]

    @functools.cached_property
    def lr_multipliers(self) -> dict:
        """Factor on the learning rate per leaf (CompleteP; 1.0 when off)."""
        return multipliers(self.spec)[0]

    @functools.cached_property
    def wd_multipliers(self) -> dict:
        """Factor on decoupled weight decay per leaf (CompleteP; 1.0 when off)."""
        return multipliers(self.spec)[1]

    @functools.cached_property
    def eps_multipliers(self) -> dict:
        """Factor on AdamW's epsilon per leaf (CompleteP; 1.0 when off)."""
        return multipliers(self.spec)[2]

    @property
    def parameter_count(self) -> int:
        """Number of weights, the embedding once when tied."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract()))

    def bind(
        self,
        params: dict,
        segments_BL: Int[Array, "B L"],
        positions_BL: Int[Array, "B L"],
        attention: str | Mask = "full",
        dropout_key: jax.Array | None = None,
    ) -> Denoiser:
        """The denoiser of one batch. `attention` is a process's word ("full", "causal") or a mask description.

        `dropout_key`: keys per row [B] (then microbatches and meshes cannot change the draw) or one key, which is folded with the index
        of the row in this batch; None, or a rate of 0, switches dropout off.
        """
        keys_B = None
        if dropout_key is not None and self.spec.dropout > 0.0:
            keys_B = dropout_key
            if dropout_key.ndim == 0:
                keys_B = jax.vmap(jax.random.fold_in, (None, 0))(dropout_key, jnp.arange(segments_BL.shape[0]))
        return Denoiser(self, params, segments_BL, positions_BL, as_mask(attention), keys_B)

    @property
    def _head(self) -> head.HeadPlan:
        tied = self.spec.tied
        axes = ("vocab", "table") if tied else ("table", "vocab")
        return head.HeadPlan(int(tied), self.execution.head_chunk, 1.0 / self.spec.width_ratio, axes, self.layout)


def build_network(spec: ModelSpec, execution: Execution | None = None, partition: Layout | None = None) -> Network:
    """The network of a spec; `partition` (a `dlmjax.parallel.Partition`) places it on a mesh, None means one device."""
    return Network(spec, execution or Execution(), partition or SINGLE)


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """A network with weights and one batch's segments, positions and mask bound."""

    network: Network
    params: Any
    segments_BL: Any
    positions_BL: Any
    mask: Any
    dropout_keys_B: Any = None

    def hidden(self, z_BL: Int[Array, "B L"], t_BL: Float[Array, "B L"]) -> Float[Array, "B L D"]:
        """Final normalised states in the compute type. t_BL is the noise level per token; networks without time input ignore it."""
        network, params = self.network, self.params
        spec, layout = network.spec, network.layout
        x_BLD = embed(params["embedding"]["table"], z_BL, ("vocab", "table"), layout, network.execution.dtype)
        x = x_BLD.reshape(-1, spec.width) if layout.flat else x_BLD
        time = self._time(t_BL, x)
        x = self._layers(x, time)
        x = rms_norm(x, params["norm"]["scale"], spec.norm_eps)
        if time is not None:
            shift, scale = jnp.split(dense(time, params["modulation"]["kernel"], ("time", "embed"), layout), 2, axis=-1)
            x = x * (1 + scale) + shift if not spec.tied else x * (1 + scale)
        return layout.constrain(x.reshape(*z_BL.shape, spec.width), ("batch", "length", None))

    def logits(self, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
        """Float32 logits of any number of hidden states."""
        plan, layout = self.network._head, self.network.layout
        weight = layout.gather(self._head_weight.astype(hidden.dtype), plan.axes)
        logits = plan.logits(hidden, weight)
        return layout.constrain(logits, ("batch", "length", None)) if hidden.ndim == 3 else logits

    def row_losses(
        self,
        hidden_BLD: Float[Array, "B L D"],
        rows_BL: Bool[Array, "B L"],
        nats_fn: Callable[..., Array],
        row_args: tuple[Any, ...],
        weight_BL: Float[Array, "B L"],
        learned: Any = (),
    ) -> tuple[Float[Array, ""], Float[Array, "B L"]]:
        """(sum of weighted nats over `rows_BL`, nats per position without gradient); logits exist for those rows only, see `head`."""
        return head.row_losses(self.network._head, self._head_weight, hidden_BLD, rows_BL, nats_fn, tuple(row_args), weight_BL, learned)

    @property
    def _head_weight(self) -> Array:
        return self.params["embedding"]["table"] if self.network.spec.tied else self.params["head"]["kernel"]

    def _time(self, t_BL: Array, x: Array) -> Array | None:
        """silu(MLP(sinusoids of t)), [..., T] with x's leading dims and type; None without time input."""
        spec, layout = self.network.spec, self.network.layout
        if spec.time_input == "none":
            return None
        features = time_features(t_BL, TIME_FEATURES).astype(x.dtype)
        features = features.reshape(*x.shape[:-1], TIME_FEATURES)
        weights = self.params["time"]
        inner = jax.nn.silu(dense(features, weights["first"]["kernel"], (None, "time"), layout))
        return jax.nn.silu(dense(inner, weights["second"]["kernel"], (None, "time"), layout))

    def _layers(self, x: Array, time: Array | None) -> Array:
        """All layers, scanned over the stacked weights or unrolled, with the remat policy around each."""
        spec, execution = self.network.spec, self.network.execution
        attend = make_attention(self.mask, self.segments_BL, execution.attention, execution.dtype, self.network.layout)
        rotary = rotary_tables(self.positions_BL, spec)
        layer = functools.partial(_layer, self.network, attend, rotary, time, self.segments_BL.shape)
        if execution.remat != "none":
            # Inside a scan nothing can be merged with the forward pass, so the barriers against that are left out.
            layer = jax.checkpoint(layer, policy=REMAT_POLICIES[execution.remat], prevent_cse=not execution.scan)
        stacked = self.params["layers"]
        keys_NB = None
        if self.dropout_keys_B is not None:
            keys_NB = jax.vmap(lambda n: jax.vmap(jax.random.fold_in, (0, None))(self.dropout_keys_B, n))(jnp.arange(spec.depth))
        if execution.scan:
            return jax.lax.scan(lambda x, xs: (layer(x, *xs), None), x, (stacked, keys_NB))[0]
        # Split, not indexed: the transpose of a split is one concatenation, that of N indexings N additions of the whole stack.
        leaves, tree = jax.tree.flatten(stacked)
        pieces = [jax.lax.split(leaf, (1,) * spec.depth) for leaf in leaves]
        for n in range(spec.depth):
            weights = jax.tree.unflatten(tree, [piece[n].reshape(piece[n].shape[1:]) for piece in pieces])
            x = layer(x, weights, None if keys_NB is None else keys_NB[n])
        return x


def _layer(network: Network, attend, rotary, time, batch_shape: tuple[int, int], x: Array, weights: dict, keys_B) -> Array:
    """x + attention(norm(x)) / l, then + mlp(norm(x)) / l, with l the CompleteP depth ratio (1 when off)."""
    spec, layout = network.spec, network.layout
    residual = 1.0 / spec.depth_ratio
    stream = ("row", None) if x.ndim == 2 else ("batch", "length", None)
    modulation = (None,) * 6
    if time is not None:
        modulation = jnp.split(dense(time, weights["modulation"]["kernel"], ("time", "embed"), layout), 6, axis=-1)
    keys = (None, None) if keys_B is None else jax.vmap(jax.random.split, out_axes=1)(keys_B)
    branches = (_attention_branch(network, attend, rotary, batch_shape, weights), _mlp_branch(network, weights))
    for norm, branch, (shift, scale, gate), key_B in zip(
        ("attention_norm", "mlp_norm"), branches, (modulation[:3], modulation[3:]), keys, strict=True
    ):
        y = rms_norm(x, weights[norm]["scale"], spec.norm_eps)
        if time is not None:
            y = y * (1 + scale) + shift
        y = branch(y)
        if time is not None:
            y = y * gate
        if key_B is not None:
            y = dropout(y, key_B, spec.dropout)
        x = layout.constrain(x + (y if residual == 1.0 else y * residual), stream)
    return x


def _attention_branch(network: Network, attend, rotary, batch_shape: tuple[int, int], weights: dict):
    spec, layout = network.spec, network.layout

    def heads(y: Array, name: str, axis: str, count: int) -> Array:
        out = dense(y, weights[name]["kernel"], ("embed", axis), layout)
        return layout.constrain(out.reshape(*batch_shape, count, spec.head_dim), ("batch", "length", axis, None))

    def branch(y: Array) -> Array:
        q_BLHK = heads(y, "query", "heads", spec.heads)
        k_BLGK = heads(y, "key", "kv_heads", spec.kv_heads)
        v_BLGK = heads(y, "value", "kv_heads", spec.kv_heads)
        if spec.qk_norm:
            q_BLHK = rms_norm(q_BLHK, weights["query_norm"]["scale"], spec.norm_eps)
            k_BLGK = rms_norm(k_BLGK, weights["key_norm"]["scale"], spec.norm_eps)
        out_BLHK = attend(rotate(q_BLHK, *rotary), rotate(k_BLGK, *rotary), v_BLGK)
        return dense(out_BLHK.reshape(*y.shape[:-1], spec.heads * spec.head_dim), weights["output"]["kernel"], ("heads", "embed"), layout)

    return branch


def _mlp_branch(network: Network, weights: dict):
    layout = network.layout

    def branch(y: Array) -> Array:
        lead = ("row",) if y.ndim == 2 else ("batch", "length")
        gate = layout.constrain(dense(y, weights["gate"]["kernel"], ("embed", "ffn"), layout), (*lead, "ffn"))
        up = layout.constrain(dense(y, weights["up"]["kernel"], ("embed", "ffn"), layout), (*lead, "ffn"))
        return dense(jax.nn.silu(gate) * up, weights["down"]["kernel"], ("ffn", "embed"), layout)

    return branch
