"""What a noise process is: how text is corrupted, what the denoiser's output costs in nats, and how to step back.

A process is a frozen dataclass of pure functions: no network, no config, no logging, no files. Whatever is random about a row is
drawn from that row's key alone, so microbatches, hosts and meshes cannot change a bit of it. Time t lies in [0, 1], 0 = clean,
1 = noise, one time per token.

    NELBO(x) = integral_0^1 E_z loss(logits(z, t), x, z, t) dt + prior_nats(x) + E_z0 reconstruction(logits(z0, 0), x, z0)

To add one: subclass `Process` in a new file (what is not overridden keeps the defaults below), name it in registry.py, add a row to
the cases of the battery, tests/diffusion/cases_*.py.

A state z is usually a token id per position, [B, L]. It may carry more, [B, L, ...]: an embedding, or for block diffusion the noisy
and the clean token, which a denoiser bound to that process's attention then reads as its two streams.

A process is a pytree. What is trained with the network (embeddings, a noise schedule) is its data, the field `params`: a tree that
`init_params` starts and training keeps in `params["process"]` of the weights. All other fields are static. `bind_process(process, weights)`
is the process that uses the parameters of these weights; gradients with respect to a process are gradients of its parameters.

Shapes: B batch, L length, V vocabulary; `*n` any shape: `loss` and `reconstruction` are elementwise, because logits exist only for
the rows that carry loss.
"""

import abc
import copy
import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, Shaped

from dlmjax.diffusion.declarations import Attention, Boundary, Capabilities, Ends, Phases
from dlmjax.diffusion.schedules import Schedule
from dlmjax.diffusion.shapes import AnyState, Ids, Logits, Mask, PerClass, PerToken, RowKeys, State, Tokens, Values, Views
from dlmjax.diffusion.time_domain import AllTimes, TimeDomain
from dlmjax.errors import InputError

# An excluded class. Finite, since -inf times a weight of 0 is NaN; exp of it is 0 in every float type.
EXCLUDED = -1e30


@runtime_checkable
class States(Protocol):
    """What a state [B, L] or [B, L, ...] holds at each position: a token id, unless a subclass holds more.

    dim: 0 where a state is made of token ids, else the size of the vectors that a state [B, L, dim] holds.
    """

    dim: int = 0

    def of_tokens(self, x_BL: Tokens) -> State:
        """The state that holds this text without noise; required where a text conditions the rest."""
        return x_BL

    def to_tokens(self, z_BL: State) -> Tokens:
        """The tokens to show for a state."""
        return z_BL


@dataclasses.dataclass(frozen=True)
class TokenStates(States):
    """A token id at each position."""


@runtime_checkable
class Output(Protocol):
    """What the output of a process's denoiser at (z, t) means: logits of p(x_i | z), unless a subclass reads it in another way.

    process: the process.
    predicts: "logits" of tokens, "scores" (log ratios of noisy probabilities) or "vectors".
    """

    process: Any
    predicts: str = "logits"

    @property
    def columns(self) -> int:
        """Size of the output's last axis: logits over the vocabulary, unless the network predicts something else."""
        return self.process.vocab

    def log_posterior(self, logits: PerClass, z: AnyState, t: Values) -> PerClass:
        """log p(x_i | z) up to a constant."""
        del z, t
        return logits

    def log_loo(self, logits: PerClass, z: AnyState, t: Values) -> PerClass:
        """log p(x_i | z_{-i}) up to a constant."""
        del z, t
        return logits

    def suppressed(self, logits: PerClass, ids: tuple[int, ...], z: AnyState, t: Values) -> PerClass:
        """The output of a denoiser that gives the tokens `ids` no probability."""
        del z, t
        return exclude(logits, ids)

    def guided(self, conditional: PerClass, unconditional: PerClass, weight: float | Array, z: AnyState, t: Values) -> PerClass:
        """The output whose distribution is p(x | condition)^(1 + weight) / p(x)^weight, from outputs with and without the condition.

        A posterior and a leave-one-out posterior differ by a likelihood that both outputs share, and estimates of a clean vector are
        linear in the score: one line for all but ratios of noisy probabilities.
        """
        del z, t
        return (1 + weight) * conditional - weight * unconditional

    def shifted(self, logits: PerClass, shift: PerClass, z: AnyState, t: Values) -> PerClass:
        """The output whose distribution is p(x | z) exp(shift), normalised."""
        del z, t
        return logits + shift

    def x0(self, denoiser: Any, hidden_BLD: Float[Array, "B L D"], z_BL: State, t_BL: PerToken) -> Float[Array, "B L I"]:
        """The denoiser's x0 prediction as an input of the network, the mean embedding: the hint of self-conditioning."""
        del z_BL, t_BL
        return denoiser.expect(hidden_BLD)


