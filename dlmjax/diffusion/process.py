"""What a noise process is: how text is corrupted, what the denoiser's output costs in nats, and how to step back.

A process is a frozen dataclass of pure functions: no network, no config, no logging, no files. Whatever is random about a row is
drawn from that row's key alone, so microbatches, hosts and meshes cannot change a bit of it. Time t lies in [0, 1], 0 = clean,
1 = noise, one level per token.

    NELBO(x) = integral_0^1 E_z loss(logits(z, t), x, z, t) dt + prior_nats(x) + E_z0 reconstruction(logits(z0, 0), x, z0)

To add one: subclass `Process` in a new file (what is not overridden keeps the defaults below), name it in registry.py, add a row to
the cases of the battery, tests/diffusion/cases_*.py.

A state z is usually a token id per position, [B, L]. It may carry more, [B, L, ...]: an embedding, or for block diffusion the noisy
and the clean token, which a denoiser bound to that process's attention then reads as its two streams.

A process is a pytree. What is trained with the network (embeddings, a noise schedule) is its data, the field `params`: a tree that
`init` starts and training keeps in `params["process"]` of the weights. All other fields are static. `bind_process(process, weights)` is
the process that uses the parameters of these weights; gradients with respect to a process are gradients of its parameters.

Shapes: B batch, L length, V vocabulary; `*n` any shape: `loss` and `reconstruction` are elementwise, because logits exist only for
the rows that carry loss.
"""

import copy
import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Shaped

from dlmjax.diffusion.hyperschedule import PerBlock
from dlmjax.diffusion.schedules import Schedule
from dlmjax.diffusion.shapes import AnyState, Ids, Logits, Mask, PerClass, PerToken, RowKeys, State, Tokens, Values, Views
from dlmjax.diffusion.weightings.base import Bound, Weighting
from dlmjax.errors import InputError

# An excluded class. Finite, since -inf times a weight of 0 is NaN; exp of it is 0 in every float type.
EXCLUDED = -1e30


@dataclasses.dataclass(frozen=True)
class Blocks:
    """Attention of block diffusion: the network reads a noisy and a clean stream and sees its own block and the clean ones before."""

    size: int


@dataclasses.dataclass(frozen=True)
class Ends:
    """How a bound's integrand behaves at its two ends, as a function of the noise share: what an evaluation's levels are chosen for.

    power: the integrand is smooth in the noise share's root of this order: 1 where it is a polynomial, above 2 for a logarithm, or a power
      that is not a whole number, where text is clean.
    clean, noise: how deep towards clean text and towards noise it has structure, e-folds of what is left: e^-4 is where rows of some
      hundred correlated tokens are still distinguishable.
    """

    power: float = 1.0
    clean: float = 1.5
    noise: float = 4.0


