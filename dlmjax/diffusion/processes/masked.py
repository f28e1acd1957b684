"""Masked (absorbing) diffusion with one schedule for all tokens: q(z_t | x) keeps a token with probability alpha_t, else it is the mask.

NELBO in continuous time (MDLM 2406.07524 eq. 10; MD4 2406.04329 eq. 5): -alpha'/(1 - alpha) times the cross-entropy of masked tokens;
schedule-invariant, no time input needed; tight where the schedule ends in clean text and pure noise. On the linear schedule the weight
is exactly 1/t.

`Masked` takes any schedule; in `MaskedLambda` t is the mask rate. `Llada` has LLaDA's rate p = (1 - eps) t + eps and its training
loss. `MaskedCount` masks an exact number of tokens (the k-form of RADD 2406.03736).

Shapes: B batch, L length, V vocabulary; `*n` any shape. Losses in nats per token.
"""

import abc
import dataclasses
import functools

import jax
import jax.numpy as jnp

from dlmjax.diffusion.declarations import Capabilities
from dlmjax.diffusion.hyperschedule import ByPosition, Hyperschedule
from dlmjax.diffusion.process import among, cross_entropy, draw_tokens, exclude, split_rows, uniform_rows
from dlmjax.diffusion.processes.absorbing import Absorbing
from dlmjax.diffusion.schedules import FLOOR, Linear, Schedule, llada, share_gone
from dlmjax.diffusion.shapes import Ids, Logits, Mask, PerClass, PerToken, RowKeys, Tokens, Values, Views
from dlmjax.diffusion.time_domain import AllTimes, TimeDomain
from dlmjax.diffusion.times import PerRow, Times
from dlmjax.diffusion.weightings.base import OF_MASKS, OF_RATES, OF_TOKENS, InverseRate
from dlmjax.errors import InputError


class SharedSchedule(Absorbing):
    """Abstract: masking at one rate for all tokens, that of `schedule`."""

    @property
    @abc.abstractmethod
    def schedule(self) -> Schedule:
        """alpha of every token."""

    @property
    def left(self) -> float:
        return self.schedule.ends[1]

    @property
    def capabilities(self) -> Capabilities:
        """`first_hitting` and `predetermined` draw the time of each token, so the schedule must end in clean text and all masks."""
        timed = () if self.boundary.any else ("first_hitting", "predetermined")
        return Capabilities(
            methods=("ancestral", "tau_leap", *timed, "remask", "psi", "gibbs", "rdm"),
            weightings=("bound", *OF_RATES, *OF_TOKENS, *OF_MASKS),
            any_order=True,
            prior_mask_id=self.mask_id,
            count_form=MaskedCount(self.vocab, self.mask_id, excluded=self.excluded, trained=self.schedule),
            in_blocks=Masked(self.vocab, self.mask_id, self.schedule, self.excluded),
        )

    def reverse_rates(self, logits_BLV: Logits, z_BL: Tokens, t_BL: PerToken) -> Logits:
        masked_BL = z_BL == self.mask_id
        hazard_BL = jnp.where(masked_BL, self.schedule.hazard(jnp.where(masked_BL, t_BL, 1.0)), 0.0)
        return hazard_BL[..., None] * jax.nn.softmax(logits_BLV, axis=-1)

    # --- forward ---------------------------------------------------------------------------------------------------------------

    def noise_of(self, x: Ids, t: Values) -> Values:
        del x
        return self.schedule.noise(t)

    def forward_step(self, keys_B: RowKeys, z_BL: Tokens, s_BL: PerToken, t_BL: PerToken, valid_BL: Mask | None = None) -> Tokens:
        # 1 - alpha_t / alpha_s, computed from the noise, which is small near t = 0.
        hit_rate_BL = (self.schedule.noise(t_BL) - self.schedule.noise(s_BL)) / jnp.maximum(self.schedule.alpha(s_BL), FLOOR)
        hit_BL = uniform_rows(keys_B, z_BL.shape[1]) < hit_rate_BL
        return jnp.where(among(hit_BL, valid_BL), self.mask_id, z_BL)

    def noise_share(self, t: Values) -> Values:
        return self.schedule.noise(t)

    def cross_entropy_weight(self, t: Values) -> Values:
        return self.schedule.hazard(t)

    def noise_rate(self, t: Values) -> Values:
        return self.schedule.noise(t)

    # --- the bound -------------------------------------------------------------------------------------------------------------

    def loss(self, logits: PerClass, x: Ids, z: Ids, t: Values) -> Values:
        masked = z == self.mask_id
        # A revealed token has weight 0: t = 0 is replaced before the division.
        weight = self.schedule.hazard(jnp.where(masked, t, 1.0))
        return jnp.where(masked, weight * cross_entropy(logits, x, self.suppressed_ids), 0.0)

    # --- reverse ---------------------------------------------------------------------------------------------------------------

    def reverse_step(self, keys_B: RowKeys, logits_BLV: Logits, z_BL: Tokens, t_BL: PerToken, s_BL: PerToken) -> Tokens:
        """Unmasks with probability (alpha_s - alpha_t)/(1 - alpha_t), exactly 1 where s has no noise, then draws the token.

        Two draws, not one over V + 1 classes: float32 Gumbel noise is bounded, and with many steps the mask's logit exceeds its range.
        """
        which_B, token_B = split_rows(keys_B)
        noise_t_BL, noise_s_BL = self.schedule.noise(t_BL), self.schedule.noise(s_BL)
        unmask_BL = uniform_rows(which_B, z_BL.shape[1]) < share_gone(noise_t_BL, noise_s_BL)
        token_BL = draw_tokens(token_B, exclude(logits_BLV, self.suppressed_ids))
        return jnp.where((z_BL == self.mask_id) & unmask_BL, token_BL, z_BL)