@dataclasses.dataclass(frozen=True)
class TokenLogits(Output):
    """Logits of p(x_i | z); under absorbing noise this equals p(x_i | z_{-i}) at masked positions."""

    process: Any


@runtime_checkable
class Forward(Protocol):
    """From text to noise. A process defines `corrupt`.

    states: what a state holds at each position.  time_domain: the times that it can have.
    """

    name: str
    states: States = TokenStates()
    time_domain: TimeDomain = AllTimes()

    @abc.abstractmethod
    def corrupt(self, keys_B: RowKeys, x_BL: Tokens, t_BL: PerToken, valid_BL: Mask | None = None) -> State:
        """Draws z ~ q(z_t | x). `valid_BL` is False on padding, which is left as it is; None = all valid."""

    def noisy_views(self, keys_B: RowKeys, x_BL: Tokens, t_BL: PerToken, valid_BL: Mask | None = None) -> Views:
        """What a training step denoises: (z, t), or several whose mean it takes. Each t must be as likely as the drawn one."""
        return ((self.corrupt(keys_B, x_BL, t_BL, valid_BL), t_BL),)

    def forward_step(self, keys_B: RowKeys, z_BL: State, s_BL: PerToken, t_BL: PerToken, valid_BL: Mask | None = None) -> State:
        """Draws z_t ~ q(z_t | z_s), s <= t: a piece of the forward chain."""
        raise InputError(f"process {self.name} provides no forward steps: it has no times between clean text and noise")

    def corrupted(self, x_BL: Tokens, z_BL: State) -> Mask:
        """Positions whose token is not what it was, for the realised noise rate."""
        return self.states.to_tokens(z_BL) != x_BL

    def noise_share(self, t: Values) -> Values:
        """Share of noise in a state at t; rises with t. An evaluation spreads its times evenly in it, so that they do not depend on the
        schedule; `ends` describes the integrand as a function of it."""
        return t

    def noise_rate(self, t: Values) -> Values:
        """Expected share of positions that carry loss at time t."""
        return jnp.ones_like(t)

    def replaced(self, t: Values) -> Values:
        """Probability that a token at time t is replaced by a draw of tokens: 0 where noise only masks."""
        return jnp.zeros_like(t)


@runtime_checkable
class Bound(Protocol):
    """What the denoiser's output costs in nats. A process defines `loss`.

    schedule: the share of noise as a function of time; None where it is learned, differs between tokens or is a Gaussian path.
    ends: how the bound's integrand behaves where text is clean and where it is noise; see `noise_share`.
    """

    name: str
    schedule: Schedule | None = None
    ends: Ends = Ends()

    @abc.abstractmethod
    def loss(self, logits: PerClass, x: Ids, z: AnyState, t: Values, *of_rows: Values) -> Values:
        """Nats at each position; the mean over t ~ U[0, 1] and z is the diffusion part of the NELBO. `of_rows`: see `loss_inputs`."""

    def loss_inputs(self, x_BL: Tokens, z_BL: State, t_BL: PerToken) -> tuple[PerToken, ...]:
        """What `loss` takes after t: numbers per position that depend on whole rows, which an elementwise loss does not have."""
        del x_BL, z_BL, t_BL
        return ()

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

    def exact_mask(self, z_BL: State) -> Mask | None:
        """Positions whose loss is exactly -log p of the token, at every time, which weightings leave as it is; None = none."""
        return None

    def cross_entropy_weight(self, t: Values) -> Values:
        """w(t) where `loss` is w(t) times the cross-entropy; the reweighted training losses are made from it."""
        raise InputError(f"the loss of process {self.name} is not a weighted cross-entropy; train it with weighting 'bound'")

    def log_q(self, z_BL: State, x_BL: Tokens, t_BL: PerToken) -> PerToken:
        """log q(z_t | x) per token, differentiable in `params`; required only where `capabilities.reinforce`."""
        raise InputError(f"process {self.name} provides no log q(z | x): its noise has no learned parameters")

    @property
    def boundary(self) -> Boundary:
        """The terms of NELBO besides the integral that are not zero: the schedule leaves noise at t = 0 or text at t = 1."""
        return Boundary() if self.schedule is None else Boundary(self.schedule.has_boundary, self.schedule.ends[0] != 1)

    @property
    def bound(self) -> "Process":
        """The process that a likelihood is evaluated with: itself, unless training draws its noise in another way."""
        return self


