"""Sampling of uniform noise by acceptance: as DiffusionGemma samples its blocks, and the form of it that has a distribution.

    accept        each step draws a token at every position from the tempered distribution and accepts an entropy-bounded set of them,
                  those accepted before included; the others become fresh noise. The text is the most likely tokens at the end. It can
                  revise. Sharpened: no position has an intermediate amount of noise, whatever t the network receives.
    accept_once   an accepted token stays, and the network receives t = 0 there and t = 1 elsewhere. A position at t = 1 says nothing of
                  its token, so this is the masked sampler under the rule entropy_bound: KL(text || sampled) is at most gamma E[steps].
                  The network must have been trained on times that differ within a row. (A clipped schedule leaves noise at t = 0.)

Shapes: B rows, L positions, V vocabulary.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dlmjax.diffusion.process import draw_tokens, exclude, split_rows
from dlmjax.errors import InputError
from dlmjax.sampling.bounded_rules import EntropyBound
from dlmjax.sampling.reveal import position_scores
from dlmjax.sampling.rules import View
from dlmjax.sampling.steppers import Stepper
from dlmjax.sampling.stops import Stable
from dlmjax.sampling.warp import warp

RENOISE = 3  # purpose of a draw of noise
REQUIRES = "uniform noise on tokens, without a mask"


@dataclasses.dataclass(frozen=True)
class Accept(Stepper):
    """See the module.

    gamma: nats of the accepted set beside its largest entropy.  high, low: temperature low + (high - low) t of a step at time t; with
    `--grid uniform` those of DiffusionGemma's steps.  stable, entropy: a row ends where its most likely tokens have been the same in that
    many steps before and their mean entropy is below `entropy` nats; stable=0: rows take all steps.
    """

    gamma: float = 0.1
    high: float = 0.8
    low: float = 0.4
    stable: int = 1
    entropy: float = 0.005

    name = "accept"
    requires = REQUIRES

    def __post_init__(self):
        EntropyBound(self.gamma)
        if not (0 < self.low <= 1e3 and 0 < self.high <= 1e3):
            raise InputError(f"method accept: high ({self.high}) and low ({self.low}) are temperatures and must be above 0, up to 1e3")
        if self.stable != 0:
            Stable(self.stable, self.entropy)

    @property
    def ends(self) -> bool:
        return self.stable > 0

    def begin(self, rows, length):
        return (jnp.ones(rows, bool), Stable(self.stable, self.entropy).begin((rows, length))) if self.ends else ()

    def open_rows(self, memory):
        return memory[0]

    def step(self, process, keys_B, denoise, z, t_BL, s_BL):
        return self._accepted(process, keys_B, denoise, z, t_BL, s_BL)[0]

    def stepped(self, process, keys_B, denoise, z, t_BL, s_BL, memory):
        next_BL, view = self._accepted(process, keys_B, denoise, z, t_BL, s_BL)
        if not self.ends:
            return next_BL, memory
        open_B, of_stop = memory
        end_B, of_stop = Stable(self.stable, self.entropy).done(view, of_stop)
        end_B |= ~jnp.any(view.masked_BL, axis=1)
        best_BL = jnp.where(view.masked_BL, jnp.argmax(view.log_p(), axis=-1), z).astype(z.dtype)
        next_BL = jnp.where(open_B[:, None], jnp.where(end_B[:, None], best_BL, next_BL), z)
        return next_BL, (open_B & ~end_B, of_stop)

    def _accepted(self, process, keys_B, denoise, z, t_BL, s_BL):
        """(z of the next step, what was known of this one); the most likely tokens where s = 0."""
        t_B11 = jnp.max(t_BL, axis=1)[:, None, None]
        log_p_BLV = exclude(process.output.log_posterior(denoise(z, t_BL), z, t_BL), process.suppressed_ids)
        log_p_BLV = jax.nn.log_softmax(warp(log_p_BLV) / (self.low + (self.high - self.low) * t_B11))
        view = view_of(log_p_BLV, t_BL > 0)
        noise_BL = process.prior(jax.vmap(jax.random.fold_in, (0, None))(keys_B, RENOISE), z.shape[1])
        accepted_BL = EntropyBound(self.gamma).choose(view, ()).reveal_BL
        next_BL = jnp.where(accepted_BL, draw_tokens(keys_B, log_p_BLV), noise_BL)
        next_BL = jnp.where(s_BL <= 0, jnp.argmax(log_p_BLV, axis=-1), next_BL).astype(z.dtype)
        return jnp.where(t_BL > 0, next_BL, z), view


@dataclasses.dataclass(frozen=True)
class AcceptOnce(Stepper):
    """See the module. gamma: as of the rule entropy_bound, nats."""

    gamma: float = 0.1

    name = "accept_once"
    requires = REQUIRES

    def __post_init__(self):
        EntropyBound(self.gamma)

    @property
    def reveals_by(self):
        return EntropyBound(self.gamma)

    def check(self, process):
        super().check(process)
        if process.time_domain.one_time_per_row:
            raise InputError(
                f"method accept_once requires times that differ within a row, which process {process.name} does not provide; "
                "use method accept"
            )

    def step(self, process, keys_B, denoise, z, t_BL, s_BL):
        """One step from noise alone to text, as the rule takes it; the sampler takes its steps by `reveals_by`."""
        log_p_BLV = exclude(process.output.log_posterior(denoise(z, t_BL), z, t_BL), process.suppressed_ids)
        x_BL = draw_tokens(split_rows(keys_B)[0], log_p_BLV).astype(z.dtype)
        return jnp.where((t_BL > 0) & (s_BL <= 0), x_BL, z)


def view_of(log_p_BLV: Float[Array, "B L V"], open_BL: Bool[Array, "B L"]) -> View:
    """What a rule or a stop sees of a step in which the positions `open_BL` may be chosen."""
    return View(
        masked_BL=open_BL,
        start_masked_BL=open_BL,
        step=jnp.int32(1),
        steps=1,
        scores_of=lambda name: position_scores(name, log_p_BLV),
        log_p=lambda: log_p_BLV,
    )
