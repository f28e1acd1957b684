"""Block diffusion: blocks of text from left to right, any noise on tokens inside each (BD3-LM, Arriola et al. 2503.09573).

    NELBO = sum over blocks b of E_{t_b, z^b} loss(x^b, z^b, t_b; the denoiser given z^b and x^{<b}) + the inner boundary terms

This is the chain rule over blocks, -log p(x) = sum_b -log p(x^b | x^{<b}), with the inner process's bound of each factor given the clean
blocks before it. Every block has its own time t_b, drawn by `PerBlock`: the loss of a block depends on no other block's noise, so the
bound is exact and as tight as the inner one at every size. With masks the loss is -alpha'/(1 - alpha) times the cross-entropy (their eq.
8); with uniform or hybrid noise it is that of interpolating.py, and the network is conditioned on t.

A state is a pair per position, [B, L, 2]: the noisy token and the clean one. The network reads them as two streams of one row; a
block of the noisy stream sees itself and the clean blocks before it, so that all blocks are trained in one pass, at about twice the
cost of a step without blocks.

Two special cases: with masks, blocks of one token are the chain rule over tokens, an exact likelihood at any time; one block of the whole
row is the inner process. With times from an interval (`stratified(low=0.3, high=0.8)`) the gradient has less variance
(section 5.2) and the trained loss is not a bound; an evaluation integrates over all times.

Seeded blocks are for weights that predict the next token. The first token of a block, its seed, is predicted from the clean text before it,
by the chain rule, and shown to the rest, which diffuse given it:

    -log p(x^b | x^{<b}) <= CE(x_1 | x^{<b}) + E_{t_b, z^b} loss(x_2.., z_2.., t_b; the denoiser given x_1, z_2.. and x^{<b})

Each token is predicted from the position before it: the seed from the clean stream, the others from their own block. The clean stream is
causal and holds the text after a beginning of text, so blocks of one token are autoregression, in every bit of the mask. The bound is as
tight as the inner one; a document that begins within a block costs its first token as in autoregression, and the rest of the block also
pays for not always seeing it. (Read from the noisy block before, as in Fast-dLLM v2 2509.26328, a first token costs more: a loose bound.)

Shapes: B batch, L length, V vocabulary; `*n` any shape. Losses in nats per token.
"""

import abc
import copy
import dataclasses
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dlmjax.diffusion.declarations import Attention, Capabilities, Phases
from dlmjax.diffusion.hyperschedule import PerBlock
from dlmjax.diffusion.process import Output, Process, States, check_ids, cross_entropy
from dlmjax.diffusion.processes.autoregressive import Autoregressive
from dlmjax.diffusion.shapes import Ids, Logits, Mask, PerClass, PerToken, RowKeys, Tokens, Values, Views
from dlmjax.diffusion.time_domain import TimeDomain
from dlmjax.diffusion.times import PerRow, Times
from dlmjax.diffusion.weightings.base import OF_RATES, OF_SEEDS
from dlmjax.errors import InputError

# The noisy and the clean token of each position.
Pairs = Int[Array, "B L 2"]
PairsN = Int[Array, "*n 2"]


@dataclasses.dataclass(frozen=True)
class _BlockTimes(TimeDomain):
    """The inner process's times, one for each block."""

    size: int
    inner: TimeDomain

    @property
    def steps(self) -> int:
        return self.inner.steps

    @property
    def one_time_per_row(self) -> bool:
        return self.inner.one_time_per_row

    def quantize(self, t_BL: PerToken, valid_BL: Mask) -> PerToken:
        return self.inner.quantize(t_BL, valid_BL)

    def revealed(self, masked_BL: Mask, t_BL: PerToken, start_BL: PerToken) -> PerToken:
        return self.inner.revealed(masked_BL, t_BL, start_BL)

    def adapt(self, times: Times) -> Times:
        """One time per block, from times of one per row or per block of another size."""
        times = self.inner.adapt(times)
        if isinstance(times, PerBlock):
            return times if times.size == self.size else dataclasses.replace(times, size=self.size)
        if not isinstance(times, PerRow):
            return times
        return PerBlock(self.size, times.distribution, times.stratified, corrected=times.corrected)

    def covered_by(self, times: Times) -> bool:
        """A block reads the others clean, so blocks can have different times, as long as all tokens of a block have the same."""
        return times.covers and (not isinstance(times, PerBlock) or times.size % self.size == 0)