@runtime_checkable
class Reverse(Protocol):
    """From noise to text. A process defines `prior` and `reverse_step`."""

    name: str

    @abc.abstractmethod
    def prior(self, keys_B: RowKeys, length: int) -> Shaped[Array, "B {length} *state"]:
        """Draws z_1 ~ p_1, where sampling starts."""

    @abc.abstractmethod
    def reverse_step(self, keys_B: RowKeys, logits_BLV: Logits, z_BL: State, t_BL: PerToken, s_BL: PerToken) -> State:
        """Draws z_s ~ p(z_s | z_t), s <= t, from the denoiser's output at (z_t, t)."""

    def decode(self, keys_B: RowKeys, logits_BLV: Logits, z_BL: State) -> Tokens:
        """Draws x ~ p(x | z_0) from the denoiser's output at (z_0, 0): the last act of sampling where `boundary.reconstruction`."""
        del keys_B, logits_BLV
        return z_BL

    def reverse_rates(self, logits_BLV: Logits, z_BL: Tokens, t_BL: PerToken) -> Logits:
        """Jumps z -> y of the reversed process per unit of time, r_t(z) p_t(z with z_i := y) / p_t(z); 0 for y = z. Required by method
        `tau_leap`."""
        raise InputError(f"process {self.name} provides no rates of jumps")

    @property
    def output(self) -> "Output":
        """What the denoiser's output means."""
        return TokenLogits(self)


@runtime_checkable
class Process(Forward, Bound, Reverse, Protocol):
    """A noise process: its three parts; then what the denoiser reads, parameters and declarations.

    Every process defines `name`, `corrupt`, `loss`, `prior` and `reverse_step`; all else has a default.

    name: as in the registry.
    vocab: token ids there are, special ids included.
    attention: what each position reads, which is what the denoiser is bound with.
    time_input: whether the denoiser must be conditioned on t.
    capabilities: what goes with it.
    params: the values of `parameters` in use, a tree like it; None before they are bound, and where there are none.

    What other packages must know is declared at the end; none of them looks at the class of a process.
    """

    name: str
    vocab: int
    attention: Attention = Attention()
    time_input: bool = False
    params: Any = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # The structure of a process as a tree is the process without its parameters: hashable, and the same for all values of them.
        jax.tree_util.register_pytree_node(
            cls, lambda process: ((process.params,), process.with_params(None)), lambda static, params: static.with_params(*params)
        )

    # --- The denoiser: what it reads and predicts ---------------------------------------------------------------------------

    def time_embedding_input(self, t_BL: PerToken) -> PerToken:
        """What the denoiser is conditioned on in place of t."""
        return t_BL

    # --- Parameters: what is trained with the network -----------------------------------------------------------------------

    @property
    def parameters(self) -> dict[str, Any]:
        """What is learned, a tree of `Parameter`; empty where nothing is."""
        return {}

    def scalars(self) -> dict[str, Float[Array, ""]]:
        """Scalars of the parameters in use that the metrics show, by name; empty where there are none."""
        return {}

    def with_params(self, params: Any) -> "Process":
        """This process with other values of its parameters, a tree like `parameters`; an empty tree is None."""
        params = params if jax.tree.leaves(params) else None
        if params is self.params:
            return self
        process = copy.copy(self)
        object.__setattr__(process, "params", params)
        return process

    # --- Declarations, read by samplers, scorers, export and plans ----------------------------------------------------------

    capabilities: Capabilities = Capabilities()

    @property
    def absorbing_id(self) -> int | None:
        """The mask, where noise only masks: a revealed token is then clean, and stays. None for all other noise."""
        return None

    @property
    def suppressed_ids(self) -> tuple[int, ...]:
        """Ids that text never holds and that are never produced, the mask included."""
        return ()

    @property
    def phases(self) -> Phases:
        """The processes of training, which differ where there is a curriculum."""
        return Phases(lambda _: self)


def bind_process(process: Process, weights: Any) -> Process:
    """The process with its parameters from the weights of a run, `weights["process"]`; as it is where these hold none."""
    params = weights.get("process") if isinstance(weights, dict) else None
    return process.with_params(params) if jax.tree.leaves(params) else process


def init_params(process: Process, key: Key[Array, ""]) -> dict[str, Any]:
    """Start values of what a process learns, a tree of float32 arrays; empty where nothing is learned."""
    return jax.tree.map(lambda parameter: parameter.start(key), process.parameters)


def is_tight(process: Process) -> bool:
    """Whether the exact denoiser brings the bound to the entropy.

    Not where noise is left at t = 0 or text at t = 1: tokens in doubt are then predicted without seeing each other, and the reverse chain
    starts without the text that is left. Nor in steps, each of which changes tokens that do not see each other.
    """
    return process.capabilities.is_tight and not process.boundary.any and not process.time_domain.steps


def loss_share(process: Process) -> float:
    """Expected share of positions that carry loss, over uniform times: the share on which the head is computed."""
    with jax.transfer_guard("allow"):
        share = float(process.noise_rate(jnp.asarray((np.arange(16) + 0.5) / 16, jnp.float32)).mean())
    seeds = 1 / process.attention.block_size if process.attention.seeded else 0.0
    return seeds + (1 - seeds) * share


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
