"""The denoiser: (tokens, time, segments, positions) -> hidden states -> logits, as a pure function of a plain dict of weights.

`Network(spec, execution, layout)` is the static object; `network.bind(params, segments, positions)` returns the `Denoiser` of
one batch. Nothing here is a Flax module: the arguments of `jax.jit` are the dict, the batch and keys.

Shapes: B batch, L length, D width, H query heads, G key/value heads, K head_dim, F ffn, V vocab, T time width; `x` is the residual
stream, [B*L, D] where the layout allows it and [B, L, D] where a mesh axis splits the length.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from dlmjax.diffusion.declarations import Attention
from dlmjax.errors import InputError
from dlmjax.models import head
from dlmjax.models.attention import make_attention
from dlmjax.models.completep import multipliers
from dlmjax.models.flops import training_flops_per_token
from dlmjax.models.layers import dense, dropout, embed, linear, normalise, rms_norm, rotary_tables, rotate
from dlmjax.models.layout import SINGLE, Layout
from dlmjax.models.masks import (
    BOARD_CELLS,
    BOARD_PERIOD,
    BOARD_TABLE,
    EVERYWHERE,
    Full,
    Mask,
    Prefixed,
    SeededBlocks,
    as_mask,
    board_units,
    is_data,
    require_boards,
    within,
)
from dlmjax.models.spec import Execution, ModelSpec
from dlmjax.models.time_signal import TimeSignal, largest, time_signal
from dlmjax.models.weights import abstract_weights, describe_weights, init_weights

REMAT_POLICIES = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


@dataclasses.dataclass(frozen=True)
class Network:
    """A model and how it is run; hashable, without arrays."""

    spec: ModelSpec
    execution: Execution = Execution()
    layout: Layout = SINGLE

    def init(self, key: jax.Array) -> dict:
        """Float32 initial values as a plain nested dict; may be traced (`jax.jit(network.init, out_shardings=...)`)."""
        return init_weights(self.spec, key)

    def abstract(self) -> dict:
        """The tree of `jax.ShapeDtypeStruct`; allocates nothing, whatever the size."""
        return abstract_weights(self.spec)

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

    @property
    def width(self) -> int:
        """Width of the hidden states."""
        return self.spec.width

    @property
    def dropout(self) -> bool:
        """Whether a training step passes keys for dropout."""
        return self.spec.dropout > 0

    @property
    def self_condition(self) -> bool:
        """Whether the denoiser takes an x0 prediction as a hint."""
        return self.spec.self_condition

    @property
    def unshifted(self) -> Network:
        """The network of the same weights that predicts each token in its own position; see `ModelSpec.shift`."""
        return dataclasses.replace(self, spec=dataclasses.replace(self.spec, shift=False))

    @property
    def caches(self) -> bool:
        """Whether a row can be read in pieces, with the keys and values of earlier pieces in buffers (`models.cache`)."""
        return True

    def training_flops_per_token(
        self, length: int, head_share: float = 1.0, *, streams: int = 1, passes: float = 1.0, tokens_per_time: int = 1
    ) -> float:
        """See `models.flops.training_flops_per_token`."""
        how = {"streams": streams, "passes": passes, "tokens_per_time": tokens_per_time}
        return training_flops_per_token(self.spec, length, head_share, **how)

    def bind(
        self,
        params: dict,
        segments_BL: Int[Array, "B L"],
        positions_BL: Int[Array, "B L"],
        attention: str | Attention | Mask = "full",
        dropout_key: jax.Array | None = None,
    ) -> Denoiser:
        """The denoiser of one batch. `attention`: "full", "causal", as a process declares it, or a mask description.

        `dropout_key`: keys per row [B] (then microbatches and meshes cannot change the draw) or one key, which is folded with the index
        of the row in this batch; None, or a rate of 0, switches dropout off.

        Raises InputError: rows longer than the learned positions, `shift` without full attention, a length that blocks do not divide.
        """
        length = segments_BL.shape[1]
        if self.spec.context and length > self.spec.context:
            raise InputError(f"rows of {length} tokens, but this family has learned positions for {self.spec.context}; lower data.length")
        if self.spec.shift and attention not in ("full", Attention(), Full()) and not is_data(attention):
            raise InputError(f"model.family with shift=true requires full attention, not {attention}; choose another process.name")
        keys_B = None
        if dropout_key is not None and self.spec.dropout > 0.0:
            keys_B = dropout_key
            if dropout_key.ndim == 0:
                keys_B = jax.vmap(jax.random.fold_in, (None, 0))(dropout_key, jnp.arange(segments_BL.shape[0]))
        if self.spec.board or self.spec.peers:
            require_boards(length, "model.family with board or peers")
        mask = as_mask(attention, length)
        seeds = mask.size if isinstance(mask, SeededBlocks) else 0
        if seeds and self.spec.context and length >= self.spec.context:
            raise InputError(f"seeded blocks require learned positions for {length + 1} tokens, and this family has {self.spec.context}")
        if seeds and (self.spec.window or self.spec.board or self.spec.peers):
            raise InputError("seeded blocks conflict with model.family: window, board and peers; leave them out")
        mask = within(mask, self.spec.window, self.spec.peers)
        return Denoiser(self, params, segments_BL, positions_BL, mask, keys_B, seeds)

    @property
    def _head(self) -> head.HeadPlan:
        tied = self.spec.tied
        axes = ("vocab", "table") if tied else ("table", "vocab")
        return head.HeadPlan(int(tied), self.execution.head_chunk, 1.0 / self.spec.width_ratio, axes, self.layout)


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """A network with weights and one batch's segments, positions and mask bound.

    seeds: tokens of a block under `SeededBlocks`, where states are taken from the position before; 0 elsewhere.
    tokens_per_time: see `with_tokens_per_time`.
    """

    network: Network
    params: Any
    segments_BL: Any
    positions_BL: Any
    mask: Any
    dropout_keys_B: Any = None
    seeds: int = 0
    tokens_per_time: int = 1

    def hidden(
        self, z_BL: Shaped[Array, "B L *state"], t_BL: Float[Array, "B L"], hint_BLI: Float[Array, "B L I"] | None = None
    ) -> Float[Array, "B L D"]:
        """Final normalised states in the compute type.

        z_BL: token ids; vectors with `input_dim`; (noisy, clean) pairs of ids under a mask of blocks, whose clean half the network
        reads as a second stream at time 0.  t_BL: the time per token, ignored without time input.  hint_BLI: an x0 prediction or, where
        it `reads_hidden`, hidden states of an earlier pass, with `self_condition` (None = zeros).
        """
        return self._states(z_BL, t_BL, hint_BLI, lambda y_BL: y_BL[:, : t_BL.shape[1]] if not self.seeds else self._seeded(y_BL))

    def hidden_and_text(
        self, z_BL: Shaped[Array, "B L *state"], t_BL: Float[Array, "B L"], hint_BLI: Float[Array, "B L I"] | None = None
    ) -> tuple[Float[Array, "B L D"], Float[Array, "B L D"]]:
        """`hidden`, and of the same pass under `SeededBlocks` the states of the clean stream, which predict each token from all before."""

        def both(y_BL: Array) -> Array:
            return jnp.concatenate([self._seeded(y_BL), jnp.split(y_BL, 2, axis=1)[1]], axis=1)

        found_BLD = self._states(z_BL, t_BL, hint_BLI, both)
        return tuple(jnp.split(found_BLD, 2, axis=1))

    def hidden_of_both(self, z_BL2: Int[Array, "B L 2"], t_BL: Float[Array, "B L"]) -> tuple[Float[Array, "B L D"], Float[Array, "B L D"]]:
        """Hidden states of both streams of pairs of ids under `Shadowed`, without a shift between them."""
        return tuple(jnp.split(self._states(z_BL2, t_BL, None, lambda y_BL: y_BL), 2, axis=1))

    def _states(self, z_BL: Array, t_BL: Array, hint_BLI: Array | None, of_tokens: Callable[[Array], Array]) -> Array:
        """`hidden`; of_tokens: from the positions of the stream, [B, L or 2L, ...], those whose states are wanted."""
        network, params = self.network, self.params
        spec, layout = network.spec, network.layout
        L = t_BL.shape[1]
        rows = self._rows
        if z_BL.ndim == 3 and not spec.input_dim:
            z_BL, t_BL = jnp.concatenate([z_BL[..., 0], z_BL[..., 1]], axis=1), jnp.pad(t_BL, ((0, 0), (0, L)))
            rows = rows.twice(seeded=self.seeds > 0)
        if spec.input_dim:
            x_BLD = dense(z_BL.astype(network.execution.dtype), params["input"]["kernel"], (None, "embed"), layout)
        else:
            x_BLD = self._embed(z_BL)
        if hint_BLI is not None:
            x_BLD = x_BLD.at[:, :L].add(self._read_hint(hint_BLI.astype(x_BLD.dtype)))
        x_BLD = self._positioned(x_BLD, rows)
        x_BLD, time, rows = self._with_time(x_BLD, t_BL, rows)
        x = x_BLD.reshape(-1, spec.width) if layout.flat else x_BLD
        x_BLD = self._layers(x, time, rows).reshape(x_BLD.shape[0], -1, spec.width)
        start = int(isinstance(rows.mask, Prefixed))
        if x_BLD.shape[1] != L:
            x_BLD = of_tokens(x_BLD[:, start:])
        x_BLD = self._last(x_BLD, time, of_tokens)
        if spec.shift:
            # The first position of a document has none before it: its own state is used.
            before_BLD = jnp.concatenate([x_BLD[:, :1], x_BLD[:, :-1]], axis=1)
            x_BLD = jnp.where(self.positions_BL[..., None] == 0, x_BLD, before_BLD)
        return layout.constrain(x_BLD, ("batch", "length", None))

    def _seeded(self, y_BL: Array) -> Array:
        """Of both streams, [B, 2L, ...], what predicts each token: for the first of a block, and of a document, the clean stream at its
        index, which holds the token before; for the others the noisy stream at the index before."""
        noisy_BL, clean_BL = jnp.split(y_BL, 2, axis=1)
        before_BL = jnp.concatenate([noisy_BL[:, :1], noisy_BL[:, :-1]], axis=1)
        first_BL = (jnp.arange(noisy_BL.shape[1]) % self.seeds == 0) | (self.positions_BL == 0)
        return jnp.where(first_BL[..., None], clean_BL, before_BL)

    def _last(self, x_BLD: Array, time: TimeSignal | None, of_tokens: Callable[[Array], Array]) -> Array:
        """What follows the layers: the transform of the head, the last norm, its modulation."""
        spec, layout, params = self.network.spec, self.network.layout, self.params
        x = x_BLD.reshape(-1, spec.width) if layout.flat else x_BLD
        if spec.head == "transform":
            x = jax.nn.gelu(linear(x, params["transform"], ("embed", None), layout), approximate=False)
        x = normalise(x, params["norm"], spec)
        if time is not None:
            of_stream = time.project(params["modulation"]["kernel"], ("time", "embed"), 2)
            shift, scale = (of_tokens(part.reshape(x_BLD.shape[0], -1, spec.width)).reshape(x.shape) for part in of_stream)
            x = x * (1 + scale) + shift if not spec.tied else x * (1 + scale)
        return x.reshape(x_BLD.shape)

    def _embed(self, z_BL: Array) -> Array:
        """Rows of the embedding, [B, L, D]; of soft tokens the weighted sum."""
        table, execution, layout = self.params["embedding"]["table"], self.network.execution, self.network.layout
        if z_BL.ndim == 2:
            return embed(table, z_BL, ("vocab", "table"), layout, execution.dtype)
        parts = [
            embed(table, z_BL[..., k, 0].astype(jnp.int32), ("vocab", "table"), layout, execution.dtype)
            * z_BL[..., k, 1, None].astype(execution.dtype)
            for k in range(z_BL.shape[2])
        ]
        return sum(parts[1:], parts[0])

    @property
    def reads_hidden(self) -> bool:
        """Whether its hint is the hidden states of an earlier pass, not an x0 prediction."""
        return self.network.spec.hint == "hidden"

    def without_gradient(self) -> Denoiser:
        """The same with its weights as constants."""
        return dataclasses.replace(self, params=jax.lax.stop_gradient(self.params))

    def with_tokens_per_time(self, tokens: int) -> Denoiser:
        """The same, for rows in which each `tokens` neighbouring positions have one time or the lowest of their row: what it makes of the
        time is then computed once for each time, not for each position. Rows that are not so give NaN."""
        return dataclasses.replace(self, tokens_per_time=tokens)

    def _read_hint(self, hint_BLI: Array) -> Array:
        """What a hint adds to the embedding; a hint of zeros adds nothing, so no norm here has a bias."""
        weights, layout = self.params["hint"], self.network.layout
        if self.reads_hidden:
            return rms_norm(hint_BLI, weights["scale"], self.network.spec.norm_eps)
        return dense(hint_BLI, weights["kernel"], (None, "embed"), layout)

    def _positioned(self, x_BLD: Array, rows: _Rows) -> Array:
        """Adds learned positions and the token type, and normalises, for families that do so."""
        spec, params = self.network.spec, self.params
        if spec.positions == "learned":
            rows_BL = rows.positions_BL + spec.position_offset
            x_BLD = x_BLD + embed(params["position"]["table"], rows_BL, (None, "table"), self.network.layout, self.network.execution.dtype)
        if spec.token_types:
            table = self.network.layout.gather(params["token_type"]["table"], (None, "table"))
            x_BLD = (x_BLD.astype(jnp.float32) + table[0]).astype(x_BLD.dtype)
        if spec.board:
            x_BLD = x_BLD + self._board(rows.positions_BL, x_BLD.dtype)
        return normalise(x_BLD, params["embedding_norm"], spec) if spec.norm_placement == "post" else x_BLD

    def _board(self, positions_BL: Array, dtype: Any) -> Array:
        """The vectors of the row, column and box of each cell, [B, L, D]; of another token the one of no cell."""
        cell_BL = positions_BL % BOARD_PERIOD
        hot_BL28 = sum(
            jax.nn.one_hot(jnp.where(cell_BL == BOARD_CELLS, BOARD_TABLE - 1, 9 * kind + unit_BL), BOARD_TABLE, dtype=dtype)
            for kind, unit_BL in enumerate(board_units(cell_BL))
        )
        return dense(hot_BL28, self.params["board"]["table"], (None, "table"), self.network.layout)

    def expect(self, hidden_BLD: Float[Array, "B L D"], table_VI: Float[Array, "V I"] | None = None) -> Float[Array, "B L I"]:
        """softmax(logits) @ table in float32, by default with the network's own embedding; logits exist for one chunk of rows at a time."""
        table_VI = self.params["embedding"]["table"] if table_VI is None else table_VI
        return head.expect(self.network._head, self._head_weight, hidden_BLD, table_VI, self._head_bias)

    def logits(self, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
        """Float32 logits of any number of hidden states."""
        plan, layout = self.network._head, self.network.layout
        weight = layout.gather(self._head_weight.astype(hidden.dtype), plan.axes)
        logits = plan.logits(hidden, weight)
        if self._head_bias is not None:
            logits = logits + self._head_bias
        return layout.constrain(logits, ("batch", "length", None)) if hidden.ndim == 3 else logits

    def row_losses(
        self,
        hidden_BLD: Float[Array, "B L D"],
        loss_mask_BL: Bool[Array, "B L"],
        loss_fn: Callable[..., Array],
        args: tuple[Any, ...],
        weight_BL: Float[Array, "B L"],
    ) -> tuple[Float[Array, ""], Float[Array, "B L"]]:
        """(sum of weighted losses over `loss_mask_BL`, nats per position without gradient); logits exist there only, see `head`."""
        if self._head_bias is not None:
            loss_fn = head.biased_loss(self._head_bias, loss_fn)
        return head.row_losses(self.network._head, self._head_weight, hidden_BLD, loss_mask_BL, loss_fn, args, weight_BL)

    @property
    def _head_weight(self) -> Array:
        return self.params["embedding"]["table"] if self.network.spec.tied else self.params["head"]["kernel"]

    @property
    def _head_bias(self) -> Array | None:
        return self.params["head"]["bias"] if self.network.spec.head == "transform" else None

    @property
    def _rows(self) -> _Rows:
        return _Rows(self.segments_BL, self.positions_BL, self.mask)

    def _with_time(self, x_BLD: Array, t_BL: Array, rows: _Rows) -> tuple[Array, TimeSignal | None, _Rows]:
        """The residual stream conditioned on t, the signal for "adaln" layers (None otherwise), and the layout of the rows."""
        spec, layout = self.network.spec, self.network.layout
        if spec.time_input == "none":
            return x_BLD, None, rows
        if spec.time_input == "prefix":  # clean positions have time 0: the row's time is that of the others
            t_BL, shared = largest(t_BL)[:, None], (1, 1)
        else:
            shared = (self.segments_BL.shape[1], self.tokens_per_time)
        signal = time_signal(t_BL, shared, self.params["time"], spec, x_BLD.dtype, layout)
        if spec.time_input == "adaln":
            return x_BLD, signal, rows
        (added,) = signal.project(self.params["time"]["output"]["kernel"], ("time", "embed"))
        added_BLD = added.reshape(*t_BL.shape, -1)
        if spec.time_input == "add":
            return x_BLD + added_BLD, None, rows
        return jnp.concatenate([added_BLD, x_BLD], axis=1), None, rows.prefixed()

    def _layers(self, x: Array, time: TimeSignal | None, rows: _Rows) -> Array:
        """All layers in the order of `spans`, scanned over the stacked weights or unrolled, with the remat policy around each."""
        spec, execution = self.network.spec, self.network.execution
        attend = make_attention(rows.mask, rows.segments_BL, execution.attention, execution.dtype, self.network.layout)
        rotary = rotary_tables(rows.positions_BL, spec) if spec.positions == "rotary" else None

        def layer_of(computed: int) -> Callable[..., Array]:
            shape = (*rows.segments_BL.shape, computed)
            layer = functools.partial(transformer_layer, self.network, attend, rotary, time, shape)
            if execution.remat == "none":
                return layer
            # Inside a scan nothing can be merged with the forward pass, so the barriers against that are omitted.
            return jax.checkpoint(layer, policy=REMAT_POLICIES[execution.remat], prevent_cse=not execution.scan)

        layer = layer_of(rows.segments_BL.shape[1])
        keys_NB = None
        if self.dropout_keys_B is not None:
            keys_NB = jax.vmap(lambda n: jax.vmap(jax.random.fold_in, (0, None))(self.dropout_keys_B, n))(jnp.arange(spec.effective_depth))
        done = 0
        for stacked, (first, end, runs) in zip(split_stack(self.params["layers"], spec.spans), spec.spans, strict=True):
            parts = stacked if execution.scan else split_stack(stacked, [(n, n + 1, 1) for n in range(end - first)])
            # Runs are written out: a scan over them would keep the weights of each run for the backward pass.
            for _ in range(runs):
                keys = None if keys_NB is None else keys_NB[done : done + end - first]
                done += end - first
                if execution.scan:
                    x = jax.lax.scan(lambda x, xs: (layer(x, *xs), None), x, (parts, keys))[0]
                else:
                    last = layer_of(self._last_states(rows)) if done == spec.effective_depth else layer
                    x = _unrolled(layer, last, x, parts, keys)
        return x

    def _last_states(self, rows: _Rows) -> int:
        """Positions whose states the last layer computes: of two streams the first, for which the second gives keys and values.

        All, where dropout draws for all positions, and for the fused kernels, which take as many queries as keys.
        """
        first = self.network.layout.flat and self.network.execution.attention == "dense" and self.dropout_keys_B is None
        return rows.segments_BL.shape[1] // (rows.streams if first else 1)


@dataclasses.dataclass(frozen=True)
class _Rows:
    """What the layers see of a batch: segments, positions and mask of every position of the stream."""

    segments_BL: Any
    positions_BL: Any
    mask: Any
    streams: int = 1

    def twice(self, seeded: bool) -> _Rows:
        """Two streams one after the other, with the same positions; where `seeded`, those of the first are one further, and the states of
        both are read."""
        positions_BL = jnp.concatenate([self.positions_BL + seeded, self.positions_BL], axis=1)
        return _Rows(jnp.tile(self.segments_BL, (1, 2)), positions_BL, self.mask, streams=1 if seeded else 2)

    def prefixed(self) -> _Rows:
        """One more position at the start, which every segment attends to."""
        segments_BL = jnp.pad(self.segments_BL, ((0, 0), (1, 0)), constant_values=EVERYWHERE)
        return _Rows(segments_BL, jnp.pad(self.positions_BL, ((0, 0), (1, 0))), Prefixed(self.mask))


def split_stack(stacked: dict, spans: Sequence[tuple[int, int, int]]) -> list[dict]:
    """The stacked weights of the layers of each span, which follow one another. Split, not indexed: the transpose of a split is one
    concatenation, that of N indexings N additions of the whole stack."""
    if len(spans) == 1:
        return [stacked]
    leaves, tree = jax.tree.flatten(stacked)
    pieces = [jax.lax.split(leaf, [end - first for first, end, _ in spans]) for leaf in leaves]
    return [jax.tree.unflatten(tree, piece) for piece in zip(*pieces, strict=True)]


def _unrolled(layer: Callable, last: Callable, x: Array, parts: list[dict], keys_NB: Array | None) -> Array:
    """One layer after the other; `last` runs the last of these."""
    for n, weights in enumerate(parts):
        one = last if n == len(parts) - 1 else layer
        x = one(x, jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[1:]), weights), None if keys_NB is None else keys_NB[n])
    return x


