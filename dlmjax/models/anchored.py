"""A denoiser of two networks (Anchored Diffusion Language Model, 2505.18456): an anchor network phi, and psi, which reads phi's output.

    pi(z) = softmax(head(phi(z, t)))                 what phi predicts of every token, in the first `anchor_depth` of `depth` layers
    hidden = psi(z, t, pi(z) @ embedding)            psi adds phi's mean embedding to its input, by a matrix that starts at zero

The output is a function of z and t that is factorised over positions, like that of any network: the bound of a process is a bound with it,
and as tight. Weighting `anchored` also trains pi on rare tokens (`weightings/tokens.py`).

Both parts are networks as of denoiser.py, with one embedding and head. Weights: psi's tree, and phi's own leaves under "anchor".
What a part costs is counted: parameters in `abstract`, both parts and pi on all positions in `training_flops_per_token`.

Shapes: B batch, L length, D width, V vocab.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Bool, Float, Int, Shaped

from dlmjax.diffusion.declarations import Attention
from dlmjax.errors import InputError
from dlmjax.models.denoiser import Denoiser, Network
from dlmjax.models.layout import SINGLE, Layout
from dlmjax.models.masks import Mask
from dlmjax.models.spec import Execution, ModelSpec

SHARED = ("embedding", "head")  # the leaves of psi that phi reads


@dataclasses.dataclass(frozen=True)
class AnchoredNetwork:
    """Both parts and how they are run; a `TrainableNetwork`, hashable and without arrays. whole: their spec, with `anchor_depth`."""

    whole: ModelSpec
    execution: Execution = Execution()
    layout: Layout = SINGLE

    self_condition = False  # psi's input for a hint is phi's
    caches = False

    @property
    def spec(self) -> ModelSpec:
        """Raises InputError: what reads the fields of one Transformer cannot use two."""
        raise InputError(
            f"model.anchor_depth={self.whole.anchor_depth} makes the network two, and what was requested requires one of a family (export, "
            "plans, sweeps, --init, activations, latency); set it to 0, or use dlmjax.open_run(DIR).params"
        )

    @functools.cached_property
    def anchor(self) -> Network:
        """phi."""
        return Network(dataclasses.replace(self.whole, depth=self.whole.anchor_depth, anchor_depth=0), self.execution, self.layout)

    @functools.cached_property
    def denoiser(self) -> Network:
        """psi."""
        depth = self.whole.depth - self.whole.anchor_depth
        return Network(dataclasses.replace(self.whole, depth=depth, anchor_depth=0, self_condition=True), self.execution, self.layout)

    @property
    def width(self) -> int:
        """Width of the hidden states."""
        return self.whole.width

    @property
    def unshifted(self) -> AnchoredNetwork:
        """The same network: both parts predict each token in its own position."""
        return self

    @property
    def dropout(self) -> bool:
        """Whether a training step passes keys for dropout."""
        return self.whole.dropout > 0

    def init(self, key: jax.Array) -> dict:
        """Float32 initial values as a plain nested dict; may be traced."""
        return _together(self.denoiser.init(key), self.anchor.init(jax.random.fold_in(key, 1)))

    def abstract(self) -> dict:
        """The tree of `jax.ShapeDtypeStruct`; allocates nothing."""
        return self._of_both(lambda network: network.abstract())

    @property
    def axes(self) -> dict:
        """Logical axis names of every weight, one tuple per leaf."""
        return self._of_both(lambda network: network.axes)

    @property
    def kinds(self) -> dict:
        """ "matrix" | "embedding" | "head" | "vector" per leaf."""
        return self._of_both(lambda network: network.kinds)

    @property
    def lr_multipliers(self) -> dict:
        """Factor on the learning rate per leaf."""
        return self._of_both(lambda network: network.lr_multipliers)

    @property
    def wd_multipliers(self) -> dict:
        """Factor on weight decay per leaf."""
        return self._of_both(lambda network: network.wd_multipliers)

    @property
    def eps_multipliers(self) -> dict:
        """Factor on AdamW's epsilon per leaf."""
        return self._of_both(lambda network: network.eps_multipliers)

    @property
    def parameter_count(self) -> int:
        """Number of weights, those that both parts read once."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract()))

    def _of_both(self, tree_of: Callable[[Network], dict]) -> dict:
        return _together(tree_of(self.denoiser), tree_of(self.anchor))

    def training_flops_per_token(
        self, length: int, head_share: float = 1.0, *, streams: int = 1, passes: float = 1.0, tokens_per_time: int = 1
    ) -> float:
        """FLOPs per token of one training step: phi and psi, and pi and its mean embedding at every position."""
        how = {"streams": streams, "passes": passes, "tokens_per_time": tokens_per_time}
        return self.anchor.training_flops_per_token(length, 2.0, **how) + self.denoiser.training_flops_per_token(length, head_share, **how)

    def bind(
        self,
        params: dict,
        segments_BL: Int[Array, "B L"],
        positions_BL: Int[Array, "B L"],
        attention: str | Attention | Mask = "full",
        dropout_key: jax.Array | None = None,
    ) -> AnchoredDenoiser:
        """The denoiser of one batch; arguments as of `Network.bind`."""
        own = {name: leaf for name, leaf in params.items() if name != "anchor"}
        of_anchor = {**params["anchor"], **{name: own[name] for name in SHARED if name in own}}
        keys = (dropout_key, None)
        if dropout_key is not None:
            fold = functools.partial(jax.random.fold_in, data=1)
            keys = (dropout_key, jax.vmap(fold)(dropout_key) if dropout_key.ndim else fold(dropout_key))
        return AnchoredDenoiser(
            self.anchor.bind(of_anchor, segments_BL, positions_BL, attention, keys[1]),
            self.denoiser.bind(own, segments_BL, positions_BL, attention, keys[0]),
        )


def _together(own: dict, of_anchor: dict) -> dict:
    return {**own, "anchor": {name: leaf for name, leaf in of_anchor.items() if name not in SHARED}}


@dataclasses.dataclass(frozen=True)
class AnchoredDenoiser:
    """Both parts with weights and one batch bound. The head is psi's, on hidden states of either."""

    anchor: Denoiser
    denoiser: Denoiser

    reads_hidden = False  # it takes no hint

    def without_gradient(self) -> AnchoredDenoiser:
        """The same with its weights as constants."""
        return dataclasses.replace(self, anchor=self.anchor.without_gradient(), denoiser=self.denoiser.without_gradient())

    def with_tokens_per_time(self, tokens: int) -> AnchoredDenoiser:
        """See `Denoiser.with_tokens_per_time`."""
        anchor, own = self.anchor.with_tokens_per_time(tokens), self.denoiser.with_tokens_per_time(tokens)
        return dataclasses.replace(self, anchor=anchor, denoiser=own)

    def hidden(
        self, z_BL: Shaped[Array, "B L *state"], t_BL: Float[Array, "B L"], hint_BLI: Float[Array, "B L I"] | None = None
    ) -> Float[Array, "B L D"]:
        """Final states of psi; it takes no hint of self-conditioning (`ModelSpec` refuses both together)."""
        del hint_BLI
        return self.both(z_BL, t_BL)[0]

    def both(self, z_BL: Shaped[Array, "B L *state"], t_BL: Float[Array, "B L"]) -> tuple[Float[Array, "B L D"], Float[Array, "B L D"]]:
        """(final states of psi, final states of phi), whose logits are those of pi."""
        anchor_BLD = self.anchor.hidden(z_BL, t_BL)
        return self.denoiser.hidden(z_BL, t_BL, self.anchor.expect(anchor_BLD)), anchor_BLD

    def logits(self, hidden: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
        """Float32 logits of any number of hidden states."""
        return self.denoiser.logits(hidden)

    def expect(self, hidden_BLD: Float[Array, "B L D"], table_VI: Float[Array, "V I"] | None = None) -> Float[Array, "B L I"]:
        """softmax(logits) @ table in float32, by default with the embedding."""
        return self.denoiser.expect(hidden_BLD, table_VI)

    def row_losses(
        self,
        hidden_BLD: Float[Array, "B L D"],
        loss_mask_BL: Bool[Array, "B L"],
        loss_fn: Callable[..., Array],
        args: tuple[Any, ...],
        weight_BL: Float[Array, "B L"],
    ) -> tuple[Float[Array, ""], Float[Array, "B L"]]:
        """(sum of weighted losses over `loss_mask_BL`, nats per position without gradient)."""
        return self.denoiser.row_losses(hidden_BLD, loss_mask_BL, loss_fn, args, weight_BL)


def build_network(spec: ModelSpec, execution: Execution | None = None, partition: Layout | None = None) -> Network | AnchoredNetwork:
    """The network of a spec; `partition` (a `dlmjax.parallel.Partition`) places it on a mesh, None means one device."""
    kind = AnchoredNetwork if spec.anchor_depth else Network
    return kind(spec, execution or Execution(), partition or SINGLE)
