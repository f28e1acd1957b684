"""Masked diffusion in which every class of token has a schedule of its own: GenMD4 (MD4 2406.04329 section 6 and appendix G).

    alpha_v(t) = 1 - noise_v(t),   h_v(t) = noise_v'(t) / noise_v(t)   (the rate at which a mask over v is revealed)
    loss = 1[z = m] ( -h_x log p_x + sum_v (h_v - h_x) p_v )           (its equation for the generalised bound; p = p(x_i | z, t))

which is masked diffusion's -h log p_x where all h_v are equal. Here a mask is evidence about the token under it: the exact
denoiser depends on t, so the network is conditioned on t; and the bound depends on the schedule, which can therefore be learned
(`GenMd4`). frequency.py makes fixed schedules from the counts of a corpus.

Shapes: B batch, L length, V vocabulary; `*n` any shape. Losses in nats per token.
"""

import abc
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dlmjax.diffusion.declarations import Boundary, Capabilities, Ends, Parameter
from dlmjax.diffusion.process import among, check_schedule_lr, draw_tokens, exclude, split_rows, uniform_rows
from dlmjax.diffusion.processes.absorbing import Absorbing
from dlmjax.diffusion.schedules import FLOOR, real, share_gone
from dlmjax.diffusion.shapes import Flags, Ids, Logits, Mask, PerClass, PerToken, RowKeys, Tokens, Values
from dlmjax.diffusion.time_domain import TimeDomain
from dlmjax.diffusion.weightings.base import OF_TOKENS
from dlmjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class TimesOfMasks(TimeDomain):
    """All times. A reveal order keeps the time at which a mask was drawn: it determines how probable each token is under the mask."""

    def revealed(self, masked_BL: Mask, t_BL: PerToken, start_BL: PerToken) -> PerToken:
        del t_BL
        return jnp.where(masked_BL, start_BL, 0.0)


def log_probability(noise: Values, masked: Flags) -> Values:
    """log of the probability that a token is masked, or is not, where masks have the probability `noise`."""
    # A draw of probability 0 has gradient 0, not an infinite one.
    likely = jnp.where(masked, noise, 1 - noise)
    return jnp.where(likely > FLOOR, jnp.log(jnp.maximum(likely, FLOOR)), math.log(FLOOR))


class StateDependent(Absorbing):
    """Abstract: masking at a rate that depends on the token. A subclass defines `noise_of` and `hazards`; noise_v(0) = 0."""

    time_input = True

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(methods=("ancestral", "psi", "gibbs"), weightings=("bound", *OF_TOKENS), prior_mask_id=self.mask_id)

    time_domain = TimesOfMasks()

    # --- the schedule ---------------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def hazards(self, t: Values) -> PerClass:
        """h_v(t) for every class, finite at t = 0."""

    @property
    def left(self) -> float:
        return 0.0

    # --- forward ---------------------------------------------------------------------------------------------------------------

    def forward_step(self, keys_B: RowKeys, z_BL: Tokens, s_BL: PerToken, t_BL: PerToken, valid_BL: Mask | None = None) -> Tokens:
        noise_s_BL, noise_t_BL = self.noise_of(z_BL, s_BL), self.noise_of(z_BL, t_BL)
        hit_BL = uniform_rows(keys_B, z_BL.shape[1]) < (noise_t_BL - noise_s_BL) / jnp.maximum(1 - noise_s_BL, FLOOR)
        return jnp.where(among(hit_BL, valid_BL), self.mask_id, z_BL)

    def log_q(self, z: Ids, x: Ids, t: Values) -> Values:
        """log q(z_t | x) of a draw."""
        return log_probability(self.noise_of(x, t), z == self.mask_id)

    # --- the bound -------------------------------------------------------------------------------------------------------------

    def loss(self, logits: PerClass, x: Ids, z: Ids, t: Values) -> Values:
        masked = z == self.mask_id
        log_p = jax.nn.log_softmax(exclude(logits, self.suppressed_ids), axis=-1)
        hazard = self.hazards(jnp.where(masked, t, 1.0).astype(log_p.dtype))
        hazard_x = jnp.take_along_axis(hazard, x[..., None], axis=-1)
        # As differences from h_x, which are exactly 0 where all classes have the same schedule.
        others = jnp.sum((hazard - hazard_x) * jnp.exp(log_p), axis=-1)
        nats = others - (hazard_x * jnp.take_along_axis(log_p, x[..., None], axis=-1))[..., 0]
        return jnp.where(masked, nats, 0.0)

    def noise_rate(self, t: Values) -> Values:
        """The mean over classes with the frequencies `shares_V`."""
        every = (*t.shape, self.vocab)
        noise = self.noise_of(jnp.broadcast_to(jnp.arange(self.vocab), every), jnp.broadcast_to(t[..., None], every))
        return jnp.dot(noise, jnp.asarray(self.shares_V, noise.dtype), precision="highest")

    @property
    def shares_V(self) -> Float[np.ndarray, "V"]:
        """Frequency of each class in the text; by default all tokens are equally frequent."""
        return np.where(np.isin(np.arange(self.vocab), self.suppressed_ids), 0.0, 1 / self.tokens)

    @property
    def boundary(self) -> Boundary:
        return Boundary(any=self.left > 0)  # noise_v(0) = 0: there is no reconstruction, whatever eps leaves at t = 1

    # --- reverse ---------------------------------------------------------------------------------------------------------------

    def reverse_step(self, keys_B: RowKeys, logits_BLV: Logits, z_BL: Tokens, t_BL: PerToken, s_BL: PerToken) -> Tokens:
        """Draws the token first, then whether it is revealed: with probability 1 - noise_x(s) / noise_x(t) of that token.

        At s = 0 it always is, also where a network draws a token that is almost never masked at t.
        """
        which_B, token_B = split_rows(keys_B)
        token_BL = draw_tokens(token_B, exclude(logits_BLV, self.suppressed_ids))
        noise_t_BL, noise_s_BL = self.noise_of(token_BL, t_BL), self.noise_of(token_BL, s_BL)
        show_BL = uniform_rows(which_B, z_BL.shape[1]) < share_gone(noise_t_BL, noise_s_BL)
        return jnp.where((z_BL == self.mask_id) & show_BL, token_BL, z_BL)

    def log_likelihood(self, z: Ids, t: Values) -> PerClass:
        """log q_t(z | x = v): under a mask log noise_v(t), the same for all v only where they have the same schedule."""
        class_V, every = jnp.arange(self.vocab), (*z.shape, self.vocab)
        noise = self.noise_of(jnp.broadcast_to(class_V, every), jnp.broadcast_to(t[..., None], every))
        shown = jnp.where(z[..., None] == class_V, jnp.log(jnp.maximum(1 - noise, FLOOR)), -1e9)
        return jnp.where((z == self.mask_id)[..., None], jnp.log(jnp.maximum(noise, 1e-30)), shown)