def transformer_layer(network: Network, attend, rotary, time, batch_shape: tuple[int, ...], x: Array, weights: dict, keys_B) -> Array:
    """x + attention(norm(x)) / l, then + mlp(norm(x)) / l, with l the CompleteP depth ratio (1 when off).

    With norm_placement "post": norm(x + attention(x)), then norm(x + mlp(x)); with "branch": x + norm(attention(x)), then x + norm(mlp(x)).
    `rotary`: cos and sin, None with learned positions.  `batch_shape`: rows, positions, and, where not all, how many positions at the start
    of a row have their states computed and returned; the others give keys and values.
    """
    spec, layout = network.spec, network.layout
    B, L, M = (*batch_shape, batch_shape[1])[:3]

    def kept(x: Array) -> Array:
        return x if M == L else x.reshape(B, L, -1)[:, :M].reshape(B * M, -1)

    residual = 1.0 / spec.depth_ratio
    stream = ("row", None) if x.ndim == 2 else ("batch", "length", None)
    modulation = (None,) * 6
    if time is not None:
        modulation = time.project(weights["modulation"]["kernel"], ("time", "embed"), 6)
    keys = (None, None) if keys_B is None else jax.vmap(jax.random.split, out_axes=1)(keys_B)
    attention = _attention_branch(network, attend, rotary, B, weights, kept)
    branches = (attention, _mlp_branch(network, weights))
    for norm, branch, offset, key_B in zip(("attention_norm", "mlp_norm"), branches, (0, 3), keys, strict=True):
        shift, scale, _ = modulation[offset : offset + 3]
        y = normalise(x, weights[norm], spec) if spec.norm_placement == "pre" else x
        if time is not None:
            y = y * (1 + scale) + shift
        y = branch(y)
        if branch is attention:
            x, modulation = kept(x), tuple(part if part is None else kept(part) for part in modulation)
        gate = modulation[offset + 2]
        if spec.norm_placement == "branch":
            y = normalise(y, weights[norm], spec)
        if time is not None:
            y = y * (gate if spec.time_gates == "zero" else 1 + gate)
        if key_B is not None:
            y = dropout(y, key_B, spec.dropout)
        x = x + (y if residual == 1.0 else y * residual)
        x = layout.constrain(normalise(x, weights[norm], spec) if spec.norm_placement == "post" else x, stream)
    return x


