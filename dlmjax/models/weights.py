"""Every weight of the denoiser, declared once with Flax NNX: shape, logical axes, kind, initial value.

Of the families, NNX is used only here. The forward pass (`denoiser.py`) reads a plain nested dict with the same keys, which is also what
a checkpoint holds.

    embedding.table                  (vocab, width)                      also the head when tied; without input_dim
    position.table                   (max_positions, width)              with learned positions
    token_type.table                 (token_types, width)                with token types
    board.table                      (28, width)                         with board: 9 rows, 9 columns, 9 boxes, no cell
    embedding_norm.scale             (width,)                            with norm_placement "post"
    input.kernel                     (input_dim, width)                  with input_dim
    hint.kernel                      (input_dim or width, width)         with self_condition, zero at the start
    hint.scale                       (width,)                            in its place with hint "hidden", zero at the start
    layers.attention_norm.scale      (layer, width)
    layers.query.kernel              (layer, width, heads*head_dim)
    layers.key.kernel, value.kernel  (layer, width, kv_heads*head_dim)
    layers.query_norm.scale, key_norm.scale  (layer, head_dim)           with qk_norm; (layer, [kv_]heads*head_dim) with qk_norm_all
    layers.output.kernel             (layer, heads*head_dim, width)
    layers.mlp_norm.scale            (layer, width)
    layers.gate.kernel, up.kernel    (layer, width, ffn)                 gate with the MLP "swiglu" only
    layers.down.kernel               (layer, ffn, width)
    layers.modulation.kernel         (layer, time, 6*width)              with adaln, zero at the start
    time.first.kernel                (256, time)                         with a time input
    time.second.kernel               (time, time)                        with a time input
    time.output.kernel               (time, width)                       with time input "add" (zero at the start) or "prefix"
    modulation.kernel                (time, 2*width)                     with adaln, zero at the start
    transform.kernel                 (width, width)                      with the head "transform"
    norm.scale                       (width,)                            zero at the start when adaln and tied
    head.kernel                      (width, vocab)                      when untied; zero at the start with adaln
    head.bias                        (vocab,)                            with the head "transform"

A kernel has a `bias` of its outputs as `ModelSpec.bias` selects, the scale of a LayerNorm always has one; biases start at zero.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dlmjax.models.masks import BOARD_TABLE
from dlmjax.models.spec import ModelSpec

TIME_FEATURES = 256


def normal(std: float):
    """Initial values from a normal distribution of mean 0 and deviation `std`."""
    return jax.nn.initializers.normal(std)


ZEROS = jax.nn.initializers.zeros
ONES = jax.nn.initializers.ones


class Weight(nnx.Module):
    """One named leaf: float32 value, logical axes, kind ("matrix" | "embedding" | "head" | "vector"), whether fan-in grows with width.

    `bias`: adds a second leaf along the last axis, zero at the start.
    """

    def __init__(self, rngs: nnx.Rngs, leaf: str, shape, axes, kind: str, init, hidden: bool = False, bias: bool = False):
        value = init(rngs.params(), shape, jnp.float32)
        setattr(self, leaf, nnx.Param(value, logical_axes=axes, kind=kind, hidden=hidden))
        if bias:
            zeros = jnp.zeros(shape[-1:], jnp.float32)
            self.bias = nnx.Param(zeros, logical_axes=axes[-1:], kind="vector", hidden=False)


class Bias(nnx.Module):
    """Only a bias: for a head whose matrix is the embedding."""

    def __init__(self, size: int):
        self.bias = nnx.Param(jnp.zeros((size,), jnp.float32), logical_axes=(None,), kind="vector", hidden=False)


def scale(rngs: nnx.Rngs, size: int, axis: str | None, init=ONES, bias: bool = False) -> Weight:
    """The scale [size] of a norm, with a bias of the same shape for a LayerNorm."""
    return Weight(rngs, "scale", (size,), (axis,), "vector", init, bias=bias)


class LayerWeights(nnx.Module):
    """One Transformer layer. Residual projections start smaller by 1/sqrt(2 * effective depth) (GPT-2), under CompleteP by
    that of the base depth."""

    def __init__(self, spec: ModelSpec, rngs: nnx.Rngs):
        width, ffn, head_dim = spec.width, spec.ffn, spec.head_dim
        heads, kv_heads = spec.heads * head_dim, spec.kv_heads * head_dim
        std = spec.init_std * spec.width_ratio**-0.5
        inner = normal(std)
        residual = normal(std * (2 * (spec.completep_depth or spec.effective_depth)) ** -0.5)

        def matrix(shape, axes, init, biased=("all",)):
            return Weight(rngs, "kernel", shape, axes, "matrix", init, hidden=True, bias=spec.bias in biased)

        self.attention_norm = scale(rngs, width, None, bias=spec.norm == "layer")
        self.query = matrix((width, heads), ("embed", "heads"), inner, ("qkv", "all"))
        self.key = matrix((width, kv_heads), ("embed", "kv_heads"), inner, ("qkv", "all"))
        self.value = matrix((width, kv_heads), ("embed", "kv_heads"), inner, ("qkv", "all"))
        if spec.qk_norm:
            whole = spec.qk_norm_all
            self.query_norm = scale(rngs, heads if whole else head_dim, "heads" if whole else None)
            self.key_norm = scale(rngs, kv_heads if whole else head_dim, "kv_heads" if whole else None)
        self.output = matrix((heads, width), ("heads", "embed"), residual)
        self.mlp_norm = scale(rngs, width, None, bias=spec.norm == "layer")
        if spec.mlp == "swiglu":
            self.gate = matrix((width, ffn), ("embed", "ffn"), inner)
        self.up = matrix((width, ffn), ("embed", "ffn"), inner)
        self.down = matrix((ffn, width), ("ffn", "embed"), residual)
        if spec.time_input == "adaln":
            self.modulation = Weight(rngs, "kernel", (spec.time_width, 6 * width), ("time", "embed"), "matrix", ZEROS)


class TimeWeights(nnx.Module):
    """Features of t -> two-layer MLP (DiT 2212.09748) -> for "add" and "prefix" a vector of the residual stream."""

    def __init__(self, spec: ModelSpec, rngs: nnx.Rngs):
        width = spec.time_width
        self.first = Weight(rngs, "kernel", (TIME_FEATURES, width), (None, "time"), "matrix", normal(TIME_FEATURES**-0.5))
        self.second = Weight(rngs, "kernel", (width, width), (None, "time"), "matrix", normal(width**-0.5))
        if spec.time_input in ("add", "prefix"):
            init = ZEROS if spec.time_input == "add" else normal(spec.init_std)
            self.output = Weight(rngs, "kernel", (width, spec.width), ("time", "embed"), "matrix", init)


class DenoiserWeights(nnx.Module):
    """The whole tree; layers are stacked on axis 0 of the leaves under `layers`."""

    def __init__(self, spec: ModelSpec, rngs: nnx.Rngs):
        adaln = spec.time_input == "adaln"
        if spec.input_dim:
            self.input = Weight(rngs, "kernel", (spec.input_dim, spec.width), (None, "embed"), "matrix", normal(spec.input_dim**-0.5))
        else:
            self.embedding = Weight(rngs, "table", (spec.vocab, spec.width), ("vocab", "table"), "embedding", normal(spec.init_std))
        if spec.positions == "learned":
            self.position = _table(rngs, spec, spec.max_positions)
        if spec.token_types:
            self.token_type = _table(rngs, spec, spec.token_types)
        if spec.board:
            self.board = _table(rngs, spec, BOARD_TABLE)
        if spec.norm_placement == "post":
            self.embedding_norm = scale(rngs, spec.width, None, bias=spec.norm == "layer")
        if spec.self_condition:
            shape = (spec.input_dim or spec.width, spec.width)
            x0 = spec.hint == "x0"
            self.hint = Weight(rngs, "kernel", shape, (None, "embed"), "matrix", ZEROS) if x0 else scale(rngs, spec.width, None, ZEROS)

        @nnx.split_rngs(splits=spec.depth)
        @nnx.vmap
        def layers(rngs: nnx.Rngs) -> LayerWeights:
            return LayerWeights(spec, rngs)

        self.layers = layers(rngs)
        if spec.time_input != "none":
            self.time = TimeWeights(spec, rngs)
        if adaln:
            self.modulation = Weight(rngs, "kernel", (spec.time_width, 2 * spec.width), ("time", "embed"), "matrix", ZEROS)
        adaln &= spec.time_gates == "zero"
        # With such a time input the network starts by predicting nothing. A tied head cannot be zero, so the last norm is.
        self.norm = scale(rngs, spec.width, None, ZEROS if adaln and spec.tied else ONES, bias=spec.norm == "layer")
        transform = spec.head == "transform"
        if not spec.tied:
            init = ZEROS if adaln else normal(spec.init_std)
            self.head = Weight(rngs, "kernel", (spec.width, spec.vocab), ("table", "vocab"), "head", init, bias=transform)
        elif transform:
            self.head = Bias(spec.vocab)
        if transform:
            init = normal(spec.init_std * spec.width_ratio**-0.5)
            shape, axes = (spec.width, spec.width), ("embed", None)
            self.transform = Weight(rngs, "kernel", shape, axes, "matrix", init, hidden=True, bias=spec.bias == "all")


def _table(rngs: nnx.Rngs, spec: ModelSpec, rows: int) -> Weight:
    """A small table whose rows are added to the embedding; replicated on every device except for its columns."""
    return Weight(rngs, "table", (rows, spec.width), (None, "table"), "embedding", normal(spec.init_std))


def init_weights(spec: ModelSpec, key: jax.Array) -> dict:
    """Plain nested dict of float32 start values. May be traced (`jax.jit(..., out_shardings=...)`)."""
    return nnx.to_pure_dict(nnx.state(DenoiserWeights(spec, nnx.Rngs(key)), nnx.Param))


@functools.lru_cache(maxsize=256)
def _declared(spec: ModelSpec) -> Any:
    """Every weight without its values; cached, since tracing takes a tenth of a second and plans repeat it."""
    return nnx.state(nnx.eval_shape(lambda: DenoiserWeights(spec, nnx.Rngs(0))), nnx.Param)


def abstract_weights(spec: ModelSpec) -> dict:
    """The tree of `init_weights` as `jax.ShapeDtypeStruct`s."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), nnx.to_pure_dict(_declared(spec)))


def describe_weights(spec: ModelSpec, *names: str) -> tuple[dict, ...]:
    """Trees of declared metadata ("logical_axes", "kind", "hidden"), one per name, allocating nothing; stacked ones start with "layer"."""
    state = _declared(spec)

    def read(path: tuple, variable: Any, name: str):
        value = variable.get_metadata(name)
        stacked = name == "logical_axes" and path[0].key == "layers"
        return ("layer", *value) if stacked else value

    def is_variable(leaf: Any) -> bool:
        return isinstance(leaf, nnx.Variable)

    trees = []
    for name in names:
        tree = jax.tree_util.tree_map_with_path(lambda path, v, name=name: read(path, v, name), state, is_leaf=is_variable)
        trees.append(nnx.to_pure_dict(tree))
    return tuple(trees)