@dataclasses.dataclass(frozen=True)
class _Complementary(TimeDomain):
    """The times of masks and their complements."""

    def adapt(self, times: Times) -> Times:
        if (isinstance(times, Hyperschedule) and times.window is not None) or isinstance(times, ByPosition):
            # Positions ahead of the window are all masked, and their complement would be clean text; by_position gives 1 - t_i no weight.
            raise InputError(
                "process masked: complementary masks conflict with a window of times (times hyper), and with times by_position; leave one "
                "of them out"
            )
        return times


@dataclasses.dataclass(frozen=True)
class Masked(SharedSchedule):
    """Masked diffusion on any schedule.

    complementary: every row is denoised twice in training, under a mask at time t and under its complement at 1 - t, so that each token is
      trained exactly once (LaViDa 2505.16839 section 3.2); twice the cost, linear schedule only.
    """

    vocab: int
    mask_id: int
    schedule: Schedule = Linear()
    excluded: tuple[int, ...] = ()
    complementary: bool = dataclasses.field(default=False, kw_only=True)

    name = "masked"

    def __post_init__(self):
        if self.complementary and self.schedule != Linear():
            raise InputError(f"process {self.name}: complementary masks require the linear schedule, where 1 - t is the complement's level")
        super().__post_init__()

    @property
    def capabilities(self) -> Capabilities:
        return dataclasses.replace(super().capabilities, denoisings=2 if self.complementary else 1)

    @property
    def time_domain(self) -> TimeDomain:
        return _Complementary() if self.complementary else AllTimes()

    def noisy_views(self, keys_B: RowKeys, x_BL: Tokens, t_BL: PerToken, valid_BL: Mask | None = None) -> Views:
        z_BL = self.corrupt(keys_B, x_BL, t_BL, valid_BL)
        if not self.complementary:
            return ((z_BL, t_BL),)
        # Positions that condition the others have t = 0 and stay clean.
        noisy_BL = t_BL > 0
        other_BL = jnp.where(among((z_BL != self.mask_id) & noisy_BL, valid_BL), self.mask_id, x_BL)
        return (z_BL, t_BL), (other_BL, jnp.where(noisy_BL, 1 - t_BL, 0.0))


@dataclasses.dataclass(frozen=True)
class MaskedLambda(SharedSchedule):
    """The lambda-form: t is the mask rate, the loss is cross-entropy / t. `times` is then the distribution of mask rates."""

    vocab: int
    mask_id: int
    excluded: tuple[int, ...] = ()

    name = "masked_lambda"
    schedule = Linear()


