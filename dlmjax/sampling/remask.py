"""Remasking: a step that may also hide again what was shown, and yet has the marginals of the process (ReMDM 2503.00307).

From t to s a shown token is hidden with probability sigma, a hidden one shown with probability
    ((1 - alpha_t) - (1 - alpha_s) + sigma alpha_t) / (1 - alpha_t),      0 <= sigma <= min(1, (1 - alpha_s) / alpha_t)
(eq. 6), so that q(z_s | x) stays what it was: mistakes of parallel steps can be taken back. sigma = 0 is the ancestral step. Hidden
tokens are drawn from the same network; no training knows of it.
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
    """rule: "cap" sigma = min(eta, the most), "rescale" sigma = eta x the most, "loop" as cap, but only in steps from a level to itself,
    which grid "hold" makes (before and after them nothing is hidden again)."""

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
        """(probability that a shown token is hidden, probability that a hidden one is shown)."""
        alpha_t_BL = process.schedule.alpha(t_BL)
        noise_t_BL, noise_s_BL = process.schedule.noise(t_BL), process.schedule.noise(s_BL)
        most_BL = jnp.minimum(noise_s_BL / jnp.maximum(alpha_t_BL, FLOOR), 1.0)
        sigma_BL = self.eta * most_BL if self.rule == "rescale" else jnp.minimum(self.eta, most_BL)
        if self.rule == "loop":
            sigma_BL = jnp.where(s_BL < t_BL, 0.0, sigma_BL)
        show_BL = (noise_t_BL - noise_s_BL + sigma_BL * alpha_t_BL) / jnp.maximum(noise_t_BL, FLOOR)
        return sigma_BL, jnp.where(noise_s_BL > 0, show_BL, 1.0)

    def step(self, process, keys_B, denoise, z, t_BL, s_BL):
        which_B, token_B = split_rows(keys_B)
        hide_BL, show_BL = self.rates(process, t_BL, s_BL)
        masked_BL = z == process.absorbing_id
        change_BL = uniform_rows(which_B, z.shape[1]) < jnp.where(masked_BL, show_BL, hide_BL)
        tokens_BL = draw_tokens(token_B, denoise(z, t_BL))
        return jnp.where(change_BL, jnp.where(masked_BL, tokens_BL, process.absorbing_id), z)
