"""Remasking: a step that may mask a revealed token again and keeps the marginals of the process (ReMDM 2503.00307).

From t to s a revealed token is masked with probability sigma, and a masked position is revealed with probability
    ((1 - alpha_t) - (1 - alpha_s) + sigma alpha_t) / (1 - alpha_t),      0 <= sigma <= min(1, (1 - alpha_s) / alpha_t)
(eq. 6), so that q(z_s | x) does not change. Errors of parallel steps can thus be corrected. sigma = 0 is the ancestral step. The network
requires no training of its own for this.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from dlmjax.diffusion.process import Process, draw_tokens, split_rows, uniform_rows
from dlmjax.diffusion.schedules import FLOOR
from dlmjax.errors import InputError
from dlmjax.sampling.steppers import Stepper

RULES = ("cap", "rescale", "loop")


@dataclasses.dataclass(frozen=True)
class Remask(Stepper):
    """rule: the value of sigma. "cap": min(eta, upper bound); "rescale": eta x upper bound; "loop": as cap in steps with t = s, which grid
    "hold" makes, and 0 in the others. eta: probability (cap, loop) or share of the upper bound (rescale), in [0, 1]."""

    rule: str = "rescale"
    eta: float = 0.1

    name = "remask"
    requires = "absorbing noise (masks) at one rate for all tokens"

    def __post_init__(self):
        if self.rule not in RULES:
            raise InputError(f"method remask: rule is {self.rule!r}; choose one of {', '.join(RULES)}")
        if not 0 <= self.eta <= 1:
            raise InputError(f"method remask: eta is {self.eta}; it is a probability and must lie in [0, 1]")

    def rates(
        self, process: Process, t_BL: Float[Array, "B L"], s_BL: Float[Array, "B L"]
    ) -> tuple[Float[Array, "B L"], Float[Array, "B L"]]:
        """(probability that a revealed token is masked, probability that a masked position is revealed)."""
        alpha_t_BL = process.schedule.alpha(t_BL)
        noise_t_BL, noise_s_BL = process.schedule.noise(t_BL), process.schedule.noise(s_BL)
        sigma_BL = sigma_of(self.rule, self.eta, alpha_t_BL, noise_s_BL)
        if self.rule == "loop":
            sigma_BL = jnp.where(s_BL < t_BL, 0.0, sigma_BL)
        reveal_BL = (noise_t_BL - noise_s_BL + sigma_BL * alpha_t_BL) / jnp.maximum(noise_t_BL, FLOOR)
        return sigma_BL, jnp.where(noise_s_BL > 0, reveal_BL, 1.0)

    def step(self, process, keys_B, denoise, z, t_BL, s_BL):
        which_B, token_B = split_rows(keys_B)
        mask_BL, reveal_BL = self.rates(process, t_BL, s_BL)
        masked_BL = z == process.absorbing_id
        change_BL = uniform_rows(which_B, z.shape[1]) < jnp.where(masked_BL, reveal_BL, mask_BL)
        tokens_BL = draw_tokens(token_B, denoise(z, t_BL))
        return jnp.where(change_BL, jnp.where(masked_BL, tokens_BL, process.absorbing_id), z)


def sigma_of(rule: str, eta: float, alpha_t_BL: Float[Array, "B L"], noise_s_BL: Float[Array, "B L"]) -> Float[Array, "B L"]:
    """sigma before any loop; `rule` and `eta` as of `Remask`.  alpha_t_BL: alpha_t.  noise_s_BL: 1 - alpha_s."""
    bound_BL = jnp.minimum(noise_s_BL / jnp.maximum(alpha_t_BL, FLOOR), 1.0)
    return eta * bound_BL if rule == "rescale" else jnp.minimum(eta, bound_BL)