@dataclasses.dataclass(frozen=True)
class Blockwise(Process):
    """A process inside blocks of `size` tokens; the length of a row must be a multiple of it.

    inner: a process whose states are tokens, for a network that reads the whole block; its schedule holds in every block.
    curriculum: ((step, size), ...) in rising order: until that training step blocks have that size, then `size`. In the paper, training
      with small blocks starts from a model that was trained with blocks of the whole row (section 6).
    seed_bos: the id of the beginning of text, where blocks are seeded; None = they are not.
    """

    inner: Process
    size: int = 4
    curriculum: tuple[tuple[int, int], ...] = ()
    seed_bos: int | None = None

    name = "blocks"

    def __post_init__(self):
        if self.size < 1:
            raise InputError(f"process blocks: size is {self.size}; it must be at least 1 token")
        if not _is_curriculum(self.curriculum):
            raise InputError(
                f"process blocks: curriculum is {self.curriculum}; give (step, size) pairs, as in ((1000, 64), (2000, 16)), steps rising, "
                "both at least 1"
            )
        if self.seed_bos is not None:
            check_ids(self.name, self.inner.vocab, bos_id=self.seed_bos)
            if self.inner.boundary.any or self.inner.output.predicts != "logits":
                raise InputError(
                    "process blocks: seeded=True requires a schedule that ends in clean text and pure noise, and a noise that predicts "
                    f"tokens, not {self.inner.name!r} as it is"
                )
        self.inner.time_domain.adapt(PerBlock(self.size))  # refuses noise that has one time per row
        tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
        state = None if self.inner.states.dim else jax.eval_shape(self.inner.states.of_tokens, tokens)
        if self.inner.attention.sequential or state is None or state.ndim != 2:
            raise InputError(f"process blocks: noise {self.inner.name!r} is not a process on tokens with attention 'full'")
        if type(self.inner).loss_inputs is not Process.loss_inputs:
            raise InputError(f"process blocks: noise {self.inner.name!r} depends on the whole row, the text of later blocks too")

    def with_params(self, params: Any) -> "Blockwise":
        process = copy.copy(self)
        object.__setattr__(process, "inner", self.inner.with_params(params))
        return process

    @property
    def capabilities(self) -> Capabilities:
        """The inner process's. Weightings: functions of t and the cross-entropy, since the others read z, which is a pair here."""
        inner = self.inner.capabilities
        weightings = tuple(name for name in inner.weightings if name in ("bound", *OF_RATES))
        own = {"weightings": weightings, "count_form": None, "in_blocks": self.inner.bound}
        if self.seed_bos is not None:  # a seed comes before the rest of its block
            own |= {"weightings": (*weightings, *OF_SEEDS), "any_order": False}
            own |= {"seeds": Autoregressive(self.inner.vocab, self.seed_bos, excluded=self.inner.suppressed_ids)}
        return dataclasses.replace(inner, **own)

    @property
    def bound(self) -> "Blockwise":
        return self if self.inner.bound is self.inner else dataclasses.replace(self, inner=self.inner.bound)

    # --- blocks ----------------------------------------------------------------------------------------------------------------

    @property
    def attention(self) -> Attention:
        return Attention(block_size=self.size, seeded=self.seed_bos is not None)

    def exact_mask(self, z_BL: Pairs) -> Mask:
        """The seeds."""
        length = z_BL.shape[1]
        return jnp.broadcast_to((jnp.arange(length) % self.size == 0) & (self.seed_bos is not None), z_BL.shape[:2])

    def _with_seeds(self, z_BL: Tokens, x_BL: Tokens) -> Pairs:
        """The state of this noise: its seeds are clean."""
        state_BL = _pairs(z_BL, _read(x_BL, self.seed_bos))
        return state_BL if self.seed_bos is None else state_BL.at[..., 0].set(jnp.where(self.exact_mask(state_BL), x_BL, z_BL))

    @property
    def phases(self) -> Phases:
        sizes, ends = (*(size for _, size in self.curriculum), self.size), tuple(until for until, _ in self.curriculum)

        def shortened(step: int) -> dict[str, Any]:
            """The same phases, all shortened in proportion; phases that become shorter than a step are left out."""
            found = {until * step // ends[-1]: size for until, size in self.curriculum}
            return {"curriculum": tuple((until, size) for until, size in found.items() if until)}

        return Phases(lambda i: dataclasses.replace(self, size=sizes[i], curriculum=()), ends, shortened)

    @property
    def time_domain(self) -> TimeDomain:
        return _BlockTimes(self.size, self.inner.time_domain)

    # --- states: the noisy and the clean text ----------------------------------------------------------------------------------

    def corrupt(self, keys_B: RowKeys, x_BL: Tokens, t_BL: PerToken, valid_BL: Mask | None = None) -> Pairs:
        return self._with_seeds(self.inner.corrupt(keys_B, x_BL, t_BL, valid_BL), x_BL)

    def noisy_views(self, keys_B: RowKeys, x_BL: Tokens, t_BL: PerToken, valid_BL: Mask | None = None) -> Views:
        return tuple((self._with_seeds(z_BL, x_BL), time_BL) for z_BL, time_BL in self.inner.noisy_views(keys_B, x_BL, t_BL, valid_BL))

    def forward_step(self, keys_B: RowKeys, z_BL: Pairs, s_BL: PerToken, t_BL: PerToken, valid_BL: Mask | None = None) -> Pairs:
        noisy_BL = self.inner.forward_step(keys_B, z_BL[..., 0], s_BL, t_BL, valid_BL)
        return _pairs(jnp.where(self.exact_mask(z_BL), z_BL[..., 0], noisy_BL), z_BL[..., 1])

    @property
    def states(self) -> States:
        return _PairStates(self.seed_bos)

    def loss_mask(self, z_BL: Pairs, t_BL: PerToken) -> Mask:
        return self.inner.loss_mask(z_BL[..., 0], t_BL) | self.exact_mask(z_BL)

    def log_q(self, z_BL: Pairs, x_BL: Tokens, t_BL: PerToken) -> PerToken:
        return jnp.where(self.exact_mask(z_BL), 0.0, self.inner.log_q(z_BL[..., 0], x_BL, t_BL))

    # --- what an output costs and means ----------------------------------------------------------------------------------------

    def loss_inputs(self, x_BL: Tokens, z_BL: Pairs, t_BL: PerToken) -> tuple[PerToken, ...]:
        """1 at seeds, 0 elsewhere."""
        return () if self.seed_bos is None else (self.exact_mask(z_BL).astype(t_BL.dtype),)

    def loss(self, logits: PerClass, x: Ids, z: PairsN, t: Values, *seed: Values) -> Values:
        nats = self.inner.loss(logits, x, z[..., 0], t)
        return jnp.where(seed[0] > 0, cross_entropy(logits, x, self.suppressed_ids), nats) if seed else nats

    def reconstruction(self, logits: PerClass, x: Ids, z0: PairsN) -> Values:
        return self.inner.reconstruction(logits, x, z0[..., 0])

    @property
    def output(self) -> Output:
        return _NoisyOutput(self.inner.output)

    def reverse_rates(self, logits_BLV: Logits, z_BL: Pairs, t_BL: PerToken) -> Logits:
        return self.inner.reverse_rates(logits_BLV, z_BL[..., 0], t_BL)

    # --- reverse ---------------------------------------------------------------------------------------------------------------

    def prior(self, keys_B: RowKeys, length: int) -> Int[Array, "B {length} 2"]:
        return _twice(self.inner.prior(keys_B, length))

    def reverse_step(self, keys_B: RowKeys, logits_BLV: Logits, z_BL: Pairs, t_BL: PerToken, s_BL: PerToken) -> Pairs:
        """A step of the noisy stream; a block must be at t = 0 before later blocks, which read it, are sampled."""
        return _twice(self.inner.reverse_step(keys_B, logits_BLV, z_BL[..., 0], t_BL, s_BL))

    def decode(self, keys_B: RowKeys, logits_BLV: Logits, z_BL: Pairs) -> Pairs:
        return _twice(self.inner.decode(keys_B, logits_BLV, z_BL[..., 0]))


@dataclasses.dataclass(frozen=True)
class _NoisyOutput(Output):
    """The inner process's output, which is a prediction from the noisy token."""

    inner: Output

    @property
    def process(self) -> Process:
        return self.inner.process

    @property
    def predicts(self) -> str:
        return self.inner.predicts

    @property
    def columns(self) -> int:
        return self.inner.columns

    def log_posterior(self, logits: PerClass, z: PairsN, t: Values) -> PerClass:
        return self.inner.log_posterior(logits, z[..., 0], t)

    def log_loo(self, logits: PerClass, z: PairsN, t: Values) -> PerClass:
        return self.inner.log_loo(logits, z[..., 0], t)

    def suppressed(self, logits: PerClass, ids: tuple[int, ...], z: PairsN, t: Values) -> PerClass:
        return self.inner.suppressed(logits, ids, z[..., 0], t)

    def guided(self, conditional: PerClass, unconditional: PerClass, weight: float | Array, z: PairsN, t: Values) -> PerClass:
        return self.inner.guided(conditional, unconditional, weight, z[..., 0], t)

    def shifted(self, logits: PerClass, shift: PerClass, z: PairsN, t: Values) -> PerClass:
        return self.inner.shifted(logits, shift, z[..., 0], t)

    def x0(self, denoiser: Any, hidden_BLD: Float[Array, "B L D"], z_BL: Pairs, t_BL: PerToken) -> Float[Array, "B L I"]:
        return self.inner.x0(denoiser, hidden_BLD, z_BL[..., 0], t_BL)


@dataclasses.dataclass(frozen=True)
class OneStream(Process):
    """Masks in one stream under block-causal attention, all blocks at one time: half the cost, and a bound that is not tight.

    A block is predicted from itself and the blocks before it, which are as noisy as it is: the NELBO of a network that does not see later
    blocks. The weights are those of `Blockwise` of the same size, whose bound reads earlier blocks clean, as sampling does.
    """

    inner: Process
    size: int = 4

    name = "blocks"

    def __post_init__(self):
        if self.size < 1:
            raise InputError(f"process blocks: size is {self.size}; it must be at least 1 token")
        if not self.inner.capabilities.any_order or self.inner.attention != Attention() or self.inner.bound is not self.inner:
            raise InputError(f"process blocks: streams=1 requires masks at one rate for all tokens, not noise {self.inner.name!r}")

    @property
    def attention(self) -> Attention:
        return Attention(context_size=self.size)

    @property
    def capabilities(self) -> Capabilities:
        return dataclasses.replace(self.inner.capabilities, is_tight=False, count_form=None)

    def with_params(self, params: Any) -> "OneStream":
        del params  # masks at one rate learn nothing
        return self


for _name in (
    *("vocab", "mask_id", "excluded", "schedule", "suppressed_ids", "absorbing_id", "time_input", "time_embedding_input", "states"),
    *("corrupt", "noisy_views", "forward_step", "corrupted", "time_domain", "loss", "loss_mask", "loss_inputs", "log_q", "output"),
    *("reconstruction", "prior", "reverse_step", "reverse_rates", "decode", "boundary", "ends", "prior_nats"),
    *("noise_share", "noise_rate", "cross_entropy_weight", "replaced"),
):
    setattr(OneStream, _name, property(operator.attrgetter(f"inner.{_name}")))
abc.update_abstractmethods(OneStream)

# Members that blocks do not change: those of the inner process.
for _name in (
    *("vocab", "mask_id", "excluded", "schedule", "suppressed_ids", "absorbing_id", "time_input", "time_embedding_input"),
    *("params", "parameters", "scalars", "boundary", "ends", "prior_nats"),
    *("noise_share", "noise_rate", "cross_entropy_weight", "replaced"),
):
    setattr(Blockwise, _name, property(operator.attrgetter(f"inner.{_name}")))


@dataclasses.dataclass(frozen=True)
class _PairStates(States):
    """The noisy and the clean token, or where blocks are seeded the one before it."""

    seed_bos: int | None

    def of_tokens(self, x_BL: Tokens) -> Pairs:
        return _pairs(x_BL, _read(x_BL, self.seed_bos))

    def to_tokens(self, z_BL: Pairs) -> Tokens:
        return z_BL[..., 0]


def _read(x_BL: Tokens, seed_bos: int | None) -> Tokens:
    """What the clean stream holds: the text, or where blocks are seeded the text after a beginning of text."""
    return x_BL if seed_bos is None else jnp.concatenate([jnp.full_like(x_BL[:, :1], seed_bos), x_BL[:, :-1]], axis=1)


def _twice(x_BL: Tokens) -> Pairs:
    return _pairs(x_BL, x_BL)


def _pairs(noisy_BL: Tokens, clean_BL: Tokens) -> Pairs:
    return jnp.stack([noisy_BL, clean_BL], axis=-1)


def _is_curriculum(value: Any) -> bool:
    """Whether `value` is a sequence of pairs (step, size) of whole numbers, all at least 1, with rising steps."""
    pairs = isinstance(value, tuple | list) and all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in value)
    if not pairs or not all(type(number) is int and number >= 1 for pair in value for number in pair):
        return False
    steps = [step for step, _ in value]
    return steps == sorted(set(steps))