class Exponents(StateDependent):
    """Abstract: alpha_v(t) = 1 - (1 - eps) t^(w_v), h_v = w_v / t. A subclass defines w; a token with w < 1 is masked earlier than others.

    eps: alpha_v(1), for which the bound has a prior term; 0 = all masked at t = 1.
    """

    eps: float
    # At the share t of noise a token with w < 1 costs t^(w - 1); different tokens stay distinguishable at every t.
    ends = Ends(power=2.0, clean=0.0, noise=5.0)

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.eps < 1:
            raise InputError(f"process {self.name}: eps is {self.eps}; it must lie in [0, 1)")

    @property
    @abc.abstractmethod
    def weights_V(self) -> Float[Array, "V"]:
        """w_v > 0."""

    def noise_of(self, x: Ids, t: Values) -> Values:
        t = real(t)
        # The power has an infinite derivative in w at t = 0 unless its log is kept finite.
        log_t = jnp.log(jnp.maximum(t, FLOOR))
        return jnp.where(t > 0, (1 - self.eps) * jnp.exp(self.weights_V.astype(t.dtype)[x] * log_t), 0.0)

    def hazards(self, t: Values) -> PerClass:
        return self.weights_V.astype(t.dtype) / jnp.maximum(t, FLOOR)[..., None]

    @property
    def left(self) -> float:
        return self.eps


@dataclasses.dataclass(frozen=True)
class GenMd4(Exponents):
    """Learned exponents w_v = exp(log_w_v), which start at 1: masked diffusion on the linear schedule.

    The distribution of z depends on w, so the bound's gradient has a second part, which the gradient of the loss does not contain; the
    objective estimates it from two draws and the gradient of `log_q`.

    schedule_lr: factor on the learning rate of the exponents.
    """

    vocab: int
    mask_id: int
    excluded: tuple[int, ...] = ()
    eps: float = 0.0
    params: Any = None
    schedule_lr: float = 1.0

    name = "genmd4"

    def __post_init__(self):
        super().__post_init__()
        check_schedule_lr(self.name, self.schedule_lr)

    @property
    def capabilities(self) -> Capabilities:
        return dataclasses.replace(super().capabilities, denoisings=2, reinforce=True)

    @property
    def parameters(self) -> dict[str, Any]:
        return {"log_w": Parameter(lambda _: jnp.zeros((self.vocab,), jnp.float32), "vector", float(self.schedule_lr))}

    def scalars(self) -> dict[str, Float[Array, ""]]:
        """Mean, least and largest exponent of the tokens that can occur in text."""
        if self.params is None:
            return {}
        w_K = self.weights_V[np.setdiff1d(np.arange(self.vocab), self.suppressed_ids)]
        return {"w_mean": jnp.mean(w_K), "w_min": jnp.min(w_K), "w_max": jnp.max(w_K)}

    @property
    def weights_V(self) -> Float[Array, "V"]:
        return jnp.ones((self.vocab,)) if self.params is None else jnp.exp(self.params["log_w"])
