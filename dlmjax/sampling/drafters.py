"""Drafters: what guesses the next tokens of a text for a verifier that is read from left to right (SpecDiff 2408.05636).

    MaskedDrafter    another network, of a masked process or of blocks, reads the text so far and masks behind it; its output at the first D
                     masks is the distribution of the drafts. With several steps it reveals some of them, the surest first, and reads again.
    JointDrafter     the network of the verifier itself, trained on seeded blocks beside the next token (`configs/joint.py`): the last token
                     and masks are read as one block, which attends to the keys and values of the verifier's causal passes.

Shapes: B rows, L positions of the canvas, D drafts, S positions of a block, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dlmjax.diffusion.process import bind_process, exclude
from dlmjax.errors import InputError
from dlmjax.models.cache import Cache, bind_positions
from dlmjax.models.masks import BlockCausal, Full
from dlmjax.sampling.reveal import require_reveals

# (logits before temperature and nucleus, [B, D, V]) -> a token for each
Draw = Callable[[Float[Array, "B D V"]], Int[Array, "B D"]]


class Text(NamedTuple):
    """The text so far. known_B: number of known tokens of each row, from the left.  index_BD: the positions of the drafts, L and more for
    none.  cache: the verifier's keys and values, None where it keeps none."""

    tokens_BL: Int[Array, "B L"]
    known_B: Int[Array, "B"]
    index_BD: Int[Array, "B D"]
    cache: Cache | None