def _attention_branch(network: Network, attend, rotary, B: int, weights: dict, kept: Callable[[Array], Array]):
    spec, layout = network.spec, network.layout

    def heads(y: Array, name: str, axis: str, count: int) -> Array:
        out = linear(y, weights[name], ("embed", axis), layout)
        if spec.qk_norm_all and name != "value":
            out = rms_norm(out, weights[f"{name}_norm"]["scale"], spec.norm_eps)
        return layout.constrain(out.reshape(B, -1, count, spec.head_dim), ("batch", "length", axis, None))

    def branch(y: Array) -> Array:
        """Output for the positions that `kept` leaves; all give keys and values."""
        of_queries = kept(y)
        q_BMHK = heads(of_queries, "query", "heads", spec.heads)
        k_BLGK = heads(y, "key", "kv_heads", spec.kv_heads)
        v_BLGK = heads(y, "value", "kv_heads", spec.kv_heads)
        if spec.qk_norm and not spec.qk_norm_all:
            q_BMHK = rms_norm(q_BMHK, weights["query_norm"]["scale"], spec.norm_eps)
            k_BLGK = rms_norm(k_BLGK, weights["key_norm"]["scale"], spec.norm_eps)
        if rotary is not None:
            M = q_BMHK.shape[1]
            q_BMHK, k_BLGK = rotate(q_BMHK, *(table_BLC[:, :M] for table_BLC in rotary)), rotate(k_BLGK, *rotary)
        out_BMHK = attend(q_BMHK, k_BLGK, v_BLGK)
        merged = out_BMHK.reshape(*of_queries.shape[:-1], spec.heads * spec.head_dim)
        return linear(merged, weights["output"], ("heads", "embed"), layout)

    return branch


def _mlp_branch(network: Network, weights: dict):
    spec, layout = network.spec, network.layout

    def branch(y: Array) -> Array:
        lead = ("row",) if y.ndim == 2 else ("batch", "length")

        def inner(name: str) -> Array:
            return layout.constrain(linear(y, weights[name], ("embed", "ffn"), layout), (*lead, "ffn"))

        if spec.mlp == "swiglu":
            gate, up = inner("gate"), inner("up")
            inside = jax.nn.silu(gate) * up
        else:
            inside = jax.nn.gelu(inner("up"), approximate=spec.mlp == "gelu_tanh")
        return linear(inside, weights["down"], ("ffn", "embed"), layout)

    return branch
