"""From a denoiser and a batch to the number that is trained and the numbers that are reported.

    t, 1/pdf  <- times        (rows of the global batch)
    z         <- process      corrupts x at t; padding stays
    nats      <- denoiser's head on the rows that carry loss, process.loss
    total     =  sum of nats x 1/pdf x weighting, + boundary terms

Reported apart, so that a reweighted loss is never taken for a likelihood: `nats` (the bound, unweighted), `loss` (what is trained),
the realised noise rate, and the bound's integrand by noise level. Everything is a sum over the batch's tokens: microbatches and hosts
add up, and one division by `tokens` at the end gives means. (Dividing by the count of masked tokens would not be a bound.)

Shapes: B batch, L length, D width, V vocabulary. Units: nats.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from dlmjax.diffusion.process import Process, row_keys
from dlmjax.diffusion.times import PerRow, Times
from dlmjax.diffusion.weighting import Weighting

LEVELS = 10  # bins of t in which the integrand is reported

Parts = dict[str, Array]


@runtime_checkable
class Denoiser(Protocol):
    """A network with its weights and one batch's segments, positions and mask already bound."""

    def hidden(self, z_BL: Array, t_BL: Array) -> Array:
        """States [B, L, D] for tokens (or states) z at levels t."""
        ...

    def logits(self, hidden: Array) -> Array:
        """Float32 logits [..., V] of states [..., D]."""
        ...

    def row_losses(
        self, hidden_BLD: Array, rows_BL: Array, nats_fn: Callable[..., Array], row_args: tuple[Array, ...], weight_BL: Array
    ) -> tuple[Array, Array]:
        """(sum of weight x nats over `rows_BL`, nats [B, L] without gradient and 0 elsewhere); nats_fn(logits_NV, *args_N) -> [N]."""
        ...


@dataclasses.dataclass(frozen=True)
class Objective:
    """process x times x weighting.

    weighting: None takes the process's own.
    boundary: add the prior and reconstruction terms of a process that has them; the reconstruction costs a second pass of the network,
      at t = 0. None = add them exactly where the trained loss is meant to be the bound. Without them `is_bound` is False.
    """

    process: Process
    times: Times = PerRow()
    weighting: Weighting | None = None
    boundary: bool | None = None

    def __post_init__(self):
        if self.weighting is None:
            object.__setattr__(self, "weighting", self.process.weighting)
        if self.boundary is None:
            object.__setattr__(self, "boundary", self.weighting.is_bound)
        if not self.weighting.is_bound:
            # Asked now, so that a process whose loss has no such weight is refused before anything runs.
            self.weighting.factor(self.process, jnp.full((1,), 0.5))

    def __call__(
        self, denoiser: Denoiser, batch: Mapping[str, Any], key: Key[Array, ""], global_batch: int
    ) -> tuple[Float[Array, ""], Parts]:
        """The loss of a batch (or of one of its microbatches).

        Args:
          denoiser: bound to this batch's segments and positions and to `process.attention`.
          batch: tokens, segments [B, L] and row [B] int32; segments == 0 is padding.
          key: the key of the step; all randomness is drawn from it and the row numbers.
          global_batch: rows of the whole step.
        Returns:
          total: the sum to be trained, in nats; divide by the summed `parts["tokens"]`.
          parts: sums without gradient: tokens, corrupted (int32); nats, loss, prior, reconstruction (float32); nats_by_level and
            tokens_by_level [10]. `nats` is the bound where `is_bound`, its diffusion part where the boundary is left out.
        """
        x_BL, valid_BL = batch["tokens"], batch["segments"] > 0
        time_key, noise_key, boundary_key = jax.random.split(key, 3)
        t_BL, inverse_pdf_BL = self.times.draw(time_key, batch["row"], global_batch, x_BL.shape[1])
        t_BL = self.process.levels(t_BL, valid_BL)
        keys_B = row_keys(noise_key, batch["row"])

        z_BL = self.process.corrupt(keys_B, x_BL, t_BL, valid_BL)
        weight_BL = inverse_pdf_BL * self.weighting.factor(self.process, t_BL)
        total, nats_BL = _diffusion(self.process, denoiser, x_BL, valid_BL, z_BL, t_BL, weight_BL)
        prior = reconstruction = jnp.zeros((), jnp.float32)
        if self.boundary and self.process.has_boundary:
            prior = jnp.sum(jnp.where(valid_BL, self.process.prior_nats(x_BL), 0.0))
            reconstruction, _ = reconstruction_nats(self.process, denoiser, x_BL, valid_BL, row_keys(boundary_key, batch["row"]))
            total = total + prior + reconstruction
        parts = {
            "tokens": jnp.sum(valid_BL, dtype=jnp.int32),
            "corrupted": jnp.sum(self.process.corrupted(x_BL, z_BL) & valid_BL, dtype=jnp.int32),
            "nats": jnp.sum(nats_BL * inverse_pdf_BL) + prior + reconstruction,
            "loss": total,
            "prior": prior,
            "reconstruction": reconstruction,
            "nats_by_level": _by_level(t_BL, nats_BL),
            "tokens_by_level": _by_level(t_BL, valid_BL.astype(jnp.float32)),
        }
        return total, jax.lax.stop_gradient(parts)

    @property
    def is_bound(self) -> bool:
        """True where the mean of parts["nats"] is an upper bound on -log p(x)."""
        whole = self.boundary or not self.process.has_boundary
        return self.process.is_bound and self.times.covers and whole

    @property
    def trains_bound(self) -> bool:
        """True where what is trained is that bound itself."""
        return self.is_bound and self.weighting.is_bound

    def report(self, parts: Mapping[str, Any]) -> dict[str, float]:
        """Means in nats per token from summed parts (on the host). Only a bound is called `nelbo`.

        "nelbo" or "partial_nelbo"; "loss", or "loss_NAME_not_a_bound"; "noise_rate"; "level_0.05" ... "level_0.95": the integrand of
        the bound's diffusion part at that noise level (bins without tokens are left out).
        """
        tokens = max(float(parts["tokens"]), 1.0)
        loss = "loss" if self.trains_bound else f"loss_{self.weighting.name}_not_a_bound"
        report = {
            "nelbo" if self.is_bound else "partial_nelbo": float(parts["nats"]) / tokens,
            loss: float(parts["loss"]) / tokens,
            "noise_rate": float(parts["corrupted"]) / tokens,
        }
        for i, (nats, count) in enumerate(zip(parts["nats_by_level"], parts["tokens_by_level"], strict=True)):
            if count > 0:
                report[f"level_{(i + 0.5) / LEVELS:.2f}"] = float(nats) / float(count)
        return report