@runtime_checkable
class Process(Protocol):
    """A noise process, in three parts: Forward, Bound and Reverse; then what the denoiser reads, parameters and declarations.

    Every process defines the first method of Forward and of Bound and the first two of Reverse; the others have defaults.

    name: as in the registry.
    vocab: token ids there are, special ids included.
    attention: what the denoiser is called with: "full", "causal" or Blocks(size).
    time_input: whether the denoiser must be conditioned on t.
    input_dim: 0 where a state is made of token ids, else the size of the vectors that a state [B, L, input_dim] holds.
    is_bound: whether NELBO above bounds -log p(x).  is_tight: whether the exact denoiser brings that bound to the entropy.
    ends: how the bound's integrand behaves where text is clean and where it is noise; see `noise_share`.
    steps: T, where there are T levels and the integral is a mean over them (`quantize_time`); 0 in continuous time.
    reinforce: whether the distribution of a discrete z depends on `params`, so that its gradient needs two draws (see `log_q`).
    params: the parameters in use, a tree like `init`'s; None before they are bound, and where there are none.

    What other packages must know is declared at the end; none of them looks at the class of a process.
    """

    name: str
    vocab: int
    attention: str | Blocks = "full"
    time_input: bool = False
    input_dim: int = 0
    is_bound: bool = True
    ends: Ends = Ends()
    steps: int = 0
    reinforce: bool = False
    params: Any = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # The structure of a process as a tree is the process without its parameters: hashable, and the same for all values of them.
        jax.tree_util.register_pytree_node(
            cls, lambda process: ((process.params,), process.with_params(None)), lambda static, params: static.with_params(*params)
        )

    # --- Forward: from text to noise ----------------------------------------------------------------------------------------

    def corrupt(self, keys_B: RowKeys, x_BL: Tokens, t_BL: PerToken, valid_BL: Mask | None = None) -> State:
        """Draws z ~ q(z_t | x). `valid_BL` is False on padding, which is left as it is; None = all valid."""
        ...

    def quantize_time(self, t_BL: PerToken, valid_BL: Mask) -> PerToken:
        """The levels at which the process can be, given drawn t: what `corrupt`, the denoiser and `loss` are then given."""
        del valid_BL
        return t_BL

    def noisy_views(self, keys_B: RowKeys, x_BL: Tokens, t_BL: PerToken, valid_BL: Mask | None = None) -> Views:
        """What a training step denoises: (z, t), or several whose mean it takes. Each t must be as likely as the drawn one."""
        return ((self.corrupt(keys_B, x_BL, t_BL, valid_BL), t_BL),)

    def forward_step(self, keys_B: RowKeys, z_BL: State, s_BL: PerToken, t_BL: PerToken, valid_BL: Mask | None = None) -> State:
        """Draws z_t ~ q(z_t | z_s), s <= t: a piece of the forward chain."""
        raise InputError(f"process {self.name} has no levels between clean text and noise; it takes no forward steps")

    def corrupted(self, x_BL: Tokens, z_BL: State) -> Mask:
        """Positions whose token is not what it was, for the realised noise rate."""
        return z_BL != x_BL

    def clean_state(self, x_BL: Tokens) -> State:
        """The state that holds this text without noise; required where a text conditions the rest, of states that are not vectors."""
        return x_BL

    def noise_share(self, t: Values) -> Values:
        """How much of a state is noise at t; rises with t. An evaluation spreads its levels in it, so that they do not depend on the
        schedule, and `ends` says how the integrand behaves in it."""
        return t

    def noise_rate(self, t: Values) -> Values:
        """Expected share of rows that carry loss at level t."""
        return jnp.ones_like(t)

    def replaced(self, t: Values) -> Values:
        """Probability that a token at level t shows as a draw of tokens: 0 where noise only hides."""
        return jnp.zeros_like(t)

    def adapt_times(self, times: Any) -> Any:
        """How a draw of levels (a `Times`) is spread over a row of this process: as it is, or one level per block.

        Raises InputError: levels that this noise cannot have.
        """
        return times

    def covered_by(self, times: Any) -> bool:
        """Whether the mean of the loss under a draw of levels (a `Times`) is its integral over all the noise that a text can have.

        A network that reads a whole row bounds its likelihood along a path on which all tokens gain noise together: levels that are
        drawn apart show it tokens with little noise beside others with much, which is no such path, and reads below the truth.
        """
        return times.covers and not isinstance(times, PerBlock)

    # --- Bound: what the denoiser's output costs in nats --------------------------------------------------------------------

    def loss(self, logits: PerClass, x: Ids, z: AnyState, t: Values) -> Values:
        """Nats at each position; the mean over t ~ U[0, 1] and z is the diffusion part of the NELBO."""
        ...

    def loss_mask(self, z_BL: State, t_BL: PerToken) -> Mask:
        """Positions that can carry loss: the head is computed on these only."""
        del z_BL
        return jnp.ones(t_BL.shape, bool)

    def prior_nats(self, x: Ids) -> Values:
        """KL(q(z_1 | x) || p_1) per token."""
        return jnp.zeros(x.shape, jnp.float32)

    def reconstruction(self, logits: PerClass, x: Ids, z0: AnyState) -> Values:
        """-log p(x | z_0) per token, in nats, with z0 = corrupt(keys, x, t = 0)."""
        del logits, z0
        return jnp.zeros(x.shape, jnp.float32)

    def cross_entropy_weight(self, t: Values) -> Values:
        """w(t) where `loss` is w(t) times the cross-entropy of the rows; the reweighted training losses are made from it."""
        raise InputError(f"the loss of process {self.name} is no weighted cross-entropy; train it with weighting 'bound'")

    def log_q(self, z_BL: State, x_BL: Tokens, t_BL: PerToken) -> PerToken:
        """log q(z_t | x) per token, differentiable in `params`; required only where `reinforce`."""
        raise InputError(f"process {self.name} learns nothing that its noise depends on")

    @property
    def has_boundary(self) -> bool:
        """True where the prior or the reconstruction term is not zero: the schedule leaves noise at t = 0 or text at t = 1."""
        return self.schedule is not None and self.schedule.has_boundary

    @property
    def has_reconstruction(self) -> bool:
        """True where some noise is left at t = 0; only then does anything pay a pass of the network there."""
        return self.has_boundary if self.schedule is None else self.schedule.ends[0] != 1

    @property
    def is_tight(self) -> bool:
        """Not where noise is left at t = 0 or text at t = 1: tokens in doubt are then guessed without seeing each other, and the reverse
        chain starts without the text that is left. Nor in steps, each of which changes tokens that do not see each other."""
        return not self.has_boundary and not self.steps

    @property
    def weighting(self) -> Weighting:
        """How the loss is weighted in training by default."""
        return Bound()

    @property
    def bound(self) -> "Process":
        """The process that a likelihood is evaluated with: itself, unless training draws its noise in another way."""
        return self

    # --- Reverse: from noise to text ----------------------------------------------------------------------------------------

    def prior(self, keys_B: RowKeys, length: int) -> Shaped[Array, "B {length} *state"]:
        """Draws z_1 ~ p_1, where sampling starts."""
        ...

    def reverse_step(self, keys_B: RowKeys, logits_BLV: Logits, z_BL: State, t_BL: PerToken, s_BL: PerToken) -> State:
        """Draws z_s ~ p(z_s | z_t), s <= t, from the denoiser's output at (z_t, t)."""
        ...

    def decode(self, keys_B: RowKeys, logits_BLV: Logits, z_BL: State) -> Tokens:
        """Draws x ~ p(x | z_0) from the denoiser's output at (z_0, 0): the last act of sampling where `has_reconstruction`."""
        del keys_B, logits_BLV
        return z_BL

    def to_tokens(self, z_BL: State) -> Tokens:
        """The tokens to show for a state."""
        return z_BL

    def log_posterior(self, logits: PerClass, z: AnyState, t: Values) -> PerClass:
        """log p(x_i | z) up to a constant, from the denoiser's output at (z, t)."""
        del z, t
        return logits

    def log_loo(self, logits: PerClass, z: AnyState, t: Values) -> PerClass:
        """log p(x_i | z_{-i}) up to a constant, from the denoiser's output at (z, t)."""
        del z, t
        return logits

    def suppressed(self, logits: PerClass, ids: tuple[int, ...], z: AnyState, t: Values) -> PerClass:
        """The output of a denoiser that gives the tokens `ids` no probability."""
        del z, t
        return exclude(logits, ids)

    def guided(self, conditional: PerClass, unconditional: PerClass, weight: float, z: AnyState, t: Values) -> PerClass:
        """The output whose law of tokens is p(x | condition)^(1 + weight) / p(x)^weight, from outputs with and without the condition.

        A posterior and a leave-one-out posterior differ by a likelihood that both outputs share, and estimates of a clean vector are
        linear in the score: one line for all but ratios of noisy probabilities.
        """
        del z, t
        return (1 + weight) * conditional - weight * unconditional

    def reverse_rates(self, logits_BLV: Logits, z_BL: Tokens, t_BL: PerToken) -> Logits:
        """Jumps z -> y of the reversed process per unit of time, r_t(z) p_t(z with z_i := y) / p_t(z); 0 for y = z. Required by method
        `tau_leap`."""
        raise InputError(f"process {self.name} provides no rates of jumps")

    # --- The denoiser: what it reads and predicts ---------------------------------------------------------------------------

    def time_embedding_input(self, t_BL: PerToken) -> PerToken:
        """What the denoiser is conditioned on in place of t."""
        return t_BL

    def reveal_times(self, masked_BL: Mask, t_BL: PerToken, start_BL: PerToken) -> PerToken:
        """What the denoiser is conditioned on where tokens are revealed one after another: t, unless masks depend on the token.

        masked_BL: positions still masked.  start_BL: the levels at which they were masked; 0 where text is given.
        """
        del masked_BL, start_BL
        return t_BL

    def self_conditioning_x0(self, denoiser: Any, hidden_BLD: Float[Array, "B L D"], z_BL: State, t_BL: PerToken) -> Float[Array, "B L I"]:
        """The denoiser's x0 prediction in the space that it reads, the mean embedding: the input of self-conditioning."""
        del z_BL, t_BL
        return denoiser.expect(hidden_BLD)

    @property
    def outputs(self) -> int:
        """Columns of the denoiser's output: logits over the vocabulary, unless the network predicts something else."""
        return self.vocab

    @property
    def denoisings(self) -> int:
        """How many times a training step denoises a row."""
        return 2 if self.reinforce else 1

    # --- Parameters: what is trained with the network -----------------------------------------------------------------------

    def init(self, key: Key[Array, ""]) -> dict[str, Any]:
        """Start values, a tree of float32 arrays; empty where nothing is learned."""
        del key
        return {}

    def param_kinds(self) -> dict[str, Any]:
        """A tree like `init`'s: "embedding", "matrix" or "vector" for each leaf, which is how the optimizer treats it."""
        return {}

    def lr_multipliers(self) -> dict[str, Any]:
        """A tree like `init`'s: what the learning rate is multiplied by for each leaf."""
        return jax.tree.map(lambda _: 1.0, self.param_kinds())

    def scalars(self) -> dict[str, Float[Array, ""]]:
        """Scalars of the learned values in place that are worth a curve, by name; empty where there are none."""
        return {}

    def with_params(self, params: Any) -> "Process":
        """This process with other parameters, a tree like `init`'s; an empty tree is None."""
        params = params if jax.tree.leaves(params) else None
        if params is self.params:
            return self
        process = copy.copy(self)
        object.__setattr__(process, "params", params)
        return process

    # --- Declarations, read by samplers, scorers, export and plans ----------------------------------------------------------

    # The share of noise as a function of time; None where it is learned, differs between tokens or is a Gaussian path.
    schedule: Schedule | None = None
    # What the denoiser's output means: "logits" of tokens, "scores" (log ratios of noisy probabilities) or "vectors".
    predicts: str = "logits"
    # Whether noise masks all tokens at one rate. The denoiser's output is then p(x_i | revealed tokens) for every set of masked
    # positions at any time: any order of unmasking is a factorisation of the model, and counts of masks may take the place of times.
    any_order: bool = False
    # Whether a row must have one time: times that differ within it (`per_block`, `hyper` with a window) are refused.
    one_time_per_row: bool = False
    # Names of the sampling methods (`sampling.METHODS`) and training weightings (`registry.WEIGHTINGS`) that go with it.
    methods: tuple[str, ...] = ("ancestral",)
    weightings: tuple[str, ...] = ("bound",)

    @property
    def causal(self) -> bool:
        """Whether each position reads the ones before it only, so that text is made token by token and its likelihood is exact."""
        return self.attention == "causal"

    @property
    def block_size(self) -> int | None:
        """Tokens of a block, where text is made block by block; None elsewhere."""
        return self.attention.size if isinstance(self.attention, Blocks) else None

    @property
    def block_sizes(self) -> tuple[int, ...]:
        """The block sizes of all phases of the curriculum; a row length must be divisible by each."""
        return () if self.block_size is None else (self.block_size,)

    @property
    def sequential(self) -> bool:
        """Whether text is read and made from left to right, by tokens or blocks; False where the network reads the whole row."""
        return self.causal or self.block_size is not None

    @property
    def streams(self) -> int:
        """Copies of a row that the network reads side by side in training: 2 where a noisy and a clean one, else 1."""
        return 1 if self.block_size is None else 2

    def loss_share(self) -> float:
        """Expected share of positions that carry loss, over uniform times: the share on which the head is computed."""
        with jax.transfer_guard("allow"):
            return float(self.noise_rate(jnp.asarray((np.arange(16) + 0.5) / 16, jnp.float32)).mean())

    @property
    def absorbing_id(self) -> int | None:
        """The mask, where noise does nothing but mask: a token that is shown is then true, and stays. None for all other noise."""
        return None

    @property
    def prior_mask_id(self) -> int | None:
        """The mask, where sampling starts from masks, so that reveal orders are possible; None elsewhere."""
        return self.absorbing_id

    @property
    def suppressed_ids(self) -> tuple[int, ...]:
        """Ids that text never holds and that are never produced, the mask included."""
        return ()

    @property
    def stationary(self) -> bool:
        """Whether what noise shows has one law at all levels, that of `prior`."""
        return True

    @property
    def sampling_grid(self) -> str:
        """The grid of levels (`sampling.grids`) that a sampler of this process takes by default."""
        return "uniform"

    def count_form(self) -> "Process | None":
        """The process that masks an exact number of a row's tokens, for the same network (the k-form of RADD 2406.03736); None where
        there is none."""
        return None

    def in_blocks(self) -> "Process | None":
        """The process that makes one block given the finished ones, for a network under a block-causal mask; None where there is none."""
        return None

    def at_step(self, step: int) -> "Process":
        """The process that training step `step` uses, a curriculum: each that differs is compiled; evaluations use the process itself."""
        del step
        return self

    @property
    def curriculum_end(self) -> int:
        """The training step from which `at_step` gives the last process of the curriculum; 0 = none, or one without an end."""
        return 0

    def curriculum_ending(self, step: int) -> dict[str, Any]:
        """The values of this process that bring its curriculum to an end at `step`: what a message proposes."""
        del step
        return {}