@runtime_checkable
class Drafter(Protocol):
    """calls: network calls for one set of drafts.  params: weights of a network of its own, None = it reads with the verifier's."""

    calls: int
    params: Any

    def reads(self, length: int) -> int:
        """Positions that go through the layers for one set of drafts, in a row of `length`."""
        ...

    def propose(self, params: Any, text: Text, draw: Draw) -> tuple[Int[Array, "B D"], Float[Array, "B D V"]]:
        """(drafts, the logits that each was drawn from, before temperature and nucleus)."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class MaskedDrafter:
    """Drafts of a run with masks. bind, params: its network and weights.  steps: network calls for one set of drafts."""

    process: Any
    bind: Callable[..., Any]
    params: Any
    suppressed_ids: tuple[int, ...] = ()
    steps: int = 1

    def __post_init__(self):
        blocks = self.process.attention.block_size is not None
        if self.process.attention.causal or self.process.attention.seeded:
            raise InputError(f"draft run requires a run of a masked process or of blocks, and its process is {self.process.name}")
        inner = self.process.capabilities.in_blocks if blocks else self.process.bound
        if inner.states.dim or inner.output.predicts != "logits":
            raise InputError(f"draft run requires a network that predicts the logits of tokens, not that of process {self.process.name}")
        require_reveals(inner, "draft run", "give a run of a masked process")
        object.__setattr__(self, "inner", inner)

    @property
    def calls(self) -> int:
        """Network calls for one set of drafts."""
        return self.steps

    def reads(self, length: int) -> int:
        """See `Drafter.reads`."""
        return self.steps * length

    def propose(self, params, text: Text, draw: Draw):
        """See `Drafter.propose`."""
        process, length = bind_process(self.inner, params), text.tokens_BL.shape[1]
        index_L, mask_id = jnp.arange(length), process.capabilities.prior_mask_id
        start_BL = (index_L >= text.known_B[:, None]).astype(jnp.float32)
        at_BD = jnp.minimum(text.index_BD, length - 1)
        z_BL = jnp.where(start_BL > 0, mask_id, text.tokens_BL)
        depth = at_BD.shape[1]
        chosen_BD, guess_BDV, shown_BD = jnp.zeros_like(at_BD), None, jnp.zeros(at_BD.shape, bool)
        for step in range(1, self.steps + 1):
            logits_BDV = self._logits(process, params, z_BL, start_BL, at_BD)
            drawn_BD = draw(logits_BDV)
            # The surest of those not shown yet; a draft keeps the distribution that it was drawn from.
            sure_BD = jnp.where(shown_BD, math.inf, jnp.max(jax.nn.log_softmax(logits_BDV), axis=-1))
            rank_BD = jnp.argsort(jnp.argsort(-sure_BD, axis=1), axis=1)
            new_BD = (rank_BD < depth * step // self.steps) & ~shown_BD
            chosen_BD = jnp.where(new_BD, drawn_BD, chosen_BD)
            guess_BDV = logits_BDV if guess_BDV is None else jnp.where(new_BD[..., None], logits_BDV, guess_BDV)
            shown_BD |= new_BD
            z_BL = written(z_BL, text.index_BD, jnp.where(shown_BD, chosen_BD, mask_id))
        return chosen_BD, guess_BDV

    def _logits(self, process, params, z_BL, start_BL, at_BD) -> Float[Array, "B D V"]:
        """log p(x_i | z) at the positions of the drafts, up to a constant."""
        masked_BL = z_BL == process.capabilities.prior_mask_id
        # Text that is written from left to right has no number of steps; its time is the share that is masked.
        t_BL = jnp.mean(masked_BL, axis=1, keepdims=True) * start_BL
        t_BL = process.time_domain.revealed(masked_BL, t_BL, start_BL)
        positions_BL = jnp.broadcast_to(jnp.arange(z_BL.shape[1]), z_BL.shape)
        mask = self.process.attention if self.process.attention.block_size is None else BlockCausal(self.process.attention.block_size)
        denoiser = self.bind(params, jnp.ones_like(z_BL), positions_BL, attention=mask)
        hidden_BLD = denoiser.hidden(z_BL, process.time_embedding_input(t_BL))
        hidden_BDD = jnp.take_along_axis(hidden_BLD, at_BD[..., None], axis=1)
        z_BD, t_BD = (jnp.take_along_axis(a_BL, at_BD, axis=1) for a_BL in (z_BL, t_BL))
        raw_BDV = process.output.suppressed(denoiser.logits(hidden_BDD), self.suppressed_ids, z_BD, t_BD)
        return exclude(process.output.log_posterior(raw_BDV, z_BD, t_BD), self.suppressed_ids)


@dataclasses.dataclass(frozen=True, eq=False)
class JointDrafter:
    """Drafts of the verifier's own network by its blocks. process: of seeded blocks.  network: a `models.TrainableNetwork`.
    depth: number of drafts, at most the tokens of a block."""

    process: Any
    network: Any
    depth: int
    suppressed_ids: tuple[int, ...] = ()

    calls: ClassVar[int] = 1
    params: ClassVar[None] = None

    def __post_init__(self):
        if not self.process.attention.seeded or self.process.capabilities.in_blocks.capabilities.prior_mask_id is None:
            raise InputError(
                f"draft joint requires a run of seeded blocks with masks, and its process is {self.process.name}; train one with "
                "configs/joint.py, or give draft run"
            )
        if not self.network.caches:
            raise InputError("draft joint requires a network of a family; a network of your own keeps no keys and values")
        if self.depth > self.process.attention.block_size:
            raise InputError(
                f"draft joint: depth is {self.depth}, but the blocks of the run have {self.process.attention.block_size} tokens; give at "
                "most these"
            )

    def reads(self, length: int) -> int:
        """See `Drafter.reads`."""
        del length
        return self.process.attention.block_size

    def propose(self, params, text: Text, draw: Draw):
        """See `Drafter.propose`."""
        inner = bind_process(self.process.capabilities.in_blocks, params)
        size, length = self.process.attention.block_size, text.tokens_BL.shape[1]
        # Seeded blocks are read one position later: the last token, which stands where its successor is predicted, is the block's seed.
        index_BS = text.known_B[:, None] + jnp.arange(size)
        last_B1 = jnp.take_along_axis(text.tokens_BL, jnp.maximum(text.known_B - 1, 0)[:, None], axis=1)
        seed_B1 = jnp.where(text.known_B[:, None] > 0, last_B1, self.process.seed_bos)
        z_BS = jnp.where(jnp.arange(size) == 0, seed_B1, inner.capabilities.prior_mask_id).astype(jnp.int32)
        valid_BL = jnp.arange(length) < text.known_B[:, None] + size
        piece = bind_positions(self.network, params, text.cache, index_BS, Full(), valid_BL)
        t_BS = jnp.ones(z_BS.shape)
        hidden_BSD = piece.hidden(z_BS, inner.time_embedding_input(t_BS))
        z_BD, t_BD = z_BS[:, : self.depth], t_BS[:, : self.depth]
        raw_BDV = inner.output.suppressed(piece.logits(hidden_BSD[:, : self.depth]), self.suppressed_ids, z_BD, t_BD)
        logits_BDV = exclude(inner.output.log_posterior(raw_BDV, z_BD, t_BD), self.suppressed_ids)
        return draw(logits_BDV), logits_BDV


def written(tokens_BL: Int[Array, "B L"], index_BD: Int[Array, "B D"], new_BD: Int[Array, "B D"]) -> Int[Array, "B L"]:
    """The row with new tokens at these positions; those at L and more are dropped."""
    return tokens_BL.at[jnp.arange(tokens_BL.shape[0])[:, None], index_BD].set(new_BD, mode="drop")