def nats_at(
    process: Process,
    denoiser: Denoiser,
    tokens_BL: Int[Array, "B L"],
    segments_BL: Int[Array, "B L"],
    keys_B: Key[Array, "B"],
    t_BL: Float[Array, "B L"],
) -> Float[Array, "B L"]:
    """The bound's integrand at given levels, per token, under the noise of `keys_B`; 0 on padding. What an evaluation integrates."""
    valid_BL = segments_BL > 0
    t_BL = process.levels(t_BL, valid_BL)
    z_BL = process.corrupt(keys_B, tokens_BL, t_BL, valid_BL)
    return _diffusion(process, denoiser, tokens_BL, valid_BL, z_BL, t_BL, jnp.ones_like(t_BL))[1]


def reconstruction_nats(
    process: Process, denoiser: Denoiser, x_BL: Int[Array, "B L"], valid_BL: Bool[Array, "B L"], keys_B: Key[Array, "B"]
) -> tuple[Float[Array, ""], Float[Array, "B L"]]:
    """-log p(x | z_0) with z_0 drawn from `keys_B`: its sum (with gradient) and per token (without). One pass of the network."""
    clean_BL = jnp.zeros(x_BL.shape, jnp.float32)
    z0_BL = process.corrupt(keys_B, x_BL, clean_BL, valid_BL)
    rows_BL = process.rows(z0_BL, clean_BL) & valid_BL
    hidden_BLD = denoiser.hidden(z0_BL, clean_BL)
    return denoiser.row_losses(hidden_BLD, rows_BL, process.reconstruction, (x_BL, z0_BL), valid_BL.astype(jnp.float32))


def _diffusion(
    process: Process,
    denoiser: Denoiser,
    x_BL: Int[Array, "B L"],
    valid_BL: Bool[Array, "B L"],
    z_BL: Shaped[Array, "B L *state"],
    t_BL: Float[Array, "B L"],
    weight_BL: Float[Array, "B L"],
) -> tuple[Float[Array, ""], Float[Array, "B L"]]:
    """(weighted sum with gradient, nats per token without) of the diffusion part at one draw of (t, z)."""
    rows_BL = process.rows(z_BL, t_BL) & valid_BL
    hidden_BLD = denoiser.hidden(z_BL, t_BL)
    return denoiser.row_losses(hidden_BLD, rows_BL, process.loss, (x_BL, z_BL, t_BL), weight_BL)


def _by_level(t_BL: Float[Array, "B L"], value_BL: Float[Array, "B L"]) -> Float[Array, "10"]:
    """Sums of `value_BL` over ten equal bins of t."""
    bin_BL = jnp.clip((t_BL * LEVELS).astype(jnp.int32), 0, LEVELS - 1)
    return jnp.stack([jnp.sum(jnp.where(bin_BL == i, value_BL, 0.0)) for i in range(LEVELS)])
