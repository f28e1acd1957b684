"""Masked diffusion in which the rate of every mask depends on the whole text: LoMDM (2602.02112), a learned order of generation.

    noise_i(x, t) = t^(w_i(x)),   h_i(x, t) = w_i(x) / t   (the rate at which the mask at i is revealed, for the text x)
    g_i(z, t) = v_i(z, t) / t                              (that rate as the model has it, which does not see x)
    loss = 1[z_i = m] ( h CE + g - h + h ln(h / g) ),      CE = -log p(x_i | z, t)

Given x the chain reveals the token x_i at rate h; the model reveals a token v at rate g p_v. The divergence of the two jump rates,
sum over v of g p_v - h 1[v = x] + h 1[v = x] ln(h / (g p_v)), is that loss: a bound for all w, v and p. Its second part, from g - h on, is
not negative, and 0 where g = h.

It is tight where w depends on the position and on the token at i alone (then this is the bound of state_dependent.py). It is not where w
depends on other tokens: the times at which tokens are revealed then tell about x, and a reverse chain that reads z and t forgets them. The
best p is not p(x_i | z) but that posterior weighted by h. As z depends on w, the gradient in w is estimated from two draws.

Shapes: B batch, L length, V vocabulary, C width; `*n` any shape. Losses in nats per token.
"""

import abc
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dlmjax.diffusion.declarations import Capabilities, Ends, Parameter
from dlmjax.diffusion.process import check_schedule_lr, cross_entropy, draw_tokens, exclude, split_rows, uniform_rows
from dlmjax.diffusion.processes.absorbing import Absorbing
from dlmjax.diffusion.processes.state_dependent import TimesOfMasks, log_probability
from dlmjax.diffusion.schedules import real
from dlmjax.diffusion.shapes import Ids, Logits, PerClass, PerToken, RowKeys, Tokens, Values
from dlmjax.errors import InputError

# The least t in a logarithm or a division. Below the floor of other schedules: a token with w = 1/4 is masked there once in 10^6 texts.
FLOOR = 1e-24


class TextDependent(Absorbing):
    """Abstract: masking at rates that depend on the text. A subclass defines `log_weights` and `log_model_weights`.

    No forward steps: a state in which tokens are masked does not determine the rates of the others.
    """

    time_input = True
    time_domain = TimesOfMasks()
    # As of exponents per token (state_dependent.py).
    ends = Ends(power=2.0, clean=0.0, noise=5.0)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(prior_mask_id=self.mask_id, is_tight=False)

    @abc.abstractmethod
    def log_weights(self, x_BL: Tokens) -> PerToken:
        """log w_i(x)."""

    @abc.abstractmethod
    def log_model_weights(self, z_BL: Tokens, t_BL: PerToken) -> PerToken:
        """log v_i(z, t), read at masked positions."""

    @property
    def left(self) -> float:
        return 0.0

    def noise_of(self, x: Tokens, t: PerToken) -> PerToken:
        """Of whole rows [B, L], unlike that of processes whose noise differs between tokens alone."""
        t = real(t)
        # The power has an infinite derivative in w at t = 0 unless its log is kept finite.
        exponent = jnp.exp(self.log_weights(x)).astype(t.dtype) * jnp.log(jnp.maximum(t, FLOOR))
        return jnp.where(t > 0, jnp.exp(exponent), 0.0)

    def log_q(self, z_BL: Tokens, x_BL: Tokens, t_BL: PerToken) -> PerToken:
        return log_probability(self.noise_of(x_BL, t_BL), z_BL == self.mask_id)

    def noise_rate(self, t: Values) -> Values:
        """That of w = 1, where training starts; the mean over texts is not known."""
        return real(t)

    def loss_inputs(self, x_BL: Tokens, z_BL: Tokens, t_BL: PerToken) -> tuple[PerToken, PerToken]:
        return self.log_weights(x_BL), self.log_model_weights(z_BL, t_BL)

    def loss(self, logits: PerClass, x: Ids, z: Ids, t: Values, log_w: Values, log_v: Values) -> Values:
        masked = z == self.mask_id
        nats = cross_entropy(logits, x, self.suppressed_ids)
        log_w, log_v = log_w.astype(nats.dtype), log_v.astype(nats.dtype)
        w, v = jnp.exp(log_w), jnp.exp(log_v)
        per_time = 1 / jnp.maximum(jnp.where(masked, t, 1.0), FLOOR).astype(nats.dtype)
        return jnp.where(masked, per_time * (w * nats + v - w + w * (log_w - log_v)), 0.0)

    def reverse_step(self, keys_B: RowKeys, logits_BLV: Logits, z_BL: Tokens, t_BL: PerToken, s_BL: PerToken) -> Tokens:
        """Reveals a mask with probability 1 - (s/t)^v, exactly 1 at s = 0, then draws its token."""
        which_B, token_B = split_rows(keys_B)
        log_ratio_BL = jnp.log(jnp.maximum(s_BL, FLOOR)) - jnp.log(jnp.maximum(t_BL, FLOOR))
        stays_BL = jnp.where(s_BL > 0, jnp.exp(jnp.exp(self.log_model_weights(z_BL, t_BL)) * log_ratio_BL), 0.0)
        reveal_BL = uniform_rows(which_B, z_BL.shape[1]) >= stays_BL
        return jnp.where((z_BL == self.mask_id) & reveal_BL, draw_tokens(token_B, exclude(logits_BLV, self.suppressed_ids)), z_BL)