def bind_process(process: Process, weights: Any) -> Process:
    """The process with its parameters from the weights of a run, `weights["process"]`; as it is where these hold none."""
    params = weights.get("process") if isinstance(weights, dict) else None
    return process.with_params(params) if jax.tree.leaves(params) else process


def row_keys(key: Key[Array, ""], row_B: Int[Array, "B"]) -> RowKeys:
    """One key for each row of the global batch."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, row_B)


def uniform_rows(keys_B: RowKeys, length: int) -> Float[Array, "B {length}"]:
    """Uniform float32 numbers in [0, 1) for every token, each row from its own key.

    In steps of 2^-32 near 0, where `jax.random.uniform` has 2^-23: at t = 1e-9 that would mask a hundred times too many tokens, each
    with weight 1/t, and a rare draw would blow up a batch.
    """
    bits_BL = jax.vmap(lambda key: jax.random.bits(key, (length,), jnp.uint32))(keys_B)
    # The largest integers round up to 1.
    return jnp.minimum(bits_BL.astype(jnp.float32) * jnp.float32(2**-32), jnp.float32(1 - 2**-24))


def split_rows(keys_B: RowKeys, parts: int = 2) -> list[RowKeys]:
    """Independent sets of row keys."""
    keys_BN = jax.vmap(lambda key: jax.random.split(key, parts))(keys_B)
    return [keys_BN[:, i] for i in range(parts)]


def among(hit_BL: Mask, valid_BL: Mask | None) -> Mask:
    """The positions of `hit_BL` that are valid; None = all are."""
    return hit_BL if valid_BL is None else hit_BL & valid_BL


def draw_tokens(keys_B: RowKeys, logits_BLV: Logits) -> Tokens:
    """Draws a class for every position by the Gumbel trick.

    `mode="high"`: plain float32 Gumbel noise never exceeds 15.94, which cuts the tail of a large vocabulary and lowers the entropy
    of what is sampled (Zheng et al. 2409.02908).
    """

    def row(key: Key[Array, ""], logits_LV: Float[Array, "L V"]) -> Int[Array, "L"]:
        return jnp.argmax(logits_LV + jax.random.gumbel(key, logits_LV.shape, jnp.float32, mode="high"), axis=-1).astype(jnp.int32)

    return jax.vmap(row)(keys_B, logits_BLV.astype(jnp.float32))


def exclude(logits: PerClass, ids: tuple[int, ...]) -> PerClass:
    """Logits in at least float32, with the classes `ids` at probability 0 and without gradient."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if not ids:
        return logits
    class_V = jnp.arange(logits.shape[-1])
    suppressed_V = class_V == ids[0]
    for i in ids[1:]:
        suppressed_V |= class_V == i
    return jnp.where(suppressed_V, EXCLUDED, logits)


def cross_entropy(logits: PerClass, x: Ids, excluded: tuple[int, ...] = ()) -> Values:
    """-log softmax(logits)[x] in nats, over the classes that are not excluded."""
    logits = exclude(logits, excluded)
    return jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, x[..., None], axis=-1)[..., 0]


def check_schedule_lr(name: str, factor: float) -> None:
    """Raises InputError unless a learning-rate factor of a learned schedule is positive and finite."""
    if not 0 < factor < float("inf"):
        raise InputError(f"process {name}: schedule_lr is {factor}; it multiplies the learning rate and must be positive")


def check_ids(name: str, vocab: int, **ids: int) -> None:
    """Raises InputError for an id outside [0, vocab)."""
    if vocab < 2:
        raise InputError(f"process {name}: vocab is {vocab}; it must count at least two classes")
    for which, value in ids.items():
        if not 0 <= value < vocab:
            raise InputError(f"process {name}: {which} is {value}, outside the vocabulary of {vocab}; take both from the tokenizer")
