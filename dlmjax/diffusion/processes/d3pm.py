"""Discrete-time diffusion of tokens: T steps, each with its transition matrix (D3PM 2107.03006).

    -log p(x) <= KL(q(z_T | x) || p_T) + sum_i=2..T E KL(q(z_{i-1} | z_i, x) || p(z_{i-1} | z_i)) + E -log p(x | z_1)

is the mean over t ~ U[0, 1] of `loss` plus `prior_nats`: t is rounded to the level i = floor(t T) + 1, and the loss there is T times the
i-th term, of which the first is the reconstruction. The network predicts x0, and p(z_{i-1} | z_i) follows from that prediction (eq. 4).
As T grows the sum falls to the continuous bound of the same noise; with few steps it is larger, since a step back changes all positions
independently of each other.

alpha_i is the schedule's alpha at t = i/T, and alpha_0 = 1 for every schedule: all factors of steps and losses come from this one table
(`DiscreteTime`).

    kernel       noise                                     process
    absorbing    to the mask                               `StepMasked`, the masked process on a grid; no time input
    uniform      to any token                              `D3pm`
    gaussian     along ordinal ids                         `D3pm`
    neighbours   to near neighbours of an embedding        `D3pm`

Shapes: B batch, L length, V vocabulary, K of them tokens; `*n` any shape. Losses in nats per token.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Real
from jaxtyping import ArrayLike as Like

from dlmjax.diffusion.declarations import Boundary, Capabilities
from dlmjax.diffusion.process import EXCLUDED, Process, among, check_ids, draw_tokens, exclude
from dlmjax.diffusion.processes import kernels
from dlmjax.diffusion.processes.interpolating import UNIFORM_ENDS, mixture_sums
from dlmjax.diffusion.processes.masked import SharedSchedule
from dlmjax.diffusion.processes.parameterisation import PARAMETERISATIONS, Parameterisation
from dlmjax.diffusion.processes.table import Table
from dlmjax.diffusion.schedules import FLOOR, Linear, Schedule, real
from dlmjax.diffusion.shapes import Flags, Ids, Logits, Mask, PerClass, PerToken, RowKeys, Tokens, Values
from dlmjax.diffusion.time_domain import DiscreteSteps
from dlmjax.diffusion.weightings.base import OF_TOKENS
from dlmjax.errors import InputError

LINEAR = Linear()
KERNELS = ("uniform", "absorbing", "gaussian", "neighbours")


@dataclasses.dataclass(frozen=True)
class DiscreteTime(Schedule):
    """alpha of another schedule at t = i/T, i = 0..T, and 1 at t = 0; a t in between is rounded to the nearest level.

    `hazard` is T (alpha_{i-1} - alpha_i) / (1 - alpha_i): the discrete bound's weight of a masked token.
    """

    base: Schedule
    steps: int

    def __post_init__(self):
        _check_steps(self.steps)
        # In float64: differences of neighbouring levels lose the digits that float32 has.
        with jax.ensure_compile_time_eval(), jax.enable_x64(True):
            t_T = jnp.arange(self.steps + 1) / self.steps
            alpha_T, noise_T = np.array(self.base.alpha(t_T)), np.array(self.base.noise(t_T))
        alpha_T[0], noise_T[0] = 1.0, 0.0
        object.__setattr__(self, "_alpha_T", alpha_T)
        object.__setattr__(self, "_noise_T", noise_T)

    def index(self, t: Real[Like, "*n"]) -> Ids:
        return jnp.clip(jnp.round(real(t) * self.steps).astype(jnp.int32), 0, self.steps)

    def alpha(self, t: Real[Like, "*n"]) -> Values:
        return jnp.asarray(self._alpha_T, real(t).dtype)[self.index(t)]

    def noise(self, t: Real[Like, "*n"]) -> Values:
        return jnp.asarray(self._noise_T, real(t).dtype)[self.index(t)]

    def alpha_prime(self, t: Real[Like, "*n"]) -> Values:
        """T (alpha_i - alpha_{i-1}): the slope of the step that ends at t; at t = 0 that of the first."""
        slope_T = self.steps * np.diff(-self._noise_T)
        return jnp.asarray(slope_T, real(t).dtype)[jnp.maximum(self.index(t) - 1, 0)]

    def hazard(self, t: Real[Like, "*n"]) -> Values:
        hazard_T = self.steps * np.diff(self._noise_T) / np.maximum(self._noise_T[1:], kernels.TINY)
        return jnp.asarray(hazard_T, real(t).dtype)[jnp.maximum(self.index(t) - 1, 0)]

    def inverse(self, alpha: Real[Like, "*n"]) -> Values:
        """The level whose alpha is nearest from above."""
        falling_T = jnp.asarray(-self._alpha_T, real(alpha).dtype)
        return jnp.clip(jnp.searchsorted(falling_T, -real(alpha), side="right") - 1, 0, self.steps) / self.steps

    @property
    def ends(self) -> tuple[float, float]:
        return 1.0, float(self._alpha_T[-1])

    def step(self, t: Values, s: Values | None = None) -> kernels.Step:
        """The kernels between level s and level t (at least the first); by default s is the level before t."""
        to = jnp.maximum(self.index(t), 1)
        start = to - 1 if s is None else self.index(s)
        alpha_T, noise_T = jnp.asarray(self._alpha_T, t.dtype), jnp.asarray(self._noise_T, t.dtype)
        if s is None:
            gone_T = np.diff(self._noise_T) / np.maximum(self._alpha_T[:-1], kernels.TINY)
            keep_T = self._alpha_T[1:] / np.maximum(self._alpha_T[:-1], kernels.TINY)
            return kernels.Step(alpha_T[start], noise_T[start], jnp.asarray(keep_T, t.dtype)[start], jnp.asarray(gone_T, t.dtype)[start])
        to, floor = jnp.maximum(self.index(t), start), jnp.maximum(alpha_T[start], kernels.TINY)
        return kernels.Step(alpha_T[start], noise_T[start], alpha_T[to] / floor, (noise_T[to] - noise_T[start]) / floor)


def make_d3pm(
    vocab: int,
    mask_id: int,
    kernel: str = "uniform",
    steps: int = 1000,
    schedule: Schedule = LINEAR,
    excluded: tuple[int, ...] = (),
    parameterisation: str = "leave_one_out",
    embedding: Any = None,
    neighbours: int = 8,
) -> Process:
    """The process of one of KERNELS; see `D3pm` for the values. Absorbing noise takes neither embedding nor parameterisation."""
    if kernel == "absorbing":
        return StepMasked(vocab, mask_id, schedule, excluded, steps=steps)
    return D3pm(vocab, mask_id, kernel, steps, schedule, excluded, parameterisation, embedding, neighbours)


def check_d3pm(
    kernel: str = "uniform", steps: int = 1000, parameterisation: str = "leave_one_out", embedding: Any = None, **others: Any
) -> bool:
    """Whether the network of such a process is conditioned on t, from its values alone: a D3PM computes its levels when it is made, which
    requires a device. Raises InputError for values that no D3PM has."""
    del others
    if kernel not in KERNELS:
        raise InputError(f"process d3pm: kernel is {kernel!r}; choose one of {', '.join(KERNELS)}")
    if parameterisation not in ("leave_one_out", "posterior"):
        raise InputError(f"process d3pm: parameterisation is {parameterisation!r}; give 'leave_one_out' or 'posterior'")
    if kernel != "absorbing" and (kernel == "neighbours") != (embedding is not None):
        raise InputError(f"process d3pm: kernel {kernel!r} conflicts with embedding, which 'neighbours' requires and other kernels refuse")
    _check_steps(steps)
    return StepMasked.time_input if kernel == "absorbing" else D3pm.time_input


def _check_steps(steps: int) -> None:
    if not 1 <= steps <= 1_000_000:
        raise InputError(f"process d3pm: steps is {steps}; it must lie between 1 and 1,000,000")


@dataclasses.dataclass(frozen=True)
class StepMasked(SharedSchedule):
    """Absorbing D3PM: masked diffusion in T steps. Loss T (alpha_{i-1} - alpha_i) / (1 - alpha_i) times the cross-entropy of masked
    tokens, which is the exact KL of a step; on the linear schedule that is the continuous 1/t at t = i/T."""

    vocab: int
    mask_id: int
    schedule: Schedule = Linear()
    excluded: tuple[int, ...] = ()
    steps: int = 1000

    name = "d3pm"

    def __post_init__(self):
        base = self.schedule.base if isinstance(self.schedule, DiscreteTime) else self.schedule
        object.__setattr__(self, "schedule", DiscreteTime(base, self.steps))
        super().__post_init__()

    @property
    def capabilities(self) -> Capabilities:
        """No count form: the times are those of T steps, which counts of masks are not."""
        return dataclasses.replace(super().capabilities, count_form=None)

    def noise_share(self, t: Values) -> Values:
        return self.schedule.base.noise(t)

    @property
    def time_domain(self) -> DiscreteSteps:
        return DiscreteSteps(self.steps)


@dataclasses.dataclass(frozen=True)
class D3pm(Process):
    """D3PM with a symmetric kernel.

    vocab: classes of the logits, special ids included; mask_id, excluded: ids that occur neither in text nor in noise.
    kernel: "uniform", "gaussian" (token ids are ordinal, in their order) or "neighbours" (takes `embedding` and `neighbours`).
    steps: T.  schedule: alpha is the share that is left of the slowest mode of the signal.
    parameterisation: "leave_one_out" (eq. 4 of the paper: the x0 prediction is weighted by q(z_{i-1}, z_i | x)) or "posterior".
    embedding: one row per id, [V, E], for instance that of a trained model; compared by content.
    """

    vocab: int
    mask_id: int | None = None
    kernel: str = "uniform"
    steps: int = 1000
    schedule: Schedule = Linear()
    excluded: tuple[int, ...] = ()
    parameterisation: str = "leave_one_out"
    embedding: Any = None
    neighbours: int = 8

    name = "d3pm"
    time_input = True
    ends = UNIFORM_ENDS

    def __post_init__(self):
        check_ids(self.name, self.vocab, **{f"excluded[{i}]": id_ for i, id_ in enumerate(self.suppressed_ids)})
        if self.kernel == "absorbing":
            raise InputError("process d3pm: kernel is 'absorbing'; make_d3pm makes that process")
        check_d3pm(self.kernel, self.steps, self.parameterisation, self.embedding)
        if self.embedding is not None:
            object.__setattr__(self, "embedding", Table(self.embedding))
            if self.embedding.array.shape[0] != self.vocab:
                raise InputError(
                    f"process d3pm: embedding has {len(self.embedding.array)} rows; it must have one for each of {self.vocab} ids"
                )
        # Computed here, so that bad values are refused here and not within a traced function.
        object.__setattr__(self, "_times", DiscreteTime(self.schedule, self.steps))
        object.__setattr__(self, "_noise", self._make_kernel())
        object.__setattr__(self, "_prior_K", self._make_prior() if self.boundary.any else np.zeros(len(self.tokens_K), np.float32))

    @property
    def output(self) -> Parameterisation:
        return PARAMETERISATIONS[self.parameterisation](self)

    @functools.cached_property
    def suppressed_ids(self) -> tuple[int, ...]:
        """Ids that do not occur in text."""
        return tuple(dict.fromkeys((*(() if self.mask_id is None else (self.mask_id,)), *self.excluded)))

    @functools.cached_property
    def tokens_K(self) -> Int[np.ndarray, "K"]:
        """Ids of the kernel's tokens."""
        return np.setdiff1d(np.arange(self.vocab), self.suppressed_ids).astype(np.int32)

    def _make_kernel(self) -> kernels.Kernel:
        if self.kernel == "neighbours":
            return kernels.Neighbours(self.embedding.array[self.tokens_K], self.neighbours)
        return (kernels.Uniform if self.kernel == "uniform" else kernels.Path)(len(self.tokens_K))

    @property
    def capabilities(self) -> Capabilities:
        """`rdm` requires the noise of t = 1 at all times; other kernels than the uniform replace a token by near ones at small t."""
        redrawn = ("rdm",) if self.kernel == "uniform" else ()
        return Capabilities(methods=("ancestral", "psi", "gibbs", *redrawn, "self_correct"), weightings=("bound", *OF_TOKENS))

    def replaced(self, t: Values) -> Values:
        return self._times.noise(t)

    # --- forward ---------------------------------------------------------------------------------------------------------------

    def noise_share(self, t: Values) -> Values:
        return self.schedule.noise(t)

    @property
    def time_domain(self) -> DiscreteSteps:
        return DiscreteSteps(self.steps)

    def corrupt(self, keys_B: RowKeys, x_BL: Tokens, t_BL: PerToken, valid_BL: Mask | None = None) -> Tokens:
        return self.forward_step(keys_B, x_BL, jnp.zeros_like(t_BL), t_BL, valid_BL)

    def forward_step(self, keys_B: RowKeys, z_BL: Tokens, s_BL: PerToken, t_BL: PerToken, valid_BL: Mask | None = None) -> Tokens:
        step = self._times.step(t_BL, s_BL)
        drawn_BL = self._id(self._noise.draw(keys_B, self._index(z_BL), step.step_keep, step.step_gone))
        noisy_BL = among(self._is_token(z_BL), valid_BL)
        return jnp.where(noisy_BL, drawn_BL, z_BL)

    def loss_mask(self, z_BL: Tokens, t_BL: PerToken) -> Mask:
        # The reconstruction is part of the first level's loss: at t = 0 nothing is left to predict.
        del z_BL
        return t_BL > 0

    # --- the bound -------------------------------------------------------------------------------------------------------------

    def loss(self, logits: PerClass, x: Ids, z: Ids, t: Values) -> Values:
        t = t.astype(jnp.promote_types(logits.dtype, jnp.float32))
        step = self._times.step(t)
        if self.kernel == "uniform":
            nats = self._uniform_loss(exclude(logits, self.suppressed_ids), x, z, t, step)
        else:
            nats = kernels.divergence(self._noise, self._x0_log_probs(logits, z, t), self._index(x), self._index(z), step)
        return jnp.where(self._is_token(z), self.steps * nats, 0.0)

    def _uniform_loss(self, logits, x, z, t, step: kernels.Step):
        tokens = len(self.tokens_K)
        shift = jnp.zeros_like(t)
        if self.parameterisation == "posterior":
            # The bridge moves one logit only: log q_t(z | x = k) is two-valued in k.
            shift = jnp.log1p(self._times.alpha(t) * tokens / jnp.maximum(self._times.noise(t), FLOOR))
        sums, log_p_x, log_p_z = mixture_sums(logits, x, z, jnp.log(kernels.mixing(tokens, step)), shift)
        return kernels.uniform_divergence(sums, log_p_x, log_p_z, x == z, tokens, step)

    @property
    def boundary(self) -> Boundary:
        return Boundary(any=self._times.ends[1] > 0)  # the term of level 1 is the reconstruction

    def prior_nats(self, x: Ids) -> Values:
        """KL(q(z_T | x) || p_T), p_T uniform over the tokens."""
        return jnp.asarray(self._prior_K)[self._index(x)]

    def log_likelihood(self, z: Ids, t: Values) -> PerClass:
        """log q_t(z | x = v) for every id v."""
        t = real(t)
        row = self._noise.row(self._index(z), self._times.alpha(t), self._times.noise(t))
        return self._over_ids(jnp.log(jnp.maximum(row, kernels.TINY)))

    def _x0_log_probs(self, logits: PerClass, z: Ids, t: Values) -> Float[Array, "*n K"]:
        """log p(x_i | z_{-i}) over the kernel's tokens."""
        return self._over_tokens(self.output.log_loo(logits, z, t))

    def _make_prior(self) -> Float[np.ndarray, "K"]:
        left = self._times.ends[1]
        with jax.ensure_compile_time_eval():

            def nats(x):
                p_K = self._noise.row(x[None], jnp.full(1, left), jnp.full(1, 1 - left))[0]
                return jnp.sum(jnp.where(p_K > 0, p_K * jnp.log(jnp.maximum(p_K, kernels.TINY) * len(self.tokens_K)), 0.0))

            return np.maximum(np.asarray(jax.lax.map(nats, jnp.arange(len(self.tokens_K)))), 0)

    # --- reverse ---------------------------------------------------------------------------------------------------------------

    def prior(self, keys_B: RowKeys, length: int) -> Int[Array, "B {length}"]:
        return self._id(jax.vmap(lambda key: jax.random.randint(key, (length,), 0, len(self.tokens_K)))(keys_B))

    def reverse_step(self, keys_B: RowKeys, logits_BLV: Logits, z_BL: Tokens, t_BL: PerToken, s_BL: PerToken) -> Tokens:
        """Draws z_s from the mixture over clean tokens, in one step over any number of levels."""
        step = self._times.step(real(t_BL), real(s_BL))
        logits_BLK = kernels.backward_logits(self._noise, self._x0_log_probs(logits_BLV, z_BL, t_BL), self._index(z_BL), step)
        return jnp.where(self._is_token(z_BL), self._id(draw_tokens(keys_B, logits_BLK)), z_BL)

    # --- ids and tokens --------------------------------------------------------------------------------------------------------

    def _id(self, index: Ids) -> Ids:
        return jnp.asarray(self.tokens_K)[index]

    def _index(self, ids: Ids) -> Ids:
        """Index of an id among the tokens; 0 for other ids, whose results are not used."""
        index_V = np.zeros(self.vocab, np.int32)
        index_V[self.tokens_K] = np.arange(len(self.tokens_K))
        return jnp.asarray(index_V)[ids]

    def _is_token(self, ids: Ids) -> Flags:
        return jnp.asarray(np.isin(np.arange(self.vocab), self.tokens_K))[ids]

    def _over_tokens(self, values: PerClass) -> Float[Array, "*n K"]:
        first, last = int(self.tokens_K[0]), int(self.tokens_K[-1])
        # Special ids usually stand at one end: a slice costs nothing.
        return values[..., first : last + 1] if last - first + 1 == len(self.tokens_K) else values[..., self.tokens_K]

    def _over_ids(self, values: Float[Array, "*n K"]) -> PerClass:
        return jnp.full((*values.shape[:-1], self.vocab), EXCLUDED, values.dtype).at[..., self.tokens_K].set(values)