@dataclasses.dataclass(frozen=True)
class LoMdm(TextDependent):
    """w and v by two small networks of the process, trained with the denoiser: a layer over a token and its neighbours on both sides.

    Both start at 1, masked diffusion on the linear schedule. The paper takes the rates from passes of the denoiser; here a step denoises
    every row twice, and the rates cost `capabilities.own_flops`. Neighbours are read across the boundaries of documents in a row, so the
    bound is that of the row; padding is not read.

    strength: w and v lie between 1/strength and strength; at least 1.  reach: neighbours that are read on each side.  width: C.
    schedule_lr: factor on the learning rate of both networks.
    """

    vocab: int
    mask_id: int
    excluded: tuple[int, ...] = ()
    pad_id: int | None = None
    params: Any = None
    strength: float = 2.0
    reach: int = 2
    width: int = 16
    schedule_lr: float = 1.0

    name = "lomdm"

    def __post_init__(self):
        super().__post_init__()
        check_schedule_lr(self.name, self.schedule_lr)
        if not 1 <= self.strength < float("inf"):
            raise InputError(f"process lomdm: strength is {self.strength}; it must be at least 1 (all rates alike)")
        if not (0 <= self.reach <= 64 and 1 <= self.width <= 1024):
            raise InputError(
                f"process lomdm: reach is {self.reach} and width {self.width}; reach must lie in [0, 64] and width in [1, 1024]"
            )

    @property
    def capabilities(self) -> Capabilities:
        inner = self._inputs * self.width + self.width
        # Both networks, forward and backward: w once for a row, v for each of its two draws.
        own_flops = 6.0 * (inner + 2 * (inner + self.width))
        return dataclasses.replace(super().capabilities, denoisings=2, reinforce=True, own_flops=own_flops)

    @property
    def _inputs(self) -> int:
        return (2 * self.reach + 1) * self.width

    @property
    def parameters(self) -> dict[str, Any]:
        """The weights of w ("text") and of v ("noisy"); `out` starts at zero, so that both start at 1."""

        def network(extra: int, fold: int) -> dict[str, Parameter]:
            shape = (self._inputs + extra, self.width)

            def normal(shape: tuple[int, ...], scale: float, which: int):
                return lambda key: scale * jax.random.normal(jax.random.fold_in(key, which), shape, jnp.float32)

            return {
                "table": Parameter(normal((self.vocab, self.width), 1.0, fold), "embedding", float(self.schedule_lr)),
                "kernel": Parameter(normal(shape, 1 / math.sqrt(shape[0]), fold + 1), "matrix", float(self.schedule_lr)),
                "out": Parameter(lambda _: jnp.zeros((self.width,), jnp.float32), "vector", float(self.schedule_lr)),
            }

        return {"text": network(0, 0), "noisy": network(1, 2)}

    def log_weights(self, x_BL: Tokens) -> PerToken:
        return self._network("text", x_BL, None)

    def log_model_weights(self, z_BL: Tokens, t_BL: PerToken) -> PerToken:
        return self._network("noisy", z_BL, t_BL)

    def _network(self, which: str, ids_BL: Tokens, t_BL: PerToken | None) -> Float[Array, "B L"]:
        """log strength x tanh of an MLP over the embeddings of a token and its neighbours, and t."""
        if self.params is None:
            return jnp.zeros(ids_BL.shape, jnp.float32)
        weights, reach, length = self.params[which], self.reach, ids_BL.shape[1]
        embedded_BLC = weights["table"][ids_BL]
        if self.pad_id is not None:  # padding is read as what lies beyond the ends of a row
            embedded_BLC = jnp.where((ids_BL == self.pad_id)[..., None], 0.0, embedded_BLC)
        around_BLC = jnp.pad(embedded_BLC, ((0, 0), (reach, reach), (0, 0)))
        inputs = [around_BLC[:, k : k + length] for k in range(2 * reach + 1)]
        if t_BL is not None:
            inputs.append(t_BL[..., None].astype(embedded_BLC.dtype))
        inner_BLC = jax.nn.gelu(jnp.concatenate(inputs, axis=-1) @ weights["kernel"])
        return math.log(self.strength) * jnp.tanh(inner_BLC @ weights["out"])