@dataclasses.dataclass(frozen=True)
class _CountedMasks(TimeDomain):
    """The times k/n at which k of a row's n tokens are masked."""

    one_time_per_row = True

    def adapt(self, times: Times) -> Times:
        if not isinstance(times, PerRow) and not (isinstance(times, Hyperschedule) and times.window is None):
            raise InputError(
                "process masked_count requires one time per row; process.times hyper with a window, by_position and per_block draw several"
            )
        return times

    def quantize(self, t_BL: PerToken, valid_BL: Mask) -> PerToken:
        n_B1 = jnp.maximum(jnp.sum(valid_BL, axis=1, keepdims=True), 1)
        # t is one number per row; the maximum, since a caller may have set padding to 0.
        t_B1 = jnp.max(t_BL, axis=1, keepdims=True)
        k_B1 = jnp.clip(jnp.floor(t_B1 * n_B1) + 1, 1, n_B1)
        return jnp.broadcast_to((k_B1 / n_B1).astype(t_BL.dtype), t_BL.shape)


@dataclasses.dataclass(frozen=True)
class MaskedCount(SharedSchedule):
    """Exactly k of a row's n tokens are masked, k uniform on 1..n; loss n/k x cross-entropy of the masked (RADD 2406.03736, k-form).

    In expectation it is the linear bound of a network without time input, with less variance: the mask rate is exactly the drawn
    time. The time of a row is k/n, to which `time_domain` rounds a draw of t; padding is not counted. A time-conditioned network that was
    trained with another schedule, `trained`, is conditioned on the time at which that schedule masks the share k/n.
    """

    vocab: int
    mask_id: int
    excluded: tuple[int, ...] = ()
    trained: Schedule = Linear()

    name = "masked_count"
    schedule = Linear()
    time_domain = _CountedMasks()

    def time_embedding_input(self, t_BL: PerToken) -> PerToken:
        return self.trained.inverse(1 - t_BL)

    def corrupt(self, keys_B: RowKeys, x_BL: Tokens, t_BL: PerToken, valid_BL: Mask | None = None) -> Tokens:
        """`t_BL` must be times k/n, as from `time_domain`."""
        return self.forward_step(keys_B, x_BL, jnp.zeros_like(t_BL), t_BL, valid_BL)

    def forward_step(self, keys_B: RowKeys, z_BL: Tokens, s_BL: PerToken, t_BL: PerToken, valid_BL: Mask | None = None) -> Tokens:
        """Masks further tokens, drawn without replacement, until k = t n are masked; n counts no position at t = 0, a condition."""
        del s_BL
        valid_BL = among(t_BL > 0, valid_BL)
        k_B1 = jnp.round(jnp.max(t_BL, axis=1, keepdims=True) * jnp.sum(valid_BL, axis=1, keepdims=True))
        # Masked tokens come first, then the others in random order, then padding. 31 random bits: ties are rare.
        order_BL = jax.vmap(lambda key: jax.random.bits(key, (z_BL.shape[1],)) >> 1)(keys_B).astype(jnp.int32)
        queue_BL = jnp.where(z_BL == self.mask_id, -1, order_BL)
        rank_BL = jnp.argsort(jnp.lexsort((queue_BL, ~valid_BL), axis=1), axis=1)
        return jnp.where((rank_BL < k_B1) & valid_BL, self.mask_id, z_BL)

    @property
    def bound(self) -> Masked:
        return Masked(self.vocab, self.mask_id, Linear(), self.excluded)


@dataclasses.dataclass(frozen=True)
class Llada(SharedSchedule):
    """Mask rate p = (1 - eps) t + eps, trained with cross-entropy / p (LLaDA 2502.09992; SMDM 2410.18514).

    That training loss is not a bound: it has no reconstruction of the share eps that is masked at t = 0 and is 1/(1 - eps) times the
    diffusion part. `loss` is the exact one, so a likelihood evaluated with this process is a bound.
    """

    vocab: int
    mask_id: int
    excluded: tuple[int, ...] = ()
    eps: float = 1e-3

    name = "llada"

    def __post_init__(self):
        if not 0 < self.eps < 1:
            raise InputError(f"process llada: eps is {self.eps}; it must lie in (0, 1); for eps 0 use process 'masked'")
        super().__post_init__()

    @functools.cached_property
    def schedule(self) -> Schedule:
        return llada(self.eps)

    @property
    def capabilities(self) -> Capabilities:
        return dataclasses.replace(super().capabilities, weighting=InverseRate())
